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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::spans::queue::{SpanMessage, queue};
    use crate::spans::{SpanValue, Tracer};

    #[test]
    fn a_request_is_described_with_its_port_and_without_its_key() {
        for (uri, url, port) in [
            ("https://flags.example/api/SER.key/?q", "https://flags.example/...", 443_u16),
            ("http://flags.example/api/?q", "http://flags.example/api/", 80),
            ("https://flags.example:8443/", "https://flags.example:8443/", 8443),
        ] {
            let (sender, receiver) = queue(8, Arc::default());
            let uri = Uri::from_static(uri);
            let sent = Tracer::of(Some(sender), None).trace("poll", |_| {
                traced(
                    "GET",
                    &uri,
                    &[("traceparent", "of a caller"), ("x", "y")],
                    |status| *status,
                    |fields| {
                        assert_eq!(fields.iter().filter(|(name, _)| *name == "traceparent").count(), 1);
                        assert!(
                            fields.contains(&("x", "y")) && !fields.contains(&("traceparent", "of a caller"))
                        );
                        Ok(204)
                    },
                )
            });
            assert!(sent.is_ok());
            let mut spans = Vec::new();
            while let Ok(Some(SpanMessage::Spans(more))) = receiver.next(Duration::ZERO) {
                spans.extend(more);
            }
            let get = spans.iter().find(|span| span.name == "GET").expect("its span");
            let text = |text: &'static str| SpanValue::from(text);
            let expected = [
                ("http.request.method", text("GET")),
                ("url.full", text(url)),
                ("server.address", text("flags.example")),
                ("server.port", port.into()),
                ("http.response.status_code", 204_u16.into()),
            ];
            assert_eq!(get.attributes, expected);
            assert!(!get.is_error);
        }
    }
}
