//! One environment under watch: what is held of it, and when to ask again.
//!
//! In: what became of each poll. Out: the next [`RefreshJob`], the [`Slot`] that requests read, and one line
//! in the log per change of state. Invariants: a document is replaced only by a better one; whatever
//! fails, the held one stays. Time is an argument.
mod deadlines;
mod failure;
mod pending;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::{Config, EnvironmentConfig, Level, Secret};
use crate::engine::program::Role;
use crate::files::FileVersion;
use crate::limits;
use crate::log::Log;
use crate::metrics::{EnvironmentMetrics, Metrics};
use crate::schedule::{Schedule, full_refresh, jitter};
use crate::snapshot::{DocumentSource, Environment, Freshness, KeyAccess, LastError, Slot};
use crate::storage::{Store, StoredDocument};
pub use crate::supervisor::environment::deadlines::Deadlines;
use crate::supervisor::environment::failure::FailureState;
use crate::supervisor::environment::pending::PendingUpdate;
use crate::supervisor::realtime::UpstreamSubscription;
use crate::supervisor::refresh;
use crate::supervisor::refresh::{Compiled, EnvironmentId, Polled, RefreshJob, RefreshResult, RefreshSource};
use crate::upstream::{PollError, PollErrorKind, ServerKey, Upstream};
use crate::validators::Validators;

/// Where things are written down.
#[derive(Debug)]
pub struct Records {
    pub log: Log,
    pub metrics: Arc<Metrics>,
    pub store: Option<Store>,
}

/// One configured environment.
#[derive(Debug)]
pub struct PolledEnvironment {
    pub id: EnvironmentId,
    pub config: EnvironmentConfig,
    /// Its server-side keys, if upstream told of it rather than the configuration.
    discovered: Option<Vec<ServerKey>>,
    /// How many of those upstream refused in turn: the next one is asked with.
    refused_keys: usize,
    pub schedule: Schedule,
    held: Option<CurrentDocument>,
    freshness: Arc<Freshness>,
    failing: Option<FailureState>,
    /// Of the file last read.
    seen: Option<FileVersion>,
    in_flight: bool,
    /// When the last unconditional fetch succeeded.
    full_at: Option<Instant>,
    /// Shortens the time to the next one, for as long as the process lives.
    full_jitter: f64,
    /// The next fetch must be unconditional: an event said that there is something new.
    full_next: bool,
    slow: bool,
    alias_told: bool,
    wanted: Option<PendingUpdate>,
    /// An event that was waited for in vain.
    disbelieved: Option<f64>,
    /// Its event stream, kept for as long as it is wanted.
    pub subscription: Option<UpstreamSubscription>,
}

/// The last good document.
#[derive(Debug)]
struct CurrentDocument {
    environment: Arc<Environment>,
    source: DocumentSource,
    validators: Validators,
    digest: [u8; 32],
    bytes: usize,
}

impl CurrentDocument {
    fn renew(&mut self, mut validators: Validators) {
        if validators.last_modified.is_none() {
            // compatibility.md 4.1: cut to seconds, in GMT, or core does not read it.
            validators.last_modified = self.environment.updated_at().and_then(imf_fixdate);
        }
        self.validators = validators;
    }
}

/// What a poll changed for those who read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// At most when the document was last confirmed, which snapshots share: nothing to publish.
    Nothing,
    /// The document, its source, the error or the keys: to be published at once.
    Content,
}

impl PolledEnvironment {
    pub fn new(
        id: EnvironmentId,
        config: EnvironmentConfig,
        discovered: Option<Vec<ServerKey>>,
        settings: &Config,
        now: Instant,
    ) -> Self {
        let interval = interval(&config, settings);
        Self {
            id,
            config,
            discovered,
            refused_keys: 0,
            schedule: Schedule::new(interval, now),
            held: None,
            freshness: Arc::default(),
            failing: None,
            seen: None,
            in_flight: false,
            full_at: None,
            full_jitter: jitter(),
            full_next: false,
            slow: false,
            alias_told: false,
            wanted: None,
            disbelieved: None,
            subscription: None,
        }
    }

    /// Whether upstream is asked for it.
    pub fn is_polled(&self) -> bool {
        self.config.document_path.is_none() && self.config.embedded_document.is_none()
    }

    /// Whether its keys are not known yet: they stand in a document that was never valid.
    pub fn is_unread(&self) -> bool {
        self.held.is_none() && self.config.client_side_key.is_empty()
    }

    /// Whether upstream told of it.
    pub fn is_discovered(&self) -> bool {
        self.discovered.is_some()
    }

    /// Its server-side keys, if discovery listed it.
    pub fn discovered_keys(&self) -> Option<&[ServerKey]> {
        self.discovered.as_deref()
    }

    /// Takes the server-side keys that upstream tells now; true if they are others.
    pub fn rekey(&mut self, keys: Vec<ServerKey>, now: Instant) -> bool {
        let keys = Some(keys);
        if self.discovered == keys {
            return false;
        }
        self.discovered = keys;
        self.refresh(now);
        true
    }

    /// Serves what was kept on disk until upstream has been reached.
    pub fn load(&mut self, records: &Records) {
        let Some(store) = records.store.as_ref().filter(|_| self.is_polled()) else { return };
        let key = ("client_side_key", &self.config.client_side_key as &dyn std::fmt::Display);
        let kept = match store.load(&self.config.client_side_key) {
            Ok(Some(kept)) => kept,
            Ok(None) => return,
            Err(damaged) => {
                return records.log.event(Level::Warning, "cache_file_ignored", &[key, ("reason", &damaged)]);
            }
        };
        match refresh::compile(&kept.document) {
            Ok((environment, _)) => {
                self.freshness.restore(kept.saved_at);
                self.held = Some(CurrentDocument {
                    environment: Arc::new(environment),
                    source: DocumentSource::Cache,
                    validators: kept.validators,
                    digest: kept.digest,
                    bytes: kept.document.len(),
                });
                let age = SystemTime::now().duration_since(kept.saved_at).unwrap_or_default();
                let fields = [key, ("age_seconds", &age.as_secs()), ("bytes", &kept.document.len())];
                records.log.event(Level::Info, "environment_loaded_from_cache", &fields);
            }
            Err(error) => {
                records.log.event(Level::Warning, "cache_file_ignored", &[key, ("reason", &error.message)]);
            }
        }
    }

    /// Takes new settings; what is held stays. True if the keys or the source are others now.
    pub fn reconfigure(&mut self, config: EnvironmentConfig, settings: &Config, now: Instant) -> bool {
        let is_other = self.config != config;
        self.config = config;
        self.schedule.set_interval(interval(&self.config, settings), now);
        if is_other {
            self.seen = None;
            self.refresh(now);
        }
        is_other
    }

    /// Asks for the whole document as soon as may be.
    pub fn refresh(&mut self, now: Instant) {
        self.full_next = true;
        self.schedule.hasten(now);
    }

    /// The key by which requests and the log know it.
    pub fn client_side_key(&self) -> &str {
        match &self.held {
            Some(held) if self.config.client_side_key.is_empty() => held.environment.client_side_key(),
            _ => &self.config.client_side_key,
        }
    }

    /// The name for a log when the key is not known yet.
    fn name(&self) -> String {
        match (self.client_side_key(), &self.config.document_path) {
            ("", Some(path)) => path.display().to_string(),
            (key, _) => key.to_string(),
        }
    }

    /// When to call [`job`](Self::job) next; `None` while a job is under way or nothing can change.
    pub fn due(&self) -> Option<Instant> {
        let settled = self.config.embedded_document.is_some() && self.held.is_some();
        (!self.in_flight && !settled).then(|| self.schedule.due())
    }

    /// The job that is due at `now`, if one is.
    pub fn job(
        &mut self,
        upstream: &Arc<Upstream>,
        settings: &Config,
        records: &Records,
        deadlines: Deadlines,
        now: Instant,
    ) -> Option<RefreshJob> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let Some(from) = self.from(upstream, settings, now) else {
            let message = "no server-side key to poll with: every one upstream told of has expired";
            let clock = SystemTime::now();
            self.failed(PollError::new(PollErrorKind::Key, message), deadlines, &records.log, now, clock);
            self.measure(records, now, clock);
            return None;
        };
        self.in_flight = true;
        let digest = self.held.as_ref().map(|held| held.digest);
        let is_kept = records.store.is_some() && self.is_polled();
        Some(RefreshJob { id: self.id, from, digest, is_kept })
    }

    /// A server-side key that is good now.
    fn key(&self) -> Option<Secret> {
        match &self.discovered {
            Some(keys) => {
                let clock = SystemTime::now();
                let good: Vec<_> = keys.iter().filter(|key| key.is_valid_at(clock)).collect();
                good.get(self.refused_keys % good.len().max(1)).map(|key| key.key.clone())
            }
            None => {
                let keys: Vec<_> = self.config.server_side_keys().collect();
                keys.get(self.refused_keys % keys.len().max(1)).map(|key| (*key).clone())
            }
        }
    }

    fn from(&mut self, upstream: &Arc<Upstream>, settings: &Config, now: Instant) -> Option<RefreshSource> {
        if let Some(text) = self.config.embedded_document {
            return Some(RefreshSource::Embedded(text));
        }
        if let Some(path) = &self.config.document_path {
            let (failed, bytes_max) = (self.error().cloned(), settings.api_document_bytes_max);
            return Some(RefreshSource::File { path: path.clone(), seen: self.seen, failed, bytes_max });
        }
        let key = self.key()?;
        let bytes = self.held.as_ref().map_or(0, |held| held.bytes);
        let refresh = full_refresh(settings.api_full_refresh, bytes, self.full_jitter);
        let is_full = std::mem::take(&mut self.full_next)
            || self.full_at.is_none_or(|at| now.duration_since(at) >= refresh);
        let held = self.held.as_ref().map(|held| &held.validators);
        let held = held.filter(|validators| !is_full && validators.are_usable()).cloned();
        if held.is_none() {
            // Taken back if the fetch fails.
            self.full_at = Some(now);
        }
        Some(RefreshSource::Upstream { upstream: Arc::clone(upstream), key, held })
    }

    /// Takes in what became of a job.
    pub fn done(
        &mut self,
        done: RefreshResult,
        records: &Records,
        deadlines: Deadlines,
        now: Instant,
        clock: SystemTime,
    ) -> Change {
        self.in_flight = false;
        self.seen = done.seen;
        let took = now.duration_since(done.started);
        self.count(&done.result, took, records);
        let change = match done.result {
            Ok(polled) => {
                self.schedule.succeeded(done.started, now, self.spread());
                self.tell_slow(took, &records.log);
                self.freshness.confirm(now, clock);
                let recovered = self.recovered(&records.log, now);
                let confirmed = self.confirm();
                let is_new = matches!(polled, Polled::New(_));
                match polled {
                    Polled::New(compiled) => self.replace(*compiled, took, clock, records),
                    Polled::Same(Some(validators)) => {
                        self.held.iter_mut().for_each(|held| held.renew(validators.clone()));
                    }
                    Polled::Same(None) => {}
                }
                if is_new || recovered || confirmed { Change::Content } else { Change::Nothing }
            }
            Err(error) => self.failed(error, deadlines, &records.log, now, clock),
        };
        self.check_wanted(records, now);
        self.measure(records, now, clock);
        change
    }

    fn count(&self, result: &Result<Polled, PollError>, took: Duration, records: &Records) {
        records.metrics.environment(self.client_side_key(), |environment| {
            environment.last_poll = took;
            match result {
                Ok(Polled::New(_)) => environment.polls_changed += 1,
                Ok(Polled::Same(_)) => environment.polls_unchanged += 1,
                Err(_) => environment.polls_failed += 1,
            }
        });
    }

    /// Writes the state as numbers.
    fn measure(&self, records: &Records, now: Instant, clock: SystemTime) {
        let time = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?);
        records.metrics.environment(self.client_side_key(), |environment: &mut EnvironmentMetrics| {
            environment.last_success = self.freshness.last_success();
            environment.last_error = self.error().map(|error| error.message.clone());
            environment.failing_since = self.failing.as_ref().map(|failing| failing.since);
            environment.failures = self.failing.as_ref().map_or(0, |failing| failing.count);
            environment.next_poll = clock.checked_add(self.schedule.due().saturating_duration_since(now));
            environment.source = self.held.as_ref().map(|held| held.source);
            environment.document_updated_at =
                self.held.as_ref().and_then(|held| held.environment.updated_at()).and_then(time);
        });
    }

    /// A document from disk that upstream just confirmed is upstream's.
    fn confirm(&mut self) -> bool {
        match &mut self.held {
            Some(held) if held.source == DocumentSource::Cache => {
                held.source = DocumentSource::Upstream;
                true
            }
            _ => false,
        }
    }

    fn replace(&mut self, mut compiled: Compiled, took: Duration, clock: SystemTime, records: &Records) {
        let log = &records.log;
        // Nobody else has it yet.
        if let (Some(held), Some(new)) = (&self.held, Arc::get_mut(&mut compiled.environment)) {
            new.replace(&held.environment);
        }
        let source = match (&self.config.document_path, self.config.embedded_document) {
            (Some(_), _) => DocumentSource::File,
            (None, Some(_)) => DocumentSource::Embedded,
            (None, None) => DocumentSource::Upstream,
        };
        let environment = Arc::clone(&compiled.environment);
        let (bytes, digest) = (compiled.document_bytes, compiled.digest);
        self.measure_change(&compiled, &environment, clock, records);
        let mut held =
            CurrentDocument { environment, source, validators: Validators::default(), digest, bytes };
        held.renew(compiled.validators);
        if let (Some(store), Some(document)) = (&records.store, compiled.document) {
            let kept =
                StoredDocument { document, validators: held.validators.clone(), digest, saved_at: clock };
            store.save(&self.config.client_side_key, kept);
        }
        self.held = Some(held);
        let name = self.name();
        log.event(
            Level::Info,
            "environment_updated",
            &[("client_side_key", &name), ("bytes", &bytes), ("took_ms", &took.as_millis())],
        );
        for warning in &compiled.warnings {
            log.event(
                Level::Warning,
                "document_warning",
                &[("client_side_key", &name), ("path", &warning.path), ("problem", &warning.message)],
            );
        }
        self.tell_alias(log);
    }

    fn measure_change(&self, compiled: &Compiled, new: &Environment, clock: SystemTime, records: &Records) {
        let was_live = self.held.as_ref().is_some_and(|held| held.source == DocumentSource::Upstream);
        let updated_at = new.updated_at().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let age = updated_at.and_then(|since| clock.duration_since(SystemTime::UNIX_EPOCH + since).ok());
        records.metrics.environment(self.client_side_key(), |environment| {
            environment.compile = compiled.took;
            environment.document_bytes = compiled.document_bytes as u64;
            environment.refused_conditions = compiled.warnings.len() as u64;
            let sizes = new.sizes();
            environment.name = sizes.name.to_string();
            environment.features = sizes.features as u64;
            environment.segments = sizes.segments as u64;
            environment.identity_overrides = sizes.identity_overrides as u64;
            if was_live && age.is_some() {
                environment.propagation = age;
            }
        });
    }

    /// The document may be of another key than the configured one; served all the same (as the
    /// original allows), said once.
    fn tell_alias(&mut self, log: &Log) {
        let Some(held) = &self.held else { return };
        let (configured, own) = (&self.config.client_side_key, held.environment.client_side_key());
        if !configured.is_empty() && configured != own && !self.alias_told {
            self.alias_told = true;
            log.event(
                Level::Warning,
                "client_side_key_is_an_alias",
                &[
                    ("client_side_key", configured),
                    ("document_api_key", &own),
                    ("hint", &"the server-side key belongs to another environment than the client-side key"),
                ],
            );
        }
    }

    fn tell_slow(&mut self, took: Duration, log: &Log) {
        let slow = took > self.schedule.interval() && self.config.document_path.is_none();
        if slow && !self.slow {
            log.event(
                Level::Warning,
                "environment_poll_slow",
                &[
                    ("client_side_key", &self.name()),
                    ("took_seconds", &format_args!("{:.1}", took.as_secs_f64())),
                    ("hint", &"a fetch takes longer than api_poll_frequency: raise it, or look at upstream"),
                ],
            );
        }
        self.slow = slow;
    }

    fn spread(&self) -> f64 {
        // Files are looked at, not asked for; there is nobody to spare.
        if self.config.document_path.is_some() { 0.5 } else { jitter() }
    }

    /// The keys that open it, as slot number `slot`.
    pub fn keys(&self, slot: usize) -> Vec<(Box<[u8]>, KeyAccess)> {
        let mut keys = Vec::new();
        let mut add = |key: &str, role, expires_at| {
            if !key.is_empty() {
                keys.push((key.as_bytes().into(), KeyAccess { slot, role, expires_at }));
            }
        };
        add(self.client_side_key(), Role::Client, None);
        for key in self.config.server_side_keys() {
            add(key.expose(), Role::Server, None);
        }
        for key in self.discovered.iter().flatten() {
            add(key.key.expose(), Role::Server, key.expires_at);
        }
        keys
    }

    /// What requests read of it.
    pub fn slot(&self) -> Slot {
        Slot {
            client_side_key: self.client_side_key().into(),
            environment: self.held.as_ref().map(|held| Arc::clone(&held.environment)),
            source: self.held.as_ref().map_or(DocumentSource::Upstream, |held| held.source),
            freshness: Arc::clone(&self.freshness),
            last_error: self.error().map(last_error),
        }
    }
}

fn last_error(error: &PollError) -> LastError {
    LastError { kind: error.kind.name(), text: error.message.as_str().into() }
}

fn interval(environment: &EnvironmentConfig, settings: &Config) -> Duration {
    if environment.document_path.is_some() { limits::FILE_POLL } else { settings.api_poll_frequency }
}

/// Seconds since the epoch as `If-Modified-Since` wants them.
fn imf_fixdate(seconds: f64) -> Option<String> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
    // httpdate panics beyond the year 9999.
    (seconds < limits::YEAR_10000_SECONDS as f64).then(|| httpdate::fmt_http_date(time))
}
