//! The table of kept traits: for each environment, shards by the hash of the identifier.
//!
//! A [`Shard`] is immutable. Changes are in an overlay beside it until a new version of the shard is built,
//! of a few shards at a time, so that no second copy of the whole table is ever in memory.
use std::collections::HashMap;
use std::sync::Arc;

use hashbrown::HashTable;

use crate::trait_table::record::TraitRecord;
use crate::trait_table::shard::{IdentifierHash, Shard, ShardEditor};

/// Shards of an environment.
pub const SHARDS: usize = 256;
/// A shard is built anew when its overlay has more records than this, and than this part of the shard.
const OVERLAY_RECORDS_MIN: usize = 64;
const OVERLAY_PART: usize = 32;
/// The same while nothing else is to do.
const IDLE_OVERLAY_RECORDS_MIN: usize = 8;

/// The kept traits of all environments.
#[derive(Clone, Debug)]
pub struct TraitTable {
    hasher: IdentifierHash,
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

/// Whether a shard is built anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuild {
    /// If its overlay is large.
    Due,
    /// If its overlay is not small: nothing else is to do.
    Idle,
    /// In any case, and without a byte of what was removed: an identity was erased on request.
    Purge,
}

impl TraitTable {
    /// An empty table. All tables of a process have the same seed.
    pub fn new(seed: u64) -> Self {
        Self { hasher: IdentifierHash::new(seed), spaces: HashMap::default() }
    }

    pub fn hash(&self, identifier: &str) -> u64 {
        self.hasher.of(identifier.as_bytes())
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

    /// A shard of an environment, whose table is made if it has none. `None`: there is no such shard.
    fn shard_mut(&mut self, environment: &Arc<str>, index: usize) -> Option<&mut ShardView> {
        // Looked up first: an entry would clone the key.
        if !self.spaces.contains_key(environment) {
            self.spaces.insert(environment.clone(), Space::default());
        }
        self.spaces.get_mut(environment)?.shards.get_mut(index)
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
        let Some(ShardView { overlay, .. }) = self.shard_mut(environment, shard_of(hash)) else { return };
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
        let Some(view) = self.shard_mut(environment, index) else { return };
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

    /// A new version of the shard with its overlay, if it is due.
    pub fn rebuild(&self, environment: &str, index: usize, when: Rebuild) -> Option<Arc<Shard>> {
        let view = self.spaces.get(environment)?.shards.get(index)?;
        let overlaid_max = match when {
            Rebuild::Due => OVERLAY_RECORDS_MIN.max(view.base.count() / OVERLAY_PART),
            Rebuild::Idle => IDLE_OVERLAY_RECORDS_MIN,
            Rebuild::Purge => 0,
        };
        if view.overlay.len() <= overlaid_max {
            return None;
        }
        let mut editor = ShardEditor::new(&view.base, self.hasher.clone(), when == Rebuild::Purge);
        for entry in &view.overlay {
            match TraitRecord::new(&entry.record) {
                Some(record) if record.head().is_erased => editor.remove(entry.hash, record.identifier()),
                _ => editor.insert(entry.hash, &entry.record),
            }
        }
        Some(Arc::new(editor.finish()))
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

    /// A record with this hash that is not erased: for queues, which have only hashes.
    pub fn find_hash(&self, environment: &str, hash: u64) -> Option<TraitRecord<'_>> {
        self.records_of_hash(environment, hash).next()
    }

    /// The records with this hash that are not erased: one, or rarely two.
    pub fn records_of_hash(&self, environment: &str, hash: u64) -> impl Iterator<Item = TraitRecord<'_>> {
        let view = self.spaces.get(environment).map(|space| &space.shards[shard_of(hash)]);
        let overlaid = view.into_iter().flat_map(move |view| view.overlay.iter_hash(hash));
        let overlaid = overlaid.filter(move |entry| entry.hash == hash);
        let overlaid = overlaid.filter_map(|entry| TraitRecord::new(&entry.record));
        let base = view.into_iter().flat_map(move |view| {
            let is_current = move |record: &TraitRecord<'_>| {
                self.hash_of(record) == hash && view.find_overlaid(hash, record.identifier()).is_none()
            };
            view.base.find_all(hash, is_current)
        });
        overlaid.chain(base).filter(|record| !record.head().is_erased)
    }

    /// The hash of the identity of a record.
    pub fn hash_of(&self, record: &TraitRecord<'_>) -> u64 {
        self.hasher.of(record.identifier())
    }

    /// Builds the shards of an environment: for the start.
    pub fn builder(&self) -> TableBuilder {
        let editor = || ShardEditor::new(&Shard::default(), self.hasher.clone(), false);
        TableBuilder { shards: (0..SHARDS).map(|_| editor()).collect(), hasher: self.hasher.clone() }
    }

    /// Puts the shards of an environment in place: for the start.
    pub fn load(&mut self, environment: &Arc<str>, builder: TableBuilder) {
        for (index, editor) in builder.shards.into_iter().enumerate() {
            if let Some(view) = self.shard_mut(environment, index) {
                view.base = Arc::new(editor.finish());
            }
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

/// Collects the records of an environment.
#[derive(Debug)]
pub struct TableBuilder {
    shards: Vec<ShardEditor>,
    hasher: IdentifierHash,
}

impl TableBuilder {
    /// Adds the record of an identity.
    pub fn push(&mut self, record: &TraitRecord<'_>) {
        let hash = self.hasher.of(record.identifier());
        if let Some(editor) = self.shards.get_mut(shard_of(hash)) {
            editor.insert(hash, record.bytes());
        }
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
            let when = [Rebuild::Due, Rebuild::Idle, Rebuild::Purge][(random >> 58) as usize % 3];
            if let Some(shard) = table.rebuild(&environments[which], shard_of(hash), when) {
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
