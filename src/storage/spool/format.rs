//! The format of a spool's segment files, and the search for intact records in a damaged one.
//!
//! A segment is a header of 32 bytes, then records, each aligned to 8 bytes. All integers are little-endian.
//!
//! | segment header | bytes | record header | bytes |
//! |---|---|---|---|
//! | `EPSPOOL` and the version | 8 | magic `ff 45 50 01` | 4 |
//! | random number of the spool | 16 | length of the payload | 4 |
//! | zero | 8 | number of the record | 8 |
//! | | | state, overwritten in place | 8 |
//! | | | CRC-32 of the payload; CRC-32 of the header without state | 4, 4 |
use std::ops::Range;

/// The first bytes of a segment; the last one is the version.
const SEGMENT_MAGIC: [u8; 8] = *b"EPSPOOL\x01";
/// No UTF-8 text contains `ff`, so a payload of JSON cannot imitate a record.
const RECORD_MAGIC: [u8; 4] = [0xff, b'E', b'P', 1];
pub const SEGMENT_HEADER_BYTES: usize = 32;
pub const RECORD_HEADER_BYTES: usize = 32;
/// The state of a record in its header, so that a change needs no space on a full disk. It is one aligned
/// word, which a kill leaves as it was or as it was to be: no page of the file and no sector of the disk
/// divides it.
pub const STATE_OFFSET: usize = 16;
const ALIGNMENT: usize = 8;

/// What is to be done with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    Waiting,
    /// Part of a batch with this number, which may have been sent.
    Batched(u64),
    Done,
}

impl RecordState {
    const WAITING: u64 = 0;
    const DONE: u64 = u64::MAX;

    pub fn to_bytes(self) -> [u8; 8] {
        let number = match self {
            Self::Waiting => Self::WAITING,
            Self::Batched(batch) => batch.clamp(1, Self::DONE - 1),
            Self::Done => Self::DONE,
        };
        number.to_le_bytes()
    }

    fn from_number(number: u64) -> Self {
        match number {
            Self::WAITING => Self::Waiting,
            Self::DONE => Self::Done,
            batch => Self::Batched(batch),
        }
    }
}

/// One entry of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScannedRecord<'a> {
    Intact {
        number: u64,
        state: RecordState,
        /// Of the record's header in the segment.
        offset: usize,
        payload: &'a [u8],
    },
    /// A record with a wrong checksum, or bytes that are not a record. Done records do not count.
    Damaged(Range<usize>),
    /// The last record is incomplete: the process was killed while it wrote.
    Truncated(Range<usize>),
}

/// Why a file is not a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentError {
    /// Too short for a header.
    Truncated,
    Header,
    /// Written by another version of this program.
    Version(u8),
}

/// The header of a segment.
pub fn segment_header(spool: [u8; 16]) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..24].copy_from_slice(&spool);
    header
}

/// Reads the header of a segment: the random number of its spool.
///
/// # Errors
/// The bytes are not a segment of this version.
pub fn read_segment_header(bytes: &[u8]) -> Result<[u8; 16], SegmentError> {
    let Some(header) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
        return Err(SegmentError::Truncated);
    };
    if header[..7] != SEGMENT_MAGIC[..7] {
        return Err(SegmentError::Header);
    }
    if header[7] != SEGMENT_MAGIC[7] {
        return Err(SegmentError::Version(header[7]));
    }
    header[8..24].try_into().map_err(|_| SegmentError::Header)
}

/// The bytes that a record with this payload takes.
pub fn record_bytes(payload_bytes: usize) -> usize {
    RECORD_HEADER_BYTES + payload_bytes.next_multiple_of(ALIGNMENT)
}

/// Appends a record. `payload` has less than 4 GiB.
pub fn write_record(number: u64, state: RecordState, payload: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let payload_crc = crc(&[payload]).to_le_bytes();
    let identity = [&RECORD_MAGIC[..], &length.to_le_bytes(), &number.to_le_bytes()].concat();
    let header_crc = crc(&[&identity, &payload_crc]).to_le_bytes();
    out.reserve(record_bytes(payload.len()));
    for part in [&identity[..], &state.to_bytes(), &payload_crc, &header_crc, payload] {
        out.extend_from_slice(part);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

/// The number and state of the record that `bytes` are without padding; `None` if it is damaged.
pub fn read_record(bytes: &[u8]) -> Option<(u64, RecordState)> {
    let header = RecordHeader::read(bytes)?;
    let payload = bytes.get(RECORD_HEADER_BYTES..)?;
    let is_intact = payload.len() == header.length && crc(&[payload]) == header.payload_crc;
    is_intact.then_some((header.number, header.state))
}

/// All records of a segment, in order. A damaged one costs only itself: the search goes on after it.
pub fn scan(segment: &[u8]) -> impl Iterator<Item = ScannedRecord<'_>> {
    let mut at = SEGMENT_HEADER_BYTES;
    std::iter::from_fn(move || {
        let rest = segment.get(at..).filter(|rest| !rest.is_empty())?;
        let start = at;
        let Some(header) = RecordHeader::read(rest) else {
            at = next_header(segment, at + ALIGNMENT);
            let lost = start..at;
            let is_cut = at == segment.len() && rest.len() < RECORD_HEADER_BYTES;
            return Some(if is_cut { ScannedRecord::Truncated(lost) } else { ScannedRecord::Damaged(lost) });
        };
        let Some(payload) = rest.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + header.length) else {
            // The length is right, so that the segment ends too early, unless other records follow.
            at = next_header(segment, at + ALIGNMENT);
            let lost = start..at;
            let is_cut = at == segment.len();
            return Some(if is_cut { ScannedRecord::Truncated(lost) } else { ScannedRecord::Damaged(lost) });
        };
        at = (at + record_bytes(header.length)).min(segment.len());
        Some(if crc(&[payload]) == header.payload_crc || header.state == RecordState::Done {
            ScannedRecord::Intact { number: header.number, state: header.state, offset: start, payload }
        } else {
            // The record may end earlier than its length says, with others in it.
            at = next_header(segment, start + ALIGNMENT).min(at);
            ScannedRecord::Damaged(start..at)
        })
    })
}

/// The offset of the next record header from `at` on, or the end of the segment.
fn next_header(segment: &[u8], at: usize) -> usize {
    let mut at = at.next_multiple_of(ALIGNMENT);
    while let Some(rest) = segment.get(at..).filter(|rest| !rest.is_empty()) {
        if RecordHeader::read(rest).is_some() {
            return at;
        }
        at += ALIGNMENT;
    }
    segment.len()
}

struct RecordHeader {
    length: usize,
    number: u64,
    state: RecordState,
    payload_crc: u32,
}

impl RecordHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>()?;
        if header[..4] != RECORD_MAGIC {
            return None;
        }
        let (identity, rest) = header.split_at(STATE_OFFSET);
        let u32_at = |from: usize| rest.get(from..from + 4)?.try_into().ok().map(u32::from_le_bytes);
        let payload_crc = u32_at(8)?;
        if crc(&[identity, &payload_crc.to_le_bytes()]) != u32_at(12)? {
            return None;
        }
        Some(Self {
            length: usize::try_from(u32::from_le_bytes(identity[4..8].try_into().ok()?)).ok()?,
            number: u64::from_le_bytes(identity[8..16].try_into().ok()?),
            state: RecordState::from_number(u64::from_le_bytes(rest[..8].try_into().ok()?)),
            payload_crc,
        })
    }
}

/// CRC-32 as in gzip (RFC 1952 8).
fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(payloads: &[&str]) -> Vec<u8> {
        let mut bytes = segment_header([7; 16]).to_vec();
        for (number, payload) in payloads.iter().enumerate() {
            write_record(number as u64, RecordState::Waiting, payload.as_bytes(), &mut bytes);
        }
        bytes
    }

    fn payloads(segment: &[u8]) -> Vec<String> {
        let text = |record| match record {
            ScannedRecord::Intact { payload, .. } => Some(String::from_utf8_lossy(payload).into_owned()),
            _ => None,
        };
        scan(segment).filter_map(text).collect()
    }

    const THREE: [&str; 3] = ["{\"a\":1}", "", "{\"b\":\"0123456789012345678901234567890123456789\"}"];

    #[test]
    fn reads_what_was_written() {
        let bytes = segment(&THREE);
        assert_eq!(read_segment_header(&bytes), Ok([7; 16]));
        assert_eq!(payloads(&bytes), THREE);
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let mut other = bytes.clone();
        other[7] = 2;
        assert_eq!(read_segment_header(&other), Err(SegmentError::Version(2)));
        assert_eq!(read_segment_header(&bytes[..31]), Err(SegmentError::Truncated));
        for state in [RecordState::Waiting, RecordState::Batched(3), RecordState::Done] {
            let mut bytes = segment(&["x"]);
            let at = SEGMENT_HEADER_BYTES + STATE_OFFSET;
            bytes[at..at + 8].copy_from_slice(&state.to_bytes());
            let found = scan(&bytes).next();
            let expected = ScannedRecord::Intact { number: 0, state, offset: 32, payload: b"x" };
            assert_eq!(found, Some(expected));
        }
    }

    #[test]
    fn a_damaged_byte_costs_one_record_at_most() {
        let bytes = segment(&THREE);
        for at in SEGMENT_HEADER_BYTES..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            let left = payloads(&damaged);
            assert!(
                left.len() >= 2 && left.iter().all(|one| THREE.contains(&one.as_str())),
                "{at}: {left:?}"
            );
        }
    }

    #[test]
    fn a_segment_that_was_cut_loses_only_its_end() {
        let bytes = segment(&THREE);
        for end in SEGMENT_HEADER_BYTES..bytes.len() {
            let left = payloads(&bytes[..end]);
            assert!(THREE.iter().zip(&left).all(|(one, other)| one == other), "{end}: {left:?}");
            let is_damaged = scan(&bytes[..end]).any(|record| matches!(record, ScannedRecord::Damaged(_)));
            assert!(!is_damaged, "{end}");
        }
    }

    #[test]
    fn a_payload_cannot_imitate_a_record() {
        // A damaged record is searched for others: in its text none is found.
        let forged = segment(&["forged"])[SEGMENT_HEADER_BYTES..].to_vec();
        let text = String::from_utf8_lossy(&forged).into_owned();
        let mut bytes = segment(&[&"x".repeat(8), &text, "last"]);
        let second = SEGMENT_HEADER_BYTES + record_bytes(8);
        bytes[second + 24] ^= 1;
        assert_eq!(payloads(&bytes), ["xxxxxxxx", "last"]);
    }
}
