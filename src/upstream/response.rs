//! Interpretation of upstream's responses: status codes, redirects, `Retry-After`, content codings.
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Uri, header};

use crate::upstream::client::UpstreamResponse;
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::url;
use crate::validators::date_of;

/// The target of a redirect to the same host by https.
pub fn https_redirect(response: &UpstreamResponse) -> Option<Uri> {
    let location = response.headers.get(header::LOCATION)?.to_str().ok()?;
    let target = url::resolve(&response.uri, location)?;
    let is_redirect = matches!(response.status, 301 | 302 | 307 | 308);
    (is_redirect && url::is_upgrade(&response.uri, &target)).then_some(target)
}

/// The error for an unexpected status, with the likely causes. `trusted`: the request carried keys.
pub fn error_for_status(response: &UpstreamResponse, trusted: bool) -> PollError {
    let cause = match response.status {
        _ if !trusted => {
            "upstream redirected to this origin, and keys are not sent to another origin: set api_url to the final \
             URL"
        }
        401 | 403 => {
            "the key is refused. Likely causes: it is not a server-side key (those start with `ser.`); api_url \
             points to another Flagsmith installation; the key was rotated or deleted; the organisation is disabled"
        }
        404 if response.uri.path().ends_with("/stream") => {
            "no such path. Likely causes: realtime.url is wrong, or upstream has no event streams; edits still arrive \
             by polling"
        }
        404 if response.uri.path().ends_with("/proxy/config/") => {
            "no such path. Likely causes: api_url is wrong (it usually ends with /api/v1/); this Flagsmith does not \
             support proxy keys"
        }
        404 => "no such path. Likely cause: api_url is wrong; it usually ends with /api/v1/",
        407 => "an outgoing proxy requires a user and a password: http://user:password@host:port",
        429 => "too many requests: raise api_poll_frequency_seconds, or run fewer proxies",
        502..=504 => "upstream, or a gateway in front of it, is down or overloaded",
        500..=599 => "an internal error of upstream: see its log",
        _ => "unexpected status",
    };
    // The proxy itself may have sent the response to a plain http request.
    let through = match &response.through {
        Some(proxy) if response.uri.scheme_str() == Some("http") => format!(" (sent through {proxy})"),
        _ => String::new(),
    };
    PollError {
        kind: PollErrorKind::Status(response.status),
        message: format!("{} answered {}: {cause}{through}", url::origin(&response.uri), response.status),
        retry_after: retry_after(response),
    }
}

/// The wait that the response demands.
pub fn retry_after(response: &UpstreamResponse) -> Option<Duration> {
    let text = response.headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    parse_retry_after(text, date_of(&response.headers))
}

/// A content coding that the client cannot decode; it decodes gzip (RFC 9110 8.4).
pub fn unknown_coding(headers: &HeaderMap) -> Option<&str> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = codings.flat_map(|field| field.to_str().unwrap_or("?").split(',')).map(str::trim);
    let is_known =
        |coding: &str| ["", "gzip", "identity"].iter().any(|known| coding.eq_ignore_ascii_case(known));
    codings.into_iter().find(|coding| !is_known(coding))
}

/// Parses seconds or a date (RFC 9110 10.2.3). The date is by upstream's clock, and so must be `now`.
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // A number that overflows is a long time.
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => Some(Duration::MAX),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_retry_after_as_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 09:00:00 GMT").unwrap();
        for (text, expected) in [
            ("7", Some(7)),
            ("Mon, 23 Nov 2026 09:00:30 GMT", Some(30)),
            ("Mon, 23 Nov 2026 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
            ("99999999999999999999999", Some(Duration::MAX.as_secs())),
        ] {
            assert_eq!(parse_retry_after(text, now).map(|wait| wait.as_secs()), expected, "{text}");
        }
    }
}
