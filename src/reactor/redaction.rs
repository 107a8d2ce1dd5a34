//! Texts of requests as the access log and spans show them: bounded, and with keys truncated.
use std::borrow::Cow;
use std::fmt::Write as _;

use crate::config::Secret;
use crate::limits::ACCESS_USER_AGENT_BYTES_MAX;

/// Appends a user agent, cut to `ACCESS_USER_AGENT_BYTES_MAX`.
pub fn write_user_agent(value: Option<&[u8]>, out: &mut String) {
    let value = value.unwrap_or_default();
    match value.get(..ACCESS_USER_AGENT_BYTES_MAX) {
        Some(beginning) if beginning.len() < value.len() => {
            out.push_str(&String::from_utf8_lossy(beginning));
            out.push_str("...");
        }
        _ => out.push_str(&String::from_utf8_lossy(value)),
    }
}

/// Appends a path as sent; if it contains keys, decoded and with the keys truncated. Keys in paths without a
/// route (such as a mistyped one) are truncated too.
pub fn write_path(path: &[u8], out: &mut String) {
    let decoded = match path.contains(&b'%') {
        true => Cow::Owned(decode_fully(path)),
        false => Cow::Borrowed(path),
    };
    if !has_key(&decoded) {
        return out.push_str(&String::from_utf8_lossy(path));
    }
    let mut is_after_environments = false;
    for (index, segment) in decoded.split(|byte| *byte == b'/').enumerate() {
        if index > 0 {
            out.push('/');
        }
        let text = String::from_utf8_lossy(segment);
        let is_key = is_after_environments && !segment.is_empty() && segment != b"stream";
        match server_side_key(segment) {
            // Writing to a string cannot fail.
            Some(at) if !is_key => {
                let (before, key) = (String::from_utf8_lossy(&segment[..at]), &segment[at..]);
                let _ = write!(out, "{before}{}", Secret::new(String::from_utf8_lossy(key)));
            }
            _ if is_key => drop(write!(out, "{}", Secret::new(text))),
            _ => out.push_str(&text),
        }
        is_after_environments |= is_environments(segment);
    }
}

/// Whether the next segment is the key of an event stream. The case is ignored, although such paths have no
/// route.
fn is_environments(segment: &[u8]) -> bool {
    segment.eq_ignore_ascii_case(b"environments")
}

fn has_key(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(is_environments)
        || (path.contains(&b'.') && server_side_key(path).is_some())
}

/// The start of a server-side key: `ser.`, unless it ends a longer word (`user.name`).
fn server_side_key(text: &[u8]) -> Option<usize> {
    let is_start = |at: &usize| at.checked_sub(1).is_none_or(|before| !text[before].is_ascii_alphanumeric());
    let found = text.windows(4).enumerate().filter(|(_, window)| window.eq_ignore_ascii_case(b"ser."));
    found.map(|(at, _)| at).find(is_start)
}

/// Decodes `%XX` repeatedly, until none is left (`%2565` becomes `e`), because readers of the log may decode
/// it again. One pass suffices: a decoded byte can only complete an escape that began before it.
fn decode_fully(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    for byte in path {
        decoded.push(*byte);
        while let [.., b'%', high, low] = decoded[..]
            && let (Some(high), Some(low)) = (char::from(high).to_digit(16), char::from(low).to_digit(16))
        {
            decoded.truncate(decoded.len() - 3);
            decoded.push((high * 16 + low) as u8);
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncates_keys_in_paths() {
        for (path, expected) in [
            ("/sse/environments/a-client-side-key/stream", "/sse/environments/a-clie.../stream"),
            ("/ofrep/v1/environments/a-client-side-key", "/ofrep/v1/environments/a-clie..."),
            ("/api/v1/flags/", "/api/v1/flags/"),
            ("/api/v1/fl%61gs/", "/api/v1/fl%61gs/"),
            ("/sse/%65nvironments/ser.secret-of-a-test/stream", "/sse/environments/ser.se.../stream"),
            ("/sse%2fenvironments%2Fser.secret-of-a-test%2fstream", "/sse/environments/ser.se.../stream"),
            ("/sse/%2565nvironments/ser.secret-of-a-test/", "/sse/environments/ser.se.../"),
            ("/sse/%25%36%35nvironments/a-client-side-key", "/sse/environments/a-clie..."),
            ("/SSE/ENVIRONMENTS/a-client-side-key/stream", "/SSE/ENVIRONMENTS/a-clie.../stream"),
            ("/sse/environments//a-client-side-key/x/stream", "/sse/environments//a-clie.../.../stream"),
            ("/api/v1/flags/ser.secret-of-a-test", "/api/v1/flags/ser.se..."),
            ("/api/v1/flags/%73%65%72%2esecret-of-a-test/", "/api/v1/flags/ser.se.../"),
            ("/api/v1/flags/;key=ser.secret-of-a-test", "/api/v1/flags/;key=ser.se..."),
            ("/ofrep/v1/evaluate/flags/user.name", "/ofrep/v1/evaluate/flags/user.name"),
            ("/50%/%zz/%", "/50%/%zz/%"),
        ] {
            let mut paths = "/before/".to_owned();
            write_path(path.as_bytes(), &mut paths);
            assert_eq!(paths, format!("/before/{expected}"));
        }
    }
}
