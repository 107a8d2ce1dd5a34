//! [`PollError`]: why a request to upstream failed.
//!
//! Messages contain neither keys nor complete URLs, which may contain secrets.
use std::fmt;
use std::time::Duration;

/// The kind of a failure. While polls keep failing, a line is logged when the kind changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollErrorKind {
    /// The host name does not resolve.
    Name,
    /// The connection was refused.
    Refused,
    Connect,
    Tls,
    /// No data, or too little data, in time.
    Timeout,
    /// The connection broke, or the response is not valid HTTP.
    Interrupted,
    Status(u16),
    Redirect,
    Pages,
    TooLarge,
    /// An event stream exceeded its rate limit.
    Flood,
    /// 304 in response to an unconditional request.
    NotModified,
    /// The body is not a valid environment document.
    Document,
    /// There is no valid key.
    Key,
    /// A document on disk cannot be read.
    File,
    /// A bug in this program.
    Internal,
}

impl PollErrorKind {
    /// The name shown on the public port. It is constant, so it reveals no host name, path or key.
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name_resolution",
            Self::Refused => "connection_refused",
            Self::Connect => "connection_failed",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Interrupted => "connection_interrupted",
            Self::Status(_) => "http_status",
            Self::Redirect => "redirect",
            Self::Pages => "pagination",
            Self::TooLarge => "too_large",
            Self::Flood => "flood",
            Self::NotModified => "not_modified",
            Self::Document => "invalid_document",
            Self::Key => "no_key",
            Self::File => "file",
            Self::Internal => "internal",
        }
    }
}

/// A failed request to upstream. The caller keeps serving its current document and retries.
#[derive(Clone, Debug)]
pub struct PollError {
    pub kind: PollErrorKind,
    /// One line: what failed, the likely cause and what to do. Without secrets.
    pub message: String,
    pub retry_after: Option<Duration>,
}

/// Describes a JSON error by its position only: serde's message would quote the unexpected value, which may
/// be a key.
pub fn describe_json(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "truncated JSON",
        serde_json::error::Category::Data => "unexpected JSON structure",
        _ => "not JSON",
    };
    format!("{what} (line {} column {})", error.line(), error.column())
}

impl PollError {
    pub fn new(kind: PollErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PollError {}
