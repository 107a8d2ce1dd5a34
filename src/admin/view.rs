//! What the admin listener and the readiness log read: metrics, the log, and what was published last.
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::admin::history::History;
use crate::admin::labels::EnvironmentLabels;
use crate::channel::Newest;
use crate::handlers::readiness::{self, ReadinessRules};
use crate::limits::FAILURE_REMINDER;
use crate::log::Log;
use crate::metrics::{EnvironmentMetrics, Metrics};
use crate::snapshot::Slot;

#[derive(Clone, Debug)]
pub struct View {
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: Log,
    pub(super) history: History,
    newest: Newest,
    /// When a rejected `Host` was last logged.
    host_logged: Arc<Mutex<Option<Instant>>>,
}

/// One environment: what is published of it, and how its polls went.
#[derive(Debug)]
pub(super) struct EnvironmentView {
    pub label: String,
    /// Fresh, stale, cache or missing.
    pub state: &'static str,
    pub slot: Slot,
    pub metrics: EnvironmentMetrics,
}

impl EnvironmentView {
    /// When its document was changed, by `updated_at`.
    pub fn document_updated_at(&self) -> Option<SystemTime> {
        let seconds = self.slot.document.as_ref()?.updated_at?;
        UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
    }
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

    /// The environments that are published, in the order of their client-side keys.
    pub(super) fn environments(&self) -> Vec<EnvironmentView> {
        let published = self.newest.get();
        let states = readiness::states(&published.config, &published.snapshot);
        let mut slots: Vec<(&Slot, &'static str)> = published.snapshot.slots.iter().zip(states).collect();
        slots.sort_by(|(one, _), (other, _)| one.client_side_key.cmp(&other.client_side_key));
        let mut metrics = self.metrics.environments();
        let mut labels = EnvironmentLabels::default();
        let views = slots.into_iter().map(|(slot, state)| EnvironmentView {
            label: labels.label(&slot.client_side_key),
            state,
            slot: slot.clone(),
            metrics: metrics.remove(&*slot.client_side_key).unwrap_or_default(),
        });
        views.collect()
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

    /// The body of the readiness response, and why the proxy is not ready.
    pub(super) fn health(&self) -> (String, Option<&'static str>) {
        let published = self.newest.get();
        readiness::report(&published.config, &published.snapshot)
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
