//! From bytes to a request: the one place that names monoio-http.
//!
//! In: the connection's buffer. Out: a [`Request`], "need more bytes" (not an error), or a
//! [`super::Reject`]. Invariant: bounds (`limits`) and framing rules (RFC 9112 6) are checked
//! before the decoder sees a byte. Nothing here allocates without a bound.

/// The methods this product tells apart (RFC 9110 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Options,
    /// Any other valid method token; every route refuses it with 405.
    Other,
}

/// The header fields this product reads. Each is the first value of that name, trimmed
/// (the Python proxy reads the first as well). Absent is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// `X-Environment-Key`.
    pub environment_key: Option<&'a [u8]>,
    pub accept_encoding: Option<&'a [u8]>,
    pub content_type: Option<&'a [u8]>,
    pub origin: Option<&'a [u8]>,
    /// Only whether one was sent: it changes the CORS answer (wire.md 2.6).
    pub cookie: bool,
    pub access_control_request_method: Option<&'a [u8]>,
    pub access_control_request_headers: Option<&'a [u8]>,
    pub if_none_match: Option<&'a [u8]>,
    pub if_modified_since: Option<&'a [u8]>,
    pub authorization: Option<&'a [u8]>,
    /// `X-API-Key` (OFREP).
    pub api_key: Option<&'a [u8]>,
    /// `Flagsmith-Application-Name`, `-Version`, and the SDK's name, labels of analytics.
    pub application_name: Option<&'a [u8]>,
    pub application_version: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub sdk_user_agent: Option<&'a [u8]>,
}

/// One request, whole: head decoded, body de-chunked and de-compressed.
#[derive(Debug)]
pub struct Request<'a> {
    pub method: Method,
    /// The path as sent, without the query, before percent-decoding. Starts with `/`.
    pub path: &'a [u8],
    /// What follows the first `?`, before percent-decoding; empty if there is none.
    pub query: &'a [u8],
    pub fields: Fields<'a>,
    /// Mutable because simd-json parses in place.
    pub body: &'a mut [u8],
    /// False when the answer must carry `Connection: close`.
    pub keep_alive: bool,
    /// HTTP/1.0 asked for keep-alive, so the answer must say `Connection: keep-alive`.
    pub http_10: bool,
}

impl Request<'_> {
    /// What the writer must know of this request.
    pub fn reply(&self) -> super::Reply {
        super::Reply { head: self.method == Method::Head, keep_alive: self.keep_alive, http_10: self.http_10 }
    }
}
