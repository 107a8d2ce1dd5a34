//! The segment index: tables from a slot's value to the set of segments that can still match.
//!
//! A segment outside the intersection of these sets cannot match; one inside matches if its
//! `Segment::residual` holds. Sets are bit masks, so one instruction handles 64 segments. A table has a mask
//! for each operand and for each gap between operands, so a lookup is one binary search however many
//! conditions there are.
use std::cmp::Ordering;

use crate::engine::table::offset;
use crate::python::semver::Release;

/// All tables of a program.
#[derive(Debug, Default)]
pub struct SegmentIndex {
    /// Words of one mask.
    pub words: usize,
    /// All masks, concatenated.
    pub masks: Vec<u64>,
    pub slots: Vec<SlotIndex>,
    /// The trait that fills the first of `slots`, if nothing else can fill it.
    pub first_trait: Option<Box<str>>,
    /// Conditions that no table answers. Each is evaluated once while a segment that requires it is possible.
    pub filters: Vec<SlotFilters>,
    /// As bits: the segments without a residual.
    pub decided: Vec<u64>,
}

/// The segments that each value of a slot leaves possible. Numbers are those of masks.
#[derive(Debug)]
pub struct SlotIndex {
    pub slot: u32,
    pub absent: u32,
    /// For text that Python cannot read as the number it looks like: no condition holds.
    pub unreadable: u32,
    pub nan: u32,
    /// By false and true.
    pub bools: [u32; 2],
    pub integers: Ranges<i64>,
    pub floats: Ranges<f64>,
    pub texts: Ranges<Keyed>,
    /// Looked up as well for text, if conditions compare versions.
    pub versions: Option<VersionIndex>,
}

/// As [`SlotIndex`], for text that is a version.
#[derive(Debug)]
pub struct VersionIndex {
    pub ranges: Ranges<Release>,
    pub invalid: u32,
}

/// Sorted operands with masks for: below the first, equal to it, between it and the second, and so on.
#[derive(Debug)]
pub struct Ranges<K> {
    pub operands: Box<[K]>,
    pub first_mask: u32,
}

/// The conditions on one slot that are evaluated.
#[derive(Debug)]
pub struct SlotFilters {
    pub slot: u32,
    pub conditions: Vec<ConditionFilter>,
}

/// A condition, and the mask of the segments that cannot match unless it holds.
#[derive(Debug)]
pub struct ConditionFilter {
    pub condition: u32,
    pub required_by: u32,
}

/// Text with its first eight bytes as a number. Ordered as the text is; most comparisons need only the
/// number, which is not behind a pointer.
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

    /// The order of the texts.
    #[inline]
    pub fn compare<U: AsRef<str>>(&self, other: &Keyed<U>) -> Ordering {
        self.key.cmp(&other.key).then_with(|| self.text.as_ref().cmp(other.text.as_ref()))
    }
}

impl<K> Ranges<K> {
    /// The mask for a value, given how an operand compares to it.
    pub fn find(&self, compare: impl Fn(&K) -> Ordering) -> u32 {
        self.first_mask
            + match self.operands.binary_search_by(compare) {
                Ok(index) => offset(index) * 2 + 1,
                Err(index) => offset(index) * 2,
            }
    }
}

impl SegmentIndex {
    /// The mask with this number.
    pub fn mask(&self, number: u32) -> &[u64] {
        let from = number as usize * self.words;
        self.masks.get(from..from + self.words).unwrap_or_default()
    }
}
