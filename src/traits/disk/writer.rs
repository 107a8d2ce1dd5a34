//! Writes to the file of kept traits, on its own thread.
use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::time::Duration;

use crate::config::Level;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::storage::disk::DiskFolder;
use crate::traits::disk::file::{Damage, FILE, FileChange, ReadPosition, TraitFile, TraitFileError, salvage};

/// Pause after a failed commit, and between two attempts to open the file.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Records of a file that is opened late that are sent to the store thread together.
const LATE_RECORDS_MAX: usize = 4096;
/// Pause if the store thread has not read the reports before.
const REPORT_PAUSE: Duration = Duration::from_millis(10);

/// What the writer reports to the store thread.
pub enum DiskReport {
    /// Records of a file that was opened late, with their client-side keys.
    Late(Vec<(String, Vec<u8>)>),
    /// The file was opened late, after all of its records.
    Opened,
    /// A batch is on the disk.
    Committed,
    /// The file was damaged, and the new one has only what was committed since, or nothing.
    Replaced,
}

/// The store thread has ended.
struct StoreEnded;

/// A file that is opened late, and how far its records were sent.
struct LateFile {
    file: TraitFile,
    position: ReadPosition,
}

/// Writes to the file, on its thread.
pub struct DiskWriter {
    pub(super) folder: DiskFolder,
    /// `None` until the file can be opened.
    pub(super) file: Option<TraitFile>,
    /// The records of the file are in memory: batches may be written.
    pub(super) is_loaded: bool,
    pub(super) batches: Receiver<Vec<FileChange>>,
    pub(super) reports: SyncSender<DiskReport>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: Log,
    pub(super) state: WriterState,
}

#[derive(Default)]
pub struct WriterState {
    late: Option<LateFile>,
    /// The last batch, if its commit failed.
    unwritten: Option<Vec<FileChange>>,
    /// Reports that were not sent yet.
    unsent: VecDeque<DiskReport>,
    is_failing: bool,
}

impl DiskWriter {
    /// Commits the next batch, which may take `wait` to arrive; before the file is open: opens it, and sends
    /// its records. After a failure it `pause`s, and tries again in the next call. False: the store thread
    /// has ended.
    pub fn step(&mut self, wait: Duration, pause: impl FnOnce(Duration)) -> bool {
        match self.send_reports() {
            Ok(true) => {}
            Ok(false) => {
                pause(REPORT_PAUSE);
                return true;
            }
            Err(StoreEnded) => return false,
        }
        self.work(wait, pause) && self.send_reports().is_ok()
    }

    fn work(&mut self, wait: Duration, pause: impl FnOnce(Duration)) -> bool {
        if self.state.late.is_some() {
            self.send_late();
            return true;
        }
        let batch = match self.state.unwritten.take().map_or_else(|| next(&self.batches, wait), Ok) {
            Ok(batch) => batch,
            // A file that another process had open may be free now.
            Err(RecvTimeoutError::Timeout) if !self.is_loaded => {
                self.open_late();
                self.send_late();
                return true;
            }
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        if let Err(error) = self.write(&batch) {
            self.state.unwritten = Some(batch);
            self.metrics.traits.commits_failed.add(1);
            if !std::mem::replace(&mut self.state.is_failing, true) {
                let hint = "traits are kept in memory, and written when the disk can be written again";
                let fields: [(_, &dyn Display); 2] = [("error", &error), ("hint", &hint)];
                self.log.event(Level::Error, "traits_not_written", &fields);
            }
            pause(RETRY_INTERVAL);
            return true;
        }
        if std::mem::take(&mut self.state.is_failing) {
            self.log.event(Level::Info, "traits_written_again", &[]);
        }
        self.metrics.traits.commits.add(1);
        self.report(DiskReport::Committed);
        true
    }

    /// Whether the last commit failed, or the file could not be opened: [`step`](Self::step) tries again.
    pub fn is_failing(&self) -> bool {
        self.state.is_failing || !self.is_loaded
    }

    /// Sends a report at the end of the step, after those that wait.
    fn report(&mut self, report: DiskReport) {
        self.state.unsent.push_back(report);
    }

    /// Returns whether all were sent. False: the store thread has not read those before.
    fn send_reports(&mut self) -> Result<bool, StoreEnded> {
        while let Some(report) = self.state.unsent.pop_front() {
            match self.reports.try_send(report) {
                Ok(()) => {}
                Err(TrySendError::Disconnected(_)) => return Err(StoreEnded),
                Err(TrySendError::Full(report)) => {
                    self.state.unsent.push_front(report);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn write(&mut self, batch: &[FileChange]) -> Result<(), TraitFileError> {
        let file = match self.file.take() {
            Some(file) => Ok(file),
            None => self.open_again(),
        };
        // After an error the engine refuses everything: the file is opened again for the next attempt.
        let error = match file.and_then(|file| file.commit(batch).map(|()| file)) {
            Ok(file) => {
                self.file = Some(file);
                return Ok(());
            }
            Err(error) => error,
        };
        if !matches!(error, TraitFileError::Damaged(_)) {
            return Err(error);
        }
        // Everything is in memory.
        let (file, damage) = TraitFile::replace(&self.folder, error, 0)?;
        self.replaced(&damage);
        file.commit(batch)?;
        self.file = Some(file);
        Ok(())
    }

    /// Opens the file after an error. A new one, because the other was removed, must get everything.
    fn open_again(&mut self) -> Result<TraitFile, TraitFileError> {
        let file = TraitFile::open_unread(&self.folder)?;
        if !file.has_records()? {
            self.report(DiskReport::Replaced);
        }
        Ok(file)
    }

    /// Opens a file that could not be opened at the start.
    fn open_late(&mut self) {
        let opened = TraitFile::open_unread(&self.folder).and_then(|mut file| {
            file.verify()?;
            Ok(file)
        });
        let opened = match opened {
            Err(error @ TraitFileError::Damaged(_)) => self.salvage_late(error),
            opened => opened.map(|file| {
                self.state.late = Some(LateFile { file, position: ReadPosition::default() });
            }),
        };
        let has_failed = opened.is_err_and(|error| !matches!(error, TraitFileError::Locked));
        self.metrics.traits.commits_failed.add(u64::from(has_failed));
    }

    /// Sends the next records of the file that was opened late.
    fn send_late(&mut self) {
        let Some(mut late) = self.state.late.take() else { return };
        let mut records = Vec::new();
        let read = late.file.read(&mut late.position, LATE_RECORDS_MAX, &mut |environment, record| {
            records.push((environment.to_owned(), record.bytes().to_vec()));
        });
        match read {
            Ok(has_more) => {
                self.report(DiskReport::Late(records));
                match has_more {
                    true => self.state.late = Some(late),
                    false => self.opened(late.file),
                }
            }
            Err(error @ TraitFileError::Damaged(_)) => {
                drop(late);
                let failed = self.salvage_late(error).is_err();
                self.metrics.traits.commits_failed.add(u64::from(failed));
            }
            // It is opened again in a later step.
            Err(_) => self.metrics.traits.commits_failed.add(1),
        }
    }

    /// Sends what can be read of a damaged file that was opened late, and replaces it.
    fn salvage_late(&mut self, error: TraitFileError) -> Result<(), TraitFileError> {
        let mut records = Vec::new();
        let recovered = salvage(&self.folder, &mut |environment, record| {
            records.push((environment.to_owned(), record.bytes().to_vec()));
        })?;
        let (file, damage) = TraitFile::replace(&self.folder, error, recovered)?;
        self.report(DiskReport::Late(records));
        self.opened(file);
        self.replaced(&damage);
        Ok(())
    }

    fn opened(&mut self, file: TraitFile) {
        self.is_loaded = true;
        self.file = Some(file);
        self.report(DiskReport::Opened);
    }

    /// The new file must get everything that is in memory.
    fn replaced(&mut self, damage: &Damage) {
        report_damage(damage, &self.folder, &self.metrics, &self.log);
        self.report(DiskReport::Replaced);
    }
}

/// The next message; without a `wait` the thread does not sleep.
pub fn next<T>(receiver: &Receiver<T>, wait: Duration) -> Result<T, RecvTimeoutError> {
    match wait {
        Duration::ZERO => receiver.try_recv().map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        }),
        wait => receiver.recv_timeout(wait),
    }
}

/// Logs and counts a damaged file.
pub fn report_damage(damage: &Damage, folder: &DiskFolder, metrics: &Metrics, log: &Log) {
    metrics.traits.files_damaged.add(1);
    let path = folder.path.join(FILE);
    let (path, moved_to) = (path.display(), damage.moved_to.display());
    let fields: [(_, &dyn Display); 4] = [
        ("path", &path),
        ("error", &damage.error),
        ("moved_to", &moved_to),
        ("recovered_identities", &damage.recovered),
    ];
    log.event(Level::Error, "traits_file_damaged", &fields);
}
