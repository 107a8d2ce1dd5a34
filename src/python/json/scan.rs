//! One pass over a JSON text, as CPython's `json.scanner` and `json.decoder` make it.
//!
//! In: a document that has its text and no nodes. Out: its nodes, or the error of `JSONDecodeError`.
//! Invariant: every byte is looked at a bounded number of times; after an error the nodes so far are a
//! value too, with all that was open closed; nesting is bounded (`limits::JSON_DEPTH_MAX`).
use crate::json::write::plain_len;
use crate::limits::{INTEGER_DIGITS_MAX, JSON_DEPTH_MAX};
use crate::python::json::{JsonDocument, JsonError, Node, offset};

/// Reads a text once, from its start to its end.
pub struct Scanner<'a> {
    pub document: JsonDocument<'a>,
    pub at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(document: JsonDocument<'a>) -> Self {
        Self { document, at: 0, depth: 0 }
    }

    fn error_at(&self, message: &'static str, at: usize) -> JsonError {
        let before = self.document.text.get(..at).unwrap_or_default();
        JsonError::Decode { message, position: before.chars().count() }
    }

    pub fn error_here(&self, message: &'static str) -> JsonError {
        self.error_at(message, self.at)
    }

    fn rest(&self) -> &[u8] {
        self.document.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.document.text.as_bytes().get(self.at).copied()
    }

    pub fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `word` if it stands here.
    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    /// Appends the nodes of one value. After an error what there is of it is a value as well, or nothing.
    pub fn value(&mut self) -> Result<(), JsonError> {
        let node = match self.peek() {
            Some(b'"') => self.string()?,
            Some(b'{') => return self.nested(true),
            Some(b'[') => return self.nested(false),
            Some(b'0'..=b'9') => self.number()?,
            _ if self.take("null") => Node::Null,
            _ if self.take("true") => Node::Bool(true),
            _ if self.take("false") => Node::Bool(false),
            _ if self.take("NaN") => Node::Float(f64::NAN),
            _ if self.take("Infinity") => Node::Float(f64::INFINITY),
            _ if self.take("-Infinity") => Node::Float(f64::NEG_INFINITY),
            _ => self.number()?,
        };
        self.document.nodes.push(node);
        Ok(())
    }

    fn nested(&mut self, is_dict: bool) -> Result<(), JsonError> {
        if self.depth == JSON_DEPTH_MAX {
            return Err(JsonError::Unreadable);
        }
        self.depth += 1;
        self.at += 1;
        self.skip_blanks();
        let place = self.document.nodes.len();
        self.document.nodes.push(Node::Null);
        let mut len = 0;
        let read = if is_dict { self.dict(&mut len) } else { self.list(&mut len) };
        let nodes = offset(self.document.nodes.len() - place - 1);
        self.document.nodes[place] =
            if is_dict { Node::Dict { len, nodes } } else { Node::List { len, nodes } };
        self.depth -= 1;
        read
    }

    fn dict(&mut self, len: &mut u32) -> Result<(), JsonError> {
        if self.take("}") {
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.error_here("Expecting property name enclosed in double quotes"));
            }
            let name_at = self.document.nodes.len();
            let name = self.string()?;
            self.skip_blanks();
            if !self.take(":") {
                return Err(self.error_here("Expecting ':' delimiter"));
            }
            self.skip_blanks();
            self.document.nodes.push(name);
            let value = self.value();
            if self.document.nodes.len() == name_at + 1 {
                self.document.nodes.truncate(name_at);
                return value;
            }
            *len += 1;
            value?;
            self.skip_blanks();
            if self.take("}") {
                return Ok(());
            }
            if !self.take(",") {
                return Err(self.error_here("Expecting ',' delimiter"));
            }
            self.skip_blanks();
        }
    }

    fn list(&mut self, len: &mut u32) -> Result<(), JsonError> {
        if self.take("]") {
            return Ok(());
        }
        loop {
            let before = self.document.nodes.len();
            let value = self.value();
            *len += u32::from(self.document.nodes.len() > before);
            value?;
            self.skip_blanks();
            if self.take("]") {
                return Ok(());
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
    fn number(&mut self) -> Result<Node, JsonError> {
        let start = self.at;
        let is_negative = self.take("-");
        let whole_start = self.at;
        if !self.take("0") && self.digits() == 0 {
            return Err(self.error_at("Expecting value", start));
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
        let text = self.document.text.get(start..self.at).unwrap_or_default();
        if is_float {
            return Ok(Node::Float(text.parse().unwrap_or(f64::NAN)));
        }
        if self.at - whole_start > INTEGER_DIGITS_MAX {
            return Err(JsonError::Unreadable);
        }
        // Python's integer 0 has no sign.
        let start = if is_negative && text == "-0" { whole_start } else { start };
        Ok(Node::Int { start: offset(start), end: offset(self.at) })
    }

    /// As `scanstring`, which stands at the opening quote here.
    fn string(&mut self) -> Result<Node, JsonError> {
        let open = self.at;
        self.at += 1;
        let mut plain_start = self.at;
        let mut unescaped_start = None;
        let mut has_lone_surrogate = false;
        loop {
            self.at += plain_len(self.rest());
            match self.peek() {
                None => return Err(self.error_at("Unterminated string starting at", open)),
                Some(b'"') => break,
                Some(b'\\') => {
                    unescaped_start.get_or_insert(self.document.unescaped.len());
                    let plain = self.document.text.get(plain_start..self.at).unwrap_or_default();
                    self.document.unescaped.push_str(plain);
                    self.at += 1;
                    let Some(letter) = self.peek() else {
                        return Err(self.error_at("Unterminated string starting at", open));
                    };
                    let character = char::from_u32(self.escape(letter)?);
                    has_lone_surrogate |= character.is_none();
                    self.document.unescaped.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
                    plain_start = self.at;
                }
                Some(_) => return Err(self.error_here("Invalid control character at")),
            }
        }
        let end = self.at;
        self.at += 1;
        if !self.document.surrogates.is_empty() {
            let surrogates = &self.document.surrogates;
            let next = surrogates.partition_point(|at| *at < open);
            has_lone_surrogate |= surrogates.get(next).is_some_and(|at| *at < end);
        }
        let (start, end) = match unescaped_start {
            None => (plain_start, end),
            Some(start) => {
                let plain = self.document.text.get(plain_start..end).unwrap_or_default();
                self.document.unescaped.push_str(plain);
                (start, self.document.unescaped.len())
            }
        };
        Ok(Node::Text {
            start: offset(start),
            end: offset(end),
            is_unescaped: unescaped_start.is_some(),
            has_lone_surrogate,
        })
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
                let first = match self.hex() {
                    Some(first) => first,
                    None => return Err(self.error_at("Invalid \\uXXXX escape", position)),
                };
                return self.second_half(first);
            }
            _ => return Err(self.error_at("Invalid \\escape", self.at - 1)),
        };
        self.at += 1;
        Ok(u32::from(simple))
    }

    /// Four hex digits, which something must follow.
    fn hex(&mut self) -> Option<u32> {
        let (digits, _) = self.rest().split_first_chunk::<5>()?.0.split_first_chunk::<4>()?;
        let mut number = 0;
        for digit in digits {
            number = number * 16 + char::from(*digit).to_digit(16)?;
        }
        self.at += 4;
        Some(number)
    }

    /// After the first half of a surrogate pair: the whole character if the second half follows.
    fn second_half(&mut self, first: u32) -> Result<u32, JsonError> {
        let after = self.at;
        let is_high = (0xd800..0xdc00).contains(&first);
        if !is_high || self.at + 6 >= self.document.text.len() || !self.take("\\u") {
            return Ok(first);
        }
        let position = self.at - 1;
        let second = match self.hex() {
            Some(second) => second,
            None => return Err(self.error_at("Invalid \\uXXXX escape", position)),
        };
        if (0xdc00..0xe000).contains(&second) {
            return Ok(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
        }
        self.at = after;
        Ok(first)
    }
}
