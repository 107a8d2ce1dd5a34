//! One conditional GET with its pages; the only room that names ureq (in `client` and `outgoing`).
//!
//! In: a key and what is held. Out: the whole document if it is another one, `None` if it is not, or a
//! [`PollError`]. Invariants: a key never goes to an origin other than the configured one; every
//! read is bounded in bytes and in time. Nothing here knows what a document means.
mod absolute;
mod basic;
mod client;
mod error;
mod no_proxy;
mod outbound_proxy;
pub mod pagination;
mod proxy_api;
mod tls_errors;
pub mod url;
mod validators;

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Uri, header};
use sha2::{Digest, Sha256};

use crate::config::{Config, Secret};
use crate::json::hex::path_segment;
pub use crate::upstream::client::UpstreamResponse as Stream;
use crate::upstream::client::{Client, UpstreamResponse};
pub use crate::upstream::error::{PollError, PollErrorKind};
pub use crate::upstream::proxy_api::{
    DiscoveredEnvironment, PostOutcome, ServerKey, parse as parse_discovered,
};
pub use crate::upstream::validators::Validators;
use crate::upstream::validators::date_of;
use crate::{limits, yielding};

/// A document as upstream has it now, all pages merged.
#[derive(Debug)]
pub struct Fetched {
    pub document: Vec<u8>,
    pub validators: Validators,
    /// SHA-256 of `document`.
    pub digest: [u8; 32],
}

/// What upstream answered.
#[derive(Debug)]
pub enum Answered {
    /// The document held is the current one, by a 304 or by its digest. It has these validators now.
    Same(Validators),
    New(Fetched),
}

/// Upstream as it is configured.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    base: Uri,
    /// Of the user and the password in `api_url`, for the field `Authorization`.
    credentials: Option<Secret>,
    realtime: Uri,
    realtime_credentials: Option<Secret>,
    proxy_key: Option<Secret>,
    document_bytes_max: usize,
}

/// A header field of ours.
type Field<'a> = (&'static str, &'a str);

impl Upstream {
    /// # Errors
    /// One line per setting that cannot be used (address, proxies, certificates).
    pub fn new(config: &Config) -> Result<Self, Vec<String>> {
        let base: Uri = config.api_url.parse().unwrap_or_default();
        let realtime: Uri = config.realtime.url.parse().unwrap_or_default();
        let (base, credentials) = basic::split(&base);
        let (realtime, realtime_credentials) = basic::split(&realtime);
        let mut mistakes = Vec::new();
        if base.host().is_none() || !matches!(base.scheme_str(), Some("http" | "https")) {
            mistakes.push(format!("api_url: {:?} is not an http or https address", base.to_string()));
        }
        match Client::new(config) {
            Ok(client) if mistakes.is_empty() => Ok(Self {
                client,
                base,
                credentials,
                realtime,
                realtime_credentials,
                proxy_key: config.proxy_key.clone(),
                document_bytes_max: config.api_document_bytes_max,
            }),
            Ok(_) => Err(mistakes),
            Err(more) => Err(mistakes.into_iter().chain(more).collect()),
        }
    }

    /// The outgoing proxy by which an address is asked: where it is, and its name for a message.
    pub fn proxy_for(&self, uri: &Uri) -> Option<(Uri, String)> {
        self.client.proxy_for(uri).map(|proxy| (proxy.address(), proxy.to_string()))
    }

    /// Asks for the environment document of `key`. `held` makes it conditional; `digest` is that of
    /// the document held.
    ///
    /// # Errors
    /// Anything but a whole document or a 304.
    pub fn document(
        &self,
        key: &str,
        held: Option<&Validators>,
        digest: Option<&[u8; 32]>,
    ) -> Result<Answered, PollError> {
        let uri = self.address("environment-document/")?;
        let keys = self.keys(key);
        let conditions = held.map(Validators::conditions).unwrap_or_default();
        let (answer, trusted) = self.get(&uri, &keys, &conditions)?;
        let validators = Validators::of(&answer.headers);
        match (answer.status, held) {
            (200, _) => {}
            (304, Some(held)) if !conditions.is_empty() => {
                return Ok(Answered::Same(held.clone().updated(validators)));
            }
            (304, _) => {
                let message = "upstream answered 304 (not modified) though no document is held: a cache between \
                               here and upstream may be at fault";
                return Err(PollError::new(PollErrorKind::NotModified, message));
            }
            _ => return Err(refused(&answer, trusted)),
        }
        let origin = url::origin(&answer.uri);
        let document = self.pages(answer, trusted, &keys)?;
        if let Some(what) = no_document(&document) {
            let message = format!("{origin} answered with {what}");
            return Err(PollError::new(PollErrorKind::Document, message));
        }
        let found = digest_of(&document);
        if digest == Some(&found) {
            return Ok(Answered::Same(validators));
        }
        Ok(Answered::New(Fetched { document, validators, digest: found }))
    }

    /// Opens the event stream of a client-side key (compatibility.md 1.5).
    ///
    /// # Errors
    /// It was not answered 200.
    pub fn stream(&self, client_side_key: &str) -> Result<Stream, PollError> {
        let path = format!("sse/environments/{}/stream", path_segment(client_side_key));
        let uri = url::resolve(&self.realtime, &path).ok_or_else(|| {
            let message = format!("realtime.url: {} is not an http or https address", self.realtime);
            PollError::new(PollErrorKind::Internal, message)
        })?;
        let mut fields = vec![("accept", "text/event-stream"), ("cache-control", "no-cache")];
        let credentials = self.realtime_credentials.as_ref();
        fields.extend(credentials.map(|credentials| ("authorization", credentials.expose())));
        let mut answer = self.client.stream(&uri, &fields, limits::STREAM_SILENCE_MAX)?;
        if let Some(target) = upgraded(&answer) {
            answer = self.client.stream(&target, &fields, limits::STREAM_SILENCE_MAX)?;
        }
        if answer.status == 200 && !is_event_stream(&answer.headers) {
            let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let (origin, kind) = (url::origin(&answer.uri), kind.unwrap_or("of no type"));
            let message =
                format!("{origin} answered with what is {kind}, not an event stream: see realtime.url");
            return Err(PollError::new(PollErrorKind::Interrupted, message));
        }
        match answer.status {
            200 => Ok(answer),
            300..=399 => {
                let (origin, status) = (url::origin(&answer.uri), answer.status);
                let message = format!(
                    "{origin} answered {status}: redirects of the stream are not followed, set realtime.url to the \
                     final address"
                );
                Err(PollError::new(PollErrorKind::Redirect, message))
            }
            _ => Err(refused(&answer, true)),
        }
    }

    /// Reads more of a stream; 0 is its end.
    ///
    /// # Errors
    /// It broke off or was silent for too long.
    pub fn read_stream(&self, stream: &mut Stream, bytes: &mut [u8]) -> Result<usize, PollError> {
        self.client.read(stream, bytes)
    }

    /// An address below `api_url`.
    fn address(&self, path: &str) -> Result<Uri, PollError> {
        url::resolve(&self.base, path).ok_or_else(|| {
            PollError::new(PollErrorKind::Internal, format!("{} has no {path}", url::origin(&self.base)))
        })
    }

    /// Whether keys may be sent there: to the configured origin, or to its host by https.
    fn is_trusted(&self, uri: &Uri) -> bool {
        url::same_origin(uri, &self.base) || url::is_upgrade(&self.base, uri)
    }

    fn authorization(&self) -> Option<Field<'_>> {
        self.credentials.as_ref().map(|credentials| ("authorization", credentials.expose()))
    }

    /// With a proxy key, that goes along (compatibility.md 4.3).
    fn keys<'a>(&'a self, environment: &'a str) -> Vec<Field<'a>> {
        let mut fields = vec![("x-environment-key", environment)];
        fields.extend(self.proxy_key.as_ref().map(|key| ("x-proxy-key", key.expose())));
        fields
    }

    /// Reads the first answer and every page after it.
    fn pages(
        &self,
        answer: UpstreamResponse,
        trusted: bool,
        keys: &[Field<'_>],
    ) -> Result<Vec<u8>, PollError> {
        let fail = |message| Err(PollError::new(PollErrorKind::Pages, message));
        let mut next = next_page(&answer, trusted)?;
        let mut seen = vec![answer.uri.clone()];
        let first = self.read(answer, self.document_bytes_max)?;
        let mut left = self.document_bytes_max - first.len();
        let mut later = Vec::new();
        while let Some(uri) = next {
            if seen.contains(&uri) {
                return fail(format!("page {} of the document is one that was read before", seen.len() + 1));
            }
            if seen.len() >= limits::PAGES_MAX {
                return fail(format!("the document has more than {} pages", limits::PAGES_MAX));
            }
            let (answer, trusted) = self.get(&uri, keys, &[])?;
            seen.push(uri);
            if answer.status != 200 {
                return fail(format!("page {} of the document was answered {}", seen.len(), answer.status));
            }
            next = next_page(&answer, trusted)?;
            let page = self.read(answer, left)?;
            left -= page.len();
            later.push(page);
        }
        pagination::merge(first, &later).map_err(|error| {
            let kind = if error.page == 1 { PollErrorKind::Document } else { PollErrorKind::Pages };
            PollError::new(kind, format!("page {} of the document: {}", error.page, error.message))
        })
    }

    /// One GET with its redirects; the second value is false once one led to another origin.
    fn get(
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
                fields.extend(self.authorization());
            }
            let answer = self.client.get(&uri, &fields).map_err(|error| match hop {
                0 => error,
                _ => PollError { message: format!("redirected to {}", error.message), ..error },
            })?;
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok((answer, trusted));
            }
            let location = answer.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(target) = location.and_then(|location| url::resolve(&uri, location)) else {
                return fail(format!("upstream redirected ({}) without a usable Location", answer.status));
            };
            if uri.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
                return fail(format!(
                    "upstream redirected from https to {}: not followed",
                    url::origin(&target)
                ));
            }
            uri = target;
        }
        let most = limits::REDIRECTS_MAX;
        fail(format!("upstream redirected more than {most} times, at last to {}", url::origin(&uri)))
    }

    /// Reads a body within its bounds of size and time.
    fn read(&self, mut answer: UpstreamResponse, bytes_max: usize) -> Result<Vec<u8>, PollError> {
        if let Some(coding) = unknown_coding(&answer.headers) {
            let message = format!(
                "{} answered with Content-Encoding {coding}, which was not asked for: see what is between here and \
                 upstream",
                url::origin(&answer.uri)
            );
            return Err(PollError::new(PollErrorKind::Interrupted, message));
        }
        let too_large = || {
            let most = self.document_bytes_max;
            let message = format!(
                "the document is larger than {most} bytes: raise api_document_bytes_max if it should be"
            );
            PollError::new(PollErrorKind::TooLarge, message)
        };
        let expected = answer.length.unwrap_or(0);
        if expected > bytes_max as u64 {
            return Err(too_large());
        }
        let started = Instant::now();
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        let (mut piece, mut unpaced) = ([0; 64 * 1024], 0);
        loop {
            let count = self.client.read(&mut answer, &mut piece)?;
            if count == 0 {
                return Ok(bytes);
            }
            if bytes.len() + count > bytes_max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece[..count]);
            unpaced += count;
            if unpaced >= yielding::PIECE_BYTES * 4 {
                unpaced = 0;
                yielding::checkpoint();
            }
            // What is there in full is not too late.
            let is_whole = answer.length.is_some_and(|length| bytes.len() as u64 >= length);
            let elapsed = started.elapsed();
            if !is_whole
                && elapsed
                    > self.client.timeout() + Duration::from_secs(bytes.len() as u64 / limits::FETCH_RATE_MIN)
            {
                let message = format!(
                    "upstream sent only {} bytes in {:.1} s: raise api_poll_timeout if the line is that slow",
                    bytes.len(),
                    elapsed.as_secs_f64()
                );
                return Err(PollError::new(PollErrorKind::Timeout, message));
            }
        }
    }
}

/// What was answered 200 and is plainly something else.
fn no_document(answer: &[u8]) -> Option<&'static str> {
    match answer.trim_ascii_start().first() {
        None => Some("an empty body: see what is between here and upstream"),
        Some(b'<') => Some(
            "a web page, not JSON: api_url is to be the API's, such as https://flags.example.com/api/v1/, and no \
             login page may stand before it",
        ),
        Some(_) => None,
    }
}

/// SHA-256.
pub fn digest_of(document: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    yielding::in_pieces(document, |piece| digest.update(piece));
    digest.finalize().into()
}

/// Where the answer redirects to, if that is the same host by https.
fn upgraded(answer: &UpstreamResponse) -> Option<Uri> {
    let location = answer.headers.get(header::LOCATION)?.to_str().ok()?;
    let target = url::resolve(&answer.uri, location)?;
    let is_redirect = matches!(answer.status, 301 | 302 | 307 | 308);
    (is_redirect && url::is_upgrade(&answer.uri, &target)).then_some(target)
}

/// Says why upstream refused, as far as a status tells.
fn refused(answer: &UpstreamResponse, trusted: bool) -> PollError {
    let cause = match answer.status {
        _ if !trusted => {
            "this is where upstream redirected to; the key is not sent to another origin: set api_url to the \
             final address"
        }
        401 | 403 => {
            "the key is refused. Likely causes: it is not a server-side key (those start with `ser.`); api_url \
             is of another Flagsmith installation; the key was rotated or deleted; the organisation is disabled"
        }
        404 if answer.uri.path().ends_with("/stream") => {
            "no such path. Likely causes: realtime.url is wrong, or upstream has no event streams; edits arrive by \
             polling all the same"
        }
        404 if answer.uri.path().ends_with("/proxy/config/") => {
            "no such path. Likely causes: api_url is wrong, it usually ends with /api/v1/; this Flagsmith has no \
             proxy keys"
        }
        404 => "no such path. Likely cause: api_url is wrong; it usually ends with /api/v1/",
        407 => "a proxy on the way demands a user and a password: http://user:password@host:port",
        429 => "too many requests: raise api_poll_frequency_seconds, or run fewer proxies",
        502..=504 => "it, or a gateway before it, is down or overloaded",
        500..=599 => "a fault of its own: its log says why",
        _ => "not an answer to this request",
    };
    // For an http address the proxy may have answered by itself.
    let through = match &answer.through {
        Some(proxy) if answer.uri.scheme_str() == Some("http") => format!(" (asked through {proxy})"),
        _ => String::new(),
    };
    let retry_after = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    PollError {
        kind: PollErrorKind::Status(answer.status),
        message: format!("{} answered {}: {cause}{through}", url::origin(&answer.uri), answer.status),
        retry_after: retry_after.and_then(|text| parse_retry_after(text, date_of(&answer.headers))),
    }
}

/// The page after this one, if it is allowed.
fn next_page(answer: &UpstreamResponse, trusted: bool) -> Result<Option<Uri>, PollError> {
    let fail = |message| Err(PollError::new(PollErrorKind::Pages, message));
    // A field that is not ASCII must not hide a page: its overrides would be missing without a word.
    let mut fields =
        answer.headers.get_all(header::LINK).iter().map(|field| String::from_utf8_lossy(field.as_bytes()));
    let target = fields.find_map(|field| url::next(&field).map(str::to_owned));
    let Some(target) = target else { return Ok(None) };
    let Some(uri) = url::resolve(&answer.uri, &target) else {
        return fail("the Link to the next page is no address".to_string());
    };
    if !trusted || !url::same_origin(&uri, &answer.uri) {
        let origin = url::origin(&uri);
        return fail(format!("the next page is at another origin ({origin}): refused, the key would leak"));
    }
    Ok(Some(uri))
}

/// Its parameters (`; charset=utf-8`) do not matter.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream")
}

/// A coding of the body that nobody here can take away; gzip is (RFC 9110 8.4).
fn unknown_coding(headers: &HeaderMap) -> Option<&str> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = codings.flat_map(|field| field.to_str().unwrap_or("?").split(',')).map(str::trim);
    let is_known =
        |coding: &str| ["", "gzip", "identity"].iter().any(|known| coding.eq_ignore_ascii_case(known));
    codings.into_iter().find(|coding| !is_known(coding))
}

/// Seconds or a date (RFC 9110 10.2.3), which is by upstream's clock, as `now` should be.
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // Too long a number is a long time, not none.
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => Some(Duration::MAX),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 09:00:00 GMT").unwrap();
        for (text, expected) in [
            ("7", Some(7)),
            ("Mon, 23 Nov 2026 09:00:30 GMT", Some(30)),
            ("Mon, 23 Nov 2026 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
            ("99999999999999999999999", Some(Duration::MAX.as_secs())),
        ] {
            assert_eq!(parse_retry_after(text, now).map(|wait| wait.as_secs()), expected, "{text}");
        }
    }
}
