//! A pattern in the two forms it has on its way to a matcher.
//!
//! [`SetItem`] is what the parser read, flags unresolved, as Python's parser leaves it. [`RegexNode`] is
//! what both matchers take: every set is final, every flag has had its effect.
//! Invariant: neither form holds anything that Python would refuse.
use crate::python::regex::flags::RegexFlags;
use crate::python::regex::set::{Set, SetMember};

/// "No upper bound" of a repetition, and the first number that Python refuses as one.
pub const REPEAT_MAX: u32 = u32::MAX;

/// A place rather than a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// `^`.
    Begin,
    /// `$`.
    End,
    /// `\A`.
    BeginText,
    /// `\Z`.
    EndText,
    /// `\b`.
    Boundary,
    /// `\B`.
    NoBoundary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greed {
    Greedy,
    Lazy,
    Possessive,
}

/// A pattern as read.
#[derive(Clone, Debug, PartialEq)]
pub enum SetItem {
    /// A code point; a lone surrogate is one that no text has.
    Literal(u32),
    NotLiteral(u32),
    Any,
    Set {
        negated: bool,
        members: Vec<SetMember>,
    },
    At(At),
    Branch(Vec<Vec<SetItem>>),
    Repeat {
        greed: Greed,
        min: u32,
        max: u32,
        body: Vec<SetItem>,
    },
    Group {
        index: Option<u32>,
        add: RegexFlags,
        remove: RegexFlags,
        body: Vec<SetItem>,
    },
    Atomic(Vec<SetItem>),
    Look {
        behind: bool,
        negated: bool,
        body: Vec<SetItem>,
        width: u64,
    },
    Backreference(u32),
    Conditional {
        group: u32,
        yes: Vec<SetItem>,
        no: Option<Vec<SetItem>>,
    },
    Failure,
}

/// A pattern without flags.
#[derive(Clone, Debug)]
pub enum RegexNode {
    Set(Set),
    Place(Position),
    Sequence(Vec<RegexNode>),
    Branch(Vec<RegexNode>),
    Repeat {
        greed: Greed,
        min: u32,
        max: u32,
        body: Box<RegexNode>,
    },
    Group {
        index: u32,
        body: Box<RegexNode>,
    },
    Atomic(Box<RegexNode>),
    /// `width` in characters, for a look-behind.
    Look {
        behind: Option<usize>,
        negated: bool,
        body: Box<RegexNode>,
    },
    Backreference {
        group: u32,
        fold: Fold,
    },
    Conditional {
        group: u32,
        yes: Box<RegexNode>,
        no: Box<RegexNode>,
    },
}

/// How characters are compared with those of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    Exact,
    Ascii,
    Unicode,
}

/// A place, its flags resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    TextBegin,
    TextEnd,
    /// The end, or before a line feed that is the last character.
    LastLineEnd,
    LineBegin,
    LineEnd,
    Boundary {
        ascii: bool,
        negated: bool,
    },
}
