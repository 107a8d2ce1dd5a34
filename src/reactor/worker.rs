//! A reactor thread: starts, receives messages, drains, and restarts after a panic.
//!
//! Listeners, inbox and worker state survive a panic. The runtime does not: everything on it is shut down
//! before it is dropped, so that no connection is left open on it.
use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::io::AsyncReadRent;
use socket2::SockRef;

use crate::config::Level;
use crate::limits;
use crate::reactor::accept::Listener;
use crate::reactor::context::{Reactor, WorkerState};
use crate::reactor::listener::UnixSocket;
#[cfg(test)]
use crate::reactor::options::InjectedPanic;
use crate::reactor::options::WorkerOptions;
use crate::reactor::turns::TurnEnd;
use crate::reactor::{accept, driver, panic, turns};

/// While draining, connections whose handshake was in progress are accepted for this time.
const DRAIN_ACCEPT_TIME: Duration = Duration::from_millis(50);
/// While draining, the maximum wait for empty accept queues, if new connections cannot be rejected.
const DRAIN_QUEUE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a process that takes over waits for its documents before it stops its predecessor.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a draining reactor checks whether it has finished.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// Pause before a reactor that panicked restarts.
const RESTART_PAUSE: Duration = Duration::from_millis(20);

enum WorkerError {
    Panic,
    Io(io::Error),
}

/// Runs a reactor until it has drained or the supervisor has exited.
pub fn supervise(mut options: WorkerOptions) {
    let (index, core) = (options.index, options.core);
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        let fields: [(_, &dyn std::fmt::Display); 2] = [("reactor", &index), ("core", &core)];
        options.log.event(Level::Warning, "reactor_not_pinned", &fields);
    }
    let sockets = RefCell::new((options.listener.take(), options.unix_socket.take()));
    let worker_state = Rc::new(WorkerState::new(&options));
    let log = options.log.clone();
    loop {
        let built = match driver::build(options.config.server.driver) {
            Ok(built) => built,
            Err(error) => {
                log.event(Level::Critical, "reactor_no_driver", &[("error", &error)]);
                break;
            }
        };
        options.metrics.set_driver(built.label);
        let fields: [(_, &dyn std::fmt::Display); 4] =
            [("reactor", &index), ("core", &core), ("driver", &built.name), ("reason", &built.why)];
        log.event(Level::Info, "reactor_started", &fields);
        let (event, what): (_, String) = match run(&options, &sockets, &worker_state, built) {
            Ok(()) => break,
            Err(WorkerError::Panic) => ("reactor_panicked", panic::take_last()),
            Err(WorkerError::Io(error)) => ("reactor_failed", error.to_string()),
        };
        options.metrics.restarts.add(1);
        log.event(Level::Critical, event, &[("reactor", &index), ("place", &what)]);
        // Limits the CPU time of a defect that recurs at every start.
        std::thread::sleep(RESTART_PAUSE);
    }
    if let Some(spread) = &options.inbox.spread {
        spread.close();
    }
    // Returns the snapshot to the supervisor, even if a leaked task still refers to the state.
    worker_state.lease.take();
}

/// Runs until the reactor has drained, fails or panics, and shuts down everything on its runtime.
fn run(
    options: &WorkerOptions,
    sockets: &RefCell<ListenSockets>,
    worker_state: &Rc<WorkerState>,
    mut built: driver::BuiltRuntime,
) -> Result<(), WorkerError> {
    let reactor = Rc::new(Reactor::new(options, worker_state.clone(), built.uring));
    let (listeners, is_uring) = (RefCell::default(), built.uring);
    let worker = Worker { options, reactor, sockets, listeners, is_uring };
    let ended = catch_unwind(AssertUnwindSafe(|| built.runtime.block_on(worker.serve())));
    // Connections keep the ring alive, and a pending accept may take a connection: all of them end on this
    // runtime before it is dropped.
    let _ = catch_unwind(AssertUnwindSafe(|| built.runtime.block_on(worker.shutdown())));
    let counts = std::mem::take(worker.reactor.request_state.borrow_mut().handler.counts());
    if !counts.is_empty() {
        options.inbox.report_last(counts);
    }
    match ended {
        Ok(result) => result.map_err(WorkerError::Io),
        Err(_) => Err(WorkerError::Panic),
    }
}

/// The TCP and the unix listener, open until the reactor drains.
type ListenSockets = (Option<TcpListener>, Option<Arc<UnixSocket>>);

/// A reactor on one runtime.
struct Worker<'a> {
    options: &'a WorkerOptions,
    reactor: Rc<Reactor>,
    sockets: &'a RefCell<ListenSockets>,
    /// The listeners with accept loops.
    listeners: RefCell<Vec<Rc<Listener>>>,
    is_uring: bool,
}

impl Worker<'_> {
    async fn serve(&self) -> io::Result<()> {
        // A ring needs blocking descriptors, epoll non-blocking ones.
        let wake = self.options.inbox.wake.try_clone()?;
        wake.set_nonblocking(!self.is_uring)?;
        let mut wake = WakeReceiver { socket: monoio::net::UnixStream::from_std(wake)?, bytes: vec![0; 64] };
        while self.reactor.worker_state.lease.borrow().is_none() {
            if !self.receive_messages() {
                return Ok(());
            }
            if self.reactor.worker_state.lease.borrow().is_none() {
                wake.wait().await;
            }
        }
        if !self.wait_for_documents().await {
            return Ok(());
        }
        self.open()?;
        monoio::spawn(sweep(self.reactor.clone()));
        monoio::spawn(turns::run(self.reactor.turns.clone(), TurnEnd::new(self.is_uring)?));
        monoio::spawn(release_memory(self.reactor.clone(), TurnEnd::new(self.is_uring)?));
        if self.reactor.spin.is_some() {
            monoio::spawn(spin(self.reactor.clone(), TurnEnd::new(self.is_uring)?));
        }
        // A message may have arrived before the first read of the socket pair.
        while self.receive_messages() && !self.reactor.is_draining() {
            wake.wait().await;
        }
        self.drain().await;
        Ok(())
    }

    /// Takeover: while another process serves the sockets, waits until every environment has its document,
    /// at most `TAKE_OVER_TIMEOUT`. False: the supervisor has exited.
    async fn wait_for_documents(&self) -> bool {
        let began = Instant::now();
        let is_taking_over = || {
            let (tcp, unix) = &*self.sockets.borrow();
            tcp.as_ref().is_some_and(|tcp| !SockRef::from(tcp).is_listener().unwrap_or(true))
                || unix.as_ref().is_some_and(|unix| unix.is_temporary())
        };
        let lacks_documents = || {
            let lease = self.reactor.worker_state.lease.borrow();
            lease.as_ref().is_none_or(|lease| lease.slots.iter().any(|slot| slot.document.is_none()))
        };
        let is_in_time = || began.elapsed() < TAKE_OVER_TIMEOUT;
        while is_taking_over() && lacks_documents() && !self.reactor.is_draining() && is_in_time() {
            monoio::time::sleep(DRAIN_CHECK_INTERVAL).await;
            if !self.receive_messages() {
                return false;
            }
        }
        true
    }

    /// Starts to accept connections.
    fn open(&self) -> io::Result<()> {
        let (tcp, unix) = &*self.sockets.borrow();
        let is_spread = self.reactor.spread.is_some();
        let mut opened = Vec::new();
        if let Some(tcp) = tcp {
            tcp.set_nonblocking(!self.is_uring || is_spread)?;
            // Has no effect if the socket already listens.
            SockRef::from(tcp).listen(limits::BACKLOG_MAX)?;
            opened.push(Rc::new(Listener::tcp(tcp.try_clone()?, is_spread)?));
        }
        if let Some(unix) = unix {
            let listener = unix.listener()?;
            listener.set_nonblocking(!self.is_uring || is_spread)?;
            opened.push(Rc::new(Listener::unix(listener, is_spread)?));
            unix.publish()?;
        }
        // With epoll one loop accepts all that have connected, and only one may wait for a descriptor.
        let loops = if self.is_uring && !is_spread { limits::ACCEPTS_IN_FLIGHT } else { 1 };
        for listener in &opened {
            for _ in 0..loops {
                monoio::spawn(accept::accept(self.reactor.clone(), listener.clone()));
            }
        }
        *self.listeners.borrow_mut() = opened;
        if let Some(spread) = &self.reactor.spread {
            spread.open();
        }
        Ok(())
    }

    /// Takes passed connections, and applies all messages of the supervisor. False: the supervisor has
    /// exited.
    fn receive_messages(&self) -> bool {
        if self.reactor.worker_state.lease.borrow().is_some() {
            accept::receive_passed(&self.reactor);
        }
        self.reactor.receive_messages(&self.options.inbox)
    }

    /// Stops accepting, completes requests in progress, and ends. Handshakes in progress complete, and idle
    /// connections may send one more request.
    async fn drain(&self) {
        let began = Instant::now();
        let reactor = &self.reactor;
        reactor.worker_state.draining.set(true);
        reactor.connections.drain();
        if let Some(spread) = &reactor.spread {
            spread.close();
        }
        if let (_, Some(unix)) = &*self.sockets.borrow() {
            unix.unlink();
        }
        for listener in self.listeners.borrow().iter() {
            listener.stop_accepting();
        }
        monoio::time::sleep(DRAIN_ACCEPT_TIME).await;
        self.empty_accept_queues().await;
        self.cancel_listeners(DRAIN_ACCEPT_TIME).await;
        // Closes the last descriptors of the listeners: from now on the kernel refuses connections.
        drop(self.sockets.take());
        let grace = self.options.config.server.shutdown_grace;
        accept::receive_passed(reactor);
        let closed_at = Instant::now();
        let is_awaiting = || {
            let spread = reactor.spread.as_ref().filter(|_| closed_at.elapsed() < DRAIN_QUEUE_TIMEOUT);
            spread.is_some_and(|spread| spread.is_awaiting(reactor.connections.len()))
        };
        while (!reactor.connections.is_empty() || is_awaiting())
            && began.elapsed() < grace
            && !self.is_ended()
        {
            accept::receive_passed(reactor);
            monoio::time::sleep(DRAIN_CHECK_INTERVAL).await;
        }
        let (left, took) = (reactor.connections.len(), began.elapsed().as_millis());
        reactor.log.event(
            Level::Info,
            "reactor_drained",
            &[("reactor", &reactor.index), ("connections_cut_count", &left), ("took_ms", &took)],
        );
    }

    /// Applies the messages of the supervisor. True: open requests are not waited for.
    fn is_ended(&self) -> bool {
        !self.reactor.receive_messages(&self.options.inbox) || self.reactor.is_ending()
    }

    /// Waits until the accept queues are empty, because closing a listener resets the connections in its
    /// queue. On a busy machine this thread may not have run during a sleep, so a pause by itself proves
    /// nothing: two consecutive polls of the runtime must find no new connection.
    async fn empty_accept_queues(&self) {
        let metrics = &self.reactor.metrics;
        let accepted = || metrics.connections_opened.value() + metrics.connections_refused.value();
        let (began, mut quiet_count) = (Instant::now(), 0);
        while quiet_count < 2 && began.elapsed() < DRAIN_QUEUE_TIMEOUT && !self.is_ended() {
            let before = accepted();
            monoio::time::sleep(DRAIN_CHECK_INTERVAL).await;
            quiet_count = if accepted() == before { quiet_count + 1 } else { 0 };
        }
    }

    async fn cancel_listeners(&self, time: Duration) {
        let listeners = self.listeners.take();
        for listener in &listeners {
            listener.cancel();
        }
        let began = Instant::now();
        while listeners.iter().any(|listener| listener.is_accepting()) && began.elapsed() < time {
            monoio::time::sleep(DRAIN_CHECK_INTERVAL).await;
        }
    }

    /// Ends everything that runs on this runtime.
    async fn shutdown(&self) {
        self.cancel_listeners(DRAIN_ACCEPT_TIME).await;
        self.reactor.connections.cancel_all(limits::DRAIN_IDLE_TIMEOUT).await;
        self.reactor.settle_counts();
        self.reactor.flush_access_log();
        self.reactor.flush_spans();
    }
}

/// Polls for requests, and logs what it costs.
async fn spin(reactor: Rc<Reactor>, end: TurnEnd) {
    if let Some(spin) = &reactor.spin {
        let cost = format!(
            "{} microseconds of CPU after each response, nothing without requests",
            spin.time().as_micros()
        );
        let fields: [(_, &dyn std::fmt::Display); 2] = [("reactor", &reactor.index), ("cost", &cost)];
        reactor.log.event(Level::Info, "reactor_polls", &fields);
        spin.run(end).await;
    }
}

/// Periodic work of a reactor: timeouts, memory limits, and reports to other threads.
pub async fn sweep(reactor: Rc<Reactor>) {
    loop {
        let began = Instant::now();
        monoio::time::sleep(limits::SWEEP_INTERVAL).await;
        #[cfg(test)]
        reactor.panic_if_injected(InjectedPanic::Sweep);
        reactor.sweep();
        reactor.metrics.beat(began.elapsed().saturating_sub(limits::SWEEP_INTERVAL));
    }
}

/// After connections were cancelled, waits until the driver has dropped their buffers, and lets those grow
/// that wait for it.
async fn release_memory(reactor: Rc<Reactor>, mut end: TurnEnd) {
    let memory = &reactor.connections.memory;
    loop {
        let releasing = memory.release_needed().await;
        // After the tasks that were cancelled.
        turns::yield_now().await;
        end.wait().await;
        memory.released(releasing);
    }
}

/// The receiving end of the socket pair that wakes the reactor when its inbox has a message.
struct WakeReceiver {
    socket: monoio::net::UnixStream,
    bytes: Vec<u8>,
}

impl WakeReceiver {
    async fn wait(&mut self) {
        let (result, bytes) = self.socket.read(std::mem::take(&mut self.bytes)).await;
        self.bytes = bytes;
        if !matches!(result, Ok(length) if length > 0) {
            // The other end is closed. Avoids spinning until the inbox reports it.
            monoio::time::sleep(DRAIN_CHECK_INTERVAL).await;
        }
    }
}
