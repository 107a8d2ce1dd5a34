//! The table with its writes: stamps, merges, evicts, and collects what reactors and sinks must know.
//!
//! No channel, no file, no clock: the time is passed in.
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::engine::evaluate::TraitValue;
use crate::trait_table::{
    ChangedRecord, Changes, Entry, Rebuild, RebuiltShard, RecordWriter, SHARDS, Stamp, TableBuilder,
    TraitDelta, TraitHead, TraitRecord, TraitTable, TraitWrite, WriteKind, apply, make, merge, shard_of,
};
use crate::traits::accounts::{AccountLimits, Accounts, Counted};
use crate::traits::changes::{Addition, ChangeKind, ChangedEntries, TraitChanges};
use crate::traits::clock::{HybridClock, ticks};
use crate::traits::shard_set::ShardSet;

/// Shards built anew before reactors are informed: each takes some 50 microseconds.
const REBUILDS_MAX: usize = 16;
/// How long a deletion is kept, so that another process that was away does not bring the value back.
pub const TOMBSTONE_AGE_MAX: Duration = Duration::from_secs(3600);

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
    /// Older records are merged later: until then deleted keys leave tombstones that do not age, so that
    /// these records do not bring the keys back.
    pub awaits_records: bool,
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
            awaits_records: false,
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
        if self.awaits_records {
            return Some(0);
        }
        let since = || self.clock.before(now).clock.saturating_sub(ticks(UNIX_EPOCH + TOMBSTONE_AGE_MAX));
        self.keeps_tombstones.then(since)
    }

    /// Applies a write of a reactor, which has this number.
    pub fn write(
        &mut self,
        reactor: usize,
        write: &TraitWrite,
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        let Some((identifier, entries)) = write.parts() else { return };
        let place = self.place(&write.environment, identifier);
        match write.kind {
            WriteKind::Set => self.set(place, (entries, None), now, each),
            WriteKind::Make(keys) => self.make(reactor, place, (entries, keys), now, each),
            WriteKind::Add => {
                let Some(added) = crate::trait_table::entries(entries).next() else { return };
                let Some(TraitValue::Int(amount)) = added.value else { return };
                let (changes, addition) = self.sum(place, added.key, amount);
                self.set(place, (&changes, addition), now, each);
            }
            WriteKind::Touch => self.touch(place, now, each),
            WriteKind::Erase => {
                self.remove(place, now, ChangeKind::Erased, each);
            }
        }
    }

    /// Where an identity is, in an environment whose table is made if it has none.
    fn place<'i>(&mut self, environment: &str, identifier: &'i str) -> Place<'i> {
        Place { space: self.table.intern(environment), hash: self.table.hash(identifier), identifier }
    }

    fn find(&self, place: Place<'_>) -> Option<TraitRecord<'_>> {
        self.table.find_at(place.space, place.hash, place.identifier)
    }

    /// The changes that add to a trait. None if it is not an integer, or the sum is beyond 64 bits.
    fn sum(&self, place: Place<'_>, key: &str, amount: i64) -> (Box<[u8]>, Option<Addition>) {
        let record = self.find(place);
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
        place: Place<'_>,
        (changes, addition): (&[u8], Option<Addition>),
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        let old = self.find(place);
        let (before, counted) = (self.clock.before(now), old.as_ref().map(Counted::of));
        // Writing is being seen: an identity that is written twice has returned.
        let head = TraitHead { is_promoted: old.is_some(), is_erased: false, seen: unix_seconds(now) };
        let applied = apply(old, place.identifier, changes, before, head, self.tombstones_since(now));
        self.clock.advance(applied.stamp);
        let entries = ChangedEntries::of_sent(changes, before);
        let (kind, stamp) = (ChangeKind::Written, applied.stamp);
        let changed = Changed { kind, entries, addition, stamp, writer: None, old: counted };
        self.put(place, applied.record, &changed, each);
    }

    /// Makes an identity, with so many keys.
    fn make(
        &mut self,
        reactor: usize,
        place: Place<'_>,
        (changes, keys): (&[u8], u32),
        now: SystemTime,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        if self.find(place).is_some() {
            // Another reactor has made it, or its age differs by the clock of the reactor.
            return self.set(place, (changes, None), now, each);
        }
        let before = self.clock.before(now);
        let head = TraitHead { is_promoted: false, is_erased: false, seen: unix_seconds(now) };
        let applied = make(place.identifier, changes, keys, before, head);
        self.clock.advance(applied.stamp);
        let entries = ChangedEntries::of_sent(changes, before);
        let (kind, stamp, writer) = (ChangeKind::Written, applied.stamp, Some(reactor));
        let changed = Changed { kind, entries, addition: None, stamp, writer, old: None };
        self.put(place, applied.record, &changed, each);
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
        let place = self.place(remote.environment, remote.identifier);
        let old = self.find(place);
        let before = old.map(|old| old.head()).unwrap_or_default();
        let is_promoted = before.is_promoted || remote.is_promoted;
        let head = TraitHead { seen: before.seen.max(remote.seen), is_promoted, ..before };
        let since = self.tombstones_since(now);
        let Some(record) = merge(old, remote.identifier, remote.entries, head, since) else { return true };
        let entries = ChangedEntries::of_stamped(remote.entries);
        let (kind, stamp, old) = (ChangeKind::Merged, newest, old.as_ref().map(Counted::of));
        let changed = Changed { kind, entries, addition: None, stamp, writer: None, old };
        self.put(place, record, &changed, each);
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
        let place = self.place(environment, identifier);
        let Some(old) = self.find(place) else { return };
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
        let old = Some(Counted::of(&old));
        self.put(place, record, &Changed::without_entries(kind, stamp, old), each);
        self.erased_shards.insert(place.shard());
    }

    fn touch(&mut self, place: Place<'_>, now: SystemTime, each: &mut dyn FnMut(&TraitChanges<'_>)) {
        let Some(old) = self.find(place) else { return };
        let head = TraitHead { is_promoted: true, is_erased: false, seen: unix_seconds(now) };
        if head == old.head() {
            return;
        }
        let (stamp, counted) = (self.clock.before(now), Some(Counted::of(&old)));
        let changed = Changed::without_entries(ChangeKind::Seen, stamp, counted);
        let record = old.with_head(head);
        self.put(place, record, &changed, each);
    }

    /// Removes an identity. Returns whether it was there.
    fn remove(
        &mut self,
        place: Place<'_>,
        now: SystemTime,
        kind: ChangeKind,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) -> bool {
        let old = self.find(place).as_ref().map(Counted::of);
        let stamp = self.clock.before(now).next();
        self.clock.advance(stamp);
        self.put(place, erased(place.identifier), &Changed::without_entries(kind, stamp, old), each);
        if kind == ChangeKind::Erased {
            self.erased_shards.insert(place.shard());
        }
        old.is_some()
    }

    /// Removes an identity that another process has removed from the file that both keep. Sinks are not
    /// informed: that process has informed them.
    pub fn forget(&mut self, environment: &Arc<str>, identifier: &str, now: SystemTime) {
        let place = self.place(environment, identifier);
        self.remove(place, now, ChangeKind::Evicted, &mut |_| {});
    }

    fn put(
        &mut self,
        place: Place<'_>,
        record: Vec<u8>,
        changed: &Changed<'_>,
        each: &mut dyn FnMut(&TraitChanges<'_>),
    ) {
        let Place { space, hash, .. } = place;
        let record: Arc<[u8]> = record.into();
        let Some(new) = TraitRecord::new(&record) else { return };
        let Changed { kind, entries, addition, stamp, writer, old } = *changed;
        let counted = (!new.head().is_erased).then(|| Counted::of(&new));
        self.accounts.replace(space, hash, old, counted);
        let environment = self.table.environment(space);
        each(&TraitChanges { environment: &environment, hash, kind, record: new, entries, addition, stamp });
        self.table.put(space, hash, record.clone(), 0, 0);
        self.touched.insert(place.shard());
        self.delta.records.push(ChangedRecord { environment, hash, record, writer });
    }

    /// Removes identities until all limits are kept. Returns how many.
    pub fn evict(&mut self, now: SystemTime, each: &mut dyn FnMut(&TraitChanges<'_>)) -> u64 {
        let mut count = 0;
        loop {
            let table = &self.table;
            let victim = self.accounts.next_victim(|space, hash| table.find_hash(space, hash));
            let Some((space, hash)) = victim else { return count };
            let Some(record) = self.table.find_hash(space, hash) else { return count };
            let identifier = String::from_utf8_lossy(record.identifier()).into_owned();
            let place = Place { space, hash: self.table.hash(&identifier), identifier: &identifier };
            if !self.remove(place, now, ChangeKind::Evicted, each) {
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
        let environment = environment.clone();
        for identifier in &old {
            let place = self.place(&environment, identifier);
            self.remove(place, now, ChangeKind::Evicted, each);
        }
        old.len() as u64
    }

    /// Takes the records of an environment that were stored before, at the start.
    pub fn load(&mut self, environment: &str, records: TableBuilder) {
        let space = self.table.intern(environment);
        self.table.load(space, records);
        for index in 0..SHARDS {
            for record in self.table.records(environment, index) {
                let hash = self.table.hash_of(&record);
                self.accounts.replace(space, hash, None, Some(Counted::of(&record)));
                let newest = record.entries().map(|entry| entry.stamp).max();
                self.clock.advance(newest.unwrap_or_default());
            }
        }
    }

    /// What changed since the last call, with shards built anew where their overlays are large; those of
    /// which small ones are left are built while nothing else is to do.
    pub fn take_delta(&mut self, is_idle: bool) -> TraitDelta {
        for shard in std::mem::take(&mut self.erased_shards).iter() {
            self.rebuild(shard, Rebuild::Purge);
        }
        let mut rebuilt = 0;
        for shard in std::mem::take(&mut self.touched).iter() {
            if rebuilt < REBUILDS_MAX && self.rebuild(shard, Rebuild::Due) {
                rebuilt += 1;
            } else {
                self.overlaid.insert(shard);
            }
        }
        if is_idle {
            let shards: Vec<_> = self.overlaid.iter().take(REBUILDS_MAX).collect();
            for shard in shards {
                self.rebuild(shard, Rebuild::Idle);
                self.overlaid.remove(shard);
            }
        }
        std::mem::take(&mut self.delta)
    }

    /// Returns whether the shard was built anew.
    fn rebuild(&mut self, (space, index): (usize, usize), when: Rebuild) -> bool {
        let Some(shard) = self.table.rebuild(space, index, when) else { return false };
        self.table.replace_shard(space, index, shard.clone(), 0);
        let environment = self.table.environment(space);
        self.delta.shards.push(RebuiltShard { environment, index, shard });
        true
    }
}

/// An identity in the table.
#[derive(Clone, Copy)]
struct Place<'i> {
    /// The position of its environment.
    space: usize,
    hash: u64,
    identifier: &'i str,
}

impl Place<'_> {
    fn shard(&self) -> (usize, usize) {
        (self.space, shard_of(self.hash))
    }
}

/// What [`TraitMemory::put`] reports to sinks and reactors.
struct Changed<'a> {
    kind: ChangeKind,
    entries: ChangedEntries<'a>,
    addition: Option<Addition>,
    stamp: Stamp,
    /// The reactor that has the record already.
    writer: Option<usize>,
    /// The record before. `None`: there was none.
    old: Option<Counted>,
}

impl Changed<'_> {
    fn without_entries(kind: ChangeKind, stamp: Stamp, old: Option<Counted>) -> Self {
        Self { kind, entries: ChangedEntries::default(), addition: None, stamp, writer: None, old }
    }
}

/// A record that hides an older one.
fn erased(identifier: &str) -> Vec<u8> {
    RecordWriter::new(TraitHead { is_erased: true, ..TraitHead::default() }, identifier).finish()
}

/// Unix seconds, as records have them.
pub fn unix_seconds(time: SystemTime) -> u32 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX)
}
