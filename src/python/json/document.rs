//! A parsed JSON text and the values in it.
//!
//! A value is a node of 16 bytes in one vector; strings stay in the text, or in one buffer if they had
//! escapes. A document therefore costs at most 8 bytes of nodes for each byte of its text, and no allocation
//! for each value.
use std::borrow::Cow;
use std::hash::{BuildHasher as _, Hash, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::work;

/// A JSON value as Python holds it, borrowed from its [`JsonDocument`].
#[derive(Clone, Copy, Debug)]
pub enum PyValue<'d> {
    Null,
    Bool(bool),
    /// The decimal digits, without leading zeros (JSON has none) and never `-0`.
    Int(&'d str),
    Float(f64),
    Text(PyText<'d>),
    List(List<'d>),
    Dict(Dict<'d>),
}

/// A string. Python strings may contain lone surrogates, which UTF-8 cannot encode: `text` has U+FFFD in
/// their place.
#[derive(Clone, Copy, Debug)]
pub struct PyText<'d> {
    pub text: &'d str,
    /// Offset of `text` in the buffer that `lone_surrogates` counts from.
    start: u32,
    lone_surrogates: &'d [LoneSurrogate],
}

/// A surrogate code point that is not part of a pair, and the offset of the U+FFFD that replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoneSurrogate {
    pub at: u32,
    pub code: u16,
}

/// The items of a JSON array.
#[derive(Clone, Copy, Debug)]
pub struct List<'d> {
    document: &'d JsonDocument<'d>,
    first: usize,
    len: usize,
}

/// The members of a JSON object in the order of the text, repeated names included.
#[derive(Clone, Copy, Debug)]
pub struct Dict<'d> {
    document: &'d JsonDocument<'d>,
    first: usize,
    len: usize,
}

/// A parsed text.
#[derive(Debug)]
pub struct JsonDocument<'a> {
    pub(super) text: Cow<'a, str>,
    /// The strings that had escapes, concatenated.
    pub(super) unescaped: String,
    /// Lone surrogates of the body's own encoding, by ascending offset in `text`.
    pub(super) text_surrogates: Vec<LoneSurrogate>,
    /// Lone surrogates by ascending offset in `unescaped`.
    pub(super) unescaped_surrogates: Vec<LoneSurrogate>,
    pub(super) nodes: Vec<Node>,
}

/// A value. The items of a list, and the names and values of a dict, follow it; `nodes` counts them with
/// all that they contain. `start` and `end` are byte offsets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int { start: u32, end: u32 },
    Float(f64),
    Text { start: u32, end: u32, is_unescaped: bool },
    List { len: u32, nodes: u32 },
    Dict { len: u32, nodes: u32 },
}

impl<'a> JsonDocument<'a> {
    pub(super) fn unread(text: Cow<'a, str>, text_surrogates: Vec<LoneSurrogate>) -> Self {
        Self {
            text,
            unescaped: String::new(),
            text_surrogates,
            unescaped_surrogates: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// `null`, the value of an empty body.
    pub fn null() -> Self {
        Self { nodes: vec![Node::Null], ..Self::unread(Cow::Borrowed(""), Vec::new()) }
    }

    /// A text that is not JSON, as one string value.
    pub fn of_text(text: Cow<'a, str>) -> Self {
        let node = Node::Text { start: 0, end: offset(text.len()), is_unescaped: false };
        Self { nodes: vec![node], ..Self::unread(text, Vec::new()) }
    }

    /// The value of the whole text.
    pub fn root(&self) -> PyValue<'_> {
        self.value(0)
    }

    /// The number of values, in proportion to which reading costs time and memory.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn value(&self, at: usize) -> PyValue<'_> {
        let first = at + 1;
        match self.nodes.get(at).copied().unwrap_or(Node::Null) {
            Node::Null => PyValue::Null,
            Node::Bool(value) => PyValue::Bool(value),
            Node::Int { start, end } => PyValue::Int(self.string(start, end, false).text),
            Node::Float(number) => PyValue::Float(number),
            Node::Text { start, end, is_unescaped } => PyValue::Text(self.string(start, end, is_unescaped)),
            Node::List { len, .. } => PyValue::List(List { document: self, first, len: len as usize }),
            Node::Dict { len, .. } => PyValue::Dict(Dict { document: self, first, len: len as usize }),
        }
    }

    fn string(&self, start: u32, end: u32, is_unescaped: bool) -> PyText<'_> {
        let (buffer, surrogates) = if is_unescaped {
            (self.unescaped.as_str(), &self.unescaped_surrogates)
        } else {
            (&*self.text, &self.text_surrogates)
        };
        let text = buffer.get(start as usize..end as usize).unwrap_or_default();
        PyText { text, start, lone_surrogates: within(surrogates, start, end) }
    }

    /// The number of nodes of one value, itself included.
    fn nodes_of(&self, at: usize) -> usize {
        match self.nodes.get(at) {
            Some(Node::List { nodes, .. } | Node::Dict { nodes, .. }) => *nodes as usize + 1,
            _ => 1,
        }
    }
}

impl<'d> PyText<'d> {
    /// A string without lone surrogates.
    pub fn new(text: &'d str) -> Self {
        Self { text, start: 0, lone_surrogates: &[] }
    }

    pub fn has_lone_surrogate(self) -> bool {
        !self.lone_surrogates.is_empty()
    }

    /// The code points that Python iterates over, lone surrogates included.
    pub fn code_points(self) -> impl Iterator<Item = u32> {
        let mut surrogates = self.lone_surrogates.iter();
        let mut next = surrogates.next();
        self.text.char_indices().map(move |(at, char)| match next {
            Some(lone) if lone.at as usize == self.start as usize + at => {
                next = surrogates.next();
                u32::from(lone.code)
            }
            _ => u32::from(char),
        })
    }
}

impl PartialEq for PyText<'_> {
    fn eq(&self, other: &Self) -> bool {
        // In equal texts U+FFFD is at the same offsets; it may be itself or replace a lone surrogate.
        self.text == other.text
            && (self.lone_surrogates.is_empty() && other.lone_surrogates.is_empty()
                || self.code_points().eq(other.code_points()))
    }
}

impl Eq for PyText<'_> {}

impl Hash for PyText<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl<'d> List<'d> {
    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

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
    /// The number of members, repeated names included.
    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    fn entries(self) -> impl Iterator<Item = (PyText<'d>, PyValue<'d>)> {
        work::count(self.len);
        let mut at = self.first;
        (0..self.len).map(move |_| {
            let name = match self.document.value(at) {
                PyValue::Text(name) => name,
                _ => PyText::new(""),
            };
            let value = self.document.value(at + 1);
            at += 1 + self.document.nodes_of(at + 1);
            (name, value)
        })
    }

    /// Each member in the order of the text, repeated names included.
    pub fn written(self) -> impl Iterator<Item = (&'d str, PyValue<'d>)> {
        self.entries().map(|(name, value)| (name.text, value))
    }

    /// The last member of that name. Visits every member.
    pub fn get(self, name: &str) -> Option<PyValue<'d>> {
        self.written().filter(|(found, _)| *found == name).last().map(|(_, value)| value)
    }

    /// The members of Python's `dict`: each name once, in order of first appearance, with its last value.
    /// Names that differ only in lone surrogates count as one.
    pub fn members(self) -> Vec<(&'d str, PyValue<'d>)> {
        last_of_each_name(self.written(), self.len)
    }

    /// As [`Self::members`], with names compared by code point as Python does.
    pub fn exact_members(self) -> Vec<(PyText<'d>, PyValue<'d>)> {
        last_of_each_name(self.entries(), self.len)
    }
}

/// A body may have a hundred thousand members: a table of positions is smaller than one of names.
fn last_of_each_name<K: Copy + Eq + Hash, V>(
    entries: impl Iterator<Item = (K, V)>,
    capacity: usize,
) -> Vec<(K, V)> {
    let mut members: Vec<(K, V)> = Vec::with_capacity(capacity);
    let mut positions: HashTable<u32> = HashTable::with_capacity(capacity);
    let state = RandomState::default();
    for (name, value) in entries {
        let hash = state.hash_one(name);
        if let Some(position) = positions.find(hash, |position| members[*position as usize].0 == name) {
            members[*position as usize].1 = value;
        } else {
            let position = offset(members.len());
            positions.insert_unique(hash, position, |position| state.hash_one(members[*position as usize].0));
            members.push((name, value));
        }
    }
    members
}

/// The surrogates from offset `start` up to `end`.
pub(super) fn within(surrogates: &[LoneSurrogate], start: u32, end: u32) -> &[LoneSurrogate] {
    let first = surrogates.partition_point(|lone| lone.at < start);
    let after = surrogates.partition_point(|lone| lone.at < end);
    surrogates.get(first..after).unwrap_or_default()
}

/// The offset of a node. No text comes near 4 GiB (`limits::BODY_BYTES_MAX`).
pub(super) fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
