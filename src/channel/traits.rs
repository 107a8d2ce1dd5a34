//! Writes of kept traits from the reactors to the store thread, and updates of their views back.
//!
//! No send blocks. A reactor bounds the writes that it has sent and that are not acknowledged; the channel
//! has capacity for that much of each. A reactor reads its updates before each request; one that does not for
//! long misses some, and gets the whole table instead.
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::limits;
use crate::trait_table::{TraitUpdate, TraitWrite};

/// Updates that wait for the next request of a reactor. With more it is woken.
const UPDATES_UNREAD_MAX: usize = limits::TRAIT_UPDATES_QUEUED_MAX / 4;

/// A message to the store thread.
#[derive(Debug)]
pub enum TraitMessage {
    /// A write, and the reactor that sent it.
    Write(usize, TraitWrite),
    /// Write everything to the disk and exit.
    Stop,
}

/// A reactor's end.
#[derive(Clone, Debug)]
pub struct TraitPort {
    reactor: usize,
    writes: Sender<TraitMessage>,
    updates: Receiver<TraitUpdate>,
    /// The seed of the hashes of all tables.
    pub seed: u64,
}

/// The store thread's end of the channel to all reactors.
#[derive(Debug)]
pub struct TraitLink {
    writes: Receiver<TraitMessage>,
    /// Keeps the channel open, and is cloned for each reactor.
    sender: Sender<TraitMessage>,
    reactors: Vec<ReactorLink>,
    seed: u64,
}

#[derive(Debug)]
struct ReactorLink {
    updates: Sender<TraitUpdate>,
    wake: UnixStream,
}

/// Ends the store thread.
#[derive(Clone, Debug)]
pub struct TraitStop(Sender<TraitMessage>);

impl TraitLink {
    /// For this number of reactors, with the seed of the hashes.
    pub fn new(reactors: usize, seed: u64) -> Self {
        let (sender, writes) = bounded(reactors.saturating_mul(limits::TRAIT_WRITES_QUEUED_MAX).max(1) + 1);
        Self { writes, sender, reactors: Vec::new(), seed }
    }

    /// The seed of the hashes of all tables.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Adds a reactor, which is woken by a byte on `wake`.
    ///
    /// # Errors
    /// The socket cannot be duplicated (descriptor limit).
    pub fn connect(&mut self, wake: &UnixStream) -> io::Result<TraitPort> {
        let (sender, updates) = bounded(limits::TRAIT_UPDATES_QUEUED_MAX);
        let reactor = self.reactors.len();
        self.reactors.push(ReactorLink { updates: sender, wake: wake.try_clone()? });
        Ok(TraitPort { reactor, writes: self.sender.clone(), updates, seed: self.seed })
    }

    /// What ends the thread.
    pub fn stop(&self) -> TraitStop {
        TraitStop(self.sender.clone())
    }

    /// How many reactors there are.
    pub fn reactors(&self) -> usize {
        self.reactors.len()
    }

    /// Waits for messages, at most for `timeout`; returns those that have arrived, at most `count_max`.
    pub fn next_group(&self, timeout: Duration, count_max: usize) -> Vec<TraitMessage> {
        // It cannot be disconnected, because this end has a sender too.
        let first = match timeout {
            Duration::ZERO => self.writes.try_recv().ok(),
            timeout => self.writes.recv_timeout(timeout).ok(),
        };
        first.into_iter().chain(self.writes.try_iter()).take(count_max).collect()
    }

    /// How many messages wait.
    pub fn queued(&self) -> usize {
        self.writes.len()
    }

    /// Whether a reactor can take an update.
    pub fn has_capacity(&self, reactor: usize) -> bool {
        self.reactors.get(reactor).is_some_and(|link| !link.updates.is_full())
    }

    /// Sends an update to a reactor, which looks for them before it reads a request, and is woken if it has
    /// nothing to do while they gather. Returns false if it has too many unread ones.
    pub fn send(&mut self, reactor: usize, update: TraitUpdate) -> bool {
        let Some(link) = self.reactors.get_mut(reactor) else { return true };
        if link.updates.is_full() {
            return false;
        }
        // A reactor that has exited needs none.
        let _ = link.updates.try_send(update);
        if link.updates.len() >= UPDATES_UNREAD_MAX {
            // A full socket buffer means that a wake-up is already pending.
            let _ = link.wake.write(&[1]);
        }
        true
    }
}

impl TraitPort {
    /// Sends a write. Returns false if the store thread has ended: a view never sends more than fits.
    pub fn send(&self, write: TraitWrite) -> bool {
        self.writes.try_send(TraitMessage::Write(self.reactor, write)).is_ok()
    }

    /// The number of the reactor in the channel.
    pub fn reactor(&self) -> usize {
        self.reactor
    }

    pub fn has_updates(&self) -> bool {
        !self.updates.is_empty()
    }

    /// The next update, if there is one.
    pub fn next_update(&self) -> Option<TraitUpdate> {
        self.updates.try_recv().ok()
    }
}

impl TraitStop {
    /// Ends the thread after the writes that were sent before.
    pub fn send(&self) {
        // It has ended if the channel is disconnected; a full one is read within the timeout.
        let _ = self.0.send_timeout(TraitMessage::Stop, Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use super::*;
    use crate::trait_table::{TraitChange, TraitDelta, WriteKind};

    fn write(identifier: &str) -> TraitWrite {
        TraitWrite::new("e".into(), WriteKind::Touch, identifier, &[])
    }

    #[test]
    fn writes_arrive_in_order_and_unread_updates_wake_the_reactor() {
        let mut link = TraitLink::new(2, 5);
        let (ours, mut wake) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ports = [link.connect(&ours).unwrap(), link.connect(&ours).unwrap()];
        assert!(ports[0].send(write("a")) && ports[1].send(write("b")) && ports[0].send(write("c")));
        link.stop().send();
        let group = link.next_group(Duration::from_secs(5), 3);
        let senders: Vec<_> = group
            .iter()
            .map(|message| match message {
                TraitMessage::Write(reactor, write) => (*reactor, write.parts().expect("a write").0),
                TraitMessage::Stop => (9, ""),
            })
            .collect();
        assert_eq!(senders, [(0, "a"), (1, "b"), (0, "c")]);
        assert!(matches!(link.next_group(Duration::ZERO, 3)[..], [TraitMessage::Stop]));
        let update = || {
            let change = TraitChange::Delta(Arc::new(TraitDelta::default()));
            TraitUpdate { change, acknowledged: 1 }
        };
        wake.set_nonblocking(true).unwrap();
        for number in 1..=limits::TRAIT_UPDATES_QUEUED_MAX {
            assert!(link.send(0, update()));
            assert_eq!(wake.read(&mut [0; 8]).is_ok(), number >= UPDATES_UNREAD_MAX, "{number}");
        }
        assert!(!link.send(0, update()), "the queue of updates is full");
        assert!(
            link.send(1, update()) && ports[1].next_update().is_some() && ports[1].next_update().is_none()
        );
    }
}
