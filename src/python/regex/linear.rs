//! Patterns that a finite automaton can take, whatever the text at a cost that grows with it alone.
//!
//! In: a [`RegexNode`]. Out: an automaton, or nothing where the pattern needs back-tracking: groups that
//! are referred to, look-around, atomic parts, a `$` that something may follow.
//! Invariant: only whether there is a match is asked, so lazy and greedy are alike here.
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::meta::{BuildError, Config, Regex};
use regex_automata::nfa::thompson::{NFA, WhichCaptures};
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, Look, Repetition};

use crate::limits::{PATTERN_AUTOMATON_BYTES_MAX, PATTERN_TABLE_BYTES_MAX};
use crate::python::regex::set::Set;
use crate::python::regex::syntax::{Greed, Position, REPEAT_MAX, RegexNode};

/// A compiled automaton.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Makes its states as texts need them.
    regex: Regex,
    /// The same for ASCII text, if it is small: every state by every byte, one step for each byte.
    ascii: Option<Box<Table>>,
    /// A word boundary is in it: it knows those of ASCII text alone.
    ascii_only: bool,
}

type Table = dense::DFA<Vec<u32>>;

impl Linear {
    /// `bytes` is what automata may still take.
    pub fn new(node: &RegexNode, bytes: &mut usize) -> Option<Self> {
        if *bytes == 0 {
            return None;
        }
        let mut translation = Translation::default();
        let hir = translation.hir(node, true)?;
        let bound = PATTERN_AUTOMATON_BYTES_MAX.min(*bytes);
        let regex = build(&hir, bound).ok();
        *bytes -= regex.as_ref().map_or(bound, |regex| regex.memory_usage().min(bound));
        let regex = regex?;
        let ascii = Translation { ascii: true, ..Translation::default() }.hir(node, true);
        let ascii = ascii.and_then(|hir| table(&hir)).map(Box::new);
        Some(Self { regex, ascii, ascii_only: translation.has_boundary })
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

    /// Whether a step for each byte is all that ASCII text costs.
    pub fn is_cheap(&self) -> bool {
        self.ascii.is_some()
    }

    pub fn is_match(&self, text: &str) -> bool {
        let input = Input::new(text).anchored(Anchored::Yes).earliest(true);
        match &self.ascii {
            // It fails only for what it was not built for: other words' boundaries, no anchor.
            Some(table) if text.is_ascii() => table.try_search_fwd(&input).is_ok_and(|found| found.is_some()),
            _ => self.regex.is_match(input),
        }
    }
}

/// The table of a pattern, if it is small.
fn table(hir: &Hir) -> Option<Table> {
    let config =
        NFA::config().nfa_size_limit(Some(PATTERN_TABLE_BYTES_MAX)).which_captures(WhichCaptures::None);
    let nfa = NFA::compiler().configure(config).build_from_hir(hir).ok()?;
    let config = dense::Config::new()
        .start_kind(StartKind::Anchored)
        .dfa_size_limit(Some(PATTERN_TABLE_BYTES_MAX))
        .determinize_size_limit(Some(PATTERN_TABLE_BYTES_MAX));
    dense::Builder::new().configure(config).build_from_nfa(&nfa).ok()
}

fn build(hir: &Hir, bytes_max: usize) -> Result<Regex, Box<BuildError>> {
    let config = Config::new().nfa_size_limit(Some(bytes_max)).utf8_empty(true);
    Regex::builder().configure(config).build_from_hir(hir).map_err(Box::new)
}

#[derive(Default)]
struct Translation {
    has_boundary: bool,
    /// Other characters do not count.
    ascii: bool,
}

impl Translation {
    /// `last`: nothing of the pattern follows, so a `$` may take the line feed it stands before.
    fn hir(&mut self, node: &RegexNode, last: bool) -> Option<Hir> {
        Some(match node {
            RegexNode::Set(set) => Hir::class(class(set, self.ascii)),
            RegexNode::Place(place) => self.place(*place, last)?,
            RegexNode::Sequence(nodes) => {
                let end = nodes.len().saturating_sub(1);
                let parts = nodes.iter().enumerate().map(|(at, node)| self.hir(node, last && at == end));
                Hir::concat(parts.collect::<Option<_>>()?)
            }
            RegexNode::Branch(nodes) => {
                Hir::alternation(nodes.iter().map(|node| self.hir(node, last)).collect::<Option<_>>()?)
            }
            RegexNode::Repeat { greed: Greed::Possessive, .. } => return None,
            RegexNode::Repeat { greed, min, max, body } => Hir::repetition(Repetition {
                min: *min,
                max: Some(*max).filter(|max| *max != REPEAT_MAX),
                greedy: *greed == Greed::Greedy,
                sub: Box::new(self.hir(body, false)?),
            }),
            // Nothing refers to it, or the pattern is refused elsewhere: its content alone counts.
            RegexNode::Group { body, .. } => self.hir(body, last)?,
            RegexNode::Atomic(_)
            | RegexNode::Look { .. }
            | RegexNode::Backreference { .. }
            | RegexNode::Conditional { .. } => {
                return None;
            }
        })
    }

    fn place(&mut self, place: Position, last: bool) -> Option<Hir> {
        let look = match place {
            Position::TextBegin => Look::Start,
            Position::TextEnd => Look::End,
            Position::LineBegin => Look::StartLF,
            Position::LineEnd => Look::EndLF,
            Position::LastLineEnd if last => {
                let line_feed = Hir::literal(*b"\n");
                let optional = Repetition { min: 0, max: Some(1), greedy: true, sub: Box::new(line_feed) };
                return Some(Hir::concat(vec![Hir::repetition(optional), Hir::look(Look::End)]));
            }
            Position::LastLineEnd => return None,
            Position::Boundary { negated, .. } => {
                self.has_boundary = true;
                if negated { Look::WordAsciiNegate } else { Look::WordAscii }
            }
        };
        Some(Hir::look(look))
    }
}

fn class(set: &Set, ascii: bool) -> Class {
    let chars = |(first, last): &(u32, u32)| {
        // Surrogates are no characters: a range is cut around them.
        let below = (*first, (*last).min(0xD7FF));
        let above = ((*first).max(0xE000), *last);
        [below, above].into_iter().filter(|(first, last)| first <= last).filter_map(|(first, last)| {
            Some(ClassUnicodeRange::new(char::from_u32(first)?, char::from_u32(last)?))
        })
    };
    let mut class = ClassUnicode::new(set.ranges().iter().flat_map(chars));
    if ascii {
        class.intersect(&ClassUnicode::new([ClassUnicodeRange::new('\0', '\x7F')]));
    }
    Class::Unicode(class)
}
