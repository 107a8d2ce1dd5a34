//! Kept traits that are sent upstream (`traits.forward`), so that core and its dashboard know the identities.
//!
//! The store thread adds changes to the [`queue`], which has the last value of each identity and key. One
//! thread writes the [`journal`] every second and decides when a round is due; another one sends the
//! [`round`]s, so that a slow upstream delays neither the journal nor the store.
mod entry;
pub mod item;
mod journal;
pub mod queue;
pub mod round;
pub mod worker;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::channel::Newest;
use crate::clock;
use crate::config::{Config, Level};
use crate::limits;
use crate::log::Log;
use crate::metrics::{Metrics, TraitForwardMetrics};
use crate::schedule::{Retry, Schedule, jitter};
use crate::spans::Tracer;
use crate::storage::disk::DiskFolder;
use crate::trait_forwarding::journal::Journal;
use crate::trait_forwarding::queue::{SharedTraitQueue, TraitQueue};
use crate::trait_forwarding::round::TraitRoundResult;
use crate::trait_forwarding::worker::{RoundOrder, RoundWorker, Wake};
use crate::upstream::{PollErrorKind, Upstream};

/// How often changes are written to the journal.
const JOURNAL_INTERVAL: Duration = Duration::from_secs(1);
/// How often a journal that cannot be opened is tried again, and those of ended processes are looked for.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10);

/// Forwards what is in its queue, until it is stopped.
#[derive(Debug)]
pub struct TraitForwarder {
    pub queue: SharedTraitQueue,
    wake: Sender<Wake>,
    ended: Receiver<()>,
}

/// Starts the threads. `newest` has the keys of the environments and the settings of upstream.
///
/// # Errors
/// A thread cannot be started.
pub fn start(
    config: &Config,
    newest: Newest,
    metrics: &Metrics,
    log: Log,
    tracer: Tracer,
) -> io::Result<TraitForwarder> {
    let metrics = Arc::clone(&metrics.trait_forwarding);
    let has_journal = config.cache_dir.is_some();
    let queue = TraitQueue::new(limits::TRAIT_FORWARD_BYTES_MAX, has_journal, Arc::clone(&metrics));
    let queue = SharedTraitQueue::new(queue);
    let (wake, woken) = channel();
    let (ended, when_ended) = channel();
    let worker = RoundWorker::new(queue.clone(), newest.clone(), Box::new(Upstream::new), tracer);
    let orders = worker.start(wake.clone())?;
    let folder = config.cache_dir.as_deref().map(DiskFolder::from);
    let scheduler = Scheduler::new(config, folder, queue.clone(), newest, orders, metrics, log);
    thread::Builder::new().name("traits-forward".into()).spawn(move || {
        scheduler.run(&woken);
        drop(ended);
    })?;
    Ok(TraitForwarder { queue, wake, ended: when_ended })
}

impl TraitForwarder {
    /// Sends what it can within `limits::LAST_UPLOAD_TIMEOUT`; the rest is in the journal, if there is one.
    pub fn stop(self) {
        // The thread can only have ended by a panic.
        let _ = self.wake.send(Wake::Stop);
        let _ = self.ended.recv_timeout(limits::LAST_UPLOAD_TIMEOUT + JOURNAL_INTERVAL);
    }
}

/// Writes the journal, and decides when a round is due.
pub struct Scheduler {
    queue: SharedTraitQueue,
    newest: Newest,
    metrics: Arc<TraitForwardMetrics>,
    log: Log,
    cache_dir: Option<DiskFolder>,
    /// `None` without `cache_dir`, or while it cannot be opened.
    journal: Option<Journal>,
    has_journal_error: bool,
    housekeeping_at: Instant,
    schedule: Schedule,
    orders: Sender<RoundOrder>,
    is_in_flight: bool,
    /// The end of the last round, and whether it has begun; `None` until the process ends.
    last: Option<(Instant, bool)>,
    /// Of the last round.
    failure: Option<PollErrorKind>,
}

impl Scheduler {
    /// A scheduler that has not opened its journal yet. `orders` go to the worker that runs rounds.
    pub fn new(
        config: &Config,
        cache_dir: Option<DiskFolder>,
        queue: SharedTraitQueue,
        newest: Newest,
        orders: Sender<RoundOrder>,
        metrics: Arc<TraitForwardMetrics>,
        log: Log,
    ) -> Self {
        let now = clock::instant();
        Self {
            queue,
            newest,
            metrics,
            log,
            cache_dir,
            journal: None,
            has_journal_error: false,
            housekeeping_at: now,
            schedule: Schedule::new(config.traits.forward_interval, now),
            orders,
            is_in_flight: false,
            last: None,
            failure: None,
        }
    }

    fn run(mut self, woken: &Receiver<Wake>) {
        loop {
            match woken.recv_timeout(self.tick().min(JOURNAL_INTERVAL)) {
                Ok(Wake::RoundEnded(result)) => self.apply(&result),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return self.stop(woken),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Writes the journal, and orders a round if one is due. Returns the time until one is due.
    pub fn tick(&mut self) -> Duration {
        self.keep_journal();
        let now = clock::instant();
        // It may have changed by a reload.
        self.schedule.set_interval(self.newest.get().config.traits.forward_interval, now);
        if !self.is_in_flight && self.schedule.due() <= now {
            self.order(now + limits::ROUND_TIME_MAX);
        }
        match self.is_in_flight {
            true => JOURNAL_INTERVAL,
            false => self.schedule.due().saturating_duration_since(now),
        }
    }

    fn order(&mut self, until: Instant) {
        self.is_in_flight = self.orders.send(RoundOrder { until }).is_ok();
        if !self.is_in_flight {
            let retry = Retry::Serving(limits::RETRY_AFTER_DEFAULT_MAX);
            self.schedule.failed(clock::instant(), retry, None, jitter());
        }
    }

    fn stop(mut self, woken: &Receiver<Wake>) {
        while let Some(until) = self.order_last() {
            match woken.recv_timeout(until.saturating_duration_since(clock::instant())) {
                Ok(Wake::RoundEnded(result)) => self.apply(&result),
                Ok(Wake::Stop) => {}
                Err(_) => break,
            }
        }
        self.finish();
    }

    /// The process ends: orders a last round after the one that is in flight. Returns until when the end of a
    /// round is to be waited for; `None`: nothing is in flight.
    pub fn order_last(&mut self) -> Option<Instant> {
        if self.last.is_none() {
            self.keep_journal();
        }
        let (until, has_begun) =
            self.last.unwrap_or_else(|| (clock::instant() + limits::LAST_UPLOAD_TIMEOUT, false));
        let is_needed = !self.is_in_flight && !has_begun && self.queue.lock().size().0 > 0;
        self.last = Some((until, has_begun || is_needed));
        if is_needed {
            self.order(until);
        }
        self.is_in_flight.then_some(until)
    }

    /// After the last round: what it did not deliver is in the journal.
    pub fn finish(mut self) {
        self.keep_journal();
        if let Some(Err(error)) = self.journal.as_mut().map(Journal::sync) {
            self.log_journal_error(&error);
        }
        let (left, _) = self.queue.lock().size();
        if left > 0 && self.journal.is_none() {
            let hint = "upstream did not accept them and there is no cache_dir to store them in";
            let fields: [(_, &dyn std::fmt::Display); 2] = [("lost_count", &left), ("hint", &hint)];
            self.log.event(Level::Error, "traits_not_forwarded", &fields);
        }
    }

    /// Opens the journal if it is not open, and writes what has changed.
    fn keep_journal(&mut self) {
        self.queue.lock().measure();
        let Some(cache_dir) = &self.cache_dir else { return };
        let now = clock::instant();
        let is_due = self.housekeeping_at <= now;
        let result = match &mut self.journal {
            Some(journal) if is_due => journal.adopt(&self.queue).and_then(|recovery| {
                journal.write(&self.queue)?;
                Ok(recovery)
            }),
            Some(journal) => journal.write(&self.queue).map(|()| None),
            None if is_due => Journal::open(cache_dir, &self.queue).and_then(|(journal, recovery)| {
                self.journal.insert(journal).write(&self.queue)?;
                Ok(Some(recovery))
            }),
            None => return,
        };
        // After a journal was opened or adopted, the next tick looks for another one.
        if is_due && !matches!(result, Ok(Some(_))) {
            self.housekeeping_at = now + HOUSEKEEPING_INTERVAL;
        }
        match result {
            Ok(recovery) => {
                self.has_journal_error = false;
                if let Some(recovery) = recovery.filter(|found| found.damaged > 0 || found.ignored > 0) {
                    let fields: [(_, &dyn std::fmt::Display); 2] = [
                        ("damaged_records_count", &recovery.damaged),
                        ("ignored_files_count", &recovery.ignored),
                    ];
                    self.log.event(Level::Error, "traits_journal_damaged", &fields);
                }
            }
            Err(error) => self.log_journal_error(&error),
        }
    }

    fn log_journal_error(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_journal_error, true) {
            let hint = "traits that wait to be forwarded are in memory only: check the owner, mode and free \
                        space of cache_dir";
            let fields: [(_, &dyn std::fmt::Display); 2] = [("error", error), ("hint", &hint)];
            self.log.event(Level::Error, "traits_journal_failed", &fields);
        }
    }

    /// Applies the result of a round.
    pub fn apply(&mut self, result: &TraitRoundResult) {
        self.is_in_flight = false;
        let (now, jitter) = (clock::instant(), jitter());
        match &result.failure {
            // If upstream has accepted others, a failure does not delay the next round.
            Some(failure) if result.sent == 0 => {
                let retry = Retry::Serving(limits::RETRY_AFTER_DEFAULT_MAX);
                self.schedule.failed(now, retry, failure.retry_after, jitter);
            }
            _ => self.schedule.succeeded(result.started, now, jitter),
        }
        result.lost.iter().for_each(|(loss, count)| self.metrics.lost(*loss, *count));
        // Last, after what the same round lost: who waits for it then reads the others.
        self.metrics.sent.add(result.sent);
        self.log_result(result);
    }

    fn log_result(&mut self, result: &TraitRoundResult) {
        if result.has_begun_singly {
            let hint = "this Flagsmith has no traits/bulk/: each trait is sent in a separate request";
            self.log.event(Level::Warning, "traits_forwarded_singly", &[("hint", &hint)]);
        }
        if let Some(why) = &result.refusal {
            let lost: u64 = result.lost.iter().map(|(_, count)| count).sum();
            let fields: [(_, &dyn std::fmt::Display); 2] = [("error", why), ("lost_count", &lost)];
            self.log.event(Level::Error, "traits_refused", &fields);
        }
        let kind = result.failure.as_ref().map(|failure| failure.kind);
        let has_changed = std::mem::replace(&mut self.failure, kind) != kind;
        match &result.failure {
            Some(failure) if has_changed => {
                let hint = "the traits are kept and sent again";
                let fields: [(_, &dyn std::fmt::Display); 2] = [("error", &failure.message), ("hint", &hint)];
                self.log.event(Level::Warning, "traits_not_sent", &fields);
            }
            None if has_changed => self.log.event(Level::Info, "traits_sent_again", &[]),
            _ => {}
        }
    }
}
