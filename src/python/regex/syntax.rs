//! Syntax trees of a pattern: [`SetItem`] as parsed, [`RegexNode`] with the flags applied.
use crate::python::regex::flags::RegexFlags;
use crate::python::regex::set::{Set, SetMember};

/// "No upper bound" of a repetition; the least number that Python rejects as a bound.
pub const REPEAT_MAX: u32 = u32::MAX;

/// A zero-width position, before flags are applied.
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

/// An item as parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum SetItem {
    /// A code point, which may be a lone surrogate.
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

/// A node with its flags applied.
#[derive(Clone, Debug)]
pub enum RegexNode {
    Set(Set),
    Position(Position),
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
    /// `behind`: the width in characters of a lookbehind.
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

/// How a backreference compares characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    Exact,
    Ascii,
    Unicode,
}

/// A zero-width position with its flags applied.
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
