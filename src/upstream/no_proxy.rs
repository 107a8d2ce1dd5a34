//! `NO_PROXY`: URLs that bypass the outgoing proxy.
//!
//! The rules are those of httpx 0.28 (`get_environment_proxies` and `URLPattern`), which the Python proxy
//! uses. They differ from curl's: a network such as `10.0.0.0/8` matches its first address only, and
//! `*.example.com` matches nothing.
use std::net::{Ipv4Addr, Ipv6Addr};

use http::Uri;

/// The entries of the variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy {
    entries: Vec<DirectHosts>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DirectHosts {
    /// `None`: any.
    scheme: Option<String>,
    host: HostPattern,
    /// `None`: any. A URL with the default port of its scheme counts as without a port.
    port: Option<u16>,
}

/// Host names are in lower case, IPv6 addresses without brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    Exact(String),
    /// Subdomains of this name.
    Below(String),
    /// This name and its subdomains.
    AtOrBelow(String),
}

impl NoProxy {
    /// Parses a comma-separated list. Invalid entries are ignored; httpx fails to start with them.
    pub fn parse(list: &str) -> Self {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        Self { entries: entries.filter_map(DirectHosts::parse).collect() }
    }

    /// Whether `uri` bypasses the proxy.
    pub fn contains(&self, uri: &Uri) -> bool {
        self.entries.iter().any(|entry| entry.contains(uri))
    }
}

impl DirectHosts {
    fn parse(entry: &str) -> Option<Self> {
        let any = Self { scheme: None, host: HostPattern::Any, port: None };
        if entry == "*" {
            return Some(any);
        }
        if let Some((scheme, rest)) = entry.split_once("://") {
            let scheme = (scheme != "all").then(|| scheme.to_ascii_lowercase());
            let (host, port) = host_and_port(rest)?;
            let port = port.filter(|port| Some(*port) != default_port(scheme.as_deref()));
            return Some(Self { scheme, host: HostPattern::parse(&host), port });
        }
        let address = entry.split('/').next().unwrap_or_default();
        let is_address = address.parse::<Ipv4Addr>().is_ok() || address.parse::<Ipv6Addr>().is_ok();
        if is_address || entry.eq_ignore_ascii_case("localhost") {
            return Some(Self { host: HostPattern::Exact(address.to_ascii_lowercase()), ..any });
        }
        let (host, port) = host_and_port(entry)?;
        let host = HostPattern::parse(&format!("*{host}"));
        Some(Self { host, port, ..any })
    }

    fn contains(&self, uri: &Uri) -> bool {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = uri.port_u16().filter(|port| Some(*port) != default_port(uri.scheme_str()));
        self.scheme.as_deref().is_none_or(|scheme| Some(scheme) == uri.scheme_str())
            && self.port.is_none_or(|own| Some(own) == port)
            && self.host.contains(&host)
    }
}

impl HostPattern {
    /// Parses `*.x`, `*x`, `x` or `*`, as `URLPattern` does.
    fn parse(host: &str) -> Self {
        match host.strip_prefix('*') {
            Some("") => Self::Any,
            None if host.is_empty() => Self::Any,
            None => Self::Exact(host.to_owned()),
            Some(rest) => match rest.strip_prefix('.') {
                Some(parent) => Self::Below(parent.to_owned()),
                None => Self::AtOrBelow(rest.to_owned()),
            },
        }
    }

    fn contains(&self, host: &str) -> bool {
        let is_below = |parent: &str| {
            host.strip_suffix(parent)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|sub| !sub.is_empty())
        };
        match self {
            Self::Any => true,
            Self::Exact(name) => host == name,
            Self::Below(parent) => is_below(parent),
            Self::AtOrBelow(parent) => host == parent || is_below(parent),
        }
    }
}

/// Host (in lower case) and port of a URL without its scheme; `None` if the port is not a number.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let authority = text.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = port.filter(|port| !port.is_empty()).map(str::parse).transpose().ok()?;
    Some((host.to_ascii_lowercase(), port))
}

fn default_port(scheme: Option<&str>) -> Option<u16> {
    match scheme {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The behaviour of httpx 0.28.1; `tests/python/no_proxy.py` compares the table with the installed httpx.
    const TABLE: &str = include_str!("no_proxy.txt");

    #[test]
    fn matches_as_httpx_does() {
        let mut count = 0;
        for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let [list, uri, expected] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                panic!("three columns: {line}");
            };
            let is_direct = NoProxy::parse(list).contains(&uri.parse().unwrap());
            assert_eq!(is_direct, expected == "direct", "{line}");
            count += 1;
        }
        assert!(count >= 40, "{count} cases");
    }

    /// httpx fails to start with these entries.
    #[test]
    fn accepts_addresses_in_brackets() {
        let contains = |list: &str, uri: &str| NoProxy::parse(list).contains(&uri.parse().unwrap());
        assert!(contains("[::1]", "http://[::1]/"));
        assert!(contains("[::1]:8000", "http://[::1]:8000/"));
        assert!(!contains("[::1]:8000", "http://[::1]/"));
        assert!(!contains("a.example:abc", "http://a.example/"));
    }
}
