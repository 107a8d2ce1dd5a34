//! What waits to be forwarded: of each identity and key the last value.
//!
//! All of it is in memory, within a bound. What is added and what is delivered is written to the journal
//! ([`crate::trait_forwarding::journal`]) as well, from `unwritten`.
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::engine::evaluate::TraitValue;
use crate::limits;
use crate::metrics::{TraitForwardLoss, TraitForwardMetrics};
use crate::trait_forwarding::entry::JournalEntry;
use crate::trait_forwarding::item::{identifier_of, json_of, key_of};

/// Entries of an order beyond twice the identities before it is trimmed.
const ORDER_SLACK: usize = 1024;

/// The queue as the store thread, the journal and the rounds share it. Locked for memory work only.
#[derive(Clone, Debug)]
pub struct SharedTraitQueue(Arc<Mutex<TraitQueue>>);

impl SharedTraitQueue {
    pub fn new(queue: TraitQueue) -> Self {
        Self(Arc::new(Mutex::new(queue)))
    }

    pub fn lock(&self) -> MutexGuard<'_, TraitQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last values that were not forwarded yet.
#[derive(Debug)]
pub struct TraitQueue {
    environments: BTreeMap<Box<str>, EnvironmentQueue>,
    bytes: u64,
    bytes_max: u64,
    count: u64,
    version: u64,
    /// For the journal; `None` without one.
    unwritten: Option<Vec<u8>>,
    /// The journal misses entries, or has what was erased: it is written anew.
    needs_rewrite: bool,
    /// What has changed since the start, until the journal is open.
    changed: Option<ChangedNames>,
    metrics: Arc<TraitForwardMetrics>,
}

#[derive(Debug, Default)]
struct EnvironmentQueue {
    identities: HashMap<Box<str>, IdentityQueue>,
    /// Identities in the order of their oldest changes, with the version of these. Of an identity that was
    /// forwarded an entry may be left, which is not that of its [`IdentityQueue`].
    order: VecDeque<(u64, Box<str>)>,
}

impl EnvironmentQueue {
    /// The identities in order.
    fn ordered(&self) -> impl Iterator<Item = (&str, &IdentityQueue)> {
        self.order.iter().filter_map(|(first_version, identifier)| {
            let identity = self.identities.get(identifier)?;
            (identity.first_version == *first_version).then_some((&**identifier, identity))
        })
    }

    /// Drops entries of identities that were forwarded.
    fn trim(&mut self) {
        let identities = &self.identities;
        let is_current = |(first_version, identifier): &(u64, Box<str>)| {
            identities.get(identifier).is_some_and(|identity| identity.first_version == *first_version)
        };
        while self.order.front().is_some_and(|entry| !is_current(entry)) {
            self.order.pop_front();
        }
        if self.order.len() > identities.len() * 2 + ORDER_SLACK {
            self.order.retain(is_current);
        }
    }
}

#[derive(Debug)]
struct IdentityQueue {
    traits: BTreeMap<Box<str>, QueuedTrait>,
    first_version: u64,
    /// When the first of them was added, in Unix seconds.
    at: u64,
}

impl IdentityQueue {
    fn items<'a>(&'a self, identifier: &'a str) -> impl Iterator<Item = BatchItem> + 'a {
        self.traits.iter().map(move |(key, queued)| BatchItem {
            identifier: identifier.into(),
            key: key.clone(),
            json: queued.json.clone(),
            version: queued.version,
        })
    }
}

#[derive(Debug)]
struct QueuedTrait {
    /// JSON; `null` deletes.
    json: Box<str>,
    version: u64,
}

/// A trait that waited when a process ended.
#[derive(Debug)]
pub struct RestoredTrait {
    pub environment: String,
    pub identifier: String,
    pub key: String,
    pub json: Box<str>,
    /// Unix seconds.
    pub at: u64,
}

/// Traits that have changed, and identities that were erased, as hashes of their names.
#[derive(Debug, Default)]
struct ChangedNames {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl ChangedNames {
    /// Without a key: the identity.
    fn hash(&self, environment: &str, identifier: &str, key: Option<&str>) -> u64 {
        self.hasher.hash_one((environment, identifier, key))
    }

    fn insert(&mut self, environment: &str, identifier: &str, key: Option<&str>) {
        if !self.is_full() {
            self.hashes.insert(self.hash(environment, identifier, key));
        }
    }

    /// Whether some may be missing.
    fn is_full(&self) -> bool {
        self.hashes.len() >= limits::TRAIT_FORWARD_CHANGED_MAX
    }

    /// Whether the trait has changed, or its identity was erased.
    fn has(&self, environment: &str, identifier: &str, key: &str) -> bool {
        let has = |key| self.hashes.contains(&self.hash(environment, identifier, key));
        has(Some(key)) || has(None)
    }
}

/// One trait of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchItem {
    pub identifier: Box<str>,
    pub key: Box<str>,
    pub json: Box<str>,
    pub version: u64,
}

fn item_bytes(identifier: &str, key: &str, json: &str) -> u64 {
    (identifier.len() + key.len() + json.len()) as u64 + limits::TRAIT_FORWARD_ITEM_BYTES
}

impl TraitQueue {
    /// An empty queue. `has_journal`: changes are kept for [`take_unwritten`](Self::take_unwritten).
    pub fn new(bytes_max: u64, has_journal: bool, metrics: Arc<TraitForwardMetrics>) -> Self {
        Self {
            environments: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            count: 0,
            version: 0,
            unwritten: has_journal.then(Vec::new),
            needs_rewrite: false,
            changed: has_journal.then(ChangedNames::default),
            metrics,
        }
    }

    /// Adds a change of a kept trait; `None` deletes. What core would reject is counted.
    pub fn add(
        &mut self,
        environment: &str,
        identifier: &str,
        key: &str,
        value: Option<TraitValue<'_>>,
        now: SystemTime,
    ) {
        let parts = identifier_of(identifier).zip(key_of(key)).zip(json_of(value));
        let Some(((identifier, key), json)) = parts else {
            return self.metrics.lost(TraitForwardLoss::Invalid, 1);
        };
        let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.set(environment, identifier, key, json.into(), at);
    }

    /// Adds what a journal that is now open has, the oldest first, except what has changed since the start:
    /// of that a newer value waits, was delivered or was erased.
    pub fn restore(&mut self, waiting: impl Iterator<Item = RestoredTrait>) {
        let changed = self.changed.take().unwrap_or_default();
        for RestoredTrait { environment, identifier, key, json, at } in waiting {
            if changed.is_full() {
                self.metrics.lost(TraitForwardLoss::Full, 1);
            } else if !changed.has(&environment, &identifier, &key)
                && !self.contains(&environment, &identifier, &key)
            {
                self.set(&environment, &identifier, &key, json, at);
            }
        }
    }

    /// Sets the last value of a trait. Beyond the limit it is counted as lost.
    pub fn set(&mut self, environment: &str, identifier: &str, key: &str, json: Box<str>, at: u64) {
        if let Some(changed) = &mut self.changed {
            changed.insert(environment, identifier, Some(key));
        }
        let known = self.environments.get(environment).and_then(|queue| queue.identities.get(identifier));
        let before = known.and_then(|identity| identity.traits.get(key));
        let freed = before.map_or(0, |before| item_bytes(identifier, key, &before.json));
        let bytes = self.bytes - freed + item_bytes(identifier, key, &json);
        if bytes > self.bytes_max {
            // An older value must not arrive either: it would stay there.
            self.remove(environment, identifier, key);
            self.metrics.lost(TraitForwardLoss::Full, 1);
            return self.publish();
        }
        self.count += u64::from(before.is_none());
        self.bytes = bytes;
        self.version += 1;
        let entry = JournalEntry::set(environment, identifier, key, &json, self.version, at);
        self.note(&entry);
        if !self.environments.contains_key(environment) {
            self.environments.insert(environment.into(), EnvironmentQueue::default());
        }
        let Some(queue) = self.environments.get_mut(environment) else { return };
        if !queue.identities.contains_key(identifier) {
            let first_version = self.version;
            queue.order.push_back((first_version, identifier.into()));
            let identity = IdentityQueue { traits: BTreeMap::new(), first_version, at };
            queue.identities.insert(identifier.into(), identity);
        }
        if let Some(identity) = queue.identities.get_mut(identifier) {
            identity.traits.insert(key.into(), QueuedTrait { json, version: self.version });
        }
        self.publish();
    }

    fn note(&mut self, entry: &JournalEntry<'_>) {
        let Some(unwritten) = &mut self.unwritten else { return };
        if unwritten.len() > limits::TRAIT_FORWARD_UNWRITTEN_BYTES_MAX {
            // The disk does not keep up: what waits is written as a whole when it does.
            self.needs_rewrite = true;
            *unwritten = Vec::new();
        }
        if !self.needs_rewrite {
            entry.append(unwritten);
        }
    }

    /// Removes a trait with any value. Returns whether it was there.
    fn remove(&mut self, environment: &str, identifier: &str, key: &str) -> bool {
        let Some(queue) = self.environments.get_mut(environment) else { return false };
        let Some(identity) = queue.identities.get_mut(identifier) else { return false };
        let Some(removed) = identity.traits.remove(key) else { return false };
        if identity.traits.is_empty() {
            queue.identities.remove(identifier);
            queue.trim();
        }
        if queue.identities.is_empty() {
            self.environments.remove(environment);
        }
        self.bytes -= item_bytes(identifier, key, &removed.json);
        self.count -= 1;
        self.note(&JournalEntry::done(environment, identifier, key, removed.version));
        true
    }

    /// Forgets an identity that was erased. The journal is written anew without it.
    pub fn erase(&mut self, environment: &str, identifier: &str) {
        let Some(identifier) = identifier_of(identifier) else { return };
        if let Some(changed) = &mut self.changed {
            changed.insert(environment, identifier, None);
        }
        let queue = self.environments.get(environment);
        let keys: Vec<Box<str>> = queue
            .and_then(|queue| queue.identities.get(identifier))
            .map(|identity| identity.traits.keys().cloned().collect())
            .unwrap_or_default();
        for key in keys {
            self.remove(environment, identifier, &key);
        }
        // Also if nothing waits: what was delivered may still be in it.
        self.needs_rewrite = self.unwritten.is_some();
        if let Some(unwritten) = &mut self.unwritten {
            *unwritten = Vec::new();
        }
        self.publish();
    }

    /// The environments with something that waits.
    pub fn environments(&self) -> Vec<Box<str>> {
        self.environments.keys().cloned().collect()
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The next traits of an environment, up to this version: those of `limits::TRAIT_FORWARD_IDENTITIES_MAX`
    /// identities at most, and one request of them.
    pub fn batch(
        &self,
        environment: &str,
        version_max: u64,
        is_due: impl Fn(&BatchItem) -> bool,
    ) -> Vec<BatchItem> {
        let mut items = Vec::new();
        let Some(queue) = self.environments.get(environment) else { return items };
        let (mut bytes, mut identities) = (0, 0);
        for (identifier, identity) in queue.ordered() {
            let mut is_counted = false;
            for item in identity.items(identifier).filter(|item| item.version <= version_max && is_due(item))
            {
                bytes += item_bytes(identifier, &item.key, &item.json) as usize;
                if !items.is_empty() && bytes > limits::UPLOAD_BYTES_MAX {
                    return items;
                }
                if !is_counted {
                    (is_counted, identities) = (true, identities + 1);
                    if identities > limits::TRAIT_FORWARD_IDENTITIES_MAX {
                        return items;
                    }
                }
                items.push(item);
            }
        }
        items
    }

    /// Removes what was delivered or given up, unless it has changed since.
    pub fn finish(&mut self, environment: &str, items: &[BatchItem]) {
        for item in items {
            let queue = self.environments.get(environment);
            let identity = queue.and_then(|queue| queue.identities.get(&item.identifier));
            let queued = identity.and_then(|identity| identity.traits.get(&item.key));
            if queued.is_some_and(|queued| queued.version == item.version) {
                self.remove(environment, &item.identifier, &item.key);
            }
        }
        self.publish();
    }

    /// Removes what waits of an environment that upstream does not serve. Returns how many.
    pub fn drop_environment(&mut self, environment: &str) -> u64 {
        let identities = self.environments.get(environment).into_iter().flat_map(|queue| &queue.identities);
        let mut items: Vec<BatchItem> =
            identities.flat_map(|(identifier, identity)| identity.items(identifier)).collect();
        items.sort_unstable_by_key(|item| item.version);
        self.finish(environment, &items);
        items.len() as u64
    }

    /// Whether a value of this trait waits.
    pub fn contains(&self, environment: &str, identifier: &str, key: &str) -> bool {
        let identity = self.environments.get(environment).and_then(|queue| queue.identities.get(identifier));
        identity.is_some_and(|identity| identity.traits.contains_key(key))
    }

    /// The entries for the journal since the last call; `None`: it is to be written anew.
    pub fn take_unwritten(&mut self) -> Option<Vec<u8>> {
        (!self.needs_rewrite).then(|| self.unwritten.as_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Everything that waits, as entries of the journal, in their order. Later entries follow it.
    pub fn take_all(&mut self) -> Vec<Vec<u8>> {
        self.needs_rewrite = false;
        if let Some(unwritten) = &mut self.unwritten {
            unwritten.clear();
        }
        let mut parts = vec![Vec::new()];
        for (environment, queue) in &self.environments {
            for (identifier, identity) in queue.ordered() {
                for (key, queued) in &identity.traits {
                    if parts.last().is_some_and(|part| part.len() > limits::EVENT_RECORD_BYTES_MAX) {
                        parts.push(Vec::new());
                    }
                    let entry = JournalEntry::set(
                        environment,
                        identifier,
                        key,
                        &queued.json,
                        queued.version,
                        identity.at,
                    );
                    parts.iter_mut().last().into_iter().for_each(|part| entry.append(part));
                }
            }
        }
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// The journal could not be written: it is written anew when it can.
    pub fn journal_failed(&mut self) {
        self.needs_rewrite = true;
    }

    /// The traits that wait, and their bytes.
    pub fn size(&self) -> (u64, u64) {
        (self.count, self.bytes)
    }

    fn publish(&self) {
        self.metrics.queued.set(self.count);
        self.metrics.queued_bytes.set(self.bytes);
    }

    /// Updates the metric of the oldest change.
    pub fn measure(&self) {
        let oldest = self.environments.values().filter_map(|queue| queue.ordered().next());
        self.metrics.oldest_at.set(oldest.map(|(_, identity)| identity.at).min().unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
