//! Finds the segments that can match by looking values up rather than trying each segment.
//!
//! In: the conditions that a segment cannot do without. Out: for each slot, tables from a value to
//! the set of segments whose conditions on that slot it meets; an evaluation intersects those sets.
//! Sets are bits, so 64 segments cost one instruction; a table has an entry for each operand and for
//! the gap beside it, so a comparison costs a binary search whatever the number of conditions.
//! Invariant: a segment left out cannot match; one left in matches if its
//! [`crate::engine::program::Segment::rest`] does. Tables beyond `limits::LOOKUP_WORDS_MAX` are not built:
//! their conditions stay in the rest.
use std::cmp::Ordering;

use hashbrown::HashMap;

use crate::engine::program::{
    Comparison, CompiledState, Condition, Expression, OperandText, Program, PropertySource, Test, offset,
};
use crate::limits::{LOOKUP_ITEMS_MAX, LOOKUP_WORDS_MAX};
use crate::python::number::Integer;
use crate::python::semver;
use crate::python::semver::Release;

/// All tables of a program.
#[derive(Debug, Default)]
pub struct Lookups {
    /// Of one set of segments.
    pub words: usize,
    /// All sets, one after the other.
    masks: Vec<u64>,
    pub slots: Vec<Lookup>,
    /// The trait that alone fills the first of `slots`.
    pub first_trait: Option<Box<str>>,
    /// Conditions that no table answers: asked once each, while a segment that needs them is left.
    pub screened: Vec<Screened>,
    /// As bits: the segments of which nothing is left to ask.
    pub sure: Vec<u64>,
}

/// The segments that are left by each value of a slot. Numbers are places of sets in `masks`.
#[derive(Debug)]
pub struct Lookup {
    pub slot: u32,
    pub unset: u32,
    /// Where no condition can hold: text that Python cannot read.
    pub unreadable: u32,
    pub not_a_number: u32,
    /// By false and true.
    pub bools: [u32; 2],
    pub integers: Ranges<i64>,
    pub floats: Ranges<f64>,
    pub texts: Ranges<Keyed>,
    /// Text is looked up here as well, if conditions compare versions.
    pub versions: Option<Versions>,
}

/// As [`Lookup`], for texts that are versions.
#[derive(Debug)]
pub struct Versions {
    pub ranges: Ranges<Release>,
    pub invalid: u32,
}

/// Sorted operands; sets for below the first, equal to it, between it and the next, and so on.
#[derive(Debug)]
pub struct Ranges<K> {
    operands: Box<[K]>,
    masks_from: u32,
}

/// The conditions on one slot that are asked.
#[derive(Debug)]
pub struct Screened {
    pub slot: u32,
    pub screens: Vec<Screen>,
}

/// A text with its first eight bytes as a number: most comparisons end there, beside each other in
/// memory. Ordered as texts are.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keyed<T = Box<str>> {
    key: u64,
    text: T,
}

impl<T: AsRef<str>> Keyed<T> {
    pub fn new(text: T) -> Self {
        let bytes = text.as_ref().as_bytes();
        let mut key = [0; 8];
        match bytes.first_chunk() {
            Some(first) => key = *first,
            None => key[..bytes.len()].copy_from_slice(bytes),
        }
        Self { key: u64::from_be_bytes(key), text }
    }

    /// As the texts compare.
    #[inline]
    pub fn compare<U: AsRef<str>>(&self, other: &Keyed<U>) -> Ordering {
        self.key.cmp(&other.key).then_with(|| self.text.as_ref().cmp(other.text.as_ref()))
    }
}

/// A condition and the segments that cannot match without it.
#[derive(Debug)]
pub struct Screen {
    pub condition: u32,
    pub needed_by: u32,
}

impl<K> Ranges<K> {
    /// The set for a value, given how an operand compares to it.
    pub fn find(&self, compare: impl Fn(&K) -> Ordering) -> u32 {
        self.masks_from
            + match self.operands.binary_search_by(compare) {
                Ok(index) => offset(index) * 2 + 1,
                Err(index) => offset(index) * 2,
            }
    }
}

impl Lookups {
    /// The set of that number.
    pub fn mask(&self, number: u32) -> &[u64] {
        let from = number as usize * self.words;
        self.masks.get(from..from + self.words).unwrap_or_default()
    }
}

/// A condition with the segments that need it.
struct Asked<'p> {
    index: u32,
    condition: &'p Condition,
    segments: Vec<u32>,
}

/// What a condition answers for each place in a table.
enum Answers {
    Constant(bool),
    /// Compared with the operand at that place.
    Order(Comparison, usize),
    /// True at these places alone, sorted.
    At(Vec<usize>),
}

/// Builds the tables, and takes what they answer out of the segments' rest.
pub fn build(program: &mut Program) {
    if program.segments.is_empty() {
        return;
    }
    let mut by_slot: HashMap<u32, HashMap<u32, Vec<u32>, CompiledState>, CompiledState> = HashMap::default();
    for (number, segment) in program.segments.iter().enumerate() {
        for node in conjuncts(segment.rule, &program.children) {
            let Expression::Test(index) = node else { continue };
            let condition = &program.conditions[index as usize];
            if !condition.is_dynamic {
                let slot = by_slot.entry(condition.slot).or_default();
                slot.entry(index).or_default().push(offset(number));
            }
        }
    }
    let mut builder = IndexBuilder::new(program.segments.len());
    let mut answered = vec![false; program.conditions.len()];
    let mut slots: Vec<_> = by_slot.into_iter().collect();
    // The slot that most segments ask first: it leaves the fewest.
    slots
        .sort_by_key(|(slot, asked)| (std::cmp::Reverse(asked.values().map(Vec::len).sum::<usize>()), *slot));
    for (slot, asked) in slots {
        let mut asked: Vec<Asked<'_>> = asked
            .into_iter()
            .map(|(index, segments)| Asked {
                index,
                condition: &program.conditions[index as usize],
                segments,
            })
            .collect();
        asked.sort_by_key(|asked| asked.index);
        builder.slot(slot, &asked, &mut answered);
    }
    builder.lookups.masks.shrink_to_fit();
    program.lookups = builder.lookups;
    program.lookups.first_trait = program.lookups.slots.first().and_then(|first| {
        let is_trait = matches!(program.slots[first.slot as usize], PropertySource::Trait);
        let name = program.slots_by_trait.iter().find(|(_, slot)| **slot == first.slot);
        name.filter(|_| is_trait).map(|(name, _)| name.clone())
    });
    for number in 0..program.segments.len() {
        let rule = program.segments[number].rule;
        let left: Vec<Expression> = conjuncts(rule, &program.children)
            .into_iter()
            .filter(|node| !matches!(node, Expression::Test(index) if answered[*index as usize]))
            .collect();
        program.segments[number].rest = match left.len() {
            0 => Expression::Constant(true),
            1 => left[0],
            _ => {
                let from = offset(program.children.len());
                program.children.extend(left);
                Expression::All(crate::engine::program::Span { from, to: offset(program.children.len()) })
            }
        };
    }
    program.lookups.sure = vec![0; program.segments.len().div_ceil(64)];
    for (number, segment) in program.segments.iter().enumerate() {
        if segment.rest == Expression::Constant(true) {
            set(&mut program.lookups.sure, offset(number));
        }
    }
}

/// What must all hold for a segment to match.
fn conjuncts(rule: Expression, children: &[Expression]) -> Vec<Expression> {
    match rule {
        Expression::All(range) => range.of(children).to_vec(),
        node => vec![node],
    }
}

struct IndexBuilder {
    lookups: Lookups,
    segments: usize,
    screens: usize,
}

impl IndexBuilder {
    fn new(segments: usize) -> Self {
        let words = segments.div_ceil(64);
        Self { lookups: Lookups { words, ..Lookups::default() }, segments, screens: 0 }
    }

    /// Tables for one slot; what they cannot answer becomes screens, or stays in the rest.
    fn slot(&mut self, slot: u32, asked: &[Asked<'_>], answered: &mut [bool]) {
        let (tabled, screened): (Vec<_>, Vec<_>) =
            asked.iter().partition(|asked| is_tabled(&asked.condition.test));
        let count: usize = tabled.iter().map(|asked| points_of(&asked.condition.test)).sum();
        if !tabled.is_empty() && (2 * count + 1) * self.lookups.words <= LOOKUP_WORDS_MAX {
            let lookup = self.lookup(slot, &tabled);
            self.lookups.slots.push(lookup);
            tabled.iter().for_each(|asked| answered[asked.index as usize] = true);
        }
        let mut screens = Vec::new();
        for asked in screened {
            // A pattern that back-tracks or a split costs more than a look at the features that need it.
            let is_dear = match &asked.condition.test {
                Test::Regex(pattern) => !pattern.is_cheap(),
                Test::Split { .. } => true,
                _ => false,
            };
            if !is_dear && (self.screens + 1) * self.lookups.words <= LOOKUP_WORDS_MAX {
                let needed_by =
                    self.push(|mask| asked.segments.iter().for_each(|segment| set(mask, *segment)));
                screens.push(Screen { condition: asked.index, needed_by });
                answered[asked.index as usize] = true;
                self.screens += 1;
            }
        }
        if !screens.is_empty() {
            screens.shrink_to_fit();
            self.lookups.screened.push(Screened { slot, screens });
        }
    }

    fn lookup(&mut self, slot: u32, asked: &[&Asked<'_>]) -> Lookup {
        let integers = points(asked, integer_points);
        let floats = points(asked, |test, out: &mut Vec<f64>| {
            if let Test::Compare(_, operand) = test {
                out.extend(operand.float.filter(|number| !number.is_nan()));
            }
        });
        let texts = points(asked, text_points);
        let versions =
            points(asked, |test, out: &mut Vec<Release>| out.extend(release(test).map(|(_, held)| held)));
        let has_versions = !versions.is_empty();
        Lookup {
            slot,
            unset: self.constant(asked, |asked| asked.condition.by_default),
            unreadable: self.constant(asked, |_| false),
            not_a_number: self.constant(asked, |asked| match &asked.condition.test {
                Test::IsSet => true,
                Test::Compare(comparison, operand) => operand.float.is_some() && comparison.meets(None),
                _ => false,
            }),
            bools: [false, true].map(|bool| {
                self.constant(asked, |asked| match &asked.condition.test {
                    Test::IsSet => true,
                    Test::Compare(comparison, operand) => comparison.meets(Some(bool.cmp(&operand.bool))),
                    _ => false,
                })
            }),
            integers: self.ranges(asked, integers, |test, points| match test {
                Test::Compare(comparison, operand) => match &operand.integer {
                    Some(Integer::Small(number)) => Answers::Order(*comparison, place(points, number)),
                    // Every integer of 64 bits lies on the same side of it.
                    Some(big) => Answers::Constant(comparison.meets(Some(Integer::Small(0).cmp(big)))),
                    None => Answers::Constant(false),
                },
                Test::In(members) => Answers::at(members.integers.iter().map(|number| place(points, number))),
                test => Answers::of_any(test),
            }),
            floats: self.ranges(asked, floats, |test, points| match test {
                Test::Compare(comparison, operand) => match operand.float {
                    Some(number) if number.is_nan() => Answers::Constant(comparison.meets(None)),
                    Some(number) => Answers::Order(*comparison, place(points, &number)),
                    None => Answers::Constant(false),
                },
                Test::In(_) => Answers::Constant(false),
                test => Answers::of_any(test),
            }),
            texts: self.ranges(asked, texts, |test, points| match test {
                Test::Compare(comparison, operand) => match &operand.text {
                    OperandText::Plain(text) => Answers::Order(*comparison, place_of_text(points, text)),
                    // Left to the table of versions.
                    OperandText::Version(_) => Answers::Constant(true),
                    OperandText::Never => Answers::Constant(false),
                },
                Test::In(members) => {
                    Answers::at(members.texts.iter().map(|text| place_of_text(points, text)))
                }
                test => Answers::of_any(test),
            }),
            versions: has_versions.then(|| Versions {
                ranges: self.ranges(asked, versions, |test, points| match release(test) {
                    Some((comparison, held)) => Answers::Order(comparison, place(points, &held)),
                    None => Answers::Constant(true),
                }),
                invalid: self.constant(asked, |asked| release(&asked.condition.test).is_none()),
            }),
        }
    }

    /// A set of the segments whose conditions all hold.
    fn constant(&mut self, asked: &[&Asked<'_>], holds: impl Fn(&Asked<'_>) -> bool) -> u32 {
        let failed: Vec<u32> = asked
            .iter()
            .filter(|asked| !holds(asked))
            .flat_map(|asked| asked.segments.iter().copied())
            .collect();
        self.push_all_but(&failed)
    }

    fn ranges<K>(
        &mut self,
        asked: &[&Asked<'_>],
        points: Vec<K>,
        answers: impl Fn(&Test, &[K]) -> Answers,
    ) -> Ranges<K> {
        let answers: Vec<Answers> =
            asked.iter().map(|asked| answers(&asked.condition.test, &points)).collect();
        let masks_from = offset(self.lookups.masks.len() / self.lookups.words);
        let mut failed = Vec::new();
        for at in 0..=2 * points.len() {
            failed.clear();
            for (asked, answers) in asked.iter().zip(&answers) {
                if !answers.at_place(at) {
                    failed.extend_from_slice(&asked.segments);
                }
            }
            self.push_all_but(&failed);
        }
        Ranges { operands: points.into_boxed_slice(), masks_from }
    }

    fn push_all_but(&mut self, segments: &[u32]) -> u32 {
        let count = self.segments;
        self.push(|mask| {
            mask.fill(u64::MAX);
            if let Some(last) = mask.last_mut().filter(|_| !count.is_multiple_of(64)) {
                *last = (1 << (count % 64)) - 1;
            }
            segments.iter().for_each(|segment| mask[*segment as usize / 64] &= !(1 << (segment % 64)));
        })
    }

    fn push(&mut self, fill: impl FnOnce(&mut [u64])) -> u32 {
        let (masks, words) = (&mut self.lookups.masks, self.lookups.words);
        let from = masks.len();
        masks.resize(from + words, 0);
        fill(&mut masks[from..]);
        offset(from / words)
    }
}

fn set(mask: &mut [u64], segment: u32) {
    mask[segment as usize / 64] |= 1 << (segment % 64);
}

impl Answers {
    fn at(places: impl Iterator<Item = usize>) -> Self {
        let mut places: Vec<usize> = places.collect();
        places.sort_unstable();
        Self::At(places)
    }

    /// Tests that ask no more than whether there is a value.
    fn of_any(test: &Test) -> Self {
        Self::Constant(matches!(test, Test::IsSet))
    }

    fn at_place(&self, at: usize) -> bool {
        match self {
            Self::Constant(answer) => *answer,
            Self::Order(comparison, operand) => comparison.meets(Some(at.cmp(operand))),
            Self::At(places) => places.binary_search(&at).is_ok(),
        }
    }
}

/// Whether tables answer it whatever the value.
fn is_tabled(test: &Test) -> bool {
    match test {
        Test::IsSet | Test::IsNotSet => true,
        // A long list has a hash set of its own, which is smaller than a table.
        Test::In(members) => members.texts.len() <= LOOKUP_ITEMS_MAX,
        Test::Compare(_, operand) => {
            !matches!(operand.text, OperandText::Version(_)) || release(test).is_some()
        }
        _ => false,
    }
}

fn points_of(test: &Test) -> usize {
    match test {
        Test::In(members) => members.texts.len(),
        _ => 1,
    }
}

fn integer_points(test: &Test, out: &mut Vec<i64>) {
    match test {
        Test::Compare(_, operand) => out.extend(match operand.integer {
            Some(Integer::Small(number)) => Some(number),
            _ => None,
        }),
        Test::In(members) => out.extend(&members.integers),
        _ => {}
    }
}

fn text_points(test: &Test, out: &mut Vec<Keyed>) {
    match test {
        Test::Compare(_, operand) => out.extend(match &operand.text {
            OperandText::Plain(text) => Some(Keyed::new(text.clone())),
            _ => None,
        }),
        Test::In(members) => out.extend(members.texts.iter().cloned().map(Keyed::new)),
        _ => {}
    }
}

/// The version that a test compares with, if it is a release of ordinary numbers.
fn release(test: &Test) -> Option<(Comparison, Release)> {
    let Test::Compare(comparison, operand) = test else { return None };
    let OperandText::Version(text) = &operand.text else { return None };
    let held = semver::release(text)?;
    held.is_final.then_some((*comparison, held))
}

/// The sorted, distinct operands of all tests.
fn points<K: PartialOrd>(asked: &[&Asked<'_>], collect: impl Fn(&Test, &mut Vec<K>)) -> Vec<K> {
    let mut points = Vec::new();
    asked.iter().for_each(|asked| collect(&asked.condition.test, &mut points));
    points.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    points.dedup();
    points
}

fn place_of_text(points: &[Keyed], text: &str) -> usize {
    let text = Keyed::new(text);
    place_by(points, |held| held.compare(&text))
}

/// The place of an operand that is in the table.
fn place<K: PartialOrd>(points: &[K], operand: &K) -> usize {
    place_by(points, |held| held.partial_cmp(operand).unwrap_or(Ordering::Equal))
}

fn place_by<K>(points: &[K], compare: impl Fn(&K) -> Ordering) -> usize {
    let found = points.binary_search_by(compare);
    2 * found.unwrap_or_else(|index| index) + 1
}
