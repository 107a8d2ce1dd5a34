//! The thread that writes accepted events to the spool, in groups, and acknowledges them.
//!
//! All events that have arrived while a group was written form the next group, so that the cost of a write
//! and of an fsync is shared. When the disk or the spool is full, events are refused and the thread goes
//! on: the next group may succeed.
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::channel::{EventPosts, EventResult};
use crate::config::{Config, EventsFsync, Level};
use crate::events::{EventPost, EventRefusal};
use crate::forwarding::queue::{EventQueue, SharedQueue};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::storage::disk::DiskFolder;
use crate::storage::spool::{Recovery, SpoolOptions};
use crate::{clock, limits};

/// How often a spool that cannot be opened is tried again, and spools of ended processes are looked for.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10);

/// What the thread does.
pub struct EventWriter {
    posts: EventPosts,
    queue: SharedQueue,
    cache_dir: DiskFolder,
    options: SpoolOptions,
    metrics: Arc<Metrics>,
    log: Log,
    /// Why the last events were refused.
    refusal: Option<EventRefusal>,
    /// When events are to be written to the disk itself; `None` if all are.
    sync_at: Option<Instant>,
    /// The last such attempt failed.
    is_sync_failing: bool,
    housekeeping_at: Instant,
}

/// Starts the thread, which opens the spool in `cache_dir` first. It ends with the process.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    config: &Config,
    cache_dir: impl Into<DiskFolder>,
    posts: EventPosts,
    metrics: Arc<Metrics>,
    log: Log,
) -> io::Result<SharedQueue> {
    metrics.events.queued_bytes_max.set(config.events.spool_bytes_max);
    let mut writer = EventWriter::new(config, cache_dir.into(), posts, metrics, log);
    let queue = writer.queue();
    let run = move || {
        loop {
            writer.step(Duration::MAX);
        }
    };
    thread::Builder::new().name("events".into()).spawn(run)?;
    Ok(queue)
}

impl EventWriter {
    /// A writer that has not opened the spool in `cache_dir` yet.
    pub fn new(
        config: &Config,
        cache_dir: DiskFolder,
        posts: EventPosts,
        metrics: Arc<Metrics>,
        log: Log,
    ) -> Self {
        let queue = SharedQueue::default();
        let options = SpoolOptions {
            bytes_max: config.events.spool_bytes_max,
            syncs: config.events.fsync == EventsFsync::Group,
        };
        let housekeeping_at = clock::instant();
        Self {
            posts,
            queue,
            cache_dir,
            options,
            metrics,
            log,
            refusal: None,
            sync_at: None,
            is_sync_failing: false,
            housekeeping_at,
        }
    }

    /// The queue that it fills.
    pub fn queue(&self) -> SharedQueue {
        self.queue.clone()
    }

    /// When [`step`](Self::step) has something to do without new events.
    pub fn due(&self) -> Instant {
        self.sync_at.map_or(self.housekeeping_at, |at| at.min(self.housekeeping_at))
    }

    /// Does what is due, then waits for events, for `wait_max` at most, and stores and acknowledges them.
    pub fn step(&mut self, wait_max: Duration) {
        let now = clock::instant();
        if self.housekeeping_at <= now {
            self.keep_house();
            self.housekeeping_at = now + HOUSEKEEPING_INTERVAL;
        }
        if self.sync_at.is_some_and(|at| at <= now) {
            self.sync();
        }
        let group = self.posts.next_group(self.due().saturating_duration_since(now).min(wait_max));
        if group.is_empty() {
            return;
        }
        let posts: Vec<&EventPost> = group.iter().map(|sent| &sent.post).collect();
        let (results, error) = self.write(&posts);
        self.log_change(results.iter().find_map(|result| result.err()), error);
        self.posts.acknowledge(group.into_iter().zip(results));
    }

    /// Stores a group: the result of each post, and the error of the disk.
    fn write(&mut self, posts: &[&EventPost]) -> (Vec<EventResult>, Option<io::Error>) {
        let at = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut queue = self.queue.lock();
        let Some(queue) = queue.as_mut() else { return (vec![Err(EventRefusal::Disk); posts.len()], None) };
        let mut results: Vec<EventResult> = posts.iter().map(|post| queue.append(post, at)).collect();
        match queue.commit() {
            Ok(()) => {
                if !self.options.syncs && self.sync_at.is_none() {
                    self.sync_at = Some(clock::instant() + limits::EVENT_SYNC_INTERVAL);
                }
                (results, None)
            }
            Err(error) => {
                results
                    .iter_mut()
                    .filter(|result| result.is_ok())
                    .for_each(|result| *result = Err(EventRefusal::Disk));
                (results, Some(error))
            }
        }
    }

    /// Writes to the disk itself what is stored. A failure is tried again: until then a loss of power would
    /// lose more than the last events.
    fn sync(&mut self) {
        let error = self.queue.lock().as_mut().and_then(|queue| queue.sync().err());
        self.sync_at = error.as_ref().map(|_| clock::instant() + limits::EVENT_SYNC_INTERVAL);
        let was_failing = std::mem::replace(&mut self.is_sync_failing, error.is_some());
        if let Some(error) = error.filter(|_| !was_failing) {
            self.log.event(Level::Error, "events_not_synced", &[("error", &error)]);
        }
    }

    /// Opens the spool if it is not open, and takes over those of processes that have ended.
    fn keep_house(&mut self) {
        let mut queue = self.queue.lock();
        let result = match queue.as_mut() {
            Some(queue) => queue.adopt(),
            None => EventQueue::open(self.cache_dir.clone(), self.options, self.metrics.events.clone()).map(
                |(opened, recovery)| {
                    *queue = Some(opened);
                    Some(recovery)
                },
            ),
        };
        drop(queue);
        match result {
            Ok(Some(recovery)) => {
                // If the disk failed to sync what was recovered, it is tried again until it can.
                self.sync_at.get_or_insert_with(clock::instant);
                self.log_recovery(recovery);
            }
            Ok(None) => {}
            Err(error) => {
                let error = format!("{}: {error}", self.cache_dir.path.display());
                let hint = "events are answered 503: check the owner, mode and free space of cache_dir";
                self.log.event(Level::Error, "events_spool_unusable", &[("error", &error), ("hint", &hint)]);
            }
        }
    }

    fn log_recovery(&self, recovery: Recovery) {
        if recovery.records > 0 {
            let fields: [(_, &dyn Display); 2] =
                [("records_count", &recovery.records), ("bytes", &recovery.bytes)];
            self.log.event(Level::Info, "events_recovered", &fields);
        }
        if recovery.damaged > 0 || recovery.ignored > 0 {
            let fields: [(_, &dyn Display); 2] =
                [("damaged_records_count", &recovery.damaged), ("ignored_files_count", &recovery.ignored)];
            self.log.event(Level::Error, "events_spool_damaged", &fields);
        }
    }

    /// Logs when events begin to be refused, when the reason changes, and when they are stored again.
    fn log_change(&mut self, refusal: Option<EventRefusal>, error: Option<io::Error>) {
        let before = std::mem::replace(&mut self.refusal, refusal);
        match refusal {
            Some(refusal) if before != Some(refusal) => {
                let error = error.map_or_else(String::new, |error| error.to_string());
                let hint = match refusal {
                    EventRefusal::SpoolFull => {
                        "events.spool_bytes_max is reached: check that upstream accepts events"
                    }
                    _ => "check the owner, mode and free space of cache_dir",
                };
                let fields: [(_, &dyn Display); 3] =
                    [("reason", &refusal.name()), ("error", &error), ("hint", &hint)];
                self.log.event(Level::Error, "events_not_stored", &fields);
            }
            None if before.is_some() => self.log.event(Level::Info, "events_stored_again", &[]),
            _ => {}
        }
    }
}
