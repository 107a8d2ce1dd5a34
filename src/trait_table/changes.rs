//! What one request changes of an identity, and the record after it.
use crate::engine::evaluate::{Trait, TraitValue};
use crate::trait_table::key_index::{KeyIndex, fingerprint};
use crate::trait_table::record::{
    EncodedEntry, Entries, Entry, RawEntry, RawValue, RecordPatch, RecordWriter, Stamp, TraitHead,
    TraitRecord, entry_bytes,
};

/// Keys that are compared with each other, at most: the work grows with the square of their number. More are
/// merged with an index.
const NEW_KEYS_MAX: usize = 128;
/// Keys that are added to a record without an index, each compared with all others, at most.
const ADDED_KEYS_MAX: usize = 4;
/// What a trait takes in a record beside its texts, bytes, at most.
const ENTRY_OVERHEAD_BYTES: usize = 16;
/// Space for the stamps of replaced entries in a record, bytes.
const STAMPS_BYTES: usize = 64;

/// A value as it is stored: core's database has no negative zero.
pub fn stored_value(value: TraitValue<'_>) -> TraitValue<'_> {
    match value {
        TraitValue::Float(number) => TraitValue::Float(number + 0.0),
        value => value,
    }
}

/// Keys that may have been seen before: a small filter, so that few keys are compared with all others.
#[derive(Debug, Default)]
struct SeenKeys([u64; 16]);

impl SeenKeys {
    /// Returns whether the key may have been inserted before.
    #[inline]
    fn insert(&mut self, key: &[u8]) -> bool {
        let print = fingerprint(key);
        let (word, bit) = ((print >> 28) as usize, print >> 22 & 63);
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
    /// Adds a change; `None` deletes the key.
    pub fn push(&mut self, key: &str, value: Option<TraitValue<'_>>) {
        self.push_next(key, value);
    }

    /// Space for a trait.
    fn reserve(&mut self, item: &Trait<'_>) {
        self.writer.reserve(entry_bytes(item.key, item.value));
    }

    /// As [`push`](Self::push); returns the stamp and the encoded form.
    fn push_next(&mut self, key: &str, value: Option<TraitValue<'_>>) -> (Stamp, EncodedEntry<'_>) {
        self.stamp = self.stamp.next();
        self.count += 1;
        (self.stamp, self.writer.push_following(key, value.unwrap_or(TraitValue::Null)))
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The changes, to be sent to the store thread.
    pub fn into_bytes(self) -> Box<[u8]> {
        self.writer.finish().into()
    }
}

/// What a body without deletions changes of an identity, and the record after it, whose stamps are not
/// valid.
#[derive(Debug)]
pub enum BodyChanges {
    None,
    /// The identity is new, and has so many keys.
    New {
        record: Vec<u8>,
        keys: u32,
    },
    Changed {
        changes: Box<[u8]>,
        record: Vec<u8>,
    },
}

impl BodyChanges {
    /// The record after it. Without changes it is as before.
    pub fn record(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::New { record, .. } | Self::Changed { record, .. } => Some(record),
        }
    }

    /// Of a new identity, if it has exactly the traits of the body after it. `None`: they are many, a key is
    /// twice, or some are deleted.
    pub fn of_new(identifier: &str, traits: &[Trait<'_>], head: TraitHead) -> Option<Self> {
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
        // Numbers take at most ten bytes, lengths two.
        let bytes = |item: &Trait<'_>| item.key.len() + ENTRY_OVERHEAD_BYTES + text_bytes(item.value);
        let mut writer = RecordWriter::with_capacity(head, identifier, traits.iter().map(bytes).sum());
        for item in traits {
            writer.push_following(item.key, stored_value(item.value));
        }
        Some(Self::New { record: writer.finish(), keys: traits.len() as u32 })
    }

    /// Of a body that has exactly the keys of the record, in their order. `None`: it has others, or some are
    /// deleted.
    pub fn of_same_keys(record: &TraitRecord<'_>, traits: &[Trait<'_>], head: TraitHead) -> Option<Self> {
        let mut entries = record.entries();
        for (index, item) in traits.iter().enumerate() {
            let before = entries.clone();
            let entry = entries.next_raw()?;
            if entry.key != item.key.as_bytes() {
                return None;
            }
            if !entry.value.is(item.value) {
                return Self::of_differences(record, traits.get(index..)?, before, head);
            }
        }
        entries.next_raw().is_none().then_some(Self::None)
    }

    /// As [`of_same_keys`](Self::of_same_keys), of the traits from the first difference, with the entries
    /// from there.
    fn of_differences<'r>(
        record: &TraitRecord<'r>,
        traits: &[Trait<'_>],
        mut entries: Entries<'r>,
        head: TraitHead,
    ) -> Option<Self> {
        let mut merge = BodyMerge::new(record, head);
        for item in traits {
            let entry = entries.next_raw()?;
            let is_same = entry.key == item.key.as_bytes();
            if !is_same || entry.value == RawValue::Deleted || item.value == TraitValue::Null {
                return None;
            }
            merge.set(&entry, item);
        }
        let is_last = entries.next_raw().is_none();
        is_last.then(|| merge.finish(&entries, &[]))
    }

    /// Of any other body, with the traits after it in the order of the record; of a key that is sent twice
    /// the last value counts. `None`: some are deleted.
    pub fn of_other_keys<'m>(
        record: &TraitRecord<'m>,
        traits: &[Trait<'m>],
        head: TraitHead,
    ) -> Option<(Self, Vec<Trait<'m>>)> {
        let mut index = KeyIndex::with_capacity(traits.len() * 2);
        let mut entries = record.entries();
        while let Some(entry) = entries.next_raw() {
            if entry.value == RawValue::Deleted {
                return None;
            }
            index.push(entry.key);
        }
        let known = index.count();
        let (mut sent, mut added, mut next) = (vec![None; known], Vec::new(), 0);
        for item in traits {
            if item.value == TraitValue::Null {
                return None;
            }
            match index.find_near(item.key, next) {
                Some(position) if position < known => {
                    sent[position] = Some(item);
                    next = position + 1;
                }
                Some(position) => added[position - known] = *item,
                None => {
                    index.push(item.key);
                    added.push(*item);
                }
            }
        }
        let mut after = Vec::with_capacity(known + added.len());
        let (mut entries, mut merge) = (record.entries(), BodyMerge::new(record, head));
        for item in sent {
            let entry = entries.next_raw()?;
            after.push(match item {
                Some(item) => {
                    merge.set(&entry, item);
                    *item
                }
                None => {
                    merge.keep(&entry);
                    let entry = entry.decode()?;
                    Trait { key: entry.key, value: entry.value? }
                }
            });
        }
        let all = merge.finish(&entries, &added);
        after.extend(added);
        Some((all, after))
    }
}

fn text_bytes(value: TraitValue<'_>) -> usize {
    match value {
        TraitValue::Text(text) | TraitValue::BigInt(text) => text.len(),
        _ => 0,
    }
}

/// The changes of a body with the record after them, which is begun at the first difference.
struct BodyMerge<'r> {
    record: TraitRecord<'r>,
    head: TraitHead,
    changes: Changes,
    patch: Option<RecordPatch<'r>>,
}

impl<'r> BodyMerge<'r> {
    fn new(record: &TraitRecord<'r>, head: TraitHead) -> Self {
        Self { record: *record, head, changes: Changes::default(), patch: None }
    }

    /// An entry that is in the body.
    #[inline]
    fn set(&mut self, entry: &RawEntry<'r>, item: &Trait<'_>) {
        if entry.value.is(item.value) {
            self.keep(entry);
            return;
        }
        self.changes.reserve(item);
        let (stamp, new) = self.changes.push_next(item.key, Some(stored_value(item.value)));
        let begin = || RecordPatch::new(&self.record, self.head, STAMPS_BYTES + new.bytes());
        self.patch.get_or_insert_with(begin).replace(entry, stamp, new);
    }

    /// An entry that is not.
    #[inline]
    fn keep(&mut self, entry: &RawEntry<'r>) {
        if let Some(patch) = &mut self.patch {
            patch.keep(entry);
        }
    }

    /// With keys that the record does not have. `entries` are those of the record, at their end.
    fn finish(mut self, entries: &Entries<'r>, added: &[Trait<'_>]) -> BodyChanges {
        if !added.is_empty() && self.patch.is_none() {
            let bytes: usize = added.iter().map(|item| entry_bytes(item.key, item.value)).sum();
            self.patch = Some(RecordPatch::new(&self.record, self.head, STAMPS_BYTES + bytes));
        }
        let Some(mut patch) = self.patch else { return BodyChanges::None };
        patch.end(entries);
        for item in added {
            let (stamp, new) = self.changes.push_next(item.key, Some(stored_value(item.value)));
            patch.append(stamp, new);
        }
        BodyChanges::Changed { changes: self.changes.into_bytes(), record: patch.finish() }
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
    if let Some(record) = &record
        && let Some(applied) = patched(record, changes, stamp, head, tombstones_since.is_some())
    {
        return applied;
    }
    rewritten(record, identifier, changes, stamp, head, tombstones_since)
}

/// As [`apply`], with all keys decoded.
fn rewritten(
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

/// The first record of an identity, with this many keys, each once and none deleted.
pub fn make(identifier: &str, changes: &[u8], keys: u32, stamp: Stamp, head: TraitHead) -> Applied {
    let record = RecordWriter::with_changes(head, identifier, changes, stamp.next());
    Applied { record, stamp: Stamp { clock: stamp.clock.wrapping_add(keys.into()), ..stamp } }
}

/// The first record of an identity, which has exactly these changes: they are copied as they are encoded.
/// `None`: a key is deleted, or is there twice, or they are many.
fn first(identifier: &str, changes: &[u8], stamp: Stamp, head: TraitHead) -> Option<Applied> {
    let (mut entries, mut seen, mut count) = (Entries::of(changes), SeenKeys::default(), 0_u32);
    while let Some(entry) = entries.next_raw() {
        let is_known = |count: u32| {
            let mut before = Entries::of(changes);
            (0..count).any(|_| before.next_raw().is_some_and(|known| known.key == entry.key))
        };
        let is_many = count == NEW_KEYS_MAX as u32;
        if is_many || entry.value == RawValue::Deleted || (seen.insert(entry.key) && is_known(count)) {
            return None;
        }
        count += 1;
    }
    Some(make(identifier, changes, count, stamp, head))
}

/// The record with some values replaced and a few keys added, the rest copied as it is encoded. `None`: keys
/// are deleted, or are not in the order of the record.
fn patched(
    record: &TraitRecord<'_>,
    changes: &[u8],
    stamp: Stamp,
    head: TraitHead,
    has_tombstones: bool,
) -> Option<Applied> {
    let (mut entries, mut list, mut stamp) = (record.entries(), Entries::of(changes), stamp);
    let mut patch = RecordPatch::new(record, head, STAMPS_BYTES + changes.len());
    let mut change = list.next_raw();
    while let Some(entry) = entries.next_raw() {
        if entry.value == RawValue::Deleted {
            return None;
        }
        match change.filter(|change| change.key == entry.key) {
            Some(change) if change.value == RawValue::Deleted => return None,
            Some(new) => {
                stamp = stamp.next();
                patch.replace(&entry, stamp, new.encoded());
                change = list.next_raw();
            }
            None => patch.keep(&entry),
        }
        // The rest is copied. With tombstones some of it may have to go.
        if change.is_none() && patch.is_between() && !has_tombstones {
            return Some(Applied { record: patch.finish_with_rest(), stamp });
        }
    }
    patch.end(&entries);
    for added in 0.. {
        let Some(new) = change else { break };
        if added == ADDED_KEYS_MAX || new.value == RawValue::Deleted || patch.has_key(new.key) {
            return None;
        }
        stamp = stamp.next();
        patch.append(stamp, new.encoded());
        change = list.next_raw();
    }
    Some(Applied { record: patch.finish(), stamp })
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
        let new = BodyChanges::of_new("i", &traits, HEAD).expect("no key is twice");
        let new = TraitRecord::new(new.record().expect("new")).expect("a record").entries_bytes();
        let record = make("i", new, 5, stamp, HEAD).record;
        assert_eq!(record, apply(None, "i", new, stamp, HEAD, None).record);
        let record = TraitRecord::new(&record).expect("a record");
        assert_eq!(record.entries().map(|e| (e.key, e.value.expect("a value"))).collect::<Vec<_>>(), all);
        let difference = |traits: &[Trait<'_>]| {
            let changes = match BodyChanges::of_same_keys(&record, traits, HEAD)? {
                BodyChanges::Changed { changes, .. } => changes,
                _ => Box::default(),
            };
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
        assert!(BodyChanges::of_new("i", &sent(&[all[0], all[1], all[0]]), HEAD).is_none());
        assert!(BodyChanges::of_new("i", &sent(&[all[0], ("none", TraitValue::Null)]), HEAD).is_none());
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
        let keys: Vec<String> = (0..traits.len()).map(|number| format!("{number}{text}")).collect();
        let traits: Vec<Trait<'_>> =
            keys.iter().zip(&traits).map(|(key, item)| Trait { key, ..*item }).collect();
        let bytes: usize = traits.iter().map(|item| entry_bytes(item.key, item.value)).sum();
        let Some(BodyChanges::New { record, keys: 6 }) = BodyChanges::of_new("i", &traits, HEAD) else {
            panic!("six traits");
        };
        let most = bytes + traits.len() * ENTRY_OVERHEAD_BYTES + 100;
        assert!(record.len() > bytes && record.capacity() < most, "{}", record.capacity());
    }

    #[test]
    fn a_key_that_is_twice_is_found_among_many() {
        let names: Vec<String> = (0..NEW_KEYS_MAX).map(|number| format!("key{number}")).collect();
        let mut traits: Vec<Trait<'_>> =
            names.iter().map(|key| Trait { key, value: TraitValue::Int(1) }).collect();
        assert!(BodyChanges::of_new("i", &traits, HEAD).is_some());
        traits[NEW_KEYS_MAX - 1].key = "key7";
        assert!(BodyChanges::of_new("i", &traits, HEAD).is_none());
        traits[NEW_KEYS_MAX - 1].key = "other";
        traits.push(Trait { key: "more", value: TraitValue::Int(1) });
        assert!(BodyChanges::of_new("i", &traits, HEAD).is_none(), "these are merged with an index");
    }

    #[test]
    fn patched_records_are_those_of_rewriting() {
        let names: Vec<String> = (0..12).map(|number| format!("key {number}")).collect();
        let mut random = 3_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut record, mut clock, mut patches) = (after(None, &[("key 0", Some(1))], None), 1000, 0);
        for _ in 0..3000 {
            let list: Vec<(&str, Option<i64>)> = (0..next(4))
                .map(|_| (&*names[next(12) as usize], Some(next(3) as i64 - 1).filter(|_| next(20) > 0)))
                .collect();
            let (list, stamp) = (changes(&list), Stamp { clock, proxy: 1 + next(2) as u32 });
            let before = TraitRecord::new(&record).expect("a record");
            let expected = rewritten(Some(before), "i", &list, stamp, HEAD, None);
            let found = patched(&before, &list, stamp, HEAD, false);
            let entries = |bytes: &[u8]| -> Vec<(String, Option<i64>, Stamp, u64)> {
                let record = TraitRecord::new(bytes).expect("a record");
                let all = record.entries().zip(keys(bytes));
                all.map(|(entry, (key, value))| (key, value, entry.stamp, entry.born)).collect()
            };
            if let Some(found) = found {
                patches += 1;
                assert_eq!(entries(&found.record), entries(&expected.record));
                assert_eq!(found.stamp, expected.stamp);
                record = found.record;
            } else {
                record = expected.record;
            }
            clock += next(3) * 1000;
        }
        assert!(patches > 1000, "{patches}");
    }

    #[test]
    fn a_body_in_any_order_is_merged_as_its_changes_are() {
        let names: Vec<String> = (0..40).map(|number| format!("key {number}")).collect();
        let mut random = 5_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut record = after(None, &[("key 0", Some(1)), ("key 3", Some(1))], None);
        for round in 0..2000 {
            let traits: Vec<Trait<'_>> = (0..next(if round % 100 == 0 { 40 } else { 4 }))
                .map(|_| Trait { key: &names[next(40) as usize], value: TraitValue::Int(next(3) as i64) })
                .collect();
            let before = TraitRecord::new(&record).expect("a record");
            let (all, merged) = BodyChanges::of_other_keys(&before, &traits, HEAD).expect("no deletion");
            let list: Vec<(&str, Option<i64>)> = traits
                .iter()
                .map(|item| match item.value {
                    TraitValue::Int(number) => (item.key, Some(number)),
                    _ => (item.key, None),
                })
                .collect();
            let expected = keys(&after(Some(&record), &list, None));
            let merged = merged.iter().map(|item| match item.value {
                TraitValue::Int(number) => (item.key.to_owned(), Some(number)),
                _ => (item.key.to_owned(), None),
            });
            assert_eq!(merged.collect::<Vec<_>>(), expected);
            if let BodyChanges::Changed { changes, record: changed } = all {
                let applied = apply(Some(before), "i", &changes, Stamp::default(), HEAD, None);
                assert_eq!((keys(&applied.record), keys(&changed)), (expected.clone(), expected));
                record = if next(50) == 0 { after(None, &[("key 7", Some(1))], None) } else { changed };
            } else {
                assert_eq!(keys(&record), expected);
            }
        }
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
