//! The control plane: one thread that keeps every environment's document fresh.
//!
//! In: the configuration, results of jobs, signals. Out: snapshots and commands to the reactors.
//! Invariants: only this thread publishes, and only it frees what reactors gave back; nothing upstream
//! does can end it; the last good document is never lost. It may log and decide, but whatever
//! waits (network, disk, compiling) is done by the pool's threads.
mod poll;
mod pool;
mod schedule;
mod signals;
mod watched;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::channel::{Message, Publisher};
use crate::config::{Config, Level};
use crate::limits;
use crate::log::Log;
use crate::snapshot::{Access, Snapshot};
use poll::Upstream;
use pool::{Done, Id, Pool};
use watched::{Change, Watched};

/// Reads the configuration again, from where it came at start. `Err`: one line per mistake.
pub type Reload = Box<dyn FnMut() -> Result<Config, Vec<String>> + Send>;

/// What wakes the loop.
#[derive(Debug)]
enum Event {
    Done(Done),
    Signal(signals::Signal),
}

/// Where in its life the process is.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Serving,
    /// Readiness is red, requests are still taken, until then.
    Delaying(Instant),
    /// The reactors were told to end; those that have not by then are left behind.
    Draining(Instant),
}

struct Supervisor {
    config: Arc<Config>,
    log: Log,
    publisher: Publisher,
    reload: Reload,
    upstream: Arc<Upstream>,
    pool: Pool,
    events: Receiver<Event>,
    sender: Sender<Event>,
    watched: Vec<Watched>,
    next_id: Id,
    version: u64,
    published: Vec<Weak<Snapshot>>,
    /// Commands that a full inbox did not take.
    unsent: Vec<Message>,
    /// When what changed must be published.
    publish_at: Option<Instant>,
    phase: Phase,
}

/// Starts the supervisor's thread, which ends after SIGTERM or SIGINT.
///
/// The first snapshot, without documents, is with the reactors before this returns.
///
/// # Errors
/// A setting of upstream cannot be used (one line each), or no thread could be started.
pub fn start(
    config: Config,
    log: Log,
    publisher: Publisher,
    reload: Reload,
) -> std::io::Result<JoinHandle<()>> {
    let upstream = Upstream::new(&config)
        .map_err(|mistakes| std::io::Error::new(std::io::ErrorKind::InvalidInput, mistakes.join("\n")))?;
    let (sender, events) = channel();
    let to_loop = sender.clone();
    signals::watch(move |signal| to_loop.send(Event::Signal(signal)).is_ok())?;
    let mut supervisor = Supervisor {
        config: Arc::new(config),
        log,
        publisher,
        reload,
        upstream: Arc::new(upstream),
        pool: Pool::new(),
        events,
        sender,
        watched: Vec::new(),
        next_id: 0,
        version: 0,
        published: Vec::new(),
        unsent: Vec::new(),
        publish_at: None,
        phase: Phase::Serving,
    };
    supervisor.watch_configured();
    supervisor.publish();
    thread::Builder::new().name("supervisor".into()).spawn(move || supervisor.run())
}

impl Supervisor {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            if self.advance(now) {
                return;
            }
            self.give_jobs(now);
            self.resend();
            if self.publish_at.is_some_and(|at| at <= now) {
                self.publish();
            }
            self.free_retired();
            let wait = self.wake_at(now).saturating_duration_since(Instant::now());
            match self.events.recv_timeout(wait) {
                Ok(event) => {
                    self.take(event);
                    // What is there already is taken together and published once.
                    while let Ok(event) = self.events.try_recv() {
                        self.take(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Moves through shutting down; true at its end.
    fn advance(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Serving => false,
            Phase::Delaying(until) => {
                if now >= until {
                    self.log.event(Level::Info, "draining", &[]);
                    self.command(Message::Drain);
                    self.phase = Phase::Draining(now + self.config.server.shutdown_grace);
                }
                false
            }
            Phase::Draining(until) => {
                let alive = self.publisher.alive();
                if alive > 0 && now < until {
                    return false;
                }
                if alive > 0 {
                    self.log.event(Level::Warning, "shutdown_grace_over", &[("reactors", &alive)]);
                }
                self.log.event(Level::Info, "stopped", &[]);
                true
            }
        }
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Done(done) => {
                self.pool.done();
                let Some(watched) = self.watched.iter_mut().find(|watched| watched.id == done.id) else {
                    // Removed while its job was under way.
                    return;
                };
                match watched.done(done, &self.log, now, SystemTime::now()) {
                    Change::Content => self.publish_by(now),
                    Change::Freshness => self.publish_by(now + limits::FRESHNESS_DELAY_MAX),
                }
            }
            Event::Signal(signals::Signal::Stop) => self.stop(now),
            Event::Signal(signals::Signal::Reload) => {}
        }
    }

    /// The first signal begins a shut-down, a second one skips the delay.
    fn stop(&mut self, now: Instant) {
        match self.phase {
            Phase::Serving => {
                let delay = self.config.server.shutdown_delay;
                self.log.event(Level::Info, "stopping", &[("delay_seconds", &delay.as_secs_f64())]);
                self.phase = Phase::Delaying(now + delay);
                self.publish();
            }
            Phase::Delaying(_) => self.phase = Phase::Delaying(now),
            Phase::Draining(_) => self.phase = Phase::Draining(now),
        }
    }

    /// Takes up every environment of the configuration.
    fn watch_configured(&mut self) {
        let config = Arc::clone(&self.config);
        for environment in &config.environments {
            self.next_id += 1;
            self.watched.push(Watched::new(self.next_id, environment.clone(), &config, Instant::now()));
        }
    }

    fn give_jobs(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Draining(_)) {
            return;
        }
        for watched in &mut self.watched {
            let Some(job) = watched.job(&self.upstream, &self.config, now) else { continue };
            let (id, sender) = (job.id, self.sender.clone());
            let given = self.pool.give(job, move |done| {
                // The loop may be over; then nobody waits for the result.
                let _ = sender.send(Event::Done(done));
            });
            if let Err(error) = given {
                let message = format!("no thread to fetch with: {error}");
                let result = Err(poll::PollError::new(poll::PollErrorKind::Internal, message));
                let _ = self.sender.send(Event::Done(Done { id, started: now, seen: None, result }));
            }
        }
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let housekeeping = match self.phase {
            Phase::Draining(_) => Duration::from_millis(5),
            _ if !self.unsent.is_empty() => Duration::from_millis(10),
            _ if self.published.len() > 1 => Duration::from_millis(100),
            _ => Duration::from_secs(60),
        };
        let phase = match self.phase {
            Phase::Delaying(until) => Some(until),
            _ => None,
        };
        let due = self.watched.iter().filter_map(Watched::due);
        due.chain(phase).chain(self.publish_at).fold(now + housekeeping, Instant::min)
    }

    fn publish_by(&mut self, at: Instant) {
        self.publish_at = Some(self.publish_at.map_or(at, |before| before.min(at)));
    }

    /// Sends every reactor a new snapshot.
    fn publish(&mut self) {
        self.publish_at = None;
        self.version += 1;
        let mut keys: Vec<(Box<[u8]>, Access)> = Vec::new();
        let slots = self.watched.iter().map(Watched::slot).collect();
        // Of a key given twice the first environment has it; `collect` would keep the last.
        for (slot, watched) in self.watched.iter().enumerate().rev() {
            keys.extend(watched.keys(slot));
        }
        let mut snapshot = Snapshot::new(self.version, slots, keys);
        snapshot.draining = !matches!(self.phase, Phase::Serving);
        let snapshot = Arc::new(snapshot);
        self.published.push(Arc::downgrade(&snapshot));
        self.command(Message::Publish(snapshot));
    }

    /// Sends, and keeps for later what an inbox had no room for. A newer snapshot replaces an older one.
    fn command(&mut self, message: Message) {
        if matches!(message, Message::Publish(_)) {
            self.unsent.retain(|unsent| !matches!(unsent, Message::Publish(_)));
        }
        if !self.unsent.is_empty() || self.publisher.send(&message) > 0 {
            self.unsent.push(message);
        }
    }

    fn resend(&mut self) {
        while let Some(message) = self.unsent.first() {
            if self.publisher.send(message) > 0 {
                return;
            }
            self.unsent.remove(0);
        }
    }

    fn free_retired(&mut self) {
        self.publisher.free_retired();
        // The newest is in use; an older one that still lives is on its way back from a reactor.
        self.published.retain(|snapshot| snapshot.strong_count() > 0);
    }
}
