//! An event stream, apart from its I/O: what to write next, or until when to wait.
//!
//! Between events it uses no buffer, no timer and no operation: the sweep and new snapshots notify the
//! connection. A peer that has disconnected is detected by the next write.
use std::time::{Duration, SystemTime};

use crate::handlers::sse::StreamSubscription;
use crate::limits;
use crate::reactor::connections::ticks;
use crate::snapshot::Snapshot;

/// An open event stream.
pub struct EventStream {
    subscription: StreamSubscription,
    /// `sse.max_stream_seconds`; `None` is unlimited.
    close_tick: Option<u32>,
    keep_alive_tick: u32,
}

/// What the connection does next.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamAction {
    /// Write these bytes and call [`EventStream::next`] again: a snapshot may have come meanwhile.
    Write(Vec<u8>),
    /// Wait for a notification, at most until this tick.
    Wait(u32),
    /// Write these bytes, then end the connection.
    End(&'static [u8]),
}

impl EventStream {
    /// `lifetime`: `None` is unlimited.
    pub fn new(subscription: StreamSubscription, now: u32, lifetime: Option<Duration>) -> Self {
        let close_tick = lifetime.map(|time| tick_after(now, time));
        let keep_alive_tick = tick_after(now, limits::STREAM_KEEP_ALIVE);
        Self { subscription, close_tick, keep_alive_tick }
    }

    /// Ends the stream when the reactor drains, at the end of its lifetime, and when its key no longer opens
    /// an environment; otherwise writes an event if the environment has changed, or a keep-alive comment.
    pub fn next(
        &mut self,
        snapshot: Option<&Snapshot>,
        time: SystemTime,
        now: u32,
        is_draining: bool,
    ) -> StreamAction {
        let is_over = is_draining || self.close_tick.is_some_and(|tick| is_reached(now, tick));
        if is_over || snapshot.is_some_and(|snapshot| !self.subscription.is_valid(snapshot, time)) {
            return StreamAction::End(self.subscription.end());
        }
        let mut bytes = Vec::new();
        if let Some(snapshot) = snapshot {
            self.subscription.catch_up(snapshot, &mut bytes);
        }
        if bytes.is_empty() && is_reached(now, self.keep_alive_tick) {
            self.subscription.keep_alive(&mut bytes);
        }
        if bytes.is_empty() {
            return StreamAction::Wait(self.next_tick());
        }
        StreamAction::Write(bytes)
    }

    /// When something is due if the snapshot does not change.
    pub fn next_tick(&self) -> u32 {
        earlier(self.keep_alive_tick, self.close_tick.unwrap_or(self.keep_alive_tick))
    }

    /// Call this after a write: postpones the next keep-alive comment.
    pub fn written(&mut self, now: u32) {
        self.keep_alive_tick = tick_after(now, limits::STREAM_KEEP_ALIVE);
    }
}

fn tick_after(now: u32, time: Duration) -> u32 {
    // Ticks wrap around; a difference of less than half the range keeps earlier and later distinct.
    now.wrapping_add(ticks(time).min(u32::MAX / 4))
}

/// Whether this tick has come.
pub fn is_reached(now: u32, tick: u32) -> bool {
    now.wrapping_sub(tick) <= u32::MAX / 2
}

/// The earlier of two ticks, which wrap around.
pub fn earlier(one: u32, other: u32) -> u32 {
    if one.wrapping_sub(other) > u32::MAX / 2 { one } else { other }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::handlers::sse::StreamProtocol;

    #[test]
    fn ticks_wrap_around() {
        assert_eq!((earlier(3, 5), earlier(5, 3)), (3, 3));
        assert_eq!((earlier(u32::MAX, 2), earlier(2, u32::MAX)), (u32::MAX, u32::MAX));
    }

    #[test]
    fn sends_keep_alives_until_the_lifetime_ends() {
        let subscription = StreamSubscription::new(b"key", StreamProtocol::Flagsmith, true);
        let (quiet, lifetime) = (ticks(limits::STREAM_KEEP_ALIVE), limits::STREAM_KEEP_ALIVE * 3 / 2);
        let start = u32::MAX - 3;
        let mut stream = EventStream::new(subscription, start, Some(lifetime));
        let close_tick = start.wrapping_add(ticks(lifetime));
        let at = |ticks: u32| start.wrapping_add(ticks);
        assert_eq!(stream.next(None, UNIX_EPOCH, at(0), false), StreamAction::Wait(at(quiet)));
        assert!(matches!(stream.next(None, UNIX_EPOCH, at(quiet), false), StreamAction::Write(_)));
        stream.written(at(quiet));
        assert_eq!(stream.next(None, UNIX_EPOCH, at(quiet), false), StreamAction::Wait(close_tick));
        assert_eq!(stream.next(None, UNIX_EPOCH, at(quiet), true), StreamAction::End(b"0\r\n\r\n"));
        assert_eq!(stream.next(None, UNIX_EPOCH, close_tick, false), StreamAction::End(b"0\r\n\r\n"));
        let removed = Snapshot::default();
        let next = stream.next(Some(&removed), UNIX_EPOCH, at(quiet), false);
        assert_eq!(next, StreamAction::End(b"0\r\n\r\n"), "the key opens no environment");
    }
}
