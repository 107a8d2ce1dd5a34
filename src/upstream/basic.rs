//! Basic authentication (RFC 7617) with the user and password of a URL (RFC 3986 3.2.1).
//!
//! URLs from configuration are stripped of user and password here, so that they can be logged.
use http::Uri;
use percent_encoding::percent_decode_str;

use crate::config::Secret;
use crate::json::base64::base64;

/// The URL without user and password, and these as the value of an `Authorization` field. An invalid percent
/// escape is kept as it is, as in Python's `urllib.parse.unquote`.
pub fn split(uri: &Uri) -> (Uri, Option<Secret>) {
    let Some((userinfo, bare)) = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@'))
    else {
        return (uri.clone(), None);
    };
    let mut parts = uri.clone().into_parts();
    parts.authority = bare.parse().ok();
    // Cannot fail: only the authority has changed, and it is set.
    let bare = Uri::from_parts(parts).unwrap_or_default();
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decode = |text| percent_decode_str(text).collect::<Vec<u8>>();
    (bare, Some(credentials(&decode(user), &decode(password))))
}

/// The value of an `Authorization` field, such as `Basic dXNlcjp3b3Jk`.
pub fn credentials(user: &[u8], password: &[u8]) -> Secret {
    Secret::new(format!("Basic {}", base64(&[user, b":", password].concat())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_user_and_password_once() {
        // The values that httpx 0.28.1 sends.
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
