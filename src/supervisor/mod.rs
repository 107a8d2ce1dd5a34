//! The control plane: one thread that keeps every environment's document fresh.
//!
//! In: the configuration, results of jobs, signals. Out: snapshots and commands to the reactors.
//! Invariants: only this thread publishes, and only it frees what reactors gave back; nothing upstream
//! does can end it; the last good document is never lost. It may log and decide, but whatever
//! waits (network, disk, compiling) is done by the pool's threads.
mod affinity;
mod certificates;
pub(crate) mod discovery;
mod environment;
mod pool;
pub mod probe;
pub mod realtime;
mod refresh;
mod reload;
mod signals;
mod uploads;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::channel::{Publisher, ReactorMessage};
use crate::config::{Config, ConfigError, ConfigWarning, EnvironmentConfig, Level, SettingError};
use crate::limits;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::snapshot::{KeyAccess, Snapshot};
use crate::storage::Store;
use crate::supervisor::affinity::Affinity;
use crate::supervisor::discovery::Discovery;
use crate::supervisor::environment::{Change, Deadlines, PolledEnvironment, Records};
use crate::supervisor::pool::Pool;
use crate::supervisor::refresh::{Compilers, EnvironmentId, RefreshResult};
pub use crate::supervisor::reload::{MissingDocument, missing_documents};
use crate::supervisor::uploads::Uploads;
use crate::systemd::Notify;
use crate::tls::Certificates;
use crate::upstream::{ServerKey, Upstream};

/// Reads the configuration again from the sources it had at start.
pub type Reload = Box<dyn FnMut() -> Result<(Config, Vec<ConfigWarning>), ConfigError> + Send>;

/// What the loop calls that is no business of its own.
pub struct Hooks {
    pub reload: Reload,
    /// After each turn of the loop, at least every two seconds.
    pub turned: Box<dyn FnMut() + Send>,
}

/// How the supervisor's thread ends: told to, or because nobody is left to serve.
pub type SupervisorResult = Result<(), &'static str>;

/// What wakes the loop.
#[derive(Debug)]
enum Event {
    Done(RefreshResult),
    Signal(signals::Signal),
    /// What came of asking, at this time, which environments there are.
    Discovered(Instant, discovery::DiscoveryResult),
    /// What came of sending counts.
    Posted(crate::analytics::upload::RoundResult),
    /// An environment's event stream told of a document of this time.
    Told(EnvironmentId, f64),
}

/// Where in its life the process is.
#[derive(Clone, Copy, Debug)]
enum Lifecycle {
    Serving,
    /// Readiness is red, requests are still taken, until then.
    Delaying(Instant),
    /// The reactors were told to end; those that have not by then are left behind.
    Draining(Instant),
}

struct Supervisor {
    config: Arc<Config>,
    records: Records,
    publisher: Publisher,
    reload: reload::Reloader,
    turned: Box<dyn FnMut() + Send>,
    certificates: Option<certificates::CertificateWatch>,
    upstream: Arc<Upstream>,
    pool: Pool,
    compilers: Arc<Compilers>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    watched: Vec<PolledEnvironment>,
    discovery: Option<Discovery>,
    reports: Uploads,
    next_id: EnvironmentId,
    version: u64,
    published: Vec<Weak<Snapshot>>,
    /// Commands that a full inbox did not take.
    unsent: Vec<ReactorMessage>,
    /// When what changed must be published.
    publish_at: Option<Instant>,
    phase: Lifecycle,
}

/// Checks the settings of upstream, before sockets are bound and threads are started.
///
/// # Errors
/// One error for each invalid setting (address, outgoing proxy, certificates).
pub fn check(config: &Config) -> Result<(), Vec<SettingError>> {
    Upstream::new(config).map(drop)
}

/// Starts the supervisor's thread, which ends after SIGTERM or SIGINT, or with the last reactor.
///
/// The first snapshot, with what was kept on disk, is with the reactors before this returns.
///
/// # Errors
/// A setting of upstream cannot be used (one line each), or no thread could be started.
pub fn start(
    config: Config,
    log: Log,
    publisher: Publisher,
    hooks: Hooks,
    certificates: Option<Certificates>,
    metrics: Arc<Metrics>,
) -> std::io::Result<JoinHandle<SupervisorResult>> {
    let upstream = Upstream::new(&config).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        std::io::Error::new(std::io::ErrorKind::InvalidInput, lines.join("\n"))
    })?;
    let (sender, events) = channel();
    let to_loop = sender.clone();
    signals::watch(move |signal| to_loop.send(Event::Signal(signal)).is_ok())?;
    let store = open_store(&config, &log);
    let discovery = Discovery::new(&config, Instant::now());
    let reports = Uploads::new(&config, store.as_ref(), &log, Instant::now());
    let compilers = Compilers::beside(&config.cores);
    let mut supervisor = Supervisor {
        reload: reload::Reloader::new(&config, hooks.reload),
        turned: hooks.turned,
        certificates: certificates.map(certificates::CertificateWatch::new),
        config: Arc::new(config),
        records: Records { log, metrics, store },
        publisher,
        upstream: Arc::new(upstream),
        pool: Pool::new("fetch", limits::FETCH_THREADS_MAX, Affinity::anywhere()),
        compilers: Arc::new(compilers),
        events,
        sender,
        watched: Vec::new(),
        discovery,
        reports,
        next_id: 0,
        version: 0,
        published: Vec::new(),
        unsent: Vec::new(),
        publish_at: None,
        phase: Lifecycle::Serving,
    };
    supervisor.watch_configured();
    supervisor.load_discovered();
    supervisor.publish();
    thread::Builder::new().name("supervisor".into()).spawn(move || supervisor.run())
}

/// Without it everything else works, so that a folder that cannot be used is told and no more.
fn open_store(config: &Config, log: &Log) -> Option<Store> {
    let folder = config.cache_dir.as_deref()?;
    match Store::open(folder, log) {
        Ok(store) => Some(store),
        Err(error) => {
            let error = format!("{}: {error}", folder.display());
            let hint = "documents are not kept for a restart: see the folder's owner and mode";
            log.event(Level::Error, "cache_dir_unusable", &[("error", &error), ("hint", &hint)]);
            None
        }
    }
}

impl Supervisor {
    fn run(mut self) -> SupervisorResult {
        loop {
            let now = Instant::now();
            self.records.metrics.supervisor.beats.add(1);
            if self.advance(now) {
                self.end();
                return Ok(());
            }
            // Polling on would only hide from whoever restarts processes that this one serves nothing.
            if !matches!(self.phase, Lifecycle::Draining(_)) && self.publisher.alive() == 0 {
                self.end();
                return Err("no reactor is left to serve: the log says why");
            }
            if self.reload.is_due(now) {
                self.reload(false);
            }
            self.renew_certificates(now, false);
            self.give_jobs(now);
            self.discover(now);
            self.collect();
            self.report(now);
            self.resend();
            if self.publish_at.is_some_and(|at| at <= now) {
                self.publish();
            }
            self.free_retired();
            (self.turned)();
            let wait = self.wake_at(now).saturating_duration_since(Instant::now());
            match self.events.recv_timeout(wait) {
                Ok(event) => {
                    self.take(event);
                    // What is there already is taken together and published once.
                    while let Ok(event) = self.events.try_recv() {
                        self.take(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Moves through shutting down; true at its end.
    fn advance(&mut self, now: Instant) -> bool {
        match self.phase {
            Lifecycle::Serving => false,
            Lifecycle::Delaying(until) => {
                if now >= until {
                    self.records.log.event(Level::Info, "draining", &[]);
                    self.command(ReactorMessage::Drain);
                    self.phase = Lifecycle::Draining(now + self.config.server.shutdown_grace);
                }
                false
            }
            Lifecycle::Draining(until) => {
                let alive = self.publisher.alive();
                if alive > 0 && now < until {
                    return false;
                }
                if alive > 0 {
                    self.records.log.event(Level::Warning, "shutdown_grace_over", &[("reactors", &alive)]);
                }
                true
            }
        }
    }

    /// What must not be lost is on disk or upstream before the process ends.
    fn end(mut self) {
        self.report_last();
        if let Some(store) = &self.records.store {
            store.flush(limits::STORE_PATIENCE);
        }
        self.records.log.event(Level::Info, "stopped", &[]);
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Done(done) => {
                let deadlines = Deadlines::new(&self.config, self.watched.len());
                let Some(watched) = self.watched.iter_mut().find(|watched| watched.id == done.id) else {
                    // Removed while its job was under way.
                    return;
                };
                match watched.done(done, &self.records, deadlines, now, SystemTime::now()) {
                    Change::Content => self.publish_by(now),
                    Change::Nothing => {}
                }
            }
            Event::Signal(signals::Signal::Stop) => self.stop(now),
            Event::Signal(signals::Signal::Reload) => {
                self.reload(true);
                self.renew_certificates(now, true);
            }
            Event::Posted(posted) => self.posted(posted, now),
            Event::Discovered(started, found) => self.discovered(started, found),
            Event::Told(id, updated_at) => {
                if let Some(watched) = self.watched.iter_mut().find(|watched| watched.id == id) {
                    watched.nudge(updated_at, now);
                }
            }
        }
    }

    /// The first signal begins a shut-down, a second one skips the delay.
    fn stop(&mut self, now: Instant) {
        match self.phase {
            Lifecycle::Serving => {
                let delay = self.config.server.shutdown_delay;
                self.records.log.event(Level::Info, "stopping", &[("delay_seconds", &delay.as_secs_f64())]);
                if let Some(notify) = Notify::from_process() {
                    notify.stopping();
                }
                self.phase = Lifecycle::Delaying(now + delay);
                self.publish();
            }
            Lifecycle::Delaying(_) => self.phase = Lifecycle::Delaying(now),
            Lifecycle::Draining(_) => self.phase = Lifecycle::Draining(now),
        }
    }

    /// Takes up every environment of the configuration.
    fn watch_configured(&mut self) {
        for environment in self.config.environments.clone() {
            self.add(environment, None);
        }
    }

    /// Takes up one more environment, with its keys if upstream told of it.
    fn add(&mut self, environment: EnvironmentConfig, discovered: Option<Vec<ServerKey>>) {
        self.next_id += 1;
        let (id, now) = (self.next_id, Instant::now());
        let mut watched = PolledEnvironment::new(id, environment, discovered, &self.config, now);
        watched.load(&self.records);
        self.watched.push(watched);
        self.subscribe();
    }

    /// Opens the event streams that are wanted and are not there, and closes those that are not.
    fn subscribe(&mut self) {
        for watched in &mut self.watched {
            if !self.config.realtime.enabled || !watched.is_polled() {
                watched.subscription = None;
            } else if watched.subscription.is_none() {
                let (id, sender) = (watched.id, self.sender.clone());
                let tell = move |updated_at| drop(sender.send(Event::Told(id, updated_at)));
                let upstream = Arc::clone(&self.upstream);
                let log = self.records.log.clone();
                let metrics = self.records.metrics.clone();
                match realtime::subscribe(upstream, watched.client_side_key(), log, metrics, tell) {
                    Ok(subscription) => watched.subscription = Some(subscription),
                    Err(error) => {
                        let fields: [(_, &dyn std::fmt::Display); 2] =
                            [("client_side_key", &watched.client_side_key()), ("reason", &error)];
                        self.records.log.event(Level::Warning, "realtime_lost", &fields);
                    }
                }
            }
        }
    }

    /// Hands every environment that is due to the pool.
    fn give_jobs(&mut self, now: Instant) {
        if matches!(self.phase, Lifecycle::Draining(_)) {
            return;
        }
        let deadlines = Deadlines::new(&self.config, self.watched.len());
        for watched in &mut self.watched {
            let job = watched.job(&self.upstream, &self.config, &self.records, deadlines, now);
            let Some(job) = job else { continue };
            let (id, sender, compilers) = (job.id, self.sender.clone(), Arc::clone(&self.compilers));
            // The loop may be over when it is done; then nobody waits for the result.
            let given = self.pool.give(move || drop(sender.send(Event::Done(job.run(&compilers)))));
            if let Err(error) = given {
                let message = format!("no thread to fetch with: {error}");
                let result =
                    Err(crate::upstream::PollError::new(crate::upstream::PollErrorKind::Internal, message));
                let _ = self.sender.send(Event::Done(RefreshResult { id, started: now, seen: None, result }));
            }
        }
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let housekeeping = match self.phase {
            Lifecycle::Draining(_) => Duration::from_millis(5),
            _ if !self.unsent.is_empty() => Duration::from_millis(10),
            _ if self.published.len() > 1 => Duration::from_millis(100),
            // The watchdog wants to see a turn now and then.
            _ => Duration::from_secs(2),
        };
        let phase = match self.phase {
            Lifecycle::Delaying(until) => Some(until),
            _ => None,
        };
        let due = self.watched.iter().filter_map(PolledEnvironment::due);
        let reload = Some(self.reload.due());
        let discovery = self.discovery.as_ref().and_then(Discovery::due);
        due.chain(phase)
            .chain(discovery)
            .chain(self.reports.due())
            .chain(self.publish_at)
            .chain(reload)
            .chain(self.certificates.as_ref().map(certificates::CertificateWatch::due))
            .fold(now + housekeeping, Instant::min)
    }

    fn publish_by(&mut self, at: Instant) {
        self.publish_at = Some(self.publish_at.map_or(at, |before| before.min(at)));
    }

    /// Sends every reactor a new snapshot.
    fn publish(&mut self) {
        self.publish_at = None;
        self.version += 1;
        self.records.metrics.supervisor.snapshots_published.add(1);
        let mut keys: Vec<(Box<[u8]>, KeyAccess)> = Vec::new();
        let slots = self.watched.iter().map(PolledEnvironment::slot).collect();
        // Of a key given twice the first environment has it; `collect` would keep the last.
        for (slot, watched) in self.watched.iter().enumerate().rev() {
            keys.extend(watched.keys(slot));
        }
        let mut snapshot = Snapshot::new(self.version, slots, keys);
        let is_discovery_read = self.discovery.as_ref().is_none_or(Discovery::was_read);
        snapshot.is_complete = is_discovery_read && !self.watched.iter().any(PolledEnvironment::is_unread);
        snapshot.draining = !matches!(self.phase, Lifecycle::Serving);
        let snapshot = Arc::new(snapshot);
        self.published.push(Arc::downgrade(&snapshot));
        self.command(ReactorMessage::Publish(snapshot));
    }

    /// Sends, and keeps for later what an inbox had no room for. A newer snapshot replaces an older one.
    fn command(&mut self, message: ReactorMessage) {
        if matches!(message, ReactorMessage::Publish(_)) {
            self.unsent.retain(|unsent| !matches!(unsent, ReactorMessage::Publish(_)));
        }
        if !self.unsent.is_empty() || self.publisher.send(&message) > 0 {
            self.unsent.push(message);
        }
    }

    fn resend(&mut self) {
        while let Some(message) = self.unsent.first() {
            if self.publisher.send(message) > 0 {
                return;
            }
            self.unsent.remove(0);
        }
    }

    fn free_retired(&mut self) {
        let retired = self.publisher.take_retired();
        if !retired.is_empty() {
            // Some are large. Without that thread they are freed here.
            let _ = self.compilers.large.give(move || drop(retired));
        }
        // The newest is in use; an older one that still lives is on its way back from a reactor.
        self.published.retain(|snapshot| snapshot.strong_count() > 0);
    }
}
