//! Character sets, with the case folding of Python's `re` applied when they are built.
//!
//! Ranges are sorted and do not touch.
use crate::python::regex::flags::RegexFlags;
use crate::python::unicode;
use crate::python::unicode::tables;

const CODE_MAX: u32 = 0x10_FFFF;

/// `\d`, `\s`, `\w` and their complements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Category {
    pub kind: CategoryKind,
    pub negated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CategoryKind {
    Digit,
    Space,
    Word,
}

/// A member of `[...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetMember {
    Literal(u32),
    Range(u32, u32),
    Category(Category),
}

/// A set of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Set {
    ranges: Vec<(u32, u32)>,
    /// Bit set of the first 128 characters.
    ascii: u128,
}

impl Set {
    /// Builds a set from inclusive ranges in any order.
    pub fn from_ranges(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        let ascii = merged
            .iter()
            .flat_map(|(first, last)| *first..=(*last).min(127))
            .fold(0, |bits, code| bits | 1_u128 << code);
        Self { ranges: merged, ascii }
    }

    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    pub fn contains(&self, char: char) -> bool {
        let code = u32::from(char);
        if code < 128 { self.ascii >> code & 1 == 1 } else { self.contains_code(code) }
    }

    fn contains_code(&self, code: u32) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= code);
        after.checked_sub(1).and_then(|at| self.ranges.get(at)).is_some_and(|(_, last)| code <= *last)
    }

    fn complement(&self) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 1);
        let mut next = 0;
        for (first, last) in &self.ranges {
            if *first > next {
                ranges.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= CODE_MAX {
            ranges.push((next, CODE_MAX));
        }
        Self::from_ranges(ranges)
    }

    fn negate_if(self, negated: bool) -> Self {
        if negated { self.complement() } else { self }
    }

    /// `.`
    pub fn any(flags: RegexFlags) -> Self {
        let line_feed = Self::from_ranges(vec![(10, 10)]);
        if flags.has(RegexFlags::DOT_ALL) { Self::default().complement() } else { line_feed.complement() }
    }

    /// A single literal, or its complement.
    pub fn literal(code: u32, negated: bool, flags: RegexFlags) -> Self {
        let case = Case::of(flags);
        if !case.is_cased(code) {
            return Self::from_ranges(vec![(code, code)]).negate_if(negated);
        }
        let low = case.lower(code);
        let mut codes = vec![(low, low)];
        codes.extend(case.extra(low).map(|other| (other, other)));
        case.before_lowering(&Self::from_ranges(codes)).negate_if(negated)
    }

    /// `[...]`, `\d`, `\s` and `\w`.
    pub fn of_members(members: &[SetMember], negated: bool, flags: RegexFlags) -> Self {
        let case = Case::of(flags);
        let mut ranges = Vec::new();
        let mut cased = false;
        for member in members {
            match *member {
                SetMember::Literal(code) => {
                    let low = case.lower(code);
                    // Python does not lower literals beyond the BMP, so an upper-case one never matches.
                    let kept = if low > 0xFFFF { code } else { low };
                    ranges.push((kept, kept));
                    ranges.extend(case.extra(low).map(|other| (other, other)));
                    cased |= case.is_cased(code) || (case.folds() && code > 0xFFFF);
                }
                SetMember::Range(first, last) => {
                    case.fold_range(first, last, &mut ranges);
                    cased |= case.folds() && (last > 0xFFFF || case.has_cased(first, last));
                }
                SetMember::Category(category) => {
                    ranges.extend_from_slice(Self::of_category(category, flags).ranges());
                }
            }
        }
        let set = Self::from_ranges(ranges);
        let set = if cased { case.before_lowering(&set) } else { set };
        set.negate_if(negated)
    }

    fn of_category(category: Category, flags: RegexFlags) -> Self {
        let ascii = flags.has(RegexFlags::ASCII);
        let pairs =
            |flat: &[u32]| flat.as_chunks::<2>().0.iter().map(|[first, last]| (*first, *last)).collect();
        let ranges: Vec<(u32, u32)> = match (category.kind, ascii) {
            (CategoryKind::Digit, true) => vec![(0x30, 0x39)],
            (CategoryKind::Digit, false) => tables::DIGIT_ZERO.iter().map(|zero| (*zero, zero + 9)).collect(),
            (CategoryKind::Space, true) => vec![(9, 13), (32, 32)],
            (CategoryKind::Space, false) => pairs(tables::SPACE),
            (CategoryKind::Word, true) => vec![(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
            (CategoryKind::Word, false) => pairs(tables::WORD),
        };
        Self::from_ranges(ranges).negate_if(category.negated)
    }
}

/// How flags make case count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Kept,
    Ascii,
    Unicode,
}

impl Case {
    fn of(flags: RegexFlags) -> Self {
        match (flags.has(RegexFlags::IGNORE_CASE), flags.has(RegexFlags::ASCII)) {
            (false, _) => Self::Kept,
            (true, true) => Self::Ascii,
            (true, false) => Self::Unicode,
        }
    }

    fn folds(self) -> bool {
        self != Self::Kept
    }

    fn lower(self, code: u32) -> u32 {
        match self {
            Self::Kept => code,
            Self::Ascii if (0x41..=0x5A).contains(&code) => code + 32,
            Self::Ascii => code,
            Self::Unicode => unicode::lower(code),
        }
    }

    fn is_cased(self, code: u32) -> bool {
        match self {
            Self::Kept => false,
            Self::Ascii => matches!(code, 0x41..=0x5A | 0x61..=0x7A),
            Self::Unicode => unicode::is_cased(code),
        }
    }

    /// Other lower-case characters that Python treats as equal to `low`.
    fn extra(self, low: u32) -> impl Iterator<Item = u32> {
        let (pairs, _) = tables::CASE_FIX.as_chunks::<2>();
        pairs.iter().filter(move |[from, _]| self == Self::Unicode && *from == low).map(|[_, to]| *to)
    }

    /// Whether a character from `first` to `last` has a case.
    fn has_cased(self, first: u32, last: u32) -> bool {
        let overlaps = |(low, high): &(u32, u32)| first <= *high && *low <= last;
        match self {
            Self::Kept => false,
            Self::Ascii => [(0x41, 0x5A), (0x61, 0x7A)].iter().any(overlaps),
            Self::Unicode => unicode::has_cased(first, last),
        }
    }

    /// Adds the lower-case forms of a range, and the characters that Python treats as equal.
    fn fold_range(self, first: u32, last: u32, ranges: &mut Vec<(u32, u32)>) {
        if !self.folds() {
            ranges.push((first, last));
            return;
        }
        // Python compares a range beyond the BMP with the lowered character and with its upper case.
        if last > 0xFFFF {
            let first = first.max(0x1_0000);
            ranges.push((first, last));
            self.push_lowered(first, last, ranges);
        }
        if first > 0xFFFF {
            return;
        }
        let start = ranges.len();
        let last = last.min(0xFFFF);
        self.push_unchanged(first, last, ranges);
        self.push_lowered(first, last, ranges);
        if self == Self::Unicode {
            let lowered = Set::from_ranges(ranges.split_off(start));
            let (pairs, _) = tables::CASE_FIX.as_chunks::<2>();
            let equal = pairs.iter().filter(|[from, _]| lowered.contains_code(*from));
            ranges.extend(equal.map(|[_, to]| (*to, *to)));
            ranges.extend_from_slice(lowered.ranges());
        }
    }

    /// The characters whose lower case is in `set`.
    fn before_lowering(self, set: &Set) -> Set {
        let mut matching = Vec::new();
        for (first, last) in set.ranges() {
            self.push_unchanged(*first, *last, &mut matching);
        }
        for run in self.runs() {
            let (low_first, low_last) = (run.to, run.to + (run.last - run.first));
            let after = set.ranges().partition_point(|(_, end)| *end < low_first);
            let overlapping = set.ranges().iter().skip(after).take_while(|(start, _)| *start <= low_last);
            for (start, end) in overlapping {
                let lowered = run.codes(start.saturating_sub(run.to), end.min(&low_last) - run.to);
                matching.extend(lowered.map(|code| (code, code)));
            }
        }
        Set::from_ranges(matching)
    }

    /// The runs of characters that have another lower case, ascending.
    fn runs(self) -> impl Iterator<Item = LowerRun> {
        let all = tables::LOWER.as_chunks::<4>().0.iter();
        // ASCII letters are the first run of the table.
        let count = match self {
            Self::Kept => 0,
            Self::Ascii => 1,
            Self::Unicode => usize::MAX,
        };
        all.take(count).map(|[first, last, step, to]| LowerRun {
            first: *first,
            last: *last,
            step: *step,
            to: *to,
        })
    }

    /// The runs that overlap a range.
    fn runs_within(self, first: u32, last: u32) -> impl Iterator<Item = LowerRun> {
        self.runs().skip_while(move |run| run.last < first).take_while(move |run| run.first <= last)
    }

    /// The parts of a range that are their own lower case.
    fn push_unchanged(self, first: u32, last: u32, ranges: &mut Vec<(u32, u32)>) {
        let mut next = first;
        for run in self.runs_within(first, last) {
            for code in run.codes(first.saturating_sub(run.first), last.min(run.last) - run.first) {
                if code > next {
                    ranges.push((next, code - 1));
                }
                next = code + 1;
            }
        }
        if next <= last {
            ranges.push((next, last));
        }
    }

    /// The lower-case forms of the other characters of a range.
    fn push_lowered(self, first: u32, last: u32, ranges: &mut Vec<(u32, u32)>) {
        for run in self.runs_within(first, last) {
            let codes = run.codes(first.saturating_sub(run.first), last.min(run.last) - run.first);
            ranges.extend(codes.map(|code| run.to + (code - run.first)).map(|low| (low, low)));
        }
    }
}

/// Every `step`th character from `first` to `last`; their lower-case forms start at `to`.
#[derive(Clone, Copy)]
struct LowerRun {
    first: u32,
    last: u32,
    step: u32,
    to: u32,
}

impl LowerRun {
    /// The characters at these offsets from `first`, both inclusive.
    fn codes(self, from: u32, to: u32) -> impl Iterator<Item = u32> {
        let from = from.next_multiple_of(self.step);
        (from..=to).step_by(self.step as usize).map(move |offset| self.first + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `fold_range` by its definition: character by character.
    fn folded(case: Case, first: u32, last: u32) -> Set {
        let mut ranges = Vec::new();
        if last > 0xFFFF {
            ranges.push((first.max(0x1_0000), last));
            let lowered = (first.max(0x1_0000)..=last.min(0x1_F000)).map(|code| case.lower(code));
            ranges.extend(lowered.map(|low| (low, low)));
        }
        for code in first..=last.min(0xFFFF) {
            let low = case.lower(code);
            ranges.push((low, low));
            ranges.extend(case.extra(low).map(|other| (other, other)));
        }
        Set::from_ranges(ranges)
    }

    #[test]
    fn runs_of_case_agree_with_single_characters() {
        let mut random = 71_u32;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % below
        };
        for case in [Case::Ascii, Case::Unicode] {
            for round in 0..60 {
                let spread = [20, 200, 3_000, 0x1_0000][round % 4];
                let first = next([0x80, 0x600, 0x3_000, 0x1_E950][round % 4]);
                let last = first + next(spread);
                let mut ranges = Vec::new();
                case.fold_range(first, last, &mut ranges);
                let found = Set::from_ranges(ranges);
                assert_eq!(found, folded(case, first, last), "{first:#x} to {last:#x}");
                let cased = (first..=last).any(|code| case.is_cased(code));
                assert_eq!(case.has_cased(first, last), cased, "{first:#x} to {last:#x}");
                let before = case.before_lowering(&found);
                for code in (0..0x1_F000).step_by(if round < 8 { 1 } else { 97 }) {
                    assert_eq!(
                        before.contains_code(code),
                        found.contains_code(case.lower(code)),
                        "{code:#x}"
                    );
                }
            }
        }
    }
}
