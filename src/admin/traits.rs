//! The metrics of kept traits in `/metrics` and `/status.json`.
use serde_json::{Value, json};

use crate::admin::exposition::ExpositionText;
use crate::metrics::{Metrics, TraitMetrics};

/// Name without prefix, kind, help, value.
type Row = (&'static str, &'static str, &'static str, fn(&TraitMetrics) -> u64);

const ROWS: [Row; 12] = [
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
    ("traits_commits_total", "counter", "Groups of changes written to the disk.", |m| m.commits.value()),
    (
        "traits_commits_failed_total",
        "counter",
        "Groups of changes that could not be written to the disk.",
        |m| m.commits_failed.value(),
    ),
    ("traits_enabled", "gauge", "1 if traits are kept.", |m| m.is_enabled.value()),
];

pub fn export(text: &mut ExpositionText, metrics: &Metrics) {
    for (name, kind, help, value) in ROWS {
        text.single(name, kind, help, value(&metrics.traits));
    }
    let help = "Writes that were answered but not kept, because too many waited.";
    text.single("traits_not_kept_total", "counter", help, not_kept(metrics));
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
        "commits_failed": numbers.commits_failed.value(),
    })
}

fn not_kept(metrics: &Metrics) -> u64 {
    metrics.reactors.iter().map(|reactor| reactor.traits_not_kept.value()).sum()
}
