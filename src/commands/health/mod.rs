//! `edge-proxy health`: sends one health request to the proxy of this configuration on this machine, for
//! containers without curl.
//!
//! The request goes to the unix socket if one is configured, else to the main port (over TLS if
//! configured), or to the admin port if the main port requires client certificates.
mod tls;

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use clap::Args;

use crate::commands::arguments::ServeArgs;
use crate::config;
use crate::config::Inputs;
use crate::config::{Config, reachable};
use crate::terminal::escape_lines;

/// For each of connect, read and write. Shorter than the timeout of the image's HEALTHCHECK.
const TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Debug, Default, Args)]
pub struct HealthArgs {
    /// Query readiness (every environment has a fresh document) instead of liveness
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    /// The process responds.
    Liveness,
    /// Its environments have fresh documents.
    Readiness,
}

/// The response to a health request.
struct HealthResponse {
    is_ok: bool,
    body: String,
}

/// Prints the body of the response.
///
/// # Errors
/// An invalid configuration, no response, or a status other than 200.
pub fn run(args: HealthArgs) -> Result<(), Box<dyn Error>> {
    let endpoint = if args.ready { Endpoint::Readiness } else { Endpoint::Liveness };
    let (config, _) = config::load(&Inputs { may_serve_nothing: true, ..args.serve.inputs() })?;
    let response = query(&config, endpoint).map_err(with_advice)?;
    if !response.is_ok {
        return Err(format!("unhealthy: {}", response.body).into());
    }
    let shown = if response.body.is_empty() { "alive" } else { &response.body };
    // With a closed stdout the exit code is still right.
    let _ = writeln!(io::stdout(), "{}", escape_lines(shown));
    Ok(())
}

fn with_advice(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            "nothing is listening there: check that the proxy is running with this configuration"
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "no response in time: the proxy hangs or has no CPU time"
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "closed without a response: check that the proxy is what listens there"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}

fn query(config: &Config, endpoint: Endpoint) -> io::Result<HealthResponse> {
    let path = match endpoint {
        Endpoint::Liveness => "/proxy/health/liveness",
        Endpoint::Readiness => "/proxy/health/readiness",
    };
    if let Some(socket) = &config.server.unix_socket {
        let unreachable =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", socket.display()));
        let stream = UnixStream::connect(socket).map_err(unreachable)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        return request(stream, path);
    }
    let main = reachable(SocketAddr::new(config.server.host, config.server.port));
    let Some(tls) = &config.server.tls else { return request(connect(main)?, path) };
    if tls.client_ca.is_none() {
        return request(tls::Stream::open(connect(main)?)?, path);
    }
    // Port 0 means any free port, so the actual one is unknown here.
    if let Some(admin) = config.admin.as_ref().filter(|admin| admin.port != 0) {
        return request(connect(reachable(SocketAddr::new(admin.host, admin.port)))?, path);
    }
    match (endpoint, tls::requests_certificate(connect(main)?)?) {
        (Endpoint::Liveness, true) => Ok(HealthResponse { is_ok: true, body: String::new() }),
        _ => {
            let hint = "server.tls.client_ca is set and this command has no client certificate: set \
                        admin.port or server.unix_socket, which need none";
            Err(io::Error::new(io::ErrorKind::Unsupported, hint))
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn request(mut stream: impl Read + Write, path: &str) -> io::Result<HealthResponse> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut response = Vec::new();
    stream.take(1 << 20).read_to_end(&mut response)?;
    let response = String::from_utf8_lossy(&response);
    let Some((head, body)) = response.split_once("\r\n\r\n") else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the response is not HTTP"));
    };
    Ok(HealthResponse { is_ok: head.split(' ').nth(1) == Some("200"), body: body.to_owned() })
}
