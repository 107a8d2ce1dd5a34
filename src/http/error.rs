//! One enum of refusals, one match to status and body.
//!
//! In: why a request cannot be answered as asked. Out: the status, the JSON object SDKs and
//! people read, and whether the connection closes. Invariant: `Copy`, no heap; every refused
//! request goes through here (compatibility.md 2.6 for the bodies).
use crate::http::Status;

/// Refusals that need nothing but themselves. Those that carry text (an unknown key, FastAPI's
/// `detail` list) are written by `answer` with the same status table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Not HTTP as RFC 9112 has it, or framing that two parsers may read differently: 400, close.
    BadRequest,
    /// A transfer coding other than chunked: 501, close.
    UnknownCoding,
    /// A version of HTTP that is not 1.0 or 1.1: 505, close.
    UnknownVersion,
    /// Head or header fields beyond the limits: 431, close.
    HeadTooLarge,
    /// Target beyond the limit: 414, close.
    TargetTooLong,
    /// Body beyond the limit: 413, close.
    BodyTooLarge,
    /// A content coding that is not supported: 415. Its body is read over.
    UnsupportedCoding,
    /// A body that says gzip and is not: 400.
    BadCoding,
    /// Bytes after the last member of a gzip body: 400, close.
    TrailingBytes,
    /// An expectation other than `100-continue`: 417, close.
    UnknownExpectation,
    /// The peer took too long to send what it began: 408, close.
    Timeout,
    /// A defect of ours: 500, close.
    Internal,
}

impl ParseError {
    /// All of them, in the order of their numbers; a test of `metrics` holds it to that.
    pub const ALL: [Self; 12] = [
        Self::BadRequest,
        Self::UnknownCoding,
        Self::UnknownVersion,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::BodyTooLarge,
        Self::UnsupportedCoding,
        Self::BadCoding,
        Self::TrailingBytes,
        Self::UnknownExpectation,
        Self::Timeout,
        Self::Internal,
    ];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownCoding => "unknown_coding",
            Self::UnknownVersion => "unknown_version",
            Self::HeadTooLarge => "head_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedCoding => "unsupported_coding",
            Self::BadCoding => "bad_coding",
            Self::TrailingBytes => "trailing_bytes",
            Self::UnknownExpectation => "unknown_expectation",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }

    /// The status of this refusal.
    pub fn status(self) -> Status {
        Status(match self {
            Self::BadRequest | Self::BadCoding | Self::TrailingBytes => 400,
            Self::Timeout => 408,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::UnsupportedCoding => 415,
            Self::UnknownExpectation => 417,
            Self::HeadTooLarge => 431,
            Self::Internal => 500,
            Self::UnknownCoding => 501,
            Self::UnknownVersion => 505,
        })
    }

    /// The body: an object, never an array (compatibility.md 2.3).
    pub fn body(self) -> &'static [u8] {
        match self {
            Self::BadRequest => b"{\"detail\":\"Bad request\"}",
            Self::BadCoding => b"{\"detail\":\"There was an error parsing the body\"}",
            Self::TrailingBytes => b"{\"detail\":\"Bytes after the end of the gzip body\"}",
            Self::Timeout => b"{\"detail\":\"Request timed out\"}",
            Self::BodyTooLarge => b"{\"detail\":\"Request body too large\"}",
            Self::TargetTooLong => b"{\"detail\":\"Request target too long\"}",
            Self::UnsupportedCoding => b"{\"detail\":\"Unsupported content encoding\"}",
            Self::UnknownExpectation => b"{\"detail\":\"Expectation failed\"}",
            Self::HeadTooLarge => b"{\"detail\":\"Request header fields too large\"}",
            Self::Internal => b"{\"detail\":\"Internal Server Error\"}",
            Self::UnknownCoding => b"{\"detail\":\"Unknown transfer coding\"}",
            Self::UnknownVersion => b"{\"detail\":\"HTTP version not supported\"}",
        }
    }

    /// True if nothing that follows on this connection can be trusted to be a request.
    pub fn closes(self) -> bool {
        !matches!(self, Self::BadCoding | Self::UnsupportedCoding)
    }
}
