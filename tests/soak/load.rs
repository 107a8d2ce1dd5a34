//! The load: requests as SDKs send them, at a constant rate on each connection.
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::core::Core;
use crate::documents::{ENVIRONMENTS, cut, revision_of};
use crate::random::Random;
use crate::shared::{Latencies, Shared, add};
use crate::support::{Answer, Client, Http2Client, fixture, request};

const REQUESTS_PER_CONNECTION: u64 = 400;
/// Identifiers that come again; the others are new in each request.
const RETURNING: u64 = 1000;

/// A proxy under load.
pub struct Target<'a> {
    pub address: SocketAddr,
    /// It is replaced by takeovers, which close idle connections.
    pub is_replaced: bool,
    pub accepts_events: bool,
    pub core: &'a Core,
    pub shared: &'a Shared,
    pub latencies: &'a Latencies,
    pub heads: &'a [Head],
    /// Between two requests of a connection.
    pub interval: Duration,
}

/// The fields of one SDK's requests.
pub type Head = Vec<(String, String)>;

/// Those of `bench/heads.py`, for which the benchmarks measure.
pub fn heads() -> Vec<Head> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let code = ["-c", "import heads; print(heads.text(), end='')"];
    let output = Command::new(python).args(code).current_dir(fixture::root().join("bench")).output();
    let output = output.expect("Python 3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("ASCII");
    let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.trim().split("\n\n").map(|head| head.lines().filter_map(field).collect()).collect()
}

enum Expected {
    /// Flags of one revision.
    Flags,
    /// The document, or 304 if the request was conditional.
    Document,
    /// No flags.
    Status(u16),
}

struct Ask {
    method: &'static str,
    target: String,
    body: String,
    environment: usize,
    expected: Expected,
    /// Small answers from memory, whose latencies are compared with those of the floor.
    is_timed: bool,
}

impl Ask {
    fn new(method: &'static str, target: impl Into<String>, body: String, environment: usize) -> Self {
        let target = target.into();
        Self { method, target, body, environment, expected: Expected::Flags, is_timed: true }
    }

    fn expecting(mut self, expected: Expected) -> Self {
        self.is_timed = false;
        self.expected = expected;
        self
    }

    /// A request of the mix.
    fn next(random: &mut Random, accepts_events: bool) -> Self {
        let environment = random.below(ENVIRONMENTS.len() as u64) as usize;
        let user = match random.chance(30) {
            true => format!("user-{}", random.below(RETURNING)),
            false => format!("new-{:016x}", random.next()),
        };
        let age = random.below(90);
        let identity = || {
            let traits = json!([{"trait_key": "age", "trait_value": age}, {"trait_key": "plan", "trait_value": "gold"}]);
            json!({"identifier": user, "traits": traits}).to_string()
        };
        let context = || json!({"context": {"targetingKey": user, "age": age}}).to_string();
        let post = |target: &str, body: String| Self::new("POST", target, body, environment);
        let get = |target: &str| Self::new("GET", target, String::new(), environment);
        match random.below(100) {
            0..35 => get("/api/v1/flags/"),
            35..70 => post("/api/v1/identities/", identity()),
            70..76 => get(&format!("/api/v1/identities/?identifier={user}")),
            76..80 => get("/api/v1/flags/?feature=version"),
            80..87 => post("/ofrep/v1/evaluate/flags", context()),
            87..91 => post("/ofrep/v1/evaluate/flags/colour", context()),
            91..95 => get("/api/v1/environment-document/").expecting(Expected::Document),
            95..98 => {
                post("/api/v1/analytics/flags/", r#"{"version":2}"#.into()).expecting(Expected::Status(200))
            }
            _ if accepts_events => {
                let event = json!({"event": "$flag_exposure", "feature_name": "version", "identifier": user, "value": "b", "timestamp": 1_735_229_888_000_u64});
                post("/v1/events", json!({"events": [event]}).to_string()).expecting(Expected::Status(202))
            }
            _ => get("/proxy/health/liveness").expecting(Expected::Status(200)),
        }
    }

    fn fields<'a>(&self, head: &'a Head, tag: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
        let (client, server) = ENVIRONMENTS[self.environment];
        let is_document = matches!(self.expected, Expected::Document);
        let mut fields = vec![("X-Environment-Key", if is_document { server } else { client })];
        fields.extend(head.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        if self.method == "POST" {
            fields.push(("Content-Type", "application/json"));
        }
        fields.extend(tag.filter(|_| is_document).map(|tag| ("If-None-Match", tag)));
        fields
    }
}

/// A connection, and what it was answered.
struct Session {
    client: Client,
    head: usize,
    used: u64,
    /// The newest revision of each environment.
    newest: [u32; ENVIRONMENTS.len()],
    /// The tag of the last document of each environment.
    tags: [Option<String>; ENVIRONMENTS.len()],
}

impl Target<'_> {
    fn connect(&self, random: &mut Random) -> Option<Session> {
        let client = Client::try_connect(self.address);
        let client = client.map_err(|error| self.shared.error(format!("connect: {error}"))).ok()?;
        let head = random.below(self.heads.len() as u64) as usize;
        Some(Session { client, head, used: 0, newest: Default::default(), tags: Default::default() })
    }

    /// Sends requests until the run stops.
    pub fn call(&self, seed: u64) {
        let mut random = Random::new(seed);
        let (mut session, mut pace) = (None, Pace::new(&mut random, self.interval));
        while !self.shared.is_stopped() {
            if self.shared.is_paused() {
                session = None;
                pace.skip();
                continue;
            }
            let began = pace.wait();
            let ask = Ask::next(&mut random, self.accepts_events);
            self.exchange(&mut session, &ask, began, &mut random);
            if random.below(REQUESTS_PER_CONNECTION) == 0 {
                self.leave(&mut session, &mut random);
            }
        }
    }

    /// One request with its answer, on the connection or a new one.
    fn exchange(&self, session: &mut Option<Session>, ask: &Ask, began: Instant, random: &mut Random) {
        for _ in 0..2 {
            if session.is_none() {
                *session = self.connect(random);
            }
            let Some(open) = session.as_mut() else { return };
            let fields = ask.fields(&self.heads[open.head], open.tags[ask.environment].as_deref());
            let bytes = request(ask.method, &ask.target, &fields, ask.body.as_bytes());
            let answer = open.client.try_send(bytes).and_then(|()| open.client.try_answer(ask.method));
            open.used += 1;
            match answer {
                Ok(Some(answer)) => {
                    if ask.is_timed {
                        self.latencies.record(began.elapsed().as_micros());
                    }
                    if let Err(error) = self.judge(open, ask, &answer) {
                        self.shared.error(format!("{} {}: {error}", ask.method, ask.target));
                    }
                    if answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                        *session = None;
                    }
                    return;
                }
                // RFC 9112 9.3.1: a request that crossed the end of an idle connection is sent again.
                _ if self.is_replaced && open.used > 1 => add(&self.shared.counts.sent_again),
                other => {
                    self.shared.error(format!("{} {}: no answer: {other:?}", ask.method, ask.target));
                    *session = None;
                    return;
                }
            }
            *session = None;
        }
        self.shared.error(format!("{} {}: no answer on a new connection", ask.method, ask.target));
    }

    fn judge(&self, session: &mut Session, ask: &Ask, answer: &Answer) -> Result<(), String> {
        add(&self.shared.counts.answers);
        let newest = &mut session.newest[ask.environment];
        let expected = if let Expected::Status(status) = ask.expected { status } else { 200 };
        if matches!(ask.expected, Expected::Document) {
            let tag = &mut session.tags[ask.environment];
            if answer.status == 304 && tag.is_some() {
                add(&self.shared.counts.not_modified);
                return Ok(());
            }
            *tag = answer.header("etag").map(str::to_owned);
        }
        if answer.status != expected {
            return Err(format!("{} {}", answer.status, cut(&answer.text())));
        }
        match ask.expected {
            Expected::Status(_) => Ok(()),
            Expected::Flags | Expected::Document => self.judge_revision(newest, answer),
        }
    }

    /// An answer is that of one revision, not older than the last one and not stale.
    fn judge_revision(&self, newest: &mut u32, answer: &Answer) -> Result<(), String> {
        let oldest = self.core.oldest_served();
        let revision = revision_of(&answer.plain())?;
        if revision < *newest {
            return Err(format!("revision {revision} after {newest}"));
        }
        if revision < oldest {
            return Err(format!("revision {revision} is stale: {} is published", self.core.revision()));
        }
        *newest = revision;
        Ok(())
    }

    /// Closes the connection: idle, by a reset, in the middle of a request, or before its answer.
    fn leave(&self, session: &mut Option<Session>, random: &mut Random) {
        let Some(mut open) = session.take() else { return };
        add(&self.shared.counts.reconnects);
        let ask = Ask::next(random, false);
        let bytes = request(ask.method, &ask.target, &ask.fields(&self.heads[open.head], None), b"{}");
        let sent = match random.below(4) {
            0 => return,
            1 => &bytes[..0],
            2 => &bytes[..bytes.len() / 2],
            _ => &bytes[..],
        };
        // A takeover may have closed the connection.
        let _ = open.client.try_send(sent);
        add(&self.shared.counts.abandoned);
        let _ = socket2::SockRef::from(open.client.stream()).set_linger(Some(Duration::ZERO));
    }

    /// Sends requests over HTTP/2 until the run stops.
    pub fn call_http2(&self, seed: u64) {
        let mut random = Random::new(seed);
        let (mut client, mut pace) = (None, Pace::new(&mut random, self.interval));
        let mut newest = [0; ENVIRONMENTS.len()];
        while !self.shared.is_stopped() {
            if self.shared.is_paused() {
                client = None;
                pace.skip();
                continue;
            }
            let began = pace.wait();
            let ask = Ask::next(&mut random, false);
            if matches!(ask.expected, Expected::Document) {
                continue;
            }
            let open = client.get_or_insert_with(|| Http2Client::connect(self.address));
            let fields =
                [("x-environment-key", ENVIRONMENTS[ask.environment].0), ("accept-encoding", "gzip")];
            let json = ("content-type", "application/json");
            let fields = if ask.method == "POST" { [&fields[..], &[json]].concat() } else { fields.to_vec() };
            let stream = open.open(ask.method, &ask.target, &fields, ask.body.as_bytes());
            match open.answer(stream) {
                Ok(answer) if answer.status != 200 => {
                    self.shared.error(format!("HTTP/2 {}: {}", ask.target, answer.status));
                }
                Ok(answer) => {
                    if ask.is_timed {
                        self.latencies.record(began.elapsed().as_micros());
                        let judged = self.judge_revision(&mut newest[ask.environment], &answer);
                        let _ = judged
                            .map_err(|error| self.shared.error(format!("HTTP/2 {}: {error}", ask.target)));
                    }
                    add(&self.shared.counts.http2_answers);
                }
                Err(frame) => {
                    self.shared.error(format!("HTTP/2 {}: {frame:?}", ask.target));
                    client = None;
                }
            }
            if random.below(REQUESTS_PER_CONNECTION) == 0 {
                add(&self.shared.counts.reconnects);
                client = None;
            }
        }
    }
}

/// Sends the requests of an SDK to the floor server, which parses nothing.
pub fn call_floor(floor: SocketAddr, target: &Target, latencies: &Latencies, seed: u64) {
    let (mut random, shared, head) = (Random::new(seed), target.shared, &target.heads[0]);
    let (mut client, mut pace) = (Client::connect(floor), Pace::new(&mut random, target.interval));
    while !shared.is_stopped() {
        if shared.is_paused() {
            pace.skip();
            continue;
        }
        let began = pace.wait();
        let ask = Ask::new("GET", "/api/v1/flags/", String::new(), 0);
        let answer = client.request(ask.method, &ask.target, &ask.fields(head, None), b"");
        assert_eq!(answer.status, 200, "the floor answers one thing");
        latencies.record(began.elapsed().as_micros());
    }
}

/// The schedule of one connection.
struct Pace {
    interval: Duration,
    due: Instant,
}

impl Pace {
    fn new(random: &mut Random, interval: Duration) -> Self {
        let first = Duration::from_micros(random.below(interval.as_micros() as u64));
        Self { interval, due: Instant::now() + first }
    }

    /// Waits for the next request. Returns the time its latency counts from: when it was due, if the answer
    /// before came after that, so that one slow answer counts for all requests it delays.
    fn wait(&mut self) -> Instant {
        let (due, now) = (self.due, Instant::now());
        self.due += self.interval;
        if due <= now {
            return due;
        }
        std::thread::sleep(due - now);
        Instant::now()
    }

    /// Waits a moment without a request.
    fn skip(&mut self) {
        std::thread::sleep(self.interval);
        self.due = Instant::now() + self.interval;
    }
}
