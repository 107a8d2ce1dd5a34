//! The streams of one HTTP/2 connection whose responses wait until their events are written.
//!
//! Other streams of the connection go on meanwhile. The number is bounded by that of the posts that wait at
//! the reactor ([`crate::reactor::posts`]), also if the peer resets the streams.
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::channel::EventResult;
use crate::events::EventRefusal;
use crate::limits::EVENT_WRITE_TIMEOUT;
use crate::reactor::batch::{RenderedResponse, StoredResponse};
use crate::reactor::connections::ticks;
use crate::reactor::context::Reactor;
use crate::reactor::sse::{earlier, is_reached};

/// The streams, in the order of their requests.
#[derive(Default)]
pub struct ParkedStreams {
    parked: Vec<ParkedStream>,
}

struct ParkedStream {
    stream: u32,
    response: StoredResponse,
    /// The tick at which its time is over.
    deadline: u32,
    result: Option<EventResult>,
}

impl ParkedStreams {
    /// Adds a stream whose request was sent to be written at this tick.
    pub fn add(&mut self, stream: u32, response: StoredResponse, now: u32) {
        let deadline = now.wrapping_add(ticks(EVENT_WRITE_TIMEOUT)).wrapping_add(1);
        self.parked.push(ParkedStream { stream, response, deadline, result: None });
    }

    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Whether one of them has its result. Wakes the task of `context` when the next one has.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> bool {
        for parked in self.parked.iter_mut().filter(|parked| parked.result.is_none()) {
            if let Poll::Ready(result) = Pin::new(&mut parked.response.ticket).poll(context) {
                parked.result = Some(result);
            }
        }
        self.parked.iter().any(|parked| parked.result.is_some())
    }

    /// Completes the responses whose result is known or whose time is over at this tick.
    pub fn complete(&mut self, now: u32, reactor: &Reactor, mut respond: impl FnMut(u32, RenderedResponse)) {
        if self.parked.is_empty() {
            return;
        }
        self.poll_ready(&mut Context::from_waker(Waker::noop()));
        let is_done = |parked: &mut ParkedStream| parked.result.is_some() || is_reached(now, parked.deadline);
        for ParkedStream { stream, response, result, .. } in self.parked.extract_if(.., is_done) {
            let result = result.unwrap_or(Err(EventRefusal::Timeout));
            respond(stream, response.complete(result, reactor));
        }
    }

    /// The tick at which the time of the first one is over; `None` if there is none.
    pub fn due_tick(&self) -> Option<u32> {
        self.parked.iter().map(|parked| parked.deadline).reduce(earlier)
    }

    /// The memory of the responses, bytes.
    pub fn memory(&self) -> usize {
        self.parked.iter().map(|parked| parked.response.memory()).sum()
    }
}
