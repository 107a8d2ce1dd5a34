//! Metrics of each environment: its published document and its polls.
use std::fmt::Display;

use crate::admin::exposition::Exposition;
use crate::admin::labels::{age_seconds, source_name, unix_seconds};
use crate::admin::view::{EnvironmentView, View};
use crate::snapshot::Environment;
use crate::snapshot::environment::Sizes;

pub fn export(text: &mut Exposition, view: &View) {
    type Row = (&'static str, &'static str, fn(&EnvironmentView) -> Option<f64>);
    let environments = view.environments();
    text.family("environment_info", "gauge", "Source of each environment's document.");
    for environment in &environments {
        let source = source_name(environment.slot.document.as_ref().map(|document| document.source));
        let name = environment.slot.environment().map_or("", |environment| &environment.sizes().name);
        let labels: [(&str, &dyn Display); 3] =
            [("environment", &environment.label), ("name", &name), ("source", &source)];
        text.sample("environment_info", &labels, 1u64);
    }
    text.family("environment_polls_total", "counter", "Fetches of each environment, by result.");
    for EnvironmentView { label, metrics, .. } in &environments {
        let results = [
            ("changed", metrics.polls_changed),
            ("unchanged", metrics.polls_unchanged),
            ("failed", metrics.polls_failed),
        ];
        for (result, count) in results {
            text.sample("environment_polls_total", &[("environment", label), ("result", &result)], count);
        }
    }
    let rows: [Row; 13] = [
        ("document_age_seconds", "Time since the document was changed, by its updated_at.", |e| {
            e.document_updated_at().and_then(age_seconds)
        }),
        ("document_timestamp_seconds", "When the served document was changed, by its updated_at.", |e| {
            e.document_updated_at().map(unix_seconds)
        }),
        ("last_success_timestamp_seconds", "When a fetch last succeeded.", |e| {
            e.slot.freshness.last_success().map(unix_seconds)
        }),
        ("poll_duration_seconds", "Duration of the last fetch.", |e| Some(e.metrics.last_poll.as_secs_f64())),
        (
            "propagation_seconds",
            "Time from the document's updated_at until it was served, for the last change.",
            |e| e.metrics.propagation.map(|delay| delay.as_secs_f64()),
        ),
        ("compile_seconds", "Time to compile the served document.", |e| {
            Some(e.metrics.compile.as_secs_f64())
        }),
        ("document_bytes", "Size of the served document.", |e| Some(e.metrics.document_bytes as f64)),
        ("delta_bytes", "Memory of the deltas for other proxies.", delta_bytes),
        ("features", "Features in the served document.", |e| {
            Some(sizes(e).map_or(0, |sizes| sizes.features) as f64)
        }),
        ("segments", "Segments in the served document.", |e| {
            Some(sizes(e).map_or(0, |sizes| sizes.segments) as f64)
        }),
        ("identity_overrides", "Identity overrides in the served document.", |e| {
            Some(sizes(e).map_or(0, |sizes| sizes.identity_overrides) as f64)
        }),
        ("refused_conditions", "Conditions that can never match because their operand is invalid.", |e| {
            Some(e.metrics.refused_conditions as f64)
        }),
        ("realtime_connected", "1 while upstream's event stream is connected.", |e| {
            Some(f64::from(u8::from(e.metrics.realtime_connected)))
        }),
    ];
    for (name, help, number) in rows {
        let name = format!("environment_{name}");
        text.family(&name, "gauge", help);
        for environment in &environments {
            if let Some(value) = number(environment) {
                text.sample(&name, &[("environment", &environment.label)], value);
            }
        }
    }
}

fn delta_bytes(environment: &EnvironmentView) -> Option<f64> {
    Some(environment.slot.environment().map_or(0, |environment| environment.deltas().bytes()) as f64)
}

fn sizes(environment: &EnvironmentView) -> Option<&Sizes> {
    environment.slot.environment().map(Environment::sizes)
}
