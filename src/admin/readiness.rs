//! Logs when readiness changes, so that operators can see when load balancers stopped sending requests.
//!
//! The rules are those of `/proxy/health/readiness`. Shutdown has its own log events, and a start without
//! documents is not a change.
use std::time::Instant;

use crate::admin::view::View;
use crate::config::Level;

/// The last known readiness.
#[derive(Debug)]
pub struct Readiness {
    view: View,
    /// Why the proxy is not ready; `None` if it is.
    reason: Option<&'static str>,
    /// When readiness last changed.
    since: Instant,
}

impl Readiness {
    pub fn new(view: View) -> Self {
        Self { view, reason: Some("starting."), since: Instant::now() }
    }

    /// Evaluates readiness and logs a change. The supervisor calls it on each turn of its loop.
    pub fn update(&mut self) {
        let (reason, is_draining) = self.view.readiness();
        if is_draining || reason.is_some() == self.reason.is_some() {
            return;
        }
        let after = format!("{:.1}", self.since.elapsed().as_secs_f64());
        let log = &self.view.log;
        match reason {
            None => log.event(Level::Info, "ready", &[("after_seconds", &after)]),
            Some(reason) => {
                let hint =
                    "load balancers that check readiness stop sending requests; requests are still answered";
                let fields: [(_, &dyn std::fmt::Display); 3] =
                    [("reason", &reason), ("after_seconds", &after), ("hint", &hint)];
                log.event(Level::Warning, "not_ready", &fields);
            }
        }
        (self.reason, self.since) = (reason, Instant::now());
    }
}
