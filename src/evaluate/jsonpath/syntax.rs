//! A JSONPath as read.
//!
//! [`Path`] is a list of segments; filters hold paths again. Invariant: well typed, as
//! jsonpath-rfc9535 checks it: what is compared is a single value, what a function takes fits.
use super::super::value::Integer;
use super::iregexp::Expression;

/// A path from the root, or from the current node of a filter.
#[derive(Clone, Debug, Default)]
pub struct Path {
    pub segments: Vec<Segment>,
}

#[derive(Clone, Debug)]
pub struct Segment {
    /// `..`: every node below as well.
    pub descendant: bool,
    pub selectors: Vec<Selector>,
}

#[derive(Clone, Debug)]
pub enum Selector {
    Name(Box<str>),
    Index(i64),
    Slice { start: Option<i64>, stop: Option<i64>, step: Option<i64> },
    Wild,
    Filter(Box<Test>),
}

/// What a filter asks.
#[derive(Clone, Debug)]
pub enum Test {
    Literal(Literal),
    Path {
        from_root: bool,
        path: Path,
    },
    /// `pattern`: the second argument of `match` or `search`, where it is a literal that can be one.
    Function {
        function: Function,
        arguments: Vec<Test>,
        pattern: Option<Box<Expression>>,
    },
    Not(Box<Test>),
    Compare {
        left: Box<Test>,
        operator: Comparison,
        right: Box<Test>,
    },
    And(Box<Test>, Box<Test>),
    Or(Box<Test>, Box<Test>),
}

#[derive(Clone, Debug)]
pub enum Literal {
    Null,
    Bool(bool),
    Integer(Integer),
    Float(f64),
    Text(Box<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Count,
    Length,
    Match,
    Search,
    Value,
}

impl Path {
    /// Whether it finds one node at most.
    pub fn is_singular(&self) -> bool {
        self.segments.iter().all(|segment| {
            !segment.descendant
                && matches!(segment.selectors.as_slice(), [Selector::Name(_) | Selector::Index(_)])
        })
    }

    /// The names, if it is nothing but names.
    pub fn names(&self) -> Option<Vec<&str>> {
        self.segments
            .iter()
            .map(|segment| match segment.selectors.as_slice() {
                [Selector::Name(name)] if !segment.descendant => Some(&**name),
                _ => None,
            })
            .collect()
    }
}
