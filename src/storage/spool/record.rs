//! What callers of a spool see: its options, records and errors.
use std::fmt;
use std::io;

/// What a spool may take, and when it waits for the disk.
#[derive(Clone, Copy, Debug)]
pub struct SpoolOptions {
    /// Limit of all records, bytes on disk; a small record counts as `limits::SPOOL_RECORD_BYTES_MIN`.
    pub bytes_max: u64,
    /// Changes of states are written to the disk before they are reported as made.
    pub syncs: bool,
}

/// Identifies a record of a spool. Later records have greater numbers; none is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(u64);

impl RecordId {
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    pub fn number(self) -> u64 {
        self.0
    }
}

/// A record that an earlier process left.
#[derive(Debug)]
pub struct RecoveredRecord<'a> {
    pub id: RecordId,
    /// The batch that it was part of, if it was.
    pub batch: Option<u64>,
    pub payload: &'a [u8],
}

/// What was found when a spool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    pub records: u64,
    pub bytes: u64,
    /// Damaged records, which are lost.
    pub damaged: u64,
    /// Files that are not segments of this version; they are left as they are.
    pub ignored: u64,
}

/// Why a record was not appended or read.
#[derive(Debug)]
pub enum SpoolError {
    /// `bytes_max` is reached.
    Full,
    /// The record was damaged after it was written.
    Damaged,
    Io(io::Error),
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the spool is full"),
            Self::Damaged => f.write_str("the record is damaged"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SpoolError {}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
