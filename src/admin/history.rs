//! Measurements of the last two hours, so that the status page shows what happened before it was opened.
//!
//! A sample is made every `limits::HISTORY_INTERVAL` on the supervisor's thread, from the difference of two
//! readings of the counters; the samples take less than 100 KiB.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use crate::admin::labels::unix_seconds;
use crate::admin::process::reactor_cpu_seconds;
use crate::http::route::Route;
use crate::limits::{HISTORY_INTERVAL, HISTORY_SAMPLES_MAX};
use crate::metrics::{Histogram, Metrics};

/// The members of a sample in `/history.json`, in order. Rates are per second; utilisation is the part of its
/// CPU that a reactor used.
const COLUMNS: [&str; 8] = [
    "time",
    "requests",
    "failures",
    "p50_seconds",
    "p99_seconds",
    "connections",
    "utilisation_max",
    "utilisation_min",
];

/// The samples, shared by the supervisor's thread and the admin listener.
#[derive(Clone, Debug)]
pub struct History {
    metrics: Arc<Metrics>,
    state: Arc<Mutex<HistoryState>>,
}

#[derive(Debug, Default)]
struct HistoryState {
    samples: VecDeque<Sample>,
    last: Option<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    time: SystemTime,
    requests: f64,
    failures: f64,
    p50: Option<f64>,
    p99: Option<f64>,
    connections: u64,
    /// Of the busiest and of the least busy reactor.
    utilisation: Option<(f64, f64)>,
}

/// Totals at one time.
#[derive(Debug)]
struct Reading {
    at: Instant,
    requests: u64,
    failures: u64,
    durations: [u64; Histogram::BUCKETS],
    cpu_seconds: Vec<Option<f64>>,
}

impl History {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, state: Arc::default() }
    }

    /// Takes a sample if one is due.
    pub fn update(&self, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due =
            state.last.as_ref().is_none_or(|last| now.saturating_duration_since(last.at) >= HISTORY_INTERVAL);
        if !is_due {
            return;
        }
        let reading = Reading::take(&self.metrics, now);
        let connections = self.metrics.reactors.iter().map(|reactor| reactor.connections_open()).sum();
        if let Some(last) = &state.last {
            let sample = Sample::between(last, &reading, connections, SystemTime::now());
            if state.samples.len() == HISTORY_SAMPLES_MAX {
                state.samples.pop_front();
            }
            state.samples.push_back(sample);
        }
        state.last = Some(reading);
    }

    /// The body of `/history.json`.
    pub fn render(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let samples: Vec<Value> = state.samples.iter().map(Sample::row).collect();
        let interval = HISTORY_INTERVAL.as_secs();
        json!({"interval_seconds": interval, "columns": COLUMNS, "samples": samples}).to_string()
    }
}

impl Reading {
    fn take(metrics: &Metrics, at: Instant) -> Self {
        let mut reading = Self {
            at,
            requests: 0,
            failures: 0,
            durations: [0; Histogram::BUCKETS],
            cpu_seconds: reactor_cpu_seconds(metrics.reactors.len()),
        };
        for reactor in &metrics.reactors {
            for (route, class, count) in reactor.requests() {
                reading.requests += count;
                // Readiness answers 503 by design, and is shown separately.
                reading.failures += if class == 4 && route != Route::Readiness { count } else { 0 };
            }
            reading
                .durations
                .iter_mut()
                .zip(reactor.durations.counts())
                .for_each(|(sum, count)| *sum += count);
        }
        reading
    }
}

impl Sample {
    fn between(before: &Reading, after: &Reading, connections: u64, time: SystemTime) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
        let rate = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
        let gained: Vec<u64> =
            after.durations.iter().zip(before.durations).map(|(after, before)| after - before).collect();
        let used = after.cpu_seconds.iter().zip(&before.cpu_seconds).filter_map(|(after, before)| {
            // More than one CPU is an error of the clocks' resolution.
            Some((((*after)? - (*before)?) / seconds).clamp(0.0, 1.0))
        });
        let widen = |range: Option<(f64, f64)>, used: f64| match range {
            Some((most, least)) => Some((f64::max(most, used), f64::min(least, used))),
            None => Some((used, used)),
        };
        Self {
            time,
            requests: rate(after.requests, before.requests),
            failures: rate(after.failures, before.failures),
            p50: quantile(&gained, 0.5),
            p99: quantile(&gained, 0.99),
            connections,
            utilisation: used.fold(None, widen),
        }
    }

    fn row(&self) -> Value {
        let (most, least) = self.utilisation.unzip();
        json!([
            unix_seconds(self.time),
            self.requests,
            self.failures,
            self.p50,
            self.p99,
            self.connections,
            most,
            least
        ])
    }
}

/// The upper bound of the bucket that contains this part of the durations; `None` without any.
fn quantile(counts: &[u64], part: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    let mut below = 0;
    let is_reached = |count: &u64| {
        below += count;
        all > 0 && below as f64 >= part * all as f64
    };
    let bucket = counts.iter().position(is_reached)?;
    // The last bucket has no upper bound.
    Some(Histogram::upper_seconds(bucket.min(Histogram::BUCKETS - 2)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rows(history: &History) -> Vec<Vec<Value>> {
        let body: Value = serde_json::from_str(&history.render()).expect("JSON");
        assert_eq!(body["columns"].as_array().map(Vec::len), Some(COLUMNS.len()));
        let rows = body["samples"].as_array().expect("a list");
        rows.iter().map(|row| row.as_array().expect("a row").clone()).collect()
    }

    #[test]
    fn sample_is_the_difference_of_two_readings() {
        let metrics = Arc::new(Metrics::new(&[0, 1]));
        let history = History::new(metrics.clone());
        let start = Instant::now();
        history.update(start);
        assert_eq!(rows(&history).len(), 0, "one reading makes no sample");
        for _ in 0..99 {
            metrics.reactors[0].answered(Route::Flags, 200);
            metrics.reactors[0].batch(1, Duration::from_micros(10));
        }
        metrics.reactors[1].answered(Route::Flags, 502);
        metrics.reactors[1].answered(Route::Readiness, 503);
        metrics.reactors[1].batch(1, Duration::from_millis(10));
        metrics.reactors[1].connections_opened.add(3);
        history.update(start + HISTORY_INTERVAL / 2);
        assert_eq!(rows(&history).len(), 0, "not due");
        history.update(start + HISTORY_INTERVAL);
        let rows = rows(&history);
        assert_eq!(rows.len(), 1);
        let number = |column: usize| rows[0][column].as_f64().expect("a number");
        assert!((number(1) - 10.1).abs() < 1e-6 && (number(2) - 0.1).abs() < 1e-6, "{rows:?}");
        assert!((1e-5..2e-5).contains(&number(3)) && (1e-5..2e-5).contains(&number(4)), "{rows:?}");
        assert_eq!(number(5), 3.0);
        assert_eq!(rows[0].len(), COLUMNS.len());
    }

    #[test]
    fn oldest_samples_are_dropped() {
        let history = History::new(Arc::new(Metrics::new(&[0])));
        let start = Instant::now();
        let step = |number: usize| start + HISTORY_INTERVAL * u32::try_from(number).expect("small");
        (0..HISTORY_SAMPLES_MAX + 5).for_each(|number| history.update(step(number)));
        let rows = rows(&history);
        assert_eq!(rows.len(), HISTORY_SAMPLES_MAX);
        assert_eq!(rows[0][3], Value::Null, "without requests there is no latency");
        assert!(rows.iter().all(|row| row[1] == 0.0));
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let mut counts = [0; Histogram::BUCKETS];
        assert_eq!(quantile(&counts, 0.5), None);
        (counts[0], counts[Histogram::BUCKETS - 1]) = (99, 1);
        assert_eq!(quantile(&counts, 0.5), Some(1e-6));
        assert!(quantile(&counts, 1.0).is_some_and(|seconds| seconds > 10.0 && seconds.is_finite()));
    }
}
