//! `edge-proxy health`: asks a running proxy how it is, for containers that have no curl.
//!
//! In: the configuration that the proxy runs with. Out: its health body, and whether it is well.
//! Asked is the unix socket if there is one, else the main port, over TLS if that is on, else
//! (where callers must show certificates) the admin port. Invariant: asks only this machine and
//! only once, each step within [`PATIENCE`]; changes nothing.
mod tls;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::{Config, reachable};

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
    ask_plainly(config, question).map_err(|error| match advice(error.kind()) {
        Some(advice) => io::Error::new(error.kind(), format!("{error}; {advice}")),
        None => error,
    })
}

/// What a person needs who reads the line in a container's health log.
fn advice(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            Some("nobody listens there: is the proxy running, and with this configuration?")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Some("no answer in time: it hangs, or its CPU is taken")
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            Some("closed without an answer: is it the proxy that listens there?")
        }
        _ => None,
    }
}

fn ask_plainly(config: &Config, question: Question) -> io::Result<(String, bool)> {
    let path = match question {
        Question::Liveness => "/proxy/health/liveness",
        Question::Readiness => "/proxy/health/readiness",
    };
    if let Some(socket) = &config.server.unix_socket {
        let unreachable =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", socket.display()));
        let stream = UnixStream::connect(socket).map_err(unreachable)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        return converse(stream, path);
    }
    let main = reachable(SocketAddr::new(config.server.host, config.server.port));
    let Some(tls) = &config.server.tls else { return converse(connect(main)?, path) };
    if tls.client_ca.is_none() {
        return converse(tls::Stream::open(connect(main)?)?, path);
    }
    // Port 0 is any free one, which only the running process knows.
    if let Some(admin) = config.admin.as_ref().filter(|admin| admin.port != 0) {
        return converse(connect(reachable(SocketAddr::new(admin.host, admin.port)))?, path);
    }
    match (question, tls::asks_for_certificate(connect(main)?)?) {
        (Question::Liveness, true) => Ok((String::new(), true)),
        _ => {
            let hint = "server.tls.client_ca is set and this check has no certificate: set admin.port or \
                        server.unix_socket, which answer the same question without one";
            Err(io::Error::new(io::ErrorKind::Unsupported, hint))
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn converse(mut stream: impl Read + Write, path: &str) -> io::Result<(String, bool)> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"));
    };
    let is_well = head.split(' ').nth(1) == Some("200");
    Ok((body.to_owned(), is_well))
}
