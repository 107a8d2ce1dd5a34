//! How environments, sources and times are written in `/metrics` and `/status.json`.
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Secret;
use crate::snapshot::DocumentSource;

/// Client-side keys truncated to a prefix. If several have the same prefix, all but the first get a number,
/// because labels must be unique.
#[derive(Debug, Default)]
pub struct EnvironmentLabels {
    uses: BTreeMap<String, usize>,
}

impl EnvironmentLabels {
    /// The label of the next key.
    pub fn label(&mut self, client_side_key: &str) -> String {
        let cut = Secret::new(client_side_key).to_string();
        let count = self.uses.entry(cut.clone()).and_modify(|count| *count += 1).or_insert(1);
        if *count == 1 { cut } else { format!("{cut}#{count}") }
    }
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
