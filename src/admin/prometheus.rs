//! The metrics of `/metrics` and of OTLP.
//!
//! Names start with `edge_proxy_`, counters end in `_total`, units are base units (seconds, bytes). The
//! labels of the samples of a family are unique.
use std::fmt::Display;
use std::time::SystemTime;

use crate::admin::deltas;
use crate::admin::exposition::{Exposition, MetricBuckets, MetricFamily};
use crate::admin::labels::unix_seconds;
use crate::admin::process::Process;
use crate::admin::view::View;
use crate::admin::{answers, environments, traits};
use crate::events::{EventFault, EventLoss, EventRefusal};
use crate::http::h2::frame::ErrorCode;
use crate::http::route::Route;
use crate::metrics::{Histogram, Metrics, OtlpSignal, ReactorMetrics, SpanLoss};

/// A family whose one sample is a sum over all reactors: name, kind, help and number.
type ReactorSum = (&'static str, &'static str, &'static str, fn(&ReactorMetrics) -> u64);

/// Connections, bytes, and the limits that requests met.
const TRAFFIC: &[ReactorSum] = &[
    ("http_received_bytes_total", "counter", "Bytes read from clients.", |r| r.bytes_read.value()),
    ("http_sent_bytes_total", "counter", "Bytes written to clients.", |r| r.bytes_written.value()),
    ("connections_opened_total", "counter", "Connections accepted.", |r| r.connections_opened.value()),
    (
        "connections_refused_total",
        "counter",
        "Connections closed on accept because server.connections_max was reached.",
        |r| r.connections_refused.value(),
    ),
    (
        "connections_passed_total",
        "counter",
        "Connections passed on to a reactor with fewer (server.spread).",
        |r| r.connections_passed.value(),
    ),
    (
        "connections_cut_total",
        "counter",
        "Connections closed because the client did not read its response within server.timeout_write.",
        |r| r.write_timeouts.value(),
    ),
    (
        "connections_shed_total",
        "counter",
        "Connections closed because the buffers of waiting connections exceeded their memory limit.",
        |r| r.connections_evicted.value(),
    ),
    (
        "connection_buffers_bytes",
        "gauge",
        "Memory of the buffers of connections above their idle size.",
        |r| r.buffers.value(),
    ),
    (
        "connection_buffers_unknown_bytes",
        "gauge",
        "Of this, requests without a response yet and responses to callers without a valid key.",
        |r| r.buffers_unknown.value(),
    ),
    (
        "connection_buffers_peak_bytes",
        "gauge",
        "The highest memory of the buffers of connections since the start.",
        |r| r.buffers_peak.value(),
    ),
    (
        "connection_buffers_unknown_peak_bytes",
        "gauge",
        "The highest memory of requests without a response yet and of callers without a valid key.",
        |r| r.buffers_unknown_peak.value(),
    ),
    (
        "connection_buffers_waits_total",
        "counter",
        "Times a connection waited until others had released their buffers.",
        |r| r.memory_waits.value(),
    ),
    ("errors_truncated_total", "counter", "422 responses that list only the first 100 errors.", |r| {
        r.errors_truncated.value()
    }),
    ("accept_pauses_total", "counter", "Pauses of the accept loop, mostly at the descriptor limit.", |r| {
        r.accept_pauses.value()
    }),
    ("connections_open", "gauge", "Connections open now.", ReactorMetrics::connections_open),
    (
        "jsonpath_budget_exceeded_total",
        "counter",
        "Requests whose JSONPath evaluation exceeded its step budget; the conditions affected did not match.",
        |r| r.jsonpath_exceeded.value(),
    ),
    (
        "regex_budget_exceeded_total",
        "counter",
        "Requests whose regular expressions exceeded their step budget; the conditions affected did not match.",
        |r| r.patterns_exceeded.value(),
    ),
    (
        "flag_cycle_budget_exceeded_total",
        "counter",
        "Requests whose cycles of flags exceeded their step budget; flags not resolved by then were treated as in a cycle.",
        |r| r.flag_cycles_exceeded.value(),
    ),
    (
        "bulk_refused_total",
        "counter",
        "Bulk requests rejected because evaluating their identities exceeded the budget.",
        |r| r.bulk_refused.value(),
    ),
    (
        "access_records_dropped_total",
        "counter",
        "Access log records dropped because their queue was full.",
        |r| r.access_dropped.value(),
    ),
];

/// The caches of compressed results.
const RESULT_CACHES: &[ReactorSum] = &[
    (
        "result_cache_hits_total",
        "counter",
        "Answers with gzip whose flags were taken from the cache of compressed results.",
        |r| r.result_cache_hits.value(),
    ),
    (
        "result_cache_misses_total",
        "counter",
        "Answers with gzip whose flags were compressed for the request.",
        |r| r.result_cache_misses.value(),
    ),
    ("result_cache_evicted_total", "counter", "Results removed from the cache because it was full.", |r| {
        r.result_cache_evicted.value()
    }),
    ("result_cache_bytes", "gauge", "Memory of the caches of compressed results.", |r| {
        r.result_cache_bytes.value()
    }),
];

/// All metrics, as they are now.
pub fn collect(view: &View) -> Vec<MetricFamily> {
    let mut text = Exposition::default();
    let metrics = &*view.metrics;
    text.family("info", "gauge", "Version, commit, date of the commit and target of the running program.");
    text.sample("info", &crate::version::LABELS, 1u64);
    requests(&mut text, metrics);
    answers::export(&mut text, view);
    durations(&mut text, metrics);
    sums(&mut text, metrics, TRAFFIC);
    sums(&mut text, metrics, RESULT_CACHES);
    http2(&mut text, metrics);
    reactors(&mut text, metrics);
    answers::export_reactor_cpu(&mut text, metrics);
    supervisor(&mut text, metrics);
    deltas::export(&mut text, metrics);
    events(&mut text, metrics);
    traits::export(&mut text, metrics);
    background(&mut text, metrics);
    environments::export(&mut text, view);
    text.single(
        "log_records_dropped_total",
        "counter",
        "Log records dropped because the queue was full.",
        view.log.dropped(),
    );
    text.single(
        "access_records_unwritten_total",
        "counter",
        "Access log records lost because logging.access_log_file could not be written.",
        view.log.access_unwritten(),
    );
    let (reason, _) = view.readiness();
    text.single("ready", "gauge", "1 if the proxy is ready.", u8::from(reason.is_none()));
    telemetry(&mut text, metrics);
    process(&mut text, metrics);
    text.into_families()
}

/// What is exported by OTLP, and what is lost on the way.
fn telemetry(text: &mut Exposition, metrics: &Metrics) {
    let numbers = &metrics.telemetry;
    let help = "Exports to a collector (OTEL_EXPORTER_OTLP_ENDPOINT), by signal and result.";
    text.family("otlp_exports_total", "counter", help);
    for (index, signal) in OtlpSignal::ALL.iter().enumerate() {
        for (result, count) in ["sent", "failed"].iter().zip(numbers.exports_of(index)) {
            text.sample("otlp_exports_total", &[("signal", &signal.name()), ("result", result)], count);
        }
    }
    let help = "Spans that a collector accepted.";
    text.single("spans_exported_total", "counter", help, numbers.spans_exported.value());
    text.family("spans_dropped_total", "counter", "Spans that were not exported, by reason.");
    for (index, loss) in SpanLoss::ALL.iter().enumerate() {
        text.sample("spans_dropped_total", &[("reason", &loss.name())], numbers.lost_of(index));
    }
}

fn sum(metrics: &Metrics, number: impl Fn(&ReactorMetrics) -> u64) -> u64 {
    metrics.reactors.iter().map(|reactor| number(reactor)).sum()
}

fn requests(text: &mut Exposition, metrics: &Metrics) {
    text.family("http_requests_total", "counter", "Requests answered, by route and status class.");
    for (index, route) in Route::ALL.iter().enumerate() {
        for class in 0..5 {
            let count = sum(metrics, |reactor| reactor.requests_of(index, class));
            // 2xx is exported from the start, so that the first requests show in a rate.
            if count > 0 || class == 1 {
                let status = format!("{}xx", class + 1);
                text.sample("http_requests_total", &[("route", &route.name()), ("status", &status)], count);
            }
        }
    }
    text.family(
        "http_rejects_total",
        "counter",
        "Requests rejected for their framing, coding, size or a timeout, by reason.",
    );
    for (index, reject) in crate::http::ParseError::ALL.iter().enumerate() {
        let count = sum(metrics, |reactor| reactor.rejects_of(index));
        text.sample("http_rejects_total", &[("reason", &reject.name())], count);
    }
}

/// Exports one bucket per octave; the status page uses the finer ones.
fn durations(text: &mut Exposition, metrics: &Metrics) {
    let mut counts = [0u64; Histogram::BUCKETS];
    for reactor in &metrics.reactors {
        counts.iter_mut().zip(reactor.durations.counts()).for_each(|(sum, count)| *sum += count);
    }
    let (mut below, mut count) = (Vec::new(), 0);
    for (index, own) in counts.iter().enumerate() {
        count += own;
        if index.is_multiple_of(4) {
            below.push((Histogram::upper_seconds(index), count));
        }
    }
    let sum = sum(metrics, |reactor| reactor.durations.sum_ns.value()) as f64 / 1e9;
    let help = "Time from reading a batch of requests to passing its responses to the kernel.";
    text.histogram("http_request_duration_seconds", help, MetricBuckets { below, count, sum });
}

fn sums(text: &mut Exposition, metrics: &Metrics, rows: &[ReactorSum]) {
    for (name, kind, help, number) in rows {
        text.single(name, kind, help, sum(metrics, number));
    }
}

fn http2(text: &mut Exposition, metrics: &Metrics) {
    let help = "HTTP/2 connections open now.";
    text.single("http2_connections", "gauge", help, sum(metrics, |r| r.http2.connections_open()));
    let help = "HTTP/2 streams opened by clients.";
    text.single("http2_streams_total", "counter", help, sum(metrics, |r| r.http2.streams.value()));
    text.family("http2_resets_total", "counter", "HTTP/2 streams reset, by side.");
    type Row = (&'static str, fn(&ReactorMetrics) -> u64);
    let sides: [Row; 2] =
        [("client", |r| r.http2.resets_by_client.value()), ("server", |r| r.http2.resets_by_server.value())];
    for (by, number) in sides {
        text.sample("http2_resets_total", &[("by", &by)], sum(metrics, number));
    }
    text.family("http2_goaway_total", "counter", "HTTP/2 connections ended by the proxy, by error code.");
    for (index, code) in ErrorCode::GOAWAY.iter().enumerate() {
        let count = sum(metrics, |reactor| reactor.http2.goaway_of(index));
        text.sample("http2_goaway_total", &[("code", &code.name())], count);
    }
    let help = "HTTP/2 responses that waited for the client's flow-control window.";
    text.single(
        "http2_window_stalls_total",
        "counter",
        help,
        sum(metrics, |r| r.http2.window_stalls.value()),
    );
}

fn reactors(text: &mut Exposition, metrics: &Metrics) {
    type Row = (&'static str, &'static str, &'static str, fn(&ReactorMetrics) -> f64);
    text.family("reactor_info", "gauge", "CPU and I/O driver of each reactor.");
    for (index, reactor) in metrics.reactors.iter().enumerate() {
        let labels: [(&str, &dyn Display); 3] =
            [("reactor", &index), ("core", &reactor.core), ("driver", &reactor.driver())];
        text.sample("reactor_info", &labels, 1u64);
    }
    let rows: [Row; 7] = [
        ("reactor_requests_total", "counter", "Requests answered by each reactor.", |r| {
            r.answered_sum() as f64
        }),
        ("reactor_connections_open", "gauge", "Connections open on each reactor.", |r| {
            r.connections_open() as f64
        }),
        ("reactor_restarts_total", "counter", "Restarts of the reactor after a panic.", |r| {
            r.restarts.value() as f64
        }),
        ("reactor_loop_lag_seconds", "gauge", "Delay of the reactor's last timer.", |r| {
            r.lag_us.value() as f64 / 1e6
        }),
        ("reactor_turn_waits_total", "counter", "Waits for a later turn of the event loop.", |r| {
            r.turn_waits.value() as f64
        }),
        ("reactor_snapshot_version", "gauge", "Version of the snapshot that the reactor serves.", |r| {
            r.snapshot_version.value() as f64
        }),
        (
            "reactor_snapshot_age_seconds",
            "gauge",
            "Time since the reactor took its snapshot into use.",
            |r| r.snapshot_age().as_secs_f64(),
        ),
    ];
    for (name, kind, help, number) in rows {
        text.family(name, kind, help);
        for (index, reactor) in metrics.reactors.iter().enumerate() {
            text.sample(name, &[("reactor", &index)], number(reactor));
        }
    }
}

fn supervisor(text: &mut Exposition, metrics: &Metrics) {
    let numbers = &metrics.supervisor;
    let rows = [
        (
            "snapshots_published_total",
            "counter",
            "Snapshots sent to the reactors.",
            &numbers.snapshots_published,
        ),
        ("reloads_total", "counter", "Configuration reloads that were applied.", &numbers.reloads),
        (
            "reloads_refused_total",
            "counter",
            "Configuration reloads that were rejected.",
            &numbers.reloads_refused,
        ),
        (
            "analytics_queued",
            "gauge",
            "Flag counts of SDKs waiting to be uploaded.",
            &numbers.analytics_queued,
        ),
        ("analytics_sent_total", "counter", "Flag counts accepted by upstream.", &numbers.analytics_sent),
        ("analytics_lost_total", "counter", "Flag counts lost.", &numbers.analytics_lost),
        ("usage_sent_total", "counter", "Requests reported to upstream as usage.", &numbers.usage_sent),
        ("usage_lost_total", "counter", "Requests whose usage report was lost.", &numbers.usage_lost),
    ];
    for (name, kind, help, counter) in rows {
        text.single(name, kind, help, counter.value());
    }
    counts_bounded(text, metrics);
}

/// Effects of the limits on SDKs' flag counts.
fn counts_bounded(text: &mut Exposition, metrics: &Metrics) {
    let numbers = &metrics.supervisor;
    let families = [
        (
            "counts_merged_total",
            "without",
            "Flag counts merged into a coarser row by a limit.",
            [&numbers.counts_merged_identifier, &numbers.counts_merged_label],
        ),
        (
            "counts_cut_total",
            "field",
            "Values sent with flag counts that were truncated.",
            [&numbers.counts_cut_identifier, &numbers.counts_cut_label],
        ),
    ];
    for (name, label, help, counters) in families {
        text.family(name, "counter", help);
        for (value, counter) in ["identifier", "label"].iter().zip(counters) {
            text.sample(name, &[(label, value)], counter.value());
        }
    }
    let help = "Uploads of counts that upstream rejected and that were split.";
    text.single("counts_divided_total", "counter", help, numbers.counts_divided.value());
}

/// Experiment events, from their acceptance until upstream has them.
fn events(text: &mut Exposition, metrics: &Metrics) {
    let numbers = &metrics.events;
    let accepted = sum(metrics, |reactor| reactor.events_accepted.value());
    text.single("events_accepted_total", "counter", "Experiment events stored and answered 202.", accepted);
    let help = "Experiment events rejected for their content, by the member that is invalid.";
    text.family("events_rejected_total", "counter", help);
    for (index, fault) in EventFault::ALL.iter().enumerate() {
        let count = sum(metrics, |reactor| reactor.events_rejected_of(index));
        text.sample("events_rejected_total", &[("member", &fault.name())], count);
    }
    let help = "Experiment events answered 503 because they could not be stored, by reason.";
    text.family("events_refused_total", "counter", help);
    for (index, refusal) in EventRefusal::ALL.iter().enumerate() {
        let count = sum(metrics, |reactor| reactor.events_refused_of(index));
        text.sample("events_refused_total", &[("reason", &refusal.name())], count);
    }
    let age = numbers.oldest_age(SystemTime::now()).as_secs();
    let bytes_max = numbers.queued_bytes_max.value();
    let rows: [(_, _, _, u64); 6] = [
        ("events_queued", "gauge", "Experiment events waiting to be forwarded.", numbers.queued.value()),
        ("events_queued_bytes", "gauge", "Disk space of these events.", numbers.queued_bytes.value()),
        ("events_queued_bytes_max", "gauge", "The limit of that; 0 if events are not accepted.", bytes_max),
        ("events_oldest_seconds", "gauge", "Age of the oldest of these events; 0 if none waits.", age),
        ("events_sent_total", "counter", "Experiment events accepted by upstream.", numbers.sent.value()),
        (
            "events_divided_total",
            "counter",
            "Batches that upstream refused and that were divided.",
            numbers.divided.value(),
        ),
    ];
    for (name, kind, help, value) in rows {
        text.single(name, kind, help, value);
    }
    text.family("events_dropped_total", "counter", "Stored experiment events that were given up, by reason.");
    for (index, loss) in EventLoss::ALL.iter().enumerate() {
        text.sample("events_dropped_total", &[("reason", &loss.name())], numbers.lost_of(index));
    }
    let help = "Experiment events that upstream rejected in batches that it accepted, by its reason.";
    text.family("events_rejected_upstream_total", "counter", help);
    let mut rejected = numbers.rejected_by_reason();
    rejected.entry("other".to_owned()).or_default();
    for (reason, count) in rejected {
        text.sample("events_rejected_upstream_total", &[("reason", &reason)], count);
    }
}

fn background(text: &mut Exposition, metrics: &Metrics) {
    let numbers = &metrics.background;
    let rows = [
        (
            "admin_connections_closed_total",
            "Admin connections closed before they were answered: too slow, or the oldest at the limit.",
            &numbers.admin_connections_closed,
        ),
        (
            "admin_hosts_refused_total",
            "Admin requests rejected with 421 because admin.allowed_hosts does not list their Host.",
            &numbers.admin_hosts_refused,
        ),
        (
            "realtime_floods_total",
            "Upstream event streams closed because they sent more than the limit per second.",
            &numbers.realtime_floods,
        ),
    ];
    for (name, help, counter) in rows {
        text.single(name, "counter", help, counter.value());
    }
    let supervisor = &metrics.supervisor;
    text.single(
        "discovery_empty",
        "gauge",
        "1 while discovery returns no environments and the previous ones are still served.",
        u8::from(supervisor.discovery_empty_since_ms.value() > 0),
    );
    text.single(
        "discovery_pairs_rejected",
        "gauge",
        "Key pairs of the last discovery response that were rejected.",
        supervisor.discovery_pairs_rejected.value(),
    );
}

fn process(text: &mut Exposition, metrics: &Metrics) {
    let process = Process::read();
    let rows = [
        ("start_time_seconds", "gauge", "When the process started.", Some(unix_seconds(metrics.started))),
        ("cpu_seconds_total", "counter", "CPU time used.", process.cpu_seconds),
        (
            "resident_memory_bytes",
            "gauge",
            "Resident memory.",
            process.resident_bytes.map(|bytes| bytes as f64),
        ),
        ("open_fds", "gauge", "Open file descriptors.", process.open_fds.map(|count| count as f64)),
        ("max_fds", "gauge", "Limit of open file descriptors.", process.max_fds.map(|count| count as f64)),
        ("threads", "gauge", "Number of threads.", process.threads.map(|count| count as f64)),
    ];
    for (name, kind, help, value) in rows {
        if let Some(value) = value {
            text.single(&format!("process_{name}"), kind, help, value);
        }
    }
}
