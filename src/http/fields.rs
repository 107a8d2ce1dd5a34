//! The header fields that request handlers read, collected in one pass over the head.
use http::request::Parts;

use crate::http::framing::trim;
use crate::limits::REQUEST_ID_BYTES_MAX;

/// The value of each field, trimmed; `None` if the field is absent. Of several fields with one name the
/// first counts, as in the Python proxy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// `X-Environment-Key`.
    pub environment_key: Option<&'a [u8]>,
    pub accept_encoding: Option<&'a [u8]>,
    pub content_type: Option<&'a [u8]>,
    pub origin: Option<&'a [u8]>,
    /// Whether the request has the field: it changes the CORS response (compatibility.md 2.6).
    pub cookie: bool,
    pub access_control_request_method: Option<&'a [u8]>,
    pub access_control_request_headers: Option<&'a [u8]>,
    /// Whether `If-Match` or `If-Unmodified-Since` is present: few clients send them.
    pub has_precondition: bool,
    pub if_match: Option<&'a [u8]>,
    pub if_unmodified_since: Option<&'a [u8]>,
    pub if_none_match: Option<&'a [u8]>,
    pub if_modified_since: Option<&'a [u8]>,
    pub authorization: Option<&'a [u8]>,
    /// `X-API-Key` (OFREP).
    pub api_key: Option<&'a [u8]>,
    /// `Flagsmith-Application-Name`, `Flagsmith-Application-Version` and the name of the SDK: labels of
    /// usage data.
    pub application_name: Option<&'a [u8]>,
    pub application_version: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub sdk_user_agent: Option<&'a [u8]>,
    /// `X-Request-Id`, if it is valid: echoed and logged.
    pub request_id: Option<&'a [u8]>,
    /// `traceparent` (W3C Trace Context), which may be invalid.
    pub traceparent: Option<&'a [u8]>,
    /// SHA-256 of a document that the client has (RFC 9842 2.2).
    pub available_dictionary: Option<&'a [u8]>,
    /// `X-Forwarded-For`, for the access log and the address lists.
    pub forwarded_for: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    /// Finds `Origin` and `Cookie` in a head that could not be decoded; `None` if there is no valid `Origin`.
    pub fn scan(head: &'a [u8]) -> Option<Self> {
        let mut fields = Self::default();
        for line in head.split(|byte| *byte == b'\n').skip(1) {
            let mut sides = line.splitn(2, |byte| *byte == b':');
            let (Some(name), Some(value)) = (sides.next(), sides.next()) else { continue };
            if name.eq_ignore_ascii_case(b"cookie") {
                fields.cookie = true;
            } else if name.eq_ignore_ascii_case(b"origin") && line.ends_with(b"\r") {
                let value = trim(&value[..value.len() - 1]);
                // The response may echo the value, so it must not contain a line break.
                fields.origin = fields.origin.or(value.iter().all(u8::is_ascii_graphic).then_some(value));
            }
        }
        fields.origin.map(|_| fields)
    }

    /// Collects the fields of a decoded head.
    pub fn read(head: &'a Parts) -> Self {
        let mut fields = Self::default();
        for (name, value) in &head.headers {
            fields.set(name.as_str().as_bytes(), value.as_bytes());
        }
        fields.without_invalid()
    }

    /// Removes a request id that must not be echoed. Call it after the last field.
    #[inline(always)]
    pub fn without_invalid(mut self) -> Self {
        self.request_id = self.request_id.filter(|id| is_request_id(id));
        self
    }

    /// Sets the field with this name, in lower case, unless it has a value. False: no handler reads it.
    #[inline(always)]
    pub fn set(&mut self, name: &[u8], value: &'a [u8]) -> bool {
        let field = match name.len() {
            6 if name == b"origin" => &mut self.origin,
            6 if name == b"cookie" => {
                self.cookie = true;
                return true;
            }
            8 if name == b"if-match" => {
                self.has_precondition = true;
                &mut self.if_match
            }
            9 if name == b"x-api-key" => &mut self.api_key,
            10 if name == b"user-agent" => &mut self.user_agent,
            11 if name == b"traceparent" => &mut self.traceparent,
            12 if name == b"content-type" => &mut self.content_type,
            12 if name == b"x-request-id" => &mut self.request_id,
            13 if name == b"if-none-match" => &mut self.if_none_match,
            13 if name == b"authorization" => &mut self.authorization,
            15 if name == b"accept-encoding" => &mut self.accept_encoding,
            15 if name == b"x-forwarded-for" => &mut self.forwarded_for,
            17 if name == b"x-environment-key" => &mut self.environment_key,
            17 if name == b"if-modified-since" => &mut self.if_modified_since,
            19 if name == b"if-unmodified-since" => {
                self.has_precondition = true;
                &mut self.if_unmodified_since
            }
            20 if name == b"available-dictionary" => &mut self.available_dictionary,
            24 if name == b"flagsmith-sdk-user-agent" => &mut self.sdk_user_agent,
            26 if name == b"flagsmith-application-name" => &mut self.application_name,
            29 if name == b"flagsmith-application-version" => &mut self.application_version,
            29 if name == b"access-control-request-method" => &mut self.access_control_request_method,
            30 if name == b"access-control-request-headers" => &mut self.access_control_request_headers,
            _ => return false,
        };
        field.get_or_insert(value);
        true
    }
}

/// Whether a request id can be echoed and logged: visible ASCII of a bounded length, without what quotes a
/// string in a log.
fn is_request_id(id: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_graphic() && !b"\"'\\".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name, and the field that `Fields::set` puts its value into.
    type Row = (&'static str, fn(&Fields<'static>) -> Option<&'static [u8]>);

    const NAMES: [Row; 19] = [
        ("origin", |fields| fields.origin),
        ("if-match", |fields| fields.if_match),
        ("x-api-key", |fields| fields.api_key),
        ("user-agent", |fields| fields.user_agent),
        ("content-type", |fields| fields.content_type),
        ("x-request-id", |fields| fields.request_id),
        ("if-none-match", |fields| fields.if_none_match),
        ("authorization", |fields| fields.authorization),
        ("accept-encoding", |fields| fields.accept_encoding),
        ("x-forwarded-for", |fields| fields.forwarded_for),
        ("x-environment-key", |fields| fields.environment_key),
        ("if-modified-since", |fields| fields.if_modified_since),
        ("if-unmodified-since", |fields| fields.if_unmodified_since),
        ("available-dictionary", |fields| fields.available_dictionary),
        ("flagsmith-sdk-user-agent", |fields| fields.sdk_user_agent),
        ("flagsmith-application-name", |fields| fields.application_name),
        ("flagsmith-application-version", |fields| fields.application_version),
        ("access-control-request-method", |fields| fields.access_control_request_method),
        ("access-control-request-headers", |fields| fields.access_control_request_headers),
    ];

    #[test]
    fn each_name_sets_its_field_and_no_other() {
        for (name, _) in NAMES {
            let mut fields = Fields::default();
            assert!(
                fields.set(name.as_bytes(), b"first") && fields.set(name.as_bytes(), b"second"),
                "{name}"
            );
            for (other, field) in NAMES {
                let expected = (name == other).then_some(&b"first"[..]);
                assert_eq!(field(&fields), expected, "{other} after {name}");
            }
            assert_eq!(
                fields.has_precondition,
                ["if-match", "if-unmodified-since"].contains(&name),
                "{name}"
            );
            assert!(!fields.cookie, "{name}");
        }
        let mut fields = Fields::default();
        assert!(fields.set(b"cookie", b"a=b") && fields.cookie);
        assert!(NAMES.iter().all(|(_, field)| field(&fields).is_none()), "a cookie is not kept");
    }

    #[test]
    fn other_names_of_the_same_length_set_no_field() {
        for length in 1..40 {
            let mut fields = Fields::default();
            assert!(!fields.set("x".repeat(length).as_bytes(), b"value"), "{length}");
            assert!(NAMES.iter().all(|(_, field)| field(&fields).is_none()), "{length}");
            assert!(!fields.has_precondition && !fields.cookie, "{length}");
        }
    }

    #[test]
    fn request_id_is_bounded_and_has_no_quotes() {
        for (id, expected) in [
            ("4bf92f35-77b3-4da6", true),
            ("Root=1-67891233-abcdef012345678912345678", true),
            ("", false),
            ("a b", false),
            ("a\"b", false),
            ("a\\b", false),
            ("caf\u{e9}", false),
            (&"x".repeat(REQUEST_ID_BYTES_MAX), true),
            (&"x".repeat(REQUEST_ID_BYTES_MAX + 1), false),
        ] {
            assert_eq!(is_request_id(id.as_bytes()), expected, "{id}");
        }
    }
}
