//! The routing table: path and method to [`Route`].
//!
//! Each path is served with and without a trailing slash (differences.md 15) and with any of its characters
//! percent-encoded, as Starlette matches it. Nothing else is normalised: double slashes, dot segments and
//! upper case are 404.
use std::borrow::Cow;

use crate::http::method::Method;

/// The resource that a path names; also a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    Flags,
    Identities,
    EnvironmentDocument,
    /// `/health`, `/proxy/health` and `/proxy/health/readiness`.
    Readiness,
    Liveness,
    Analytics,
    AnalyticsV2,
    BulkIdentities,
    Traits,
    /// With a store of traits.
    TraitsBulk,
    TraitsIncrement,
    /// The kept traits of an identity: export and erasure, for server-side keys.
    KeptTraits,
    /// Experiment events.
    Events,
    /// OFREP: all flags.
    OfrepFlags,
    /// OFREP: the flag that the parameter names.
    OfrepFlag,
    /// Flagsmith's event stream; the parameter is the key.
    EventStream,
    /// OFREP's event stream; the parameter is the key.
    OfrepEventStream,
    /// The reason for the value of each flag; only for server-side keys.
    Explain,
    OpenApi,
    Docs,
    /// The demo page and its files; the parameter names the file.
    Demo,
    /// `/`: what this is, or the way to the demo page.
    Root,
    /// Any other path.
    Unknown,
}

/// A path with a route.
#[derive(Debug, PartialEq, Eq)]
pub struct Match<'path> {
    pub route: Route,
    pub methods: Methods,
    /// Percent-decoded; empty for a route without a parameter.
    pub parameter: Cow<'path, [u8]>,
}

/// The methods of a route (RFC 9110 10.2.1). `HEAD` is allowed wherever `GET` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    Get,
    Post,
    Put,
    GetPost,
    GetDelete,
}

impl Methods {
    /// Whether the route supports this method.
    pub fn allow(self, method: Method) -> bool {
        match method {
            Method::Get | Method::Head => !matches!(self, Methods::Post | Methods::Put),
            Method::Post => matches!(self, Methods::Post | Methods::GetPost),
            Method::Put => self == Methods::Put,
            Method::Delete => self == Methods::GetDelete,
            Method::Options | Method::Connect | Method::Other => false,
        }
    }

    /// The `Allow` line of a 405 response, with its CRLF.
    pub fn allow_line(self) -> &'static [u8] {
        match self {
            Methods::Get => b"allow: GET, HEAD\r\n",
            Methods::Post => b"allow: POST\r\n",
            Methods::Put => b"allow: PUT\r\n",
            Methods::GetPost => b"allow: GET, HEAD, POST\r\n",
            Methods::GetDelete => b"allow: GET, HEAD, DELETE\r\n",
        }
    }
}

impl Route {
    /// All variants in declaration order, which `metrics` uses as an index and a test there checks.
    pub const ALL: [Self; 23] = [
        Self::Flags,
        Self::Identities,
        Self::EnvironmentDocument,
        Self::Readiness,
        Self::Liveness,
        Self::Analytics,
        Self::AnalyticsV2,
        Self::BulkIdentities,
        Self::Traits,
        Self::TraitsBulk,
        Self::TraitsIncrement,
        Self::KeptTraits,
        Self::Events,
        Self::OfrepFlags,
        Self::OfrepFlag,
        Self::EventStream,
        Self::OfrepEventStream,
        Self::Explain,
        Self::OpenApi,
        Self::Docs,
        Self::Demo,
        Self::Root,
        Self::Unknown,
    ];

    /// Whether probes use it: with a base path it is at the root too, and it is exempt from address lists.
    pub fn is_health(self) -> bool {
        matches!(self, Self::Readiness | Self::Liveness)
    }

    /// Whether there is this route only with a store of traits.
    pub fn needs_traits(self) -> bool {
        matches!(self, Self::TraitsBulk | Self::TraitsIncrement | Self::KeptTraits)
    }

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
            Route::TraitsBulk => "traits-bulk",
            Route::TraitsIncrement => "traits-increment-value",
            Route::KeptTraits => "kept-traits",
            Route::Events => "events",
            Route::OfrepFlags => "ofrep-flags",
            Route::OfrepFlag => "ofrep-flag",
            Route::EventStream => "event-stream",
            Route::OfrepEventStream => "ofrep-event-stream",
            Route::Explain => "explain",
            Route::OpenApi => "openapi",
            Route::Docs => "docs",
            Route::Demo => "demo",
            Route::Root => "root",
            Route::Unknown => "unknown",
        }
    }
}

impl Route {
    /// The path with a trailing slash, and a name in braces for a parameter; `None` for a path without a
    /// route. A base path is not in it.
    pub fn template(self) -> Option<&'static str> {
        Some(match self {
            Route::Flags => "/api/v1/flags/",
            Route::Identities => "/api/v1/identities/",
            Route::EnvironmentDocument => "/api/v1/environment-document/",
            Route::Readiness => "/proxy/health/readiness",
            Route::Liveness => "/proxy/health/liveness",
            Route::Analytics => "/api/v1/analytics/flags/",
            Route::AnalyticsV2 => "/api/v2/analytics/flags/",
            Route::BulkIdentities => "/api/v1/bulk-identities/",
            Route::Traits => "/api/v1/traits/",
            Route::TraitsBulk => "/api/v1/traits/bulk/",
            Route::TraitsIncrement => "/api/v1/traits/increment-value/",
            Route::KeptTraits => "/proxy/traits/",
            Route::Events => "/v1/events",
            Route::OfrepFlags => "/ofrep/v1/evaluate/flags",
            Route::OfrepFlag => "/ofrep/v1/evaluate/flags/{key}",
            Route::EventStream => "/sse/environments/{key}/stream",
            Route::OfrepEventStream => "/ofrep/v1/environments/{key}/stream",
            Route::Explain => "/proxy/explain",
            Route::OpenApi => "/openapi.json",
            Route::Docs => "/docs",
            Route::Demo => "/demo/{file}",
            Route::Root => "/",
            Route::Unknown => return None,
        })
    }
}

/// The route of a path as sent; `None` is 404.
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
        // Starlette decodes first, so `%2F` at the end is a trailing slash too.
        .or_else(|| find_decoded(decoded.strip_suffix(b"/").filter(|_| bare.len() == path.len())?))?;
    Some(Match { route, methods, parameter: Cow::Owned(parameter.to_vec()) })
}

/// As [`find`] for a server whose routes are below `base`, which needs no percent-encoding and does not end
/// with `/`. Health is served at the root too, for probes that ask the process itself.
pub fn find_below<'p>(base: &[u8], path: &'p [u8]) -> Option<Match<'p>> {
    let found = below(base, path).and_then(find);
    found.or_else(|| find(path).filter(|found| found.route.is_health()))
}

/// The part of a path after `base`, of which any character may be percent-encoded.
fn below<'p>(base: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    let mut rest = path;
    for expected in base {
        rest = match rest {
            [first, tail @ ..] if first == expected => tail,
            [b'%', tail @ ..] if hex_pair(tail) == Some(*expected) => &tail[2..],
            _ => return None,
        };
    }
    // `/flags-2` is not below `/flags`.
    let is_end =
        matches!(rest, [] | [b'/', ..]) || matches!(rest, [b'%', tail @ ..] if hex_pair(tail) == Some(b'/'));
    is_end.then_some(rest)
}

/// The route of a decoded path without a trailing slash, and its parameter.
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
        b"/api/v1/traits/bulk" => (Route::TraitsBulk, Methods::Put),
        b"/api/v1/traits/increment-value" => (Route::TraitsIncrement, Methods::Post),
        b"/proxy/traits" => (Route::KeptTraits, Methods::GetDelete),
        b"/v1/events" => (Route::Events, Methods::Post),
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
    // The path of a target in absolute form may be empty (RFC 9112 3.2.2).
    if bare.is_empty() {
        return Some((Route::Root, Methods::Get, b""));
    }
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

/// Decodes `%XX`. A `%` without two hex digits is kept, as in Python's `urllib.parse.unquote`.
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
    fn trailing_slash_is_optional() {
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
            ("/api/v1/traits/bulk", Route::TraitsBulk),
            ("/api/v1/traits/increment-value", Route::TraitsIncrement),
            ("/proxy/traits", Route::KeptTraits),
            ("/v1/events", Route::Events),
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
    fn a_template_is_the_path_of_its_route() {
        for expected in Route::ALL {
            let Some(template) = expected.template() else { continue };
            assert_eq!(route(template), Some(expected), "{template}");
        }
        assert!(Route::Unknown.template().is_none());
    }

    #[test]
    fn normalises_only_percent_encoding() {
        assert_eq!(route("/api/v1/%66lags/"), Some(Route::Flags));
        assert_eq!(route("/api%2Fv1/flags/"), Some(Route::Flags));
        for path in ["/", "", "%2F"] {
            assert_eq!(route(path), Some(Route::Root), "{path}");
        }
        for path in [
            "//",
            "//api/v1/flags/",
            "/API/V1/FLAGS/",
            "/api/v1/flags/../flags/",
            "/api/v1/flags%",
            "/api/v1/%6lags",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
    }

    #[test]
    fn finds_the_parameter_of_a_path() {
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
    fn base_path_is_removed_and_health_is_at_both() {
        let below = |path: &str| find_below(b"/edge/v2", path.as_bytes()).map(|found| found.route);
        for (path, expected) in [
            ("/edge/v2/api/v1/flags/", Some(Route::Flags)),
            ("/edge/v2/api/v1/flags", Some(Route::Flags)),
            ("/%65dge/v2%2Fapi/v1/flags/", Some(Route::Flags)),
            ("/edge/v2/proxy/health/liveness", Some(Route::Liveness)),
            ("/proxy/health/liveness", Some(Route::Liveness)),
            ("/health", Some(Route::Readiness)),
            ("/edge/v2", Some(Route::Root)),
            ("/edge/v2/", Some(Route::Root)),
            ("/", None),
            ("/edge/v2/sse/environments/k/stream", Some(Route::EventStream)),
            ("/api/v1/flags/", None),
            ("/docs", None),
            ("/edge/v2api/v1/flags/", None),
            ("/edge/v2//api/v1/flags/", None),
            ("/edge/v2/edge/v2/api/v1/flags/", None),
            ("/EDGE/v2/api/v1/flags/", None),
            ("/edge/v", None),
            ("/edge/v%2", None),
        ] {
            assert_eq!(below(path), expected, "{path}");
        }
    }

    #[test]
    fn distinguishes_methods() {
        let flags = find(b"/api/v1/flags").map(|found| found.methods);
        assert_eq!(flags, Some(Methods::Get));
        assert!(!Methods::Get.allow(Method::Post) && Methods::Get.allow(Method::Head));
        assert!(!Methods::Post.allow(Method::Get) && Methods::Post.allow(Method::Post));
        assert!(Methods::GetPost.allow(Method::Post) && !Methods::GetPost.allow(Method::Options));
    }
}
