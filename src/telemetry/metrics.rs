//! Exports the metrics of `/metrics` at intervals: with the same names and labels, counters as cumulative
//! sums since the start of the process.
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use prost::Message;

use crate::admin;
use crate::admin::{MetricBuckets, MetricFamily, MetricSample, MetricValue, View};
use crate::config::Telemetry;
use crate::telemetry::export::{Exporter, PartialSuccess};
use crate::telemetry::resource::{Origin, text, unix_nanos};

pub struct MetricExport {
    view: View,
    exporter: Exporter,
    interval: Duration,
    timeout: Duration,
    origin: Arc<Origin>,
}

impl MetricExport {
    pub fn new(view: View, exporter: Exporter, settings: &Telemetry, origin: Arc<Origin>) -> Self {
        let (interval, timeout) = (settings.metric_interval, settings.metric_timeout);
        Self { view, exporter, interval, timeout, origin }
    }

    /// Runs until the process ends; the last export is then.
    pub fn run(mut self) {
        let mut due = Instant::now() + self.interval;
        loop {
            self.exporter.stop().wait(due.saturating_duration_since(Instant::now()));
            self.export();
            if self.exporter.stop().deadline().is_some() {
                return;
            }
            let now = Instant::now();
            // An export that took longer than the interval delays the next ones instead of adding to them.
            due = (due + self.interval).max(now);
        }
    }

    fn export(&mut self) {
        let body = encode(&admin::collect(&self.view), &self.origin, SystemTime::now());
        let Some(answer) = self.exporter.export(&body, self.timeout) else { return };
        // An answer that is not a message of the protocol says nothing: the status has accepted the export.
        let answer = ExportMetricsServiceResponse::decode(&*answer).unwrap_or_default();
        if let Some(partial) = answer.partial_success {
            let rejected = u64::try_from(partial.rejected_data_points).unwrap_or(0);
            self.exporter.report_partial(&PartialSuccess { rejected, message: partial.error_message });
        }
    }
}

fn encode(families: &[MetricFamily], origin: &Origin, now: SystemTime) -> Vec<u8> {
    let now = unix_nanos(now);
    let metrics = families.iter().map(|family| metric(family, origin.started, now)).collect();
    let scope = ScopeMetrics { scope: Some(origin.scope.clone()), metrics, ..ScopeMetrics::default() };
    let resource = Some(origin.resource.clone());
    let resource_metrics =
        vec![ResourceMetrics { resource, scope_metrics: vec![scope], ..ResourceMetrics::default() }];
    ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
}

fn metric(family: &MetricFamily, started: u64, now: u64) -> Metric {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let points = |start| family.samples.iter().map(|sample| number(sample, start, now)).collect();
    let data = match (family.kind, &family.buckets) {
        (_, Some(buckets)) => Data::Histogram(Histogram {
            data_points: vec![histogram(buckets, started, now)],
            aggregation_temporality,
        }),
        ("counter", None) => {
            Data::Sum(Sum { data_points: points(started), aggregation_temporality, is_monotonic: true })
        }
        (_, None) => Data::Gauge(Gauge { data_points: points(0) }),
    };
    Metric {
        name: family.name.clone(),
        description: family.help.to_owned(),
        unit: unit(&family.name).to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// The unit (UCUM) that a name ends with.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "",
    }
}

fn number(sample: &MetricSample, start_time_unix_nano: u64, time_unix_nano: u64) -> NumberDataPoint {
    let value = match sample.value {
        MetricValue::Whole(number) => Value::AsInt(i64::try_from(number).unwrap_or(i64::MAX)),
        MetricValue::Real(number) => Value::AsDouble(number),
    };
    NumberDataPoint {
        attributes: sample.labels.iter().map(|(name, value)| text(name, value.as_str())).collect(),
        start_time_unix_nano,
        time_unix_nano,
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

/// Buckets count the values between their bounds, not those below as well.
fn histogram(buckets: &MetricBuckets, start_time_unix_nano: u64, time_unix_nano: u64) -> HistogramDataPoint {
    let below = buckets.below.iter().map(|(_, below)| *below).chain([buckets.count]);
    let mut before = 0;
    let own = |below: u64| below.saturating_sub(std::mem::replace(&mut before, below));
    HistogramDataPoint {
        start_time_unix_nano,
        time_unix_nano,
        count: buckets.count,
        sum: Some(buckets.sum),
        bucket_counts: below.map(own).collect(),
        explicit_bounds: buckets.below.iter().map(|(bound, _)| *bound).collect(),
        ..HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_not_cumulative_and_the_last_has_no_bound() {
        let buckets = MetricBuckets { below: vec![(0.5, 2), (1.0, 2), (2.0, 5)], count: 9, sum: 7.5 };
        let point = histogram(&buckets, 1, 2);
        assert_eq!(point.bucket_counts, [2, 0, 3, 4]);
        assert_eq!((point.explicit_bounds.as_slice(), point.count), (&[0.5, 1.0, 2.0][..], 9));
    }

    #[test]
    fn units_are_those_of_the_names() {
        for (name, expected) in [
            ("edge_proxy_process_cpu_seconds_total", "s"),
            ("edge_proxy_http_sent_bytes_total", "By"),
            ("edge_proxy_environment_document_age_seconds", "s"),
            ("edge_proxy_connections_open", ""),
        ] {
            assert_eq!(unit(name), expected, "{name}");
        }
    }
}
