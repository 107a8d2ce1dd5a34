//! One enum of refusals, one match to status and body.
//!
//! In: why a request cannot be answered as asked. Out: the status, the JSON object SDKs and
//! people read, and whether the connection closes. Invariant: `Copy`, no heap; every refused
//! request goes through here (wire.md 2.6 for the bodies).

/// Refusals that need nothing but themselves. Those that carry text (an unknown key, FastAPI's
/// `detail` list) are written by `answer` with the same status table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Not HTTP as RFC 9112 has it, or framing that two parsers may read differently: 400, close.
    BadRequest,
    /// A transfer coding other than chunked: 501, close.
    UnknownCoding,
    /// Head or header fields beyond the limits: 431, close.
    HeadTooLarge,
    /// Target beyond the limit: 414, close.
    TargetTooLong,
    /// Body beyond the limit: 413, close.
    BodyTooLarge,
    /// A content coding we do not decode: 415.
    UnsupportedCoding,
    /// The peer took too long to send what it began: 408, close.
    Timeout,
    /// No such path: 404.
    NotFound,
}
