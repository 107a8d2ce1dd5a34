//! Tests of spools on a real file system.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::storage::test_disk::FailingDisk;
use crate::storage::test_folder::TestFolder;

impl TestFolder {
    fn segments(&self) -> Vec<PathBuf> {
        let folder = self.0.join("0");
        segments_in(&DiskFolder::from(&folder))
            .unwrap()
            .into_iter()
            .map(|number| segment_path(&folder, number))
            .collect()
    }
}

const OPTIONS: SpoolOptions = SpoolOptions { bytes_max: 1 << 20, syncs: true };

type Found = Vec<(RecordId, Option<u64>, String)>;

fn open(folder: &TestFolder, options: SpoolOptions) -> (Spool, Found, Recovery) {
    open_on(folder.disk(), options)
}

fn open_on(folder: DiskFolder, options: SpoolOptions) -> (Spool, Found, Recovery) {
    let mut found = Vec::new();
    let (spool, recovery) = Spool::open_any(folder, options, |record| {
        found.push((record.id, record.batch, String::from_utf8(record.payload.to_vec()).unwrap()));
    })
    .unwrap();
    (spool, found, recovery)
}

fn texts(found: &Found) -> Vec<&str> {
    found.iter().map(|(_, _, text)| text.as_str()).collect()
}

fn append(spool: &mut Spool, payload: &str) -> RecordId {
    let ids = spool.append(&[payload.into()]).unwrap();
    spool.commit().unwrap();
    ids[0]
}

/// Appends records until the spool is full.
fn fill(spool: &mut Spool, payload: &[Vec<u8>]) -> Vec<RecordId> {
    let mut ids = Vec::new();
    while let Ok(added) = spool.append(payload) {
        spool.commit().unwrap();
        ids.extend(added);
    }
    ids
}

#[test]
fn records_are_read_back_in_order_with_their_batches() {
    let folder = TestFolder::new("spool-order");
    let (mut spool, found, _) = open(&folder, OPTIONS);
    assert!(found.is_empty() && spool.is_empty());
    let ids: Vec<RecordId> = ["a", "b", "c", "d"].map(|text| append(&mut spool, text)).into();
    assert_eq!(spool.read(ids[2]).unwrap(), b"c");
    spool.remove(&ids[1..2]).unwrap();
    spool.mark_batch(&ids[2..], 7).unwrap();
    let number = spool.number();
    // Not committed: as if the process was killed.
    spool.append(&[b"lost".to_vec()]).unwrap();
    drop(spool);
    let (mut spool, found, recovery) = open(&folder, OPTIONS);
    assert_eq!(texts(&found), ["a", "c", "d"]);
    let batches: Vec<Option<u64>> = found.iter().map(|(_, batch, _)| *batch).collect();
    assert_eq!((batches, spool.number()), (vec![None, Some(7), Some(7)], number));
    assert_eq!((recovery.records, recovery.damaged, recovery.ignored), (3, 0, 0));
    let next = append(&mut spool, "e");
    assert!(found.iter().all(|(id, _, _)| *id < next));
    for file in folder.segments() {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let all: Vec<RecordId> = found.iter().map(|(id, _, _)| *id).chain([next]).collect();
    spool.remove(&all).unwrap();
    assert!(
        spool.is_empty() && spool.bytes() == 0 && folder.segments().is_empty(),
        "all segments are deleted"
    );
}

#[test]
fn a_damaged_record_costs_that_record() {
    let folder = TestFolder::new("spool-damaged");
    let (mut spool, ..) = open(&folder, OPTIONS);
    let ids: Vec<RecordId> =
        (0..20).map(|number| append(&mut spool, &format!("record {number:02}"))).collect();
    let path = &folder.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(9).position(|window| window == b"record 07").unwrap();
    bytes[at] ^= 1;
    fs::write(path, &bytes).unwrap();
    let damaged = bytes.clone();
    assert!(matches!(spool.read(ids[7]), Err(SpoolError::Damaged)), "found while it is read");
    assert_eq!(spool.read(ids[8]).unwrap(), b"record 08");
    // Another record is where this one was.
    let each = format::record_bytes(b"record 00".len());
    let header = bytes.len() - 20 * each;
    let other = bytes[header + 3 * each..][..each].to_vec();
    bytes[header + 7 * each..][..each].copy_from_slice(&other);
    fs::write(path, &bytes).unwrap();
    assert!(matches!(spool.read(ids[7]), Err(SpoolError::Damaged)), "the record of another number");
    fs::write(path, &damaged).unwrap();
    drop(spool);
    let (_, found, recovery) = open(&folder, OPTIONS);
    assert_eq!((found.len(), recovery.damaged), (19, 1));
    assert!(!texts(&found).contains(&"record 07"));
}

/// A new segment whose header could not be written, and that could not be removed.
#[test]
fn a_name_that_is_in_use_fails_one_commit_only() {
    let folder = TestFolder::new("spool-in-use");
    let (mut spool, ..) = open(&folder, OPTIONS);
    fs::write(folder.0.join("0").join("0000000000000001.segment"), b"EPSP").unwrap();
    spool.append(&[b"lost".to_vec()]).unwrap();
    assert_eq!(spool.commit().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    let ids = ["a", "b"].map(|text| append(&mut spool, text));
    assert_eq!(spool.read(ids[1]).unwrap(), b"b");
    assert_eq!(folder.segments().len(), 2);
    drop(spool);
    let (_, found, recovery) = open(&folder, OPTIONS);
    assert_eq!(texts(&found), ["a", "b"]);
    assert_eq!((recovery.damaged, recovery.ignored), (0, 0));
    assert_eq!(folder.segments().len(), 1, "the file without a header is removed");
}

#[test]
fn other_files_are_left_as_they_are() {
    let folder = TestFolder::new("spool-others");
    drop(open(&folder, OPTIONS));
    let slot = folder.0.join("0");
    let newer = [&b"EPSPOOL\x02"[..], &[0; 100]].concat();
    for (name, bytes) in
        [("0000000000000009.segment", &newer[..]), ("000000000000000A.segment", b"x"), ("notes", b"y")]
    {
        fs::write(slot.join(name), bytes).unwrap();
    }
    std::os::unix::fs::symlink("notes", slot.join("0000000000000003.segment")).unwrap();
    let (mut spool, found, recovery) = open(&folder, OPTIONS);
    assert_eq!((found.len(), recovery.ignored), (0, 1));
    append(&mut spool, "new");
    assert!(slot.join("000000000000000a.segment").is_file(), "after the numbers that exist");
    assert_eq!(fs::read(slot.join("0000000000000009.segment")).unwrap(), newer);
}

#[test]
fn a_full_spool_takes_nothing_until_records_are_removed() {
    let folder = TestFolder::new("spool-full");
    let (mut spool, ..) = open(&folder, OPTIONS);
    let payload = [vec![b'x'; 10_000]];
    let mut ids = fill(&mut spool, &payload);
    assert!((100..105).contains(&ids.len()), "{}", ids.len());
    let on_disk: u64 = folder.segments().iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(on_disk <= OPTIONS.bytes_max + 64 * 1024, "{on_disk}");
    // Every tenth record cannot be delivered: without moving them, they would pin all segments.
    let stuck: Vec<RecordId> = ids.iter().step_by(10).copied().collect();
    spool.mark_batch(&stuck[..2], 9).unwrap();
    ids.retain(|id| !stuck.contains(id));
    spool.remove(&ids).unwrap();
    let more = fill(&mut spool, &payload).len();
    assert!((85..95).contains(&more), "{more}");
    drop(spool);
    let (_, found, _) = open(&folder, OPTIONS);
    assert_eq!(found.len(), stuck.len() + more);
    assert_eq!(found.iter().filter(|(id, batch, _)| stuck.contains(id) && *batch == Some(9)).count(), 2);
}

/// The last segment is sparse, with one record, and no other one is: the record was moved within the segment,
/// which was then deleted.
#[test]
fn the_only_record_of_the_last_segment_is_kept_when_it_is_moved() {
    let folder = TestFolder::new("spool-sparse-tail");
    let (mut spool, ..) = open(&folder, OPTIONS);
    let payload = [vec![b'x'; 9000]];
    let ids = fill(&mut spool, &payload);
    let segments: Vec<&[RecordId]> = ids.chunks(8).collect();
    assert_eq!((segments.len(), folder.segments().len()), (15, 15), "eight records in each");
    let (last, others) = segments.split_last().unwrap();
    assert!(last.len() > 2);
    let done: Vec<RecordId> = others.iter().flat_map(|ids| &ids[4..]).chain(&last[1..]).copied().collect();
    spool.remove(&done).unwrap();
    // There was space for less than one: the last segment is moved, or the post is refused.
    for _ in 0..3 {
        if spool.append(&payload).is_ok() {
            spool.commit().unwrap();
        }
    }
    assert_eq!(spool.read(last[0]).unwrap(), payload[0]);
    drop(spool);
    let (_, found, recovery) = open(&folder, OPTIONS);
    assert_eq!((found.iter().filter(|(id, ..)| *id == last[0]).count(), recovery.damaged), (1, 0));
}

/// Records that are written before their commit would be acknowledged although their group may fail.
#[test]
fn a_group_that_is_not_committed_is_not_written_to_make_space() {
    let folder = TestFolder::new("spool-group");
    let (mut spool, ..) = open(&folder, OPTIONS);
    let payload = [vec![b'x'; 10_000]];
    let ids = fill(&mut spool, &payload);
    // Every third record is left: moving them would free most of the spool.
    let done: Vec<RecordId> =
        ids.iter().enumerate().filter(|(at, _)| at % 3 != 0).map(|(_, id)| *id).collect();
    spool.remove(&done).unwrap();
    let first = spool.append(&[b"first".to_vec()]).unwrap()[0];
    assert!(matches!(spool.append(&payload), Err(SpoolError::Full)), "the group waits for its commit");
    assert!(!spool.contains(first));
    spool.commit().unwrap();
    assert!(spool.contains(first));
    spool.append(&payload).unwrap();
    drop(spool);
    let (_, found, _) = open(&folder, OPTIONS);
    assert_eq!(found.len(), ids.len() - done.len() + 1);
    assert!(texts(&found).contains(&"first"));
}

#[test]
fn nothing_follows_what_a_failed_write_left() {
    let folder = TestFolder::new("spool-cut");
    let (mut spool, disk) = open_failing(&folder, OPTIONS);
    append(&mut spool, "before");
    disk.refuse_writes(true);
    spool.append(&["lost".repeat(1000).into()]).unwrap();
    spool.commit().unwrap_err();
    disk.refuse_writes(false);
    let after = append(&mut spool, "after");
    assert_eq!(spool.read(after).unwrap(), b"after");
    assert_eq!(folder.segments().len(), 2);
    drop(spool);
    let (_, found, recovery) = open(&folder, OPTIONS);
    assert_eq!((texts(&found), recovery.damaged), (vec!["before", "after"], 0));
}

fn open_failing(folder: &TestFolder, options: SpoolOptions) -> (Spool, FailingDisk) {
    let disk = FailingDisk::default();
    let (spool, ..) = open_on(DiskFolder::new(Arc::new(disk.clone()), &folder.0), options);
    (spool, disk)
}

/// Nothing more is appended to the segment, so that it is not the last one when it is synced.
#[test]
fn a_segment_that_a_failed_write_left_is_synced_later() {
    let folder = TestFolder::new("spool-left-unsynced");
    let (mut spool, disk) = open_failing(&folder, SpoolOptions { syncs: false, ..OPTIONS });
    append(&mut spool, "before");
    disk.refuse_writes(true);
    spool.append(&[b"lost".to_vec()]).unwrap();
    spool.commit().unwrap_err();
    disk.refuse_writes(false);
    let first = folder.segments();
    disk.refuse_syncs(true);
    spool.sync().unwrap_err();
    disk.refuse_syncs(false);
    spool.sync().unwrap();
    assert_eq!(disk.take_synced(), first);
    append(&mut spool, "after");
    spool.sync().unwrap();
    assert_eq!(disk.take_synced(), folder.segments()[1..]);
}

/// What an ended process wrote is synced by the next one, which tries again.
#[test]
fn recovered_segments_are_synced_until_the_disk_can() {
    let folder = TestFolder::new("spool-recovered-unsynced");
    let (mut spool, ..) = open(&folder, SpoolOptions { syncs: false, ..OPTIONS });
    append(&mut spool, "a");
    drop(spool);
    let disk = FailingDisk::default();
    disk.refuse_syncs(true);
    let (mut spool, ..) = open_on(DiskFolder::new(Arc::new(disk.clone()), &folder.0), OPTIONS);
    spool.sync().unwrap_err();
    disk.refuse_syncs(false);
    spool.sync().unwrap();
    assert_eq!(disk.take_synced(), folder.segments());
    spool.sync().unwrap();
    assert_eq!(disk.take_synced(), Vec::<PathBuf>::new());
}

/// The only durable copy of a record is not deleted before another one is on the disk itself.
#[test]
fn records_are_not_moved_while_the_disk_cannot_sync() {
    let folder = TestFolder::new("spool-move-unsynced");
    let (mut spool, disk) = open_failing(&folder, SpoolOptions { syncs: false, ..OPTIONS });
    let payload = [vec![b'x'; 10_000]];
    let mut done = fill(&mut spool, &payload);
    let stuck: Vec<RecordId> = done.iter().step_by(10).copied().collect();
    done.retain(|id| !stuck.contains(id));
    spool.remove(&done).unwrap();
    let mut kept = stuck.clone();
    while spool.bytes() + 11_000 <= OPTIONS.bytes_max {
        kept.extend(spool.append(&payload).unwrap());
        spool.commit().unwrap();
    }
    spool.sync().unwrap();
    let (before, bytes_before) = (folder.segments(), spool.bytes());
    // The disk fails after the copies were written: the sync before them has nothing to do.
    disk.refuse_syncs(true);
    for _ in 0..20 {
        assert!(matches!(spool.append(&payload), Err(SpoolError::Io(_) | SpoolError::Full)));
    }
    assert!(before.iter().all(|path| path.is_file()));
    assert!(spool.bytes() > bytes_before, "copies count while they are on the disk");
    let on_disk: u64 = folder.segments().iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(on_disk <= OPTIONS.bytes_max * 2, "{on_disk}");
    assert_eq!(spool.read(stuck[0]).unwrap().len(), 10_000);
    spool.remove(&stuck[..3]).unwrap();
    drop(spool);
    let (mut spool, found, recovery) = open(&folder, OPTIONS);
    let ids: Vec<RecordId> = found.iter().map(|(id, ..)| *id).collect();
    assert_eq!((ids, recovery.damaged), (kept[3..].to_vec(), 0));
    assert!(!fill(&mut spool, &payload).is_empty());
}

#[test]
fn small_records_count_for_the_memory_that_they_take() {
    let folder = TestFolder::new("spool-small");
    let (mut spool, ..) = open(&folder, OPTIONS);
    let mut count = 0;
    while spool.append(&[b"x".to_vec()]).is_ok() {
        count += 1;
    }
    assert_eq!(count, OPTIONS.bytes_max / limits::SPOOL_RECORD_BYTES_MIN);
}

#[test]
fn a_record_that_was_moved_when_the_process_was_killed_is_read_once() {
    let folder = TestFolder::new("spool-moved");
    let (mut spool, ..) = open(&folder, OPTIONS);
    append(&mut spool, "a");
    append(&mut spool, "b");
    drop(spool);
    let path = &folder.segments()[0];
    fs::copy(path, folder.0.join("0/0000000000000002.segment")).unwrap();
    let (mut spool, found, _) = open(&folder, OPTIONS);
    assert_eq!(texts(&found), ["a", "b"]);
    spool.remove(&[found[0].0, found[1].0]).unwrap();
    drop(spool);
    assert_eq!(open(&folder, OPTIONS).1.len(), 0);
}

#[test]
fn each_process_has_its_own_spool_and_takes_over_abandoned_ones() {
    let folder = TestFolder::new("spool-shared");
    let (mut first, ..) = open(&folder, OPTIONS);
    append(&mut first, "first");
    let (mut second, found, _) = open(&folder, OPTIONS);
    assert!(found.is_empty(), "the first one is locked");
    append(&mut second, "second");
    let adopt = |found: &mut Vec<String>| {
        Spool::open_abandoned(&folder.0, OPTIONS, |record| {
            found.push(String::from_utf8(record.payload.to_vec()).unwrap());
        })
        .unwrap()
    };
    let mut adopted = Vec::new();
    assert!(adopt(&mut adopted).is_none());
    drop(first);
    let spool = adopt(&mut adopted);
    assert!(spool.is_some() && adopted == ["first"]);
    assert!(adopt(&mut adopted).is_none(), "it is open already");
}

#[test]
fn a_spool_has_records_while_one_of_its_folders_has_a_segment() {
    let folder = TestFolder::new("spool-has");
    let has = || has_records(&DiskFolder::from(&folder.0));
    assert!(!has(), "no folder");
    let (mut first, ..) = open(&folder, OPTIONS);
    let (mut second, ..) = open(&folder, OPTIONS);
    assert!(!has(), "nothing was appended");
    let id = append(&mut second, "second");
    assert!(has() && folder.segments().is_empty(), "in the second folder only");
    second.remove(&[id]).unwrap();
    assert!(!has(), "all are done");
    append(&mut first, "first");
    drop((first, second));
    assert!(has(), "the process has ended");
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one() {
    let folder = TestFolder::new("spool-unreadable");
    fs::create_dir_all(&folder.0).unwrap();
    // The process may be root, who reads every folder but not a link to itself.
    std::os::unix::fs::symlink("0", folder.0.join("0")).unwrap();
    let adopted = Spool::open_abandoned(&folder.0, OPTIONS, |_| panic!("no record"));
    assert!(adopted.is_err());
    fs::remove_file(folder.0.join("0")).unwrap();
    fs::write(folder.0.join("0"), "").unwrap();
    assert!(Spool::open_abandoned(&folder.0, OPTIONS, |_| {}).unwrap().is_none(), "no folder of a spool");
}

#[test]
fn a_deleted_segment_is_not_written_to() {
    let folder = TestFolder::new("spool-deleted");
    let (mut spool, ..) = open(&folder, OPTIONS);
    let lost = append(&mut spool, "lost");
    fs::remove_dir_all(folder.0.join("0")).unwrap();
    append(&mut spool, "kept");
    assert!(matches!(spool.read(lost), Err(SpoolError::Damaged)));
    spool.remove(&[lost]).unwrap();
    drop(spool);
    assert_eq!(texts(&open(&folder, OPTIONS).1), ["kept"]);
}
