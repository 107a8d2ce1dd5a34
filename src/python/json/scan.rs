//! One pass over a JSON text, as CPython's `json.scanner` and `json.decoder` make it.
//!
//! Time is linear in the text. After an error the nodes read so far form a valid value, with the open
//! containers closed.
use crate::json::write::plain_len;
use crate::limits::INTEGER_DIGITS_MAX;
use crate::python::json::document::{JsonDocument, LoneSurrogate, Node, offset, within};
use crate::python::json::error::JsonError;
use crate::work;

/// What was read, where reading ended, and why, if that is not the end of the text.
pub struct Scanned<'a> {
    pub document: JsonDocument<'a>,
    pub at: usize,
    pub error: Option<JsonError>,
}

impl<'a> Scanned<'a> {
    pub fn complete(self) -> Result<JsonDocument<'a>, JsonError> {
        self.error.map_or(Ok(self.document), Err)
    }
}

/// Reads the text of a document without nodes.
pub fn scan(document: JsonDocument<'_>, depth_max: usize) -> Scanned<'_> {
    let mut scanner = Scanner { document, at: 0, depth: 0, depth_max };
    scanner.skip_blanks();
    let mut error = scanner.value().err();
    if error.is_none() {
        scanner.skip_blanks();
        if scanner.at < scanner.document.text.len() {
            error = Some(scanner.error_here("Extra data"));
        }
    }
    if scanner.document.nodes.is_empty() {
        scanner.document.nodes.push(Node::Null);
    }
    work::count(scanner.document.nodes.len());
    work::count_bytes(scanner.at);
    Scanned { document: scanner.document, at: scanner.at, error }
}

struct Scanner<'a> {
    document: JsonDocument<'a>,
    at: usize,
    /// Containers that are open.
    depth: usize,
    depth_max: usize,
}

impl Scanner<'_> {
    fn error_at(&self, message: &'static str, at: usize) -> JsonError {
        let before = self.document.text.get(..at).unwrap_or_default();
        JsonError::Decode { message, position: before.chars().count() }
    }

    fn error_here(&self, message: &'static str) -> JsonError {
        self.error_at(message, self.at)
    }

    fn rest(&self) -> &[u8] {
        self.document.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.document.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Consumes `word` if it is next.
    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    /// Appends the nodes of one value. After an error these are either a complete value or none.
    fn value(&mut self) -> Result<(), JsonError> {
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
        if self.depth == self.depth_max {
            return Err(JsonError::TooDeep);
        }
        self.depth += 1;
        self.at += 1;
        self.skip_blanks();
        let container = self.document.nodes.len();
        self.document.nodes.push(Node::Null);
        let mut len = 0;
        let read = if is_dict { self.dict(&mut len) } else { self.list(&mut len) };
        let nodes = offset(self.document.nodes.len() - container - 1);
        self.document.nodes[container] =
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

    /// As `_match_number_unicode`: an incomplete fraction or exponent is not consumed.
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

    /// As `scanstring`, starting at the opening quote.
    fn string(&mut self) -> Result<Node, JsonError> {
        let open = self.at;
        self.at += 1;
        let mut plain_start = self.at;
        let mut unescaped_start = None;
        loop {
            self.at += plain_len(self.rest());
            match self.peek() {
                None => return Err(self.error_at("Unterminated string starting at", open)),
                Some(b'"') => break,
                Some(b'\\') => {
                    unescaped_start.get_or_insert(self.document.unescaped.len());
                    self.copy_plain(plain_start);
                    self.at += 1;
                    let Some(letter) = self.peek() else {
                        return Err(self.error_at("Unterminated string starting at", open));
                    };
                    let code = self.escape(letter)?;
                    self.push_unescaped(code);
                    plain_start = self.at;
                }
                Some(_) => return Err(self.error_here("Invalid control character at")),
            }
        }
        let (start, end) = match unescaped_start {
            None => (plain_start, self.at),
            Some(start) => {
                self.copy_plain(plain_start);
                (start, self.document.unescaped.len())
            }
        };
        self.at += 1;
        Ok(Node::Text { start: offset(start), end: offset(end), is_unescaped: unescaped_start.is_some() })
    }

    /// Appends the text from `start` up to here to the unescaped strings.
    fn copy_plain(&mut self, start: usize) {
        let JsonDocument { text, unescaped, text_surrogates, unescaped_surrogates, .. } = &mut self.document;
        let (from, to) = (offset(start), offset(unescaped.len()));
        let copied = within(text_surrogates, from, offset(self.at)).iter();
        unescaped_surrogates
            .extend(copied.map(|lone| LoneSurrogate { at: lone.at - from + to, code: lone.code }));
        unescaped.push_str(text.get(start..self.at).unwrap_or_default());
    }

    fn push_unescaped(&mut self, code: u32) {
        let unescaped = &mut self.document.unescaped;
        let char = char::from_u32(code).unwrap_or_else(|| {
            let lone = LoneSurrogate { at: offset(unescaped.len()), code: code as u16 };
            self.document.unescaped_surrogates.push(lone);
            char::REPLACEMENT_CHARACTER
        });
        unescaped.push(char);
    }

    /// Reads an escape from its `letter` to its end.
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

    /// Four hexadecimal digits. CPython requires a character after them.
    fn hex(&mut self) -> Option<u32> {
        let (digits, _) = self.rest().split_first_chunk::<5>()?.0.split_first_chunk::<4>()?;
        let mut number = 0;
        for digit in digits {
            number = number * 16 + char::from(*digit).to_digit(16)?;
        }
        self.at += 4;
        Some(number)
    }

    /// Completes a surrogate pair if `first` is a high surrogate and a low one follows.
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
