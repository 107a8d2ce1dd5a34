//! A file system of tests that fails when a test says so.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::disk::{Disk, DiskEntry, DiskFile, SystemDisk};

/// The file system of the operating system, with failures. Clones share them.
#[derive(Clone, Debug)]
pub struct FailingDisk(Arc<Failures>);

/// Memory ordering: relaxed, because nothing that was written before a change is read after it.
#[derive(Debug)]
struct Failures {
    reads_left: AtomicU32,
    refuses_writes: AtomicBool,
    refuses_syncs: AtomicBool,
    synced: Mutex<Vec<PathBuf>>,
}

impl Default for FailingDisk {
    fn default() -> Self {
        Self(Arc::new(Failures {
            reads_left: AtomicU32::new(u32::MAX),
            refuses_writes: AtomicBool::new(false),
            refuses_syncs: AtomicBool::new(false),
            synced: Mutex::default(),
        }))
    }
}

impl FailingDisk {
    /// Reads fail after this many.
    pub fn allow_reads(&self, count: u32) {
        self.0.reads_left.store(count, Ordering::Relaxed);
    }

    /// Whether a write stops after half of its bytes, and a file cannot be shortened.
    pub fn refuse_writes(&self, refuses: bool) {
        self.0.refuses_writes.store(refuses, Ordering::Relaxed);
    }

    /// Whether files cannot be synced.
    pub fn refuse_syncs(&self, refuses: bool) {
        self.0.refuses_syncs.store(refuses, Ordering::Relaxed);
    }

    /// The files that were synced since the last call.
    pub fn take_synced(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.synced())
    }

    fn synced(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_write(&self) -> io::Result<()> {
        if self.0.refuses_writes.load(Ordering::Relaxed) { Err(failure()) } else { Ok(()) }
    }
}

fn failure() -> io::Error {
    io::Error::other("input/output error")
}

#[derive(Debug)]
struct FailingFile(Box<dyn DiskFile>, FailingDisk, PathBuf);

impl DiskFile for FailingFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.1.check_write() {
            self.0.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        self.0.write_all_at(bytes, offset)
    }
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let reads = &self.1.0.reads_left;
        let left = reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map_err(|_| failure())?;
        self.0.read_exact_at(bytes, offset)
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.1.check_write()?;
        self.0.set_len(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        if self.1.0.refuses_syncs.load(Ordering::Relaxed) {
            return Err(failure());
        }
        self.1.synced().push(self.2.clone());
        self.0.sync()
    }
    fn is_linked(&self) -> bool {
        self.0.is_linked()
    }
}

impl Disk for FailingDisk {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        SystemDisk.create_folder(folder)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        SystemDisk.sync_folder(folder)
    }
    fn entries(&self, folder: &Path) -> io::Result<Vec<DiskEntry>> {
        SystemDisk.entries(folder)
    }
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        SystemDisk.read(path, bytes_max)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FailingFile(SystemDisk.create(path)?, self.clone(), path.into())))
    }
    fn open(&self, path: &Path, writes: bool) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FailingFile(SystemDisk.open(path, writes)?, self.clone(), path.into())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let file = SystemDisk.lock(path)?;
        Ok(file.map(|file| -> Box<dyn DiskFile> { Box::new(FailingFile(file, self.clone(), path.into())) }))
    }
}
