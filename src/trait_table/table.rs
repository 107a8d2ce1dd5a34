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
    /// The environments with a table, and their positions by client-side key.
    spaces: Vec<Space>,
    positions: HashMap<Arc<str>, usize, foldhash::fast::RandomState>,
}

/// The kept traits of one environment.
#[derive(Clone, Debug)]
struct Space {
    /// The client-side key.
    environment: Arc<str>,
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
        Self { hasher: IdentifierHash::new(seed), spaces: Vec::new(), positions: HashMap::default() }
    }

    pub fn hash(&self, identifier: &str) -> u64 {
        self.hasher.of(identifier.as_bytes())
    }

    /// The record of an identity. Erased ones are not returned.
    pub fn find(&self, environment: &str, identifier: &str) -> Option<TraitRecord<'_>> {
        self.find_at(self.position(environment)?, self.hash(identifier), identifier)
    }

    /// As [`find`](Self::find), in the environment at this position.
    pub fn find_at(&self, space: usize, hash: u64, identifier: &str) -> Option<TraitRecord<'_>> {
        let record = self.spaces.get(space)?.find(hash, identifier.as_bytes())?;
        (!record.head().is_erased).then_some(record)
    }

    /// The position of an environment. `None`: it has no table.
    fn position(&self, environment: &str) -> Option<usize> {
        match &*self.spaces {
            // Most processes serve one.
            [space] => (*space.environment == *environment).then_some(0),
            _ => self.positions.get(environment).copied(),
        }
    }

    /// The position of an environment, whose table is made if it has none. It does not change.
    pub fn intern(&mut self, environment: &str) -> usize {
        if let Some(position) = self.position(environment) {
            return position;
        }
        let key: Arc<str> = environment.into();
        let position = self.spaces.len();
        self.positions.insert(key.clone(), position);
        self.spaces.push(Space::new(key));
        position
    }

    /// The client-side key of the environment at a position.
    pub fn environment(&self, space: usize) -> Arc<str> {
        self.spaces.get(space).map_or_else(|| Arc::from(""), |space| space.environment.clone())
    }

    /// The client-side keys of the environments that have a table, by position.
    pub fn environments(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spaces.iter().map(|space| &space.environment)
    }

    fn shard_mut(&mut self, space: usize, index: usize) -> Option<&mut ShardView> {
        self.spaces.get_mut(space)?.shards.get_mut(index)
    }

    /// Replaces the record of an identity. `pending` is the number of a reactor's own write; with 0 an entry
    /// whose own write is newer than `acknowledged` is left as it is.
    pub fn put(&mut self, space: usize, hash: u64, record: Arc<[u8]>, pending: u64, acknowledged: u64) {
        let Some(new) = TraitRecord::new(&record) else { return };
        let Some(ShardView { overlay, .. }) = self.shard_mut(space, shard_of(hash)) else { return };
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
    pub fn replace_shard(&mut self, space: usize, index: usize, shard: Arc<Shard>, acknowledged: u64) {
        let Some(view) = self.shard_mut(space, index) else { return };
        view.base = shard;
        view.overlay.retain(|entry| entry.pending > acknowledged);
        view.overlay.shrink_to_fit(|entry| entry.hash);
    }

    /// Copies the entries of own writes after `acknowledged` into a table that replaces this one.
    pub fn keep_pending(&self, newer: &mut Self, acknowledged: u64) {
        for space in &self.spaces {
            let position = newer.intern(&space.environment);
            for entry in space.shards.iter().flat_map(|view| &view.overlay) {
                if entry.pending > acknowledged {
                    newer.put(position, entry.hash, entry.record.clone(), entry.pending, 0);
                }
            }
        }
    }

    /// A new version of the shard with its overlay, if it is due.
    pub fn rebuild(&self, space: usize, index: usize, when: Rebuild) -> Option<Arc<Shard>> {
        let view = self.spaces.get(space)?.shards.get(index)?;
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
        let space = self.position(environment).and_then(|space| self.spaces.get(space));
        let view = space.and_then(|space| space.shards.get(index));
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
    pub fn find_hash(&self, space: usize, hash: u64) -> Option<TraitRecord<'_>> {
        self.spaces.get(space).and_then(|space| self.records_in(space, hash).next())
    }

    /// The records with this hash that are not erased: one, or rarely two.
    pub fn records_of_hash(&self, environment: &str, hash: u64) -> impl Iterator<Item = TraitRecord<'_>> {
        let space = self.position(environment).and_then(|space| self.spaces.get(space));
        space.into_iter().flat_map(move |space| self.records_in(space, hash))
    }

    fn records_in<'t>(&'t self, space: &'t Space, hash: u64) -> impl Iterator<Item = TraitRecord<'t>> {
        let view = &space.shards[shard_of(hash)];
        let overlaid = view.overlay.iter_hash(hash).filter(move |entry| entry.hash == hash);
        let overlaid = overlaid.filter_map(|entry| TraitRecord::new(&entry.record));
        let is_current = move |record: &TraitRecord<'_>| {
            self.hash_of(record) == hash && view.find_overlaid(hash, record.identifier()).is_none()
        };
        let base = view.base.find_all(hash, is_current);
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
    pub fn load(&mut self, space: usize, builder: TableBuilder) {
        for (index, editor) in builder.shards.into_iter().enumerate() {
            if let Some(view) = self.shard_mut(space, index) {
                view.base = Arc::new(editor.finish());
            }
        }
    }
}

/// The shard of a hash.
pub fn shard_of(hash: u64) -> usize {
    usize::from(hash.to_le_bytes()[0])
}

impl Space {
    fn new(environment: Arc<str>) -> Self {
        // One empty shard for all: most environments have few identities.
        let base: Arc<Shard> = Arc::default();
        let view = || ShardView { base: base.clone(), overlay: HashTable::new() };
        Self { environment, shards: (0..SHARDS).map(|_| view()).collect() }
    }

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
        let (environments, names) = ([table.intern("one"), table.intern("two")], ["one", "two"]);
        let mut model: HashMap<(usize, String), i64> = HashMap::new();
        let mut random = 1_u64;
        for step in 0..40_000_i64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (which, name) = ((random >> 40) as usize % 2, format!("identity {}", (random >> 33) % 5000));
            let hash = table.hash(&name);
            let is_erased = random >> 61 == 0;
            table.put(environments[which], hash, record(&name, step, is_erased), 0, 0);
            match is_erased {
                true => model.remove(&(which, name)),
                false => model.insert((which, name), step),
            };
            let when = [Rebuild::Due, Rebuild::Idle, Rebuild::Purge][(random >> 58) as usize % 3];
            if let Some(shard) = table.rebuild(environments[which], shard_of(hash), when) {
                table.replace_shard(environments[which], shard_of(hash), shard, 0);
            }
        }
        for (which, environment) in names.iter().enumerate() {
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
        table.put(key, hash, record("i", 5, false), 3, 0);
        table.put(key, hash, record("i", 4, false), 0, 2);
        table.replace_shard(key, shard_of(hash), Arc::default(), 2);
        assert_eq!(number(&table, "one", "i"), Some(5), "the write has number 3");
        let mut newer = TraitTable::new(1);
        table.keep_pending(&mut newer, 2);
        assert_eq!(number(&newer, "one", "i"), Some(5));
        table.put(key, hash, record("i", 6, false), 0, 3);
        assert_eq!(number(&table, "one", "i"), Some(6));
        table.replace_shard(key, shard_of(hash), Arc::default(), 3);
        assert_eq!(number(&table, "one", "i"), None);
    }
}
