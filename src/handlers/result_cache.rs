//! A cache of rendered and compressed results: what many identities share is compressed once.
//!
//! An entry belongs to one compiled document, one role and one output for each feature. All of these are
//! compared in full, so no entry is ever used for another document or key. A result is admitted when it is
//! seen twice; until then only a tag of it is stored. Nothing is allocated before the first lookup.
use std::hash::BuildHasher;

use hashbrown::HashTable;
use slab::Slab;

use crate::engine::evaluate::EvaluationScratch;
use crate::engine::program::Role;
use crate::limits::RESULT_CACHE_BYTES_MAX;
use crate::snapshot::{Environment, Slot, Snapshot};

/// Results of which a tag is stored.
const TAGS: usize = 1024;
/// Compressing a result for the cache takes as long as answering it several times. At most one of so many
/// lookups may lead to it, after the first `ADMISSIONS_MIN`.
const LOOKUPS_PER_ADMISSION: u32 = 16;
const ADMISSIONS_MIN: u32 = 64;

/// What a result belongs to.
#[derive(Clone, Copy, Debug)]
pub struct ResultKey<'a> {
    /// [`crate::snapshot::Environment::id`].
    pub environment: u64,
    /// Where the snapshot has the document. Not compared: another snapshot may have it elsewhere.
    pub slot: usize,
    pub role: Role,
    /// By feature, its output; nothing if no identity gets another one.
    pub outputs: &'a [u32],
}

impl<'a> ResultKey<'a> {
    /// Of the last evaluation.
    pub fn new(
        environment: &Environment,
        slot: usize,
        role: Role,
        evaluation: &'a EvaluationScratch,
    ) -> Self {
        let outputs = if environment.program().is_constant() { &[] } else { evaluation.outputs() };
        Self { environment: environment.id(), slot, role, outputs }
    }
}

/// The response to an OFREP evaluation of all flags.
#[derive(Debug)]
pub struct OfrepResult {
    pub body: Box<[u8]>,
    pub gzip: Box<[u8]>,
    /// The entity tag of `body`, with its quotes.
    pub etag: Box<str>,
}

impl OfrepResult {
    /// The memory of the value and its parts.
    pub fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.body.len() + self.gzip.len() + self.etag.len()
    }
}

/// The result of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultLookup {
    /// [`get`](ResultCache::get) returns the value.
    Hit(usize),
    /// Seen before: make the value and [`insert`](ResultCache::insert) it with this hash.
    Admit(u64),
    Miss,
}

/// Events since the process started, and the memory in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResultCacheCounts {
    pub hits: u64,
    pub misses: u64,
    pub evicted: u64,
    pub bytes: u64,
}

impl std::ops::Add for ResultCacheCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            evicted: self.evicted + other.evicted,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// The cache of one reactor for one representation.
#[derive(Debug)]
pub struct ResultCache<T> {
    hasher: foldhash::fast::RandomState,
    /// Indices of `entries`.
    table: HashTable<usize>,
    entries: Slab<CachedResult<T>>,
    tags: Box<[u32]>,
    bytes: usize,
    /// The entry that is examined next for eviction.
    hand: usize,
    /// Lookups that have not led to an admission yet.
    credit: u32,
    counts: ResultCacheCounts,
}

#[derive(Debug)]
struct CachedResult<T> {
    hash: u64,
    environment: u64,
    slot: usize,
    role: Role,
    outputs: Box<[u32]>,
    /// Used since it was last examined for eviction.
    is_used: bool,
    bytes: usize,
    value: T,
}

impl<T> Default for ResultCache<T> {
    fn default() -> Self {
        Self {
            hasher: foldhash::fast::RandomState::default(),
            table: HashTable::new(),
            entries: Slab::new(),
            tags: Box::default(),
            bytes: 0,
            hand: 0,
            credit: ADMISSIONS_MIN * LOOKUPS_PER_ADMISSION,
            counts: ResultCacheCounts::default(),
        }
    }
}

impl<T> ResultCache<T> {
    /// Looks a result up and records that it was requested.
    pub fn lookup(&mut self, key: ResultKey<'_>) -> ResultLookup {
        self.credit = (self.credit + 1).min(ADMISSIONS_MIN * LOOKUPS_PER_ADMISSION);
        let hash = self.hash(key);
        if let Some(index) = self.find_hashed(hash, key) {
            return ResultLookup::Hit(index);
        }
        self.counts.misses += 1;
        if !self.was_seen(hash) || self.credit < LOOKUPS_PER_ADMISSION {
            return ResultLookup::Miss;
        }
        self.credit -= LOOKUPS_PER_ADMISSION;
        ResultLookup::Admit(hash)
    }

    /// As [`lookup`](Self::lookup), but what is not found leaves no trace.
    pub fn find(&mut self, key: ResultKey<'_>) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        self.find_hashed(self.hash(key), key)
    }

    fn find_hashed(&mut self, hash: u64, key: ResultKey<'_>) -> Option<usize> {
        let entries = &self.entries;
        let index = *self.table.find(hash, |index| is_entry(entries, *index, hash, key))?;
        self.counts.hits += 1;
        self.entries.get_mut(index)?.is_used = true;
        Some(index)
    }

    /// The value at an index that [`lookup`](Self::lookup) or [`insert`](Self::insert) has just returned.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.entries.get(index).map(|entry| &entry.value)
    }

    /// Stores a value and returns its index. `value_bytes` is the memory that it takes besides its own size.
    /// `None` if it is larger than a quarter of the cache.
    pub fn insert(&mut self, key: ResultKey<'_>, hash: u64, value: T, value_bytes: usize) -> Option<usize> {
        let bytes = size_of::<CachedResult<T>>() + size_of_val(key.outputs) + value_bytes;
        if bytes > RESULT_CACHE_BYTES_MAX / 4 {
            return None;
        }
        self.free_space(bytes);
        self.bytes += bytes;
        let ResultKey { environment, slot, role, outputs } = key;
        let outputs = outputs.into();
        let entry = CachedResult { hash, environment, slot, role, outputs, is_used: false, bytes, value };
        let index = self.entries.insert(entry);
        let entries = &self.entries;
        self.table.insert_unique(hash, index, |index| entries.get(*index).map_or(0, |entry| entry.hash));
        Some(index)
    }

    /// Removes the entries of documents that the snapshot does not have.
    pub fn retain(&mut self, snapshot: &Snapshot) {
        let is_stale = |entry: &CachedResult<T>| {
            let slot = snapshot.slots.get(entry.slot);
            let environment = slot.and_then(Slot::environment);
            environment.is_none_or(|environment| environment.id() != entry.environment)
        };
        let entries = self.entries.iter();
        let stale: Vec<usize> =
            entries.filter(|(_, entry)| is_stale(entry)).map(|(index, _)| index).collect();
        for index in stale {
            self.remove(index);
        }
    }

    /// Events and memory.
    pub fn counts(&self) -> ResultCacheCounts {
        ResultCacheCounts { bytes: self.bytes as u64, ..self.counts }
    }

    /// Removes all entries. Counts of events are kept.
    pub fn reset(&mut self) {
        *self = Self { counts: self.counts, ..Self::default() };
    }

    fn hash(&self, key: ResultKey<'_>) -> u64 {
        self.hasher.hash_one((key.environment, key.role == Role::Client, key.outputs))
    }

    /// Whether the result of this hash was looked up before. A false answer costs one admission or delays it.
    #[expect(clippy::cast_possible_truncation, reason = "a tag and an index are parts of a hash")]
    fn was_seen(&mut self, hash: u64) -> bool {
        if self.tags.is_empty() {
            self.tags = vec![0; TAGS].into();
        }
        let tag = (hash >> 32) as u32 | 1;
        let seen = self.tags.get_mut(hash as usize % TAGS);
        seen.is_some_and(|seen| std::mem::replace(seen, tag) == tag)
    }

    /// Removes entries that were not used since they were last examined, until these bytes fit.
    fn free_space(&mut self, bytes: usize) {
        while self.bytes + bytes > RESULT_CACHE_BYTES_MAX && !self.entries.is_empty() {
            self.hand = if self.hand < self.entries.capacity() { self.hand } else { 0 };
            match self.entries.get_mut(self.hand) {
                Some(entry) if entry.is_used => entry.is_used = false,
                Some(_) => {
                    self.remove(self.hand);
                    self.counts.evicted += 1;
                }
                None => {}
            }
            self.hand += 1;
        }
    }

    fn remove(&mut self, index: usize) {
        let Some(entry) = self.entries.try_remove(index) else { return };
        self.bytes -= entry.bytes;
        if let Ok(found) = self.table.find_entry(entry.hash, |candidate| *candidate == index) {
            found.remove();
        }
    }
}

fn is_entry<T>(entries: &Slab<CachedResult<T>>, index: usize, hash: u64, key: ResultKey<'_>) -> bool {
    entries.get(index).is_some_and(|entry| {
        entry.hash == hash
            && entry.environment == key.environment
            && entry.role == key.role
            && *entry.outputs == *key.outputs
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(environment: u64, role: Role, outputs: &[u32]) -> ResultKey<'_> {
        ResultKey { environment, slot: 0, role, outputs }
    }

    fn admit<T>(cache: &mut ResultCache<T>, key: ResultKey<'_>, value: T, bytes: usize) -> Option<usize> {
        assert_eq!(cache.lookup(key), ResultLookup::Miss);
        let ResultLookup::Admit(hash) = cache.lookup(key) else { panic!("seen twice") };
        cache.insert(key, hash, value, bytes)
    }

    #[test]
    fn hits_require_the_same_document_role_and_outputs() {
        let mut cache = ResultCache::default();
        let own = key(7, Role::Server, &[1, 2, 3]);
        let index = admit(&mut cache, own, "value", 5).expect("small");
        assert_eq!(cache.lookup(own), ResultLookup::Hit(index));
        assert_eq!(cache.get(index), Some(&"value"));
        for other in [
            key(8, Role::Server, &[1, 2, 3]),
            key(7, Role::Client, &[1, 2, 3]),
            key(7, Role::Server, &[1, 2, 4]),
            key(7, Role::Server, &[1, 2]),
            key(7, Role::Server, &[]),
        ] {
            assert_eq!(cache.lookup(other), ResultLookup::Miss, "{other:?}");
        }
        let counts = cache.counts();
        assert_eq!((counts.hits, counts.misses, counts.evicted), (1, 7, 0));
        cache.reset();
        assert_eq!(cache.lookup(own), ResultLookup::Miss);
        assert_eq!(cache.counts().hits, 1);
    }

    /// Entries with equal hashes: only the comparison distinguishes them.
    #[test]
    fn equal_hashes_are_different_entries() {
        let mut cache = ResultCache::default();
        let (one, other) = (key(1, Role::Server, &[1]), key(2, Role::Server, &[1]));
        let index = cache.insert(one, 42, 'a', 1).expect("small");
        let other_index = cache.insert(other, 42, 'b', 1).expect("small");
        assert!(is_entry(&cache.entries, index, 42, one) && !is_entry(&cache.entries, index, 42, other));
        assert!(is_entry(&cache.entries, other_index, 42, other));
    }

    #[test]
    fn bounds_memory_and_evicts_what_is_not_used() {
        let mut cache = ResultCache::default();
        let used = admit(&mut cache, key(0, Role::Server, &[0]), 0, 1000).expect("small");
        for at in 1..5000_u32 {
            // Refills the credit, and keeps the first entry in use.
            for _ in 0..LOOKUPS_PER_ADMISSION {
                assert_eq!(cache.lookup(key(0, Role::Server, &[0])), ResultLookup::Hit(used));
            }
            let outputs = [at; 50];
            let key = key(u64::from(at % 3), Role::Server, &outputs);
            assert_eq!(cache.lookup(key), ResultLookup::Miss);
            if let ResultLookup::Admit(hash) = cache.lookup(key) {
                cache.insert(key, hash, at, 1300).expect("small");
            }
            let sum: usize = cache.entries.iter().map(|(_, entry)| entry.bytes).sum();
            assert!(cache.bytes == sum && sum <= RESULT_CACHE_BYTES_MAX, "{sum}");
            assert_eq!(cache.table.len(), cache.entries.len());
        }
        assert!(cache.counts().evicted > 3000, "{:?}", cache.counts());
        assert!(cache.insert(key(0, Role::Server, &[9]), 9, 9, RESULT_CACHE_BYTES_MAX / 4).is_none());
    }

    #[test]
    fn the_memory_of_a_result_is_that_of_its_parts() {
        let result = OfrepResult { body: [0; 3000].into(), gzip: [0; 700].into(), etag: "\"tag\"".into() };
        let bytes = result.heap_bytes();
        assert!((3705..4000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn admissions_are_a_share_of_lookups() {
        let mut cache = ResultCache::default();
        let mut admitted = 0;
        for at in 0..20_000_u32 {
            for _ in 0..2 {
                let outputs = [at];
                if let ResultLookup::Admit(hash) = cache.lookup(key(0, Role::Server, &outputs)) {
                    admitted += 1;
                    let _ = cache.insert(key(0, Role::Server, &outputs), hash, (), 10);
                }
            }
        }
        let bound = ADMISSIONS_MIN + 40_000 / LOOKUPS_PER_ADMISSION;
        assert!((bound - 2..=bound).contains(&admitted), "{admitted}");
    }

    #[test]
    fn entries_of_replaced_documents_are_removed() {
        let mut cache = ResultCache::default();
        admit(&mut cache, key(7, Role::Server, &[1]), "value", 5).expect("small");
        cache.retain(&Snapshot::default());
        assert!(cache.entries.is_empty() && cache.table.is_empty() && cache.counts().bytes == 0);
        assert_eq!(cache.lookup(key(7, Role::Server, &[2])), ResultLookup::Miss);
    }
}
