//! What one request changes of an identity, and the record after it.
use crate::engine::evaluate::{Trait, TraitValue};
use crate::trait_table::key_index::KeyIndex;
use crate::trait_table::record::{
    Entries, Entry, RawValue, RecordWriter, Stamp, TraitHead, TraitRecord, entry_bytes,
};

/// Keys that are compared with each other, at most: the work grows with the square of their number. More are
/// merged with an index.
const NEW_KEYS_MAX: usize = 128;

/// A value as it is stored: core's database has no negative zero.
pub fn stored_value(value: TraitValue<'_>) -> TraitValue<'_> {
    match value {
        TraitValue::Float(number) => TraitValue::Float(number + 0.0),
        value => value,
    }
}

/// Keys that may have been seen before: a small filter, so that few keys are compared with all others.
#[derive(Debug, Default)]
struct SeenKeys([u64; 4]);

impl SeenKeys {
    /// Returns whether the key may have been inserted before.
    fn insert(&mut self, bytes: &[u8]) -> bool {
        let end = |byte: Option<&u8>| u32::from(byte.copied().unwrap_or_default());
        let mixed = (end(bytes.first()) << 16 | end(bytes.last()) << 8 | end(bytes.get(bytes.len() / 2)))
            .wrapping_add(u32::from(bytes.len().to_le_bytes()[0]) << 20)
            .wrapping_mul(0x9E37_79B1);
        let (word, bit) = ((mixed >> 30) as usize, mixed >> 24 & 63);
        let was_set = self.0[word] >> bit & 1 == 1;
        self.0[word] |= 1 << bit;
        was_set
    }
}

/// Keys with their new values, in the order sent, as bytes.
#[derive(Debug, Default)]
pub struct Changes {
    writer: RecordWriter,
    stamp: Stamp,
    count: usize,
}

impl Changes {
    /// All of these traits.
    pub fn of_all(traits: &[Trait<'_>]) -> Self {
        let bytes = traits.iter().map(|item| entry_bytes(item.key, item.value)).sum();
        let mut changes = Self { writer: RecordWriter::for_entries(bytes), ..Self::default() };
        traits.iter().for_each(|item| changes.push(item.key, Some(stored_value(item.value))));
        changes
    }

    /// The traits of a body as changes, if a new identity has exactly these after it: they are not many, no
    /// key is twice, none is deleted.
    pub fn of_new(traits: &[Trait<'_>]) -> Option<Self> {
        if traits.len() > NEW_KEYS_MAX {
            return None;
        }
        let mut seen = SeenKeys::default();
        for (index, item) in traits.iter().enumerate() {
            let is_twice =
                seen.insert(item.key.as_bytes()) && traits[..index].iter().any(|other| other.key == item.key);
            if is_twice || item.value == TraitValue::Null {
                return None;
            }
        }
        Some(Self::of_all(traits))
    }

    /// What the traits of a body change in a record that has exactly their keys, in their order. `None`: it
    /// has others, or some are deleted.
    pub fn of_same_keys(record: &TraitRecord<'_>, traits: &[Trait<'_>]) -> Option<Self> {
        let (mut entries, mut changes) = (record.entries(), Self::default());
        for item in traits {
            let (key, value) = entries.next_raw()?;
            if key != item.key.as_bytes() || value == RawValue::Deleted || item.value == TraitValue::Null {
                return None;
            }
            if value != RawValue::of(item.value) {
                changes.push(item.key, Some(stored_value(item.value)));
            }
        }
        entries.next_raw().is_none().then_some(changes)
    }

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
    if record.is_none()
        && let Some(applied) = first(identifier, changes, stamp, head)
    {
        return applied;
    }
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

/// The first record of an identity, which has exactly these changes: they are copied as they are encoded.
/// `None`: a key is deleted, or is there twice, or they are many.
fn first(identifier: &str, changes: &[u8], stamp: Stamp, head: TraitHead) -> Option<Applied> {
    let (mut entries, mut seen, mut count) = (Entries::of(changes), SeenKeys::default(), 0);
    while let Some((key, value)) = entries.next_raw() {
        let is_known = |count: u64| {
            let mut before = Entries::of(changes);
            (0..count).any(|_| before.next_raw().is_some_and(|(known, _)| known == key))
        };
        let is_many = count == NEW_KEYS_MAX as u64;
        if is_many || value == RawValue::Deleted || (seen.insert(key) && is_known(count)) {
            return None;
        }
        count += 1;
    }
    let record = RecordWriter::with_changes(head, identifier, changes, stamp.next());
    Some(Applied { record, stamp: Stamp { clock: stamp.clock.wrapping_add(count), ..stamp } })
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
    let since = tombstones_since.map(|_| since);
    let kept = || entries.iter().filter(|entry| is_kept(entry, since));
    let bytes = kept().map(|entry| entry_bytes(entry.key, entry.value.unwrap_or(TraitValue::Null))).sum();
    let mut writer = RecordWriter::with_capacity(head, identifier, bytes);
    kept().for_each(|entry| writer.push(entry));
    writer.finish()
}

/// Whether a key has a value, or is a tombstone that is young enough.
fn is_kept(entry: &Entry<'_>, tombstones_since: Option<u64>) -> bool {
    entry.value.is_some() || tombstones_since.is_some_and(|since| entry.stamp.clock >= since)
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

    fn after(record: Option<&[u8]>, list: &[(&str, Option<i64>)], since: Option<u64>) -> Vec<u8> {
        let record = record.and_then(TraitRecord::new);
        let stamp = Stamp { clock: 1000, proxy: 1 };
        apply(record, "i", &changes(list), stamp, HEAD, since).record
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
    fn a_body_with_the_keys_of_a_record_changes_what_differs() {
        let sent = |list: &[(&'static str, TraitValue<'static>)]| -> Vec<Trait<'static>> {
            list.iter().map(|(key, value)| Trait { key, value: *value }).collect()
        };
        let all = [
            ("text", TraitValue::Text("x")),
            ("big", TraitValue::BigInt("123456789012345678901234567890")),
            ("int", TraitValue::Int(-5)),
            ("float", TraitValue::Float(0.0)),
            ("yes", TraitValue::Bool(true)),
        ];
        let (stamp, traits) = (Stamp { clock: 1000, proxy: 1 }, sent(&all));
        let new = Changes::of_new(&traits).expect("no key is twice").into_bytes();
        let record = apply(None, "i", &new, stamp, HEAD, None).record;
        let record = TraitRecord::new(&record).expect("a record");
        assert_eq!(record.entries().map(|e| (e.key, e.value.expect("a value"))).collect::<Vec<_>>(), all);
        let difference = |traits: &[Trait<'_>]| {
            let changes = Changes::of_same_keys(&record, traits)?.into_bytes();
            Some(Entries::of(&changes).map(|entry| entry.key.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(difference(&traits), Some(Vec::new()));
        for (index, (key, _)) in all.iter().enumerate() {
            let mut other = all;
            other[index].1 = TraitValue::Float(1.5);
            assert_eq!(difference(&sent(&other)), Some(vec![(*key).to_owned()]));
            other[index].1 = TraitValue::Null;
            assert_eq!(difference(&sent(&other)), None, "{key} is deleted");
            let mut short = traits.clone();
            short.remove(index);
            assert_eq!(difference(&short), None, "{key} is missing");
        }
        let mut zero = all;
        zero[3].1 = TraitValue::Float(-0.0);
        assert_eq!(difference(&sent(&zero)), Some(Vec::new()), "zero has no sign");
        let more = sent(&[&all[..], &[("new", TraitValue::Int(1))]].concat());
        assert_eq!(difference(&more), None);
        assert!(Changes::of_new(&sent(&[all[0], all[1], all[0]])).is_none());
        assert!(Changes::of_new(&sent(&[all[0], ("none", TraitValue::Null)])).is_none());
    }

    #[test]
    fn the_first_record_is_that_of_merging() {
        let many: Vec<String> = (0..100).map(|number| format!("key {number}")).collect();
        let mut lists: Vec<Vec<(&str, Option<i64>)>> = vec![
            vec![],
            vec![("a", Some(1))],
            many.iter().map(|key| (key.as_str(), Some(-7))).collect(),
            vec![("a", Some(1)), ("b", None)],
            vec![("a", Some(1)), ("b", Some(2)), ("a", Some(3))],
        ];
        lists.push([&lists[2][..], &[("key 99", Some(4))]].concat());
        let too_many: Vec<String> = (0..=NEW_KEYS_MAX).map(|number| format!("key {number}")).collect();
        lists.push(too_many.iter().map(|key| (key.as_str(), Some(-7))).collect());
        let (stamp, empty) = (Stamp { clock: 1000, proxy: 9 }, RecordWriter::new(HEAD, "i").finish());
        for (index, list) in lists.iter().enumerate() {
            let changes = changes(list);
            let new = apply(None, "i", &changes, stamp, HEAD, Some(0));
            let merged = apply(TraitRecord::new(&empty), "i", &changes, stamp, HEAD, Some(0));
            assert_eq!((new.record, new.stamp), (merged.record, merged.stamp), "{list:?}");
            assert_eq!(first("i", &changes, stamp, HEAD).is_some(), index < 3);
        }
    }

    #[test]
    fn bodies_are_encoded_without_moving_them() {
        let text = "x".repeat(300);
        let values = [
            TraitValue::Bool(true),
            TraitValue::Int(i64::MIN),
            TraitValue::Int(63),
            TraitValue::Float(0.5),
            TraitValue::BigInt("123456789012345678901"),
            TraitValue::Text(&text),
        ];
        let traits: Vec<Trait<'_>> = values.iter().map(|value| Trait { key: &text, value: *value }).collect();
        let bytes: usize = traits.iter().map(|item| entry_bytes(item.key, item.value)).sum();
        assert_eq!(Changes::of_all(&traits).into_bytes().len(), bytes);
    }

    #[test]
    fn a_key_that_is_twice_is_found_among_many() {
        let names: Vec<String> = (0..NEW_KEYS_MAX).map(|number| format!("key{number}")).collect();
        let mut traits: Vec<Trait<'_>> =
            names.iter().map(|key| Trait { key, value: TraitValue::Int(1) }).collect();
        assert!(Changes::of_new(&traits).is_some());
        traits[NEW_KEYS_MAX - 1].key = "key7";
        assert!(Changes::of_new(&traits).is_none());
        traits[NEW_KEYS_MAX - 1].key = "other";
        traits.push(Trait { key: "more", value: TraitValue::Int(1) });
        assert!(Changes::of_new(&traits).is_none(), "these are merged with an index");
    }

    #[test]
    fn tombstones_are_kept_where_other_processes_need_them() {
        let first = after(None, &[("a", Some(1)), ("b", None)], Some(0));
        let second = after(Some(&first), &[("a", None)], Some(0));
        assert_eq!(keys(&second), [("a".into(), None), ("b".into(), None)]);
        let third = after(Some(&second), &[("a", Some(2))], Some(0));
        assert_eq!(keys(&third), [("b".into(), None), ("a".into(), Some(2))]);
        let later = after(Some(&third), &[("c", Some(3))], Some(1003));
        assert_eq!(keys(&later), [("a".into(), Some(2)), ("c".into(), Some(3))], "b is older than that");
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
