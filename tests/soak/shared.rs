//! What the threads of a run share: when to stop or pause, counts, latencies and errors.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Errors that are kept; more are only counted.
const ERRORS_KEPT: usize = 50;

#[derive(Default)]
pub struct Shared {
    stop: AtomicBool,
    paused: AtomicBool,
    pub counts: Counts,
    errors: Mutex<Vec<String>>,
}

/// What happened so far. Each is printed and judged at the end.
#[derive(Default)]
pub struct Counts {
    pub answers: AtomicU64,
    pub http2_answers: AtomicU64,
    pub reconnects: AtomicU64,
    /// Requests that were left before their answer, or before their own end.
    pub abandoned: AtomicU64,
    /// Requests whose connection a takeover closed while they were sent; sent again.
    pub sent_again: AtomicU64,
    pub stream_events: AtomicU64,
    pub slow_peers: AtomicU64,
    pub not_modified: AtomicU64,
    pub errors: AtomicU64,
}

pub fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

pub fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

impl Shared {
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// While paused, no thread has a connection.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// True once connections are to be closed.
    pub fn is_over(&self) -> bool {
        self.is_stopped() || self.is_paused()
    }

    /// Reports an error that no fault of the run explains.
    pub fn error(&self, error: String) {
        add(&self.counts.errors);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < ERRORS_KEPT {
            println!("soak | error: {error}");
            errors.push(error);
        }
    }

    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Latencies in microseconds since the last call of `take`.
#[derive(Default)]
pub struct Latencies(Mutex<Vec<u32>>);

impl Latencies {
    pub fn record(&self, micros: u128) {
        let micros = u32::try_from(micros).unwrap_or(u32::MAX);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(micros);
    }

    /// Removes and sorts them.
    pub fn take(&self) -> Vec<u32> {
        let mut taken = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        taken.sort_unstable();
        taken
    }
}

/// A quantile of sorted values; 0 without values.
pub fn quantile(sorted: &[u32], share: f64) -> u32 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
