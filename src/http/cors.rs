//! CORS as the Python proxy's middleware implements it (compatibility.md 2.6), except that header fields
//! which SDKs read are exposed to scripts (differences.md 22).
//!
//! Values are echoed only from parsed header fields, which cannot contain line breaks.
use crate::http::fields::Fields;
use crate::http::method::Method;
use crate::http::status::Status;

/// The methods that a preflight request may name: what `*` means in the Python proxy's settings.
const METHODS: [&[u8]; 7] = [b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT"];

const PREFLIGHT_LINES: &[u8] = b"vary: Origin\r\n\
access-control-allow-methods: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT\r\n\
access-control-max-age: 600\r\n\
access-control-allow-credentials: true\r\n";

const SIMPLE_LINES: &[u8] = b"access-control-allow-credentials: true\r\n\
access-control-expose-headers: ETag, Last-Modified, X-Flagsmith-Document-Updated-At\r\n";

/// The list of allowed origins, in a form that requests compare with.
#[derive(Debug)]
pub struct Cors {
    /// The list contains `*`.
    any: bool,
    origins: Box<[Box<[u8]>]>,
}

impl Cors {
    pub fn new(allow_origins: &[String]) -> Self {
        Self {
            any: allow_origins.iter().any(|origin| origin == "*"),
            origins: allow_origins.iter().map(|origin| origin.as_bytes().into()).collect(),
        }
    }

    /// Whether this is a preflight request. Those are answered for every path.
    pub fn is_preflight(method: Method, fields: &Fields<'_>) -> bool {
        method == Method::Options && fields.origin.is_some() && fields.access_control_request_method.is_some()
    }

    /// Appends the header lines of a preflight response to `lines`; returns its status and body.
    pub fn preflight(&self, fields: &Fields<'_>, lines: &mut Vec<u8>) -> (Status, &'static [u8]) {
        let origin = fields.origin.unwrap_or_default();
        let allowed = self.allows(origin);
        lines.extend_from_slice(PREFLIGHT_LINES);
        if allowed {
            line(lines, b"access-control-allow-origin: ", origin);
        }
        if let Some(headers) = fields.access_control_request_headers {
            line(lines, b"access-control-allow-headers: ", headers);
        }
        let method = fields.access_control_request_method.unwrap_or_default();
        match (allowed, METHODS.contains(&method)) {
            (true, true) => (Status(200), b"OK"),
            (false, true) => (Status(400), b"Disallowed CORS origin"),
            (true, false) => (Status(400), b"Disallowed CORS method"),
            (false, false) => (Status(400), b"Disallowed CORS origin, method"),
        }
    }

    /// Appends the header lines of any other response. Returns whether it depends on the origin, so that
    /// `Vary` must name it.
    pub fn simple(&self, fields: &Fields<'_>, lines: &mut Vec<u8>) -> bool {
        let Some(origin) = fields.origin else { return false };
        lines.extend_from_slice(SIMPLE_LINES);
        // Browsers reject `*` for requests with credentials, so the origin is named for those.
        if self.any && !fields.cookie {
            lines.extend_from_slice(b"access-control-allow-origin: *\r\n");
            return false;
        }
        if self.allows(origin) {
            line(lines, b"access-control-allow-origin: ", origin);
            return true;
        }
        false
    }

    /// Appends the header lines of an error response to a request that was not routed, `Vary` included.
    /// `None`: the origin is unknown because the head is incomplete, so only `*` can be sent.
    pub fn refused(&self, fields: Option<&Fields<'_>>, lines: &mut Vec<u8>) {
        match fields {
            Some(fields) if self.simple(fields, lines) => lines.extend_from_slice(b"vary: Origin\r\n"),
            Some(_) => {}
            None if self.any => lines.extend_from_slice(b"access-control-allow-origin: *\r\n"),
            None => {}
        }
    }

    fn allows(&self, origin: &[u8]) -> bool {
        self.any || self.origins.iter().any(|allowed| **allowed == *origin)
    }
}

fn line(lines: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    lines.extend_from_slice(name);
    lines.extend_from_slice(value);
    lines.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str]) -> Cors {
        Cors::new(&origins.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn preflight(cors: &Cors, origin: &str, method: &str, headers: Option<&str>) -> (u16, String, String) {
        let fields = Fields {
            origin: Some(origin.as_bytes()),
            access_control_request_method: Some(method.as_bytes()),
            access_control_request_headers: headers.map(str::as_bytes),
            ..Fields::default()
        };
        let mut lines = Vec::new();
        let (status, body) = cors.preflight(&fields, &mut lines);
        (status.0, String::from_utf8_lossy(body).into_owned(), String::from_utf8_lossy(&lines).into_owned())
    }

    #[test]
    fn preflight_echoes_origin_and_requested_headers() {
        let (status, body, lines) =
            preflight(&cors(&["*"]), "https://app.example", "GET", Some("x-environment-key"));
        assert_eq!((status, body.as_str()), (200, "OK"));
        assert!(lines.contains("access-control-allow-origin: https://app.example\r\n"), "{lines}");
        assert!(lines.contains("access-control-allow-headers: x-environment-key\r\n"), "{lines}");
    }

    #[test]
    fn preflight_names_what_is_not_allowed() {
        let list = cors(&["https://ok.example"]);
        assert_eq!(preflight(&list, "https://evil.example", "GET", None).1, "Disallowed CORS origin");
        assert_eq!(preflight(&list, "https://ok.example", "FROB", None).1, "Disallowed CORS method");
        assert_eq!(
            preflight(&list, "https://ok.example.evil", "FROB", None).1,
            "Disallowed CORS origin, method"
        );
        let (status, _, lines) = preflight(&list, "https://evil.example", "GET", None);
        assert!(status == 400 && !lines.contains("allow-origin"), "{lines}");
    }

    #[test]
    fn simple_response_names_the_origin_only_if_required() {
        let cases = [
            (&["*"][..], false, "access-control-allow-origin: *", false),
            (&["*"], true, "access-control-allow-origin: https://ok.example", true),
            (&["https://ok.example"], false, "access-control-allow-origin: https://ok.example", true),
        ];
        for (list, cookie, expected, varies) in cases {
            let fields = Fields { origin: Some(b"https://ok.example"), cookie, ..Fields::default() };
            let mut lines = Vec::new();
            assert_eq!(cors(list).simple(&fields, &mut lines), varies);
            assert!(String::from_utf8_lossy(&lines).contains(expected));
        }
        let other = Fields { origin: Some(b"https://evil.example"), ..Fields::default() };
        let refused = |origins: &[&str], fields: Option<&Fields<'_>>| {
            let mut lines = Vec::new();
            cors(origins).refused(fields, &mut lines);
            String::from_utf8(lines).unwrap()
        };
        let named = refused(&["https://evil.example"], Some(&other));
        assert!(named.ends_with("allow-origin: https://evil.example\r\nvary: Origin\r\n"), "{named}");
        assert_eq!(refused(&["*"], None), "access-control-allow-origin: *\r\n");
        assert_eq!(refused(&["https://ok.example"], None), "");
        assert_eq!(refused(&["*"], Some(&Fields::default())), "");
        let mut lines = Vec::new();
        assert!(!cors(&["https://ok.example"]).simple(&other, &mut lines));
        assert!(!String::from_utf8_lossy(&lines).contains("allow-origin"));
    }
}
