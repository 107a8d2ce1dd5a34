//! `edge-proxy health`: asks a running proxy how it is, for containers that have no curl.
//!
//! In: the configuration that the proxy runs with. Out: its health body, and whether it is well.
//! Invariant: asks only this machine and only once, within [`PATIENCE`]; changes nothing.
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::Config;

/// Beyond: not well. Container runtimes give a check some seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// Which health is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The process answers.
    Liveness,
    /// Its environments are there and fresh.
    Readiness,
}

/// Asks. The body, and whether the answer was 200.
///
/// # Errors
/// Nobody answered, or there is no way to ask.
pub fn ask(config: &Config, question: Question) -> io::Result<(String, bool)> {
    let path = match question {
        Question::Liveness => "/proxy/health/liveness",
        Question::Readiness => "/proxy/health/readiness",
    };
    if let Some(socket) = &config.server.unix_socket {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        return converse(stream, path);
    }
    let (host, port, path) = match (&config.server.tls, &config.admin) {
        (None, _) => (config.server.host, config.server.port, path),
        // Over TLS the answer would hang on names and certificates, not on health.
        (Some(_), Some(admin)) if question == Question::Liveness => (admin.host, admin.port, "/status.json"),
        (Some(_), _) => {
            let hint =
                "server.tls is set: give server.unix_socket too, so that health can be asked without TLS";
            return Err(io::Error::new(io::ErrorKind::Unsupported, hint));
        }
    };
    let address = SocketAddr::new(reachable(host), port);
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    converse(stream, path)
}

fn converse(mut stream: impl Read + Write, path: &str) -> io::Result<(String, bool)> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"));
    };
    let is_well = head.split(' ').nth(1) == Some("200");
    Ok((body.to_owned(), is_well))
}

/// A proxy that listens on all addresses listens on the loopback one.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}
