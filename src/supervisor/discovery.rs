//! Environments that upstream tells of, beside those of the configuration.
//!
//! In: the answers of `proxy/config/` (compatibility.md 4.3). Out: environments added, re-keyed and removed.
//! Invariants: environments of the configuration are never touched; a fetch that fails changes
//! nothing; the last good answer is kept on disk like a document, for a restart while upstream is down.
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use sha2::{Digest, Sha256};

use super::poll::{Discovered, PollError, PollErrorKind, ServerKey, Upstream, Validators, parse_discovered};
use super::pool::guarded;
use super::schedule::{Retry, Schedule, jitter};
use super::store::Kept;
use super::{Event, Supervisor};
use crate::config::{Config, EnvironmentConfig, Level};
use crate::limits;

/// The name under which the last good answer is kept. No client-side key has a slash.
pub(crate) const KEPT_AS: &str = "proxy/config/";

/// What came of asking: the environments, and the answer as it came.
pub type Found = Result<(Vec<Discovered>, Vec<u8>), PollError>;

/// When to ask, and what failed last.
#[derive(Debug)]
pub struct Discovery {
    schedule: Schedule,
    in_flight: bool,
    failure: Option<PollErrorKind>,
    has_answer: bool,
}

impl Discovery {
    /// `None` without a `proxy_key`.
    pub fn new(config: &Config, now: Instant) -> Option<Self> {
        config.proxy_key.as_ref()?;
        let schedule = Schedule::new(config.api_poll_frequency, now);
        Some(Self { schedule, in_flight: false, failure: None, has_answer: false })
    }

    /// Whether upstream ever told which environments there are. Until then a key that is not known may
    /// be a good one.
    pub fn was_read(&self) -> bool {
        self.has_answer
    }

    fn retry(&self) -> Retry {
        if self.has_answer { Retry::Held(limits::RETRY_AFTER_HELD_MAX) } else { Retry::Empty }
    }

    pub fn due(&self) -> Option<Instant> {
        (!self.in_flight).then(|| self.schedule.due())
    }
}

impl Supervisor {
    /// Takes up what upstream told before the last stop.
    pub fn load_discovered(&mut self) {
        if self.discovery.is_none() {
            return;
        }
        let loaded = self.records.store.as_ref().map_or(Ok(None), |store| store.load(KEPT_AS));
        match loaded.map(|kept| kept.map(|kept| parse_discovered(&kept.document))) {
            Ok(Some(Ok(environments))) => {
                self.watch_discovered(environments, Instant::now(), SystemTime::now());
            }
            Ok(None) => {}
            Ok(Some(Err(error))) => self.ignore_kept(&error.message),
            Err(damaged) => self.ignore_kept(&damaged),
        }
    }

    fn ignore_kept(&self, reason: &str) {
        self.records.log.event(Level::Warning, "cache_file_ignored", &[("reason", &reason)]);
    }

    /// Asks upstream, if it is time to.
    pub fn discover(&mut self, now: Instant) {
        let Some(discovery) = &mut self.discovery else { return };
        if discovery.due().is_none_or(|due| due > now) {
            return;
        }
        discovery.in_flight = true;
        let (upstream, sender): (Arc<Upstream>, _) = (Arc::clone(&self.upstream), self.sender.clone());
        let given = self.pool.give(move || {
            let found = guarded(|| upstream.discover()).unwrap_or_else(|| {
                Err(PollError::new(
                    PollErrorKind::Internal,
                    "a defect of this proxy showed: discovery failed",
                ))
            });
            drop(sender.send(Event::Discovered(now, found)));
        });
        if let Err(error) = given {
            let error = PollError::new(PollErrorKind::Internal, format!("no thread to fetch with: {error}"));
            drop(self.sender.send(Event::Discovered(now, Err(error))));
        }
    }

    /// Takes in the answer.
    pub fn discovered(&mut self, started: Instant, found: Found) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let Some(discovery) = &mut self.discovery else { return };
        discovery.in_flight = false;
        match found {
            Ok((environments, answer)) => {
                discovery.schedule.succeeded(started, now, jitter());
                let is_first = !std::mem::replace(&mut discovery.has_answer, true);
                if discovery.failure.take().is_some() {
                    self.records.log.event(Level::Info, "discovery_recovered", &[]);
                }
                if let Some(store) = &self.records.store {
                    let digest = Sha256::digest(&answer).into();
                    let kept =
                        Kept { document: answer, validators: Validators::default(), digest, saved_at: clock };
                    store.keep_if_new(KEPT_AS, kept);
                }
                if self.watch_discovered(environments, now, clock) || is_first {
                    self.publish_by(now);
                }
            }
            Err(error) => {
                let delay = discovery.schedule.failed(now, discovery.retry(), error.retry_after, jitter());
                if discovery.failure.replace(error.kind) != Some(error.kind) {
                    let fields: [(_, &dyn Display); 3] = [
                        ("error", &error.message),
                        ("serving", &"the environments known before"),
                        ("retry_seconds", &format_args!("{:.1}", delay.as_secs_f64())),
                    ];
                    self.records.log.event(Level::Error, "discovery_failed", &fields);
                }
            }
        }
    }

    /// Watches exactly these discovered environments; true if something changed.
    fn watch_discovered(&mut self, environments: Vec<Discovered>, now: Instant, clock: SystemTime) -> bool {
        let usable = usable(environments, clock);
        let (records, count) = (&self.records, self.watched.len());
        self.watched.retain(|watched| {
            let key = watched.client_side_key();
            let stays = !watched.is_discovered() || usable.iter().any(|known| known.client_side_key == key);
            if !stays {
                records.log.event(Level::Info, "environment_removed", &[("client_side_key", &key)]);
                records.metrics.forget_environment(key);
            }
            stays
        });
        let mut changed = self.watched.len() != count;
        for Discovered { client_side_key, server_side_keys } in usable {
            match self.watched.iter_mut().find(|watched| watched.client_side_key() == client_side_key) {
                Some(watched) if !watched.is_discovered() => {}
                Some(watched) => changed |= watched.rekey(server_side_keys, now),
                None => {
                    let fields: [(_, &dyn Display); 1] = [("client_side_key", &client_side_key)];
                    self.records.log.event(Level::Info, "environment_discovered", &fields);
                    let config = EnvironmentConfig { client_side_key, ..EnvironmentConfig::default() };
                    self.add(config, Some(server_side_keys));
                    changed = true;
                }
            }
        }
        changed
    }
}

/// Those that can be polled: with a name, and with a key that is good now. Of one that is listed twice
/// the keys are taken together, or each answer would re-key it.
fn usable(environments: Vec<Discovered>, clock: SystemTime) -> Vec<Discovered> {
    let mut usable: Vec<Discovered> = Vec::with_capacity(environments.len());
    let mut places: HashMap<String, usize> = HashMap::new();
    for environment in environments.into_iter().filter(|listed| !listed.client_side_key.is_empty()) {
        match places.get(&environment.client_side_key) {
            Some(&place) => {
                let held = &mut usable[place].server_side_keys;
                let more = environment.server_side_keys.into_iter().filter(|key| !held.contains(key));
                let more: Vec<ServerKey> = more.collect();
                held.extend(more);
            }
            None => {
                places.insert(environment.client_side_key.clone(), usable.len());
                usable.push(environment);
            }
        }
    }
    usable.retain(|environment| environment.server_side_keys.iter().any(|key| key.is_good_at(clock)));
    usable
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Secret;

    #[test]
    fn an_environment_listed_twice_is_one_with_all_its_keys() {
        let clock = SystemTime::now();
        let listed = |client_side_key: &str, keys: &[(&str, Option<SystemTime>)]| Discovered {
            client_side_key: client_side_key.into(),
            server_side_keys: keys
                .iter()
                .map(|(key, expires_at)| ServerKey { key: Secret::new(*key), expires_at: *expires_at })
                .collect(),
        };
        let over = Some(clock - Duration::from_secs(1));
        let found = usable(
            vec![
                listed("a", &[("ser.1", None)]),
                listed("", &[("ser.2", None)]),
                listed("b", &[("ser.3", over)]),
                listed("a", &[("ser.1", None), ("ser.4", over)]),
            ],
            clock,
        );
        assert_eq!(found, [listed("a", &[("ser.1", None), ("ser.4", over)])]);
    }
}
