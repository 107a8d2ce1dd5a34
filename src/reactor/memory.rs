//! The memory of connections' buffers, and its limits.
//!
//! A limit holds at every moment, not only after each sweep. While a pool is full, a connection waits before
//! it grows; so a pool exceeds its limit by one growth of one connection at most. What a cancelled connection
//! used counts until the driver has dropped the buffer of its operation, a turn of the event loop later.
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::limits;
use crate::metrics::{Counter, ReactorMetrics};

/// The buffers of one connection.
#[derive(Debug)]
pub struct ConnectionMemory {
    /// Of requests and responses, and of the TLS session, bytes; 0 up to the size of an idle connection's.
    buffers: Cell<usize>,
    transport: Cell<usize>,
    /// What the pools contain of it, bytes, and whether [`BufferMemory::unknown`] does.
    counted: Cell<usize>,
    is_unknown: Cell<bool>,
    /// A request of this connection had a valid key.
    has_key: Cell<bool>,
}

impl Default for ConnectionMemory {
    fn default() -> Self {
        let zero = || Cell::new(0);
        let (is_unknown, has_key) = (Cell::new(true), Cell::new(false));
        Self { buffers: zero(), transport: zero(), counted: zero(), is_unknown, has_key }
    }
}

impl ConnectionMemory {
    /// What counts of it now, bytes.
    pub fn counted(&self) -> usize {
        self.counted.get()
    }

    /// Whether it counts as that of a caller without a valid key.
    pub fn is_unknown(&self) -> bool {
        self.is_unknown.get()
    }

    /// A request had a valid key: from now on, responses are those of a known caller.
    pub fn set_known(&self) {
        self.has_key.set(true);
    }
}

/// A part of the memory, with its limit.
#[derive(Debug)]
pub struct MemoryPool {
    bytes: Cell<usize>,
    /// Bytes of cancelled connections that the driver may still use.
    releasing: Cell<usize>,
    /// The highest sum of both.
    peak: Cell<usize>,
    bytes_max: usize,
    /// The tick of the last search for slow connections: before the next tick there are no new ones.
    searched_tick: Cell<Option<u32>>,
}

impl MemoryPool {
    fn new(bytes_max: usize) -> Self {
        let zero = || Cell::new(0);
        Self { bytes: zero(), releasing: zero(), peak: zero(), bytes_max, searched_tick: Cell::new(None) }
    }

    /// Beyond it, connections are cancelled even if they have waited for a short time only, and none grows.
    fn hard_max(&self) -> usize {
        self.bytes_max + self.bytes_max / 2
    }

    fn replace(&self, old_bytes: usize, new_bytes: usize, peak: &Counter) {
        self.bytes.set(self.bytes.get() - old_bytes + new_bytes);
        if self.total() > self.peak.get() {
            self.peak.set(self.total());
            peak.set(self.total() as u64);
        }
    }

    fn release(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.releasing.set(self.releasing.get() + bytes);
    }

    fn total(&self) -> usize {
        self.bytes.get() + self.releasing.get()
    }

    fn is_full(&self) -> bool {
        self.total() > self.hard_max()
    }

    pub fn is_exceeded(&self) -> bool {
        self.bytes.get() > self.bytes_max
    }

    pub fn is_far_exceeded(&self) -> bool {
        self.bytes.get() > self.hard_max()
    }

    /// Whether this is the first search in this tick.
    pub fn begin_search(&self, tick: u32) -> bool {
        self.searched_tick.replace(Some(tick)) != Some(tick)
    }
}

/// The memory of the buffers of all connections of a reactor.
#[derive(Debug)]
pub struct BufferMemory {
    /// Requests that are not answered yet, and responses to callers that have sent no valid key.
    pub unknown: MemoryPool,
    /// All requests and responses.
    pub all: MemoryPool,
    /// Connections that wait before they grow.
    waiting: RefCell<Vec<Waker>>,
    /// Of [`release_needed`](Self::release_needed).
    waker: RefCell<Option<Waker>>,
    /// Large buffers were released since the last purge began to wait.
    has_shrunk: Cell<bool>,
    /// Sweeps until the next purge; 0: none is due.
    purge_sweeps: Cell<u32>,
    metrics: Arc<ReactorMetrics>,
}

impl BufferMemory {
    pub fn new(bytes_max: usize, unknown_bytes_max: usize, metrics: Arc<ReactorMetrics>) -> Self {
        Self {
            unknown: MemoryPool::new(unknown_bytes_max),
            all: MemoryPool::new(bytes_max),
            waiting: RefCell::default(),
            waker: RefCell::default(),
            has_shrunk: Cell::new(false),
            purge_sweeps: Cell::new(0),
            metrics,
        }
    }

    /// Records the size of a connection's buffers. `is_request`: a request is not answered yet. False: it was
    /// recorded before.
    pub fn set_buffers(&self, memory: &ConnectionMemory, bytes: usize, is_request: bool) -> bool {
        memory.buffers.set(bytes);
        self.count(memory, is_request || !memory.has_key.get())
    }

    /// Records the size of the buffers of its TLS session. False: it was recorded before.
    pub fn set_transport(&self, memory: &ConnectionMemory, bytes: usize) -> bool {
        memory.transport.set(bytes);
        self.count(memory, memory.is_unknown())
    }

    fn count(&self, memory: &ConnectionMemory, is_unknown: bool) -> bool {
        let bytes = memory.buffers.get() + memory.transport.get();
        let (old_bytes, was_unknown) = (memory.counted.replace(bytes), memory.is_unknown.replace(is_unknown));
        // Mostly both are 0.
        if bytes == old_bytes && (is_unknown == was_unknown || bytes == 0) {
            return false;
        }
        self.note_released(old_bytes.saturating_sub(bytes));
        self.all.replace(old_bytes, bytes, &self.metrics.buffers_peak);
        let (old_bytes, bytes) =
            (if was_unknown { old_bytes } else { 0 }, if is_unknown { bytes } else { 0 });
        self.unknown.replace(old_bytes, bytes, &self.metrics.buffers_unknown_peak);
        true
    }

    /// The connection is removed from the table.
    pub fn remove(&self, memory: &ConnectionMemory, is_cancelled: bool) {
        if is_cancelled {
            self.release(memory);
        } else if memory.counted.get() > 0 {
            memory.buffers.set(0);
            memory.transport.set(0);
            self.count(memory, true);
        }
    }

    /// The connection is cancelled: it drops its operation in this turn of the event loop. What it keeps, it
    /// records again.
    pub fn release(&self, memory: &ConnectionMemory) {
        let bytes = memory.counted.replace(0);
        if bytes == 0 {
            return;
        }
        self.note_released(bytes);
        self.all.release(bytes);
        if memory.is_unknown() {
            self.unknown.release(bytes);
        }
        self.wake();
    }

    /// Whether a connection must wait before it grows.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.unknown.is_full() || self.all.is_full()
    }

    /// Adds a connection that waits because the memory is full. It is woken once buffers were released.
    pub fn add_waiting(&self, waker: &Waker) {
        self.metrics.memory_waits.add(1);
        self.waiting.borrow_mut().push(waker.clone());
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until buffers are being released, or connections wait for that. Returns how many bytes are, of
    /// [`unknown`](Self::unknown) and of [`all`](Self::all).
    pub async fn release_needed(&self) -> (usize, usize) {
        std::future::poll_fn(|context| {
            let releasing = (self.unknown.releasing.get(), self.all.releasing.get());
            if releasing.1 > 0 || !self.waiting.borrow().is_empty() {
                return Poll::Ready(releasing);
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The driver has dropped the buffers of these bytes.
    pub fn released(&self, (unknown, all): (usize, usize)) {
        self.unknown.releasing.set(self.unknown.releasing.get() - unknown);
        self.all.releasing.set(self.all.releasing.get() - all);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// A connection has released buffers of this size.
    fn note_released(&self, bytes: usize) {
        if bytes >= limits::PURGE_BYTES_MIN {
            self.has_shrunk.set(true);
        }
    }

    /// Returns the pages of released buffers to the kernel, once per sweep.
    ///
    /// mimalloc purges freed pages a second after they were freed, but only when it frees another page. A
    /// reactor that becomes idle after large requests frees none. So this allocates and drops a block that
    /// occupies whole pages. Nothing writes to the block, so it costs no memory.
    ///
    /// Returns whether it did.
    pub fn purge(&self) -> bool {
        let sweeps = self.purge_sweeps.get();
        if sweeps > 0 {
            self.purge_sweeps.set(sweeps - 1);
        }
        if sweeps == 1 {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(limits::PURGE_BLOCK_BYTES)));
        }
        if sweeps <= 1 && self.has_shrunk.take() {
            self.purge_sweeps.set(limits::PURGE_SWEEPS);
        }
        sweeps == 1
    }

    /// Copies the sums to the metrics.
    pub fn measure(&self) {
        self.metrics.buffers_unknown.set(self.unknown.total() as u64);
        self.metrics.buffers.set(self.all.total() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Full at 150 bytes of callers without a key, and at 300 bytes of all.
    fn memory() -> BufferMemory {
        BufferMemory::new(200, 100, Arc::new(ReactorMetrics::new(0)))
    }

    #[test]
    fn a_cancelled_connection_counts_until_the_driver_has_dropped_its_buffer() {
        let (memory, slow, other) = (memory(), ConnectionMemory::default(), ConnectionMemory::default());
        memory.set_buffers(&slow, 140, true);
        assert!(memory.unknown.is_exceeded() && !memory.is_full());
        memory.set_buffers(&other, 20, true);
        assert!(memory.is_full());
        memory.release(&slow);
        assert!(memory.is_full() && !memory.unknown.is_exceeded());
        // It ends: nothing of it is left to release.
        memory.remove(&slow, true);
        memory.released((140, 140));
        assert!(!memory.is_full());
        memory.remove(&other, false);
        memory.measure();
        let metrics = &memory.metrics;
        assert_eq!((metrics.buffers.value(), metrics.buffers_unknown.value()), (0, 0));
        assert_eq!((metrics.buffers_peak.value(), metrics.buffers_unknown_peak.value()), (160, 160));
    }

    #[test]
    fn answers_count_as_those_of_an_unknown_caller_until_a_key_is_valid() {
        let (memory, connection) = (memory(), ConnectionMemory::default());
        let counted = || (memory.unknown.total(), memory.all.total());
        memory.set_buffers(&connection, 160, false);
        assert_eq!(counted(), (160, 160));
        assert!(memory.is_full());
        connection.set_known();
        memory.set_buffers(&connection, 160, false);
        assert_eq!(counted(), (0, 160));
        assert!(!memory.is_full());
        memory.set_transport(&connection, 150);
        assert_eq!(counted(), (0, 310));
        assert!(memory.is_full());
        // A request that is not complete counts with those of all callers.
        memory.set_buffers(&connection, 10, true);
        assert_eq!(counted(), (160, 160));
    }

    #[test]
    fn waiting_connections_are_woken_when_buffers_are_released() {
        let (memory, slow) = (memory(), ConnectionMemory::default());
        memory.set_buffers(&slow, 160, true);
        let waker = Arc::new(Woken::default());
        memory.add_waiting(&Waker::from(waker.clone()));
        memory.release(&slow);
        memory.released((160, 160));
        assert_eq!(waker.0.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert_eq!(memory.metrics.memory_waits.value(), 1);
    }

    #[test]
    fn pages_are_purged_once_after_large_buffers_were_released() {
        let memory = BufferMemory::new(usize::MAX / 4, usize::MAX / 4, Arc::new(ReactorMetrics::new(0)));
        let connection = ConnectionMemory::default();
        let purges = |sweeps: u32| (0..sweeps).filter(|_| memory.purge()).count();
        memory.set_buffers(&connection, limits::PURGE_BYTES_MIN - 1, true);
        memory.set_buffers(&connection, 0, true);
        assert_eq!(purges(100), 0, "small buffers are used again");
        memory.set_buffers(&connection, limits::PURGE_BYTES_MIN, true);
        assert_eq!(purges(100), 0, "nothing is released");
        memory.set_buffers(&connection, 0, true);
        assert_eq!((purges(limits::PURGE_SWEEPS), purges(1), purges(100)), (0, 1, 0));
        memory.set_buffers(&connection, limits::PURGE_BYTES_MIN, true);
        memory.release(&connection);
        assert_eq!(purges(2), 0);
        // What is released while a purge waits may be too young for it.
        memory.set_buffers(&connection, limits::PURGE_BYTES_MIN, true);
        memory.remove(&connection, false);
        assert_eq!(purges(100), 2);
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
