//! The JSONPath parser: from tokens to a [`Path`], by the rules of PyPI's jsonpath-rfc9535 0.2.0.
//!
//! It distinguishes syntax errors (the property is the name of a trait) from other errors of the package,
//! such as a type error or an index out of range, which the engine does not catch. Nesting is bounded.
use num_bigint::BigInt;
use num_traits::FromPrimitive as _;

use crate::engine::jsonpath::iregexp::IRegexp;
use crate::engine::jsonpath::lex::{PathToken, TokenKind, tokens};
use crate::engine::jsonpath::syntax::{
    FilterComparison, FilterTest, Function, Literal, Path, PathSegment, Selector,
};
use crate::limits::JSONPATH_DEPTH_MAX;
use crate::python::number::{Integer, float_from_text};

/// The largest index, and the negated smallest one: `2^53 - 1`.
const INDEX_MAX: i64 = (1 << 53) - 1;

/// Why there is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// `JSONPathSyntaxError`.
    Syntax,
    /// Any other error; the condition never holds (differences.md 5).
    Refused(&'static str),
}

pub fn parse(text: &str) -> Result<Path, PathError> {
    let mut parser = PathParser { tokens: tokens(text).ok_or(PathError::Syntax)?, at: 1, depth: 0 };
    let segments = parser.segments(false)?;
    if parser.kind() == TokenKind::End { Ok(Path { segments }) } else { Err(PathError::Syntax) }
}

struct PathParser {
    tokens: Vec<PathToken>,
    at: usize,
    depth: usize,
}

fn precedence(kind: TokenKind) -> u8 {
    match kind {
        TokenKind::Or => 3,
        TokenKind::And => 4,
        TokenKind::Equal
        | TokenKind::NotEqual
        | TokenKind::Less
        | TokenKind::LessEqual
        | TokenKind::Greater
        | TokenKind::GreaterEqual => 5,
        TokenKind::Not => 7,
        _ => 1,
    }
}

fn is_binary(kind: TokenKind) -> bool {
    (3..=5).contains(&precedence(kind))
}

impl PathParser {
    fn kind_at(&self, at: usize) -> TokenKind {
        self.tokens.get(at).map_or(TokenKind::End, |token| token.kind)
    }

    fn kind(&self) -> TokenKind {
        self.kind_at(self.at)
    }

    fn peek(&self) -> TokenKind {
        self.kind_at(self.at + 1)
    }

    fn text(&self) -> &str {
        self.tokens.get(self.at).map_or("", |token| &token.text)
    }

    fn expect_peek(&self, kind: TokenKind) -> Result<(), PathError> {
        if self.peek() == kind { Ok(()) } else { Err(PathError::Syntax) }
    }

    /// Parses segments up to the end of the path. In a filter, the last token of the path stays current.
    fn segments(&mut self, in_filter: bool) -> Result<Vec<PathSegment>, PathError> {
        let mut segments = Vec::new();
        loop {
            let descendant = self.kind() == TokenKind::DoubleDot;
            if descendant {
                self.at += 1;
            } else if !matches!(self.kind(), TokenKind::OpenBracket | TokenKind::Property | TokenKind::Wild) {
                self.at -= usize::from(in_filter);
                return Ok(segments);
            }
            segments.push(PathSegment { descendant, selectors: self.selectors()? });
            self.at += 1;
        }
    }

    fn selectors(&mut self) -> Result<Vec<Selector>, PathError> {
        Ok(match self.kind() {
            TokenKind::Property => vec![Selector::Name(self.text().into())],
            TokenKind::Wild => vec![Selector::Wild],
            TokenKind::OpenBracket => self.bracketed()?,
            _ => Vec::new(),
        })
    }

    fn bracketed(&mut self) -> Result<Vec<Selector>, PathError> {
        self.at += 1;
        let mut selectors = Vec::new();
        while self.kind() != TokenKind::CloseBracket {
            selectors.push(self.selector()?);
            if self.peek() != TokenKind::CloseBracket {
                self.expect_peek(TokenKind::Comma)?;
                self.at += 1;
                if self.peek() == TokenKind::CloseBracket {
                    return Err(PathError::Syntax);
                }
            }
            self.at += 1;
        }
        if selectors.is_empty() { Err(PathError::Syntax) } else { Ok(selectors) }
    }

    fn selector(&mut self) -> Result<Selector, PathError> {
        match self.kind() {
            TokenKind::Index if self.peek() == TokenKind::Colon => self.slice(),
            TokenKind::Index => {
                let text = self.text();
                if (text.len() > 1 && text.starts_with('0')) || text.starts_with("-0") {
                    return Err(PathError::Syntax);
                }
                index(text).map(Selector::Index)
            }
            TokenKind::DoubleQuoted | TokenKind::SingleQuoted => {
                self.string().map(|name| Selector::Name(name.into()))
            }
            TokenKind::Colon => self.slice(),
            TokenKind::Wild => Ok(Selector::Wild),
            TokenKind::Filter => self.filter(),
            _ => Err(PathError::Syntax),
        }
    }

    fn slice(&mut self) -> Result<Selector, PathError> {
        let start = self.slice_index()?;
        if self.kind() != TokenKind::Colon {
            return Err(PathError::Syntax);
        }
        self.at += 1;
        let stop = self.slice_index()?;
        if self.kind() == TokenKind::Colon {
            self.at += 1;
        }
        let step = self.slice_index()?;
        // The caller expects the last token of the slice to be current.
        self.at -= 1;
        let index = |text: Option<String>| text.map(|text| index(&text)).transpose();
        Ok(Selector::Slice { start: index(start)?, stop: index(stop)?, step: index(step)? })
    }

    fn slice_index(&mut self) -> Result<Option<String>, PathError> {
        if self.kind() != TokenKind::Index {
            return Ok(None);
        }
        let text = self.text().to_owned();
        if text.len() > 1 && (text.starts_with('0') || text.starts_with("-0")) {
            return Err(PathError::Syntax);
        }
        self.at += 1;
        Ok(Some(text))
    }

    fn filter(&mut self) -> Result<Selector, PathError> {
        self.at += 1;
        let test = self.test(1)?;
        match &test {
            FilterTest::Function { function, .. } if function.returns_value() => {
                Err(PathError::Refused("the result of a function must be compared"))
            }
            FilterTest::Literal(_) => Err(PathError::Syntax),
            _ => Ok(Selector::Filter(Box::new(test))),
        }
    }

    /// Parses an expression whose operators have at least the precedence `lowest`.
    fn test(&mut self, lowest: u8) -> Result<FilterTest, PathError> {
        self.depth += 1;
        if self.depth > JSONPATH_DEPTH_MAX {
            return Err(PathError::Refused("filters are nested too deeply"));
        }
        let mut left = self.operand()?;
        loop {
            let next = self.peek();
            if matches!(next, TokenKind::End | TokenKind::CloseBracket)
                || precedence(next) < lowest
                || !is_binary(next)
            {
                break;
            }
            self.at += 1;
            left = self.infix(left)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn operand(&mut self) -> Result<FilterTest, PathError> {
        match self.kind() {
            TokenKind::OpenParen => self.grouped(),
            TokenKind::Not => {
                self.at += 1;
                self.test(7).map(|test| FilterTest::Not(Box::new(test)))
            }
            _ => self.argument(),
        }
    }

    /// Parses a literal, a path or a function call.
    fn argument(&mut self) -> Result<FilterTest, PathError> {
        match self.kind() {
            TokenKind::True => Ok(FilterTest::Literal(Literal::Bool(true))),
            TokenKind::False => Ok(FilterTest::Literal(Literal::Bool(false))),
            TokenKind::Null => Ok(FilterTest::Literal(Literal::Null)),
            TokenKind::DoubleQuoted | TokenKind::SingleQuoted => {
                self.string().map(|text| FilterTest::Literal(Literal::Text(text.into())))
            }
            TokenKind::Int => integer(self.text()).map(FilterTest::Literal),
            TokenKind::Float => float(self.text()).map(FilterTest::Literal),
            TokenKind::Function => self.function(),
            kind @ (TokenKind::Root | TokenKind::Current) => {
                self.at += 1;
                let segments = self.segments(true)?;
                Ok(FilterTest::Path { from_root: kind == TokenKind::Root, path: Path { segments } })
            }
            _ => Err(PathError::Syntax),
        }
    }

    fn grouped(&mut self) -> Result<FilterTest, PathError> {
        self.at += 1;
        let mut test = self.test(1)?;
        self.at += 1;
        while self.kind() != TokenKind::CloseParen {
            if self.kind() == TokenKind::End {
                return Err(PathError::Syntax);
            }
            test = self.infix(test)?;
        }
        Ok(test)
    }

    fn infix(&mut self, left: FilterTest) -> Result<FilterTest, PathError> {
        let operator = self.kind();
        self.at += 1;
        let right = self.test(precedence(operator))?;
        let comparison = match operator {
            TokenKind::Equal => FilterComparison::Equal,
            TokenKind::NotEqual => FilterComparison::NotEqual,
            TokenKind::Less => FilterComparison::Less,
            TokenKind::LessEqual => FilterComparison::LessEqual,
            TokenKind::Greater => FilterComparison::Greater,
            TokenKind::GreaterEqual => FilterComparison::GreaterEqual,
            TokenKind::And | TokenKind::Or => {
                if matches!(left, FilterTest::Literal(_)) || matches!(right, FilterTest::Literal(_)) {
                    return Err(PathError::Syntax);
                }
                let (left, right) = (Box::new(left), Box::new(right));
                return Ok(if operator == TokenKind::And {
                    FilterTest::And(left, right)
                } else {
                    FilterTest::Or(left, right)
                });
            }
            _ => return Err(PathError::Syntax),
        };
        check_comparable(&left)?;
        check_comparable(&right)?;
        Ok(FilterTest::Compare { left: Box::new(left), operator: comparison, right: Box::new(right) })
    }

    fn function(&mut self) -> Result<FilterTest, PathError> {
        let function = Function::named(self.text());
        self.depth += 1;
        if self.depth > JSONPATH_DEPTH_MAX {
            return Err(PathError::Refused("filters are nested too deeply"));
        }
        self.at += 1;
        let mut arguments = Vec::new();
        while self.kind() != TokenKind::CloseParen {
            let mut argument = self.argument()?;
            while is_binary(self.peek()) {
                self.at += 1;
                argument = self.infix(argument)?;
            }
            arguments.push(argument);
            if self.peek() != TokenKind::CloseParen {
                self.expect_peek(TokenKind::Comma)?;
                self.at += 1;
            }
            self.at += 1;
        }
        self.depth -= 1;
        let function = function.ok_or(PathError::Refused("unknown function"))?;
        function.check(&arguments)?;
        let pattern = match arguments.as_slice() {
            [_, FilterTest::Literal(Literal::Text(text))] => IRegexp::new(text, function == Function::Match),
            _ => None,
        };
        Ok(FilterTest::Function { function, arguments, pattern: pattern.map(Box::new) })
    }

    /// The text of the current token with its escapes resolved.
    fn string(&self) -> Result<String, PathError> {
        let text = match self.kind() {
            TokenKind::SingleQuoted => self.text().replace('"', "\\\"").replace("\\'", "'"),
            _ => self.text().to_owned(),
        };
        unescape(&text).ok_or(PathError::Syntax)
    }
}

impl Function {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "count" => Self::Count,
            "length" => Self::Length,
            "match" => Self::Match,
            "search" => Self::Search,
            "value" => Self::Value,
            _ => return None,
        })
    }

    /// Whether it returns a value. The other functions return a truth value, which cannot be compared.
    fn returns_value(self) -> bool {
        matches!(self, Self::Count | Self::Length | Self::Value)
    }

    fn check(self, arguments: &[FilterTest]) -> Result<(), PathError> {
        let takes_nodes = matches!(self, Self::Count | Self::Value);
        let count = if matches!(self, Self::Match | Self::Search) { 2 } else { 1 };
        let fits = |argument: &FilterTest| match argument {
            FilterTest::Path { path, .. } => takes_nodes || path.is_singular(),
            FilterTest::Literal(_) => !takes_nodes,
            FilterTest::Function { function, .. } => !takes_nodes && function.returns_value(),
            _ => false,
        };
        if arguments.len() == count && arguments.iter().all(fits) {
            Ok(())
        } else {
            Err(PathError::Refused("wrong number or type of function arguments"))
        }
    }
}

fn check_comparable(test: &FilterTest) -> Result<(), PathError> {
    match test {
        FilterTest::Path { path, .. } if !path.is_singular() => {
            Err(PathError::Refused("a path that may find several nodes cannot be compared"))
        }
        FilterTest::Function { function, .. } if !function.returns_value() => {
            Err(PathError::Refused("the result of match or search cannot be compared"))
        }
        _ => Ok(()),
    }
}

fn index(text: &str) -> Result<i64, PathError> {
    let index = text.parse().ok().filter(|index| (-INDEX_MAX..=INDEX_MAX).contains(index));
    index.ok_or(PathError::Refused("index out of range"))
}

/// Parsed as a double first, as by the package: large integers are rounded.
fn integer(text: &str) -> Result<Literal, PathError> {
    if text.len() > 1 && text.starts_with('0') {
        return Err(PathError::Syntax);
    }
    let number = float_from_text(text).ok_or(PathError::Syntax)?;
    let integer = BigInt::from_f64(number).ok_or(PathError::Refused("number out of range"))?;
    Ok(Literal::Integer(Integer::from(integer)))
}

fn float(text: &str) -> Result<Literal, PathError> {
    let whole = text.split('.').next().unwrap_or_default();
    if text.starts_with('0') && whole.len() > 1 {
        return Err(PathError::Syntax);
    }
    float_from_text(text).map(Literal::Float).ok_or(PathError::Syntax)
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        let plain = match char {
            '\\' => match chars.next()? {
                escaped @ ('"' | '\\' | '/') => escaped,
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => unicode_escape(&mut chars)?,
                _ => return None,
            },
            '\0'..='\u{1f}' => return None,
            _ => char,
        };
        out.push(plain);
    }
    Some(out)
}

fn unicode_escape(chars: &mut std::str::Chars<'_>) -> Option<char> {
    let unit = four_hex_digits(chars)?;
    let code = match unit {
        0xD800..=0xDBFF => {
            if chars.next()? != '\\' || chars.next()? != 'u' {
                return None;
            }
            let low = four_hex_digits(chars).filter(|low| (0xDC00..=0xDFFF).contains(low))?;
            0x1_0000 + ((unit & 0x3FF) << 10 | low & 0x3FF)
        }
        0..=0x1F => return None,
        _ => unit,
    };
    char::from_u32(code)
}

fn four_hex_digits(chars: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |code, _| Some(code << 4 | chars.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_parsed(text: &str) -> bool {
        match parse(text) {
            Ok(_) => true,
            Err(PathError::Refused("filters are nested too deeply")) => false,
            Err(error) => panic!("{text}: {error:?}"),
        }
    }

    /// `text` around itself, this many times.
    fn nested(before: &str, inner: &str, after: &str, count: usize) -> String {
        [before.repeat(count), inner.to_owned(), after.repeat(count)].concat()
    }

    #[test]
    fn depth_is_that_of_what_is_inside_each_other() {
        for count in [1, JSONPATH_DEPTH_MAX, 10 * JSONPATH_DEPTH_MAX] {
            assert!(is_parsed(&format!("${}", "[?length(@.a) == 1]".repeat(count))), "{count} side by side");
        }
        let filters = |count| nested("[?@", "", "]", count);
        let functions = |count| format!("$[?{} == 1]", nested("length(", "@.a", ")", count));
        assert!(is_parsed(&format!("${}", filters(JSONPATH_DEPTH_MAX))));
        assert!(!is_parsed(&format!("${}", filters(JSONPATH_DEPTH_MAX + 1))));
        // The filter around them counts too.
        assert!(is_parsed(&functions(JSONPATH_DEPTH_MAX - 1)));
        assert!(!is_parsed(&functions(JSONPATH_DEPTH_MAX)));
    }
}
