//! Readiness in the log: a line when it turns, so that people find when the load balancer left.
//!
//! In: what is served, looked at on each turn of the supervisor's loop. Out: `ready` and
//! `not_ready`. Invariant: the same rules as the answer of `/proxy/health/readiness`; one line a
//! turn of the state; shutting down is told elsewhere, and a start that has no documents yet is
//! not worth a warning.
use std::time::Instant;

use crate::admin::View;
use crate::config::Level;

/// Knows how it was.
#[derive(Debug)]
pub struct Readiness {
    view: View,
    /// Why not; `None` is ready.
    reason: Option<&'static str>,
    /// Of the last turn.
    since: Instant,
}

impl Readiness {
    /// At the start nobody is ready.
    pub fn new(view: View) -> Self {
        Self { view, reason: Some("starting."), since: Instant::now() }
    }

    /// Looks, and tells if it turned.
    pub fn look(&mut self) {
        let (reason, is_draining) = self.view.readiness();
        if is_draining || reason.is_some() == self.reason.is_some() {
            return;
        }
        let after = format!("{:.1}", self.since.elapsed().as_secs_f64());
        let log = &self.view.log;
        match reason {
            None => log.event(Level::Info, "ready", &[("after_seconds", &after)]),
            Some(reason) => {
                let hint = "load balancers that ask for readiness send nothing now; who asks is answered all the same";
                let fields: [(_, &dyn std::fmt::Display); 3] =
                    [("reason", &reason), ("after_seconds", &after), ("hint", &hint)];
                log.event(Level::Warning, "not_ready", &fields);
            }
        }
        (self.reason, self.since) = (reason, Instant::now());
    }
}
