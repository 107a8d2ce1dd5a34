//! What a seed plays: the settings, and what happens when.
use std::path::PathBuf;
use std::time::Duration;

use edge_proxy::config::{Config, EnvironmentConfig, EventsFsync, Inputs, Secret, TraitsStore, load};

use crate::disk::DiskMode;
use crate::process::CACHE_DIR;
use crate::random::Random;
use crate::upstream::{Fault, ORIGIN};

/// The shortest and the longest time that a seed plays.
const SHORTEST: Duration = Duration::from_secs(20 * 60);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Most faults last no longer.
const OUTAGE: Duration = Duration::from_secs(300);

/// What the callers of a connection do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerKind {
    /// A few requests, one after the other, in pieces.
    Plain,
    /// Requests that are sent without waiting for the answers.
    Pipelined,
    Http2,
    /// Events of an experiment.
    Events,
    Analytics,
    /// Kept traits.
    Traits,
    /// Never ends its head, or its body.
    SlowSender,
    /// Does not read, or a little at a time.
    SlowReader,
    Stream,
    /// Sends bytes that are not HTTP.
    Garbage,
    /// Goes away in the middle.
    Quitter,
}

impl CallerKind {
    pub const ALL: [Self; 11] = [
        Self::Plain,
        Self::Pipelined,
        Self::Http2,
        Self::Events,
        Self::Analytics,
        Self::Traits,
        Self::SlowSender,
        Self::SlowReader,
        Self::Stream,
        Self::Garbage,
        Self::Quitter,
    ];
}

/// Something that happens to the proxy.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// `same_second`: another edit follows in the same second. `moves_time`: as most edits do.
    Edit {
        environment: usize,
        moves_time: bool,
        follow_up: bool,
    },
    /// An edit at the moment in which upstream serves a poll.
    EditWhileFetching {
        environment: usize,
    },
    FaultBegins(Fault),
    FaultEnds,
    Disk(DiskMode),
    Caller(CallerKind),
    Reload,
    Stop,
    StopAgain,
    /// In the next disk step but this many; without `steps` immediately.
    Kill {
        steps: Option<u64>,
    },
    PowerLoss,
    Start,
    /// Seconds that the wall clock is set forward or back.
    WallJump(i64),
    RotateKey {
        environment: usize,
    },
    RevokeKey {
        environment: usize,
    },
    /// Everything works from now on.
    Quiet,
    /// What was used until now must be sent at the end.
    CountUsage,
}

impl Happening {
    /// The name in the table of pairs; `None` if it is not a disturbance.
    pub fn disturbance(&self) -> Option<String> {
        Some(match self {
            Self::FaultBegins(fault) => format!("{fault:?}"),
            Self::Disk(DiskMode::Well) => return None,
            Self::Disk(mode) => format!("Disk{mode:?}"),
            Self::Reload => "Reload".into(),
            Self::Stop => "Stop".into(),
            Self::Kill { .. } => "Kill".into(),
            Self::PowerLoss => "PowerLoss".into(),
            Self::WallJump(_) => "WallJump".into(),
            Self::RotateKey { .. } => "RotateKey".into(),
            Self::Edit { follow_up: true, .. } => "EditInSameSecond".into(),
            Self::EditWhileFetching { .. } => "EditWhileFetching".into(),
            _ => return None,
        })
    }
}

/// The names of all disturbances.
pub fn disturbances() -> Vec<String> {
    let more = [
        "DiskFull",
        "DiskFailing",
        "Reload",
        "Stop",
        "Kill",
        "PowerLoss",
        "WallJump",
        "RotateKey",
        "EditInSameSecond",
        "EditWhileFetching",
    ];
    Fault::ALL.iter().map(|fault| format!("{fault:?}")).chain(more.map(str::to_owned)).collect()
}

/// The plan of a seed.
#[derive(Debug)]
pub struct Scenario {
    pub config: Config,
    /// How many environments are configured; one more may be discovered.
    pub configured: usize,
    pub has_discovery: bool,
    pub uses_etags: bool,
    pub is_paged: bool,
    pub retry_after: u64,
    /// After how many of a hundred steps a caller probes.
    pub probes: u64,
    /// When nothing more happens.
    pub quiet_at: Duration,
    pub end: Duration,
    pub happenings: Vec<(Duration, Happening)>,
}

pub fn client_key(environment: usize) -> String {
    format!("client-{environment}")
}

pub fn server_key(environment: usize, rotation: usize) -> String {
    format!("ser.secret-{environment}-{rotation}")
}

pub fn environment_config(environment: usize, rotations: &[usize]) -> EnvironmentConfig {
    let mut keys = rotations.iter().map(|rotation| Secret::new(server_key(environment, *rotation)));
    EnvironmentConfig {
        client_side_key: client_key(environment),
        server_side_key: keys.next(),
        further_server_side_keys: keys.collect(),
        ..EnvironmentConfig::default()
    }
}

/// The defaults, without any file or variable.
pub fn defaults() -> Config {
    let inputs = Inputs { without_file: true, may_serve_nothing: true, ..Inputs::default() };
    load(&inputs).expect("the defaults").0
}

impl Scenario {
    pub fn new(defaults: &Config, random: &mut Random) -> Self {
        let ratio = LONGEST.as_secs_f64() / SHORTEST.as_secs_f64();
        let end = SHORTEST.mul_f64(ratio.powf(random.unit()));
        let seconds = |seconds: u64| Duration::from_secs(seconds);
        let interval = (end / random.between(15, 35) as u32).clamp(seconds(2), seconds(900));
        let mut config = defaults.clone();
        config.api_url = format!("{ORIGIN}/api/v1/");
        config.api_poll_frequency = interval;
        config.api_poll_timeout = seconds(*random.pick(&[2, 5, 5]));
        config.api_full_refresh = if random.chance(30) { Some(interval * 5) } else { None };
        config.api_document_bytes_max = 256 * 1024;
        config.realtime.enabled = random.chance(50);
        config.cores = vec![0; if random.chance(60) { 1 } else { 2 }];
        config.cache_dir = random.chance(85).then(|| PathBuf::from(CACHE_DIR));
        let flush = (interval * 2).max(seconds(10));
        config.analytics.enabled = true;
        config.analytics.flush_interval = flush;
        config.usage_flush_interval = flush;
        config.events.enabled = config.cache_dir.is_some() && random.chance(80);
        config.events.url = format!("{ORIGIN}/");
        config.events.flush_interval = flush;
        config.events.fsync = if random.chance(60) { EventsFsync::Group } else { EventsFsync::Second };
        config.events.spool_bytes_max = *random.pick(&[64 * 1024, 4 << 20]);
        // Seldom a file: each commit takes as long as a hundred requests.
        config.traits.store = match random.below(20) {
            0..=7 => TraitsStore::None,
            8..=16 => TraitsStore::Memory,
            _ if config.cache_dir.is_none() => TraitsStore::Memory,
            _ => TraitsStore::Disk,
        };
        config.traits.forward = config.traits.store != TraitsStore::None && random.chance(60);
        config.traits.forward_interval = flush;
        config.server.spread = config.cores.len() > 1 && random.chance(50);
        config.discovery_empty_grace = *random.pick(&[seconds(60), interval * 3]);
        config.health_check.environment_update_grace_period =
            *random.pick(&[None, Some(seconds(30)), Some(seconds(120)), Some(interval * 3)]);
        config.health_check.ready_from_cache = random.chance(70);
        config.server.shutdown_delay = seconds(random.below(10));
        config.server.shutdown_grace = seconds(random.between(2, 20));
        config.server.http2 = true;
        let configured = random.between(1, 3) as usize;
        config.environments = (0..configured).map(|number| environment_config(number, &[0])).collect();
        let has_discovery = random.chance(35);
        config.proxy_key = has_discovery.then(|| Secret::new("proxy-secret"));
        // The quiet time suffices for each backoff and each interval.
        let quiet = seconds(900) + interval * 3;
        let end = end.max(quiet + seconds(300));
        let quiet_at = end - quiet;
        let mut scenario = Self {
            config,
            configured,
            has_discovery,
            uses_etags: random.chance(40),
            is_paged: random.chance(30),
            retry_after: *random.pick(&[1, 30, 120, 600, 100_000]),
            probes: random.between(20, 60),
            quiet_at,
            end,
            happenings: Vec::new(),
        };
        scenario.plan(random);
        scenario
    }

    fn add(&mut self, at: Duration, happening: Happening) {
        if at < self.quiet_at {
            self.happenings.push((at, happening));
        }
    }

    fn plan(&mut self, random: &mut Random) {
        let interval = self.config.api_poll_frequency;
        let anywhere = |random: &mut Random, until: Duration| until.mul_f64(random.unit());
        let environments = self.configured + usize::from(self.has_discovery);
        for _ in 0..random.between(10, 25) {
            let at = anywhere(random, self.quiet_at);
            let edit = edit(environments, random);
            self.add(at, edit);
        }
        for _ in 0..random.between(15, 35) {
            let at = anywhere(random, self.quiet_at);
            let kind = *random.pick(&CallerKind::ALL);
            self.add(at, Happening::Caller(kind));
        }
        let is_gentle = random.chance(40);
        for _ in 0..random.between(4, 10) {
            let moment = anywhere(random, self.quiet_at);
            for _ in 0..random.between(1, 3) {
                let at = moment + interval.mul_f64(random.unit() * random.unit() * 2.0);
                self.disturb(at, is_gentle, random);
            }
            let at = moment + interval.mul_f64(random.unit());
            self.add(at, edit(environments, random));
            // What callers leave behind is what a fault may lose.
            let accepted = [CallerKind::Events, CallerKind::Analytics, CallerKind::Traits];
            for kind in [*random.pick(&CallerKind::ALL), *random.pick(&accepted), *random.pick(&accepted)] {
                let at = (at + interval.mul_f64(random.unit())).saturating_sub(interval / 3);
                self.add(at, Happening::Caller(kind));
            }
        }
        self.happenings.push((self.quiet_at, Happening::Quiet));
    }

    /// `is_gentle`: the process is never killed, so that nothing at all may be lost.
    fn disturb(&mut self, at: Duration, is_gentle: bool, random: &mut Random) {
        let interval = self.config.api_poll_frequency;
        // A fault of hours is one retry after the other. Some last until each document is stale.
        let span = |random: &mut Random| {
            let longest = if random.chance(15) { interval * 4 } else { OUTAGE };
            interval.mul_f64(20_f64.powf(random.unit() * 1.5 - 0.5)).min(longest.max(OUTAGE))
        };
        match random.below(if is_gentle { 13 } else { 17 }) {
            0..=5 => {
                let fault = *random.pick(&Fault::ALL);
                self.add(at, Happening::FaultBegins(fault));
                let end = at + span(random);
                self.add(end, Happening::FaultEnds);
            }
            6 => {
                let mode = *random.pick(&[DiskMode::Full, DiskMode::Failing]);
                self.add(at, Happening::Disk(mode));
                let end = at + span(random);
                self.add(end, Happening::Disk(DiskMode::Well));
            }
            7 | 8 => self.add(at, Happening::Reload),
            9 => {
                self.add(at, Happening::Stop);
                if random.chance(20) {
                    self.add(at + Duration::from_millis(random.below(5000)), Happening::StopAgain);
                }
            }
            10 => {
                let jump = *random.pick(&[-86_400, -3600, -30, 30, 3600, 86_400]);
                self.add(at, Happening::WallJump(jump));
            }
            11 | 12 => {
                let environment = random.below(self.configured as u64 + 1) as usize;
                self.add(at, Happening::RotateKey { environment });
            }
            13 => self.add(at, Happening::Kill { steps: None }),
            14 | 15 => {
                let steps = Some(random.below(25));
                self.add(at, Happening::Kill { steps });
            }
            _ => self.add(at, Happening::PowerLoss),
        }
    }
}

fn edit(environments: usize, random: &mut Random) -> Happening {
    Happening::Edit {
        environment: random.below(environments as u64) as usize,
        moves_time: random.chance(85),
        follow_up: random.chance(25),
    }
}
