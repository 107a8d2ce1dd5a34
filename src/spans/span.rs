//! [`TraceSpan`]: one finished operation, with the names of the semantic conventions of OpenTelemetry.
use std::borrow::Cow;
use std::time::SystemTime;

use crate::limits::SPAN_TEXT_BYTES_MAX;
use crate::spans::context::{SpanId, TraceId};

/// Which side of a call a span describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    Internal,
    /// A request of a client.
    Server,
    /// A request to another program.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanValue {
    Text(Cow<'static, str>),
    Number(i64),
}

impl From<&'static str> for SpanValue {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

/// Cut to `SPAN_TEXT_BYTES_MAX`.
impl From<String> for SpanValue {
    fn from(text: String) -> Self {
        Self::Text(shorten(text).into())
    }
}

impl From<i64> for SpanValue {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u16> for SpanValue {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for SpanValue {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// An attribute: a name and its value. Neither contains a key of an environment.
pub type SpanAttribute = (&'static str, SpanValue);

#[derive(Clone, Debug)]
pub struct TraceSpan {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub parent: Option<SpanId>,
    pub kind: SpanKind,
    pub name: Cow<'static, str>,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<SpanAttribute>,
    /// It has failed.
    pub is_error: bool,
    /// What has failed, if there is more to say than the attribute `error.type`.
    pub message: Option<String>,
}

/// Cuts a text to `SPAN_TEXT_BYTES_MAX`, at a character.
pub fn shorten(mut text: String) -> String {
    let mut end = SPAN_TEXT_BYTES_MAX;
    if text.len() > end {
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
