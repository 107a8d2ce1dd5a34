//! The life of one reactor thread: start, take messages, drain, and start again after a panic.
//!
//! In: [`WorkerOptions`]. Out: nothing but what its connections write. Invariant: what must outlive a
//! panic (listeners, inbox, newest snapshot) is in [`WorkerState`]; the ring and everything on it is
//! wound up before a fresh one is made, so that no connection is left hanging on the old one.
use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::io::AsyncReadRent;
use socket2::SockRef;

use crate::channel::{Disconnected, Inbox, Lease, ReactorMessage, Reporter};
use crate::config::Level;
use crate::http::{HeadCache, ResponseWriter};
use crate::log::Log;
use crate::metrics::ReactorMetrics;
use crate::reactor::accept::Listener;
use crate::reactor::access_log::AccessLog;
use crate::reactor::connections::Connections;
use crate::reactor::{UnixSocket, WorkerOptions, accept, connections, driver, panic};
use crate::{handlers, limits};

/// What a reactor keeps when it starts again.
struct WorkerState {
    inbox: Inbox,
    listeners: RefCell<(Option<TcpListener>, Option<Arc<UnixSocket>>)>,
    lease: RefCell<Option<Rc<Lease>>>,
    settings: RefCell<Rc<handlers::HandlerSettings>>,
    tls: RefCell<Option<Arc<rustls::ServerConfig>>>,
    draining: Cell<bool>,
    /// After SIGTERM: what is in flight is answered within this time.
    grace: Duration,
}

/// What the tasks of one reactor have in common. `RefCell`s are never borrowed over an await.
pub struct Reactor {
    pub index: usize,
    pub log: Log,
    pub metrics: Arc<ReactorMetrics>,
    /// `None`: no access log is wanted.
    pub access: Option<AccessLog>,
    pub settings: RefCell<Rc<handlers::HandlerSettings>>,
    pub lease: RefCell<Option<Rc<Lease>>>,
    pub tls: RefCell<Option<Arc<rustls::ServerConfig>>>,
    pub spine: RefCell<RequestState>,
    pub spare_buffers: RefCell<Vec<Vec<u8>>>,
    pub heads: Rc<HeadCache>,
    pub registry: Connections,
    pub connections_max: usize,
    /// On one connection.
    pub requests_max: u64,
    pub draining: Cell<bool>,
    reporter: Reporter,
    listeners: RefCell<Vec<Rc<Listener>>>,
    #[cfg(test)]
    fault: &'static std::sync::atomic::AtomicU8,
}

/// The buffers of the spine, reused by every request of this reactor.
#[derive(Default)]
pub struct RequestState {
    pub room: handlers::HandlerState,
    pub output: ResponseWriter,
}

enum WorkerError {
    Panic,
    Io(io::Error),
}

/// Runs the reactor until it ends of its own will.
pub fn supervise(start: WorkerOptions) {
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: start.core });
    if !pinned {
        let fields: [(_, &dyn std::fmt::Display); 2] = [("reactor", &start.index), ("core", &start.core)];
        start.log.event(Level::Warning, "reactor_not_pinned", &fields);
    }
    let parts = StartParts::new(start);
    loop {
        let built = match driver::build(parts.driver) {
            Ok(built) => built,
            Err(error) => {
                parts.log.event(Level::Critical, "reactor_has_no_driver", &[("error", &error)]);
                return;
            }
        };
        parts.metrics.driven_by(built.label);
        parts.log.event(
            Level::Info,
            "reactor_started",
            &[
                ("reactor", &parts.index),
                ("core", &parts.metrics.core),
                ("driver", &built.name),
                ("reason", &built.why),
            ],
        );
        let (event, what): (_, String) = match parts.run(built) {
            Ok(()) => return,
            Err(WorkerError::Panic) => ("reactor_panicked", panic::last_place()),
            Err(WorkerError::Io(error)) => ("reactor_failed", error.to_string()),
        };
        parts.metrics.restarts.add(1);
        parts.log.event(Level::Critical, event, &[("reactor", &parts.index), ("place", &what)]);
        // A defect that comes back at once must not keep the core busy.
        std::thread::sleep(limits::RESTART_PAUSE);
    }
}

/// [`WorkerOptions`], sorted into what is fixed and what is remembered.
struct StartParts {
    index: usize,
    driver: Option<crate::config::Driver>,
    log: Log,
    metrics: Arc<ReactorMetrics>,
    config: Arc<crate::config::Config>,
    times: super::Timeouts,
    memory: WorkerState,
}

impl StartParts {
    fn new(start: WorkerOptions) -> Self {
        let memory = WorkerState {
            inbox: start.inbox,
            listeners: RefCell::new((start.listener, start.unix_socket)),
            lease: RefCell::new(None),
            settings: RefCell::new(Rc::new(handlers::HandlerSettings::new(&start.config))),
            tls: RefCell::new(start.tls),
            draining: Cell::new(false),
            grace: start.config.server.shutdown_grace,
        };
        Self {
            index: start.index,
            driver: start.config.server.driver,
            log: start.log,
            metrics: start.metrics,
            config: start.config,
            times: start.times,
            memory,
        }
    }

    fn run(&self, mut built: driver::BuiltRuntime) -> Result<(), WorkerError> {
        let reactor = Rc::new(Reactor::new(self));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            built.runtime.block_on(reactor.clone().live(&self.memory, built.uring))
        }));
        // Connections hold their ring alive, and an accept under way would take a connection
        // with it: all are ended on this ring before it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| built.runtime.block_on(reactor.wind_up())));
        let counts = std::mem::take(reactor.spine.borrow_mut().room.counts());
        if !counts.is_empty() {
            self.memory.inbox.report_last(counts);
        }
        match ended {
            Ok(result) => result.map_err(WorkerError::Io),
            Err(_) => Err(WorkerError::Panic),
        }
    }
}

impl Reactor {
    fn new(parts: &StartParts) -> Self {
        Self {
            index: parts.index,
            log: parts.log.clone(),
            metrics: parts.metrics.clone(),
            access: AccessLog::new(&parts.config),
            settings: RefCell::new(parts.memory.settings.borrow().clone()),
            lease: RefCell::new(parts.memory.lease.borrow().clone()),
            tls: RefCell::new(parts.memory.tls.borrow().clone()),
            spine: RefCell::default(),
            spare_buffers: RefCell::default(),
            heads: Rc::new(HeadCache::new(parts.config.server.head_bytes_max)),
            registry: Connections::new(parts.times),
            connections_max: parts.config.server.connections_max,
            requests_max: parts.config.server.requests_max.unwrap_or(u64::MAX),
            draining: Cell::new(parts.memory.draining.get()),
            reporter: parts.memory.inbox.reporter(),
            listeners: RefCell::default(),
            #[cfg(test)]
            fault: parts.times.fault,
        }
    }

    /// Without a thread, for tests of what is inside.
    #[cfg(test)]
    pub fn alone(start: WorkerOptions) -> Rc<Self> {
        Rc::new(Self::new(&StartParts::new(start)))
    }

    #[cfg(test)]
    pub fn panic_if_asked(&self, here: super::InjectedPanic) {
        use std::sync::atomic::Ordering;
        if self.fault.compare_exchange(here as u8, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            panic!("as the test asks");
        }
    }

    async fn live(self: Rc<Self>, memory: &WorkerState, uring: bool) -> io::Result<()> {
        // A ring waits on blocking descriptors by itself and fails on others; epoll needs the
        // reverse.
        let wake = memory.inbox.wake.try_clone()?;
        wake.set_nonblocking(!uring)?;
        let mut wake = WakeReceiver { socket: monoio::net::UnixStream::from_std(wake)?, bytes: vec![0; 64] };
        while self.lease.borrow().is_none() {
            if !self.take_messages(memory) {
                return Ok(());
            }
            if self.lease.borrow().is_none() {
                wake.wait().await;
            }
        }
        if !self.take_over(memory).await {
            return Ok(());
        }
        self.open(memory, uring)?;
        monoio::spawn(connections::sweep(self.clone()));
        // A message may have come before the first read of the pair.
        while self.take_messages(memory) && !self.draining.get() {
            wake.wait().await;
        }
        memory.draining.set(true);
        self.drain(memory).await;
        Ok(())
    }

    /// A listener that does not listen yet, and a unix socket beside its path, have another process
    /// before them (`listen`), which goes on serving until this one can: every environment has its
    /// document, or patience is over. False when the supervisor is gone.
    async fn take_over(&self, memory: &WorkerState) -> bool {
        let began = Instant::now();
        let behind = || {
            let (tcp, unix) = &*memory.listeners.borrow();
            tcp.as_ref().is_some_and(|tcp| !SockRef::from(tcp).is_listener().unwrap_or(true))
                || unix.as_ref().is_some_and(|unix| unix.is_beside())
        };
        let lacks = || {
            let lease = self.lease.borrow();
            lease.as_ref().is_none_or(|lease| lease.slots.iter().any(|slot| slot.environment.is_none()))
        };
        while behind() && lacks() && !self.draining.get() && began.elapsed() < limits::TAKE_OVER_PATIENCE {
            monoio::time::sleep(limits::DRAIN_CHECK_INTERVAL).await;
            if !self.take_messages(memory) {
                return false;
            }
        }
        true
    }

    /// Starts to accept.
    fn open(self: &Rc<Self>, memory: &WorkerState, uring: bool) -> io::Result<()> {
        let (tcp, unix) = &*memory.listeners.borrow();
        let mut opened = Vec::new();
        if let Some(tcp) = tcp {
            tcp.set_nonblocking(!uring)?;
            // Again for one that listens already does nothing.
            SockRef::from(tcp).listen(limits::BACKLOG_MAX)?;
            opened.push(Rc::new(Listener::tcp(tcp.try_clone()?)?));
        }
        if let Some(unix) = unix {
            let listener = unix.listener()?;
            listener.set_nonblocking(!uring)?;
            opened.push(Rc::new(Listener::unix(listener)?));
            unix.put_in_place()?;
        }
        for listener in &opened {
            monoio::spawn(accept::accept(self.clone(), listener.clone()));
        }
        *self.listeners.borrow_mut() = opened;
        Ok(())
    }

    /// Takes in what the supervisor sent. False when it is gone.
    fn take_messages(&self, memory: &WorkerState) -> bool {
        loop {
            match memory.inbox.try_next() {
                Ok(Some(ReactorMessage::Publish(snapshot))) => {
                    self.metrics.snapshot_taken(snapshot.version);
                    self.settle_counts();
                    let lease = memory.inbox.lease(snapshot);
                    self.spine.borrow_mut().output.clear_cache();
                    *memory.lease.borrow_mut() = Some(lease.clone());
                    *self.lease.borrow_mut() = Some(lease);
                    self.registry.nudge_streams();
                }
                Ok(Some(ReactorMessage::Configure(config))) => {
                    let settings = Rc::new(handlers::HandlerSettings::new(&config));
                    *memory.settings.borrow_mut() = settings.clone();
                    *self.settings.borrow_mut() = settings;
                }
                Ok(Some(ReactorMessage::Certificates(settings))) => {
                    *memory.tls.borrow_mut() = Some(settings.clone());
                    *self.tls.borrow_mut() = Some(settings);
                }
                Ok(Some(ReactorMessage::Drain)) => self.draining.set(true),
                Ok(None) => return true,
                Err(Disconnected) => return false,
            }
        }
    }

    /// Answers what is in flight and ends: new connections are shut out first, those whose
    /// handshake was under way are still served, idle ones may bring one more request.
    async fn drain(&self, memory: &WorkerState) {
        let began = Instant::now();
        self.draining.set(true);
        self.registry.drain();
        if let (_, Some(unix)) = &*memory.listeners.borrow() {
            unix.take_away();
        }
        for listener in self.listeners.borrow().iter() {
            listener.shut_out();
        }
        monoio::time::sleep(limits::DRAIN_ACCEPT_TIME).await;
        self.empty_queues().await;
        self.end_listeners(limits::DRAIN_ACCEPT_TIME).await;
        // The last of the descriptors: from now on the kernel refuses what comes to this one.
        drop(memory.listeners.take());
        while !self.registry.is_empty() && began.elapsed() < memory.grace {
            monoio::time::sleep(limits::DRAIN_CHECK_INTERVAL).await;
        }
        let (left, took) = (self.registry.len(), began.elapsed().as_millis());
        self.log.event(
            Level::Info,
            "reactor_drained",
            &[("reactor", &self.index), ("connections_cut_count", &left), ("took_ms", &took)],
        );
    }

    /// Waits until nobody is left in the queues of the listeners, whom a close would reset. On a busy
    /// machine this thread may not have run at all while it slept, so time alone says nothing: twice
    /// in a row the ring must have been asked and nobody have come.
    async fn empty_queues(&self) {
        let came = || self.metrics.connections_opened.value() + self.metrics.connections_refused.value();
        let (began, mut quiet_count) = (Instant::now(), 0);
        while quiet_count < 2 && began.elapsed() < limits::DRAIN_QUEUE_PATIENCE {
            let before = came();
            monoio::time::sleep(limits::DRAIN_CHECK_INTERVAL).await;
            quiet_count = if came() == before { quiet_count + 1 } else { 0 };
        }
    }

    async fn end_listeners(&self, time: Duration) {
        let listeners = self.listeners.take();
        for listener in &listeners {
            listener.end();
        }
        let began = Instant::now();
        while listeners.iter().any(|listener| listener.accepting()) && began.elapsed() < time {
            monoio::time::sleep(limits::DRAIN_CHECK_INTERVAL).await;
        }
    }

    /// Ends everything that is on this ring.
    async fn wind_up(&self) {
        self.end_listeners(limits::DRAIN_ACCEPT_TIME).await;
        self.registry.end_all(limits::DRAIN_IDLE_TIMEOUT).await;
        self.settle_counts();
        self.hand_on_accesses();
        // Whatever task may be left on the ring, the snapshot goes back to the supervisor.
        self.lease.take();
    }

    /// Gives counts by slot the names that the snapshot in use has for the slots.
    fn settle_counts(&self) {
        if let Some(lease) = self.lease.borrow().as_deref() {
            let key = |slot: usize| lease.slots.get(slot).map(|slot| &*slot.client_side_key);
            self.spine.borrow_mut().room.counts().settle(key);
        }
    }

    /// Hands on what there is of the access log.
    pub fn hand_on_accesses(&self) {
        if let Some(access) = &self.access {
            self.metrics.access_dropped.add(access.hand_on(&self.log));
        }
    }

    /// Hands what was counted to the supervisor; what it does not take stays here.
    pub fn report_counts(&self) {
        if self.spine.borrow_mut().room.counts().is_empty() {
            return;
        }
        self.settle_counts();
        let counts = std::mem::take(self.spine.borrow_mut().room.counts());
        if let Err(counts) = self.reporter.report(Box::new(counts)) {
            // Nothing was counted since they were taken.
            *self.spine.borrow_mut().room.counts() = *counts;
        }
    }
}

/// The end of the socket pair that says "look into the inbox".
struct WakeReceiver {
    socket: monoio::net::UnixStream,
    bytes: Vec<u8>,
}

impl WakeReceiver {
    async fn wait(&mut self) {
        let (result, bytes) = self.socket.read(std::mem::take(&mut self.bytes)).await;
        self.bytes = bytes;
        if !matches!(result, Ok(length) if length > 0) {
            // The other end is gone, as the inbox will tell; until then this must not spin.
            monoio::time::sleep(limits::DRAIN_CHECK_INTERVAL).await;
        }
    }
}
