//! The files of a spool: segments, and the lock.
use std::io;
use std::path::{Path, PathBuf};

use crate::limits;
use crate::storage::disk::{DiskFile, DiskFolder};
use crate::storage::spool::format::segment_header;

/// The name of a segment is its number in `NAME_DIGITS` hexadecimal digits, with this extension.
const EXTENSION: &str = ".segment";
const NAME_DIGITS: usize = 16;
const LOCK: &str = "lock";

pub fn segment_path(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("{segment:0NAME_DIGITS$x}{EXTENSION}"))
}

/// The numbers of all segments in a folder, in order. Other files are ignored.
pub fn segments_in(folder: &DiskFolder) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in folder.disk.entries(&folder.path)? {
        let digits = entry.name.as_deref().and_then(|name| name.strip_suffix(EXTENSION));
        let number = digits.filter(|digits| digits.len() == NAME_DIGITS && is_lower_hex(digits));
        // Links and directories with such names are not ours.
        if entry.is_file {
            found.extend(number.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// No folder has this name.
pub fn lacks_folder(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a spool below `parent` has segments. It may be in use.
pub fn has_records(parent: &DiskFolder) -> bool {
    let has_segments =
        |slot: u32| segments_in(&parent.join(&slot.to_string())).is_ok_and(|found| !found.is_empty());
    (0..limits::SPOOLS_MAX).any(has_segments)
}

/// Locks a folder for this process; `None` if another one has it. The lock ends with the returned file.
pub fn lock(folder: &DiskFolder) -> io::Result<Option<Box<dyn DiskFile>>> {
    folder.disk.lock(&folder.path.join(LOCK))
}

/// The segment that records are appended to.
#[derive(Debug)]
pub struct Tail {
    file: Box<dyn DiskFile>,
    number: u64,
    bytes: u64,
    is_synced: bool,
    /// The name of the file is on the disk itself.
    is_name_synced: bool,
    /// Nothing follows the first `bytes` bytes.
    is_whole: bool,
}

impl Tail {
    pub fn create(folder: &DiskFolder, number: u64, spool: [u8; 16], syncs: bool) -> io::Result<Self> {
        let path = segment_path(&folder.path, number);
        let file = folder.create_file(&path)?;
        let mut tail =
            Self { file, number, bytes: 0, is_synced: true, is_name_synced: false, is_whole: true };
        let header = segment_header(spool);
        let written = tail.write(&header).and_then(|()| if syncs { tail.sync_name(folder) } else { Ok(()) });
        if let Err(error) = written {
            let _ = folder.disk.remove(&path);
            return Err(error);
        }
        Ok(tail)
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the file still has a name.
    pub fn is_linked(&self) -> bool {
        self.file.is_linked()
    }

    /// Whether the file is as it was before a failed write. If not, nothing may be appended to it.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Appends all of `bytes`, or nothing if it fails.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(bytes, self.bytes) {
            self.is_whole = self.file.set_len(self.bytes).is_ok();
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        self.is_synced = false;
        Ok(())
    }

    /// Whether all that was written is on the disk itself, with the name of the file.
    pub fn is_synced(&self) -> bool {
        self.is_synced && self.is_name_synced
    }

    pub fn sync(&mut self, folder: &DiskFolder) -> io::Result<()> {
        if !self.is_synced {
            self.file.sync()?;
            self.is_synced = true;
        }
        self.sync_name(folder)
    }

    /// A file whose name is not on the disk itself is lost with the power, also if its content is
    /// (fsync(2)).
    fn sync_name(&mut self, folder: &DiskFolder) -> io::Result<()> {
        if !self.is_name_synced {
            folder.disk.sync_folder(&folder.path)?;
            self.is_name_synced = true;
        }
        Ok(())
    }
}
