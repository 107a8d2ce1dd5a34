//! The HTTP client: ureq with timeouts, TLS and outgoing proxies as configured.
//!
//! It does not follow redirects, so no header field reaches an origin that the caller did not choose. Every
//! wait has a timeout.
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, Uri};
use ureq::Agent;
use ureq::typestate::WithBody;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout};

use crate::config::{Config, SettingError};
use crate::limits;
use crate::upstream::absolute::{AbsoluteForm, ProxyResolver};
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::outbound_proxy::{OutboundProxies, OutgoingProxy};
use crate::upstream::tracing::traced;
use crate::upstream::{outbound_proxy, tls_errors, url};

const USER_AGENT: &str = concat!("edge-proxy/", env!("CARGO_PKG_VERSION"));

const JSON: &str = "application/json";

/// A header field: name and value.
pub type Field<'a> = (&'a str, &'a str);

/// An HTTP client for one configuration. It keeps idle connections for reuse.
#[derive(Debug)]
pub struct Client {
    direct: Agent,
    /// For `http` URLs through an outgoing proxy, with request targets in absolute form.
    http: Agent,
    /// For `https` URLs through an outgoing proxy, by `CONNECT`.
    https: Agent,
    proxies: OutboundProxies,
    timeout: Duration,
    silence: fn(Duration) -> SilenceLimit,
}

/// The head of a response; the body is read by [`Client::read`].
pub struct UpstreamResponse {
    pub uri: Uri,
    pub status: u16,
    pub headers: HeaderMap,
    /// The outgoing proxy, for messages.
    pub through: Option<String>,
    /// `Content-Length`, if the body is not compressed.
    pub length: Option<u64>,
    silence: SilenceLimit,
    body: ureq::BodyReader<'static>,
}

/// How long the peer may send nothing, and where this limit comes from.
#[derive(Clone, Copy, Debug)]
enum SilenceLimit {
    /// `api_poll_timeout_seconds`.
    Poll(Duration),
    /// `limits::STREAM_SILENCE_MAX`.
    Stream(Duration),
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`.
    Collector(Duration),
}

impl SilenceLimit {
    /// The settings of the address and of the time limit.
    fn settings(self) -> (&'static str, &'static str) {
        match self {
            Self::Poll(_) | Self::Stream(_) => ("api_url", "api_poll_timeout"),
            Self::Collector(_) => ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
        }
    }
}

impl std::fmt::Display for SilenceLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Poll(limit) | Self::Collector(limit) => {
                write!(f, "no data for {} s ({})", limit.as_secs_f64(), self.settings().1)
            }
            Self::Stream(limit) => write!(
                f,
                "no data on the event stream for {} s (a fixed limit; upstream sends a comment every 15 s): reconnecting",
                limit.as_secs_f64()
            ),
        }
    }
}

impl UpstreamResponse {
    fn status(&self) -> u16 {
        self.status
    }
}

impl Client {
    /// # Errors
    /// One error for each invalid setting or variable (outgoing proxies, certificates).
    pub fn new(config: &Config) -> Result<Self, Vec<SettingError>> {
        let mut errors = Vec::new();
        // The time for the largest document at the lowest allowed rate. `Upstream::read` checks the rate, but
        // not of input that yields no bytes of the body (chunk extensions, trailers, empty gzip members).
        let seconds = config.api_document_bytes_max as u64 / limits::FETCH_RATE_MIN;
        let body_time = config.api_poll_timeout + Duration::from_secs(seconds);
        let tls = outbound_proxy::tls(config).map_err(|more| errors.extend(more)).ok();
        let proxies = OutboundProxies::read(|name| std::env::var(name).ok());
        let proxies = proxies.map_err(|more| errors.extend(more)).unwrap_or_default();
        let settings = |proxy: Option<ureq::Proxy>| {
            let builder = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_idle_connections(limits::FETCH_THREADS_MAX)
                .max_idle_connections_per_host(limits::FETCH_THREADS_MAX)
                .user_agent(USER_AGENT)
                .timeout_resolve(Some(config.api_poll_timeout))
                .timeout_connect(Some(config.api_poll_timeout))
                .timeout_send_request(Some(config.api_poll_timeout))
                .timeout_recv_response(Some(config.api_poll_timeout))
                .timeout_per_read(Some(config.api_poll_timeout))
                .timeout_recv_body(Some(body_time))
                .proxy(proxy);
            match tls.clone() {
                Some(tls) => builder.tls_config(tls).build(),
                None => builder.build(),
            }
        };
        let direct = settings(None).new_agent();
        let https = settings(proxies.for_scheme("https").map(|own| own.proxy.clone())).new_agent();
        let http = proxies.for_scheme("http").map_or_else(
            || direct.clone(),
            |own| {
                let address = own.address();
                Agent::with_parts(
                    settings(None),
                    AbsoluteForm::new(address.clone()),
                    ProxyResolver::new(address),
                )
            },
        );
        if errors.is_empty() {
            let (timeout, silence) = (config.api_poll_timeout, SilenceLimit::Poll as fn(_) -> _);
            Ok(Self { direct, http, https, proxies, timeout, silence })
        } else {
            Err(errors)
        }
    }

    /// A client for a collector of telemetry, which is not of the API: it gets no client certificate.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_collector(config: &Config, timeout: Duration) -> Result<Self, Vec<SettingError>> {
        let config = Config { api_poll_timeout: timeout, api_client_certificate: None, ..config.clone() };
        Ok(Self { silence: SilenceLimit::Collector, ..Self::new(&config)? })
    }

    /// A client that connects by `connector`, and to no outgoing proxy.
    pub fn over(config: &Config, connector: impl Connector) -> Self {
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            .user_agent(USER_AGENT)
            .proxy(None)
            .build();
        let direct = Agent::with_parts(settings, connector, NoResolver);
        let (http, https) = (direct.clone(), direct.clone());
        let (proxies, timeout) = (OutboundProxies::default(), config.api_poll_timeout);
        Self { direct, http, https, proxies, timeout, silence: SilenceLimit::Poll }
    }

    /// `api_poll_timeout`: how long upstream may send nothing.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// There was no response.
    pub fn get(&self, uri: &Uri, fields: &[Field<'_>]) -> Result<UpstreamResponse, PollError> {
        traced("GET", uri, fields, UpstreamResponse::status, |fields| {
            let call = || self.with_fields(uri, self.agent(uri).get(uri.clone()), fields).call();
            // Upstream may have closed an idle connection while the request was in flight. A GET is
            // idempotent and can be sent again (RFC 9110 9.2.2).
            let response = match call() {
                Err(ureq::Error::Io(error)) if is_closed(error.kind()) => call(),
                other => other,
            };
            self.response(uri, response)
        })
    }

    /// Sends a POST with JSON. `time_max` limits the time from name resolution to the head of the response.
    ///
    /// # Errors
    /// There was no response. Upstream may have processed the body.
    pub fn post(
        &self,
        uri: &Uri,
        fields: &[Field<'_>],
        body: &[u8],
        time_max: Option<Duration>,
    ) -> Result<UpstreamResponse, PollError> {
        self.post_as(JSON, uri, fields, body, time_max)
    }

    /// As [`post`](Self::post), with another type of content.
    ///
    /// # Errors
    /// There was no response. The server may have processed the body.
    pub fn post_as(
        &self,
        content_type: &str,
        uri: &Uri,
        fields: &[Field<'_>],
        body: &[u8],
        time_max: Option<Duration>,
    ) -> Result<UpstreamResponse, PollError> {
        traced("POST", uri, fields, UpstreamResponse::status, |fields| {
            let request = self.agent(uri).post(uri.clone()).header("content-type", content_type);
            self.send(uri, request, fields, body, time_max)
        })
    }

    /// As [`post`](Self::post), with PUT.
    ///
    /// # Errors
    /// There was no response. Upstream may have processed the body.
    pub fn put(
        &self,
        uri: &Uri,
        fields: &[Field<'_>],
        body: &[u8],
        time_max: Option<Duration>,
    ) -> Result<UpstreamResponse, PollError> {
        traced("PUT", uri, fields, UpstreamResponse::status, |fields| {
            let request = self.agent(uri).put(uri.clone()).header("content-type", JSON);
            self.send(uri, request, fields, body, time_max)
        })
    }

    fn send(
        &self,
        uri: &Uri,
        request: ureq::RequestBuilder<WithBody>,
        fields: &[Field<'_>],
        body: &[u8],
        time_max: Option<Duration>,
    ) -> Result<UpstreamResponse, PollError> {
        let request = self.with_fields(uri, request, fields).config().timeout_global(time_max).build();
        self.response(uri, request.send(body))
    }

    /// Sends a GET whose body may arrive over hours. Each read may take `silence_max`.
    ///
    /// # Errors
    /// There was no response.
    pub fn stream(
        &self,
        uri: &Uri,
        fields: &[(&str, &str)],
        silence_max: Duration,
    ) -> Result<UpstreamResponse, PollError> {
        let request = self.with_fields(uri, self.agent(uri).get(uri.clone()), fields);
        let request = request.config().timeout_per_read(Some(silence_max)).timeout_recv_body(None).build();
        let response = self.response(uri, request.call())?;
        Ok(UpstreamResponse { silence: SilenceLimit::Stream(silence_max), ..response })
    }

    fn agent(&self, uri: &Uri) -> &Agent {
        match self.proxies.for_uri(uri) {
            None => &self.direct,
            Some(_) if uri.scheme_str() == Some("https") => &self.https,
            Some(_) => &self.http,
        }
    }

    /// Adds `fields`, and the credentials for an outgoing proxy that handles the request itself. For
    /// `CONNECT` ureq sends the credentials.
    fn with_fields<Body>(
        &self,
        uri: &Uri,
        request: ureq::RequestBuilder<Body>,
        fields: &[(&str, &str)],
    ) -> ureq::RequestBuilder<Body> {
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let proxy = self.proxies.for_uri(uri).filter(|_| uri.scheme_str() == Some("http"));
        match proxy.and_then(OutgoingProxy::credentials) {
            Some(credentials) => request.header("proxy-authorization", credentials.expose()),
            None => request,
        }
    }

    /// The outgoing proxy for `uri`; `None`: a direct connection.
    pub fn proxy_for(&self, uri: &Uri) -> Option<&OutgoingProxy> {
        self.proxies.for_uri(uri)
    }

    fn describe(&self, error: &ureq::Error, uri: &Uri, silence: SilenceLimit) -> PollError {
        describe(error, uri, self.proxies.for_uri(uri), self.timeout, silence)
    }

    fn response(
        &self,
        uri: &Uri,
        response: Result<http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<UpstreamResponse, PollError> {
        let silence = (self.silence)(self.timeout);
        let response = response.map_err(|error| self.describe(&error, uri, silence))?;
        let (head, body) = response.into_parts();
        Ok(UpstreamResponse {
            uri: uri.clone(),
            through: self.proxies.for_uri(uri).map(ToString::to_string),
            status: head.status.as_u16(),
            headers: head.headers,
            length: body.content_length(),
            silence,
            body: body.into_with_config().limit(u64::MAX).reader(),
        })
    }

    /// Reads from the body into `bytes`. Returns 0 at its end.
    ///
    /// # Errors
    /// The connection broke, or nothing arrived in time.
    pub fn read(&self, response: &mut UpstreamResponse, bytes: &mut [u8]) -> Result<usize, PollError> {
        let read = response.body.read(bytes);
        read.map_err(|error| self.describe(&error.into(), &response.uri, response.silence))
    }
}

/// Gives every host the same address, for connectors that use the name.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &ureq::config::Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        Ok(addresses)
    }
}

fn is_closed(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, ConnectionReset | BrokenPipe | UnexpectedEof | ConnectionAborted)
}

/// Describes a transport error in one line, with its likely cause. Through an outgoing proxy, name resolution
/// and connections concern the proxy.
fn describe(
    error: &ureq::Error,
    uri: &Uri,
    proxy: Option<&OutgoingProxy>,
    timeout: Duration,
    silence: SilenceLimit,
) -> PollError {
    use ureq::Error;
    let seconds = timeout.as_secs_f64();
    let (address_setting, timeout_setting) = silence.settings();
    let name_source = proxy.map_or_else(|| address_setting.to_owned(), |proxy| proxy.variable.clone());
    let (kind, what) = match error {
        Error::HostNotFound => {
            (PollErrorKind::Name, format!("the host name has no address: check {name_source} and DNS"))
        }
        Error::Timeout(ureq::Timeout::Resolve) => {
            (PollErrorKind::Name, format!("the host name did not resolve within {seconds} s: check DNS"))
        }
        Error::Timeout(ureq::Timeout::Connect) => {
            (PollErrorKind::Timeout, format!("no connection within {seconds} s ({timeout_setting})"))
        }
        Error::Timeout(ureq::Timeout::RecvBody) => {
            (PollErrorKind::Timeout, "the response did not end in time (see api_document_bytes_max)".into())
        }
        Error::Timeout(ureq::Timeout::Global) => {
            (PollErrorKind::Timeout, "no response in the remaining time".into())
        }
        Error::Timeout(_) => (PollErrorKind::Timeout, silence.to_string()),
        Error::Rustls(error) => (PollErrorKind::Tls, tls_errors::describe(error)),
        Error::Tls(error) => (PollErrorKind::Tls, format!("TLS failed: {error}")),
        Error::ConnectProxyFailed(error) => {
            let line = error.lines().next().unwrap_or_default();
            (PollErrorKind::Connect, format!("CONNECT was refused ({line})"))
        }
        Error::Decompress(_, error) => {
            (PollErrorKind::Interrupted, format!("invalid compressed body: {error}"))
        }
        Error::Io(error) => describe_io(error, &name_source),
        other => (PollErrorKind::Interrupted, format!("invalid HTTP response: {other}")),
    };
    let origin = url::origin(uri);
    let message = match proxy {
        None => format!("{origin}: {what}"),
        Some(proxy) => format!("{origin}: through {proxy}: {what}"),
    };
    PollError::new(kind, message)
}

/// `name_source`: the setting or variable that contains the host name.
fn describe_io(error: &std::io::Error, name_source: &str) -> (PollErrorKind, String) {
    // rustls wraps its errors in I/O errors of kind InvalidData; errors of the resolver have no specific
    // kind.
    match error.kind() {
        ErrorKind::InvalidData => (PollErrorKind::Tls, tls_errors::describe_io(error)),
        ErrorKind::ConnectionRefused => (
            PollErrorKind::Refused,
            format!("connection refused: check that the server runs, and {name_source}"),
        ),
        kind if is_closed(kind) => {
            (PollErrorKind::Interrupted, "the connection broke before the end of the response".into())
        }
        _ if error.to_string().contains("lookup address") => {
            (PollErrorKind::Name, format!("the host name does not resolve: check {name_source} and DNS"))
        }
        _ => (PollErrorKind::Connect, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;
    use crate::config;

    #[test]
    fn names_the_limit_that_a_silent_stream_exceeds() {
        let uri = Uri::from_static("http://realtime.example/sse/environments/secret/stream");
        let message = |silence| {
            let error = ureq::Error::Timeout(ureq::Timeout::PerRead);
            describe(&error, &uri, None, Duration::from_secs(5), silence).message
        };
        assert_eq!(
            message(SilenceLimit::Poll(Duration::from_secs(5))),
            "http://realtime.example: no data for 5 s (api_poll_timeout)"
        );
        let line = message(SilenceLimit::Stream(limits::STREAM_SILENCE_MAX));
        assert!(line.contains("for 60 s (a fixed limit") && !line.contains("api_poll_timeout"), "{line}");
        let line = message(SilenceLimit::Collector(Duration::from_secs(5)));
        assert!(line.ends_with("no data for 5 s (OTEL_EXPORTER_OTLP_TIMEOUT)"), "{line}");
    }

    #[test]
    fn a_stream_that_says_nothing_exceeds_its_own_limit() {
        let inputs = config::Inputs { without_file: true, may_serve_nothing: true, ..Default::default() };
        let client = Client::new(&config::load(&inputs).unwrap().0).unwrap();
        // Not those of the environment of this test.
        let client = Client { proxies: OutboundProxies::default(), ..client };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri: Uri = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").unwrap();
            socket
        });
        let mut response = client.stream(&uri, &[], Duration::from_millis(200)).unwrap();
        let error = client.read(&mut response, &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind, PollErrorKind::Timeout);
        assert!(error.message.contains("for 0.2 s (a fixed limit"), "{}", error.message);
        drop(server.join().unwrap());
    }

    #[test]
    fn each_error_of_a_connection_has_its_kind() {
        for (error, expected) in [
            (ErrorKind::ConnectionRefused.into(), PollErrorKind::Refused),
            (ErrorKind::ConnectionReset.into(), PollErrorKind::Interrupted),
            (ErrorKind::InvalidData.into(), PollErrorKind::Tls),
            (io::Error::other("failed to lookup address information"), PollErrorKind::Name),
            (io::Error::other("no route to host"), PollErrorKind::Connect),
        ] {
            assert_eq!(describe_io(&error, "api_url").0, expected, "{error}");
        }
    }
}
