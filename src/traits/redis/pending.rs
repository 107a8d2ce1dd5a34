//! What Redis does not have yet: names of identities, and since when their keys differ. The values are in the
//! table, so that an outage of any length takes no more memory than the table has. Increments are kept as
//! amounts ([`Increments`]).
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::SystemTime;

use crate::trait_table::{Entry, Stamp};
use crate::traits::changes::{Addition, ChangeKind, TraitChanges};
use crate::traits::memory::{TraitMemory, unix_seconds};
use crate::traits::redis::increments::{Answer, Increments};
use crate::traits::redis::wire;
use crate::traits::redis::wire::{Name, StreamId};

/// Identities and bytes of a batch. A larger one would delay the other clients of Redis.
const BATCH_IDENTITIES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Default)]
struct PendingIdentity {
    /// Redis lacks the entries from this stamp on.
    since: Option<Stamp>,
    erased: Option<Stamp>,
    /// It was not in the table before.
    is_new: bool,
    /// Everything that is kept of it is sent.
    is_whole: bool,
}

impl PendingIdentity {
    fn lacks<'a>(&mut self, entries: impl Iterator<Item = Entry<'a>>) {
        for entry in entries {
            self.since = Some(self.since.map_or(entry.stamp, |since| since.min(entry.stamp)));
        }
    }
}

/// A write of one identity in a batch.
#[derive(Debug)]
pub struct IdentityWrite {
    pub name: Name,
    /// Redis makes the identity if it is not there.
    pub makes: bool,
    /// It has everything that is kept of the identity.
    pub is_whole: bool,
    pub seen: u32,
    pub erased: Option<Stamp>,
    /// `=` or `+` with the key, and the value.
    pub fields: Vec<(String, String)>,
}

/// All identities that Redis lacks something of, the oldest first.
#[derive(Debug)]
pub struct Pending {
    identities: HashMap<Name, PendingIdentity>,
    order: VecDeque<Name>,
    increments: Increments,
    count_max: usize,
    /// Identities whose changes were dropped since the last [`take_dropped`](Self::take_dropped).
    dropped: u64,
}

impl Pending {
    pub fn new(count_max: usize) -> Self {
        let (identities, order, increments) = Default::default();
        Self { identities, order, increments, count_max, dropped: 0 }
    }

    pub fn len(&self) -> usize {
        self.identities.len()
    }

    /// Whether Redis lacks more of an identity than that it was seen.
    fn has_changes(&self, name: &str, pending: &PendingIdentity) -> bool {
        let PendingIdentity { since, erased, is_new, .. } = pending;
        since.is_some() || erased.is_some() || *is_new || self.increments.has_unsent(name)
    }

    /// The identities that were changed: Redis lacks more of them than that they were seen.
    pub fn changed_names(&self) -> impl Iterator<Item = &Name> {
        let changed = self.identities.iter().filter(|(name, pending)| self.has_changes(name, pending));
        changed.map(|(name, _)| name)
    }

    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Records a change of the table.
    pub fn changed(&mut self, changes: &TraitChanges<'_>) {
        let Ok(identifier) = std::str::from_utf8(changes.record.identifier()) else { return };
        let name = wire::name(changes.environment, identifier);
        if changes.kind == ChangeKind::Evicted {
            let removed = self.identities.remove(&*name);
            self.dropped += u64::from(removed.is_some_and(|pending| self.has_changes(&name, &pending)));
            self.increments.forget(&name);
            return;
        }
        let Some(pending) = self.entry(&name) else { return };
        match changes.kind {
            ChangeKind::Erased => {
                *pending = PendingIdentity { erased: Some(changes.stamp), ..PendingIdentity::default() };
                self.increments.forget(&name);
            }
            ChangeKind::Written => {
                pending.is_new |= !changes.record.head().is_promoted;
                match changes.addition {
                    None => {
                        pending.lacks(changes.entries.iter());
                        changes.entries.iter().for_each(|entry| self.increments.replaced(&name, entry.key));
                    }
                    Some(addition) => self.added(&name, changes, addition),
                }
            }
            // Another store of this process was read late.
            ChangeKind::Merged => {
                pending.lacks(changes.entries.iter());
                changes.entries.iter().for_each(|entry| self.increments.read(&name, &entry));
            }
            ChangeKind::Seen | ChangeKind::ErasedElsewhere | ChangeKind::Evicted => {}
        }
    }

    fn added(&mut self, name: &str, changes: &TraitChanges<'_>, addition: Addition) {
        let Some((name, _)) = self.identities.get_key_value(name) else { return };
        for entry in changes.entries.iter() {
            // The record has the birth of the key, which the entries of a write do not have.
            let stored = changes.record.entries().find(|stored| stored.key == entry.key);
            let Addition { amount, before } = addition;
            self.increments.add(name, &stored.unwrap_or(entry), amount, before);
        }
    }

    /// Records that Redis may lack everything of an identity.
    pub fn mark_all(&mut self, name: &str) {
        if let Some(pending) = self.entry(name) {
            (pending.since, pending.is_whole) = (Some(Stamp::default()), true);
        }
    }

    /// Records the answer to a write of the batch with this number.
    pub fn answered(&mut self, write: &IdentityWrite, sequence: u64, answer: Answer) {
        self.increments.answered(&write.name, sequence, answer);
        // What is only a record that the identity was seen must not bring it back: it was erased.
        if answer == Answer::NotStored && !write.fields.is_empty() {
            self.mark_all(&write.name);
        }
    }

    /// Records a value that Redis has, or had.
    pub fn read(&mut self, name: &str, entry: &Entry<'_>) {
        self.increments.read(name, entry);
    }

    /// The stream was read up to this entry.
    pub fn settle(&mut self, position: StreamId) {
        self.increments.settle(position);
    }

    /// Redis has lost entries of the stream that were not read yet.
    pub fn lost(&mut self) {
        for name in self.increments.lost() {
            self.entry(&name);
        }
    }

    /// Whether the table has a sum of this key that is not the value of Redis.
    pub fn is_counting(&self, name: &str, key: &str) -> bool {
        self.increments.has(name, key)
    }

    fn entry(&mut self, name: &str) -> Option<&mut PendingIdentity> {
        if !self.identities.contains_key(name) {
            if self.identities.len() >= self.count_max {
                self.dropped += 1;
                return None;
            }
            // Names of evicted identities stay in the queue.
            if self.order.len() > 2 * self.identities.len() + 1024 {
                let mut seen = HashSet::new();
                self.order.retain(|name| self.identities.contains_key(name) && seen.insert(name.clone()));
            }
            let name: Name = name.into();
            self.order.push_back(name.clone());
            self.identities.insert(name, PendingIdentity::default());
        }
        self.identities.get_mut(name)
    }

    /// Takes the next writes, with their values from the table. `sequence` is the number of their batch.
    pub fn take_batch(&mut self, memory: &TraitMemory, now: SystemTime, sequence: u64) -> Vec<IdentityWrite> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_IDENTITIES_MAX && bytes < BATCH_BYTES_MAX {
            let Some(name) = self.order.pop_front() else { break };
            let Some(pending) = self.identities.remove(&name) else { continue };
            if let Some(write) = self.write_of(name, &pending, memory, now, sequence) {
                bytes += write.name.len() + 100;
                bytes += write.fields.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                batch.push(write);
            }
        }
        batch
    }

    /// `None`: the identity is not in the table any more, so that there is nothing to write.
    fn write_of(
        &mut self,
        name: Name,
        pending: &PendingIdentity,
        memory: &TraitMemory,
        now: SystemTime,
        sequence: u64,
    ) -> Option<IdentityWrite> {
        let (environment, identifier) = wire::parse_name(&name)?;
        let record = memory.table().find(environment, identifier);
        if record.is_none() {
            self.increments.forget(&name);
        }
        if record.is_none() && pending.erased.is_none() {
            return None;
        }
        let is_lacking = |entry: &Entry<'_>| {
            pending.since.is_some_and(|since| entry.stamp >= since) && !self.is_counting(&name, entry.key)
        };
        let entries = record.iter().flat_map(|record| record.entries()).filter(is_lacking);
        let mut fields: Vec<_> =
            entries.map(|entry| (format!("={}", entry.key), wire::value(&entry))).collect();
        fields.extend(self.increments.take(&name, pending.since, sequence));
        let seen = record.map_or(unix_seconds(now), |record| record.head().seen);
        let makes = (pending.is_new || pending.is_whole) && record.is_some();
        let PendingIdentity { is_whole, erased, .. } = *pending;
        Some(IdentityWrite { name, makes, is_whole, seen, erased, fields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::evaluate::TraitValue;
    use crate::trait_table::{Changes, TraitWrite, WriteKind};
    use crate::traits::accounts::AccountLimits;

    struct Table {
        memory: TraitMemory,
        pending: Pending,
        batches: Vec<Vec<IdentityWrite>>,
    }

    impl Table {
        fn new() -> Self {
            let limits = AccountLimits { identities_max: 1000, bytes_max: 1 << 20 };
            let mut memory = TraitMemory::new(1, limits, 7);
            memory.keeps_tombstones = true;
            Self { memory, pending: Pending::new(100), batches: Vec::new() }
        }

        fn apply(&mut self, kind: WriteKind, entries: &[u8]) {
            let write = TraitWrite::new("e".into(), kind, "jane", entries);
            self.memory.write(0, &write, SystemTime::now(), &mut |changes| self.pending.changed(changes));
        }

        fn set(&mut self, key: &str, value: Option<i64>) {
            let mut changes = Changes::default();
            changes.push(key, value.map(TraitValue::Int));
            self.apply(WriteKind::Set, &changes.into_bytes());
        }

        fn add(&mut self, key: &str, amount: i64) {
            let mut changes = Changes::default();
            changes.push(key, Some(TraitValue::Int(amount)));
            self.apply(WriteKind::Add, &changes.into_bytes());
        }

        fn batch(&mut self) -> &[IdentityWrite] {
            let sequence = self.batches.len() as u64;
            self.batches.push(self.pending.take_batch(&self.memory, SystemTime::now(), sequence));
            self.batches.last().expect("a batch")
        }

        fn answer(&mut self, sequence: usize, answer: Answer) {
            for write in &self.batches[sequence] {
                self.pending.answered(write, sequence as u64, answer);
            }
        }

        /// The operation and key of each field, with its number.
        fn take(&mut self) -> Vec<(String, String)> {
            let fields = self.batch().iter().flat_map(|write| write.fields.clone());
            let text = |key: &str, value: &str| {
                let at = if key.starts_with('+') { 24 } else { 40 };
                value[at..].to_owned()
            };
            fields.map(|(key, value)| (key.clone(), text(&key, &value))).collect()
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_last_value_of_each_key_is_sent_once() {
        let mut table = Table::new();
        table.set("a", Some(1));
        table.set("b", Some(2));
        table.set("a", Some(3));
        assert_eq!(table.take(), pairs(&[("=a", "i3"), ("=b", "i2")]));
        assert_eq!(table.take(), []);
        table.set("b", None);
        assert_eq!(table.take(), pairs(&[("=b", "-")]));
        table.pending.mark_all("e jane");
        assert_eq!(table.take(), pairs(&[("=a", "i3"), ("=b", "-")]));
    }

    #[test]
    fn increments_are_sent_as_amounts_after_what_they_are_added_to() {
        let mut table = Table::new();
        table.set("n", Some(10));
        table.add("n", 1);
        table.add("n", 2);
        assert_eq!(table.take(), pairs(&[("=n", "i10"), ("+n", "3")]));
        table.add("n", 4);
        assert_eq!(table.take(), pairs(&[("+n", "4")]), "the sum before was sent");
        table.add("n", 5);
        table.set("n", Some(0));
        table.add("m", 6);
        assert_eq!(table.take(), pairs(&[("=n", "i0"), ("+m", "6")]), "a value replaces an increment");
        table.add("n", 7);
        table.pending.mark_all("e jane");
        assert_eq!(table.take(), pairs(&[("=n", "i0"), ("+n", "7")]), "the sum of m is not settled");
    }

    fn id(milliseconds: u64) -> StreamId {
        StreamId { milliseconds, counter: 0 }
    }

    #[test]
    fn increments_under_way_are_in_no_value_and_sent_again_only_if_redis_does_not_have_them() {
        let mut table = Table::new();
        table.set("n", Some(10));
        table.add("n", 1);
        assert_eq!(table.take(), pairs(&[("=n", "i10"), ("+n", "1")]));
        table.answer(0, Answer::Stored(id(1)));
        table.pending.settle(id(1));
        table.pending.mark_all("e jane");
        assert_eq!(table.take(), pairs(&[("=n", "i11")]), "the stream has brought the sum");
        // Two batches are under way while a third increment waits. Redis does not have the identity.
        table.add("n", 1);
        table.batch();
        table.add("n", 2);
        table.batch();
        table.add("n", 3);
        table.pending.mark_all("e jane");
        assert_eq!(table.take(), pairs(&[("=n", "i11"), ("+n", "3")]));
        table.answer(2, Answer::NotStored);
        table.answer(3, Answer::NotStored);
        assert_eq!(table.take(), pairs(&[("=n", "i11"), ("+n", "3")]));
        // The last two have made it. One is read; then Redis loses its data.
        table.answer(4, Answer::Stored(id(5)));
        table.answer(5, Answer::Stored(id(6)));
        table.pending.settle(id(5));
        table.pending.lost();
        table.pending.mark_all("e jane");
        assert_eq!(table.take(), pairs(&[("=n", "i11"), ("+n", "3")]));
        table.answer(6, Answer::Settled);
        assert!(!table.pending.is_counting("e jane", "n"));
    }

    #[test]
    fn a_record_of_a_read_is_not_repeated() {
        let mut table = Table::new();
        table.set("a", Some(1));
        table.batch();
        table.apply(WriteKind::Touch, &[]);
        assert_eq!((table.pending.len(), table.pending.changed_names().count()), (1, 0));
        let [write] = table.batch() else { panic!("one write") };
        assert!(write.fields.is_empty() && !write.makes);
        table.answer(1, Answer::NotStored);
        assert_eq!(table.pending.len(), 0, "the identity was erased");
        table.answer(0, Answer::NotStored);
        assert_eq!(table.take(), pairs(&[("=a", "i1")]));
    }

    #[test]
    fn an_erasure_is_sent_before_what_was_written_later() {
        let mut table = Table::new();
        table.set("a", Some(1));
        table.apply(WriteKind::Erase, &[]);
        let batch = table.batch();
        assert!(batch[0].erased.is_some() && batch[0].fields.is_empty() && !batch[0].makes);
        table.apply(WriteKind::Erase, &[]);
        table.set("b", Some(1));
        let batch = table.batch();
        let [write] = batch else { panic!("{batch:?}") };
        assert!(write.erased.is_some() && write.makes);
        assert_eq!(write.fields.len(), 1);
    }

    #[test]
    fn batches_are_bounded_and_evicted_identities_are_counted() {
        let mut table = Table::new();
        for number in 0..120 {
            let write = TraitWrite::new("e".into(), WriteKind::Set, &format!("user {number}"), &[]);
            table.memory.write(0, &write, SystemTime::now(), &mut |changes| table.pending.changed(changes));
        }
        assert_eq!((table.pending.len(), table.pending.take_dropped()), (100, 20));
        let later = SystemTime::now() + std::time::Duration::from_secs(100);
        for _ in 0..crate::trait_table::SHARDS {
            table.memory.sweep(10, later, &mut |changes| table.pending.changed(changes));
        }
        assert_eq!((table.pending.len(), table.pending.take_dropped()), (0, 100));
        assert!(table.pending.take_batch(&table.memory, later, 1).is_empty());
    }
}
