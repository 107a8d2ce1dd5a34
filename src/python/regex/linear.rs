//! Patterns as finite automata, whose matches cost time linear in the text.
//!
//! Not supported, and left to `backtrack`: backreferences, lookaround, atomic groups, possessive repeats, and
//! `$` before the end of the pattern. Only whether there is a match is computed, so lazy and greedy repeats
//! are equivalent.
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::meta::{BuildError, Config, Regex};
use regex_automata::nfa::thompson::{NFA, WhichCaptures};
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, Look, Repetition};

use crate::limits::PATTERN_AUTOMATON_BYTES_MAX;
use crate::python::regex::set::Set;
use crate::python::regex::syntax::{Greed, Position, REPEAT_MAX, RegexNode};

/// State table of a pattern for ASCII text, bytes. Beyond: states are built on demand, which is slower.
const PATTERN_TABLE_BYTES_MAX: usize = 8 * 1024;

/// A compiled automaton.
#[derive(Clone, Debug)]
pub struct Linear {
    /// A lazy automaton: it builds states while it matches.
    regex: Regex,
    /// A complete table for ASCII text, if it is small: one lookup for each byte.
    ascii: Option<Box<Table>>,
    /// It contains a word boundary, which is supported only in ASCII text.
    ascii_only: bool,
}

type Table = dense::DFA<Vec<u32>>;

impl Linear {
    /// `bytes`: memory that automata may still use. `None` if the pattern needs backtracking.
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

    /// Whether the result for `text` is exact: word boundaries are supported only in ASCII text, and in
    /// Python neither `\b` nor `\B` matches in an empty one.
    pub fn supports(&self, text: &str) -> bool {
        !self.ascii_only || (!text.is_empty() && text.is_ascii())
    }

    /// Whether every text is supported.
    pub fn supports_all(&self) -> bool {
        !self.ascii_only
    }

    /// Whether a match of ASCII text costs one table lookup for each byte.
    pub fn is_cheap(&self) -> bool {
        self.ascii.is_some()
    }

    pub fn is_match(&self, text: &str) -> bool {
        let input = Input::new(text).anchored(Anchored::Yes).earliest(true);
        match &self.ascii {
            // A search fails only for Unicode word boundaries and unanchored input, neither of which is used.
            Some(table) if text.is_ascii() => table.try_search_fwd(&input).is_ok_and(|found| found.is_some()),
            _ => self.regex.is_match(input),
        }
    }
}

/// The complete table of a pattern, if it is small.
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
    /// Translate only the ASCII characters of each set.
    ascii: bool,
}

impl Translation {
    /// `last`: the pattern ends here, so `$` may consume the line feed that it allows after it.
    fn hir(&mut self, node: &RegexNode, last: bool) -> Option<Hir> {
        Some(match node {
            RegexNode::Set(set) => Hir::class(class(set, self.ascii)),
            RegexNode::Position(position) => self.position(*position, last)?,
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
            // A pattern with references to groups returns `None` below.
            RegexNode::Group { body, .. } => self.hir(body, last)?,
            RegexNode::Atomic(_)
            | RegexNode::Look { .. }
            | RegexNode::Backreference { .. }
            | RegexNode::Conditional { .. } => {
                return None;
            }
        })
    }

    fn position(&mut self, position: Position, last: bool) -> Option<Hir> {
        let look = match position {
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
        // A range of `char`s excludes the surrogates.
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
