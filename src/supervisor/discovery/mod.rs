//! Discovery: environments that upstream lists at `proxy/config/` (compatibility.md 4.3), besides the
//! configured ones.
//!
//! A failed fetch changes nothing. A list without environments must be confirmed for
//! `discovery_empty_grace_seconds`. The last good response is stored, for a restart while upstream is down.
mod pairs;

use std::collections::HashSet;
use std::fmt::Display;
use std::time::{Instant, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::config::{Config, Level};
use crate::limits;
use crate::limits::DISCOVERY_WARNINGS_MAX;
use crate::schedule::{Retry, Schedule};
use crate::storage::StoredDocument;
use crate::supervisor::action::Action;
use crate::supervisor::context::EventContext;
pub(crate) use crate::supervisor::discovery::pairs::{
    CheckedPairs, KnownKeys, RejectedPair, check as check_pairs,
};
use crate::supervisor::event::DiscoveryResult;
use crate::supervisor::refresh::LoadError;
use crate::upstream::{DiscoveredEnvironment, PollErrorKind};
use crate::validators::Validators;

/// The name of the stored response. Client-side keys have no slash.
pub const STORED_AS: &str = "proxy/config/";

/// The schedule of discovery, and its last result.
#[derive(Debug)]
pub struct Discovery {
    schedule: Schedule,
    /// The start of the fetch that is in flight.
    started: Option<Instant>,
    failure: Option<PollErrorKind>,
    has_response: bool,
    /// When the first of the last consecutive empty lists arrived.
    empty_since: Option<Instant>,
    /// `discovery_empty` was logged, and all lists since were empty.
    is_empty_logged: bool,
    /// The key pairs of the last response that were rejected; each is logged when it first appears.
    rejected: HashSet<RejectedPair>,
}

/// Environments to serve.
#[derive(Debug)]
pub struct Discovered {
    pub environments: Vec<DiscoveredEnvironment>,
    /// It is the first response of this process: unknown keys are unknown from now on.
    pub is_first: bool,
}

impl Discovery {
    /// `None` without a `proxy_key`. The first fetch is due immediately.
    pub fn new(config: &Config, now: Instant) -> Option<Self> {
        config.proxy_key.as_ref()?;
        Some(Self {
            schedule: Schedule::new(config.api_poll_frequency, now),
            started: None,
            failure: None,
            has_response: false,
            empty_since: None,
            is_empty_logged: false,
            rejected: HashSet::new(),
        })
    }

    /// Takes over the interval of new settings.
    pub fn set_interval(&mut self, config: &Config, now: Instant) {
        self.schedule.set_interval(config.api_poll_frequency, now);
    }

    /// Whether upstream has responded. Until then an unknown key may be valid.
    pub fn has_response(&self) -> bool {
        self.has_response
    }

    /// When the next fetch is due; `None` while one is in flight.
    pub fn due(&self) -> Option<Instant> {
        self.started.is_none().then(|| self.schedule.due())
    }

    /// Starts the fetch that is due.
    pub fn tick(&mut self, context: &mut EventContext<'_>) {
        if self.due().is_some_and(|due| due <= context.now.instant) {
            self.started = Some(context.now.instant);
            context.actions.push(Action::Discover);
        }
    }

    /// Applies the stored response of an earlier process. Returns the environments to serve.
    pub fn loaded(
        &mut self,
        result: Result<Option<Vec<DiscoveredEnvironment>>, LoadError>,
        known: &KnownKeys,
        context: &mut EventContext<'_>,
    ) -> Option<Vec<DiscoveredEnvironment>> {
        match result {
            Ok(environments) => Some(self.check(environments?, known, context)),
            Err(error) => {
                context.actions.log(Level::Warning, "cache_file_ignored", &[("reason", &error)]);
                None
            }
        }
    }

    /// Applies the result of a fetch. Returns the environments to serve, or `None` for no change.
    pub fn fetched(
        &mut self,
        result: DiscoveryResult,
        known: &KnownKeys,
        context: &mut EventContext<'_>,
    ) -> Option<Discovered> {
        let now = context.now;
        // None: another `proxy_key` was configured while the fetch was in flight.
        let started = self.started.take()?;
        match result {
            Ok((environments, response)) => {
                self.schedule.succeeded(started, now.instant, now.jitter);
                let is_first = !std::mem::replace(&mut self.has_response, true);
                if self.failure.take().is_some() {
                    context.actions.log(Level::Info, "discovery_recovered", &[]);
                }
                if self.is_unconfirmed_empty(environments.is_empty(), !known.discovered.is_empty(), context) {
                    return None;
                }
                if context.has_storage {
                    let digest = Sha256::digest(&response).into();
                    let (document, validators) = (response, Validators::default());
                    let kept = StoredDocument { document, validators, digest, saved_at: now.wall };
                    context.actions.push(Action::StoreIfChanged { name: STORED_AS, kept });
                }
                Some(Discovered { environments: self.check(environments, known, context), is_first })
            }
            Err(error) => {
                // A failure does not confirm an empty list.
                self.empty_since = None;
                let retry = match self.has_response {
                    true => Retry::Serving(limits::RETRY_AFTER_DEFAULT_MAX),
                    false => Retry::Empty,
                };
                let delay = self.schedule.failed(now.instant, retry, error.retry_after, now.jitter);
                if self.failure.replace(error.kind) != Some(error.kind) {
                    let fields: [(_, &dyn Display); 3] = [
                        ("error", &error.message),
                        ("serving", &"the environments known before"),
                        ("retry_seconds", &format_args!("{:.1}", delay.as_secs_f64())),
                    ];
                    context.actions.log(Level::Error, "discovery_failed", &fields);
                }
                None
            }
        }
    }

    /// Whether the list is empty and must not be applied yet: a fault upstream looks the same as the removal
    /// of all environments, and would end the service of all clients.
    fn is_unconfirmed_empty(
        &mut self,
        is_empty: bool,
        has_discovered: bool,
        context: &mut EventContext<'_>,
    ) -> bool {
        let now = context.now;
        let grace = context.config.discovery_empty_grace;
        let since_ms = &context.metrics.supervisor.discovery_empty_since_ms;
        let since = *self.empty_since.get_or_insert(now.instant);
        if !is_empty || !has_discovered || now.instant.duration_since(since) >= grace {
            self.empty_since = None;
            since_ms.set(0);
            if std::mem::take(&mut self.is_empty_logged) && !is_empty {
                context.actions.log(Level::Info, "discovery_recovered", &[]);
            }
            return false;
        }
        if !std::mem::replace(&mut self.is_empty_logged, true) {
            let time = now.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
            since_ms.set(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let hint = "the list of environments is empty; they are removed if it stays empty for \
                        discovery_empty_grace_seconds";
            let fields: [(_, &dyn Display); 3] = [
                ("serving", &"the environments known before"),
                ("grace_seconds", &grace.as_secs_f64()),
                ("hint", &hint),
            ];
            context.actions.log(Level::Warning, "discovery_empty", &fields);
        }
        true
    }

    /// Removes the key pairs that cannot be used.
    fn check(
        &mut self,
        environments: Vec<DiscoveredEnvironment>,
        known: &KnownKeys,
        context: &mut EventContext<'_>,
    ) -> Vec<DiscoveredEnvironment> {
        let CheckedPairs { usable, rejected } = check_pairs(environments, known, context.now.wall);
        context.metrics.supervisor.discovery_pairs_rejected.set(rejected.len() as u64);
        let is_new = |pair: &&RejectedPair| !self.rejected.contains(*pair);
        let new: Vec<&RejectedPair> = rejected.iter().filter(is_new).collect();
        new.iter().take(DISCOVERY_WARNINGS_MAX).for_each(|pair| log_rejected(pair, context));
        let more = new.len().saturating_sub(DISCOVERY_WARNINGS_MAX);
        if more > 0 {
            context.actions.log(Level::Warning, "discovered_pairs_rejected", &[("more_count", &more)]);
        }
        self.rejected = rejected.into_iter().collect();
        usable
    }
}

fn log_rejected(pair: &RejectedPair, context: &mut EventContext<'_>) {
    let hint = "correct the key in Flagsmith; environments that were valid before are still served";
    let mut fields: Vec<(&'static str, &dyn Display)> = vec![("client_side_key", &pair.client_side_key)];
    if let Some(key) = &pair.server_side_key {
        fields.push(("server_side_key", key));
    }
    fields.extend([("reason", &pair.reason as &dyn Display), ("hint", &hint)]);
    context.actions.log(Level::Warning, "discovered_pair_rejected", &fields);
}
