//! One process of the proxy: the supervisor, its uploads and files, and the reactors, without threads.
//!
//! What the threads of production do one beside the other is a queue of tasks here. The seed draws how long
//! each takes, and so their order.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use edge_proxy::analytics::batch::ReportKind;
use edge_proxy::analytics::outbox;
use edge_proxy::analytics::upload::{PendingBatch, run_round};
use edge_proxy::channel::{NewConnection, Publisher, ReactorMessage};
use edge_proxy::clock;
use edge_proxy::config::Config;
use edge_proxy::forwarding::queue::SharedQueue;
use edge_proxy::forwarding::round::forward_round;
use edge_proxy::forwarding::writer::EventWriter;
use edge_proxy::limits;
use edge_proxy::log::Log;
use edge_proxy::metrics::Metrics;
use edge_proxy::reactor::Timeouts;
use edge_proxy::reactor::WorkerOptions;
use edge_proxy::reactor::context::{Reactor, WorkerState};
use edge_proxy::schedule::jitter;
use edge_proxy::snapshot::Snapshot;
use edge_proxy::spans::Tracer;
use edge_proxy::storage::disk::DiskFolder;
use edge_proxy::storage::{self, StoreWriter, StoredDocument, WriteRequest};
use edge_proxy::supervisor::action::{Action, SupervisorResult};
use edge_proxy::supervisor::context::Now;
use edge_proxy::supervisor::delivery::Delivery;
use edge_proxy::supervisor::discovery::STORED_AS;
use edge_proxy::supervisor::event::Event;
use edge_proxy::supervisor::refresh::{self, CompileExecutor, CompileTask, EnvironmentId, RefreshJob};
use edge_proxy::supervisor::run_loop::{post_counts, post_events, stored_environments};
use edge_proxy::supervisor::state::{Supervisor, SupervisorOptions};
use edge_proxy::supervisor::uploads::StoredUploads;
use edge_proxy::upstream::Upstream;

use crate::disk::PlayedDisk;
use crate::model::Model;
use crate::random::Random;
use crate::trait_threads::PlayedTraits;
use crate::upstream::{PlayedNetwork, latency};

/// How often the writer of events is played while it has nothing to write.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(120);

/// The folder of all processes.
pub const CACHE_DIR: &str = "/cache";

/// What a thread of a pool does.
#[derive(Debug)]
pub enum Work {
    Refresh(RefreshJob),
    Discover,
    Upload { kind: ReportKind, waiting: Vec<PendingBatch> },
    Forward { until: Option<Instant> },
    ForwardTraits,
}

/// What happens next in the process.
#[derive(Debug)]
pub enum Task {
    /// Upstream acts; the answer takes this time.
    Serve(Work, Duration),
    /// An event arrives at the supervisor.
    Deliver(Box<Event>),
    WriteStore,
    /// A round of traits has its answer.
    TraitsForwarded,
    WakeReactor(usize),
}

/// Compiles on the thread of the caller.
struct HereExecutor;

impl CompileExecutor for HereExecutor {
    fn execute(&self, _bytes: usize, task: CompileTask) -> std::io::Result<()> {
        task();
        Ok(())
    }
}

pub struct PlayedReactor {
    options: WorkerOptions,
    pub reactor: Rc<Reactor>,
    pub sweep_at: Option<Duration>,
    is_woken: bool,
    is_open: bool,
    pub draining_since: Option<Duration>,
    is_quiet: bool,
}

pub struct Process {
    pub config: Arc<Config>,
    state: Supervisor,
    results: VecDeque<Event>,
    pub delivery: Delivery,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    folder: Option<DiskFolder>,
    store: Option<StoreWriter>,
    is_store_due: bool,
    events: Option<EventWriter>,
    queue: Option<SharedQueue>,
    /// When the writer looks for events of other processes, unless it has something to write before.
    events_at: Duration,
    traits: Option<PlayedTraits>,
    /// Connections that another reactor has passed on: to which, and their numbers.
    pub passed: Vec<(usize, u64)>,
    /// Polls that upstream will serve at these times, for edits at the same moment.
    pub fetches: Vec<(Duration, String)>,
    /// `None`: it has ended.
    pub reactors: Vec<Option<PlayedReactor>>,
    tasks: BTreeMap<(Duration, u64), Task>,
    next_task: u64,
    tick_at: Duration,
    pub streams: BTreeMap<EnvironmentId, String>,
    /// When SIGTERM arrived.
    pub stopping: Option<Duration>,
    pub exit: Option<SupervisorResult>,
    /// For the configuration that the next reload reads.
    pub next_config: Option<Config>,
    pub snapshots: Vec<Weak<Snapshot>>,
    random: Random,
    /// How many ticks there were at the same time.
    spins: (Duration, u32),
    keys: HashMap<EnvironmentId, String>,
}

/// What a process shares with the world.
pub struct Shared<'a> {
    pub now: Duration,
    pub network: &'a PlayedNetwork,
    pub disk: &'a PlayedDisk,
    pub model: &'a mut Model,
    pub log: &'a Log,
}

impl Process {
    /// Starts a process. If the disk cuts it off meanwhile, it is of no use.
    pub fn start(config: Config, seed: u64, shared: &mut Shared<'_>) -> Self {
        let folder = config
            .cache_dir
            .as_deref()
            .map(|path: &Path| DiskFolder::new(Arc::new(shared.disk.clone()), path));
        let metrics = Arc::new(Metrics::new(&config.cores));
        let config = Arc::new(config);
        let mut publisher = Publisher::new(Arc::clone(&config));
        let mut reactors = Vec::new();
        for index in 0..config.cores.len() {
            let inbox = publisher.connect().expect("descriptors");
            inbox.wake.set_nonblocking(true).expect("a socket");
            let options = WorkerOptions {
                index,
                core: 0,
                listener: None,
                unix_socket: None,
                tls: None,
                inbox,
                config: Arc::clone(&config),
                log: shared.log.clone(),
                metrics: Arc::clone(&metrics.reactors[index]),
                spans: None,
                times: Timeouts::of(&config),
            };
            let reactor = Rc::new(Reactor::new(&options, Rc::new(WorkerState::new(&options)), false));
            reactors.push(Some(PlayedReactor {
                options,
                reactor,
                sweep_at: None,
                is_woken: false,
                is_open: false,
                draining_since: None,
                is_quiet: true,
            }));
        }
        let mut store = folder.as_ref().and_then(|folder| StoreWriter::open(folder.clone(), shared.log).ok());
        let events = publisher.take_events().zip(folder.as_ref()).map(|(posts, folder)| {
            EventWriter::new(&config, folder.clone(), posts, Arc::clone(&metrics), shared.log.clone())
        });
        let queue = events.as_ref().map(EventWriter::queue);
        let newest = publisher.newest();
        let traits = publisher
            .take_traits()
            .map(|link| PlayedTraits::start(&config, link, newest, folder.as_ref(), &metrics, seed, shared));
        let mut stored = |kind| stored_batches(kind, store.as_mut(), folder.as_ref());
        let stored_uploads =
            StoredUploads { analytics: stored(ReportKind::Analytics), usage: stored(ReportKind::Usage) };
        let upstream = Upstream::over(&config, shared.network.clone()).expect("a valid address");
        let options = SupervisorOptions {
            config: (*config).clone(),
            metrics: Arc::clone(&metrics),
            has_storage: store.is_some(),
            has_certificates: false,
            config_files: None,
            stored_uploads,
        };
        let is_store_due = store.as_ref().is_some_and(StoreWriter::has_unwritten);
        let mut process = Self {
            state: Supervisor::new(options, clock::instant()),
            config,
            results: VecDeque::new(),
            delivery: Delivery::new(publisher),
            upstream: Arc::new(upstream),
            metrics,
            folder: folder.filter(|_| store.is_some()),
            store,
            is_store_due: false,
            events,
            queue,
            events_at: shared.now,
            traits,
            passed: Vec::new(),
            fetches: Vec::new(),
            reactors,
            tasks: BTreeMap::new(),
            next_task: 0,
            tick_at: shared.now,
            streams: BTreeMap::new(),
            stopping: None,
            exit: None,
            next_config: None,
            snapshots: Vec::new(),
            random: Random::new(seed),
            spins: (shared.now, 0),
            keys: HashMap::new(),
        };
        if is_store_due {
            process.plan_store(shared.now);
        }
        process.dispatch(Event::Started, shared);
        process.tick(shared);
        process
    }

    fn plan(&mut self, at: Duration, task: Task) {
        self.next_task += 1;
        self.tasks.insert((at, self.next_task), task);
    }

    pub fn deliver(&mut self, at: Duration, event: Event) {
        self.plan(at, Task::Deliver(Box::new(event)));
    }

    fn plan_store(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.is_store_due, true) {
            let at = now + Duration::from_millis(self.random.between(1, 40));
            self.plan(at, Task::WriteStore);
        }
    }

    /// When something is due in the process.
    pub fn due(&self) -> Duration {
        let task = self.tasks.keys().next().map(|(at, _)| *at);
        let sweeps = self.reactors.iter().flatten().filter_map(|reactor| reactor.sweep_at);
        let events = self.events.as_ref().map(|_| self.events_at);
        let traits = self.traits.as_ref().and_then(PlayedTraits::due);
        let all = sweeps.chain(task).chain(events).chain(traits);
        all.min().map_or(self.tick_at, |at| at.min(self.tick_at))
    }

    /// Lets the writer of events do what is due. Without other processes it finds nothing by looking for their
    /// events: that is played seldom.
    fn step_events(&mut self, now: Duration) {
        let (Some(events), Some(queue)) = (&mut self.events, &self.queue) else { return };
        events.step(Duration::ZERO);
        let wait = events.due().saturating_duration_since(clock::instant());
        let is_idle = wait > limits::EVENT_SYNC_INTERVAL && queue.lock().is_some();
        self.events_at = now + if is_idle { HOUSEKEEPING_INTERVAL } else { wait };
    }

    /// Does what is due first. True if what is served may differ afterwards.
    pub fn step(&mut self, shared: &mut Shared<'_>) -> bool {
        let now = shared.now;
        if self.events.is_some() && self.events_at <= now {
            self.step_events(now);
            self.check_wakes(now);
            return false;
        }
        if let Some(traits) = &mut self.traits
            && traits.due().is_some_and(|at| at <= now)
        {
            if traits.step(now).is_some() {
                self.start_work(Work::ForwardTraits, shared);
            }
            self.check_wakes(now);
            return false;
        }
        if self.tick_at <= now {
            let is_main = self.state.due().is_some_and(|due| due <= clock::instant());
            self.tick(shared);
            return is_main;
        }
        if let Some((&(at, _), _)) = self.tasks.iter().next()
            && at <= now
        {
            let (_, task) = self.tasks.pop_first().expect("it was there");
            let is_main = !matches!(task, Task::Serve(..) | Task::WriteStore);
            self.run(task, shared);
            return is_main;
        }
        let is_due = |reactor: &&mut PlayedReactor| reactor.sweep_at.is_some_and(|at| at <= now);
        if let Some(reactor) = self.reactors.iter_mut().flatten().find(is_due) {
            reactor.reactor.sweep();
            let is_empty = reactor.reactor.connections.is_empty() && reactor.draining_since.is_none();
            // One more, which reports the counts of the last request.
            let goes_on = !(is_empty && std::mem::replace(&mut reactor.is_quiet, is_empty));
            reactor.sweep_at = goes_on.then_some(now + limits::SWEEP_INTERVAL);
            // The supervisor reads reports within two seconds.
            self.tick_at = self.tick_at.min(now + Duration::from_secs(2));
        }
        false
    }

    /// Ends the turn of each event loop: the connections that waited for a turn are answered.
    pub fn end_turns(&self) {
        self.reactors.iter().flatten().for_each(|reactor| reactor.reactor.turns.next());
    }

    /// Connections were used: timeouts run, and counts are reported.
    pub fn used(&mut self, index: usize, now: Duration) {
        if let Some(reactor) = &mut self.reactors[index] {
            reactor.is_quiet = false;
            reactor.sweep_at.get_or_insert(now + limits::SWEEP_INTERVAL);
        }
        // Accepted events are written by another thread.
        self.step_events(now);
        self.traits.iter_mut().for_each(|traits| traits.used(now));
        self.check_wakes(now);
    }

    fn run(&mut self, task: Task, shared: &mut Shared<'_>) {
        match task {
            Task::Serve(work, after) => self.serve(work, after, shared),
            Task::Deliver(event) => {
                self.dispatch(*event, shared);
                self.tick(shared);
            }
            Task::WriteStore => self.write_store(shared),
            Task::TraitsForwarded => self.traits.iter_mut().for_each(|traits| traits.served(shared.now)),
            Task::WakeReactor(index) => {
                self.receive_passed(index);
                if let Some(reactor) = &mut self.reactors[index] {
                    reactor.is_woken = false;
                    reactor.reactor.receive_messages(&reactor.options.inbox);
                    let has_lease = reactor.reactor.worker_state.lease.borrow().is_some();
                    if let Some(spread) = &reactor.reactor.spread
                        && !reactor.reactor.is_draining()
                        && has_lease
                        && !std::mem::replace(&mut reactor.is_open, true)
                    {
                        spread.open();
                    }
                    if reactor.reactor.is_draining() && reactor.draining_since.is_none() {
                        reactor.draining_since = Some(shared.now);
                        reactor.reactor.connections.drain();
                        reactor.reactor.spread.iter().for_each(|spread| spread.close());
                        reactor.sweep_at.get_or_insert(shared.now + limits::SWEEP_INTERVAL);
                    }
                }
            }
        }
    }

    fn write_store(&mut self, shared: &mut Shared<'_>) {
        self.is_store_due = false;
        let Some(store) = &mut self.store else { return };
        store.write();
        if shared.disk.is_cut() {
            return;
        }
        if store.has_unwritten() {
            self.is_store_due = true;
            let at = shared.now + Duration::from_secs(10);
            self.plan(at, Task::WriteStore);
        } else {
            shared.model.stored();
        }
    }

    /// Upstream acts on a request of the process; the process gets the result later.
    fn serve(&mut self, work: Work, after: Duration, shared: &mut Shared<'_>) {
        let event = match work {
            Work::Refresh(job) => {
                let mut result = job.run(&self.upstream, &HereExecutor, &Tracer::default());
                // It was started when the job was.
                result.started = shared.model.refresh_started(result.id).unwrap_or(result.started);
                Event::Refreshed(result)
            }
            Work::Discover => Event::Discovered(self.upstream.discover()),
            Work::Upload { kind, waiting } => {
                let until = clock::instant() + limits::ROUND_TIME_MAX;
                let upstream = &self.upstream;
                Event::Uploaded(run_round(kind, waiting, until, |batch| post_counts(upstream, batch, None)))
            }
            Work::ForwardTraits => {
                self.traits.iter_mut().for_each(PlayedTraits::serve);
                return self.plan(shared.now + after, Task::TraitsForwarded);
            }
            Work::Forward { until } => {
                let Some(queue) = &self.queue else { return };
                let round_until = until.unwrap_or(clock::instant() + limits::ROUND_TIME_MAX);
                let upstream = &self.upstream;
                let send = |batch: &_, body: &[u8]| post_events(upstream, batch, body, until);
                Event::EventsForwarded(forward_round(queue, round_until, send))
            }
        };
        self.deliver(shared.now + after, event);
    }

    fn start_work(&mut self, work: Work, shared: &mut Shared<'_>) {
        let fault = shared.network.server().fault;
        let (before, after) = latency(fault, self.config.api_poll_timeout, &mut self.random);
        if let Work::Refresh(job) = &work
            && self.random.chance(3)
            && let Some(key) = self.keys.get(&job.id)
        {
            self.fetches.push((shared.now + before, key.clone()));
        }
        self.plan(shared.now + before, Task::Serve(work, after));
    }

    pub fn tick(&mut self, shared: &mut Shared<'_>) {
        let counts = self.delivery.take_counts();
        for counts in counts {
            self.dispatch(Event::Counted(counts), shared);
        }
        let reactors = self.delivery.reactors();
        self.dispatch(Event::Tick { reactors }, shared);
        self.delivery.resend();
        drop(self.delivery.take_retired());
        self.snapshots.retain(|snapshot| snapshot.strong_count() > 0);
        self.check_wakes(shared.now);
        let housekeeping = match () {
            () if self.state.is_draining() || self.stopping.is_some() => Duration::from_millis(100),
            () if self.delivery.has_unsent() => Duration::from_millis(10),
            () if self.delivery.has_older_snapshots() => Duration::from_millis(500),
            () => Duration::from_secs(1 << 20),
        };
        let due = self.state.due().map(|due| shared.now + due.saturating_duration_since(clock::instant()));
        let next = due.map_or(shared.now + housekeeping, |due| due.min(shared.now + housekeeping));
        let (at, count) = self.spins;
        self.spins = if at == shared.now { (at, count + 1) } else { (shared.now, 0) };
        if self.spins.1 > 1000 {
            shared.model.offend("the supervisor spins: it is due without end");
        }
        self.tick_at = next;
    }

    pub fn dispatch(&mut self, event: Event, shared: &mut Shared<'_>) {
        self.results.push_back(event);
        while let Some(event) = self.results.pop_front() {
            if shared.disk.is_cut() {
                return;
            }
            shared.model.observe(&event, shared.now, &self.keys);
            let now = Now { instant: clock::instant(), wall: clock::wall(), jitter: jitter() };
            for action in self.state.handle(event, now) {
                if shared.disk.is_cut() {
                    return;
                }
                self.apply(action, shared);
            }
        }
        self.tick_at = self.tick_at.min(
            self.state
                .due()
                .map_or(self.tick_at, |due| shared.now + due.saturating_duration_since(clock::instant())),
        );
    }

    fn apply(&mut self, action: Action, shared: &mut Shared<'_>) {
        match action {
            Action::Log { event, fields, .. } => shared.model.logged(event, &fields),
            Action::LogConfigWarning(_) | Action::SetLogLevel(_) | Action::ReopenAccessLog => {}
            Action::Refresh(job) => {
                shared.model.refresh(&job, shared.now, clock::instant(), &mut self.keys);
                self.start_work(Work::Refresh(job), shared);
            }
            Action::Discover => self.start_work(Work::Discover, shared),
            Action::Upload { kind, waiting } => self.start_work(Work::Upload { kind, waiting }, shared),
            Action::UploadLast { kind, waiting, until } => {
                let upstream = &self.upstream;
                let send = |batch: &_| post_counts(upstream, batch, Some(until));
                self.results.push_back(Event::Uploaded(run_round(kind, waiting, until, send)));
            }
            Action::ForwardEvents { until } => self.start_work(Work::Forward { until }, shared),
            Action::LoadDocument { id, client_side_key } => {
                self.keys.insert(id, client_side_key.clone());
                let result = refresh::load(self.load(&client_side_key));
                self.results.push_back(Event::DocumentLoaded { id, result });
            }
            Action::LoadDiscovery => {
                let result = stored_environments(self.load(STORED_AS));
                self.results.push_back(Event::DiscoveryLoaded(result));
            }
            Action::Store { name, kept } => self.save(name, kept, shared),
            Action::StoreIfChanged { name, kept } => {
                let folder = self.folder.as_ref();
                if !folder.is_some_and(|folder| storage::has_content(folder, name, &kept.digest)) {
                    self.save(name.to_owned(), kept, shared);
                }
            }
            Action::StoreBatches { kind, change } => {
                if let Some(store) = &mut self.store {
                    store.accept(WriteRequest::ChangeRecords(kind.name(), change));
                    self.plan_store(shared.now);
                }
            }
            Action::FlushStorage => self.flush(shared),
            Action::Send(message) => self.send(message, shared),
            Action::OpenStream { id, client_side_key } => drop(self.streams.insert(id, client_side_key)),
            Action::CloseStream(id) => drop(self.streams.remove(&id)),
            Action::RemoveMetrics(client_side_key) => self.metrics.remove_environment(&client_side_key),
            Action::CheckConfigFiles => self.results.push_back(Event::ConfigFiles(None)),
            Action::ReadConfig { is_requested, .. } => self.read_config(is_requested, shared),
            Action::UseUpstream(upstream) => self.upstream = upstream,
            Action::CheckCertificates { .. } | Action::NotifyStopping => {}
            Action::Exit(result) => self.exit = Some(result),
        }
    }

    /// Takes connections that other reactors have passed on.
    fn receive_passed(&mut self, index: usize) {
        let Some(reactor) = &self.reactors[index] else { return };
        let Some(spread) = &reactor.reactor.spread else { return };
        while let Some(connection) = spread.next_passed() {
            let mut number = [0; 8];
            if let NewConnection::Unix(mut stream) = connection {
                stream.read_exact(&mut number).expect("it was written");
            }
            self.passed.push((index, u64::from_le_bytes(number)));
        }
    }

    /// A reactor accepts the connection with this number. True: it passes it on; it arrives in `passed`.
    pub fn accept(&mut self, index: usize, number: Option<u64>) -> bool {
        let reactor = self.reactors[index].as_ref();
        let Some(spread) = reactor.and_then(|reactor| reactor.reactor.spread.as_ref()) else { return false };
        let Some(number) = number else {
            spread.keep();
            return false;
        };
        let (mut ours, theirs) = UnixStream::pair().expect("descriptors");
        ours.write_all(&number.to_le_bytes()).expect("a new socket has capacity");
        spread.pass(NewConnection::Unix(theirs)).is_none()
    }

    /// Whether passing a connection on, or keeping it, was right: no reactor exceeds the mean by 30 % while
    /// another one has fewer (docs/configuration.md). Connections that are on their way count too: a few.
    pub fn is_spread(&self, index: usize, before: usize, is_passed: bool) -> bool {
        let others = self.reactors.iter().enumerate().filter(|(other, _)| *other != index);
        let others = others.filter_map(|(_, reactor)| reactor.as_ref());
        let open = others.filter(|reactor| reactor.is_open && reactor.draining_since.is_none());
        let loads: Vec<usize> = open.map(|reactor| reactor.reactor.connections.len()).collect();
        let sum = before + loads.iter().sum::<usize>() + 2;
        let is_within = (before + 1) * (loads.len() + 1) * 100 <= (sum + 1) * 130;
        is_passed || is_within || loads.iter().min().is_none_or(|least| *least + 1 >= before)
    }

    /// The process exits: kept traits are written and forwarded.
    pub fn stop_traits(&mut self) {
        self.traits.take().into_iter().for_each(PlayedTraits::stop);
    }

    /// Since when kept traits are not on the disk.
    pub fn traits_unwritten_since(&self) -> Option<Duration> {
        self.traits.as_ref().and_then(PlayedTraits::unwritten_since)
    }

    /// A disk that works again is written to soon.
    pub fn disk_changed(&mut self, now: Duration) {
        self.traits.iter_mut().for_each(|traits| traits.disk_changed(now));
    }

    /// Whether documents are stored.
    pub fn stored_version(&self, key: &str) -> Option<Result<Option<StoredDocument>, storage::StorageError>> {
        self.store.as_ref().map(|_| self.load(key))
    }

    fn load(&self, name: &str) -> Result<Option<StoredDocument>, storage::StorageError> {
        self.folder.as_ref().map_or(Ok(None), |folder| storage::load(folder.clone(), name))
    }

    fn save(&mut self, name: String, kept: StoredDocument, shared: &mut Shared<'_>) {
        if let Some(store) = &mut self.store {
            shared.model.storing(&name, &kept.digest);
            store.accept(WriteRequest::Save(name, kept));
            self.plan_store(shared.now);
        }
    }

    fn flush(&mut self, shared: &mut Shared<'_>) {
        self.write_store(shared);
        let queue = self.queue.as_ref().map(SharedQueue::lock);
        if let Some(mut queue) = queue {
            let _ = queue.as_mut().map(|queue| queue.sync());
        }
    }

    fn send(&mut self, message: ReactorMessage, shared: &mut Shared<'_>) {
        if let ReactorMessage::Publish(snapshot) = &message {
            shared.model.published(snapshot, shared.now);
            self.snapshots.push(Arc::downgrade(snapshot));
        }
        self.delivery.send(message);
    }

    fn read_config(&mut self, is_requested: bool, shared: &mut Shared<'_>) {
        use edge_proxy::supervisor::config_file::LoadedConfig;
        let config = self.next_config.take().unwrap_or_else(|| (*self.config).clone());
        self.config = Arc::new(config.clone());
        shared.model.configured(&config, shared.now);
        let upstream = Upstream::over(&config, shared.network.clone()).expect("a valid address");
        let loaded = LoadedConfig { config, warnings: Vec::new(), upstream: Arc::new(upstream) };
        self.results.push_back(Event::ConfigRead { is_requested, result: Ok(Box::new(loaded)) });
    }

    /// Reactors whose socket has a byte wake up soon; a busy one later.
    fn check_wakes(&mut self, now: Duration) {
        for index in 0..self.reactors.len() {
            let Some(reactor) = &mut self.reactors[index] else { continue };
            let mut bytes = [0; 64];
            let is_woken = matches!((&reactor.options.inbox.wake).read(&mut bytes), Ok(count) if count > 0);
            if is_woken && !std::mem::replace(&mut reactor.is_woken, true) {
                let busy = if self.random.chance(5) { 1500 } else { 3 };
                let at = now + Duration::from_millis(self.random.below(busy));
                self.plan(at, Task::WakeReactor(index));
            }
        }
    }

    /// Whether a draining reactor has finished, or its time is over.
    pub fn has_drained(&mut self, index: usize, now: Duration) -> bool {
        if self.reactors[index].as_ref().is_some_and(|reactor| reactor.draining_since.is_some()) {
            self.receive_passed(index);
        }
        let Some(reactor) = &self.reactors[index] else { return false };
        let grace = reactor.options.config.server.shutdown_grace;
        let is_awaiting = reactor
            .reactor
            .spread
            .as_ref()
            .is_some_and(|spread| spread.is_awaiting(reactor.reactor.connections.len()));
        reactor.draining_since.is_some_and(|since| {
            reactor.reactor.connections.is_empty()
                && !is_awaiting
                && now >= since + Duration::from_millis(100)
                || now >= since + grace
                || reactor.reactor.is_ending()
        })
    }

    /// Ends a reactor, whose connections have ended: it reports its counts.
    pub fn end_reactor(&mut self, index: usize, shared: &mut Shared<'_>) {
        // A full channel would wait for the supervisor.
        self.tick(shared);
        let Some(PlayedReactor { options, reactor, .. }) = self.reactors[index].take() else { return };
        reactor.settle_counts();
        let counts = std::mem::take(reactor.request_state.borrow_mut().handler.counts());
        if !counts.is_empty() {
            options.inbox.report_last(counts);
        }
        reactor.worker_state.lease.take();
        drop((reactor, options));
        self.tick_at = shared.now;
    }
}

fn stored_batches(
    kind: ReportKind,
    store: Option<&mut StoreWriter>,
    folder: Option<&DiskFolder>,
) -> Vec<edge_proxy::analytics::batch::UploadBatch> {
    let (Some(store), Some(folder)) = (store, folder) else { return Vec::new() };
    let records = store.load_records(kind.name());
    let (saved, change) = outbox::saved(kind, records, storage::load(folder.clone(), kind.storage_name()));
    if let Some(change) = change {
        store.accept(WriteRequest::ChangeRecords(kind.name(), change));
    }
    saved.batches
}
