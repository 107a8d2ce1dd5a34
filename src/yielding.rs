//! Cooperative yielding: control-plane threads give up the CPU in the middle of long loops.
//!
//! A reactor that wakes up on a CPU on which such a thread runs waits about [`INTERVAL`]. Without yielding it
//! would wait for the scheduler's time slice of several milliseconds, which a lower priority does not
//! shorten. Only threads that called [`enable`] yield: on all other threads a [`step`] costs one comparison.
use std::cell::{Cell, RefCell};
use std::thread;
use std::time::{Duration, Instant};

/// How often a thread yields.
const INTERVAL: Duration = Duration::from_micros(200);
/// Time spent off the CPU in one task after which the thread counts as starved: it then yields less often,
/// and is allowed to run on the reactors' CPUs.
const STARVED_AFTER: Duration = Duration::from_millis(300);
/// How often a starved thread yields. The scheduler takes a whole slice from a thread that yields beside one
/// that never sleeps: with 0.2 ms, a document of 22 MB took 6 s there, which is worse than a stall of 1 ms.
const STARVED_INTERVAL: Duration = Duration::from_millis(1);
/// Bytes that are hashed or compressed between two checkpoints: compressing them takes about 0.2 ms.
pub const PIECE_BYTES: usize = 16 * 1024;
/// Steps between two readings of the clock; a step is a few hundred nanoseconds of work.
const STEPS: u32 = 64;

thread_local! {
    /// Steps left until the next checkpoint; 0: this thread does not yield.
    static STEPS_LEFT: Cell<u32> = const { Cell::new(0) };
    static LAST_YIELD: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Time spent off the CPU since the task began.
    static AWAY: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static ON_STARVED: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// Makes the current thread yield in its long loops, and starts a new task: call it once per task.
/// `on_starved` is called at most once per task, when the thread counts as starved.
pub fn enable(on_starved: impl FnOnce() + 'static) {
    STEPS_LEFT.set(STEPS);
    LAST_YIELD.set(Some(Instant::now()));
    AWAY.set(Duration::ZERO);
    ON_STARVED.replace(Some(Box::new(on_starved)));
}

/// Call this after each small step of a loop over a whole document.
pub fn step() {
    match STEPS_LEFT.get() {
        0 => {}
        1 => checkpoint(),
        left => STEPS_LEFT.set(left - 1),
    }
}

/// Yields if the last yield is an interval ago. Call this after a larger step, such as [`PIECE_BYTES`].
pub fn checkpoint() {
    let Some(last_yield) = LAST_YIELD.get() else { return };
    STEPS_LEFT.set(STEPS);
    let now = Instant::now();
    let interval = if AWAY.get() < STARVED_AFTER { INTERVAL } else { STARVED_INTERVAL };
    if now - last_yield < interval {
        return;
    }
    thread::yield_now();
    let back = Instant::now();
    LAST_YIELD.set(Some(back));
    AWAY.set(AWAY.get() + (back - now));
    if AWAY.get() >= STARVED_AFTER
        && let Some(on_starved) = ON_STARVED.take()
    {
        on_starved();
    }
}

/// Calls `work` for each piece of `bytes`, with a checkpoint between two pieces.
pub fn in_pieces(bytes: &[u8], mut work: impl FnMut(&[u8])) {
    for (index, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        if index > 0 {
            checkpoint();
        }
        work(piece);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn pieces_cover_every_byte_once() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        let mut seen = Vec::new();
        in_pieces(&bytes, |piece| seen.extend_from_slice(piece));
        assert!(seen == bytes);
    }

    #[test]
    fn only_an_enabled_thread_reads_the_clock() {
        thread::spawn(|| {
            (0..STEPS * 3).for_each(|_| step());
            assert_eq!((STEPS_LEFT.get(), LAST_YIELD.get()), (0, None));
            enable(|| ());
            let began = LAST_YIELD.get().unwrap();
            while LAST_YIELD.get() == Some(began) {
                assert!(began.elapsed() < INTERVAL * 10_000, "it never yielded");
                step();
            }
            assert!(LAST_YIELD.get().unwrap() - began >= INTERVAL);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_starved_thread_reports_it_once_per_task() {
        thread::spawn(|| {
            let reports = Rc::new(Cell::new(0));
            let start_task = || {
                let reports = Rc::clone(&reports);
                enable(move || reports.set(reports.get() + 1));
            };
            let yield_now = || {
                LAST_YIELD.set(Some(Instant::now() - STARVED_INTERVAL * 2));
                checkpoint();
            };
            start_task();
            yield_now();
            assert_eq!(reports.get(), 0);
            AWAY.set(STARVED_AFTER);
            yield_now();
            yield_now();
            assert_eq!(reports.get(), 1);
            start_task();
            AWAY.set(STARVED_AFTER);
            yield_now();
            assert_eq!(reports.get(), 2);
        })
        .join()
        .unwrap();
    }
}
