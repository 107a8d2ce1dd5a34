//! Where the records of a spool are, and how much of each segment is in use.
use std::collections::BTreeMap;

use crate::limits;
use crate::storage::spool::format;
use crate::storage::spool::record::RecordId;

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub struct RecordLocation {
    pub segment: u64,
    pub offset: u32,
    pub payload_bytes: u32,
}

impl RecordLocation {
    pub fn charged_bytes(self) -> u64 {
        charged_bytes(self.payload_bytes as usize)
    }
}

/// What a record counts towards `bytes_max`: each has an entry in memory too.
pub fn charged_bytes(payload_bytes: usize) -> u64 {
    (format::record_bytes(payload_bytes) as u64).max(limits::SPOOL_RECORD_BYTES_MIN)
}

/// The records of a segment that are not done.
#[derive(Clone, Copy, Debug, Default)]
struct SegmentUse {
    /// All records, done or not, as charged.
    bytes: u64,
    live_bytes: u64,
    live_records: u64,
}

/// The records that are not done, by number, and the segments.
#[derive(Debug, Default)]
pub struct SpoolIndex {
    segments: BTreeMap<u64, SegmentUse>,
    records: BTreeMap<RecordId, RecordLocation>,
    /// The sums of all segments.
    bytes: u64,
    live_bytes: u64,
}

impl SpoolIndex {
    /// Bytes of all segments, as charged.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the records that are not done.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn get(&self, id: RecordId) -> Option<RecordLocation> {
        self.records.get(&id).copied()
    }

    /// Where these records are, as far as they are not done.
    pub fn locations(&self, ids: &[RecordId]) -> Vec<RecordLocation> {
        ids.iter().filter_map(|id| self.get(*id)).collect()
    }

    /// Adds a segment, unless it is there.
    pub fn add_segment(&mut self, segment: u64) {
        self.segments.entry(segment).or_default();
    }

    pub fn has_segment(&self, segment: u64) -> bool {
        self.segments.contains_key(&segment)
    }

    /// Whether it is a segment of which no record is left.
    pub fn is_unused(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_some_and(|found| found.live_records == 0)
    }

    /// The numbers of all segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = u64> {
        self.segments.keys().copied()
    }

    /// The segments of which less than half is in use.
    pub fn sparse_segments(&self) -> Vec<u64> {
        let is_sparse = |found: &SegmentUse| found.live_bytes * 2 < found.bytes;
        self.segments.iter().filter(|(_, found)| is_sparse(found)).map(|(segment, _)| *segment).collect()
    }

    /// The records of a segment that are not done, in order.
    pub fn records_in(&self, segment: u64) -> Vec<RecordId> {
        let is_in = |location: &RecordLocation| location.segment == segment;
        self.records.iter().filter(|(_, location)| is_in(location)).map(|(id, _)| *id).collect()
    }

    /// Adds a record. Returns where it was before: release that location.
    pub fn insert(&mut self, id: RecordId, location: RecordLocation) -> Option<RecordLocation> {
        self.charge(location.segment, location.charged_bytes());
        let segment = self.segments.entry(location.segment).or_default();
        segment.live_bytes += location.charged_bytes();
        segment.live_records += 1;
        self.live_bytes += location.charged_bytes();
        self.records.insert(id, location)
    }

    /// Charges bytes to a segment.
    pub fn charge(&mut self, segment: u64, bytes: u64) {
        self.segments.entry(segment).or_default().bytes += bytes;
        self.bytes += bytes;
    }

    /// Removes a record. Returns where it was: release that location.
    pub fn remove(&mut self, id: RecordId) -> Option<RecordLocation> {
        self.records.remove(&id)
    }

    /// Takes a record out of its segment. True: delete the segment, of which no record is left.
    pub fn release(&mut self, location: RecordLocation) -> bool {
        let Some(segment) = self.segments.get_mut(&location.segment) else { return false };
        segment.live_records = segment.live_records.saturating_sub(1);
        segment.live_bytes = segment.live_bytes.saturating_sub(location.charged_bytes());
        self.live_bytes = self.live_bytes.saturating_sub(location.charged_bytes());
        segment.live_records == 0
    }

    pub fn remove_segment(&mut self, segment: u64) {
        let bytes = self.segments.remove(&segment).map_or(0, |found| found.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}
