//! Counters for uploads: requests by resource, and evaluations that SDKs report.
//!
//! Each reactor has its own counts; the supervisor merges them. Requests are bounded by the number of
//! environments, evaluations in bytes ([`evaluations`]).
pub mod evaluations;

use hashbrown::HashMap;

pub use crate::counts::evaluations::{
    AnalyticsVersion, Bounded, Evaluation, Evaluations, Group, Labels, Names, Rows,
};

/// The requested resource (compatibility.md 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    Flags,
    Identities,
    EnvironmentDocument,
}

impl Resource {
    pub const ALL: [Resource; 3] = [Self::Flags, Self::Identities, Self::EnvironmentDocument];

    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::Identities => "identities",
            Self::EnvironmentDocument => "environment-document",
        }
    }
}

/// Counts since the last report.
#[derive(Debug, Default)]
pub struct Counts {
    /// Indexed by slot of the current snapshot, then by resource.
    slots: Vec<[u64; Resource::ALL.len()]>,
    pub usage: HashMap<(Box<str>, Resource), u64>,
    pub evaluations: Evaluations,
}

impl Counts {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.usage.is_empty() && self.evaluations.is_empty()
    }

    /// Counts a request to `slot` of the current snapshot that was answered 2xx.
    pub fn used(&mut self, slot: usize, resource: Resource) {
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, [0; Resource::ALL.len()]);
        }
        self.slots[slot][resource as usize] += 1;
    }

    /// Converts counts by slot to counts by environment. Call this before the snapshot changes, and before
    /// the counts are reported.
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

    /// Adds the counts of `other`, which must be settled.
    pub fn merge(&mut self, other: Counts) {
        for (row, count) in other.usage {
            *self.usage.entry(row).or_default() += count;
        }
        self.evaluations.merge(other.evaluations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_requests_by_the_environment_of_the_slot() {
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
}
