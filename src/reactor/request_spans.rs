//! Spans of requests (OpenTelemetry, semantic conventions for HTTP servers).
//!
//! Without `OTEL_TRACES_SAMPLER` a reactor has no [`RequestSpans`]. Attributes are those of the access log:
//! never a whole key, a query (which contains identifiers) or a body.
use std::cell::RefCell;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::config::{Sampler, Secret};
use crate::http::Request;
use crate::http::route::Route;
use crate::reactor::redaction::{write_path, write_user_agent};
use crate::spans::span::shorten;
use crate::spans::{RequestSampler, RequestTrace, SpanKind, SpanSender, TraceSpan};

/// Spans that are sent together: waking the exporter's thread for each would cost more than the span.
const BATCH_SPANS: usize = 32;

/// Samples, records and buffers the spans of one reactor.
#[derive(Debug)]
pub struct RequestSpans {
    sampler: RequestSampler,
    sender: SpanSender,
    waiting: RefCell<Vec<TraceSpan>>,
}

/// What a span records of a response.
#[derive(Clone, Copy, Debug)]
pub struct SpanOutcome<'a> {
    pub status: u16,
    pub route: Route,
    /// When the request was read.
    pub began: SystemTime,
    pub client: Option<IpAddr>,
    /// The client-side key of the environment, if a key was valid.
    pub environment: Option<&'a str>,
    /// The connection is encrypted.
    pub is_tls: bool,
}

impl RequestSpans {
    pub fn new(sender: SpanSender, sampler: Sampler) -> Self {
        Self { sampler: RequestSampler::new(sampler), sender, waiting: RefCell::default() }
    }

    /// Decides about a request. `None`: it has no span, or there is no space for it.
    #[inline]
    pub fn sample(&self, request: &Request<'_>) -> Option<RequestTrace> {
        let trace = self.sampler.sample(request.fields.traceparent)?;
        self.has_space().then_some(trace)
    }

    #[cold]
    fn has_space(&self) -> bool {
        let has_space = self.sender.has_space();
        if !has_space {
            self.sender.drop_one();
        }
        has_space
    }

    /// Records the span of a request that is answered now.
    pub fn record(&self, trace: RequestTrace, request: &Request<'_>, outcome: SpanOutcome<'_>) {
        self.push(span(trace, request, outcome));
    }

    /// Records a span that [`span`] has made before the status was known.
    pub fn record_deferred(&self, mut span: Box<TraceSpan>, status: u16) {
        span.end = SystemTime::now().max(span.start);
        set_status(&mut span, status);
        self.push(*span);
    }

    fn push(&self, span: TraceSpan) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(span);
        let is_full = waiting.len() >= BATCH_SPANS;
        drop(waiting);
        if is_full {
            self.flush();
        }
    }

    /// Sends the buffered spans.
    pub fn flush(&self) {
        let spans = self.waiting.take();
        if !spans.is_empty() {
            self.sender.send(spans);
        }
    }
}

/// The span of a request. A status of 0 is not known yet.
pub fn span(trace: RequestTrace, request: &Request<'_>, outcome: SpanOutcome<'_>) -> TraceSpan {
    let (method, route) = (request.method.name(), outcome.route.template());
    let mut path = String::new();
    write_path(request.path, &mut path);
    let mut attributes = vec![
        ("http.request.method", if method == "OTHER" { "_OTHER" } else { method }.into()),
        ("url.scheme", if outcome.is_tls { "https" } else { "http" }.into()),
        ("url.path", shorten(path).into()),
        ("network.protocol.version", request.version.number().into()),
    ];
    attributes.extend(route.map(|route| ("http.route", route.into())));
    let client = outcome.client.map(|client| client.to_canonical().to_string());
    attributes.extend(client.map(|client| ("client.address", client.into())));
    if request.fields.user_agent.is_some() {
        let mut text = String::new();
        write_user_agent(request.fields.user_agent, &mut text);
        attributes.push(("user_agent.original", text.into()));
    }
    let environment = outcome.environment.map(|key| Secret::new(key).to_string());
    attributes.extend(environment.map(|environment| ("edge_proxy.environment", environment.into())));
    let name = match route {
        Some(route) => format!("{method} {route}").into(),
        None => method.into(),
    };
    let end = SystemTime::now().max(outcome.began);
    let (trace_id, span_id, parent) = (trace.trace_id, trace.span_id, trace.parent);
    let (kind, start, is_error, message) = (SpanKind::Server, outcome.began, false, None);
    let mut span =
        TraceSpan { trace_id, span_id, parent, kind, name, start, end, attributes, is_error, message };
    if outcome.status > 0 {
        set_status(&mut span, outcome.status);
    }
    span
}

/// Only a 5xx is an error of the server.
fn set_status(span: &mut TraceSpan, status: u16) {
    span.attributes.push(("http.response.status_code", status.into()));
    if status >= 500 {
        span.attributes.push(("error.type", status.to_string().into()));
        span.is_error = true;
    }
}
