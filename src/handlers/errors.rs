//! Error responses: why a request failed, with the status and the JSON body that report it.
//!
//! The body is always a JSON object, never an array (compatibility.md 2.3). The Java SDK retries 413, 429 and
//! 503 without end, so no error of a route that it uses has one of these statuses, except 413 for what is too
//! large.
use std::borrow::Cow;

use crate::http::route::Methods;
use crate::http::{ParseError, Status};
use crate::identity::IdentityError;
use crate::json::write;
use crate::limits::KEY_QUOTED_BYTES_MAX;

const NOT_FOUND: &[u8] = br#"{"detail":"Not Found"}"#;
const PRECONDITION_FAILED: &[u8] = br#"{"detail":"Precondition Failed"}"#;
const METHOD_NOT_ALLOWED: &[u8] = br#"{"detail":"Method Not Allowed"}"#;

const KEY_MISSING: &[u8] =
    br#"{"status":"unauthorized","message":"missing key: send the environment's key as X-Environment-Key"}"#;
const NO_DOCUMENT: &[u8] = br#"{"status":"unavailable","message":"no environment document yet: the proxy has not fetched one for this key"}"#;

const KEY_NOT_LOADED: &[u8] = br#"{"status":"unavailable","message":"key not known yet: the proxy has not read all of its environments, see the log"}"#;

const TRAITS_TOO_LARGE: &str =
    "the traits of the identity would take more than 65536 bytes: nothing was kept";
const TRAITS_BUSY: &str = "too many writes of traits wait: nothing was changed, send the request again later";
const IDENTITY_NOT_FOUND: &str = "no traits are kept for this identifier";

const NOT_JSON: &str = "the content type must be application/json";

/// Why a request failed.
#[derive(Debug)]
pub enum ApiError<'a> {
    Access(AccessError<'a>),
    /// The identity in a body or a query is invalid.
    Identity(IdentityError),
    /// The coding or the size of a body is not accepted.
    Body(ParseError),
    /// 400, with a message.
    BadRequest(Cow<'static, str>),
    /// 403: the organisation does not allow it.
    Forbidden(&'static str),
    /// 413: the kept traits of an identity would exceed their limit.
    TraitsTooLarge,
    /// 503: too many writes wait.
    TraitsBusy,
    /// 404: an identity without kept traits.
    IdentityNotFound,
    /// 415: the body is not JSON by its `Content-Type`.
    MediaType,
    /// 422, with a message.
    Unprocessable(&'static str),
    Ofrep(OfrepError),
    /// 404: unknown path.
    PathNotFound,
    /// 404: the environment has no such feature.
    FeatureNotFound(Cow<'a, str>),
    /// 405, with the methods of the path.
    MethodNotAllowed(Methods),
    /// 412: `If-Match` or `If-Unmodified-Since` names another representation (RFC 9110 15.5.13).
    PreconditionFailed,
    /// 500: a document that was compiled cannot be parsed again.
    DocumentUnreadable,
}

/// Why a key gives no access to an environment.
#[derive(Clone, Copy, Debug)]
pub enum AccessError<'a> {
    /// differences.md 2.
    KeyMissing,
    KeyUnknown(&'a [u8]),
    /// differences.md 3.
    NoDocument,
    /// The key may be in a file or a discovery response that was not read yet (differences.md 3).
    KeyNotLoaded,
}

/// An error of the OpenFeature Remote Evaluation Protocol.
#[derive(Debug)]
pub struct OfrepError {
    pub status: Status,
    /// The key of the flag, if one flag was requested.
    pub flag: Option<String>,
    /// The protocol's `errorCode`.
    pub code: &'static str,
    pub details: Cow<'static, str>,
}

impl<'a> From<AccessError<'a>> for ApiError<'a> {
    fn from(error: AccessError<'a>) -> Self {
        Self::Access(error)
    }
}

impl From<IdentityError> for ApiError<'_> {
    fn from(error: IdentityError) -> Self {
        Self::Identity(error)
    }
}

impl From<OfrepError> for ApiError<'_> {
    fn from(error: OfrepError) -> Self {
        Self::Ofrep(error)
    }
}

impl ApiError<'_> {
    /// The status and the body of the response.
    pub fn render(&self) -> (Status, Cow<'_, [u8]>) {
        match self {
            Self::Access(error) => error.render(),
            Self::Identity(IdentityError::Invalid(detail) | IdentityError::Unwritable(detail)) => {
                (Status(422), Cow::Borrowed(&detail.body))
            }
            Self::Identity(IdentityError::Unreadable) => {
                (Status(400), Cow::Borrowed(IdentityError::UNREADABLE))
            }
            Self::Body(error) => (error.status(), Cow::Borrowed(error.body())),
            Self::BadRequest(message) => (Status(400), message_body("bad_request", message)),
            Self::Forbidden(detail) => (Status(403), message_body("forbidden", detail)),
            Self::TraitsTooLarge => (Status(413), message_body("too_large", TRAITS_TOO_LARGE)),
            Self::TraitsBusy => (Status(503), message_body("unavailable", TRAITS_BUSY)),
            Self::IdentityNotFound => (Status(404), message_body("not_found", IDENTITY_NOT_FOUND)),
            Self::MediaType => (Status(415), message_body("unsupported_media_type", NOT_JSON)),
            Self::Unprocessable(message) => (Status(422), message_body("unprocessable", message)),
            Self::Ofrep(error) => (error.status, Cow::Owned(error.body())),
            Self::PathNotFound => (Status(404), Cow::Borrowed(NOT_FOUND)),
            Self::FeatureNotFound(feature) => {
                (Status(404), message_body("not_found", &format!("feature '{feature}' not found")))
            }
            Self::MethodNotAllowed(_) => (Status(405), Cow::Borrowed(METHOD_NOT_ALLOWED)),
            Self::PreconditionFailed => (Status(412), Cow::Borrowed(PRECONDITION_FAILED)),
            Self::DocumentUnreadable => {
                (Status(500), message_body("error", "the document cannot be read again"))
            }
        }
    }
}

impl AccessError<'_> {
    fn render(&self) -> (Status, Cow<'static, [u8]>) {
        match self {
            Self::KeyMissing => (Status(401), Cow::Borrowed(KEY_MISSING)),
            Self::KeyUnknown(key) => {
                let mut message = String::from("unknown key ");
                python_repr(key, &mut message);
                (Status(401), message_body("unauthorized", &message))
            }
            Self::NoDocument => (Status(502), Cow::Borrowed(NO_DOCUMENT)),
            Self::KeyNotLoaded => (Status(502), Cow::Borrowed(KEY_NOT_LOADED)),
        }
    }
}

impl OfrepError {
    fn body(&self) -> Vec<u8> {
        let mut out = vec![b'{'];
        if let Some(flag) = &self.flag {
            out.extend_from_slice(b"\"key\":");
            write::string(flag, &mut out);
            out.push(b',');
        }
        out.extend_from_slice(b"\"errorCode\":");
        write::string(self.code, &mut out);
        out.extend_from_slice(b",\"errorDetails\":");
        write::string(&self.details, &mut out);
        if self.flag.is_some() {
            // The Java provider reads the metadata before it checks the status (docs/sdks.md).
            out.extend_from_slice(b",\"metadata\":{}");
        }
        out.push(b'}');
        out
    }
}

/// `{"status": ..., "message": ...}`.
fn message_body(status: &str, message: &str) -> Cow<'static, [u8]> {
    let mut body = b"{\"status\":".to_vec();
    write::string(status, &mut body);
    body.extend_from_slice(b",\"message\":");
    write::string(message, &mut body);
    body.push(b'}');
    Cow::Owned(body)
}

/// Appends Python's `repr` of a header value, which Python decodes as Latin-1. Cut to `KEY_QUOTED_BYTES_MAX`.
fn python_repr(value: &[u8], text: &mut String) {
    let (value, is_cut) = match value.get(..KEY_QUOTED_BYTES_MAX) {
        Some(beginning) if value.len() > KEY_QUOTED_BYTES_MAX => (beginning, true),
        _ => (value, false),
    };
    let quote = if value.contains(&b'\'') && !value.contains(&b'"') { '"' } else { '\'' };
    text.push(quote);
    for byte in value {
        match *byte {
            b'\\' => text.push_str("\\\\"),
            b'\t' => text.push_str("\\t"),
            byte if char::from(byte) == quote => {
                text.push('\\');
                text.push(quote);
            }
            0..0x20 | 0x7f..=0xa0 | 0xad => text.push_str(&format!("\\x{byte:02x}")),
            byte => text.push(char::from(byte)),
        }
    }
    if is_cut {
        text.push_str("...");
    }
    text.push(quote);
}

#[cfg(test)]
mod tests {
    #[test]
    fn quotes_keys_like_python_repr() {
        for (key, expected) in [
            (&b"nope"[..], "'nope'"),
            (b"", "''"),
            (b"it's", "\"it's\""),
            (b"<b>\"it's\"</b>", "'<b>\"it\\'s\"</b>'"),
            (b"a\\b\tc", "'a\\\\b\\tc'"),
            (b"\xe9\xa0\xad", "'\u{e9}\\xa0\\xad'"),
        ] {
            let mut text = String::new();
            super::python_repr(key, &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn quotes_the_beginning_of_a_long_key() {
        let quoted = |bytes: usize| {
            let mut text = String::new();
            super::python_repr(&vec![b'k'; bytes], &mut text);
            text
        };
        let most = "k".repeat(super::KEY_QUOTED_BYTES_MAX);
        assert_eq!(quoted(most.len()), format!("'{most}'"));
        assert_eq!(quoted(most.len() + 1), format!("'{most}...'"));
        assert_eq!(quoted(most.len() * 3), format!("'{most}...'"));
    }
}
