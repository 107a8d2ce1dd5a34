//! Finds a key among the traits of an identity: a scan while there are few, a table when there are many.
//!
//! A body of a thousand traits for an identity of a thousand must not take a million comparisons.
use std::collections::HashMap;

/// Up to so many keys are compared one by one.
const SCANNED_KEYS_MAX: usize = 32;

/// Keys by the position at which they were added.
#[derive(Debug, Default)]
pub struct KeyIndex<'a> {
    keys: Vec<&'a str>,
    table: HashMap<&'a str, usize, foldhash::fast::RandomState>,
}

impl<'a> KeyIndex<'a> {
    pub fn new(keys: impl Iterator<Item = &'a str>) -> Self {
        // One or a few keys are added later.
        let mut index = Self { keys: Vec::with_capacity(keys.size_hint().0 + 4), ..Self::default() };
        keys.for_each(|key| index.push(key));
        index
    }

    /// The position of a key; the last one if it was added twice.
    pub fn find(&self, key: &str) -> Option<usize> {
        match self.table.is_empty() {
            true => self.keys.iter().rposition(|known| *known == key),
            false => self.table.get(key).copied(),
        }
    }

    /// Adds a key at the next position.
    pub fn push(&mut self, key: &'a str) {
        let position = self.keys.len();
        self.keys.push(key);
        if !self.table.is_empty() {
            self.table.insert(key, position);
        } else if position >= SCANNED_KEYS_MAX {
            self.table = self.keys.iter().enumerate().map(|(position, key)| (*key, position)).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_keys_among_few_and_many() {
        let names: Vec<String> = (0..80).map(|number| format!("key {number}")).collect();
        let mut index = KeyIndex::default();
        for (position, name) in names.iter().enumerate() {
            assert_eq!(index.find(name), None);
            index.push(name);
            assert_eq!((index.find(name), index.find("key 0")), (Some(position), Some(0)));
        }
        index.push("key 0");
        assert_eq!(index.find("key 0"), Some(80));
    }
}
