//! The files that the engine reads and writes, below `storage::disk`.
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::storage::disk::DiskFile;

/// Set once a file has returned an error that is not damage. Memory ordering: relaxed, because the thread
/// that called the engine reads it.
#[derive(Clone, Debug, Default)]
pub struct FailureFlag(Arc<AtomicBool>);

impl FailureFlag {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|error| !is_of_damage(error)) {
            self.0.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// Whether an error comes from reading what a damaged page refers to, rather than from the disk.
pub fn is_of_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

/// The most that the engine may read in one call, bytes: a damaged length must not take the memory.
const READ_BYTES_MAX: usize = 1 << 30;

fn read_exact(file: &dyn DiskFile, offset: u64, count: usize) -> io::Result<Vec<u8>> {
    if count > READ_BYTES_MAX {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// A file that is locked for this process.
#[derive(Debug)]
pub struct LockedFile {
    pub file: Box<dyn DiskFile>,
    pub failure: FailureFlag,
}

impl StorageBackend for LockedFile {
    fn len(&self) -> io::Result<u64> {
        self.failure.watch(self.file.size())
    }

    fn read(&self, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        self.failure.watch(read_exact(&*self.file, offset, count))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.failure.watch(self.file.set_len(len))
    }

    fn sync_data(&self, _is_eventual: bool) -> io::Result<()> {
        self.failure.watch(self.file.sync())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.failure.watch(self.file.write_all_at(bytes, offset))
    }
}

/// A file that is only read: what the engine writes, to repair it or to close it, is in memory.
#[derive(Debug)]
pub struct ReadOnlyFile {
    file: Box<dyn DiskFile>,
    failure: FailureFlag,
    state: Mutex<Written>,
}

/// What was written: bytes by their offset, which do not overlap; and the length after it.
#[derive(Debug)]
struct Written {
    pieces: BTreeMap<u64, Vec<u8>>,
    file_length: u64,
    length: u64,
}

impl ReadOnlyFile {
    /// # Errors
    /// The size of the file cannot be read.
    pub fn new(file: Box<dyn DiskFile>, failure: FailureFlag) -> io::Result<Self> {
        let length = failure.watch(file.size())?;
        let state = Mutex::new(Written { pieces: BTreeMap::new(), file_length: length, length });
        Ok(Self { file, failure, state })
    }

    fn state(&self) -> MutexGuard<'_, Written> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for ReadOnlyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().length)
    }

    fn read(&self, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        let state = self.state();
        let end = offset.checked_add(count as u64).filter(|end| *end <= state.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let in_file = state.file_length.saturating_sub(offset).min(count as u64);
        let in_file = read_exact(&*self.file, offset, index(in_file));
        let mut bytes = self.failure.watch(in_file)?;
        bytes.resize(count, 0);
        // The piece before the first may reach into these bytes.
        let first = state.pieces.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (start, piece) in state.pieces.range(first..end) {
            let piece_end = start + piece.len() as u64;
            if piece_end <= offset {
                continue;
            }
            let (from, to) = (offset.max(*start), end.min(piece_end));
            let part = &piece[index(from - start)..index(to - start)];
            bytes[index(from - offset)..index(to - offset)].copy_from_slice(part);
        }
        Ok(bytes)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.length = length;
        state.file_length = state.file_length.min(length);
        state.pieces.retain(|start, _| *start < length);
        for (start, piece) in &mut state.pieces {
            piece.truncate(index(length - start));
        }
        Ok(())
    }

    fn sync_data(&self, _is_eventual: bool) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        let end = offset + bytes.len() as u64;
        state.length = state.length.max(end);
        // What is left of older pieces before and after this one.
        let first = state.pieces.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        let starts: Vec<u64> = state.pieces.range(first..end).map(|(start, _)| *start).collect();
        for start in starts {
            let Some(mut piece) = state.pieces.remove(&start) else { continue };
            let piece_end = start + piece.len() as u64;
            if piece_end > end {
                state.pieces.insert(end, piece[index(end - start)..].to_vec());
            }
            if start < offset {
                piece.truncate(index(offset - start));
                state.pieces.insert(start, piece);
            }
        }
        state.pieces.insert(offset, bytes.to_vec());
        Ok(())
    }
}

/// An offset in bytes that are in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_file_reads_as_a_file_does_and_is_never_written() {
        let path = std::env::temp_dir().join(format!("edge-proxy-read-only-{}", std::process::id()));
        let mut model: Vec<u8> = (0..1000_u32).map(|number| number.to_le_bytes()[0]).collect();
        std::fs::write(&path, &model).unwrap();
        let opened = Box::new(std::fs::File::open(&path).unwrap());
        let (original, file) = (model.clone(), ReadOnlyFile::new(opened, FailureFlag::default()).unwrap());
        let mut random = 5_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % below
        };
        for step in 0..3000 {
            let (offset, count) = (next(1500), next(200));
            match next(20) {
                0 => {
                    model.resize(offset, 0);
                    file.set_len(offset as u64).unwrap();
                }
                1..8 => {
                    let data = vec![u8::try_from(step % 251).unwrap(); count];
                    if count > 0 {
                        model.resize(model.len().max(offset + count), 0);
                        model[offset..offset + count].copy_from_slice(&data);
                    }
                    file.write(offset as u64, &data).unwrap();
                }
                _ => {
                    let expected = model.get(offset..offset + count).map(<[u8]>::to_vec);
                    assert_eq!(file.read(offset as u64, count).ok(), expected, "step {step}");
                }
            }
            assert_eq!(file.len().unwrap(), model.len() as u64);
        }
        assert!(!file.failure.is_set(), "reading beyond the end does not count as a failure of the disk");
        assert_eq!(std::fs::read(&path).unwrap(), original);
        let _ = std::fs::remove_file(&path);
    }
}
