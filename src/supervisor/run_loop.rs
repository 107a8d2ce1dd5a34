//! The supervisor's thread: receives events, reads the clock, and applies what the state machine decides.
//!
//! Work that waits for the network or compiles runs on the threads of the pools. The loop itself reads and
//! writes only small local files; it blocks only for the last uploads, when the process ends.
use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use crate::analytics::batch::ReportKind;
use crate::analytics::batch::UploadBatch;
use crate::analytics::upload::{PendingBatch, RoundResult, run_round};
use crate::clock;
use crate::config::{Config, Level, TlsConfig};
use crate::forwarding::batch::EventBatch;
use crate::forwarding::queue::SharedQueue;
use crate::forwarding::round::{ForwardResult, forward_round};
use crate::limits;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::schedule::jitter;
use crate::spans::{ActiveSpan, Tracer};
use crate::storage::{StorageError, Store, StoredDocument};
use crate::supervisor::action::{Action, SupervisorResult};
use crate::supervisor::config_file::ConfigReader;
use crate::supervisor::context::Now;
use crate::supervisor::delivery::Delivery;
use crate::supervisor::discovery::STORED_AS;
use crate::supervisor::event::Event;
use crate::supervisor::pool::{Pool, guarded};
use crate::supervisor::realtime::{self, UpstreamSubscription};
use crate::supervisor::refresh::{self, Compilers, EnvironmentId, LoadError, RefreshJob, RefreshResult};
use crate::supervisor::state::Supervisor;
use crate::systemd::Notify;
use crate::tls::Certificates;
use crate::upstream::{
    DeltaOutcome, DiscoveredEnvironment, EventsOutcome, PollError, PollErrorKind, PostOutcome, Upstream,
    parse_discovered,
};

/// How long a process that exits waits for documents to be written to disk.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// The state machine with everything that its actions need.
pub struct RunLoop {
    pub state: Supervisor,
    pub events: Receiver<Event>,
    pub sender: Sender<Event>,
    /// Results of actions that were applied without a thread.
    pub results: VecDeque<Event>,
    pub log: Log,
    pub metrics: Arc<Metrics>,
    pub store: Option<Store>,
    /// `None` if events are not accepted.
    pub event_queue: Option<SharedQueue>,
    pub delivery: Delivery,
    pub upstream: Arc<Upstream>,
    pub tracer: Tracer,
    pub pool: Pool,
    pub compilers: Arc<Compilers>,
    pub config_reader: ConfigReader,
    pub certificates: Option<Certificates>,
    pub streams: HashMap<EnvironmentId, UpstreamSubscription>,
    /// Called after each iteration, at least every two seconds.
    pub after_iteration: Box<dyn FnMut() + Send>,
    pub exit: Option<SupervisorResult>,
}

impl RunLoop {
    /// Runs until the state machine exits.
    pub fn run(mut self) -> SupervisorResult {
        loop {
            self.metrics.supervisor.ticks.add(1);
            self.tick();
            if let Some(result) = self.exit {
                return result;
            }
            self.delivery.resend();
            self.free_retired();
            (self.after_iteration)();
            // The sender is ours, so that the channel cannot be disconnected.
            if let Ok(event) = self.events.recv_timeout(self.wait()) {
                self.dispatch(event);
                // Changes that arrived together are published together.
                while let Ok(event) = self.events.try_recv() {
                    self.dispatch(event);
                }
            }
        }
    }

    /// Lets the state machine do what is due.
    pub fn tick(&mut self) {
        for counts in self.delivery.take_counts() {
            self.dispatch(Event::Counted(counts));
        }
        let reactors = self.delivery.reactors();
        self.dispatch(Event::Tick { reactors });
    }

    /// How long to wait for an event.
    fn wait(&self) -> Duration {
        let housekeeping = if self.state.is_draining() {
            Duration::from_millis(5)
        } else if self.delivery.has_unsent() {
            Duration::from_millis(10)
        } else if self.delivery.has_older_snapshots() {
            Duration::from_millis(100)
        } else {
            // The watchdog checks that the loop iterates.
            Duration::from_secs(2)
        };
        let due = self.state.due().map(|due| due.saturating_duration_since(Instant::now()));
        due.map_or(housekeeping, |due| due.min(housekeeping))
    }

    /// Handles an event, and then the results of its actions.
    pub fn dispatch(&mut self, event: Event) {
        self.results.push_back(event);
        while let Some(event) = self.results.pop_front() {
            let now = Now { instant: Instant::now(), wall: SystemTime::now(), jitter: jitter() };
            for action in self.state.handle(event, now) {
                self.apply(action);
            }
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Log { level, event, fields } => {
                let fields: Vec<(&'static str, &dyn Display)> =
                    fields.iter().map(|(name, value)| (*name, value as &dyn Display)).collect();
                self.log.event(level, event, &fields);
            }
            Action::LogConfigWarning(warning) => self.log.config_warning(&warning),
            Action::SetLogLevel(level) => self.log.set_level(level),
            Action::ReopenAccessLog => self.log.reopen(),
            Action::Refresh(job) => self.refresh(job),
            Action::Discover => self.discover(),
            Action::Upload { kind, waiting } => self.upload(kind, waiting),
            Action::UploadLast { kind, waiting, until } => {
                let upstream = &self.upstream;
                let posted = self.tracer.trace("upload", |span| {
                    let round =
                        run_round(kind, waiting, until, |batch| post_counts(upstream, batch, Some(until)));
                    note(span, kind.name(), round.sent, round.failure.as_ref());
                    round
                });
                self.results.push_back(Event::Uploaded(posted));
            }
            Action::ForwardEvents { until } => self.forward_events(until),
            Action::LoadDocument { id, client_side_key } => {
                let store = self.store.as_ref();
                let result = store.map_or(Ok(None), |store| refresh::load(store.load(&client_side_key)));
                self.results.push_back(Event::DocumentLoaded { id, result });
            }
            Action::LoadDiscovery => {
                let result =
                    self.store.as_ref().map_or(Ok(None), |store| stored_environments(store.load(STORED_AS)));
                self.results.push_back(Event::DiscoveryLoaded(result));
            }
            Action::Store { name, kept } => {
                if let Some(store) = &self.store {
                    store.save(&name, kept);
                }
            }
            Action::StoreIfChanged { name, kept } => {
                if let Some(store) = &self.store {
                    store.save_if_new(name, kept);
                }
            }
            Action::StoreBatches { kind, change } => {
                if let Some(store) = &self.store {
                    store.change_records(kind.name(), change);
                }
            }
            Action::FlushStorage => self.flush_storage(),
            Action::Send(message) => self.delivery.send(message),
            Action::OpenStream { id, client_side_key } => self.open_stream(id, &client_side_key),
            Action::CloseStream(id) => drop(self.streams.remove(&id)),
            Action::RemoveMetrics(client_side_key) => self.metrics.remove_environment(&client_side_key),
            Action::CheckConfigFiles => {
                let versions = self.config_reader.file_versions();
                self.results.push_back(Event::ConfigFiles(versions));
            }
            Action::ReadConfig { current, is_requested } => self.read_config(&current, is_requested),
            Action::UseUpstream(upstream) => self.upstream = upstream,
            Action::CheckCertificates { reload_from } => self.check_certificates(reload_from),
            Action::NotifyStopping => {
                if let Some(notify) = Notify::from_process() {
                    notify.stopping();
                }
            }
            Action::Exit(result) => self.exit = Some(result),
        }
    }

    fn refresh(&mut self, job: RefreshJob) {
        let (id, sender, compilers) = (job.id, self.sender.clone(), Arc::clone(&self.compilers));
        let (upstream, tracer) = (Arc::clone(&self.upstream), self.tracer.clone());
        // The loop may have ended when the refresh does.
        let task = move || drop(sender.send(Event::Refreshed(job.run(&upstream, &*compilers, &tracer))));
        if let Err(error) = self.pool.spawn(task) {
            let (started, result) = (Instant::now(), Err(no_thread(&error)));
            let refreshed = RefreshResult { id, started, seen: None, delta: DeltaOutcome::None, result };
            self.results.push_back(Event::Refreshed(refreshed));
        }
    }

    fn discover(&mut self) {
        let (upstream, sender) = (Arc::clone(&self.upstream), self.sender.clone());
        let tracer = self.tracer.clone();
        let spawned = self.pool.spawn(move || {
            let result = tracer.trace("discover", |span| {
                let result = guarded(|| upstream.discover()).unwrap_or_else(|| {
                    let message = "discovery panicked, which is a bug in this proxy";
                    Err(PollError::new(PollErrorKind::Internal, message))
                });
                if let Err(error) = &result {
                    span.fail(error.kind.name(), &error.message);
                }
                result
            });
            drop(sender.send(Event::Discovered(result)));
        });
        if let Err(error) = spawned {
            self.results.push_back(Event::Discovered(Err(no_thread(&error))));
        }
    }

    fn upload(&mut self, kind: ReportKind, waiting: Vec<PendingBatch>) {
        let (upstream, sender) = (Arc::clone(&self.upstream), self.sender.clone());
        let tracer = self.tracer.clone();
        let task = move || {
            let until = Instant::now() + limits::ROUND_TIME_MAX;
            let round =
                || run_round(kind, waiting.clone(), until, |batch| post_counts(&upstream, batch, None));
            let posted = tracer.trace("upload", |span| {
                let posted = guarded(round);
                if let Some(posted) = &posted {
                    note(span, kind.name(), posted.sent, posted.failure.as_ref());
                }
                posted
            });
            // Which of them were sent before a panic is unknown: none may be sent twice.
            let posted = posted.unwrap_or_else(|| {
                RoundResult::lost(kind, &waiting, "the upload panicked, which is a bug in this proxy")
            });
            drop(sender.send(Event::Uploaded(posted)));
        };
        if let Err(error) = self.pool.spawn(task) {
            self.results.push_back(Event::UploadNotStarted { kind, error: error.to_string() });
        }
    }

    fn forward_events(&mut self, until: Option<Instant>) {
        let Some(queue) = self.event_queue.clone() else { return };
        let (upstream, sender) = (Arc::clone(&self.upstream), self.sender.clone());
        // A round without events is not worth a span.
        let has_events = self.metrics.events.queued.value() > 0;
        let tracer = if has_events { self.tracer.clone() } else { Tracer::default() };
        let task = move || {
            let started = Instant::now();
            let round_until = until.unwrap_or(started + limits::ROUND_TIME_MAX);
            let send = |batch: &EventBatch, body: &[u8]| post_events(&upstream, batch, body, until);
            let result = tracer.trace("upload", |span| {
                let result = guarded(|| forward_round(&queue, round_until, send));
                let result = result.unwrap_or_else(|| ForwardResult::panicked(started));
                note(span, "events", result.sent, result.failure.as_ref());
                result
            });
            drop(sender.send(Event::EventsForwarded(result)));
        };
        if let Err(error) = self.pool.spawn(task) {
            self.results.push_back(Event::ForwardingNotStarted(error.to_string()));
        }
    }

    fn flush_storage(&self) {
        self.store.iter().for_each(|store| store.flush(STORE_TIMEOUT));
        let queue = self.event_queue.as_ref().map(SharedQueue::lock);
        if let Some(error) = queue.and_then(|mut queue| queue.as_mut().and_then(|queue| queue.sync().err())) {
            self.log.event(Level::Error, "events_not_synced", &[("error", &error)]);
        }
    }

    fn open_stream(&mut self, id: EnvironmentId, client_side_key: &str) {
        let sender = self.sender.clone();
        let announce = move |updated_at| drop(sender.send(Event::Announced { id, updated_at }));
        let (upstream, log, metrics) = (Arc::clone(&self.upstream), self.log.clone(), self.metrics.clone());
        match realtime::subscribe(upstream, client_side_key, log, metrics, announce) {
            Ok(subscription) => drop(self.streams.insert(id, subscription)),
            Err(error) => self.results.push_back(Event::StreamFailed { id, error: error.to_string() }),
        }
    }

    fn read_config(&mut self, current: &Config, is_requested: bool) {
        let result = self.config_reader.read(current).map(Box::new);
        self.results.push_back(Event::ConfigRead { is_requested, result });
    }

    fn check_certificates(&mut self, reload_from: Option<TlsConfig>) {
        let Some(certificates) = &mut self.certificates else { return };
        let result = match reload_from {
            Some(files) => Some(certificates.reload_from(&files)),
            None => certificates.reload_if_changed(),
        };
        if let Some(result) = result {
            self.results.push_back(Event::CertificatesRead(result));
        }
    }

    fn free_retired(&mut self) {
        let retired = self.delivery.take_retired();
        if !retired.is_empty() {
            // Large snapshots take long to free. Without a thread they are freed here.
            let _ = self.compilers.large.spawn(move || drop(retired));
        }
    }
}

/// Records what an upload sent, and why it failed.
fn note(span: &ActiveSpan, kind: &'static str, sent: u64, failure: Option<&PollError>) {
    span.set("edge_proxy.upload.kind", || kind);
    span.set("edge_proxy.upload.sent", || sent);
    if let Some(failure) = failure {
        span.fail(failure.kind.name(), &failure.message);
    }
}

fn no_thread(error: &io::Error) -> PollError {
    PollError::new(PollErrorKind::Internal, format!("failed to start a thread to fetch with: {error}"))
}

/// The stored discovery response; `None` if there is none.
///
/// # Errors
/// It is damaged, or not valid.
pub fn stored_environments(
    stored: Result<Option<StoredDocument>, StorageError>,
) -> Result<Option<Vec<DiscoveredEnvironment>>, LoadError> {
    let Some(kept) = stored? else { return Ok(None) };
    Ok(Some(parse_discovered(&kept.document)?))
}

/// Posts a batch of events and its body; the answer may take until then.
pub fn post_events(
    upstream: &Upstream,
    batch: &EventBatch,
    body: &[u8],
    until: Option<Instant>,
) -> EventsOutcome {
    let time_max = until.map(|until| until.saturating_duration_since(clock::instant()));
    let (key, sdk) = (&batch.source.client_side_key, &batch.source.sdk);
    upstream.post_events(key, sdk, &batch.idempotency_key, body, time_max)
}

/// Posts a batch of counts; the answer may take until then.
pub fn post_counts(upstream: &Upstream, batch: &UploadBatch, until: Option<Instant>) -> PostOutcome {
    let time_max = until.map(|until| until.saturating_duration_since(clock::instant()));
    let (key, body) = (&batch.idempotency_key, batch.body.as_bytes());
    upstream.post(&batch.path, &batch.fields(), key, body, time_max)
}
