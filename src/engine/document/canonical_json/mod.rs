//! Canonical JSON: compact, non-ASCII characters raw, numbers as orjson writes them.
//!
//! The canonical text of a document is served at `/environment-document/` and is what `document` reads.
//! Members that may have secrets are left out (differences.md 28). Of repeated members, the last value is
//! kept at the position of the first, as in a Python `dict`. The transcoder makes one pass without recursion
//! and without a tree: depth costs no stack, and a document of 20 MB needs its size once more. It is written
//! by hand because the JSON crates either lose the digits of large integers, or change the form of floats, or
//! reject repeated members.
use hashbrown::HashTable;
use memchr::memchr2;

use crate::engine::document::error::CompileError;
use crate::json::write;
use crate::limits::{DOCUMENT_DEPTH_MAX, DUPLICATE_MEMBERS_MAX, INTEGER_DIGITS_MAX};
use crate::yielding;

/// Objects with more members than this find repeated names by hash instead of by a scan.
const MEMBERS_BY_HASH_MIN: usize = 24;

/// Writes `document` in canonical form.
///
/// # Errors
/// It is not JSON (RFC 8259), or exceeds a limit.
pub fn transcode(document: &[u8]) -> Result<String, CompileError> {
    if let Some(encoding) = foreign_encoding(document) {
        let message =
            format!("encoded as {encoding}, expected UTF-8 (RFC 8259 8.1): save or send it as UTF-8");
        return Err(CompileError::new("$", message));
    }
    let text = std::str::from_utf8(document)
        .map_err(|error| CompileError::new("$", format!("not UTF-8 at byte {}", error.valid_up_to())))?;
    let mut transcoder = Transcoder {
        text,
        input: text.as_bytes(),
        // Editors write a byte-order mark; RFC 8259 8.1 allows parsers to ignore it, and Python does.
        at: if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 },
        out: Vec::with_capacity(document.len()),
        frames: Vec::new(),
        members: Vec::new(),
        duplicates: 0,
    };
    match transcoder.run() {
        Ok(()) => {
            let mut out = transcoder.out;
            out.shrink_to_fit();
            // Only whole characters of a `str` and ASCII were written.
            String::from_utf8(out).map_err(|_| CompileError::new("$", "not UTF-8"))
        }
        Err(fault) => Err(CompileError::new(transcoder.path(), fault.message(transcoder.at))),
    }
}

/// The encoding of `document` if it is recognizably not UTF-8: by its byte-order mark or signature, or by the
/// zero bytes beside the first character, which is ASCII (RFC 4627 3).
fn foreign_encoding(document: &[u8]) -> Option<&'static str> {
    match document {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [1..=0x7f, 0, 0, 0, ..] | [0, 0, 0, 1..=0x7f, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        [1..=0x7f, 0, ..] | [0, 1..=0x7f, ..] => Some("UTF-16"),
        [0x1f, 0x8b, ..] => Some("gzip"),
        _ => None,
    }
}

/// An error at the current position.
#[derive(Clone, Copy)]
enum DocumentFault {
    Expected(&'static str),
    TooDeep,
    TooManyDuplicates,
    IntegerTooLong,
    FloatTooLarge,
    LoneSurrogate,
}

impl DocumentFault {
    fn message(self, at: usize) -> String {
        match self {
            Self::Expected(what) => format!("not JSON: expected {what} at byte {at}"),
            Self::TooDeep => format!("nested deeper than {DOCUMENT_DEPTH_MAX} at byte {at}"),
            Self::TooManyDuplicates => format!("more than {DUPLICATE_MEMBERS_MAX} repeated members"),
            Self::FloatTooLarge => "a number with a point or an exponent, beyond 1.8e308".to_owned(),
            Self::IntegerTooLong => format!("an integer of more than {INTEGER_DIGITS_MAX} digits"),
            Self::LoneSurrogate => format!("a lone surrogate at byte {at}"),
        }
    }
}

/// An array or object whose end was not reached.
enum OpenContainer {
    Array {
        /// The index of the element being read.
        index: usize,
    },
    Object {
        /// Its first entry in `members`.
        members_from: usize,
        by_name: Option<Box<HashTable<usize>>>,
    },
}

/// A member in `out`, as offsets.
#[derive(Clone, Copy)]
struct WrittenMember {
    /// The name without quotes.
    name: (usize, usize),
    /// After the colon.
    value_from: usize,
    /// 0 while it is being read.
    value_to: usize,
    /// The index in `members` of an earlier member with the same name.
    repeats: Option<usize>,
    /// A secret that was left out. It keeps its index in `members`, without a name or a value.
    dropped: bool,
}

struct Transcoder<'a> {
    text: &'a str,
    input: &'a [u8],
    at: usize,
    out: Vec<u8>,
    frames: Vec<OpenContainer>,
    /// The members of all open objects, outer objects first.
    members: Vec<WrittenMember>,
    duplicates: usize,
}

impl Transcoder<'_> {
    fn run(&mut self) -> Result<(), DocumentFault> {
        self.value()?;
        self.skip_blanks();
        if self.at < self.input.len() { Err(DocumentFault::Expected("the end")) } else { Ok(()) }
    }

    /// Transcodes one value.
    fn value(&mut self) -> Result<(), DocumentFault> {
        loop {
            self.skip_blanks();
            let opened = match self.peek() {
                Some(b'{') => self.open_object()?,
                Some(b'[') => self.open_array()?,
                Some(b'"') => self.string().map(|()| false)?,
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                Some(b'-' | b'0'..=b'9') => self.number().map(|()| false)?,
                _ => return Err(DocumentFault::Expected("a value")),
            };
            if !opened && self.close_or_continue()? {
                return Ok(());
            }
        }
    }

    /// After a value: closes the containers that end here. True if the outermost value is complete, false if
    /// another value follows.
    fn close_or_continue(&mut self) -> Result<bool, DocumentFault> {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(true) };
            match frame {
                OpenContainer::Array { index } => {
                    *index += 1;
                    self.skip_blanks();
                    match self.next() {
                        Some(b',') => {
                            self.out.push(b',');
                            return Ok(false);
                        }
                        Some(b']') => self.out.push(b']'),
                        _ => return Err(DocumentFault::Expected("`,` or `]`")),
                    }
                }
                OpenContainer::Object { .. } => {
                    self.end_member()?;
                    self.skip_blanks();
                    match self.next() {
                        Some(b',') => {
                            self.begin_member()?;
                            return Ok(false);
                        }
                        Some(b'}') => self.out.push(b'}'),
                        _ => return Err(DocumentFault::Expected("`,` or `}`")),
                    }
                }
            }
            if let Some(OpenContainer::Object { members_from, .. }) = self.frames.pop() {
                self.members.truncate(members_from);
            }
        }
    }

    fn open_array(&mut self) -> Result<bool, DocumentFault> {
        self.at += 1;
        self.out.push(b'[');
        self.skip_blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            self.out.push(b']');
            return Ok(false);
        }
        self.push_frame(OpenContainer::Array { index: 0 })
    }

    fn open_object(&mut self) -> Result<bool, DocumentFault> {
        self.at += 1;
        self.out.push(b'{');
        self.skip_blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            self.out.push(b'}');
            return Ok(false);
        }
        self.push_frame(OpenContainer::Object { members_from: self.members.len(), by_name: None })?;
        self.begin_member()?;
        Ok(true)
    }

    fn push_frame(&mut self, frame: OpenContainer) -> Result<bool, DocumentFault> {
        yielding::step();
        if self.frames.len() >= DOCUMENT_DEPTH_MAX {
            return Err(DocumentFault::TooDeep);
        }
        self.frames.push(frame);
        Ok(true)
    }

    /// Transcodes `"name":`, with a comma before it unless it is the first member.
    fn begin_member(&mut self) -> Result<(), DocumentFault> {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.skip_blanks();
        if self.peek() != Some(b'"') {
            return Err(DocumentFault::Expected("a member's name"));
        }
        let name_from = self.out.len() + 1;
        self.string()?;
        let name = (name_from, self.out.len() - 1);
        self.skip_blanks();
        if self.next() != Some(b':') {
            return Err(DocumentFault::Expected("`:`"));
        }
        self.out.push(b':');
        let repeats = self.find_or_insert(name);
        if repeats.is_some() {
            self.duplicates += 1;
            if self.duplicates > DUPLICATE_MEMBERS_MAX {
                return Err(DocumentFault::TooManyDuplicates);
            }
        }
        self.members.push(WrittenMember {
            name,
            value_from: self.out.len(),
            value_to: 0,
            repeats,
            dropped: false,
        });
        Ok(())
    }

    /// The earlier member of the innermost object with this name. If there is none, records the name.
    fn find_or_insert(&mut self, name: (usize, usize)) -> Option<usize> {
        let Some(OpenContainer::Object { members_from, by_name }) = self.frames.last_mut() else {
            return None;
        };
        let (members, out, from) = (&self.members, &self.out, *members_from);
        let text = |member: usize| &out[members[member].name.0..members[member].name.1];
        let new = &out[name.0..name.1];
        let count = members.len() - from;
        if count < MEMBERS_BY_HASH_MIN {
            return (from..members.len()).find(|at| !members[*at].dropped && text(*at) == new);
        }
        let hash_of = |text: &[u8]| {
            use std::hash::{BuildHasher as _, RandomState};
            thread_local!(static STATE: RandomState = RandomState::new());
            STATE.with(|state| state.hash_one(text))
        };
        let table = by_name.get_or_insert_with(|| {
            let mut table = Box::new(HashTable::with_capacity(count * 2));
            for member in from..members.len() {
                table.insert_unique(hash_of(text(member)), member, |member| hash_of(text(*member)));
            }
            table
        });
        let hash = hash_of(new);
        if let Some(at) = table.find(hash, |at| !members[*at].dropped && text(*at) == new) {
            return Some(*at);
        }
        // The caller pushes this member next. Its name is not in `members` yet, so a table that grows now
        // must not look it up there.
        let own = members.len();
        table.insert_unique(hash, own, |member| hash_of(if *member == own { new } else { text(*member) }));
        None
    }

    /// After the value of a member: drops a secret, and moves a repeated value to the position of the first.
    fn end_member(&mut self) -> Result<(), DocumentFault> {
        let Some(last) = self.members.len().checked_sub(1) else {
            return Err(DocumentFault::Expected("a member"));
        };
        let member = self.members[last];
        let comma_from = member.name.0 - 1 - usize::from(self.out[member.name.0 - 2] == b',');
        if self.frames.len() == 1 && self.out[member.name.0..member.name.1].ends_with(b"_config") {
            self.out.truncate(comma_from);
            // The entry in `members` stays, so that the indices in `by_name` stay valid.
            self.members[last] =
                WrittenMember { name: (0, 0), value_from: 0, value_to: 0, repeats: None, dropped: true };
            return Ok(());
        }
        self.members[last].value_to = self.out.len();
        if let Some(first) = member.repeats {
            self.replace_value(first, last, comma_from);
        }
        Ok(())
    }

    /// Replaces the value of member `first` by that of member `last`, and removes `last`.
    fn replace_value(&mut self, first: usize, last: usize, comma_from: usize) {
        let value: Vec<u8> = self.out[self.members[last].value_from..].to_vec();
        self.out.truncate(comma_from);
        let WrittenMember { value_from: from, value_to: to, .. } = self.members[first];
        self.out.splice(from..to, value.iter().copied());
        let shift = |offset: usize| offset - (to - from) + value.len();
        self.members[first].value_to = shift(to);
        self.members.truncate(last);
        for member in self.members[first + 1..].iter_mut().filter(|member| !member.dropped) {
            member.name = (shift(member.name.0), shift(member.name.1));
            member.value_from = shift(member.value_from);
            member.value_to = shift(member.value_to);
        }
    }

    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Transcodes a literal. Returns `false`: no container was opened.
    fn literal(&mut self, word: &'static str) -> Result<bool, DocumentFault> {
        if !self.input[self.at..].starts_with(word.as_bytes()) {
            return Err(DocumentFault::Expected("a value"));
        }
        self.at += word.len();
        self.out.extend_from_slice(word.as_bytes());
        Ok(false)
    }

    fn digits(&mut self) -> Result<(), DocumentFault> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == from { Err(DocumentFault::Expected("a digit")) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), DocumentFault> {
        let from = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        if self.peek() == Some(b'0') {
            self.at += 1
        } else {
            self.digits()?
        }
        let mut is_float = false;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
            is_float = true;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
            is_float = true;
        }
        let text = &self.text[from..self.at];
        match (is_float, text) {
            // As orjson, which rejects infinity: served as null it would be a different value.
            (true, _) => {
                let number = text.parse().ok().filter(|number: &f64| number.is_finite());
                write::float(number.ok_or(DocumentFault::FloatTooLarge)?, &mut self.out);
            }
            (false, "-0") => self.out.push(b'0'),
            // As in CPython, whose limit makes the whole document invalid.
            (false, _) if text.trim_start_matches('-').len() > INTEGER_DIGITS_MAX => {
                return Err(DocumentFault::IntegerTooLong);
            }
            (false, _) => self.out.extend_from_slice(text.as_bytes()),
        }
        Ok(())
    }

    fn string(&mut self) -> Result<(), DocumentFault> {
        self.at += 1;
        self.out.push(b'"');
        loop {
            let rest = &self.input[self.at..];
            let length = memchr2(b'"', b'\\', rest).ok_or(DocumentFault::Expected("`\"`"))?;
            let plain = &rest[..length];
            if plain.iter().any(|byte| *byte < 0x20) {
                return Err(DocumentFault::Expected("no control character in a string"));
            }
            self.out.extend_from_slice(plain);
            self.at += length + 1;
            if rest[length] == b'"' {
                self.out.push(b'"');
                return Ok(());
            }
            let character = self.escape()?;
            write::escaped(character.encode_utf8(&mut [0; 4]), &mut self.out);
        }
    }

    /// The character of an escape, after the backslash.
    fn escape(&mut self) -> Result<char, DocumentFault> {
        Ok(match self.next() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let unit = self.hex()?;
                match unit {
                    0xd800..=0xdbff => {
                        if !self.input[self.at..].starts_with(b"\\u") {
                            return Err(DocumentFault::LoneSurrogate);
                        }
                        self.at += 2;
                        let low = self.hex()?.checked_sub(0xdc00).ok_or(DocumentFault::LoneSurrogate)?;
                        let code = 0x10000 + ((unit - 0xd800) << 10) + low;
                        char::from_u32(code).filter(|_| low < 0x400).ok_or(DocumentFault::LoneSurrogate)?
                    }
                    _ => char::from_u32(unit).ok_or(DocumentFault::LoneSurrogate)?,
                }
            }
            _ => return Err(DocumentFault::Expected("an escape")),
        })
    }

    fn hex(&mut self) -> Result<u32, DocumentFault> {
        let digits =
            self.input.get(self.at..self.at + 4).ok_or(DocumentFault::Expected("four hex digits"))?;
        let mut unit = 0;
        for digit in digits {
            let value = char::from(*digit).to_digit(16).ok_or(DocumentFault::Expected("four hex digits"))?;
            unit = unit * 16 + value;
        }
        self.at += 4;
        Ok(unit)
    }

    /// The JSON path of the current position.
    fn path(&self) -> String {
        let mut path = String::from("$");
        let mut members_to = self.members.len();
        let mut steps = Vec::new();
        for frame in self.frames.iter().rev() {
            match frame {
                OpenContainer::Array { index } => steps.push(format!("[{index}]")),
                OpenContainer::Object { members_from, .. } => {
                    if let Some(member) = self.members[*members_from..members_to].last() {
                        let name = String::from_utf8_lossy(&self.out[member.name.0..member.name.1]);
                        steps.push(format!(".{}", name.chars().take(100).collect::<String>()));
                    }
                    members_to = *members_from;
                }
            }
        }
        path.extend(steps.iter().rev().map(String::as_str));
        path
    }
}

#[cfg(test)]
mod tests;
