//! The metrics of kept traits in `/metrics` and `/status.json`.
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::admin::exposition::Exposition;
use crate::metrics::{Metrics, TraitForwardLoss, TraitForwardMetrics, TraitMetrics};

/// Name without prefix, kind, help, value.
type Row = (&'static str, &'static str, &'static str, fn(&TraitMetrics) -> u64);

const ROWS: [Row; 14] = [
    ("traits_identities", "gauge", "Identities whose traits are kept.", |m| m.identities.value()),
    ("traits_bytes", "gauge", "Bytes that kept traits count.", |m| m.bytes.value()),
    ("traits_writes_total", "counter", "Writes of kept traits that were merged.", |m| m.writes.value()),
    ("traits_queued", "gauge", "Writes that wait for the store thread.", |m| m.queued.value()),
    ("traits_evicted_total", "counter", "Identities removed because a limit was reached.", |m| {
        m.evicted.value()
    }),
    ("traits_expired_total", "counter", "Identities removed after traits.ttl_seconds.", |m| {
        m.expired.value()
    }),
    ("traits_erased_total", "counter", "Identities erased on request.", |m| m.erased.value()),
    (
        "traits_tables_sent_total",
        "counter",
        "Whole tables sent to reactors, at the start and after a delay.",
        |m| m.tables_sent.value(),
    ),
    ("traits_unwritten", "gauge", "Identities whose changes are not on the disk yet.", |m| {
        m.unwritten.value()
    }),
    (
        "traits_removals_dropped_total",
        "counter",
        "Evicted identities that may come back at a restart, because too many removals waited for the disk.",
        |m| m.removals_dropped.value(),
    ),
    ("traits_files_damaged_total", "counter", "Damaged files of kept traits that were put aside.", |m| {
        m.files_damaged.value()
    }),
    ("traits_commits_total", "counter", "Groups of changes written to the disk.", |m| m.commits.value()),
    (
        "traits_commits_failed_total",
        "counter",
        "Groups of changes that could not be written to the disk.",
        |m| m.commits_failed.value(),
    ),
    ("traits_enabled", "gauge", "1 if traits are kept.", |m| m.is_enabled.value()),
];

/// Of `traits.store: redis`; 0 with another store.
const REDIS_ROWS: [Row; 6] = [
    ("traits_redis_unavailable", "gauge", "1 while Redis is not available.", |m| {
        u64::from(m.has_redis.value() > 0 && !is_available(m))
    }),
    ("traits_redis_reconnects_total", "counter", "Outages of Redis that have ended.", |m| {
        m.redis_reconnects.value()
    }),
    ("traits_redis_reloads_total", "counter", "Times that all identities were read from Redis.", |m| {
        m.redis_reloads.value()
    }),
    ("traits_redis_unsent", "gauge", "Identities whose changes Redis does not have yet.", |m| {
        m.redis_unsent.value()
    }),
    (
        "traits_redis_dropped_total",
        "counter",
        "Identities that were removed before Redis had their changes.",
        |m| m.redis_dropped.value(),
    ),
    (
        "traits_redis_refused_total",
        "counter",
        "Changes of other proxies that were not merged, because their clock is wrong.",
        |m| m.redis_refused.value(),
    ),
];

/// Memory ordering: relaxed, because nothing that was written before the flag is read.
fn is_available(metrics: &TraitMetrics) -> bool {
    metrics.is_available.load(Ordering::Relaxed)
}

pub fn export(text: &mut Exposition, metrics: &Metrics) {
    for (name, kind, help, value) in ROWS.into_iter().chain(REDIS_ROWS) {
        text.single(name, kind, help, value(&metrics.traits));
    }
    let help = "How long the oldest change of kept traits has waited for the disk; 0 if none waits.";
    text.single("traits_lag_seconds", "gauge", help, metrics.traits.lag_ms.value() as f64 / 1000.0);
    let help = "Age of the last change of kept traits that was read from Redis; 0 if none waits.";
    let lag = metrics.traits.redis_lag_ms.value() as f64 / 1000.0;
    text.single("traits_redis_lag_seconds", "gauge", help, lag);
    let help = "Writes that were answered but not kept, because too many waited.";
    text.single("traits_not_kept_total", "counter", help, not_kept(metrics));
    export_forwarding(text, &metrics.trait_forwarding);
}

/// Kept traits that are sent upstream (`traits.forward`).
fn export_forwarding(text: &mut Exposition, numbers: &TraitForwardMetrics) {
    let age = numbers.oldest_age(SystemTime::now()).as_secs();
    let rows = [
        (
            "traits_forward_queued",
            "gauge",
            "Kept traits that wait to be sent upstream.",
            numbers.queued.value(),
        ),
        ("traits_forward_queued_bytes", "gauge", "Their memory.", numbers.queued_bytes.value()),
        ("traits_forward_oldest_seconds", "gauge", "Age of the oldest of them; 0 if none waits.", age),
        ("traits_forwarded_total", "counter", "Kept traits that upstream accepted.", numbers.sent.value()),
    ];
    for (name, kind, help, value) in rows {
        text.single(name, kind, help, value);
    }
    text.family(
        "traits_forward_dropped_total",
        "counter",
        "Kept traits that are not sent upstream, by reason.",
    );
    for (index, loss) in TraitForwardLoss::ALL.iter().enumerate() {
        text.sample("traits_forward_dropped_total", &[("reason", &loss.name())], numbers.lost_of(index));
    }
}

/// `null` without a store.
pub fn describe(metrics: &Metrics) -> Value {
    let numbers = &metrics.traits;
    if numbers.is_enabled.value() == 0 {
        return Value::Null;
    }
    json!({
        "identities": numbers.identities.value(),
        "bytes": numbers.bytes.value(),
        "writes": numbers.writes.value(),
        "queued": numbers.queued.value(),
        "not_kept": not_kept(metrics),
        "evicted": numbers.evicted.value(),
        "expired": numbers.expired.value(),
        "erased": numbers.erased.value(),
        "unwritten": numbers.unwritten.value(),
        "lag_milliseconds": numbers.lag_ms.value(),
        "files_damaged": numbers.files_damaged.value(),
        "commits_failed": numbers.commits_failed.value(),
        "redis": (numbers.has_redis.value() > 0).then(|| json!({
            "available": is_available(numbers),
            "lag_milliseconds": numbers.redis_lag_ms.value(),
            "unsent": numbers.redis_unsent.value(),
            "dropped": numbers.redis_dropped.value(),
            "reconnects": numbers.redis_reconnects.value(),
            "reloads": numbers.redis_reloads.value(),
        })),
        "forward_queued": metrics.trait_forwarding.queued.value(),
        "forward_oldest_seconds": metrics.trait_forwarding.oldest_age(SystemTime::now()).as_secs(),
        "forwarded": metrics.trait_forwarding.sent.value(),
        "forward_dropped": (0..TraitForwardLoss::ALL.len())
            .map(|loss| metrics.trait_forwarding.lost_of(loss))
            .sum::<u64>(),
    })
}

fn not_kept(metrics: &Metrics) -> u64 {
    metrics.reactors.iter().map(|reactor| reactor.traits_not_kept.value()).sum()
}
