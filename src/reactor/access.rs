//! The access log, and whose request it was when a proxy stands in front.
//!
//! In: a peer, a request, what became of it. Out: one record. Invariant: `X-Forwarded-For` is
//! believed only from the peers the configuration trusts, and read as uvicorn reads it; no key,
//! no query and no body comes into a record (a query holds identifiers).
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use crate::config::{Config, ForwardedAllowIps, Level};
use crate::http::Request;
use crate::log::Log;

/// How access records are made.
pub struct AccessLog {
    /// `None`: nobody is believed.
    forwarded_allow_ips: Option<ForwardedAllowIps>,
}

impl AccessLog {
    /// `None` if no access log is wanted.
    pub fn new(config: &Config) -> Option<Self> {
        let server = &config.server;
        let forwarded_allow_ips = server.proxy_headers.then(|| server.forwarded_allow_ips.clone());
        config.logging.enable_access_log.then_some(Self { forwarded_allow_ips })
    }

    /// Writes one record.
    pub fn write(
        &self,
        log: &Log,
        peer: Option<IpAddr>,
        request: &Request<'_>,
        status: u16,
        bytes: usize,
        began: SystemTime,
    ) {
        let remote_ip = self.client(peer, request.fields.forwarded_for);
        let took = began.elapsed().unwrap_or(Duration::ZERO);
        log.event(
            Level::Info,
            "http_request",
            &[
                ("remote_ip", &Remote(remote_ip)),
                ("method", &request.method.name()),
                ("path", &String::from_utf8_lossy(request.path)),
                ("status", &status),
                ("bytes", &bytes),
                ("duration_us", &took.as_micros()),
            ],
        );
    }

    /// The address the request came from, behind proxies that are trusted.
    fn client(&self, peer: Option<IpAddr>, forwarded_for: Option<&[u8]>) -> Option<IpAddr> {
        let trusted = |allow: &ForwardedAllowIps, host: Option<IpAddr>| match host {
            Some(host) => allow.contains(host),
            // A unix socket's peer is as local as the loopback address.
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
            // From the right: each hop that is ours may have added the one before it.
            ForwardedAllowIps::Networks(_) => {
                let outside = hosts().rev().find(|host| !host.is_some_and(|host| allow.contains(host)));
                outside.unwrap_or_else(first)
            }
        };
        found.or(peer)
    }
}

/// An address as proxies write it: bare, with a port, in brackets.
fn host(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

struct Remote(Option<IpAddr>);

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.to_canonical().fmt(f),
            None => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Network;

    fn client(allow: Option<ForwardedAllowIps>, peer: Option<&str>, forwarded_for: &str) -> String {
        let log = AccessLog { forwarded_allow_ips: allow };
        let peer = peer.map(|peer| peer.parse().unwrap());
        Remote(log.client(peer, Some(forwarded_for.as_bytes()))).to_string()
    }

    #[test]
    fn only_trusted_peers_are_believed() {
        let network = |address: &str, prefix_bits| Network { address: address.parse().unwrap(), prefix_bits };
        let ours =
            || Some(ForwardedAllowIps::Networks(vec![network("127.0.0.1", 32), network("10.0.0.0", 8)]));
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
}
