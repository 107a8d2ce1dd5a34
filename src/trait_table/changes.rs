//! What one request changes of an identity, and the record after it.
use crate::engine::evaluate::TraitValue;
use crate::trait_table::key_index::KeyIndex;
use crate::trait_table::record::{Entries, Entry, RecordWriter, Stamp, TraitHead, TraitRecord};

/// Keys with their new values, in the order sent, as bytes.
#[derive(Debug, Default)]
pub struct Changes {
    writer: RecordWriter,
    stamp: Stamp,
    count: usize,
}

impl Changes {
    /// Adds a change; `None` deletes the key.
    pub fn push(&mut self, key: &str, value: Option<TraitValue<'_>>) {
        self.stamp = self.stamp.next();
        self.count += 1;
        self.writer.push(&Entry { key, value, stamp: self.stamp, born: self.stamp.clock });
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The changes, to be sent to the store thread.
    pub fn into_bytes(self) -> Box<[u8]> {
        self.writer.finish().into()
    }
}

/// Tombstones of a record. Beyond: the oldest are dropped.
const TOMBSTONES_MAX: usize = 256;

/// A record after a write.
#[derive(Debug)]
pub struct Applied {
    pub record: Vec<u8>,
    /// The stamp of the last change.
    pub stamp: Stamp,
}

/// Applies changes to the record of an identity, or to none. An updated key keeps its place, a new one goes
/// last. The changes get the stamps after `stamp`. With `tombstones_since` a deleted key leaves a tombstone;
/// those with an older clock are dropped.
pub fn apply(
    record: Option<TraitRecord<'_>>,
    identifier: &str,
    changes: &[u8],
    stamp: Stamp,
    head: TraitHead,
    tombstones_since: Option<u64>,
) -> Applied {
    let mut entries: Vec<Entry<'_>> = record.iter().flat_map(TraitRecord::entries).collect();
    let mut index = KeyIndex::new(entries.iter().map(|entry| entry.key));
    let mut stamp = stamp;
    for change in Entries::of(changes) {
        stamp = stamp.next();
        let known = index.find(change.key).and_then(|position| entries.get_mut(position));
        match (known, change.value) {
            (Some(known), None) => {
                (known.value, known.stamp) = (None, stamp);
            }
            (Some(known), Some(_)) if known.value.is_some() => {
                (known.value, known.stamp) = (change.value, stamp);
            }
            (known, Some(_)) => {
                if let Some(tombstone) = known {
                    // The key begins anew, behind the others.
                    tombstone.key = "";
                    tombstone.value = None;
                }
                index.push(change.key);
                entries.push(Entry { stamp, born: stamp.clock, ..change });
            }
            (None, None) if tombstones_since.is_some() => {
                index.push(change.key);
                entries.push(Entry { stamp, born: stamp.clock, ..change });
            }
            (None, None) => {}
        }
    }
    entries.retain(|entry| !entry.key.is_empty());
    Applied { record: written(&entries, identifier, head, tombstones_since), stamp }
}

/// The record with these keys, without tombstones that are too old or too many.
fn written(
    entries: &[Entry<'_>],
    identifier: &str,
    head: TraitHead,
    tombstones_since: Option<u64>,
) -> Vec<u8> {
    let mut since = tombstones_since.unwrap_or(u64::MAX);
    let mut clocks: Vec<u64> =
        entries.iter().filter(|entry| entry.value.is_none()).map(|entry| entry.stamp.clock).collect();
    if clocks.len() > TOMBSTONES_MAX {
        clocks.sort_unstable_by(|a, b| b.cmp(a));
        since = since.max(clocks[TOMBSTONES_MAX - 1]);
    }
    let mut writer = RecordWriter::new(head, identifier);
    let is_kept = |entry: &&Entry<'_>| {
        entry.value.is_some() || (tombstones_since.is_some() && entry.stamp.clock >= since)
    };
    entries.iter().filter(is_kept).for_each(|entry| writer.push(entry));
    writer.finish()
}

/// The entries of [`Changes`] as sent, with stamps from 1.
pub fn entries(changes: &[u8]) -> Entries<'_> {
    Entries::of(changes)
}

/// Merges keys that another process stamped into the record of an identity, or into none: of two values of
/// a key the one with the greater stamp counts. Keys are in the order in which they were stored first.
/// Tombstones as with [`apply`]. `None`: nothing changed.
pub fn merge(
    record: Option<TraitRecord<'_>>,
    identifier: &str,
    others: &[Entry<'_>],
    head: TraitHead,
    tombstones_since: Option<u64>,
) -> Option<Vec<u8>> {
    let mut entries: Vec<Entry<'_>> = record.iter().flat_map(TraitRecord::entries).collect();
    let mut index = KeyIndex::new(entries.iter().map(|entry| entry.key));
    let mut has_changed = record.is_none_or(|record| record.head() != head);
    for other in others {
        match index.find(other.key).and_then(|position| entries.get_mut(position)) {
            Some(known) if known.stamp >= other.stamp => continue,
            Some(known) => *known = *other,
            None => {
                index.push(other.key);
                entries.push(*other);
            }
        }
        has_changed = true;
    }
    if !has_changed {
        return None;
    }
    entries.sort_by(|a, b| a.born.cmp(&b.born).then_with(|| a.key.cmp(b.key)));
    Some(written(&entries, identifier, head, tombstones_since))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: TraitHead = TraitHead { is_promoted: false, is_erased: false, seen: 1 };

    fn changes(list: &[(&str, Option<i64>)]) -> Box<[u8]> {
        let mut changes = Changes::default();
        for (key, value) in list {
            changes.push(key, value.map(TraitValue::Int));
        }
        changes.into_bytes()
    }

    fn keys(record: &[u8]) -> Vec<(String, Option<i64>)> {
        let record = TraitRecord::new(record).expect("a record");
        let value = |value| match value {
            Some(TraitValue::Int(number)) => Some(number),
            _ => None,
        };
        record.entries().map(|entry| (entry.key.to_owned(), value(entry.value))).collect()
    }

    fn after(record: Option<&[u8]>, list: &[(&str, Option<i64>)], tombstones_since: Option<u64>) -> Vec<u8> {
        let record = record.and_then(TraitRecord::new);
        let stamp = Stamp { clock: 1000, proxy: 1 };
        apply(record, "i", &changes(list), stamp, HEAD, tombstones_since).record
    }

    #[test]
    fn an_update_keeps_its_place_and_a_key_sent_again_goes_last() {
        let first = after(None, &[("a", Some(1)), ("b", Some(2)), ("c", None)], None);
        assert_eq!(keys(&first), [("a".into(), Some(1)), ("b".into(), Some(2))]);
        let second = after(Some(&first), &[("b", Some(3)), ("a", None), ("d", Some(4))], None);
        assert_eq!(keys(&second), [("b".into(), Some(3)), ("d".into(), Some(4))]);
        let third = after(Some(&second), &[("a", Some(5)), ("b", None), ("b", Some(6))], None);
        assert_eq!(keys(&third), [("d".into(), Some(4)), ("a".into(), Some(5)), ("b".into(), Some(6))]);
    }

    #[test]
    fn tombstones_are_kept_where_other_processes_need_them() {
        let first = after(None, &[("a", Some(1)), ("b", None)], Some(0));
        let second = after(Some(&first), &[("a", None)], Some(0));
        assert_eq!(keys(&second), [("a".into(), None), ("b".into(), None)]);
        let third = after(Some(&second), &[("a", Some(2))], Some(0));
        assert_eq!(keys(&third), [("b".into(), None), ("a".into(), Some(2))]);
        let stamps: Vec<Stamp> =
            TraitRecord::new(&third).expect("a record").entries().map(|e| e.stamp).collect();
        assert!(stamps.iter().all(|stamp| stamp.clock > 1000 && stamp.proxy == 1));
    }

    #[test]
    fn tombstones_are_bounded_in_age_and_number() {
        let many: Vec<String> = (0..400).map(|number| number.to_string()).collect();
        let deleted: Vec<(&str, Option<i64>)> = many.iter().map(|name| (name.as_str(), None)).collect();
        let record = after(None, &deleted, Some(0));
        let left = keys(&record);
        assert_eq!((left.len(), left[0].0.as_str()), (TOMBSTONES_MAX, "144"), "the oldest are dropped");
        // The last 100 have clocks from 1301.
        assert_eq!(keys(&after(Some(&record), &[("a", Some(1))], Some(1301))).len(), 101);
    }

    #[test]
    fn merging_what_is_known_changes_nothing() {
        let record = after(None, &[("a", Some(1)), ("b", None)], Some(0));
        let record = TraitRecord::new(&record).expect("a record");
        let entries: Vec<Entry<'_>> = record.entries().collect();
        assert_eq!(merge(Some(record), "i", &entries, HEAD, Some(0)), None);
        assert!(merge(Some(record), "i", &[], TraitHead { seen: 2, ..HEAD }, Some(0)).is_some());
        assert!(merge(None, "i", &[], HEAD, Some(0)).is_some(), "an identity without traits is made");
    }

    #[test]
    fn merging_gives_the_same_record_in_either_order() {
        let stamp = |clock, proxy| Stamp { clock, proxy };
        let entry = |key, value: Option<i64>, stamp: Stamp, born| {
            let value = value.map(TraitValue::Int);
            Entry { key, value, stamp, born }
        };
        let here = [entry("a", Some(1), stamp(10, 1), 10), entry("b", Some(2), stamp(20, 1), 11)];
        let there = [
            entry("b", Some(3), stamp(20, 2), 11),
            entry("c", Some(4), stamp(5, 2), 5),
            entry("a", None, stamp(9, 2), 9),
        ];
        let merged = |first: &[Entry<'_>], second: &[Entry<'_>]| {
            let record = merge(None, "i", first, HEAD, Some(0)).expect("new");
            merge(TraitRecord::new(&record), "i", second, HEAD, Some(0)).unwrap_or(record)
        };
        let (one, other) = (merged(&here, &there), merged(&there, &here));
        assert_eq!(one, other);
        assert_eq!(keys(&one), [("c".into(), Some(4)), ("a".into(), Some(1)), ("b".into(), Some(3))]);
        assert_eq!(merged(&here, &[&there[..], &there[..]].concat()), one, "twice is once");
    }

    #[test]
    fn a_thousand_keys_are_applied_to_a_thousand() {
        let names: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
        let list: Vec<(&str, Option<i64>)> = names.iter().map(|name| (name.as_str(), Some(1))).collect();
        let first = after(None, &list[..1000], None);
        assert_eq!(keys(&after(Some(&first), &list[500..], None)).len(), 2000);
    }
}
