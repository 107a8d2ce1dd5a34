//! Refusals that carry text, and the fixed bodies that the Python proxy's framework has.
//!
//! In: why a key opens nothing, or what is wrong with a path, a method or a body. Out: the status and
//! the JSON object that SDKs and people read.
//! Invariant: the body is a JSON object, never an array (compatibility.md 2.3); 503, 429 and 413 are not
//! used here, since the Java SDK repeats those without end.
use crate::handlers::{Exchange, Scratch};
use crate::http::route::Methods;
use crate::http::{Body, ContentType, Status};
use crate::identity::IdentityError;
use crate::json::write;
use crate::limits::KEY_QUOTED_BYTES_MAX;

const NOT_FOUND: &[u8] = br#"{"detail":"Not Found"}"#;
const PRECONDITION_FAILED: &[u8] = br#"{"detail":"Precondition Failed"}"#;
const METHOD_NOT_ALLOWED: &[u8] = br#"{"detail":"Method Not Allowed"}"#;

const KEY_MISSING: &[u8] =
    br#"{"status":"unauthorized","message":"missing key: send the environment's key as X-Environment-Key"}"#;
const NO_DOCUMENT: &[u8] = br#"{"status":"unavailable","message":"no environment document yet: the proxy has not fetched one for this key"}"#;

const KEY_UNREAD: &[u8] = br#"{"status":"unavailable","message":"key not known yet: the proxy has not read all of its environments, see the log"}"#;

/// Why a key opens nothing.
#[derive(Clone, Copy, Debug)]
pub enum AccessError<'a> {
    /// differences.md 2.
    KeyMissing,
    KeyUnknown(&'a [u8]),
    /// differences.md 3.
    NoDocument,
    /// differences.md 3: a document on disk or discovery, which may have the key, was not read yet.
    KeyUnread,
}

impl Exchange<'_> {
    /// Answers that the key opens nothing.
    pub(super) fn deny(&mut self, desk: &mut Scratch, denied: AccessError<'_>) {
        self.vary(desk);
        let (status, body) = match denied {
            AccessError::KeyMissing => (401, KEY_MISSING),
            AccessError::NoDocument => (502, NO_DOCUMENT),
            AccessError::KeyUnread => (502, KEY_UNREAD),
            AccessError::KeyUnknown(key) => return self.deny_key(desk, key),
        };
        self.send(desk, Status(status), Some(ContentType::Json), Body::Copy(body));
    }

    /// Answers that the key is unknown, with `Vary` on the desk already.
    pub(super) fn deny_key(&mut self, desk: &mut Scratch, key: &[u8]) {
        let mut message = String::from("unknown key ");
        python_repr(key, &mut message);
        self.refuse(desk, Status(401), "unauthorized", &message);
    }

    /// Answers what is wrong with a body or a query that should hold an identity.
    pub(super) fn send_refusal(&mut self, desk: &mut Scratch, refusal: &IdentityError) {
        if let (IdentityError::Unwritable(_), Err(denied)) = (refusal, self.open()) {
            return self.deny(desk, denied);
        }
        self.vary(desk);
        match refusal {
            IdentityError::Invalid(detail) | IdentityError::Unwritable(detail) => {
                self.outcome.errors_truncated = detail.is_cut;
                self.send_json(desk, Status(422), &detail.body);
            }
            IdentityError::Unreadable => self.send_json(desk, Status(400), IdentityError::UNREADABLE),
        }
    }

    /// 404: no such path.
    pub(super) fn refuse_path(&mut self, desk: &mut Scratch) {
        self.vary(desk);
        self.send(desk, Status(404), Some(ContentType::Json), Body::Copy(NOT_FOUND));
    }

    /// `OPTIONS *`: what the server as a whole can do (RFC 9110 9.3.7).
    pub(super) fn send_options(&mut self, desk: &mut Scratch) {
        self.vary(desk);
        desk.lines.extend_from_slice(b"allow: GET, HEAD, POST, OPTIONS\r\n");
        self.send(desk, Status(200), None, Body::Empty);
    }

    /// 412: `If-Match` or `If-Unmodified-Since` names another representation (RFC 9110 15.5.13).
    pub(super) fn refuse_precondition(&mut self, desk: &mut Scratch) {
        self.send(desk, Status(412), Some(ContentType::Json), Body::Copy(PRECONDITION_FAILED));
    }

    /// 405, with those that the path has.
    pub(super) fn refuse_method(&mut self, desk: &mut Scratch, methods: Methods) {
        self.vary(desk);
        desk.lines.extend_from_slice(methods.allow_line());
        self.send(desk, Status(405), Some(ContentType::Json), Body::Copy(METHOD_NOT_ALLOWED));
    }

    /// 400 with a sentence that says what the body should be.
    pub(super) fn refuse_shape(&mut self, desk: &mut Scratch, message: &str) {
        self.vary(desk);
        self.refuse(desk, Status(400), "bad_request", message);
    }

    /// Answers `{"status": ..., "message": ...}`. `Vary` is on the desk already.
    pub(super) fn refuse(&mut self, desk: &mut Scratch, status: Status, name: &str, message: &str) {
        let mut body = Vec::new();
        body.extend_from_slice(b"{\"status\":");
        write::string(name, &mut body);
        body.extend_from_slice(b",\"message\":");
        write::string(message, &mut body);
        body.push(b'}');
        self.send_json(desk, status, &body);
    }
}

/// Appends `repr` of a header value, which Python reads as Latin-1; of a long one the beginning.
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
    fn a_key_is_quoted_as_python_does() {
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
}
