//! A one-pass parser for bodies as SDKs write them.
//!
//! Accepts only what needs no conversion. It returns `None` for an escape, a nested value, a long integer, a
//! float with an exponent, a duplicate member, or any error; the other parsers then handle the body. What it
//! accepts it parses like them. It allocates only when the caller's vector grows.
use crate::engine::evaluate::{Trait, TraitValue};
use crate::identity::error_list::is_within_length;
use crate::json::write::plain_len;

/// Integers of this many digits always fit `i64`.
const PLAIN_INTEGER_DIGITS_MAX: usize = 18;
/// With at most this many digits, a decimal number is the shortest form of its float.
const PLAIN_FLOAT_DIGITS_MAX: usize = 15;

#[derive(Debug, Default)]
pub struct FastIdentity<'body> {
    pub identifier: &'body str,
    /// The inside of the array of traits, if it can be echoed unchanged.
    pub echo: Option<&'body str>,
    /// No member is named `transient`, and each trait has a value.
    pub is_plain: bool,
}

/// Parses a body and adds its traits to `traits`. `None` if the body is not plain.
pub fn parse<'body>(text: &'body str, traits: &mut Vec<Trait<'body>>) -> Option<FastIdentity<'body>> {
    let mut scanner = FastScanner { text, at: 0, is_plain: true };
    let (mut identifier, mut echo) = (None, None);
    scanner.skip_whitespace();
    scanner.members(|scanner, name| {
        match name {
            "identifier" if identifier.is_none() => identifier = Some(scanner.string()?),
            "traits" if echo.is_none() => echo = Some(scanner.traits(traits)?),
            "identifier" | "traits" => return None,
            _ => {
                scanner.is_plain &= name != "transient";
                scanner.value()?;
            }
        }
        Some(())
    })?;
    scanner.skip_whitespace();
    // An empty identifier is a transient identity (differences.md 13).
    let identifier = identifier.filter(|text| !text.is_empty() && is_within_length(text))?;
    let is_plain = scanner.is_plain;
    (scanner.at == text.len()).then_some(FastIdentity { identifier, echo: echo.flatten(), is_plain })
}

struct FastScanner<'body> {
    text: &'body str,
    at: usize,
    is_plain: bool,
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
    fn skip_whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Consumes `token` if it is next.
    #[inline]
    fn take(&mut self, token: &[u8]) -> Option<()> {
        self.rest().starts_with(token).then(|| self.at += token.len())
    }

    /// Parses an object with at least one member. `value` parses the value of the member with the given name.
    #[inline]
    fn members(&mut self, mut value: impl FnMut(&mut Self, &'body str) -> Option<()>) -> Option<()> {
        self.take(b"{")?;
        loop {
            self.skip_whitespace();
            let name = self.string()?;
            self.skip_whitespace();
            self.take(b":")?;
            self.skip_whitespace();
            value(self, name)?;
            self.skip_whitespace();
            if self.take(b",").is_none() {
                return self.take(b"}");
            }
        }
    }

    /// Parses a string without escapes.
    #[inline]
    fn string(&mut self) -> Option<&'body str> {
        self.take(b"\"")?;
        self.string_rest()
    }

    /// Parses the rest of a string, after its opening quote.
    #[inline]
    fn string_rest(&mut self) -> Option<&'body str> {
        let start = self.at;
        let end = start + plain_len(self.rest());
        self.at = end + 1;
        let is_closed = self.text.as_bytes().get(end) == Some(&b'"');
        if is_closed { self.text.get(start..end) } else { None }
    }

    /// Parses the array of traits. Returns its inside if it can be echoed unchanged, else `Some(None)`.
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
                self.skip_whitespace();
                traits.push(self.other_trait()?);
                self.skip_whitespace();
            }
            if self.take(b",").is_none() {
                break;
            }
        }
        let inside = self.text.get(start..self.at)?;
        self.take(b"]")?;
        Some(is_echo.then_some(inside))
    }

    /// Parses a trait in the exact form in which it is echoed. The flag is false if its value is echoed in
    /// another form.
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
        let key = self.string_rest()?;
        self.take(b",\"trait_value\":")?;
        let (value, as_sent) = self.value()?;
        self.take(b"}")?;
        Some((Trait { key, value }, as_sent))
    }

    /// Parses a trait with whitespace or additional members.
    fn other_trait(&mut self) -> Option<Trait<'body>> {
        let (mut key, mut value) = (None, None);
        self.members(|scanner, name| {
            match name {
                "trait_key" if key.is_none() => key = Some(scanner.string()?),
                "trait_value" if value.is_none() => value = Some(scanner.value()?.0),
                "trait_key" | "trait_value" => return None,
                _ => {
                    scanner.is_plain &= name != "transient";
                    scanner.value()?;
                }
            }
            Some(())
        })?;
        self.is_plain &= value.is_some();
        Some(Trait { key: key?, value: value.unwrap_or(TraitValue::Null) })
    }

    /// Parses a scalar. The flag is whether it is echoed in the form in which it was sent.
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
            // `-0` is the integer 0, and a number with an exponent is a float.
            let is_plain = text != "-0" && !matches!(self.peek(), Some(b'e' | b'E'));
            let number = text.parse().ok().filter(|_| is_plain)?;
            return Some((TraitValue::Int(number), true));
        }
        let fraction = self.digits();
        if fraction.is_empty() || matches!(self.peek(), Some(b'e' | b'E')) {
            return None;
        }
        let number = self.text[start..self.at].parse().ok()?;
        // In the format of `ryu`: no trailing zero, and not so small that `ryu` uses an exponent.
        let is_shortest = whole.len() + fraction.len() <= PLAIN_FLOAT_DIGITS_MAX
            && (fraction == "0" || !fraction.ends_with('0'))
            && (!whole.starts_with('0') || !fraction.starts_with('0'));
        Some((TraitValue::Float(number), is_shortest))
    }
}
