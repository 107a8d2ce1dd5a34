//! [`Upstream`]: the API at `api_url`, with its keys and limits.
use std::time::Duration;

use http::{Uri, header};
use ureq::unversioned::transport::Connector;

use crate::config::{Config, Secret, SettingError};
use crate::upstream::client::{Client, Field, UpstreamResponse};
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::response::unknown_coding;
use crate::upstream::{basic, url};
use crate::{clock, limits, yielding};

/// The client of the API. Redirects are followed here, because only this type has the origin that may get
/// keys.
#[derive(Debug)]
pub struct Upstream {
    pub(super) client: Client,
    base: Uri,
    /// `Authorization` from the user and password in `api_url`.
    credentials: Option<Secret>,
    /// `api_headers`.
    headers: Vec<(String, Secret)>,
    pub(super) realtime: Uri,
    pub(super) realtime_credentials: Option<Secret>,
    /// `events.url`, and `Authorization` from the user and password in it.
    pub(super) events: Uri,
    pub(super) events_credentials: Option<Secret>,
    pub(super) proxy_key: Option<Secret>,
    pub(super) document_bytes_max: usize,
}

impl Upstream {
    /// # Errors
    /// One error for each invalid setting (address, outgoing proxies, certificates).
    pub fn new(config: &Config) -> Result<Self, Vec<SettingError>> {
        Self::with_client(config, Client::new(config))
    }

    /// Connects by `connector` instead of by the sockets of the system, and to no outgoing proxy. The
    /// connector decides how long to wait.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn over(config: &Config, connector: impl Connector) -> Result<Self, Vec<SettingError>> {
        Self::with_client(config, Ok(Client::over(config, connector)))
    }

    fn with_client(
        config: &Config,
        client: Result<Client, Vec<SettingError>>,
    ) -> Result<Self, Vec<SettingError>> {
        let base: Uri = config.api_url.parse().unwrap_or_default();
        let realtime: Uri = config.realtime.url.parse().unwrap_or_default();
        let (base, credentials) = basic::split(&base);
        let (realtime, realtime_credentials) = basic::split(&realtime);
        let (events, events_credentials) = basic::split(&config.events.url.parse().unwrap_or_default());
        let mut errors = Vec::new();
        if base.host().is_none() || !matches!(base.scheme_str(), Some("http" | "https")) {
            errors.push(SettingError::new("api_url", format!("expected an http or https URL, got {base:?}")));
        }
        match client {
            Ok(client) if errors.is_empty() => Ok(Self {
                client,
                base,
                credentials,
                headers: config.api_headers.clone(),
                realtime,
                realtime_credentials,
                events,
                events_credentials,
                proxy_key: config.proxy_key.clone(),
                document_bytes_max: config.api_document_bytes_max,
            }),
            Ok(_) => Err(errors),
            Err(more) => Err(errors.into_iter().chain(more).collect()),
        }
    }

    /// The outgoing proxy for `uri`: its address, and its description for messages.
    pub fn proxy_for(&self, uri: &Uri) -> Option<(Uri, String)> {
        self.client.proxy_for(uri).map(|proxy| (proxy.address(), proxy.to_string()))
    }

    /// The URL of `path` below `api_url`.
    pub(super) fn address(&self, path: &str) -> Result<Uri, PollError> {
        url::resolve(&self.base, path).ok_or_else(|| {
            let message = format!("cannot resolve {path} below {}", url::origin(&self.base));
            PollError::new(PollErrorKind::Internal, message)
        })
    }

    /// Whether keys may be sent to `uri`: its origin is the configured one, or the same host by https.
    fn is_trusted(&self, uri: &Uri) -> bool {
        url::same_origin(uri, &self.base) || url::is_upgrade(&self.base, uri)
    }

    /// The fields of every request to the API: the credentials in `api_url` and `api_headers`.
    pub(super) fn own_fields(&self) -> impl Iterator<Item = Field<'_>> {
        let credentials = self.credentials.iter().map(|credentials| ("authorization", credentials.expose()));
        credentials.chain(self.headers.iter().map(|(name, value)| (name.as_str(), value.expose())))
    }

    /// `api_headers` for a request to `uri`: none unless it is an address of the API, because they may be
    /// secrets of its gateway.
    pub(super) fn headers_for(&self, uri: &Uri) -> impl Iterator<Item = Field<'_>> {
        let headers = if self.is_trusted(uri) { self.headers.as_slice() } else { &[] };
        headers.iter().map(|(name, value)| (name.as_str(), value.expose()))
    }

    /// The key of an environment, and the proxy key if there is one (compatibility.md 4.3).
    pub(super) fn keys<'a>(&'a self, environment: &'a str) -> Vec<Field<'a>> {
        let mut fields = vec![("x-environment-key", environment)];
        fields.extend(self.proxy_key.as_ref().map(|key| ("x-proxy-key", key.expose())));
        fields
    }

    /// Sends a GET and follows its redirects. The second value is false if a redirect led to an untrusted
    /// origin: that request was sent without keys.
    pub(super) fn get(
        &self,
        uri: &Uri,
        keys: &[Field<'_>],
        conditions: &[Field<'_>],
    ) -> Result<(UpstreamResponse, bool), PollError> {
        let fail = |message| Err(PollError::new(PollErrorKind::Redirect, message));
        let mut uri = uri.clone();
        for hop in 0..=limits::REDIRECTS_MAX {
            let trusted = self.is_trusted(&uri);
            let mut fields = vec![("accept", "application/json")];
            fields.extend_from_slice(conditions);
            if trusted {
                fields.extend_from_slice(keys);
                fields.extend(self.own_fields());
            }
            let response = self.client.get(&uri, &fields).map_err(|error| match hop {
                0 => error,
                _ => PollError { message: format!("redirected to {}", error.message), ..error },
            })?;
            if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
                return Ok((response, trusted));
            }
            let location = response.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(target) = location.and_then(|location| url::resolve(&uri, location)) else {
                return fail(format!(
                    "upstream redirected ({}) with a missing or invalid Location",
                    response.status
                ));
            };
            if uri.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
                return fail(format!(
                    "upstream redirected from https to {}: not followed",
                    url::origin(&target)
                ));
            }
            uri = target;
        }
        let redirects_max = limits::REDIRECTS_MAX;
        fail(format!(
            "upstream redirected more than {redirects_max} times, the last time to {}",
            url::origin(&uri)
        ))
    }

    /// Reads a body of at most `bytes_max` bytes that arrives at `FETCH_RATE_MIN` or faster.
    pub(super) fn read(&self, response: UpstreamResponse, bytes_max: usize) -> Result<Vec<u8>, PollError> {
        if let Some(coding) = unknown_coding(&response.headers) {
            let message = format!(
                "{} answered with Content-Encoding {coding}, which was not requested: check the proxies and \
                 gateways in front of upstream",
                url::origin(&response.uri)
            );
            return Err(PollError::new(PollErrorKind::Interrupted, message));
        }
        self.read_body(response, bytes_max)
    }

    /// As [`read`](Self::read), but with any content coding.
    pub(super) fn read_body(
        &self,
        mut response: UpstreamResponse,
        bytes_max: usize,
    ) -> Result<Vec<u8>, PollError> {
        let too_large = || {
            let most = self.document_bytes_max;
            let message =
                format!("the document is larger than {most} bytes: raise api_document_bytes_max if intended");
            PollError::new(PollErrorKind::TooLarge, message)
        };
        let expected = response.length.unwrap_or(0);
        if expected > bytes_max as u64 {
            return Err(too_large());
        }
        let started = clock::instant();
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        let (mut piece, mut since_checkpoint) = ([0; 64 * 1024], 0);
        loop {
            let count = self.client.read(&mut response, &mut piece)?;
            if count == 0 {
                return Ok(bytes);
            }
            if bytes.len() + count > bytes_max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece[..count]);
            since_checkpoint += count;
            if since_checkpoint >= yielding::PIECE_BYTES * 4 {
                since_checkpoint = 0;
                yielding::checkpoint();
            }
            // A complete body is accepted even if it was slow.
            let is_whole = response.length.is_some_and(|length| bytes.len() as u64 >= length);
            let elapsed = clock::elapsed(started);
            if !is_whole
                && elapsed
                    > self.client.timeout() + Duration::from_secs(bytes.len() as u64 / limits::FETCH_RATE_MIN)
            {
                let message = format!(
                    "upstream sent only {} bytes in {:.1} s: raise api_poll_timeout if the connection is slow",
                    bytes.len(),
                    elapsed.as_secs_f64()
                );
                return Err(PollError::new(PollErrorKind::Timeout, message));
            }
        }
    }
}
