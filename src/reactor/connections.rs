//! The connection table of a reactor, with coarse timers and memory limits.
//!
//! A connection records its phase and the current tick; a sweep, a few times per second, cancels connections
//! that exceed the timeout of their phase. So no request needs a timer or reads a clock.
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::channel::SpreadPort;
use crate::http::h2::event::WaitLimits;
use crate::limits;
use crate::metrics::ReactorMetrics;
use crate::reactor::budget::Budget;
use crate::reactor::memory::{BufferMemory, ConnectionMemory, MemoryPool};
use crate::reactor::options::Timeouts;

/// A connection that has waited for its peer for less than this is not closed because of its buffers.
const EVICTION_WAIT_MIN: Duration = Duration::from_millis(500);

/// What a connection is doing; each phase has its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the first byte of a request.
    Idle,
    /// TLS handshake.
    Handshake,
    Head,
    Body,
    /// Writing; restarts whenever the peer takes enough bytes.
    Writing,
    /// Waiting for the peer to close, after the last response.
    Lingering,
    /// Waiting until the events of a request are written.
    Storing,
    /// Waiting for the next event of an event stream, or for one of the streams of an HTTP/2 connection. The
    /// connection sets a tick at which it is notified.
    Streaming,
}

/// Why an interruptible operation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    Ready,
    Notified,
    /// Or the operation has failed.
    Cancelled,
}

/// The table entry of one connection, shared by its task and the sweep.
#[derive(Debug)]
pub struct ConnectionState {
    phase: Cell<Phase>,
    since_tick: Cell<u32>,
    cancelled: Cell<bool>,
    /// Event streams: there may be something to write.
    notified: Cell<bool>,
    /// Event streams: the tick at which to notify.
    due_tick: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    pub memory: ConnectionMemory,
    pub budget: Budget,
    /// Its turn to be answered has come (`turns`).
    is_admitted: Cell<bool>,
}

impl ConnectionState {
    fn new(tick: u32) -> Self {
        Self {
            phase: Cell::new(Phase::Idle),
            since_tick: Cell::new(tick),
            cancelled: Cell::new(false),
            notified: Cell::new(false),
            due_tick: Cell::new(0),
            waker: RefCell::new(None),
            memory: ConnectionMemory::default(),
            budget: Budget::default(),
            is_admitted: Cell::new(false),
        }
    }

    /// Runs an operation that may be dropped, such as waiting for a socket to be readable, until it completes
    /// or the connection is notified.
    pub async fn interruptible<F: Future<Output = io::Result<()>>>(
        &self,
        mut operation: Pin<&mut F>,
    ) -> Wakeup {
        std::future::poll_fn(|context| {
            if self.cancelled.get() {
                return Poll::Ready(Wakeup::Cancelled);
            }
            if let Poll::Ready(done) = operation.as_mut().poll(context) {
                return Poll::Ready(if done.is_ok() { Wakeup::Ready } else { Wakeup::Cancelled });
            }
            self.budget.reset();
            if self.notified.take() {
                return Poll::Ready(Wakeup::Notified);
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Runs an operation until it completes, or until [`cancel`](Self::cancel) is called: `None`. A cancelled
    /// operation may have transferred bytes, so the connection must not be used for the next request. The
    /// operation is pinned by the caller: what a future is given by value takes its space twice.
    pub async fn cancellable<F: Future>(&self, mut operation: Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = operation.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            self.budget.reset();
            if self.cancelled.get() {
                return Poll::Ready(None);
            }
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until [`admit`](Self::admit) is called, or the connection is cancelled.
    pub async fn admitted(&self) {
        self.is_admitted.set(false);
        std::future::poll_fn(|context| {
            if self.is_admitted.take() || self.cancelled.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends [`admitted`](Self::admitted).
    pub fn admit(&self) {
        self.is_admitted.set(true);
        self.wake();
    }

    /// Waits until there is memory to grow. False: the connection was cancelled.
    async fn wait_for_memory(&self, memory: &BufferMemory) -> bool {
        std::future::poll_fn(|context| {
            if self.cancelled.get() || !memory.is_full() {
                return Poll::Ready(!self.cancelled.get());
            }
            memory.add_waiting(context.waker());
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Waits for a notification. False: the connection was cancelled.
    pub async fn notified(&self) -> bool {
        std::future::poll_fn(|context| {
            if self.cancelled.get() {
                return Poll::Ready(false);
            }
            if self.notified.take() {
                return Poll::Ready(true);
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Sets the tick at which the sweep notifies this event stream.
    pub fn set_due(&self, tick: u32) {
        self.due_tick.set(tick);
    }

    fn notify(&self) {
        self.notified.set(true);
        self.wake();
    }

    /// Cancels the current operation and all later ones, until [`reset_cancelled`](Self::reset_cancelled).
    pub fn cancel(&self) {
        self.cancelled.set(true);
        self.wake();
    }

    /// Allows further operations, such as writing an error response before the connection closes.
    pub fn reset_cancelled(&self) {
        self.cancelled.set(false);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    fn is_cancelled_write(&self) -> bool {
        self.is_cancelled() && self.phase.get() == Phase::Writing
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The connection table of a reactor.
#[derive(Debug)]
pub struct Connections {
    states: RefCell<Slab<Rc<ConnectionState>>>,
    tick: Cell<u32>,
    times: Cell<Timeouts>,
    pub memory: Rc<BufferMemory>,
    metrics: Arc<ReactorMetrics>,
    /// Where the end of a connection is counted for the other reactors.
    spread: Option<SpreadPort>,
}

/// A connection's entry in the table; removed when dropped.
pub struct ConnectionGuard {
    connections: Rc<Connections>,
    key: usize,
    pub state: Rc<ConnectionState>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.memory.remove(&self.state.memory, self.state.is_cancelled());
        self.connections.states.borrow_mut().try_remove(self.key);
        self.connections.metrics.connections_closed.add(1);
        if let Some(spread) = &self.connections.spread {
            spread.closed();
        }
    }
}

impl ConnectionGuard {
    /// Enters a phase, which restarts the timeout.
    pub fn set_phase(&self, phase: Phase) {
        self.state.phase.set(phase);
        self.state.since_tick.set(self.connections.tick.get());
    }

    /// Enters a phase that began at this tick.
    pub fn set_phase_since(&self, phase: Phase, tick: u32) {
        self.state.phase.set(phase);
        self.state.since_tick.set(tick);
    }

    /// Enters the phase of a read. Further reads of one head or body do not restart the timeout.
    pub fn begin_read(&self, phase: Phase) {
        if phase == Phase::Idle || self.state.phase() != phase {
            self.set_phase(phase);
        }
    }

    /// Records the size of the buffers while a request is read.
    pub fn record_request_bytes(&self, bytes: usize) {
        self.record_bytes(bytes, true);
    }

    /// Records the size of the buffers while a response is written.
    pub fn record_response_bytes(&self, bytes: usize) {
        self.record_bytes(bytes, false);
    }

    fn record_bytes(&self, bytes: usize, is_request: bool) {
        let bytes = if bytes > limits::BUFFERED_BYTES_MIN { bytes } else { 0 };
        if self.connections.memory.set_buffers(&self.state.memory, bytes, is_request) {
            self.connections.evict();
        }
    }

    /// Before the buffers grow: waits while the memory limit is reached. False: the connection was cancelled.
    pub async fn wait_for_memory(&self) -> bool {
        self.state.wait_for_memory(&self.connections.memory).await
    }

    /// For the connection's transport.
    pub fn transport_memory(&self) -> TransportMemory {
        TransportMemory { connections: self.connections.clone(), state: self.state.clone() }
    }
}

/// Records the buffers of a transport.
pub struct TransportMemory {
    connections: Rc<Connections>,
    state: Rc<ConnectionState>,
}

impl TransportMemory {
    /// Records the size of the buffers; those of an idle connection are 0.
    #[inline]
    pub fn record(&self, bytes: usize) {
        if self.connections.memory.set_transport(&self.state.memory, bytes) {
            self.connections.evict();
        }
    }

    /// Whether the buffers must not grow.
    pub fn is_full(&self) -> bool {
        self.connections.memory.is_full()
    }

    /// Before the buffers grow: waits while the memory limit is reached. False: the connection was cancelled.
    pub async fn wait(&self) -> bool {
        self.state.wait_for_memory(&self.connections.memory).await
    }
}

/// The number of ticks that cover this time.
pub fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(limits::SWEEP_INTERVAL.as_millis())).unwrap_or(u32::MAX - 1)
}

impl Connections {
    pub fn new(times: Timeouts, metrics: Arc<ReactorMetrics>, spread: Option<SpreadPort>) -> Self {
        Self {
            states: RefCell::default(),
            tick: Cell::new(0),
            times: Cell::new(times),
            memory: Rc::new(BufferMemory::new(
                times.buffered_bytes_max,
                times.buffered_request_bytes_max,
                metrics.clone(),
            )),
            metrics,
            spread,
        }
    }

    /// Adds a connection, in phase `Idle`.
    pub fn enter(self: &Rc<Self>) -> ConnectionGuard {
        let state = Rc::new(ConnectionState::new(self.tick.get()));
        self.metrics.connections_opened.add(1);
        let key = self.states.borrow_mut().insert(state.clone());
        ConnectionGuard { connections: self.clone(), key, state }
    }

    /// If a memory limit is exceeded, cancels connections until it is not, those that have waited longest
    /// for their peers first. Connections within `EVICTION_WAIT_MIN` are spared up to 1.5 times the limit.
    pub fn evict(&self) {
        let BufferMemory { unknown, all, .. } = &*self.memory;
        if !unknown.is_exceeded() && !all.is_exceeded() {
            return;
        }
        let tick = self.tick.get();
        let evict = |pool: &MemoryPool, is_unknown: bool| {
            if pool.is_far_exceeded() {
                self.cancel_slowest(pool, is_unknown, None)
            } else if pool.is_exceeded() && pool.begin_search(tick) {
                self.cancel_slowest(pool, is_unknown, Some(ticks(EVICTION_WAIT_MIN)))
            } else {
                0
            }
        };
        let evicted = evict(unknown, true) + evict(all, false);
        self.metrics.connections_evicted.add(evicted);
    }

    /// Returns how many were cancelled. `wait_ticks_min`: spares those that have not waited longer.
    fn cancel_slowest(&self, pool: &MemoryPool, unknown_only: bool, wait_ticks_min: Option<u32>) -> u64 {
        let waited = |state: &ConnectionState| self.tick.get().wrapping_sub(state.since_tick.get());
        let states = self.states.borrow();
        let mut slow: Vec<&Rc<ConnectionState>> = states.iter().map(|(_, state)| state).collect();
        slow.retain(|state| {
            state.memory.counted() > 0
                && (state.memory.is_unknown() || !unknown_only)
                && wait_ticks_min.is_none_or(|wait_min| waited(state) > wait_min)
        });
        slow.sort_unstable_by_key(|state| std::cmp::Reverse((waited(state), state.memory.counted())));
        let mut count = 0;
        for state in slow {
            if !pool.is_exceeded() {
                break;
            }
            self.cancel(state);
            count += 1;
        }
        count
    }

    /// Cancels a connection. Its task drops the operation in progress in this turn of the event loop.
    fn cancel(&self, state: &ConnectionState) {
        self.memory.release(&state.memory);
        state.cancel();
    }

    pub fn len(&self) -> usize {
        self.states.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.states.borrow().is_empty()
    }

    /// Shortens the timeouts of idle and lingering connections, and cancels event streams, so that their
    /// clients reconnect elsewhere.
    pub fn drain(&self) {
        let soon = limits::DRAIN_IDLE_TIMEOUT;
        self.times.set(Timeouts { keep_alive: soon, linger: soon, ..self.times.get() });
        self.for_each_stream(ConnectionState::cancel);
    }

    /// Notifies every event stream of a new snapshot.
    pub fn notify_streams(&self) {
        self.for_each_stream(ConnectionState::notify);
    }

    fn for_each_stream(&self, apply: fn(&ConnectionState)) {
        let states = self.states.borrow();
        for (_, state) in states.iter().filter(|(_, state)| state.phase.get() == Phase::Streaming) {
            apply(state);
        }
    }

    /// The current tick.
    pub fn now(&self) -> u32 {
        self.tick.get()
    }

    /// How long the streams of an HTTP/2 connection may wait for their peer.
    pub fn wait_limits(&self) -> WaitLimits {
        let times = self.times.get();
        WaitLimits { body_ticks: ticks(times.body), write_ticks: ticks(times.write) }
    }

    /// How long a request head may take, ticks.
    pub fn head_ticks(&self) -> u32 {
        ticks(self.times.get().head)
    }

    /// The maximum lifetime of an event stream; `None` is unlimited.
    pub fn stream_time(&self) -> Option<Duration> {
        Some(self.times.get().stream).filter(|time| !time.is_zero())
    }

    /// Cancels all connections and waits for them to end, at most for `time`.
    pub async fn cancel_all(&self, time: Duration) {
        let states: Vec<Rc<ConnectionState>> =
            self.states.borrow().iter().map(|(_, state)| state.clone()).collect();
        for state in states {
            self.cancel(&state);
        }
        let began = Instant::now();
        while !self.is_empty() && began.elapsed() < time {
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn ticks_max(&self, phase: Phase) -> u32 {
        let times = self.times.get();
        ticks(match phase {
            Phase::Idle => times.keep_alive,
            Phase::Head | Phase::Handshake => times.head,
            Phase::Body => times.body,
            Phase::Writing => times.write,
            Phase::Lingering => times.linger,
            Phase::Storing => limits::EVENT_WRITE_TIMEOUT,
            Phase::Streaming => return u32::MAX,
        })
    }

    /// Advances the clock by `SWEEP_INTERVAL`: cancels connections that exceed the timeout of their phase,
    /// notifies event streams that are due, and enforces the memory limits.
    pub fn sweep(&self) {
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        let mut cut = 0;
        for (_, state) in self.states.borrow().iter() {
            if state.phase.get() == Phase::Streaming {
                if tick.wrapping_sub(state.due_tick.get()) <= u32::MAX / 2 {
                    state.notify();
                }
            } else if tick.wrapping_sub(state.since_tick.get()) > self.ticks_max(state.phase.get()) {
                let is_counted = state.is_cancelled_write();
                self.cancel(state);
                cut += u64::from(!is_counted && state.is_cancelled_write());
            }
        }
        self.metrics.write_timeouts.add(cut);
        // Connections may have exceeded `EVICTION_WAIT_MIN` since the limit was.
        self.evict();
        self.memory.purge();
        self.memory.measure();
    }
}
