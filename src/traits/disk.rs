//! Kept traits on disk.
//!
//! The store thread collects which identities changed and hands their records, every quarter of a second, to
//! a thread that commits them: no write of a reactor waits for the disk. What cannot be written is tried
//! again. Everything is in memory, so that a file that turns out to be damaged is replaced by a complete one.
//!
//! A file that another process has open is read without being opened, so that a process that takes over has
//! its records when it starts; when the other one has ended it is opened, and what changed meanwhile is
//! merged.
mod backend;
mod changed;
mod empty;
mod file;
mod writer;

use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::clock;
use crate::config::Level;
use crate::limits::{TRAIT_REMOVALS_BYTES_MAX, TRAIT_STOP_TIMEOUT};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::storage::disk::DiskFolder;
use crate::trait_table::{Entry, SHARDS, TableBuilder, TraitRecord};
use crate::traits::changes::{ChangeKind, TraitChanges};
use crate::traits::disk::changed::ChangedIdentities;
use crate::traits::disk::file::{FILE, FileChange, TraitFile};
pub use crate::traits::disk::file::{TraitFileError, TraitFileState, check_file};
pub use crate::traits::disk::writer::DiskWriter;
use crate::traits::disk::writer::{DiskReport, RETRY_INTERVAL, WriterState, next, report_damage};
use crate::traits::memory::{RemoteChange, TraitMemory};
use crate::traits::sink::{Inform, TraitSink};

/// Time between two commits: what the end of the process by a signal may lose.
const COMMIT_INTERVAL: Duration = Duration::from_millis(250);
/// Identities that are written in one transaction.
const BATCH_IDENTITIES_MAX: usize = 16 * 1024;
/// Reports that the store thread has not read.
const REPORTS_MAX: usize = 2;

/// Runs the writer beside the store thread: on a thread for it, until [`DiskWriter::step`] returns false.
pub type RunWriter = Box<dyn FnMut(DiskWriter) -> io::Result<()> + Send>;

/// The identities of a file, by client-side key and hash.
type Identities = HashSet<(Arc<str>, u64)>;

/// The records of a file, by environment.
#[derive(Debug, Default)]
struct LoadedRecords(Vec<(String, TableBuilder)>);

impl LoadedRecords {
    /// The records of an environment follow each other, mostly.
    fn push(&mut self, environment: &str, record: &TraitRecord<'_>, memory: &TraitMemory) {
        let is_last = self.0.last().is_some_and(|(last, _)| last == environment);
        let known = match is_last {
            true => self.0.len().checked_sub(1),
            false => self.0.iter().position(|(known, _)| known == environment),
        };
        let index = known.unwrap_or_else(|| {
            self.0.push((environment.to_owned(), memory.table().builder()));
            self.0.len() - 1
        });
        if let Some((_, builder)) = self.0.get_mut(index) {
            builder.push(record);
        }
    }

    fn put(self, memory: &mut TraitMemory) {
        self.0.into_iter().for_each(|(environment, records)| memory.load(&environment, records));
    }
}

/// A batch that the writer has.
#[derive(Debug)]
struct InFlight {
    count: usize,
    since: Option<Instant>,
}

/// The sink of the store thread.
pub struct TraitDisk {
    folder: DiskFolder,
    run_writer: RunWriter,
    /// Identities whose records differ from the disk.
    changed: ChangedIdentities,
    /// Those of them that are being written, in several batches if they are many.
    due: ChangedIdentities,
    in_flight: Option<InFlight>,
    /// The writer has opened the file; batches are sent.
    is_open: bool,
    /// Of a file that was read while another process had it open: what it has when that process has ended.
    in_file: Option<Identities>,
    batches: Option<SyncSender<Vec<FileChange>>>,
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
            changed: ChangedIdentities::default(),
            due: ChangedIdentities::default(),
            in_flight: None,
            is_open: false,
            in_file: None,
            batches: None,
            reports: None,
            due_at: clock::instant(),
            metrics,
            log,
        }
    }

    fn start(&mut self, file: Option<TraitFile>) -> io::Result<()> {
        let (batches, to_write) = sync_channel(1);
        let (to_store, reports) = sync_channel(REPORTS_MAX);
        self.is_open = file.is_some();
        (self.run_writer)(DiskWriter {
            folder: self.folder.clone(),
            is_loaded: self.is_open,
            file,
            batches: to_write,
            reports: to_store,
            metrics: self.metrics.clone(),
            log: self.log.clone(),
            state: WriterState::default(),
        })?;
        (self.batches, self.reports) = (Some(batches), Some(reports));
        Ok(())
    }

    fn receive(&mut self, memory: &mut TraitMemory, now: SystemTime, wait: Duration, inform: Inform<'_>) {
        let Some(reports) = &self.reports else { return };
        let mut report = next(reports, wait).ok();
        while let Some(found) = report {
            match found {
                DiskReport::Late(records) => self.merge(memory, &records, now, inform),
                DiskReport::Opened => self.opened(memory, now),
                DiskReport::Committed => self.in_flight = None,
                DiskReport::Replaced => self.change_all(memory),
            }
            report = self.reports.as_ref().and_then(|reports| reports.try_recv().ok());
        }
    }

    /// Merges the records of a file that was opened after the start, except what was removed meanwhile.
    fn merge(
        &mut self,
        memory: &mut TraitMemory,
        records: &[(String, Vec<u8>)],
        now: SystemTime,
        inform: Inform<'_>,
    ) {
        for (environment, record) in records {
            let Some(record) = TraitRecord::new(record) else { continue };
            let Ok(identifier) = std::str::from_utf8(record.identifier()) else { continue };
            let key: Arc<str> = environment.as_str().into();
            let is_removed = self.changed.has_removed(&key, identifier);
            if let Some(in_file) = &mut self.in_file {
                in_file.insert((key, memory.table().hash_of(&record)));
            }
            if is_removed {
                continue;
            }
            let entries: Vec<Entry<'_>> = record.entries().collect();
            let (entries, head) = (&entries[..], record.head());
            let (seen, is_promoted) = (head.seen, head.is_promoted);
            let change = RemoteChange { environment, identifier, entries, seen, is_promoted };
            memory.merge(&change, now, inform);
        }
    }

    /// The file was opened after the start, and all of its records are merged. Those that were read before,
    /// and that the other process has removed since, are removed.
    fn opened(&mut self, memory: &mut TraitMemory, now: SystemTime) {
        (self.is_open, memory.awaits_records) = (true, false);
        self.log.event(Level::Info, "traits_file_opened", &[]);
        let Some(in_file) = self.in_file.take() else { return };
        let mut removed = Vec::new();
        for (environment, record) in all_records(memory) {
            let name = (environment.clone(), memory.table().hash_of(&record));
            if !in_file.contains(&name) && !self.changed.has(environment, name.1) {
                removed.extend(String::from_utf8(record.identifier().to_vec()).map(|id| (name.0, id)));
            }
        }
        for (environment, identifier) in &removed {
            memory.forget(environment, identifier, now);
        }
    }

    /// All that is in memory is written: the file is new.
    fn change_all(&mut self, memory: &TraitMemory) {
        for (environment, record) in all_records(memory) {
            self.changed.insert(environment, memory.table().hash_of(&record));
        }
    }

    /// Reads the file of another process.
    fn load_read_only(&mut self, error: &TraitFileError, memory: &mut TraitMemory) {
        let mut loaded = LoadedRecords::default();
        let read = match error {
            TraitFileError::Locked => file::read_only(&self.folder, &mut |environment, record| {
                loaded.push(environment, &record, memory);
            }),
            _ => Ok(false),
        };
        let path = self.folder.path.join(FILE).display().to_string();
        match (error, read) {
            (TraitFileError::Locked, Ok(is_complete)) => {
                loaded.put(memory);
                self.in_file = Some(Identities::new());
                let hint = "another process has it open: what it has was read, changes are kept in memory until \
                            that process ends";
                let fields: [(_, &dyn Display); 3] =
                    [("path", &path), ("complete", &is_complete), ("hint", &hint)];
                self.log.event(Level::Warning, "traits_file_in_use", &fields);
            }
            (error, read) => {
                let error = read.err().map_or_else(|| error.to_string(), |error| error.to_string());
                let hint = "traits are kept in memory until it can be opened";
                let fields: [(_, &dyn Display); 3] = [("path", &path), ("error", &error), ("hint", &hint)];
                self.log.event(Level::Error, "traits_store_unavailable", &fields);
            }
        }
    }

    /// Hands a batch to the writer, which has none.
    fn send(&mut self, memory: &TraitMemory) {
        let Some(batches) = &self.batches else { return };
        if self.due.is_empty() {
            self.due = std::mem::take(&mut self.changed);
        }
        let since = self.due.since();
        let changes = self.due.take(BATCH_IDENTITIES_MAX, memory);
        self.in_flight = Some(InFlight { count: changes.len(), since });
        let _ = batches.try_send(changes);
    }

    fn is_unwritten(&self) -> bool {
        self.in_flight.is_some() || !self.due.is_empty() || !self.changed.is_empty()
    }

    /// Identities whose records differ from the disk.
    fn unwritten(&self) -> usize {
        self.in_flight.as_ref().map_or(0, |batch| batch.count) + self.due.len() + self.changed.len()
    }

    /// The process ends before these were written.
    fn report_lost(&self) {
        let reason = match self.is_open {
            true => "the disk could not be written before the process ended",
            false => "the file could not be opened before the process ended",
        };
        let (path, identities) = (self.folder.path.join(FILE), self.unwritten());
        let path = path.display();
        let fields: [(_, &dyn Display); 3] =
            [("path", &path), ("identities", &identities), ("reason", &reason)];
        self.log.event(Level::Error, "traits_lost", &fields);
    }

    fn measure(&self) {
        let unwritten = self.unwritten();
        let since = self.in_flight.as_ref().and_then(|batch| batch.since);
        let since = since.or(self.due.since()).or(self.changed.since());
        let lag = since.map_or(0, |since| clock::elapsed(since).as_millis());
        self.metrics.traits.unwritten.set(unwritten as u64);
        self.metrics.traits.lag_ms.set(u64::try_from(lag).unwrap_or(u64::MAX));
    }
}

impl TraitSink for TraitDisk {
    fn load(&mut self, memory: &mut TraitMemory, _: Inform<'_>) {
        let mut loaded = LoadedRecords::default();
        let opened = TraitFile::open(&self.folder, &mut |environment, record| {
            loaded.push(environment, &record, memory);
        });
        let file = match opened {
            Ok((file, damage)) => {
                loaded.put(memory);
                if let Some(damage) = damage {
                    report_damage(&damage, &self.folder, &self.metrics, &self.log);
                    self.change_all(memory);
                }
                Some(file)
            }
            Err(error) => {
                drop(loaded);
                memory.awaits_records = true;
                self.load_read_only(&error, memory);
                None
            }
        };
        if let Err(error) = self.start(file) {
            self.log.event(Level::Error, "traits_store_unavailable", &[("error", &error)]);
        }
    }

    fn changed(&mut self, changes: &TraitChanges<'_>) {
        if !changes.record.head().is_erased {
            self.changed.insert(changes.environment, changes.hash);
            return;
        }
        // An identity that was evicted and comes back after a restart is evicted again.
        let is_full = self.changed.removed_bytes() + self.due.removed_bytes() > TRAIT_REMOVALS_BYTES_MAX;
        if is_full && changes.kind == ChangeKind::Evicted {
            self.metrics.traits.removals_dropped.add(1);
        } else if let Ok(identifier) = std::str::from_utf8(changes.record.identifier()) {
            self.changed.remove(changes.environment, identifier);
        }
    }

    fn tick(&mut self, memory: &mut TraitMemory, now: SystemTime, is_last: bool, inform: Inform<'_>) {
        self.receive(memory, now, Duration::ZERO, inform);
        let until = Instant::now() + TRAIT_STOP_TIMEOUT;
        loop {
            let is_due = is_last || self.due_at <= clock::instant() || !self.due.is_empty();
            let is_changed = !self.due.is_empty() || !self.changed.is_empty();
            if is_due && self.is_open && self.in_flight.is_none() && is_changed {
                if self.due.is_empty() {
                    self.due_at = clock::instant() + COMMIT_INTERVAL;
                }
                self.send(memory);
            }
            if !is_last || !self.is_unwritten() || self.reports.is_none() || until <= Instant::now() {
                break;
            }
            self.receive(memory, now, COMMIT_INTERVAL, inform);
        }
        self.measure();
        if is_last && self.is_unwritten() {
            self.report_lost();
        }
    }
}

fn all_records(memory: &TraitMemory) -> impl Iterator<Item = (&Arc<str>, TraitRecord<'_>)> {
    let table = memory.table();
    table.environments().flat_map(move |environment| {
        let records = (0..SHARDS).flat_map(move |index| table.records(environment, index));
        records.map(move |record| (environment, record))
    })
}
