//! One environment under watch: what is held of it, and when to ask again.
//!
//! In: what became of each poll. Out: the next [`Job`], the [`Slot`] that requests read, and one line in
//! the log per change of state. Invariants: a document is replaced only by a better one; whatever
//! fails, the held one stays. Time is an argument.
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::poll::{PollError, Upstream, Validators};
use super::pool::{Compiled, Done, From, Id, Job, Stamp};
use super::schedule::{Schedule, jitter};
use crate::config::{Config, EnvironmentConfig, Level, Secret};
use crate::limits;
use crate::log::Log;
use crate::snapshot::{Access, Environment, Role, Slot, Source};

/// One configured environment.
#[derive(Debug)]
pub struct Watched {
    pub id: Id,
    pub config: EnvironmentConfig,
    pub schedule: Schedule,
    held: Option<Held>,
    last_success: Option<SystemTime>,
    failure: Option<PollError>,
    /// Of the file last read.
    seen: Option<Stamp>,
    in_flight: bool,
    /// When the last unconditional fetch succeeded.
    full_at: Option<Instant>,
    /// The next fetch must be unconditional: an event said that there is something new.
    full_next: bool,
    slow: bool,
    alias_told: bool,
}

/// The last good document.
#[derive(Debug)]
struct Held {
    environment: Arc<Environment>,
    source: Source,
    validators: Validators,
    digest: [u8; 32],
}

/// What a poll changed for those who read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Only when it was last confirmed.
    Freshness,
    /// The document, the error or the keys: to be published at once.
    Content,
}

impl Watched {
    pub fn new(id: Id, config: EnvironmentConfig, settings: &Config, now: Instant) -> Self {
        let interval =
            if config.document_path.is_some() { limits::FILE_POLL } else { settings.api_poll_frequency };
        Self {
            id,
            config,
            schedule: Schedule::new(interval, now),
            held: None,
            last_success: None,
            failure: None,
            seen: None,
            in_flight: false,
            full_at: None,
            full_next: false,
            slow: false,
            alias_told: false,
        }
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
    pub fn job(&mut self, upstream: &Arc<Upstream>, settings: &Config, now: Instant) -> Option<Job> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let from = self.from(upstream, settings, now)?;
        self.in_flight = true;
        Some(Job { id: self.id, from, digest: self.held.as_ref().map(|held| held.digest) })
    }

    fn from(&mut self, upstream: &Arc<Upstream>, settings: &Config, now: Instant) -> Option<From> {
        if let Some(text) = self.config.embedded_document {
            return Some(From::Embedded(text));
        }
        if let Some(path) = &self.config.document_path {
            return Some(From::File { path: path.clone(), seen: self.seen, failed: self.failure.clone() });
        }
        let key: Secret = self.config.server_side_key.clone()?;
        let full = std::mem::take(&mut self.full_next)
            || self.full_at.is_none_or(|at| now.duration_since(at) >= settings.api_full_refresh);
        if full {
            // Taken back if the fetch fails.
            self.full_at = Some(now);
        }
        let held = if full { None } else { self.held.as_ref().map(|held| held.validators.clone()) };
        Some(From::Upstream { upstream: Arc::clone(upstream), key, held })
    }

    /// Takes in what became of a job.
    pub fn done(&mut self, done: Done, log: &Log, now: Instant, clock: SystemTime) -> Change {
        self.in_flight = false;
        self.seen = done.seen;
        match done.result {
            Ok(compiled) => {
                self.schedule.succeeded(done.started, now, self.spread());
                self.tell_slow(now.duration_since(done.started), log);
                let recovered = self.failure.take().is_some();
                if recovered {
                    log.event(Level::Info, "environment_recovered", &[("client_side_key", &self.name())]);
                }
                self.last_success = Some(clock);
                let confirmed = self.confirm();
                match compiled {
                    Some(compiled) => {
                        self.replace(compiled, now.duration_since(done.started), log);
                        Change::Content
                    }
                    None if recovered || confirmed => Change::Content,
                    None => Change::Freshness,
                }
            }
            Err(error) => self.failed(error, log, now),
        }
    }

    /// A document from disk that upstream just confirmed is upstream's.
    fn confirm(&mut self) -> bool {
        match &mut self.held {
            Some(held) if held.source == Source::Cache => {
                held.source = Source::Upstream;
                true
            }
            _ => false,
        }
    }

    fn failed(&mut self, error: PollError, log: &Log, now: Instant) -> Change {
        self.full_at = None;
        let delay = if self.config.document_path.is_some() {
            self.schedule.succeeded(now, now, self.spread());
            self.schedule.interval()
        } else {
            self.schedule.failed(now, self.held.is_some(), error.retry_after, self.spread())
        };
        let same = self.failure.as_ref().is_some_and(|before| before.kind == error.kind);
        if !same {
            let event = if self.config.document_path.is_some() {
                "document_refused"
            } else {
                "environment_poll_failed"
            };
            let serving = if self.held.is_some() { "the last good document" } else { "nothing (502)" };
            log.event(
                Level::Error,
                event,
                &[
                    ("client_side_key", &self.name()),
                    ("error", &error.message),
                    ("serving", &serving),
                    ("retry_seconds", &format_args!("{:.1}", delay.as_secs_f64())),
                ],
            );
        }
        self.failure = Some(error);
        if same { Change::Freshness } else { Change::Content }
    }

    fn replace(&mut self, compiled: Compiled, took: Duration, log: &Log) {
        let source = match (&self.config.document_path, self.config.embedded_document) {
            (Some(_), _) => Source::File,
            (None, Some(_)) => Source::Embedded,
            (None, None) => Source::Upstream,
        };
        let environment = compiled.environment;
        let mut validators = compiled.validators;
        if validators.last_modified.is_none() {
            // wire.md 4.1: cut to seconds, in GMT, or core does not read it.
            validators.last_modified = environment.updated_at().and_then(imf_fixdate);
        }
        self.held = Some(Held { environment, source, validators, digest: compiled.digest });
        let name = self.name();
        log.event(
            Level::Info,
            "environment_updated",
            &[
                ("client_side_key", &name),
                ("bytes", &compiled.document.len()),
                ("took_ms", &took.as_millis()),
            ],
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
    pub fn keys(&self, slot: usize) -> impl Iterator<Item = (Box<[u8]>, Access)> + '_ {
        let client = (!self.client_side_key().is_empty()).then(|| (self.client_side_key(), Role::Client));
        let server = self.config.server_side_key.as_ref().map(|key| (key.expose(), Role::Server));
        client
            .into_iter()
            .chain(server)
            .map(move |(key, role)| (key.as_bytes().into(), Access { slot, role, expires_at: None }))
    }

    /// What requests read of it.
    pub fn slot(&self) -> Slot {
        Slot {
            client_side_key: self.client_side_key().into(),
            environment: self.held.as_ref().map(|held| Arc::clone(&held.environment)),
            source: self.held.as_ref().map_or(Source::Upstream, |held| held.source),
            last_success: self.last_success,
            last_error: self.failure.as_ref().map(|error| error.message.as_str().into()),
        }
    }
}

/// Seconds since the epoch as `If-Modified-Since` wants them.
fn imf_fixdate(seconds: f64) -> Option<String> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
    // httpdate panics beyond the year 9999.
    (seconds < 253_402_300_800.0).then(|| httpdate::fmt_http_date(time))
}
