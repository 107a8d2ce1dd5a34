//! Spans of requests (OpenTelemetry, semantic conventions for HTTP clients), for threads that are in a span.
//!
//! A URL is recorded without its query, and without its path if that contains a key. The span ends with the
//! head of the response.
use http::Uri;

use crate::spans::tracer;
use crate::spans::{ActiveSpan, SpanKind};
use crate::upstream::error::PollError;
use crate::upstream::url;

/// Sends a request with these header fields in a span, and with the `traceparent` of the span; without one if
/// the thread is in no span. `status` is that of a response.
pub fn traced<T>(
    method: &'static str,
    uri: &Uri,
    fields: &[(&str, &str)],
    status: impl FnOnce(&T) -> u16,
    send: impl FnOnce(&[(&str, &str)]) -> Result<T, PollError>,
) -> Result<T, PollError> {
    tracer::child(method, SpanKind::Client, |span| {
        let Some(traceparent) = span.traceparent() else { return send(fields) };
        describe(span, method, uri);
        let own = fields.iter().copied().filter(|(name, _)| *name != "traceparent");
        let fields: Vec<(&str, &str)> = own.chain([("traceparent", traceparent.as_str())]).collect();
        let result = send(&fields);
        match &result {
            Ok(response) => {
                let status = status(response);
                span.set("http.response.status_code", || status);
                if status >= 400 {
                    span.fail(&status.to_string(), "");
                }
            }
            Err(error) => span.fail(error.kind.name(), &error.message),
        }
        result
    })
}

fn describe(span: &ActiveSpan, method: &'static str, uri: &Uri) {
    let is_https = uri.scheme_str() == Some("https");
    span.set("http.request.method", || method);
    span.set("url.full", || {
        let has_key = uri.path().to_ascii_lowercase().contains("ser.");
        format!("{}{}", url::origin(uri), if has_key { "/..." } else { uri.path() })
    });
    span.set("server.address", || uri.host().unwrap_or_default().to_owned());
    span.set("server.port", || uri.port_u16().unwrap_or(if is_https { 443 } else { 80 }));
}
