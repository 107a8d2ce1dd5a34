//! What the admin listener and the readiness log read: metrics, the log, and what was published last.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::admin::history::History;
use crate::channel::Newest;
use crate::handlers::readiness::{self, HealthReport, ReadinessRules};
use crate::limits::FAILURE_REMINDER;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

#[derive(Clone, Debug)]
pub struct View {
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: Log,
    pub(super) history: History,
    newest: Newest,
    /// When a rejected `Host` was last logged.
    host_logged: Arc<Mutex<Option<Instant>>>,
}

impl View {
    pub fn new(metrics: Arc<Metrics>, log: Log, newest: Newest) -> Self {
        let history = History::new(metrics.clone());
        Self { metrics, log, history, newest, host_logged: Arc::default() }
    }

    /// The samples for the status page; the control plane updates them.
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// Numbers of environments, by client-side key.
    pub(super) fn environment_numbers(&self) -> HashMap<String, u64> {
        let slots = &self.newest.get().snapshot;
        slots.slots.iter().map(|slot| (slot.client_side_key.to_string(), slot.number)).collect()
    }

    /// The names that `Host` may have, of the current configuration.
    pub(super) fn allowed_hosts(&self) -> Vec<String> {
        let config = self.newest.get().config;
        config.admin.as_ref().map(|admin| admin.allowed_hosts.clone()).unwrap_or_default()
    }

    /// Why the proxy is not ready, or `None` if it is; and whether it is shutting down.
    pub(super) fn readiness(&self) -> (Option<&'static str>, bool) {
        let published = self.newest.get();
        let reason = ReadinessRules::new(&published.config).reason(&published.snapshot);
        (reason, published.snapshot.draining)
    }

    /// The current snapshot and its readiness.
    pub(super) fn health(&self) -> (Arc<Snapshot>, HealthReport) {
        let published = self.newest.get();
        let report = readiness::report(&published.config, &published.snapshot);
        (published.snapshot, report)
    }

    /// Whether a rejected `Host` may be logged: at most once in `limits::FAILURE_REMINDER`, because clients
    /// choose the value and could otherwise fill the log.
    pub(super) fn may_log_host(&self, now: Instant) -> bool {
        let mut last = self.host_logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.duration_since(last) >= FAILURE_REMINDER);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}
