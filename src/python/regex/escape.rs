//! The meaning of backslash escapes. Unknown escapes and octal values over 0o377 are errors, as in Python.
use crate::python::regex::error::PatternError;
use crate::python::regex::set::{Category, CategoryKind};
use crate::python::regex::syntax::At;
use crate::python::regex::token::{RegexToken, Tokens};

/// The meaning of an escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    Literal(u32),
    Category(Category),
    At(At),
    /// A group by its number; the parser checks that it exists.
    Group(u32),
}

/// An escape outside of `[...]`.
pub fn outside(tokens: &mut Tokens, char: char) -> Result<Escape, PatternError> {
    let at = match char {
        'A' => Some(At::BeginText),
        'Z' => Some(At::EndText),
        'b' => Some(At::Boundary),
        'B' => Some(At::NoBoundary),
        _ => None,
    };
    if let Some(at) = at {
        return Ok(Escape::At(at));
    }
    match char {
        '0' => octal(&tokens.take_while(2, is_octal)?).map(Escape::Literal),
        '1'..='9' => octal_or_group(tokens, char),
        _ => common(tokens, char),
    }
}

/// An escape inside of `[...]`.
pub fn inside(tokens: &mut Tokens, char: char) -> Result<Escape, PatternError> {
    match char {
        'b' => Ok(Escape::Literal(8)),
        '0'..='7' => {
            let digits = format!("{char}{}", tokens.take_while(2, is_octal)?);
            octal(&digits).map(Escape::Literal)
        }
        _ => common(tokens, char),
    }
}

fn common(tokens: &mut Tokens, char: char) -> Result<Escape, PatternError> {
    if let Some(category) = category(char) {
        return Ok(Escape::Category(category));
    }
    let code = match char {
        'a' => 7,
        't' => 9,
        'n' => 10,
        'v' => 11,
        'f' => 12,
        'r' => 13,
        'x' => hexadecimal(tokens, 2)?,
        'u' => hexadecimal(tokens, 4)?,
        'U' => hexadecimal(tokens, 8)?,
        'N' => named(tokens)?,
        _ if char.is_ascii_alphanumeric() => return Err(PatternError::of_char("bad escape \\", char)),
        _ => u32::from(char),
    };
    Ok(Escape::Literal(code))
}

fn category(char: char) -> Option<Category> {
    let kind = match char.to_ascii_lowercase() {
        'd' => CategoryKind::Digit,
        's' => CategoryKind::Space,
        'w' => CategoryKind::Word,
        _ => return None,
    };
    Some(Category { kind, negated: char.is_ascii_uppercase() })
}

fn is_octal(char: &char) -> bool {
    matches!(char, '0'..='7')
}

fn octal(digits: &str) -> Result<u32, PatternError> {
    let value = if digits.is_empty() { Ok(0) } else { u32::from_str_radix(digits, 8) };
    value
        .ok()
        .filter(|value| *value <= 0o377)
        .ok_or_else(|| PatternError::new("octal escape value outside of range 0-0o377"))
}

/// `\12` is a group, `\123` an octal value: three octal digits decide.
fn octal_or_group(tokens: &mut Tokens, first: char) -> Result<Escape, PatternError> {
    let mut digits = String::from(first);
    if let Some(RegexToken::Char(second @ '0'..='9')) = tokens.peek() {
        tokens.take()?;
        digits.push(second);
        if let (true, true, Some(RegexToken::Char(third @ '0'..='7'))) =
            (is_octal(&first), is_octal(&second), tokens.peek())
        {
            tokens.take()?;
            digits.push(third);
            return octal(&digits).map(Escape::Literal);
        }
    }
    digits.parse().map(Escape::Group).map_err(|_| PatternError::new("invalid group reference"))
}

fn hexadecimal(tokens: &mut Tokens, count: usize) -> Result<u32, PatternError> {
    let digits = tokens.take_while(count, char::is_ascii_hexdigit)?;
    let code =
        u32::from_str_radix(&digits, 16).ok().filter(|code| digits.len() == count && *code <= 0x10_FFFF);
    code.ok_or_else(|| PatternError::new("incomplete or bad hexadecimal escape"))
}

fn named(tokens: &mut Tokens) -> Result<u32, PatternError> {
    if !tokens.take_if('{')? {
        return Err(PatternError::new("missing {"));
    }
    let name = tokens.take_until('}')?;
    // Python ignores only case. The crate also ignores blanks and hyphens, and fails on a leading one.
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Err(PatternError::new("undefined character name"));
    }
    unicode_names2::character(&name)
        .filter(|char| {
            unicode_names2::name(*char).is_some_and(|known| known.to_string().eq_ignore_ascii_case(&name))
        })
        .map(u32::from)
        .ok_or_else(|| PatternError::new("undefined character name"))
}
