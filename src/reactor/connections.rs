//! The connections of one reactor, and the coarse sweep that ends slow and idle ones.
//!
//! In: what each connection is doing and since when, in ticks. Out: a flag and a wake for those
//! that took too long. Invariant: no timer and no clock per request; a connection marks its
//! phase with the current tick, and one task looks at all of them a few times a second.
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::limits;
use crate::reactor::budget::Budget;
use crate::reactor::{Reactor, Timeouts};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the first byte of a request.
    Idle,
    /// TLS is being set up.
    Handshake,
    Head,
    Body,
    /// Writing, since the peer last took something.
    Writing,
    /// The last answer is written; waiting for the peer to close.
    Lingering,
    /// An event stream between two events: no time is too long.
    Streaming,
}

/// The mark a connection leaves for the sweep.
#[derive(Debug)]
pub struct ConnectionState {
    phase: Cell<Phase>,
    since_tick: Cell<u32>,
    ended: Cell<bool>,
    /// Of a stream: there may be something to write.
    nudged: Cell<bool>,
    /// Of a stream: the tick at which it is nudged if nothing happens before.
    due_tick: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    /// Buffers beyond the usual ones, bytes; and whether they are for a request that is not answered yet.
    held_bytes: Cell<usize>,
    holds_request: Cell<bool>,
    /// How long this connection has had the thread.
    pub turn: Budget,
}

impl ConnectionState {
    /// Runs an operation until it is done, or until the sweep ends the connection: `None`. An
    /// operation given up may have taken bytes with it, so the connection must be closed.
    pub async fn unless_ended<T>(&self, operation: impl Future<Output = T>) -> Option<T> {
        let mut operation = std::pin::pin!(operation);
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = operation.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            self.turn.waited();
            if self.ended.get() {
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

    /// What the connection does now.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Waits for a nudge. False: the sweep ended the connection.
    pub async fn nudged(&self) -> bool {
        std::future::poll_fn(|context| {
            if self.ended.get() {
                return Poll::Ready(false);
            }
            if self.nudged.take() {
                return Poll::Ready(true);
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Says when the stream wants to be nudged.
    pub fn set_due(&self, tick: u32) {
        self.due_tick.set(tick);
    }

    fn nudge(&self) {
        self.nudged.set(true);
        self.wake();
    }

    /// Ends the operation that is awaited, and every later one.
    pub fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    /// True if the connection was ended and could not be told.
    fn is_cut(&self) -> bool {
        self.ended.get() && self.phase.get() == Phase::Writing
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Lets one more operation run, such as the answer that says why the connection ends.
    pub fn revive(&self) {
        self.ended.set(false);
    }
}

/// The connections of one reactor.
#[derive(Debug)]
pub struct Connections {
    marks: RefCell<Slab<Rc<ConnectionState>>>,
    tick: Cell<u32>,
    times: Cell<Timeouts>,
    /// What requests hold that are not answered yet. Their callers may have no key.
    requests: HeldBytes,
    /// What all hold, answers included.
    all: HeldBytes,
}

/// Memory that connections hold together.
#[derive(Debug)]
struct HeldBytes {
    bytes: Cell<usize>,
    bytes_max: usize,
    /// When those were last looked for that have waited too long: there are no others before the next tick.
    shed_tick: Cell<Option<u32>>,
}

impl HeldBytes {
    fn new(bytes_max: usize) -> Self {
        Self { bytes: Cell::new(0), bytes_max, shed_tick: Cell::new(None) }
    }

    fn replace(&self, old_bytes: usize, new_bytes: usize) {
        self.bytes.set(self.bytes.get() - old_bytes + new_bytes);
    }

    fn is_full(&self) -> bool {
        self.bytes.get() > self.bytes_max
    }
}

/// A place in the registry, given back when dropped.
pub struct ConnectionGuard {
    reactor: Rc<Reactor>,
    key: usize,
    pub mark: Rc<ConnectionState>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.reactor.registry.hold(&self.mark, 0, false);
        self.reactor.registry.marks.borrow_mut().try_remove(self.key);
        self.reactor.metrics.connections_closed.add(1);
    }
}

impl ConnectionGuard {
    /// Notes what the connection does from now on.
    pub fn set_phase(&self, phase: Phase) {
        self.mark.phase.set(phase);
        self.mark.since_tick.set(self.reactor.registry.tick.get());
    }

    /// Notes how large the buffers of this connection are while it reads a request.
    pub fn hold_request(&self, bytes: usize) {
        self.hold(bytes, true);
    }

    /// Notes how large the buffers of this connection are while its answer is written.
    pub fn hold_answer(&self, bytes: usize) {
        self.hold(bytes, false);
    }

    /// Whether the buffers are large enough to be counted.
    pub fn holds(&self) -> bool {
        self.mark.held_bytes.get() > 0
    }

    fn hold(&self, bytes: usize, is_request: bool) {
        let bytes = if bytes > limits::HELD_BYTES_MIN { bytes } else { 0 };
        if bytes == self.mark.held_bytes.get() && is_request == self.mark.holds_request.get() {
            return;
        }
        let registry = &self.reactor.registry;
        registry.hold(&self.mark, bytes, is_request);
        if registry.requests.is_full() || registry.all.is_full() {
            self.reactor.metrics.connections_shed.add(registry.shed());
        }
    }
}

/// Ticks that surely cover this time.
pub fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(limits::SWEEP_INTERVAL.as_millis())).unwrap_or(u32::MAX - 1)
}

impl Connections {
    pub fn new(times: Timeouts) -> Self {
        Self {
            marks: RefCell::default(),
            tick: Cell::new(0),
            times: Cell::new(times),
            requests: HeldBytes::new(times.held_request_bytes_max),
            all: HeldBytes::new(times.held_bytes_max),
        }
    }

    fn hold(&self, mark: &ConnectionState, bytes: usize, is_request: bool) {
        let old_bytes = mark.held_bytes.replace(bytes);
        let old_request = mark.holds_request.replace(is_request);
        self.all.replace(old_bytes, bytes);
        self.requests.replace(if old_request { old_bytes } else { 0 }, if is_request { bytes } else { 0 });
    }

    /// Ends connections until the rest hold no more than they may: how many that were. First those that
    /// have waited longest for their peers. Half as much again is held by peers that have not waited for
    /// long; beyond that the longest-waiting of these are ended too, and of them the largest.
    fn shed(&self) -> u64 {
        let tick = self.tick.get();
        let shed = |pool: &HeldBytes, is_request: bool| {
            if pool.bytes.get() > pool.bytes_max + pool.bytes_max / 2 {
                self.end_slowest(pool, is_request, None)
            } else if pool.is_full() && pool.shed_tick.replace(Some(tick)) != Some(tick) {
                self.end_slowest(pool, is_request, Some(ticks(limits::HELD_PATIENCE)))
            } else {
                0
            }
        };
        shed(&self.requests, true) + shed(&self.all, false)
    }

    /// `patience_ticks`: those that have not waited for longer are spared.
    fn end_slowest(&self, pool: &HeldBytes, requests_only: bool, patience_ticks: Option<u32>) -> u64 {
        let waited = |mark: &ConnectionState| self.tick.get().wrapping_sub(mark.since_tick.get());
        let marks = self.marks.borrow();
        let mut slow: Vec<&Rc<ConnectionState>> = marks.iter().map(|(_, mark)| mark).collect();
        slow.retain(|mark| {
            mark.held_bytes.get() > 0
                && (mark.holds_request.get() || !requests_only)
                && patience_ticks.is_none_or(|patience| waited(mark) > patience)
        });
        slow.sort_unstable_by_key(|mark| std::cmp::Reverse((waited(mark), mark.held_bytes.get())));
        let mut count = 0;
        for mark in slow {
            if !pool.is_full() {
                break;
            }
            // What it holds is given back within this turn of the loop.
            self.hold(mark, 0, false);
            mark.end();
            count += 1;
        }
        count
    }

    pub fn len(&self) -> usize {
        self.marks.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.marks.borrow().is_empty()
    }

    /// From now on connections that are idle, or had their last answer, are ended soon; event
    /// streams at once, so that their subscribers go elsewhere.
    pub fn drain(&self) {
        let soon = limits::DRAIN_IDLE_TIMEOUT;
        self.times.set(Timeouts { keep_alive: soon, linger: soon, ..self.times.get() });
        self.streams(ConnectionState::end);
    }

    /// Tells every event stream that there is another snapshot.
    pub fn nudge_streams(&self) {
        self.streams(ConnectionState::nudge);
    }

    fn streams(&self, tell: fn(&ConnectionState)) {
        for (_, mark) in self.marks.borrow().iter().filter(|(_, mark)| mark.phase.get() == Phase::Streaming) {
            tell(mark);
        }
    }

    /// The tick at hand.
    pub fn now(&self) -> u32 {
        self.tick.get()
    }

    /// How long an event stream may last; `None`: as long as its subscriber wants.
    pub fn stream_time(&self) -> Option<Duration> {
        Some(self.times.get().stream).filter(|time| !time.is_zero())
    }

    /// Ends every connection and waits until they are gone, but no longer than `time`.
    pub async fn end_all(&self, time: Duration) {
        let marks: Vec<Rc<ConnectionState>> =
            self.marks.borrow().iter().map(|(_, mark)| mark.clone()).collect();
        for mark in marks {
            mark.end();
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
            Phase::Streaming => return u32::MAX,
        })
    }

    /// One tick: ends what took too long. How many of them did not take their answer.
    fn tick(&self) -> u64 {
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        let mut cut = 0;
        for (_, mark) in self.marks.borrow().iter() {
            if mark.phase.get() == Phase::Streaming {
                if tick.wrapping_sub(mark.due_tick.get()) <= u32::MAX / 2 {
                    mark.nudge();
                }
            } else if tick.wrapping_sub(mark.since_tick.get()) > self.ticks_max(mark.phase.get()) {
                let is_known = mark.is_cut();
                mark.end();
                cut += u64::from(!is_known && mark.is_cut());
            }
        }
        cut
    }
}

/// Takes a place for a new connection.
pub fn enter(reactor: &Rc<Reactor>) -> ConnectionGuard {
    let registry = &reactor.registry;
    let mark = Rc::new(ConnectionState {
        phase: Cell::new(Phase::Idle),
        since_tick: Cell::new(registry.tick.get()),
        ended: Cell::new(false),
        nudged: Cell::new(false),
        due_tick: Cell::new(0),
        waker: RefCell::new(None),
        held_bytes: Cell::new(0),
        holds_request: Cell::new(false),
        turn: Budget::default(),
    });
    reactor.metrics.connections_opened.add(1);
    let key = registry.marks.borrow_mut().insert(mark.clone());
    ConnectionGuard { reactor: reactor.clone(), key, mark }
}

/// The sweep of one reactor; runs as long as the reactor.
pub async fn sweep(reactor: Rc<Reactor>) {
    loop {
        let began = Instant::now();
        monoio::time::sleep(limits::SWEEP_INTERVAL).await;
        #[cfg(test)]
        reactor.panic_if_asked(super::InjectedPanic::Sweep);
        reactor.metrics.connections_cut.add(reactor.registry.tick());
        // Those that were not slow yet when the bound was met.
        if reactor.registry.requests.is_full() || reactor.registry.all.is_full() {
            reactor.metrics.connections_shed.add(reactor.registry.shed());
        }
        reactor.report_counts();
        reactor.hand_on_accesses();
        reactor.metrics.beat(began.elapsed().saturating_sub(limits::SWEEP_INTERVAL));
    }
}
