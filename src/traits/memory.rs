//! The table with its writes: stamps, merges, evicts, and collects what reactors and sinks must know.
//!
//! No channel, no file, no clock: the time is passed in.
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::engine::evaluate::TraitValue;
use crate::trait_table::{
    ChangedRecord, Changes, Entry, Rebuild, RebuiltShard, RecordWriter, SHARDS, Stamp, TableBuilder,
    TraitDelta, TraitHead, TraitOperation, TraitRecord, TraitTable, TraitWrite, apply, merge, shard_of,
};
use crate::traits::accounts::{AccountLimits, Accounts};
use crate::traits::clock::{HybridClock, ticks};

/// Shards built anew before reactors are informed: each takes some 50 microseconds.
const REBUILDS_MAX: usize = 16;
/// How long a deletion is kept, so that another process that was away does not bring the value back.
pub const TOMBSTONE_AGE_MAX: Duration = Duration::from_secs(3600);

/// Shards, by environment and number.
type ShardSet = BTreeSet<(Arc<str>, usize)>;

/// Why a record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A write of this process.
    Written,
    /// The identity was seen again: only its head changed.
    Seen,
    /// Changes of another process.
    Merged,
    /// Erased on request.
    Erased,
    /// Erased by another process.
    ErasedElsewhere,
    /// Removed for the limits or its age.
    Evicted,
}

/// A change of one identity, for sinks.
#[derive(Debug)]
pub struct TraitChanges<'a> {
    pub environment: &'a str,
    /// The hash of the identifier ([`TraitTable::hash`]).
    pub hash: u64,
    pub kind: ChangeKind,
    /// The record after the change: all keys in their order, with stamps. Erased: only the identifier.
    pub record: TraitRecord<'a>,
    /// The keys of this write, with `None` for those that it deletes, in the order sent.
    pub entries: ChangedEntries<'a>,
    /// Of a write that adds to an integer: its only entry has the sum.
    pub addition: Option<Addition>,
    /// When it was written, for an erased identity too.
    pub stamp: Stamp,
}

/// Keys as a reactor sent them, or as another process stamped them. They are decoded where they are needed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChangedEntries<'a> {
    sent: &'a [u8],
    /// The stamp before the first of those.
    before: Stamp,
    stamped: &'a [Entry<'a>],
}

impl<'a> ChangedEntries<'a> {
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.stamped.is_empty()
    }

    pub fn iter(self) -> impl Iterator<Item = Entry<'a>> {
        stamped(self.sent, self.before).chain(self.stamped.iter().copied())
    }
}

/// An increment, which other processes must add too instead of taking the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addition {
    pub amount: i64,
    /// The stamp of the value that it was added to. `None`: there was none, so that it was added to 0.
    pub before: Option<Stamp>,
}

/// Keys of an identity as another process stamped them; without any, only the identity is made.
#[derive(Debug)]
pub struct RemoteChange<'a> {
    pub environment: &'a str,
    pub identifier: &'a str,
    pub entries: &'a [Entry<'a>],
    /// When the identity was last seen, in Unix seconds.
    pub seen: u32,
    /// It was seen more than once.
    pub is_promoted: bool,
}

/// The table, and what changed since it was last published.
#[derive(Debug)]
pub struct TraitMemory {
    table: TraitTable,
    accounts: Accounts,
    clock: HybridClock,
    delta: TraitDelta,
    /// Shards that changed since then, and those that have an overlay.
    touched: ShardSet,
    overlaid: ShardSet,
    /// Shards that are built anew in any case: they have data that was erased.
    erased_shards: ShardSet,
    /// Deleted keys leave tombstones.
    pub keeps_tombstones: bool,
    /// Where the next sweep for old identities continues.
    sweep_at: usize,
}

impl TraitMemory {
    pub fn new(seed: u64, limits: AccountLimits, proxy: u32) -> Self {
        Self {
            table: TraitTable::new(seed),
            accounts: Accounts::new(limits),
            clock: HybridClock::new(proxy),
            delta: TraitDelta::default(),
            touched: ShardSet::default(),
            overlaid: ShardSet::default(),
            erased_shards: ShardSet::default(),
            keeps_tombstones: false,
            sweep_at: 0,
        }
    }

    pub fn table(&self) -> &TraitTable {
        &self.table
    }

    pub fn bytes(&self) -> u64 {
        self.accounts.bytes()
    }

    pub fn identities(&self) -> u64 {
        self.accounts.identities()
    }

    /// The stamp that the next write follows at this time.
    pub fn stamp(&self, now: SystemTime) -> Stamp {
        self.clock.before(now)
    }

    /// Takes the clock of a store that all processes share for that of this machine.
    pub fn set_clock_offset(&mut self, milliseconds: i64) {
        self.clock.set_offset(milliseconds);
    }

    /// The clock of the oldest tombstones that are kept. `None`: deleted keys leave none.
    pub fn tombstones_since(&self, now: SystemTime) -> Option<u64> {
        let since = || self.clock.before(now).clock.saturating_sub(ticks(UNIX_EPOCH + TOMBSTONE_AGE_MAX));
        self.keeps_tombstones.then(since)
    }

    /// Applies a write of a reactor.
    pub fn write(&mut self, write: &TraitWrite, now: SystemTime, each: &mut dyn FnMut(&TraitChanges<'_>)) {
        let (environment, identifier) = (self.table.intern(&write.environment), &*write.identifier);
        match &write.operation {
            TraitOperation::Set(changes) => self.set(&environment, identifier, (changes, None), now, each),
            TraitOperation::Add { key, amount } => {
                let (changes, addition) = self.sum(&environment, identifier, key, *amount);
                self.set(&environment, identifier, (&changes, addition), now, each);
            }
            TraitOperation::Touch => self.touch(&environment, identifier, now, each),
            TraitOperation::Erase => {
                self.remove(&environment, identifier, now, ChangeKind::Erased, each);
            }
        }
    }

    /// The changes that add to a trait. None if it is not an integer, or the sum is beyond 64 bits.
    fn sum(
        &self,
        environment: &str,
        identifier: &str,
        key: &str,
        amount: i64,
    ) -> (Box<[u8]>, Option<Addition>) {
        let record = self.table.find(environment, identifier);
        let stored = record.and_then(|record| record.entries().find(|entry| entry.key == key));
        let sum = match stored.and_then(|entry| entry.value) {
            None => Some(amount),
            Some(TraitValue::Int(number)) => number.checked_add(amount),
            Some(_) => None,
        };
        let mut changes = Changes::default();
        if let Some(sum) = sum {
            changes.push(key, Some(TraitValue::Int(sum)));
        }
        let before = stored.filter(|entry| entry.value.is_some()).map(|entry| entry.stamp);
        (changes.into_bytes(), sum.map(|_| Addition { amount, before }))
    }

    fn set(
        &mut self,
        environment: &Arc<str>,
        identifier: &str,
        (changes, addition): (&[u8], Option<Addition>),
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        let old = self.table.find(environment, identifier);
        let before = self.clock.before(now);
        // Writing is being seen: an identity that is written twice has returned.
        let head = TraitHead { is_promoted: old.is_some(), is_erased: false, seen: unix_seconds(now) };
        let applied = apply(old, identifier, changes, before, head, self.tombstones_since(now));
        self.clock.advance(applied.stamp);
        let entries = ChangedEntries { sent: changes, before, stamped: &[] };
        let stamp = applied.stamp;
        let changed = Changed { kind: ChangeKind::Written, entries, addition, stamp };
        self.put(environment, identifier, applied.record, &changed, each);
    }

    /// Merges changes of another process, by the stamps of each key. Returns false if the clock of that
    /// process is wrong: nothing was merged.
    pub fn merge(
        &mut self,
        remote: &RemoteChange<'_>,
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) -> bool {
        let newest = remote.entries.iter().map(|entry| entry.stamp).max().unwrap_or_default();
        if !self.clock.observe(newest, now) {
            return false;
        }
        let environment = self.table.intern(remote.environment);
        let old = self.table.find(&environment, remote.identifier);
        let before = old.map(|old| old.head()).unwrap_or_default();
        let is_promoted = before.is_promoted || remote.is_promoted;
        let head = TraitHead { seen: before.seen.max(remote.seen), is_promoted, ..before };
        let since = self.tombstones_since(now);
        let Some(record) = merge(old, remote.identifier, remote.entries, head, since) else { return true };
        let entries = ChangedEntries { stamped: remote.entries, ..ChangedEntries::default() };
        let kind = ChangeKind::Merged;
        let changed = Changed { kind, entries, addition: None, stamp: newest };
        self.put(&environment, remote.identifier, record, &changed, each);
        true
    }

    /// Erases what another process erased at this stamp. What was written later stays.
    pub fn erase_elsewhere(
        &mut self,
        (environment, identifier): (&str, &str),
        stamp: Stamp,
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        self.clock.observe(stamp, now);
        let environment = self.table.intern(environment);
        let Some(old) = self.table.find(&environment, identifier) else { return };
        let later = old.entries().filter(|entry| entry.stamp > stamp);
        let mut writer = RecordWriter::new(old.head(), identifier);
        let mut count = 0;
        for entry in later {
            writer.push(&entry);
            count += 1;
        }
        if count == old.entries().count() && count > 0 {
            return;
        }
        let is_empty = count == 0;
        let record = match is_empty {
            true => erased(identifier),
            false => writer.finish(),
        };
        let kind = if is_empty { ChangeKind::ErasedElsewhere } else { ChangeKind::Merged };
        let changed = Changed { kind, entries: ChangedEntries::default(), addition: None, stamp };
        self.put(&environment, identifier, record, &changed, each);
        let index = shard_of(self.table.hash(identifier));
        self.erased_shards.insert((environment, index));
    }

    fn touch(
        &mut self,
        environment: &Arc<str>,
        identifier: &str,
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        let Some(old) = self.table.find(environment, identifier) else { return };
        let head = TraitHead { is_promoted: true, is_erased: false, seen: unix_seconds(now) };
        if head == old.head() {
            return;
        }
        let stamp = self.clock.before(now);
        let changed =
            Changed { kind: ChangeKind::Seen, entries: ChangedEntries::default(), addition: None, stamp };
        let record = old.with_head(head);
        self.put(environment, identifier, record, &changed, each);
    }

    /// Removes an identity. Returns whether it was there.
    fn remove(
        &mut self,
        environment: &Arc<str>,
        identifier: &str,
        now: SystemTime,
        kind: ChangeKind,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) -> bool {
        let is_known = self.table.find(environment, identifier).is_some();
        let stamp = self.clock.before(now).next();
        self.clock.advance(stamp);
        let changed = Changed { kind, entries: ChangedEntries::default(), addition: None, stamp };
        self.put(environment, identifier, erased(identifier), &changed, each);
        if kind == ChangeKind::Erased {
            let index = shard_of(self.table.hash(identifier));
            self.erased_shards.insert((environment.clone(), index));
        }
        is_known
    }

    /// Removes an identity that another process has removed from the file that both keep. Sinks are not
    /// informed: that process has informed them.
    pub fn forget(&mut self, environment: &Arc<str>, identifier: &str, now: SystemTime) {
        self.remove(environment, identifier, now, ChangeKind::Evicted, &mut |_| {});
    }

    fn put(
        &mut self,
        environment: &Arc<str>,
        identifier: &str,
        record: Vec<u8>,
        changed: &Changed<'_>,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        let (hash, record): (_, Arc<[u8]>) = (self.table.hash(identifier), record.into());
        let Some(new) = TraitRecord::new(&record) else { return };
        let old = self.table.find(environment, identifier);
        self.accounts.replace(
            environment,
            hash,
            old.as_ref(),
            Some(&new).filter(|new| !new.head().is_erased),
        );
        let Changed { kind, entries, addition, stamp } = *changed;
        each(&TraitChanges { environment, hash, kind, record: new, entries, addition, stamp });
        self.table.put(environment, hash, record.clone(), 0, 0);
        self.touched.insert((environment.clone(), shard_of(hash)));
        self.delta.records.push(ChangedRecord { environment: environment.clone(), hash, record });
    }

    /// Removes identities until all limits are kept. Returns how many.
    pub fn evict(&mut self, now: SystemTime, each: &mut dyn FnMut(&TraitChanges<'_>)) -> u64 {
        let mut count = 0;
        loop {
            let table = &self.table;
            let victim = self.accounts.next_victim(|environment, hash| table.find_hash(environment, hash));
            let Some((environment, hash)) = victim else { return count };
            let Some(record) = self.table.find_hash(&environment, hash) else { return count };
            let identifier = String::from_utf8_lossy(record.identifier()).into_owned();
            if !self.remove(&environment, &identifier, now, ChangeKind::Evicted, each) {
                return count;
            }
            count += 1;
        }
    }

    /// Removes identities of the next shard that were not seen for this time. Returns how many.
    pub fn sweep(
        &mut self,
        ttl_seconds: u32,
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) -> u64 {
        let at = self.sweep_at;
        self.sweep_at = at.wrapping_add(1);
        let (index, which) = (at % SHARDS, at / SHARDS);
        let mut environments: Vec<Arc<str>> = self.table.environments().cloned().collect();
        environments.sort_unstable();
        let Some(environment) =
            which.checked_rem(environments.len()).and_then(|which| environments.get(which))
        else {
            return 0;
        };
        let seconds = unix_seconds(now);
        let old = self.table.records(environment, index);
        let old = old.filter(|record| seconds.saturating_sub(record.head().seen) > ttl_seconds);
        let old: Vec<String> = old
            .filter_map(|record| std::str::from_utf8(record.identifier()).ok().map(str::to_owned))
            .collect();
        for identifier in &old {
            self.remove(environment, identifier, now, ChangeKind::Evicted, each);
        }
        old.len() as u64
    }

    /// Takes the records of an environment that were stored before, at the start.
    pub fn load(&mut self, environment: &str, records: TableBuilder) {
        let environment = self.table.intern(environment);
        self.table.load(&environment, records);
        for index in 0..SHARDS {
            for record in self.table.records(&environment, index) {
                let hash = self.table.hash_of(&record);
                self.accounts.replace(&environment, hash, None, Some(&record));
                let newest = record.entries().map(|entry| entry.stamp).max();
                self.clock.advance(newest.unwrap_or_default());
            }
        }
    }

    /// What changed since the last call, with shards built anew where their overlays are large; those of
    /// which small ones are left are built while nothing else is to do.
    pub fn take_delta(&mut self, is_idle: bool) -> TraitDelta {
        for shard in std::mem::take(&mut self.erased_shards) {
            self.rebuild(&shard, Rebuild::Purge);
        }
        let mut rebuilt = 0;
        for shard in std::mem::take(&mut self.touched) {
            if rebuilt < REBUILDS_MAX && self.rebuild(&shard, Rebuild::Due) {
                rebuilt += 1;
            } else {
                self.overlaid.insert(shard);
            }
        }
        if is_idle {
            let shards: Vec<_> = self.overlaid.iter().take(REBUILDS_MAX).cloned().collect();
            for shard in shards {
                self.rebuild(&shard, Rebuild::Idle);
                self.overlaid.remove(&shard);
            }
        }
        std::mem::take(&mut self.delta)
    }

    /// Returns whether the shard was built anew.
    fn rebuild(&mut self, (environment, index): &(Arc<str>, usize), when: Rebuild) -> bool {
        let Some(shard) = self.table.rebuild(environment, *index, when) else { return false };
        self.table.replace_shard(environment, *index, shard.clone(), 0);
        self.delta.shards.push(RebuiltShard { environment: environment.clone(), index: *index, shard });
        true
    }
}

/// What [`TraitMemory::put`] reports to sinks.
struct Changed<'a> {
    kind: ChangeKind,
    entries: ChangedEntries<'a>,
    addition: Option<Addition>,
    stamp: Stamp,
}

/// A record that hides an older one.
fn erased(identifier: &str) -> Vec<u8> {
    RecordWriter::new(TraitHead { is_erased: true, ..TraitHead::default() }, identifier).finish()
}

/// The entries of a write with the stamps after `before`.
fn stamped(changes: &[u8], before: Stamp) -> impl Iterator<Item = Entry<'_>> {
    let mut stamp = before;
    crate::trait_table::entries(changes).map(move |entry| {
        stamp = stamp.next();
        Entry { stamp, born: stamp.clock, ..entry }
    })
}

/// Unix seconds, as records have them.
pub fn unix_seconds(time: SystemTime) -> u32 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX)
}
