//! The control plane: keeps the document of every environment fresh and publishes it to the reactors.
//!
//! [`state`] decides, [`run_loop`] acts. Only the loop's thread publishes, and only it takes back retired
//! snapshots.
pub mod action;
mod affinity;
mod certificates;
pub mod config_file;
pub mod context;
pub mod delivery;
pub mod discovery;
mod environment;
mod environments;
pub mod event;
mod events;
mod pool;
pub mod probe;
pub mod realtime;
pub mod refresh;
mod reload;
pub mod run_loop;
pub mod signals;
pub mod state;
#[cfg(test)]
mod tests;
pub mod uploads;

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::analytics::batch::ReportKind;
use crate::analytics::batch::UploadBatch;
use crate::analytics::outbox;
use crate::channel::Publisher;
use crate::config::{Config, Level, SettingError};
use crate::forwarding::queue::SharedQueue;
use crate::forwarding::{queue, writer};
use crate::limits;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::spans::Tracer;
use crate::storage::disk::DiskFolder;
use crate::storage::{Store, spool};
pub use crate::supervisor::action::SupervisorResult;
use crate::supervisor::affinity::Affinity;
use crate::supervisor::config_file::ConfigReader;
pub use crate::supervisor::config_file::{MissingDocument, ReadConfig, missing_documents};
use crate::supervisor::delivery::Delivery;
use crate::supervisor::event::Event;
use crate::supervisor::pool::Pool;
use crate::supervisor::refresh::Compilers;
use crate::supervisor::run_loop::RunLoop;
use crate::supervisor::state::{Supervisor, SupervisorOptions};
use crate::supervisor::uploads::StoredUploads;
use crate::tls::Certificates;
use crate::upstream::Upstream;

/// Callbacks of the supervisor's thread.
pub struct Hooks {
    pub read_config: ReadConfig,
    /// After each iteration of the loop, at least every two seconds.
    pub after_iteration: Box<dyn FnMut() + Send>,
    /// Records polls, compilations and uploads.
    pub tracer: Tracer,
}

/// Checks the settings of upstream before anything is bound.
///
/// # Errors
/// One error for each invalid setting (address, outgoing proxy, certificates).
pub fn check(config: &Config) -> Result<(), Vec<SettingError>> {
    Upstream::new(config).map(drop)
}

/// Starts the supervisor's thread, which ends after SIGTERM or SIGINT, or with the last reactor.
///
/// The first snapshot, with the documents in `cache_dir`, is sent to the reactors before this returns.
///
/// # Errors
/// A setting of upstream cannot be used (one line each), or a thread cannot be started.
pub fn start(
    config: Config,
    log: Log,
    mut publisher: Publisher,
    hooks: Hooks,
    certificates: Option<Certificates>,
    metrics: Arc<Metrics>,
) -> std::io::Result<JoinHandle<SupervisorResult>> {
    let upstream = Upstream::new(&config).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        std::io::Error::new(std::io::ErrorKind::InvalidInput, lines.join("\n"))
    })?;
    let (sender, events) = channel();
    let to_loop = sender.clone();
    signals::watch(move |signal| to_loop.send(Event::Signal(signal)).is_ok())?;
    let store = open_store(&config, &log);
    let event_queue = start_event_writer(&config, &mut publisher, &metrics, &log)?;
    let compilers = Compilers::beside(&config.cores);
    let config_reader = ConfigReader::new(&config, hooks.read_config);
    let options = SupervisorOptions {
        config,
        metrics: Arc::clone(&metrics),
        has_storage: store.is_some(),
        has_certificates: certificates.is_some(),
        config_files: config_reader.file_versions(),
        stored_uploads: StoredUploads {
            analytics: stored_batches(ReportKind::Analytics, store.as_ref(), &log),
            usage: stored_batches(ReportKind::Usage, store.as_ref(), &log),
        },
    };
    let mut run_loop = RunLoop {
        state: Supervisor::new(options, Instant::now()),
        events,
        sender,
        results: VecDeque::new(),
        log,
        metrics,
        store,
        event_queue,
        delivery: Delivery::new(publisher),
        upstream: Arc::new(upstream),
        tracer: hooks.tracer,
        pool: Pool::new("fetch", limits::FETCH_THREADS_MAX, Affinity::anywhere()),
        compilers: Arc::new(compilers),
        config_reader,
        certificates,
        streams: HashMap::new(),
        after_iteration: hooks.after_iteration,
        exit: None,
    };
    run_loop.dispatch(Event::Started);
    run_loop.tick();
    thread::Builder::new().name("supervisor".into()).spawn(move || run_loop.run())
}

/// Starts the thread that stores events. Without it reactors refuse them.
fn start_event_writer(
    config: &Config,
    publisher: &mut Publisher,
    metrics: &Arc<Metrics>,
    log: &Log,
) -> std::io::Result<Option<SharedQueue>> {
    let Some(cache_dir) = &config.cache_dir else { return Ok(None) };
    match publisher.take_events() {
        Some(posts) => writer::start(config, cache_dir, posts, Arc::clone(metrics), log.clone()).map(Some),
        None => {
            if spool::has_records(&DiskFolder::from(cache_dir).join(queue::FOLDER)) {
                let hint = "an earlier process stored them: set events.enabled to forward them";
                let path = cache_dir.join(queue::FOLDER).display().to_string();
                log.event(Level::Warning, "events_left_in_spool", &[("path", &path), ("hint", &hint)]);
            }
            Ok(None)
        }
    }
}

/// Opens `cache_dir`. A folder that cannot be used is logged: everything else works without it.
fn open_store(config: &Config, log: &Log) -> Option<Store> {
    let folder = config.cache_dir.as_deref()?;
    match Store::open(folder, log) {
        Ok(store) => Some(store),
        Err(error) => {
            let error = format!("{}: {error}", folder.display());
            let hint = "documents are not stored for a restart: check the owner and the mode of the folder";
            log.event(Level::Error, "cache_dir_unusable", &[("error", &error), ("hint", &hint)]);
            None
        }
    }
}

/// The counts that earlier processes stored. What cannot be used is logged.
fn stored_batches(kind: ReportKind, store: Option<&Store>, log: &Log) -> Vec<UploadBatch> {
    let saved = store.map(|store| outbox::load(kind, store)).unwrap_or_default();
    for reason in saved.errors {
        let fields: [(_, &dyn Display); 2] = [("kind", &kind.name()), ("reason", &reason)];
        log.event(Level::Warning, "pending_counts_ignored", &fields);
    }
    saved.batches
}
