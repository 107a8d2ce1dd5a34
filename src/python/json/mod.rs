//! JSON as Python 3.12's `json.loads` reads it, with its error texts and positions.
//!
//! In: the bytes of a body. Out: a [`JsonDocument`], or the error that FastAPI makes of it. It takes a
//! byte-order mark, UTF-16 and UTF-32, `NaN` and `Infinity`, integers of up to 4,300 digits, and
//! of two members of one name the last. Positions count characters, not bytes.
//! Invariant: input of any kind ends in a document or an error; nesting is bounded
//! (`limits::JSON_DEPTH_MAX`). Values are nodes of 16 bytes in one vector and strings stay in the
//! text,
//! so that a body costs at most 8 bytes of nodes for each of its own, and no allocation for each value.
mod decode;
mod scan;

use std::borrow::Cow;
use std::collections::HashMap;

use crate::python::json::decode::decode;
use crate::python::json::scan::Scanner;

/// A JSON value as Python holds it, borrowed from its [`JsonDocument`].
#[derive(Clone, Copy, Debug)]
pub enum PyValue<'d> {
    Null,
    Bool(bool),
    /// Its digits, without leading zeros (JSON has none) and never `-0`.
    Int(&'d str),
    Float(f64),
    Text(PyText<'d>),
    List(List<'d>),
    Dict(Dict<'d>),
}

/// A string. Python may hold half of a surrogate pair, which no UTF-8 can: it is U+FFFD here.
#[derive(Clone, Copy, Debug)]
pub struct PyText<'d> {
    pub text: &'d str,
    pub has_lone_surrogate: bool,
}

/// The items of a JSON array.
#[derive(Clone, Copy, Debug)]
pub struct List<'d> {
    document: &'d JsonDocument<'d>,
    first: usize,
    len: usize,
}

/// The members of a JSON object, as sent: of two with the same name the last one counts.
#[derive(Clone, Copy, Debug)]
pub struct Dict<'d> {
    document: &'d JsonDocument<'d>,
    first: usize,
    len: usize,
}

/// A parsed text.
#[derive(Debug)]
pub struct JsonDocument<'a> {
    text: Cow<'a, str>,
    /// Strings that had escapes, one after the other.
    unescaped: String,
    /// Where `text` has U+FFFD for a lone surrogate of the body's own encoding, in bytes, ascending.
    surrogates: Vec<usize>,
    nodes: Vec<Node>,
}

/// A value; the items of a list and the names and values of a dict follow it. Spans are byte offsets.
#[derive(Clone, Copy, Debug)]
enum Node {
    Null,
    Bool(bool),
    Int { start: u32, end: u32 },
    Float(f64),
    Text { start: u32, end: u32, is_unescaped: bool, has_lone_surrogate: bool },
    List { len: u32, nodes: u32 },
    Dict { len: u32, nodes: u32 },
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
pub fn loads(bytes: &[u8]) -> Result<JsonDocument<'_>, JsonError> {
    let (document, _, error) = read(bytes)?;
    error.map_or(Ok(document), Err)
}

/// Reads the first bytes of a text whose rest was not looked at: what they hold, with all that is still
/// open closed. An error is one of the whole text too, not of where it was cut.
///
/// # Errors
/// What Python raises whatever follows, as [`JsonError`]; `Unreadable` too if the cut leaves no text.
pub fn loads_prefix(bytes: &[u8]) -> Result<JsonDocument<'_>, JsonError> {
    // A word or an escape that the cut ends in is judged up to this far before it.
    const TOKEN_BYTES_MAX: usize = 12;
    let is_continuation = |byte: &u8| byte & 0xc0 == 0x80;
    let mut end = bytes.len();
    for _ in 0..3 {
        end -= usize::from(end > 0 && bytes.get(end - 1).is_some_and(is_continuation));
    }
    end -= usize::from(end > 0 && bytes.get(end - 1).is_some_and(|byte| *byte >= 0xc0));
    let (document, at, error) = read(&bytes[..end])?;
    match error {
        Some(error) if at + TOKEN_BYTES_MAX < document.text.len() => Err(error),
        _ => Ok(document),
    }
}

/// The document as far as it could be read, where reading ended, and why if that is not the end.
fn read(bytes: &[u8]) -> Result<(JsonDocument<'_>, usize, Option<JsonError>), JsonError> {
    let (text, surrogates) = decode(bytes).ok_or(JsonError::Unreadable)?;
    let document = JsonDocument { text, unescaped: String::new(), surrogates, nodes: Vec::new() };
    let mut scanner = Scanner::new(document);
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
    Ok((scanner.document, scanner.at, error))
}

impl<'a> JsonDocument<'a> {
    /// The null that an empty body is.
    pub fn null() -> Self {
        Self {
            text: Cow::Borrowed(""),
            unescaped: String::new(),
            surrogates: Vec::new(),
            nodes: vec![Node::Null],
        }
    }

    /// A text that is no JSON, as one string.
    pub fn of_text(text: Cow<'a, str>) -> Self {
        let node =
            Node::Text { start: 0, end: offset(text.len()), is_unescaped: false, has_lone_surrogate: false };
        Self { text, unescaped: String::new(), surrogates: Vec::new(), nodes: vec![node] }
    }

    /// The value of the whole text.
    pub fn root(&self) -> PyValue<'_> {
        self.value(0)
    }

    /// How many values it has: what reading it cost.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn value(&self, at: usize) -> PyValue<'_> {
        let first = at + 1;
        match self.nodes.get(at).copied().unwrap_or(Node::Null) {
            Node::Null => PyValue::Null,
            Node::Bool(value) => PyValue::Bool(value),
            Node::Int { start, end } => PyValue::Int(self.slice(start, end, false)),
            Node::Float(number) => PyValue::Float(number),
            Node::Text { start, end, is_unescaped, has_lone_surrogate } => {
                PyValue::Text(PyText { text: self.slice(start, end, is_unescaped), has_lone_surrogate })
            }
            Node::List { len, .. } => PyValue::List(List { document: self, first, len: len as usize }),
            Node::Dict { len, .. } => PyValue::Dict(Dict { document: self, first, len: len as usize }),
        }
    }

    fn slice(&self, start: u32, end: u32, is_unescaped: bool) -> &str {
        let text = if is_unescaped { self.unescaped.as_str() } else { &self.text };
        text.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The nodes of one value, itself included.
    fn nodes_of(&self, at: usize) -> usize {
        match self.nodes.get(at) {
            Some(Node::List { nodes, .. } | Node::Dict { nodes, .. }) => *nodes as usize + 1,
            _ => 1,
        }
    }
}

impl<'d> List<'d> {
    pub fn iter(self) -> impl Iterator<Item = PyValue<'d>> {
        let mut at = self.first;
        (0..self.len).map(move |_| {
            let value = self.document.value(at);
            at += self.document.nodes_of(at);
            value
        })
    }
}

impl<'d> Dict<'d> {
    /// Members as they are written, two of the same name included.
    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Each member as it is written, two of the same name included.
    pub fn written(self) -> impl Iterator<Item = (&'d str, PyValue<'d>)> {
        let mut at = self.first;
        (0..self.len).map(move |_| {
            let name = match self.document.value(at) {
                PyValue::Text(name) => name.text,
                _ => "",
            };
            let value = self.document.value(at + 1);
            at += 1 + self.document.nodes_of(at + 1);
            (name, value)
        })
    }

    /// The member of that name. Looks at every member.
    pub fn get(self, name: &str) -> Option<PyValue<'d>> {
        self.written().filter(|(found, _)| *found == name).last().map(|(_, value)| value)
    }

    /// Each name once, in order of first appearance, with its last value, as Python's `dict`.
    pub fn members(self) -> Vec<(&'d str, PyValue<'d>)> {
        let mut members: Vec<(&str, PyValue<'_>)> = Vec::new();
        let mut places = HashMap::new();
        for (name, value) in self.written() {
            match places.entry(name) {
                std::collections::hash_map::Entry::Occupied(place) => {
                    let place: &usize = place.get();
                    members[*place].1 = value;
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(members.len());
                    members.push((name, value));
                }
            }
        }
        members
    }
}

/// A byte offset of a node. Bodies are a million bytes at most (`limits::BODY_BYTES_MAX`).
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
