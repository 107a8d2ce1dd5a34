//! What Redis does not have yet: names of identities, and since when their keys differ. The values are in the
//! table, so that an outage of any length takes no more memory than the table has.
//!
//! Increments are kept as amounts: Redis adds them, so that those of several proxies count.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crate::engine::evaluate::TraitValue;
use crate::trait_table::{Entry, Stamp};
use crate::traits::memory::{ChangeKind, TraitChanges, TraitMemory, unix_seconds};
use crate::traits::redis::wire;

/// Identities and bytes of a batch. A larger one would delay the other clients of Redis.
const BATCH_IDENTITIES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 64 * 1024;

/// The client-side key and the identifier, as in Redis ([`wire::name`]).
pub type Name = Arc<str>;

#[derive(Debug, Default)]
struct PendingIdentity {
    /// Redis lacks the entries from this stamp on.
    since: Option<Stamp>,
    erased: Option<Stamp>,
    /// It was not in the table before.
    is_new: bool,
    /// Everything that is kept of it is sent.
    is_whole: bool,
    additions: Vec<PendingAddition>,
}

/// What was added to a key since it was last sent.
#[derive(Clone, Debug)]
pub struct PendingAddition {
    key: Box<str>,
    /// What it was added to, with its stamp. `None`: there was no value.
    base: Option<(Stamp, String)>,
    amount: i64,
    stamp: Stamp,
}

impl PendingIdentity {
    /// Whether Redis lacks more than that the identity was seen.
    fn has_changes(&self) -> bool {
        self.since.is_some() || self.erased.is_some() || self.is_new || !self.additions.is_empty()
    }

    fn set(&mut self, entries: &[Entry<'_>]) {
        for entry in entries {
            self.additions.retain(|addition| *addition.key != *entry.key);
            self.since = Some(self.since.map_or(entry.stamp, |since| since.min(entry.stamp)));
        }
    }

    fn add(&mut self, entry: &Entry<'_>, amount: i64, before: Option<Stamp>) {
        let known = self.additions.iter_mut().find(|addition| *addition.key == *entry.key);
        if let Some(known) = known
            && let Some(sum) = known.amount.checked_add(amount)
        {
            (known.amount, known.stamp) = (sum, entry.stamp);
            return;
        }
        let base = |stamp| {
            let Some(TraitValue::Int(sum)) = entry.value else { return None };
            let value = Some(TraitValue::Int(sum.wrapping_sub(amount)));
            Some((stamp, wire::value(&Entry { value, stamp, ..*entry })))
        };
        let base = before.and_then(base);
        self.additions.push(PendingAddition { key: entry.key.into(), base, amount, stamp: entry.stamp });
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
    /// Those of the fields that add.
    pub additions: Vec<PendingAddition>,
}

/// All identities that Redis lacks something of, the oldest first.
#[derive(Debug)]
pub struct Pending {
    identities: HashMap<Name, PendingIdentity>,
    order: VecDeque<Name>,
    count_max: usize,
    /// Identities whose changes were dropped since the last [`take_dropped`](Self::take_dropped).
    dropped: u64,
}

impl Pending {
    pub fn new(count_max: usize) -> Self {
        Self { identities: HashMap::new(), order: VecDeque::new(), count_max, dropped: 0 }
    }

    pub fn len(&self) -> usize {
        self.identities.len()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.identities.contains_key(name)
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
            self.dropped += u64::from(removed.is_some_and(|pending| pending.has_changes()));
            return;
        }
        let Some(pending) = self.entry(&name) else { return };
        let entries: Vec<Entry<'_>> = changes.entries.iter().collect();
        match (changes.kind, changes.addition) {
            (ChangeKind::Erased, _) => {
                *pending = PendingIdentity { erased: Some(changes.stamp), ..PendingIdentity::default() };
            }
            (ChangeKind::Written, Some(addition)) => {
                pending.is_new |= !changes.record.head().is_promoted;
                // The record has the birth of the key, which the entries of a write do not have.
                for entry in &entries {
                    let stored = changes.record.entries().find(|stored| stored.key == entry.key);
                    pending.add(&stored.unwrap_or(*entry), addition.amount, addition.before);
                }
            }
            (ChangeKind::Written, None) => {
                pending.is_new |= !changes.record.head().is_promoted;
                pending.set(&entries);
            }
            // Another store of this process was read late.
            (ChangeKind::Merged, _) => pending.set(&entries),
            (ChangeKind::Seen | ChangeKind::ErasedElsewhere | ChangeKind::Evicted, _) => {}
        }
    }

    /// Records that Redis may lack everything of an identity.
    pub fn mark_all(&mut self, name: &str) {
        if let Some(pending) = self.entry(name) {
            (pending.since, pending.is_whole) = (Some(Stamp::default()), true);
        }
    }

    /// As [`mark_all`](Self::mark_all), for a write that Redis did not take, because it does not have the
    /// identity. What it adds is added again.
    pub fn restore(&mut self, write: &IdentityWrite) {
        self.mark_all(&write.name);
        let Some(pending) = self.identities.get_mut(&write.name) else { return };
        for earlier in &write.additions {
            let later = pending.additions.iter_mut().find(|addition| addition.key == earlier.key);
            match later {
                Some(later) => {
                    later.amount = later.amount.saturating_add(earlier.amount);
                    later.base = later.base.take().min(earlier.base.clone());
                }
                None => pending.additions.push(earlier.clone()),
            }
        }
    }

    /// Records a value of another process, to which what is added here is added.
    pub fn merged(&mut self, name: &str, entry: &Entry<'_>) {
        let Some(pending) = self.identities.get_mut(name) else { return };
        let addition = pending.additions.iter_mut().find(|addition| *addition.key == *entry.key);
        if let Some(addition) = addition.filter(|_| matches!(entry.value, Some(TraitValue::Int(_)))) {
            addition.base = Some((entry.stamp, wire::value(entry)));
        }
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

    /// Takes the next writes, with their values from the table.
    pub fn take_batch(&mut self, memory: &TraitMemory, now: SystemTime) -> Vec<IdentityWrite> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_IDENTITIES_MAX && bytes < BATCH_BYTES_MAX {
            let Some(name) = self.order.pop_front() else { break };
            let Some(pending) = self.identities.remove(&name) else { continue };
            if let Some(write) = write_of(name, pending, memory, now) {
                bytes += write.name.len() + 100;
                bytes += write.fields.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                batch.push(write);
            }
        }
        batch
    }
}

/// `None`: the identity is not in the table any more, so that there is nothing to write.
fn write_of(
    name: Name,
    pending: PendingIdentity,
    memory: &TraitMemory,
    now: SystemTime,
) -> Option<IdentityWrite> {
    let (environment, identifier) = wire::parse_name(&name)?;
    let record = memory.table().find(environment, identifier);
    if record.is_none() && pending.erased.is_none() {
        return None;
    }
    let mut fields = Vec::new();
    for entry in record.iter().flat_map(|record| record.entries()) {
        let is_added = pending.additions.iter().any(|addition| *addition.key == *entry.key);
        if pending.since.is_some_and(|since| entry.stamp >= since) && !is_added {
            fields.push((format!("={}", entry.key), wire::value(&entry)));
        }
    }
    for addition in pending.additions.iter().filter(|_| record.is_some()) {
        let base = addition.base.as_ref();
        let base = base.filter(|(stamp, _)| pending.since.is_some_and(|since| *stamp >= since));
        fields.extend(base.map(|(_, value)| (format!("={}", addition.key), value.clone())));
        fields.push((format!("+{}", addition.key), wire::addition(addition.stamp, addition.amount)));
    }
    let seen = record.map_or(unix_seconds(now), |record| record.head().seen);
    let makes = (pending.is_new || pending.is_whole) && record.is_some();
    let PendingIdentity { is_whole, erased, additions, .. } = pending;
    Some(IdentityWrite { name, makes, is_whole, seen, erased, fields, additions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trait_table::{Changes, TraitOperation, TraitWrite};
    use crate::traits::accounts::AccountLimits;

    struct Table {
        memory: TraitMemory,
        pending: Pending,
    }

    impl Table {
        fn new() -> Self {
            let limits = AccountLimits { identities_max: 1000, bytes_max: 1 << 20 };
            let mut memory = TraitMemory::new(1, limits, 7);
            memory.keeps_tombstones = true;
            Self { memory, pending: Pending::new(100) }
        }

        fn apply(&mut self, operation: TraitOperation) {
            let write = TraitWrite { environment: "e".into(), identifier: "jane".into(), operation };
            self.memory.write(&write, SystemTime::now(), &mut |changes| self.pending.changed(changes));
        }

        fn set(&mut self, key: &str, value: Option<i64>) {
            let mut changes = Changes::default();
            changes.push(key, value.map(TraitValue::Int));
            self.apply(TraitOperation::Set(changes.into_bytes()));
        }

        fn add(&mut self, key: &str, amount: i64) {
            self.apply(TraitOperation::Add { key: key.into(), amount });
        }

        /// The operation and key of each field, with its number.
        fn take(&mut self) -> Vec<(String, String)> {
            let batch = self.pending.take_batch(&self.memory, SystemTime::now());
            let fields = batch.into_iter().flat_map(|write| write.fields);
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
        assert_eq!(table.take(), pairs(&[("=m", "i6"), ("=n", "i0"), ("+n", "7")]));
        // Redis did not have the identity: both increments are sent again, on what was there before them.
        table.add("n", 1);
        let first = table.pending.take_batch(&table.memory, SystemTime::now());
        table.add("n", 2);
        let second = table.pending.take_batch(&table.memory, SystemTime::now());
        table.add("n", 3);
        table.pending.restore(&first[0]);
        table.pending.restore(&second[0]);
        assert_eq!(table.take(), pairs(&[("=m", "i6"), ("=n", "i7"), ("+n", "6")]));
    }

    #[test]
    fn an_erasure_is_sent_before_what_was_written_later() {
        let mut table = Table::new();
        table.set("a", Some(1));
        table.apply(TraitOperation::Erase);
        let batch = table.pending.take_batch(&table.memory, SystemTime::now());
        assert!(batch[0].erased.is_some() && batch[0].fields.is_empty() && !batch[0].makes);
        table.apply(TraitOperation::Erase);
        table.set("b", Some(1));
        let batch = table.pending.take_batch(&table.memory, SystemTime::now());
        let [write] = &batch[..] else { panic!("{batch:?}") };
        assert!(write.erased.is_some() && write.makes);
        assert_eq!(write.fields.len(), 1);
    }

    #[test]
    fn batches_are_bounded_and_evicted_identities_are_counted() {
        let mut table = Table::new();
        for number in 0..120 {
            let write = TraitWrite {
                environment: "e".into(),
                identifier: format!("user {number}").into(),
                operation: TraitOperation::Set(Box::default()),
            };
            table.memory.write(&write, SystemTime::now(), &mut |changes| table.pending.changed(changes));
        }
        assert_eq!((table.pending.len(), table.pending.take_dropped()), (100, 20));
        let later = SystemTime::now() + std::time::Duration::from_secs(100);
        for _ in 0..crate::trait_table::SHARDS {
            table.memory.sweep(10, later, &mut |changes| table.pending.changed(changes));
        }
        assert_eq!((table.pending.len(), table.pending.take_dropped()), (0, 100));
        assert!(table.pending.take_batch(&table.memory, later).is_empty());
    }
}
