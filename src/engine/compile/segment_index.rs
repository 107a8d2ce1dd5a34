//! Builds the segment index of a program.
//!
//! A condition that a segment requires (a conjunct of its rule) is answered by the tables of its slot if a
//! table can answer it, and is then removed from the segment's residual. Tables beyond
//! `LOOKUP_WORDS_MAX` are not built: their conditions stay in the residual.
use std::cmp::{Ordering, Reverse};

use hashbrown::HashMap;

use crate::engine::program::segment_index::{
    ConditionFilter, Keyed, Ranges, SegmentIndex, SlotFilters, SlotIndex, VersionIndex,
};
use crate::engine::program::{
    Comparison, Condition, Expression, OperandText, Predicate, Program, PropertySource,
};
use crate::engine::table::{Span, TableHashBuilder, offset};

use crate::python::number::Integer;
use crate::python::semver;
use crate::python::semver::Release;

/// Words of 64 segments in the index of one trait. Beyond: its conditions are evaluated one by one.
const LOOKUP_WORDS_MAX: usize = 256 * 1024;
/// Items of an IN condition that are indexed. Beyond: it is evaluated individually.
const LOOKUP_ITEMS_MAX: usize = 100;

/// A condition, and the segments that require it.
struct RequiredCondition<'p> {
    index: u32,
    condition: &'p Condition,
    segments: Vec<u32>,
}

/// The result of a condition at each position of a table.
enum TableResult {
    Constant(bool),
    /// Of a comparison with the operand at this position.
    Order(Comparison, usize),
    /// True at these positions only; sorted.
    At(Vec<usize>),
}

/// Builds the index of `program`, and the residuals of its segments.
pub fn build(program: &mut Program) {
    if program.segments.is_empty() {
        return;
    }
    let mut by_slot: HashMap<u32, HashMap<u32, Vec<u32>, TableHashBuilder>, TableHashBuilder> =
        HashMap::default();
    for (number, segment) in program.segments.iter().enumerate() {
        for child in conjuncts(segment.rule, &program.children) {
            let Expression::Condition(index) = child else { continue };
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
    // The slot that most segments require comes first: it excludes the most.
    slots.sort_by_key(|(slot, required)| (Reverse(required.values().map(Vec::len).sum::<usize>()), *slot));
    for (slot, required) in slots {
        let mut required: Vec<RequiredCondition<'_>> = required
            .into_iter()
            .map(|(index, segments)| RequiredCondition {
                index,
                condition: &program.conditions[index as usize],
                segments,
            })
            .collect();
        required.sort_by_key(|required| required.index);
        builder.slot(slot, &required, &mut answered);
    }
    builder.index.masks.shrink_to_fit();
    program.segment_index = builder.index;
    program.segment_index.first_trait = program.segment_index.slots.first().and_then(|first| {
        let is_trait = matches!(program.slots[first.slot as usize], PropertySource::Trait);
        let name = program.slots_by_trait.iter().find(|(_, slot)| **slot == first.slot);
        name.filter(|_| is_trait).map(|(name, _)| name.clone())
    });
    set_residuals(program, &answered);
}

/// Removes the conditions that the index answers from the segments' rules.
fn set_residuals(program: &mut Program, answered: &[bool]) {
    program.segment_index.decided = vec![0; program.segments.len().div_ceil(64)];
    for number in 0..program.segments.len() {
        let rule = program.segments[number].rule;
        let left: Vec<Expression> = conjuncts(rule, &program.children)
            .into_iter()
            .filter(|child| !matches!(child, Expression::Condition(index) if answered[*index as usize]))
            .collect();
        program.segments[number].residual = match left.len() {
            0 => Expression::Constant(true),
            1 => left[0],
            _ => {
                let from = offset(program.children.len());
                program.children.extend(left);
                Expression::All(Span { from, to: offset(program.children.len()) })
            }
        };
        if program.segments[number].residual == Expression::Constant(true) {
            set(&mut program.segment_index.decided, offset(number));
        }
    }
}

/// The expressions that must all hold for a segment to match.
fn conjuncts(rule: Expression, children: &[Expression]) -> Vec<Expression> {
    match rule {
        Expression::All(range) => range.of(children).to_vec(),
        other => vec![other],
    }
}

struct IndexBuilder {
    index: SegmentIndex,
    segments: usize,
    filters: usize,
}

impl IndexBuilder {
    fn new(segments: usize) -> Self {
        let words = segments.div_ceil(64);
        Self { index: SegmentIndex { words, ..SegmentIndex::default() }, segments, filters: 0 }
    }

    /// Builds the tables of one slot. Conditions that no table answers become filters, or stay in the
    /// residual.
    fn slot(&mut self, slot: u32, required: &[RequiredCondition<'_>], answered: &mut [bool]) {
        let (tabled, others): (Vec<_>, Vec<_>) =
            required.iter().partition(|required| is_tabled(&required.condition.predicate));
        let count: usize = tabled.iter().map(|required| operand_count(&required.condition.predicate)).sum();
        if !tabled.is_empty() && (2 * count + 1) * self.index.words <= LOOKUP_WORDS_MAX {
            let slot_index = self.slot_index(slot, &tabled);
            self.index.slots.push(slot_index);
            tabled.iter().for_each(|required| answered[required.index as usize] = true);
        }
        let mut conditions = Vec::new();
        for required in others {
            // More expensive than a look at the features whose segments require it.
            let is_expensive = match &required.condition.predicate {
                Predicate::Regex(pattern) => !pattern.is_cheap(),
                Predicate::Split { .. } => true,
                _ => false,
            };
            if !is_expensive && (self.filters + 1) * self.index.words <= LOOKUP_WORDS_MAX {
                let required_by =
                    self.push(|mask| required.segments.iter().for_each(|segment| set(mask, *segment)));
                conditions.push(ConditionFilter { condition: required.index, required_by });
                answered[required.index as usize] = true;
                self.filters += 1;
            }
        }
        if !conditions.is_empty() {
            conditions.shrink_to_fit();
            self.index.filters.push(SlotFilters { slot, conditions });
        }
    }

    fn slot_index(&mut self, slot: u32, required: &[&RequiredCondition<'_>]) -> SlotIndex {
        let integers = points(required, integer_points);
        let floats = points(required, |predicate, out: &mut Vec<f64>| {
            if let Predicate::Compare(_, operand) = predicate {
                out.extend(operand.float.filter(|number| !number.is_nan()));
            }
        });
        let texts = points(required, text_points);
        let versions = points(required, |predicate, out: &mut Vec<Release>| {
            out.extend(release(predicate).map(|(_, release)| release))
        });
        let has_versions = !versions.is_empty();
        SlotIndex {
            slot,
            absent: self.constant(required, |required| required.condition.absent_result),
            unreadable: self.constant(required, |_| false),
            nan: self.constant(required, |required| match &required.condition.predicate {
                Predicate::IsSet => true,
                Predicate::Compare(comparison, operand) => operand.float.is_some() && comparison.meets(None),
                _ => false,
            }),
            bools: [false, true].map(|bool| {
                self.constant(required, |required| match &required.condition.predicate {
                    Predicate::IsSet => true,
                    Predicate::Compare(comparison, operand) => {
                        comparison.meets(Some(bool.cmp(&operand.bool)))
                    }
                    _ => false,
                })
            }),
            integers: self.ranges(required, integers, integer_result),
            floats: self.ranges(required, floats, float_result),
            texts: self.ranges(required, texts, text_result),
            versions: has_versions.then(|| VersionIndex {
                ranges: self.ranges(required, versions, |predicate, points| match release(predicate) {
                    Some((comparison, release)) => TableResult::Order(comparison, position(points, &release)),
                    None => TableResult::Constant(true),
                }),
                invalid: self.constant(required, |required| release(&required.condition.predicate).is_none()),
            }),
        }
    }

    /// The mask of the segments whose conditions all hold.
    fn constant(
        &mut self,
        required: &[&RequiredCondition<'_>],
        holds: impl Fn(&RequiredCondition<'_>) -> bool,
    ) -> u32 {
        let failed: Vec<u32> = required
            .iter()
            .filter(|required| !holds(required))
            .flat_map(|required| required.segments.iter().copied())
            .collect();
        self.push_all_but(&failed)
    }

    fn ranges<K>(
        &mut self,
        required: &[&RequiredCondition<'_>],
        points: Vec<K>,
        result: impl Fn(&Predicate, &[K]) -> TableResult,
    ) -> Ranges<K> {
        let results: Vec<TableResult> =
            required.iter().map(|required| result(&required.condition.predicate, &points)).collect();
        let first_mask = offset(self.index.masks.len() / self.index.words);
        let mut failed = Vec::new();
        for at in 0..=2 * points.len() {
            failed.clear();
            for (required, result) in required.iter().zip(&results) {
                if !result.at_position(at) {
                    failed.extend_from_slice(&required.segments);
                }
            }
            self.push_all_but(&failed);
        }
        Ranges { operands: points.into_boxed_slice(), first_mask }
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
        let (masks, words) = (&mut self.index.masks, self.index.words);
        let from = masks.len();
        masks.resize(from + words, 0);
        fill(&mut masks[from..]);
        offset(from / words)
    }
}

fn set(mask: &mut [u64], segment: u32) {
    mask[segment as usize / 64] |= 1 << (segment % 64);
}

impl TableResult {
    fn at(positions: impl Iterator<Item = usize>) -> Self {
        let mut positions: Vec<usize> = positions.collect();
        positions.sort_unstable();
        Self::At(positions)
    }

    /// For predicates whose result depends only on whether a value is set.
    fn for_any_value(predicate: &Predicate) -> Self {
        Self::Constant(matches!(predicate, Predicate::IsSet))
    }

    fn at_position(&self, at: usize) -> bool {
        match self {
            Self::Constant(result) => *result,
            Self::Order(comparison, operand) => comparison.meets(Some(at.cmp(operand))),
            Self::At(positions) => positions.binary_search(&at).is_ok(),
        }
    }
}

/// The result for an `i64`.
fn integer_result(predicate: &Predicate, points: &[i64]) -> TableResult {
    match predicate {
        Predicate::Compare(comparison, operand) => match &operand.integer {
            Some(Integer::Small(number)) => TableResult::Order(*comparison, position(points, number)),
            // Every `i64` is on the same side of it.
            Some(big) => TableResult::Constant(comparison.meets(Some(Integer::Small(0).cmp(big)))),
            None => TableResult::Constant(false),
        },
        Predicate::In(members) => {
            TableResult::at(members.integers.iter().map(|number| position(points, number)))
        }
        other => TableResult::for_any_value(other),
    }
}

/// The result for a float other than NaN.
fn float_result(predicate: &Predicate, points: &[f64]) -> TableResult {
    match predicate {
        Predicate::Compare(comparison, operand) => match operand.float {
            Some(number) if number.is_nan() => TableResult::Constant(comparison.meets(None)),
            Some(number) => TableResult::Order(*comparison, position(points, &number)),
            None => TableResult::Constant(false),
        },
        Predicate::In(_) => TableResult::Constant(false),
        other => TableResult::for_any_value(other),
    }
}

/// The result for text.
fn text_result(predicate: &Predicate, points: &[Keyed]) -> TableResult {
    match predicate {
        Predicate::Compare(comparison, operand) => match &operand.text {
            OperandText::Plain(text) => TableResult::Order(*comparison, position_of_text(points, text)),
            // Answered by the table of versions.
            OperandText::Version(_) => TableResult::Constant(true),
            OperandText::Never => TableResult::Constant(false),
        },
        Predicate::In(members) => {
            TableResult::at(members.texts.iter().map(|text| position_of_text(points, text)))
        }
        other => TableResult::for_any_value(other),
    }
}

/// Whether tables can answer a predicate for every value.
fn is_tabled(predicate: &Predicate) -> bool {
    match predicate {
        Predicate::IsSet | Predicate::IsNotSet => true,
        // A long list has its own hash set, which is smaller than a table.
        Predicate::In(members) => members.texts.len() <= LOOKUP_ITEMS_MAX,
        Predicate::Compare(_, operand) => {
            !matches!(operand.text, OperandText::Version(_)) || release(predicate).is_some()
        }
        _ => false,
    }
}

fn operand_count(predicate: &Predicate) -> usize {
    match predicate {
        Predicate::In(members) => members.texts.len(),
        _ => 1,
    }
}

fn integer_points(predicate: &Predicate, out: &mut Vec<i64>) {
    match predicate {
        Predicate::Compare(_, operand) => out.extend(match operand.integer {
            Some(Integer::Small(number)) => Some(number),
            _ => None,
        }),
        Predicate::In(members) => out.extend(&members.integers),
        _ => {}
    }
}

fn text_points(predicate: &Predicate, out: &mut Vec<Keyed>) {
    match predicate {
        Predicate::Compare(_, operand) => out.extend(match &operand.text {
            OperandText::Plain(text) => Some(Keyed::new(text.clone())),
            _ => None,
        }),
        Predicate::In(members) => out.extend(members.texts.iter().cloned().map(Keyed::new)),
        _ => {}
    }
}

/// The version that a predicate compares with, if it is a final release of numbers that fit.
fn release(predicate: &Predicate) -> Option<(Comparison, Release)> {
    let Predicate::Compare(comparison, operand) = predicate else { return None };
    let OperandText::Version(text) = &operand.text else { return None };
    let release = semver::release(text)?;
    release.is_final.then_some((*comparison, release))
}

/// The sorted, distinct operands of all conditions.
fn points<K: PartialOrd>(
    required: &[&RequiredCondition<'_>],
    collect: impl Fn(&Predicate, &mut Vec<K>),
) -> Vec<K> {
    let mut points = Vec::new();
    required.iter().for_each(|required| collect(&required.condition.predicate, &mut points));
    points.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    points.dedup();
    points
}

fn position_of_text(points: &[Keyed], text: &str) -> usize {
    let text = Keyed::new(text);
    position_by(points, |point| point.compare(&text))
}

/// The position of an operand that is in the table.
fn position<K: PartialOrd>(points: &[K], operand: &K) -> usize {
    position_by(points, |point| point.partial_cmp(operand).unwrap_or(Ordering::Equal))
}

fn position_by<K>(points: &[K], compare: impl Fn(&K) -> Ordering) -> usize {
    let found = points.binary_search_by(compare);
    2 * found.unwrap_or_else(|index| index) + 1
}
