//! Numbers that say what the process does, written where it happens and read by the admin room.
//!
//! In: counts from each reactor and from the supervisor. Out: sums at the moment somebody asks.
//! Invariant: a [`ReactorMetrics`] is written by its reactor alone, with plain loads and stores
//! on cache lines of its own, so that counting costs no lock and asking disturbs nobody; what is
//! locked ([`Metrics::environment`]) belongs to the control plane alone.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::http::ParseError;
use crate::http::route::Route;
use crate::snapshot::DocumentSource;

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owner may. A load and a store are enough with one writer, and cost less
    /// than a locked addition.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Replaces; only the owner may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that several threads of the control plane add to.
#[derive(Debug, Default)]
pub struct SharedCounter(AtomicU64);

impl SharedCounter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers of threads beside the supervisor and the reactors.
#[derive(Debug, Default)]
pub struct BackgroundMetrics {
    /// Connections of the admin listener closed before they were answered.
    pub admin_connections_closed: SharedCounter,
    /// Requests to the admin listener whose `Host` is not allowed.
    pub admin_hosts_refused: SharedCounter,
    /// Event streams of upstream closed because they sent too much.
    pub realtime_floods: SharedCounter,
}

/// Everything, once per process.
#[derive(Debug)]
pub struct Metrics {
    pub started: SystemTime,
    pub reactors: Vec<Arc<ReactorMetrics>>,
    pub supervisor: SupervisorMetrics,
    pub background: BackgroundMetrics,
    environments: Mutex<BTreeMap<String, EnvironmentMetrics>>,
}

/// One reactor's numbers, apart from all others in memory.
#[derive(Debug)]
#[repr(align(128))]
pub struct ReactorMetrics {
    /// The CPU it is pinned to.
    pub core: usize,
    /// By route, then by class of status (1xx to 5xx).
    requests: [[Counter; 5]; Route::ALL.len()],
    rejects: [Counter; ParseError::ALL.len()],
    pub durations: Histogram,
    pub bytes_read: Counter,
    pub bytes_written: Counter,
    pub connections_opened: Counter,
    pub connections_closed: Counter,
    /// Closed at once because the limit was met.
    pub connections_refused: Counter,
    /// Ended because the peer did not take its answer.
    pub connections_cut: Counter,
    /// Ended because all together held too much memory.
    pub connections_shed: Counter,
    /// Answers 422 that list fewer errors than there are.
    pub errors_truncated: Counter,
    /// Pauses of the accept loop, above all at the descriptor limit.
    pub accept_pauses: Counter,
    /// Requests whose general JSONPaths, and whose regular expressions, ran out of steps.
    pub jsonpath_exceeded: Counter,
    pub patterns_exceeded: Counter,
    /// Bulk requests refused for the work that their identities would take.
    pub bulk_refused: Counter,
    /// Access records that found their queue full.
    pub access_dropped: Counter,
    /// Panics that were caught.
    pub restarts: Counter,
    /// Of the snapshot in use.
    pub snapshot_version: Counter,
    /// When it was taken into use, milliseconds since the process started.
    pub snapshot_taken_ms: Counter,
    /// Turns of the coarse timer; stands still if the reactor does.
    pub beats: Counter,
    /// How late the last turn of the coarse timer came, microseconds.
    pub lag_us: Counter,
    /// The driver that won, as in `DRIVERS`.
    driver: Counter,
    started: Instant,
}

/// Names of drivers, by the number that a reactor stores.
const DRIVERS: [&str; 5] = ["none", "uring_defer_taskrun", "uring_coop_taskrun", "uring", "epoll"];

/// The supervisor's numbers.
#[derive(Debug, Default)]
pub struct SupervisorMetrics {
    /// Turns of the control loop; stands still if the supervisor does.
    pub beats: Counter,
    pub snapshots_published: Counter,
    pub reloads: Counter,
    pub reloads_refused: Counter,
    /// Counts of SDKs that wait to be sent.
    pub analytics_queued: Counter,
    pub analytics_sent: Counter,
    /// Merged away or refused upstream.
    pub analytics_lost: Counter,
    /// Counts that a bound moved to a row without their identifier, or without their label.
    pub counts_merged_identifier: Counter,
    pub counts_merged_label: Counter,
    /// Identifiers and label fields that were cut.
    pub counts_cut_identifier: Counter,
    pub counts_cut_label: Counter,
    /// Uploads that upstream refused and that were divided.
    pub counts_divided: Counter,
    pub usage_sent: Counter,
    pub usage_lost: Counter,
    /// Since when discovery answers with no environment while earlier ones are served, milliseconds since
    /// 1970; 0: it does not.
    pub discovery_empty_since_ms: Counter,
    /// Key pairs of the last answer of discovery that were rejected.
    pub discovery_pairs_rejected: Counter,
}

/// One environment's numbers. Times are `None` until they happened.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentMetrics {
    pub name: String,
    /// Where the served document came from; `None` while there is none.
    pub source: Option<DocumentSource>,
    pub last_success: Option<SystemTime>,
    pub document_updated_at: Option<SystemTime>,
    pub polls_changed: u64,
    pub polls_unchanged: u64,
    pub polls_failed: u64,
    pub last_poll: Duration,
    /// From the document's `updated_at` to its being served, for the last change seen live.
    pub propagation: Option<Duration>,
    pub compile: Duration,
    pub document_bytes: u64,
    pub features: u64,
    pub segments: u64,
    pub identity_overrides: u64,
    /// Conditions that can never match because their operand is unusable.
    pub refused_conditions: u64,
    /// One line, secrets cut; `None` when the last poll succeeded.
    pub last_error: Option<String>,
    /// When the first of the failed polls in a row was.
    pub failing_since: Option<SystemTime>,
    /// Failed polls in a row.
    pub failures: u64,
    pub next_poll: Option<SystemTime>,
    pub realtime_connected: bool,
}

impl Metrics {
    /// For reactors on these CPUs.
    pub fn new(cores: &[usize]) -> Self {
        let reactors = cores.iter().map(|core| Arc::new(ReactorMetrics::new(*core)));
        Self {
            started: SystemTime::now(),
            reactors: reactors.collect(),
            supervisor: SupervisorMetrics::default(),
            background: BackgroundMetrics::default(),
            environments: Mutex::default(),
        }
    }

    /// Changes the numbers of one environment, known by its client-side key. Control plane only.
    pub fn environment(&self, client_side_key: &str, change: impl FnOnce(&mut EnvironmentMetrics)) {
        let mut environments = self.environments.lock().unwrap_or_else(PoisonError::into_inner);
        change(environments.entry(client_side_key.to_owned()).or_default());
    }

    /// Forgets an environment that is no longer served.
    pub fn forget_environment(&self, client_side_key: &str) {
        self.environments.lock().unwrap_or_else(PoisonError::into_inner).remove(client_side_key);
    }

    /// A copy of all environments' numbers, by client-side key.
    pub fn environments(&self) -> BTreeMap<String, EnvironmentMetrics> {
        self.environments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ReactorMetrics {
    pub fn new(core: usize) -> Self {
        Self {
            core,
            requests: Default::default(),
            rejects: Default::default(),
            durations: Histogram::default(),
            bytes_read: Counter::default(),
            bytes_written: Counter::default(),
            connections_opened: Counter::default(),
            connections_closed: Counter::default(),
            connections_refused: Counter::default(),
            connections_cut: Counter::default(),
            connections_shed: Counter::default(),
            errors_truncated: Counter::default(),
            accept_pauses: Counter::default(),
            jsonpath_exceeded: Counter::default(),
            patterns_exceeded: Counter::default(),
            bulk_refused: Counter::default(),
            access_dropped: Counter::default(),
            restarts: Counter::default(),
            snapshot_version: Counter::default(),
            snapshot_taken_ms: Counter::default(),
            beats: Counter::default(),
            lag_us: Counter::default(),
            driver: Counter::default(),
            started: Instant::now(),
        }
    }

    /// One request was answered.
    pub fn answered(&self, route: Route, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        if let Some(counter) = self.requests.get(route as usize).and_then(|classes| classes.get(class)) {
            counter.add(1);
        }
    }

    /// Bytes that were no request were refused.
    pub fn rejected(&self, reject: ParseError) {
        if let Some(counter) = self.rejects.get(reject as usize) {
            counter.add(1);
        }
    }

    /// A batch of requests, read together and answered together, took this long.
    pub fn batch(&self, requests: u64, duration: Duration) {
        self.durations.add(requests, duration);
    }

    /// A snapshot was taken into use.
    pub fn snapshot_taken(&self, version: u64) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.snapshot_taken_ms.set(elapsed_ms);
        self.snapshot_version.set(version);
    }

    /// The coarse timer went off, this much later than it should have.
    pub fn beat(&self, lag: Duration) {
        self.beats.add(1);
        self.lag_us.set(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
    }

    /// The ring flags or the poller that this reactor runs on; a name of `DRIVERS`.
    pub fn driven_by(&self, driver: &str) {
        let number = DRIVERS.iter().position(|name| *name == driver).unwrap_or(0);
        self.driver.set(number as u64);
    }

    /// The name of the driver that won; `none` before the start.
    pub fn driver(&self) -> &'static str {
        usize::try_from(self.driver.value()).ok().and_then(|n| DRIVERS.get(n)).unwrap_or(&DRIVERS[0])
    }

    /// Requests by route and class of status (1xx is 0).
    pub fn requests(&self) -> impl Iterator<Item = (Route, usize, u64)> {
        self.requests.iter().zip(Route::ALL).flat_map(|(classes, route)| {
            let counts = classes.iter().enumerate();
            counts.map(move |(class, counter)| (route, class, counter.value()))
        })
    }

    /// Requests of one route (its place in `Route::ALL`) and class of status (1xx is 0).
    pub fn requests_of(&self, route: usize, class: usize) -> u64 {
        self.requests.get(route).and_then(|classes| classes.get(class)).map_or(0, Counter::value)
    }

    /// All requests that had a route.
    pub fn answered_sum(&self) -> u64 {
        self.requests.iter().flatten().map(Counter::value).sum()
    }

    /// Refusals of one reason (its place in `ParseError::ALL`).
    pub fn rejects_of(&self, reject: usize) -> u64 {
        self.rejects.get(reject).map_or(0, Counter::value)
    }

    /// All refusals.
    pub fn rejects_sum(&self) -> u64 {
        self.rejects.iter().map(Counter::value).sum()
    }

    /// Connections open now.
    pub fn connections_open(&self) -> u64 {
        self.connections_opened.value().saturating_sub(self.connections_closed.value())
    }

    /// How long the snapshot has been in use.
    pub fn snapshot_age(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.snapshot_taken_ms.value()))
    }
}

/// Durations in buckets that grow by a quarter of an octave, as HdrHistogram has them: at most
/// 25 % wide, from 1 µs to 17 s.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; Histogram::BUCKETS],
    pub sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Histogram {
    pub const OCTAVES: usize = 24;
    /// One for all below 1 µs, four for each octave, one for all beyond.
    pub const BUCKETS: usize = 1 + 4 * Self::OCTAVES + 1;

    /// Notes that so many took so long each.
    pub fn add(&self, count: u64, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(ns)].add(count);
        self.sum_ns.add(ns.saturating_mul(count));
    }

    fn bucket(ns: u64) -> usize {
        let quarters = ns / 250;
        if quarters < 4 {
            return 0;
        }
        let octave = quarters.ilog2() as usize - 2;
        let quarter = (quarters >> octave) as usize & 3;
        (1 + 4 * octave + quarter).min(Self::BUCKETS - 1)
    }

    /// Where a bucket ends, seconds; the last one never does.
    pub fn upper_seconds(bucket: usize) -> f64 {
        match bucket {
            0 => 1e-6,
            last if last >= Self::BUCKETS - 1 => f64::INFINITY,
            other => {
                let (octave, quarter) = ((other - 1) / 4, (other - 1) % 4);
                ((250u64 << octave) * (quarter as u64 + 5)) as f64 / 1e9
            }
        }
    }

    /// How many are in each bucket.
    pub fn counts(&self) -> [u64; Self::BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        let mut ns = 100u64;
        while ns < 60_000_000_000 {
            let bucket = Histogram::bucket(ns);
            let seconds = ns as f64 / 1e9;
            assert!(seconds <= Histogram::upper_seconds(bucket) + 250e-9, "{ns} in {bucket}");
            if bucket > 0 {
                assert!(seconds >= Histogram::upper_seconds(bucket - 1), "{ns} in {bucket}");
            }
            ns += ns / 7;
        }
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    }

    #[test]
    fn requests_are_counted_by_route_and_class() {
        let metrics = ReactorMetrics::new(0);
        metrics.answered(Route::ALL[0], 200);
        metrics.answered(Route::ALL[0], 204);
        metrics.answered(Route::ALL[1], 999);
        metrics.answered(Route::ALL[1], 0);
        let counted: Vec<_> = metrics.requests().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(counted, [(Route::ALL[0], 1, 2), (Route::ALL[1], 0, 1), (Route::ALL[1], 4, 1)]);
    }

    #[test]
    fn every_place_in_the_tables_is_its_own() {
        assert!(Route::ALL.iter().enumerate().all(|(index, route)| *route as usize == index));
        assert!(ParseError::ALL.iter().enumerate().all(|(index, reject)| *reject as usize == index));
    }
}
