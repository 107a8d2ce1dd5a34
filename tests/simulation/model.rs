//! What must hold at each step: the promises of the documentation, computed from what happened.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use edge_proxy::config::Config;
use edge_proxy::delta::digest_of;
use edge_proxy::limits;
use edge_proxy::snapshot::Snapshot;
use edge_proxy::storage::StorageError;
use edge_proxy::supervisor::event::Event;
use edge_proxy::supervisor::refresh::{EnvironmentId, Polled, RefreshJob, RefreshSource};
use edge_proxy::upstream::{DiscoveredEnvironment, PollError};
use serde_json::Value;

use crate::caller::Answer;
use crate::documents::{HIDDEN, flags_body, served_document, version_of};
use crate::traits::{TraitAsk, TraitModel, age_of};
use crate::upstream::{PlayedEnvironment, Version};

/// How long a decision of the supervisor may take to reach a reactor: one that is busy included.
pub const LAG: Duration = Duration::from_secs(3);
/// Starts of polls of one environment within ten seconds, at most: an event of the stream causes a few.
const STARTS_MAX: usize = 40;
/// A poll that is due is started within this time.
const TICK: Duration = Duration::from_millis(200);

/// What a request is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    Flags {
        key: String,
        is_server: bool,
    },
    Identity {
        key: String,
        is_server: bool,
        identifier: String,
        age: u64,
    },
    Document {
        key: String,
    },
    /// Kept traits.
    Traits {
        key: String,
        is_server: bool,
        ask: TraitAsk,
    },
    Readiness,
    Liveness,
    UnknownKey,
    /// Experiment events with these numbers.
    Events {
        key: String,
        numbers: Vec<u64>,
    },
    /// An evaluation, counted this often.
    Analytics {
        key: String,
        count: u64,
    },
    Stream {
        key: String,
    },
}

impl Ask {
    /// Whether the request has a server-side key.
    pub fn has_server_key(&self) -> bool {
        match self {
            Self::Flags { is_server, .. }
            | Self::Identity { is_server, .. }
            | Self::Traits { is_server, .. } => *is_server,
            Self::Document { .. } => true,
            _ => false,
        }
    }
}

/// Which reactor answers, when the request came, and when the answer arrived: a slow reader gets later what was
/// written earlier.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub reactor: usize,
    pub sent_at: Duration,
    pub now: Duration,
}

/// An edit of a document.
#[derive(Clone, Debug)]
struct Edit {
    at: Duration,
    version: u32,
    /// `updated_at` has moved.
    moves_time: bool,
}

/// What a process serves of one environment.
#[derive(Debug, Default)]
struct Served {
    /// When each version was delivered to the supervisor.
    delivered: Vec<(Duration, u32)>,
    /// Of the last successful poll.
    success: Option<Duration>,
    in_flight: bool,
    started: Option<(Instant, Duration)>,
    /// The end of an honoured `Retry-After`.
    retry_after_until: Duration,
    /// When the next poll starts at the latest.
    poll_by: Option<Duration>,
    /// The newest time that the event stream announced.
    announced: f64,
    starts: VecDeque<Duration>,
    since: Duration,
    is_discovered: bool,
}

/// The settings that the promises depend on.
#[derive(Clone, Debug)]
struct Rules {
    interval: Duration,
    timeout: Duration,
    full_refresh: Duration,
    age_max: Option<Duration>,
    ready_from_cache: bool,
    grace: Option<Duration>,
    empty_grace: Duration,
}

/// The expectations of one world.
pub struct Model {
    pub offences: Vec<String>,
    /// FNV-1a of everything that happened.
    pub hash: u64,
    pub trace: Option<Vec<String>>,
    versions: BTreeMap<[u8; 32], (String, u32)>,
    documents: BTreeMap<(String, u32), Version>,
    /// Bodies of `/flags/` that were checked: by version, and whether they are of servers.
    flag_bodies: BTreeMap<(String, u32, bool), Vec<u8>>,
    edits: BTreeMap<String, Vec<Edit>>,
    /// Which environment a server-side key opens.
    owners: BTreeMap<String, String>,
    rules: Rules,
    environments: BTreeMap<String, Served>,
    started_of: HashMap<EnvironmentId, Instant>,
    /// When environments were removed.
    removed: BTreeMap<String, Duration>,
    /// Since when discovery lists nothing.
    empty_since: Option<Duration>,
    /// Until when upstream answers 304 to everything.
    pub lies_until: Duration,
    /// The last version that is on the disk itself.
    durable: BTreeMap<String, u32>,
    storing: Vec<(String, u32)>,
    /// When something changed that readiness depends on.
    changed: Duration,
    is_draining: bool,
    is_running: bool,
    has_snapshot: bool,
    seen: BTreeMap<(usize, String), usize>,
    snapshot_version: u64,
    pub logged: BTreeMap<&'static str, u64>,
    /// Answers of 2xx that count as usage.
    pub usage: u64,
    pub evaluations: BTreeMap<String, u64>,
    /// When each accepted event was.
    pub events: BTreeMap<u64, Duration>,
    pub answers: u64,
    pub traits: TraitModel,
}

impl Model {
    pub fn new(is_traced: bool) -> Self {
        let rules = Rules {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            full_refresh: Duration::from_secs(60),
            age_max: None,
            ready_from_cache: true,
            grace: None,
            empty_grace: Duration::ZERO,
        };
        Self {
            offences: Vec::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            trace: is_traced.then(Vec::new),
            versions: BTreeMap::new(),
            documents: BTreeMap::new(),
            flag_bodies: BTreeMap::new(),
            edits: BTreeMap::new(),
            owners: BTreeMap::new(),
            rules,
            environments: BTreeMap::new(),
            started_of: HashMap::new(),
            removed: BTreeMap::new(),
            empty_since: None,
            lies_until: Duration::ZERO,
            durable: BTreeMap::new(),
            storing: Vec::new(),
            changed: Duration::ZERO,
            is_draining: false,
            is_running: false,
            has_snapshot: false,
            seen: BTreeMap::new(),
            snapshot_version: 0,
            logged: BTreeMap::new(),
            usage: 0,
            evaluations: BTreeMap::new(),
            events: BTreeMap::new(),
            answers: 0,
            traits: TraitModel::new(),
        }
    }

    /// Adds a line to the trace, if there is one.
    pub fn note(&mut self, at: Duration, line: &dyn std::fmt::Display) {
        if self.trace.is_none() {
            return;
        }
        let line = format!("{:>12.3} {line}", at.as_secs_f64());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(trace) = &mut self.trace {
            trace.push(line);
        }
    }

    pub fn offend(&mut self, what: impl Into<String>) {
        let what = what.into();
        if let Some(trace) = &mut self.trace {
            trace.push(format!("OFFENCE {what}"));
        }
        if self.offences.len() < 20 {
            self.offences.push(what);
        }
    }

    // --- what upstream publishes ---

    pub fn edited(&mut self, key: &str, version: &Version, moves_time: bool, at: Duration) {
        let (number, digest) = (version.number, digest_of(&version.bytes));
        self.versions.insert(digest, (key.to_owned(), number));
        self.documents.insert((key.to_owned(), number), version.clone());
        self.edits.entry(key.to_owned()).or_default().push(Edit { at, version: number, moves_time });
    }

    pub fn owner(&mut self, server_side_key: &str, key: &str) {
        self.owners.insert(server_side_key.to_owned(), key.to_owned());
    }

    // --- what the process does ---

    /// A process starts with this configuration.
    pub fn begin(&mut self, config: &Config, now: Duration) {
        self.environments.clear();
        self.started_of.clear();
        self.empty_since = None;
        self.seen.clear();
        self.storing.clear();
        self.is_draining = false;
        self.is_running = true;
        self.has_snapshot = false;
        self.snapshot_version = 0;
        self.configured(config, now);
    }

    /// A configuration is in use from now on.
    pub fn configured(&mut self, config: &Config, now: Duration) {
        let has_new_interval = self.rules.interval != config.api_poll_frequency;
        self.rules = Rules {
            interval: config.api_poll_frequency,
            timeout: config.api_poll_timeout,
            full_refresh: config.api_full_refresh.unwrap_or(Duration::from_secs(60)),
            age_max: None,
            ready_from_cache: config.health_check.ready_from_cache,
            grace: config.health_check.environment_update_grace_period,
            empty_grace: config.discovery_empty_grace,
        };
        let listed: Vec<String> =
            config.environments.iter().map(|environment| environment.client_side_key.clone()).collect();
        self.environments.retain(|key, served| served.is_discovered || listed.contains(key));
        for key in listed {
            let is_new = !self.environments.contains_key(&key);
            let served = self.environments.entry(key).or_default();
            let latest = now + config.api_poll_frequency;
            if is_new {
                served.poll_by = Some(now);
            } else if has_new_interval {
                served.poll_by = served.poll_by.map(|by| by.min(latest));
            }
            if is_new {
                served.since = now;
            }
        }
        self.count_environments();
        self.changed = now;
    }

    fn count_environments(&mut self) {
        let count = self.environments.len() as u32;
        let interval = self.rules.interval;
        self.rules.age_max = self.rules.grace.map(|grace| interval + grace * count);
    }

    pub fn ended(&mut self) {
        self.is_running = false;
    }

    pub fn draining(&mut self, now: Duration) {
        self.is_draining = true;
        self.changed = now;
    }

    /// An empty list is applied when it was empty for the grace period.
    fn listed(&mut self, list: &[DiscoveredEnvironment], now: Duration) {
        let has_discovered = self.environments.values().any(|served| served.is_discovered);
        let since = *self.empty_since.get_or_insert(now);
        if list.is_empty() && has_discovered && now.saturating_sub(since) < self.rules.empty_grace {
            return;
        }
        self.empty_since = None;
        self.discovered(list, now);
    }

    fn discovered(&mut self, list: &[DiscoveredEnvironment], now: Duration) {
        let keys: Vec<&str> = list.iter().map(|one| one.client_side_key.as_str()).collect();
        let before = self.environments.len();
        let Self { environments, removed, .. } = self;
        environments.retain(|key, served| {
            let is_kept = !served.is_discovered || keys.contains(&key.as_str());
            if !is_kept {
                removed.insert(key.clone(), now);
            }
            is_kept
        });
        let is_less = self.environments.len() != before;
        let mut is_more = false;
        for key in keys {
            if !self.environments.contains_key(key) {
                is_more = true;
                self.seen.retain(|(_, other), _| other != key);
                let served = Served { is_discovered: true, since: now, ..Served::default() };
                self.environments.insert(key.to_owned(), served);
            }
        }
        if is_less || is_more {
            self.changed = now;
            self.count_environments();
        }
    }

    /// A poll starts.
    pub fn refresh(
        &mut self,
        job: &RefreshJob,
        now: Duration,
        instant: Instant,
        keys: &mut HashMap<EnvironmentId, String>,
    ) {
        let RefreshSource::Upstream { key, validators, .. } = &job.source else { return };
        let Some(owner) = self.owners.get(key.expose()).cloned() else {
            return self.offend("a poll with a key that is not of this world");
        };
        keys.insert(job.id, owner.clone());
        let kind = if validators.is_some() { "conditional" } else { "whole" };
        self.note(now, &format_args!("poll {owner} {kind}"));
        let Some(served) = self.environments.get_mut(&owner) else { return };
        served.in_flight = true;
        served.started = Some((instant, now));
        served.poll_by = None;
        served.starts.push_back(now);
        while served.starts.front().is_some_and(|at| *at + Duration::from_secs(10) < now) {
            served.starts.pop_front();
        }
        let count = served.starts.len();
        if count > STARTS_MAX {
            self.offend(format!("{count} polls of {owner} within ten seconds"));
        }
        self.started_of.insert(job.id, instant);
    }

    /// When the poll of an environment was started.
    pub fn refresh_started(&self, id: EnvironmentId) -> Option<Instant> {
        self.started_of.get(&id).copied()
    }

    /// An event arrives at the supervisor.
    pub fn observe(&mut self, event: &Event, now: Duration, keys: &HashMap<EnvironmentId, String>) {
        match event {
            Event::Refreshed(refreshed) => {
                let Some(key) = keys.get(&refreshed.id).cloned() else { return };
                match &refreshed.result {
                    Ok(polled) => self.polled(&key, polled, now),
                    Err(error) => self.failed(&key, error, now),
                }
            }
            Event::DocumentLoaded { id, result } => {
                let Some(key) = keys.get(id).cloned() else { return };
                match result {
                    Ok(Some(loaded)) => match self.versions.get(&loaded.digest).cloned() {
                        Some((owner, version)) if owner == key => self.loaded(&key, version, now),
                        _ => self.offend(format!("the stored document of {key} is one of another origin")),
                    },
                    Ok(None) if self.durable.contains_key(&key) => {
                        self.offend(format!("the stored document of {key} is missing"));
                    }
                    Ok(None) => {}
                    Err(error) => self.offend(format!("the stored document of {key}: {error}")),
                }
            }
            Event::Discovered(Ok((list, _))) => self.listed(list, now),
            Event::Discovered(Err(_)) => self.empty_since = None,
            Event::DiscoveryLoaded(Ok(Some(list))) => self.discovered(list, now),
            Event::EventsForwarded(result) => {
                let kind = result.failure.as_ref().map(|failure| failure.kind);
                let (sent, lost, disk) = (result.sent, &result.lost, &result.disk_error);
                self.note(now, &format_args!("forwarded {sent} lost {lost:?} {kind:?} {disk:?}"));
            }
            Event::Uploaded(result) => {
                let failure = result.failure.as_ref().map(|failure| failure.kind);
                let (kind, sent, lost, kept) = (result.kind, result.sent, result.lost, result.kept.len());
                self.note(now, &format_args!("uploaded {kind:?} {sent} lost {lost} kept {kept} {failure:?}"));
            }
            Event::Announced { id, updated_at } => {
                let Some(key) = keys.get(id).cloned() else { return };
                self.announced(&key, *updated_at, now);
            }
            _ => {}
        }
    }

    fn loaded(&mut self, key: &str, version: u32, now: Duration) {
        self.note(now, &format_args!("loaded {key} version {version}"));
        if self.durable.get(key).is_some_and(|durable| version < *durable) {
            let durable = self.durable[key];
            self.offend(format!("version {version} of {key} was loaded, {durable} was stored"));
        }
        if let Some(served) = self.environments.get_mut(key)
            && served.delivered.is_empty()
        {
            served.delivered.push((now, version));
        }
        self.changed = now;
    }

    fn polled(&mut self, key: &str, polled: &Polled, now: Duration) {
        let new = match polled {
            Polled::New(compiled) => match self.versions.get(&compiled.digest) {
                Some((owner, version)) if owner == key => Some(*version),
                _ => return self.offend(format!("a document of {key} that upstream did not publish")),
            },
            Polled::Same(_) => None,
        };
        let interval = self.rules.interval;
        let Some(served) = self.environments.get_mut(key) else { return };
        let Some((_, started)) = served.started else { return };
        served.in_flight = false;
        if served.success.is_none() || new.is_some() {
            self.changed = now;
        }
        if let Some(age_max) = self.rules.age_max
            && served.success.is_some_and(|at| now.saturating_sub(at) > age_max)
        {
            self.changed = now;
        }
        served.success = Some(now);
        served.retry_after_until = Duration::ZERO;
        served.poll_by = Some((started + interval.mul_f64(1.1)).max(now));
        if let Some(version) = new {
            served.delivered.push((now, version));
        }
        let current = served.delivered.last().map(|(_, version)| *version);
        self.note(
            now,
            &format_args!("polled {key} {current:?} {}", if new.is_some() { "new" } else { "same" }),
        );
        let Some(current) = current else {
            return self.offend(format!("{key} is the same as no document"));
        };
        self.check_edits(key, current, started);
    }

    /// A successful poll that was started after an edit shows it.
    fn check_edits(&mut self, key: &str, current: u32, started: Duration) {
        if started < self.lies_until {
            return;
        }
        let hidden_for = self.rules.full_refresh + self.rules.interval.mul_f64(1.1) + LAG;
        let must_show = |edit: &&Edit| {
            let hidden = if edit.moves_time { Duration::ZERO } else { hidden_for };
            edit.at + hidden < started
        };
        let edits = self.edits.get(key).map(Vec::as_slice).unwrap_or_default();
        let newest = edits.iter().rev().find(must_show);
        if let Some(edit) = newest.filter(|edit| edit.version > current) {
            let (version, at) = (edit.version, edit.at.as_secs_f64());
            let started = started.as_secs_f64();
            self.offend(format!(
                "version {version} of {key}, published at {at:.3}, is not served after the poll of {started:.3}"
            ));
        }
    }

    fn failed(&mut self, key: &str, error: &PollError, now: Duration) {
        let rules = self.rules.clone();
        self.note(now, &format_args!("failed {key} {:?}", error.kind));
        let Some(served) = self.environments.get_mut(key) else { return };
        served.in_flight = false;
        let urgent = limits::BACKOFF_URGENT_MAX;
        let delay_max = rules.interval.clamp(Duration::from_secs(2), limits::BACKOFF_MAX);
        let (wait_max, honoured_max) = match (served.delivered.is_empty(), served.success) {
            (true, _) => (urgent, urgent),
            (false, None) if !rules.ready_from_cache => (urgent, urgent),
            (false, None) => (delay_max, limits::RETRY_AFTER_DEFAULT_MAX),
            (false, Some(success)) => {
                let left = rules.age_max.map(|age_max| age_max.saturating_sub(now.saturating_sub(success)));
                let honoured = left.map_or(limits::RETRY_AFTER_DEFAULT_MAX, |left| {
                    left.saturating_sub(rules.timeout).min(limits::RETRY_AFTER_MAX)
                });
                (if honoured < delay_max { delay_max.min(urgent) } else { delay_max }, honoured)
            }
        };
        let honoured = error.retry_after.unwrap_or_default().min(honoured_max);
        served.retry_after_until = now + honoured;
        served.poll_by = Some(now + wait_max.max(honoured));
    }

    fn announced(&mut self, key: &str, updated_at: f64, now: Duration) {
        let current = self.environments.get(key).and_then(|served| served.delivered.last());
        let current = current.and_then(|(_, version)| self.documents.get(&(key.to_owned(), *version)));
        let seconds = current.map(|version| {
            version.updated_at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
        });
        self.note(now, &format_args!("announced {key}"));
        let Some(served) = self.environments.get_mut(key) else { return };
        let is_new = updated_at > served.announced;
        served.announced = served.announced.max(updated_at);
        if is_new
            && seconds.is_some_and(|seconds| updated_at > seconds + 0.001)
            && served.success.is_some()
            && let Some(by) = served.poll_by
        {
            let soon = now.max(served.retry_after_until) + Duration::from_secs(5);
            served.poll_by = Some(by.min(soon));
        }
    }

    pub fn published(&mut self, snapshot: &Snapshot, now: Duration) {
        if snapshot.version <= self.snapshot_version {
            self.offend(format!("snapshot {} after {}", snapshot.version, self.snapshot_version));
        }
        self.snapshot_version = snapshot.version;
        self.has_snapshot = true;
        self.note(now, &format_args!("published {}", snapshot.version));
    }

    pub fn storing(&mut self, name: &str, digest: &[u8; 32]) {
        if let Some((key, version)) = self.versions.get(digest).cloned()
            && key == name
        {
            self.storing.push((key, version));
        }
    }

    /// Everything that waited to be stored is on the disk.
    pub fn stored(&mut self) {
        self.durable.extend(std::mem::take(&mut self.storing));
    }

    pub fn logged(&mut self, event: &'static str, fields: &[(&'static str, String)]) {
        *self.logged.entry(event).or_default() += 1;
        let leak = fields.iter().find(|(_, text)| self.owners.keys().any(|secret| text.contains(secret)));
        if let Some((name, _)) = leak {
            self.offend(format!("a server-side key is in the log: {event} {name}"));
        }
    }

    // --- promises ---

    /// Polls are started in time.
    pub fn check_polls(&mut self, now: Duration) {
        if self.is_draining || !self.is_running {
            return;
        }
        let overdue = |(_, served): &(&String, &Served)| {
            !served.in_flight && served.poll_by.is_some_and(|by| now > by + TICK)
        };
        if let Some((key, served)) = self.environments.iter().find(overdue) {
            let by = served.poll_by.unwrap_or_default().as_secs_f64();
            let text = format!("{key} was to be polled by {by:.3}, and was not at {:.3}", now.as_secs_f64());
            if let Some(served) = self.environments.get_mut(&key.clone()) {
                served.poll_by = None;
            }
            self.offend(text);
        }
    }

    /// Whether readiness must be 200 now; `None` if it may be either.
    fn is_ready(&self, now: Duration) -> Option<bool> {
        if now < self.changed + LAG {
            return None;
        }
        if self.is_draining {
            return Some(false);
        }
        let edge = Duration::from_millis(1);
        let mut is_ready = !self.environments.is_empty();
        for served in self.environments.values() {
            let ready = match (served.delivered.is_empty(), served.success, self.rules.age_max) {
                (true, ..) => false,
                (false, None, _) => self.rules.ready_from_cache,
                (false, Some(_), None) => true,
                (false, Some(at), Some(age_max)) => {
                    let age = now.saturating_sub(at);
                    if age + edge > age_max && age < age_max + edge {
                        return None;
                    }
                    age <= age_max
                }
            };
            is_ready &= ready;
        }
        Some(is_ready)
    }

    /// Judges an answer of a reactor.
    pub fn check(&mut self, ask: &Ask, answer: &Answer, moment: Moment, takes_events: bool) {
        self.answers += 1;
        let Moment { reactor, now, .. } = moment;
        self.note(now, &format_args!("answer {} {} {}", reactor, answer.status, answer.body.len()));
        let shown = || String::from_utf8_lossy(&answer.body).chars().take(200).collect::<String>();
        match ask {
            Ask::Flags { key, is_server } => {
                self.count_usage(answer);
                self.check_flags(key, *is_server, answer, moment);
            }
            Ask::Identity { key, is_server, identifier, age } => {
                self.count_usage(answer);
                let version = self.flags(key, answer, Some((identifier, *age)), *is_server, moment);
                if version.is_some() && self.traits.has_store() {
                    self.note(moment.now, &format_args!("{key} {identifier} age {age}"));
                    let sent = [("age".to_owned(), Value::from(*age))];
                    self.traits.evaluated(key, identifier, &sent, Moment { now: moment.now, ..moment });
                }
            }
            Ask::Traits { key, is_server, ask } => self.check_traits(key, *is_server, ask, answer, moment),
            Ask::Document { key } => {
                self.count_usage(answer);
                self.document(key, answer, moment);
            }
            Ask::Readiness => {
                let expected = self.is_ready(now).filter(|_| moment.sent_at == now);
                if expected.is_some_and(|ready| ready != (answer.status == 200)) {
                    self.offend(format!(
                        "readiness is {} at {:.3}: {}",
                        answer.status,
                        now.as_secs_f64(),
                        shown()
                    ));
                }
            }
            Ask::Liveness if answer.status != 200 => self.offend("the process is not alive"),
            Ask::UnknownKey if !matches!(answer.status, 401 | 502) => {
                self.offend(format!("an unknown key is answered {}", answer.status));
            }
            Ask::Events { numbers, .. } => match answer.status {
                202 => self.events.extend(numbers.iter().map(|number| (*number, now))),
                401 | 403 | 502 | 503 => {}
                404 if !takes_events => {}
                other => self.offend(format!("events are answered {other}: {}", shown())),
            },
            Ask::Analytics { key, count } if answer.status == 200 => {
                *self.evaluations.entry(key.clone()).or_default() += count;
            }
            Ask::Liveness | Ask::UnknownKey | Ask::Analytics { .. } | Ask::Stream { .. } => {}
        }
    }

    fn check_flags(&mut self, key: &str, is_server: bool, answer: &Answer, moment: Moment) {
        let (versions, _) = self.may_serve(key, moment.sent_at);
        let is_known = |version: &&u32| {
            let body = self.flag_bodies.get(&(key.to_owned(), **version, is_server));
            body.is_some_and(|body| *body == answer.body)
        };
        if let Some(version) = versions.iter().rev().find(is_known).copied().filter(|_| answer.status == 200)
        {
            return self.check_version(key, version, moment);
        }
        let Some(version) = self.flags(key, answer, None, is_server, moment) else { return };
        if flags_body(key, version, is_server).as_bytes() != answer.body {
            let shown: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
            return self.offend(format!("/flags/ of {key} version {version} differs: {shown}"));
        }
        self.flag_bodies.insert((key.to_owned(), version, is_server), answer.body.clone());
    }

    fn check_traits(&mut self, key: &str, is_server: bool, ask: &TraitAsk, answer: &Answer, moment: Moment) {
        self.note(moment.now, &format_args!("{key} {ask:?}"));
        if ask.is_of_identities() {
            self.count_usage(answer);
        }
        let is_unknown = answer.status == 404 && matches!(ask, TraitAsk::Export { .. });
        if !matches!(answer.status, 200 | 204) && !is_unknown {
            return self.refused(key, answer.status, moment.sent_at);
        }
        if let Err(wrong) = self.traits.check(key, ask, answer, moment) {
            self.offend(wrong);
        }
        if let TraitAsk::Evaluate { identifier, .. } | TraitAsk::Get { identifier } = ask {
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            self.flags(key, answer, Some((identifier, age_of(&body))), is_server, moment);
        }
    }

    /// Whether an environment was ever removed.
    pub fn was_removed(&self, key: &str) -> bool {
        self.removed.contains_key(key)
    }

    /// At the end of a quiet time: the stored document is the one that is served.
    pub fn check_stored(&mut self, key: &str, stored: Result<Option<[u8; 32]>, StorageError>) {
        let served = self.environments.get(key).and_then(|served| served.delivered.last());
        let Some((_, served)) = served.copied() else { return };
        match stored.map(|digest| digest.and_then(|digest| self.versions.get(&digest)).cloned()) {
            Ok(Some((owner, version))) if owner == key && version == served => {}
            other => self.offend(format!("version {served} of {key} is served, {other:?} is stored")),
        }
    }

    fn count_usage(&mut self, answer: &Answer) {
        self.usage += u64::from((200..300).contains(&answer.status));
    }

    /// What a reactor may serve of an environment: versions from the oldest to the newest; none if the
    /// environment may be without a document.
    fn may_serve(&self, key: &str, sent_at: Duration) -> (Vec<u32>, bool) {
        let Some(served) = self.environments.get(key) else { return (Vec::new(), true) };
        let settled = served.delivered.iter().rposition(|(at, _)| *at + LAG <= sent_at);
        let versions = served.delivered.iter().skip(settled.unwrap_or(0)).map(|(_, version)| *version);
        (versions.collect(), settled.is_none())
    }

    /// The version that the flags are of, if it is one that may be served.
    fn flags(
        &mut self,
        key: &str,
        answer: &Answer,
        identity: Option<(&str, u64)>,
        is_server: bool,
        moment: Moment,
    ) -> Option<u32> {
        if answer.status != 200 {
            self.refused(key, answer.status, moment.sent_at);
            return None;
        }
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let flags = if identity.is_some() { &body["flags"] } else { &body };
        match version_of(key, flags, identity, is_server) {
            Ok(version) => {
                self.check_version(key, version, moment);
                Some(version)
            }
            Err(error) => {
                self.offend(format!("an answer that is of no document of {key}: {error}"));
                None
            }
        }
    }

    fn document(&mut self, key: &str, answer: &Answer, moment: Moment) {
        if answer.status != 200 {
            return self.refused(key, answer.status, moment.sent_at);
        }
        let (versions, _) = self.may_serve(key, moment.sent_at);
        let is_of = |version: u32| {
            let published = self.documents.get(&(key.to_owned(), version));
            published.is_some_and(|published| {
                served_document(key, version, published.updated_at).as_bytes() == answer.body
            })
        };
        match versions.iter().rev().find(|version| is_of(**version)) {
            Some(version) => self.check_version(key, *version, moment),
            None => self.offend(format!("the document of {key} is none of {versions:?}")),
        }
    }

    fn refused(&mut self, key: &str, status: u16, now: Duration) {
        let (_, may_lack) = self.may_serve(key, now);
        if !may_lack && self.has_snapshot {
            self.offend(format!(
                "{key} is answered {status} at {:.3}, and has a document",
                now.as_secs_f64()
            ));
        }
    }

    fn check_version(&mut self, key: &str, version: u32, moment: Moment) {
        let Moment { reactor, sent_at, now } = moment;
        let (versions, _) = self.may_serve(key, sent_at);
        if self.removed.get(key).is_some_and(|at| sent_at < *at + LAG) {
            return;
        }
        if !versions.contains(&version) {
            let at = now.as_secs_f64();
            return self.offend(format!(
                "reactor {reactor} serves version {version} of {key} at {at:.3}, not {versions:?}"
            ));
        }
        if sent_at != now {
            return;
        }
        let Some(served) = self.environments.get(key) else { return };
        let place = served.delivered.iter().rposition(|(_, delivered)| *delivered == version).unwrap_or(0);
        let before = self.seen.insert((reactor, key.to_owned()), place);
        if before.is_some_and(|before| before > place) {
            self.offend(format!("reactor {reactor} serves version {version} of {key} after a newer one"));
        }
    }

    /// Checks a stream of events to a client: it has the time of the newest document.
    pub fn check_stream(&mut self, key: &str, text: &str, opened: Duration, now: Duration) {
        let Some(served) = self.environments.get(key) else { return };
        let mut since = served.delivered.iter().filter(|(at, _)| *at > opened + LAG && *at + LAG < now);
        let Some((_, version)) = since.next_back() else { return };
        let Some(version) = self.documents.get(&(key.to_owned(), *version)) else { return };
        let seconds = version.updated_at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        if !text.contains(&format!("\"updated_at\": {seconds}"))
            && !text.contains(&format!("\"updated_at\":{seconds}"))
        {
            let number = version.number;
            self.offend(format!("the stream of {key} lacks version {number} ({seconds}): {text:?}"));
        }
    }

    /// The text has no value that only server-side keys may read.
    pub fn check_secret(&mut self, ask: &Ask, answer: &Answer) {
        let is_public = match ask {
            Ask::Flags { is_server, .. }
            | Ask::Identity { is_server, .. }
            | Ask::Traits { is_server, .. } => !is_server,
            Ask::Document { .. } => false,
            _ => true,
        };
        let text = String::from_utf8_lossy(&answer.body);
        if is_public && (text.contains(HIDDEN) || text.contains("ser.")) {
            self.offend(format!("an answer with what is of servers only: {ask:?}"));
        }
    }

    /// At the end of a quiet time: everything that upstream published is served.
    pub fn check_end(&mut self, environments: &[PlayedEnvironment], now: Duration) {
        // An edit that does not move the time is shown by the next whole fetch.
        let hidden_for = self.rules.full_refresh + self.rules.interval * 2 + LAG;
        for environment in environments {
            let key = &environment.client_side_key;
            let served = self.environments.get(key).and_then(|served| served.delivered.last());
            let (served, current) = (served.map(|(_, version)| *version), environment.current().number);
            let edits = self.edits.get(key).map(Vec::as_slice).unwrap_or_default();
            let is_due = |edit: &&Edit| edit.moves_time || edit.at + hidden_for < now;
            let due = edits.iter().rev().find(is_due).map(|edit| edit.version);
            if served < due {
                self.offend(format!(
                    "{key}: version {served:?} is served at the end, {current} is published"
                ));
            }
        }
    }
}
