//! A reactor's view of the kept traits: lookups, own writes, and updates from the store thread.
//!
//! An own write is visible in the next request of this reactor. Writes wait in `outbox` for the reactor to
//! send them; those that are not acknowledged are bounded in number and bytes, which is also the capacity
//! of the channel. Beyond it a write is counted and not kept.
use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::evaluate::TraitValue;
use crate::trait_table::changes::{BodyChanges, Changes, apply};
use crate::trait_table::message::{TraitChange, TraitUpdate, TraitWrite, WriteKind};
use crate::trait_table::record::{RecordWriter, Stamp, TraitHead, TraitRecord};
use crate::trait_table::table::TraitTable;

/// Least time between two reports that an identity is in use, seconds.
const TOUCH_SECONDS_MAX: u32 = 3600;
/// A record of at most so many bytes is within every limit: its exact size is not computed.
const SURELY_SMALL_BYTES: usize = 32 * 1024;

/// The reactor of a view, and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct ViewLimits {
    /// The number of the reactor in the channel.
    pub reactor: usize,
    /// Writes that are not acknowledged.
    pub writes_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
    /// An identity that was not seen for this time is not there. 0: never.
    pub ttl_seconds: u32,
}

#[derive(Debug)]
pub struct TraitView {
    table: TraitTable,
    limits: ViewLimits,
    outbox: Vec<TraitWrite>,
    /// The bytes of the writes that are not acknowledged, the oldest first.
    unacknowledged: VecDeque<usize>,
    unacknowledged_bytes: usize,
    /// Writes since the start, and how many of them are acknowledged.
    sent: u64,
    acknowledged: u64,
    /// Writes that were not kept since the last [`take_not_kept`](Self::take_not_kept).
    not_kept: u64,
}

impl TraitView {
    pub fn new(seed: u64, limits: ViewLimits) -> Self {
        Self {
            table: TraitTable::new(seed),
            limits,
            outbox: Vec::new(),
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            sent: 0,
            acknowledged: 0,
            not_kept: 0,
        }
    }

    /// The record of an identity at a time in Unix seconds.
    pub fn find(&self, environment: &str, identifier: &str, now: u32) -> Option<TraitRecord<'_>> {
        let record = self.table.find(environment, identifier)?;
        let is_expired =
            self.limits.ttl_seconds > 0 && now.saturating_sub(record.head().seen) > self.limits.ttl_seconds;
        (!is_expired).then_some(record)
    }

    /// Whether the store thread should be informed that this identity is in use.
    pub fn needs_touch(&self, record: &TraitRecord<'_>, now: u32) -> bool {
        let interval = match self.limits.ttl_seconds {
            0 => TOUCH_SECONDS_MAX,
            ttl => (ttl / 8).clamp(1, TOUCH_SECONDS_MAX),
        };
        let head = record.head();
        !head.is_promoted || now.saturating_sub(head.seen) >= interval
    }

    /// The size of a record of an identity, or of none, after these changes, bytes.
    pub fn bytes_after(record: Option<TraitRecord<'_>>, identifier: &str, changes: &[u8]) -> usize {
        let (before, stamp_bytes) = (record.map_or(0, |record| record.bytes().len()), 16);
        let most = before + identifier.len() + changes.len() + stamp_bytes;
        if most <= SURELY_SMALL_BYTES {
            return most;
        }
        apply(record, identifier, changes, Stamp::default(), TraitHead::default(), None).record.len()
    }

    /// Sets and deletes keys, and makes the identity. Returns whether the write is kept.
    pub fn set(&mut self, environment: &str, identifier: &str, changes: &[u8], now: u32) -> bool {
        let record = self.after(environment, identifier, changes, now);
        self.write(environment, identifier, (WriteKind::Set, changes), Some(record.into()))
    }

    /// Writes what a body changes, if it changes anything.
    pub fn set_all(&mut self, environment: &str, identifier: &str, all: BodyChanges) {
        match all {
            BodyChanges::None => {}
            BodyChanges::New { record, keys } => {
                let space = self.table.intern(environment);
                let record: Arc<[u8]> = record.into();
                let write = TraitWrite::make(self.table.environment(space), record.clone(), keys);
                self.send(space, identifier, write, Some(record));
            }
            BodyChanges::Changed { changes, record } => {
                let changes = (WriteKind::Set, &*changes);
                self.write(environment, identifier, changes, Some(record.into()));
            }
        }
    }

    /// Adds to an integer, which is then `sum` as far as this reactor has it. Returns whether it is kept.
    pub fn add(
        &mut self,
        environment: &str,
        identifier: &str,
        key: &str,
        (amount, sum): (i64, i64),
        now: u32,
    ) -> bool {
        let entry = |number| {
            let mut changes = Changes::default();
            changes.push(key, Some(TraitValue::Int(number)));
            changes.into_bytes()
        };
        let record = self.after(environment, identifier, &entry(sum), now);
        self.write(environment, identifier, (WriteKind::Add, &entry(amount)), Some(record.into()))
    }

    /// Reports that the identity is in use.
    pub fn touch(&mut self, environment: &str, identifier: &str) {
        self.write(environment, identifier, (WriteKind::Touch, &[]), None);
    }

    /// Removes an identity. Returns false if it could not be sent.
    pub fn erase(&mut self, environment: &str, identifier: &str) -> bool {
        let head = TraitHead { is_erased: true, ..TraitHead::default() };
        let record = RecordWriter::new(head, identifier).finish();
        self.write(environment, identifier, (WriteKind::Erase, &[]), Some(record.into()))
    }

    fn after(&self, environment: &str, identifier: &str, changes: &[u8], now: u32) -> Vec<u8> {
        let record = self.find(environment, identifier, now);
        let head = TraitHead { is_promoted: record.is_some(), is_erased: false, seen: now };
        apply(record, identifier, changes, Stamp::default(), head, None).record
    }

    fn write(
        &mut self,
        environment: &str,
        identifier: &str,
        (kind, entries): (WriteKind, &[u8]),
        record: Option<Arc<[u8]>>,
    ) -> bool {
        let space = self.table.intern(environment);
        let write = TraitWrite::new(self.table.environment(space), kind, identifier, entries);
        self.send(space, identifier, write, record)
    }

    /// Writes, if there is capacity. `record` is the record after the write, which is visible to lookups
    /// until the store thread acknowledges it; `None` for a touch. Returns whether the write is kept.
    fn send(&mut self, space: usize, identifier: &str, write: TraitWrite, record: Option<Arc<[u8]>>) -> bool {
        let bytes = write.bytes();
        if self.unacknowledged.len() >= self.limits.writes_max
            || self.unacknowledged_bytes + bytes > self.limits.bytes_max
        {
            // A touch that is lost is repeated by the next request.
            self.not_kept += u64::from(record.is_some());
            return false;
        }
        self.unacknowledged.push_back(bytes);
        self.unacknowledged_bytes += bytes;
        self.sent += 1;
        if let Some(record) = record {
            self.table.put(space, self.table.hash(identifier), record, self.sent, 0);
        }
        self.outbox.push(write);
        true
    }

    /// The writes to be sent to the store thread.
    pub fn outbox(&mut self) -> std::vec::Drain<'_, TraitWrite> {
        self.outbox.drain(..)
    }

    pub fn has_outbox(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Counts writes that could not be sent, because the store thread has ended.
    pub fn not_sent(&mut self, writes: u64) {
        self.not_kept += writes;
    }

    /// How many writes were not kept. Resets the count.
    pub fn take_not_kept(&mut self) -> u64 {
        std::mem::take(&mut self.not_kept)
    }

    /// Applies an update of the store thread.
    pub fn apply(&mut self, update: TraitUpdate) {
        let TraitUpdate { change, acknowledged } = update;
        while self.acknowledged < acknowledged {
            self.acknowledged += 1;
            self.unacknowledged_bytes -= self.unacknowledged.pop_front().unwrap_or_default();
        }
        match change {
            TraitChange::Delta(delta) => {
                let reactor = self.limits.reactor;
                // An identity that this reactor made has its record, or one after a later write.
                for changed in delta.records.iter().filter(|changed| changed.writer != Some(reactor)) {
                    let space = self.table.intern(&changed.environment);
                    self.table.put(space, changed.hash, changed.record.clone(), 0, acknowledged);
                }
                for rebuilt in &delta.shards {
                    let space = self.table.intern(&rebuilt.environment);
                    let shard = Arc::clone(&rebuilt.shard);
                    self.table.replace_shard(space, rebuilt.index, shard, acknowledged);
                }
            }
            TraitChange::Table(mut table) => {
                self.table.keep_pending(&mut table, acknowledged);
                self.table = *table;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trait_table::message::{ChangedRecord, TraitDelta};

    const LIMITS: ViewLimits = ViewLimits { reactor: 0, writes_max: 2, bytes_max: 1 << 20, ttl_seconds: 0 };

    fn record(identifier: &str, seen: u32) -> Vec<u8> {
        RecordWriter::new(TraitHead { seen, ..TraitHead::default() }, identifier).finish()
    }

    fn set(view: &mut TraitView, identifier: &str, seen: u32) -> bool {
        view.write("e", identifier, (WriteKind::Set, &[]), Some(record(identifier, seen).into()))
    }

    fn seen(view: &TraitView, identifier: &str) -> Option<u32> {
        view.find("e", identifier, 100).map(|record| record.head().seen)
    }

    #[test]
    fn reads_its_writes_until_an_update_includes_them() {
        let mut view = TraitView::new(3, LIMITS);
        assert!(set(&mut view, "a", 1) && set(&mut view, "a", 2));
        assert_eq!((view.outbox().count(), seen(&view, "a")), (2, Some(2)));
        let changed = |seen| {
            let (environment, hash) = ("e".into(), view.table.hash("a"));
            ChangedRecord { environment, hash, record: record("a", seen).into(), writer: None }
        };
        let update = |records, acknowledged| {
            let delta = TraitDelta { records, shards: Vec::new() };
            TraitUpdate { change: TraitChange::Delta(Arc::new(delta)), acknowledged }
        };
        let updates = [update(vec![changed(1)], 1), update(vec![changed(9)], 2)];
        let [first, second] = updates;
        view.apply(first);
        assert_eq!(seen(&view, "a"), Some(2), "the second write is not included yet");
        view.apply(second);
        assert_eq!(seen(&view, "a"), Some(9));
    }

    #[test]
    fn writes_beyond_the_capacity_are_counted_and_not_visible() {
        let mut view = TraitView::new(3, LIMITS);
        assert!(set(&mut view, "a", 1) && set(&mut view, "b", 1) && !set(&mut view, "c", 1));
        assert_eq!((seen(&view, "c"), view.take_not_kept(), view.take_not_kept()), (None, 1, 0));
        let table = TraitChange::Table(Box::new(TraitTable::new(3)));
        view.apply(TraitUpdate { change: table, acknowledged: 1 });
        assert_eq!((seen(&view, "a"), seen(&view, "b")), (None, Some(1)));
        assert!(set(&mut view, "c", 1));
    }

    #[test]
    fn identities_expire_after_their_time_to_live() {
        let mut view = TraitView::new(3, ViewLimits { ttl_seconds: 80, ..LIMITS });
        assert!(set(&mut view, "a", 30) && set(&mut view, "b", 10));
        assert_eq!((seen(&view, "a"), seen(&view, "b")), (Some(30), None));
        let found = view.find("e", "a", 39).expect("found");
        assert!(view.needs_touch(&found, 39), "seen once");
    }
}
