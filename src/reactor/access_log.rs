//! The access log, and the client address behind trusted proxies.
//!
//! `X-Forwarded-For` is used only if the peer is trusted (`server.forwarded_allow_ips`), and interpreted as
//! uvicorn does. Records never contain keys, queries (which contain identifiers) or bodies.
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use crate::config::{Config, ForwardedAllowIps, Secret};
use crate::http::Request;
use crate::limits::ACCESS_BATCH_RECORDS;
use crate::log::{AccessRecord, AccessRecords, Log};

/// Creates and buffers the access records of one reactor.
pub struct AccessLog {
    /// `None`: `X-Forwarded-For` is ignored.
    forwarded_allow_ips: Option<ForwardedAllowIps>,
    /// Buffered, because waking the log thread for each record would cost more than the request.
    records: RefCell<AccessRecords>,
}

impl AccessLog {
    /// `None` if the access log is disabled.
    pub fn new(config: &Config) -> Option<Self> {
        let server = &config.server;
        let forwarded_allow_ips = server.proxy_headers.then(|| server.forwarded_allow_ips.clone());
        config.logging.enable_access_log.then(|| Self::of(forwarded_allow_ips))
    }

    fn of(forwarded_allow_ips: Option<ForwardedAllowIps>) -> Self {
        Self { forwarded_allow_ips, records: RefCell::default() }
    }

    /// Buffers one record; returns how many were dropped.
    pub fn write(
        &self,
        log: &Log,
        peer: Option<IpAddr>,
        request: &Request<'_>,
        status: u16,
        bytes: usize,
        began: SystemTime,
    ) -> u64 {
        if !log.takes_accesses() {
            return 0;
        }
        let took = began.elapsed().unwrap_or(Duration::ZERO);
        let record = |path| AccessRecord {
            time: began,
            remote_ip: self.client(peer, request.fields.forwarded_for),
            method: request.method.name(),
            path,
            status,
            bytes,
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        let mut records = self.records.borrow_mut();
        records.push(|paths| write_path(request.path, paths), record);
        let is_full = records.len() >= ACCESS_BATCH_RECORDS;
        drop(records);
        if is_full { self.flush(log) } else { 0 }
    }

    /// Sends the buffered records to the log thread; returns how many were dropped.
    pub fn flush(&self, log: &Log) -> u64 {
        let records = self.records.take();
        let count = records.len() as u64;
        if count == 0 || log.accesses(records) { 0 } else { count }
    }

    /// The address of the client: the peer, or the address that trusted proxies report.
    fn client(&self, peer: Option<IpAddr>, forwarded_for: Option<&[u8]>) -> Option<IpAddr> {
        let trusted = |allow: &ForwardedAllowIps, host: Option<IpAddr>| match host {
            Some(host) => allow.contains(host),
            // The peer of a unix socket is local, like a loopback address.
            None => *allow == ForwardedAllowIps::All || allow.contains(IpAddr::from([127, 0, 0, 1])),
        };
        let (Some(allow), Some(list)) = (&self.forwarded_allow_ips, forwarded_for) else { return peer };
        if !trusted(allow, peer) {
            return peer;
        }
        let hosts = || list.split(|byte| *byte == b',').map(host);
        let first = || hosts().next().flatten();
        let found = match allow {
            ForwardedAllowIps::All => first(),
            // From the right: each trusted proxy has appended the address of the hop before it.
            ForwardedAllowIps::Networks(_) => {
                let outside = hosts().rev().find(|host| !host.is_some_and(|host| allow.contains(host)));
                outside.unwrap_or_else(first)
            }
        };
        found.or(peer)
    }
}

/// Appends a path as sent; if it contains keys, decoded and with the keys truncated. Keys in paths without a
/// route (such as a mistyped one) are truncated too.
fn write_path(path: &[u8], out: &mut String) {
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

/// Parses an address as proxies write it: bare, with a port, or in brackets.
fn host(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(allow: Option<ForwardedAllowIps>, peer: Option<&str>, forwarded_for: &str) -> String {
        let log = AccessLog::of(allow);
        let peer = peer.map(|peer| peer.parse().unwrap());
        let client = log.client(peer, Some(forwarded_for.as_bytes()));
        client.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string())
    }

    #[test]
    fn uses_forwarded_for_only_from_trusted_peers() {
        let networks = ["127.0.0.1/32", "10.0.0.0/8"].map(|network| network.parse().unwrap());
        let ours = || Some(ForwardedAllowIps::networks(networks));
        for (allow, peer, forwarded_for, expected) in [
            (None, Some("127.0.0.1"), "1.2.3.4", "127.0.0.1"),
            (ours(), Some("192.0.2.1"), "1.2.3.4", "192.0.2.1"),
            (ours(), Some("127.0.0.1"), "1.2.3.4", "1.2.3.4"),
            (ours(), Some("::ffff:127.0.0.1"), "1.2.3.4", "1.2.3.4"),
            (ours(), Some("127.0.0.1"), "6.6.6.6, 1.2.3.4, 10.1.1.1", "1.2.3.4"),
            (ours(), Some("127.0.0.1"), "10.2.2.2, 10.1.1.1", "10.2.2.2"),
            (ours(), Some("127.0.0.1"), "1.2.3.4:5678", "1.2.3.4"),
            (ours(), Some("127.0.0.1"), "[2001:db8::1]:5678", "2001:db8::1"),
            (ours(), Some("127.0.0.1"), "[2001:db8::1]", "2001:db8::1"),
            (ours(), Some("127.0.0.1"), "unknown", "127.0.0.1"),
            (ours(), None, "1.2.3.4", "1.2.3.4"),
            (Some(ForwardedAllowIps::All), Some("192.0.2.1"), "1.2.3.4, 5.6.7.8", "1.2.3.4"),
        ] {
            assert_eq!(client(allow, peer, forwarded_for), expected, "{peer:?} {forwarded_for}");
        }
    }

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
