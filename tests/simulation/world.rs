//! The world of one seed: time, upstream, disk, callers, and the proxy between them.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edge_proxy::clock;
use edge_proxy::config::{Config, EventsFsync, TraitsStore};
use edge_proxy::log::Log;
use edge_proxy::supervisor::event::Event;
use edge_proxy::supervisor::signals::Signal;

use crate::caller::Caller;
use crate::disk::{DiskMode, PlayedDisk};
use crate::documents::{document, whole_millis};
use crate::model::{Ask, LAG, Model, Moment};
use crate::process::{Process, Shared};
use crate::random::Random;
use crate::scenario::{CallerKind, Happening, Scenario, client_key, environment_config, server_key};
use crate::traits::{JOURNAL_LOSS, STORE_LOSS, TraitAsk};
use crate::upstream::{Fault, PlayedEnvironment, PlayedNetwork, Server, Version};

/// A seed goes on until it has so many events.
pub const EVENTS_MIN: u64 = 300;
/// How long an answer may take once its request was sent: events are written first.
const ANSWER_TIME: Duration = Duration::from_secs(4);
/// How long a caller that does nothing may keep its connection: the longest timeout, and what follows.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// Kept traits are on the disk within this time, if it works.
const UNWRITTEN_TIME: Duration = Duration::from_secs(5);
/// Accepted events are on the disk itself after this time, while the process runs and the disk works.
const UNSYNCED_TIME: Duration = Duration::from_millis(1200);
/// After the disk has failed a spool is opened within this time.
const REOPEN_TIME: Duration = Duration::from_secs(10);
/// After so many steps in which only the process did something, such as failed polls, callers probe less.
const CALM_STEPS: u64 = 40;
/// A stop takes this long beside its delay and its grace period.
const EXIT_TIME: Duration = Duration::from_secs(8);

/// What one seed came to.
#[derive(Debug)]
pub struct Outcome {
    pub offences: Vec<String>,
    pub hash: u64,
    pub trace: Vec<String>,
    pub events: u64,
    pub answers: u64,
    pub virtual_time: Duration,
    /// Pairs of disturbances at the same time.
    pub pairs: BTreeSet<(String, String)>,
    pub kills: u64,
}

enum CallerStep {
    /// Bytes, and the request that they end, with its stream.
    Bytes(Vec<u8>, Option<(Ask, u32)>),
    Read(usize),
    Close,
}

/// A caller with what it does when.
struct PlayedCaller {
    caller: Caller<Ask>,
    reactor: usize,
    /// For one that was passed on to another reactor.
    number: u64,
    script: VecDeque<(Duration, CallerStep)>,
    kind: CallerKind,
    /// The environment of an event stream.
    stream_of: Option<String>,
}

struct World<'a> {
    now: Duration,
    base: Instant,
    wall_base: SystemTime,
    /// Seconds that the clock of the proxy is off.
    wall_shift: i64,
    random: Random,
    scenario: Scenario,
    network: PlayedNetwork,
    disk: PlayedDisk,
    model: Model,
    log: &'a Log,
    /// In a box: it is taken out and put back in each step.
    process: Option<Box<Process>>,
    config: Config,
    callers: Vec<PlayedCaller>,
    happenings: BTreeMap<(Duration, u64), Happening>,
    next: u64,
    seed: u64,
    events: u64,
    /// Steps of the process since something happened to it.
    calm_steps: u64,
    next_event: u64,
    is_quiet: bool,
    rotations: Vec<Vec<usize>>,
    /// Disturbances that last, or were within the last intervals.
    recent: Vec<(Duration, String)>,
    pairs: BTreeSet<(String, String)>,
    kills: u64,
    power_losses: Vec<Duration>,
    /// The last time in which the disk was full or failed: its beginning and end.
    disk_fault: Option<(Duration, Option<Duration>)>,
    next_caller: u64,
    next_text: u64,
    /// Requests without an answer: what they would have counted is unknown.
    unanswered: u64,
    unanswered_counts: u64,
    server_key_changed: Duration,
    /// The usage that must be sent at the end. Once it is known, nothing more counts as usage: it would hide a loss.
    usage_by: Option<u64>,
    /// Events that were accepted before are on the disk itself.
    synced_until: Duration,
    started_at: Duration,
}

/// Plays a seed.
pub fn play(seed: u64, defaults: &Config, log: &Log, is_traced: bool) -> Outcome {
    let mut random = Random::new(seed);
    let scenario = Scenario::new(defaults, &mut random);
    let wall_base = UNIX_EPOCH + Duration::from_millis(1_785_000_000_000 + random.below(1_000_000_000));
    let disk = PlayedDisk::new(random.next());
    let server = Server {
        wall: wall_base,
        environments: Vec::new(),
        proxy_key: scenario.has_discovery.then(|| "proxy-secret".to_owned()),
        fault: None,
        retry_after: scenario.retry_after,
        uses_etags: scenario.uses_etags,
        is_paged: scenario.is_paged,
        random: Random::new(random.next()),
        polls: BTreeMap::new(),
        offences: Vec::new(),
        events: BTreeMap::new(),
        evaluations: BTreeMap::new(),
        usage: 0,
        traits: BTreeMap::new(),
        trait_arrivals: Vec::new(),
        seen: BTreeSet::new(),
        repeated: 0,
    };
    let config = scenario.config.clone();
    let environments = scenario.configured + usize::from(scenario.has_discovery);
    let mut world = World {
        now: Duration::ZERO,
        base: Instant::now(),
        wall_base,
        wall_shift: 0,
        network: PlayedNetwork::new(server, disk.clone()),
        disk,
        model: Model::new(is_traced),
        log,
        process: None,
        config,
        callers: Vec::new(),
        happenings: BTreeMap::new(),
        next: 0,
        seed: random.next(),
        events: 0,
        calm_steps: 0,
        next_event: 1,
        is_quiet: false,
        rotations: vec![vec![0]; environments],
        recent: Vec::new(),
        pairs: BTreeSet::new(),
        kills: 0,
        power_losses: Vec::new(),
        disk_fault: None,
        next_caller: 1,
        next_text: 1,
        unanswered: 0,
        unanswered_counts: 0,
        server_key_changed: Duration::ZERO,
        usage_by: None,
        synced_until: Duration::ZERO,
        started_at: Duration::ZERO,
        scenario,
        random,
    };
    clock::release();
    world.run();
    clock::release();
    let World { mut model, events, now, pairs, kills, .. } = world;
    Outcome {
        hash: model.hash,
        trace: model.trace.take().unwrap_or_default(),
        answers: model.answers,
        offences: model.offences,
        events,
        virtual_time: now,
        pairs,
        kills,
    }
}

macro_rules! shared {
    ($world:expr) => {
        &mut Shared {
            now: $world.now,
            network: &$world.network,
            disk: &$world.disk,
            model: &mut $world.model,
            log: $world.log,
        }
    };
}

impl World<'_> {
    fn set_clock(&mut self) {
        let wall = self.wall_base + self.now;
        self.network.server().wall = wall;
        let shift = Duration::from_secs(self.wall_shift.unsigned_abs());
        let wall = if self.wall_shift < 0 { wall - shift } else { wall + shift };
        clock::fix(self.base + self.now, wall, self.seed);
    }

    fn add(&mut self, at: Duration, happening: Happening) {
        self.next += 1;
        self.happenings.insert((at, self.next), happening);
    }

    fn run(&mut self) {
        self.set_clock();
        for environment in 0..self.rotations.len() {
            let is_discovered = environment >= self.scenario.configured;
            let client_side_key = client_key(environment);
            let key = server_key(environment, 0);
            self.model.owner(&key, &client_side_key);
            self.network.server().environments.push(PlayedEnvironment {
                client_side_key,
                server_side_keys: vec![key],
                expiring: Vec::new(),
                is_discovered,
                versions: Vec::new(),
            });
            self.edit(environment, true);
        }
        for (at, happening) in std::mem::take(&mut self.scenario.happenings) {
            self.add(at, happening);
        }
        self.start();
        while let Some(at) = self.due() {
            if at > self.scenario.end {
                if self.events >= EVENTS_MIN {
                    break;
                }
                self.scenario.end = at + self.config.api_poll_frequency;
            }
            self.now = self.now.max(at);
            self.set_clock();
            self.step();
            if !self.model.offences.is_empty() {
                return;
            }
        }
        self.now = self.scenario.end;
        self.set_clock();
        self.finish();
    }

    fn due(&self) -> Option<Duration> {
        let process = self.process.as_ref().map(|process| process.due());
        let happening = self.happenings.keys().next().map(|(at, _)| *at);
        let callers = self.callers.iter().filter_map(|caller| caller.script.front().map(|(at, _)| *at));
        callers.chain(process).chain(happening).min()
    }

    fn step(&mut self) {
        let mut is_probed = false;
        if let Some((&place, _)) = self.happenings.iter().next()
            && place.0 <= self.now
        {
            let happening = self.happenings.remove(&place).expect("it was there");
            self.events += 1;
            self.happen(&happening);
            is_probed = true;
            self.calm_steps = 0;
        } else if let Some(index) = self
            .callers
            .iter()
            .position(|caller| caller.script.front().is_some_and(|(at, _)| *at <= self.now))
        {
            self.events += 1;
            self.act(index);
        } else if let Some(mut process) = self.process.take() {
            let is_main = process.step(shared!(self));
            self.process = Some(process);
            self.events += u64::from(is_main);
            self.calm_steps += u64::from(is_main);
            is_probed = is_main;
        }
        self.edit_while_fetching();
        self.settle();
        if is_probed {
            self.probe();
        }
        self.check_arrivals();
        self.model.check_polls(self.now);
    }

    /// Documents are edited right before upstream serves a poll, and right after it.
    fn edit_while_fetching(&mut self) {
        let Some(process) = &mut self.process else { return };
        for (at, key) in std::mem::take(&mut process.fetches) {
            let environment = (0..self.rotations.len()).find(|environment| client_key(*environment) == key);
            let Some(environment) = environment.filter(|_| !self.is_quiet) else { continue };
            let before = at.saturating_sub(Duration::from_millis(self.random.below(20))).max(self.now);
            let after = at + Duration::from_millis(self.random.between(1, 30));
            for at in [before, after] {
                self.add(at, Happening::EditWhileFetching { environment });
            }
        }
    }

    /// What was erased is not forwarded any more.
    fn check_arrivals(&mut self) {
        let arrivals = std::mem::take(&mut self.network.server().trait_arrivals);
        for arrival in arrivals {
            self.model.note(self.now, &format_args!("arrived {arrival:?}"));
            if let Err(wrong) = self.model.traits.arrived(arrival, self.now) {
                self.model.offend(wrong);
            }
        }
    }

    /// Lets all connections run until they wait, and handles the end of the process.
    fn settle(&mut self) {
        loop {
            let mut has_run = false;
            self.process.iter().for_each(|process| process.end_turns());
            self.serve_passed();
            for index in 0..self.callers.len() {
                if self.callers[index].caller.run() {
                    has_run = true;
                    let reactor = self.callers[index].reactor;
                    if let Some(process) = &mut self.process {
                        process.used(reactor, self.now);
                    }
                    self.read(index);
                }
            }
            if !has_run {
                break;
            }
        }
        self.check_callers();
        if self.disk.is_cut() {
            self.end_process(false);
            let pause = Duration::from_millis(self.random.between(20, 30_000));
            self.add(self.now + pause, Happening::Start);
        }
        self.drain();
    }

    /// Reactors serve what others have passed on to them.
    fn serve_passed(&mut self) {
        let Some(process) = &mut self.process else { return };
        for (index, number) in std::mem::take(&mut process.passed) {
            let played = self.callers.iter_mut().find(|played| played.number == number);
            let reactor = process.reactors[index].as_ref();
            if let (Some(played), Some(reactor)) = (played, reactor) {
                played.reactor = index;
                played.caller.serve(&reactor.reactor);
            }
        }
    }

    fn drain(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        for index in 0..process.reactors.len() {
            if process.has_drained(index, self.now) {
                let is_its = |played: &PlayedCaller| played.reactor == index && played.caller.is_served();
                let (ended, left) = std::mem::take(&mut self.callers).into_iter().partition(is_its);
                self.callers = left;
                let ended: Vec<PlayedCaller> = ended;
                for mut played in ended {
                    played.caller.abort();
                    played.caller.waiting.iter().for_each(|sent| self.unanswered(&sent.what, index));
                }
                process.end_reactor(index, shared!(self));
            }
        }
        let has_exited = process.exit.is_some();
        let stopping = process.stopping;
        self.process = Some(process);
        if has_exited {
            let lost = self.callers.iter().find(|played| !played.caller.is_served());
            if let Some(played) = lost.filter(|played| !played.caller.waiting.is_empty()) {
                self.model.offend(format!("a passed connection was not served: {:?}", played.caller.waiting));
            }
            if stopping.is_none() {
                self.model.offend("the process exited without a signal");
            }
            self.model.note(self.now, &"exited");
            self.end_process(true);
            let pause = Duration::from_millis(self.random.between(20, 20_000));
            self.add(self.now + pause, Happening::Start);
            return;
        }
        let server = &self.config.server;
        let time_max = server.shutdown_delay + server.shutdown_grace + EXIT_TIME;
        if stopping.is_some_and(|at| self.now > at + time_max) {
            self.model.offend("the process does not end");
        }
    }

    /// The process has ended; `is_graceful`: it has exited.
    fn end_process(&mut self, mut is_graceful: bool) {
        for mut played in std::mem::take(&mut self.callers) {
            for sent in std::mem::take(&mut played.caller.waiting) {
                self.unanswered(&sent.what, played.reactor);
            }
            played.caller.abort();
        }
        self.kills += u64::from(!is_graceful);
        self.note_synced();
        match self.process.take() {
            // What a killed process does not do any more, such as closing its files.
            process if !is_graceful => {
                self.disk.end_process();
                drop(process);
            }
            process => {
                if let Some(mut process) = process {
                    process.stop_traits();
                }
                is_graceful = !self.disk.is_cut();
                self.check_arrivals();
                self.disk.end_process();
            }
        }
        let until = |loss: Duration| self.survives(loss, is_graceful);
        let was_synced = self.synced_until > self.started_at;
        self.model.traits.ended(until(STORE_LOSS), until(JOURNAL_LOSS), was_synced);
        self.model.ended();
        self.model.note(self.now, &"ended");
    }

    /// A request that has no answer: it was handled, or it was not.
    fn unanswered(&mut self, ask: &Ask, reactor: usize) {
        self.unanswered += 1;
        let moment = Moment { reactor, sent_at: self.now, now: self.now };
        match ask {
            Ask::Analytics { count, .. } => self.unanswered_counts += count,
            Ask::Traits { key, ask, .. } => self.model.traits.unanswered(key, ask, moment),
            Ask::Identity { key, identifier, age, .. } => {
                let sent = vec![("age".to_owned(), (*age).into())];
                let ask = TraitAsk::Evaluate { identifier: identifier.clone(), sent, is_transient: false };
                self.model.traits.unanswered(key, &ask, moment);
            }
            _ => {}
        }
    }

    /// Up to when what was written survives the end of the process, `loss` before a kill; `None`: everything.
    fn survives(&self, loss: Duration, is_graceful: bool) -> Option<Duration> {
        // After a fault of the disk everything is written within this time.
        let settled = loss + Duration::from_secs(3);
        let is_over = |end: Option<Duration>| end.is_some_and(|end| end + settled < self.now);
        match self.disk_fault.filter(|(_, end)| !is_over(*end)) {
            Some((begin, _)) => Some(begin.saturating_sub(loss)),
            None => (!is_graceful).then(|| self.now.saturating_sub(loss)),
        }
    }

    fn start(&mut self) {
        if self.process.is_some() {
            return;
        }
        let seed = self.random.next();
        self.started_at = self.now;
        self.model.note(self.now, &"start");
        self.model.begin(&self.config, self.now);
        self.model.traits.begin(&self.config, self.disk.is_well());
        let process = Process::start(self.config.clone(), seed, shared!(self));
        self.process = Some(Box::new(process));
        self.settle();
    }

    // --- what happens ---

    fn happen(&mut self, happening: &Happening) {
        self.model.note(self.now, &format_args!("{happening:?}"));
        self.pair(happening);
        match happening {
            Happening::Edit { environment, moves_time, follow_up } => {
                self.edit(*environment, *moves_time);
                if *follow_up {
                    let left = 999 - self.millis_of_second();
                    let at = self.now + Duration::from_millis(self.random.between(0, left));
                    let again =
                        Happening::Edit { environment: *environment, moves_time: true, follow_up: false };
                    self.add(at, again);
                }
            }
            Happening::FaultBegins(fault) => self.set_fault(Some(*fault)),
            Happening::FaultEnds => self.set_fault(None),
            Happening::Disk(mode) => self.set_disk(*mode),
            Happening::EditWhileFetching { environment } => self.edit(*environment, true),
            Happening::Caller(kind) => self.call(*kind),
            Happening::Reload => self.reload(),
            Happening::Stop => self.stop(),
            Happening::StopAgain => {
                if let Some(mut process) = self.process.take() {
                    if process.stopping.is_some() {
                        process.dispatch(Event::Signal(Signal::Stop), shared!(self));
                    }
                    self.process = Some(process);
                }
            }
            Happening::Kill { steps: Some(steps) } => self.disk.kill_after(*steps),
            Happening::Kill { steps: None } => self.kill(false),
            Happening::PowerLoss => self.kill(true),
            Happening::Start => self.start(),
            Happening::WallJump(seconds) => {
                self.wall_shift += seconds;
                self.set_clock();
            }
            Happening::RotateKey { environment } => self.rotate(*environment),
            Happening::RevokeKey { environment } => self.revoke(*environment),
            Happening::Quiet => self.quieten(),
            Happening::CountUsage => self.usage_by = Some(self.model.usage),
        }
    }

    fn set_fault(&mut self, fault: Option<Fault>) {
        let before = std::mem::replace(&mut self.network.server().fault, fault);
        if fault == Some(Fault::NotModified) {
            self.model.lies_until = Duration::MAX;
        } else if before == Some(Fault::NotModified) {
            self.model.lies_until = self.now;
        }
    }

    fn set_disk(&mut self, mode: DiskMode) {
        self.note_synced();
        self.disk.set_mode(mode);
        let is_well = mode == DiskMode::Well;
        self.disk_fault = match self.disk_fault {
            Some((begin, None)) if is_well => Some((begin, Some(self.now))),
            None if is_well => None,
            // Faults that follow each other are one.
            Some((begin, end)) if end.is_none_or(|end| end + Duration::from_secs(10) > self.now) => {
                Some((begin, end.filter(|_| is_well)))
            }
            Some(last) if is_well => Some(last),
            _ => Some((self.now, None)),
        };
        if let Some(process) = self.process.as_mut().filter(|_| is_well) {
            process.disk_changed(self.now);
        }
    }

    /// Notes which disturbances come together.
    fn pair(&mut self, happening: &Happening) {
        let Some(name) = happening.disturbance() else { return };
        let within = self.config.api_poll_frequency * 2;
        let now = self.now;
        self.recent.retain(|(at, _)| *at + within >= now);
        for (_, other) in &self.recent {
            let pair =
                if *other < name { (other.clone(), name.clone()) } else { (name.clone(), other.clone()) };
            self.pairs.insert(pair);
        }
        self.recent.push((now, name));
    }

    fn millis_of_second(&self) -> u64 {
        let wall = self.wall_base + self.now;
        u64::from(wall.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_millis())
    }

    fn edit(&mut self, environment: usize, moves_time: bool) {
        let wall = whole_millis(self.wall_base + self.now);
        let key = client_key(environment);
        let mut server = self.network.server();
        let played = &mut server.environments[environment];
        let before = played.versions.last();
        let number = before.map_or(1, |version| version.number + 1);
        let updated_at = before.filter(|_| !moves_time).map_or(wall, |version| version.updated_at);
        let bytes = Arc::new(document(&key, number, updated_at));
        let version = Version { number, updated_at, bytes };
        played.versions.push(version.clone());
        drop(server);
        self.model.edited(&key, &version, moves_time, self.now);
        self.announce(&key, &version);
    }

    fn announce(&mut self, key: &str, version: &Version) {
        let seconds = version.updated_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let Some(process) = &mut self.process else { return };
        let id = process.streams.iter().find(|(_, other)| *other == key).map(|(id, _)| *id);
        let Some(id) = id.filter(|_| self.random.chance(80)) else { return };
        for _ in 0..self.random.between(1, 2) {
            let at = self.now + Duration::from_millis(self.random.below(3000));
            process.deliver(at, Event::Announced { id, updated_at: seconds });
        }
    }

    fn reload(&mut self) {
        let mut config = self.config.clone();
        match self.random.below(4) {
            0 => {
                let factor = *self.random.pick(&[0.5, 2.0]);
                let interval = config.api_poll_frequency.mul_f64(factor);
                config.api_poll_frequency = interval.clamp(Duration::from_secs(2), Duration::from_secs(900));
            }
            1 => config.health_check.ready_from_cache ^= true,
            2 => config.analytics.flush_interval = config.analytics.flush_interval.mul_f64(0.7),
            _ => {}
        }
        config.environments = (0..self.scenario.configured)
            .map(|environment| environment_config(environment, &self.rotations[environment]))
            .collect();
        if config.environments != self.config.environments {
            self.server_key_changed = self.now;
        }
        // A process that has ended, or ends, leaves the new configuration to the next one.
        self.config = config.clone();
        if let Some(mut process) = self.process.take_if(|process| process.stopping.is_none()) {
            process.next_config = Some(config);
            process.dispatch(Event::Signal(Signal::Reload), shared!(self));
            process.tick(shared!(self));
            self.process = Some(process);
        }
    }

    fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        if process.stopping.is_none() {
            process.stopping = Some(self.now);
            self.model.draining(self.now);
            process.dispatch(Event::Signal(Signal::Stop), shared!(self));
            process.tick(shared!(self));
        }
        self.process = Some(process);
    }

    fn kill(&mut self, loses_power: bool) {
        if loses_power {
            self.power_losses.push(self.now);
        }
        if self.process.is_none() && !loses_power {
            return;
        }
        let was_running = self.process.is_some();
        if loses_power {
            self.model.traits.lost_power();
        }
        if was_running {
            self.end_process(false);
        }
        if loses_power {
            self.disk.lose_power();
            self.lose_unsynced();
        }
        if was_running {
            let pause = Duration::from_millis(self.random.between(20, 30_000));
            self.add(self.now + pause, Happening::Start);
        }
    }

    /// With `events.fsync: second`, a loss of power may lose the events of the last second, those of the last second
    /// of a process that was killed until the next one has synced them, and what a failing disk did not sync.
    fn lose_unsynced(&mut self) {
        if self.config.events.fsync == EventsFsync::Second {
            let until = self.synced_until;
            self.model.events.retain(|_, at| *at < until);
        }
    }

    /// Called before the process ends and before the disk begins to fail.
    fn note_synced(&mut self) {
        let is_well_since = match self.disk_fault {
            Some((_, None)) => return,
            Some((_, Some(end))) => end + REOPEN_TIME,
            None => Duration::ZERO,
        };
        if self.process.is_some() && is_well_since.max(self.started_at) + UNSYNCED_TIME <= self.now {
            self.synced_until = self.now - UNSYNCED_TIME;
        }
    }

    fn rotate(&mut self, environment: usize) {
        if environment >= self.rotations.len() {
            return;
        }
        let rotation = self.rotations[environment].iter().max().map_or(0, |last| last + 1);
        let key = server_key(environment, rotation);
        self.model.owner(&key, &client_key(environment));
        self.network.server().environments[environment].server_side_keys.push(key);
        self.rotations[environment].push(rotation);
        // The operator adds the new key; later the old one is revoked.
        let reload = self.now + Duration::from_millis(self.random.between(10, 60_000));
        self.add(reload, Happening::Reload);
        let revoke = reload + Duration::from_millis(self.random.between(10, 60_000));
        self.add(revoke, Happening::RevokeKey { environment });
    }

    fn revoke(&mut self, environment: usize) {
        if self.rotations[environment].len() > 1 {
            let old = self.rotations[environment].remove(0);
            let old = server_key(environment, old);
            self.network.server().environments[environment].server_side_keys.retain(|key| *key != old);
        }
    }

    /// Everything works from now on.
    fn quieten(&mut self) {
        self.is_quiet = true;
        self.happenings.clear();
        self.set_fault(None);
        self.set_disk(DiskMode::Well);
        self.disk.spare();
        self.start();
        self.reload();
        let last = self.config.usage_flush_interval * 2 + Duration::from_secs(120);
        self.add(self.scenario.end.saturating_sub(last), Happening::CountUsage);
        if self.process.as_ref().is_some_and(|process| process.stopping.is_some()) {
            // It ends first, and another one starts.
            self.add(self.now + Duration::from_secs(40), Happening::Start);
            self.add(self.now + Duration::from_secs(41), Happening::Reload);
        }
    }

    // --- callers ---

    fn open_reactor(&mut self) -> Option<usize> {
        let process = self.process.as_ref()?;
        let accepts = |index: &usize| {
            process.reactors[*index].as_ref().is_some_and(|reactor| {
                reactor.draining_since.is_none() && reactor.reactor.worker_state.lease.borrow().is_some()
            })
        };
        let open: Vec<usize> = (0..process.reactors.len()).filter(accepts).collect();
        (!open.is_empty()).then(|| *self.random.pick(&open))
    }

    /// A connection and its reactor. With a `number` the reactor may pass it on to another one.
    fn connect(
        &mut self,
        piece: usize,
        window: usize,
        is_http2: bool,
        number: Option<u64>,
    ) -> Option<(Caller<Ask>, usize)> {
        let reactor = self.open_reactor()?;
        let process = self.process.as_mut()?;
        let mut caller = Caller::connect(piece, window, is_http2, self.now);
        let before = process.reactors[reactor].as_ref()?.reactor.connections.len();
        let is_passed = process.accept(reactor, number);
        if self.config.server.spread && number.is_some() && !process.is_spread(reactor, before, is_passed) {
            self.model.offend(format!("reactor {reactor} has {before} connections, and keeps one more"));
        }
        if !is_passed {
            caller.serve(&process.reactors[reactor].as_ref()?.reactor);
        }
        process.used(reactor, self.now);
        Some((caller, reactor))
    }

    /// A few requests through a connection of their own, at each step.
    fn probe(&mut self) {
        let piece = self.random.between(1, 6000) as usize;
        let seldom = if self.calm_steps < CALM_STEPS { 1 } else { 5 };
        if !self.random.chance(self.scenario.probes / seldom) {
            return;
        }
        let Some((mut caller, reactor)) = self.connect(piece, usize::MAX, false, None) else { return };
        let is_counted = self.scenario.has_discovery && self.usage_by.is_some();
        let ask = if is_counted { Ask::UnknownKey } else { self.draw_ask(true) };
        let mut requests = vec![Ask::Readiness, ask];
        if self.random.chance(10) {
            requests.push(Ask::Liveness);
        }
        for ask in requests {
            let bytes = encode(&mut caller, &ask, &self.config);
            caller.send_bytes(&bytes);
            let stream = caller.last_stream();
            caller.sent(ask, stream, self.now);
        }
        while caller.run() {
            self.process.iter().for_each(|process| process.end_turns());
        }
        // What they have written is merged soon, as that of other callers.
        if let Some(process) = &mut self.process {
            process.used(reactor, self.now);
        }
        let answers = caller.answers();
        self.judge(answers, reactor, self.now);
        if !caller.waiting.is_empty() {
            self.model.offend(format!("a probe is not answered: {:?}", caller.waiting));
        }
        caller.close();
        caller.run();
        if !caller.has_ended() {
            self.model.offend("a connection that its client closed goes on");
        }
    }

    fn draw_ask(&mut self, is_probe: bool) -> Ask {
        let environment = self.random.below(self.rotations.len() as u64) as usize;
        let key = client_key(environment);
        // Discovery and rotation change the keys of servers.
        let is_settled = environment < self.scenario.configured && self.server_key_changed + LAG < self.now;
        let is_server = is_settled && self.random.chance(35);
        // Each request of an identity commits to the file of traits: probes are seldom of identities then.
        let has_file = self.config.traits.store == TraitsStore::Disk;
        let is_costly = is_probe && has_file && self.random.chance(75);
        if self.model.traits.has_store() && !is_costly && self.random.chance(15) {
            let identifier = format!("t{}", self.random.below(3));
            return Ask::Traits { key, is_server, ask: TraitAsk::Get { identifier } };
        }
        match self.random.below(if is_probe { 6 } else { 9 }) {
            0..=2 => Ask::Flags { key, is_server },
            3 | 4 if !is_costly => {
                let number = self.random.below(9);
                let identifier = if self.random.chance(20) { "vip".into() } else { format!("u{number}") };
                // Most send the age that is kept already.
                let age = if self.random.chance(85) { 14 + number } else { self.random.between(10, 25) };
                Ask::Identity { key, is_server, identifier, age }
            }
            5 if is_settled => Ask::Document { key },
            6 => Ask::UnknownKey,
            7 => Ask::Readiness,
            _ => Ask::Flags { key, is_server: false },
        }
    }

    fn call(&mut self, kind: CallerKind) {
        let is_http2 = kind == CallerKind::Http2 || kind == CallerKind::Events && self.random.chance(30);
        let piece = if self.random.chance(30) { 1 + self.random.below(50) } else { 100_000 } as usize;
        let window = if kind == CallerKind::SlowReader { 60 } else { usize::MAX };
        let number = self.next_caller;
        self.next_caller += 1;
        let Some((mut caller, reactor)) = self.connect(piece, window, is_http2, Some(number)) else { return };
        let (mut script, mut stream_of) = (VecDeque::new(), None);
        let mut at = self.now;
        let count = match kind {
            CallerKind::Stream | CallerKind::SlowSender | CallerKind::Garbage => 1,
            _ => self.random.between(1, 4),
        };
        let reads_own = kind == CallerKind::Traits && self.random.chance(40);
        let mut written = None;
        for _ in 0..count {
            let ask = match kind {
                CallerKind::Events => self.draw_events(),
                CallerKind::Traits if self.model.traits.has_store() => {
                    let ask = written.take().unwrap_or_else(|| self.draw_traits());
                    written = own_read(&ask).filter(|_| reads_own);
                    ask
                }
                CallerKind::Analytics => {
                    let environment = self.random.below(self.scenario.configured as u64) as usize;
                    Ask::Analytics { key: client_key(environment), count: self.random.between(1, 50) }
                }
                CallerKind::Stream => {
                    let environment = self.random.below(self.rotations.len() as u64) as usize;
                    stream_of = Some(client_key(environment));
                    Ask::Stream { key: client_key(environment) }
                }
                // Its answer arrives long after it was handled: the model would apply its write too late, and judge
                // what it read by what was written since.
                CallerKind::SlowReader => match self.draw_ask(false) {
                    Ask::Identity { key, is_server, .. } | Ask::Traits { key, is_server, .. } => {
                        Ask::Flags { key, is_server }
                    }
                    ask => ask,
                },
                _ => self.draw_ask(false),
            };
            let bytes = match kind {
                CallerKind::Garbage => (0..40).map(|_| self.random.below(256) as u8).collect(),
                _ => encode(&mut caller, &ask, &self.config),
            };
            let stream = caller.last_stream();
            let pieces = self.cut(bytes, kind);
            let last = pieces.len() - 1;
            for (number, piece) in pieces.into_iter().enumerate() {
                let is_sent = number == last && !matches!(kind, CallerKind::SlowSender | CallerKind::Garbage);
                script.push_back((at, CallerStep::Bytes(piece, is_sent.then(|| (ask.clone(), stream)))));
                if !reads_own {
                    at += Duration::from_millis(self.random.below(400));
                }
            }
            if kind != CallerKind::Pipelined && written.is_none() {
                at += Duration::from_millis(self.random.below(3000));
            }
        }
        match kind {
            CallerKind::SlowReader if self.random.chance(60) => {
                for _ in 0..self.random.between(5, 60) {
                    at += Duration::from_millis(self.random.below(900));
                    script.push_back((at, CallerStep::Read(self.random.between(1, 900) as usize)));
                }
                script.push_back((at, CallerStep::Read(1 << 20)));
            }
            CallerKind::Stream => {
                at += Duration::from_secs(self.random.between(5, 200));
                script.push_back((at, CallerStep::Close));
            }
            CallerKind::Quitter => {
                script.truncate(1);
                script.push_back((self.now + Duration::from_millis(1), CallerStep::Close));
            }
            _ => {}
        }
        self.callers.push(PlayedCaller { caller, reactor, number, script, kind, stream_of });
    }

    /// Cuts bytes in pieces; a slow sender never sends the last one.
    fn cut(&mut self, bytes: Vec<u8>, kind: CallerKind) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        for _ in 0..self.random.below(4) {
            let at = self.random.below(rest.len() as u64) as usize;
            let tail = rest.split_off(at);
            pieces.push(std::mem::replace(&mut rest, tail));
        }
        if kind == CallerKind::SlowSender {
            rest.pop();
        }
        pieces.push(rest);
        pieces
    }

    fn draw_traits(&mut self) -> Ask {
        let environment = self.random.below(self.rotations.len() as u64) as usize;
        let key = client_key(environment);
        let is_settled = environment < self.scenario.configured && self.server_key_changed + LAG < self.now;
        let identifier = format!("t{}", self.random.below(3));
        let (name, value) = self.draw_trait();
        let ask = match self.random.below(if is_settled { 16 } else { 14 }) {
            0..=3 => {
                let mut sent = vec![(name, value)];
                let (name, value) = self.draw_trait();
                if name != sent[0].0 {
                    sent.push((name, value));
                }
                TraitAsk::Evaluate { identifier, sent, is_transient: self.random.chance(15) }
            }
            4..=6 => TraitAsk::Get { identifier },
            7 | 8 if !value.is_null() => TraitAsk::Set { identifier, key: name, value },
            7..=9 => {
                let other = format!("t{}", self.random.below(3));
                let (second, second_value) = self.draw_trait();
                let mut items = vec![(identifier.clone(), name.clone(), value)];
                if other != identifier || second != name {
                    items.push((other, second, second_value));
                }
                TraitAsk::Bulk { items }
            }
            14 => TraitAsk::Erase { identifier },
            15 => TraitAsk::Export { identifier },
            _ => TraitAsk::Add { identifier, amount: self.random.between(1, 9) as i64 },
        };
        let is_server = ask.is_of_servers() || is_settled && self.random.chance(35);
        Ask::Traits { key, is_server, ask }
    }

    /// A key and its value: each text is written once. Null deletes.
    fn draw_trait(&mut self) -> (String, serde_json::Value) {
        let is_deleted = self.random.chance(20);
        if self.random.chance(40) {
            let age = self.random.between(10, 25);
            return ("age".into(), if is_deleted { serde_json::Value::Null } else { age.into() });
        }
        self.next_text += 1;
        let text = format!("plan-{}", self.next_text);
        ("plan".into(), if is_deleted { serde_json::Value::Null } else { text.into() })
    }

    fn draw_events(&mut self) -> Ask {
        let environment = self.random.below(self.scenario.configured as u64) as usize;
        let count = self.random.between(1, 6);
        let numbers = (self.next_event..self.next_event + count).collect();
        self.next_event += count;
        Ask::Events { key: client_key(environment), numbers }
    }

    fn act(&mut self, index: usize) {
        let played = &mut self.callers[index];
        let Some((_, step)) = played.script.pop_front() else { return };
        match step {
            CallerStep::Bytes(bytes, ask) => {
                if played.caller.is_closed() || played.caller.is_closed_by_client() {
                    return;
                }
                played.caller.send_part(&bytes, ask.is_some());
                if let Some((ask, stream)) = ask {
                    played.caller.sent(ask, stream, self.now);
                }
            }
            CallerStep::Read(bytes) => played.caller.read_more(bytes),
            CallerStep::Close => {
                played.caller.close();
                if let (Some(key), Some(stream)) = (&played.stream_of, &played.caller.stream) {
                    let text = String::from_utf8_lossy(stream);
                    self.model.check_stream(key, &text, played.caller.opened, self.now);
                }
            }
        }
    }

    fn read(&mut self, index: usize) {
        let reactor = self.callers[index].reactor;
        let answers = self.callers[index].caller.answers();
        if self.callers[index].kind == CallerKind::Garbage {
            return;
        }
        // All its requests were written when it connected.
        let written = self.callers[index].caller.opened;
        self.judge(answers, reactor, written);
    }

    fn judge(
        &mut self,
        answers: Result<Vec<(crate::caller::Sent<Ask>, crate::caller::Answer)>, String>,
        reactor: usize,
        written: Duration,
    ) {
        match answers {
            Ok(answers) => {
                for (sent, answer) in answers {
                    // Its key may have been replaced since it was written. While the list of keys is not read,
                    // the proxy cannot say that a key is unknown.
                    let has_old_key = sent.what.has_server_key() && written <= self.server_key_changed;
                    let is_not_loaded =
                        answer.status == 502 && answer.body.windows(13).any(|w| w == b"key not known");
                    if has_old_key && (answer.status == 401 || is_not_loaded) {
                        continue;
                    }
                    let moment = Moment { reactor, sent_at: sent.at, now: self.now };
                    self.model.check(&sent.what, &answer, moment, self.config.events.enabled);
                    self.model.check_secret(&sent.what, &answer);
                }
            }
            Err(error) => self.model.offend(format!("a caller cannot read its answer: {error}")),
        }
    }

    /// No request waits for ever, and no answer is lost.
    fn check_callers(&mut self) {
        let now = self.now;
        let (mut offences, mut lost) = (Vec::new(), Vec::new());
        self.callers.retain_mut(|played| {
            let caller = &mut played.caller;
            let is_patient = caller.is_stalled() || caller.is_closed_by_client();
            let waits = caller.waiting.iter().find(|sent| now > sent.at + ANSWER_TIME);
            if let Some(sent) = waits.filter(|_| !is_patient && !caller.is_closed()) {
                offences.push(format!("no answer since {:.3} to {:?}", sent.at.as_secs_f64(), sent.what));
            }
            if caller.is_closed() && !caller.waiting.is_empty() {
                let is_cut = is_patient || caller.is_last_answered || played.kind == CallerKind::SlowReader;
                let is_late = |sent: &crate::caller::Sent<Ask>| sent.at + Duration::from_millis(1) >= now;
                if !is_cut && !caller.waiting.iter().all(is_late) {
                    offences.push(format!("the connection closes without an answer to {:?}", caller.waiting));
                }
                lost.extend(caller.waiting.drain(..).map(|sent| (sent.what, played.reactor)));
            }
            let is_over = now > caller.opened + IDLE_TIME && caller.stream.is_none() && !caller.has_ended();
            if is_over && played.script.is_empty() {
                offences.push(format!("a connection of {:?} is never closed", played.kind));
            }
            !caller.has_ended()
        });
        lost.iter().for_each(|(ask, reactor)| self.unanswered(ask, *reactor));
        offences.into_iter().for_each(|offence| self.model.offend(offence));
    }

    // --- the end ---

    fn finish(&mut self) {
        let Some(mut process) = self.process.take() else {
            return self.model.offend("no process is running at the end");
        };
        process.tick(shared!(self));
        let living = process.snapshots.iter().filter(|snapshot| snapshot.strong_count() > 0).count();
        if living > 1 {
            self.model.offend(format!("{living} snapshots are in memory at the end"));
        }
        if process.delivery.has_older_snapshots() {
            self.model.offend("an older snapshot was not returned");
        }
        self.check_stored(&process);
        if let Some(since) = process.traits_unwritten_since().filter(|at| *at + UNWRITTEN_TIME < self.now) {
            self.model.offend(format!("traits are not on the disk since {:.3}", since.as_secs_f64()));
        }
        self.process = Some(process);
        let network = self.network.clone();
        let server = network.server();
        let is_known = |key: &str| !self.model.was_removed(key);
        let round = self.config.traits.forward_interval.mul_f64(1.2) + Duration::from_secs(30);
        let settled = self.now.saturating_sub(round);
        let wrong = self.model.traits.check_end(settled, &server.traits, is_known);
        self.model.offences.extend(wrong);
        self.model.offences.extend(server.offences.iter().cloned());
        self.model.check_end(&server.environments, self.now);
        let lost: Vec<u64> =
            self.model.events.keys().filter(|n| !server.events.contains_key(n)).copied().collect();
        if !lost.is_empty() {
            let count = self.model.events.len();
            self.model.offend(format!("{} of {count} accepted events are lost: {lost:?}", lost.len()));
        }
        let is_disk_sound = self.disk.failures() == 0 && self.power_losses.is_empty();
        let repeated = server.events.iter().filter(|(_, times)| **times > 1).count();
        if repeated > 0 && is_disk_sound {
            self.model.offend(format!("{repeated} events were delivered in two batches"));
        }
        self.check_counts(&server, is_disk_sound);
    }

    /// The stored documents are those that are served.
    fn check_stored(&mut self, process: &Process) {
        for environment in 0..self.rotations.len() {
            let key = client_key(environment);
            if let Some(stored) = process.stored_version(&key) {
                self.model.check_stored(&key, stored.map(|found| found.map(|kept| kept.digest)));
            }
        }
    }

    fn check_counts(&mut self, server: &Server, is_disk_sound: bool) {
        let accepted: u64 = self.model.evaluations.values().sum();
        let sent: u64 = server.evaluations.values().sum();
        if sent > accepted + self.unanswered_counts {
            self.model.offend(format!("{sent} evaluations were sent, {accepted} were accepted"));
        }
        // A kill loses what was not uploaded; without cache_dir so does an exit while upstream fails.
        let is_kept = self.kills == 0 && is_disk_sound && self.config.cache_dir.is_some();
        if is_kept && sent < accepted {
            self.model.offend(format!("{accepted} evaluations were accepted, {sent} were sent"));
        }
        if !self.scenario.has_discovery {
            return;
        }
        if server.usage > self.model.usage + self.unanswered {
            let usage = self.model.usage;
            self.model.offend(format!("usage of {} was sent, {usage} were answered", server.usage));
        }
        let usage = self.usage_by.unwrap_or_default();
        if is_kept && server.usage < usage {
            self.model.offend(format!("usage of {usage} was answered, {} was sent", server.usage));
        }
    }
}

/// A request that reads what this one writes.
fn own_read(ask: &Ask) -> Option<Ask> {
    let Ask::Traits { key, is_server, ask } = ask else { return None };
    let identifier = match ask {
        TraitAsk::Evaluate { identifier, .. }
        | TraitAsk::Set { identifier, .. }
        | TraitAsk::Add { identifier, .. }
        | TraitAsk::Erase { identifier } => identifier.clone(),
        TraitAsk::Get { .. } | TraitAsk::Bulk { .. } | TraitAsk::Export { .. } => return None,
    };
    Some(Ask::Traits { key: key.clone(), is_server: *is_server, ask: TraitAsk::Get { identifier } })
}

/// The bytes of a request, with the server-side key of its environment in `config` if it is for servers.
fn encode(caller: &mut Caller<Ask>, ask: &Ask, config: &Config) -> Vec<u8> {
    let server = |key: &str| {
        let environment = config.environments.iter().find(|environment| environment.client_side_key == key);
        let secret = environment.and_then(|environment| environment.server_side_key.as_ref());
        secret.map(|secret| secret.expose().to_owned()).unwrap_or_default()
    };
    let with = |key: &str, is_server: bool| if is_server { server(key) } else { key.to_owned() };
    match ask {
        Ask::Flags { key, is_server } => {
            let key = with(key, *is_server);
            caller.encode("GET", "/api/v1/flags/", &[("x-environment-key", &key)], b"")
        }
        Ask::Identity { key, is_server, identifier, age } => {
            let body = format!(
                r#"{{"identifier":"{identifier}","traits":[{{"trait_key":"age","trait_value":{age}}}]}}"#
            );
            let key = with(key, *is_server);
            let fields = [("x-environment-key", key.as_str()), ("content-type", "application/json")];
            caller.encode("POST", "/api/v1/identities/", &fields, body.as_bytes())
        }
        Ask::Document { key } => {
            let key = server(key);
            caller.encode("GET", "/api/v1/environment-document/", &[("x-environment-key", &key)], b"")
        }
        Ask::Readiness => caller.encode("GET", "/proxy/health/readiness", &[], b""),
        Ask::Liveness => caller.encode("GET", "/proxy/health/liveness", &[], b""),
        Ask::UnknownKey => caller.encode("GET", "/api/v1/flags/", &[("x-environment-key", "unknown")], b""),
        Ask::Traits { key, is_server, ask } => {
            let key = with(key, *is_server);
            let (method, target, body) = ask.request();
            let fields = [("x-environment-key", key.as_str()), ("content-type", "application/json")];
            let fields = if body.is_empty() { &fields[..1] } else { &fields[..] };
            caller.encode(method, &target, fields, body.as_bytes())
        }
        Ask::Events { key, numbers } => {
            let event = |number: &u64| {
                format!(
                    r#"{{"event":"clicked","identifier":"u","timestamp":1785000000000,"metadata":{{"number":{number}}}}}"#
                )
            };
            let events: Vec<String> = numbers.iter().map(event).collect();
            let body = format!("{{\"events\":[{}]}}", events.join(","));
            let fields = [("x-environment-key", key.as_str()), ("content-type", "application/json")];
            caller.encode("POST", "/v1/events", &fields, body.as_bytes())
        }
        Ask::Analytics { key, count } => {
            let body = format!("{{\"version\":{count}}}");
            let fields = [("x-environment-key", key.as_str()), ("content-type", "application/json")];
            caller.encode("POST", "/api/v1/analytics/flags/", &fields, body.as_bytes())
        }
        Ask::Stream { key } => {
            let target = format!("/sse/environments/{key}/stream");
            caller.encode("GET", &target, &[("accept", "text/event-stream")], b"")
        }
    }
}
