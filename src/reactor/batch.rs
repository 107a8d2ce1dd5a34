//! A batch of requests: all that are whole in a connection's buffer, answered in one go.
//!
//! In: a buffer, its reader, the reactor's snapshot. Out: bytes for one write, and what the
//! connection does next. Invariant: synchronous from end to end; one reading of the clock before
//! and one after; a panic in the spine costs that request a 500 and nobody else anything.
use std::fmt::Display;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};

use crate::channel::Lease;
use crate::config::Level;
use crate::handlers;
use crate::handlers::sse::StreamSubscription;
use crate::handlers::{Exceeded, HandlerState, RequestOutcome};
use crate::http::framing::TARGET_PART;
use crate::http::route::Route;
use crate::http::{ParseError, Progress, RequestReader, ResponseWriter};
use crate::limits::{
    BATCH_BYTES_MAX, JSONPATH_STEPS_MAX, PATTERN_STEPS_REQUEST_MAX, SPARE_BUFFER_BYTES_MAX, SPARE_BUFFERS_MAX,
};
use crate::reactor::connections::Phase;
use crate::reactor::panic;
use crate::reactor::worker::{Reactor, RequestState};
use crate::snapshot::Snapshot;

/// One line for the process: a client that sends such heads sends them with every request.
static LARGE_HEAD_LOGGED: AtomicBool = AtomicBool::new(false);

/// What a batch of requests left to do.
pub struct Batch {
    pub bytes: Vec<u8>,
    /// The end of a large body, and the snapshot it belongs to.
    pub tail: Option<(Bytes, Rc<Lease>)>,
    pub next: Next,
    /// The last answer was the head of an event stream.
    pub subscription: Option<StreamSubscription>,
}

/// What the connection does once the batch is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Read(Phase),
    /// There may be more whole requests in the buffer.
    Answer,
    Close,
}

/// A batch while it is answered.
struct BatchWriter<'a> {
    reactor: &'a Reactor,
    settings: &'a handlers::HandlerSettings,
    snapshot: &'a Lease,
    spine: &'a mut RequestState,
    peer: Option<IpAddr>,
    /// When the first request was found whole; all answers carry this time.
    began: Option<SystemTime>,
    requests: u64,
    /// How many more this connection may bring.
    left: &'a mut u64,
}

impl Reactor {
    /// Answers every whole request in the buffer, up to the size of one write.
    pub fn answer_batch(
        &self,
        reader: &mut RequestReader,
        buffer: &mut BytesMut,
        peer: Option<IpAddr>,
        left: &mut u64,
    ) -> Batch {
        let lease = self.lease.borrow();
        let Some(snapshot) = lease.as_ref() else {
            // No connection is accepted before the first snapshot.
            return Batch { bytes: Vec::new(), tail: None, next: Next::Close, subscription: None };
        };
        let (spine, settings) = (&mut *self.spine.borrow_mut(), self.settings.borrow());
        let (began, requests) = (None, 0);
        let mut answering =
            BatchWriter { reactor: self, settings: &settings, snapshot, spine, peer, began, requests, left };
        let next = answering.run(reader, buffer);
        answering.count();
        let output = &mut spine.output;
        output.close = false;
        let tail = output.tail.take().map(|tail| (tail, snapshot.clone()));
        let subscription = spine.room.take_subscription();
        Batch { bytes: std::mem::take(&mut output.bytes), tail, next, subscription }
    }

    /// One refusal in a buffer of its own.
    pub fn refuse(&self, reader: &RequestReader, buffer: &[u8], reject: ParseError) -> Batch {
        self.metrics.rejected(reject);
        self.metrics.answered(Route::Unknown, reject.status().0);
        let mut output = ResponseWriter::default();
        output.set_date(SystemTime::now());
        let lines = self.settings.borrow().cors_error_headers(reader.error_fields(buffer).as_ref());
        output.reject(reader.context(), reject, &lines);
        Batch { bytes: output.bytes, tail: None, next: Next::Close, subscription: None }
    }

    /// Keeps an answer buffer for the next batch, of whatever connection.
    pub fn give_back(&self, mut bytes: Vec<u8>) {
        let mut spare = self.spare_buffers.borrow_mut();
        let is_kept = (1..=SPARE_BUFFER_BYTES_MAX).contains(&bytes.capacity());
        if is_kept && spare.len() < SPARE_BUFFERS_MAX {
            bytes.clear();
            spare.push(bytes);
        }
    }
}

impl BatchWriter<'_> {
    fn run(&mut self, reader: &mut RequestReader, buffer: &mut BytesMut) -> Next {
        loop {
            match reader.advance(buffer) {
                Ok(Progress::Idle) => return Next::Read(Phase::Idle),
                Ok(Progress::Head) => return Next::Read(Phase::Head),
                Ok(Progress::Body { expects_continue }) => {
                    if expects_continue {
                        self.begin();
                        self.spine.output.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    return Next::Read(Phase::Body);
                }
                Ok(Progress::Ready) => self.answer(reader, buffer),
                Err(reject) => self.refuse(reader, buffer, reject),
            }
            let output = &self.spine.output;
            if output.close {
                return Next::Close;
            }
            reader.consume(buffer);
            if output.tail.is_some() || output.bytes.len() >= BATCH_BYTES_MAX {
                return Next::Answer;
            }
        }
    }

    /// At the first answer: takes a buffer, and the time that all of them carry.
    fn begin(&mut self) -> SystemTime {
        *self.began.get_or_insert_with(|| {
            let output = &mut self.spine.output;
            output.bytes = self.reactor.spare_buffers.borrow_mut().pop().unwrap_or_default();
            let now = SystemTime::now();
            output.set_date(now);
            now
        })
    }

    fn refuse(&mut self, reader: &RequestReader, buffer: &[u8], reject: ParseError) {
        self.begin();
        self.requests += 1;
        self.reactor.metrics.rejected(reject);
        self.reactor.metrics.answered(Route::Unknown, reject.status().0);
        let lines = self.settings.cors_error_headers(reader.error_fields(buffer).as_ref());
        self.spine.output.reject(reader.context(), reject, &lines);
        if matches!(reject, ParseError::HeadTooLarge | ParseError::TargetTooLong) {
            self.reactor.log_large_head(reject);
        }
    }

    fn answer(&mut self, reader: &mut RequestReader, buffer: &mut BytesMut) {
        let now = self.begin();
        let is_last = reader.is_last(buffer);
        let Some(mut request) = reader.request(buffer) else {
            return self.refuse(reader, buffer, ParseError::Internal);
        };
        self.requests += 1;
        self.spine.output.is_alone = self.spine.output.bytes.is_empty() && is_last;
        *self.left = self.left.saturating_sub(1);
        request.keep_alive &= *self.left > 0 && !self.reactor.draining.get();
        let RequestState { room, output } = &mut *self.spine;
        let before_bytes = output.bytes.len();
        let (settings, snapshot) = (self.settings, self.snapshot);
        let answered = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            self.reactor.panic_if_asked(super::InjectedPanic::Request);
            handlers::handle(settings, snapshot, now, &mut request, room, output)
        }));
        let outcome = match answered {
            Ok(outcome) => outcome,
            Err(_) => {
                self.reactor.log_request_panic();
                // Whatever was left half done is forgotten with its buffers.
                room.reset_after_panic();
                output.bytes.truncate(before_bytes);
                output.tail = None;
                let lines = settings.cors_error_headers(Some(&request.fields));
                output.reject(request.context(), ParseError::Internal, &lines);
                RequestOutcome { status: 500, ..RequestOutcome::NONE }
            }
        };
        let exceeded = room.take_exceeded(&outcome);
        if exceeded != Exceeded::NONE {
            self.reactor.note_exceeded(exceeded, snapshot, &outcome, room);
        }
        self.reactor.metrics.answered(outcome.route, outcome.status);
        if let Some(reject) = outcome.reject {
            self.reactor.metrics.rejected(reject);
        }
        if outcome.errors_truncated {
            self.reactor.metrics.errors_truncated.add(1);
        }
        if let Some(access) = &self.reactor.access {
            let bytes = output.bytes.len() - before_bytes + output.tail.as_ref().map_or(0, Bytes::len);
            let dropped = access.write(&self.reactor.log, self.peer, &request, outcome.status, bytes, now);
            self.reactor.metrics.access_dropped.add(dropped);
        }
    }

    /// What one batch cost is shared out evenly among its requests.
    fn count(&self) {
        if let Some(began) = self.began
            && self.requests > 0
        {
            let took = began.elapsed().unwrap_or(Duration::ZERO);
            // Nearly always one, and a division of times is the dearest part of counting.
            let each = match self.requests {
                1 => took,
                many => took / u32::try_from(many).unwrap_or(u32::MAX),
            };
            self.reactor.metrics.batch(self.requests, each);
        }
    }
}

impl Reactor {
    /// Names the setting, once for the whole process: whoever sends such heads sends many.
    #[cold]
    fn log_large_head(&self, reject: ParseError) {
        if LARGE_HEAD_LOGGED.swap(true, Ordering::Relaxed) {
            return;
        }
        let bytes_max = self.heads.bytes_max();
        let limit = if reject == ParseError::TargetTooLong { bytes_max / TARGET_PART } else { bytes_max };
        let fields: [(_, &dyn std::fmt::Display); 5] = [
            ("status", &reject.status().0),
            ("reason", &reject.name()),
            ("limit_bytes", &limit),
            ("setting", &"server.head_bytes_max"),
            (
                "hint",
                &"raise server.head_bytes_max (at most 65536; a target may take half of it) if callers need it",
            ),
        ];
        self.log.event(Level::Warning, "request_head_refused", &fields);
    }

    /// Counts a request that exceeded a budget, and logs the first one of its environment.
    #[cold]
    fn note_exceeded(
        &self,
        exceeded: Exceeded,
        snapshot: &Snapshot,
        outcome: &RequestOutcome,
        room: &HandlerState,
    ) {
        self.metrics.jsonpath_exceeded.add(u64::from(exceeded.jsonpath));
        self.metrics.patterns_exceeded.add(u64::from(exceeded.patterns));
        self.metrics.bulk_refused.add(u64::from(exceeded.bulk));
        let Some(slot) = outcome.slot.and_then(|slot| snapshot.slots.get(slot)) else { return };
        let Some(environment) = &slot.environment else { return };
        let key: &dyn Display = &slot.client_side_key;
        let reported = environment.reported();
        if exceeded.jsonpath && !reported.jsonpath.swap(true, Ordering::Relaxed) {
            let property = room.cut_property(environment).unwrap_or_default();
            let fields: [(&str, &dyn Display); 3] =
                [("client_side_key", key), ("property", &property), ("steps_max", &JSONPATH_STEPS_MAX)];
            self.log.event(Level::Warning, "jsonpath_budget_exceeded", &fields);
        }
        if exceeded.patterns && !reported.patterns.swap(true, Ordering::Relaxed) {
            let fields: [(&str, &dyn Display); 2] =
                [("client_side_key", key), ("steps_max", &PATTERN_STEPS_REQUEST_MAX)];
            self.log.event(Level::Warning, "regex_budget_exceeded", &fields);
        }
    }

    #[cold]
    fn log_request_panic(&self) {
        let place = panic::last_place();
        self.log.event(Level::Critical, "request_panicked", &[("reactor", &self.index), ("place", &place)]);
    }
}
