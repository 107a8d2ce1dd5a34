//! The client of a collector of OpenTelemetry: OTLP over HTTP, with protobuf bodies.
use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::Uri;

use crate::config::{Config, OtlpEndpoint, Secret, SettingError};
use crate::limits;
use crate::upstream::client::{Client, UpstreamResponse};
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::response::retry_after;
use crate::upstream::{basic, url};

/// One endpoint of a collector. Outgoing proxies and authorities are those of the API.
#[derive(Debug)]
pub struct Collector {
    client: Client,
    uri: Uri,
    /// `Authorization` from the user and password of the URL.
    credentials: Option<Secret>,
    headers: Vec<(String, Secret)>,
    gzip: bool,
}

/// The outcome of an export.
#[derive(Debug)]
pub enum ExportOutcome {
    /// The body of the response: a message of the protocol.
    Accepted(Vec<u8>),
    /// The collector never accepts it.
    Refused(PollError),
    /// It may be accepted later (OTLP, Retryable Response Codes).
    Failed(PollError),
}

impl Collector {
    /// # Errors
    /// One error for each invalid setting (outgoing proxies, certificates).
    pub fn new(config: &Config, endpoint: &OtlpEndpoint) -> Result<Self, Vec<SettingError>> {
        let (uri, credentials) = basic::split(&endpoint.url.expose().parse().unwrap_or_default());
        let client = Client::for_collector(config, endpoint.timeout)?;
        let (headers, gzip) = (endpoint.headers.clone(), endpoint.gzip);
        Ok(Self { client, uri, credentials, headers, gzip })
    }

    /// Posts an export once, within this time.
    pub fn export(&self, body: &[u8], time_max: Duration) -> ExportOutcome {
        let has_authorization = self.headers.iter().any(|(name, _)| name == "authorization");
        let credentials = self.credentials.as_ref().filter(|_| !has_authorization);
        let mut fields: Vec<_> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        fields.extend(credentials.map(|credentials| ("authorization", credentials.expose())));
        let compressed = self.gzip.then(|| gzip(body)).flatten();
        fields.extend(compressed.as_ref().map(|_| ("content-encoding", "gzip")));
        let body = compressed.as_deref().unwrap_or(body);
        match self.client.post_as("application/x-protobuf", &self.uri, &fields, body, Some(time_max)) {
            Ok(response) => self.outcome(response),
            Err(error) => ExportOutcome::Failed(error),
        }
    }

    fn outcome(&self, mut response: UpstreamResponse) -> ExportOutcome {
        let status = response.status;
        let cause = match status {
            200..=299 => return ExportOutcome::Accepted(self.body(&mut response)),
            401 | 403 => "check OTEL_EXPORTER_OTLP_HEADERS",
            404 | 405 => "check OTEL_EXPORTER_OTLP_ENDPOINT: /v1/traces and /v1/metrics are appended to it",
            413 => "the export is too large: lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            415 => "the collector accepts no protobuf over HTTP: check the port (usually 4318)",
            300..=399 => "redirects are not followed: set the final URL",
            429 | 502..=504 => "the collector is down or overloaded",
            _ => "unexpected status",
        };
        let error = PollError {
            kind: PollErrorKind::Status(status),
            message: format!("{} answered {status}: {cause}", url::origin(&response.uri)),
            retry_after: retry_after(&response),
        };
        match status {
            429 | 502..=504 => ExportOutcome::Failed(error),
            _ => ExportOutcome::Refused(error),
        }
    }

    /// The body; empty if it cannot be read or is too large.
    fn body(&self, response: &mut UpstreamResponse) -> Vec<u8> {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4 * 1024]);
        while let Ok(count @ 1..) = self.client.read(response, &mut piece) {
            bytes.extend_from_slice(&piece[..count]);
            if bytes.len() > limits::OTLP_ANSWER_BYTES_MAX {
                return Vec::new();
            }
        }
        bytes
    }

    /// The beginning of a text of the collector; a constant if it repeats a value of a header field.
    pub fn without_secrets(&self, text: &str) -> String {
        let secrets = self.headers.iter().map(|(_, value)| value).chain(&self.credentials);
        let mut secrets = secrets.map(Secret::expose).filter(|secret| !secret.is_empty());
        match secrets.any(|secret| text.contains(secret)) {
            true => "a message that contains a header field".to_owned(),
            false => text.chars().take(limits::SPAN_TEXT_BYTES_MAX).collect(),
        }
    }
}

fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}
