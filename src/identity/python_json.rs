//! JSON as Python 3.12's `json.loads` reads it, with its error texts and positions.
//!
//! In: the bytes of a body. Out: a [`Value`], or the error that FastAPI makes of it. It takes a
//! byte-order mark, UTF-16 and UTF-32, `NaN` and `Infinity`, integers of up to 4,300 digits, and
//! of two members of one name the last. Positions count characters, not bytes.
//! Invariant: input of any kind ends in a value or an error; nesting is bounded
//! (`limits::JSON_DEPTH_MAX`). Only bodies that simd-json refused come here, so it may allocate.
use crate::limits::{INTEGER_DIGITS_MAX, JSON_DEPTH_MAX};

/// A JSON value as Python holds it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// Its digits, without leading zeros (JSON has none) and never `-0`.
    Int(String),
    Float(f64),
    Text(Text),
    List(Vec<Value>),
    /// In order of first appearance, each name once.
    Dict(Vec<(String, Value)>),
}

/// A string. Python may hold half of a surrogate pair, which no UTF-8 can: it is U+FFFD here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    pub has_lone_surrogate: bool,
}

/// Why a body is not JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum JsonError {
    /// `JSONDecodeError`: 422 with this text and position.
    Decode { message: &'static str, position: usize },
    /// Any other exception: 400.
    Unreadable,
}

/// `json.loads` of bytes.
///
/// # Errors
/// What Python raises, as [`JsonError`].
pub fn loads(bytes: &[u8]) -> Result<Value, JsonError> {
    let text = decode(bytes).ok_or(JsonError::Unreadable)?;
    let mut scanner = Scanner { text: &text, at: 0, depth: 0 };
    scanner.skip_blanks();
    let value = scanner.value()?;
    scanner.skip_blanks();
    if scanner.at < text.len() {
        return Err(scanner.error_here("Extra data"));
    }
    Ok(value)
}

/// Characters of a body, surrogates included, in the encoding that `json.detect_encoding` finds.
fn decode(bytes: &[u8]) -> Option<Vec<u32>> {
    match bytes {
        [0xff, 0xfe, 0, 0, rest @ ..] => utf_32(rest, u32::from_le_bytes),
        [0, 0, 0xfe, 0xff, rest @ ..] => utf_32(rest, u32::from_be_bytes),
        [0xff, 0xfe, rest @ ..] => utf_16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf_16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf_8(rest),
        [0, 0, _, _, ..] => utf_32(bytes, u32::from_be_bytes),
        [0, _, _, _, ..] | [0, _] => utf_16(bytes, u16::from_be_bytes),
        [_, 0, 0, 0, ..] => utf_32(bytes, u32::from_le_bytes),
        [_, 0, _, _, ..] | [_, 0] => utf_16(bytes, u16::from_le_bytes),
        _ => utf_8(bytes),
    }
}

fn utf_32(bytes: &[u8], read: fn([u8; 4]) -> u32) -> Option<Vec<u32>> {
    let (units, rest) = bytes.as_chunks::<4>();
    let characters: Vec<u32> = units.iter().map(|unit| read(*unit)).collect();
    (rest.is_empty() && characters.iter().all(|character| *character <= 0x0010_ffff)).then_some(characters)
}

fn utf_16(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Option<Vec<u32>> {
    let (units, rest) = bytes.as_chunks::<2>();
    let units = units.iter().map(|unit| read(*unit));
    let characters = char::decode_utf16(units)
        .map(|unit| unit.map_or_else(|lone| u32::from(lone.unpaired_surrogate()), u32::from));
    rest.is_empty().then(|| characters.collect())
}

/// UTF-8 with `surrogatepass`: three bytes may stand for a surrogate.
fn utf_8(bytes: &[u8]) -> Option<Vec<u32>> {
    let mut characters = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                characters.extend(text.chars().map(u32::from));
                return Some(characters);
            }
            Err(error) => {
                let (valid, invalid) = rest.split_at(error.valid_up_to());
                characters.extend(std::str::from_utf8(valid).ok()?.chars().map(u32::from));
                let &[0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, ref after @ ..] = invalid else {
                    return None;
                };
                characters.push(0xd000 | (u32::from(second & 0x3f) << 6) | u32::from(third & 0x3f));
                rest = after;
            }
        }
    }
}

struct Scanner<'a> {
    text: &'a [u32],
    at: usize,
    depth: usize,
}

const QUOTE: u32 = b'"' as u32;
const BACKSLASH: u32 = b'\\' as u32;

impl Scanner<'_> {
    fn error_here(&self, message: &'static str) -> JsonError {
        JsonError::Decode { message, position: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).map(|character| u8::try_from(*character).unwrap_or(0))
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `word` if it stands here.
    fn take(&mut self, word: &str) -> bool {
        let here = self.text.get(self.at..self.at + word.len());
        let found = here.is_some_and(|here| here.iter().copied().eq(word.bytes().map(u32::from)));
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self) -> Result<Value, JsonError> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::Text),
            Some(b'{') => self.nested(Self::dict),
            Some(b'[') => self.nested(Self::list),
            _ if self.take("null") => Ok(Value::Null),
            _ if self.take("true") => Ok(Value::Bool(true)),
            _ if self.take("false") => Ok(Value::Bool(false)),
            _ if self.take("NaN") => Ok(Value::Float(f64::NAN)),
            _ if self.take("Infinity") => Ok(Value::Float(f64::INFINITY)),
            _ if self.take("-Infinity") => Ok(Value::Float(f64::NEG_INFINITY)),
            _ => self.number(),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value, JsonError>) -> Result<Value, JsonError> {
        if self.depth == JSON_DEPTH_MAX {
            return Err(JsonError::Unreadable);
        }
        self.depth += 1;
        self.at += 1;
        self.skip_blanks();
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn dict(&mut self) -> Result<Value, JsonError> {
        let mut members: Vec<(String, Value)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        if self.take("}") {
            return Ok(Value::Dict(members));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.error_here("Expecting property name enclosed in double quotes"));
            }
            let name = self.string()?.text;
            self.skip_blanks();
            if !self.take(":") {
                return Err(self.error_here("Expecting ':' delimiter"));
            }
            self.skip_blanks();
            let value = self.value()?;
            match places.get(&name) {
                Some(&place) => {
                    let member: &mut (String, Value) = &mut members[place];
                    member.1 = value;
                }
                None => {
                    places.insert(name.clone(), members.len());
                    members.push((name, value));
                }
            }
            self.skip_blanks();
            if self.take("}") {
                return Ok(Value::Dict(members));
            }
            if !self.take(",") {
                return Err(self.error_here("Expecting ',' delimiter"));
            }
            self.skip_blanks();
        }
    }

    fn list(&mut self) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        if self.take("]") {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value()?);
            self.skip_blanks();
            if self.take("]") {
                return Ok(Value::List(items));
            }
            if !self.take(",") {
                return Err(self.error_here("Expecting ',' delimiter"));
            }
            self.skip_blanks();
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    /// As `_match_number`: what cannot belong to the number is left where it is.
    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        let expecting = JsonError::Decode { message: "Expecting value", position: start };
        self.take("-");
        if !self.take("0") && self.digits() == 0 {
            return Err(expecting);
        }
        let mut is_float = false;
        let whole_end = self.at;
        if self.take(".") {
            is_float = self.digits() > 0;
            if !is_float {
                self.at = whole_end;
            }
        }
        let mantissa_end = self.at;
        if self.take("e") || self.take("E") {
            let _sign = self.take("+") || self.take("-");
            if self.digits() > 0 {
                is_float = true;
            } else {
                self.at = mantissa_end;
            }
        }
        let text: String =
            self.text[start..self.at].iter().filter_map(|digit| char::from_u32(*digit)).collect();
        if is_float {
            return Ok(Value::Float(text.parse().unwrap_or(f64::NAN)));
        }
        if text.trim_start_matches('-').len() > INTEGER_DIGITS_MAX {
            return Err(JsonError::Unreadable);
        }
        Ok(Value::Int(if text == "-0" { "0".to_owned() } else { text }))
    }

    /// As `scanstring`, which stands at the opening quote here.
    fn string(&mut self) -> Result<Text, JsonError> {
        let open = self.at;
        let unterminated = JsonError::Decode { message: "Unterminated string starting at", position: open };
        let mut text = Text { text: String::new(), has_lone_surrogate: false };
        self.at += 1;
        loop {
            let Some(&character) = self.text.get(self.at) else { return Err(unterminated) };
            match character {
                QUOTE => {
                    self.at += 1;
                    return Ok(text);
                }
                BACKSLASH => {
                    self.at += 1;
                    let Some(escaped) = self.peek() else { return Err(unterminated) };
                    let character = self.escape(escaped)?;
                    text.push(character);
                }
                0..0x20 => return Err(self.error_here("Invalid control character at")),
                _ => {
                    self.at += 1;
                    text.push(character);
                }
            }
        }
    }

    /// Reads the escape whose letter is `letter`; stands at that letter, ends after the escape.
    fn escape(&mut self, letter: u8) -> Result<u32, JsonError> {
        let simple = match letter {
            b'"' | b'\\' | b'/' => letter,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let position = self.at;
                self.at += 1;
                let first =
                    self.hex().ok_or(JsonError::Decode { message: "Invalid \\uXXXX escape", position })?;
                return self.second_half(first);
            }
            _ => return Err(JsonError::Decode { message: "Invalid \\escape", position: self.at - 1 }),
        };
        self.at += 1;
        Ok(u32::from(simple))
    }

    /// Four hex digits, which something must follow.
    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.text.get(self.at + 4)?;
        let mut number = 0;
        for digit in digits {
            number = number * 16 + char::from_u32(*digit)?.to_digit(16)?;
        }
        self.at += 4;
        Some(number)
    }

    /// After the first half of a surrogate pair: the whole character if the second half follows.
    fn second_half(&mut self, first: u32) -> Result<u32, JsonError> {
        let after = self.at;
        let is_high = (0xd800..0xdc00).contains(&first);
        if !is_high || self.at + 6 >= self.text.len() || !self.take("\\u") {
            return Ok(first);
        }
        let position = self.at - 1;
        let second = self.hex().ok_or(JsonError::Decode { message: "Invalid \\uXXXX escape", position })?;
        if (0xdc00..0xe000).contains(&second) {
            return Ok(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
        }
        self.at = after;
        Ok(first)
    }
}

impl Text {
    fn push(&mut self, character: u32) {
        match char::from_u32(character) {
            Some(character) => self.text.push(character),
            None => {
                self.has_lone_surrogate = true;
                self.text.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }
}
