//! What the state machine is given with each event: the time, the configuration, and where decisions go.
//!
//! Metrics are updated directly instead of by an action: they are atomics and a map that is locked for the
//! length of one assignment, so that an update never waits, and no decision depends on them.
use std::time::{Instant, SystemTime};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::supervisor::action::Actions;

/// The time of an event. The state machine reads no clock and no random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic: all schedules and deadlines.
    pub instant: Instant,
    /// For people, expiry dates and files.
    pub wall: SystemTime,
    /// Uniform in [0, 1), drawn once per event.
    pub jitter: f64,
}

impl Now {
    /// A jitter in [0, 1) for one of many environments: multiples of the golden ratio, modulo 1, spread
    /// evenly.
    pub fn jitter_of(&self, id: u64) -> f64 {
        const GOLDEN_RATIO: f64 = 0.618_033_988_749_894_9;
        // 32 bits keep the fraction exact enough.
        (self.jitter + f64::from(id as u32) * GOLDEN_RATIO).fract()
    }
}

/// What the handlers of one event share.
#[derive(Debug)]
pub struct EventContext<'a> {
    pub config: &'a Config,
    pub metrics: &'a Metrics,
    /// `cache_dir` is set and usable.
    pub has_storage: bool,
    pub now: Now,
    pub actions: &'a mut Actions,
}

impl EventContext<'_> {
    /// The same event with another configuration.
    pub fn with_config<'a>(&'a mut self, config: &'a Config) -> EventContext<'a> {
        EventContext { config, actions: self.actions, ..*self }
    }
}
