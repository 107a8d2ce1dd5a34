//! A spool: records on disk that wait until they are delivered, read back in order after a restart.
//!
//! Records are appended to segment files ([`format`]) and written in groups: after [`Spool::commit`] they
//! survive the end of the process, after [`Spool::sync`] a loss of power. The state of a record is changed in
//! place, and a segment is deleted when all its records are done. One process uses a spool, by a lock that
//! the kernel releases when it ends; [`Spool::open_any`] gives each process its own, and
//! [`Spool::open_abandoned`] those of processes that have ended.
pub mod format;
mod index;
mod record;
mod segment;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use crate::storage::disk::{DiskFile, DiskFolder};
use crate::storage::spool::format::{RecordState, ScannedRecord, SegmentError};
use crate::storage::spool::index::{RecordLocation, SpoolIndex, charged_bytes};
pub use crate::storage::spool::record::{RecordId, RecoveredRecord, Recovery, SpoolError, SpoolOptions};
pub use crate::storage::spool::segment::has_records;
use crate::storage::spool::segment::{Tail, lacks_folder, lock, segment_path, segments_in};
use crate::{clock, limits};

/// Records that wait on disk.
#[derive(Debug)]
pub struct Spool {
    folder: DiskFolder,
    /// Locked while the spool is open.
    _lock: Box<dyn DiskFile>,
    number: [u8; 16],
    options: SpoolOptions,
    index: SpoolIndex,
    tail: Option<Tail>,
    /// Segments other than the last one with records that may not be on the disk itself yet.
    unsynced: BTreeSet<u64>,
    /// Copies of records that stay where they are: to be marked as done before any record is removed.
    copies: Vec<RecordLocation>,
    next_record: u64,
    next_segment: u64,
    /// Records since the last commit.
    buffer: Vec<u8>,
    uncommitted: Vec<(RecordId, u32, u32)>,
    uncommitted_bytes: u64,
}

impl Spool {
    /// Opens the first spool below `parent` that is not open, and creates it if needed. `recovered` is called
    /// for each record that is not done, in order.
    ///
    /// # Errors
    /// The folder cannot be created, locked or read.
    pub fn open_any(
        parent: impl Into<DiskFolder>,
        options: SpoolOptions,
        mut recovered: impl FnMut(RecoveredRecord<'_>),
    ) -> io::Result<(Self, Recovery)> {
        let parent = parent.into();
        for slot in 0..limits::SPOOLS_MAX {
            let folder = parent.join(&slot.to_string());
            folder.create()?;
            if let Some(lock) = lock(&folder)? {
                return Self::open(folder, lock, options, &mut recovered);
            }
        }
        let message = format!("all {} spools in {} are in use", limits::SPOOLS_MAX, parent.path.display());
        Err(io::Error::new(io::ErrorKind::WouldBlock, message))
    }

    /// Opens a spool below `parent` that another process has left with records; `None` if there is none.
    ///
    /// # Errors
    /// A folder cannot be locked or read.
    pub fn open_abandoned(
        parent: impl Into<DiskFolder>,
        options: SpoolOptions,
        mut recovered: impl FnMut(RecoveredRecord<'_>),
    ) -> io::Result<Option<(Self, Recovery)>> {
        let parent = parent.into();
        for slot in 0..limits::SPOOLS_MAX {
            let folder = parent.join(&slot.to_string());
            match segments_in(&folder) {
                Ok(segments) if segments.is_empty() => continue,
                Err(error) if lacks_folder(&error) => continue,
                found => drop(found?),
            }
            if let Some(lock) = lock(&folder)? {
                return Self::open(folder, lock, options, &mut recovered).map(Some);
            }
        }
        Ok(None)
    }

    fn open(
        folder: DiskFolder,
        lock: Box<dyn DiskFile>,
        options: SpoolOptions,
        recovered: &mut dyn FnMut(RecoveredRecord<'_>),
    ) -> io::Result<(Self, Recovery)> {
        let number = clock::random_bytes().map_err(io::Error::other)?;
        let mut spool = Self {
            folder,
            _lock: lock,
            number,
            options,
            index: SpoolIndex::default(),
            tail: None,
            unsynced: BTreeSet::new(),
            copies: Vec::new(),
            next_record: 1,
            next_segment: 1,
            buffer: Vec::new(),
            uncommitted: Vec::new(),
            uncommitted_bytes: 0,
        };
        let mut recovery = Recovery::default();
        for segment in segments_in(&spool.folder)? {
            spool.next_segment = spool.next_segment.max(segment + 1);
            spool.recover(segment, &mut recovery, recovered)?;
        }
        // What a process wrote that was killed before it synced. A disk that fails is reported by the next
        // sync, which tries again.
        spool.unsynced = spool.index.segments().collect();
        let _ = spool.sync_unsynced();
        recovery.records = spool.index.len() as u64;
        recovery.bytes = spool.bytes();
        Ok((spool, recovery))
    }

    /// Adds the records of one segment of an earlier process.
    fn recover(
        &mut self,
        segment: u64,
        recovery: &mut Recovery,
        recovered: &mut dyn FnMut(RecoveredRecord<'_>),
    ) -> io::Result<()> {
        let path = self.path_of(segment);
        let bytes = self.folder.disk.read(&path, limits::CACHE_FILE_BYTES_MAX)?;
        match format::read_segment_header(&bytes) {
            Ok(number) => self.number = number,
            // Its process was killed while it created the file.
            Err(SegmentError::Truncated) => return self.folder.disk.remove(&path),
            Err(SegmentError::Header | SegmentError::Version(_)) => {
                recovery.ignored += 1;
                return Ok(());
            }
        }
        self.index.add_segment(segment);
        let mut repeated = Vec::new();
        for record in format::scan(&bytes) {
            let (number, state, offset, payload) = match record {
                ScannedRecord::Intact { number, state, offset, payload } => (number, state, offset, payload),
                ScannedRecord::Damaged(_) => {
                    recovery.damaged += 1;
                    continue;
                }
                ScannedRecord::Truncated(_) => continue,
            };
            self.next_record = self.next_record.max(number.saturating_add(1));
            let id = RecordId::new(number);
            if state == RecordState::Done {
                continue;
            }
            let location = RecordLocation {
                segment,
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            };
            if self.contains(id) {
                // A process that was killed while it moved records has left this one twice.
                repeated.push(location);
                continue;
            }
            self.index.insert(id, location);
            let batch = match state {
                RecordState::Batched(batch) => Some(batch),
                RecordState::Waiting | RecordState::Done => None,
            };
            recovered(RecoveredRecord { id, batch, payload });
        }
        self.mark(&repeated, RecordState::Done)?;
        if self.index.is_unused(segment) {
            self.delete_segment(segment);
        }
        Ok(())
    }

    /// Writes the segments other than the last one to the disk itself.
    fn sync_unsynced(&mut self) -> io::Result<()> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        for segment in &self.unsynced {
            match self.folder.disk.open(&self.path_of(*segment), true) {
                // Deleted by another program.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => opened?.sync()?,
            }
        }
        self.folder.disk.sync_folder(&self.folder.path)?;
        self.unsynced.clear();
        Ok(())
    }

    fn path_of(&self, segment: u64) -> PathBuf {
        segment_path(&self.folder.path, segment)
    }

    /// A random number that all segments of this spool have, also after a restart.
    pub fn number(&self) -> [u8; 16] {
        self.number
    }

    /// Bytes of all segments, as charged against the limit.
    pub fn bytes(&self) -> u64 {
        self.index.bytes() + self.uncommitted_bytes
    }

    /// Bytes of the records that are not done.
    pub fn live_bytes(&self) -> u64 {
        self.index.live_bytes()
    }

    /// Whether a record is committed and not removed.
    pub fn contains(&self, id: RecordId) -> bool {
        self.index.get(id).is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Appends records to the group that [`commit`](Self::commit) writes: all, or none.
    ///
    /// # Errors
    /// [`SpoolError::Full`].
    pub fn append(&mut self, payloads: &[Vec<u8>]) -> Result<Vec<RecordId>, SpoolError> {
        let bytes: u64 = payloads.iter().map(|payload| charged_bytes(payload.len())).sum();
        if self.bytes() + bytes > self.options.bytes_max {
            // Segments may be pinned by a few records that cannot be delivered.
            self.compact()?;
            if self.bytes() + bytes > self.options.bytes_max {
                return Err(SpoolError::Full);
            }
        }
        Ok(payloads.iter().map(|payload| self.append_beyond(payload)).collect())
    }

    /// As [`append`](Self::append), also if the spool is full: for a record that replaces another one.
    pub fn append_beyond(&mut self, payload: &[u8]) -> RecordId {
        let id = RecordId::new(self.next_record);
        self.next_record += 1;
        let offset = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        format::write_record(id.number(), RecordState::Waiting, payload, &mut self.buffer);
        self.uncommitted.push((id, offset, payload_bytes));
        self.uncommitted_bytes += charged_bytes(payload.len());
        id
    }

    /// Writes the appended records; they survive the end of this process from then on.
    ///
    /// # Errors
    /// The disk is full or failed. None of the records since the last commit is in the spool.
    pub fn commit(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let appended = std::mem::take(&mut self.uncommitted);
        self.uncommitted_bytes = 0;
        if buffer.is_empty() {
            return Ok(());
        }
        let (segment, start) = self.write(&buffer)?;
        for (id, offset, payload_bytes) in appended {
            let offset = start.saturating_add(offset);
            self.index.insert(id, RecordLocation { segment, offset, payload_bytes });
        }
        Ok(())
    }

    /// Writes to the last segment, or to a new one. Returns the segment and the offset in it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<(u64, u32)> {
        let segment_bytes = (self.options.bytes_max / limits::SPOOL_SEGMENTS)
            .clamp(limits::SPOOL_SEGMENT_BYTES_MIN, limits::SPOOL_SEGMENT_BYTES_MAX);
        // Records in a file that another program deleted would be lost at the next start.
        let is_usable = |tail: &Tail| tail.bytes() < segment_bytes && tail.is_linked();
        if self.tail.as_ref().is_none_or(|tail| !is_usable(tail)) {
            self.sync()?;
            let (segment, syncs) = (self.next_segment, self.options.syncs);
            self.tail = None;
            // Also if this fails: a file that could not be removed keeps its name.
            self.next_segment += 1;
            self.tail = Some(Tail::create(&self.folder, segment, self.number, syncs)?);
        }
        let Some(tail) = &mut self.tail else { return Err(io::ErrorKind::NotFound.into()) };
        let (segment, start) = (tail.number(), u32::try_from(tail.bytes()).unwrap_or(u32::MAX));
        if let Err(error) = tail.write(bytes) {
            if !tail.is_whole() {
                self.close_segment();
            } else if !self.index.has_segment(segment) {
                self.delete_segment(segment);
            }
            return Err(error);
        }
        self.index.add_segment(segment);
        Ok((segment, start))
    }

    /// Later records go to a new file, so that the others can be deleted.
    pub fn close_segment(&mut self) {
        if let Some(tail) = self.tail.take().filter(|tail| !tail.is_synced()) {
            self.unsynced.insert(tail.number());
        }
    }

    /// Writes all committed records to the disk; they survive a loss of power from then on.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync(&mut self) -> io::Result<()> {
        self.sync_unsynced()?;
        self.tail.as_mut().map_or(Ok(()), |tail| tail.sync(&self.folder))
    }

    /// Reads the payload of a record.
    ///
    /// # Errors
    /// The file cannot be read, or the record is damaged: remove it then.
    pub fn read(&self, id: RecordId) -> Result<Vec<u8>, SpoolError> {
        self.read_with_state(id).map(|(_, payload)| payload)
    }

    fn read_with_state(&self, id: RecordId) -> Result<(RecordState, Vec<u8>), SpoolError> {
        let location = self.index.get(id).ok_or(SpoolError::Damaged)?;
        let path = self.path_of(location.segment);
        let file = match self.folder.disk.open(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SpoolError::Damaged),
            opened => opened?,
        };
        let mut bytes = vec![0; format::RECORD_HEADER_BYTES + location.payload_bytes as usize];
        match file.read_exact_at(&mut bytes, location.offset.into()) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(SpoolError::Damaged),
            read => read?,
        }
        match format::read_record(&bytes) {
            Some((number, state)) if number == id.number() => {
                bytes.drain(..format::RECORD_HEADER_BYTES);
                Ok((state, bytes))
            }
            _ => Err(SpoolError::Damaged),
        }
    }

    /// Marks records as part of a batch, so that after a restart they are in the same batch again.
    ///
    /// # Errors
    /// The disk failed; some of the records may be marked.
    pub fn mark_batch(&mut self, ids: &[RecordId], batch: u64) -> io::Result<()> {
        self.mark(&self.index.locations(ids), RecordState::Batched(batch))
    }

    /// Marks records as done, which removes them.
    ///
    /// # Errors
    /// The disk failed, and none was removed: call it again with the same records.
    pub fn remove(&mut self, ids: &[RecordId]) -> io::Result<()> {
        self.mark_copies()?;
        self.mark(&self.index.locations(ids), RecordState::Done)?;
        for id in ids {
            if let Some(location) = self.index.remove(*id) {
                self.release(location);
            }
        }
        Ok(())
    }

    /// As [`remove`](Self::remove), and a loss of power does not bring them back.
    ///
    /// # Errors
    /// The disk failed: call it again with the same records.
    pub fn remove_durably(&mut self, ids: &[RecordId]) -> io::Result<()> {
        self.remove(ids)?;
        self.folder.disk.sync_folder(&self.folder.path)
    }

    fn mark(&self, locations: &[RecordLocation], state: RecordState) -> io::Result<()> {
        let mut by_segment: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for location in locations {
            by_segment.entry(location.segment).or_default().push(location.offset);
        }
        for (segment, offsets) in by_segment {
            let opened = self.folder.disk.open(&self.path_of(segment), true);
            let file = match opened {
                // Deleted by another program: nothing is left to be marked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            for offset in offsets {
                file.write_all_at(&state.to_bytes(), u64::from(offset) + format::STATE_OFFSET as u64)?;
            }
            if self.options.syncs {
                file.sync()?;
            }
        }
        Ok(())
    }

    /// Takes a record out of its segment, and deletes the segment with the last one.
    fn release(&mut self, location: RecordLocation) {
        if self.index.release(location) {
            self.delete_segment(location.segment);
        }
    }

    fn delete_segment(&mut self, segment: u64) {
        if self.tail.as_ref().is_some_and(|tail| tail.number() == segment) {
            self.tail = None;
        }
        self.unsynced.remove(&segment);
        self.index.remove_segment(segment);
        // If this fails, all its records are done, and the next start deletes it.
        let _ = self.folder.disk.remove(&self.path_of(segment));
    }

    /// Moves the records of the segments that are mostly done to the last one, if that frees much.
    fn compact(&mut self) -> Result<(), SpoolError> {
        let (index, bytes_max) = (&self.index, self.options.bytes_max);
        // Beyond one and a half times the limit, copies are left that could not be synced.
        let has_space = index.live_bytes() <= bytes_max / 2 && index.bytes() <= bytes_max / 2 * 3;
        if !has_space || !self.buffer.is_empty() {
            return Ok(());
        }
        self.mark_copies()?;
        self.sync()?;
        for segment in self.index.sparse_segments() {
            if self.tail.as_ref().is_some_and(|tail| tail.number() == segment) {
                self.close_segment();
            }
            self.move_records(segment)?;
        }
        Ok(())
    }

    /// Moves the records of a segment to the last one, which deletes it. Its file stays until they are on the
    /// disk itself elsewhere.
    fn move_records(&mut self, segment: u64) -> Result<(), SpoolError> {
        let (mut buffer, mut moved) = (Vec::new(), Vec::new());
        for id in self.index.records_in(segment) {
            match self.read_with_state(id) {
                Ok((state, payload)) => {
                    moved.push((id, buffer.len(), payload.len()));
                    format::write_record(id.number(), state, &payload, &mut buffer);
                }
                // It stays where it is until it is read for its delivery.
                Err(SpoolError::Damaged) => {}
                Err(error) => return Err(error),
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let (last, start) = self.write(&buffer)?;
        let location = |offset: usize, payload_bytes: usize| RecordLocation {
            segment: last,
            offset: start.saturating_add(u32::try_from(offset).unwrap_or(u32::MAX)),
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
        };
        let moved: Vec<(RecordId, RecordLocation)> =
            moved.into_iter().map(|(id, offset, bytes)| (id, location(offset, bytes))).collect();
        if let Err(error) = self.sync() {
            self.keep_in_place(last, moved.into_iter().map(|(_, location)| location));
            return Err(error.into());
        }
        for (id, location) in moved {
            // Released last, so that a segment is not deleted with a record that was moved within it.
            if let Some(before) = self.index.insert(id, location) {
                self.release(before);
            }
        }
        Ok(())
    }

    /// Gives up copies of records in this segment.
    fn keep_in_place(&mut self, segment: u64, copies: impl Iterator<Item = RecordLocation>) {
        for copy in copies {
            self.index.charge(segment, copy.charged_bytes());
            self.copies.push(copy);
        }
        // If this fails, it is tried again before a record is removed.
        if self.mark_copies().is_ok() && self.index.is_unused(segment) {
            self.delete_segment(segment);
        }
    }

    /// A copy of a record that is done would be recovered by the next process.
    fn mark_copies(&mut self) -> io::Result<()> {
        self.mark(&self.copies, RecordState::Done)?;
        self.copies.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
