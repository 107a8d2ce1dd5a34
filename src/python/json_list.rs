//! JSON as Python's `json.loads` reads it, for IN conditions alone.
//!
//! In: text that starts with `[`. Out: its items, or why there are none. Beyond RFC 8259 it takes
//! `NaN`, `Infinity`, `-Infinity` and lone surrogates; of a repeated member the last value counts
//! at the first one's place. Invariant: depth is bounded, so no document can end the process.
use crate::limits::IN_LIST_DEPTH_MAX;
use crate::python::number::{Integer, int_from_text};

/// One JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Integer(Integer),
    Float(f64),
    Text(CodePoints),
    List(Vec<Json>),
    /// In order, without repeated names.
    Object(Vec<(CodePoints, Json)>),
}

/// A Python `str`: code points, lone surrogates among them.
pub type CodePoints = Vec<u32>;

/// Why there are no items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    /// `json.loads` raises `ValueError`.
    NotJson,
    /// It raises `RecursionError`.
    TooDeep,
}

/// The items of a JSON list.
pub fn parse(text: &str) -> Result<Vec<Json>, ListError> {
    let mut reader = ListReader { text, at: 0 };
    let Json::List(items) = reader.value(0)? else { return Err(ListError::NotJson) };
    reader.skip_blanks();
    if reader.at == text.len() { Ok(items) } else { Err(ListError::NotJson) }
}

struct ListReader<'a> {
    text: &'a str,
    /// A byte offset, always between two characters.
    at: usize,
}

impl<'a> ListReader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, literal: &str) -> bool {
        let found = self.rest().starts_with(literal);
        if found {
            self.at += literal.len();
        }
        found
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn value(&mut self, depth: usize) -> Result<Json, ListError> {
        if depth > IN_LIST_DEPTH_MAX {
            return Err(ListError::TooDeep);
        }
        match self.peek().ok_or(ListError::NotJson)? {
            b'[' => self.list(depth),
            b'{' => self.object(depth),
            b'"' => self.string().map(Json::Text),
            b'-' | b'0'..=b'9' if !self.rest().starts_with("-I") => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Json, ListError> {
        const WORDS: [(&str, Json); 6] = [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Float(f64::NAN)),
            ("Infinity", Json::Float(f64::INFINITY)),
            ("-Infinity", Json::Float(f64::NEG_INFINITY)),
        ];
        let word = WORDS.into_iter().find(|(word, _)| self.take(word));
        word.map(|(_, value)| value).ok_or(ListError::NotJson)
    }

    fn list(&mut self, depth: usize) -> Result<Json, ListError> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_blanks();
        if self.take("]") {
            return Ok(Json::List(items));
        }
        loop {
            self.skip_blanks();
            items.push(self.value(depth + 1)?);
            self.skip_blanks();
            if self.take("]") {
                return Ok(Json::List(items));
            }
            if !self.take(",") {
                return Err(ListError::NotJson);
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, ListError> {
        self.at += 1;
        let mut members: Vec<(CodePoints, Json)> = Vec::new();
        self.skip_blanks();
        if self.take("}") {
            return Ok(Json::Object(members));
        }
        loop {
            self.skip_blanks();
            if self.peek() != Some(b'"') {
                return Err(ListError::NotJson);
            }
            let name = self.string()?;
            self.skip_blanks();
            if !self.take(":") {
                return Err(ListError::NotJson);
            }
            self.skip_blanks();
            let value = self.value(depth + 1)?;
            match members.iter_mut().find(|(known, _)| *known == name) {
                Some((_, old)) => *old = value,
                None => members.push((name, value)),
            }
            self.skip_blanks();
            if self.take("}") {
                return Ok(Json::Object(members));
            }
            if !self.take(",") {
                return Err(ListError::NotJson);
            }
        }
    }

    fn string(&mut self) -> Result<CodePoints, ListError> {
        self.at += 1;
        let mut text = CodePoints::new();
        loop {
            let char = self.rest().chars().next().ok_or(ListError::NotJson)?;
            self.at += char.len_utf8();
            match char {
                '"' => return Ok(text),
                '\\' => text.push(self.escape()?),
                '\0'..='\x1f' => return Err(ListError::NotJson),
                _ => text.push(u32::from(char)),
            }
        }
    }

    fn escape(&mut self) -> Result<u32, ListError> {
        let char = self.peek().ok_or(ListError::NotJson)?;
        self.at += 1;
        let plain = match char {
            b'"' | b'\\' | b'/' => char,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode_escape(),
            _ => {
                // A character of several bytes may start here; the failure ends the reading.
                return Err(ListError::NotJson);
            }
        };
        Ok(u32::from(plain))
    }

    fn unicode_escape(&mut self) -> Result<u32, ListError> {
        let unit = self.four_hex_digits().ok_or(ListError::NotJson)?;
        let before = self.at;
        if (0xD800..0xDC00).contains(&unit) && self.take("\\u") {
            match self.four_hex_digits() {
                Some(low @ 0xDC00..=0xDFFF) => return Ok(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)),
                // Not a pair: the first one stays alone and the rest is read again.
                _ => self.at = before,
            }
        }
        Ok(unit)
    }

    fn four_hex_digits(&mut self) -> Option<u32> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    fn number(&mut self) -> Result<Json, ListError> {
        let bytes = self.rest().as_bytes();
        let digits_from =
            |at: usize| bytes.get(at..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count();
        let mut end = usize::from(bytes.first() == Some(&b'-'));
        end += match bytes.get(end) {
            Some(b'0') => 1,
            Some(b'1'..=b'9') => digits_from(end),
            _ => return Err(ListError::NotJson),
        };
        let whole = end;
        if bytes.get(end) == Some(&b'.') && digits_from(end + 1) > 0 {
            end += 1 + digits_from(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let digits = digits_from(end + 1 + sign);
            end += if digits > 0 { 1 + sign + digits } else { 0 };
        }
        let text = self.rest().get(..end).ok_or(ListError::NotJson)?;
        self.at += end;
        if end > whole {
            return text.parse().map(Json::Float).map_err(|_| ListError::NotJson);
        }
        int_from_text(text).map(Json::Integer).ok_or(ListError::NotJson)
    }
}
