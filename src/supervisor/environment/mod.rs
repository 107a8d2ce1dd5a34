//! The polling state of one environment: its current document, its failures, and when to refresh it next.
//! A document is replaced only by a valid one; after any failure the current one stays in use.
mod deadlines;
mod delta;
mod document;
mod failure;
mod keys;
mod pending;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, EnvironmentConfig, Level};
use crate::files::FileVersion;
use crate::limits;
use crate::schedule::{Schedule, full_refresh};
use crate::snapshot::{DocumentSource, Freshness, KeyAccess, PublishedDocument, ReportedOnce, Slot};
use crate::storage::StoredDocument;
use crate::supervisor::action::Action;
use crate::supervisor::context::{EventContext, Now};
pub use crate::supervisor::environment::deadlines::Deadlines;
use crate::supervisor::environment::document::CurrentDocument;
use crate::supervisor::environment::failure::FailureState;
use crate::supervisor::environment::keys::ServerKeys;
use crate::supervisor::environment::pending::{Announcements, NextStep};
use crate::supervisor::refresh::{
    Compiled, EnvironmentId, LoadError, LoadedDocument, Polled, RefreshJob, RefreshResult, RefreshSource,
};
use crate::upstream::{PollError, PollErrorKind, ServerKey};

/// One environment, configured or discovered.
#[derive(Debug)]
pub struct PolledEnvironment {
    pub id: EnvironmentId,
    pub config: EnvironmentConfig,
    server_keys: ServerKeys,
    schedule: Schedule,
    document: Option<CurrentDocument>,
    freshness: Arc<Freshness>,
    reported: Arc<ReportedOnce>,
    failure: Option<FailureState>,
    /// The version of the file that was read last.
    file_version: Option<FileVersion>,
    in_flight: bool,
    /// When the last unconditional fetch was started, unless it failed.
    full_at: Option<Instant>,
    /// Shortens the time to the next unconditional fetch, so that replicas do not fetch in step.
    full_jitter: f64,
    /// The next fetch must be unconditional.
    full_next: bool,
    is_slow: bool,
    is_alias_logged: bool,
    announcements: Announcements,
}

impl PolledEnvironment {
    pub fn new(
        id: EnvironmentId,
        config: EnvironmentConfig,
        discovered: Option<Vec<ServerKey>>,
        settings: &Config,
        now: Now,
    ) -> Self {
        let interval = interval(&config, settings);
        Self {
            id,
            config,
            server_keys: ServerKeys::new(discovered),
            schedule: Schedule::new(interval, now.instant),
            document: None,
            freshness: Arc::new(Freshness::new(now.instant)),
            reported: Arc::default(),
            failure: None,
            file_version: None,
            in_flight: false,
            full_at: None,
            full_jitter: now.jitter_of(id),
            full_next: false,
            is_slow: false,
            is_alias_logged: false,
            announcements: Announcements::default(),
        }
    }

    /// Whether its keys are unknown because they are part of a document that was never valid.
    pub fn is_unread(&self) -> bool {
        self.document.is_none() && self.config.client_side_key.is_empty()
    }

    pub fn is_discovered(&self) -> bool {
        self.server_keys.discovered.is_some()
    }

    /// The server-side keys of a discovered environment.
    pub fn discovered_keys(&self) -> Option<&[ServerKey]> {
        self.server_keys.discovered.as_deref()
    }

    /// Replaces the server-side keys of a discovered environment; true if they differ.
    pub fn set_discovered_keys(&mut self, keys: Vec<ServerKey>, now: Now) -> bool {
        let keys = Some(keys);
        if self.server_keys.discovered == keys {
            return false;
        }
        self.server_keys.discovered = keys;
        self.refresh(now);
        true
    }

    /// Serves a document from `cache_dir` until upstream has responded.
    pub fn loaded(
        &mut self,
        result: Result<Option<LoadedDocument>, LoadError>,
        context: &mut EventContext<'_>,
    ) {
        let key = ("client_side_key", &self.config.client_side_key as &dyn std::fmt::Display);
        match result {
            // Upstream was faster.
            _ if self.document.is_some() => {}
            Ok(None) => {}
            Ok(Some(stored)) => {
                self.freshness.restore(stored.saved_at);
                let age = context.now.wall.duration_since(stored.saved_at).unwrap_or_default();
                let fields = [key, ("age_seconds", &age.as_secs()), ("bytes", &stored.bytes)];
                context.actions.log(Level::Info, "environment_loaded_from_cache", &fields);
                self.document = Some(CurrentDocument::from_storage(stored));
            }
            Err(error) => {
                context.actions.log(Level::Warning, "cache_file_ignored", &[key, ("reason", &error)]);
            }
        }
    }

    /// Replaces the settings and keeps the document. True if the keys or the source differ.
    pub fn reconfigure(&mut self, config: EnvironmentConfig, settings: &Config, now: Now) -> bool {
        let is_other = self.config != config;
        self.config = config;
        self.schedule.set_interval(interval(&self.config, settings), now.instant);
        if is_other {
            self.file_version = None;
            self.refresh(now);
        }
        is_other
    }

    /// Makes an unconditional fetch due now. Upstream or the key may be another one.
    pub fn refresh(&mut self, now: Now) {
        self.full_next = true;
        self.document.iter_mut().for_each(|document| document.validators.offers_deltas = false);
        self.schedule.hasten(now.instant);
    }

    /// Makes an unconditional fetch due now, `Retry-After` permitting: the event stream announced a document.
    pub fn announced(&mut self, updated_at: f64, now: Now) {
        if self.announcements.add(updated_at, self.upstream_updated_at(), now.instant) {
            self.full_next = true;
            self.schedule.hasten_after_retry_after(now.instant);
        }
    }

    /// The key that requests and logs use: the configured one, else that of the document.
    pub fn client_side_key(&self) -> &str {
        match &self.document {
            Some(document) if self.config.client_side_key.is_empty() => {
                document.published.environment.client_side_key()
            }
            _ => &self.config.client_side_key,
        }
    }

    /// The name in logs: the path of the document while the key is unknown.
    fn name(&self) -> String {
        match (self.client_side_key(), &self.config.document_path) {
            ("", Some(path)) => path.display().to_string(),
            (key, _) => key.to_string(),
        }
    }

    /// When [`tick`](Self::tick) starts the next refresh; `None` while one is in flight or nothing can
    /// change.
    pub fn due(&self) -> Option<Instant> {
        let is_final = self.config.embedded_document.is_some() && self.document.is_some();
        (!self.in_flight && !is_final).then(|| self.schedule.due())
    }

    /// Starts the refresh that is due, if one is. True if the slot changed because there is no valid key.
    pub fn tick(&mut self, deadlines: Deadlines, context: &mut EventContext<'_>) -> bool {
        let now = context.now;
        if self.due().is_none_or(|due| due > now.instant) {
            return false;
        }
        let Some(source) = self.source(context.config, now) else {
            let message = "no server-side key to poll with: all discovered keys have expired";
            let is_changed = self.failed(PollError::new(PollErrorKind::Key, message), deadlines, context);
            self.update_metrics(context);
            return is_changed;
        };
        self.in_flight = true;
        let digest = self.document.as_ref().map(|document| document.digest);
        let current = self.document.as_ref().filter(|_| context.config.document_deltas);
        let current = current.map(|document| Arc::clone(&document.published.environment));
        let is_stored = context.has_storage && self.config.is_polled();
        let (id, label) = (self.id, self.client_side_key().into());
        context.actions.push(Action::Refresh(RefreshJob { id, label, source, digest, current, is_stored }));
        false
    }

    fn source(&mut self, settings: &Config, now: Now) -> Option<RefreshSource> {
        if let Some(text) = self.config.embedded_document {
            return Some(RefreshSource::Embedded(text));
        }
        if let Some(path) = self.config.document_path.clone() {
            let (failed, bytes_max) = (self.error().cloned(), settings.api_document_bytes_max);
            return Some(RefreshSource::File { path, seen: self.file_version, failed, bytes_max });
        }
        let key = self.server_keys.select(&self.config, now.wall)?;
        let bytes = self.document.as_ref().map_or(0, |document| document.bytes);
        let interval = full_refresh(settings.api_full_refresh, bytes, self.full_jitter);
        let is_full = std::mem::take(&mut self.full_next)
            || self.full_at.is_none_or(|at| now.instant.duration_since(at) >= interval);
        let validators = self.document.as_ref().map(|document| &document.validators);
        let accepts_delta = validators.is_some_and(|validators| validators.offers_deltas);
        let validators = validators.filter(|validators| !is_full && validators.are_usable()).cloned();
        if validators.is_none() {
            // Reset if the fetch fails.
            self.full_at = Some(now.instant);
        }
        Some(RefreshSource::Upstream { key, validators, accepts_delta })
    }

    /// Applies the result of a refresh. True if the slot changed, so that a snapshot must be published; when
    /// the document was last confirmed is shared with the published snapshots and needs none.
    pub fn refreshed(
        &mut self,
        refreshed: RefreshResult,
        deadlines: Deadlines,
        context: &mut EventContext<'_>,
    ) -> bool {
        let now = context.now;
        self.in_flight = false;
        self.file_version = refreshed.seen;
        let took = now.instant.duration_since(refreshed.started);
        self.count(&refreshed.result, took, context);
        delta::record(&refreshed.delta, &self.name(), context);
        let is_changed = match refreshed.result {
            Ok(polled) => {
                self.schedule.succeeded(refreshed.started, now.instant, self.interval_jitter(now));
                self.log_slow(took, context);
                self.freshness.confirm(now.instant, now.wall);
                let has_recovered = self.recovered(context);
                let is_confirmed = self.confirm();
                let is_new = matches!(polled, Polled::New(_));
                match polled {
                    Polled::New(compiled) => self.replace(*compiled, took, context),
                    Polled::Same(Some(validators)) => {
                        self.document.iter_mut().for_each(|document| {
                            document.set_validators(validators.clone());
                        });
                    }
                    Polled::Same(None) => {}
                }
                is_new || has_recovered || is_confirmed
            }
            Err(error) => self.failed(error, deadlines, context),
        };
        self.check_announcements(context);
        self.update_metrics(context);
        is_changed
    }

    /// The error of the last poll.
    fn error(&self) -> Option<&PollError> {
        self.failure.as_ref().map(|failure| &failure.error)
    }

    /// Schedules a retry after a failed poll. True if the error differs from the last one.
    fn failed(&mut self, error: PollError, deadlines: Deadlines, context: &mut EventContext<'_>) -> bool {
        let now = context.now;
        self.full_at = None;
        if matches!(error.kind, PollErrorKind::Status(401 | 403)) {
            self.server_keys.reject();
        }
        let is_file = self.config.document_path.is_some();
        let delay = if is_file {
            self.schedule.succeeded(now.instant, now.instant, self.interval_jitter(now));
            self.schedule.interval()
        } else {
            let source = self.document.as_ref().map(|document| document.published.source);
            let retry = deadlines.retry(source, self.freshness.age_at(now.instant));
            self.schedule.failed(now.instant, retry, error.retry_after, now.jitter_of(self.id))
        };
        let (is_other, is_logged) = match &mut self.failure {
            Some(failure) => failure.repeat(error, now.instant),
            None => {
                self.failure = Some(FailureState::new(error, now.instant, now.wall));
                (true, true)
            }
        };
        if let Some(failure) = self.failure.as_ref().filter(|_| is_logged) {
            let event = if is_file { "document_refused" } else { "environment_poll_failed" };
            let serving = if self.document.is_some() { "the last good document" } else { "nothing (502)" };
            context.actions.log(
                Level::Error,
                event,
                &[
                    ("client_side_key", &self.name()),
                    ("error", &failure.error.message),
                    ("serving", &serving),
                    ("failures_count", &failure.count),
                    ("failing_seconds", &failure.lasted(now.instant).as_secs()),
                    ("retry_seconds", &format_args!("{:.1}", delay.as_secs_f64())),
                ],
            );
        }
        is_other
    }

    /// Clears the failure; true if there was one.
    fn recovered(&mut self, context: &mut EventContext<'_>) -> bool {
        let Some(failure) = self.failure.take() else { return false };
        context.actions.log(
            Level::Info,
            "environment_recovered",
            &[
                ("client_side_key", &self.name()),
                ("failures_count", &failure.count),
                ("failing_seconds", &failure.lasted(context.now.instant).as_secs()),
            ],
        );
        true
    }

    /// The document, if it is from upstream.
    fn upstream_document(&self) -> Option<&PublishedDocument> {
        let published = self.document.as_ref().map(|document| &document.published);
        published.filter(|published| published.source == DocumentSource::Upstream)
    }

    fn upstream_updated_at(&self) -> Option<f64> {
        self.upstream_document()?.updated_at
    }

    fn check_announcements(&mut self, context: &mut EventContext<'_>) {
        let (current, has_failed) = (self.upstream_updated_at(), self.failure.is_some());
        match self.announcements.polled(current, has_failed, context.now.instant) {
            NextStep::Nothing => {}
            NextStep::FetchWhole => self.full_next = true,
            NextStep::FetchWholeAt(at) => {
                self.full_next = true;
                self.schedule.hasten(at);
            }
            NextStep::Dropped(updated_at) => context.actions.log(
                Level::Warning,
                "realtime_event_ignored",
                &[
                    ("client_side_key", &self.name()),
                    ("updated_at", &updated_at),
                    ("hint", &"the event stream announced a document that upstream does not serve"),
                ],
            ),
        }
    }

    fn count(&self, result: &Result<Polled, PollError>, took: Duration, context: &EventContext<'_>) {
        context.metrics.environment(self.client_side_key(), |environment| {
            environment.last_poll = took;
            match result {
                Ok(Polled::New(_)) => environment.polls_changed += 1,
                Ok(Polled::Same(_)) => environment.polls_unchanged += 1,
                Err(_) => environment.polls_failed += 1,
            }
        });
    }

    fn update_metrics(&self, context: &EventContext<'_>) {
        let Now { instant, wall, .. } = context.now;
        context.metrics.environment(self.client_side_key(), |environment| {
            environment.failing_since = self.failure.as_ref().map(|failure| failure.since);
            environment.failures = self.failure.as_ref().map_or(0, |failure| failure.count);
            environment.next_poll = wall.checked_add(self.schedule.due().saturating_duration_since(instant));
        });
    }

    /// A document from `cache_dir` that upstream confirms counts as upstream's; true if this one does from
    /// now on.
    fn confirm(&mut self) -> bool {
        match &mut self.document {
            Some(document) if document.published.source == DocumentSource::Cache => {
                document.published.source = DocumentSource::Upstream;
                true
            }
            _ => false,
        }
    }

    fn replace(&mut self, compiled: Compiled, took: Duration, context: &mut EventContext<'_>) {
        let source = match (&self.config.document_path, self.config.embedded_document) {
            (Some(_), _) => DocumentSource::File,
            (None, Some(_)) => DocumentSource::Embedded,
            (None, None) => DocumentSource::Upstream,
        };
        let (bytes, digest) = (compiled.document_bytes, compiled.digest);
        self.update_document_metrics(&compiled, context);
        let environment = compiled.environment;
        let published = match &self.document {
            Some(before) => before.published.next(environment, source, compiled.edited_at),
            None => PublishedDocument::first(environment, source),
        };
        let new = CurrentDocument::new(published, compiled.validators, digest, bytes);
        if let Some(document) = compiled.document.filter(|_| context.has_storage) {
            let validators = new.validators.clone();
            let kept = StoredDocument { document, validators, digest, saved_at: context.now.wall };
            context.actions.push(Action::Store { name: self.config.client_side_key.clone(), kept });
        }
        self.document = Some(new);
        let name = self.name();
        context.actions.log(
            Level::Info,
            "environment_updated",
            &[("client_side_key", &name), ("bytes", &bytes), ("took_ms", &took.as_millis())],
        );
        for warning in &compiled.warnings {
            context.actions.log(
                Level::Warning,
                "document_warning",
                &[("client_side_key", &name), ("path", &warning.path), ("problem", &warning.message)],
            );
        }
        self.log_alias(context);
    }

    fn update_document_metrics(&self, compiled: &Compiled, context: &EventContext<'_>) {
        let propagation = self.upstream_document().and_then(|_| compiled.age(context.now.wall));
        context.metrics.environment(self.client_side_key(), |environment| {
            compiled.record(environment);
            environment.propagation = propagation.or(environment.propagation);
        });
    }

    /// Logs once that the document belongs to another key than the configured one, which is allowed.
    fn log_alias(&mut self, context: &mut EventContext<'_>) {
        let Some(document) = &self.document else { return };
        let (configured, own) =
            (&self.config.client_side_key, document.published.environment.client_side_key());
        if !configured.is_empty() && configured != own && !self.is_alias_logged {
            self.is_alias_logged = true;
            context.actions.log(
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

    fn log_slow(&mut self, took: Duration, context: &mut EventContext<'_>) {
        let is_slow = took > self.schedule.interval() && self.config.document_path.is_none();
        if is_slow && !self.is_slow {
            context.actions.log(
                Level::Warning,
                "environment_poll_slow",
                &[
                    ("client_side_key", &self.name()),
                    ("took_seconds", &format_args!("{:.1}", took.as_secs_f64())),
                    ("hint", &"a fetch takes longer than api_poll_frequency: raise it, or check upstream"),
                ],
            );
        }
        self.is_slow = is_slow;
    }

    /// Files are read at a fixed interval: there is no server to protect from synchronized requests.
    fn interval_jitter(&self, now: Now) -> f64 {
        if self.config.document_path.is_some() { 0.5 } else { now.jitter_of(self.id) }
    }

    /// The keys of slot number `slot`.
    pub fn keys(&self, slot: usize) -> Vec<(Box<[u8]>, KeyAccess)> {
        self.server_keys.access(&self.config, self.client_side_key(), slot)
    }

    /// What requests read.
    pub fn slot(&self) -> Slot {
        Slot {
            client_side_key: self.client_side_key().into(),
            document: self.document.as_ref().map(|document| document.published.clone()),
            freshness: Arc::clone(&self.freshness),
            reported: Arc::clone(&self.reported),
            last_error: self.failure.as_ref().map(FailureState::last_error),
            number: self.id,
        }
    }
}

fn interval(environment: &EnvironmentConfig, settings: &Config) -> Duration {
    if environment.document_path.is_some() { limits::FILE_POLL } else { settings.api_poll_frequency }
}
