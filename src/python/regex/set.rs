//! Sets of characters, and how Python's `re` folds their case.
//!
//! In: the members of `[...]`, a literal or a category, and the flags in force. Out: the final
//! [`Set`], so that a matcher only looks a character up.
//! Invariant: ranges are sorted and do not touch; lone surrogates are left out, as no text has one.
use crate::python::regex::flags::RegexFlags;
use crate::python::unicode;
use crate::python::unicode::tables;

const CODE_MAX: u32 = 0x10_FFFF;

/// `\d`, `\s`, `\w` and their complements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Category {
    pub kind: CategoryKind,
    pub negated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CategoryKind {
    Digit,
    Space,
    Word,
}

/// A member of `[...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMember {
    Literal(u32),
    Range(u32, u32),
    Category(Category),
}

/// A set of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    ranges: Vec<(u32, u32)>,
    /// The first 128 characters, for a quick answer.
    ascii: u128,
}

impl Set {
    /// The set of these inclusive ranges, in any order.
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

    /// `[...]`, `\d` and the like.
    pub fn of_members(members: &[SetMember], negated: bool, flags: RegexFlags) -> Self {
        let case = Case::of(flags);
        let mut ranges = Vec::new();
        let mut cased = false;
        for member in members {
            match *member {
                SetMember::Literal(code) => {
                    let low = case.lower(code);
                    // Python keeps a literal beyond the BMP as it is: an upper-case one in a set
                    // never equals a lowered character.
                    let kept = if low > 0xFFFF { code } else { low };
                    ranges.push((kept, kept));
                    ranges.extend(case.extra(low).map(|other| (other, other)));
                    cased |= case.is_cased(code) || (case.folds() && code > 0xFFFF);
                }
                SetMember::Range(first, last) => {
                    case.fold_range(first, last, &mut ranges);
                    cased |=
                        case.folds() && (last > 0xFFFF || (first..=last).any(|code| case.is_cased(code)));
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

/// How case is treated under some flags.
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

    /// Other lower-case characters that Python takes to equal `low`.
    fn extra(self, low: u32) -> impl Iterator<Item = u32> {
        let (pairs, _) = tables::CASE_FIX.as_chunks::<2>();
        pairs.iter().filter(move |[from, _]| self == Self::Unicode && *from == low).map(|[_, to]| *to)
    }

    /// Adds what a range stands for once its characters are lowered.
    fn fold_range(self, first: u32, last: u32, ranges: &mut Vec<(u32, u32)>) {
        if !self.folds() {
            ranges.push((first, last));
            return;
        }
        // Beyond the BMP a lowered character or its upper case may lie in the range.
        if last > 0xFFFF {
            ranges.push((first.max(0x1_0000), last));
            ranges.extend((first.max(0x1_0000)..=last.min(0x1_F000)).map(|code| {
                let low = unicode::lower(code);
                (low, low)
            }));
        }
        for code in first..=last.min(0xFFFF) {
            let low = self.lower(code);
            ranges.push((low, low));
            ranges.extend(self.extra(low).map(|other| (other, other)));
        }
    }

    /// The characters whose lower case is in `set`.
    fn before_lowering(self, set: &Set) -> Set {
        let mut upper = Vec::new();
        let mut matching = Vec::new();
        let mut sort = |code: u32| {
            let low = self.lower(code);
            if low != code {
                upper.push((code, code));
                if set.contains_code(low) {
                    matching.push((code, code));
                }
            }
        };
        if self == Self::Ascii {
            (0x41..=0x5A).for_each(&mut sort);
        } else {
            let (runs, _) = tables::LOWER.as_chunks::<4>();
            runs.iter().flat_map(|[first, last, ..]| *first..=*last).for_each(&mut sort);
        }
        let unchanged = Set::from_ranges(upper).complement();
        matching.extend(intersection(set.ranges(), unchanged.ranges()));
        Set::from_ranges(matching)
    }
}

fn intersection(left: &[(u32, u32)], right: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut both = Vec::new();
    let (mut at_left, mut at_right) = (0, 0);
    while let (Some(a), Some(b)) = (left.get(at_left), right.get(at_right)) {
        let (first, last) = (a.0.max(b.0), a.1.min(b.1));
        if first <= last {
            both.push((first, last));
        }
        if a.1 < b.1 { at_left += 1 } else { at_right += 1 }
    }
    both
}
