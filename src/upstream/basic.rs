//! User and password of a URL (RFC 3986 3.2.1) as a field of HTTP.
//!
//! In: an address as it is configured. Out: the address without them, and the value of an
//! `Authorization` or `Proxy-Authorization` field (RFC 7617). Invariant: what comes out of here as an
//! address can be logged and sent to any server.
use http::Uri;

use crate::config::Secret;

/// The address without user and password, and these as credentials.
pub fn split(uri: &Uri) -> (Uri, Option<Secret>) {
    let Some((userinfo, bare)) = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@'))
    else {
        return (uri.clone(), None);
    };
    let mut parts = uri.clone().into_parts();
    parts.authority = bare.parse().ok();
    // The parts were those of an address before, so that they are of one again.
    let bare = Uri::from_parts(parts).unwrap_or_default();
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    (bare, Some(credentials(&percent_decoded(user), &percent_decoded(password))))
}

/// `Basic dXNlcjp3b3Jk`
pub fn credentials(user: &[u8], password: &[u8]) -> Secret {
    Secret::new(format!("Basic {}", base64(&[user, b":", password].concat())))
}

/// `%40` is `@`. What is not an escape stays, as in Python's `urllib.parse.unquote`.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

/// RFC 4648 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let index = (bits >> (18 - 6 * at)) as usize & 63;
            text.push(if at <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_decoded_once() {
        // The values are those that httpx 0.28.1 sends.
        for (url, bare, field) in [
            ("http://x.example/api/", "http://x.example/api/", None),
            ("http://user:word@x.example/a", "http://x.example/a", Some("Basic dXNlcjp3b3Jk")),
            ("http://u%40x:p%3Aw%25@x.example:81/", "http://x.example:81/", Some("Basic dUB4OnA6dyU=")),
            ("https://user@[::1]:8000/", "https://[::1]:8000/", Some("Basic dXNlcjo=")),
            ("http://u+x:%zz@x.example/", "http://x.example/", Some("Basic dSt4OiV6eg==")),
            ("http://%C3%BC:b@x.example/", "http://x.example/", Some("Basic w7w6Yg==")),
        ] {
            let (found, secret) = split(&url.parse().unwrap());
            assert_eq!(
                (found.to_string().as_str(), secret.as_ref().map(Secret::expose)),
                (bare, field),
                "{url}"
            );
        }
    }
}
