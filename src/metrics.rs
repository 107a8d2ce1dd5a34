//! Metrics of the process, written by each thread and read by the admin listener.
//!
//! Only its own reactor writes a [`ReactorMetrics`], with plain loads and stores on separate cache lines, so
//! that counting and reading need no lock. Only the control plane uses the locked [`Metrics::environment`].
mod counter;
mod histogram;
mod http2;
mod telemetry;
mod trait_forwarding;
mod traits;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::events::{EventFault, EventLoss, EventRefusal};
use crate::http::route::Route;
use crate::http::{ParseError, Sdk};
use crate::limits;
use crate::limits::COUNTED_ENVIRONMENTS_MAX;
pub use crate::metrics::counter::{Counter, SharedCounter};
pub use crate::metrics::histogram::Histogram;
pub use crate::metrics::http2::Http2Metrics;
pub use crate::metrics::telemetry::{OtlpSignal, SpanLoss, TelemetryMetrics};
pub use crate::metrics::trait_forwarding::{TraitForwardLoss, TraitForwardMetrics};
pub use crate::metrics::traits::TraitMetrics;

/// Metrics of threads other than the supervisor and the reactors.
#[derive(Debug, Default)]
pub struct BackgroundMetrics {
    /// Connections of the admin listener closed before they were answered.
    pub admin_connections_closed: SharedCounter,
    /// Requests to the admin listener whose `Host` is not allowed.
    pub admin_hosts_refused: SharedCounter,
    /// Event streams from upstream closed because they sent too much.
    pub realtime_floods: SharedCounter,
}

/// The metrics of stored experiment events. Gauges are set while the queue is locked.
#[derive(Debug, Default)]
pub struct EventMetrics {
    /// Events that wait to be forwarded.
    pub queued: Counter,
    /// Bytes that they take on disk.
    pub queued_bytes: Counter,
    /// How many they may take; 0 if events are not accepted.
    pub queued_bytes_max: Counter,
    /// When the oldest of them was accepted, in Unix seconds; 0 if none waits.
    pub oldest_at: Counter,
    /// Events that upstream accepted.
    pub sent: SharedCounter,
    /// Batches that upstream refused and that were divided.
    pub divided: SharedCounter,
    lost: [SharedCounter; EventLoss::ALL.len()],
    /// Events that upstream rejected in accepted batches, by its reason.
    rejected: Mutex<BTreeMap<String, u64>>,
}

impl EventMetrics {
    /// Counts events that were given up.
    pub fn lost(&self, loss: EventLoss, events: u64) {
        if let Some(counter) = self.lost.get(loss as usize) {
            counter.add(events);
        }
    }

    /// Events that were given up for this reason (its index in `EventLoss::ALL`).
    pub fn lost_of(&self, loss: usize) -> u64 {
        self.lost.get(loss).map_or(0, SharedCounter::value)
    }

    /// Counts events that upstream rejected. Beyond `limits::EVENT_REASONS_MAX` reasons they are `other`.
    pub fn rejected(&self, reason: &str, events: u64) {
        let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = rejected.contains_key(reason) || rejected.len() < limits::EVENT_REASONS_MAX;
        *rejected.entry(if is_known { reason } else { "other" }.to_owned()).or_default() += events;
    }

    /// Events that upstream rejected, by its reason.
    pub fn rejected_by_reason(&self) -> BTreeMap<String, u64> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The age of the oldest event that waits; zero if none does.
    pub fn oldest_age(&self, now: SystemTime) -> Duration {
        let oldest_at = Duration::from_secs(self.oldest_at.value());
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if oldest_at.is_zero() { Duration::ZERO } else { since_epoch.saturating_sub(oldest_at) }
    }
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    pub started: SystemTime,
    pub reactors: Vec<Arc<ReactorMetrics>>,
    pub supervisor: SupervisorMetrics,
    pub background: BackgroundMetrics,
    pub events: Arc<EventMetrics>,
    pub trait_forwarding: Arc<TraitForwardMetrics>,
    pub traits: TraitMetrics,
    pub telemetry: Arc<TelemetryMetrics>,
    environments: Mutex<BTreeMap<String, EnvironmentMetrics>>,
}

/// By status class (1xx to 5xx).
type ClassCounters = [Counter; 5];

/// The index of a status class.
fn class_of(status: u16) -> usize {
    usize::from(status / 100).clamp(1, 5) - 1
}

/// The metrics of one reactor, aligned so that no other data shares their cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub struct ReactorMetrics {
    /// The CPU it is pinned to.
    pub core: usize,
    /// By route, then by status class (1xx to 5xx).
    requests: [[Counter; 5]; Route::ALL.len()],
    rejects: [Counter; ParseError::ALL.len()],
    /// Responses to requests with a valid key, by the number of the environment and by SDK. The last row of
    /// the environments is for all that have no row.
    environments: Box<[ClassCounters]>,
    sdks: [ClassCounters; Sdk::ALL.len()],
    pub durations: Histogram,
    pub bytes_read: Counter,
    pub bytes_written: Counter,
    pub connections_opened: Counter,
    pub connections_closed: Counter,
    /// Closed on accept because the connection limit was reached.
    pub connections_refused: Counter,
    /// Accepted here and passed on to another reactor.
    pub connections_passed: Counter,
    /// Closed because the client did not read its response.
    pub write_timeouts: Counter,
    /// Closed because the buffers of all connections exceeded their memory limit.
    pub connections_evicted: Counter,
    /// Memory of the buffers of connections, and how much of it callers without a valid key use; each also as
    /// the highest value since the start.
    pub buffers: Counter,
    pub buffers_unknown: Counter,
    pub buffers_peak: Counter,
    pub buffers_unknown_peak: Counter,
    /// Times a connection waited for memory.
    pub memory_waits: Counter,
    /// 422 responses that omit some of the errors.
    pub errors_truncated: Counter,
    /// Documents sent as deltas.
    pub deltas_sent: Counter,
    /// Times a connection waited for a later turn of the event loop, so that others were answered.
    pub turn_waits: Counter,
    /// Pauses of the accept loop, mostly at the descriptor limit.
    pub accept_pauses: Counter,
    /// Requests whose JSONPath evaluation exceeded its step budget.
    pub jsonpath_exceeded: Counter,
    /// Requests whose regular expressions exceeded their step budget.
    pub patterns_exceeded: Counter,
    /// Requests whose cycles of flags exceeded their step budget.
    pub flag_cycles_exceeded: Counter,
    /// Bulk requests rejected because evaluating their identities exceeded the budget.
    pub bulk_refused: Counter,
    /// Responses whose flags were in a cache of compressed results.
    pub result_cache_hits: Counter,
    /// Responses whose flags were compressed for the request.
    pub result_cache_misses: Counter,
    /// Results removed because a cache was full.
    pub result_cache_evicted: Counter,
    /// Memory of these caches.
    pub result_cache_bytes: Counter,
    /// Access log records dropped because the queue was full.
    pub access_dropped: Counter,
    /// Experiment events that were stored.
    pub events_accepted: Counter,
    /// Events that could not be stored, by reason.
    events_refused: [Counter; EventRefusal::ALL.len()],
    /// Rejected events, by fault.
    events_rejected: [Counter; EventFault::ALL.len()],
    /// Writes of traits that were answered but not kept, because too many waited.
    pub traits_not_kept: Counter,
    pub http2: Http2Metrics,
    /// Restarts after a panic.
    pub restarts: Counter,
    /// Version of the snapshot in use.
    pub snapshot_version: Counter,
    /// When the snapshot was taken into use, in milliseconds since the process started.
    pub snapshot_taken_ms: Counter,
    /// Ticks of the coarse timer; stops increasing if the reactor is stuck.
    pub ticks: Counter,
    /// Delay of the last tick, in microseconds.
    pub lag_us: Counter,
    /// Index of the driver in `DRIVERS`.
    driver: Counter,
    started: Instant,
}

/// Names of drivers.
const DRIVERS: [&str; 4] = ["none", "uring_coop_taskrun", "uring", "epoll"];

/// The metrics of the supervisor.
#[derive(Debug, Default)]
pub struct SupervisorMetrics {
    /// Iterations of the control loop; stops increasing if the supervisor is stuck.
    pub ticks: Counter,
    pub snapshots_published: Counter,
    pub reloads: Counter,
    pub reloads_refused: Counter,
    /// Documents that came as deltas, and deltas that were not usable.
    pub deltas_applied: Counter,
    pub deltas_refused: Counter,
    /// Flag counts of SDKs waiting to be uploaded.
    pub analytics_queued: Counter,
    pub analytics_sent: Counter,
    /// Dropped at a limit, or rejected by upstream.
    pub analytics_lost: Counter,
    /// Counts merged into a row without identifier, because of a limit.
    pub counts_merged_identifier: Counter,
    /// Counts merged into a row without label, because of a limit.
    pub counts_merged_label: Counter,
    /// Truncated identifiers.
    pub counts_cut_identifier: Counter,
    /// Truncated label fields.
    pub counts_cut_label: Counter,
    /// Uploads that upstream rejected and that were split.
    pub counts_divided: Counter,
    pub usage_sent: Counter,
    pub usage_lost: Counter,
    /// Since when discovery returns no environments while the previous ones are served, in Unix milliseconds;
    /// 0 if it returns some.
    pub discovery_empty_since_ms: Counter,
    /// Key pairs of the last discovery response that were rejected.
    pub discovery_pairs_rejected: Counter,
}

/// The metrics of one environment, beside its slot in the published snapshot. Times are `None` before the
/// first such event.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentMetrics {
    pub polls_changed: u64,
    pub polls_unchanged: u64,
    pub polls_failed: u64,
    pub last_poll: Duration,
    /// Time from the document's `updated_at` until it was served, for the last change received while running.
    pub propagation: Option<Duration>,
    pub compile: Duration,
    pub document_bytes: u64,
    /// Conditions that can never match because their operand is invalid.
    pub refused_conditions: u64,
    /// When the first of the consecutive failed polls was.
    pub failing_since: Option<SystemTime>,
    /// Consecutive failed polls.
    pub failures: u64,
    pub next_poll: Option<SystemTime>,
    pub realtime_connected: bool,
}

impl Metrics {
    /// Metrics for one reactor on each of these CPUs.
    pub fn new(cores: &[usize]) -> Self {
        let reactors = cores.iter().map(|core| Arc::new(ReactorMetrics::new(*core)));
        Self {
            started: SystemTime::now(),
            reactors: reactors.collect(),
            supervisor: SupervisorMetrics::default(),
            background: BackgroundMetrics::default(),
            events: Arc::default(),
            trait_forwarding: Arc::default(),
            traits: TraitMetrics::default(),
            telemetry: Arc::default(),
            environments: Mutex::default(),
        }
    }

    /// Updates the metrics of the environment with this client-side key. Must not be called by reactors,
    /// because it takes a lock.
    pub fn environment(&self, client_side_key: &str, change: impl FnOnce(&mut EnvironmentMetrics)) {
        let mut environments = self.environments.lock().unwrap_or_else(PoisonError::into_inner);
        change(environments.entry(client_side_key.to_owned()).or_default());
    }

    /// Removes an environment that is no longer served.
    pub fn remove_environment(&self, client_side_key: &str) {
        self.environments.lock().unwrap_or_else(PoisonError::into_inner).remove(client_side_key);
    }

    /// A copy of the metrics of each environment that was polled or has an event stream, by client-side key.
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
            environments: (0..COUNTED_ENVIRONMENTS_MAX).map(|_| ClassCounters::default()).collect(),
            sdks: Default::default(),
            durations: Histogram::default(),
            bytes_read: Counter::default(),
            bytes_written: Counter::default(),
            connections_opened: Counter::default(),
            connections_closed: Counter::default(),
            connections_refused: Counter::default(),
            connections_passed: Counter::default(),
            write_timeouts: Counter::default(),
            connections_evicted: Counter::default(),
            buffers: Counter::default(),
            buffers_unknown: Counter::default(),
            buffers_peak: Counter::default(),
            buffers_unknown_peak: Counter::default(),
            memory_waits: Counter::default(),
            errors_truncated: Counter::default(),
            deltas_sent: Counter::default(),
            turn_waits: Counter::default(),
            accept_pauses: Counter::default(),
            jsonpath_exceeded: Counter::default(),
            patterns_exceeded: Counter::default(),
            flag_cycles_exceeded: Counter::default(),
            bulk_refused: Counter::default(),
            result_cache_hits: Counter::default(),
            result_cache_misses: Counter::default(),
            result_cache_evicted: Counter::default(),
            result_cache_bytes: Counter::default(),
            access_dropped: Counter::default(),
            events_accepted: Counter::default(),
            events_refused: Default::default(),
            events_rejected: Default::default(),
            traits_not_kept: Counter::default(),
            http2: Http2Metrics::default(),
            restarts: Counter::default(),
            snapshot_version: Counter::default(),
            snapshot_taken_ms: Counter::default(),
            ticks: Counter::default(),
            lag_us: Counter::default(),
            driver: Counter::default(),
            started: Instant::now(),
        }
    }

    /// Counts a response.
    pub fn answered(&self, route: Route, status: u16) {
        let classes = self.requests.get(route as usize);
        if let Some(counter) = classes.and_then(|classes| classes.get(class_of(status))) {
            counter.add(1);
        }
    }

    /// Counts a response to a request with a valid key. `number` is that of the environment's slot.
    pub fn answered_for(&self, number: u64, sdk: Sdk, status: u16) {
        let rows = [self.environments.get(environment_row(number)), self.sdks.get(sdk as usize)];
        for counter in rows.into_iter().flatten().filter_map(|classes| classes.get(class_of(status))) {
            counter.add(1);
        }
    }

    /// Responses of the environment with this number, by status class; `None`: of all without a row.
    pub fn environment_answers(&self, number: Option<u64>) -> [u64; 5] {
        let row = number.map_or(COUNTED_ENVIRONMENTS_MAX - 1, environment_row);
        self.environments
            .get(row)
            .map_or([0; 5], |classes| std::array::from_fn(|class| classes[class].value()))
    }

    /// Responses to requests of an SDK, by status class.
    pub fn sdk_answers(&self, sdk: Sdk) -> [u64; 5] {
        std::array::from_fn(|class| self.sdks[sdk as usize][class].value())
    }

    /// Counts a rejected request.
    pub fn rejected(&self, reject: ParseError) {
        if let Some(counter) = self.rejects.get(reject as usize) {
            counter.add(1);
        }
    }

    /// Counts events that could not be stored.
    pub fn events_refused(&self, refusal: EventRefusal, events: u64) {
        if let Some(counter) = self.events_refused.get(refusal as usize) {
            counter.add(events);
        }
    }

    /// Counts rejected events, by fault.
    pub fn events_rejected(&self, events: &[u32; EventFault::ALL.len()]) {
        for (counter, count) in self.events_rejected.iter().zip(events) {
            if *count > 0 {
                counter.add(u64::from(*count));
            }
        }
    }

    /// Refused events with this reason (its index in `EventRefusal::ALL`).
    pub fn events_refused_of(&self, refusal: usize) -> u64 {
        self.events_refused.get(refusal).map_or(0, Counter::value)
    }

    /// Rejected events with this fault (its index in `EventFault::ALL`).
    pub fn events_rejected_of(&self, fault: usize) -> u64 {
        self.events_rejected.get(fault).map_or(0, Counter::value)
    }

    /// Adds the duration of a batch: requests that were read and answered together.
    pub fn batch(&self, requests: u64, duration: Duration) {
        self.durations.add(requests, duration);
    }

    /// Records that a snapshot was taken into use.
    pub fn snapshot_taken(&self, version: u64) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.snapshot_taken_ms.set(elapsed_ms);
        self.snapshot_version.set(version);
    }

    /// Records a tick of the coarse timer and its delay.
    pub fn beat(&self, lag: Duration) {
        self.ticks.add(1);
        self.lag_us.set(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
    }

    /// Records the driver of this reactor: a name in `DRIVERS`.
    pub fn set_driver(&self, driver: &str) {
        let number = DRIVERS.iter().position(|name| *name == driver).unwrap_or(0);
        self.driver.set(number as u64);
    }

    /// The name of the driver; `none` before the reactor has started.
    pub fn driver(&self) -> &'static str {
        usize::try_from(self.driver.value()).ok().and_then(|n| DRIVERS.get(n)).unwrap_or(&DRIVERS[0])
    }

    /// Requests by route and status class (1xx is 0).
    pub fn requests(&self) -> impl Iterator<Item = (Route, usize, u64)> {
        self.requests.iter().zip(Route::ALL).flat_map(|(classes, route)| {
            let counts = classes.iter().enumerate();
            counts.map(move |(class, counter)| (route, class, counter.value()))
        })
    }

    /// Requests of a route (its index in `Route::ALL`) and a status class (1xx is 0).
    pub fn requests_of(&self, route: usize, class: usize) -> u64 {
        self.requests.get(route).and_then(|classes| classes.get(class)).map_or(0, Counter::value)
    }

    /// All requests that were routed.
    pub fn answered_sum(&self) -> u64 {
        self.requests.iter().flatten().map(Counter::value).sum()
    }

    /// Rejected requests with this reason (its index in `ParseError::ALL`).
    pub fn rejects_of(&self, reject: usize) -> u64 {
        self.rejects.get(reject).map_or(0, Counter::value)
    }

    /// All rejected requests.
    pub fn rejects_sum(&self) -> u64 {
        self.rejects.iter().map(Counter::value).sum()
    }

    /// Currently open connections.
    pub fn connections_open(&self) -> u64 {
        self.connections_opened.value().saturating_sub(self.connections_closed.value())
    }

    /// Time since the snapshot was taken into use.
    pub fn snapshot_age(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.snapshot_taken_ms.value()))
    }
}

fn environment_row(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).min(COUNTED_ENVIRONMENTS_MAX - 1)
}

/// Whether the responses of the environment with this number are counted separately.
pub fn is_counted_separately(number: u64) -> bool {
    environment_row(number) < COUNTED_ENVIRONMENTS_MAX - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_requests_by_route_and_class() {
        let metrics = ReactorMetrics::new(0);
        metrics.answered(Route::ALL[0], 200);
        metrics.answered(Route::ALL[0], 204);
        metrics.answered(Route::ALL[1], 999);
        metrics.answered(Route::ALL[1], 0);
        let counted: Vec<_> = metrics.requests().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(counted, [(Route::ALL[0], 1, 2), (Route::ALL[1], 0, 1), (Route::ALL[1], 4, 1)]);
    }

    #[test]
    fn counts_answers_by_environment_and_sdk_within_a_bound() {
        let metrics = ReactorMetrics::new(0);
        let last = COUNTED_ENVIRONMENTS_MAX as u64 - 2;
        for number in [1, 1, last, last + 1, last + 2, u64::MAX] {
            metrics.answered_for(number, Sdk::Go, 200);
        }
        metrics.answered_for(1, Sdk::Other, 503);
        assert_eq!(metrics.environment_answers(Some(1)), [0, 2, 0, 0, 1]);
        assert_eq!(metrics.environment_answers(Some(last)), [0, 1, 0, 0, 0]);
        assert_eq!(metrics.environment_answers(None), [0, 3, 0, 0, 0], "all others share a row");
        assert!(is_counted_separately(last) && !is_counted_separately(last + 1));
        assert_eq!((metrics.sdk_answers(Sdk::Go)[1], metrics.sdk_answers(Sdk::Other)[4]), (6, 1));
    }

    #[test]
    fn table_indices_match_enum_values() {
        assert!(Route::ALL.iter().enumerate().all(|(index, route)| *route as usize == index));
        assert!(Sdk::ALL.iter().enumerate().all(|(index, sdk)| *sdk as usize == index));
        assert!(ParseError::ALL.iter().enumerate().all(|(index, reject)| *reject as usize == index));
    }
}
