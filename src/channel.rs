//! The channel between the control plane and the reactors.
//!
//! The supervisor's [`Publisher`] sends the newest snapshot to each reactor's [`Inbox`] (the latest wins) and
//! wakes the reactor by one byte on a socket pair. When the last [`Lease`] of a snapshot is dropped, the
//! snapshot returns to the supervisor, which frees it: a reactor never frees an environment. No send on this
//! channel blocks, except that of a reactor's last counts.
//!
//! The byte is written after the message is in its channel, and read before the channel is: the locks of the
//! kernel's socket order the two, so that no message is overlooked on any architecture.
pub mod events;
pub mod spread;
pub mod traits;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, unbounded};

pub use crate::channel::events::{EventPort, EventPosts, EventResult};
use crate::channel::spread::SpreadChannels;
pub use crate::channel::spread::{NewConnection, SpreadPort};
pub use crate::channel::traits::{TraitLink, TraitMessage, TraitPort, TraitStop};
use crate::clock;
use crate::config::{Config, TraitsStore};
use crate::counts::Counts;
use crate::snapshot::Snapshot;

/// Unread messages of one reactor. When its inbox is full, the supervisor sends the newest message again
/// later.
const INBOX_MESSAGES_MAX: usize = 64;
/// Unread reports of counts, of all reactors. When there are as many, reactors keep counting and try again
/// later.
const REPORTS_MAX: usize = 16;
/// How long a reactor that exits waits for the supervisor to take its last counts.
const LAST_REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// A message from the supervisor to a reactor.
#[derive(Clone, Debug)]
pub enum ReactorMessage {
    /// Serve requests from this snapshot.
    Publish(Arc<Snapshot>),
    /// The configuration was reloaded: use its settings for requests (CORS, health).
    Configure(Arc<Config>),
    /// Use these settings for new connections of the TLS listener (`crate::tls`).
    Certificates(Arc<rustls::ServerConfig>),
    /// Stop accepting, answer pending requests with `Connection: close`, and exit.
    Drain,
    /// After `Drain`: end the requests that are still open, report the counts, and exit.
    End,
}

/// Both ends of a channel from the reactors to the supervisor.
type Ends<T> = (Sender<T>, Receiver<T>);

/// The supervisor's end of all channels; one per process.
#[derive(Debug)]
pub struct Publisher {
    reactors: Vec<(Sender<ReactorMessage>, UnixStream)>,
    retired: Option<Ends<Arc<Snapshot>>>,
    reports: Option<Ends<Box<Counts>>>,
    /// `None` if `events.enabled` is not set, or after [`take_events`](Self::take_events).
    events: Option<EventPosts>,
    /// `None` without a store of traits, or after [`take_traits`](Self::take_traits).
    traits: Option<TraitLink>,
    /// `None` if `server.spread` is not set.
    spread: Option<SpreadChannels>,
    newest: Newest,
}

/// A shared view of what was published last, for the admin listener. For the control plane only: it takes a
/// lock, which a reactor must not wait for.
#[derive(Clone, Debug)]
pub struct Newest(Arc<Mutex<Published>>);

/// The newest snapshot and configuration.
#[derive(Clone, Debug)]
pub struct Published {
    /// Empty until the first publication.
    pub snapshot: Arc<Snapshot>,
    pub config: Arc<Config>,
}

/// A reactor's end. `wake` becomes readable when a message arrives; wake-ups may be spurious.
#[derive(Debug)]
pub struct Inbox {
    inbox: Receiver<ReactorMessage>,
    retire: Sender<Arc<Snapshot>>,
    reports: Sender<Box<Counts>>,
    /// `None` if `events.enabled` is not set.
    pub events: Option<EventPort>,
    /// `None` without a store of traits.
    pub traits: Option<TraitPort>,
    /// `None` if `server.spread` is not set.
    pub spread: Option<SpreadPort>,
    pub wake: UnixStream,
}

/// Sends a reactor's counts to the supervisor.
#[derive(Clone, Debug)]
pub struct Reporter(Sender<Box<Counts>>);

/// A snapshot in use on one reactor. A response that is being written keeps a clone of the `Rc`; dropping the
/// last one returns the snapshot to the supervisor.
#[derive(Debug)]
pub struct Lease {
    snapshot: Option<Arc<Snapshot>>,
    retire: Sender<Arc<Snapshot>>,
}

/// The supervisor has dropped its end of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnected;

impl Publisher {
    /// A publisher without reactors. `config` is the configuration that they start with.
    pub fn new(config: Arc<Config>) -> Self {
        let events = config.events.enabled.then(|| EventPosts::new(config.cores.len()));
        let has_store = config.traits.store != TraitsStore::None;
        let traits = has_store.then(|| TraitLink::new(config.cores.len(), hash_seed()));
        let spread = config.server.spread.then(|| SpreadChannels::new(config.cores.len()));
        let published = Published { snapshot: Arc::default(), config };
        let newest = Newest(Arc::new(Mutex::new(published)));
        Self { reactors: Vec::new(), retired: None, reports: None, events, traits, spread, newest }
    }

    /// Opens the channel to one more reactor.
    ///
    /// # Errors
    /// The socket pair could not be created (descriptor limit).
    pub fn connect(&mut self) -> io::Result<Inbox> {
        let (sender, inbox) = bounded(INBOX_MESSAGES_MAX);
        let (ours, wake) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (retire, _) = self.retired.get_or_insert_with(unbounded);
        let retire = retire.clone();
        let (reports, _) = self.reports.get_or_insert_with(|| bounded(REPORTS_MAX));
        let reports = reports.clone();
        let events = self.events.as_mut().map(|events| events.connect(&ours)).transpose()?;
        let traits = self.traits.as_mut().map(|traits| traits.connect(&ours)).transpose()?;
        let spread = match &self.spread {
            Some(spread) => spread.connect(self.reactors.len(), ours.try_clone()?),
            None => None,
        };
        self.reactors.push((sender, ours));
        Ok(Inbox { inbox, retire, reports, events, traits, spread, wake })
    }

    /// Sends a message to every reactor, and returns the number of reactors whose inbox was full. The caller
    /// must send it again later.
    pub fn send(&mut self, message: &ReactorMessage) -> usize {
        self.newest.record(message);
        let mut skipped = 0;
        for (sender, wake) in &mut self.reactors {
            match sender.try_send(message.clone()) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => skipped += 1,
                Err(TrySendError::Disconnected(_)) => continue,
            }
            // A full socket buffer means that a wake-up is already pending.
            let _ = wake.write(&[1]);
        }
        skipped
    }

    /// The end of the channel for the thread that writes events. `None` if `events.enabled` is not set.
    pub fn take_events(&mut self) -> Option<EventPosts> {
        self.events.take()
    }

    /// The end of the channel for the store thread. `None` without a store of traits.
    pub fn take_traits(&mut self) -> Option<TraitLink> {
        self.traits.take()
    }

    /// A shared view of the newest publication.
    pub fn newest(&self) -> Newest {
        self.newest.clone()
    }

    /// The number of reactors that are running.
    pub fn alive(&mut self) -> usize {
        // A reactor drops its inbox and its end of the pair together. A read from the pair returns end of
        // file if the reactor has exited, and would block otherwise.
        self.reactors.retain_mut(|(_, wake)| match wake.read(&mut [0]) {
            Ok(count) => count != 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        self.reactors.len()
    }

    /// The counts that reactors have reported since the last call.
    pub fn reports(&self) -> impl Iterator<Item = Counts> + '_ {
        self.reports.iter().flat_map(|(_, receiver)| receiver.try_iter()).map(|counts| *counts)
    }

    /// Takes the snapshots that reactors have returned.
    pub fn take_retired(&mut self) -> Vec<Arc<Snapshot>> {
        self.retired.as_ref().map_or_else(Vec::new, |(_, receiver)| receiver.try_iter().collect())
    }
}

/// Differs between processes, so that clients cannot choose identifiers of one hash.
fn hash_seed() -> u64 {
    clock::random().unwrap_or_else(|_| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0))
}

impl Newest {
    /// The newest publication.
    pub fn get(&self) -> Published {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn record(&self, message: &ReactorMessage) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            ReactorMessage::Publish(snapshot) => published.snapshot = snapshot.clone(),
            ReactorMessage::Configure(config) => published.config = config.clone(),
            ReactorMessage::Certificates(_) | ReactorMessage::Drain | ReactorMessage::End => {}
        }
    }
}

impl Inbox {
    /// The next message, or `None` if there is none at the moment.
    ///
    /// # Errors
    /// The supervisor has exited.
    pub fn try_next(&self) -> Result<Option<ReactorMessage>, Disconnected> {
        match self.inbox.try_recv() {
            Ok(message) => Ok(Some(message)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Disconnected),
        }
    }

    /// A sender for this reactor's counts.
    pub fn reporter(&self) -> Reporter {
        Reporter(self.reports.clone())
    }

    /// As [`Reporter::report`], for a reactor that exits: it may block for `LAST_REPORT_TIMEOUT`.
    pub fn report_last(&self, counts: Counts) {
        // After this time the supervisor has exited or hangs, and the counts are lost.
        let _ = self.reports.send_timeout(Box::new(counts), LAST_REPORT_TIMEOUT);
    }

    /// Wraps a snapshot for use on this reactor.
    pub fn lease(&self, snapshot: Arc<Snapshot>) -> Rc<Lease> {
        Rc::new(Lease { snapshot: Some(snapshot), retire: self.retire.clone() })
    }
}

impl Reporter {
    /// Sends counts to the supervisor.
    ///
    /// # Errors
    /// The supervisor has too many unread reports. The counts are returned; merge them into the next report.
    pub fn report(&self, counts: Box<Counts>) -> Result<(), Box<Counts>> {
        self.0.try_send(counts).map_err(TrySendError::into_inner)
    }
}

impl std::ops::Deref for Lease {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        self.snapshot.as_ref().expect("taken only by drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            // If the supervisor has exited, the process is exiting too, and the snapshot is freed here.
            let _ = self.retire.send(snapshot);
        }
    }
}
