//! One HTTP/1.1 connection, apart from its I/O: bytes and time in, bytes and the next step out.
use std::net::IpAddr;
use std::time::SystemTime;

use bytes::BytesMut;

use crate::http::{ParseError, RequestReader};
use crate::limits::{BODY_BYTES_MAX, READ_BYTES_IDLE, READ_BYTES_MIN};
use crate::reactor::batch::Batch;
use crate::reactor::connections::Phase;
use crate::reactor::context::Reactor;

/// By how much a buffer grows that is full.
const GROWTH: usize = 4;
/// A buffer this many times larger than its content is replaced.
const OVERSIZE: usize = 2 * GROWTH;

/// The state of a connection. Its owner reads into [`read_buffer`](Self::read_buffer), passes the buffer to
/// [`receive`](Self::receive), and writes what [`advance`](Self::advance) returns.
pub struct Connection {
    /// `None` on a unix socket.
    peer: Option<IpAddr>,
    buffer: BytesMut,
    /// The allocation of the buffer, bytes: its capacity lacks what was consumed.
    allocated: usize,
    /// An earlier buffer that the head of the current request refers to, bytes.
    head_allocated: usize,
    reader: RequestReader,
    requests_left: u64,
}

/// The size of a buffer that contains this many bytes and has little space, with a body of `body_bytes` if it
/// is known. Few sizes, because the allocator keeps what others have outgrown for up to a second.
fn buffer_size(length: usize, body_bytes: Option<usize>) -> usize {
    let mut size = 2 * READ_BYTES_IDLE;
    while size < length + READ_BYTES_IDLE {
        size *= GROWTH;
    }
    let most = body_bytes.unwrap_or(length + BODY_BYTES_MAX).max(length);
    size.min(most + READ_BYTES_IDLE)
}

impl Connection {
    pub fn new(reactor: &Reactor, peer: Option<IpAddr>) -> Self {
        let reader = RequestReader::with_cache(reactor.heads.clone());
        Self {
            peer,
            buffer: BytesMut::new(),
            allocated: 0,
            head_allocated: 0,
            reader,
            requests_left: reactor.requests_max,
        }
    }

    /// Whether the buffer for the next read is larger than that of an idle connection.
    pub fn is_growing(&self, phase: Phase) -> bool {
        phase != Phase::Idle && self.has_little_space()
    }

    /// Takes the buffer, with capacity for the next read. Before a new request a large buffer is replaced.
    pub fn read_buffer(&mut self, phase: Phase) -> BytesMut {
        let length = self.buffer.len();
        let bytes_max = if phase == Phase::Idle { READ_BYTES_IDLE } else { 2 * READ_BYTES_IDLE };
        let is_oversized = self.allocated > bytes_max.max(OVERSIZE * length);
        if length == 0 && !is_oversized && !self.reader.owns_head() {
            // From its start again: the next request may need all of its space.
            self.buffer.reserve(READ_BYTES_IDLE);
            self.allocated = self.allocated.max(READ_BYTES_IDLE);
        } else if is_oversized || self.has_little_space() {
            // Grows while a large body arrives, so that it needs few reads; shrinks after it.
            let bytes = buffer_size(length, self.reader.body_bytes());
            let is_kept = !is_oversized && bytes <= self.allocated && self.buffer.try_reclaim(bytes - length);
            if !is_kept {
                self.replace_buffer(bytes);
            }
        }
        std::mem::take(&mut self.buffer)
    }

    fn has_little_space(&self) -> bool {
        self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN
    }

    fn replace_buffer(&mut self, bytes: usize) {
        if self.reader.owns_head() && self.head_allocated == 0 {
            self.head_allocated = self.allocated;
        }
        let mut buffer = BytesMut::with_capacity(bytes);
        buffer.extend_from_slice(&self.buffer);
        (self.buffer, self.allocated) = (buffer, bytes);
    }

    /// Takes back the buffer, with the received bytes appended.
    pub fn receive(&mut self, buffer: BytesMut) {
        self.buffer = buffer;
    }

    /// Answers the complete requests in the buffer.
    pub fn advance(&mut self, reactor: &Reactor, now: SystemTime) -> Batch {
        let Self { peer, buffer, reader, requests_left, .. } = self;
        let batch = Batch::answer(reactor, reader, buffer, *peer, requests_left, now);
        if batch.requests > 0 {
            self.head_allocated = 0;
        }
        batch
    }

    /// The timeout of a read has expired, in this phase: the response to an incomplete request; `None` if no
    /// request has begun. Either way the connection closes.
    pub fn time_out(&self, reactor: &Reactor, phase: Phase, now: SystemTime) -> Option<Batch> {
        let is_request = phase != Phase::Idle;
        is_request.then(|| Batch::error(reactor, &self.reader, &self.buffer, ParseError::Timeout, now))
    }

    /// The bytes that were received and not yet handled.
    pub fn received(&self) -> &[u8] {
        &self.buffer
    }

    /// The memory of the buffer and of the head whose body is awaited, bytes.
    pub fn buffer_bytes(&self) -> usize {
        if self.buffer.capacity() == 0 { self.head_bytes() } else { self.taken_bytes() }
    }

    /// The memory with a buffer that [`read_buffer`](Self::read_buffer) has returned, bytes.
    pub fn taken_bytes(&self) -> usize {
        self.allocated + self.head_bytes()
    }

    fn head_bytes(&self) -> usize {
        match self.reader.head_memory() {
            0 => 0,
            bytes => bytes + self.head_allocated,
        }
    }

    /// Releases the buffer. No request follows.
    pub fn release_buffer(&mut self) {
        self.buffer = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::channel::Publisher;
    use crate::limits::SWEEP_INTERVAL;
    use crate::reactor::batch::Next;
    use crate::reactor::connections::ConnectionGuard;
    use crate::reactor::context::WorkerState;
    use crate::reactor::options::Timeouts;
    use crate::reactor::tests::options_without_listener;
    use crate::snapshot::Snapshot;

    const NOW: SystemTime = UNIX_EPOCH;
    const LIVENESS: &str = "GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\n\r\n";
    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Applies the results of a connection without sockets, runtime or clock.
    struct Simulation {
        reactor: Reactor,
        guard: ConnectionGuard,
        connection: Connection,
        next: Next,
        _publisher: Publisher,
    }

    impl Simulation {
        fn new() -> Self {
            let (mut options, publisher) = options_without_listener();
            options.times = Timeouts { keep_alive: TIMEOUT, head: TIMEOUT, body: TIMEOUT, ..options.times };
            let worker_state = Rc::new(WorkerState::new(&options));
            worker_state.lease.replace(Some(options.inbox.lease(Arc::new(Snapshot::default()))));
            let reactor = Reactor::new(&options, worker_state, false);
            let guard = reactor.connections.enter();
            let connection = Connection::new(&reactor, None);
            Self { reactor, guard, connection, next: Next::Read(Phase::Idle), _publisher: publisher }
        }

        /// Receives bytes in one read; returns what is written.
        fn receive(&mut self, bytes: &[u8]) -> String {
            let Next::Read(phase) = self.next else { panic!("reads after {:?}", self.next) };
            let mut buffer = self.connection.read_buffer(phase);
            buffer.extend_from_slice(bytes);
            self.connection.receive(buffer);
            let mut written = String::new();
            loop {
                let batch = self.connection.advance(&self.reactor, NOW);
                written.push_str(&self.apply(&batch));
                if self.next != Next::Advance {
                    return written;
                }
            }
        }

        fn apply(&mut self, batch: &Batch) -> String {
            self.next = batch.next;
            if !batch.bytes.is_empty() {
                self.guard.set_phase(Phase::Writing);
            }
            if let Next::Read(phase) = self.next {
                self.guard.begin_read(phase);
            }
            let mut written = batch.bytes.clone();
            written.extend(batch.tail.iter().flat_map(|(tail, _)| tail));
            String::from_utf8(written).expect("text")
        }

        /// Lets time pass. If the sweep cancels the read, returns what is written then.
        fn wait(&mut self, time: Duration) -> Option<String> {
            for _ in 0..time.as_millis() / SWEEP_INTERVAL.as_millis() {
                self.reactor.connections.sweep();
            }
            if !self.guard.state.is_cancelled() {
                return None;
            }
            let batch = self.connection.time_out(&self.reactor, self.guard.state.phase(), NOW);
            self.next = Next::Close;
            Some(batch.map(|batch| self.apply(&batch)).unwrap_or_default())
        }
    }

    fn statuses(written: &str) -> Vec<&str> {
        written.split("HTTP/1.1 ").skip(1).map(|response| &response[..3]).collect()
    }

    #[test]
    fn answers_pipelined_requests_in_order_in_one_batch() {
        let mut simulation = Simulation::new();
        let requests = format!("{LIVENESS}GET /unknown HTTP/1.1\r\nHost: a\r\n\r\n{LIVENESS}GET /");
        let written = simulation.receive(requests.as_bytes());
        assert_eq!(statuses(&written), ["200", "404", "200"]);
        assert_eq!(simulation.next, Next::Read(Phase::Head));
        assert_eq!(statuses(&simulation.receive(b"unknown HTTP/1.1\r\nHost: a\r\n\r\n")), ["404"]);
        assert_eq!(simulation.next, Next::Read(Phase::Idle));
    }

    #[test]
    fn slow_head_and_slow_body_are_answered_408() {
        let body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{";
        for (start, phase) in [("GET / HT", Phase::Head), (body, Phase::Body)] {
            let mut simulation = Simulation::new();
            assert_eq!(simulation.receive(start.as_bytes()), "");
            assert_eq!(simulation.next, Next::Read(phase));
            // Further bytes do not restart the timeout.
            assert_eq!(simulation.wait(TIMEOUT / 2), None);
            assert_eq!(simulation.receive(b"T"), "");
            let written = simulation.wait(TIMEOUT / 2 + SWEEP_INTERVAL).expect("timed out");
            assert!(written.starts_with("HTTP/1.1 408 ") && written.contains("connection: close\r\n"));
            assert_eq!(simulation.next, Next::Close);
        }
    }

    #[test]
    fn idle_connection_closes_without_a_response() {
        let mut simulation = Simulation::new();
        for _ in 0..3 {
            // Each request restarts the timeout.
            assert_eq!(simulation.wait(TIMEOUT - SWEEP_INTERVAL), None);
            assert_eq!(statuses(&simulation.receive(LIVENESS.as_bytes())), ["200"]);
        }
        assert_eq!(simulation.wait(TIMEOUT + SWEEP_INTERVAL).as_deref(), Some(""));
    }

    #[test]
    fn body_over_the_limit_is_answered_413_before_it_is_read() {
        let mut simulation = Simulation::new();
        let length = BODY_BYTES_MAX + 1;
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        let written = simulation.receive(head.as_bytes());
        assert!(
            written.starts_with("HTTP/1.1 413 ") && written.contains("connection: close\r\n"),
            "{written}"
        );
        assert_eq!(simulation.next, Next::Close);
    }

    #[test]
    fn large_body_is_read_after_100_continue() {
        let mut simulation = Simulation::new();
        let head = format!(
            "POST /unknown HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {BODY_BYTES_MAX}\r\n\r\n"
        );
        assert_eq!(simulation.receive(head.as_bytes()), "HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(statuses(&simulation.receive(&vec![b'x'; BODY_BYTES_MAX])), ["404"]);
        assert_eq!(simulation.next, Next::Read(Phase::Idle));
    }

    /// What is left of a large buffer takes little memory, and so does a head with many fields count.
    #[test]
    fn memory_is_that_of_the_allocations() {
        let mut simulation = Simulation::new();
        let mut bytes =
            format!("POST /unknown HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY_BYTES_MAX}\r\n\r\n");
        bytes.push_str(&"x".repeat(BODY_BYTES_MAX));
        let (most, rest) = bytes.split_at(bytes.len() - 9);
        // No read may exceed the capacity.
        most.as_bytes().chunks(READ_BYTES_MIN).for_each(|part| assert_eq!(simulation.receive(part), ""));
        simulation.receive(format!("{rest}GET /").as_bytes());
        assert_eq!(simulation.next, Next::Read(Phase::Head));
        assert!(simulation.connection.buffer_bytes() >= BODY_BYTES_MAX, "as long as it is allocated");
        simulation.connection.read_buffer(Phase::Head);
        assert!(simulation.connection.taken_bytes() <= 2 * READ_BYTES_IDLE);

        let mut simulation = Simulation::new();
        let fields = (0..90).fold(String::new(), |text, number| format!("{text}a{number}:\r\n"));
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 9\r\n\r\n");
        simulation.receive(head.as_bytes());
        assert_eq!(simulation.next, Next::Read(Phase::Body));
        let bytes = simulation.connection.buffer_bytes();
        assert!(bytes > 90 * 100, "the fields take much more than {}: {bytes}", head.len());

        // The head keeps its buffer while the next one waits for the body.
        let mut simulation = Simulation::new();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n";
        let padding = READ_BYTES_IDLE - head.len() - "A: \r\n\r\n".len();
        simulation.receive(format!("{head}A: {}\r\n\r\n", "a".repeat(padding)).as_bytes());
        let buffer = simulation.connection.read_buffer(Phase::Body);
        let bytes = simulation.connection.taken_bytes();
        assert!(bytes >= READ_BYTES_IDLE + buffer.capacity(), "{bytes} for {}", buffer.capacity());
    }

    #[test]
    fn draining_answers_one_more_request() {
        let mut simulation = Simulation::new();
        assert!(!simulation.receive(LIVENESS.as_bytes()).contains("connection: close"));
        simulation.reactor.worker_state.draining.set(true);
        simulation.reactor.connections.drain();
        let written = simulation.receive(format!("{LIVENESS}{LIVENESS}").as_bytes());
        assert_eq!(statuses(&written), ["200"]);
        assert!(written.contains("connection: close\r\n"), "{written}");
        assert_eq!(simulation.next, Next::Close);
        // An idle connection closes soon.
        let mut simulation = Simulation::new();
        simulation.reactor.connections.drain();
        assert_eq!(simulation.wait(SWEEP_INTERVAL * 2).as_deref(), Some(""));
    }
}
