//! The streams that wait for something: for a body, for their turn, or for the peer's window.
//!
//! A stream that is answered as soon as its request is complete never has a record.
use std::rc::Rc;

use crate::http::h2::frame::{ErrorCode, append_window};
use crate::http::h2::head::RequestHead;
use crate::http::h2::outgoing::Outgoing;
use crate::http::h2::receive_window::{RequestBody, counted_at_most};
use crate::limits::HTTP2_BODIES_WINDOW;

/// A stream with a record.
#[derive(Debug)]
pub struct OpenStream {
    pub id: u32,
    /// What the peer may still receive; negative after it has lowered its initial window.
    pub window: i64,
    /// The tick at which it began to wait.
    pub since: u32,
    /// Whether its wait for the peer's window was counted.
    pub is_stalled: bool,
    pub state: StreamState,
}

#[derive(Debug)]
pub enum StreamState {
    /// The body is incomplete.
    Receiving { head: Rc<RequestHead>, body: RequestBody },
    /// The request is complete. It is answered once less is waiting to be sent.
    Waiting { head: Rc<RequestHead>, body: RequestBody },
    /// The request was taken by the owner, which responds later.
    Parked,
    /// `is_half_open`: the peer has not ended its request, of which the rest is ignored.
    Sending { outgoing: Outgoing, is_half_open: bool },
}

impl OpenStream {
    /// What its body still waits to be allowed, bytes.
    fn missing_window(&self) -> usize {
        match &self.state {
            StreamState::Receiving { head, body } if !body.is_allowed => counted_at_most(head.content_length),
            _ => 0,
        }
    }

    /// The part of `HTTP2_BODIES_WINDOW` that its body uses or may still use, bytes. What a peer sends
    /// before it receives the window of streams is in addition to it.
    fn counted_body_bytes(&self) -> usize {
        match &self.state {
            StreamState::Receiving { head, body } if body.is_allowed => counted_at_most(head.content_length),
            StreamState::Waiting { body, .. } => body.counted(),
            StreamState::Receiving { .. } | StreamState::Parked | StreamState::Sending { .. } => 0,
        }
    }

    /// Whether the response has begun before the request was complete.
    pub fn is_half_open(&self) -> bool {
        matches!(self.state, StreamState::Sending { is_half_open: true, .. })
    }
}

/// By how many records the table grows.
pub const RECORDS_STEP: usize = 10;
/// The memory of a stream besides its head and bodies, bytes, and what an event stream has in addition.
pub const RECORD_BYTES: usize = size_of::<OpenStream>();
pub const EVENT_STREAM_BYTES: usize = 192;

/// How many identifiers of this connection are remembered as opened.
const RECENT_IDS: u32 = 128;
/// How many streams that this side has ended are remembered, because frames of theirs may be in flight.
const ENDED_IDS: usize = 16;

/// All streams of a connection.
#[derive(Debug, Default)]
pub struct StreamTable {
    open: Vec<OpenStream>,
    highest: u32,
    /// Bit n: the identifier `highest - 2n` was opened.
    recent: u128,
    ended: [u32; ENDED_IDS],
    next_ended: usize,
}

impl StreamTable {
    /// The highest identifier that was opened.
    pub fn highest(&self) -> u32 {
        self.highest
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Checks and records the identifier of a new stream (RFC 9113 5.1.1).
    ///
    /// # Errors
    /// The stream was opened before, or its identifier was skipped.
    pub fn open(&mut self, id: u32) -> Result<(), ErrorCode> {
        if id <= self.highest {
            let back = (self.highest - id) / 2;
            let was_opened = back < RECENT_IDS && self.recent >> back & 1 == 1;
            return Err(if was_opened { ErrorCode::StreamClosed } else { ErrorCode::Protocol });
        }
        let forward = (id - self.highest).div_ceil(2);
        self.recent = self.recent.checked_shl(forward).unwrap_or(0) | 1;
        self.highest = id;
        Ok(())
    }

    pub fn find(&mut self, id: u32) -> Option<&mut OpenStream> {
        self.open.iter_mut().find(|stream| stream.id == id)
    }

    pub fn insert(&mut self, stream: OpenStream) {
        if self.open.len() == self.open.capacity() {
            self.open.reserve_exact(RECORDS_STEP);
        }
        self.open.push(stream);
    }

    /// The memory of the records and of heads that wait for a body, bytes.
    pub fn memory(&self) -> usize {
        let is_event_stream = |stream: &&OpenStream| matches!(&stream.state, StreamState::Sending { outgoing, .. } if !outgoing.is_last);
        let event_streams = self.open.iter().filter(is_event_stream).count();
        self.open.capacity() * RECORD_BYTES + event_streams * EVENT_STREAM_BYTES + self.head_bytes()
    }

    pub fn remove(&mut self, id: u32) -> Option<OpenStream> {
        let at = self.open.iter().position(|stream| stream.id == id)?;
        let stream = self.open.remove(at);
        if self.open.is_empty() {
            self.open = Vec::new();
        }
        Some(stream)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut OpenStream> {
        self.open.iter_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = &OpenStream> {
        self.open.iter()
    }

    /// Remembers a stream that this side ended before the peer did.
    pub fn end(&mut self, id: u32) {
        self.ended[self.next_ended] = id;
        self.next_ended = (self.next_ended + 1) % ENDED_IDS;
    }

    /// Whether this side ended the stream before the peer did: its frames are ignored (RFC 9113 5.4.2).
    pub fn is_ended(&self, id: u32) -> bool {
        self.ended.contains(&id)
    }

    /// The memory of heads that wait for a body, bytes. Each stream counts its part of a head that it shares
    /// with others or with the memo.
    pub fn head_bytes(&self) -> usize {
        let heads = self.open.iter().map(|stream| match &stream.state {
            StreamState::Receiving { head, .. } | StreamState::Waiting { head, .. } => {
                head.memory().div_ceil(Rc::strong_count(head))
            }
            StreamState::Parked | StreamState::Sending { .. } => 0,
        });
        heads.sum()
    }

    /// Allows the bodies that fit in `HTTP2_BODIES_WINDOW`, the oldest stream first.
    pub fn allow_bodies(&mut self, out: &mut Vec<u8>) {
        if !self.open.iter().any(|stream| stream.missing_window() > 0) {
            return;
        }
        let mut in_use: usize = self.open.iter().map(OpenStream::counted_body_bytes).sum();
        for stream in &mut self.open {
            let missing = stream.missing_window();
            in_use += missing;
            if in_use > HTTP2_BODIES_WINDOW as usize {
                return;
            }
            if missing > 0
                && let StreamState::Receiving { body, .. } = &mut stream.state
            {
                body.is_allowed = true;
                append_window(stream.id, HTTP2_BODIES_WINDOW, out);
            }
        }
    }

    /// The memory of request bodies, bytes.
    pub fn body_bytes(&self) -> usize {
        let bodies = self.open.iter().map(|stream| match &stream.state {
            StreamState::Receiving { body, .. } | StreamState::Waiting { body, .. } => body.bytes.capacity(),
            StreamState::Parked | StreamState::Sending { .. } => 0,
        });
        bodies.sum()
    }

    /// The memory of responses that wait for the peer, bytes.
    pub fn outgoing_bytes(&self) -> usize {
        let outgoing = self.open.iter().map(|stream| match &stream.state {
            StreamState::Sending { outgoing, .. } => outgoing.memory(),
            _ => 0,
        });
        outgoing.sum()
    }
}
