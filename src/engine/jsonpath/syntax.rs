//! The syntax tree of a JSONPath.
//!
//! A [`Path`] from the parser is well typed by the rules of jsonpath-rfc9535: both sides of a comparison are
//! single values, and functions have arguments of the right type.
use crate::engine::jsonpath::iregexp::IRegexp;
use crate::python::number::Integer;

/// A path from the root, or from the current node of a filter.
#[derive(Clone, Debug, Default)]
pub struct Path {
    pub segments: Vec<PathSegment>,
}

#[derive(Clone, Debug)]
pub struct PathSegment {
    /// `..`: applies to every node below as well.
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

/// An expression in a filter.
#[derive(Clone, Debug)]
pub enum FilterTest {
    Literal(Literal),
    Path {
        from_root: bool,
        path: Path,
    },
    /// `pattern`: the second argument of `match` or `search`, compiled, if it is a literal and valid.
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
    /// Whether it finds at most one node.
    pub fn is_singular(&self) -> bool {
        self.segments.iter().all(|segment| {
            !segment.descendant
                && matches!(segment.selectors.as_slice(), [Selector::Name(_) | Selector::Index(_)])
        })
    }

    /// Whether its evaluation from the root may visit `$.flags`.
    pub fn reads_flags(&self) -> bool {
        let leads_elsewhere = match self.segments.first() {
            Some(PathSegment { descendant: false, selectors }) => selectors
                .iter()
                .all(|selector| matches!(selector, Selector::Name(name) if **name != *"flags")),
            _ => false,
        };
        !leads_elsewhere || self.filters_read_flags()
    }

    /// Whether a filter in it has a path from the root that does.
    fn filters_read_flags(&self) -> bool {
        let selectors = self.segments.iter().flat_map(|segment| &segment.selectors);
        selectors.into_iter().any(|selector| matches!(selector, Selector::Filter(test) if test.reads_flags()))
    }

    /// The names, if every segment is a name.
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
