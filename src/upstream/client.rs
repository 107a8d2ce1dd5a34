//! Requests to other servers: the one place where ureq is called.
//!
//! In: an address, fields, a body. Out: an [`UpstreamResponse`] whose body is still to be read, or a
//! [`PollError`]. Invariants: no redirect is followed here, so that no field goes where it was not sent to on
//! purpose; every wait is bounded. Nothing here knows keys, documents or environments.
use std::io::{ErrorKind, Read};
use std::time::Duration;

use http::{HeaderMap, Uri};
use ureq::Agent;

use crate::config::Config;
use crate::limits;
use crate::upstream::absolute::{AbsoluteForm, ProxyResolver};
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::outbound_proxy::{Outgoing, OutgoingProxy};
use crate::upstream::{outbound_proxy, tls_errors, url};

/// The client of one configuration; connections are kept between requests.
#[derive(Debug)]
pub struct Client {
    direct: Agent,
    /// Through the outgoing proxy for `http` addresses, which are asked by their whole URL.
    http: Agent,
    /// Through the outgoing proxy for `https` addresses, to which it opens a tunnel.
    https: Agent,
    outgoing: Outgoing,
    timeout: Duration,
}

/// Head of an answer, and its body to be read.
pub struct UpstreamResponse {
    pub uri: Uri,
    pub status: u16,
    pub headers: HeaderMap,
    /// The outgoing proxy that it came through, for messages.
    pub through: Option<String>,
    /// What Content-Length says, if the body comes as it is (not compressed).
    pub length: Option<u64>,
    silence: Silence,
    body: ureq::BodyReader<'static>,
}

/// How long a peer may send nothing, and what sets that.
#[derive(Clone, Copy, Debug)]
enum Silence {
    /// `api_poll_timeout_seconds`.
    Poll(Duration),
    /// `limits::STREAM_SILENCE_MAX`.
    Stream(Duration),
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Poll(limit) => write!(f, "silent for {} s (api_poll_timeout)", limit.as_secs_f64()),
            Self::Stream(limit) => write!(
                f,
                "the event stream was silent for {} s (a fixed limit; upstream sends a comment every 15 s): reconnecting",
                limit.as_secs_f64()
            ),
        }
    }
}

impl Client {
    /// # Errors
    /// One line per setting that cannot be used (proxies, certificates).
    pub fn new(config: &Config) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        // The slowest upstream that is waited for, with the largest document (`Upstream::read`). What
        // gives no bytes of a body (chunk extensions, trailers, empty gzip members) is not seen there.
        let seconds = config.api_document_bytes_max as u64 / limits::FETCH_RATE_MIN;
        let body_time = config.api_poll_timeout + Duration::from_secs(seconds);
        let tls = outbound_proxy::tls(config).map_err(|more| mistakes.extend(more)).ok();
        let outgoing = Outgoing::read(|name| std::env::var(name).ok());
        let outgoing = outgoing.map_err(|more| mistakes.extend(more)).unwrap_or_default();
        let settings = |proxy: Option<ureq::Proxy>| {
            let builder = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_idle_connections(limits::FETCH_THREADS_MAX)
                .max_idle_connections_per_host(limits::FETCH_THREADS_MAX)
                .user_agent(concat!("edge-proxy/", env!("CARGO_PKG_VERSION")))
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
        let https = settings(outgoing.for_scheme("https").map(|own| own.proxy.clone())).new_agent();
        let http = outgoing.for_scheme("http").map_or_else(
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
        if mistakes.is_empty() {
            Ok(Self { direct, http, https, outgoing, timeout: config.api_poll_timeout })
        } else {
            Err(mistakes)
        }
    }

    /// How long upstream may be silent.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// # Errors
    /// No answer.
    pub fn get(&self, uri: &Uri, fields: &[(&str, &str)]) -> Result<UpstreamResponse, PollError> {
        let call = || self.with_fields(uri, self.agent(uri).get(uri.clone()), fields).call();
        // A kept connection may have been closed by upstream while our request was on its way.
        // Nothing was answered, so a GET is simply sent again (RFC 9110 9.2.2).
        let response = match call() {
            Err(ureq::Error::Io(error)) if is_closed(error.kind()) => call(),
            other => other,
        };
        self.answer(uri, response)
    }

    /// A POST that takes `time_max` at most, if there is one, from the resolution of the name to the
    /// head of the answer.
    ///
    /// # Errors
    /// No answer. Whether the body was acted on is then unknown.
    pub fn post(
        &self,
        uri: &Uri,
        fields: &[(&str, &str)],
        body: &[u8],
        time_max: Option<Duration>,
    ) -> Result<UpstreamResponse, PollError> {
        let request = self.agent(uri).post(uri.clone()).header("content-type", "application/json");
        let request = self.with_fields(uri, request, fields).config().timeout_global(time_max).build();
        self.answer(uri, request.send(body))
    }

    /// A GET whose body comes over hours: each read may take `silence_max`.
    ///
    /// # Errors
    /// No answer.
    pub fn stream(
        &self,
        uri: &Uri,
        fields: &[(&str, &str)],
        silence_max: Duration,
    ) -> Result<UpstreamResponse, PollError> {
        let request = self.with_fields(uri, self.agent(uri).get(uri.clone()), fields);
        let request = request.config().timeout_per_read(Some(silence_max)).timeout_recv_body(None).build();
        let answer = self.answer(uri, request.call())?;
        Ok(UpstreamResponse { silence: Silence::Stream(silence_max), ..answer })
    }

    fn agent(&self, uri: &Uri) -> &Agent {
        match self.outgoing.for_address(uri) {
            None => &self.direct,
            Some(_) if uri.scheme_str() == Some("https") => &self.https,
            Some(_) => &self.http,
        }
    }

    /// Adds fields, and the credentials for the proxy if it reads the request itself: those for a
    /// tunnel are sent by ureq.
    fn with_fields<Body>(
        &self,
        uri: &Uri,
        request: ureq::RequestBuilder<Body>,
        fields: &[(&str, &str)],
    ) -> ureq::RequestBuilder<Body> {
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let proxy = self.outgoing.for_address(uri).filter(|_| uri.scheme_str() == Some("http"));
        match proxy.and_then(OutgoingProxy::credentials) {
            Some(credentials) => request.header("proxy-authorization", credentials.expose()),
            None => request,
        }
    }

    /// The outgoing proxy by which this address is asked.
    pub fn proxy_for(&self, uri: &Uri) -> Option<&OutgoingProxy> {
        self.outgoing.for_address(uri)
    }

    fn describe(&self, error: &ureq::Error, uri: &Uri, silence: Silence) -> PollError {
        describe(error, uri, self.outgoing.for_address(uri), self.timeout, silence)
    }

    fn answer(
        &self,
        uri: &Uri,
        response: Result<http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<UpstreamResponse, PollError> {
        let silence = Silence::Poll(self.timeout);
        let response = response.map_err(|error| self.describe(&error, uri, silence))?;
        let (head, body) = response.into_parts();
        Ok(UpstreamResponse {
            uri: uri.clone(),
            through: self.outgoing.for_address(uri).map(ToString::to_string),
            status: head.status.as_u16(),
            headers: head.headers,
            length: body.content_length(),
            silence,
            body: body.into_with_config().limit(u64::MAX).reader(),
        })
    }

    /// Reads more of the body; 0 is its end.
    ///
    /// # Errors
    /// It broke off, or upstream was silent for too long.
    pub fn read(&self, answer: &mut UpstreamResponse, bytes: &mut [u8]) -> Result<usize, PollError> {
        let read = answer.body.read(bytes);
        read.map_err(|error| self.describe(&error.into(), &answer.uri, answer.silence))
    }
}

fn is_closed(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, ConnectionReset | BrokenPipe | UnexpectedEof | ConnectionAborted)
}

/// One line about a failure of transport, with its likely cause. Through an outgoing proxy, names and
/// connections are those of the proxy.
fn describe(
    error: &ureq::Error,
    uri: &Uri,
    proxy: Option<&OutgoingProxy>,
    timeout: Duration,
    silence: Silence,
) -> PollError {
    use ureq::Error;
    let seconds = timeout.as_secs_f64();
    let name_from = proxy.map_or_else(|| "api_url".to_owned(), |proxy| proxy.variable.clone());
    let (kind, what) = match error {
        Error::HostNotFound => {
            (PollErrorKind::Name, format!("no address for its name: check {name_from} and DNS"))
        }
        Error::Timeout(ureq::Timeout::Resolve) => {
            (PollErrorKind::Name, format!("its name did not resolve within {seconds} s: check DNS"))
        }
        Error::Timeout(ureq::Timeout::Connect) => {
            (PollErrorKind::Timeout, format!("no connection within {seconds} s (api_poll_timeout)"))
        }
        Error::Timeout(ureq::Timeout::RecvBody) => {
            (PollErrorKind::Timeout, "its answer did not end (see api_document_bytes_max)".into())
        }
        Error::Timeout(ureq::Timeout::Global) => {
            (PollErrorKind::Timeout, "no answer in the time that was left for it".into())
        }
        Error::Timeout(_) => (PollErrorKind::Timeout, silence.to_string()),
        Error::Rustls(error) => (PollErrorKind::Tls, tls_errors::describe(error)),
        Error::Tls(error) => (PollErrorKind::Tls, format!("TLS failed: {error}")),
        Error::ConnectProxyFailed(error) => {
            let line = error.lines().next().unwrap_or_default();
            (PollErrorKind::Connect, format!("CONNECT was refused ({line})"))
        }
        Error::Decompress(_, error) => {
            (PollErrorKind::Interrupted, format!("the compressed body is damaged: {error}"))
        }
        Error::Io(error) => describe_io(error, &name_from),
        other => (PollErrorKind::Interrupted, format!("not an answer of HTTP: {other}")),
    };
    let origin = url::origin(uri);
    let message = match proxy {
        None => format!("{origin}: {what}"),
        Some(proxy) => format!("{origin}: through {proxy}: {what}"),
    };
    PollError::new(kind, message)
}

/// `name_from`: the setting or variable that has the name of the host.
fn describe_io(error: &std::io::Error, name_from: &str) -> (PollErrorKind, String) {
    // rustls wraps its errors in those of the socket; the resolver's have no kind of their own.
    match error.kind() {
        ErrorKind::InvalidData => (PollErrorKind::Tls, tls_errors::describe_io(error)),
        ErrorKind::ConnectionRefused => {
            (PollErrorKind::Refused, format!("connection refused: check that it runs there, and {name_from}"))
        }
        kind if is_closed(kind) => {
            (PollErrorKind::Interrupted, "the connection broke before the whole answer was there".into())
        }
        _ if error.to_string().contains("lookup address") => {
            (PollErrorKind::Name, format!("its name does not resolve: check {name_from} and DNS"))
        }
        _ => (PollErrorKind::Connect, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_stream_is_not_blamed_on_the_timeout_of_polls() {
        let uri = Uri::from_static("http://realtime.example/sse/environments/secret/stream");
        let told = |silence| {
            let error = ureq::Error::Timeout(ureq::Timeout::PerRead);
            describe(&error, &uri, None, Duration::from_secs(5), silence).message
        };
        assert_eq!(
            told(Silence::Poll(Duration::from_secs(5))),
            "http://realtime.example: silent for 5 s (api_poll_timeout)"
        );
        let line = told(Silence::Stream(limits::STREAM_SILENCE_MAX));
        assert!(
            line.contains("silent for 60 s (a fixed limit") && !line.contains("api_poll_timeout"),
            "{line}"
        );
    }
}
