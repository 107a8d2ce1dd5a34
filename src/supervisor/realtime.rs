//! Upstream's event streams: "poll this one now".
//!
//! In: one stream per environment (compatibility.md 1.5). Out: the `updated_at` of each event. Invariants:
//! polling goes on beside it, so that a stream that is down costs time and nothing else; it reconnects for
//! ever, backing off; what a stream sends is bounded; no key but the public client-side one is
//! sent, since the stream is on another host than the API.
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

/// One environment's stream; dropping it ends its thread at the next sign of life.
#[derive(Debug)]
pub struct UpstreamSubscription {
    ended: Arc<AtomicBool>,
}

impl Drop for UpstreamSubscription {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Follows the stream of `key` on a thread of its own and calls `tell` for each event.
///
/// # Errors
/// The thread could not be started.
pub fn subscribe(
    upstream: Arc<Upstream>,
    key: &str,
    log: Log,
    metrics: Arc<Metrics>,
    tell: impl Fn(f64) + Send + 'static,
) -> io::Result<UpstreamSubscription> {
    let ended = Arc::new(AtomicBool::new(false));
    let follower = Follower { upstream, key: key.into(), log, metrics, ended: Arc::clone(&ended), tell };
    // Handshakes of TLS want some room; the default of 2 MiB for hundreds of idle threads is too much.
    thread::Builder::new().name("realtime".into()).stack_size(512 * 1024).spawn(move || follower.run())?;
    Ok(UpstreamSubscription { ended })
}

struct Follower<F> {
    upstream: Arc<Upstream>,
    key: String,
    log: Log,
    metrics: Arc<Metrics>,
    ended: Arc<AtomicBool>,
    tell: F,
}

impl<F: Fn(f64)> Follower<F> {
    fn run(self) {
        let mut failures = 0u32;
        let mut told: Option<PollError> = None;
        while !self.has_ended() {
            let started = Instant::now();
            let ended = self.follow(&mut told);
            self.connected(false);
            // Upstream ends every stream after half a minute or so: no failure, and no time to lose. One that
            // sends too much is a failure however long it lived.
            let is_excessive = ended.as_ref().is_err_and(|error| is_excess(error.kind));
            let is_settled = started.elapsed() >= limits::STREAM_SETTLED && !is_excessive;
            failures = if is_settled { 0 } else { failures.saturating_add(1) };
            if self.has_ended() {
                return;
            }
            let mut asked = Duration::ZERO;
            if let Err(error) = ended {
                asked = error.retry_after.unwrap_or_default().min(limits::RETRY_AFTER_HELD_MAX);
                let is_flood = error.kind == PollErrorKind::Flood;
                self.metrics.background.realtime_floods.add(u64::from(is_flood));
                if told.as_ref().is_none_or(|before| before.kind != error.kind) {
                    let event = if is_flood { "realtime_flood" } else { "realtime_lost" };
                    self.event(Level::Warning, event, &error.message);
                }
                told = Some(error);
            }
            let wait = match failures {
                0 => limits::STREAM_RETRY_MIN,
                count => limits::STREAM_RETRY_MIN.saturating_mul(1 << count.min(16)).min(limits::BACKOFF_MAX),
            };
            // Jittered downwards only, so that the bound is one.
            thread::sleep(wait.mul_f64(1.0 - 0.5 * jitter()).max(asked));
        }
    }

    /// One stream from its beginning to its end.
    fn follow(&self, told: &mut Option<PollError>) -> Result<(), PollError> {
        let mut stream = self.upstream.stream(&self.key)?;
        self.connected(true);
        // A stream that sent too much opens like any other: it has recovered once it sends whole lines at a
        // rate that is allowed.
        let mut is_doubted = told.as_ref().is_some_and(|told| is_excess(told.kind));
        let opened = Instant::now();
        let mut rate = Rate::new(opened);
        if !is_doubted && told.take().is_some() {
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
                        "the event stream sent more than {} bytes or {} lines within a second: see what is behind \
                         realtime.url; documents are polled all the same",
                        limits::STREAM_WINDOW_BYTES_MAX,
                        limits::STREAM_WINDOW_LINES_MAX
                    ),
                ));
            }
            let was_flood = told.as_ref().is_some_and(|told| told.kind == PollErrorKind::Flood);
            let is_calm = !was_flood || now.duration_since(opened) > limits::STREAM_WINDOW;
            let is_bounded = events.feed(&piece[..count], |updated_at| (self.tell)(updated_at));
            if is_bounded && is_doubted && is_calm && piece[..count].contains(&b'\n') {
                is_doubted = false;
                *told = None;
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
        // An environment that was forgotten meanwhile must not come back by its metrics.
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

/// Whether a stream failed by what it sent.
fn is_excess(kind: PollErrorKind) -> bool {
    matches!(kind, PollErrorKind::TooLarge | PollErrorKind::Flood)
}

/// What a stream sent within the current window.
#[derive(Debug)]
struct Rate {
    window_end: Instant,
    bytes: usize,
    lines: usize,
    /// A stream cut into single bytes costs a read for each.
    reads: usize,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { window_end: now + limits::STREAM_WINDOW, bytes: 0, lines: 0, reads: 0 }
    }

    /// Takes one read; false when the stream sends faster than it may.
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

/// Puts events together from bytes (the parts of the HTML standard's 9.2.6 that concern us).
#[derive(Debug, Default)]
pub struct EventParser {
    line: Vec<u8>,
    data: Vec<u8>,
    /// The last byte was a carriage return, so a line feed belongs to it.
    after_return: bool,
}

impl EventParser {
    /// False when a line or an event is beyond its bound.
    pub fn feed(&mut self, bytes: &[u8], mut tell: impl FnMut(f64)) -> bool {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => {}
                b'\r' | b'\n' => self.end_line(&mut tell),
                byte => self.line.push(byte),
            }
            self.after_return = byte == b'\r';
            if self.line.len() + self.data.len() > limits::STREAM_LINE_BYTES_MAX {
                return false;
            }
        }
        true
    }

    fn end_line(&mut self, tell: &mut impl FnMut(f64)) {
        if self.line.is_empty() {
            // Any name of event counts, as for the Python SDK; what matters is the time in it.
            if let Some(updated_at) = updated_at(&self.data) {
                tell(updated_at);
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
    fn events_are_found_however_they_are_cut_and_ended() {
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
    fn what_is_no_event_of_ours_is_passed_over() {
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
    fn a_stream_may_send_so_much_a_second_and_no_more() {
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
        assert!(steady, "each window has its own");
    }

    #[test]
    fn an_endless_line_or_event_is_refused() {
        let piece = "x".repeat(1024);
        let lines = format!("data: {piece}\n");
        for text in [piece, lines] {
            let mut events = EventParser::default();
            let fed = (0..1000).take_while(|_| events.feed(text.as_bytes(), |_| ())).count();
            assert!(fed < 100, "{fed} pieces were taken");
        }
    }
}
