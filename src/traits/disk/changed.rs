//! Identities whose records differ from the disk.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use crate::clock;
use crate::traits::disk::file::FileChange;
use crate::traits::memory::TraitMemory;

/// Identities by environment: those with a record by their hash, those that were removed by their name.
#[derive(Debug, Default)]
pub struct ChangedIdentities {
    hashes: BTreeMap<Arc<str>, BTreeSet<u64>>,
    removed: HashSet<(Arc<str>, Box<str>)>,
    removed_bytes: usize,
    since: Option<Instant>,
}

impl ChangedIdentities {
    pub fn len(&self) -> usize {
        self.hashes.values().map(BTreeSet::len).sum::<usize>() + self.removed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty() && self.removed.is_empty()
    }

    /// When the first of them changed.
    pub fn since(&self) -> Option<Instant> {
        self.since.filter(|_| !self.is_empty())
    }

    /// The bytes of the identifiers of those that were removed.
    pub fn removed_bytes(&self) -> usize {
        self.removed_bytes
    }

    pub fn insert(&mut self, environment: &str, hash: u64) {
        self.since.get_or_insert_with(clock::instant);
        if let Some(hashes) = self.hashes.get_mut(environment) {
            hashes.insert(hash);
        } else {
            self.hashes.insert(environment.into(), BTreeSet::from([hash]));
        }
    }

    pub fn remove(&mut self, environment: &str, identifier: &str) {
        self.since.get_or_insert_with(clock::instant);
        let environment = match self.hashes.get_key_value(environment) {
            Some((environment, _)) => environment.clone(),
            None => environment.into(),
        };
        if self.removed.insert((environment, identifier.into())) {
            self.removed_bytes += identifier.len();
        }
    }

    pub fn has(&self, environment: &str, hash: u64) -> bool {
        self.hashes.get(environment).is_some_and(|hashes| hashes.contains(&hash))
    }

    pub fn has_removed(&self, environment: &Arc<str>, identifier: &str) -> bool {
        self.removed.contains(&(environment.clone(), identifier.into()))
    }

    /// Takes all that were removed, and some of the others, as changes in the order of the file.
    pub fn take(&mut self, count_max: usize, memory: &TraitMemory) -> Vec<FileChange> {
        let mut changes = Vec::new();
        let mut left = count_max;
        self.hashes.retain(|environment, hashes| {
            while let Some(hash) = hashes.first().copied().filter(|_| left > 0) {
                hashes.remove(&hash);
                left -= 1;
                for record in memory.table().records_of_hash(environment, hash) {
                    changes.push(FileChange::new(environment, record.identifier(), Some(record.bytes())));
                }
            }
            !hashes.is_empty()
        });
        for (environment, identifier) in std::mem::take(&mut self.removed) {
            // It may have come back.
            let record = memory.table().find(&environment, &identifier);
            let record = record.map(|record| record.bytes());
            changes.push(FileChange::new(&environment, identifier.as_bytes(), record));
        }
        self.removed_bytes = 0;
        FileChange::sort(&mut changes);
        changes
    }
}
