use std::time::Duration;

use super::*;
use crate::traits::accounts::AccountLimits;

const LIMITS: AccountLimits = AccountLimits { identities_max: 100, bytes_max: 1 << 20 };
const HOUR: Duration = Duration::from_secs(3600);

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn memory(keeps_tombstones: bool) -> TraitMemory {
    TraitMemory { keeps_tombstones, ..TraitMemory::new(5, LIMITS, 1) }
}

fn set(memory: &mut TraitMemory, changes: &[(&str, Option<i64>)], now: SystemTime) {
    let mut list = Changes::default();
    changes.iter().for_each(|(key, value)| list.push(key, value.map(TraitValue::Int)));
    write(memory, WriteKind::Set, &list.into_bytes(), now);
}

fn write(memory: &mut TraitMemory, kind: WriteKind, entries: &[u8], now: SystemTime) {
    memory.write(0, &TraitWrite::new("e".into(), kind, "jane", entries), now, &mut |_| {});
}

/// The keys of the identity; deleted ones have no value.
fn keys(memory: &TraitMemory) -> Option<Vec<(String, Option<i64>)>> {
    let number = |value| match value {
        Some(TraitValue::Int(number)) => Some(number),
        _ => None,
    };
    let record = memory.table().find("e", "jane")?;
    Some(record.entries().map(|entry| (entry.key.to_owned(), number(entry.value))).collect())
}

fn merge_at(memory: &mut TraitMemory, written: SystemTime, now: SystemTime) {
    let stamp = Stamp { clock: ticks(written), proxy: 9 };
    let entry = Entry { key: "plan", value: Some(TraitValue::Int(7)), stamp, born: stamp.clock };
    let remote = RemoteChange {
        environment: "e",
        identifier: "jane",
        entries: &[entry],
        seen: 1_800_000_000,
        is_promoted: false,
    };
    assert!(memory.merge(&remote, now, &mut |_| {}));
}

fn plan(value: Option<i64>) -> Option<Vec<(String, Option<i64>)>> {
    Some(vec![("plan".to_owned(), value)])
}

#[test]
fn a_deletion_hides_older_writes_of_others_for_an_hour() {
    let (mut memory, now) = (memory(true), start());
    set(&mut memory, &[("plan", Some(1))], now);
    set(&mut memory, &[("plan", None)], now + Duration::from_secs(1));
    assert_eq!(keys(&memory), plan(None), "a tombstone");
    merge_at(&mut memory, now, now + HOUR - Duration::from_secs(60));
    assert_eq!(keys(&memory), plan(None), "the write is older than the deletion");
    merge_at(&mut memory, now + Duration::from_secs(2), now + Duration::from_secs(2));
    assert_eq!(keys(&memory), plan(Some(7)), "this one is newer");
    set(&mut memory, &[("plan", None)], now + Duration::from_secs(3));
    set(&mut memory, &[("n", Some(1))], now + HOUR + Duration::from_secs(4));
    assert_eq!(keys(&memory), Some(vec![("n".to_owned(), Some(1))]), "the tombstone has expired");
}

#[test]
fn a_single_process_keeps_neither_tombstones_nor_what_was_erased() {
    let (mut memory, now) = (memory(false), start());
    set(&mut memory, &[("plan", Some(1))], now);
    set(&mut memory, &[("plan", None)], now);
    assert_eq!(keys(&memory), Some(Vec::new()));
    write(&mut memory, WriteKind::Erase, &[], now);
    let delta = memory.take_delta(false);
    assert_eq!((delta.shards.len(), keys(&memory)), (1, None), "the shard is built without it");
}

#[test]
fn overlays_are_emptied_while_nothing_else_is_to_do() {
    let (mut memory, now) = (memory(false), start());
    let mut changes = Changes::default();
    changes.push("plan", Some(TraitValue::Int(1)));
    let changes = changes.into_bytes();
    for number in 0..50_000 {
        let identifier = format!("identity {number}");
        let write = TraitWrite::new("e".into(), WriteKind::Set, &identifier, &changes);
        memory.write(0, &write, now, &mut |_| {});
    }
    let mut built = memory.take_delta(false).shards.len();
    assert_eq!(built, REBUILDS_MAX, "the others wait");
    for _ in 0..SHARDS / REBUILDS_MAX {
        built += memory.take_delta(true).shards.len();
    }
    assert!(built >= SHARDS, "{built}");
    assert_eq!((memory.overlaid.iter().count(), memory.touched.iter().count()), (0, 0));
    assert!(memory.table().find("e", "identity 49999").is_some());
}
