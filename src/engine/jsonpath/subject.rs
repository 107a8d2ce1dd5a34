//! The identity of a request, as queries read it.
use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::engine::identity::{Identity, Trait, TraitValue};
use crate::engine::table::{TableHashBuilder, offset};
use crate::work;

/// An identity, as queries read it.
#[derive(Debug)]
pub struct Subject<'a> {
    identity: Identity<'a>,
    key: &'a str,
    traits: TraitMap<'a>,
}

/// Traits as in a Python `dict`: of several with one key the last value, at the position of the first.
#[derive(Debug, Default)]
struct TraitMap<'a> {
    sent: &'a [Trait<'a>],
    /// Replaces `sent` if several have one key.
    merged: Option<Vec<Trait<'a>>>,
    /// Indices into [`Self::traits`], by name.
    by_key: HashTable<u32>,
    hasher: TableHashBuilder,
}

impl<'a> TraitMap<'a> {
    /// The number of traits is bounded by the size of a body (`limits::BODY_BYTES_MAX`).
    fn new(sent: &'a [Trait<'a>]) -> Self {
        work::count(sent.len());
        let (hasher, mut by_key) = (TableHashBuilder::default(), HashTable::with_capacity(sent.len()));
        let mut merged: Option<Vec<Trait<'a>>> = None;
        for (at, sent_trait) in sent.iter().enumerate() {
            let hash = hasher.hash_one(sent_trait.key);
            let traits = merged.as_deref().unwrap_or(sent);
            let is_same = |index: &u32| traits[*index as usize].key == sent_trait.key;
            let rehash = |index: &u32| hasher.hash_one(traits[*index as usize].key);
            match by_key.entry(hash, is_same, rehash) {
                Entry::Occupied(known) => {
                    let merged = merged.get_or_insert_with(|| sent[..at].to_vec());
                    merged[*known.get() as usize].value = sent_trait.value;
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(offset(merged.as_ref().map_or(at, Vec::len)));
                    merged.iter_mut().for_each(|merged| merged.push(*sent_trait));
                }
            }
        }
        Self { sent, merged, by_key, hasher }
    }

    fn traits(&self) -> &[Trait<'a>] {
        self.merged.as_deref().unwrap_or(self.sent)
    }

    fn get(&self, name: &str) -> Option<TraitValue<'a>> {
        let traits = self.traits();
        let has_name = |index: &u32| traits[*index as usize].key == name;
        let index = *self.by_key.find(self.hasher.hash_one(name), has_name)?;
        Some(traits[index as usize].value)
    }
}

impl<'a> Subject<'a> {
    /// The traits, each key once.
    pub fn traits(&self) -> &[Trait<'a>] {
        self.traits.traits()
    }

    pub fn identity(&self) -> &Identity<'a> {
        &self.identity
    }

    /// The value of a trait; of several with one key the last one.
    pub fn sent(&self, name: &str) -> Option<TraitValue<'a>> {
        self.traits.get(name)
    }

    /// `$.identity.key`.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// `key`: the identity key (`$.identity.key`).
    pub fn new(identity: Identity<'a>, key: &'a str) -> Self {
        let traits = TraitMap::new(identity.traits);
        Self { identity, key, traits }
    }
}
