//! The file of the access log (`logging.access_log_file`). Only the writer thread writes to it.
use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An open file, and the lines that wait to be written.
#[derive(Debug)]
pub struct AccessFile {
    path: PathBuf,
    file: File,
    lines: Vec<u8>,
    /// The last write failed, and that was reported.
    is_failing: bool,
}

impl AccessFile {
    /// Opens a file to append to it, and creates it if it does not exist, readable by its owner and group.
    ///
    /// # Errors
    /// It cannot be opened, or is neither a regular file nor a character device such as `/dev/stderr`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self { path: path.to_owned(), file, lines: Vec::new(), is_failing: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the path again: after a rotation it names another file. After an error the file in use is kept.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn append(&mut self, line: impl FnOnce(&mut Vec<u8>)) {
        line(&mut self.lines);
    }

    /// Writes the lines. Returns how many were lost, and the error if the write before succeeded.
    pub(super) fn write(&mut self) -> (u64, Option<io::Error>) {
        if self.lines.is_empty() {
            return (0, None);
        }
        let result = self.file.write_all(&self.lines);
        let lost = match &result {
            Ok(()) => 0,
            // A part may have been written, but how many lines that is does not matter.
            Err(_) => self.lines.iter().filter(|byte| **byte == b'\n').count() as u64,
        };
        self.lines.clear();
        let was_failing = std::mem::replace(&mut self.is_failing, result.is_err());
        (lost, result.err().filter(|_| !was_failing))
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe without a reader would block the start.
    let file =
        OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_char_device() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}
