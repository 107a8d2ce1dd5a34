//! From tokens to a path, by the rules of PyPI's jsonpath-rfc9535 0.2.0.
//!
//! In: a property that starts with `$.`. Out: a [`Path`]; or that it is no JSONPath, and so a trait's
//! name; or that the package raises another error for it (a bad type, an index out of range), which
//! the engine does not catch. Invariant: nesting is bounded.
use num_bigint::BigInt;
use num_traits::FromPrimitive as _;

use crate::engine::jsonpath::iregexp::Expression;
use crate::engine::jsonpath::lex::{Kind, Token, tokens};
use crate::engine::jsonpath::syntax::{Comparison, Function, Literal, Path, Segment, Selector, Test};
use crate::limits::JSONPATH_DEPTH_MAX;
use crate::python::value::{Integer, float_from_text};

/// The largest index, and the smallest: `2^53 - 1`.
const INDEX_MAX: i64 = (1 << 53) - 1;

/// Why there is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `JSONPathSyntaxError`.
    Syntax,
    /// Any other error; the condition never holds (differences.md 5).
    Refused(&'static str),
}

pub fn parse(text: &str) -> Result<Path, Failure> {
    let mut parser = Parser { tokens: tokens(text).ok_or(Failure::Syntax)?, at: 1, depth: 0 };
    let segments = parser.segments(false)?;
    if parser.kind() == Kind::End { Ok(Path { segments }) } else { Err(Failure::Syntax) }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

fn precedence(kind: Kind) -> u8 {
    match kind {
        Kind::Or => 3,
        Kind::And => 4,
        Kind::Equal | Kind::NotEqual | Kind::Less | Kind::LessEqual | Kind::Greater | Kind::GreaterEqual => 5,
        Kind::Not => 7,
        _ => 1,
    }
}

fn is_binary(kind: Kind) -> bool {
    (3..=5).contains(&precedence(kind))
}

impl Parser {
    fn kind_at(&self, at: usize) -> Kind {
        self.tokens.get(at).map_or(Kind::End, |token| token.kind)
    }

    fn kind(&self) -> Kind {
        self.kind_at(self.at)
    }

    fn peek(&self) -> Kind {
        self.kind_at(self.at + 1)
    }

    fn text(&self) -> &str {
        self.tokens.get(self.at).map_or("", |token| &token.text)
    }

    fn expect_peek(&self, kind: Kind) -> Result<(), Failure> {
        if self.peek() == kind { Ok(()) } else { Err(Failure::Syntax) }
    }

    /// Segments as long as there are any. In a filter the last token of the path stays the current one.
    fn segments(&mut self, in_filter: bool) -> Result<Vec<Segment>, Failure> {
        let mut segments = Vec::new();
        loop {
            let descendant = self.kind() == Kind::DoubleDot;
            if descendant {
                self.at += 1;
            } else if !matches!(self.kind(), Kind::OpenBracket | Kind::Property | Kind::Wild) {
                self.at -= usize::from(in_filter);
                return Ok(segments);
            }
            segments.push(Segment { descendant, selectors: self.selectors()? });
            self.at += 1;
        }
    }

    fn selectors(&mut self) -> Result<Vec<Selector>, Failure> {
        Ok(match self.kind() {
            Kind::Property => vec![Selector::Name(self.text().into())],
            Kind::Wild => vec![Selector::Wild],
            Kind::OpenBracket => self.bracketed()?,
            _ => Vec::new(),
        })
    }

    fn bracketed(&mut self) -> Result<Vec<Selector>, Failure> {
        self.at += 1;
        let mut selectors = Vec::new();
        while self.kind() != Kind::CloseBracket {
            selectors.push(self.selector()?);
            if self.peek() != Kind::CloseBracket {
                self.expect_peek(Kind::Comma)?;
                self.at += 1;
                if self.peek() == Kind::CloseBracket {
                    return Err(Failure::Syntax);
                }
            }
            self.at += 1;
        }
        if selectors.is_empty() { Err(Failure::Syntax) } else { Ok(selectors) }
    }

    fn selector(&mut self) -> Result<Selector, Failure> {
        match self.kind() {
            Kind::Index if self.peek() == Kind::Colon => self.slice(),
            Kind::Index => {
                let text = self.text();
                if (text.len() > 1 && text.starts_with('0')) || text.starts_with("-0") {
                    return Err(Failure::Syntax);
                }
                index(text).map(Selector::Index)
            }
            Kind::DoubleQuoted | Kind::SingleQuoted => self.string().map(|name| Selector::Name(name.into())),
            Kind::Colon => self.slice(),
            Kind::Wild => Ok(Selector::Wild),
            Kind::Filter => self.filter(),
            _ => Err(Failure::Syntax),
        }
    }

    fn slice(&mut self) -> Result<Selector, Failure> {
        let start = self.slice_index()?;
        if self.kind() != Kind::Colon {
            return Err(Failure::Syntax);
        }
        self.at += 1;
        let stop = self.slice_index()?;
        if self.kind() == Kind::Colon {
            self.at += 1;
        }
        let step = self.slice_index()?;
        // The token after the slice is looked at again by the caller.
        self.at -= 1;
        let index = |text: Option<String>| text.map(|text| index(&text)).transpose();
        Ok(Selector::Slice { start: index(start)?, stop: index(stop)?, step: index(step)? })
    }

    fn slice_index(&mut self) -> Result<Option<String>, Failure> {
        if self.kind() != Kind::Index {
            return Ok(None);
        }
        let text = self.text().to_owned();
        if text.len() > 1 && (text.starts_with('0') || text.starts_with("-0")) {
            return Err(Failure::Syntax);
        }
        self.at += 1;
        Ok(Some(text))
    }

    fn filter(&mut self) -> Result<Selector, Failure> {
        self.at += 1;
        let test = self.test(1)?;
        match &test {
            Test::Function { function, .. } if function.returns_value() => {
                Err(Failure::Refused("the result of a function must be compared"))
            }
            Test::Literal(_) => Err(Failure::Syntax),
            _ => Ok(Selector::Filter(Box::new(test))),
        }
    }

    /// An expression whose operators bind at least as tightly as `lowest`.
    fn test(&mut self, lowest: u8) -> Result<Test, Failure> {
        self.depth += 1;
        if self.depth > JSONPATH_DEPTH_MAX {
            return Err(Failure::Refused("filters are nested too deeply"));
        }
        let mut left = self.operand()?;
        loop {
            let next = self.peek();
            if matches!(next, Kind::End | Kind::CloseBracket) || precedence(next) < lowest || !is_binary(next)
            {
                break;
            }
            self.at += 1;
            left = self.infix(left)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn operand(&mut self) -> Result<Test, Failure> {
        match self.kind() {
            Kind::OpenParen => self.grouped(),
            Kind::Not => {
                self.at += 1;
                self.test(7).map(|test| Test::Not(Box::new(test)))
            }
            _ => self.argument(),
        }
    }

    /// What may stand alone: a literal, a path, a function.
    fn argument(&mut self) -> Result<Test, Failure> {
        match self.kind() {
            Kind::True => Ok(Test::Literal(Literal::Bool(true))),
            Kind::False => Ok(Test::Literal(Literal::Bool(false))),
            Kind::Null => Ok(Test::Literal(Literal::Null)),
            Kind::DoubleQuoted | Kind::SingleQuoted => {
                self.string().map(|text| Test::Literal(Literal::Text(text.into())))
            }
            Kind::Int => integer(self.text()).map(Test::Literal),
            Kind::Float => float(self.text()).map(Test::Literal),
            Kind::Function => self.function(),
            kind @ (Kind::Root | Kind::Current) => {
                self.at += 1;
                let segments = self.segments(true)?;
                Ok(Test::Path { from_root: kind == Kind::Root, path: Path { segments } })
            }
            _ => Err(Failure::Syntax),
        }
    }

    fn grouped(&mut self) -> Result<Test, Failure> {
        self.at += 1;
        let mut test = self.test(1)?;
        self.at += 1;
        while self.kind() != Kind::CloseParen {
            if self.kind() == Kind::End {
                return Err(Failure::Syntax);
            }
            test = self.infix(test)?;
        }
        Ok(test)
    }

    fn infix(&mut self, left: Test) -> Result<Test, Failure> {
        let operator = self.kind();
        self.at += 1;
        let right = self.test(precedence(operator))?;
        let comparison = match operator {
            Kind::Equal => Comparison::Equal,
            Kind::NotEqual => Comparison::NotEqual,
            Kind::Less => Comparison::Less,
            Kind::LessEqual => Comparison::LessEqual,
            Kind::Greater => Comparison::Greater,
            Kind::GreaterEqual => Comparison::GreaterEqual,
            Kind::And | Kind::Or => {
                if matches!(left, Test::Literal(_)) || matches!(right, Test::Literal(_)) {
                    return Err(Failure::Syntax);
                }
                let (left, right) = (Box::new(left), Box::new(right));
                return Ok(if operator == Kind::And {
                    Test::And(left, right)
                } else {
                    Test::Or(left, right)
                });
            }
            _ => return Err(Failure::Syntax),
        };
        check_comparable(&left)?;
        check_comparable(&right)?;
        Ok(Test::Compare { left: Box::new(left), operator: comparison, right: Box::new(right) })
    }

    fn function(&mut self) -> Result<Test, Failure> {
        let function = Function::named(self.text());
        self.depth += 1;
        if self.depth > JSONPATH_DEPTH_MAX {
            return Err(Failure::Refused("filters are nested too deeply"));
        }
        self.at += 1;
        let mut arguments = Vec::new();
        while self.kind() != Kind::CloseParen {
            let mut argument = self.argument()?;
            while is_binary(self.peek()) {
                self.at += 1;
                argument = self.infix(argument)?;
            }
            arguments.push(argument);
            if self.peek() != Kind::CloseParen {
                self.expect_peek(Kind::Comma)?;
                self.at += 1;
            }
            self.at += 1;
        }
        self.depth -= 1;
        let function = function.ok_or(Failure::Refused("no such function"))?;
        function.check(&arguments)?;
        let pattern = match arguments.as_slice() {
            [_, Test::Literal(Literal::Text(text))] => Expression::new(text, function == Function::Match),
            _ => None,
        };
        Ok(Test::Function { function, arguments, pattern: pattern.map(Box::new) })
    }

    /// The current token's text without its escapes.
    fn string(&self) -> Result<String, Failure> {
        let text = match self.kind() {
            Kind::SingleQuoted => self.text().replace('"', "\\\"").replace("\\'", "'"),
            _ => self.text().to_owned(),
        };
        unescape(&text).ok_or(Failure::Syntax)
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

    /// The others are true or false.
    fn returns_value(self) -> bool {
        matches!(self, Self::Count | Self::Length | Self::Value)
    }

    fn check(self, arguments: &[Test]) -> Result<(), Failure> {
        let takes_nodes = matches!(self, Self::Count | Self::Value);
        let count = if matches!(self, Self::Match | Self::Search) { 2 } else { 1 };
        let fits = |argument: &Test| match argument {
            Test::Path { path, .. } => takes_nodes || path.is_singular(),
            Test::Literal(_) => !takes_nodes,
            Test::Function { function, .. } => !takes_nodes && function.returns_value(),
            _ => false,
        };
        if arguments.len() == count && arguments.iter().all(fits) {
            Ok(())
        } else {
            Err(Failure::Refused("a function's arguments have the wrong number or type"))
        }
    }
}

fn check_comparable(test: &Test) -> Result<(), Failure> {
    match test {
        Test::Path { path, .. } if !path.is_singular() => {
            Err(Failure::Refused("a path that can find several nodes cannot be compared"))
        }
        Test::Function { function, .. } if !function.returns_value() => {
            Err(Failure::Refused("a function that is true or false cannot be compared"))
        }
        _ => Ok(()),
    }
}

fn index(text: &str) -> Result<i64, Failure> {
    let index = text.parse().ok().filter(|index| (-INDEX_MAX..=INDEX_MAX).contains(index));
    index.ok_or(Failure::Refused("an index is out of range"))
}

/// Read as a double first, as the package does: a large integer is rounded.
fn integer(text: &str) -> Result<Literal, Failure> {
    if text.len() > 1 && text.starts_with('0') {
        return Err(Failure::Syntax);
    }
    let number = float_from_text(text).ok_or(Failure::Syntax)?;
    let integer = BigInt::from_f64(number).ok_or(Failure::Refused("a number is out of range"))?;
    Ok(Literal::Integer(Integer::from(integer)))
}

fn float(text: &str) -> Result<Literal, Failure> {
    let whole = text.split('.').next().unwrap_or_default();
    if text.starts_with('0') && whole.len() > 1 {
        return Err(Failure::Syntax);
    }
    float_from_text(text).map(Literal::Float).ok_or(Failure::Syntax)
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
