//! The metrics as data ([`MetricFamily`]), and as text: the format of Prometheus (exposition format 0.0.4)
//! and OpenMetrics 1.0.
use std::fmt;
use std::fmt::{Display, Write};

/// A name with its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricFamily {
    /// With `edge_proxy_`; that of a counter ends in `_total`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    pub help: &'static str,
    pub samples: Vec<MetricSample>,
    /// The value of a histogram, which has no samples.
    pub buckets: Option<MetricBuckets>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MetricSample {
    pub labels: Vec<(&'static str, String)>,
    pub value: MetricValue,
}

/// A histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricBuckets {
    /// Upper bounds, ascending, and how many values are up to each of them, those below included.
    pub below: Vec<(f64, u64)>,
    pub count: u64,
    pub sum: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricValue {
    Whole(u64),
    Real(f64),
}

impl Display for MetricValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            Self::Real(number) => number.fmt(f),
        }
    }
}

impl From<u64> for MetricValue {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<u8> for MetricValue {
    fn from(number: u8) -> Self {
        Self::Whole(number.into())
    }
}

impl From<f64> for MetricValue {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

/// Families, in order.
#[derive(Default)]
pub struct Exposition(Vec<MetricFamily>);

impl Exposition {
    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: &'static str, help: &'static str) {
        let name = format!("edge_proxy_{name}");
        self.0.push(MetricFamily { name, kind, help, samples: Vec::new(), buckets: None });
    }

    /// Adds a sample to the last family, whose name this is too.
    pub fn sample(
        &mut self,
        name: &str,
        labels: &[(&'static str, &dyn Display)],
        value: impl Into<MetricValue>,
    ) {
        let Some(family) = self.0.last_mut() else { return };
        debug_assert_eq!(family.name.strip_prefix("edge_proxy_"), Some(name));
        let labels = labels.iter().map(|(label, text)| (*label, text.to_string())).collect();
        family.samples.push(MetricSample { labels, value: value.into() });
    }

    /// A family with one sample.
    pub fn single(
        &mut self,
        name: &str,
        kind: &'static str,
        help: &'static str,
        value: impl Into<MetricValue>,
    ) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub fn histogram(&mut self, name: &str, help: &'static str, buckets: MetricBuckets) {
        self.family(name, "histogram", help);
        if let Some(family) = self.0.last_mut() {
            family.buckets = Some(buckets);
        }
    }

    pub fn into_families(self) -> Vec<MetricFamily> {
        self.0
    }
}

/// The format of Prometheus.
pub fn prometheus_text(families: &[MetricFamily]) -> String {
    text(families, |family| &family.name)
}

/// OpenMetrics 1.0: the family of a counter is named without `_total`, and the text has an end, so that a
/// scraper notices a truncated one.
pub fn open_metrics_text(families: &[MetricFamily]) -> String {
    let mut out = text(families, |family| family.name.strip_suffix("_total").unwrap_or(&family.name));
    out.push_str("# EOF\n");
    out
}

fn text(families: &[MetricFamily], title: impl Fn(&MetricFamily) -> &str) -> String {
    let mut out = String::new();
    for family in families {
        let (title, MetricFamily { name, kind, help, .. }) = (title(family), family);
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(out, "# HELP {title} {help}\n# TYPE {title} {kind}");
        for MetricSample { labels, value } in &family.samples {
            let _ = write!(out, "{name}");
            for (index, (label, text)) in labels.iter().enumerate() {
                let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let _ = write!(out, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
            }
            let _ = writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" });
        }
        if let Some(MetricBuckets { below, count, sum }) = &family.buckets {
            for (bound, below) in below {
                let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
            }
            let _ =
                writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_names_families_of_counters_without_total() {
        let mut exposition = Exposition::default();
        exposition.family("requests_total", "counter", "Requests_total, by route.");
        exposition.sample("requests_total", &[("route", &"a\"b"), ("b", &1)], 3u64);
        exposition.single("ready", "gauge", "1 if ready.", 1u64);
        let buckets = MetricBuckets { below: vec![(0.5, 2), (1.0, 2)], count: 3, sum: 7.5 };
        exposition.histogram("seconds", "Time.", buckets);
        let families = exposition.into_families();
        let expected = "# HELP edge_proxy_requests Requests_total, by route.\n\
                        # TYPE edge_proxy_requests counter\n\
                        edge_proxy_requests_total{route=\"a\\\"b\",b=\"1\"} 3\n\
                        # HELP edge_proxy_ready 1 if ready.\n\
                        # TYPE edge_proxy_ready gauge\n\
                        edge_proxy_ready 1\n\
                        # HELP edge_proxy_seconds Time.\n\
                        # TYPE edge_proxy_seconds histogram\n\
                        edge_proxy_seconds_bucket{le=\"0.5\"} 2\n\
                        edge_proxy_seconds_bucket{le=\"1\"} 2\n\
                        edge_proxy_seconds_bucket{le=\"+Inf\"} 3\n\
                        edge_proxy_seconds_sum 7.5\n\
                        edge_proxy_seconds_count 3\n\
                        # EOF\n";
        assert_eq!(open_metrics_text(&families), expected);
        let prometheus = expected.replace("_requests ", "_requests_total ").replace("# EOF\n", "");
        assert_eq!(prometheus_text(&families), prometheus);
    }
}
