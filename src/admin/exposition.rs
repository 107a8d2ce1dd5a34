//! The text format of Prometheus (exposition format 0.0.4), and OpenMetrics 1.0.
use std::fmt::{Display, Write};

/// Samples in the text format, in order.
#[derive(Default)]
pub struct ExpositionText(String);

impl ExpositionText {
    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP edge_proxy_{name} {help}\n# TYPE edge_proxy_{name} {kind}");
    }

    /// Adds a sample to the last family.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let _ = write!(self.0, "edge_proxy_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family with one sample.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

/// The metrics in OpenMetrics 1.0: the family of a counter is named without `_total`, and the text has an
/// end, so that a scraper notices a truncated one.
pub fn open_metrics(text: &str) -> String {
    let mut converted = String::with_capacity(text.len() + 8);
    for line in text.lines() {
        let family = ["# HELP ", "# TYPE "].into_iter().find_map(|keyword| {
            let (name, rest) = line.strip_prefix(keyword)?.split_once(' ')?;
            Some((keyword, name.strip_suffix("_total")?, rest))
        });
        match family {
            Some((keyword, name, rest)) => converted.extend([keyword, name, " ", rest, "\n"]),
            None => converted.extend([line, "\n"]),
        }
    }
    converted.push_str("# EOF\n");
    converted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_names_families_of_counters_without_total() {
        let mut text = ExpositionText::default();
        text.family("requests_total", "counter", "Requests_total, by route.");
        text.sample("requests_total", &[("route", &"a\"b")], 3);
        text.single("ready", "gauge", "1 if ready.", 1);
        let expected = "# HELP edge_proxy_requests Requests_total, by route.\n\
                        # TYPE edge_proxy_requests counter\n\
                        edge_proxy_requests_total{route=\"a\\\"b\"} 3\n\
                        # HELP edge_proxy_ready 1 if ready.\n\
                        # TYPE edge_proxy_ready gauge\n\
                        edge_proxy_ready 1\n\
                        # EOF\n";
        assert_eq!(open_metrics(&text.into_string()), expected);
    }
}
