//! Event streams that notify SDKs when the flags of an environment may have changed (compatibility.md 1.5).
//!
//! Flagsmith's SDKs react to any event, so they and OpenFeature's have separate paths: `environment_updated`
//! with `updated_at`, and `refetchEvaluation`. The time is that of `x-flagsmith-document-updated-at`, always
//! with a decimal point. A stream is open only while its key is valid, by the rule of every route. The socket
//! belongs to the reactor; a [`StreamSubscription`] is all that is kept between two events.
use std::io::Write;
use std::time::SystemTime;

use crate::handlers::errors::ApiError;
use crate::handlers::exchange::Exchange;
use crate::http::response::{LAST_CHUNK, chunk};
use crate::http::{ContentType, HttpVersion, Status};
use crate::snapshot::Snapshot;

/// A comment, which clients ignore: it keeps the connection from looking idle.
const KEEP_ALIVE: &[u8] = b":\n\n";

/// The reconnection time that Flagsmith's own service sends (compatibility.md 1.5), in milliseconds.
const RETRY: &[u8] = b"retry: 15000\n\n";

/// Which events a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamProtocol {
    Flagsmith,
    Ofrep,
}

/// One subscriber: its key, and the last event sent to it.
pub struct StreamSubscription {
    /// As sent. May be a server-side key, so it must not be logged.
    key: Box<[u8]>,
    protocol: StreamProtocol,
    /// The client speaks HTTP/1.1, so the stream uses chunked transfer coding.
    is_chunked: bool,
    last_event: Option<LastEvent>,
}

/// The state of the environment that an event reported.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LastEvent {
    updated_at: Option<f64>,
    /// Set only for OFREP, whose events do not depend on the time.
    edition: Option<u64>,
}

impl StreamSubscription {
    pub fn new(key: &[u8], protocol: StreamProtocol, is_chunked: bool) -> Self {
        Self { key: key.into(), protocol, is_chunked, last_event: None }
    }

    /// Appends a comment, for a stream that has been idle.
    pub fn keep_alive(&self, out: &mut Vec<u8>) {
        self.write(out, |out| out.extend_from_slice(KEEP_ALIVE));
    }

    /// The bytes that end the stream, to be sent before the connection is closed.
    pub fn end(&self) -> &'static [u8] {
        if self.is_chunked { LAST_CHUNK } else { b"" }
    }

    fn write(&self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.is_chunked { chunk(out, write) } else { write(out) }
    }

    /// Whether the key is still valid: false after the environment was removed or the key was revoked or
    /// has expired.
    pub fn is_valid(&self, snapshot: &Snapshot, now: SystemTime) -> bool {
        snapshot.access_at(&self.key, now).is_some()
    }

    /// Appends an event if the environment has changed since the last one. For Flagsmith's SDKs only the
    /// time counts; for OpenFeature's the edition too, because an identity override may change without a
    /// change of the time (compatibility.md 4.1). Returns whether an event was appended.
    pub fn catch_up(&mut self, snapshot: &Snapshot, out: &mut Vec<u8>) -> bool {
        let access = snapshot.access(&self.key);
        let slot = access.and_then(|access| snapshot.slots.get(access.slot));
        let Some(document) = slot.and_then(|slot| slot.document.as_ref()) else { return false };
        let updated_at = document.updated_at.filter(|time| time.is_finite());
        let edition = (self.protocol == StreamProtocol::Ofrep).then_some(document.edition);
        let now = LastEvent { updated_at, edition };
        if self.last_event == Some(now) || (updated_at, edition) == (None, None) {
            return false;
        }
        self.last_event = Some(now);
        self.write(out, |out| write_event(self.protocol, updated_at, out));
        true
    }
}

impl std::fmt::Debug for StreamSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { protocol, is_chunked, last_event, .. } = self;
        write!(f, "StreamSubscription({protocol:?}, is_chunked: {is_chunked}, {last_event:?})")
    }
}

fn write_event(protocol: StreamProtocol, updated_at: Option<f64>, out: &mut Vec<u8>) {
    match protocol {
        StreamProtocol::Flagsmith => {
            out.extend_from_slice(b"event: environment_updated\ndata: {\"updated_at\": ");
            out.extend_from_slice(
                ryu::Buffer::new().format_finite(updated_at.unwrap_or_default()).as_bytes(),
            );
        }
        StreamProtocol::Ofrep => {
            out.extend_from_slice(b"event: message\ndata: {\"type\":\"refetchEvaluation\"");
            if let Some(updated_at) = updated_at {
                // The protocol has whole seconds. Writing to a vector cannot fail.
                let _ = write!(out, ",\"lastModified\":{}", updated_at.max(0.0) as u64);
            }
        }
    }
    out.extend_from_slice(b"}\n\n");
}

/// Sends the head of a stream and the current state. `None` for a HEAD request, which opens no stream.
pub(super) fn open<'a>(
    exchange: &mut Exchange<'a>,
    key: &'a [u8],
    protocol: StreamProtocol,
) -> Result<Option<StreamSubscription>, ApiError<'a>> {
    let access = exchange.snapshot.access_at(key, exchange.now).ok_or_else(|| exchange.unknown_key(key))?;
    exchange.outcome.slot = Some(access.slot);
    exchange.outcome.role = Some(access.role);
    exchange.vary();
    exchange.add_headers(b"cache-control: no-cache\r\nx-accel-buffering: no\r\n");
    exchange.outcome.status = 200;
    let headers = &exchange.scratch.headers;
    exchange.output.begin_stream(exchange.context, Status(200), ContentType::EventStream, headers);
    if exchange.context.head {
        return Ok(None);
    }
    let mut subscription =
        StreamSubscription::new(key, protocol, exchange.context.version == HttpVersion::Http11);
    subscription.write(&mut exchange.output.bytes, |out| out.extend_from_slice(RETRY));
    subscription.catch_up(exchange.snapshot, &mut exchange.output.bytes);
    Ok(Some(subscription))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_events_as_sdks_parse_them() {
        let time = Some(1_735_229_888.0);
        for (protocol, time, expected) in [
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
            write_event(protocol, time, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
