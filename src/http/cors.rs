//! Cross-origin rules, exactly those of the Python proxy's middleware (compatibility.md 2.6).
//!
//! In: the allow list, once per configuration; `Origin`, `Cookie` and the preflight fields of
//! a request. Out: ready header lines, each with its end, and a preflight's status and body.
//! Invariant: lines that do not depend on the request are built once; a value that is echoed
//! was a header value of the request, so it holds no line break.
//! Unlike the Python proxy, fields that SDKs read are exposed to scripts (differences.md 22).
use crate::http::{Fields, Method, Status};

/// The methods that a preflight may ask for. `*` in the Python proxy's settings means these.
const METHODS: [&[u8]; 7] = [b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT"];

const PREFLIGHT_LINES: &[u8] = b"vary: Origin\r\n\
access-control-allow-methods: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT\r\n\
access-control-max-age: 600\r\n\
access-control-allow-credentials: true\r\n";

const SIMPLE_LINES: &[u8] = b"access-control-allow-credentials: true\r\n\
access-control-expose-headers: ETag, Last-Modified, X-Flagsmith-Document-Updated-At\r\n";

/// The allow list, made ready.
#[derive(Debug)]
pub struct Cors {
    /// `*` is in the list.
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

    /// True if this request is a preflight, which is answered without looking at its path.
    pub fn is_preflight(method: Method, fields: &Fields<'_>) -> bool {
        method == Method::Options && fields.origin.is_some() && fields.access_control_request_method.is_some()
    }

    /// Answers a preflight: its header lines go to `lines`, its body is the text.
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

    /// Appends the lines of an answer that is not a preflight. Returns whether the answer
    /// depends on the origin, so that `Vary` must name it.
    pub fn simple(&self, fields: &Fields<'_>, lines: &mut Vec<u8>) -> bool {
        let Some(origin) = fields.origin else { return false };
        lines.extend_from_slice(SIMPLE_LINES);
        // Fetch refuses `*` for a request with credentials, so the origin is named then.
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

    /// Appends the lines of a request that is refused before it is routed, `Vary` included. `None`: the
    /// head was not read far enough to tell its origin, so only an answer for all origins can be given.
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
    fn a_preflight_echoes_the_origin_and_the_headers_asked_for() {
        let (status, body, lines) =
            preflight(&cors(&["*"]), "https://app.example", "GET", Some("x-environment-key"));
        assert_eq!((status, body.as_str()), (200, "OK"));
        assert!(lines.contains("access-control-allow-origin: https://app.example\r\n"), "{lines}");
        assert!(lines.contains("access-control-allow-headers: x-environment-key\r\n"), "{lines}");
    }

    #[test]
    fn a_preflight_outside_the_list_says_what_is_not_allowed() {
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
    fn a_simple_answer_names_the_origin_only_where_it_must() {
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
