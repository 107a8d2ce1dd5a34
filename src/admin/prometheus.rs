//! The numbers in Prometheus' text format, version 0.0.4.
//!
//! In: [`View`]. Out: the body of `/metrics`. Invariant: names start with `edge_proxy_`, counters
//! end in `_total`, units are base units (seconds, bytes); a family's samples stand together
//! under one HELP and TYPE, and no two samples have the same labels.
use std::fmt::{Display, Write};
use std::time::SystemTime;

use crate::admin::View;
use crate::admin::process::Process;
use crate::admin::status::{environment_labels, source_name, unix_seconds};
use crate::http::route::Route;
use crate::metrics::{EnvironmentMetrics, Histogram, Metrics, ReactorMetrics};

/// The body of `/metrics`.
pub fn render(view: &View) -> String {
    let mut text = Text::default();
    let metrics = &*view.metrics;
    text.family("info", "gauge", "The version that runs.");
    text.sample("info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    requests(&mut text, metrics);
    durations(&mut text, metrics);
    traffic(&mut text, metrics);
    reactors(&mut text, metrics);
    supervisor(&mut text, metrics);
    background(&mut text, metrics);
    environments(&mut text, metrics);
    text.single(
        "log_records_dropped_total",
        "counter",
        "Log records that found the queue full.",
        view.log.dropped(),
    );
    let is_ready = view.look().1.reason.is_none();
    text.single("ready", "gauge", "1 while readiness is green.", u8::from(is_ready));
    process(&mut text, metrics);
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP edge_proxy_{name} {help}\n# TYPE edge_proxy_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let _ = write!(self.0, "edge_proxy_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

fn sum(metrics: &Metrics, number: impl Fn(&ReactorMetrics) -> u64) -> u64 {
    metrics.reactors.iter().map(|reactor| number(reactor)).sum()
}

fn requests(text: &mut Text, metrics: &Metrics) {
    text.family("http_requests_total", "counter", "Requests answered, by route and class of status.");
    for (index, route) in Route::ALL.iter().enumerate() {
        for class in 0..5 {
            let count = sum(metrics, |reactor| reactor.requests_of(index, class));
            // 2xx is there from the start, so that a rate can be taken of the first requests.
            if count > 0 || class == 1 {
                let status = format!("{}xx", class + 1);
                text.sample("http_requests_total", &[("route", &route.name()), ("status", &status)], count);
            }
        }
    }
    text.family(
        "http_rejects_total",
        "counter",
        "Requests refused for their framing, coding, size or time, by reason.",
    );
    for (index, reject) in crate::http::ParseError::ALL.iter().enumerate() {
        let count = sum(metrics, |reactor| reactor.rejects_of(index));
        text.sample("http_rejects_total", &[("reason", &reject.name())], count);
    }
}

/// Exported by whole octaves: finer buckets are for the status page.
fn durations(text: &mut Text, metrics: &Metrics) {
    const NAME: &str = "http_request_duration_seconds";
    text.family(NAME, "histogram", "From a batch of requests being read to its answers being handed over.");
    let mut counts = [0u64; Histogram::BUCKETS];
    for reactor in &metrics.reactors {
        counts.iter_mut().zip(reactor.durations.counts()).for_each(|(sum, count)| *sum += count);
    }
    let bucket = format!("{NAME}_bucket");
    let mut below = 0;
    for (index, count) in counts.iter().enumerate() {
        below += count;
        if index.is_multiple_of(4) {
            text.sample(&bucket, &[("le", &Histogram::upper_seconds(index))], below);
        }
    }
    text.sample(&bucket, &[("le", &"+Inf")], below);
    let sum_ns = sum(metrics, |reactor| reactor.durations.sum_ns.value());
    text.sample(&format!("{NAME}_sum"), &[], sum_ns as f64 / 1e9);
    text.sample(&format!("{NAME}_count"), &[], below);
}

fn traffic(text: &mut Text, metrics: &Metrics) {
    type Row = (&'static str, &'static str, &'static str, fn(&ReactorMetrics) -> u64);
    let rows: [Row; 13] = [
        ("http_received_bytes_total", "counter", "Bytes read from clients.", |r| r.bytes_read.value()),
        ("http_sent_bytes_total", "counter", "Bytes written to clients.", |r| r.bytes_written.value()),
        ("connections_opened_total", "counter", "Connections accepted.", |r| r.connections_opened.value()),
        (
            "connections_refused_total",
            "counter",
            "Connections closed at once because server.connections_max was met.",
            |r| r.connections_refused.value(),
        ),
        (
            "connections_cut_total",
            "counter",
            "Connections ended because the caller did not take its answer within server.timeout_write.",
            |r| r.connections_cut.value(),
        ),
        (
            "connections_shed_total",
            "counter",
            "Connections ended because callers that wait held more memory than they may together.",
            |r| r.connections_shed.value(),
        ),
        ("errors_truncated_total", "counter", "422 answers that list only the first 100 errors.", |r| {
            r.errors_truncated.value()
        }),
        (
            "accept_pauses_total",
            "counter",
            "Pauses before the next connection is accepted, above all at the descriptor limit.",
            |r| r.accept_pauses.value(),
        ),
        ("connections_open", "gauge", "Connections open now.", ReactorMetrics::connections_open),
        (
            "jsonpath_budget_exceeded_total",
            "counter",
            "Requests whose general JSONPaths ran out of steps, so that conditions on them counted as no match.",
            |r| r.jsonpath_exceeded.value(),
        ),
        (
            "regex_budget_exceeded_total",
            "counter",
            "Requests whose regular expressions ran out of steps, so that conditions on them counted as no match.",
            |r| r.patterns_exceeded.value(),
        ),
        (
            "bulk_refused_total",
            "counter",
            "Bulk requests refused because evaluating their identities would take too much work.",
            |r| r.bulk_refused.value(),
        ),
        (
            "access_records_dropped_total",
            "counter",
            "Access log records dropped because their queue was full.",
            |r| r.access_dropped.value(),
        ),
    ];
    for (name, kind, help, number) in rows {
        text.single(name, kind, help, sum(metrics, number));
    }
}

fn reactors(text: &mut Text, metrics: &Metrics) {
    type Row = (&'static str, &'static str, &'static str, fn(&ReactorMetrics) -> f64);
    text.family("reactor_info", "gauge", "Where each reactor runs and on which driver.");
    for (index, reactor) in metrics.reactors.iter().enumerate() {
        let labels: [(&str, &dyn Display); 3] =
            [("reactor", &index), ("core", &reactor.core), ("driver", &reactor.driver())];
        text.sample("reactor_info", &labels, 1);
    }
    let rows: [Row; 6] = [
        ("reactor_requests_total", "counter", "Requests answered by each reactor.", |r| {
            r.answered_sum() as f64
        }),
        ("reactor_connections_open", "gauge", "Connections open on each reactor.", |r| {
            r.connections_open() as f64
        }),
        ("reactor_restarts_total", "counter", "Panics caught, after which the reactor started again.", |r| {
            r.restarts.value() as f64
        }),
        ("reactor_loop_lag_seconds", "gauge", "How late the reactor's last timer came.", |r| {
            r.lag_us.value() as f64 / 1e6
        }),
        ("reactor_snapshot_version", "gauge", "The snapshot the reactor serves.", |r| {
            r.snapshot_version.value() as f64
        }),
        ("reactor_snapshot_age_seconds", "gauge", "How long the reactor has served its snapshot.", |r| {
            r.snapshot_age().as_secs_f64()
        }),
    ];
    for (name, kind, help, number) in rows {
        text.family(name, kind, help);
        for (index, reactor) in metrics.reactors.iter().enumerate() {
            text.sample(name, &[("reactor", &index)], number(reactor));
        }
    }
}

fn supervisor(text: &mut Text, metrics: &Metrics) {
    let numbers = &metrics.supervisor;
    let rows = [
        (
            "snapshots_published_total",
            "counter",
            "Snapshots sent to the reactors.",
            &numbers.snapshots_published,
        ),
        ("reloads_total", "counter", "Configurations read again and taken.", &numbers.reloads),
        (
            "reloads_refused_total",
            "counter",
            "Configurations read again and refused.",
            &numbers.reloads_refused,
        ),
        (
            "analytics_queued",
            "gauge",
            "Flag counts of SDKs that wait to be sent upstream.",
            &numbers.analytics_queued,
        ),
        ("analytics_sent_total", "counter", "Flag counts accepted upstream.", &numbers.analytics_sent),
        ("analytics_lost_total", "counter", "Flag counts given up.", &numbers.analytics_lost),
        ("usage_sent_total", "counter", "Requests reported upstream as usage.", &numbers.usage_sent),
        ("usage_lost_total", "counter", "Requests whose usage report was given up.", &numbers.usage_lost),
    ];
    for (name, kind, help, counter) in rows {
        text.single(name, kind, help, counter.value());
    }
    counts_bounded(text, metrics);
}

/// What the bounds of SDKs' flag counts did.
fn counts_bounded(text: &mut Text, metrics: &Metrics) {
    let numbers = &metrics.supervisor;
    let families = [
        (
            "counts_merged_total",
            "without",
            "Flag counts merged into a coarser row by a bound.",
            [&numbers.counts_merged_identifier, &numbers.counts_merged_label],
        ),
        (
            "counts_cut_total",
            "field",
            "Values cut that came with flag counts.",
            [&numbers.counts_cut_identifier, &numbers.counts_cut_label],
        ),
    ];
    for (name, label, help, counters) in families {
        text.family(name, "counter", help);
        for (value, counter) in ["identifier", "label"].iter().zip(counters) {
            text.sample(name, &[(label, value)], counter.value());
        }
    }
    let help = "Uploads of counts that upstream refused and that were divided.";
    text.single("counts_divided_total", "counter", help, numbers.counts_divided.value());
}

fn background(text: &mut Text, metrics: &Metrics) {
    let numbers = &metrics.background;
    let rows = [
        (
            "admin_connections_closed_total",
            "Admin connections closed unanswered: too slow with a request head, or the longest-waiting at the limit.",
            &numbers.admin_connections_closed,
        ),
        (
            "admin_hosts_refused_total",
            "Admin requests answered 421 because admin.allowed_hosts does not list their Host.",
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
        "1 while discovery lists no environment and the earlier ones are served.",
        u8::from(supervisor.discovery_empty_since_ms.value() > 0),
    );
    text.single(
        "discovery_pairs_rejected",
        "gauge",
        "Key pairs in the last answer of discovery that were rejected.",
        supervisor.discovery_pairs_rejected.value(),
    );
}

fn environments(text: &mut Text, metrics: &Metrics) {
    type Row = (&'static str, &'static str, fn(&EnvironmentMetrics) -> Option<f64>);
    let environments = environment_labels(metrics.environments());
    text.family("environment_info", "gauge", "Where each environment's document came from.");
    for (label, environment) in &environments {
        let source = source_name(environment.source);
        let labels: [(&str, &dyn Display); 3] =
            [("environment", label), ("name", &environment.name), ("source", &source)];
        text.sample("environment_info", &labels, 1);
    }
    text.family("environment_polls_total", "counter", "Fetches of each environment, by result.");
    for (label, environment) in &environments {
        let results = [
            ("changed", environment.polls_changed),
            ("unchanged", environment.polls_unchanged),
            ("failed", environment.polls_failed),
        ];
        for (result, count) in results {
            text.sample("environment_polls_total", &[("environment", label), ("result", &result)], count);
        }
    }
    let rows: [Row; 12] = [
        ("document_age_seconds", "Since the document was changed, by its updated_at.", |e| {
            e.document_updated_at.and_then(age_seconds)
        }),
        ("document_timestamp_seconds", "When the served document was changed, by its updated_at.", |e| {
            e.document_updated_at.map(unix_seconds)
        }),
        ("last_success_timestamp_seconds", "When a fetch last succeeded.", |e| {
            e.last_success.map(unix_seconds)
        }),
        ("poll_duration_seconds", "How long the last fetch took.", |e| Some(e.last_poll.as_secs_f64())),
        (
            "propagation_seconds",
            "From the document's updated_at to its being served, for the last change.",
            |e| e.propagation.map(|delay| delay.as_secs_f64()),
        ),
        ("compile_seconds", "How long the served document took to compile.", |e| {
            Some(e.compile.as_secs_f64())
        }),
        ("document_bytes", "Size of the served document.", |e| Some(e.document_bytes as f64)),
        ("features", "Features in the served document.", |e| Some(e.features as f64)),
        ("segments", "Segments in the served document.", |e| Some(e.segments as f64)),
        ("identity_overrides", "Identity overrides in the served document.", |e| {
            Some(e.identity_overrides as f64)
        }),
        ("refused_conditions", "Conditions that can never match because of their operand.", |e| {
            Some(e.refused_conditions as f64)
        }),
        ("realtime_connected", "1 while the upstream's event stream is open.", |e| {
            Some(f64::from(u8::from(e.realtime_connected)))
        }),
    ];
    for (name, help, number) in rows {
        let name = format!("environment_{name}");
        text.family(&name, "gauge", help);
        for (label, environment) in &environments {
            if let Some(value) = number(environment) {
                text.sample(&name, &[("environment", label)], value);
            }
        }
    }
}

fn process(text: &mut Text, metrics: &Metrics) {
    let process = Process::read();
    let rows = [
        ("start_time_seconds", "gauge", "When the process started.", Some(unix_seconds(metrics.started))),
        ("cpu_seconds_total", "counter", "CPU time used.", process.cpu_seconds),
        (
            "resident_memory_bytes",
            "gauge",
            "Memory resident.",
            process.resident_bytes.map(|bytes| bytes as f64),
        ),
        ("open_fds", "gauge", "Descriptors open.", process.open_fds.map(|count| count as f64)),
        ("max_fds", "gauge", "Descriptors that may be open.", process.max_fds.map(|count| count as f64)),
        ("threads", "gauge", "Threads.", process.threads.map(|count| count as f64)),
    ];
    for (name, kind, help, value) in rows {
        if let Some(value) = value {
            text.single(&format!("process_{name}"), kind, help, value);
        }
    }
}

/// Since then; zero if the clock upstream is ahead of ours.
fn age_seconds(time: SystemTime) -> Option<f64> {
    Some(time.elapsed().map_or(0.0, |age| age.as_secs_f64()))
}
