//! The table of kept traits: for each environment, shards by the hash of the identifier.
//!
//! A [`Shard`] is immutable: the records one after another, and an index of their offsets. Changes are in an
//! overlay beside it until the shard is built anew, one shard at a time, so that no second copy of the whole
//! table is ever in memory.
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;

use crate::trait_table::record::{Reader, TraitRecord, write_number};

/// Shards of an environment.
pub const SHARDS: usize = 256;
/// A shard is built anew when its overlay has more records than this, and than an eighth of the shard.
const OVERLAY_RECORDS_MIN: usize = 64;
const OVERLAY_PART: usize = 8;

/// The kept traits of all environments.
#[derive(Clone, Debug)]
pub struct TraitTable {
    hasher: foldhash::fast::FixedState,
    /// By client-side key.
    spaces: HashMap<Arc<str>, Space, foldhash::fast::RandomState>,
}

/// The kept traits of one environment.
#[derive(Clone, Debug)]
struct Space {
    shards: Box<[ShardView]>,
}

#[derive(Clone, Debug)]
struct ShardView {
    base: Arc<Shard>,
    overlay: HashTable<Overlaid>,
}

/// A record that changed since the shard was built.
#[derive(Clone, Debug)]
struct Overlaid {
    hash: u64,
    record: Arc<[u8]>,
    /// On a reactor, the number of its last write of the identity; 0: none.
    pending: u64,
}

/// Immutable records with their index.
#[derive(Debug, Default)]
pub struct Shard {
    /// Each with its length before it.
    bytes: Box<[u8]>,
    /// Offsets plus one; 0 is free. A power of two, at least a quarter of it free.
    index: Box<[u32]>,
    count: usize,
}

impl TraitTable {
    /// An empty table. All tables of a process have the same seed.
    pub fn new(seed: u64) -> Self {
        Self { hasher: foldhash::fast::FixedState::with_seed(seed), spaces: HashMap::default() }
    }

    pub fn hash(&self, identifier: &str) -> u64 {
        self.hasher.hash_one(identifier)
    }

    /// The record of an identity. Erased ones are not returned.
    pub fn find(&self, environment: &str, identifier: &str) -> Option<TraitRecord<'_>> {
        let hash = self.hash(identifier);
        let record = self.spaces.get(environment)?.find(hash, identifier.as_bytes())?;
        (!record.head().is_erased).then_some(record)
    }

    /// The client-side keys of the environments that have a table.
    pub fn environments(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spaces.keys()
    }

    /// The shared form of a client-side key; made if the environment has no table.
    pub fn intern(&mut self, environment: &str) -> Arc<str> {
        match self.spaces.get_key_value(environment) {
            Some((key, _)) => key.clone(),
            None => {
                let key: Arc<str> = environment.into();
                self.spaces.insert(key.clone(), Space::default());
                key
            }
        }
    }

    fn space_mut(&mut self, environment: &Arc<str>) -> &mut Space {
        // Looked up first: an entry would clone the key.
        if !self.spaces.contains_key(environment) {
            self.spaces.insert(environment.clone(), Space::default());
        }
        self.spaces.entry(environment.clone()).or_default()
    }

    /// Replaces the record of an identity. `pending` is the number of a reactor's own write; with 0 an entry
    /// whose own write is newer than `acknowledged` is left as it is.
    pub fn put(
        &mut self,
        environment: &Arc<str>,
        hash: u64,
        record: Arc<[u8]>,
        pending: u64,
        acknowledged: u64,
    ) {
        let Some(new) = TraitRecord::new(&record) else { return };
        let overlay = &mut self.space_mut(environment).shards[shard_of(hash)].overlay;
        let is_same = |entry: &Overlaid| {
            entry.hash == hash
                && TraitRecord::new(&entry.record).is_some_and(|old| old.identifier() == new.identifier())
        };
        match overlay.find_mut(hash, is_same) {
            Some(entry) if pending > 0 || entry.pending <= acknowledged => {
                *entry = Overlaid { hash, record, pending };
            }
            Some(_) => {}
            None => {
                overlay.insert_unique(hash, Overlaid { hash, record, pending }, |entry| entry.hash);
            }
        }
    }

    /// Puts a new shard in place. It has all records of the overlay, except those of own writes after
    /// `acknowledged`.
    pub fn replace_shard(
        &mut self,
        environment: &Arc<str>,
        index: usize,
        shard: Arc<Shard>,
        acknowledged: u64,
    ) {
        let Some(view) = self.space_mut(environment).shards.get_mut(index) else { return };
        view.base = shard;
        view.overlay.retain(|entry| entry.pending > acknowledged);
        view.overlay.shrink_to_fit(|entry| entry.hash);
    }

    /// Copies the entries of own writes after `acknowledged` into a table that replaces this one.
    pub fn keep_pending(&self, newer: &mut Self, acknowledged: u64) {
        for (environment, space) in &self.spaces {
            for entry in space.shards.iter().flat_map(|view| &view.overlay) {
                if entry.pending > acknowledged {
                    newer.put(environment, entry.hash, entry.record.clone(), entry.pending, 0);
                }
            }
        }
    }

    /// The shard anew, with its overlay, if that is large; or in any case if `is_forced`.
    pub fn rebuild(&self, environment: &str, index: usize, is_forced: bool) -> Option<Arc<Shard>> {
        let view = self.spaces.get(environment)?.shards.get(index)?;
        let overlaid = view.overlay.len();
        let is_due = overlaid > OVERLAY_RECORDS_MIN.max(view.base.count / OVERLAY_PART);
        if overlaid == 0 || !(is_due || is_forced) {
            return None;
        }
        let mut builder = ShardBuilder::with_capacity(view.base.bytes.len());
        for record in view.base.records() {
            if view.find_overlaid(self.hash_of(&record), record.identifier()).is_none() {
                builder.push(record.bytes());
            }
        }
        for entry in &view.overlay {
            if TraitRecord::new(&entry.record).is_some_and(|record| !record.head().is_erased) {
                builder.push(&entry.record);
            }
        }
        Some(Arc::new(builder.finish(|record| self.hash_of(record))))
    }

    /// All records of a shard that are not erased.
    pub fn records(&self, environment: &str, index: usize) -> impl Iterator<Item = TraitRecord<'_>> {
        let view = self.spaces.get(environment).and_then(|space| space.shards.get(index));
        let overlaid = view.into_iter().flat_map(|view| &view.overlay);
        let overlaid = overlaid.filter_map(|entry| TraitRecord::new(&entry.record));
        let base = view.into_iter().flat_map(|view| {
            let is_overlaid = |record: &TraitRecord<'_>| {
                view.find_overlaid(self.hash_of(record), record.identifier()).is_some()
            };
            view.base.records().filter(move |record| view.overlay.is_empty() || !is_overlaid(record))
        });
        overlaid.chain(base).filter(|record| !record.head().is_erased)
    }

    /// The record with this hash that is not erased: for queues, which have only hashes.
    pub fn find_hash(&self, environment: &str, hash: u64) -> Option<TraitRecord<'_>> {
        let view = &self.spaces.get(environment)?.shards[shard_of(hash)];
        let record = match view.overlay.find(hash, |entry| entry.hash == hash) {
            Some(entry) => TraitRecord::new(&entry.record),
            None => view.base.find(hash, |record| self.hash_of(record) == hash),
        };
        record.filter(|record| !record.head().is_erased)
    }

    fn hash_of(&self, record: &TraitRecord<'_>) -> u64 {
        self.hasher.hash_one(std::str::from_utf8(record.identifier()).unwrap_or_default())
    }

    /// Builds the shards of an environment from their records: for the start.
    pub fn load(&mut self, environment: &Arc<str>, builders: Vec<ShardBuilder>) {
        let finish = |builder: ShardBuilder| Arc::new(builder.finish(|record| self.hash_of(record)));
        let shards: Vec<Arc<Shard>> = builders.into_iter().map(finish).collect();
        for (view, shard) in self.space_mut(environment).shards.iter_mut().zip(shards) {
            view.base = shard;
        }
    }
}

/// The shard of a hash.
pub fn shard_of(hash: u64) -> usize {
    usize::from(hash.to_le_bytes()[0])
}

impl Default for Space {
    fn default() -> Self {
        // One empty shard for all: most environments have few identities.
        let base: Arc<Shard> = Arc::default();
        let view = || ShardView { base: base.clone(), overlay: HashTable::new() };
        Self { shards: (0..SHARDS).map(|_| view()).collect() }
    }
}

impl Space {
    fn find(&self, hash: u64, identifier: &[u8]) -> Option<TraitRecord<'_>> {
        let view = &self.shards[shard_of(hash)];
        if let Some(record) = view.find_overlaid(hash, identifier) {
            return Some(record);
        }
        view.base.find(hash, |record| record.identifier() == identifier)
    }
}

impl ShardView {
    fn find_overlaid(&self, hash: u64, identifier: &[u8]) -> Option<TraitRecord<'_>> {
        if self.overlay.is_empty() {
            return None;
        }
        let is_same = |entry: &Overlaid| {
            entry.hash == hash
                && TraitRecord::new(&entry.record).is_some_and(|record| record.identifier() == identifier)
        };
        TraitRecord::new(&self.overlay.find(hash, is_same)?.record)
    }
}

impl Shard {
    fn find(&self, hash: u64, is_match: impl Fn(&TraitRecord<'_>) -> bool) -> Option<TraitRecord<'_>> {
        let mask = self.index.len().checked_sub(1)?;
        let mut slot = index_slot(hash) & mask;
        loop {
            let offset = self.index.get(slot)?.checked_sub(1)?;
            let record = self.record_at(offset as usize)?;
            if is_match(&record) {
                return Some(record);
            }
            slot = (slot + 1) & mask;
        }
    }

    fn record_at(&self, offset: usize) -> Option<TraitRecord<'_>> {
        let mut reader = Reader { rest: self.bytes.get(offset..)? };
        let length = reader.length()?;
        TraitRecord::new(reader.take(length)?)
    }

    fn records(&self) -> impl Iterator<Item = TraitRecord<'_>> {
        let mut reader = Reader { rest: &self.bytes };
        std::iter::from_fn(move || {
            let length = reader.length()?;
            TraitRecord::new(reader.take(length)?)
        })
    }
}

/// The bits of a hash that choose the slot; its lowest byte has chosen the shard.
fn index_slot(hash: u64) -> usize {
    usize::try_from(hash >> 8).unwrap_or_default()
}

/// Collects the records of a shard.
#[derive(Debug, Default)]
pub struct ShardBuilder {
    bytes: Vec<u8>,
    count: usize,
}

impl ShardBuilder {
    fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), count: 0 }
    }

    /// Adds a record. One that would not be reachable is left out: offsets have 32 bits.
    pub fn push(&mut self, record: &[u8]) {
        if u32::try_from(self.bytes.len() + record.len() + 16).is_err() {
            return;
        }
        // Doubling would take twice the memory of a large table while it is loaded.
        let needed = self.bytes.len() + record.len() + 10;
        if needed > self.bytes.capacity() {
            self.bytes.reserve_exact((self.bytes.len() / 8).max(record.len() + 10));
        }
        write_number(record.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(record);
        self.count += 1;
    }

    fn finish(self, hash: impl Fn(&TraitRecord<'_>) -> u64) -> Shard {
        let mut shard = Shard { bytes: self.bytes.into(), index: Box::default(), count: self.count };
        if self.count == 0 {
            return shard;
        }
        let mut index = vec![0_u32; (self.count * 4 / 3 + 1).next_power_of_two()];
        let mask = index.len() - 1;
        let mut reader = Reader { rest: &shard.bytes };
        loop {
            let offset = shard.bytes.len() - reader.rest.len();
            let Some(length) = reader.length() else { break };
            let Some(record) = reader.take(length).and_then(TraitRecord::new) else { break };
            let mut slot = index_slot(hash(&record)) & mask;
            while index[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            index[slot] = u32::try_from(offset + 1).unwrap_or_default();
        }
        shard.index = index.into();
        shard
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::evaluate::TraitValue;
    use crate::trait_table::record::{Entry, RecordWriter, Stamp, TraitHead};

    fn record(identifier: &str, number: i64, is_erased: bool) -> Arc<[u8]> {
        let head = TraitHead { is_erased, ..TraitHead::default() };
        let mut writer = RecordWriter::new(head, identifier);
        let value = Some(TraitValue::Int(number));
        writer.push(&Entry { key: "n", value, stamp: Stamp::default(), born: 0 });
        writer.finish().into()
    }

    fn number(table: &TraitTable, environment: &str, identifier: &str) -> Option<i64> {
        let entry = table.find(environment, identifier)?.entries().next()?;
        match entry.value {
            Some(TraitValue::Int(number)) => Some(number),
            _ => None,
        }
    }

    #[test]
    fn shards_and_overlays_answer_as_a_map_does() {
        let mut table = TraitTable::new(7);
        let environments = [table.intern("one"), table.intern("two")];
        let mut model: HashMap<(usize, String), i64> = HashMap::new();
        let mut random = 1_u64;
        for step in 0..40_000_i64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (which, name) = ((random >> 40) as usize % 2, format!("identity {}", (random >> 33) % 5000));
            let hash = table.hash(&name);
            let is_erased = random >> 61 == 0;
            table.put(&environments[which], hash, record(&name, step, is_erased), 0, 0);
            match is_erased {
                true => model.remove(&(which, name)),
                false => model.insert((which, name), step),
            };
            if let Some(shard) = table.rebuild(&environments[which], shard_of(hash), random >> 58 == 1) {
                table.replace_shard(&environments[which], shard_of(hash), shard, 0);
            }
        }
        for (which, environment) in environments.iter().enumerate() {
            for id in 0..5000 {
                let name = format!("identity {id}");
                let expected = model.get(&(which, name.clone())).copied();
                assert_eq!(number(&table, environment, &name), expected, "{name}");
            }
            let records = |index| table.records(environment, index).count();
            let count: usize = (0..SHARDS).map(records).sum();
            assert_eq!(count, model.keys().filter(|(of, _)| *of == which).count());
        }
        assert!(table.find("three", "identity 1").is_none());
    }

    #[test]
    fn own_writes_survive_updates_that_do_not_include_them() {
        let mut table = TraitTable::new(1);
        let key = table.intern("one");
        let hash = table.hash("i");
        table.put(&key, hash, record("i", 5, false), 3, 0);
        table.put(&key, hash, record("i", 4, false), 0, 2);
        table.replace_shard(&key, shard_of(hash), Arc::default(), 2);
        assert_eq!(number(&table, "one", "i"), Some(5), "the write has number 3");
        let mut newer = TraitTable::new(1);
        table.keep_pending(&mut newer, 2);
        assert_eq!(number(&newer, "one", "i"), Some(5));
        table.put(&key, hash, record("i", 6, false), 0, 3);
        assert_eq!(number(&table, "one", "i"), Some(6));
        table.replace_shard(&key, shard_of(hash), Arc::default(), 3);
        assert_eq!(number(&table, "one", "i"), None);
    }
}
