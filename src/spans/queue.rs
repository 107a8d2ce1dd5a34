//! The queue of finished spans: many threads send, the exporter's thread receives.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::metrics::{SpanLoss, TelemetryMetrics};
use crate::spans::span::TraceSpan;

/// What the receiver gets.
#[derive(Debug)]
pub enum SpanMessage {
    Spans(Vec<TraceSpan>),
    /// The process ends: export what waits.
    Stop,
}

/// A handle for senders; cheap to clone.
#[derive(Clone, Debug)]
pub struct SpanSender {
    sender: SyncSender<SpanMessage>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Spans that are sent and not [released](SpanReceiver::release). Memory ordering: relaxed, because only
    /// the number counts; the channel orders the spans.
    waiting: AtomicUsize,
    spans_max: usize,
    metrics: Arc<TelemetryMetrics>,
}

/// The other end.
#[derive(Debug)]
pub struct SpanReceiver {
    receiver: Receiver<SpanMessage>,
    shared: Arc<Shared>,
}

/// A queue of at most so many spans.
pub fn queue(spans_max: usize, metrics: Arc<TelemetryMetrics>) -> (SpanSender, SpanReceiver) {
    let (sender, receiver) = sync_channel(spans_max);
    let shared = Arc::new(Shared { waiting: AtomicUsize::new(0), spans_max, metrics });
    (SpanSender { sender, shared: shared.clone() }, SpanReceiver { receiver, shared })
}

impl SpanSender {
    /// Whether a span has space, so that it is worth while to make it.
    pub fn has_space(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) < self.shared.spans_max
    }

    /// Counts a span that was not made, because there was no space.
    pub fn drop_one(&self) {
        self.shared.metrics.lost(SpanLoss::Full, 1);
    }

    /// Sends spans without waiting. Those that do not fit are dropped and counted.
    pub fn send(&self, spans: Vec<TraceSpan>) {
        let (waiting, count) = (&self.shared.waiting, spans.len());
        if count == 0 {
            return;
        }
        let is_sent = waiting.fetch_add(count, Ordering::Relaxed) + count <= self.shared.spans_max
            && self.sender.try_send(SpanMessage::Spans(spans)).is_ok();
        if !is_sent {
            waiting.fetch_sub(count, Ordering::Relaxed);
            self.shared.metrics.lost(SpanLoss::Full, count as u64);
        }
    }

    /// Wakes the receiver for its end. If the queue is full it does not sleep, and looks whether it has to
    /// stop before it does.
    pub fn stop(&self) {
        let _ = self.sender.try_send(SpanMessage::Stop);
    }
}

impl SpanReceiver {
    /// Waits for the next message. `None`: there is none in this time.
    ///
    /// # Errors
    /// There is no sender any more.
    pub fn next(&self, timeout: Duration) -> Result<Option<SpanMessage>, RecvTimeoutError> {
        match self.receiver.recv_timeout(timeout) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the space of so many spans back, after their export.
    pub fn release(&self, count: usize) {
        self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}
