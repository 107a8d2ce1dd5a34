//! OpenTelemetry: the environment variables of its specification, which are not settings of the file.
//!
//! They are often set for a whole machine. Nothing is read without an endpoint, and an invalid value is
//! ignored with a warning that does not show it, as the specification demands: it never prevents the start.
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use crate::config::issue::ConfigWarning;
use crate::config::secret::Secret;
use crate::config::telemetry::{OtlpEndpoint, RootSampler, Sampler, SpanBatches, Telemetry};
use crate::limits;

const SERVICE_NAME: &str = "edge-proxy";
/// Fields of an export that the exporter sets itself, or that frame the request.
const RESERVED: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The two kinds of telemetry: the part of their variables' names, and the path below a common endpoint.
#[derive(Clone, Copy)]
struct ExportSignal {
    name: &'static str,
    path: &'static str,
}

const TRACES: ExportSignal = ExportSignal { name: "TRACES", path: "v1/traces" };
const METRICS: ExportSignal = ExportSignal { name: "METRICS", path: "v1/metrics" };

/// Reads the variables. Warnings are added only if something is exported.
pub fn read(variables: &[(String, String)], warnings: &mut Vec<ConfigWarning>) -> Telemetry {
    let mut reader = OtelReader { variables, warnings: Vec::new() };
    let (traces, metrics) = match reader.is_disabled() {
        true => (None, None),
        false => (reader.endpoint(TRACES), reader.endpoint(METRICS)),
    };
    if traces.is_none() && metrics.is_none() && reader.warnings.is_empty() {
        return Telemetry::default();
    }
    let telemetry = Telemetry {
        resource: reader.resource(),
        metric_interval: reader.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
        metric_timeout: reader.milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", 30_000),
        batches: reader.batches(),
        sampler: traces.as_ref().and_then(|_| reader.sampler()),
        traces,
        metrics,
    };
    reader.warn_of_unread();
    warnings.append(&mut reader.warnings);
    telemetry
}

/// Variables of the specification that this program does not read, although they concern the exporter.
const UNREAD_ENDS: &[&str] = &["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"];

struct OtelReader<'a> {
    variables: &'a [(String, String)],
    warnings: Vec<ConfigWarning>,
}

impl<'a> OtelReader<'a> {
    /// The value of a variable; `None` if it is unset or empty, which is the same.
    fn text(&self, name: &str) -> Option<&'a str> {
        let found = self.variables.iter().find(|(own, _)| own == name);
        found.map(|(_, text)| text.trim()).filter(|text| !text.is_empty())
    }

    /// The variable of a signal, or the one of both; and its name.
    fn of_signal(&self, signal: ExportSignal, end: &str) -> Option<(String, &'a str)> {
        let names =
            [format!("OTEL_EXPORTER_OTLP_{}_{end}", signal.name), format!("OTEL_EXPORTER_OTLP_{end}")];
        names.into_iter().find_map(|name| self.text(&name).map(|text| (name, text)))
    }

    /// Adds a warning, once: both signals may read the same variable.
    fn reject(&mut self, name: &str, expected: &str) {
        let warning = ConfigWarning::otel_variable(name, expected);
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn is_disabled(&self) -> bool {
        self.text("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    fn endpoint(&mut self, signal: ExportSignal) -> Option<OtlpEndpoint> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name);
        let (name, url) = match self.text(&own) {
            Some(url) => (own, url.to_owned()),
            None => {
                let name = "OTEL_EXPORTER_OTLP_ENDPOINT";
                let base = self.text(name)?;
                (name.to_owned(), format!("{}/{}", base.trim_end_matches('/'), signal.path))
            }
        };
        let exporter = format!("OTEL_{}_EXPORTER", signal.name);
        match self.text(&exporter) {
            Some("none") => return None,
            None | Some("otlp") => {}
            Some(_) => self.reject(&exporter, "otlp or none"),
        }
        if !is_http_url(&url) {
            self.reject(&name, "an http or https URL, such as http://localhost:4318");
            return None;
        }
        if let Some((name, protocol)) = self.of_signal(signal, "PROTOCOL")
            && protocol != "http/protobuf"
        {
            self.reject(&name, "http/protobuf, which is used");
        }
        let gzip = match self.of_signal(signal, "COMPRESSION") {
            None | Some((_, "none")) => false,
            Some((_, "gzip")) => true,
            Some((name, _)) => {
                self.reject(&name, "gzip or none");
                false
            }
        };
        let timeout = self.of_signal(signal, "TIMEOUT").map(|(name, _)| self.milliseconds(&name, 10_000));
        Some(OtlpEndpoint {
            url: Secret::new(url),
            headers: self.headers(signal),
            timeout: timeout.unwrap_or(Duration::from_secs(10)),
            gzip,
        })
    }

    /// Header fields as `name=value,name=value`, percent-encoded. Invalid ones are ignored.
    fn headers(&mut self, signal: ExportSignal) -> Vec<(String, Secret)> {
        let Some((name, text)) = self.of_signal(signal, "HEADERS") else { return Vec::new() };
        let mut headers: Vec<(String, Secret)> = Vec::new();
        let mut has_invalid = false;
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            match header(pair) {
                Some((field, value)) if headers.len() < limits::API_HEADERS_MAX => {
                    headers.retain(|(earlier, _)| *earlier != field);
                    headers.push((field, value));
                }
                _ => has_invalid = true,
            }
        }
        if has_invalid {
            let most = limits::API_HEADERS_MAX;
            self.reject(&name, &format!("at most {most} pairs name=value, with other names than Host, Content-Type and the like; the valid ones are used"));
        }
        headers
    }

    /// A number of milliseconds other than 0.
    fn milliseconds(&mut self, name: &str, default: u64) -> Duration {
        let limit = limits::OTEL_MILLISECONDS_MAX;
        Duration::from_millis(self.number(name, default, limit, "a number of milliseconds"))
    }

    fn number(&mut self, name: &str, default: u64, most: u64, what: &str) -> u64 {
        let Some(text) = self.text(name) else { return default };
        match text.parse() {
            Ok(number) if (1..=most).contains(&number) => number,
            _ => {
                self.reject(name, &format!("{what} from 1 to {most}; {default} is used"));
                default
            }
        }
    }

    fn batches(&mut self) -> SpanBatches {
        let queue_max =
            self.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, limits::SPANS_QUEUED_MAX, "a number of spans");
        let batch_max = self.number(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            512.min(queue_max),
            queue_max.min(limits::SPANS_EXPORTED_MAX),
            "a number of spans",
        );
        SpanBatches {
            delay: self.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000),
            timeout: self.milliseconds("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
            queue_max: usize::try_from(queue_max).unwrap_or(usize::MAX),
            batch_max: usize::try_from(batch_max).unwrap_or(usize::MAX),
        }
    }

    fn sampler(&mut self) -> Option<Sampler> {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        let text = self.text(NAME)?;
        let (is_parent_based, root) = match text.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, text),
        };
        let root = match root {
            "always_on" => RootSampler::On,
            "always_off" => RootSampler::Off,
            "traceidratio" => RootSampler::of_ratio(self.ratio()),
            _ => {
                self.reject(
                    NAME,
                    "always_on, always_off, traceidratio, or one of these after parentbased_; requests have no spans",
                );
                return None;
            }
        };
        Some(Sampler { is_parent_based, root })
    }

    fn ratio(&mut self) -> f64 {
        const NAME: &str = "OTEL_TRACES_SAMPLER_ARG";
        let Some(text) = self.text(NAME) else { return 1.0 };
        match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => {
                self.reject(NAME, "a number from 0 to 1; 1 is used");
                1.0
            }
        }
    }

    /// `OTEL_RESOURCE_ATTRIBUTES`, of which an error discards all, and `OTEL_SERVICE_NAME`.
    fn resource(&mut self) -> Vec<(String, String)> {
        const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let parsed = self.text(NAME).map(attributes).unwrap_or_else(|| Some(Vec::new()));
        if parsed.is_none() {
            let (most, bytes) = (limits::OTEL_ATTRIBUTES_MAX, limits::OTEL_ATTRIBUTE_BYTES_MAX);
            let expected = format!(
                "at most {most} pairs name=value, percent-encoded, of up to {bytes} bytes; none of them is used"
            );
            self.reject(NAME, &expected);
        }
        let mut resource = parsed.unwrap_or_default();
        let name = self.text("OTEL_SERVICE_NAME").map(|name| cut(name, limits::OTEL_ATTRIBUTE_BYTES_MAX));
        let is_name = |(key, _): &(String, String)| key == "service.name";
        match name {
            Some(name) => {
                resource.retain(|pair| !is_name(pair));
                resource.push(("service.name".to_owned(), name.to_owned()));
            }
            None if !resource.iter().any(is_name) => {
                resource.push(("service.name".to_owned(), SERVICE_NAME.to_owned()));
            }
            None => {}
        }
        resource
    }

    fn warn_of_unread(&mut self) {
        for end in UNREAD_ENDS {
            for signal in ["", "TRACES_", "METRICS_"] {
                let name = format!("OTEL_EXPORTER_OTLP_{signal}{end}");
                if self.text(&name).is_some() {
                    self.reject(&name, "unset: api_ca_file has the authorities of the collector too");
                }
            }
        }
    }
}

fn is_http_url(text: &str) -> bool {
    let uri: Result<Uri, _> = text.parse();
    uri.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    })
}

/// The beginning of a text, at most so many bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A percent-decoded text.
fn decode(text: &str) -> Option<String> {
    percent_decode_str(text.trim()).decode_utf8().ok().map(|text| text.into_owned())
}

/// The name in lower case and the value of a header field.
fn header(pair: &str) -> Option<(String, Secret)> {
    let (name, value) = pair.split_once('=')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let value = decode(value)?;
    let is_value = value.len() <= limits::API_HEADER_BYTES_MAX && HeaderValue::from_str(&value).is_ok();
    (is_value && !RESERVED.contains(&name.as_str())).then(|| (name.as_str().to_owned(), Secret::new(value)))
}

/// Attributes as `name=value,name=value`, percent-encoded.
fn attributes(text: &str) -> Option<Vec<(String, String)>> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let (name, value) = (decode(name)?, decode(value)?);
        let bytes = name.len().max(value.len());
        if name.is_empty() || bytes > limits::OTEL_ATTRIBUTE_BYTES_MAX {
            return None;
        }
        attributes.retain(|(earlier, _)| *earlier != name);
        attributes.push((name, value));
    }
    (attributes.len() <= limits::OTEL_ATTRIBUTES_MAX).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings of these variables, and the names of those that are ignored.
    fn read_all(variables: &[(&str, &str)]) -> (Telemetry, Vec<String>) {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut warnings = Vec::new();
        let telemetry = read(&variables, &mut warnings);
        (telemetry, warnings.into_iter().map(|mut warning| warning.fields.swap_remove(0).1).collect())
    }

    const BASE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/base/");

    #[test]
    fn endpoints_follow_the_specification() {
        let urls = |variables: &[(&str, &str)]| {
            let (telemetry, ignored) = read_all(variables);
            assert!(ignored.is_empty(), "{ignored:?}");
            [telemetry.traces, telemetry.metrics]
                .map(|endpoint| endpoint.map_or(String::new(), |endpoint| endpoint.url.expose().to_owned()))
        };
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces.example/any");
        let common = ["http://collector:4318/base/v1/traces", "http://collector:4318/base/v1/metrics"]
            .map(str::to_owned);
        assert_eq!(urls(&[BASE]), common);
        assert_eq!(urls(&[BASE, own]), ["https://traces.example/any", common[1].as_str()]);
        assert_eq!(urls(&[own]), ["https://traces.example/any", ""]);
        assert_eq!(urls(&[own, ("OTEL_TRACES_EXPORTER", "none")]), ["", ""]);
        assert_eq!(urls(&[BASE, ("OTEL_SDK_DISABLED", "True")]), ["", ""]);
        assert_eq!(urls(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), ["", ""]);
        assert_eq!(urls(&[("OTEL_TRACES_SAMPLER", "nonsense")]), ["", ""], "nothing is read");
    }

    #[test]
    fn the_variable_of_a_signal_replaces_the_common_one() {
        let (telemetry, ignored) = read_all(&[
            BASE,
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20one, x-a = b"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-c=d,x-c=e"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "200"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
        ]);
        assert!(ignored.is_empty(), "{ignored:?}");
        let (traces, metrics) = (telemetry.traces.unwrap(), telemetry.metrics.unwrap());
        let header = |(name, value): (&str, &str)| (name.to_owned(), Secret::new(value));
        assert_eq!(traces.headers, [header(("x-c", "e"))]);
        assert_eq!(metrics.headers, [("authorization", "Bearer one"), ("x-a", "b")].map(header));
        assert_eq!((traces.timeout.as_millis(), metrics.timeout.as_millis()), (1500, 200));
        assert_eq!((traces.gzip, metrics.gzip), (false, true));
        let defaults = [telemetry.metric_interval, telemetry.metric_timeout, telemetry.batches.delay];
        assert_eq!(defaults.map(|time| time.as_secs()), [60, 30, 5]);
        assert_eq!((telemetry.batches.queue_max, telemetry.batches.batch_max), (2048, 512));
    }

    #[test]
    fn invalid_values_are_ignored_and_named() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://collector:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a b=c"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b%0ac"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "host=x"),
            ("OTEL_TRACES_EXPORTER", "console"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "86400001"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "65537"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2049"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER", "parentbased_"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem"),
        ] {
            let (telemetry, ignored) = read_all(&[BASE, (name, value)]);
            assert_eq!(ignored, [name], "{value}");
            assert_eq!(telemetry.resource, [("service.name".to_owned(), SERVICE_NAME.to_owned())]);
            assert!(telemetry.metrics.is_some(), "{name}={value}");
        }
        let (_, ignored) = read_all(&[BASE, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        assert_eq!(ignored, ["OTEL_EXPORTER_OTLP_PROTOCOL"], "once for both signals");
    }

    #[test]
    fn samplers_and_their_ratio() {
        let sampler = |name: &str, ratio: &str| {
            let variables = [BASE, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
            let (telemetry, ignored) = read_all(&variables);
            (telemetry.sampler.unwrap(), ignored.len())
        };
        let expected = |is_parent_based, root, ignored| (Sampler { is_parent_based, root }, ignored);
        assert_eq!(sampler("always_on", "x"), expected(false, RootSampler::On, 0));
        assert_eq!(sampler("parentbased_always_off", ""), expected(true, RootSampler::Off, 0));
        let half = RootSampler::Ratio(1 << 62);
        assert_eq!(sampler("parentbased_traceidratio", "0.5"), expected(true, half, 0));
        for (ratio, ignored) in [("", 0), ("1.0", 0), ("1.5", 1), ("NaN", 1), ("many", 1)] {
            assert_eq!(
                sampler("traceidratio", ratio),
                expected(false, RootSampler::Ratio(1 << 63), ignored),
                "{ratio}"
            );
        }
        assert!(RootSampler::Ratio(1 << 63).samples(u64::MAX) && !RootSampler::Ratio(0).samples(0));
    }

    #[test]
    fn the_service_name_is_the_stronger_one() {
        let name = |variables: &[(&str, &str)]| {
            let found = read_all(variables).0.resource;
            found
                .into_iter()
                .filter(|(name, _)| name == "service.name")
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
        };
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=one,service.name=two,k=a%2Cb");
        assert_eq!(name(&[BASE]), ["edge-proxy"]);
        assert_eq!(name(&[BASE, attributes]), ["two"]);
        assert_eq!(name(&[BASE, attributes, ("OTEL_SERVICE_NAME", "three")]), ["three"]);
        assert!(read_all(&[BASE, attributes]).0.resource.contains(&("k".to_owned(), "a,b".to_owned())));
    }
}
