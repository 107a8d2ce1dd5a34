//! Responses to requests with a valid key, and CPU time, of the reactors.
use std::collections::BTreeMap;

use crate::admin::exposition::Exposition;
use crate::admin::process::reactor_cpu_seconds;
use crate::admin::view::View;
use crate::http::Sdk;
use crate::metrics::{Metrics, is_counted_separately};

/// The label of all environments that are not counted separately.
const OTHER: &str = "other";

/// Responses of each environment that is served, by its label, then of all that are not counted separately.
pub fn environment_answers(view: &View) -> Vec<(String, [u64; 5])> {
    let reactors = &view.metrics.reactors;
    let sum = |number: Option<u64>| add(reactors.iter().map(|reactor| reactor.environment_answers(number)));
    let environments = view.environments().into_iter();
    let counted = environments.filter(|environment| is_counted_separately(environment.slot.number));
    let own = counted.map(|environment| (environment.label, sum(Some(environment.slot.number))));
    own.chain(std::iter::once((OTHER.to_owned(), sum(None)))).collect()
}

/// Responses to requests of an SDK.
pub fn sdk_answers(metrics: &Metrics, sdk: Sdk) -> [u64; 5] {
    add(metrics.reactors.iter().map(|reactor| reactor.sdk_answers(sdk)))
}

fn add(counts: impl Iterator<Item = [u64; 5]>) -> [u64; 5] {
    counts.fold([0; 5], |sum, counts| std::array::from_fn(|class| sum[class] + counts[class]))
}

/// `2xx` for 1.
pub fn class_name(class: usize) -> String {
    format!("{}xx", class + 1)
}

/// `2xx` and its count, without zeros.
pub fn classes(counts: [u64; 5]) -> BTreeMap<String, u64> {
    let named = counts.into_iter().enumerate().map(|(class, count)| (class_name(class), count));
    named.filter(|(_, count)| *count > 0).collect()
}

/// Responses to requests with a valid key. The number of labels is bounded: environments beyond the limit
/// share one, as do clients that are not an SDK of Flagsmith.
pub fn export(text: &mut Exposition, view: &View) {
    let name = "environment_answers_total";
    text.family(name, "counter", "Responses to requests with a valid key, by environment and status class.");
    for (environment, counts) in environment_answers(view) {
        for (class, count) in exported(counts) {
            text.sample(name, &[("environment", &environment), ("class", &class)], count);
        }
    }
    let name = "sdk_answers_total";
    text.family(name, "counter", "Responses to requests with a valid key, by SDK and status class.");
    for sdk in Sdk::ALL {
        for (class, count) in exported(sdk_answers(&view.metrics, sdk)) {
            text.sample(name, &[("sdk", &sdk.name()), ("class", &class)], count);
        }
    }
}

/// The status classes to export with their counts. 2xx is exported from the start, so that the first requests
/// show in a rate.
fn exported(counts: [u64; 5]) -> impl Iterator<Item = (String, u64)> {
    let counts = counts.into_iter().enumerate();
    counts.filter(|(class, count)| *count > 0 || *class == 1).map(|(class, count)| (class_name(class), count))
}

/// CPU time of the reactors.
pub fn export_reactor_cpu(text: &mut Exposition, metrics: &Metrics) {
    let name = "reactor_cpu_seconds_total";
    text.family(name, "counter", "CPU time used by the reactor's thread.");
    let seconds = reactor_cpu_seconds(metrics.reactors.len());
    for (index, seconds) in seconds.into_iter().enumerate() {
        if let Some(seconds) = seconds {
            text.sample(name, &[("reactor", &index)], seconds);
        }
    }
}
