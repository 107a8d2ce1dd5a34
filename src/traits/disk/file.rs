//! The file of kept traits: a table of the embedded engine `redb`, opened, verified, read and written.
//!
//! The engine may panic when it meets damaged pages, so that each call to it is guarded: a panic is a damaged
//! file like any other, unless the disk has failed. Records have checksums and must be complete and in order,
//! which reading verifies. A damaged file is read as far as it can be, put aside, and replaced by a new one.
#![expect(clippy::result_large_err, reason = "the errors of the engine are converted where they occur")]

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::UNIX_EPOCH;

use redb::{Database, Durability, ReadableTable, ReadableTableMetadata, StorageBackend, TableDefinition};
use rustix::fs::{FlockOperation, flock};

use crate::clock;
use crate::limits::{TRAIT_DAMAGED_FILES_MAX, TRAIT_DISK_CACHE_BYTES};
use crate::storage::disk::DiskFolder;
use crate::trait_table::TraitRecord;
use crate::traits::disk::backend::{FailureFlag, LockedFile, ReadOnlyFile, is_of_damage};
use crate::traits::disk::empty::{self, MAGIC};

/// By client-side key, a zero byte and the identifier: a record, and the CRC-32 of both.
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("traits-2");
pub const FILE: &str = "traits.redb";
const CRC_BYTES: usize = 4;
/// Attempts to read a file that another process may be writing.
const READ_ATTEMPTS_MAX: u32 = 5;

thread_local! {
    /// A call to the engine is running, whose panics are reported as a damaged file.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Why the file of kept traits cannot be used.
#[derive(Debug)]
pub enum TraitFileError {
    /// Another process has it open.
    Locked,
    /// The engine does not read it, or records are missing.
    Damaged(String),
    /// It is the file of another program.
    Foreign(PathBuf),
    Io(PathBuf, io::Error),
    /// The engine failed.
    Engine(String),
}

impl fmt::Display for TraitFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("another process has the file open"),
            Self::Damaged(error) => write!(f, "the file of kept traits is damaged: {error}"),
            Self::Engine(error) => f.write_str(error),
            Self::Foreign(path) => {
                write!(f, "{} is not a file of kept traits: it will be put aside", path.display())
            }
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl Error for TraitFileError {}

/// A file that was put aside.
#[derive(Debug)]
pub struct Damage {
    /// What was found wrong with it.
    pub error: TraitFileError,
    pub moved_to: PathBuf,
    /// The records that could be read.
    pub recovered: u64,
}

/// The key of an identity, and its record with its checksum; without one it is removed.
#[derive(Debug)]
pub struct FileChange {
    key: Vec<u8>,
    record: Option<Vec<u8>>,
}

impl FileChange {
    pub fn new(environment: &str, identifier: &[u8], record: Option<&[u8]>) -> Self {
        let key = [environment.as_bytes(), &[0], identifier].concat();
        let record = record.map(|record| [record, &crc(&key, record).to_le_bytes()].concat());
        Self { key, record }
    }

    /// In the order of the file, and one of each key: the last.
    pub fn sort(changes: &mut Vec<Self>) {
        changes.reverse();
        changes.sort_by(|one, other| one.key.cmp(&other.key));
        changes.dedup_by(|one, other| one.key == other.key);
    }
}

/// How far a file has been read.
#[derive(Debug, Default)]
pub struct ReadPosition {
    last_key: Vec<u8>,
    count: u64,
}

/// Called with the client-side key and the record of each identity.
pub type EachRecord<'a> = &'a mut dyn FnMut(&str, TraitRecord<'_>);

/// The open file.
pub struct TraitFile {
    folder: DiskFolder,
    /// `None`: it is closed.
    database: Option<Database>,
    failure: FailureFlag,
}

impl Drop for TraitFile {
    fn drop(&mut self) {
        // The engine writes when it closes the file.
        let _ = guarded(|| drop(self.database.take()));
    }
}

impl TraitFile {
    /// Opens the file, or makes it, and calls `each`. Of a damaged file these are the records that can be
    /// read, perhaps some twice.
    ///
    /// # Errors
    /// It cannot be opened, or put aside.
    pub fn open(folder: &DiskFolder, each: EachRecord<'_>) -> Result<(Self, Option<Damage>), TraitFileError> {
        let read = Self::open_unread(folder).and_then(|mut file| {
            file.verify()?;
            file.read(&mut ReadPosition::default(), usize::MAX, each)?;
            Ok(file)
        });
        match read {
            Err(error @ TraitFileError::Damaged(_)) => {
                let recovered = salvage(folder, each)?;
                Self::replace(folder, error, recovered).map(|(file, damage)| (file, Some(damage)))
            }
            read => read.map(|file| (file, None)),
        }
    }

    /// Opens the file, or makes it, without reading or verifying the records.
    ///
    /// # Errors
    /// It cannot be opened, or is damaged.
    pub fn open_unread(folder: &DiskFolder) -> Result<Self, TraitFileError> {
        let path = folder.path.join(FILE);
        let io = |error: io::Error| TraitFileError::Io(path.clone(), error);
        folder.create().map_err(io)?;
        let Some(file) = folder.disk.lock(&path).map_err(io)? else { return Err(TraitFileError::Locked) };
        // Otherwise a new file may be lost with the power, with all that is written into it.
        folder.disk.sync_folder(&folder.path).map_err(io)?;
        empty::make(&*file).map_err(io)?;
        let failure = FailureFlag::default();
        let file = LockedFile { file, failure: failure.clone() };
        Self::open_backend(folder, file, failure)
    }

    /// Opens the file without changing it, also while another process has it open.
    fn open_read_only(folder: &DiskFolder) -> Result<Self, TraitFileError> {
        let path = folder.path.join(FILE);
        let io = |error: io::Error| TraitFileError::Io(path.clone(), error);
        let failure = FailureFlag::default();
        let file = folder.disk.open(&path, false).map_err(io)?;
        let file = ReadOnlyFile::new(file, failure.clone()).map_err(io)?;
        Self::open_backend(folder, file, failure)
    }

    fn open_backend(
        folder: &DiskFolder,
        backend: impl StorageBackend,
        failure: FailureFlag,
    ) -> Result<Self, TraitFileError> {
        let mut file = Self { folder: folder.clone(), database: None, failure };
        let mut builder = Database::builder();
        builder.set_cache_size(TRAIT_DISK_CACHE_BYTES);
        file.database = Some(file.engine(|| Ok(builder.create_with_backend(backend)?))?);
        Ok(file)
    }

    /// Puts a damaged file aside, and makes a new one.
    ///
    /// # Errors
    /// It cannot be renamed, or the new one cannot be made.
    pub fn replace(
        folder: &DiskFolder,
        error: TraitFileError,
        recovered: u64,
    ) -> Result<(Self, Damage), TraitFileError> {
        let moved_to = put_aside(folder)?;
        Ok((Self::open_unread(folder)?, Damage { error, moved_to, recovered }))
    }

    /// Verifies the checksums of all pages: also of those that reading the records does not need.
    ///
    /// # Errors
    /// The file is damaged, or cannot be read.
    pub fn verify(&mut self) -> Result<(), TraitFileError> {
        let Some(mut database) = self.database.take() else { return Ok(()) };
        self.database = Some(self.engine(move || {
            // False: it has made the list of free pages anew. Commits of two phases are not undone.
            database.check_integrity()?;
            Ok(database)
        })?);
        Ok(())
    }

    /// Calls `each` for the next records. Returns whether there are more. The last call verifies that no
    /// record was missing.
    ///
    /// # Errors
    /// The file is damaged, or cannot be read.
    pub fn read(
        &self,
        position: &mut ReadPosition,
        count_max: usize,
        each: EachRecord<'_>,
    ) -> Result<bool, TraitFileError> {
        let (mut is_intact, mut has_more) = (true, true);
        self.with_table(|table| {
            let after = (std::ops::Bound::Excluded(&*position.last_key.clone()), std::ops::Bound::Unbounded);
            let mut items = table.range::<&[u8]>(after)?;
            for _ in 0..count_max {
                let Some(item) = items.next() else {
                    has_more = false;
                    is_intact = position.count == table.len()?;
                    return Ok(());
                };
                let (key, value) = item?;
                let key = key.value();
                is_intact = key > &*position.last_key && take(key, value.value(), each);
                if !is_intact {
                    return Ok(());
                }
                position.last_key.clear();
                position.last_key.extend_from_slice(key);
                position.count += 1;
            }
            Ok(())
        })
        .map(|has_table| has_more &= has_table)?;
        match is_intact {
            true => Ok(has_more),
            false => Err(TraitFileError::Damaged("records are not as they were written".to_owned())),
        }
    }

    /// Reads from both ends until the engine fails. Returns how many records were read.
    fn read_damaged(&self, each: EachRecord<'_>) -> u64 {
        let (mut count, mut last) = (0, Vec::new());
        // The errors are those of the damage.
        let _ = self.with_table(|table| {
            for item in table.iter()? {
                let (key, value) = item?;
                count += u64::from(take(key.value(), value.value(), each));
                key.value().clone_into(&mut last);
            }
            Ok(())
        });
        let _ = self.with_table(|table| {
            for item in table.iter()?.rev() {
                let (key, value) = item?;
                if *key.value() <= *last {
                    break;
                }
                count += u64::from(take(key.value(), value.value(), each));
            }
            Ok(())
        });
        count
    }

    /// Whether anything was ever committed to it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn has_records(&self) -> Result<bool, TraitFileError> {
        self.with_table(|_| Ok(()))
    }

    /// Reads the table. Returns whether there is one.
    fn with_table(
        &self,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<(), redb::Error>,
    ) -> Result<bool, TraitFileError> {
        let Some(database) = &self.database else { return Ok(false) };
        self.engine(|| match database.begin_read()?.open_table(RECORDS) {
            Ok(table) => read(&table).map(|()| true),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(false),
            Err(error) => Err(error.into()),
        })
    }

    /// Writes changes, all or none, to the disk.
    ///
    /// # Errors
    /// The disk is full or fails, or the file is damaged; the engine refuses everything after that, until the
    /// file is opened again.
    pub fn commit(&self, changes: &[FileChange]) -> Result<(), TraitFileError> {
        let Some(database) = &self.database else { return Ok(()) };
        self.engine(|| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate);
            // The file opens without a scan after the process was killed.
            transaction.set_quick_repair(true);
            {
                let mut table = transaction.open_table(RECORDS)?;
                for change in changes {
                    match &change.record {
                        Some(record) => table.insert(&*change.key, &**record)?,
                        None => table.remove(&*change.key)?,
                    };
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Calls the engine; what it takes by value is dropped before an error is returned.
    fn engine<T>(&self, call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, TraitFileError> {
        let error = match guarded(call) {
            Some(Ok(done)) => return Ok(done),
            Some(Err(error)) => error,
            None if self.failure.is_set() => {
                return Err(TraitFileError::Engine("the disk failed".to_owned()));
            }
            None => return Err(TraitFileError::Damaged("its pages are not consistent".to_owned())),
        };
        Err(match error {
            redb::Error::DatabaseAlreadyOpen => TraitFileError::Locked,
            redb::Error::Io(error) if !is_of_damage(&error) => {
                TraitFileError::Io(self.folder.path.join(FILE), error)
            }
            // After an I/O error the engine reports what follows from it.
            error if self.failure.is_set() => TraitFileError::Engine(error.to_string()),
            redb::Error::PreviousIo | redb::Error::LockPoisoned(_) => {
                TraitFileError::Engine(error.to_string())
            }
            error => TraitFileError::Damaged(error.to_string()),
        })
    }
}

/// Reads what can be read of a damaged file, without changing it. Returns how many records that were.
///
/// # Errors
/// The disk failed: it may have more.
pub fn salvage(folder: &DiskFolder, each: EachRecord<'_>) -> Result<u64, TraitFileError> {
    let file = match TraitFile::open_read_only(folder) {
        Ok(file) => file,
        Err(TraitFileError::Damaged(_)) => return Ok(0),
        Err(error) => return Err(error),
    };
    let count = file.read_damaged(each);
    match file.failure.is_set() {
        true => Err(TraitFileError::Engine("the disk failed while a damaged file was read".to_owned())),
        false => Ok(count),
    }
}

/// Reads the file without changing it, also while another process has it open, and calls `each`. What is read
/// is as of a commit: if another process commits meanwhile it is tried again, and then read as far as it can
/// be. Returns whether everything was read.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn read_only(folder: &DiskFolder, each: EachRecord<'_>) -> Result<bool, TraitFileError> {
    for _ in 0..READ_ATTEMPTS_MAX {
        let read = TraitFile::open_read_only(folder)
            .and_then(|file| file.read(&mut ReadPosition::default(), usize::MAX, each));
        match read {
            Ok(_) => return Ok(true),
            Err(TraitFileError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
    }
    salvage(folder, each).map(|_| false)
}

/// What [`check_file`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraitFileState {
    /// There is none.
    Missing,
    /// Another process has it open.
    InUse,
    /// It is intact, with this many identities.
    Intact(u64),
}

/// Checks that the file, if it is there, is one of this store and is intact. Changes nothing.
///
/// # Errors
/// It cannot be read, is damaged, or is something else.
pub fn check_file(folder: &Path) -> Result<TraitFileState, TraitFileError> {
    let path = folder.join(FILE);
    let io = |error| TraitFileError::Io(path.clone(), error);
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TraitFileState::Missing),
        opened => opened.map_err(io)?,
    };
    let mut beginning = Vec::new();
    Read::by_ref(&mut file).take(MAGIC.len() as u64).read_to_end(&mut beginning).map_err(io)?;
    if empty::is_unmade(&beginning) {
        return Ok(TraitFileState::Intact(0));
    }
    if beginning != MAGIC {
        return Err(TraitFileError::Foreign(path));
    }
    if flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
        return Ok(TraitFileState::InUse);
    }
    // A process that starts meanwhile must be able to lock it.
    drop(file);
    let mut count = 0;
    let mut opened = TraitFile::open_read_only(&folder.into())?;
    opened.verify()?;
    opened.read(&mut ReadPosition::default(), usize::MAX, &mut |_, _| count += 1)?;
    Ok(TraitFileState::Intact(count))
}

/// Calls `each` with an item of the table. Returns false if it is damaged.
fn take(key: &[u8], value: &[u8], each: EachRecord<'_>) -> bool {
    let Some((record, checksum)) = value.split_last_chunk::<CRC_BYTES>() else { return false };
    let environment = key.split(|byte| *byte == 0).next().unwrap_or_default();
    match (std::str::from_utf8(environment), TraitRecord::new(record)) {
        (Ok(environment), Some(found)) if *checksum == crc(key, record).to_le_bytes() => {
            each(environment, found);
            true
        }
        _ => false,
    }
}

/// Renames the file, and removes the oldest of those that were put aside before. Returns its new path.
fn put_aside(folder: &DiskFolder) -> Result<PathBuf, TraitFileError> {
    let prefix = format!("{FILE}.damaged-");
    let since_epoch = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (path, aside) =
        (folder.path.join(FILE), folder.path.join(format!("{prefix}{:015}", since_epoch.as_millis())));
    folder.disk.rename(&path, &aside).map_err(|error| TraitFileError::Io(path, error))?;
    // They are kept for people, so that one that cannot be removed does no harm.
    let entries = folder.disk.entries(&folder.path).unwrap_or_default();
    let mut names: Vec<String> = entries.into_iter().filter_map(|entry| entry.name).collect();
    names.retain(|name| name.starts_with(&prefix));
    names.sort_unstable();
    for name in names.iter().rev().skip(TRAIT_DAMAGED_FILES_MAX) {
        let _ = folder.disk.remove(&folder.path.join(name));
    }
    Ok(aside)
}

/// `None`: the call panicked, which is not printed.
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                previous(info);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call)).ok();
    IS_GUARDED.set(was_guarded);
    result
}

fn crc(key: &[u8], record: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(record);
    crc.finalize()
}
