//! Tests of files in `cache_dir`.
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::config::{LogFormat, Logging};
use crate::storage::test_disk::FailingDisk;
use crate::storage::test_folder::TestFolder;

fn log() -> Log {
    let logging = Logging {
        log_level: Level::Critical,
        log_format: LogFormat::Generic,
        log_event_field_name: "event".into(),
        colour: false,
        enable_access_log: false,
        access_log_file: None,
    };
    Log::start(&logging, None).unwrap()
}

impl TestFolder {
    fn store(&self) -> Store {
        Store::open(&self.0, &log()).unwrap()
    }
    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn stored(document: &str) -> StoredDocument {
    StoredDocument {
        document: document.into(),
        validators: Validators {
            etag: Some("\"a\"".into()),
            last_modified: None,
            date: None,
            offers_deltas: false,
        },
        digest: Sha256::digest(document).into(),
        saved_at: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

const TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn a_saved_document_is_loaded_at_the_next_start() {
    let folder = TestFolder::new("store-next-start");
    let store = folder.store();
    assert_eq!(store.load("key").unwrap(), None);
    store.save("key", stored("old"));
    store.save("key", stored("{\n}"));
    store.save("other", stored("{}"));
    store.flush(TIMEOUT);
    assert_eq!(folder.store().load("key").unwrap(), Some(stored("{\n}")));
    assert_eq!(folder.files().len(), 2, "no temporary file is left");
    for file in folder.files() {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!file.to_string_lossy().contains("key"));
    }
    store.remove("key");
    store.flush(TIMEOUT);
    assert_eq!(store.load("key").unwrap(), None);
}

#[test]
fn retries_failed_writes() {
    let folder = TestFolder::new("store-retried");
    let store = folder.store();
    fs::remove_dir_all(&folder.0).unwrap();
    store.save("key", stored("{}"));
    store.flush(TIMEOUT);
    assert!(store.load("key").unwrap().is_some(), "the folder is created again");
    fs::remove_dir_all(&folder.0).unwrap();
    fs::write(&folder.0, "a file in its place").unwrap();
    store.save("key", stored("[]"));
    store.flush(TIMEOUT);
    fs::remove_file(&folder.0).unwrap();
    // Retried with the next request, and after a while without one.
    store.flush(TIMEOUT);
    assert_eq!(store.load("key").unwrap(), Some(stored("[]")));
}

/// While it says so, the thread tries again without another request.
#[test]
fn a_failed_write_stays_unwritten_until_the_disk_can() {
    let (folder, disk) = (TestFolder::new("store-unwritten"), FailingDisk::default());
    let mut writer = StoreWriter::open(DiskFolder::new(Arc::new(disk.clone()), &folder.0), &log()).unwrap();
    assert!(!writer.has_unwritten());
    disk.refuse_writes(true);
    writer.accept(WriteRequest::Save("key".into(), stored("{}")));
    writer.write();
    assert!(writer.has_unwritten());
    disk.refuse_writes(false);
    writer.write();
    assert!(!writer.has_unwritten());
    assert_eq!(folder.store().load("key").unwrap(), Some(stored("{}")));
}

#[test]
fn removes_only_old_temporary_files() {
    let folder = TestFolder::new("store-leftovers");
    drop(folder.store());
    let digits = "0123456789abcdef0123456789abcdef";
    let ours = format!("{digits}.tmp-1-00112233445566aa");
    let link = format!("{digits}.tmp-2-00112233445566aa");
    let directory = format!("{digits}.tmp-3-00112233445566aa");
    let new = format!("{digits}.tmp-4-00112233445566aa");
    let look_alikes = [
        "tmp-foo",
        "my-tmp-file.json",
        "a.tmp-old",
        &format!("{digits}.document"),
        &format!("{digits}.tmp-"),
        &format!("{digits}.tmp-1"),
        &format!("{digits}.tmp-1-00112233445566a"),
        &format!("{digits}.tmp-1-00112233445566aaa"),
        &format!("{digits}.tmp-1-00112233445566AA"),
        &format!("{digits}.tmp--00112233445566aa"),
        &format!("{digits}.tmp-+1-00112233445566aa"),
        &format!("{digits}.tmp-12345678901-00112233445566aa"),
        &format!("{digits}.tmp-1-00112233445566aa.json"),
        &format!("{digits}.bak.tmp-1-00112233445566aa"),
        &format!("{digits}-tmp-1-00112233445566aa"),
        &format!("a{digits}.tmp-1-00112233445566aa"),
        &format!("{}.tmp-1-00112233445566aa", &digits[1..]),
    ];
    let old = SystemTime::now() - limits::STORE_LEFTOVER_AGE * 2;
    for name in look_alikes.into_iter().chain([ours.as_str(), &new]) {
        let file = File::create(folder.0.join(name)).unwrap();
        if name != new {
            file.set_modified(old).unwrap();
        }
    }
    fs::create_dir(folder.0.join(&directory)).unwrap();
    File::open(folder.0.join(&directory)).unwrap().set_modified(old).unwrap();
    std::os::unix::fs::symlink("tmp-foo", folder.0.join(&link)).unwrap();
    let mut expected: Vec<_> = look_alikes.into_iter().chain([link.as_str(), &directory, &new]).collect();
    expected.sort_unstable();
    drop(folder.store());
    let mut left: Vec<_> =
        folder.files().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    left.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn recognizes_its_temporary_files() {
    let folder = TestFolder::new("store-recognised");
    let store = folder.store();
    // The target is a directory: the rename fails.
    let target = path(&DiskFolder::from(&folder.0), "key");
    fs::create_dir(&target).unwrap();
    assert!(write(&DiskFolder::from(&folder.0), &target, &stored("{}")).is_err());
    assert_eq!(folder.files(), std::slice::from_ref(&target), "no temporary file is left");
    assert!(store.load("key").unwrap_err().to_string().contains("not a regular file"));
    let name = temporary(&target);
    assert!(is_temporary(name.file_name().unwrap().to_str().unwrap()), "{}", name.display());
}

#[test]
fn reads_only_regular_files() {
    let folder = TestFolder::new("store-others");
    let store = folder.store();
    let target = path(&DiskFolder::from(&folder.0), "key");
    for link in ["/dev/zero", "/dev/stdin", "elsewhere"] {
        std::os::unix::fs::symlink(link, &target).unwrap();
        assert!(store.load("key").unwrap_err().to_string().contains("not a regular file"));
        fs::remove_file(&target).unwrap();
    }
    assert!(std::process::Command::new("mkfifo").arg(&target).status().unwrap().success());
    assert!(store.load("key").unwrap_err().to_string().contains("not a regular file"));
    // A new document replaces it.
    store.save_if_new("key", stored("{}"));
    store.flush(TIMEOUT);
    assert_eq!(store.load("key").unwrap(), Some(stored("{}")));
}

#[test]
fn never_serves_a_damaged_file() {
    let folder = TestFolder::new("store-damaged");
    let store = folder.store();
    store.save("key", stored("{\"some\": \"document\"}"));
    store.flush(TIMEOUT);
    let file = folder.files().pop().unwrap();
    let good = fs::read(&file).unwrap();
    for cut in 0..good.len() {
        fs::write(&file, &good[..cut]).unwrap();
        assert!(store.load("key").is_err(), "cut to {cut} bytes");
    }
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] ^= 0x04;
        fs::write(&file, &bad).unwrap();
        // A flipped bit in the time or the validators is not detected, but the document is intact.
        if let Ok(Some(found)) = store.load("key") {
            assert_eq!(found.document, stored("{\"some\": \"document\"}").document);
        }
    }
    fs::write(&file, good).unwrap();
    assert!(store.load("key").unwrap().is_some());
}
