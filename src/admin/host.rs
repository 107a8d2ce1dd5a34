//! The `Host` check of the admin listener: protects against DNS rebinding.
//!
//! Without it a web page whose DNS name resolves to an address in the operator's network could read the
//! status page through a browser there, because both have the same origin. Such a request has the page's name
//! as `Host`. IP addresses and `localhost` cannot be rebound, so they are always allowed;
//! `admin.allowed_hosts` lists other names.
use std::net::{Ipv4Addr, Ipv6Addr};

/// The result of the check.
#[derive(Debug, PartialEq, Eq)]
pub enum HostCheck {
    Allowed,
    /// 400: no `Host` in HTTP/1.1, or several (RFC 9112 section 3.2).
    Invalid,
    /// 421. Contains the value as sent.
    NotAllowed(String),
}

/// Checks a request head. HTTP/1.0 requests may omit `Host`; browsers do not send them.
pub fn check(head: &[u8], allowed: &[String]) -> HostCheck {
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let is_http_10 = lines.next().is_some_and(|line| line.ends_with(b" HTTP/1.0"));
    let mut hosts = lines.filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        name.eq_ignore_ascii_case(b"host").then(|| String::from_utf8_lossy(value[1..].trim_ascii()))
    });
    match (hosts.next(), hosts.next()) {
        (None, _) if is_http_10 => HostCheck::Allowed,
        (Some(host), None) if is_allowed(&host, allowed) => HostCheck::Allowed,
        (Some(host), None) => HostCheck::NotAllowed(host.into_owned()),
        _ => HostCheck::Invalid,
    }
}

/// `allowed` is lower-case without a trailing dot, as the configuration stores it.
fn is_allowed(host: &str, allowed: &[String]) -> bool {
    if allowed.iter().any(|one| one == "*") {
        return true;
    }
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<Ipv6Addr>().is_ok() && port.strip_prefix(':').map_or(port.is_empty(), is_port)
        });
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return false,
        None => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost"
        || name.parse::<Ipv4Addr>().is_ok()
        || allowed.iter().any(|one| match one.strip_prefix('.') {
            Some(domain) => {
                name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            None => name == *one,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_host_allowed(host: &str, allowed: &[&str]) -> bool {
        let allowed: Vec<String> = allowed.iter().map(|one| (*one).to_owned()).collect();
        let head = format!("GET / HTTP/1.1\r\nX: y\r\nhOsT:  {host} \r\n\r\n");
        check(head.as_bytes(), &allowed) == HostCheck::Allowed
    }

    #[test]
    fn addresses_and_localhost_are_always_allowed() {
        let always = [
            "127.0.0.1",
            "10.1.2.3:8001",
            "[::1]",
            "[2001:db8::1]:8001",
            "localhost",
            "LOCALHOST:8001",
            "localhost.",
        ];
        for host in always {
            assert!(is_host_allowed(host, &[]), "{host}");
        }
        for host in [
            "",
            ":8001",
            "evil.example",
            "evil.example:8001",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1:x",
            "::1",
            "[::1",
            "[::1]x",
            "[evil.example]",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "evil.example@127.0.0.1",
            "127.0.0.1, evil.example",
        ] {
            assert!(!is_host_allowed(host, &[]), "{host}");
            assert!(is_host_allowed(host, &["*"]), "{host}");
        }
    }

    #[test]
    fn names_are_allowed_if_listed() {
        let allowed = ["proxy.example", ".internal.example"];
        for host in [
            "proxy.example",
            "PROXY.example:8001",
            "proxy.example.",
            "internal.example",
            "a.b.internal.example:1",
        ] {
            assert!(is_host_allowed(host, &allowed), "{host}");
        }
        for host in ["x.proxy.example", "notinternal.example", "internal.example.evil", "proxy.example.evil"]
        {
            assert!(!is_host_allowed(host, &allowed), "{host}");
        }
    }

    #[test]
    fn requires_exactly_one_host_except_in_http_1_0() {
        let found = |head: &str| check(head.as_bytes(), &[]);
        assert_eq!(found("GET / HTTP/1.0\r\n\r\n"), HostCheck::Allowed);
        assert_eq!(found("GET / HTTP/1.1\r\n\r\n"), HostCheck::Invalid);
        assert_eq!(found("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: x\r\n\r\n"), HostCheck::Invalid);
        assert_eq!(
            found("GET / HTTP/1.0\r\nHost: x.example\r\n\r\n"),
            HostCheck::NotAllowed("x.example".to_owned())
        );
    }
}
