//! Sets of shards of the table.
use crate::trait_table::SHARDS;

/// Shards, by the position of their environment and their number, a bit for each.
#[derive(Debug, Default)]
pub struct ShardSet(Vec<[u64; SHARDS / 64]>);

impl ShardSet {
    pub fn insert(&mut self, (space, index): (usize, usize)) {
        if self.0.len() <= space {
            self.0.resize(space + 1, [0; SHARDS / 64]);
        }
        self.0[space][index / 64] |= 1 << (index % 64);
    }

    pub fn remove(&mut self, (space, index): (usize, usize)) {
        self.0[space][index / 64] &= !(1 << (index % 64));
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        self.0.iter().enumerate().flat_map(|(space, words)| {
            words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(move |(number, word)| {
                (0..64).filter(move |bit| *word >> bit & 1 == 1).map(move |bit| (space, number * 64 + bit))
            })
        })
    }
}
