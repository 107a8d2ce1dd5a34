//! A new file of the engine, with small regions.
//!
//! A commit from which the file opens without a scan includes the engine's list of free pages, which is as
//! large as a region allows: 3 MB for a single trait with the 4 GiB that the engine chooses, 30 kB with the
//! 16 MiB of this file. The engine reads the size from the file, but does not let a program choose it.
use std::io::{self, Read};

use flate2::read::GzDecoder;

use crate::storage::disk::DiskFile;

/// Made by `scripts/empty-traits-file`.
const EMPTY_FILE: &[u8] = include_bytes!("empty.redb.gz");
/// How a file of the engine begins.
pub const MAGIC: &[u8; 9] = b"redb\x1A\x0A\xA9\x0D\x0A";
const PAGE_BYTES: usize = 4096;

/// Whether a file that begins so was never made, or not completely: the process was killed.
pub fn is_unmade(beginning: &[u8]) -> bool {
    beginning.iter().all(|byte| *byte == 0)
}

/// Makes the file if it is new. The page with the magic number is written last.
///
/// # Errors
/// The disk is full or failed.
pub fn make(file: &dyn DiskFile) -> io::Result<()> {
    let mut beginning = vec![0; usize::try_from(file.size()?).unwrap_or(usize::MAX).min(MAGIC.len())];
    file.read_exact_at(&mut beginning, 0)?;
    if !is_unmade(&beginning) {
        return Ok(());
    }
    let mut bytes = Vec::new();
    GzDecoder::new(EMPTY_FILE).read_to_end(&mut bytes)?;
    file.set_len(bytes.len() as u64)?;
    let pages = bytes.chunks(PAGE_BYTES).enumerate();
    for (number, page) in pages.skip(1).filter(|(_, page)| !is_unmade(page)) {
        file.write_all_at(page, (number * PAGE_BYTES) as u64)?;
    }
    file.sync()?;
    file.write_all_at(bytes.get(..PAGE_BYTES).unwrap_or_default(), 0)?;
    file.sync()
}
