//! Experiment events of SDKs (compatibility.md 1.6) between a request and their spool.
//!
//! Events are kept as the JSON that the SDK sent. [`EventRecord`] is what is on disk: one line of JSON that
//! says whose they are, then the events with commas between them.
use serde::{Deserialize, Serialize};

/// Whose events they are: they are forwarded with these header fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventSource {
    /// Of the environment, also if the events came with a server-side key.
    #[serde(rename = "key")]
    pub client_side_key: Box<str>,
    /// `Flagsmith-SDK-User-Agent`; empty if it was not sent.
    pub sdk: Box<str>,
}

/// Events of one source.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EventRecord {
    pub source: EventSource,
    pub count: u32,
    /// When they were accepted, seconds since the epoch.
    pub at: u64,
    /// JSON values, with commas between them.
    pub events: Vec<u8>,
}

/// The accepted events of one request. All are stored, or none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EventPost {
    pub source: EventSource,
    /// Parts of at most `limits::EVENT_RECORD_BYTES_MAX`, unless one event is larger.
    pub parts: Vec<EventPart>,
}

/// Consecutive events of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EventPart {
    pub count: u32,
    pub events: Vec<u8>,
}

/// Why accepted events were not stored. The client gets 503 and may send them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventRefusal {
    /// Too many events of this reactor wait to be written.
    QueueFull,
    /// `events.spool_bytes_max` is reached.
    SpoolFull,
    /// The disk is full or failed, or `cache_dir` cannot be used.
    Disk,
    /// They were not written within `limits::EVENT_WRITE_TIMEOUT`; they may be stored later.
    Timeout,
}

impl EventRefusal {
    /// All variants in declaration order, which `metrics` uses as an index.
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::SpoolFull, Self::Disk, Self::Timeout];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::SpoolFull => "spool_full",
            Self::Disk => "disk",
            Self::Timeout => "timeout",
        }
    }
}

/// Why stored events were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLoss {
    /// Upstream answered with a status that says that it never accepts them.
    Refused,
    /// Upstream answered 413 to a single event.
    TooLarge,
    /// Upstream answered 500 to a single event, repeatedly, while it accepted others.
    Faulty,
    /// Their record on disk is damaged.
    Damaged,
}

impl EventLoss {
    /// All variants in declaration order, which `metrics` uses as an index.
    pub const ALL: [Self; 4] = [Self::Refused, Self::TooLarge, Self::Faulty, Self::Damaged];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Faulty => "faulty",
            Self::Damaged => "damaged",
        }
    }
}

/// The member for which an event is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFault {
    /// It is not a JSON object that every reader of JSON accepts.
    Json,
    Event,
    FeatureName,
    Identifier,
    Value,
    Traits,
    Metadata,
    Timestamp,
}

impl EventFault {
    /// All variants in declaration order, which `metrics` uses as an index.
    pub const ALL: [Self; 8] = [
        Self::Json,
        Self::Event,
        Self::FeatureName,
        Self::Identifier,
        Self::Value,
        Self::Traits,
        Self::Metadata,
        Self::Timestamp,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Event => "event",
            Self::FeatureName => "feature_name",
            Self::Identifier => "identifier",
            Self::Value => "value",
            Self::Traits => "traits",
            Self::Metadata => "metadata",
            Self::Timestamp => "timestamp",
        }
    }
}

impl EventPost {
    /// The number of events.
    pub fn count(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.count)).sum()
    }

    /// Memory that the events take, bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.events.len()).sum()
    }
}

/// The first line of a record on disk.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHead {
    #[serde(flatten)]
    pub source: EventSource,
    pub count: u32,
    pub at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half: Option<RecordHalf>,
}

/// What a record says that replaces half of a divided one. The divided record is valid as long as the second
/// half is not on disk: a process may be killed between any two writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHalf {
    /// The number of the divided record, in the same spool.
    pub of: u64,
    pub is_second: bool,
}

impl RecordHead {
    /// The record as it is on disk: this head, and its events without the brackets of the array.
    pub fn encode(&self, events: &[u8]) -> Vec<u8> {
        // Neither strings nor integers can fail to be written.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(events);
        bytes
    }
}

impl EventRecord {
    /// Reads a record from disk; `None` if it has another form.
    pub fn decode(mut payload: Vec<u8>) -> Option<Self> {
        let (RecordHead { source, count, at, .. }, end) = Self::read_head(&payload)?;
        payload.drain(..end);
        Some(Self { source, count, at, events: payload })
    }

    /// The head of a record on disk, and where its events begin.
    pub fn read_head(payload: &[u8]) -> Option<(RecordHead, usize)> {
        let end = payload.iter().position(|&byte| byte == b'\n')?;
        let head = serde_json::from_slice(payload.get(..end)?).ok()?;
        Some((head, end + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let source = EventSource { client_side_key: "key".into(), sdk: "sdk/\"1\"\n".into() };
        let events = b"{\"a\":1},{\n}".to_vec();
        let head = RecordHead { source: source.clone(), count: 2, at: 7, half: None };
        let bytes = head.encode(&events);
        assert_eq!(EventRecord::read_head(&bytes).unwrap().0, head);
        let record = EventRecord::decode(bytes).unwrap();
        assert_eq!(record, EventRecord { source, count: 2, at: 7, events });
        for other in ["", "{}", "{}\n", "x\n", "{\"key\":1,\"sdk\":\"\",\"count\":1,\"at\":1}\n"] {
            assert_eq!(EventRecord::decode(other.as_bytes().to_vec()), None, "{other}");
        }
    }
}
