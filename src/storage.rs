//! Last good documents on disk, so that a restart while upstream is down serves at once.
//!
//! In: documents that were accepted. Out: the same at the next start. Layout: one file per name, a line
//! of JSON about the document (with its SHA-256), then the document as it came. Invariants: a file is
//! replaced whole or not at all (temporary file, fsync, rename); nobody but the owner may read it; no
//! key stands in a file's name; a damaged file is never served. Writing is done by a thread of its own.
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Level;
use crate::files::Links;
use crate::json::hex::hex;
use crate::log::Log;
use crate::validators::Validators;
use crate::{files, limits};

/// A document as it was kept.
#[derive(Debug, PartialEq)]
pub struct Kept {
    pub document: Vec<u8>,
    pub validators: Validators,
    pub digest: [u8; 32],
    pub saved_at: SystemTime,
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    sha256: String,
    etag: Option<String>,
    last_modified: Option<String>,
    saved_at_seconds: u64,
}

const VERSION: u32 = 1;
/// Digits of a file's name: half of the SHA-256 of what it is kept under.
const NAME_DIGITS: usize = 32;
/// The extension of a file that is being written: `tmp-PID-RANDOM`, PID in decimal and RANDOM in
/// `RANDOM_DIGITS` hexadecimal digits.
const TEMPORARY: &str = "tmp-";
const RANDOM_DIGITS: usize = 16;

/// The writer's end, for the supervisor.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    writes: Sender<WriteRequest>,
}

/// What the thread is asked for.
#[derive(Debug)]
enum WriteRequest {
    Keep(String, Kept),
    Remove(String),
    Flush(Sender<()>),
}

impl Store {
    /// Makes the folder if it is not there, and starts the thread.
    ///
    /// # Errors
    /// The folder cannot be made or the thread not be started.
    pub fn open(folder: &Path, log: &Log) -> io::Result<Self> {
        make_folder(folder)?;
        remove_leftovers(folder, log);
        let (writes, asked) = channel();
        let (own, log) = (folder.to_path_buf(), log.clone());
        thread::Builder::new().name("store".into()).spawn(move || write_all(&own, &asked, &log))?;
        Ok(Self { folder: folder.to_path_buf(), writes })
    }

    /// What is kept under `name`; `None` if there is nothing.
    ///
    /// # Errors
    /// There is something, but it is damaged: one line saying how.
    pub fn load(&self, name: &str) -> Result<Option<Kept>, String> {
        load(&self.folder, name)
    }

    /// Keeps a document, soon.
    pub fn keep(&self, name: &str, kept: Kept) {
        // Without its thread there is nobody to keep it; that was logged when it failed.
        let _ = self.writes.send(WriteRequest::Keep(name.into(), kept));
    }

    /// Keeps a document, soon, unless the one kept is the same.
    pub fn keep_if_new(&self, name: &str, kept: Kept) {
        let is_kept = matches!(self.load(name), Ok(Some(before)) if before.digest == kept.digest);
        if !is_kept {
            self.keep(name, kept);
        }
    }

    /// Forgets a document, soon.
    pub fn remove(&self, name: &str) {
        let _ = self.writes.send(WriteRequest::Remove(name.into()));
    }

    /// Waits until all that was given is on disk, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, wait) = channel();
        if self.writes.send(WriteRequest::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(patience);
        }
    }
}

/// What is kept under `name` in `folder`; `None` if there is nothing.
///
/// # Errors
/// There is something, but it is damaged: one line saying how.
pub fn load(folder: &Path, name: &str) -> Result<Option<Kept>, String> {
    let path = path(folder, name);
    let damaged = |what: &str| format!("{}: {what}: ignored", path.display());
    let mut bytes = match files::read(&path, Links::Refuse, limits::CACHE_FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damaged(&error.to_string())),
    };
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| damaged("cut off"))?;
    let document = bytes.split_off(end + 1);
    let about: About = serde_json::from_slice(&bytes).map_err(|_| damaged("not a file of ours"))?;
    if about.version != VERSION {
        return Err(damaged(&format!("of version {}, not {VERSION}", about.version)));
    }
    let digest: [u8; 32] = Sha256::digest(&document).into();
    if hex(&digest) != about.sha256 {
        return Err(damaged("its checksum is wrong"));
    }
    let saved_at = UNIX_EPOCH
        .checked_add(Duration::from_secs(about.saved_at_seconds))
        .ok_or_else(|| damaged("its time is wrong"))?;
    let validators = Validators { etag: about.etag, last_modified: about.last_modified, date: None };
    Ok(Some(Kept { document, validators, digest, saved_at }))
}

/// Writes what is asked for; of several documents under one name only the newest. What could not be
/// written waits and is tried again: disks are emptied and folders come back.
fn write_all(folder: &Path, asked: &Receiver<WriteRequest>, log: &Log) {
    let mut waiting: BTreeMap<String, Option<Kept>> = BTreeMap::new();
    loop {
        let was_failing = !waiting.is_empty();
        let patience = if was_failing { limits::STORE_RETRY } else { Duration::MAX };
        let first = match asked.recv_timeout(patience) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut flushed = Vec::new();
        for request in first.into_iter().chain(asked.try_iter()) {
            match request {
                WriteRequest::Keep(name, kept) => drop(waiting.insert(name, Some(kept))),
                WriteRequest::Remove(name) => drop(waiting.insert(name, None)),
                WriteRequest::Flush(done) => flushed.push(done),
            }
        }
        let mut failure = None;
        waiting.retain(|name, kept| {
            let path = path(folder, name);
            let result = kept.as_ref().map_or_else(|| remove(&path), |kept| write(&path, kept));
            result.is_err_and(|error| {
                failure = Some(format!("{}: {error}", path.display()));
                true
            })
        });
        match failure {
            Some(error) if !was_failing => {
                let hint =
                    "documents are not kept for a restart: see the folder's owner, mode and free space";
                log.event(Level::Error, "cache_write_failed", &[("error", &error), ("hint", &hint)]);
            }
            None if was_failing => log.event(Level::Info, "cache_write_recovered", &[]),
            _ => {}
        }
        drop(flushed);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Removes the temporary files of processes that were killed while they wrote, and logs each. Other
/// processes may be writing now, and the directory may hold files of others: only a regular file with
/// a name of exactly our form that is old enough is removed. One that cannot be removed stays.
fn remove_leftovers(folder: &Path, log: &Log) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(is_temporary) {
            continue;
        }
        // Does not follow symbolic links.
        let Ok(metadata) = entry.metadata() else { continue };
        let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
        if !metadata.is_file() || age <= limits::STORE_LEFTOVER_AGE {
            continue;
        }
        let path = entry.path();
        let shown = path.display();
        match fs::remove_file(&path) {
            Ok(()) => {
                let fields: [(_, &dyn Display); 2] = [("path", &shown), ("age_seconds", &age.as_secs())];
                log.event(Level::Info, "cache_leftover_removed", &fields);
            }
            Err(error) => {
                let fields: [(_, &dyn Display); 2] = [("path", &shown), ("error", &error)];
                log.event(Level::Warning, "cache_leftover_not_removed", &fields);
            }
        }
    }
}

/// Whether a file name is one that [`write`] gives to a temporary file.
fn is_temporary(name: &str) -> bool {
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    // A PID has at most ten digits in every system that has 32 bits for it.
    let is_pid =
        |text: &str| (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split_once('.').and_then(|(digits, extension)| {
        let (pid, random) = extension.strip_prefix(TEMPORARY)?.split_once('-')?;
        Some((digits, pid, random))
    });
    parts.is_some_and(|(digits, pid, random)| {
        is_hex(digits, NAME_DIGITS) && is_pid(pid) && is_hex(random, RANDOM_DIGITS)
    })
}

/// A name for the file while it is written. It is not used twice: a successor may start before this
/// process has ended, and in containers that share a directory every process has PID 1.
fn temporary(path: &Path) -> PathBuf {
    let random = getrandom::u64().unwrap_or_default();
    path.with_extension(format!("{TEMPORARY}{}-{random:0RANDOM_DIGITS$x}", std::process::id()))
}

fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let about = About {
        version: VERSION,
        sha256: hex(&kept.digest),
        etag: kept.validators.etag.clone(),
        last_modified: kept.validators.last_modified.clone(),
        saved_at_seconds: kept.saved_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    };
    let mut head = serde_json::to_vec(&about)?;
    head.push(b'\n');
    let temporary = temporary(path);
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let mut file = create().or_else(|error| match (error.kind(), path.parent()) {
        // The folder was removed under us.
        (io::ErrorKind::NotFound, Some(folder)) => make_folder(folder).and_then(|()| create()),
        _ => Err(error),
    })?;
    let written =
        file.write_all(&head).and_then(|()| file.write_all(&kept.document)).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // Half a file is of no use to anybody.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The rename itself must survive a loss of power.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// No key in clear: the name is a digest.
fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{}.document", &hex(&Sha256::digest(name.as_bytes()))[..NAME_DIGITS]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{LogFormat, Logging};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("edge-proxy-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
        fn store(&self) -> Store {
            let logging = Logging {
                log_level: Level::Critical,
                log_format: LogFormat::Generic,
                log_event_field_name: "event".into(),
                colour: false,
                enable_access_log: false,
            };
            Store::open(&self.0, &Log::start(&logging).unwrap()).unwrap()
        }
        fn files(&self) -> Vec<PathBuf> {
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn kept(document: &str) -> Kept {
        Kept {
            document: document.into(),
            validators: Validators { etag: Some("\"a\"".into()), last_modified: None, date: None },
            digest: Sha256::digest(document).into(),
            saved_at: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_kept_is_there_at_the_next_start() {
        let folder = Folder::new("next-start");
        let store = folder.store();
        assert_eq!(store.load("key").unwrap(), None);
        store.keep("key", kept("old"));
        store.keep("key", kept("{\n}"));
        store.keep("other", kept("{}"));
        store.flush(PATIENCE);
        assert_eq!(folder.store().load("key").unwrap(), Some(kept("{\n}")));
        assert_eq!(folder.files().len(), 2, "no temporary file is left");
        for file in folder.files() {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert!(!file.to_string_lossy().contains("key"));
        }
        store.remove("key");
        store.flush(PATIENCE);
        assert_eq!(store.load("key").unwrap(), None);
    }

    #[test]
    fn what_could_not_be_written_is_written_when_it_can_be() {
        let folder = Folder::new("retried");
        let store = folder.store();
        fs::remove_dir_all(&folder.0).unwrap();
        store.keep("key", kept("{}"));
        store.flush(PATIENCE);
        assert!(store.load("key").unwrap().is_some(), "the folder is made again");
        fs::remove_dir_all(&folder.0).unwrap();
        fs::write(&folder.0, "a file in its place").unwrap();
        store.keep("key", kept("[]"));
        store.flush(PATIENCE);
        fs::remove_file(&folder.0).unwrap();
        // Tried again with whatever is asked for next, and by itself after a while.
        store.flush(PATIENCE);
        assert_eq!(store.load("key").unwrap(), Some(kept("[]")));
    }

    #[test]
    fn only_old_files_with_a_name_of_our_form_are_removed() {
        let folder = Folder::new("leftovers");
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
        let mut left: Vec<_> = folder
            .files()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        left.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn a_temporary_file_has_a_name_that_is_recognised() {
        let folder = Folder::new("recognised");
        let store = folder.store();
        // A directory in place of the file: the rename fails.
        let target = path(&folder.0, "key");
        fs::create_dir(&target).unwrap();
        assert!(write(&target, &kept("{}")).is_err());
        assert_eq!(folder.files(), std::slice::from_ref(&target), "no temporary file is left");
        assert!(store.load("key").unwrap_err().contains("not a regular file"));
        let name = temporary(&target);
        assert!(is_temporary(name.file_name().unwrap().to_str().unwrap()), "{}", name.display());
    }

    #[test]
    fn what_is_not_a_regular_file_is_not_read() {
        let folder = Folder::new("others");
        let store = folder.store();
        let target = path(&folder.0, "key");
        for link in ["/dev/zero", "/dev/stdin", "elsewhere"] {
            std::os::unix::fs::symlink(link, &target).unwrap();
            assert!(store.load("key").unwrap_err().contains("not a regular file"));
            fs::remove_file(&target).unwrap();
        }
        assert!(std::process::Command::new("mkfifo").arg(&target).status().unwrap().success());
        assert!(store.load("key").unwrap_err().contains("not a regular file"));
        // A new document takes its place.
        store.keep_if_new("key", kept("{}"));
        store.flush(PATIENCE);
        assert_eq!(store.load("key").unwrap(), Some(kept("{}")));
    }

    #[test]
    fn whatever_is_damaged_is_never_served() {
        let folder = Folder::new("damaged");
        let store = folder.store();
        store.keep("key", kept("{\"some\": \"document\"}"));
        store.flush(PATIENCE);
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
            // A flipped bit in the time or the validators is not seen, but the document is whole.
            if let Ok(Some(found)) = store.load("key") {
                assert_eq!(found.document, kept("{\"some\": \"document\"}").document);
            }
        }
        fs::write(&file, good).unwrap();
        assert!(store.load("key").unwrap().is_some());
    }
}
