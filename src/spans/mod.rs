//! Spans of OpenTelemetry, from their beginning until the exporter takes them. Without an exporter nothing is
//! recorded.
//!
//! Requests are sampled and recorded by the reactors ([`request`]); polls, compilations and uploads by the
//! threads of the control plane ([`tracer`]). Both send their spans to one bounded [`queue`] without waiting:
//! a span that does not fit is dropped and counted.
pub mod context;
pub mod queue;
pub mod request;
pub mod span;
pub mod tracer;

pub use crate::spans::context::TraceParent;
pub use crate::spans::queue::{SpanMessage, SpanReceiver, SpanSender};
pub use crate::spans::request::{RequestSampler, RequestTrace};
pub use crate::spans::span::{SpanKind, SpanValue, TraceSpan};
pub use crate::spans::tracer::{ActiveSpan, ParentSpan, Tracer};
