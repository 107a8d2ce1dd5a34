//! The table of paths: which answer a path and a method ask for.
//!
//! In: the path as sent (before percent-decoding) and the method. Out: a [`Route`], with the
//! parameter of those that have one, or why there is none (404, or 405 with its `Allow`).
//! Invariant: each path is served with and without its last slash (differences.md 15) and with
//! any of its characters percent-encoded, as Starlette matches it; nothing else is normalised,
//! so double slashes, dots and upper case are 404. Nothing here looks at keys or documents.
use std::borrow::Cow;

use crate::http::Method;

/// What a path stands for. The names are those of metrics and of the access log as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    Flags,
    Identities,
    EnvironmentDocument,
    /// `/health`, `/proxy/health` and `/proxy/health/readiness` are one.
    Readiness,
    Liveness,
    Analytics,
    AnalyticsV2,
    BulkIdentities,
    Traits,
    /// All flags through OpenFeature's protocol.
    OfrepFlags,
    /// One flag, named by the parameter.
    OfrepFlag,
    /// Flagsmith's event stream of the client-side key that is the parameter.
    EventStream,
    /// The same in OpenFeature's words.
    OfrepEventStream,
    /// Why each flag has its value, for server keys.
    Explain,
    OpenApi,
    Docs,
    /// The demo's page and what it loads, named by the parameter.
    Demo,
    /// No such path.
    Unknown,
}

/// A path that exists, and its methods.
#[derive(Debug, PartialEq, Eq)]
pub struct Match<'path> {
    pub route: Route,
    pub methods: Methods,
    /// Percent-decoded. Empty for a route without one.
    pub parameter: Cow<'path, [u8]>,
}

/// The methods of one path (RFC 9110 10.2.1). `HEAD` goes wherever `GET` goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    Get,
    Post,
    GetPost,
}

impl Methods {
    /// Whether the path has this method.
    pub fn allow(self, method: Method) -> bool {
        match method {
            Method::Get | Method::Head => self != Methods::Post,
            Method::Post => self != Methods::Get,
            Method::Options | Method::Other => false,
        }
    }

    /// The header line of a 405, with its end.
    pub fn allow_line(self) -> &'static [u8] {
        match self {
            Methods::Get => b"allow: GET, HEAD\r\n",
            Methods::Post => b"allow: POST\r\n",
            Methods::GetPost => b"allow: GET, HEAD, POST\r\n",
        }
    }
}

impl Route {
    /// All of them, in the order of their numbers; a test of `metrics` holds it to that.
    pub const ALL: [Self; 18] = [
        Self::Flags,
        Self::Identities,
        Self::EnvironmentDocument,
        Self::Readiness,
        Self::Liveness,
        Self::Analytics,
        Self::AnalyticsV2,
        Self::BulkIdentities,
        Self::Traits,
        Self::OfrepFlags,
        Self::OfrepFlag,
        Self::EventStream,
        Self::OfrepEventStream,
        Self::Explain,
        Self::OpenApi,
        Self::Docs,
        Self::Demo,
        Self::Unknown,
    ];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Route::Flags => "flags",
            Route::Identities => "identities",
            Route::EnvironmentDocument => "environment-document",
            Route::Readiness => "readiness",
            Route::Liveness => "liveness",
            Route::Analytics => "analytics",
            Route::AnalyticsV2 => "analytics-v2",
            Route::BulkIdentities => "bulk-identities",
            Route::Traits => "traits",
            Route::OfrepFlags => "ofrep-flags",
            Route::OfrepFlag => "ofrep-flag",
            Route::EventStream => "event-stream",
            Route::OfrepEventStream => "ofrep-event-stream",
            Route::Explain => "explain",
            Route::OpenApi => "openapi",
            Route::Docs => "docs",
            Route::Demo => "demo",
            Route::Unknown => "unknown",
        }
    }
}

/// Finds the route of a path. `None` is 404.
pub fn find(path: &[u8]) -> Option<Match<'_>> {
    let bare = path.strip_suffix(b"/").unwrap_or(path);
    if !bare.contains(&b'%') {
        return find_decoded(bare).map(|(route, methods, parameter)| Match {
            route,
            methods,
            parameter: Cow::Borrowed(parameter),
        });
    }
    let decoded = percent_decode(bare);
    let (route, methods, parameter) = find_decoded(&decoded)
        // Starlette decodes first, so an encoded last slash is one as well.
        .or_else(|| find_decoded(decoded.strip_suffix(b"/").filter(|_| bare.len() == path.len())?))?;
    Some(Match { route, methods, parameter: Cow::Owned(parameter.to_vec()) })
}

/// Finds the route of a path without its last slash, and its parameter there.
fn find_decoded(bare: &[u8]) -> Option<(Route, Methods, &[u8])> {
    let (route, methods) = match bare {
        b"/api/v1/flags" => (Route::Flags, Methods::Get),
        b"/api/v1/identities" => (Route::Identities, Methods::GetPost),
        b"/api/v1/environment-document" => (Route::EnvironmentDocument, Methods::Get),
        b"/health" | b"/proxy/health" | b"/proxy/health/readiness" => (Route::Readiness, Methods::Get),
        b"/proxy/health/liveness" => (Route::Liveness, Methods::Get),
        b"/api/v1/analytics/flags" => (Route::Analytics, Methods::Post),
        b"/api/v2/analytics/flags" => (Route::AnalyticsV2, Methods::Post),
        b"/api/v1/bulk-identities" => (Route::BulkIdentities, Methods::Post),
        b"/api/v1/traits" => (Route::Traits, Methods::Post),
        b"/ofrep/v1/evaluate/flags" => (Route::OfrepFlags, Methods::Post),
        b"/proxy/explain" => (Route::Explain, Methods::Post),
        b"/openapi.json" => (Route::OpenApi, Methods::Get),
        b"/docs" | b"/redoc" => (Route::Docs, Methods::Get),
        b"/demo" => (Route::Demo, Methods::Get),
        _ => return find_parameter(bare),
    };
    Some((route, methods, b""))
}

fn find_parameter(bare: &[u8]) -> Option<(Route, Methods, &[u8])> {
    if let Some(flag) = bare.strip_prefix(b"/ofrep/v1/evaluate/flags/") {
        return (!flag.is_empty()).then_some((Route::OfrepFlag, Methods::Post, flag));
    }
    if let Some(file) = bare.strip_prefix(b"/demo/") {
        return Some((Route::Demo, Methods::Get, file));
    }
    let (route, rest) = match bare.strip_prefix(b"/sse/environments/") {
        Some(rest) => (Route::EventStream, rest),
        None => (Route::OfrepEventStream, bare.strip_prefix(b"/ofrep/v1/environments/")?),
    };
    let key = rest.strip_suffix(b"/stream").filter(|key| !key.is_empty() && !key.contains(&b'/'))?;
    Some((route, Methods::Get, key))
}

/// Decodes `%XX`; whatever is not two hex digits after a `%` stays as it is, as in Python's
/// `urllib.parse.unquote`.
pub fn percent_decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, hex_pair(tail)) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            _ => {
                decoded.push(first);
                rest = tail;
            }
        }
    }
    Cow::Owned(decoded)
}

fn hex_pair(text: &[u8]) -> Option<u8> {
    let high = char::from(*text.first()?).to_digit(16)?;
    let low = char::from(*text.get(1)?).to_digit(16)?;
    u8::try_from(high * 16 + low).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str) -> Option<Route> {
        find(path.as_bytes()).map(|found| found.route)
    }

    #[test]
    fn each_path_is_served_in_both_slash_forms() {
        for (path, expected) in [
            ("/api/v1/flags", Route::Flags),
            ("/api/v1/identities", Route::Identities),
            ("/api/v1/environment-document", Route::EnvironmentDocument),
            ("/health", Route::Readiness),
            ("/proxy/health", Route::Readiness),
            ("/proxy/health/readiness", Route::Readiness),
            ("/proxy/health/liveness", Route::Liveness),
            ("/api/v1/analytics/flags", Route::Analytics),
            ("/api/v2/analytics/flags", Route::AnalyticsV2),
            ("/api/v1/bulk-identities", Route::BulkIdentities),
            ("/api/v1/traits", Route::Traits),
            ("/ofrep/v1/evaluate/flags", Route::OfrepFlags),
            ("/sse/environments/k/stream", Route::EventStream),
            ("/ofrep/v1/environments/k/stream", Route::OfrepEventStream),
            ("/proxy/explain", Route::Explain),
            ("/openapi.json", Route::OpenApi),
        ] {
            assert_eq!(route(path), Some(expected), "{path}");
            assert_eq!(route(&format!("{path}/")), Some(expected), "{path}/");
            assert_eq!(route(&format!("{path}//")), None, "{path}//");
        }
    }

    #[test]
    fn nothing_but_percent_encoding_is_normalised() {
        assert_eq!(route("/api/v1/%66lags/"), Some(Route::Flags));
        assert_eq!(route("/api%2Fv1/flags/"), Some(Route::Flags));
        for path in [
            "/",
            "//",
            "//api/v1/flags/",
            "/API/V1/FLAGS/",
            "/api/v1/flags/../flags/",
            "/api/v1/flags%",
            "/api/v1/%6lags",
            "",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
    }

    #[test]
    fn a_flag_or_a_key_is_named_in_the_path() {
        for (path, expected) in [
            ("/ofrep/v1/evaluate/flags/banner", "banner"),
            ("/ofrep/v1/evaluate/flags/banner/", "banner"),
            ("/ofrep/v1/evaluate/flags/a%2Fb%20c", "a/b c"),
            ("/ofrep/v1/evaluate/flags/a%2F", "a/"),
            ("/sse/environments/k%65y/stream", "key"),
        ] {
            let parameter = find(path.as_bytes()).map(|found| found.parameter.into_owned());
            assert_eq!(parameter.as_deref(), Some(expected.as_bytes()), "{path}");
        }
    }

    #[test]
    fn a_method_that_is_not_served_is_named_by_allow() {
        let flags = find(b"/api/v1/flags").map(|found| found.methods);
        assert_eq!(flags, Some(Methods::Get));
        assert!(!Methods::Get.allow(Method::Post) && Methods::Get.allow(Method::Head));
        assert!(!Methods::Post.allow(Method::Get) && Methods::Post.allow(Method::Post));
        assert!(Methods::GetPost.allow(Method::Post) && !Methods::GetPost.allow(Method::Options));
    }
}
