//! Parser of patterns, after Python 3.13's `re._parser` (compatibility.md 5.10).
//!
//! Rewrites of Python's parser that a match can observe are made here too, such as an alternation of single
//! characters becoming a set. Nesting is limited, so that no pattern overflows the stack.
use std::collections::{HashMap, HashSet};

use crate::limits::PATTERN_DEPTH_MAX;
use crate::python::regex::error::PatternError;
use crate::python::regex::escape::Escape;
use crate::python::regex::flags::RegexFlags;
use crate::python::regex::set::SetMember;
use crate::python::regex::syntax::{At, Greed, REPEAT_MAX, SetItem};
use crate::python::regex::token::{RegexToken, Tokens};
use crate::python::regex::{escape, width};

/// A parsed pattern.
#[derive(Debug)]
pub struct Parsed {
    pub items: Vec<SetItem>,
    pub flags: RegexFlags,
    /// The number of groups, group 0 (the whole match) included.
    pub groups: u32,
}

pub fn parse(text: &str) -> Result<Parsed, PatternError> {
    let mut parser = RegexParser {
        tokens: Tokens::new(text)?,
        flags: RegexFlags::default(),
        widths: vec![None],
        names: HashMap::new(),
        look_behind_groups: None,
        conditions: Vec::new(),
    };
    let items = parser.alternation(RegexFlags::default(), 0)?;
    if parser.tokens.peek().is_some() {
        return Err(PatternError::new("unbalanced parenthesis"));
    }
    if parser.flags.has(RegexFlags::ASCII) && parser.flags.has(RegexFlags::UNICODE) {
        return Err(PatternError::new("ASCII and UNICODE flags are incompatible"));
    }
    let groups = parser.group_count();
    if parser.conditions.iter().any(|group| *group >= groups) {
        return Err(PatternError::new("invalid group reference"));
    }
    Ok(Parsed { items, flags: parser.flags, groups })
}

pub(super) struct RegexParser {
    pub tokens: Tokens,
    /// Flags set for the whole pattern.
    pub flags: RegexFlags,
    /// The width in characters of each closed group. Group 0 is never closed.
    pub widths: Vec<Option<(u64, u64)>>,
    pub names: HashMap<String, u32>,
    /// Inside a lookbehind: the number of groups before it.
    pub look_behind_groups: Option<u32>,
    /// Groups that conditionals test. They may come later in the pattern.
    pub conditions: Vec<u32>,
}

impl RegexParser {
    pub fn group_count(&self) -> u32 {
        u32::try_from(self.widths.len()).unwrap_or(u32::MAX)
    }

    /// `a|b|c`.
    pub fn alternation(&mut self, verbose: RegexFlags, depth: usize) -> Result<Vec<SetItem>, PatternError> {
        if depth > PATTERN_DEPTH_MAX {
            return Err(PatternError::new("groups are nested too deeply"));
        }
        let mut verbose = verbose;
        let mut branches = Vec::new();
        loop {
            branches.push(self.sequence(verbose, depth, depth == 0 && branches.is_empty())?);
            if !self.tokens.take_if('|')? {
                break;
            }
            if depth == 0 {
                verbose = self.flags;
            }
        }
        Ok(join(branches))
    }

    /// Parses one branch, up to `|` or `)`. Of `verbose` only [`RegexFlags::VERBOSE`] is read.
    pub fn sequence(
        &mut self,
        verbose: RegexFlags,
        depth: usize,
        first: bool,
    ) -> Result<Vec<SetItem>, PatternError> {
        let mut verbose = verbose;
        let mut items = Vec::new();
        while let Some(token) = self.tokens.peek() {
            if matches!(token, RegexToken::Char('|' | ')')) {
                break;
            }
            self.tokens.take()?;
            let char = match token {
                RegexToken::Escape(char) => {
                    items.push(self.escaped(char)?);
                    continue;
                }
                RegexToken::Char(char) => char,
            };
            match char {
                ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' if verbose.has(RegexFlags::VERBOSE) => {}
                '#' if verbose.has(RegexFlags::VERBOSE) => {
                    while !matches!(self.tokens.take()?, None | Some(RegexToken::Char('\n'))) {}
                }
                '[' => items.push(self.set()?),
                '*' | '+' | '?' | '{' => self.repeat(char, &mut items)?,
                '.' => items.push(SetItem::Any),
                '^' => items.push(SetItem::At(At::Begin)),
                '$' => items.push(SetItem::At(At::End)),
                '(' => {
                    let at_start = first && items.is_empty();
                    items.extend(self.group(&mut verbose, depth, at_start)?);
                }
                _ => items.push(SetItem::Literal(u32::from(char))),
            }
        }
        Ok(items.into_iter().flat_map(unpack).collect())
    }

    fn escaped(&mut self, char: char) -> Result<SetItem, PatternError> {
        Ok(match escape::outside(&mut self.tokens, char)? {
            Escape::Literal(code) => SetItem::Literal(code),
            Escape::At(at) => SetItem::At(at),
            Escape::Category(category) => {
                SetItem::Set { negated: false, members: vec![SetMember::Category(category)] }
            }
            Escape::Group(group) => {
                self.check_reference(group)?;
                SetItem::Backreference(group)
            }
        })
    }

    /// A referenced group must exist and be closed.
    pub fn check_reference(&self, group: u32) -> Result<(), PatternError> {
        if group >= self.group_count() {
            return Err(PatternError::new("invalid group reference"));
        }
        if !self.is_closed(group) {
            return Err(PatternError::new("cannot refer to an open group"));
        }
        self.check_look_behind(group)
    }

    fn is_closed(&self, group: u32) -> bool {
        self.widths.get(group as usize).is_some_and(Option::is_some)
    }

    pub fn check_look_behind(&self, group: u32) -> Result<(), PatternError> {
        match self.look_behind_groups {
            Some(_) if !self.is_closed(group) => Err(PatternError::new("cannot refer to an open group")),
            Some(before) if group >= before => {
                Err(PatternError::new("cannot refer to group defined in the same lookbehind subpattern"))
            }
            _ => Ok(()),
        }
    }

    /// Parses a character set after its `[`.
    fn set(&mut self) -> Result<SetItem, PatternError> {
        const UNTERMINATED: PatternError = PatternError::new("unterminated character set");
        let negated = self.tokens.take_if('^')?;
        let (mut members, mut seen) = (Vec::new(), HashSet::new());
        let mut push = |member| {
            if seen.insert(member) {
                members.push(member);
            }
        };
        let mut is_first = true;
        loop {
            let token = self.tokens.take()?.ok_or(UNTERMINATED)?;
            if token == RegexToken::Char(']') && !is_first {
                break;
            }
            is_first = false;
            let member = self.member(token)?;
            if !self.tokens.take_if('-')? {
                push(member);
                continue;
            }
            let token = self.tokens.take()?.ok_or(UNTERMINATED)?;
            if token == RegexToken::Char(']') {
                push(member);
                push(SetMember::Literal(u32::from('-')));
                break;
            }
            match (member, self.member(token)?) {
                (SetMember::Literal(low), SetMember::Literal(high)) if low <= high => {
                    push(SetMember::Range(low, high))
                }
                _ => return Err(PatternError::new("bad character range")),
            }
        }
        Ok(match (negated, members.as_slice()) {
            (false, [SetMember::Literal(code)]) => SetItem::Literal(*code),
            (true, [SetMember::Literal(code)]) => SetItem::NotLiteral(*code),
            _ => SetItem::Set { negated, members },
        })
    }

    fn member(&mut self, token: RegexToken) -> Result<SetMember, PatternError> {
        let char = match token {
            RegexToken::Char(char) => return Ok(SetMember::Literal(u32::from(char))),
            RegexToken::Escape(char) => char,
        };
        match escape::inside(&mut self.tokens, char)? {
            Escape::Literal(code) => Ok(SetMember::Literal(code)),
            Escape::Category(category) => Ok(SetMember::Category(category)),
            Escape::At(_) | Escape::Group(_) => Err(PatternError::of_char("bad escape \\", char)),
        }
    }

    /// Parses a quantifier, whose body is the item before it.
    fn repeat(&mut self, char: char, items: &mut Vec<SetItem>) -> Result<(), PatternError> {
        let bounds = match char {
            '?' => Some((0, 1)),
            '*' => Some((0, REPEAT_MAX)),
            '+' => Some((1, REPEAT_MAX)),
            _ => self.braces()?,
        };
        let Some((min, max)) = bounds else {
            items.push(SetItem::Literal(u32::from(char)));
            return Ok(());
        };
        let item = match items.pop() {
            None | Some(SetItem::At(_)) => return Err(PatternError::new("nothing to repeat")),
            Some(SetItem::Repeat { .. }) => return Err(PatternError::new("multiple repeat")),
            Some(item) => item,
        };
        let greed = if self.tokens.take_if('?')? {
            Greed::Lazy
        } else if self.tokens.take_if('+')? {
            Greed::Possessive
        } else {
            Greed::Greedy
        };
        items.push(SetItem::Repeat { greed, min, max, body: unpack(item) });
        Ok(())
    }

    /// Parses the bounds after `{`; `None` if the brace is a literal.
    fn braces(&mut self) -> Result<Option<(u32, u32)>, PatternError> {
        if self.tokens.peek() == Some(RegexToken::Char('}')) {
            return Ok(None);
        }
        let start = self.tokens.position();
        let low = self.tokens.take_while(usize::MAX, char::is_ascii_digit)?;
        let high = if self.tokens.take_if(',')? {
            self.tokens.take_while(usize::MAX, char::is_ascii_digit)?
        } else {
            low.clone()
        };
        if !self.tokens.take_if('}')? {
            self.tokens.seek(start)?;
            return Ok(None);
        }
        let number = |digits: &str, absent: u32| match digits {
            "" => Ok(absent),
            _ => digits
                .parse()
                .ok()
                .filter(|number| *number < REPEAT_MAX)
                .ok_or_else(|| PatternError::new("the repetition number is too large")),
        };
        let (min, max) = (number(&low, 0)?, number(&high, REPEAT_MAX)?);
        if max < min {
            return Err(PatternError::new("min repeat greater than max repeat"));
        }
        Ok(Some((min, max)))
    }

    pub fn width(&self, items: &[SetItem]) -> (u64, u64) {
        width::of(items, &self.widths)
    }
}

/// Replaces a group that neither captures nor sets flags by its content.
fn unpack(item: SetItem) -> Vec<SetItem> {
    match item {
        SetItem::Group { index: None, add: RegexFlags(0), remove: RegexFlags(0), body } => body,
        other => vec![other],
    }
}

/// Joins branches as Python does: a common prefix moves in front, single characters become one set.
fn join(mut branches: Vec<Vec<SetItem>>) -> Vec<SetItem> {
    if branches.len() == 1 {
        return branches.pop().unwrap_or_default();
    }
    let common = common_length(&branches);
    let mut items = Vec::new();
    for branch in &mut branches {
        let rest = branch.split_off(common);
        items = std::mem::replace(branch, rest);
    }
    let mut members = Vec::new();
    for branch in &branches {
        match branch.as_slice() {
            [SetItem::Literal(code)] => members.push(SetMember::Literal(*code)),
            [SetItem::Set { negated: false, members: set }] => members.extend_from_slice(set),
            _ => {
                items.push(SetItem::Branch(branches));
                return items;
            }
        }
    }
    let mut seen = HashSet::new();
    members.retain(|member| seen.insert(*member));
    items.push(SetItem::Set { negated: false, members });
    items
}

/// The length of the common prefix. Items with a body never compare equal in Python, so they end it.
fn common_length(branches: &[Vec<SetItem>]) -> usize {
    let Some((first, others)) = branches.split_first() else { return 0 };
    let is_plain = |item: &SetItem| {
        matches!(
            item,
            SetItem::Literal(_)
                | SetItem::NotLiteral(_)
                | SetItem::Any
                | SetItem::Set { .. }
                | SetItem::At(_)
                | SetItem::Backreference(_)
                | SetItem::Failure
        )
    };
    let is_common = |(at, item): &(usize, &SetItem)| {
        is_plain(item) && others.iter().all(|other| other.get(*at) == Some(*item))
    };
    first.iter().enumerate().take_while(is_common).count()
}
