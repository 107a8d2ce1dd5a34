//! Documents and pending uploads in `cache_dir`, for a restart while upstream is down.
//!
//! Each file contains a header (one line of JSON with the SHA-256 of the document), then the document as it
//! was received. Files are replaced atomically (temporary file, fsync, rename) by a writer thread, and only
//! the owner can read them. File names are digests, because keys are secret. A damaged file is never served.
pub mod disk;
mod records;
pub mod spool;
#[cfg(test)]
pub mod test_disk;
#[cfg(test)]
pub mod test_folder;

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Level;
use crate::json::hex::hex;
use crate::log::Log;
use crate::storage::disk::DiskFolder;
pub use crate::storage::records::{RecordChange, StoredRecord};
use crate::storage::records::{RecordSets, WriteError};
use crate::validators::Validators;
use crate::{clock, limits};

/// A document and its metadata, as saved on disk.
#[derive(Debug, PartialEq)]
pub struct StoredDocument {
    pub document: Vec<u8>,
    pub validators: Validators,
    pub digest: [u8; 32],
    pub saved_at: SystemTime,
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct FileHeader {
    version: u32,
    sha256: String,
    etag: Option<String>,
    last_modified: Option<String>,
    saved_at_seconds: u64,
}

const VERSION: u32 = 1;
/// Hexadecimal digits of a file name: half of the SHA-256 of the document's name.
const NAME_DIGITS: usize = 32;
/// The extension of a temporary file is `tmp-PID-RANDOM`, with PID in decimal and RANDOM in `RANDOM_DIGITS`
/// hexadecimal digits.
const TEMPORARY: &str = "tmp-";
const RANDOM_DIGITS: usize = 16;
/// How often a failed write is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Reads files, and sends writes to the writer thread.
#[derive(Debug)]
pub struct Store {
    folder: DiskFolder,
    writes: Sender<WriteRequest>,
}

/// A message to the writer.
#[derive(Debug)]
pub enum WriteRequest {
    Save(String, StoredDocument),
    Remove(String),
    LoadRecords(&'static str, Sender<io::Result<(Vec<StoredRecord>, u64)>>),
    ChangeRecords(&'static str, RecordChange),
    Flush(Sender<()>),
}

impl Store {
    /// Creates the folder if it does not exist, removes temporary files of killed processes, and starts the
    /// writer thread.
    ///
    /// # Errors
    /// The folder cannot be created, or the thread cannot be started.
    pub fn open(folder: impl Into<DiskFolder>, log: &Log) -> io::Result<Self> {
        let folder = folder.into();
        let mut writer = StoreWriter::open(folder.clone(), log)?;
        let (writes, requests) = channel();
        thread::Builder::new().name("store".into()).spawn(move || writer.run(&requests))?;
        Ok(Self { folder, writes })
    }

    /// Loads the document `name`; `None` if there is none.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn load(&self, name: &str) -> Result<Option<StoredDocument>, StorageError> {
        load(self.folder.clone(), name)
    }

    /// Saves a document, asynchronously.
    pub fn save(&self, name: &str, document: StoredDocument) {
        // Fails only if the writer thread has panicked.
        let _ = self.writes.send(WriteRequest::Save(name.into(), document));
    }

    /// Saves a document, asynchronously, unless the file has the same content.
    pub fn save_if_new(&self, name: &str, document: StoredDocument) {
        if !has_content(&self.folder, name, &document.digest) {
            self.save(name, document);
        }
    }

    /// Removes a document, asynchronously.
    pub fn remove(&self, name: &str) {
        let _ = self.writes.send(WriteRequest::Remove(name.into()));
    }

    /// Loads a set of records. The number is that of its damaged records, which are lost. Call this before
    /// the first change of the set.
    ///
    /// # Errors
    /// The spool of the set cannot be opened.
    pub fn load_records(&self, set: &'static str) -> io::Result<(Vec<StoredRecord>, u64)> {
        let (sender, loaded) = channel();
        let _ = self.writes.send(WriteRequest::LoadRecords(set, sender));
        loaded.recv().map_err(io::Error::other)?
    }

    /// Changes a set of records, asynchronously.
    pub fn change_records(&self, set: &'static str, change: RecordChange) {
        let _ = self.writes.send(WriteRequest::ChangeRecords(set, change));
    }

    /// Waits until all previous writes have been tried, for `timeout` at most.
    pub fn flush(&self, timeout: Duration) {
        let (done, wait) = channel();
        if self.writes.send(WriteRequest::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(timeout);
        }
    }
}

/// A file that cannot be loaded.
#[derive(Debug)]
pub struct StorageError {
    path: PathBuf,
    cause: DamageCause,
}

#[derive(Debug)]
enum DamageCause {
    Read(io::Error),
    /// There is no complete header.
    Truncated,
    /// The header is not valid JSON.
    Header,
    Version(u32),
    Checksum,
    Time,
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.cause {
            DamageCause::Read(error) => error.fmt(f),
            DamageCause::Truncated => f.write_str("truncated file"),
            DamageCause::Header => f.write_str("invalid header"),
            DamageCause::Version(version) => write!(f, "expected version {VERSION}, got {version}"),
            DamageCause::Checksum => f.write_str("checksum mismatch"),
            DamageCause::Time => f.write_str("invalid time"),
        }?;
        f.write_str(": ignored")
    }
}

impl std::error::Error for StorageError {}

/// Loads the document `name` from `folder`; `None` if there is none.
///
/// # Errors
/// The file is damaged or cannot be read.
pub fn load(folder: impl Into<DiskFolder>, name: &str) -> Result<Option<StoredDocument>, StorageError> {
    let folder = folder.into();
    let path = path(&folder, name);
    let damaged = |cause| StorageError { path: path.clone(), cause };
    let mut bytes = match folder.disk.read(&path, limits::CACHE_FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damaged(DamageCause::Read(error))),
    };
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| damaged(DamageCause::Truncated))?;
    let document = bytes.split_off(end + 1);
    let header: FileHeader = serde_json::from_slice(&bytes).map_err(|_| damaged(DamageCause::Header))?;
    if header.version != VERSION {
        return Err(damaged(DamageCause::Version(header.version)));
    }
    let digest: [u8; 32] = Sha256::digest(&document).into();
    if hex(&digest) != header.sha256 {
        return Err(damaged(DamageCause::Checksum));
    }
    let saved_at = UNIX_EPOCH
        .checked_add(Duration::from_secs(header.saved_at_seconds))
        .ok_or_else(|| damaged(DamageCause::Time))?;
    let (etag, last_modified) = (header.etag, header.last_modified);
    let validators = Validators { etag, last_modified, date: None, offers_deltas: false };
    Ok(Some(StoredDocument { document, validators, digest, saved_at }))
}

/// Whether the document `name` is stored with this digest.
pub fn has_content(folder: &DiskFolder, name: &str, digest: &[u8; 32]) -> bool {
    matches!(load(folder.clone(), name), Ok(Some(before)) if before.digest == *digest)
}

/// What the writer thread does. Of several writes to one name only the newest is done. Failed writes are
/// retried: the disk may be full, or the folder missing, for a while.
#[derive(Debug)]
pub struct StoreWriter {
    folder: DiskFolder,
    log: Log,
    /// To be written, or removed if `None`.
    waiting: BTreeMap<String, Option<StoredDocument>>,
    records: RecordSets,
    is_failing: bool,
    flushed: Vec<Sender<()>>,
}

impl StoreWriter {
    /// Creates the folder if it does not exist, and removes temporary files of killed processes.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn open(folder: DiskFolder, log: &Log) -> io::Result<Self> {
        folder.create()?;
        remove_leftovers(&folder, log);
        let records = RecordSets::new(folder.clone());
        let (waiting, flushed) = (BTreeMap::new(), Vec::new());
        Ok(Self { folder, log: log.clone(), waiting, records, is_failing: false, flushed })
    }

    fn run(&mut self, requests: &Receiver<WriteRequest>) {
        loop {
            let timeout = if self.has_unwritten() { RETRY_INTERVAL } else { Duration::MAX };
            let first = match requests.recv_timeout(timeout) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            first.into_iter().chain(requests.try_iter()).for_each(|request| self.accept(request));
            self.write();
        }
    }

    /// Whether something waits to be written: it was accepted, or its write failed.
    pub fn has_unwritten(&self) -> bool {
        !self.waiting.is_empty() || self.records.has_changes()
    }

    /// As [`Store::load_records`].
    ///
    /// # Errors
    /// The spool of the set cannot be opened.
    pub fn load_records(&mut self, set: &'static str) -> io::Result<(Vec<StoredRecord>, u64)> {
        self.records.load(set)
    }

    /// Plans what [`write`](Self::write) does.
    pub fn accept(&mut self, request: WriteRequest) {
        match request {
            WriteRequest::Save(name, document) => drop(self.waiting.insert(name, Some(document))),
            WriteRequest::Remove(name) => drop(self.waiting.insert(name, None)),
            WriteRequest::LoadRecords(set, loaded) => drop(loaded.send(self.load_records(set))),
            WriteRequest::ChangeRecords(set, change) => self.records.plan(set, change),
            WriteRequest::Flush(done) => self.flushed.push(done),
        }
    }

    /// Writes everything that waits; what fails waits for the next call.
    pub fn write(&mut self) {
        let Self { folder, waiting, .. } = self;
        let (replaced, changed) = self.records.apply();
        waiting.extend(replaced.into_iter().map(|name| (name, None)));
        let mut failure = changed.err();
        waiting.retain(|name, document| {
            let path = path(folder, name);
            let result = document
                .as_ref()
                .map_or_else(|| remove(folder, &path), |document| write(folder, &path, document));
            result.is_err_and(|error| {
                failure = Some(WriteError { path, error: error.into() });
                true
            })
        });
        let was_failing = std::mem::replace(&mut self.is_failing, failure.is_some());
        match failure {
            Some(error) if !was_failing => {
                let hint = "documents are not saved for a restart: check the owner, mode and free space of the folder";
                self.log.event(Level::Error, "cache_write_failed", &[("error", &error), ("hint", &hint)]);
            }
            None if was_failing => self.log.event(Level::Info, "cache_write_recovered", &[]),
            _ => {}
        }
        self.flushed.clear();
    }
}

fn remove(folder: &DiskFolder, path: &Path) -> io::Result<()> {
    folder.disk.remove(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// Removes, and logs, the temporary files of processes that were killed while writing. Another process may be
/// writing now, and the folder may contain unrelated files: only old regular files whose names have exactly
/// the form of temporary files are removed.
fn remove_leftovers(folder: &DiskFolder, log: &Log) {
    for entry in folder.disk.entries(&folder.path).into_iter().flatten() {
        let Some(name) = entry.name.filter(|name| is_temporary(name)) else { continue };
        let age = entry.modified.and_then(|modified| clock::wall().duration_since(modified).ok());
        let age = age.unwrap_or_default();
        if !entry.is_file || age <= limits::STORE_LEFTOVER_AGE {
            continue;
        }
        let path = folder.path.join(name);
        let shown = path.display();
        match folder.disk.remove(&path) {
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

/// Whether a file name has the form of those by [`temporary`].
fn is_temporary(name: &str) -> bool {
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    // A 32-bit PID has at most ten digits.
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

/// A unique name for a temporary file. The PID does not suffice: in containers that share a folder, every
/// process has PID 1.
fn temporary(path: &Path) -> PathBuf {
    let random = clock::random().unwrap_or_default();
    path.with_extension(format!("{TEMPORARY}{}-{random:0RANDOM_DIGITS$x}", std::process::id()))
}

fn write(folder: &DiskFolder, path: &Path, document: &StoredDocument) -> io::Result<()> {
    let header = FileHeader {
        version: VERSION,
        sha256: hex(&document.digest),
        etag: document.validators.etag.clone(),
        last_modified: document.validators.last_modified.clone(),
        saved_at_seconds: document.saved_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    };
    let mut line = serde_json::to_vec(&header)?;
    line.push(b'\n');
    let temporary = temporary(path);
    let file = folder.create_file(&temporary)?;
    let written = file
        .write_all_at(&line, 0)
        .and_then(|()| file.write_all_at(&document.document, line.len() as u64))
        .and_then(|()| file.sync());
    if let Err(error) = written.and_then(|()| folder.disk.rename(&temporary, path)) {
        let _ = folder.disk.remove(&temporary);
        return Err(error);
    }
    // Sync the folder too: the rename must survive a loss of power.
    folder.disk.sync_folder(&folder.path)
}

/// The path of the document `name`. The file name is a digest: `name` may be a key.
fn path(folder: &DiskFolder, name: &str) -> PathBuf {
    folder.path.join(format!("{}.document", &hex(&Sha256::digest(name.as_bytes()))[..NAME_DIGITS]))
}

#[cfg(test)]
mod tests;
