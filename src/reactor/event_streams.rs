//! The event streams of one HTTP/2 connection.
use std::time::SystemTime;

use crate::handlers::sse::StreamSubscription;
use crate::http::h2::streams::Http2Streams;
use crate::reactor::context::Reactor;
use crate::reactor::sse::{EventStream, StreamAction, earlier, is_reached};
use crate::snapshot::Snapshot;

/// The open event streams.
#[derive(Default)]
pub struct EventStreams {
    open: Vec<OpenEventStream>,
}

struct OpenEventStream {
    stream: u32,
    events: EventStream,
    /// The snapshot that it was last compared with.
    version: u64,
    due_tick: u32,
}

impl EventStreams {
    /// Adds the event stream that a request has opened.
    pub fn add(&mut self, stream: u32, subscription: StreamSubscription, reactor: &Reactor, version: u64) {
        let (now, lifetime) = (reactor.connections.now(), reactor.connections.stream_time());
        let events = EventStream::new(subscription, now, lifetime);
        self.open.push(OpenEventStream { stream, events, version, due_tick: now });
    }

    /// Appends what is due to the streams. A stream whose peer has not taken the last event is left as it is:
    /// it catches up afterwards.
    pub fn advance(
        &mut self,
        streams: &mut Http2Streams,
        reactor: &Reactor,
        snapshot: &Snapshot,
        time: SystemTime,
    ) {
        if self.open.is_empty() {
            return;
        }
        let (now, is_draining) = (reactor.connections.now(), reactor.is_draining());
        self.open.retain_mut(|open| match streams.unsent(open.stream) {
            None => false,
            Some(unsent) if unsent > 0 => true,
            Some(_)
                if open.version == snapshot.version && !is_reached(now, open.due_tick) && !is_draining =>
            {
                true
            }
            Some(_) => open.advance(streams, snapshot, time, now, is_draining),
        });
    }

    /// The tick at which one of them is due; `None` if there is none.
    pub fn due_tick(&self) -> Option<u32> {
        self.open.iter().map(|open| open.due_tick).reduce(earlier)
    }
}

impl OpenEventStream {
    /// False: the stream has ended.
    fn advance(
        &mut self,
        streams: &mut Http2Streams,
        snapshot: &Snapshot,
        time: SystemTime,
        now: u32,
        is_draining: bool,
    ) -> bool {
        self.version = snapshot.version;
        match self.events.next(Some(snapshot), time, now, is_draining) {
            StreamAction::Write(bytes) => {
                streams.push_event(self.stream, &bytes, false, now);
                self.events.written(now);
                self.due_tick = self.events.next_tick();
                true
            }
            StreamAction::Wait(tick) => {
                self.due_tick = tick;
                true
            }
            StreamAction::End(bytes) => {
                streams.push_event(self.stream, bytes, true, now);
                false
            }
        }
    }
}
