//! The least and greatest number of characters that part of a pattern matches. A lookbehind requires them to
//! be equal. Bounds saturate as in Python.
use crate::python::regex::syntax::{REPEAT_MAX, SetItem};

/// Python's `MAXWIDTH` is 2^64; one less behaves alike, as no text is that long.
const WIDTH_MAX: u64 = u64::MAX;

pub fn of(items: &[SetItem], groups: &[Option<(u64, u64)>]) -> (u64, u64) {
    items
        .iter()
        .map(|item| of_item(item, groups))
        .fold((0, 0), |(low, high), (l, h)| (low.saturating_add(l), high.saturating_add(h)))
}

fn of_item(item: &SetItem, groups: &[Option<(u64, u64)>]) -> (u64, u64) {
    match item {
        SetItem::Literal(_) | SetItem::NotLiteral(_) | SetItem::Any | SetItem::Set { .. } => (1, 1),
        SetItem::At(_) | SetItem::Look { .. } | SetItem::Failure => (0, 0),
        SetItem::Branch(branches) => branches
            .iter()
            .map(|branch| of(branch, groups))
            .fold((WIDTH_MAX, 0), |(low, high), (l, h)| (low.min(l), high.max(h))),
        SetItem::Group { index, body, .. } => {
            // Measured when it was closed: measuring it again for each group around it would be quadratic.
            let known = index.and_then(|group| groups.get(group as usize).copied().flatten());
            known.unwrap_or_else(|| of(body, groups))
        }
        SetItem::Atomic(body) => of(body, groups),
        SetItem::Repeat { min, max, body, .. } => {
            let (low, high) = of(body, groups);
            let most =
                if *max == REPEAT_MAX && high > 0 { WIDTH_MAX } else { high.saturating_mul(u64::from(*max)) };
            (low.saturating_mul(u64::from(*min)), most)
        }
        SetItem::Backreference(group) => groups.get(*group as usize).copied().flatten().unwrap_or((0, 0)),
        SetItem::Conditional { yes, no, .. } => {
            let (low, high) = of(yes, groups);
            let (other_low, other_high) = no.as_ref().map_or((0, 0), |no| of(no, groups));
            (low.min(other_low), high.max(other_high))
        }
    }
}
