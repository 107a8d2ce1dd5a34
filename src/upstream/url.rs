//! URLs: resolution of `Location` and `Link` references, and comparison of origins.
use http::Uri;

/// Resolves `reference` against `base` (RFC 3986 5.2). `None` if the result is not a valid http or https URL.
pub fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default().trim();
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let text = if has_scheme(reference) {
        reference.to_string()
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{}", without_dots(reference))
    } else if reference.starts_with('?') || reference.is_empty() {
        let query = if reference.is_empty() { base.query().map(|q| format!("?{q}")) } else { None };
        format!("{scheme}://{authority}{}{}", base.path(), query.as_deref().unwrap_or(reference))
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{}", without_dots(&format!("{folder}/{reference}")))
    };
    let uri: Uri = text.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri).filter(|uri| uri.host().is_some())
}

/// Whether scheme, host and port are equal (RFC 6454 4). A missing port is the default port of the scheme.
pub fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port =
        |uri: &Uri| uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    one.scheme() == other.scheme()
        && port(one) == port(other)
        && matches!((one.host(), other.host()), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
}

/// Whether `to` has the host of `from`, and https instead of http. The ports may differ.
pub fn is_upgrade(from: &Uri, to: &Uri) -> bool {
    from.scheme_str() == Some("http")
        && to.scheme_str() == Some("https")
        && matches!((from.host(), to.host()), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
}

/// The origin, for messages: the rest of a URL may contain secrets.
pub fn origin(uri: &Uri) -> String {
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default())
}

/// The target of the first link with `rel="next"` in a `Link` field (RFC 8288 3).
pub fn next(field: &str) -> Option<&str> {
    let mut rest = field;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, parameters) = after.split_once('>')?;
        let end = end_of_link(parameters);
        if parameters[..end].split(';').any(is_rel_next) {
            return Some(target);
        }
        rest = &parameters[end..];
    }
    None
}

/// The end of the parameters of a link: a comma outside quotes.
fn end_of_link(parameters: &str) -> usize {
    let mut quoted = false;
    for (index, byte) in parameters.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => return index,
            _ => {}
        }
    }
    parameters.len()
}

fn is_rel_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else { return false };
    name.trim().eq_ignore_ascii_case("rel")
        && value.trim().trim_matches('"').split_ascii_whitespace().any(|rel| rel.eq_ignore_ascii_case("next"))
}

fn has_scheme(reference: &str) -> bool {
    reference.split_once(':').is_some_and(|(scheme, _)| {
        scheme.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// Removes dot segments from the path (RFC 3986 5.2.4); the query is not changed.
fn without_dots(reference: &str) -> String {
    let (path, query) =
        reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_references_by_rfc_3986() {
        let base: Uri = "https://edge.example:8443/api/v1/environment-document/?a=1".parse().unwrap();
        for (reference, expected) in [
            (
                "/api/v1/x/?page_id=identity_override%3A1%26",
                "https://edge.example:8443/api/v1/x/?page_id=identity_override%3A1%26",
            ),
            ("https://other.example/x", "https://other.example/x"),
            ("//other.example/x", "https://other.example/x"),
            ("?page_id=2", "https://edge.example:8443/api/v1/environment-document/?page_id=2"),
            ("", "https://edge.example:8443/api/v1/environment-document/?a=1"),
            ("next", "https://edge.example:8443/api/v1/environment-document/next"),
            ("../flags/./x?b=../c", "https://edge.example:8443/api/v1/flags/x?b=../c"),
            ("/a/b/..", "https://edge.example:8443/a/"),
            ("/x#fragment", "https://edge.example:8443/x"),
        ] {
            assert_eq!(
                resolve(&base, reference).map(|uri| uri.to_string()).as_deref(),
                Some(expected),
                "{reference}"
            );
        }
        for reference in ["ftp://a/x", "javascript:alert(1)", "http://", "https://a b/"] {
            assert_eq!(resolve(&base, reference), None, "{reference}");
        }
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://A.example/x", "https://a.example:443/y"));
        assert!(!same("https://a.example/", "http://a.example/"));
        assert!(!same("https://a.example/", "https://a.example:8443/"));
        assert!(!same("https://a.example/", "https://b.example/"));
    }

    #[test]
    fn https_on_the_same_host_is_an_upgrade() {
        let upgrade = |a: &str, b: &str| is_upgrade(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(upgrade("http://a.example/x", "https://A.example/y"));
        assert!(upgrade("http://a.example:8000/x", "https://a.example:8443/y"));
        assert!(!upgrade("https://a.example/", "http://a.example/"));
        assert!(!upgrade("https://a.example/", "https://a.example:8443/"));
        assert!(!upgrade("http://a.example/", "https://b.a.example/"));
    }

    #[test]
    fn finds_the_next_link_among_others() {
        for (field, expected) in [
            (r#"</x?page_id=a,b>; rel="next""#, Some("/x?page_id=a,b")),
            (r#"<a>; rel="prev", <b>; title="x, <c>"; rel=next"#, Some("b")),
            (r#"<a>; rel="last next""#, Some("a")),
            (r#"<a>; rel="nextish""#, None),
            ("<a", None),
            ("", None),
        ] {
            assert_eq!(next(field), expected, "{field}");
        }
    }
}
