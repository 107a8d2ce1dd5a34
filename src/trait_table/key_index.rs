//! Finds a key among the traits of an identity: a scan while there are few, a table when there are many.
//!
//! A body of a thousand traits for an identity of a thousand must not take a million comparisons.
use std::collections::HashMap;

/// Up to so many keys are compared one by one.
const SCANNED_KEYS_MAX: usize = 32;

/// Keys by the position at which they were added.
#[derive(Debug, Default)]
pub struct KeyIndex<'a> {
    /// Each with its fingerprint, which most others do not have.
    keys: Vec<(u32, &'a [u8])>,
    table: HashMap<&'a [u8], usize, foldhash::fast::RandomState>,
}

impl<'a> KeyIndex<'a> {
    pub fn new<K: AsRef<[u8]> + ?Sized + 'a>(keys: impl Iterator<Item = &'a K>) -> Self {
        // One or a few keys are added later.
        let mut index = Self::with_capacity(keys.size_hint().0 + 4);
        keys.for_each(|key| index.push(key));
        index
    }

    /// Without keys, with space for this many.
    pub fn with_capacity(keys: usize) -> Self {
        Self { keys: Vec::with_capacity(keys), ..Self::default() }
    }

    /// How many keys were added.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// The position of a key; the last one if it was added twice.
    pub fn find(&self, key: impl AsRef<[u8]>) -> Option<usize> {
        let key = key.as_ref();
        if !self.table.is_empty() {
            return self.table.get(key).copied();
        }
        let print = fingerprint(key);
        self.keys.iter().rposition(|(known_print, known)| *known_print == print && *known == key)
    }

    /// As [`find`](Self::find), for a key that is probably at this position.
    pub fn find_near(&self, key: &str, position: usize) -> Option<usize> {
        let is_here = self.keys.get(position).is_some_and(|(_, known)| *known == key.as_bytes());
        if is_here { Some(position) } else { self.find(key) }
    }

    /// Adds a key at the next position.
    pub fn push<K: AsRef<[u8]> + ?Sized>(&mut self, key: &'a K) {
        let (key, position) = (key.as_ref(), self.keys.len());
        self.keys.push((fingerprint(key), key));
        if !self.table.is_empty() {
            self.table.insert(key, position);
        } else if position >= SCANNED_KEYS_MAX {
            self.table = self.keys.iter().enumerate().map(|(position, (_, key))| (*key, position)).collect();
        }
    }
}

/// A number that differs for most keys. A client can choose keys that have the same.
#[inline]
pub fn fingerprint(key: &[u8]) -> u32 {
    let (first, last) = match (key.first_chunk::<8>(), key.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => match (key.first_chunk::<4>(), key.last_chunk::<4>()) {
            (Some(first), Some(last)) => {
                (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into())
            }
            _ => (key.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), 0),
        },
    };
    let mixed = (first ^ last.rotate_left(29)).wrapping_add(key.len() as u64);
    (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
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
