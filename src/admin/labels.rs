//! How environments, sources and times are written in `/metrics` and `/status.json`.
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Secret;
use crate::metrics::EnvironmentMetrics;
use crate::snapshot::DocumentSource;

/// Keys truncated to a prefix. If several have the same prefix, all but the first get a number, because
/// labels must be unique.
pub fn environment_labels(
    environments: BTreeMap<String, EnvironmentMetrics>,
) -> Vec<(String, EnvironmentMetrics)> {
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    let label = |key: String| {
        let cut = Secret::new(key).to_string();
        let count = uses.entry(cut.clone()).and_modify(|count| *count += 1).or_insert(1);
        if *count == 1 { cut } else { format!("{cut}#{count}") }
    };
    let labels: Vec<String> = environments.keys().cloned().map(label).collect();
    labels.into_iter().zip(environments.into_values()).collect()
}

/// The name of a document's source; `none` without a document.
pub fn source_name(source: Option<DocumentSource>) -> &'static str {
    source.map_or("none", DocumentSource::name)
}

/// Unix time in seconds.
pub fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The time since then; zero if upstream's clock is ahead.
pub fn age_seconds(time: SystemTime) -> Option<f64> {
    Some(time.elapsed().map_or(0.0, |age| age.as_secs_f64()))
}
