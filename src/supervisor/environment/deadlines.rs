//! How long a poll that failed may wait to be repeated.
//!
//! In: the rules of readiness, and what is held. Out: a [`Retry`]. Invariant: no wait that upstream asks
//! for turns readiness red which another fetch in time would have kept green.
use std::time::Duration;

use crate::config::Config;
use crate::schedule::Retry;
use crate::snapshot::DocumentSource;
use crate::supervisor::environment::PolledEnvironment;

/// What bounds the waits after failures.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The age at which a document is stale; `None` is never.
    age_max: Option<Duration>,
    /// How long one more fetch may take.
    fetch_timeout: Duration,
    /// A document from disk is as good as upstream's.
    is_cache_ready: bool,
}

impl Deadlines {
    /// With this many environments.
    pub fn new(settings: &Config, environments: usize) -> Self {
        Self {
            age_max: settings.staleness().age_max(environments),
            fetch_timeout: settings.api_poll_timeout,
            is_cache_ready: settings.health_check.ready_from_cache,
        }
    }
}

impl PolledEnvironment {
    /// How long the next poll may wait after a failure.
    pub(super) fn retry(&self, deadlines: Deadlines) -> Retry {
        match self.held.as_ref().map(|held| held.source) {
            None => Retry::Empty,
            // Documents from disk do not age.
            Some(DocumentSource::Cache) if deadlines.is_cache_ready => {
                Retry::before_stale(None, deadlines.fetch_timeout)
            }
            Some(DocumentSource::Cache) => Retry::Empty,
            Some(_) => {
                let age = self.freshness.age().unwrap_or_default();
                let left = deadlines.age_max.map(|age_max| age_max.saturating_sub(age));
                Retry::before_stale(left, deadlines.fetch_timeout)
            }
        }
    }
}
