//! Batches of stored events, and the records that they are made of.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sha2::{Digest, Sha256};

use crate::events::{EventRecord, EventSource};
use crate::json::hex::hex;
use crate::limits;
use crate::storage::spool::{RecordId, RecoveredRecord};

/// A record that waits to be forwarded.
#[derive(Clone, Copy, Debug)]
pub struct QueuedRecord {
    /// The spool that it is in.
    pub spool: u32,
    pub id: RecordId,
    pub payload_bytes: u32,
    /// The number of its events.
    pub count: u32,
    /// When they were accepted, seconds since the epoch.
    pub at: u64,
}

/// Records that are forwarded together.
#[derive(Clone, Debug)]
pub struct EventBatch {
    pub source: EventSource,
    pub idempotency_key: String,
    pub records: Vec<QueuedRecord>,
    /// Rounds in which upstream answered 500 to this batch and accepted others.
    pub faults: u32,
}

impl EventBatch {
    /// The number of events.
    pub fn count(&self) -> u64 {
        self.records.iter().map(|record| u64::from(record.count)).sum()
    }
}

/// A UUID (RFC 9562 5.8) that is the same for the same batch of a spool.
pub fn idempotency_key(spool: [u8; 16], batch: u64) -> String {
    let digest = Sha256::new().chain_update(spool).chain_update(batch.to_le_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let parts = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]];
    parts.map(hex).join("-")
}

/// Records for one batch, at least one, of the same spool.
pub fn take_records(waiting: &mut VecDeque<QueuedRecord>) -> Vec<QueuedRecord> {
    let mut bytes = 0;
    let mut records: Vec<QueuedRecord> = Vec::new();
    while let Some(record) = waiting.front() {
        bytes += record.payload_bytes as usize;
        let is_other_spool = records.first().is_some_and(|first| first.spool != record.spool);
        if is_other_spool || (!records.is_empty() && bytes > limits::EVENT_BATCH_BYTES_MAX) {
            break;
        }
        records.extend(waiting.pop_front());
    }
    records
}

/// The records of each spool.
pub fn by_spool(records: &[QueuedRecord]) -> BTreeMap<u32, Vec<RecordId>> {
    let mut ids: BTreeMap<u32, Vec<RecordId>> = BTreeMap::new();
    for record in records {
        ids.entry(record.spool).or_default().push(record.id);
    }
    ids
}

/// The records of a spool that an earlier process left.
#[derive(Default)]
pub struct RecoveredEvents {
    pub batches: BTreeMap<(EventSource, u64), Vec<QueuedRecord>>,
    pub waiting: Vec<(EventSource, QueuedRecord)>,
    /// Intact records whose payload is not one of events.
    pub unreadable: Vec<QueuedRecord>,
    /// The records that halves say they are of, and the halves.
    halves: BTreeMap<RecordId, Halves>,
}

/// The halves of a divided record that were found.
#[derive(Default)]
struct Halves {
    first: Option<RecordId>,
    has_second: bool,
}

impl RecoveredEvents {
    pub fn add(&mut self, spool: u32, found: RecoveredRecord<'_>) {
        let payload_bytes = u32::try_from(found.payload.len()).unwrap_or(u32::MAX);
        let record = QueuedRecord { spool, id: found.id, payload_bytes, count: 0, at: 0 };
        let Some((head, _)) = EventRecord::read_head(found.payload) else {
            return self.unreadable.push(record);
        };
        let record = QueuedRecord { count: head.count, at: head.at, ..record };
        if let Some(half) = head.half {
            let halves = self.halves.entry(RecordId::new(half.of)).or_default();
            halves.has_second |= half.is_second;
            halves.first = halves.first.or((!half.is_second).then_some(record.id));
        }
        match found.batch {
            Some(batch) => self.batches.entry((head.source, batch)).or_default().push(record),
            None => self.waiting.push((head.source, record)),
        }
    }

    /// Removes what a process left twice that was killed while it divided a record, and returns it. Both
    /// halves are written before the record is done: if it is not, it is left out for its halves; without the
    /// second half, which was not written or is damaged, the first is left out.
    pub fn take_repeated(&mut self) -> Vec<QueuedRecord> {
        if self.halves.is_empty() {
            return Vec::new();
        }
        let waiting = self.waiting.iter().map(|(_, record)| record.id);
        let known: BTreeSet<RecordId> =
            self.batches.values().flatten().map(|record| record.id).chain(waiting).collect();
        let of_known = self.halves.iter().filter(|(divided, _)| known.contains(divided));
        let repeated: BTreeSet<RecordId> = of_known
            .filter_map(|(divided, halves)| if halves.has_second { Some(*divided) } else { halves.first })
            .collect();
        let mut taken: Vec<QueuedRecord> = Vec::new();
        for records in self.batches.values_mut() {
            taken.extend(records.extract_if(.., |record| repeated.contains(&record.id)));
        }
        self.batches.retain(|_, records| !records.is_empty());
        let waiting = self.waiting.extract_if(.., |(_, record)| repeated.contains(&record.id));
        taken.extend(waiting.map(|(_, record)| record));
        taken
    }
}
