//! Kept traits on disk: a table of records in one file of the embedded engine `redb`.
//!
//! The store thread collects which identities changed and hands their records, every quarter of a second, to
//! a thread that commits them as one transaction: no write of a reactor waits for the disk. What cannot be
//! written is tried again. A damaged file is put aside; one that another process has open is opened and
//! merged when that process ends.
use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{
    Database, DatabaseError, Durability, ReadableTable, StorageBackend, StorageError, TableDefinition,
};

use crate::clock;
use crate::config::Level;
use crate::limits::{TRAIT_DISK_CACHE_BYTES, TRAIT_STOP_TIMEOUT};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::storage::disk::{DiskFile, DiskFolder};
use crate::trait_table::{Entry, TableBuilder, TraitRecord};
use crate::traits::memory::{RemoteChange, TraitChanges, TraitMemory};
use crate::traits::sink::{Inform, TraitSink};

/// By client-side key, a zero byte and the identifier: a record.
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("traits-1");
const FILE: &str = "traits.redb";
/// How the file begins.
const MAGIC: &[u8; 9] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// Time between two commits: what the end of the process by a signal may lose.
const COMMIT_INTERVAL: Duration = Duration::from_millis(250);
/// Pause after a failed commit, and between two attempts to open the file.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Keys with their records, sorted; `None` removes one.
type Batch = Vec<(Vec<u8>, Option<Vec<u8>>)>;
/// Records of a file that was opened late, with their client-side keys.
type LoadedRecords = Vec<(String, Vec<u8>)>;

/// Why the file of kept traits cannot be used.
#[derive(Debug)]
pub enum TraitFileError {
    /// Another process has it open.
    Locked,
    /// The engine does not read it.
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
            Self::Damaged(error) | Self::Engine(error) => f.write_str(error),
            Self::Foreign(path) => {
                write!(f, "{} is not a file of kept traits: it will be put aside", path.display())
            }
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl Error for TraitFileError {}

/// What the thread reports.
enum DiskReport {
    Opened(LoadedRecords),
    Committed,
}

/// Runs the writer beside the store thread: on a thread for it, until [`DiskWriter::step`] returns false.
pub type RunWriter = Box<dyn FnMut(DiskWriter) -> io::Result<()> + Send>;

/// The sink of the store thread.
pub struct TraitDisk {
    folder: DiskFolder,
    run_writer: RunWriter,
    /// Identities whose records differ from the disk.
    changed: HashSet<(Box<str>, Box<str>)>,
    /// Those of the batch that is being written.
    in_flight: HashSet<(Box<str>, Box<str>)>,
    batches: Option<SyncSender<Batch>>,
    reports: Option<Receiver<DiskReport>>,
    due_at: Instant,
    metrics: Arc<Metrics>,
    log: Log,
}

impl TraitDisk {
    /// A sink that writes on a new thread.
    pub fn new(folder: &Path, metrics: Arc<Metrics>, log: Log) -> Self {
        let run = |mut writer: DiskWriter| {
            let run = move || while writer.step(RETRY_INTERVAL, thread::sleep) {};
            thread::Builder::new().name("traits-disk".into()).spawn(run).map(drop)
        };
        Self::on(folder.into(), Box::new(run), metrics, log)
    }

    /// A sink with its file in this folder, and its writer where `run_writer` runs it.
    pub fn on(folder: DiskFolder, run_writer: RunWriter, metrics: Arc<Metrics>, log: Log) -> Self {
        Self {
            folder,
            run_writer,
            changed: HashSet::new(),
            in_flight: HashSet::new(),
            batches: None,
            reports: None,
            due_at: clock::instant(),
            metrics,
            log,
        }
    }

    fn start(&mut self, database: Option<Database>) -> io::Result<()> {
        let (batches, to_write) = sync_channel(1);
        let (to_store, reports) = channel();
        (self.run_writer)(DiskWriter {
            folder: self.folder.clone(),
            is_loaded: database.is_some(),
            database,
            batches: to_write,
            unwritten: None,
            reports: to_store,
            metrics: self.metrics.clone(),
            log: self.log.clone(),
            is_failing: false,
        })?;
        (self.batches, self.reports) = (Some(batches), Some(reports));
        Ok(())
    }

    fn receive(&mut self, memory: &mut TraitMemory, now: SystemTime, wait: Duration, inform: Inform<'_>) {
        let Some(reports) = &self.reports else { return };
        let mut report = next(reports, wait).ok();
        while let Some(found) = report {
            match found {
                DiskReport::Opened(records) => self.merge(memory, &records, now, inform),
                DiskReport::Committed => self.in_flight.clear(),
            }
            report = self.reports.as_ref().and_then(|reports| reports.try_recv().ok());
        }
    }

    /// Merges the records of a file that was opened after the start, except what was erased meanwhile.
    fn merge(&self, memory: &mut TraitMemory, records: &LoadedRecords, now: SystemTime, inform: Inform<'_>) {
        for (environment, record) in records {
            let Some(record) = TraitRecord::new(record) else { continue };
            let Ok(identifier) = std::str::from_utf8(record.identifier()) else { continue };
            let name: (Box<str>, Box<str>) = (environment.as_str().into(), identifier.into());
            let has_changed = self.changed.contains(&name) || self.in_flight.contains(&name);
            if has_changed && memory.table().find(environment, identifier).is_none() {
                continue;
            }
            let entries: Vec<Entry<'_>> = record.entries().collect();
            let (entries, head) = (&entries[..], record.head());
            let (seen, is_promoted) = (head.seen, head.is_promoted);
            let change = RemoteChange { environment, identifier, entries, seen, is_promoted };
            memory.merge(&change, now, inform);
        }
    }

    fn send(&mut self, memory: &TraitMemory) {
        let Some(batches) = &self.batches else { return };
        self.in_flight = std::mem::take(&mut self.changed);
        let record = |(environment, identifier): &(Box<str>, Box<str>)| {
            let record = memory.table().find(environment, identifier);
            (key(environment, identifier), record.map(|record| record.bytes().to_vec()))
        };
        let mut batch: Batch = self.in_flight.iter().map(record).collect();
        // Records that are near each other in the file are written one after another.
        batch.sort_unstable();
        // The channel is empty: a batch is sent when the one before it was written.
        let _ = batches.try_send(batch);
    }
}

impl TraitSink for TraitDisk {
    fn load(&mut self, memory: &mut TraitMemory, _: Inform<'_>) {
        let opened = open(&self.folder, &self.log).map(|database| (load(&database, memory), database));
        let (database, error) = match opened {
            Ok((Ok(()), database)) => (Some(database), None),
            Ok((Err(error), _)) => (None, Some(error)),
            Err(error) => (None, Some(error)),
        };
        if let Some(error) = error {
            let path = self.folder.path.join(FILE).display().to_string();
            let hint = "traits are kept in memory until it can be opened";
            let fields: [(_, &dyn Display); 3] = [("path", &path), ("error", &error), ("hint", &hint)];
            self.log.event(Level::Error, "traits_store_unavailable", &fields);
        }
        if let Err(error) = self.start(database) {
            self.log.event(Level::Error, "traits_store_unavailable", &[("error", &error)]);
        }
    }

    fn changed(&mut self, changes: &TraitChanges<'_>) {
        if let Ok(identifier) = std::str::from_utf8(changes.record.identifier()) {
            self.changed.insert((changes.environment.into(), identifier.into()));
        }
    }

    fn tick(&mut self, memory: &mut TraitMemory, now: SystemTime, is_last: bool, inform: Inform<'_>) {
        self.receive(memory, now, Duration::ZERO, inform);
        let until = Instant::now() + TRAIT_STOP_TIMEOUT;
        loop {
            let is_due = is_last || self.due_at <= clock::instant();
            if is_due && self.in_flight.is_empty() && !self.changed.is_empty() {
                self.due_at = clock::instant() + COMMIT_INTERVAL;
                self.send(memory);
            }
            if !is_last || self.in_flight.is_empty() || until <= Instant::now() {
                break;
            }
            self.receive(memory, now, COMMIT_INTERVAL, inform);
        }
        self.metrics.traits.unwritten.set((self.in_flight.len() + self.changed.len()) as u64);
    }
}

/// Writes to the file, on its thread.
pub struct DiskWriter {
    folder: DiskFolder,
    /// `None` until the file can be opened.
    database: Option<Database>,
    /// The records of the file are in memory.
    is_loaded: bool,
    batches: Receiver<Batch>,
    /// The last batch, if its commit failed.
    unwritten: Option<Batch>,
    reports: Sender<DiskReport>,
    metrics: Arc<Metrics>,
    log: Log,
    is_failing: bool,
}

impl DiskWriter {
    /// Commits the next batch, which may take `wait` to arrive. After a failure it `pause`s, and tries again
    /// in the next call. False: the store thread has ended.
    pub fn step(&mut self, wait: Duration, pause: impl FnOnce(Duration)) -> bool {
        let batch = match self.unwritten.take().map_or_else(|| next(&self.batches, wait), Ok) {
            Ok(batch) => batch,
            // A file that another process had open may be free now.
            Err(RecvTimeoutError::Timeout) if !self.is_loaded => {
                self.database = self.reopen().ok();
                return true;
            }
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        if let Err(error) = self.write(&batch) {
            self.unwritten = Some(batch);
            self.metrics.traits.commits_failed.add(1);
            if !std::mem::replace(&mut self.is_failing, true) {
                let hint = "traits are kept in memory, and written when the disk can be written again";
                let fields: [(_, &dyn Display); 2] = [("error", &error), ("hint", &hint)];
                self.log.event(Level::Error, "traits_not_written", &fields);
            }
            pause(RETRY_INTERVAL);
            return true;
        }
        if std::mem::take(&mut self.is_failing) {
            self.log.event(Level::Info, "traits_written_again", &[]);
        }
        self.metrics.traits.commits.add(1);
        self.reports.send(DiskReport::Committed).is_ok()
    }

    /// Whether the last commit failed, or the file could not be opened: [`step`](Self::step) tries again.
    pub fn is_failing(&self) -> bool {
        self.is_failing || !self.is_loaded
    }

    fn write(&mut self, batch: &Batch) -> Result<(), TraitFileError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.reopen()?,
        };
        // After an I/O error the engine refuses everything: the file is opened again for the next attempt.
        commit(&database, batch).map_err(|error| TraitFileError::Engine(error.to_string()))?;
        self.database = Some(database);
        Ok(())
    }

    fn reopen(&mut self) -> Result<Database, TraitFileError> {
        let database = open(&self.folder, &self.log)?;
        if self.is_loaded {
            return Ok(database);
        }
        let mut records = LoadedRecords::new();
        read(&database, &mut |environment, record| {
            records.push((environment.to_owned(), record.bytes().to_vec()));
        })
        .map_err(|error| TraitFileError::Engine(error.to_string()))?;
        self.is_loaded = true;
        // The store thread may have ended.
        let _ = self.reports.send(DiskReport::Opened(records));
        Ok(database)
    }
}

/// Checks that the file, if it is there, is one of this store. Changes nothing.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn check_file(folder: &Path) -> Result<(), TraitFileError> {
    let path = folder.join(FILE);
    let mut beginning = [0; MAGIC.len()];
    let read = match File::open(&path) {
        Ok(mut file) => file.read_exact(&mut beginning),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    match read {
        Ok(()) if beginning == *MAGIC => Ok(()),
        Ok(()) => Err(TraitFileError::Foreign(path)),
        Err(error) => Err(TraitFileError::Io(path, error)),
    }
}

/// The next message; without a `wait` the thread does not sleep.
fn next<T>(receiver: &Receiver<T>, wait: Duration) -> Result<T, RecvTimeoutError> {
    match wait {
        Duration::ZERO => receiver.try_recv().map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        }),
        wait => receiver.recv_timeout(wait),
    }
}

fn commit(database: &Database, batch: &Batch) -> Result<(), Box<dyn Error>> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate);
    // The file opens without a scan after the process was killed.
    transaction.set_quick_repair(true);
    {
        let mut table = transaction.open_table(RECORDS)?;
        for (key, record) in batch {
            match record {
                Some(record) => table.insert(key.as_slice(), record.as_slice())?,
                None => table.remove(key.as_slice())?,
            };
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Opens the file, or makes it. One that is damaged is put aside.
fn open(folder: &DiskFolder, log: &Log) -> Result<Database, TraitFileError> {
    match open_file(folder) {
        Err(TraitFileError::Damaged(error)) => {
            let seconds = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let (path, aside) =
                (folder.path.join(FILE), folder.path.join(format!("{FILE}.damaged-{seconds}")));
            folder.disk.rename(&path, &aside).map_err(|error| TraitFileError::Io(path.clone(), error))?;
            let (path, aside) = (path.display(), aside.display());
            let fields: [(_, &dyn Display); 3] = [("path", &path), ("error", &error), ("moved_to", &aside)];
            log.event(Level::Error, "traits_file_damaged", &fields);
            open_file(folder)
        }
        opened => opened,
    }
}

fn open_file(folder: &DiskFolder) -> Result<Database, TraitFileError> {
    let io = |error: io::Error| TraitFileError::Io(folder.path.join(FILE), error);
    folder.create().map_err(io)?;
    let file = folder.disk.lock(&folder.path.join(FILE)).map_err(io)?;
    let Some(file) = file.map(TraitFile) else { return Err(TraitFileError::Locked) };
    // Otherwise a new file may be lost with the power, with all that is written into it.
    folder.disk.sync_folder(&folder.path).map_err(io)?;
    let mut builder = Database::builder();
    builder.set_cache_size(TRAIT_DISK_CACHE_BYTES);
    // A file that is damaged inside may fail an assertion of the engine.
    let opened = catch_unwind(AssertUnwindSafe(|| builder.create_with_backend(file)));
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(TraitFileError::Locked),
        Ok(Err(DatabaseError::Storage(StorageError::Io(error))))
            if error.kind() != io::ErrorKind::InvalidData =>
        {
            Err(io(error))
        }
        Ok(Err(error)) => Err(TraitFileError::Damaged(error.to_string())),
        Err(_) => Err(TraitFileError::Damaged("the file is not consistent".to_owned())),
    }
}

/// The file, as the engine uses it.
#[derive(Debug)]
struct TraitFile(Box<dyn DiskFile>);

impl StorageBackend for TraitFile {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self, _is_eventual: bool) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
}

/// Calls `each` with the client-side key and the record of each identity.
fn read(database: &Database, each: &mut dyn FnMut(&str, TraitRecord<'_>)) -> Result<(), Box<dyn Error>> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(RECORDS) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for item in table.iter()? {
        let (key, record) = item?;
        let environment = key.value().split(|byte| *byte == 0).next().unwrap_or_default();
        let record = record.value();
        if let (Ok(environment), Some(record)) = (std::str::from_utf8(environment), TraitRecord::new(record))
        {
            each(environment, record);
        }
    }
    Ok(())
}

/// Reads the table into memory, before the first write.
fn load(database: &Database, memory: &mut TraitMemory) -> Result<(), TraitFileError> {
    let mut builders: BTreeMap<String, TableBuilder> = BTreeMap::new();
    let loaded = read(database, &mut |environment, record| {
        if !builders.contains_key(environment) {
            builders.insert(environment.to_owned(), memory.table().builder());
        }
        if let Some(builder) = builders.get_mut(environment) {
            builder.push(&record);
        }
    });
    builders.into_iter().for_each(|(environment, records)| memory.load(&environment, records));
    loaded.map_err(|error| TraitFileError::Engine(error.to_string()))
}

fn key(environment: &str, identifier: &str) -> Vec<u8> {
    [environment.as_bytes(), &[0], identifier.as_bytes()].concat()
}
