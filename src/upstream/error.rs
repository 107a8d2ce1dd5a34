//! Why a poll failed.
//!
//! In: statuses and errors of transport. Out: a kind, by which the log tells a new failure from one
//! that goes on, and one line for people. Invariant: no key and no whole address stands in it.
use std::time::Duration;

use crate::snapshot::LastError;

/// The kind of a failure: a line is logged when it changes, not for each poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollErrorKind {
    /// A name that does not resolve.
    Name,
    /// Nothing listens at the address.
    Refused,
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
    /// An event stream that sends faster than it may.
    Flood,
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

impl PollErrorKind {
    /// The name that the public port shows: nothing in it depends on what upstream sent or on how the proxy
    /// is configured, so it reveals no host name, path or key.
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

    /// What snapshots carry of it.
    pub fn summary(&self) -> LastError {
        LastError { kind: self.kind.name(), text: self.message.as_str().into() }
    }
}
