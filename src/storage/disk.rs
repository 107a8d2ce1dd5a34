//! The file system below `cache_dir`, as the stores use it.
//!
//! All that a store does to files goes through [`Disk`], in steps that a crash may separate: what is written
//! survives a loss of power only after a sync, and a rename only after a sync of its folder.
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use crate::files::{self, Links};

/// An entry of a folder.
#[derive(Debug)]
pub struct DiskEntry {
    /// `None` if it is not UTF-8.
    pub name: Option<String>,
    /// Neither a folder nor a link.
    pub is_file: bool,
    pub modified: Option<SystemTime>,
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// # Errors
    /// The disk is full or failed; some of the bytes may be written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// # Errors
    /// The disk failed, or the file is too short (`UnexpectedEof`).
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// The size of the file, bytes.
    ///
    /// # Errors
    /// The disk failed.
    fn size(&self) -> io::Result<u64>;

    /// # Errors
    /// The disk failed.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Waits until what was written is on the disk itself.
    ///
    /// # Errors
    /// The disk failed.
    fn sync(&self) -> io::Result<()>;

    /// Whether the file still has a name.
    fn is_linked(&self) -> bool;
}

/// A file system.
pub trait Disk: Debug + Send + Sync {
    /// Creates a folder that only the owner can read, and its parents, unless they exist.
    ///
    /// # Errors
    /// A folder cannot be created.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;

    /// Waits until the names in a folder are on the disk itself.
    ///
    /// # Errors
    /// The disk failed.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// # Errors
    /// The folder cannot be read.
    fn entries(&self, folder: &Path) -> io::Result<Vec<DiskEntry>>;

    /// Reads a regular file of at most `bytes_max` bytes; a link is an error.
    ///
    /// # Errors
    /// As [`files::read`].
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// Creates a file that only the owner can read.
    ///
    /// # Errors
    /// It exists, or cannot be created.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file to read it, or to write to it.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn open(&self, path: &Path, writes: bool) -> io::Result<Box<dyn DiskFile>>;

    /// Replaces a file atomically.
    ///
    /// # Errors
    /// The disk failed.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// # Errors
    /// The file does not exist, or cannot be removed.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Opens a file to read and to write it, and locks it for this process; it is created if needed. `None`
    /// if another process has it. The lock ends when the value is dropped, or with the process.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskFile>>>;
}

/// The file system of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemDisk;

impl DiskFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn is_linked(&self) -> bool {
        self.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }
}

impl Disk for SystemDisk {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<DiskEntry>> {
        let entry = |entry: fs::DirEntry| {
            // `DirEntry::metadata` does not follow symbolic links.
            let metadata = entry.metadata().ok();
            DiskEntry {
                name: entry.file_name().into_string().ok(),
                is_file: metadata.as_ref().is_some_and(fs::Metadata::is_file),
                modified: metadata.and_then(|metadata| metadata.modified().ok()),
            }
        };
        fs::read_dir(folder)?.map(|found| found.map(entry)).collect()
    }

    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        files::read(path, Links::Refuse, bytes_max)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?))
    }

    fn open(&self, path: &Path, writes: bool) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(!writes).write(writes).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A folder, and the file system that it is in.
#[derive(Clone, Debug)]
pub struct DiskFolder {
    pub disk: Arc<dyn Disk>,
    pub path: PathBuf,
}

impl DiskFolder {
    pub fn new(disk: Arc<dyn Disk>, path: &Path) -> Self {
        Self { disk, path: path.to_owned() }
    }

    /// The folder or file `name` in this one.
    pub fn join(&self, name: &str) -> Self {
        Self { disk: Arc::clone(&self.disk), path: self.path.join(name) }
    }

    /// Creates the folder and its parents, unless they exist.
    ///
    /// # Errors
    /// As [`Disk::create_folder`].
    pub fn create(&self) -> io::Result<()> {
        self.disk.create_folder(&self.path)
    }

    /// As [`Disk::create`]. The folder is created if it was removed after the start.
    ///
    /// # Errors
    /// As [`Disk::create`] and [`Disk::create_folder`].
    pub fn create_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => self.create().and_then(|()| self.disk.create(path)),
            _ => Err(error),
        })
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for DiskFolder {
    fn from(path: &P) -> Self {
        Self::new(Arc::new(SystemDisk), path.as_ref())
    }
}
