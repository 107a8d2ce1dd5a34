//! Long work that gives way: the control plane's threads beside the reactors.
//!
//! In: calls of [`step`] from loops over a whole document. Out: now and then a yield of the CPU. Only
//! threads that asked for it ([`give_way`]) ever yield, so that a step costs the others nothing.
//! Invariant: a reactor that wakes up on the CPU of a paced thread waits for [`PACE`] and a little,
//! not for the scheduler's slice of some milliseconds, which a lower priority alone does not shorten.
//! Work that hardly gets a turn any more says so once and gives way less often, so that it ends.
use std::cell::{Cell, RefCell};
use std::thread;
use std::time::{Duration, Instant};

use crate::limits::{PACE, PACE_AWAY_MAX, PACE_BYTES, PACE_STARVED};

/// Steps between two looks at the clock; a step is some hundred nanoseconds of work.
const STEPS: u32 = 64;

thread_local! {
    /// Steps left until the next look at the clock; 0: this thread is not paced.
    static LEFT: Cell<u32> = const { Cell::new(0) };
    static YIELDED: Cell<Option<Instant>> = const { Cell::new(None) };
    /// How long others had the CPU since the work began.
    static AWAY: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static STARVED: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// From now on this thread yields in its long loops. `when_starved` is called if it spends more time
/// waiting than may be; whoever begins new work calls this again.
pub fn give_way(when_starved: impl FnOnce() + 'static) {
    LEFT.set(STEPS);
    YIELDED.set(Some(Instant::now()));
    AWAY.set(Duration::ZERO);
    STARVED.replace(Some(Box::new(when_starved)));
}

/// A small step of long work was done.
pub fn step() {
    match LEFT.get() {
        0 => {}
        1 => breathe(),
        left => LEFT.set(left - 1),
    }
}

/// A larger step was done: looks at the clock at once.
pub fn breathe() {
    let Some(yielded) = YIELDED.get() else { return };
    LEFT.set(STEPS);
    let now = Instant::now();
    let pace = if AWAY.get() < PACE_AWAY_MAX { PACE } else { PACE_STARVED };
    if now - yielded < pace {
        return;
    }
    thread::yield_now();
    let back = Instant::now();
    YIELDED.set(Some(back));
    AWAY.set(AWAY.get() + (back - now));
    if AWAY.get() >= PACE_AWAY_MAX
        && let Some(when_starved) = STARVED.take()
    {
        when_starved();
    }
}

/// `work` on each piece of `bytes`, giving way in between.
pub fn by_pieces(bytes: &[u8], mut work: impl FnMut(&[u8])) {
    for (index, piece) in bytes.chunks(PACE_BYTES).enumerate() {
        if index > 0 {
            breathe();
        }
        work(piece);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn every_byte_is_worked_on_once() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        let mut seen = Vec::new();
        by_pieces(&bytes, |piece| seen.extend_from_slice(piece));
        assert!(seen == bytes);
    }

    #[test]
    fn only_a_thread_that_asked_looks_at_the_clock() {
        thread::spawn(|| {
            (0..STEPS * 3).for_each(|_| step());
            assert_eq!((LEFT.get(), YIELDED.get()), (0, None));
            give_way(|| ());
            let began = YIELDED.get().unwrap();
            while YIELDED.get() == Some(began) {
                assert!(began.elapsed() < PACE * 10_000, "it never gave way");
                step();
            }
            assert!(YIELDED.get().unwrap() - began >= PACE);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_hardly_gets_a_turn_says_so_once_for_each_work() {
        thread::spawn(|| {
            let told = Rc::new(Cell::new(0));
            let once = || {
                let told = Rc::clone(&told);
                give_way(move || told.set(told.get() + 1));
            };
            let yields = || {
                YIELDED.set(Some(Instant::now() - PACE_STARVED * 2));
                breathe();
            };
            once();
            yields();
            assert_eq!(told.get(), 0);
            AWAY.set(PACE_AWAY_MAX);
            yields();
            yields();
            assert_eq!(told.get(), 1);
            once();
            AWAY.set(PACE_AWAY_MAX);
            yields();
            assert_eq!(told.get(), 2);
        })
        .join()
        .unwrap();
    }
}
