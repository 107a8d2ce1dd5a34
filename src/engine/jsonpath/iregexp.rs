//! I-Regexp (RFC 9485): the regular expressions of JSONPath's `match` and `search`.
//!
//! `^` and `$` are anchors, unlike in the RFC, because the Python package passes them to `re` unescaped.
//! Matching takes time linear in the text. An invalid pattern matches nothing.
use regex_automata::Input;
use regex_automata::meta::Regex;

use crate::limits::{
    JSONPATH_PATTERN_BYTES_MAX, PATTERN_AUTOMATON_BYTES_MAX, PATTERN_BYTES_MAX, PATTERN_DEPTH_MAX,
};
use crate::step_budget::StepBudget;

/// Steps for building an automaton during a request: base cost, cost per byte of the pattern, and cost of its
/// memory.
const BUILD_STEPS: usize = 1000;
const BUILD_STEPS_PER_BYTE: usize = 20;
const BUILD_BYTES_PER_STEP: usize = 4;
/// Steps for a match: base cost, and cost of the text.
const MATCH_STEPS: usize = 4;
const MATCH_BYTES_PER_STEP: usize = 8;

/// A compiled I-Regexp.
#[derive(Clone, Debug)]
pub struct IRegexp {
    regex: Regex,
}

impl IRegexp {
    /// Compiles a pattern. `whole`: for `match`, which must match the whole text.
    pub fn new(text: &str, whole: bool) -> Option<Self> {
        Self::build(text, whole, PATTERN_AUTOMATON_BYTES_MAX)
    }

    /// As [`Self::new`], for a pattern from a request: building its automaton spends steps.
    pub fn of_request(text: &str, whole: bool, steps: &StepBudget) -> Option<Self> {
        if !steps.spend(BUILD_STEPS + text.len() * BUILD_STEPS_PER_BYTE) {
            return None;
        }
        let built = Self::build(text, whole, JSONPATH_PATTERN_BYTES_MAX);
        // A build that failed may have used all of the memory before.
        let bytes = built.as_ref().map_or(JSONPATH_PATTERN_BYTES_MAX, |built| built.regex.memory_usage());
        let is_paid = steps.spend(bytes / BUILD_BYTES_PER_STEP);
        built.filter(|_| is_paid)
    }

    fn build(text: &str, whole: bool, bytes_max: usize) -> Option<Self> {
        if text.len() > PATTERN_BYTES_MAX {
            return None;
        }
        let mut reader = IRegexpReader { rest: text, out: String::new() };
        reader.alternatives(0)?;
        if !reader.rest.is_empty() {
            return None;
        }
        let source = if whole { format!(r"\A(?:{})\z", reader.out) } else { reader.out };
        let config = Regex::config().nfa_size_limit(Some(bytes_max));
        Regex::builder().configure(config).build(&source).ok().map(|regex| Self { regex })
    }

    /// Whether `text` matches. Spends steps for its length; false if there are not enough.
    pub fn is_match_within(&self, text: &str, steps: &StepBudget) -> bool {
        steps.spend(MATCH_STEPS + text.len() / MATCH_BYTES_PER_STEP) && self.regex.is_match(Input::new(text))
    }
}

/// Parses by the RFC's grammar, and writes the pattern in the syntax of `regex_automata`.
struct IRegexpReader<'a> {
    rest: &'a str,
    out: String,
}

impl IRegexpReader<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek()?;
        self.rest = &self.rest[char.len_utf8()..];
        Some(char)
    }

    fn next_if(&mut self, expected: char) -> bool {
        self.peek() == Some(expected) && self.next().is_some()
    }

    fn alternatives(&mut self, depth: usize) -> Option<()> {
        if depth > PATTERN_DEPTH_MAX {
            return None;
        }
        loop {
            match self.peek() {
                None | Some(')') => return Some(()),
                Some('|') => {
                    self.next();
                    self.out.push('|');
                }
                Some(_) => {
                    self.atom(depth)?;
                    self.quantifier()?;
                }
            }
        }
    }

    fn atom(&mut self, depth: usize) -> Option<()> {
        match self.next()? {
            '(' => {
                self.out.push_str("(?:");
                self.alternatives(depth + 1)?;
                self.out.push(')');
                self.next_if(')').then_some(())
            }
            '.' => {
                self.out.push_str(r"[^\n\r]");
                Some(())
            }
            '[' => self.class(),
            '\\' => self.escape(),
            '*' | '+' | '?' | ']' | '{' | '}' => None,
            '^' => {
                self.out.push_str(r"\A");
                Some(())
            }
            '$' => {
                self.out.push_str(r"\z");
                Some(())
            }
            char => {
                self.literal(char);
                Some(())
            }
        }
    }

    fn literal(&mut self, char: char) {
        if char.is_ascii_punctuation() {
            self.out.push('\\');
        }
        self.out.push(char);
    }

    /// The character or category after a backslash, in a class or outside.
    fn escape(&mut self) -> Option<()> {
        match self.next()? {
            char @ ('(' | ')' | '*' | '+' | '-' | '.' | '?' | '[' | '\\' | ']' | '^' | '{' | '|' | '}') => {
                self.literal(char);
                Some(())
            }
            char @ ('n' | 'r' | 't') => {
                self.out.extend(['\\', char]);
                Some(())
            }
            char @ ('p' | 'P') => self.category(char),
            _ => None,
        }
    }

    fn category(&mut self, negation: char) -> Option<()> {
        const CATEGORIES: [(char, &str); 7] = [
            ('L', "lmotu"),
            ('M', "cen"),
            ('N', "dlo"),
            ('P', "cdefios"),
            ('Z', "lps"),
            ('S', "ckmo"),
            ('C', "cfno"),
        ];
        if !self.next_if('{') {
            return None;
        }
        let major = self.next()?;
        let (_, minors) = CATEGORIES.iter().find(|(other, _)| *other == major)?;
        self.out.extend(['\\', negation, '{', major]);
        if let Some(minor) = self.peek().filter(|minor| minors.contains(*minor)) {
            self.next();
            self.out.push(minor);
        }
        self.out.push('}');
        self.next_if('}').then_some(())
    }

    fn class(&mut self) -> Option<()> {
        self.out.push('[');
        if self.next_if('^') {
            self.out.push('^');
        }
        if self.next_if('-') {
            self.out.push_str(r"\-");
        } else {
            self.class_member()?;
        }
        loop {
            if self.next_if(']') {
                self.out.push(']');
                return Some(());
            }
            if self.next_if('-') {
                self.out.push_str(r"\-]");
                return self.next_if(']').then_some(());
            }
            self.class_member()?;
        }
    }

    fn class_member(&mut self) -> Option<()> {
        if self.rest.starts_with(r"\p") || self.rest.starts_with(r"\P") {
            self.next();
            return self.escape();
        }
        self.class_char()?;
        let mut after = self.rest.chars();
        if after.next() == Some('-') && after.next() != Some(']') {
            self.next();
            self.out.push('-');
            return self.class_char();
        }
        Some(())
    }

    fn class_char(&mut self) -> Option<()> {
        match self.next()? {
            '\\' if !matches!(self.peek(), Some('p' | 'P')) => self.escape(),
            '-' | '[' | ']' | '\\' => None,
            char => {
                self.literal(char);
                Some(())
            }
        }
    }

    fn quantifier(&mut self) -> Option<()> {
        match self.peek() {
            Some(char @ ('*' | '+' | '?')) => {
                self.next();
                self.out.push(char);
            }
            Some('{') => {
                let end = self.rest.find('}')?;
                let bounds = self.rest.get(1..end)?;
                let (low, high) = bounds.split_once(',').unwrap_or((bounds, ""));
                let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
                if low.is_empty() || !is_number(low) || !is_number(high) {
                    return None;
                }
                self.out.push_str(&self.rest[..=end]);
                self.rest = &self.rest[end + 1..];
            }
            _ => {}
        }
        Some(())
    }
}
