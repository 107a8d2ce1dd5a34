//! One HTTP/2 connection, apart from its I/O: bytes and time in, bytes and the next step out.
use std::any::Any;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Context;
use std::time::SystemTime;

use bytes::BytesMut;

use crate::channel::Lease;
use crate::http::ParseError;
use crate::http::h2::connection::Http2;
use crate::http::h2::event::{Http2Event, Http2Limits, Incomplete, WrittenResponse};
use crate::http::h2::frame;
use crate::http::h2::outgoing::SharedTail;
use crate::limits::{BATCH_BYTES_MAX, HTTP2_READ_BYTES_MAX, READ_BYTES_IDLE, READ_BYTES_MIN};
use crate::reactor::batch::BatchWriter;
use crate::reactor::connections::Phase;
use crate::reactor::context::Reactor;
use crate::reactor::event_streams::EventStreams;
use crate::reactor::parked_streams::ParkedStreams;
use crate::reactor::sse::{earlier, is_reached};

/// By how much a read grows after one that filled its buffer, or shrinks after one that was far below it.
const READ_GROWTH: usize = 4;

/// The state of a connection.
pub struct Http2Connection {
    peer: Option<IpAddr>,
    buffer: BytesMut,
    /// The allocation of the buffer, bytes: its capacity lacks what was consumed.
    allocated: usize,
    /// How much the next read may bring: more while reads fill their buffers.
    read_bytes: usize,
    /// How much the buffer had before the read.
    bytes_before: usize,
    http2: Http2,
    requests_left: u64,
    event_streams: EventStreams,
    parked: ParkedStreams,
    /// This side's preface, until the first write.
    preface: Vec<u8>,
    /// When the connection last had a stream, ticks.
    idle_since: u32,
    /// When the incomplete frame or header block at the end of the buffer began, ticks.
    head_since: Option<u32>,
    /// The frames that were complete at the time.
    frames_read: u64,
}

/// What a connection writes, and what it does after that.
pub struct Http2Batch {
    pub bytes: Vec<u8>,
    pub next: Http2Next,
    /// How many requests the batch answers.
    pub requests: u64,
    /// Whether one of them had a valid key.
    pub has_key: bool,
}

/// What a connection does after a batch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2Next {
    /// No stream is open: read, within the timeout of this phase, which began at this tick.
    Read(Phase, u32),
    /// Streams are open: read when there is something, and advance at this tick at the latest.
    Wait(u32),
    /// There is more to answer or to send.
    Advance,
    Close,
}

impl Http2Connection {
    /// `received`: what was read so far.
    pub fn new(reactor: &Reactor, limits: Http2Limits, peer: Option<IpAddr>, received: &[u8]) -> Self {
        let mut preface = Vec::new();
        Self {
            peer,
            buffer: BytesMut::from(received),
            allocated: received.len(),
            read_bytes: READ_BYTES_IDLE,
            bytes_before: 0,
            http2: Http2::new(limits, &mut preface),
            requests_left: reactor.requests_max,
            event_streams: EventStreams::default(),
            parked: ParkedStreams::default(),
            preface,
            idle_since: reactor.connections.now(),
            head_since: Some(reactor.connections.now()),
            frames_read: 0,
        }
    }

    /// Whether the next read needs a buffer that an idle connection should not have: wait until there is
    /// something to read, and then take it.
    pub fn reads_much(&self) -> bool {
        self.read_bytes > READ_BYTES_IDLE
    }

    /// Releases what is only needed while a client sends.
    pub fn release_buffers(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        self.http2.release_buffers();
    }

    /// Before the connection waits: releases a large buffer that is empty.
    pub fn shrink(&mut self) {
        if self.buffer.is_empty() && self.allocated > READ_BYTES_IDLE {
            self.buffer = BytesMut::new();
        }
    }

    /// Takes the buffer, with capacity for the next read: for the rest of a frame that has begun, or for what
    /// the client sends in a burst.
    pub fn read_buffer(&mut self) -> BytesMut {
        let length = self.buffer.len();
        let missing = frame::missing_bytes(&self.buffer).max(READ_BYTES_MIN);
        let bytes_max = if self.reads_much() || length == 0 { self.read_bytes } else { 0 };
        let capacity = bytes_max.min(self.http2.buffer_bytes_max()).max(length + missing);
        // Also when little of a large buffer is left.
        let is_other = length == 0 && self.buffer.capacity() != capacity || self.allocated > capacity;
        let is_short = self.buffer.capacity() - length < missing;
        if is_other || is_short && !self.buffer.try_reclaim(capacity - length) {
            let mut buffer = BytesMut::with_capacity(capacity);
            buffer.extend_from_slice(&self.buffer);
            (self.buffer, self.allocated) = (buffer, capacity);
        }
        self.bytes_before = self.buffer.len();
        std::mem::take(&mut self.buffer)
    }

    /// Takes back the buffer, with the received bytes appended.
    pub fn receive(&mut self, buffer: BytesMut) {
        let received = buffer.len() - self.bytes_before;
        if buffer.len() == buffer.capacity() {
            self.read_bytes = (self.read_bytes * READ_GROWTH).min(HTTP2_READ_BYTES_MAX);
        } else if received <= self.read_bytes / (2 * READ_GROWTH) {
            self.read_bytes = (self.read_bytes / READ_GROWTH).max(READ_BYTES_IDLE);
        }
        self.buffer = buffer;
    }

    fn buffer_bytes(&self) -> usize {
        if self.buffer.capacity() == 0 { 0 } else { self.allocated }
    }

    /// The memory of the buffer, of request bodies and of responses, bytes.
    pub fn memory(&self) -> usize {
        self.buffer_bytes() + self.http2.memory() + self.parked.memory()
    }

    /// The connection has ended: releases what was received and is to be sent. Parked requests remain.
    pub fn discard(&mut self) {
        self.buffer = BytesMut::new();
        self.http2.streams.discard();
    }

    /// Whether events of a request were written or refused, so that [`advance`](Self::advance) responds.
    /// Wakes the task of `context` when that is so.
    pub fn poll_parked(&mut self, context: &mut Context<'_>) -> bool {
        self.parked.poll_ready(context)
    }

    /// Whether a request body is incomplete.
    pub fn receives_body(&self) -> bool {
        self.http2.streams.table.body_bytes() > 0
    }

    /// Answers the complete requests in the buffer, and sends what the peer's windows allow.
    pub fn advance(&mut self, reactor: &Reactor, now: SystemTime) -> Http2Batch {
        let lease = reactor.worker_state.lease.borrow();
        let close = Http2Batch { bytes: Vec::new(), next: Http2Next::Close, requests: 0, has_key: false };
        // Connections are accepted only once there is a snapshot.
        let Some(snapshot) = lease.as_ref() else { return close };
        let settings = reactor.worker_state.settings.borrow();
        let state = &mut *reactor.request_state.borrow_mut();
        let mut requests_left = self.requests_left;
        let mut writer = BatchWriter {
            reactor,
            settings: &settings,
            snapshot,
            state,
            peer: self.peer,
            now,
            has_begun: false,
            requests: 0,
            requests_left: &mut requests_left,
            stored: None,
            has_key: false,
        };
        writer.begin();
        writer.state.output.bytes.extend_from_slice(&std::mem::take(&mut self.preface));
        self.complete_parked(reactor, &mut writer.state.output.bytes);
        let is_open = self.answer(&mut writer);
        let (requests, has_key) = (writer.requests, writer.has_key);
        self.requests_left = requests_left;
        if requests > 0 {
            // Most streams end in the step that they began in.
            self.idle_since = reactor.connections.now();
        }
        let out = &mut state.output.bytes;
        let next = if is_open { self.finish(reactor, snapshot, now, out) } else { Http2Next::Close };
        reactor.metrics.http2.add(&self.http2.take_counts());
        Http2Batch { bytes: std::mem::take(out), next, requests, has_key }
    }

    /// Frames the responses to requests whose events were written or refused, or have waited for too long.
    fn complete_parked(&mut self, reactor: &Reactor, out: &mut Vec<u8>) {
        let (http2, now) = (&mut self.http2, reactor.connections.now());
        self.parked.complete(now, reactor, |stream, rendered| {
            let start = out.len();
            let body_start = start + rendered.body_start;
            out.extend_from_slice(&rendered.bytes);
            let response = WrittenResponse { bytes: out, start, body_start, tail: None, is_last: true };
            http2.streams.respond_parked(stream, response, now);
        });
    }

    /// The connection has ended: counts and logs the requests whose events are written or refused by now.
    /// False: there are others.
    pub fn abandon_parked(&mut self, reactor: &Reactor) -> bool {
        self.parked.complete(reactor.connections.now(), reactor, |_, _| {});
        self.parked.is_empty()
    }

    /// Answers requests until the output is large. False: the connection closes.
    fn answer(&mut self, writer: &mut BatchWriter<'_>) -> bool {
        let reactor = writer.reactor;
        let (now, limits) = (reactor.connections.now(), reactor.connections.wait_limits());
        self.http2.judges_heads = writer.settings.address_lists.is_some();
        while writer.state.output.bytes.len() < BATCH_BYTES_MAX {
            let out = &mut writer.state.output.bytes;
            let mut event = self.http2.expire(now, limits, out);
            if event == Http2Event::NeedBytes {
                event = self.http2.advance(&mut self.buffer, now, out);
            }
            match event {
                Http2Event::NeedBytes => break,
                Http2Event::Close => return false,
                Http2Event::Head => {
                    let is_excluded = self.http2.request().is_some_and(|request| writer.excludes(&request));
                    if is_excluded {
                        self.answer_one(writer, None, now);
                    } else if self.http2.accept(now, &mut writer.state.output.bytes) == Http2Event::Close {
                        return false;
                    }
                }
                Http2Event::Request => self.answer_one(writer, None, now),
                Http2Event::Refused(error) => self.answer_one(writer, Some(error), now),
            }
            if *writer.requests_left == 0 {
                self.http2.shut_down(&mut writer.state.output.bytes);
            }
        }
        true
    }

    fn answer_one(&mut self, writer: &mut BatchWriter<'_>, error: Option<ParseError>, now: u32) {
        let start = writer.state.output.bytes.len();
        match error {
            None => {
                let Some(request) = self.http2.request() else { return };
                if writer.excludes(&request) {
                    writer.deny_request(request);
                } else {
                    writer.answer_request(request);
                }
            }
            Some(error) => {
                let Some((context, fields)) = self.http2.refused() else { return };
                writer.refuse(context, Some(&fields), error);
            }
        }
        if let Some(stored) = writer.stored.take() {
            writer.state.output.close = false;
            let stream = self.http2.park(now);
            return self.parked.add(stream, stored, now);
        }
        let subscription = writer.state.handler.take_subscription();
        let output = &mut writer.state.output;
        output.close = false;
        let owner: &dyn Fn() -> Rc<dyn Any> = &|| writer.snapshot.clone();
        let tail = output.tail.take().map(|bytes| SharedTail { bytes, owner: owner() });
        let response = WrittenResponse {
            bytes: &mut output.bytes,
            start,
            body_start: output.body_start,
            tail,
            is_last: subscription.is_none(),
        };
        let stream = self.http2.respond(response, now);
        if let Some(subscription) = subscription {
            self.event_streams.add(stream, subscription, writer.reactor, writer.snapshot.version);
        }
    }

    /// Sends what may be sent, and decides what follows.
    fn finish(
        &mut self,
        reactor: &Reactor,
        snapshot: &Lease,
        time: SystemTime,
        out: &mut Vec<u8>,
    ) -> Http2Next {
        let now = reactor.connections.now();
        self.event_streams.advance(&mut self.http2.streams, reactor, snapshot, time);
        let has_more = self.http2.streams.flush(now, out);
        if reactor.is_draining() {
            self.http2.shut_down(out);
        }
        if self.http2.is_finished() {
            return Http2Next::Close;
        }
        if has_more || out.len() >= BATCH_BYTES_MAX || self.http2.streams.waiting().is_some() {
            return Http2Next::Advance;
        }
        let phase = match self.http2.incomplete(&self.buffer) {
            Incomplete::Nothing => Phase::Idle,
            Incomplete::Head => Phase::Head,
            Incomplete::Data => Phase::Body,
        };
        // Each frame restarts the timeout; the number of frames of a header block is limited.
        let frames = self.http2.frames_read();
        if phase != Phase::Head || frames != self.frames_read {
            self.head_since = (phase == Phase::Head).then_some(now);
        }
        self.frames_read = frames;
        let head_since = self.head_since.unwrap_or(now);
        // The streams of parked requests may have been reset.
        let has_streams = !self.http2.streams.table.is_empty() || !self.parked.is_empty();
        if has_streams || phase != Phase::Idle {
            self.idle_since = now;
        }
        if !has_streams {
            let since = if phase == Phase::Head { head_since } else { self.idle_since };
            return Http2Next::Read(phase, since);
        }
        let mut deadline = self.http2.streams.deadline(now, reactor.connections.wait_limits());
        let head_deadline = head_since.wrapping_add(reactor.connections.head_ticks());
        if phase == Phase::Head {
            if is_reached(now, head_deadline) {
                self.http2.shut_down(out);
                return Http2Next::Close;
            }
            deadline = Some(deadline.map_or(head_deadline, |tick| earlier(tick, head_deadline)));
        }
        let due = [deadline, self.event_streams.due_tick(), self.parked.due_tick()];
        let next = due.into_iter().flatten().reduce(earlier);
        Http2Next::Wait(next.map_or(now.wrapping_add(1), |tick| tick.wrapping_add(1)))
    }

    /// The connection ends, because it is idle, a frame is too slow, or the reactor drains: its last bytes.
    pub fn shut_down(&mut self, reactor: &Reactor) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.preface);
        self.http2.shut_down(&mut out);
        reactor.metrics.http2.add(&self.http2.take_counts());
        out
    }

    /// Whether the end of the connection was announced.
    pub fn is_shutting_down(&self) -> bool {
        self.http2.is_shutting_down()
    }
}
