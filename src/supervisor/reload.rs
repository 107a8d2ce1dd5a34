//! A new configuration while serving.
//!
//! In: SIGHUP, or a configuration file that changed. Out: environments added, removed and re-keyed, new
//! settings for the reactors, the log's level. Invariants: a configuration with a mistake changes
//! nothing; an environment that stays keeps its document; what cannot change while running is named.
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::channel::ReactorMessage;
use crate::config::settings::restart_required;
use crate::config::{Config, ConfigError, EnvironmentConfig, Level, SettingError};
use crate::files::FileVersion;
use crate::limits;
use crate::supervisor::discovery::Discovery;
use crate::supervisor::{Reload, Supervisor};
use crate::upstream::Upstream;

/// Knows how to read the configuration, and when its file was last read.
pub struct Reloader {
    read: Reload,
    path: Option<PathBuf>,
    seen: Option<FileVersion>,
    due: Instant,
}

impl Reloader {
    pub fn new(config: &Config, read: Reload) -> Self {
        let seen = config.path.as_deref().and_then(|path| FileVersion::of_settled(path, SystemTime::now()));
        Self { read, path: config.path.clone(), seen, due: Instant::now() + limits::CONFIG_POLL }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether it is time to look and the file is another one than that last read.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.due = now + limits::CONFIG_POLL;
        let Some(stamp) =
            self.path.as_deref().and_then(|path| FileVersion::of_settled(path, SystemTime::now()))
        else {
            // Being written, or gone: an editor may be at work.
            return false;
        };
        // Written just before we started, it had no stamp then: what was read may be half of it.
        self.seen.replace(stamp) != Some(stamp)
    }
}

impl Supervisor {
    /// Reads the configuration again and goes on with it.
    pub fn reload(&mut self, is_asked: bool) {
        let result = (self.reload.read)().map_err(ReloadError::Config).and_then(|(config, notices)| {
            let upstream = Upstream::new(&config).map_err(ReloadError::Upstream)?;
            let missing = missing_documents(&config, &self.config.environments);
            if !missing.is_empty() {
                return Err(ReloadError::MissingDocuments(missing));
            }
            Ok((config, notices, upstream))
        });
        match result {
            Ok((config, notices, upstream)) => {
                if self.adopt(config, upstream, is_asked) {
                    let notices = notices.iter().filter(|notice| !notice.is_of_start());
                    notices.for_each(|notice| self.records.log.config_warning(notice));
                }
            }
            Err(error) => {
                self.records.metrics.supervisor.reloads_refused.add(1);
                for mistake in error.lines() {
                    let fields: [(_, &dyn Display); 2] =
                        [("mistake", &mistake), ("serving", &"with the old configuration")];
                    self.records.log.event(Level::Error, "configuration_refused", &fields);
                }
            }
        }
    }

    /// False if there is nothing new in it.
    fn adopt(&mut self, config: Config, upstream: Upstream, is_asked: bool) -> bool {
        let is_same = *self.config == config;
        if is_same && !is_asked {
            // The file was touched, or written just before we started.
            return false;
        }
        let before = std::mem::replace(&mut self.config, Arc::new(config));
        let config = Arc::clone(&self.config);
        let now = Instant::now();
        self.upstream = Arc::new(upstream);
        let is_other_upstream = before.api_url != config.api_url || before.proxy_key != config.proxy_key;
        if before.realtime != config.realtime {
            self.watched.iter_mut().for_each(|watched| watched.subscription = None);
        }
        if before.proxy_key != config.proxy_key {
            self.discovery = Discovery::new(&config, now);
            let metrics = &self.records.metrics;
            metrics.supervisor.discovery_empty_since_ms.set(0);
            metrics.supervisor.discovery_pairs_rejected.set(0);
            if self.discovery.is_none() {
                let discovered = self.watched.extract_if(.., |watched| watched.is_discovered());
                discovered.for_each(|watched| metrics.remove_environment(watched.client_side_key()));
            }
        }
        let (added, removed, changed) = self.watch_only(&config.environments, now);
        if is_other_upstream {
            self.watched.iter_mut().for_each(|watched| watched.refresh(now));
        }
        self.subscribe();
        self.reports.reconfigure(&config, now);
        self.records.log.set_level(config.logging.log_level);
        self.command(ReactorMessage::Configure(Arc::clone(&config)));
        self.publish();
        self.records.metrics.supervisor.reloads.add(1);
        let fields: [(_, &dyn Display); 3] = [
            ("environments_added", &added),
            ("environments_removed", &removed),
            ("environments_changed", &changed),
        ];
        self.records.log.event(Level::Info, "configuration_reloaded", &fields);
        let fixed = restart_required(&before, &config);
        if !fixed.is_empty() {
            let fields: [(_, &dyn Display); 1] = [("settings", &fixed.join(", "))];
            self.records.log.event(Level::Warning, "configuration_needs_restart", &fields);
        }
        true
    }

    /// Adds, removes and re-keys until exactly these configured environments are watched.
    fn watch_only(&mut self, wanted: &[EnvironmentConfig], now: Instant) -> (usize, usize, usize) {
        let config = Arc::clone(&self.config);
        let count = self.watched.len();
        let metrics = &self.records.metrics;
        self.watched.retain(|watched| {
            let stays =
                watched.is_discovered() || wanted.iter().any(|wanted| is_same(&watched.config, wanted));
            if !stays {
                metrics.remove_environment(watched.client_side_key());
            }
            stays
        });
        let removed = count - self.watched.len();
        let (mut added, mut changed) = (0, 0);
        for wanted in wanted {
            // What upstream told of gives way to what the configuration says of it.
            self.watched.retain(|watched| !(watched.is_discovered() && is_same(&watched.config, wanted)));
            match self.watched.iter_mut().find(|watched| is_same(&watched.config, wanted)) {
                Some(watched) => changed += usize::from(watched.reconfigure(wanted.clone(), &config, now)),
                None => {
                    added += 1;
                    self.add(wanted.clone(), None);
                }
            }
        }
        (added, removed, changed)
    }
}

/// Why a reloaded configuration is not used.
enum ReloadError {
    Config(ConfigError),
    Upstream(Vec<SettingError>),
    MissingDocuments(Vec<MissingDocument>),
}

impl ReloadError {
    /// One line for each mistake.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Config(error) => error.issues.iter().map(ToString::to_string).collect(),
            Self::Upstream(errors) => errors.iter().map(ToString::to_string).collect(),
            Self::MissingDocuments(missing) => missing.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A document on disk that does not exist.
#[derive(Debug)]
pub struct MissingDocument {
    path: PathBuf,
    error: std::io::Error,
}

impl std::fmt::Display for MissingDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, error) = (self.path.display(), &self.error);
        write!(f, "{path}: {error}: check the path (--document, documents or document_path)")
    }
}

/// The documents on disk that do not exist. Those of the environments in `known` are left out: they existed
/// before and are still served.
pub fn missing_documents(config: &Config, known: &[EnvironmentConfig]) -> Vec<MissingDocument> {
    let is_known = |path: &PathBuf| known.iter().any(|known| known.document_path.as_ref() == Some(path));
    let paths = config.environments.iter().filter_map(|environment| environment.document_path.as_ref());
    let missing = paths.filter(|path| !is_known(path)).filter_map(|path| {
        let error = std::fs::metadata(path).err()?;
        let is_missing = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        is_missing.then(|| MissingDocument { path: path.clone(), error })
    });
    missing.collect()
}

/// The same environment, though its server-side key or its source may be another.
fn is_same(one: &EnvironmentConfig, other: &EnvironmentConfig) -> bool {
    one.client_side_key == other.client_side_key
        && (!one.client_side_key.is_empty() || one.document_path == other.document_path)
}
