//! The API, played: documents with their history, discovery, uploads, and the faults of the fault table.
//!
//! The real client connects to it by its connector, so that every byte is parsed as in production.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::disk::PlayedDisk;
use crate::documents::pages;
use crate::random::Random;

/// Where the API is, and another origin that a redirect names.
pub const ORIGIN: &str = "http://api.simulation";
pub const OTHER_ORIGIN: &str = "http://other.simulation";

/// The buffers of the client: small ones cost less, and bodies arrive in parts.
const BUFFER_BYTES: usize = 8 * 1024;

/// What is wrong with the API. Rows of the fault table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Refused,
    NameLost,
    ConnectTimeout,
    ResetInBody,
    EndInBody,
    NotHttp,
    HangBeforeHead,
    HangInBody,
    RedirectSame,
    RedirectOther,
    RedirectLoop,
    RedirectScheme,
    NotModified,
    Unauthorized,
    Forbidden,
    NotFound,
    TooManyRequests,
    InternalError,
    BadGateway,
    RetryAfter,
    EmptyBody,
    Html,
    Truncated,
    UnknownCoding,
    TooLarge,
    Array,
    Null,
    EmptyObject,
    NoFeature,
    BadSegments,
    BrokenPage,
    PageElsewhere,
    /// The work is done, and its answer is lost.
    AnswerLost,
    /// Answers come late, but in time.
    Slow,
    /// Discovery lists no environment.
    EmptyList,
}

impl Fault {
    pub const ALL: [Self; 35] = [
        Self::Refused,
        Self::NameLost,
        Self::ConnectTimeout,
        Self::ResetInBody,
        Self::EndInBody,
        Self::NotHttp,
        Self::HangBeforeHead,
        Self::HangInBody,
        Self::RedirectSame,
        Self::RedirectOther,
        Self::RedirectLoop,
        Self::RedirectScheme,
        Self::NotModified,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::TooManyRequests,
        Self::InternalError,
        Self::BadGateway,
        Self::RetryAfter,
        Self::EmptyBody,
        Self::Html,
        Self::Truncated,
        Self::UnknownCoding,
        Self::TooLarge,
        Self::Array,
        Self::Null,
        Self::EmptyObject,
        Self::NoFeature,
        Self::BadSegments,
        Self::BrokenPage,
        Self::PageElsewhere,
        Self::AnswerLost,
        Self::Slow,
        Self::EmptyList,
    ];
}

/// One published document.
#[derive(Clone, Debug)]
pub struct Version {
    pub number: u32,
    pub updated_at: SystemTime,
    pub bytes: Arc<Vec<u8>>,
}

#[derive(Debug)]
pub struct PlayedEnvironment {
    pub client_side_key: String,
    /// Those that are accepted.
    pub server_side_keys: Vec<String>,
    /// Not yet expired ones that discovery lists with a time: `(key, expires_at)`.
    pub expiring: Vec<(String, SystemTime)>,
    pub is_discovered: bool,
    pub versions: Vec<Version>,
}

impl PlayedEnvironment {
    pub fn current(&self) -> &Version {
        self.versions.last().expect("there is one from the start")
    }
}

/// The state of the API.
#[derive(Debug)]
pub struct Server {
    /// Its own clock, which is right.
    pub wall: SystemTime,
    pub environments: Vec<PlayedEnvironment>,
    pub proxy_key: Option<String>,
    pub fault: Option<Fault>,
    /// Seconds of `Retry-After`.
    pub retry_after: u64,
    pub uses_etags: bool,
    pub is_paged: bool,
    pub random: Random,
    /// Requests for documents, by environment.
    pub polls: BTreeMap<String, u64>,
    /// What went wrong from the view of the server: keys at another origin, unknown requests.
    pub offences: Vec<String>,
    /// Accepted events and how often, without repeated batches.
    pub events: BTreeMap<u64, u32>,
    /// Accepted counts of evaluations by environment, and of usage.
    pub evaluations: BTreeMap<String, u64>,
    pub usage: u64,
    /// Kept traits that were forwarded: by environment, identifier and key.
    pub traits: BTreeMap<(String, String, String), Value>,
    /// Those that arrived since they were last taken.
    pub trait_arrivals: Vec<(String, String, String, Value)>,
    pub seen: BTreeSet<String>,
    /// How many requests came again with the same idempotency key.
    pub repeated: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Reset,
    Hang,
}

struct Request {
    method: String,
    path: String,
    fields: BTreeMap<String, String>,
    body: Vec<u8>,
}

type Reply = (Vec<u8>, End);

fn response(status: u16, fields: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Played\r\n");
    for (name, value) in fields {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(if status == 304 { b"" } else { body });
    bytes
}

impl Server {
    fn date(&self) -> (&'static str, String) {
        ("date", httpdate::fmt_http_date(self.wall))
    }

    fn plain(&self, status: u16, body: &[u8]) -> Reply {
        (response(status, &[self.date()], body), End::Close)
    }

    fn answer(&mut self, origin: &str, request: &Request) -> Reply {
        if origin != ORIGIN {
            let fields = request.fields.iter();
            let keys = fields.filter(|(name, value)| name.ends_with("-key") || value.contains("ser."));
            let leaked: Vec<String> = keys.map(|(name, _)| name.clone()).collect();
            if !leaked.is_empty() {
                self.offences.push(format!("keys left their origin: {leaked:?} at {origin}"));
            }
            return self.plain(403, b"{}");
        }
        if let Some(fault) = self.fault
            && let Some(reply) = self.faulty(fault, request)
        {
            return reply;
        }
        let reply = self.healthy(request);
        match self.fault {
            Some(Fault::AnswerLost) => (Vec::new(), End::Reset),
            _ => reply,
        }
    }

    fn healthy(&mut self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        match (request.method.as_str(), path) {
            ("GET", "/api/v1/environment-document/" | "/moved") => self.document(request),
            ("GET", "/api/v1/proxy/config/") => self.discovery(request),
            ("POST", "/api/v1/analytics/flags/" | "/api/v2/analytics/flags/" | "/api/v1/proxy/usage/") => {
                self.counts(request)
            }
            ("POST", "/v1/events") => self.take_events(request),
            ("PUT", "/api/v1/traits/bulk/") | ("POST", "/api/v1/traits/" | "/api/v1/identities/") => {
                self.take_traits(request)
            }
            _ => {
                self.offences.push(format!("unknown request: {} {}", request.method, request.path));
                self.plain(404, b"")
            }
        }
    }

    fn faulty(&mut self, fault: Fault, request: &Request) -> Option<Reply> {
        let (is_page, is_get) = (request.path.contains("page="), request.method == "GET");
        let date = self.date();
        let location =
            |target: &str| response(302, &[date.clone(), ("location", target.to_owned())], b"moved");
        let document = Arc::clone(&self.environments[0].current().bytes);
        let is_cut = matches!(fault, Fault::ResetInBody | Fault::EndInBody | Fault::HangInBody);
        // Uploads are handled as their status says: only its body is cut.
        let cut = match is_cut {
            true if is_get => {
                let mut whole = response(200, std::slice::from_ref(&date), &document);
                whole.truncate(whole.len() - 40);
                whole
            }
            true => {
                let mut whole = self.healthy(request).0;
                let body = whole.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0) + 4;
                whole.truncate((whole.len() - 1).max(body));
                whole
            }
            false => Vec::new(),
        };
        let is_traits = request.path.contains("/traits/") || request.path.contains("/identities/");
        let retry = ("retry-after", self.retry_after.to_string());
        let bytes = match fault {
            Fault::ResetInBody => return Some((cut, End::Reset)),
            Fault::EndInBody => return Some((cut, End::Close)),
            Fault::HangInBody => return Some((cut, End::Hang)),
            Fault::HangBeforeHead => return Some((Vec::new(), End::Hang)),
            Fault::NotHttp => b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
            Fault::RedirectSame if is_get && request.path.starts_with("/api/v1/environment-document/") => {
                location("/moved")
            }
            Fault::RedirectOther if is_get => location(&format!("{OTHER_ORIGIN}/stolen")),
            Fault::RedirectLoop if is_get => location(&request.path),
            Fault::RedirectScheme if is_get => location("ftp://api.simulation/"),
            Fault::NotModified if is_get => response(304, &[date], b""),
            // Events would be given up, as documented.
            Fault::Unauthorized | Fault::Forbidden if !is_get && !is_traits => response(503, &[date], b""),
            Fault::Unauthorized => response(401, &[date], b"{}"),
            Fault::Forbidden => response(403, &[date], b"{}"),
            // Counts and events would be given up, as documented.
            Fault::NotFound if is_get || is_traits => response(404, &[date], b"<h1>Not Found</h1>"),
            Fault::TooManyRequests => response(429, &[date, retry], b""),
            Fault::InternalError => response(500, &[date], b"Internal Server Error"),
            Fault::BadGateway => response(502, &[date], b"<html>"),
            Fault::RetryAfter => response(503, &[date, retry], b""),
            Fault::EmptyList if request.path.starts_with("/api/v1/proxy/config/") => {
                response(200, &[date], b"[]")
            }
            Fault::EmptyList | Fault::Slow | Fault::AnswerLost => return None,
            _ if !is_get => response(503, &[date], b""),
            Fault::EmptyBody => response(200, &[date], b""),
            Fault::Html => response(200, &[date], b"<!doctype html><title>Sign in to the Wi-Fi</title>"),
            Fault::Truncated => response(200, &[date], &document[..document.len() - 2]),
            Fault::UnknownCoding => {
                response(200, &[date, ("content-encoding", "br".into())], b"\x0b\x02\x80hello\x03")
            }
            Fault::TooLarge => response(200, &[date], &vec![b' '; 300 * 1024]),
            Fault::Array => response(200, &[date], b"[]"),
            Fault::Null => response(200, &[date], b"null"),
            Fault::EmptyObject => response(200, &[date], b"{}"),
            Fault::NoFeature => {
                let text = String::from_utf8_lossy(&document).replace("\"feature\":", "\"lost\":");
                response(200, &[date], text.as_bytes())
            }
            Fault::BadSegments => {
                let text = String::from_utf8_lossy(&document).replace("\"segments\":[", "\"segments\":[7,");
                response(200, &[date], text.as_bytes())
            }
            Fault::BrokenPage if is_page => response(500, &[date], b"no page"),
            Fault::BrokenPage | Fault::PageElsewhere => {
                let origin = if fault == Fault::PageElsewhere { OTHER_ORIGIN } else { "" };
                let link = format!("<{origin}/api/v1/environment-document/?page=2>; rel=\"next\"");
                response(200, &[date, ("link", link)], &pages(&document).0)
            }
            _ => return None,
        };
        Some((bytes, End::Close))
    }

    fn document(&mut self, request: &Request) -> Reply {
        let Some(environment) = self.opened(request) else {
            return self.plain(403, b"{}");
        };
        let client_side_key = environment.client_side_key.clone();
        let Version { updated_at, bytes, .. } = environment.current().clone();
        if request.path.contains("page=2") {
            return self.plain(200, &pages(&bytes).1);
        }
        *self.polls.entry(client_side_key).or_default() += 1;
        let modified = httpdate::fmt_http_date(updated_at);
        let mut fields = vec![self.date(), ("last-modified", modified.clone())];
        let etag = format!("W/\"{modified}\"");
        if self.uses_etags {
            fields.push(("etag", etag.clone()));
        }
        let field = |name: &str| request.fields.get(name);
        let is_same = match (field("if-none-match"), field("if-modified-since")) {
            (Some(tag), _) => *tag == etag,
            (None, Some(since)) => {
                let since = httpdate::parse_http_date(since);
                since.is_ok_and(|since| {
                    httpdate::parse_http_date(&modified).is_ok_and(|modified| modified <= since)
                })
            }
            (None, None) => false,
        };
        if is_same {
            return (response(304, &fields, b""), End::Close);
        }
        let body = if self.is_paged {
            let link = "</api/v1/environment-document/?page=2>; rel=\"next\"";
            fields.push(("link", link.to_owned()));
            pages(&bytes).0
        } else {
            bytes.to_vec()
        };
        (response(200, &fields, &body), End::Close)
    }

    /// The environment that a server-side key opens.
    fn opened(&self, request: &Request) -> Option<&PlayedEnvironment> {
        let key = request.fields.get("x-environment-key")?;
        let is_current = |(other, end): &(String, SystemTime)| other != key || *end > self.wall;
        self.environments.iter().find(|environment| {
            environment.server_side_keys.contains(key) && environment.expiring.iter().all(is_current)
        })
    }

    fn discovery(&mut self, request: &Request) -> Reply {
        if request.fields.get("x-proxy-key") != self.proxy_key.as_ref() {
            return self.plain(403, b"{}");
        }
        let mut listed = Vec::new();
        for environment in self.environments.iter().filter(|environment| environment.is_discovered) {
            let keys = environment.server_side_keys.iter().map(|key| {
                let end = environment.expiring.iter().find(|(other, _)| other == key);
                let end = end.map(|(_, end)| humantime(*end));
                serde_json::json!({ "key": key, "active": true, "expires_at": end })
            });
            let keys: Vec<Value> = keys.collect();
            let key = &environment.client_side_key;
            listed.push(serde_json::json!({ "client_side_key": key, "server_side_keys": keys }));
        }
        self.plain(200, Value::from(listed).to_string().as_bytes())
    }

    /// Whether this is the first request with its idempotency key.
    fn is_new(&mut self, request: &Request) -> bool {
        let Some(key) = request.fields.get("idempotency-key").cloned() else {
            self.offences.push(format!("{} without an idempotency key", request.path));
            return true;
        };
        let is_new = self.seen.insert(key);
        self.repeated += u64::from(!is_new);
        is_new
    }

    fn counts(&mut self, request: &Request) -> Reply {
        let is_new = self.is_new(request);
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            self.offences.push("counts that are not JSON".into());
            return self.plain(400, b"");
        };
        if is_new {
            let sum = |rows: &Value| -> u64 {
                let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
                rows.iter().filter_map(|row| row["count"].as_u64()).sum()
            };
            let key = request.fields.get("x-environment-key").cloned().unwrap_or_default();
            match request.path.as_str() {
                "/api/v1/proxy/usage/" => self.usage += sum(&body),
                "/api/v2/analytics/flags/" => {
                    *self.evaluations.entry(key).or_default() += sum(&body["evaluations"]);
                }
                _ => {
                    let members = body.as_object().into_iter().flatten();
                    let total: u64 = members.filter_map(|(_, count)| count.as_u64()).sum();
                    *self.evaluations.entry(key).or_default() += total;
                }
            }
        }
        self.plain(200, b"{}")
    }

    fn take_traits(&mut self, request: &Request) -> Reply {
        let Some(environment) = self.opened(request).map(|found| found.client_side_key.clone()) else {
            return self.plain(403, b"{}");
        };
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            self.offences.push("traits that are not JSON".into());
            return self.plain(400, b"");
        };
        for (identifier, key, value) in sent_traits(&body) {
            if identifier.is_empty() || key.is_empty() {
                self.offences.push(format!("traits without a name: {body}"));
            }
            self.trait_arrivals.push((environment.clone(), identifier.clone(), key.clone(), value.clone()));
            let name = (environment.clone(), identifier, key);
            if value.is_null() {
                self.traits.remove(&name);
            } else {
                self.traits.insert(name, value);
            }
        }
        self.plain(200, b"[]")
    }

    fn take_events(&mut self, request: &Request) -> Reply {
        let is_new = self.is_new(request);
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            self.offences.push("events that are not JSON".into());
            return self.plain(400, b"");
        };
        if is_new {
            for event in body["events"].as_array().into_iter().flatten() {
                match event["metadata"]["number"].as_u64() {
                    Some(number) => *self.events.entry(number).or_default() += 1,
                    None => self.offences.push(format!("an event that was never sent: {event}")),
                }
            }
        }
        self.plain(202, b"{}")
    }
}

/// Traits that a request of the proxy sets; null deletes.
fn sent_traits(body: &Value) -> Vec<(String, String, Value)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let item = |identifier: &Value, item: &Value| {
        (text(identifier), text(&item["trait_key"]), item["trait_value"].clone())
    };
    match body {
        Value::Array(items) => items.iter().map(|one| item(&one["identity"]["identifier"], one)).collect(),
        body if body["traits"].is_array() => {
            let traits = body["traits"].as_array().into_iter().flatten();
            traits.map(|one| item(&body["identifier"], one)).collect()
        }
        body => vec![item(&body["identity"]["identifier"], body)],
    }
}

fn humantime(time: SystemTime) -> String {
    edge_proxy::timestamp::rfc3339(time)
}

/// Connects the real client to the played server.
#[derive(Clone, Debug)]
pub struct PlayedNetwork {
    server: Arc<Mutex<Server>>,
    /// A process that the disk has cut off sends nothing either.
    disk: PlayedDisk,
}

impl PlayedNetwork {
    pub fn new(server: Server, disk: PlayedDisk) -> Self {
        Self { server: Arc::new(Mutex::new(server)), disk }
    }

    pub fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().expect("no panic while it is locked")
    }
}

impl Connector for PlayedNetwork {
    type Out = PlayedConnection;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _chained: Option<()>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let mut server = self.server();
        if self.disk.is_cut() {
            return Err(ureq::Error::Io(ErrorKind::ConnectionReset.into()));
        }
        match server.fault {
            Some(Fault::Refused) => return Err(ureq::Error::Io(ErrorKind::ConnectionRefused.into())),
            Some(Fault::NameLost) => return Err(ureq::Error::HostNotFound),
            Some(Fault::ConnectTimeout) => return Err(ureq::Error::Timeout(ureq::Timeout::Connect)),
            _ => {}
        }
        let piece = server.random.between(1, 4000) as usize;
        let origin = format!(
            "{}://{}",
            details.uri.scheme_str().unwrap_or_default(),
            details.uri.host().unwrap_or_default()
        );
        Ok(Some(PlayedConnection {
            network: self.clone(),
            origin,
            sent: Vec::new(),
            reply: None,
            read: 0,
            piece,
            buffers: LazyBuffers::new(BUFFER_BYTES, BUFFER_BYTES),
        }))
    }
}

/// One connection, for one request.
#[derive(Debug)]
pub struct PlayedConnection {
    network: PlayedNetwork,
    origin: String,
    sent: Vec<u8>,
    reply: Option<(Vec<u8>, End)>,
    read: usize,
    /// How much arrives at a time.
    piece: usize,
    buffers: LazyBuffers,
}

impl Transport for PlayedConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.sent.extend_from_slice(&self.buffers.output()[..amount]);
        Ok(())
    }

    fn await_input(&mut self, _timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let (bytes, end) = match &self.reply {
            Some(reply) => reply,
            None => {
                let request = parse(&self.sent).ok_or(ureq::Error::ConnectionFailed)?;
                let mut server = self.network.server();
                if self.network.disk.is_cut() {
                    return Err(ureq::Error::Io(ErrorKind::ConnectionReset.into()));
                }
                self.reply.insert(server.answer(&self.origin, &request))
            }
        };
        let left = &bytes[self.read..];
        if left.is_empty() {
            return match end {
                End::Close => Ok(false),
                End::Reset => Err(ureq::Error::Io(ErrorKind::ConnectionReset.into())),
                End::Hang => Err(ureq::Error::Timeout(ureq::Timeout::PerRead)),
            };
        }
        let free = self.buffers.input_append_buf();
        let count = left.len().min(free.len()).min(self.piece);
        free[..count].copy_from_slice(&left[..count]);
        self.buffers.input_appended(count);
        self.read += count;
        Ok(true)
    }

    fn is_open(&mut self) -> bool {
        false
    }
}

fn parse(sent: &[u8]) -> Option<Request> {
    let end = sent.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&sent[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let fields = lines.filter_map(|line| line.split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Some(Request { method, path, fields: fields.collect(), body: sent[end + 4..].to_vec() })
}

/// How long an answer takes, from the request to its arrival, in two parts: until the server acts, and after.
pub fn latency(fault: Option<Fault>, timeout: Duration, random: &mut Random) -> (Duration, Duration) {
    let millis = |random: &mut Random, most: u64| Duration::from_millis(random.between(1, most));
    match fault {
        Some(Fault::Slow) => (millis(random, 1500), millis(random, 1500)),
        Some(Fault::HangBeforeHead | Fault::HangInBody | Fault::ConnectTimeout) => {
            (millis(random, 50), timeout)
        }
        _ => (millis(random, 60), millis(random, 60)),
    }
}
