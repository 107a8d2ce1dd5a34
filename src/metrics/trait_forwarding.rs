//! The metrics of kept traits that are forwarded to core.
use std::time::{Duration, SystemTime};

use crate::metrics::counter::{Counter, SharedCounter};

/// Why a kept trait is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraitForwardLoss {
    /// Core would reject it: it is not sent.
    Invalid,
    /// Too many wait.
    Full,
    /// Upstream answered with a status that says that it never accepts it.
    Refused,
    /// Upstream answered 500 to it repeatedly, while it accepted others.
    Faulty,
    /// Upstream does not serve its environment, or it was removed.
    NotServed,
}

impl TraitForwardLoss {
    /// All variants in declaration order, which the counters use as an index.
    pub const ALL: [Self; 5] = [Self::Invalid, Self::Full, Self::Refused, Self::Faulty, Self::NotServed];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Full => "full",
            Self::Refused => "refused",
            Self::Faulty => "faulty",
            Self::NotServed => "not_served",
        }
    }
}

/// Gauges are set while the queue is locked.
#[derive(Debug, Default)]
pub struct TraitForwardMetrics {
    /// Traits that wait.
    pub queued: Counter,
    pub queued_bytes: Counter,
    /// When the oldest of them was changed, in Unix seconds; 0 if none waits.
    pub oldest_at: Counter,
    /// Traits that upstream accepted.
    pub sent: SharedCounter,
    lost: [SharedCounter; TraitForwardLoss::ALL.len()],
}

impl TraitForwardMetrics {
    /// Counts traits that are not forwarded.
    pub fn lost(&self, loss: TraitForwardLoss, count: u64) {
        if let Some(counter) = self.lost.get(loss as usize) {
            counter.add(count);
        }
    }

    /// Traits that are not forwarded for this reason (its index in `TraitForwardLoss::ALL`).
    pub fn lost_of(&self, loss: usize) -> u64 {
        self.lost.get(loss).map_or(0, SharedCounter::value)
    }

    /// The age of the oldest change that waits; zero if none does.
    pub fn oldest_age(&self, now: SystemTime) -> Duration {
        let oldest_at = Duration::from_secs(self.oldest_at.value());
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if oldest_at.is_zero() { Duration::ZERO } else { since_epoch.saturating_sub(oldest_at) }
    }
}
