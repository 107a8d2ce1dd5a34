//! The hybrid clock: stamps that grow even if the wall clock does not, and that follow those of other
//! processes.
use std::time::{SystemTime, UNIX_EPOCH};

use crate::trait_table::Stamp;

/// Bits of the counter below the milliseconds.
const COUNTER_BITS: u32 = 16;
/// How far in the future a stamp of another process may be, milliseconds: a wrong clock elsewhere must not
/// move this one.
const AHEAD_MS_MAX: u64 = 60_000;

#[derive(Clone, Copy, Debug)]
pub struct HybridClock {
    last: Stamp,
    /// Milliseconds that a shared clock is ahead of that of this machine.
    offset: i64,
}

impl HybridClock {
    pub fn new(proxy: u32) -> Self {
        Self { last: Stamp { clock: 0, proxy }, offset: 0 }
    }

    /// Follows a clock that is ahead of that of this machine, or behind it.
    pub fn set_offset(&mut self, milliseconds: i64) {
        self.offset = milliseconds;
    }

    fn ticks(&self, now: SystemTime) -> u64 {
        let milliseconds = (ticks(now) >> COUNTER_BITS).saturating_add_signed(self.offset);
        milliseconds.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS
    }

    /// The stamp that the next changes follow, at this time.
    pub fn before(&self, now: SystemTime) -> Stamp {
        Stamp { clock: self.last.clock.max(self.ticks(now)), ..self.last }
    }

    /// Records the last stamp that was given.
    pub fn advance(&mut self, last: Stamp) {
        self.last.clock = self.last.clock.max(last.clock);
    }

    /// Records the stamp of another process. Returns false if it is too far in the future to be merged.
    pub fn observe(&mut self, other: Stamp, now: SystemTime) -> bool {
        if other.clock > self.ticks(now).saturating_add(AHEAD_MS_MAX << COUNTER_BITS) {
            return false;
        }
        self.advance(other);
        true
    }
}

/// A time on the clock.
pub fn ticks(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX >> COUNTER_BITS) << COUNTER_BITS
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stamps_grow_when_the_wall_clock_goes_back_or_others_are_ahead() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut clock = HybridClock::new(5);
        let first = clock.before(now).next();
        clock.advance(first);
        let second = clock.before(now - Duration::from_secs(10)).next();
        assert!(second > first && second.proxy == 5);
        let ahead = Stamp { clock: ticks(now + Duration::from_secs(30)), proxy: 9 };
        assert!(clock.observe(ahead, now) && clock.before(now).next() > ahead);
        let wrong = Stamp { clock: ticks(now + Duration::from_secs(3600)), proxy: 9 };
        assert!(!clock.observe(wrong, now) && clock.before(now).next() < wrong);
        clock.set_offset(3_600_000);
        assert!(clock.before(now).clock >= wrong.clock && clock.observe(wrong, now));
        clock.set_offset(-3_600_000);
        assert!(clock.before(now).clock >= wrong.clock, "stamps never go back");
    }
}
