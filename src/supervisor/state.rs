//! The supervisor's state machine: decides which documents are fetched, what is published, and when to stop.
//!
//! [`Supervisor::handle`] is a function of the state, an event and the time: it does no I/O, reads no clock
//! and starts no thread, so that tests drive it through hours of outages without waiting. The last valid
//! document of an environment is never dropped while the environment is configured.
use std::sync::Arc;
use std::time::Instant;

use crate::analytics::batch::ReportKind;
use crate::analytics::upload::RoundResult;
use crate::channel::ReactorMessage;
use crate::config::settings::restart_required;
use crate::config::{Config, Level, TraitsStore};
use crate::files::FileVersion;
use crate::forwarding::round::ForwardResult;
use crate::limits;
use crate::metrics::Metrics;
use crate::supervisor::action::{Action, Actions, SupervisorResult};
use crate::supervisor::certificates::CertificateWatch;
use crate::supervisor::config_file::{LoadedConfig, ReloadError};
use crate::supervisor::context::{EventContext, Now};
use crate::supervisor::discovery::Discovery;
use crate::supervisor::environments::Environments;
use crate::supervisor::event::{DiscoveryResult, Event};
use crate::supervisor::events::Forwarding;
use crate::supervisor::reload::ConfigWatch;
use crate::supervisor::signals::Signal;
use crate::supervisor::uploads::{StoredUploads, Uploads};

/// The phases of the process. Each ends in the next.
#[derive(Clone, Copy, Debug)]
enum Lifecycle {
    Serving,
    /// Readiness fails, requests are still served, until then.
    Delaying(Instant),
    /// Reactors finish their requests, until then.
    Draining(Instant),
    /// Reactors end what is still open and report their counts. Those that have not by then are abandoned.
    Ending(Instant),
    /// Counts are uploaded and events forwarded. `last` is the kind whose last upload is in flight.
    Flushing {
        until: Instant,
        last: Option<ReportKind>,
        is_uploaded: bool,
        result: SupervisorResult,
    },
}

/// What the state machine is created with.
#[derive(Debug)]
pub struct SupervisorOptions {
    pub config: Config,
    pub metrics: Arc<Metrics>,
    /// `cache_dir` is set and usable.
    pub has_storage: bool,
    /// There is a TLS listener.
    pub has_certificates: bool,
    pub config_files: Option<Vec<FileVersion>>,
    pub stored_uploads: StoredUploads,
}

/// The state of the control plane.
#[derive(Debug)]
pub struct Supervisor {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    has_storage: bool,
    environments: Environments,
    discovery: Option<Discovery>,
    uploads: Uploads,
    forwarding: Option<Forwarding>,
    config_watch: ConfigWatch,
    certificates: Option<CertificateWatch>,
    /// Of the last published snapshot.
    version: u64,
    /// When the next snapshot is due, if something changed.
    publish_at: Option<Instant>,
    lifecycle: Lifecycle,
}

impl Supervisor {
    pub fn new(options: SupervisorOptions, now: Instant) -> Self {
        let SupervisorOptions { config, metrics, has_storage, .. } = options;
        Self {
            environments: Environments::default(),
            discovery: Discovery::new(&config, now),
            forwarding: Forwarding::new(&config, now),
            uploads: Uploads::new(&config, options.stored_uploads, now),
            config_watch: ConfigWatch::new(&config, options.config_files, now),
            certificates: options.has_certificates.then(|| CertificateWatch::new(now)),
            config: Arc::new(config),
            metrics,
            has_storage,
            version: 0,
            publish_at: None,
            lifecycle: Lifecycle::Serving,
        }
    }

    /// When the next [`Event::Tick`] is due, if no other event arrives before.
    pub fn due(&self) -> Option<Instant> {
        let phase = match self.lifecycle {
            Lifecycle::Flushing { until, .. } => return Some(until),
            Lifecycle::Delaying(until) | Lifecycle::Draining(until) | Lifecycle::Ending(until) => Some(until),
            Lifecycle::Serving => None,
        };
        let environments = self.environments.due().filter(|_| !self.is_draining());
        environments
            .chain(phase)
            .chain(self.discovery.as_ref().and_then(Discovery::due))
            .chain(self.uploads.due())
            .chain(self.forwarding.as_ref().and_then(Forwarding::due))
            .chain(self.publish_at)
            .chain(self.config_watch.due())
            .chain(self.certificates.as_ref().map(CertificateWatch::due))
            .min()
    }

    /// Reactors are ending: ticks are due every few milliseconds.
    pub fn is_draining(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Draining(_) | Lifecycle::Ending(_))
    }

    fn is_flushing(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Flushing { .. })
    }

    /// Applies an event at a time. Returns what to do, in order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let (config, metrics) = (Arc::clone(&self.config), Arc::clone(&self.metrics));
        let mut actions = Actions::default();
        let has_storage = self.has_storage;
        let context =
            &mut EventContext { config: &config, metrics: &metrics, has_storage, now, actions: &mut actions };
        match event {
            // Only the last uploads are waited for, and a signal ends that too.
            _ if self.is_flushing() && !matters_while_flushing(&event) => {}
            Event::Started => self.started(context),
            Event::Tick { reactors } => self.tick(reactors, context),
            Event::Signal(Signal::Stop) => self.stop(context),
            Event::Signal(Signal::Reload) => self.read_config(true, context),
            Event::Signal(Signal::ReopenLog) => context.actions.push(Action::ReopenAccessLog),
            Event::DocumentLoaded { id, result } => self.environments.loaded(id, result, context),
            Event::DiscoveryLoaded(result) => {
                let known = self.environments.known_keys();
                let discovery = self.discovery.as_mut();
                let environments = discovery.and_then(|discovery| discovery.loaded(result, &known, context));
                if let Some(environments) = environments {
                    self.environments.set_discovered(environments, context);
                    self.environments.update_streams(context);
                }
            }
            Event::Refreshed(refreshed) => {
                if self.environments.refreshed(refreshed, context) {
                    self.publish_by(now.instant);
                }
            }
            Event::Discovered(result) => self.discovered(result, context),
            Event::Counted(counts) => self.uploads.counted(counts, &self.environments.polled_keys(), context),
            Event::Uploaded(posted) => self.uploaded(posted, context),
            Event::UploadNotStarted { kind, error } => self.uploads.not_started(kind, &error, context),
            Event::EventsForwarded(result) => self.forwarded(&result, context),
            Event::ForwardingNotStarted(error) => {
                self.forwarding.iter_mut().for_each(|one| one.not_started(&error, context));
            }
            Event::Announced { id, updated_at } => self.environments.announced(id, updated_at, context),
            Event::StreamFailed { id, error } => self.environments.stream_failed(id, &error, context),
            Event::ConfigFiles(versions) => {
                if self.config_watch.is_new(versions) {
                    self.read_config(false, context);
                }
            }
            Event::ConfigRead { is_requested, result } => self.config_read(is_requested, result, context),
            Event::CertificatesRead(result) => {
                if let Some(certificates) = &self.certificates {
                    certificates.read(result, context);
                }
            }
        }
        actions.into_vec()
    }

    fn started(&mut self, context: &mut EventContext<'_>) {
        self.environments.set_configured(&context.config.environments, context);
        self.environments.update_streams(context);
        if self.discovery.is_some() && context.has_storage {
            context.actions.push(Action::LoadDiscovery);
        }
        self.publish_by(context.now.instant);
    }

    fn discovered(&mut self, result: DiscoveryResult, context: &mut EventContext<'_>) {
        let known = self.environments.known_keys();
        let Some(discovery) = &mut self.discovery else { return };
        let Some(discovered) = discovery.fetched(result, &known, context) else { return };
        let is_changed = self.environments.set_discovered(discovered.environments, context);
        self.environments.update_streams(context);
        if is_changed || discovered.is_first {
            self.publish_by(context.now.instant);
        }
    }

    fn tick(&mut self, reactors: usize, context: &mut EventContext<'_>) {
        self.advance(reactors, context);
        if self.is_flushing() {
            return self.flush(context);
        }
        self.config_watch.tick(context);
        if let Some(certificates) = &mut self.certificates {
            certificates.tick(context);
        }
        if self.publish_at.is_some_and(|at| at <= context.now.instant) {
            self.publish(context);
        }
        if !self.is_draining() && self.environments.tick(context) {
            self.publish_by(context.now.instant);
        }
        if let Some(discovery) = &mut self.discovery {
            discovery.tick(context);
        }
        self.uploads.tick(context);
        self.forwarding.iter_mut().for_each(|forwarding| forwarding.tick(context));
    }

    /// Moves to the next phase if the current one is over.
    fn advance(&mut self, reactors: usize, context: &mut EventContext<'_>) {
        let now = context.now.instant;
        let flushing = |result| Lifecycle::Flushing {
            until: now + limits::LAST_UPLOAD_TIMEOUT,
            last: None,
            is_uploaded: false,
            result,
        };
        self.lifecycle = match self.lifecycle {
            Lifecycle::Delaying(until) if now >= until => {
                context.actions.log(Level::Info, "draining", &[]);
                context.actions.push(Action::Send(ReactorMessage::Drain));
                Lifecycle::Draining(now + context.config.server.shutdown_grace)
            }
            // A process that serves nothing must end, so that its service manager restarts it.
            Lifecycle::Serving | Lifecycle::Delaying(_) if reactors == 0 => {
                flushing(Err("no reactor is running: see the log for the reason"))
            }
            Lifecycle::Draining(_) | Lifecycle::Ending(_) if reactors == 0 => flushing(Ok(())),
            Lifecycle::Draining(until) if now >= until => {
                context.actions.push(Action::Send(ReactorMessage::End));
                Lifecycle::Ending(now + limits::LAST_COUNTS_TIMEOUT)
            }
            Lifecycle::Ending(until) if now >= until => {
                let fields: [(_, &dyn std::fmt::Display); 1] = [("reactors", &reactors)];
                context.actions.log(Level::Warning, "shutdown_timeout", &fields);
                flushing(Ok(()))
            }
            phase => phase,
        };
    }

    /// The first signal starts a graceful shutdown; each further one skips the wait of the current phase.
    fn stop(&mut self, context: &mut EventContext<'_>) {
        let now = context.now.instant;
        match self.lifecycle {
            Lifecycle::Serving => {
                let delay = context.config.server.shutdown_delay;
                let hint = "a second signal ends the wait";
                let fields: [(_, &dyn std::fmt::Display); 2] =
                    [("delay_seconds", &delay.as_secs_f64()), ("hint", &hint)];
                context.actions.log(Level::Info, "stopping", &fields);
                context.actions.push(Action::NotifyStopping);
                self.lifecycle = Lifecycle::Delaying(now + delay);
                self.publish(context);
            }
            Lifecycle::Delaying(_) => {
                self.lifecycle = Lifecycle::Delaying(now);
                let grace = context.config.server.shutdown_grace.as_secs_f64();
                let effect = format!(
                    "no new connections are accepted; open requests have {grace} s; a further signal ends them"
                );
                context.actions.log(Level::Warning, "stopping_sooner", &[("effect", &effect)]);
            }
            Lifecycle::Draining(_) => {
                self.lifecycle = Lifecycle::Draining(now);
                let patience = limits::LAST_UPLOAD_TIMEOUT.as_secs();
                let effect = format!("open requests are ended; counts are uploaded within {patience} s");
                context.actions.log(Level::Warning, "stopping_sooner", &[("effect", &effect)]);
            }
            Lifecycle::Ending(_) => {
                self.lifecycle = Lifecycle::Ending(now);
                let effect = "reactors that do not end are abandoned with their last counts";
                context.actions.log(Level::Warning, "stopping_sooner", &[("effect", &effect)]);
            }
            Lifecycle::Flushing { ref mut until, .. } => {
                *until = now;
                let effect = "counts are not uploaded; with cache_dir they are stored for the next start";
                context.actions.log(Level::Warning, "stopping_sooner", &[("effect", &effect)]);
            }
        }
    }

    /// Starts the last uploads once none is in flight: usage first, which is little, with half of the time.
    /// Events are forwarded meanwhile.
    fn flush(&mut self, context: &mut EventContext<'_>) {
        let Lifecycle::Flushing { until, last, .. } = &mut self.lifecycle else { return };
        let (now, until) = (context.now.instant, *until);
        if last.is_none() && (now >= until || !self.uploads.is_in_flight()) {
            *last = Some(ReportKind::Usage);
            self.forwarding.iter_mut().for_each(|forwarding| forwarding.start_last(until, context));
            let half = until.saturating_duration_since(now) / 2;
            return self.uploads.upload_last(ReportKind::Usage, now + half, context);
        }
        self.exit_when_flushed(context);
    }

    fn uploaded(&mut self, posted: RoundResult, context: &mut EventContext<'_>) {
        let Lifecycle::Flushing { until, last: last @ Some(_), is_uploaded, .. } = &mut self.lifecycle else {
            return self.uploads.uploaded(posted, context);
        };
        let (kind, until) = (posted.kind, *until);
        self.uploads.uploaded_last(posted, context);
        if kind == ReportKind::Usage {
            *last = Some(ReportKind::Analytics);
            return self.uploads.upload_last(ReportKind::Analytics, until, context);
        }
        *is_uploaded = true;
        self.exit_when_flushed(context);
    }

    fn forwarded(&mut self, result: &ForwardResult, context: &mut EventContext<'_>) {
        self.forwarding.iter_mut().for_each(|forwarding| forwarding.forwarded(result, context));
        self.exit_when_flushed(context);
    }

    /// Events that are not forwarded by then are on disk.
    fn exit_when_flushed(&mut self, context: &mut EventContext<'_>) {
        let Lifecycle::Flushing { until, is_uploaded: true, result, .. } = self.lifecycle else { return };
        let is_forwarding = self.forwarding.as_ref().is_some_and(Forwarding::is_in_flight);
        if !is_forwarding || context.now.instant >= until {
            context.actions.push(Action::FlushStorage);
            context.actions.log(Level::Info, "stopped", &[]);
            context.actions.push(Action::Exit(result));
        }
    }

    fn publish_by(&mut self, at: Instant) {
        self.publish_at = Some(self.publish_at.map_or(at, |before| before.min(at)));
    }

    fn publish(&mut self, context: &mut EventContext<'_>) {
        self.publish_at = None;
        self.version += 1;
        context.metrics.supervisor.snapshots_published.add(1);
        let mut snapshot = self.environments.snapshot(self.version);
        snapshot.is_complete &= self.discovery.as_ref().is_none_or(Discovery::has_response);
        snapshot.draining = !matches!(self.lifecycle, Lifecycle::Serving);
        let traits = &self.config.traits;
        let is_required = traits.require && traits.store == TraitsStore::Redis;
        snapshot.trait_store = is_required.then(|| context.metrics.traits.is_available.clone());
        context.actions.push(Action::Send(ReactorMessage::Publish(Arc::new(snapshot))));
    }

    fn read_config(&self, is_requested: bool, context: &mut EventContext<'_>) {
        context.actions.push(Action::ReadConfig { current: Arc::clone(&self.config), is_requested });
    }

    fn config_read(
        &mut self,
        is_requested: bool,
        result: Result<Box<LoadedConfig>, ReloadError>,
        context: &mut EventContext<'_>,
    ) {
        match result {
            // The file was touched, or written just before the start.
            Ok(loaded) if !is_requested && *self.config == loaded.config => {}
            Ok(loaded) => {
                let LoadedConfig { config, warnings, upstream } = *loaded;
                context.actions.push(Action::UseUpstream(upstream));
                let before = std::mem::replace(&mut self.config, Arc::new(config));
                let config = Arc::clone(&self.config);
                self.reconfigure(&before, &mut context.with_config(&config));
                for warning in warnings.into_iter().filter(|warning| !warning.is_of_start()) {
                    context.actions.push(Action::LogConfigWarning(warning));
                }
            }
            Err(error) => {
                context.metrics.supervisor.reloads_refused.add(1);
                for problem in error.lines() {
                    let fields: [(_, &dyn std::fmt::Display); 2] =
                        [("mistake", &problem), ("serving", &"with the old configuration")];
                    context.actions.log(Level::Error, "configuration_refused", &fields);
                }
            }
        }
        if let Some(certificates) = self.certificates.as_mut().filter(|_| is_requested) {
            let config = Arc::clone(&self.config);
            certificates.reload(&mut context.with_config(&config));
        }
    }

    /// Brings the state from one configuration to the next, `context.config`.
    fn reconfigure(&mut self, before: &Config, context: &mut EventContext<'_>) {
        let config = context.config;
        if before.realtime != config.realtime {
            self.environments.close_streams(context);
        }
        if before.proxy_key != config.proxy_key {
            self.discovery = Discovery::new(config, context.now.instant);
            context.metrics.supervisor.discovery_empty_since_ms.set(0);
            context.metrics.supervisor.discovery_pairs_rejected.set(0);
            if self.discovery.is_none() {
                self.environments.remove_discovered(context);
            }
        }
        self.discovery.iter_mut().for_each(|one| one.set_interval(config, context.now.instant));
        let changes = self.environments.set_configured(&config.environments, context);
        if before.api_url != config.api_url || before.proxy_key != config.proxy_key {
            self.environments.refresh_all(context);
        }
        self.environments.update_streams(context);
        self.uploads.reconfigure(config, context.now.instant);
        self.forwarding.iter_mut().for_each(|one| one.set_interval(config, context.now.instant));
        context.actions.push(Action::SetLogLevel(config.logging.log_level));
        context.actions.push(Action::Send(ReactorMessage::Configure(Arc::clone(&self.config))));
        self.publish_by(context.now.instant);
        context.metrics.supervisor.reloads.add(1);
        context.actions.log(
            Level::Info,
            "configuration_reloaded",
            &[
                ("environments_added", &changes.added),
                ("environments_removed", &changes.removed),
                ("environments_changed", &changes.changed),
            ],
        );
        let fixed = restart_required(before, config).join(", ");
        if !fixed.is_empty() {
            context.actions.log(Level::Warning, "configuration_needs_restart", &[("settings", &fixed)]);
        }
    }
}

fn matters_while_flushing(event: &Event) -> bool {
    matches!(
        event,
        Event::Tick { .. }
            | Event::Counted(_)
            | Event::Uploaded(_)
            | Event::UploadNotStarted { .. }
            | Event::EventsForwarded(_)
            | Event::ForwardingNotStarted(_)
            | Event::Signal(Signal::Stop)
    )
}
