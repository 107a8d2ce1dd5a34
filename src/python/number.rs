//! Values as the engine compares them, and Python's conversions between text and numbers.
//!
//! Results are those of CPython 3.13, its limit of 4,300 digits for an integer included (compatibility.md 5.6
//! and 5.7). Only integers beyond `i64` allocate.
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use num_bigint::BigInt;
use num_traits::ToPrimitive as _;

use crate::limits::INTEGER_DIGITS_MAX;
use crate::python::unicode;

/// A value after coercion (compatibility.md 5.6).
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Not set.
    Null,
    Bool(bool),
    Int(i64),
    Big(BigDigits<'a>),
    Float(f64),
    Text(&'a str),
    /// Text that Python fails to coerce: an integer of more than [`INTEGER_DIGITS_MAX`] digits. No
    /// condition matches it, not even `IS_SET` and `IS_NOT_SET` (differences.md 5).
    Unreadable,
}

/// An integer outside `i64` as its decimal digits. It is compared and written in this form: conversion to
/// binary takes time quadratic in the number of digits, for each condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BigDigits<'a> {
    is_negative: bool,
    /// Without leading zeros.
    digits: &'a str,
}

impl<'a> BigDigits<'a> {
    /// Reads `[+-]?[0-9]+`, which must be an integer outside `i64`.
    pub fn of(text: &'a str) -> Self {
        let digits = text.trim_start_matches(['+', '-']).trim_start_matches('0');
        Self { is_negative: text.starts_with('-'), digits }
    }

    /// The order relative to every integer within `i64`.
    pub fn order_to_small(&self) -> Ordering {
        if self.is_negative { Ordering::Less } else { Ordering::Greater }
    }

    /// The nearest double; `None` on overflow.
    fn to_f64(self) -> Option<f64> {
        let size: f64 = self.digits.parse().ok().filter(|size: &f64| size.is_finite())?;
        Some(if self.is_negative { -size } else { size })
    }
}

impl Ord for BigDigits<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_size =
            || self.digits.len().cmp(&other.digits.len()).then_with(|| self.digits.cmp(other.digits));
        match (self.is_negative, other.is_negative) {
            (false, false) => by_size(),
            (true, true) => by_size().reverse(),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

impl PartialOrd for BigDigits<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl std::fmt::Display for BigDigits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_negative { "-" } else { "" })?;
        f.write_str(self.digits)
    }
}

/// An integer of any size, in the smaller form that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Integer {
    Small(i64),
    Big(BigInt),
}

impl From<BigInt> for Integer {
    fn from(number: BigInt) -> Self {
        number.to_i64().map_or(Self::Big(number), Self::Small)
    }
}

impl PartialOrd for Integer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Integer {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Small(a), Self::Small(b)) => a.cmp(b),
            (Self::Big(a), Self::Big(b)) => a.cmp(b),
            // `Big` never holds what `Small` can, so only its sign matters.
            (Self::Small(_), Self::Big(b)) => b.sign().cmp(&num_bigint::Sign::NoSign).reverse(),
            (Self::Big(a), Self::Small(_)) => a.sign().cmp(&num_bigint::Sign::NoSign),
        }
    }
}

/// Text fully matching `-?[0-9]+` is an integer, `-?[0-9]+\.[0-9]+` a double; ASCII digits only.
pub fn coerce_text(text: &str) -> Value<'_> {
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    // The common case: text that starts with a letter.
    if !digits.first().is_some_and(u8::is_ascii_digit) {
        return Value::Text(text);
    }
    let whole = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match digits.get(whole) {
        None => integer_value(text),
        Some(b'.') if whole + 1 < digits.len() && digits[whole + 1..].iter().all(u8::is_ascii_digit) => {
            text.parse().map_or(Value::Text(text), Value::Float)
        }
        Some(_) => Value::Text(text),
    }
}

pub fn integer_value(digits: &str) -> Value<'_> {
    if has_too_many_digits(digits) {
        return Value::Unreadable;
    }
    digits.parse().map_or_else(|_| Value::Big(BigDigits::of(digits)), Value::Int)
}

/// Whether CPython refuses to parse it. Leading zeros count as digits.
fn has_too_many_digits(text: &str) -> bool {
    text.len() > INTEGER_DIGITS_MAX && text.trim_start_matches(['+', '-']).len() > INTEGER_DIGITS_MAX
}

/// Parses `[+-]?[0-9]+`; `None` if it has more digits than CPython allows.
fn ascii_integer(text: &str) -> Option<Integer> {
    if has_too_many_digits(text) {
        return None;
    }
    match text.parse() {
        Ok(number) => Some(Integer::Small(number)),
        Err(_) => text.parse::<BigInt>().ok().map(Integer::from),
    }
}

/// Python's `int(text)`; `None` where it raises.
pub fn int_from_text(text: &str) -> Option<Integer> {
    let text = plain_number(text)?;
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let well_formed = !unsigned.is_empty()
        && unsigned.split('_').all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()));
    if !well_formed {
        return None;
    }
    ascii_integer(&without_underscores(&text))
}

/// Python's `float(text)`; `None` where it raises.
pub fn float_from_text(text: &str) -> Option<f64> {
    let text = plain_number(text)?;
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let underscores_separate_digits = bytes
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte != b'_' || (at > 0 && is_digit(at - 1) && is_digit(at + 1)));
    if !underscores_separate_digits {
        return None;
    }
    // From here on `std` and CPython agree: both round correctly and accept `inf`, `infinity` and `nan` in
    // any case and with a sign.
    without_underscores(&text).parse().ok()
}

/// The text stripped of outer blanks and with digits of all scripts as ASCII, as CPython prepares it. `None`
/// if it contains another non-ASCII character.
fn plain_number(text: &str) -> Option<Cow<'_, str>> {
    // Of the ASCII blanks CPython strips what C's `isspace` accepts: not U+001C to U+001F.
    let trimmed = text.trim_matches(|char: char| match char {
        ' ' | '\t'..='\r' => true,
        _ => !char.is_ascii() && unicode::is_space(char),
    });
    if trimmed.is_ascii() {
        return Some(Cow::Borrowed(trimmed));
    }
    trimmed
        .chars()
        .map(|char| match unicode::digit(char) {
            Some(value) => Some(char::from(b'0' + value)),
            None if char.is_ascii() => Some(char),
            None => None,
        })
        .collect::<Option<String>>()
        .map(Cow::Owned)
}

fn without_underscores(text: &str) -> Cow<'_, str> {
    if text.contains('_') { Cow::Owned(text.replace('_', "")) } else { Cow::Borrowed(text) }
}

/// Appends Python's `str(value)`.
pub fn write_str(value: &Value<'_>, out: &mut String) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(number) => out.push_str(itoa::Buffer::new().format(*number)),
        // Writing to a `String` cannot fail.
        Value::Big(number) => {
            let _ = write!(out, "{number}");
        }
        Value::Float(number) => write_float(*number, out),
        Value::Text(text) => out.push_str(text),
        Value::Unreadable => {}
    }
}

/// Python's `str(number)` of a double.
pub fn float_str(number: f64) -> String {
    let mut text = String::new();
    write_float(number, &mut text);
    text
}

/// Appends Python's `repr(number)`: the shortest digits that read back as the same double, with an
/// exponent below 1e-4 and from 1e16 on.
pub fn write_float(number: f64, out: &mut String) {
    if number.is_nan() {
        return out.push_str("nan");
    }
    if number.is_sign_negative() {
        out.push('-');
    }
    if number.is_infinite() {
        return out.push_str("inf");
    }
    let mut buffer = ryu::Buffer::new();
    let shortest = buffer.format_finite(number.abs());
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');

    // The digits without leading zeros, and the number of digits before the point.
    let mut digits = [0_u8; 32];
    let mut count = 0;
    let mut point = i32::try_from(whole.len()).unwrap_or(0) + exponent.parse::<i32>().unwrap_or(0);
    for digit in whole.bytes().chain(fraction.bytes()) {
        if count == 0 && digit == b'0' {
            point -= 1;
        } else if let Some(slot) = digits.get_mut(count) {
            *slot = digit;
            count += 1;
        }
    }
    while count > 1 && digits[count - 1] == b'0' {
        count -= 1;
    }
    let digits = std::str::from_utf8(&digits[..count]).unwrap_or_default();
    write_digits(digits, point, out);
}

fn write_digits(digits: &str, point: i32, out: &mut String) {
    let zeros = |count: i32, out: &mut String| (0..count).for_each(|_| out.push('0'));
    if digits.is_empty() {
        out.push_str("0.0");
    } else if !(-3..=16).contains(&point) {
        let (first, rest) = digits.split_at(1);
        out.push_str(first);
        if !rest.is_empty() {
            out.push('.');
            out.push_str(rest);
        }
        let exponent = point - 1;
        // Writing to a `String` cannot fail.
        let _ = write!(out, "e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    } else if point <= 0 {
        out.push_str("0.");
        zeros(-point, out);
        out.push_str(digits);
    } else {
        let whole = usize::try_from(point).unwrap_or(0).min(digits.len());
        let (before, after) = digits.split_at(whole);
        out.push_str(before);
        zeros(point - i32::try_from(whole).unwrap_or(0), out);
        out.push('.');
        out.push_str(if after.is_empty() { "0" } else { after });
    }
}

/// Python's `value % divisor` in doubles, floored: the result has the divisor's sign. `None` if the value
/// is not a number, or where Python raises (divisor 0, an integer beyond the range of doubles).
pub fn modulo(value: &Value<'_>, divisor: f64) -> Option<f64> {
    let number = match value {
        Value::Bool(bool) => f64::from(u8::from(*bool)),
        #[expect(clippy::cast_precision_loss, reason = "Python rounds the same way here")]
        Value::Int(number) => *number as f64,
        Value::Big(number) => number.to_f64()?,
        Value::Float(number) => *number,
        Value::Null | Value::Text(_) | Value::Unreadable => return None,
    };
    if divisor == 0.0 {
        return None;
    }
    let remainder = number % divisor;
    if remainder == 0.0 {
        return Some(0.0_f64.copysign(divisor));
    }
    Some(if (divisor < 0.0) == (remainder < 0.0) { remainder } else { remainder + divisor })
}
