//! Bodies as SDKs write them, read in one pass.
//!
//! In: the text of a body. Out: the identifier, the traits, and the text of the traits if they were
//! sent in the very form in which they are echoed. Invariant: what is read here is what the other
//! ways read; whatever is not plain at sight (an escape, a nested value, an integer of many digits,
//! a float with an exponent, a member that comes twice) is left to them, and so is every error.
//! Nothing is allocated but by the growth of the caller's vector.
use crate::engine::evaluate::{Trait, TraitValue};
use crate::identity::errors::is_within_length;
use crate::json::write::plain_len;

/// Digits that certainly fit `i64`; and digits of a float that no other float is written with, so
/// that the shortest form of it is the one that was sent.
const PLAIN_INTEGER_DIGITS_MAX: usize = 18;
const PLAIN_FLOAT_DIGITS_MAX: usize = 15;

/// A body's identifier, and the inside of its array of traits if that can be echoed as it is.
#[derive(Debug, Default)]
pub struct FastIdentity<'body> {
    pub identifier: &'body str,
    pub echo: Option<&'body str>,
}

/// Reads a body; its traits are added to `traits`. `None`: it is not plain.
pub fn read<'body>(text: &'body str, traits: &mut Vec<Trait<'body>>) -> Option<FastIdentity<'body>> {
    let mut scanner = FastScanner { text, at: 0 };
    let (mut identifier, mut echo) = (None, None);
    scanner.skip_blanks();
    scanner.members(|scanner, name| {
        match name {
            "identifier" if identifier.is_none() => identifier = Some(scanner.string()?),
            "traits" if echo.is_none() => echo = Some(scanner.traits(traits)?),
            "identifier" | "traits" => return None,
            _ => {
                scanner.value()?;
            }
        }
        Some(())
    })?;
    scanner.skip_blanks();
    // An empty identifier is a transient identity (differences.md 13).
    let identifier = identifier.filter(|text| !text.is_empty() && is_within_length(text))?;
    (scanner.at == text.len()).then_some(FastIdentity { identifier, echo: echo.flatten() })
}

struct FastScanner<'body> {
    text: &'body str,
    at: usize,
}

impl<'body> FastScanner<'body> {
    #[inline]
    fn rest(&self) -> &'body [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Takes `token` if it stands here.
    #[inline]
    fn take(&mut self, token: &[u8]) -> Option<()> {
        self.rest().starts_with(token).then(|| self.at += token.len())
    }

    /// An object with one member at least; `value` reads the value of each by its name.
    #[inline]
    fn members(&mut self, mut value: impl FnMut(&mut Self, &'body str) -> Option<()>) -> Option<()> {
        self.take(b"{")?;
        loop {
            self.skip_blanks();
            let name = self.string()?;
            self.skip_blanks();
            self.take(b":")?;
            self.skip_blanks();
            value(self, name)?;
            self.skip_blanks();
            if self.take(b",").is_none() {
                return self.take(b"}");
            }
        }
    }

    /// A string without escapes.
    #[inline]
    fn string(&mut self) -> Option<&'body str> {
        self.take(b"\"")?;
        self.opened_string()
    }

    /// The rest of a string whose first quote was taken.
    #[inline]
    fn opened_string(&mut self) -> Option<&'body str> {
        let start = self.at;
        let end = start + plain_len(self.rest());
        self.at = end + 1;
        let is_closed = self.text.as_bytes().get(end) == Some(&b'"');
        if is_closed { self.text.get(start..end) } else { None }
    }

    /// The array of traits. Gives its inside if it can be echoed, and `Some(None)` if not.
    fn traits(&mut self, traits: &mut Vec<Trait<'body>>) -> Option<Option<&'body str>> {
        self.take(b"[")?;
        let start = self.at;
        if self.take(b"]").is_some() {
            return Some(Some(""));
        }
        let mut is_echo = true;
        loop {
            if let Some((item, as_sent)) = self.echoed_trait() {
                traits.push(item);
                is_echo &= as_sent;
            } else {
                is_echo = false;
                self.skip_blanks();
                traits.push(self.other_trait()?);
                self.skip_blanks();
            }
            if self.take(b",").is_none() {
                break;
            }
        }
        let inside = self.text.get(start..self.at)?;
        self.take(b"]")?;
        Some(is_echo.then_some(inside))
    }

    /// A trait with its members and blanks as they are echoed, and whether its value is as well.
    #[inline]
    fn echoed_trait(&mut self) -> Option<(Trait<'body>, bool)> {
        let start = self.at;
        let item = self.try_echoed_trait();
        if item.is_none() {
            self.at = start;
        }
        item
    }

    #[inline]
    fn try_echoed_trait(&mut self) -> Option<(Trait<'body>, bool)> {
        self.take(b"{\"trait_key\":\"")?;
        let key = self.opened_string()?;
        self.take(b",\"trait_value\":")?;
        let (value, as_sent) = self.value()?;
        self.take(b"}")?;
        Some((Trait { key, value }, as_sent))
    }

    /// A trait with other blanks, or other members beside its own.
    fn other_trait(&mut self) -> Option<Trait<'body>> {
        let (mut key, mut value) = (None, None);
        self.members(|scanner, name| {
            match name {
                "trait_key" if key.is_none() => key = Some(scanner.string()?),
                "trait_value" if value.is_none() => value = Some(scanner.value()?.0),
                "trait_key" | "trait_value" => return None,
                _ => {
                    scanner.value()?;
                }
            }
            Some(())
        })?;
        Some(Trait { key: key?, value: value.unwrap_or(TraitValue::Null) })
    }

    /// A scalar, and whether it is echoed as it is written here.
    #[inline]
    fn value(&mut self) -> Option<(TraitValue<'body>, bool)> {
        let value = match self.peek()? {
            b'"' => TraitValue::Text(self.string().filter(|text| is_within_length(text))?),
            b't' => self.take(b"true").map(|()| TraitValue::Bool(true))?,
            b'f' => self.take(b"false").map(|()| TraitValue::Bool(false))?,
            b'n' => self.take(b"null").map(|()| TraitValue::Null)?,
            _ => return self.number(),
        };
        Some((value, true))
    }

    fn digits(&mut self) -> &'body str {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn number(&mut self) -> Option<(TraitValue<'body>, bool)> {
        let start = self.at;
        let _minus = self.take(b"-");
        let whole = self.digits();
        if whole.is_empty()
            || whole.len() > PLAIN_INTEGER_DIGITS_MAX
            || (whole.len() > 1 && whole.starts_with('0'))
        {
            return None;
        }
        if self.take(b".").is_none() {
            let text = &self.text[start..self.at];
            // Minus zero is the integer 0, and what an exponent makes of it is another matter.
            let is_plain = text != "-0" && !matches!(self.peek(), Some(b'e' | b'E'));
            let number = text.parse().ok().filter(|_| is_plain)?;
            return Some((TraitValue::Int(number), true));
        }
        let fraction = self.digits();
        if fraction.is_empty() || matches!(self.peek(), Some(b'e' | b'E')) {
            return None;
        }
        let number = self.text[start..self.at].parse().ok()?;
        // As `ryu` writes it: no zero at the end, and not so small that it takes an exponent.
        let is_shortest = whole.len() + fraction.len() <= PLAIN_FLOAT_DIGITS_MAX
            && (fraction == "0" || !fraction.ends_with('0'))
            && (!whole.starts_with('0') || !fraction.starts_with('0'));
        Some((TraitValue::Float(number), is_shortest))
    }
}
