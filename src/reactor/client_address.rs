//! The address of a client, behind trusted proxies too.
//!
//! `X-Forwarded-For` is used only if the peer is trusted (`server.forwarded_allow_ips`), and interpreted as
//! uvicorn does.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::{Config, ForwardedAllowIps};

/// Finds the address of the client of a request.
pub struct ClientAddress {
    /// `None`: `X-Forwarded-For` is ignored.
    forwarded_allow_ips: Option<ForwardedAllowIps>,
}

impl ClientAddress {
    /// The peer of a unix socket is local.
    pub const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    pub fn new(config: &Config) -> Self {
        let server = &config.server;
        Self { forwarded_allow_ips: server.proxy_headers.then(|| server.forwarded_allow_ips.clone()) }
    }

    /// The peer, or the address that trusted proxies report. `None`: the peer of a unix socket.
    pub fn of(&self, peer: Option<IpAddr>, forwarded_for: Option<&[u8]>) -> Option<IpAddr> {
        let (Some(allow), Some(list)) = (&self.forwarded_allow_ips, forwarded_for) else { return peer };
        if !allow.contains(peer.unwrap_or(Self::LOCAL)) {
            return peer;
        }
        let hosts = || list.split(|byte| *byte == b',').map(host);
        let first = || hosts().next().flatten();
        let found = match allow {
            ForwardedAllowIps::All => first(),
            // From the right: each trusted proxy has appended the address of the hop before it.
            ForwardedAllowIps::Networks(networks) => {
                let outside = hosts().rev().find(|host| !host.is_some_and(|host| networks.contains(host)));
                outside.unwrap_or_else(first)
            }
        };
        found.or(peer)
    }
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
    use crate::config::Networks;

    fn client(allow: Option<ForwardedAllowIps>, peer: Option<&str>, forwarded_for: &str) -> String {
        let addresses = ClientAddress { forwarded_allow_ips: allow };
        let peer = peer.map(|peer| peer.parse().unwrap());
        let client = addresses.of(peer, Some(forwarded_for.as_bytes()));
        client.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string())
    }

    #[test]
    fn uses_forwarded_for_only_from_trusted_peers() {
        let networks = ["127.0.0.1/32", "10.0.0.0/8"].map(|network| network.parse().unwrap());
        let ours = || Some(ForwardedAllowIps::Networks(Networks::new(networks)));
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
