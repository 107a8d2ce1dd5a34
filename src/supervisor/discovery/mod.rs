//! Environments that upstream tells of, beside those of the configuration.
//!
//! In: the answers of `proxy/config/` (compatibility.md 4.3). Out: environments added, re-keyed and removed.
//! Invariants: environments of the configuration are never touched; a fetch that fails changes
//! nothing; nor does a list without any environment until it has been confirmed for a while; the last good
//! answer is kept on disk like a document, for a restart while upstream is down.
mod pairs;

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub(crate) use crate::supervisor::discovery::pairs::{
    CheckedPairs, KnownKeys, RejectedPair, check as check_pairs,
};
use sha2::{Digest, Sha256};

use crate::config::{Config, EnvironmentConfig, Level};
use crate::limits;
use crate::limits::DISCOVERY_WARNINGS_MAX;
use crate::schedule::{Retry, Schedule, jitter};
use crate::storage::StoredDocument;
use crate::supervisor::environment::PolledEnvironment;
use crate::supervisor::pool::guarded;
use crate::supervisor::{Event, Supervisor};
use crate::upstream::{DiscoveredEnvironment, PollError, PollErrorKind, Upstream, parse_discovered};
use crate::validators::Validators;

/// The name under which the last good answer is kept. No client-side key has a slash.
pub(crate) const KEPT_AS: &str = "proxy/config/";

/// What came of asking: the environments, and the answer as it came.
pub type DiscoveryResult = Result<(Vec<DiscoveredEnvironment>, Vec<u8>), PollError>;

/// When to ask, and what failed last.
#[derive(Debug)]
pub struct Discovery {
    schedule: Schedule,
    in_flight: bool,
    failure: Option<PollErrorKind>,
    has_answer: bool,
    /// When the first of the answers in a row was that list no environment.
    empty_since: Option<Instant>,
    /// `discovery_empty` was logged, and the list has not had an environment since.
    is_empty_logged: bool,
    /// The pairs of the last answer that were rejected; each is logged when it is first seen.
    rejected: HashSet<RejectedPair>,
}

impl Discovery {
    /// `None` without a `proxy_key`.
    pub fn new(config: &Config, now: Instant) -> Option<Self> {
        config.proxy_key.as_ref()?;
        let schedule = Schedule::new(config.api_poll_frequency, now);
        Some(Self {
            schedule,
            in_flight: false,
            failure: None,
            has_answer: false,
            empty_since: None,
            is_empty_logged: false,
            rejected: HashSet::new(),
        })
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
            Err(damaged) => self.ignore_kept(&damaged.to_string()),
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
    pub fn discovered(&mut self, started: Instant, found: DiscoveryResult) {
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
                if self.is_unconfirmed_empty(environments.is_empty(), now, clock) {
                    return;
                }
                if let Some(store) = &self.records.store {
                    let digest = Sha256::digest(&answer).into();
                    let kept = StoredDocument {
                        document: answer,
                        validators: Validators::default(),
                        digest,
                        saved_at: clock,
                    };
                    store.save_if_new(KEPT_AS, kept);
                }
                if self.watch_discovered(environments, now, clock) || is_first {
                    self.publish_by(now);
                }
            }
            Err(error) => {
                // It did not confirm an empty list.
                discovery.empty_since = None;
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

    /// Whether the answer lists no environment and must not count yet: a fault upstream looks the same as the
    /// removal of all environments, and would end every client's service at once.
    fn is_unconfirmed_empty(&mut self, is_empty: bool, now: Instant, clock: SystemTime) -> bool {
        let has_earlier = self.watched.iter().any(PolledEnvironment::is_discovered);
        let grace = self.config.discovery_empty_grace;
        let Some(discovery) = &mut self.discovery else { return false };
        let since_ms = &self.records.metrics.supervisor.discovery_empty_since_ms;
        let since = *discovery.empty_since.get_or_insert(now);
        if !is_empty || !has_earlier || now.duration_since(since) >= grace {
            discovery.empty_since = None;
            since_ms.set(0);
            if std::mem::take(&mut discovery.is_empty_logged) && !is_empty {
                self.records.log.event(Level::Info, "discovery_recovered", &[]);
            }
            return false;
        }
        if !std::mem::replace(&mut discovery.is_empty_logged, true) {
            let time = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
            since_ms.set(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let hint = "the list of environments is empty; they are removed if it stays so for \
                        discovery_empty_grace_seconds";
            let fields: [(_, &dyn Display); 3] = [
                ("serving", &"the environments known before"),
                ("grace_seconds", &grace.as_secs_f64()),
                ("hint", &hint),
            ];
            self.records.log.event(Level::Warning, "discovery_empty", &fields);
        }
        true
    }

    /// The keys that an answer must agree with.
    fn known_keys(&self) -> KnownKeys {
        let mut known = KnownKeys::default();
        for watched in &self.watched {
            let client_side_key = watched.client_side_key().to_owned();
            if let Some(keys) = watched.discovered_keys() {
                known.discovered.insert(client_side_key, keys.to_vec());
            } else if let Some(key) = &watched.config.server_side_key {
                known.configured.insert(key.expose().to_owned(), client_side_key);
            }
        }
        known
    }

    /// Logs each pair that was not rejected in the answer before.
    fn log_rejected(&mut self, rejected: Vec<RejectedPair>) {
        let Some(discovery) = &mut self.discovery else { return };
        self.records.metrics.supervisor.discovery_pairs_rejected.set(rejected.len() as u64);
        let (log, mut new) = (&self.records.log, 0_usize);
        for pair in rejected.iter().filter(|pair| !discovery.rejected.contains(*pair)) {
            new += 1;
            if new > DISCOVERY_WARNINGS_MAX {
                continue;
            }
            let hint = "correct the key at upstream; environments that were valid before are served on";
            let client_side_key = ("client_side_key", &pair.client_side_key as &dyn Display);
            let (reason, hint) = (("reason", &pair.reason as &dyn Display), ("hint", &hint as &dyn Display));
            match &pair.server_side_key {
                Some(key) => {
                    let key = ("server_side_key", key as &dyn Display);
                    log.event(
                        Level::Warning,
                        "discovered_pair_rejected",
                        &[client_side_key, key, reason, hint],
                    );
                }
                None => {
                    log.event(Level::Warning, "discovered_pair_rejected", &[client_side_key, reason, hint])
                }
            }
        }
        if new > DISCOVERY_WARNINGS_MAX {
            let more = new - DISCOVERY_WARNINGS_MAX;
            log.event(Level::Warning, "discovered_pairs_rejected", &[("more_count", &more)]);
        }
        discovery.rejected = rejected.into_iter().collect();
    }

    /// Watches exactly these discovered environments; true if something changed.
    fn watch_discovered(
        &mut self,
        environments: Vec<DiscoveredEnvironment>,
        now: Instant,
        clock: SystemTime,
    ) -> bool {
        let CheckedPairs { usable, rejected } = check_pairs(environments, &self.known_keys(), clock);
        self.log_rejected(rejected);
        let listed: HashSet<&str> = usable.iter().map(|known| known.client_side_key.as_str()).collect();
        let (records, count) = (&self.records, self.watched.len());
        self.watched.retain(|watched| {
            let key = watched.client_side_key();
            let stays = !watched.is_discovered() || listed.contains(key);
            if !stays {
                records.log.event(Level::Info, "environment_removed", &[("client_side_key", &key)]);
                records.metrics.remove_environment(key);
            }
            stays
        });
        let mut changed = self.watched.len() != count;
        for DiscoveredEnvironment { client_side_key, server_side_keys } in usable {
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
