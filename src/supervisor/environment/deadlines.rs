//! How long a failed poll may wait before it is repeated.
//!
//! No `Retry-After` makes readiness fail where an earlier fetch would have prevented it.
use std::time::Duration;

use crate::config::Config;
use crate::schedule::Retry;
use crate::snapshot::DocumentSource;

/// What limits the waits after failures.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The age at which a document is stale; `None` is never.
    age_max: Option<Duration>,
    /// The duration of one more fetch, at most.
    fetch_timeout: Duration,
    /// Documents from disk count as ready.
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

    /// The retry policy of an environment whose current document, if any, has this source and this age.
    pub fn retry(&self, source: Option<DocumentSource>, age: Option<Duration>) -> Retry {
        match source {
            None => Retry::Empty,
            // Documents from disk do not age.
            Some(DocumentSource::Cache) if self.is_cache_ready => {
                Retry::before_stale(None, self.fetch_timeout)
            }
            Some(DocumentSource::Cache) => Retry::Empty,
            Some(_) => {
                let left = self.age_max.map(|age_max| age_max.saturating_sub(age.unwrap_or_default()));
                Retry::before_stale(left, self.fetch_timeout)
            }
        }
    }
}
