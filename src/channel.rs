//! The only crossing between the planes, and the only file that names crossbeam.
//!
//! Down: the [`Publisher`] gives each reactor's [`Inbox`] the newest snapshot (latest wins) and
//! wakes it by one byte on a socket pair. Up: a retired snapshot goes back through the
//! [`Lease`]'s drop, to be freed by the supervisor. Invariant: no send here ever blocks; a
//! reactor never frees an environment.
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, unbounded};

use crate::config::Config;
use crate::counts::Counts;
use crate::snapshot::Snapshot;

/// Commands besides snapshots that the supervisor sends a reactor.
#[derive(Clone, Debug)]
pub enum ReactorMessage {
    /// Serve from this from now on.
    Publish(Arc<Snapshot>),
    /// The configuration was read again: what a request reads of it changes (CORS, health).
    Configure(Arc<Config>),
    /// New connections of the TLS listener begin with this (`crate::tls`).
    Certificates(Arc<rustls::ServerConfig>),
    /// Stop accepting, answer what was read with `Connection: close`, end.
    Drain,
}

/// Both ends of a channel that goes up.
type Ends<T> = (Sender<T>, Receiver<T>);

/// The supervisor's end: one per process.
#[derive(Debug, Default)]
pub struct Publisher {
    reactors: Vec<(Sender<ReactorMessage>, UnixStream)>,
    retired: Option<Ends<Arc<Snapshot>>>,
    reports: Option<Ends<Box<Counts>>>,
    newest: Newest,
}

/// What was published last, for those who look at it and serve nothing. Control plane only: a
/// reactor would wait for the lock.
#[derive(Clone, Debug, Default)]
pub struct Newest(Arc<Mutex<Published>>);

/// The newest of each kind.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Empty before the first.
    pub snapshot: Arc<Snapshot>,
    /// `None` until the configuration was read again.
    pub config: Option<Arc<Config>>,
}

/// A reactor's end. `wake` becomes readable when `inbox` has something.
#[derive(Debug)]
pub struct Inbox {
    inbox: Receiver<ReactorMessage>,
    retire: Sender<Arc<Snapshot>>,
    reports: Sender<Box<Counts>>,
    pub wake: UnixStream,
}

/// Where a reactor's counts go.
#[derive(Clone, Debug)]
pub struct Reporter(Sender<Box<Counts>>);

/// A snapshot in use on one reactor. Cloning the `Rc` keeps it for as long as an answer is
/// being written; the last drop hands the snapshot back to the supervisor.
#[derive(Debug)]
pub struct Lease {
    snapshot: Option<Arc<Snapshot>>,
    retire: Sender<Arc<Snapshot>>,
}

impl Publisher {
    /// Opens a channel to one more reactor.
    ///
    /// # Errors
    /// The socket pair could not be made (descriptor limit).
    pub fn connect(&mut self) -> io::Result<Inbox> {
        let (sender, inbox) = bounded(crate::limits::INBOX_MESSAGES_MAX);
        let (ours, wake) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (retire, _) = self.retired.get_or_insert_with(unbounded);
        let retire = retire.clone();
        let (reports, _) = self.reports.get_or_insert_with(|| bounded(crate::limits::REPORTS_MAX));
        let reports = reports.clone();
        self.reactors.push((sender, ours));
        Ok(Inbox { inbox, retire, reports, wake })
    }

    /// Sends to every reactor. A full inbox is skipped and counted in the result: the caller
    /// keeps the newest snapshot and sends it again, so that none is left behind.
    pub fn send(&mut self, message: &ReactorMessage) -> usize {
        self.newest.note(message);
        let mut skipped = 0;
        for (sender, wake) in &mut self.reactors {
            match sender.try_send(message.clone()) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => skipped += 1,
                Err(TrySendError::Disconnected(_)) => continue,
            }
            // A full pair means a wake is already on its way.
            let _ = wake.write(&[1]);
        }
        skipped
    }

    /// A view of whatever is the newest at the time somebody looks.
    pub fn newest(&self) -> Newest {
        self.newest.clone()
    }

    /// How many reactors still hold their inbox; the others have ended.
    pub fn alive(&mut self) -> usize {
        // The inbox and the reading end of the pair are dropped together, so a closed pair
        // (end of file, where an open one would block) means that the reactor is gone.
        self.reactors.retain_mut(|(_, wake)| match wake.read(&mut [0]) {
            Ok(count) => count != 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        self.reactors.len()
    }

    /// What reactors counted and nobody took yet.
    pub fn reports(&self) -> impl Iterator<Item = Counts> + '_ {
        self.reports.iter().flat_map(|(_, receiver)| receiver.try_iter()).map(|counts| *counts)
    }

    /// Takes the snapshots that reactors gave back, to be freed where that disturbs nobody.
    pub fn take_retired(&mut self) -> Vec<Arc<Snapshot>> {
        self.retired.as_ref().map_or_else(Vec::new, |(_, receiver)| receiver.try_iter().collect())
    }
}

impl Newest {
    /// A copy of what is the newest now.
    pub fn look(&self) -> Published {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, message: &ReactorMessage) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            ReactorMessage::Publish(snapshot) => published.snapshot = snapshot.clone(),
            ReactorMessage::Configure(config) => published.config = Some(config.clone()),
            ReactorMessage::Certificates(_) | ReactorMessage::Drain => {}
        }
    }
}

impl Inbox {
    /// The next message, or `None` if there is none now. `Err` when the supervisor is gone.
    ///
    /// # Errors
    /// `()` when the supervisor dropped its end.
    #[allow(clippy::result_unit_err)]
    pub fn try_next(&self) -> Result<Option<ReactorMessage>, ()> {
        match self.inbox.try_recv() {
            Ok(message) => Ok(Some(message)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(()),
        }
    }

    /// The way up for counts, to be kept where counting happens.
    pub fn reporter(&self) -> Reporter {
        Reporter(self.reports.clone())
    }

    /// As [`Reporter::report`], for a reactor that ends and may wait.
    pub fn report_last(&self, counts: Counts) {
        let patience = crate::limits::LAST_REPORT_PATIENCE;
        // After that the supervisor is gone or stuck, and there is nobody to count for.
        let _ = self.reports.send_timeout(Box::new(counts), patience);
    }

    /// Takes a snapshot into use on this reactor.
    pub fn lease(&self, snapshot: Arc<Snapshot>) -> Rc<Lease> {
        Rc::new(Lease { snapshot: Some(snapshot), retire: self.retire.clone() })
    }
}

impl Reporter {
    /// Hands counts to the supervisor. They come back if it has not taken the ones before.
    ///
    /// # Errors
    /// The counts, to be merged with what is counted next.
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
            // If the supervisor is gone the process is ending and the snapshot is freed here.
            let _ = self.retire.send(snapshot);
        }
    }
}
