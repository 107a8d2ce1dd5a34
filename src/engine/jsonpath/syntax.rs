//! A JSONPath as read.
//!
//! [`Path`] is a list of segments; filters hold paths again. Invariant: well typed, as
//! jsonpath-rfc9535 checks it: what is compared is a single value, what a function takes fits.
use crate::engine::jsonpath::iregexp::IRegexp;
use crate::python::number::Integer;

/// A path from the root, or from the current node of a filter.
#[derive(Clone, Debug, Default)]
pub struct Path {
    pub segments: Vec<PathSegment>,
}

#[derive(Clone, Debug)]
pub struct PathSegment {
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
    Filter(Box<FilterTest>),
}

/// What a filter asks.
#[derive(Clone, Debug)]
pub enum FilterTest {
    Literal(Literal),
    Path {
        from_root: bool,
        path: Path,
    },
    /// `pattern`: the second argument of `match` or `search`, where it is a literal that can be one.
    Function {
        function: Function,
        arguments: Vec<FilterTest>,
        pattern: Option<Box<IRegexp>>,
    },
    Not(Box<FilterTest>),
    Compare {
        left: Box<FilterTest>,
        operator: FilterComparison,
        right: Box<FilterTest>,
    },
    And(Box<FilterTest>, Box<FilterTest>),
    Or(Box<FilterTest>, Box<FilterTest>),
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
pub enum FilterComparison {
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

    /// Whether a walk of it from the root may come to `$.flags`.
    pub fn reads_flags(&self) -> bool {
        let leads_elsewhere = match self.segments.first() {
            Some(PathSegment { descendant: false, selectors }) => selectors
                .iter()
                .all(|selector| matches!(selector, Selector::Name(name) if **name != *"flags")),
            _ => false,
        };
        !leads_elsewhere || self.filters_read_flags()
    }

    /// Whether a filter in it asks a path from the root that does.
    fn filters_read_flags(&self) -> bool {
        let selectors = self.segments.iter().flat_map(|segment| &segment.selectors);
        selectors.into_iter().any(|selector| matches!(selector, Selector::Filter(test) if test.reads_flags()))
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

impl FilterTest {
    fn reads_flags(&self) -> bool {
        match self {
            Self::Literal(_) => false,
            Self::Path { from_root: true, path } => path.reads_flags(),
            Self::Path { from_root: false, path } => path.filters_read_flags(),
            Self::Function { arguments, .. } => arguments.iter().any(Self::reads_flags),
            Self::Not(test) => test.reads_flags(),
            Self::Compare { left, right, .. } | Self::And(left, right) | Self::Or(left, right) => {
                left.reads_flags() || right.reads_flags()
            }
        }
    }
}
