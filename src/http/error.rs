//! The errors that end a request before or while it is read, each with its status and body (compatibility.md
//! 2.6).
use crate::http::status::Status;

/// Why a request cannot be read. Errors with variable text (an unknown key, FastAPI's `detail` list) are
/// rendered by the request handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Not valid by RFC 9112, or framed so that two parsers may disagree: 400, close.
    BadRequest,
    /// A transfer coding other than chunked: 501, close.
    UnknownCoding,
    /// An HTTP version other than 1.0 and 1.1: 505, close.
    UnknownVersion,
    /// The head or its number of fields exceeds the limit: 431, close.
    HeadTooLarge,
    /// The target exceeds the limit: 414, close.
    TargetTooLong,
    /// The body exceeds the limit: 413, close.
    BodyTooLarge,
    /// An unsupported content coding: 415. The body is skipped.
    UnsupportedCoding,
    /// A gzip body that is invalid: 400.
    BadCoding,
    /// Bytes after the last member of a gzip body: 400, close.
    TrailingBytes,
    /// An expectation other than `100-continue`: 417, close.
    UnknownExpectation,
    /// `server.allow_list` or `server.deny_list` excludes the client: 403, close if the body was not read.
    Forbidden,
    /// The peer did not finish the head or body in time: 408, close.
    Timeout,
    /// A defect of this program: 500, close.
    Internal,
}

impl ParseError {
    /// All variants in declaration order, which `metrics` uses as an index and a test there checks.
    pub const ALL: [Self; 13] = [
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
        Self::Forbidden,
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
            Self::Forbidden => "forbidden",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }

    /// The status of the error response.
    pub fn status(self) -> Status {
        Status(match self {
            Self::BadRequest | Self::BadCoding | Self::TrailingBytes => 400,
            Self::Forbidden => 403,
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

    /// The body of the error response: an object, never an array (compatibility.md 2.3).
    pub fn body(self) -> &'static [u8] {
        match self {
            Self::BadRequest => b"{\"detail\":\"Bad request\"}",
            Self::BadCoding => b"{\"detail\":\"There was an error parsing the body\"}",
            Self::TrailingBytes => b"{\"detail\":\"Bytes after the end of the gzip body\"}",
            Self::Forbidden => b"{\"detail\":\"Forbidden\"}",
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

    /// Whether the connection must close, because the start of the next request is unknown. For `Forbidden`
    /// the caller decides.
    pub fn closes(self) -> bool {
        !matches!(self, Self::BadCoding | Self::UnsupportedCoding | Self::Forbidden)
    }
}
