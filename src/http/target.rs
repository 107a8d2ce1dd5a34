//! Validation of request targets and authorities (RFC 9112 3.2, RFC 3986 3.2).
//!
//! Rejects forms that two servers may resolve to different resources or hosts. Runs only for heads that are
//! not in the [head cache](crate::http::head_cache).
use std::net::Ipv6Addr;

use memchr::memchr;

/// Whether a request with this method may have this target: a path, `*` for `OPTIONS`, or an http or https
/// URL. The authority form is only for `CONNECT`, which origin servers do not support.
pub fn is_target(method: &[u8], target: &[u8]) -> bool {
    match target {
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        _ => authority_of(target).is_some_and(|authority| authority[0] != b':' && is_authority(authority)),
    }
}

/// The authority of an http or https URL, if present.
fn authority_of(url: &[u8]) -> Option<&[u8]> {
    let after = |scheme: &[u8]| {
        let (start, rest) = url.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = after(b"http://").or_else(|| after(b"https://"))?;
    let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    (end > 0).then(|| &rest[..end])
}

/// Whether this is `uri-host [ ":" port ]` (RFC 9110 7.2). Rejects user information (RFC 9110 4.2.4), and
/// commas: the grammar allows them, but in practice they separate two merged hosts.
pub fn is_authority(text: &[u8]) -> bool {
    let (is_host, port) = match text.strip_prefix(b"[") {
        Some(literal) => match memchr(b']', literal) {
            Some(end) => (is_ip_literal(&literal[..end]), &literal[end + 1..]),
            None => return false,
        },
        None => {
            let (host, port) = text.split_at(memchr(b':', text).unwrap_or(text.len()));
            (is_name(host), port)
        }
    };
    is_host && is_port(port)
}

/// Whether this is empty, or a colon with an optional 16-bit number.
fn is_port(text: &[u8]) -> bool {
    let Some((b':', digits)) = text.split_first() else { return text.is_empty() };
    let add = |port: u32, digit: &u8| port.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    digits.iter().all(u8::is_ascii_digit) && digits.iter().fold(0, add) <= u32::from(u16::MAX)
}

/// Whether this is an `IPv6address`, optionally with a zone (RFC 6874), or an `IPvFuture`.
fn is_ip_literal(text: &[u8]) -> bool {
    if let [b'v' | b'V', future @ ..] = text {
        let Some(dot) = memchr(b'.', future) else { return false };
        let (version, address) = (&future[..dot], &future[dot + 1..]);
        let is_address_byte = |byte: &u8| *byte == b':' || is_name_byte(*byte);
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address.iter().all(is_address_byte);
    }
    let (address, zone) = text.split_at(memchr(b'%', text).unwrap_or(text.len()));
    let is_address = std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
    is_address && (zone.is_empty() || zone.len() > 1 && zone[1..].iter().copied().all(is_name_byte))
}

/// Whether this is a registered name or an IPv4 address. It may be empty: `Host` of a URI without authority
/// is (RFC 9112 3.2).
fn is_name(mut text: &[u8]) -> bool {
    loop {
        text = match text {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if is_name_byte(*byte) => rest,
            _ => return false,
        };
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_a_host_with_an_optional_port() {
        for (text, expected) in [
            ("", true),
            ("a", true),
            ("a.example-1_x~", true),
            ("127.0.0.1:8000", true),
            ("a:", true),
            ("a:0", true),
            ("a:00080", true),
            ("a:65535", true),
            ("a%20b", true),
            ("[::1]", true),
            ("[::1]:8000", true),
            ("[2001:db8::192.0.2.1]", true),
            ("[fe80::1%25eth0]:80", true),
            ("[v1.a:b]", true),
            ("a:65536", false),
            ("a:99999999999999999999999999", false),
            ("a:b", false),
            ("a:-1", false),
            ("a:+1", false),
            ("a:1:2", false),
            ("::1", false),
            ("a%2", false),
            ("a%zz", false),
            ("u@a", false),
            ("a/b", false),
            ("a?b", false),
            ("a#b", false),
            ("a b", false),
            ("a,b", false),
            ("a\\b", false),
            ("[::1", false),
            ("[::1]a", false),
            ("[]", false),
            ("[1.2.3.4]", false),
            ("[:::1]", false),
            ("[fe80::1%]", false),
            ("[v.a]", false),
            ("[v1.]", false),
            ("[a]", false),
            ("a]", false),
            ("\u{e9}", false),
        ] {
            assert_eq!(is_authority(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn target_has_a_form_for_origin_servers() {
        for (method, target, expected) in [
            ("GET", "/", true),
            ("GET", "//a", true),
            ("GET", "http://a", true),
            ("GET", "http://a?b", true),
            ("GET", "HTTPS://a:1/b?c", true),
            ("GET", "http://[::1]/", true),
            ("OPTIONS", "*", true),
            ("GET", "*", false),
            ("options", "*", false),
            ("OPTIONS", "**", false),
            ("CONNECT", "a:1", false),
            ("GET", "a:1", false),
            ("GET", "127.0.0.1:8000", false),
            ("GET", "api/v1/flags/", false),
            ("GET", "?a", false),
            ("GET", "http:/a", false),
            ("GET", "http:///a", false),
            ("GET", "http://:80/a", false),
            ("GET", "http://u:p@a/", false),
            ("GET", "http://a:b/", false),
            ("GET", "ftp://a/", false),
        ] {
            assert_eq!(is_target(method.as_bytes(), target.as_bytes()), expected, "{method} {target}");
        }
    }
}
