//! Patterns that a finite automaton can take, whatever the text at a cost that grows with it alone.
//!
//! In: a [`Node`]. Out: an automaton, or nothing where the pattern needs back-tracking: groups that
//! are referred to, look-around, atomic parts, a `$` that something may follow.
//! Invariant: only whether there is a match is asked, so lazy and greedy are alike here.
use regex_automata::meta::{BuildError, Config, Regex};
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, Look, Repetition};

use super::set::Set;
use super::syntax::{Greed, Node, Place, REPEAT_MAX};
use crate::limits::PATTERN_AUTOMATON_BYTES_MAX;

/// A compiled automaton.
#[derive(Clone, Debug)]
pub struct Linear {
    regex: Regex,
    /// A word boundary is in it: it knows those of ASCII text alone.
    ascii_only: bool,
}

impl Linear {
    pub fn new(node: &Node) -> Option<Self> {
        let mut translation = Translation { has_boundary: false };
        let hir = translation.hir(node, true)?;
        let regex = build(&hir).ok()?;
        Some(Self { regex, ascii_only: translation.has_boundary })
    }

    /// Whether each answer for `text` is right: with a word boundary only for ASCII, and Python has
    /// neither `\b` nor `\B` in an empty text.
    pub fn takes(&self, text: &str) -> bool {
        !self.ascii_only || (!text.is_empty() && text.is_ascii())
    }

    /// Whether every text can be answered.
    pub fn takes_all(&self) -> bool {
        !self.ascii_only
    }

    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(Input::new(text).anchored(Anchored::Yes))
    }
}

fn build(hir: &Hir) -> Result<Regex, Box<BuildError>> {
    let config = Config::new().nfa_size_limit(Some(PATTERN_AUTOMATON_BYTES_MAX)).utf8_empty(true);
    Regex::builder().configure(config).build_from_hir(hir).map_err(Box::new)
}

struct Translation {
    has_boundary: bool,
}

impl Translation {
    /// `last`: nothing of the pattern follows, so a `$` may take the line feed it stands before.
    fn hir(&mut self, node: &Node, last: bool) -> Option<Hir> {
        Some(match node {
            Node::Set(set) => Hir::class(class(set)),
            Node::Place(place) => self.place(*place, last)?,
            Node::Sequence(nodes) => {
                let end = nodes.len().saturating_sub(1);
                let parts = nodes.iter().enumerate().map(|(at, node)| self.hir(node, last && at == end));
                Hir::concat(parts.collect::<Option<_>>()?)
            }
            Node::Branch(nodes) => {
                Hir::alternation(nodes.iter().map(|node| self.hir(node, last)).collect::<Option<_>>()?)
            }
            Node::Repeat { greed: Greed::Possessive, .. } => return None,
            Node::Repeat { greed, min, max, body } => Hir::repetition(Repetition {
                min: *min,
                max: Some(*max).filter(|max| *max != REPEAT_MAX),
                greedy: *greed == Greed::Greedy,
                sub: Box::new(self.hir(body, false)?),
            }),
            // Nothing refers to it, or the pattern is refused elsewhere: its content alone counts.
            Node::Group { body, .. } => self.hir(body, last)?,
            Node::Atomic(_) | Node::Look { .. } | Node::Backreference { .. } | Node::Conditional { .. } => {
                return None;
            }
        })
    }

    fn place(&mut self, place: Place, last: bool) -> Option<Hir> {
        let look = match place {
            Place::TextBegin => Look::Start,
            Place::TextEnd => Look::End,
            Place::LineBegin => Look::StartLF,
            Place::LineEnd => Look::EndLF,
            Place::LastLineEnd if last => {
                let line_feed = Hir::literal(*b"\n");
                let optional = Repetition { min: 0, max: Some(1), greedy: true, sub: Box::new(line_feed) };
                return Some(Hir::concat(vec![Hir::repetition(optional), Hir::look(Look::End)]));
            }
            Place::LastLineEnd => return None,
            Place::Boundary { negated, .. } => {
                self.has_boundary = true;
                if negated { Look::WordAsciiNegate } else { Look::WordAscii }
            }
        };
        Some(Hir::look(look))
    }
}

fn class(set: &Set) -> Class {
    let chars = |(first, last): &(u32, u32)| {
        // Surrogates are no characters: a range is cut around them.
        let below = (*first, (*last).min(0xD7FF));
        let above = ((*first).max(0xE000), *last);
        [below, above].into_iter().filter(|(first, last)| first <= last).filter_map(|(first, last)| {
            Some(ClassUnicodeRange::new(char::from_u32(first)?, char::from_u32(last)?))
        })
    };
    Class::Unicode(ClassUnicode::new(set.ranges().iter().flat_map(chars)))
}
