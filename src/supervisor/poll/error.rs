//! Why a poll failed.
//!
//! In: statuses and errors of transport. Out: a kind, by which the log tells a new failure from one
//! that goes on, and one line for people. Invariant: no key and no whole address stands in it.
use std::time::Duration;

/// The kind of a failure: a line is logged when it changes, not for each poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollErrorKind {
    /// A name that does not resolve.
    Name,
    Connect,
    Tls,
    /// Silence, or a drip.
    Timeout,
    /// A connection or a body that broke off.
    Interrupted,
    Status(u16),
    Redirect,
    Pages,
    TooLarge,
    /// 304 though nothing is held.
    NotModified,
    /// The bytes came, but they are no environment document.
    Document,
    /// No key to ask with.
    Key,
    /// A document on disk that cannot be read.
    File,
    /// A defect of ours.
    Internal,
}

/// Why a poll failed. Never fatal.
#[derive(Clone, Debug)]
pub struct PollError {
    pub kind: PollErrorKind,
    /// One line: what happened, the likely cause and what to do. No secrets.
    pub message: String,
    pub retry_after: Option<Duration>,
}

/// What is wrong with JSON of upstream, by its place alone: serde would quote the value that it did
/// not expect, and that may be a key.
pub fn misshapen(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "JSON that was cut off",
        serde_json::error::Category::Data => "of another shape",
        _ => "not JSON",
    };
    format!("{what} (line {} column {})", error.line(), error.column())
}

impl PollError {
    pub fn new(kind: PollErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }
}
