//! Upstream's event streams, which announce new documents (compatibility.md 1.5).
//!
//! Polling continues, so that a broken stream only delays updates. A stream reconnects with backoff for as
//! long as its environment is served, and what it sends is limited. Only the client-side key is sent, which
//! is public: streams come from another host than the API.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::config::Level;
use crate::limits;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::schedule::jitter;
use crate::upstream::{PollError, PollErrorKind, Upstream};

/// An event stream that was open for this time has not failed when it ends.
const STREAM_SETTLED: Duration = Duration::from_secs(1);
/// Wait before an event stream is reopened; doubled for each failure.
const STREAM_RETRY_MIN: Duration = Duration::from_millis(100);

/// The stream of one environment. After it is dropped, its thread ends at the next event or keep-alive.
#[derive(Debug)]
pub struct UpstreamSubscription {
    /// Memory ordering: relaxed, because the thread reads nothing else that was written before it.
    ended: Arc<AtomicBool>,
}

impl Drop for UpstreamSubscription {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Follows the stream of `key` on a separate thread and calls `announce` with the `updated_at` of each event.
///
/// # Errors
/// The thread cannot be started.
pub fn subscribe(
    upstream: Arc<Upstream>,
    key: &str,
    log: Log,
    metrics: Arc<Metrics>,
    announce: impl Fn(f64) + Send + 'static,
) -> io::Result<UpstreamSubscription> {
    let ended = Arc::new(AtomicBool::new(false));
    let follower = Follower { upstream, key: key.into(), log, metrics, ended: Arc::clone(&ended), announce };
    // TLS handshakes need some stack; the default of 2 MiB is too much for hundreds of idle threads.
    thread::Builder::new().name("realtime".into()).stack_size(512 * 1024).spawn(move || follower.run())?;
    Ok(UpstreamSubscription { ended })
}

struct Follower<F> {
    upstream: Arc<Upstream>,
    key: String,
    log: Log,
    metrics: Arc<Metrics>,
    ended: Arc<AtomicBool>,
    announce: F,
}

impl<F: Fn(f64)> Follower<F> {
    fn run(self) {
        let mut failures = 0u32;
        let mut last_error: Option<PollError> = None;
        while !self.has_ended() {
            let started = Instant::now();
            let ended = self.follow(&mut last_error);
            self.connected(false);
            // Upstream ends every stream after about half a minute, which is not a failure. A stream that
            // sent too much failed however long it lasted.
            let is_excessive = ended.as_ref().is_err_and(|error| is_excess(error.kind));
            let is_settled = started.elapsed() >= STREAM_SETTLED && !is_excessive;
            failures = if is_settled { 0 } else { failures.saturating_add(1) };
            if self.has_ended() {
                return;
            }
            let mut retry_after = Duration::ZERO;
            if let Err(error) = ended {
                retry_after = error.retry_after.unwrap_or_default().min(limits::RETRY_AFTER_DEFAULT_MAX);
                let is_flood = error.kind == PollErrorKind::Flood;
                self.metrics.background.realtime_floods.add(u64::from(is_flood));
                if last_error.as_ref().is_none_or(|before| before.kind != error.kind) {
                    let event = if is_flood { "realtime_flood" } else { "realtime_lost" };
                    self.event(Level::Warning, event, &error.message);
                }
                last_error = Some(error);
            }
            thread::sleep(retry_wait(failures, jitter()).max(retry_after));
        }
    }

    /// Reads one stream until it ends.
    fn follow(&self, last_error: &mut Option<PollError>) -> Result<(), PollError> {
        let mut stream = self.upstream.stream(&self.key)?;
        self.connected(true);
        // A stream that sent too much has recovered only when it sends whole lines at an allowed rate.
        let mut is_unproven = last_error.as_ref().is_some_and(|error| is_excess(error.kind));
        let opened = Instant::now();
        let mut rate = Rate::new(opened);
        if !is_unproven && last_error.take().is_some() {
            self.recovered();
        }
        let mut events = EventParser::default();
        let mut piece = [0; 4096];
        loop {
            let count = self.upstream.read_stream(&mut stream, &mut piece)?;
            if count == 0 || self.has_ended() {
                return Ok(());
            }
            let now = Instant::now();
            let lines = piece[..count].iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
            if !rate.add(count, lines, now) {
                return Err(PollError::new(
                    PollErrorKind::Flood,
                    format!(
                        "the event stream sent more than {} bytes or {} lines within a second: check the server at \
                         realtime.url; documents are still polled",
                        limits::STREAM_WINDOW_BYTES_MAX,
                        limits::STREAM_WINDOW_LINES_MAX
                    ),
                ));
            }
            let was_flood = last_error.as_ref().is_some_and(|error| error.kind == PollErrorKind::Flood);
            let is_calm = !was_flood || now.duration_since(opened) > limits::STREAM_WINDOW;
            let is_bounded = events.feed(&piece[..count], |updated_at| (self.announce)(updated_at));
            if is_bounded && is_unproven && is_calm && piece[..count].contains(&b'\n') {
                is_unproven = false;
                *last_error = None;
                self.recovered();
            }
            if !is_bounded {
                return Err(PollError::new(
                    PollErrorKind::TooLarge,
                    format!(
                        "the event stream sent a line of more than {} bytes",
                        limits::STREAM_LINE_BYTES_MAX
                    ),
                ));
            }
        }
    }

    fn recovered(&self) {
        self.event(Level::Info, "realtime_recovered", &"events arrive again");
    }

    fn connected(&self, is_connected: bool) {
        // Do not add the metrics of a removed environment again.
        if !self.has_ended() {
            self.metrics.environment(&self.key, |environment| environment.realtime_connected = is_connected);
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn event(&self, level: Level, event: &'static str, what: &dyn std::fmt::Display) {
        self.log.event(level, event, &[("client_side_key", &self.key), ("reason", what)]);
    }
}

/// How long to wait before the stream is opened again. The jitter, from 0 to 1, only shortens the wait, so
/// that `BACKOFF_MAX` holds.
fn retry_wait(failures: u32, jitter: f64) -> Duration {
    let wait = match failures {
        0 => STREAM_RETRY_MIN,
        count => STREAM_RETRY_MIN.saturating_mul(1 << count.min(16)).min(limits::BACKOFF_MAX),
    };
    wait.mul_f64(1.0 - 0.5 * jitter)
}

/// Whether a stream failed because it sent too much.
fn is_excess(kind: PollErrorKind) -> bool {
    matches!(kind, PollErrorKind::TooLarge | PollErrorKind::Flood)
}

/// How much a stream sent within the current window.
#[derive(Debug)]
struct Rate {
    window_end: Instant,
    bytes: usize,
    lines: usize,
    /// A stream that is cut into single bytes costs one read each.
    reads: usize,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { window_end: now + limits::STREAM_WINDOW, bytes: 0, lines: 0, reads: 0 }
    }

    /// Adds one read; false if the stream exceeds a limit.
    fn add(&mut self, bytes: usize, lines: usize, now: Instant) -> bool {
        if now >= self.window_end {
            *self = Self::new(now);
        }
        self.bytes += bytes;
        self.lines += lines;
        self.reads += 1;
        self.bytes <= limits::STREAM_WINDOW_BYTES_MAX
            && self.lines.max(self.reads) <= limits::STREAM_WINDOW_LINES_MAX
    }
}

/// Parses server-sent events (HTML standard, section 9.2.6): only `data` matters.
#[derive(Debug, Default)]
pub struct EventParser {
    line: Vec<u8>,
    data: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it ends the same line.
    after_return: bool,
}

impl EventParser {
    /// Parses more bytes. False if a line or an event is longer than `STREAM_LINE_BYTES_MAX`.
    pub fn feed(&mut self, bytes: &[u8], mut announce: impl FnMut(f64)) -> bool {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => {}
                b'\r' | b'\n' => self.end_line(&mut announce),
                byte => self.line.push(byte),
            }
            self.after_return = byte == b'\r';
            if self.line.len() + self.data.len() > limits::STREAM_LINE_BYTES_MAX {
                return false;
            }
        }
        true
    }

    fn end_line(&mut self, announce: &mut impl FnMut(f64)) {
        if self.line.is_empty() {
            // Events of any name count, as in the Python SDK.
            if let Some(updated_at) = updated_at(&self.data) {
                announce(updated_at);
            }
            self.data.clear();
        } else if let Some(value) = self.line.strip_prefix(b"data:") {
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.data.push(b'\n');
        }
        self.line.clear();
    }
}

fn updated_at(data: &[u8]) -> Option<f64> {
    let data: serde_json::Value = serde_json::from_slice(data).ok()?;
    data.get("updated_at")?.as_f64().filter(|seconds| seconds.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&str]) -> Vec<f64> {
        let mut events = EventParser::default();
        let mut found = Vec::new();
        for piece in pieces {
            assert!(events.feed(piece.as_bytes(), |updated_at| found.push(updated_at)));
        }
        found
    }

    #[test]
    fn parses_events_in_any_pieces_and_with_any_line_ending() {
        let text =
            "retry: 15000\n\n: ping\n\nevent: environment_updated\ndata: {\"updated_at\": 1735229888.5}\n\n";
        assert_eq!(events(&[text]), [1_735_229_888.5]);
        assert_eq!(events(&[&text.replace('\n', "\r\n")]), [1_735_229_888.5]);
        assert_eq!(events(&[&text.replace('\n', "\r")]), [1_735_229_888.5]);
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(events(&bytes.iter().map(String::as_str).collect::<Vec<_>>()), [1_735_229_888.5]);
        assert_eq!(events(&["data:{\"updated_at\":\ndata: 7}\n\n"]), [7.0], "data over two lines");
    }

    #[test]
    fn ignores_events_without_a_valid_time() {
        for text in [
            "data: {\"updated_at\": 1.0}\n",
            "data: {}\n\n",
            "data: {\"updated_at\": \"x\"}\n\n",
            "data: [\n\n",
            "dater: {\"updated_at\": 1.0}\n\n",
            "\n\n\n",
        ] {
            assert_eq!(events(&[text]), [] as [f64; 0], "{text}");
        }
    }

    #[test]
    fn waits_longer_after_each_failure_up_to_the_limit() {
        let seconds = |failures, jitter| retry_wait(failures, jitter).as_secs_f64();
        assert_eq!([0, 1, 2, 3].map(|failures| seconds(failures, 0.0)), [0.1, 0.2, 0.4, 0.8]);
        for failures in [10, 16, 17, u32::MAX] {
            assert_eq!(retry_wait(failures, 0.0), limits::BACKOFF_MAX);
        }
        for failures in [0, 3, 100] {
            assert_eq!(seconds(failures, 1.0), seconds(failures, 0.0) / 2.0, "by half at most");
        }
    }

    #[test]
    fn limits_bytes_lines_and_reads_per_window() {
        let start = Instant::now();
        let taken = |bytes: usize, lines: usize| {
            let mut rate = Rate::new(start);
            (0..100_000).take_while(|_| rate.add(bytes, lines, start)).count()
        };
        assert_eq!(taken(4096, 1), limits::STREAM_WINDOW_BYTES_MAX / 4096);
        assert_eq!(taken(10, 4), limits::STREAM_WINDOW_LINES_MAX / 4);
        assert_eq!(taken(1, 0), limits::STREAM_WINDOW_LINES_MAX);
        let mut rate = Rate::new(start);
        let steady = (0..100).all(|second| {
            let now = start + limits::STREAM_WINDOW * second;
            (0..50).all(|_| rate.add(4096, 10, now))
        });
        assert!(steady, "each window has its own limit");
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit() {
        for (bytes, is_taken) in
            [(limits::STREAM_LINE_BYTES_MAX, true), (limits::STREAM_LINE_BYTES_MAX + 1, false)]
        {
            assert_eq!(EventParser::default().feed(&vec![b'x'; bytes], |_| ()), is_taken, "{bytes}");
        }
    }

    #[test]
    fn rejects_a_line_or_an_event_without_an_end() {
        let piece = "x".repeat(1024);
        let lines = format!("data: {piece}\n");
        for text in [piece, lines] {
            let mut events = EventParser::default();
            let fed = (0..1000).take_while(|_| events.feed(text.as_bytes(), |_| ())).count();
            assert!(fed < 100, "{fed} pieces were accepted");
        }
    }
}
