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
            let name = name.as_str();
            let field = match name.len() {
                6 if name == "origin" => &mut fields.origin,
                6 if name == "cookie" => {
                    fields.cookie = true;
                    continue;
                }
                8 if name == "if-match" => {
                    fields.has_precondition = true;
                    &mut fields.if_match
                }
                9 if name == "x-api-key" => &mut fields.api_key,
                10 if name == "user-agent" => &mut fields.user_agent,
                12 if name == "content-type" => &mut fields.content_type,
                12 if name == "x-request-id" => &mut fields.request_id,
                13 if name == "if-none-match" => &mut fields.if_none_match,
                13 if name == "authorization" => &mut fields.authorization,
                15 if name == "accept-encoding" => &mut fields.accept_encoding,
                15 if name == "x-forwarded-for" => &mut fields.forwarded_for,
                17 if name == "x-environment-key" => &mut fields.environment_key,
                17 if name == "if-modified-since" => &mut fields.if_modified_since,
                19 if name == "if-unmodified-since" => {
                    fields.has_precondition = true;
                    &mut fields.if_unmodified_since
                }
                24 if name == "flagsmith-sdk-user-agent" => &mut fields.sdk_user_agent,
                26 if name == "flagsmith-application-name" => &mut fields.application_name,
                29 if name == "flagsmith-application-version" => &mut fields.application_version,
                29 if name == "access-control-request-method" => &mut fields.access_control_request_method,
                30 if name == "access-control-request-headers" => &mut fields.access_control_request_headers,
                _ => continue,
            };
            field.get_or_insert(value.as_bytes());
        }
        fields.request_id = fields.request_id.filter(|id| is_request_id(id));
        fields
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
