//! How Redis has kept traits: values of hashes, names of identities, and entries of the stream.
//!
//! Everything is text, so that an operator can read it and Lua can compare it. `merge.lua` reads and writes
//! the same.
use std::sync::Arc;

use crate::engine::evaluate::TraitValue;
use crate::trait_table::{Entry, Stamp};

const CLOCK_CHARS: usize = 16;
const STAMP_CHARS: usize = 24;
const KIND_AT: usize = STAMP_CHARS + CLOCK_CHARS;

/// The client-side key and the identifier ([`name`]).
pub type Name = Arc<str>;

/// An id of the stream: milliseconds and a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId {
    pub milliseconds: u64,
    pub counter: u64,
}

impl StreamId {
    pub fn parse(text: &str) -> Option<Self> {
        let (milliseconds, counter) = text.split_once('-')?;
        Some(Self { milliseconds: milliseconds.parse().ok()?, counter: counter.parse().ok()? })
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.counter)
    }
}

/// A stamp as text: comparing texts compares stamps.
pub fn stamp(stamp: Stamp) -> String {
    format!("{:016x}{:08x}", stamp.clock, stamp.proxy)
}

fn parse_stamp(text: &str) -> Option<Stamp> {
    let clock = u64::from_str_radix(text.get(..CLOCK_CHARS)?, 16).ok()?;
    let proxy = u32::from_str_radix(text.get(CLOCK_CHARS..STAMP_CHARS)?, 16).ok()?;
    Some(Stamp { clock, proxy })
}

/// The value of a key: stamp, clock of its birth, type, and the value as text.
pub fn value(entry: &Entry<'_>) -> String {
    let begin = format!("{}{:016x}", stamp(entry.stamp), entry.born);
    match entry.value {
        None | Some(TraitValue::Null) => begin + "-",
        Some(TraitValue::Bool(value)) => format!("{begin}b{}", u8::from(value)),
        Some(TraitValue::Int(number)) => format!("{begin}i{number}"),
        Some(TraitValue::BigInt(text)) => format!("{begin}n{text}"),
        // The shortest text that reads back as the same number.
        Some(TraitValue::Float(number)) => format!("{begin}f{number:?}"),
        Some(TraitValue::Text(text)) => format!("{begin}s{text}"),
    }
}

/// What [`value`] wrote. `None`: another program, or a later version.
pub fn entry<'a>(key: &'a str, value: &'a str) -> Option<Entry<'a>> {
    let stamp = parse_stamp(value)?;
    let born = u64::from_str_radix(value.get(STAMP_CHARS..KIND_AT)?, 16).ok()?;
    let text = value.get(KIND_AT + 1..)?;
    let value = match value.as_bytes().get(KIND_AT)? {
        b'-' => None,
        b'b' => Some(TraitValue::Bool(text == "1")),
        b'i' => Some(TraitValue::Int(text.parse().ok()?)),
        b'n' => Some(TraitValue::BigInt(text)),
        b'f' => Some(TraitValue::Float(text.parse().ok()?)),
        b's' => Some(TraitValue::Text(text)),
        _ => return None,
    };
    Some(Entry { key, value, stamp, born })
}

/// An addition: stamp and amount.
pub fn addition(at: Stamp, amount: i64) -> String {
    format!("{}{amount}", stamp(at))
}

/// The name of an identity. A client-side key has no space.
pub fn name(environment: &str, identifier: &str) -> String {
    format!("{environment} {identifier}")
}

/// The client-side key and the identifier of a name.
pub fn parse_name(name: &str) -> Option<(&str, &str)> {
    name.split_once(' ')
}

/// The hash of an identity.
#[derive(Debug, Default)]
pub struct StoredIdentity<'a> {
    pub entries: Vec<Entry<'a>>,
    /// Unix seconds. `None`: there is no such identity, or only the mark of its erasure.
    pub seen: Option<u32>,
    pub is_promoted: bool,
    pub erased: Option<Stamp>,
}

/// Reads the fields of a hash. Unknown ones are those of later versions.
pub fn stored<'a>(fields: &'a [(String, String)]) -> StoredIdentity<'a> {
    let mut found = StoredIdentity::default();
    for (field, value) in fields {
        match field.as_str() {
            "s" => found.seen = value.parse().ok(),
            "p" => found.is_promoted = true,
            "e" => found.erased = parse_stamp(value),
            field => found.entries.extend(field.strip_prefix('=').and_then(|key| entry(key, value))),
        }
    }
    found
}

/// A change in the stream.
#[derive(Debug, PartialEq)]
pub enum StreamChange<'a> {
    Erased {
        name: &'a str,
        stamp: Stamp,
    },
    Merged {
        name: &'a str,
        seen: u32,
        /// It was not there before.
        is_new: bool,
        entries: Vec<Entry<'a>>,
        /// The keys that were added to.
        sums: Vec<Entry<'a>>,
    },
}

/// The changes of an entry of the stream, as far as they can be read.
#[derive(Debug)]
pub struct StreamChanges<'a> {
    rest: &'a str,
}

impl<'a> StreamChanges<'a> {
    pub fn new(payload: &'a str) -> Self {
        Self { rest: payload }
    }

    fn part(&mut self) -> Option<&'a str> {
        let (length, rest) = self.rest.split_once(':')?;
        let length: usize = length.parse().ok()?;
        let part = rest.get(..length)?;
        self.rest = rest.get(length..)?;
        Some(part)
    }
}

impl<'a> Iterator for StreamChanges<'a> {
    type Item = StreamChange<'a>;

    fn next(&mut self) -> Option<StreamChange<'a>> {
        let (name, what) = (self.part()?, self.part()?);
        let (kind, what) = what.split_at_checked(1)?;
        if kind == "e" {
            return Some(StreamChange::Erased { name, stamp: parse_stamp(what)? });
        }
        let (seen, count) = what.split_once(' ')?;
        let (seen, count) = (seen.parse().ok()?, count.parse::<usize>().ok()?);
        let (mut entries, mut sums) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (field, value) = (self.part()?, self.part()?);
            let (operation, key) = field.split_at_checked(1)?;
            if operation == "+" { &mut sums } else { &mut entries }.extend(entry(key, value));
        }
        Some(StreamChange::Merged { name, seen, is_new: kind == "n", entries, sums })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_as_written() {
        let values = [
            None,
            Some(TraitValue::Bool(true)),
            Some(TraitValue::Bool(false)),
            Some(TraitValue::Int(i64::MIN)),
            Some(TraitValue::BigInt("123456789012345678901234567890")),
            Some(TraitValue::Float(0.1 + 0.2)),
            Some(TraitValue::Float(1e300)),
            Some(TraitValue::Float(1.0)),
            Some(TraitValue::Text("")),
            Some(TraitValue::Text("a:né\n\u{1f600}")),
        ];
        for item in values {
            let written = Entry { key: "k", value: item, stamp: Stamp { clock: 7 << 40, proxy: 9 }, born: 5 };
            assert_eq!(entry("k", &value(&written)), Some(written));
        }
        for wrong in
            ["", "0", &"0".repeat(40), &format!("{}x", "0".repeat(40)), &format!("{}é1", "0".repeat(39))]
        {
            assert_eq!(entry("k", wrong), None);
        }
    }

    #[test]
    fn texts_of_stamps_are_ordered_as_stamps() {
        let stamps = [(0, 0), (0, 1), (1, 0), (15, u32::MAX), (16, 2), (u64::MAX, 0), (u64::MAX, u32::MAX)];
        let texts: Vec<String> =
            stamps.iter().map(|(clock, proxy)| stamp(Stamp { clock: *clock, proxy: *proxy })).collect();
        assert!(texts.is_sorted());
    }

    #[test]
    fn a_stream_is_read_as_far_as_it_is_whole() {
        let one = Entry {
            key: "plan",
            value: Some(TraitValue::Text("gold")),
            stamp: Stamp { clock: 1, proxy: 2 },
            born: 1,
        };
        let sum = Entry { key: "n", value: Some(TraitValue::Int(5)), ..one };
        let parts = [
            "key jane",
            "n1700 2",
            "=plan",
            &value(&one),
            "+n",
            &value(&sum),
            "key joe",
            &format!("e{}", stamp(one.stamp)),
        ];
        let payload: String = parts.iter().map(|part| format!("{}:{part}", part.len())).collect();
        let (entries, sums) = (vec![one], vec![sum]);
        let merged = StreamChange::Merged { name: "key jane", seen: 1700, is_new: true, entries, sums };
        let erased = StreamChange::Erased { name: "key joe", stamp: one.stamp };
        assert_eq!(StreamChanges::new(&payload).collect::<Vec<_>>(), [merged, erased]);
        for length in 0..payload.len() {
            assert!(StreamChanges::new(&payload[..length]).count() < 2);
        }
        assert_eq!(parse_name("key jane doe"), Some(("key", "jane doe")));
    }
}
