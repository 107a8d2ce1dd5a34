//! What reactors count for upstream: requests by resource, and the evaluations that SDKs report.
//!
//! In: one call per request, or per feature of an analytics body. Out: rows that are merged on their
//! way: reactor, supervisor, batch. Invariants: no count is lost by merging; rows are bounded, and what
//! would go beyond is merged into coarser rows first (identity left out, then labels left out) and
//! counted as lost only when there is no coarser row. No lock, no clock, no channel.
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::limits;

/// What a request was for (compatibility.md 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    Flags,
    Identities,
    EnvironmentDocument,
}

impl Resource {
    pub const ALL: [Resource; 3] = [Self::Flags, Self::Identities, Self::EnvironmentDocument];

    /// As upstream calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::Identities => "identities",
            Self::EnvironmentDocument => "environment-document",
        }
    }
}

/// Headers of the SDK that upstream keeps counts apart by. Empty is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Labels {
    pub application_name: Box<str>,
    pub application_version: Box<str>,
    pub user_agent: Box<str>,
    pub sdk_user_agent: Box<str>,
}

/// What is counted of evaluations.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Evaluation {
    pub client_side_key: Box<str>,
    pub labels: Labels,
    pub feature: Box<str>,
    /// Only the second version of the endpoint tells it; `None` is the first version.
    pub detail: Option<Detail>,
}

/// What the second version tells of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Detail {
    pub identifier: Option<Box<str>>,
    pub is_enabled: bool,
}

/// Counts since they were last taken.
#[derive(Debug, Default)]
pub struct Counts {
    /// By slot of the snapshot in use, then by resource.
    slots: Vec<[u64; Resource::ALL.len()]>,
    pub usage: HashMap<(Box<str>, Resource), u64>,
    pub evaluations: HashMap<Evaluation, u64>,
    /// Evaluations that found no row.
    pub lost: u64,
}

impl Counts {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.usage.is_empty() && self.evaluations.is_empty() && self.lost == 0
    }

    /// Counts a request that was answered 2xx from `slot` of the snapshot in use.
    pub fn used(&mut self, slot: usize, resource: Resource) {
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, [0; Resource::ALL.len()]);
        }
        self.slots[slot][resource as usize] += 1;
    }

    /// Gives the counts by slot their environments' names: to be called before another snapshot is
    /// taken into use, and before the counts are handed on.
    pub fn settle<'a>(&mut self, client_side_key: impl Fn(usize) -> Option<&'a str>) {
        for (slot, counts) in std::mem::take(&mut self.slots).into_iter().enumerate() {
            let Some(key) = client_side_key(slot) else { continue };
            for (resource, count) in Resource::ALL.into_iter().zip(counts) {
                if count > 0 {
                    *self.usage.entry((key.into(), resource)).or_default() += count;
                }
            }
        }
    }

    /// Counts evaluations of a feature.
    pub fn evaluated(&mut self, evaluation: Evaluation, count: u64) {
        let row = fit(&self.evaluations, evaluation);
        match row {
            Some(row) => {
                let sum = self.evaluations.entry(row).or_default();
                *sum = sum.saturating_add(count);
            }
            None => self.lost = self.lost.saturating_add(count),
        }
    }

    /// Adds what another one counted. Slots are those of a snapshot and must be settled there.
    pub fn merge(&mut self, other: Counts) {
        for (row, count) in other.usage {
            *self.usage.entry(row).or_default() += count;
        }
        for (row, count) in other.evaluations {
            self.evaluated(row, count);
        }
        self.lost = self.lost.saturating_add(other.lost);
    }
}

/// The finest row for which there is room.
fn fit(rows: &HashMap<Evaluation, u64>, mut row: Evaluation) -> Option<Evaluation> {
    if rows.len() < limits::COUNT_ROWS_MAX || rows.contains_key(&row) {
        return Some(row);
    }
    if let Some(detail) = &mut row.detail {
        detail.identifier = None;
        if rows.contains_key(&row) || rows.len() < limits::COUNT_ROWS_MAX * 5 / 4 {
            return Some(row);
        }
    }
    row.labels = Labels::default();
    (rows.contains_key(&row) || rows.len() < limits::COUNT_ROWS_MAX * 3 / 2).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(feature: &str, identifier: Option<&str>, name: &str) -> Evaluation {
        Evaluation {
            client_side_key: "key".into(),
            labels: Labels { application_name: name.into(), ..Labels::default() },
            feature: feature.into(),
            detail: identifier
                .map(|identifier| Detail { identifier: Some(identifier.into()), is_enabled: true }),
        }
    }

    #[test]
    fn requests_are_counted_by_the_environment_that_the_slot_was() {
        let mut counts = Counts::default();
        assert!(counts.is_empty());
        counts.used(1, Resource::Flags);
        counts.used(1, Resource::Flags);
        counts.used(0, Resource::Identities);
        counts.settle(|slot| ["a", "b"].get(slot).copied());
        counts.used(0, Resource::Flags);
        counts.settle(|slot| ["b"].get(slot).copied());
        let mut rows: Vec<_> =
            counts.usage.iter().map(|((key, resource), count)| (&**key, resource.name(), *count)).collect();
        rows.sort_unstable();
        assert_eq!(rows, [("a", "identities", 1), ("b", "flags", 3)]);
    }

    #[test]
    fn merging_loses_nothing_however_many_rows_there_are() {
        let mut sum = Counts::default();
        let mut expected = 0;
        for part in 0..4 {
            let mut counts = Counts::default();
            for number in 0..limits::COUNT_ROWS_MAX {
                counts.evaluated(evaluation("f", Some(&format!("{part}-{number}")), ""), 2);
                expected += 2;
            }
            sum.merge(counts);
        }
        assert_eq!(sum.evaluations.values().sum::<u64>() + sum.lost, expected);
        assert_eq!(sum.lost, 0);
        assert!(sum.evaluations.len() <= limits::COUNT_ROWS_MAX * 5 / 4);
    }

    #[test]
    fn labels_are_kept_apart_while_there_is_room() {
        let mut counts = Counts::default();
        counts.evaluated(evaluation("f", None, "one"), 1);
        counts.evaluated(evaluation("f", None, "two"), 2);
        assert_eq!(counts.evaluations.len(), 2);
        for number in 0..limits::COUNT_ROWS_MAX * 2 {
            counts.evaluated(evaluation("f", None, &number.to_string()), 1);
        }
        assert_eq!(counts.lost, 0);
        assert!(counts.evaluations[&evaluation("f", None, "")] > 1);
        for number in 0..limits::COUNT_ROWS_MAX {
            counts.evaluated(evaluation(&number.to_string(), None, ""), 1);
        }
        assert!(counts.lost > 0, "features without end are counted as lost");
    }
}
