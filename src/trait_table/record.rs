//! A record: the kept traits of one identity, as bytes. The same bytes are in memory and on disk.
//!
//! ```text
//! flags u8 | seen u32 | identifier: length, bytes | entry ...
//! entry:  tag u8 | stamp: clock u64, proxy u32 | born u64 | key: length, bytes | value
//! ```
//! Numbers are little-endian; lengths and integers are variable (7 bits a byte). The tag has the type of the
//! value, and whether the stamp and the time of birth are omitted: mostly a stamp follows the one before it.
use crate::engine::evaluate::TraitValue;
use crate::trait_table::encoding::{Reader, from_zigzag, number_bytes, to_zigzag, write_number, write_text};

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
        Entries::of(self.entries_bytes())
    }

    pub fn entries_bytes(&self) -> &'a [u8] {
        self.bytes.get(self.identifier_end..).unwrap_or_default()
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

impl RawValue<'_> {
    /// Whether it is what is stored of this value. Nothing is stored of null.
    #[inline(always)]
    pub fn is(self, value: TraitValue<'_>) -> bool {
        match (self, value) {
            (Self::Text(known), TraitValue::Text(text)) => known == text.as_bytes(),
            (Self::Int(known), TraitValue::Int(number)) => known == number,
            (Self::Bool(known), TraitValue::Bool(value)) => known == value,
            (Self::Float(known), TraitValue::Float(number)) => known == number,
            (Self::BigInt(known), TraitValue::BigInt(digits)) => known == digits.as_bytes(),
            _ => false,
        }
    }
}

/// An entry as it is encoded.
#[derive(Clone, Copy, Debug)]
pub struct RawEntry<'a> {
    pub key: &'a [u8],
    pub value: RawValue<'a>,
    stamp: Stamp,
    born: u64,
    tag: u8,
    /// The key and the value.
    encoded: &'a [u8],
    /// How many bytes there were from its tag to the end, and from the next entry.
    left: (usize, usize),
}

impl<'a> Entries<'a> {
    /// The next entry. Callers use some of its members only: inlined, the others cost nothing.
    #[inline(always)]
    pub fn next_raw(&mut self) -> Option<RawEntry<'a>> {
        // Bytes that are not an entry are left as they are.
        let mut reader = self.reader.clone();
        let left = reader.rest.len();
        let tag = reader.byte()?;
        let stamp = match tag & FOLLOWS {
            0 => Stamp {
                clock: reader.fixed().map(u64::from_le_bytes)?,
                proxy: reader.fixed().map(u32::from_le_bytes)?,
            },
            _ => self.stamp.next(),
        };
        let born = match tag & HAS_BIRTH {
            0 => stamp.clock,
            _ => reader.fixed().map(u64::from_le_bytes)?,
        };
        let begin = reader.rest;
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
        let rest = reader.rest.len();
        let encoded = begin.get(..begin.len() - rest)?;
        *self = Self { reader, stamp };
        Some(RawEntry { key, value, stamp, born, tag, encoded, left: (left, rest) })
    }
}

/// The key and the value of an entry, encoded.
#[derive(Clone, Copy, Debug)]
pub struct EncodedEntry<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl EncodedEntry<'_> {
    /// How many bytes it takes without its stamp.
    pub fn bytes(&self) -> usize {
        1 + self.bytes.len()
    }
}

impl<'a> RawEntry<'a> {
    pub fn encoded(&self) -> EncodedEntry<'a> {
        EncodedEntry { kind: self.tag & KIND_MASK, bytes: self.encoded }
    }

    /// The key and the value as texts. `None`: they are not UTF-8.
    #[inline]
    pub fn decode(&self) -> Option<Entry<'a>> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let value = match self.value {
            RawValue::Deleted => None,
            RawValue::Bool(value) => Some(TraitValue::Bool(value)),
            RawValue::Int(number) => Some(TraitValue::Int(number)),
            RawValue::BigInt(digits) => Some(TraitValue::BigInt(text(digits)?)),
            RawValue::Float(number) => Some(TraitValue::Float(number)),
            RawValue::Text(bytes) => Some(TraitValue::Text(text(bytes)?)),
        };
        Some(Entry { key: text(self.key)?, value, stamp: self.stamp, born: self.born })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        self.next_raw()?.decode()
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

    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// Appends an entry.
    pub fn push(&mut self, entry: &Entry<'_>) {
        let value = entry.value.unwrap_or(TraitValue::Null);
        let follows = entry.stamp == self.stamp.next();
        self.begin_entry(kind(value), entry.stamp, entry.born, follows);
        write_text(entry.key, &mut self.bytes);
        self.write_value(value);
    }

    /// Appends a key with the stamp that follows the one before; null is deleted. Returns the encoded form.
    #[inline]
    pub fn push_following(&mut self, key: &str, value: TraitValue<'_>) -> EncodedEntry<'_> {
        self.stamp = self.stamp.next();
        let (kind, start) = (kind(value), self.bytes.len() + 1);
        match key.len().to_le_bytes()[0] {
            length if usize::from(length) == key.len() && length < 0x80 => {
                self.bytes.extend_from_slice(&[kind | FOLLOWS, length]);
                self.bytes.extend_from_slice(key.as_bytes());
            }
            _ => {
                self.bytes.push(kind | FOLLOWS);
                write_text(key, &mut self.bytes);
            }
        }
        self.write_value(value);
        EncodedEntry { kind, bytes: self.bytes.get(start..).unwrap_or_default() }
    }

    #[inline]
    fn write_value(&mut self, value: TraitValue<'_>) {
        match value {
            TraitValue::Int(number) => write_number(to_zigzag(number), &mut self.bytes),
            TraitValue::Float(number) => self.bytes.extend_from_slice(&number.to_le_bytes()),
            TraitValue::BigInt(text) | TraitValue::Text(text) => write_text(text, &mut self.bytes),
            TraitValue::Null | TraitValue::Bool(_) => {}
        }
    }

    /// The tag, the stamp and the birth of the next entry.
    #[inline]
    fn begin_entry(&mut self, kind: u8, stamp: Stamp, born: u64, follows: bool) {
        let has_birth = born != stamp.clock;
        self.stamp = stamp;
        let tag = kind | if follows { FOLLOWS } else { 0 } | if has_birth { HAS_BIRTH } else { 0 };
        self.bytes.push(tag);
        if !follows {
            self.bytes.extend_from_slice(&stamp.clock.to_le_bytes());
            self.bytes.extend_from_slice(&stamp.proxy.to_le_bytes());
        }
        if has_birth {
            self.bytes.extend_from_slice(&born.to_le_bytes());
        }
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// A copy of a record with some values replaced, and keys added. What is between them is copied as it is
/// encoded.
#[derive(Debug)]
pub struct RecordPatch<'a> {
    record: &'a [u8],
    /// Its stamp is that of the entry before, if that was replaced.
    writer: RecordWriter,
    /// The bytes of the record before this are written.
    copied: usize,
    /// The entry before was replaced.
    is_separate: bool,
}

impl<'a> RecordPatch<'a> {
    /// With another head, and space for this many more bytes.
    pub fn new(record: &TraitRecord<'a>, head: TraitHead, more_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(record.bytes.len() + more_bytes);
        write_head(head, &mut bytes);
        let writer = RecordWriter { bytes, stamp: Stamp::default() };
        Self { record: record.bytes, writer, copied: HEAD_BYTES, is_separate: false }
    }

    /// Leaves an entry as it is. Entries are kept or replaced in their order.
    #[inline]
    pub fn keep(&mut self, entry: &RawEntry<'a>) {
        if std::mem::take(&mut self.is_separate) && entry.tag & FOLLOWS != 0 {
            // It does not follow any more.
            self.writer.begin_entry(entry.tag & KIND_MASK, entry.stamp, entry.born, false);
            self.copied = self.record.len() - entry.left.1 - entry.encoded.len();
        }
    }

    /// Gives an entry the value of another one with its key.
    pub fn replace(&mut self, entry: &RawEntry<'a>, stamp: Stamp, new: EncodedEntry<'_>) {
        self.copy_to(self.record.len() - entry.left.0);
        self.copied = self.record.len() - entry.left.1;
        let follows = self.is_separate && stamp == self.writer.stamp.next();
        self.is_separate = true;
        self.writer.begin_entry(new.kind, stamp, entry.born, follows);
        self.writer.bytes.extend_from_slice(new.bytes);
    }

    /// Copies the rest. `entries` are those of the record, at their end.
    pub fn end(&mut self, entries: &Entries<'a>) {
        self.copy_to(self.record.len() - entries.reader.rest.len());
        if !self.is_separate {
            self.writer.stamp = entries.stamp;
        }
    }

    /// Whether the entry before is as it was, so that the rest can be copied.
    pub fn is_between(&self) -> bool {
        !self.is_separate
    }

    /// The record with the rest as it is.
    pub fn finish_with_rest(mut self) -> Vec<u8> {
        self.copy_to(self.record.len());
        self.writer.bytes
    }

    /// Adds an entry after the [`end`](Self::end).
    pub fn append(&mut self, stamp: Stamp, new: EncodedEntry<'_>) {
        let follows = stamp == self.writer.stamp.next();
        self.writer.begin_entry(new.kind, stamp, stamp.clock, follows);
        self.writer.bytes.extend_from_slice(new.bytes);
    }

    /// Whether what is written has a key.
    pub fn has_key(&self, key: &[u8]) -> bool {
        let written = TraitRecord::new(&self.writer.bytes);
        let Some(mut entries) = written.map(|record| record.entries()) else { return false };
        std::iter::from_fn(|| entries.next_raw()).any(|entry| entry.key == key)
    }

    fn copy_to(&mut self, end: usize) {
        let bytes = self.record.get(self.copied..end).unwrap_or_default();
        self.writer.bytes.extend_from_slice(bytes);
        self.copied = end;
    }

    pub fn finish(self) -> Vec<u8> {
        self.writer.bytes
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

/// The tag of a value; null is deleted.
fn kind(value: TraitValue<'_>) -> u8 {
    match value {
        TraitValue::Null => DELETED,
        TraitValue::Bool(false) => FALSE,
        TraitValue::Bool(true) => TRUE,
        TraitValue::Int(_) => INTEGER,
        TraitValue::BigInt(_) => BIG_INTEGER,
        TraitValue::Float(_) => FLOAT,
        TraitValue::Text(_) => TEXT,
    }
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
