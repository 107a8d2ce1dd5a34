use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use super::*;
use crate::engine::evaluate::TraitValue;
use crate::storage::test_disk::FailingDisk;
use crate::storage::test_folder::TestFolder;
use crate::trait_table::{Entry, RecordWriter, Stamp, TraitHead};

impl TestFolder {
    fn files_aside(&self) -> usize {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains("damaged")).count()
    }
}

fn record(identifier: &str, number: i64) -> Vec<u8> {
    let mut writer = RecordWriter::new(TraitHead::default(), identifier);
    let value = Some(TraitValue::Int(number));
    writer.push(&Entry { key: "number", value, stamp: Stamp::default(), born: 0 });
    writer.finish()
}

fn name(number: i64) -> String {
    format!("identity {number}")
}

fn try_commit(file: &TraitFile, numbers: impl Iterator<Item = i64>) -> Result<(), TraitFileError> {
    let change = |number| FileChange::new("e", name(number).as_bytes(), Some(&record(&name(number), number)));
    file.commit(&numbers.map(change).collect::<Vec<_>>())
}

fn commit(file: &TraitFile, numbers: impl Iterator<Item = i64>) {
    try_commit(file, numbers).unwrap();
}

type Found = BTreeMap<String, Vec<u8>>;

fn open(folder: &TestFolder) -> (Found, TraitFile, Option<Damage>) {
    let mut found = Found::new();
    let (file, damage) = TraitFile::open(&folder.disk(), &mut |environment, record| {
        assert_eq!(environment, "e");
        found.insert(String::from_utf8(record.identifier().to_vec()).unwrap(), record.bytes().to_vec());
    })
    .unwrap();
    (found, file, damage)
}

/// Makes a file with this many records. Returns what is in it.
fn filled(folder: &TestFolder, count: i64) -> Vec<u8> {
    let (_, file, _) = open(folder);
    commit(&file, 0..count);
    drop(file);
    fs::read(folder.0.join(FILE)).unwrap()
}

/// The page with the magic number is written last.
#[test]
fn a_file_whose_making_was_interrupted_is_made_again() {
    let folder = TestFolder::new("traits-unmade");
    let path = folder.0.join(FILE);
    drop(open(&folder));
    let whole = fs::read(&path).unwrap();
    for length in [0, 5, 4096, 100_000, whole.len()] {
        let mut bytes = whole[..length].to_vec();
        bytes[..length.min(4096)].fill(0);
        fs::write(&path, bytes).unwrap();
        assert_eq!(check_file(&folder.0).unwrap(), TraitFileState::Intact(0), "{length}");
        let (found, file, damage) = open(&folder);
        assert!(found.is_empty() && damage.is_none(), "{length}: {damage:?}");
        commit(&file, 0..10);
        drop(file);
        assert_eq!(open(&folder).0.len(), 10, "{length}");
    }
    fs::write(&path, b"text").unwrap();
    assert!(matches!(check_file(&folder.0), Err(TraitFileError::Foreign(_))));
}

#[test]
fn what_is_committed_is_read_by_the_next_process() {
    let folder = TestFolder::new("traits-commit");
    let (found, file, damage) = open(&folder);
    assert!(found.is_empty() && damage.is_none());
    commit(&file, 0..100);
    let removed = FileChange::new("e", name(7).as_bytes(), None);
    file.commit(&[removed, FileChange::new("e", b"unknown", None)]).unwrap();
    assert!(matches!(TraitFile::open_unread(&folder.disk()), Err(TraitFileError::Locked)));
    drop(file);
    let (found, _file, damage) = open(&folder);
    assert!(damage.is_none() && !found.contains_key(&name(7)));
    assert_eq!((found.len(), &found[&name(8)]), (99, &record(&name(8), 8)));
}

#[test]
fn a_file_that_is_open_elsewhere_is_read_and_not_changed() {
    let folder = TestFolder::new("traits-read-only");
    assert!(matches!(check_file(&folder.0), Ok(TraitFileState::Missing)));
    let (_, file, _) = open(&folder);
    let is_read = |count: i64| {
        let mut found = Found::new();
        let is_complete = read_only(&folder.disk(), &mut |_, record| {
            found.insert(String::from_utf8_lossy(record.identifier()).into(), record.bytes().to_vec());
        })
        .unwrap();
        assert!(is_complete);
        assert_eq!(found, (0..count).map(|number| (name(number), record(&name(number), number))).collect());
    };
    is_read(0);
    for count in [10, 500, 2000] {
        commit(&file, 0..count);
        is_read(count);
    }
    assert_eq!(check_file(&folder.0).unwrap(), TraitFileState::InUse);
    drop(file);
    let before = fs::read(folder.0.join(FILE)).unwrap();
    assert_eq!(check_file(&folder.0).unwrap(), TraitFileState::Intact(2000));
    is_read(2000);
    assert_eq!(fs::read(folder.0.join(FILE)).unwrap(), before);
}

#[test]
fn a_byte_that_changed_anywhere_ends_no_process_and_gives_no_wrong_record() {
    let folder = TestFolder::new("traits-damaged");
    let intact = filled(&folder, 600);
    let path = folder.0.join(FILE);
    let (mut damaged, mut recovered_some) = (0, false);
    // All fields of the header, parts of all kinds of pages, and the middle of the records of some.
    let records = intact.windows(9).enumerate().filter(|(_, text)| text == b"identity ");
    let records: Vec<usize> = records.map(|(place, _)| place).collect();
    let places = (0..320).step_by(61).chain((320..intact.len()).step_by(393_203));
    let records: Vec<usize> = records.iter().step_by(records.len() / 3).copied().collect();
    for place in places.chain(records.iter().copied()) {
        let damaged_before = damaged;
        let mut bytes = intact.clone();
        bytes[place] ^= 1 << (place % 8);
        fs::write(&path, &bytes).unwrap();
        let (found, file, damage) = open(&folder);
        for (identifier, bytes) in &found {
            let number: i64 = identifier.strip_prefix("identity ").unwrap().parse().unwrap();
            assert_eq!(*bytes, record(identifier, number), "byte {place}");
        }
        if let Some(damage) = damage {
            damaged += 1;
            recovered_some |= found.len() > 500 && found.len() < 600;
            assert!(damage.recovered >= found.len() as u64, "byte {place}");
        } else {
            assert!(found.len() == 600, "byte {place}: {} records and no damage", found.len());
        }
        // The file is usable, or is replaced when it is written.
        let file = match try_commit(&file, 3000..3001) {
            Ok(()) => file,
            Err(error @ TraitFileError::Damaged(_)) => {
                drop(file);
                let (file, _) = TraitFile::replace(&folder.disk(), error, 0).unwrap();
                damaged += 1;
                commit(&file, 3000..3001);
                file
            }
            Err(error) => panic!("byte {place}: {error}"),
        };
        drop(file);
        assert!(open(&folder).0.contains_key(&name(3000)), "byte {place}");
        assert!(damaged > damaged_before || !records.contains(&place), "a record at byte {place}");
    }
    assert_eq!(folder.files_aside(), TRAIT_DAMAGED_FILES_MAX, "older ones are removed");
    // Other places may be in pages that are not in use.
    assert!(damaged >= 4 && recovered_some, "{damaged} files were damaged");
}

#[test]
fn a_file_that_was_cut_or_overwritten_is_replaced() {
    let folder = TestFolder::new("traits-cut");
    let intact = filled(&folder, 2000);
    let path = folder.0.join(FILE);
    for length in [0, 5, 320, 4096, intact.len() / 2, intact.len() - 1] {
        fs::write(&path, &intact[..length]).unwrap();
        let (found, file, damage) = open(&folder);
        assert!(found.len() <= 2000 && (damage.is_some() || length == 0), "{length} bytes");
        drop(file);
        fs::remove_file(&path).unwrap();
    }
    fs::write(&path, vec![b'x'; 100_000]).unwrap();
    assert!(matches!(check_file(&folder.0), Err(TraitFileError::Foreign(_))));
    assert!(open(&folder).2.is_some());
}

/// What passes by records gives no wrong ones: they are counted.
#[test]
fn records_are_read_in_parts_and_counted() {
    let folder = TestFolder::new("traits-parts");
    let (_, file, _) = open(&folder);
    commit(&file, 0..1000);
    let (mut position, mut found, mut parts) = (ReadPosition::default(), Vec::new(), 0);
    let mut each = |_: &str, record: TraitRecord<'_>| found.push(record.bytes().to_vec());
    while file.read(&mut position, 300, &mut each).unwrap() {
        parts += 1;
    }
    assert_eq!((parts, found.len()), (3, 1000));
    let mut one_too_many = ReadPosition { count: 1, ..ReadPosition::default() };
    assert!(matches!(file.read(&mut one_too_many, 5000, &mut |_, _| {}), Err(TraitFileError::Damaged(_))));
}

#[test]
fn a_disk_that_fails_does_not_make_a_damaged_file() {
    let folder = TestFolder::new("traits-failing");
    filled(&folder, 500);
    let disk = FailingDisk::default();
    let failing = DiskFolder::new(Arc::new(disk.clone()), &folder.0);
    let (mut failures, mut allowed) = (0, 0);
    loop {
        disk.allow_reads(allowed);
        match TraitFile::open(&failing, &mut |_, _| {}) {
            Err(TraitFileError::Io(..) | TraitFileError::Engine(_)) => failures += 1,
            Ok((_, None)) => break,
            other => panic!("{allowed} reads: {:?}", other.map(|(_, damage)| damage)),
        }
        assert_eq!(folder.files_aside(), 0, "{allowed} reads");
        allowed += 1;
    }
    assert!(failures > 20, "{failures} attempts failed");
    assert_eq!(open(&folder).0.len(), 500);
}
