//! Python's view of characters: blanks, digits, word characters, case, what `repr` shows.
//!
//! In: a `char`. Out: the answer that Python 3.13 (Unicode 15.1) gives. `std` has other
//! definitions (its `is_whitespace` lacks U+001C to U+001F) and another Unicode version.
//! Invariant: pure table look-up, no allocation. The tables are written by
//! `scripts/unicode-tables.py`.
#[rustfmt::skip]
pub mod tables;

/// `str.isspace`: outer blanks of `int` and `float`, and `\s` of `re`.
pub fn is_space(char: char) -> bool {
    in_ranges(tables::SPACE, char)
}

/// `str.isprintable`.
pub fn is_printable(char: char) -> bool {
    matches!(char, ' '..='~') || in_ranges(tables::PRINTABLE, char)
}

/// The value of a decimal digit of any script (`str.isdecimal`).
pub fn digit(char: char) -> Option<u8> {
    if char.is_ascii() {
        return char.is_ascii_digit().then(|| char as u8 - b'0');
    }
    let code = char as u32;
    let after = tables::DIGIT_ZERO.partition_point(|zero| *zero <= code);
    let zero = tables::DIGIT_ZERO.get(after.checked_sub(1)?)?;
    u8::try_from(code - zero).ok().filter(|value| *value < 10)
}

/// The one lower-case character that `re` compares by.
pub fn lower(code: u32) -> u32 {
    let (runs, _) = tables::LOWER.as_chunks::<4>();
    let after = runs.partition_point(|[first, ..]| *first <= code);
    let Some([first, last, step, to]) = after.checked_sub(1).and_then(|at| runs.get(at)) else {
        return code;
    };
    if code > *last || !(code - first).is_multiple_of(*step) { code } else { to + (code - first) }
}

fn in_ranges(ranges: &[u32], char: char) -> bool {
    let code = char as u32;
    let (pairs, _) = ranges.as_chunks::<2>();
    let after = pairs.partition_point(|[first, _]| *first <= code);
    after.checked_sub(1).and_then(|at| pairs.get(at)).is_some_and(|[_, last]| code <= *last)
}

/// Whether `re` takes a character to have a case.
pub fn is_cased(code: u32) -> bool {
    char::from_u32(code).is_some_and(|char| in_ranges(tables::CASED, char))
}

/// Whether `re` takes any character from `first` to `last` to have a case.
pub fn has_cased(first: u32, last: u32) -> bool {
    let (pairs, _) = tables::CASED.as_chunks::<2>();
    let after = pairs.partition_point(|[_, end]| *end < first);
    pairs.get(after).is_some_and(|[start, _]| *start <= last)
}

/// `\w` without flags.
pub fn is_word(char: char) -> bool {
    if char.is_ascii() { char.is_ascii_alphanumeric() || char == '_' } else { in_ranges(tables::WORD, char) }
}
