//! Escaping of untrusted text for a terminal.
//!
//! A document, a configuration file or an argument may contain escape sequences that clear the screen, change
//! the window's title or forge lines, and bidirectional controls that display text in a different order.
use std::borrow::Cow;
use std::fmt::Write;

/// Control characters (C0, DEL, C1), line and paragraph separators, and bidirectional formatting characters
/// (Unicode TR 9, section 2).
pub fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(character, '\u{2066}'..='\u{2069}')
}

/// Escapes a value that is printed within a line: line feeds are escaped too.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_unless(text, |_| false)
}

/// Escapes text of several lines: line feeds are kept. JSON stays valid and keeps its value, because in JSON
/// these characters occur only within strings.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    escape_unless(text, |character| character == '\n')
}

fn escape_unless(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |character: char| is_unsafe(character) && !is_kept(character);
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            plain if !is_escaped(plain) => escaped.push(plain),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            // Writing to a string cannot fail. All unsafe characters are in the Basic Multilingual Plane.
            other => drop(write!(escaped, "\\u{:04x}", u32::from(other))),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_control_and_bidirectional_characters() {
        for (text, value, lines) in [
            ("plain é 日本", "plain é 日本", "plain é 日本"),
            ("a\nb", "a\\nb", "a\nb"),
            ("\x1b[2J\x07\x7f", "\\u001b[2J\\u0007\\u007f", "\\u001b[2J\\u0007\\u007f"),
            ("\u{9b}31m\u{85}", "\\u009b31m\\u0085", "\\u009b31m\\u0085"),
            (
                "\u{202e}x\u{2066}\u{200f}\u{2028}",
                "\\u202ex\\u2066\\u200f\\u2028",
                "\\u202ex\\u2066\\u200f\\u2028",
            ),
            ("\r\t", "\\r\\t", "\\r\\t"),
        ] {
            assert_eq!((&*escape(text), &*escape_lines(text)), (value, lines), "{text:?}");
        }
    }
}
