//! An event stream that is held open: told of every new snapshot, kept alive between them.
//!
//! In: a connection whose answer was the head of a stream, and its [`StreamSubscription`]. Out: events,
//! and a comment every `limits::STREAM_KEEP_ALIVE`. Invariant: while it waits it holds no buffer,
//! no timer and no operation on the ring; the sweep and a new snapshot nudge it. A peer that went
//! away shows when the next bytes cannot be written. It ends with `sse.max_stream_seconds`, with
//! a peer that does not read, at once when the reactor drains or the environment is removed, and within
//! `limits::STREAM_KEEP_ALIVE` of the end of its key.
use std::time::{Duration, SystemTime};

use bytes::BytesMut;

use crate::handlers::sse::StreamSubscription;
use crate::limits;
use crate::reactor::connection::{Connection, PeerGone};
use crate::reactor::connections::{Connections, Phase, ticks};
use crate::reactor::transport::Transport;

impl<T: Transport> Connection<T> {
    /// Tells a subscriber what changes, until it ends.
    pub(super) async fn stream(&mut self, mut subscription: StreamSubscription) -> Result<(), PeerGone> {
        self.buffer = BytesMut::new();
        self.transport.give_back();
        let close_tick = self.reactor.registry.close_tick();
        let mut quiet_tick = self.reactor.registry.tick_in(limits::STREAM_KEEP_ALIVE);
        loop {
            let registry = &self.reactor.registry;
            if self.reactor.draining.get() || close_tick.is_some_and(|tick| registry.is_past(tick)) {
                return self.write_whole(subscription.end()).await.map(drop);
            }
            if !self.is_valid(&subscription) {
                return self.write_whole(subscription.end()).await.map(drop);
            }
            // Looked at before each wait, for a snapshot may come while an event is written.
            let mut bytes = self.news(&mut subscription);
            if bytes.is_empty() && registry.is_past(quiet_tick) {
                subscription.keep_alive(&mut bytes);
            }
            if !bytes.is_empty() {
                self.write_whole(bytes).await?;
                quiet_tick = self.reactor.registry.tick_in(limits::STREAM_KEEP_ALIVE);
                continue;
            }
            self.place.set_phase(Phase::Streaming);
            self.place.mark.set_due(close_tick.map_or(quiet_tick, |tick| earlier(quiet_tick, tick)));
            if !self.place.mark.nudged().await && !self.reactor.draining.get() {
                return Ok(());
            }
            self.place.mark.revive();
        }
    }

    fn is_valid(&self, subscription: &StreamSubscription) -> bool {
        let lease = self.reactor.lease.borrow();
        lease.as_deref().is_none_or(|snapshot| subscription.is_valid(snapshot, SystemTime::now()))
    }

    fn news(&self, subscription: &mut StreamSubscription) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(snapshot) = self.reactor.lease.borrow().as_deref() {
            subscription.catch_up(snapshot, &mut bytes);
        }
        bytes
    }
}

/// Of two ticks the one that comes first; ticks go round.
fn earlier(one: u32, other: u32) -> u32 {
    if one.wrapping_sub(other) > u32::MAX / 2 { one } else { other }
}

impl Connections {
    /// The tick at which a stream that opens now is closed, if it ever is.
    fn close_tick(&self) -> Option<u32> {
        self.stream_time().map(|time| self.tick_in(time))
    }

    fn tick_in(&self, time: Duration) -> u32 {
        // Never more than half way round, so that before and after can be told apart.
        self.now().wrapping_add(ticks(time).min(u32::MAX / 4))
    }

    fn is_past(&self, tick: u32) -> bool {
        self.now().wrapping_sub(tick) <= u32::MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use crate::reactor::sse::earlier;

    #[test]
    fn ticks_go_round() {
        assert_eq!((earlier(3, 5), earlier(5, 3)), (3, 3));
        assert_eq!((earlier(u32::MAX, 2), earlier(2, u32::MAX)), (u32::MAX, u32::MAX));
    }
}
