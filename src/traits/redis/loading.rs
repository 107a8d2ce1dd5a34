//! Reading all identities: into an empty table at the start, and compared with the table later. What this
//! process has and Redis does not is written, or removed.
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::time::SystemTime;

use crate::trait_table::{SHARDS, TableBuilder, TraitHead, TraitRecord, merge};
use crate::traits::memory::TraitMemory;
use crate::traits::redis::link::ReloadReason;
use crate::traits::redis::pending::Pending;
use crate::traits::redis::stored_mark::StoredMark;
use crate::traits::redis::wire;
use crate::traits::redis::wire::StoredIdentity;
use crate::traits::sink::Inform;

/// While so many identities wait to be written, no more are looked for.
const PENDING_MAX: usize = 4096;
/// Shards that are looked through at a time.
const SHARDS_MAX: usize = 16;

/// Records for a table that is empty: it is built in one step, without an overlay.
#[derive(Debug, Default)]
pub struct FirstTable {
    /// By client-side key.
    spaces: HashMap<String, TableBuilder>,
}

impl FirstTable {
    /// Adds an identity. Each must be added once.
    pub fn push(
        &mut self,
        memory: &TraitMemory,
        (environment, identifier): (&str, &str),
        stored: &StoredIdentity<'_>,
    ) {
        let Some(seen) = stored.seen else { return };
        let head = TraitHead { is_promoted: stored.is_promoted, is_erased: false, seen };
        let Some(record) = merge(None, identifier, &stored.entries, head, Some(0)) else { return };
        if !self.spaces.contains_key(environment) {
            self.spaces.insert(environment.to_owned(), memory.table().builder());
        }
        if let (Some(builder), Some(record)) = (self.spaces.get_mut(environment), TraitRecord::new(&record)) {
            builder.push(&record);
        }
    }

    /// Makes it the table.
    pub fn finish(self, memory: &mut TraitMemory) {
        for (environment, records) in self.spaces {
            memory.load(&environment, records);
        }
    }
}

/// Which identities were read or have changed since, and how far the table was compared with them.
#[derive(Debug)]
pub struct Loading {
    reason: ReloadReason,
    hasher: foldhash::quality::RandomState,
    /// Hashes of names.
    noted: HashSet<u64>,
    is_finished: bool,
    /// What this process had stored before, of the same data: the rest was erased or has expired.
    memo: Option<StoredMark>,
    /// The next shard, counted over all environments.
    next: usize,
}

impl Loading {
    pub fn new(reason: ReloadReason) -> Self {
        let hasher = foldhash::quality::RandomState::default();
        Self { reason, hasher, noted: HashSet::new(), is_finished: false, memo: None, next: 0 }
    }

    /// The identity was written here, and Redis may lack that: it is not one that others have erased. Being
    /// seen is not being written.
    pub fn protect(&mut self, name: &str) {
        // Where everything is written that Redis does not have, it may have a part of it only.
        if self.reason == ReloadReason::Behind {
            self.note(name);
        }
    }

    /// Redis has this identity. Returns false if that was noted before.
    pub fn note(&mut self, name: &str) -> bool {
        self.noted.insert(self.hasher.hash_one(name))
    }

    /// All identities were read. `memo` is of an earlier process that had the same data.
    pub fn finish(&mut self, memo: Option<StoredMark>) {
        (self.is_finished, self.memo) = (true, memo);
    }

    /// Whether Redis has had what this process has of an identity.
    fn was_stored(&self, record: Option<TraitRecord<'_>>) -> bool {
        match (self.reason, &self.memo) {
            (ReloadReason::Behind, _) => true,
            (ReloadReason::Start, Some(memo)) => {
                record.is_some_and(|record| record.entries().all(|entry| memo.covers(entry.stamp)))
            }
            (ReloadReason::Start | ReloadReason::Lost, _) => false,
        }
    }

    /// Looks through the next shards. Returns true when it is done.
    pub fn sweep(
        &mut self,
        memory: &mut TraitMemory,
        pending: &mut Pending,
        now: SystemTime,
        inform: Inform<'_>,
    ) -> bool {
        if !self.is_finished {
            return false;
        }
        let environments: Vec<_> = memory.table().environments().cloned().collect();
        for _ in 0..SHARDS_MAX {
            let Some(environment) = environments.get(self.next / SHARDS) else { return true };
            if pending.len() > PENDING_MAX {
                return false;
            }
            let identifier_of = |identifier: &[u8]| std::str::from_utf8(identifier).map(str::to_owned).ok();
            let records = memory.table().records(environment, self.next % SHARDS);
            let identifiers = records.filter_map(|record| identifier_of(record.identifier()));
            let is_absent = |identifier: &String| {
                let name = wire::name(environment, identifier);
                !self.noted.contains(&self.hasher.hash_one(&*name))
            };
            let absent: Vec<String> = identifiers.filter(is_absent).collect();
            for identifier in absent {
                match self.was_stored(memory.table().find(environment, &identifier)) {
                    false => pending.mark_all(&wire::name(environment, &identifier)),
                    true => {
                        let stamp = memory.stamp(now);
                        memory.erase_elsewhere((environment, &identifier), stamp, now, inform);
                    }
                }
            }
            self.next += 1;
        }
        false
    }
}
