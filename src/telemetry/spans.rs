//! Exports spans in batches (`OTEL_BSP_*`).
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1 as proto;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as ProtoKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, SpanFlags, Status};
use prost::Message;

use crate::config::SpanBatches;
use crate::metrics::SpanLoss;
use crate::spans::{SpanKind, SpanMessage, SpanReceiver, SpanValue, TraceSpan};
use crate::telemetry::export::{Exporter, PartialSuccess};
use crate::telemetry::resource::{Origin, attribute, unix_nanos};

/// The flag of a sampled trace (W3C Trace Context, 3.2.2.5).
const SAMPLED: u32 = 1;

pub struct SpanExport {
    receiver: SpanReceiver,
    exporter: Exporter,
    settings: SpanBatches,
    origin: Arc<Origin>,
    /// Received, and not exported yet.
    waiting: Vec<TraceSpan>,
}

impl SpanExport {
    pub fn new(
        receiver: SpanReceiver,
        exporter: Exporter,
        settings: SpanBatches,
        origin: Arc<Origin>,
    ) -> Self {
        Self { receiver, exporter, settings, origin, waiting: Vec::new() }
    }

    /// Runs until the process ends, and exports what waits then.
    pub fn run(mut self) {
        let mut due = Instant::now() + self.settings.delay;
        loop {
            let is_stopping = self.exporter.stop().deadline().is_some();
            let wait =
                if is_stopping { Duration::ZERO } else { due.saturating_duration_since(Instant::now()) };
            let is_empty = !self.receive(wait);
            let (is_full, is_due) = (self.waiting.len() >= self.settings.batch_max, Instant::now() >= due);
            if is_full || is_due || (is_stopping && is_empty) {
                let is_sent = self.export();
                if is_stopping && (!is_sent || (is_empty && self.waiting.is_empty())) {
                    return self.give_up();
                }
            }
            if is_due {
                due = Instant::now() + self.settings.delay;
            }
        }
    }

    /// Receives a message. False: there is none in this time.
    fn receive(&mut self, wait: Duration) -> bool {
        match self.receiver.next(wait) {
            Ok(Some(SpanMessage::Spans(spans))) => {
                self.waiting.extend(spans);
                true
            }
            Ok(Some(SpanMessage::Stop)) => true,
            Ok(None) => false,
            // Without a sender the process is about to end.
            Err(_) => {
                self.exporter.stop().wait(wait);
                false
            }
        }
    }

    /// Exports one batch. False: it was given up.
    fn export(&mut self) -> bool {
        let count = self.waiting.len().min(self.settings.batch_max);
        if count == 0 {
            return true;
        }
        let batch: Vec<TraceSpan> = self.waiting.drain(..count).collect();
        let body = encode(batch, &self.origin);
        let answer = self.exporter.export(&body, self.settings.timeout);
        self.receiver.release(count);
        let Some(answer) = answer else {
            self.exporter.metrics().lost(SpanLoss::Failed, count as u64);
            return false;
        };
        // An answer that is not a message of the protocol says nothing: the status has accepted the export.
        let answer = ExportTraceServiceResponse::decode(&*answer).unwrap_or_default();
        let partial = answer.partial_success.unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0).min(count as u64);
        self.exporter.metrics().spans_exported.add(count as u64 - rejected);
        self.exporter.metrics().lost(SpanLoss::Rejected, rejected);
        self.exporter.report_partial(&PartialSuccess { rejected, message: partial.error_message });
        true
    }

    /// Counts what is not exported any more.
    fn give_up(mut self) {
        while self.receive(Duration::ZERO) {}
        self.exporter.metrics().lost(SpanLoss::Failed, self.waiting.len() as u64);
    }
}

fn encode(spans: Vec<TraceSpan>, origin: &Origin) -> Vec<u8> {
    let spans = spans.into_iter().map(proto_span).collect();
    let scope = ScopeSpans { scope: Some(origin.scope.clone()), spans, ..ScopeSpans::default() };
    let resource = Some(origin.resource.clone());
    let resource_spans =
        vec![ResourceSpans { resource, scope_spans: vec![scope], ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn proto_span(span: TraceSpan) -> proto::Span {
    let (kind, is_remote) = match span.kind {
        SpanKind::Internal => (ProtoKind::Internal, false),
        SpanKind::Server => (ProtoKind::Server, span.parent.is_some()),
        SpanKind::Client => (ProtoKind::Client, false),
    };
    let remote = if is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    let attributes = span.attributes.into_iter().map(|(name, value)| {
        attribute(
            name,
            match value {
                SpanValue::Text(text) => Value::StringValue(text.into_owned()),
                SpanValue::Number(number) => Value::IntValue(number),
            },
        )
    });
    proto::Span {
        trace_id: span.trace_id.to_vec(),
        span_id: span.span_id.to_vec(),
        parent_span_id: span.parent.map(Vec::from).unwrap_or_default(),
        flags: SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32 | remote,
        name: span.name.into_owned(),
        kind: kind.into(),
        start_time_unix_nano: unix_nanos(span.start),
        end_time_unix_nano: unix_nanos(span.end),
        attributes: attributes.collect(),
        // An unset status is that of success (OpenTelemetry, semantic conventions for HTTP).
        status: span
            .is_error
            .then(|| Status { message: span.message.unwrap_or_default(), code: StatusCode::Error.into() }),
        ..proto::Span::default()
    }
}
