//! Event streams: "the flags of this environment may have changed" (compatibility.md 1.5).
//!
//! In: a client-side key in the path, and each new snapshot. Out: the head of a stream, then an
//! event whenever the environment's time is another one. Two vocabularies on two paths, since
//! Flagsmith's SDKs take any event as theirs: `environment_updated` with `updated_at`, and
//! OpenFeature's `refetchEvaluation`. Invariant: the time is the one that answers carry as
//! `x-flagsmith-document-updated-at`, always with a decimal point. A stream is open only while its key
//! is valid, by the rule of every route. Who holds the socket is not known here; a [`StreamSubscription`] is
//! all that is kept of a subscriber between two events.
use std::io::Write;
use std::time::SystemTime;

use crate::handlers::{Exchange, Scratch};
use crate::http::response::{LAST_CHUNK, chunk};
use crate::http::{ContentType, Status};
use crate::snapshot::Snapshot;

/// A comment: it keeps the connection from looking idle, and every client skips it.
const KEEP_ALIVE: &[u8] = b":\n\n";

/// What the SDKs' own service suggests (compatibility.md 1.5), milliseconds.
const RETRY: &[u8] = b"retry: 15000\n\n";

/// In whose words a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamProtocol {
    Flagsmith,
    Ofrep,
}

/// One subscriber: the key it came with, and what it was told last.
pub struct StreamSubscription {
    /// As sent; it may be a server-side key, so it has no place in a log.
    key: Box<[u8]>,
    vocabulary: StreamProtocol,
    /// HTTP/1.1: what is written is chunked.
    is_chunked: bool,
    told: Option<LastEvent>,
}

/// Which state of an environment an event was of.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LastEvent {
    updated_at: Option<f64>,
    /// Only where the vocabulary has an event that is not of a time.
    edition: Option<u64>,
}

impl StreamSubscription {
    pub fn new(key: &[u8], vocabulary: StreamProtocol, is_chunked: bool) -> Self {
        Self { key: key.into(), vocabulary, is_chunked, told: None }
    }

    /// Appends a comment, for a stream that was quiet for long.
    pub fn keep_alive(&self, out: &mut Vec<u8>) {
        self.write(out, |out| out.extend_from_slice(KEEP_ALIVE));
    }

    /// What says that the stream is over, before the connection is closed.
    pub fn end(&self) -> &'static [u8] {
        if self.is_chunked { LAST_CHUNK } else { b"" }
    }

    fn write(&self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.is_chunked { chunk(out, write) } else { write(out) }
    }

    /// Whether the key still opens its environment: not after the environment was removed or the key
    /// revoked, nor once the key has expired.
    pub fn is_valid(&self, snapshot: &Snapshot, now: SystemTime) -> bool {
        snapshot.access_at(&self.key, now).is_some()
    }

    /// Appends an event if the environment is another one than the subscriber was told of. Flagsmith's
    /// SDKs go by the time alone; OpenFeature's do not, and an identity override may have changed
    /// without moving it (compatibility.md 4.1). False: nothing to write.
    pub fn catch_up(&mut self, snapshot: &Snapshot, out: &mut Vec<u8>) -> bool {
        let access = snapshot.access(&self.key);
        let slot = access.and_then(|access| snapshot.slots.get(access.slot));
        let Some(environment) = slot.and_then(|slot| slot.environment.as_deref()) else { return false };
        let updated_at = environment.updated_at().filter(|time| time.is_finite());
        let edition = (self.vocabulary == StreamProtocol::Ofrep).then(|| environment.edition());
        let now = LastEvent { updated_at, edition };
        if self.told == Some(now) || (updated_at, edition) == (None, None) {
            return false;
        }
        self.told = Some(now);
        self.write(out, |out| write_event(self.vocabulary, updated_at, out));
        true
    }
}

impl std::fmt::Debug for StreamSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { vocabulary, is_chunked, told, .. } = self;
        write!(f, "Subscription({vocabulary:?}, is_chunked: {is_chunked}, {told:?})")
    }
}

fn write_event(vocabulary: StreamProtocol, updated_at: Option<f64>, out: &mut Vec<u8>) {
    match vocabulary {
        StreamProtocol::Flagsmith => {
            out.extend_from_slice(b"event: environment_updated\ndata: {\"updated_at\": ");
            out.extend_from_slice(
                ryu::Buffer::new().format_finite(updated_at.unwrap_or_default()).as_bytes(),
            );
        }
        StreamProtocol::Ofrep => {
            out.extend_from_slice(b"event: message\ndata: {\"type\":\"refetchEvaluation\"");
            if let Some(updated_at) = updated_at {
                // Whole seconds, as its contract has it. Writing to a vector cannot fail.
                let _ = write!(out, ",\"lastModified\":{}", updated_at.max(0.0) as u64);
            }
        }
    }
    out.extend_from_slice(b"}\n\n");
}

/// Answers with the head of a stream and the current time. `None`: refused, and answered so.
pub(super) fn open(
    exchange: &mut Exchange<'_>,
    key: &[u8],
    vocabulary: StreamProtocol,
    desk: &mut Scratch,
) -> Option<StreamSubscription> {
    let Some(access) = exchange.snapshot.access_at(key, exchange.now) else {
        let denied = exchange.unknown(key);
        exchange.vary(desk);
        exchange.deny(desk, denied);
        return None;
    };
    exchange.outcome.slot = Some(access.slot);
    exchange.outcome.role = Some(access.role);
    exchange.vary(desk);
    desk.lines.extend_from_slice(b"cache-control: no-cache\r\nx-accel-buffering: no\r\n");
    exchange.outcome.status = 200;
    exchange.output.begin_stream(exchange.reply, Status(200), ContentType::EventStream, &desk.lines);
    if exchange.reply.head {
        return None;
    }
    let mut subscription = StreamSubscription::new(key, vocabulary, !exchange.reply.http_10);
    subscription.write(&mut exchange.output.bytes, |out| out.extend_from_slice(RETRY));
    subscription.catch_up(exchange.snapshot, &mut exchange.output.bytes);
    Some(subscription)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_as_the_sdks_read_them() {
        let time = Some(1_735_229_888.0);
        for (vocabulary, time, expected) in [
            (
                StreamProtocol::Flagsmith,
                time,
                "event: environment_updated\ndata: {\"updated_at\": 1735229888.0}\n\n",
            ),
            (StreamProtocol::Ofrep, None, "event: message\ndata: {\"type\":\"refetchEvaluation\"}\n\n"),
            (
                StreamProtocol::Ofrep,
                time,
                "event: message\ndata: {\"type\":\"refetchEvaluation\",\"lastModified\":1735229888}\n\n",
            ),
        ] {
            let mut out = Vec::new();
            write_event(vocabulary, time, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
