//! What the owner of a connection configures, receives and passes.
use crate::http::error::ParseError;
use crate::http::h2::frame::ErrorCode;
use crate::http::h2::outgoing::SharedTail;

/// The configured limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Http2Limits {
    pub head_bytes_max: usize,
    pub streams_max: usize,
}

/// What the owner does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2Event {
    /// The head of a request whose body follows: accept or answer it.
    Head,
    /// A request is complete: answer it.
    Request,
    /// A request is answered with an error.
    Refused(ParseError),
    /// Read more bytes, or write the output if it is large.
    NeedBytes,
    /// Write the output and close the connection.
    Close,
}

/// Events since they were last taken.
#[derive(Debug, Default)]
pub struct Http2Counts {
    pub streams: u64,
    pub resets_by_client: u64,
    pub resets_by_server: u64,
    /// Responses that waited for the peer's window.
    pub window_stalls: u64,
    /// The GOAWAY frame that was sent.
    pub goaway: Option<ErrorCode>,
}

/// A response as [`ResponseWriter`](crate::http::ResponseWriter) has written it at the end of `bytes`: space
/// for a frame head, a header block, space for another frame head, and a body of which the end may be in
/// `tail`.
pub struct WrittenResponse<'a> {
    pub bytes: &'a mut Vec<u8>,
    pub start: usize,
    pub body_start: usize,
    pub tail: Option<SharedTail>,
    /// False: an event stream, which continues.
    pub is_last: bool,
}

/// How long streams may wait for the peer, in ticks of the owner's clock.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    pub body_ticks: u32,
    pub write_ticks: u32,
}

/// What the bytes at the end of the buffer have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    Nothing,
    /// The preface, a header block, or a frame without a body.
    Head,
    Data,
}
