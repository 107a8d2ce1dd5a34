//! A record: the kept traits of one identity, as bytes. The same bytes are in memory and on disk.
//!
//! ```text
//! flags u8 | seen u32 | identifier: length, bytes | entry ...
//! entry:  tag u8 | stamp: clock u64, proxy u32 | born u64 | key: length, bytes | value
//! ```
//! Numbers are little-endian; lengths and integers are variable (7 bits a byte). The tag has the type of the
//! value, and whether the stamp and the time of birth are omitted: mostly a stamp follows the one before it.
use crate::engine::evaluate::TraitValue;

/// The identity was seen twice: it is evicted after those that were seen once.
const PROMOTED: u8 = 1;
/// The identity was erased or evicted: the record hides an older one.
const ERASED: u8 = 2;
const HEAD_BYTES: usize = 5;
/// The length of an identifier takes at most this.
const LENGTH_BYTES: usize = 4;

/// The clock and the number of the process.
const STAMP_BYTES: usize = 12;

const KIND_MASK: u8 = 0x07;
/// The stamp is that of the entry before, plus one tick of the clock.
const FOLLOWS: u8 = 0x08;
/// The key was stored by another write than the value: its time follows.
const HAS_BIRTH: u8 = 0x10;

const DELETED: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INTEGER: u8 = 3;
const BIG_INTEGER: u8 = 4;
const FLOAT: u8 = 5;
const TEXT: u8 = 6;

/// When and where a value was written. Of two values of a key the one with the greater stamp counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Hybrid clock: milliseconds since the Unix epoch times 65,536, plus a counter.
    pub clock: u64,
    /// The process that accepted the write.
    pub proxy: u32,
}

impl Stamp {
    /// The next stamp of the same process.
    pub fn next(self) -> Self {
        Self { clock: self.clock.wrapping_add(1), ..self }
    }
}

/// One key of an identity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry<'a> {
    pub key: &'a str,
    /// `None`: deleted (a tombstone, which only merging with other processes needs).
    pub value: Option<TraitValue<'a>>,
    pub stamp: Stamp,
    /// The clock when the key was stored first: keys are answered in this order.
    pub born: u64,
}

/// What a record says of its identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraitHead {
    pub is_promoted: bool,
    pub is_erased: bool,
    /// When the identity was last written or requested, in Unix seconds; coarse.
    pub seen: u32,
}

/// A record in its encoded form.
#[derive(Clone, Copy, Debug)]
pub struct TraitRecord<'a> {
    bytes: &'a [u8],
    identifier_end: usize,
    identifier_start: usize,
}

impl<'a> TraitRecord<'a> {
    /// `None` if the bytes do not begin like a record.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader { rest: bytes.get(HEAD_BYTES..)? };
        let before = reader.rest.len();
        let length = reader.length()?;
        let identifier_start = HEAD_BYTES + before - reader.rest.len();
        let identifier_end = identifier_start.checked_add(length)?;
        (identifier_end <= bytes.len()).then_some(Self { bytes, identifier_end, identifier_start })
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn identifier(&self) -> &'a [u8] {
        self.bytes.get(self.identifier_start..self.identifier_end).unwrap_or_default()
    }

    pub fn head(&self) -> TraitHead {
        let [flags, seen @ ..] = self.bytes.first_chunk::<HEAD_BYTES>().copied().unwrap_or_default();
        TraitHead {
            is_promoted: flags & PROMOTED != 0,
            is_erased: flags & ERASED != 0,
            seen: u32::from_le_bytes(seen),
        }
    }

    /// The keys in their order. Bytes that are not entries end it.
    pub fn entries(&self) -> Entries<'a> {
        let rest = self.bytes.get(self.identifier_end..).unwrap_or_default();
        Entries { reader: Reader { rest }, stamp: Stamp::default() }
    }

    /// The same record with another head.
    pub fn with_head(&self, head: TraitHead) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        write_head(head, &mut bytes);
        bytes.extend_from_slice(self.bytes.get(HEAD_BYTES..).unwrap_or_default());
        bytes
    }
}

/// The entries of a record, or of [`Changes`](crate::trait_table::Changes).
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    reader: Reader<'a>,
    stamp: Stamp,
}

impl<'a> Entries<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { reader: Reader { rest: bytes }, stamp: Stamp::default() }
    }
}

/// A value whose texts were not checked to be UTF-8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RawValue<'a> {
    Deleted,
    Bool(bool),
    Int(i64),
    BigInt(&'a [u8]),
    Float(f64),
    Text(&'a [u8]),
}

impl<'a> RawValue<'a> {
    /// The value as it is encoded.
    pub fn of(value: TraitValue<'a>) -> Self {
        match value {
            TraitValue::Null => Self::Deleted,
            TraitValue::Bool(value) => Self::Bool(value),
            TraitValue::Int(number) => Self::Int(number),
            TraitValue::BigInt(digits) => Self::BigInt(digits.as_bytes()),
            TraitValue::Float(number) => Self::Float(number),
            TraitValue::Text(text) => Self::Text(text.as_bytes()),
        }
    }
}

/// An entry as it is encoded.
struct RawEntry<'a> {
    key: &'a [u8],
    value: RawValue<'a>,
    stamp: Stamp,
    born: u64,
}

impl<'a> Entries<'a> {
    /// The next key and its value, for a comparison.
    #[inline]
    pub fn next_raw(&mut self) -> Option<(&'a [u8], RawValue<'a>)> {
        self.decode().map(|entry| (entry.key, entry.value))
    }

    #[inline]
    fn decode(&mut self) -> Option<RawEntry<'a>> {
        let reader = &mut self.reader;
        let tag = reader.byte()?;
        let stamp = match tag & FOLLOWS {
            0 => Stamp {
                clock: reader.fixed().map(u64::from_le_bytes)?,
                proxy: reader.fixed().map(u32::from_le_bytes)?,
            },
            _ => self.stamp.next(),
        };
        self.stamp = stamp;
        let born = match tag & HAS_BIRTH {
            0 => stamp.clock,
            _ => reader.fixed().map(u64::from_le_bytes)?,
        };
        let key = reader.sized()?;
        let value = match tag & KIND_MASK {
            DELETED => RawValue::Deleted,
            FALSE => RawValue::Bool(false),
            TRUE => RawValue::Bool(true),
            INTEGER => RawValue::Int(from_zigzag(reader.number()?)),
            BIG_INTEGER => RawValue::BigInt(reader.sized()?),
            FLOAT => RawValue::Float(f64::from_le_bytes(reader.fixed()?)),
            _ => RawValue::Text(reader.sized()?),
        };
        Some(RawEntry { key, value, stamp, born })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let RawEntry { key, value, stamp, born } = self.decode()?;
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let key = text(key)?;
        let value = match value {
            RawValue::Deleted => None,
            RawValue::Bool(value) => Some(TraitValue::Bool(value)),
            RawValue::Int(number) => Some(TraitValue::Int(number)),
            RawValue::BigInt(digits) => Some(TraitValue::BigInt(text(digits)?)),
            RawValue::Float(number) => Some(TraitValue::Float(number)),
            RawValue::Text(bytes) => Some(TraitValue::Text(text(bytes)?)),
        };
        Some(Entry { key, value, stamp, born })
    }
}

/// Writes a record, or a list of entries.
#[derive(Debug, Default)]
pub struct RecordWriter {
    bytes: Vec<u8>,
    stamp: Stamp,
}

impl RecordWriter {
    /// A record without entries.
    pub fn new(head: TraitHead, identifier: &str) -> Self {
        Self::with_capacity(head, identifier, 0)
    }

    /// A record without entries, with space for some that take so many bytes, and a few stamps.
    pub fn with_capacity(head: TraitHead, identifier: &str, entries_bytes: usize) -> Self {
        Self { bytes: begin(head, identifier, entries_bytes + 64), stamp: Stamp::default() }
    }

    /// A record with entries that another writer encoded.
    pub fn with_entries(head: TraitHead, identifier: &str, entries: &[u8]) -> Vec<u8> {
        let mut bytes = begin(head, identifier, entries.len());
        bytes.extend_from_slice(entries);
        bytes
    }

    /// A record with the entries of [`Changes`](crate::trait_table::Changes), which get this stamp and those
    /// that follow it.
    pub fn with_changes(head: TraitHead, identifier: &str, changes: &[u8], stamp: Stamp) -> Vec<u8> {
        let mut bytes = begin(head, identifier, STAMP_BYTES + changes.len());
        // The first one follows the default stamp, the others follow it.
        if let Some((tag, rest)) = changes.split_first() {
            bytes.push(tag & !FOLLOWS);
            bytes.extend_from_slice(&stamp.clock.to_le_bytes());
            bytes.extend_from_slice(&stamp.proxy.to_le_bytes());
            bytes.extend_from_slice(rest);
        }
        bytes
    }

    /// Without a record's head; with space for entries of this size.
    pub fn for_entries(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), stamp: Stamp::default() }
    }

    /// Appends a key.
    #[inline]
    pub fn push(&mut self, entry: &Entry<'_>) {
        let (kind, value) = match entry.value {
            None | Some(TraitValue::Null) => (DELETED, None),
            Some(TraitValue::Bool(value)) => (if value { TRUE } else { FALSE }, None),
            Some(TraitValue::Int(_)) => (INTEGER, entry.value),
            Some(TraitValue::BigInt(_)) => (BIG_INTEGER, entry.value),
            Some(TraitValue::Float(_)) => (FLOAT, entry.value),
            Some(TraitValue::Text(_)) => (TEXT, entry.value),
        };
        let follows = entry.stamp == self.stamp.next();
        let has_birth = entry.born != entry.stamp.clock;
        self.stamp = entry.stamp;
        let tag = kind | if follows { FOLLOWS } else { 0 } | if has_birth { HAS_BIRTH } else { 0 };
        self.bytes.push(tag);
        if !follows {
            self.bytes.extend_from_slice(&entry.stamp.clock.to_le_bytes());
            self.bytes.extend_from_slice(&entry.stamp.proxy.to_le_bytes());
        }
        if has_birth {
            self.bytes.extend_from_slice(&entry.born.to_le_bytes());
        }
        write_text(entry.key, &mut self.bytes);
        match value {
            Some(TraitValue::Int(number)) => write_number(to_zigzag(number), &mut self.bytes),
            Some(TraitValue::Float(number)) => self.bytes.extend_from_slice(&number.to_le_bytes()),
            Some(TraitValue::BigInt(text) | TraitValue::Text(text)) => write_text(text, &mut self.bytes),
            _ => {}
        }
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// The head and the identifier of a record, with space for this many more bytes.
fn begin(head: TraitHead, identifier: &str, more_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + LENGTH_BYTES + identifier.len() + more_bytes);
    write_head(head, &mut bytes);
    write_text(identifier, &mut bytes);
    bytes
}

fn write_head(head: TraitHead, bytes: &mut Vec<u8>) {
    let promoted = if head.is_promoted { PROMOTED } else { 0 };
    bytes.push(promoted | if head.is_erased { ERASED } else { 0 });
    bytes.extend_from_slice(&head.seen.to_le_bytes());
}

fn write_text(text: &str, bytes: &mut Vec<u8>) {
    write_number(text.len() as u64, bytes);
    bytes.extend_from_slice(text.as_bytes());
}

/// What an entry that follows another one takes, bytes.
pub fn entry_bytes(key: &str, value: TraitValue<'_>) -> usize {
    let text_bytes = |text: &str| number_bytes(text.len() as u64) + text.len();
    1 + text_bytes(key)
        + match value {
            TraitValue::Null | TraitValue::Bool(_) => 0,
            TraitValue::Int(number) => number_bytes(to_zigzag(number)),
            TraitValue::Float(_) => size_of::<f64>(),
            TraitValue::BigInt(text) | TraitValue::Text(text) => text_bytes(text),
        }
}

/// What [`write_number`] appends, bytes.
fn number_bytes(number: u64) -> usize {
    (u64::BITS - number.leading_zeros()).max(1).div_ceil(7) as usize
}

/// Appends a number of variable length, at most ten bytes.
pub fn write_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn to_zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn from_zigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Reads what the functions above write.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*first)
    }

    #[inline]
    pub fn number(&mut self) -> Option<u64> {
        // Most lengths and many numbers take one byte.
        if let Some((first, rest)) = self.rest.split_first()
            && *first < 0x80
        {
            self.rest = rest;
            return Some(u64::from(*first));
        }
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub fn length(&mut self) -> Option<usize> {
        self.number().and_then(|number| usize::try_from(number).ok())
    }

    /// The next bytes.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next bytes, with their length before them.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_written() {
        let big = "123456789012345678901234567890";
        let long = "x".repeat(3000);
        let values = [
            TraitValue::Bool(true),
            TraitValue::Bool(false),
            TraitValue::Int(i64::MIN),
            TraitValue::Int(-1),
            TraitValue::Int(0),
            TraitValue::Int(i64::MAX),
            TraitValue::BigInt(big),
            TraitValue::Float(-0.5),
            TraitValue::Text(""),
            TraitValue::Text(&long),
        ];
        let head = TraitHead { is_promoted: true, is_erased: false, seen: 1_800_000_000 };
        let mut writer = RecordWriter::new(head, "né");
        let mut stamp = Stamp { clock: 7 << 16, proxy: 9 };
        let mut entries = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            stamp = if index == 4 { Stamp { clock: 1, proxy: 2 } } else { stamp.next() };
            let born = if index == 6 { 3 } else { stamp.clock };
            entries.push(Entry { key: "key", value: Some(value), stamp, born });
        }
        entries.push(Entry { key: "old", value: None, stamp: stamp.next(), born: stamp.next().clock });
        entries.iter().for_each(|entry| writer.push(entry));
        let bytes = writer.finish();
        let record = TraitRecord::new(&bytes).expect("a record");
        assert_eq!((record.head(), record.identifier()), (head, "né".as_bytes()));
        assert_eq!(record.entries().collect::<Vec<_>>(), entries);
        let other = TraitHead { is_erased: true, ..head };
        let changed = record.with_head(other);
        let changed = TraitRecord::new(&changed).expect("a record");
        assert_eq!((changed.head(), changed.entries().count()), (other, entries.len()));
        // Bytes that were cut never panic and never read as more.
        for length in 0..bytes.len() {
            let read = TraitRecord::new(&bytes[..length]).map_or(0, |record| record.entries().count());
            assert!(read <= entries.len());
        }
    }

    #[test]
    fn stamps_that_follow_take_no_space() {
        let mut writer = RecordWriter::new(TraitHead::default(), "i");
        let mut stamp = Stamp { clock: 1 << 40, proxy: 1 };
        for _ in 0..5 {
            stamp = stamp.next();
            writer.push(&Entry { key: "k", value: Some(TraitValue::Int(5)), stamp, born: stamp.clock });
        }
        assert_eq!(writer.finish().len(), HEAD_BYTES + 2 + 12 + 5 * 4);
    }
}
