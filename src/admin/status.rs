//! `/status.json`: metrics and state as JSON, for the status page and for programs.
//!
//! Contains current totals and states only; clients compute rates from two readings. Keys are truncated.
use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::admin::answers::{classes, environment_answers, sdk_answers};
use crate::admin::labels::{source_name, unix_seconds};
use crate::admin::process::{Process, reactor_cpu_seconds};
use crate::admin::traits;
use crate::admin::view::{EnvironmentView, View};
use crate::events::{EventFault, EventLoss, EventRefusal};
use crate::http::Sdk;
use crate::metrics::{Histogram, Metrics, ReactorMetrics};
use crate::snapshot::Environment;
use crate::version;

/// The body of `/status.json`.
pub fn render(view: &View) -> String {
    let metrics = &*view.metrics;
    let now = SystemTime::now();
    let process = Process::read();
    let uptime = now.duration_since(metrics.started).unwrap_or_default();
    let cpu = reactor_cpu_seconds(metrics.reactors.len());
    let reactors: Vec<Value> =
        metrics.reactors.iter().zip(cpu).enumerate().map(|(i, (r, cpu))| reactor(i, r, cpu)).collect();
    let answers: HashMap<String, [u64; 5]> = environment_answers(view).into_iter().collect();
    let (not_ready_reason, _) = view.readiness();
    let environments: Vec<Value> = view
        .environments()
        .iter()
        .map(|environment| {
            let mut described = describe_environment(environment);
            described["answers"] = json!(answers.get(&environment.label).map(|counts| classes(*counts)));
            described
        })
        .collect();
    let errors: Vec<Value> = view
        .log
        .recent()
        .into_iter()
        .map(|record| {
            let (time, level) = (unix_seconds(record.time), record.level.name());
            json!({"time": time, "level": level, "event": record.event, "text": record.text})
        })
        .collect();
    let uppers: Vec<Value> = (0..Histogram::BUCKETS).map(|b| json!(Histogram::upper_seconds(b))).collect();
    let status = json!({
        "version": version::VERSION,
        "commit": version::COMMIT,
        "commit_date": version::COMMIT_DATE,
        "target": version::TARGET,
        "now": unix_seconds(now),
        "started": unix_seconds(metrics.started),
        "uptime_seconds": uptime.as_secs_f64(),
        "process": {
            "pid": std::process::id(),
            "resident_bytes": process.resident_bytes,
            "cpu_seconds": process.cpu_seconds,
            "open_fds": process.open_fds,
            "max_fds": process.max_fds,
            "threads": process.threads,
        },
        "ready": not_ready_reason.is_none(),
        "not_ready_reason": not_ready_reason,
        "reactors": reactors,
        "duration_upper_seconds": uppers,
        "requests": requests(&metrics.reactors),
        "sdks": sdks(metrics),
        "environments": environments,
        "snapshots_published": metrics.supervisor.snapshots_published.value(),
        "analytics": {
            "queued": metrics.supervisor.analytics_queued.value(),
            "sent": metrics.supervisor.analytics_sent.value(),
            "lost": metrics.supervisor.analytics_lost.value(),
        },
        "events": events(metrics, now),
        "traits": traits::describe(metrics),
        "discovery_empty_since": discovery_empty_since(metrics),
        "log_records_dropped": view.log.dropped(),
        "errors": errors,
    });
    status.to_string()
}

/// Experiment events, in sums over all reasons.
fn events(metrics: &Metrics, now: SystemTime) -> Value {
    let numbers = &metrics.events;
    let sum = |number: &dyn Fn(&ReactorMetrics) -> u64| -> u64 {
        metrics.reactors.iter().map(|reactor| number(reactor)).sum()
    };
    json!({
        "accepted": sum(&|reactor| reactor.events_accepted.value()),
        "rejected": sum(&|reactor| (0..EventFault::ALL.len()).map(|fault| reactor.events_rejected_of(fault)).sum()),
        "refused": sum(&|reactor| (0..EventRefusal::ALL.len()).map(|one| reactor.events_refused_of(one)).sum()),
        "queued": numbers.queued.value(),
        "queued_bytes": numbers.queued_bytes.value(),
        "oldest_seconds": numbers.oldest_age(now).as_secs(),
        "sent": numbers.sent.value(),
        "dropped": (0..EventLoss::ALL.len()).map(|loss| numbers.lost_of(loss)).sum::<u64>(),
        "rejected_upstream": numbers.rejected_by_reason().values().sum::<u64>(),
    })
}

/// Since when discovery returns no environments, in Unix seconds. `None` if it returns some.
fn discovery_empty_since(metrics: &Metrics) -> Option<f64> {
    let since_ms = metrics.supervisor.discovery_empty_since_ms.value();
    (since_ms > 0).then(|| since_ms as f64 / 1e3)
}

/// `{"python-sdk": {"2xx": 12}}`, without zeros.
fn sdks(metrics: &Metrics) -> BTreeMap<&'static str, BTreeMap<String, u64>> {
    let counted = Sdk::ALL.into_iter().map(|sdk| (sdk.name(), classes(sdk_answers(metrics, sdk))));
    counted.filter(|(_, counts)| !counts.is_empty()).collect()
}

fn reactor(index: usize, reactor: &ReactorMetrics, cpu_seconds: Option<f64>) -> Value {
    json!({
        "cpu_seconds": cpu_seconds,
        "reactor": index,
        "core": reactor.core,
        "driver": reactor.driver(),
        "requests": reactor.answered_sum(),
        "rejects": reactor.rejects_sum(),
        "connections_open": reactor.connections_open(),
        "connections_opened": reactor.connections_opened.value(),
        "connections_refused": reactor.connections_refused.value(),
        "connections_cut": reactor.write_timeouts.value(),
        "connections_shed": reactor.connections_evicted.value(),
        "accept_pauses": reactor.accept_pauses.value(),
        "bytes_read": reactor.bytes_read.value(),
        "bytes_written": reactor.bytes_written.value(),
        "restarts": reactor.restarts.value(),
        "loop_lag_seconds": reactor.lag_us.value() as f64 / 1e6,
        "snapshot_version": reactor.snapshot_version.value(),
        "snapshot_age_seconds": reactor.snapshot_age().as_secs_f64(),
        "durations": reactor.durations.counts().as_slice(),
        "duration_sum_seconds": reactor.durations.sum_ns.value() as f64 / 1e9,
    })
}

/// `{"flags": {"2xx": 12}}`, without zeros.
fn requests(reactors: &[std::sync::Arc<ReactorMetrics>]) -> BTreeMap<&'static str, BTreeMap<String, u64>> {
    let mut routes: BTreeMap<&'static str, BTreeMap<String, u64>> = BTreeMap::new();
    for (route, class, count) in reactors.iter().flat_map(|reactor| reactor.requests()) {
        if count > 0 {
            let status = format!("{}xx", class + 1);
            *routes.entry(route.name()).or_default().entry(status).or_default() += count;
        }
    }
    routes
}

fn describe_environment(environment: &EnvironmentView) -> Value {
    let EnvironmentView { label, state, slot, metrics } = environment;
    let sizes = slot.environment().map(Environment::sizes);
    json!({
        "state": state,
        "client_side_key": label,
        "name": sizes.map_or("", |sizes| &sizes.name),
        "source": source_name(slot.document.as_ref().map(|document| document.source)),
        "last_success": slot.freshness.last_success().map(unix_seconds),
        "document_updated_at": environment.document_updated_at().map(unix_seconds),
        "polls_changed": metrics.polls_changed,
        "polls_unchanged": metrics.polls_unchanged,
        "polls_failed": metrics.polls_failed,
        "last_poll_seconds": metrics.last_poll.as_secs_f64(),
        "propagation_seconds": metrics.propagation.map(|delay| delay.as_secs_f64()),
        "compile_seconds": metrics.compile.as_secs_f64(),
        "document_bytes": metrics.document_bytes,
        "features": sizes.map_or(0, |sizes| sizes.features),
        "segments": sizes.map_or(0, |sizes| sizes.segments),
        "identity_overrides": sizes.map_or(0, |sizes| sizes.identity_overrides),
        "refused_conditions": metrics.refused_conditions,
        "realtime_connected": metrics.realtime_connected,
        "last_error": slot.last_error.as_ref().map(|error| &*error.text),
        "failing_since": metrics.failing_since.map(unix_seconds),
        "failures": metrics.failures,
        "next_poll": metrics.next_poll.map(unix_seconds),
    })
}
