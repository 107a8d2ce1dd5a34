//! Events from the reactors to the thread that writes them, and the results back.
//!
//! A reactor bounds what it has sent and what is not acknowledged yet, in bytes and in requests; the channel
//! has capacity for that much of each reactor. No send blocks. A reactor is woken as for a message of the
//! supervisor.
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::events::{EventPost, EventRefusal};
use crate::limits;

/// Whether the events of a request are stored.
pub type EventResult = Result<(), EventRefusal>;

/// The events of one request, and who waits for their result.
#[derive(Debug)]
pub struct SentPost {
    reactor: usize,
    ticket: u64,
    pub post: EventPost,
}

/// The result of a request; the ticket is that of [`EventPort::send`].
#[derive(Clone, Copy, Debug)]
pub struct EventAck {
    pub ticket: u64,
    pub result: EventResult,
}

/// A reactor's end.
#[derive(Clone, Debug)]
pub struct EventPort {
    reactor: usize,
    posts: Sender<SentPost>,
    acks: Receiver<EventAck>,
}

/// The writer's end of the channel to all reactors.
#[derive(Debug)]
pub struct EventPosts {
    posts: Receiver<SentPost>,
    /// Keeps the channel open until it is dropped, and is cloned for each reactor.
    sender: Sender<SentPost>,
    reactors: Vec<(Sender<EventAck>, UnixStream)>,
}

impl EventPosts {
    /// For this number of reactors.
    pub fn new(reactors: usize) -> Self {
        let (sender, posts) = bounded(reactors.saturating_mul(limits::EVENT_POSTS_QUEUED_MAX).max(1));
        Self { posts, sender, reactors: Vec::new() }
    }

    /// Adds a reactor, which is woken by a byte on `wake`.
    ///
    /// # Errors
    /// The socket cannot be duplicated (descriptor limit).
    pub fn connect(&mut self, wake: &UnixStream) -> io::Result<EventPort> {
        let (results, acks) = unbounded();
        let reactor = self.reactors.len();
        self.reactors.push((results, wake.try_clone()?));
        Ok(EventPort { reactor, posts: self.sender.clone(), acks })
    }

    /// Waits for events, at most for `timeout`; returns all that have arrived.
    pub fn next_group(&self, timeout: Duration) -> Vec<SentPost> {
        // It cannot be disconnected, because this end has a sender too.
        let first = match timeout {
            Duration::ZERO => self.posts.try_recv().ok(),
            timeout => self.posts.recv_timeout(timeout).ok(),
        };
        first.into_iter().chain(self.posts.try_iter()).collect()
    }

    /// Reports the results of a group, and wakes each reactor once.
    pub fn acknowledge(&mut self, results: impl IntoIterator<Item = (SentPost, EventResult)>) {
        let mut is_woken = vec![false; self.reactors.len()];
        for (sent, result) in results {
            if let Some((reactor, _)) = self.reactors.get(sent.reactor) {
                // A reactor that has exited waits for nothing.
                let _ = reactor.send(EventAck { ticket: sent.ticket, result });
                is_woken[sent.reactor] = true;
            }
        }
        for ((_, wake), _) in self.reactors.iter_mut().zip(is_woken).filter(|(_, is_woken)| *is_woken) {
            // A full socket buffer means that a wake-up is already pending.
            let _ = wake.write(&[1]);
        }
    }
}

impl EventPort {
    /// Sends events to the writer. `ticket` identifies the result.
    ///
    /// # Errors
    /// The channel is full, or the writer has ended.
    pub fn send(&self, ticket: u64, post: EventPost) -> EventResult {
        let sent = SentPost { reactor: self.reactor, ticket, post };
        self.posts.try_send(sent).map_err(|_| EventRefusal::QueueFull)
    }

    /// The next result, if there is one.
    pub fn next_ack(&self) -> Option<EventAck> {
        self.acks.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn results_return_to_the_reactor_that_sent_the_events() {
        let mut writer = EventPosts::new(2);
        let (ours, mut wake) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (other, _other_wake) = UnixStream::pair().unwrap();
        let ports = [writer.connect(&ours).unwrap(), writer.connect(&other).unwrap()];
        for ticket in 1..=3 {
            ports[0].send(ticket, EventPost::default()).unwrap();
        }
        ports[1].send(1, EventPost::default()).unwrap();
        let group = writer.next_group(Duration::from_secs(5));
        assert_eq!(group.len(), 4);
        let refused = Err(EventRefusal::Disk);
        writer.acknowledge(group.into_iter().map(|sent| {
            let result = if sent.reactor == 1 { refused } else { Ok(()) };
            (sent, result)
        }));
        let acks: Vec<_> = std::iter::from_fn(|| ports[0].next_ack()).collect();
        assert_eq!(
            acks.iter().map(|ack| (ack.ticket, ack.result)).collect::<Vec<_>>(),
            [(1, Ok(())), (2, Ok(())), (3, Ok(()))]
        );
        assert_eq!(ports[1].next_ack().map(|ack| ack.result), Some(refused));
        let mut bytes = [0; 8];
        assert_eq!(wake.read(&mut bytes).unwrap(), 1, "one wake-up for three results");
        assert!(writer.next_group(Duration::ZERO).is_empty());
    }

    #[test]
    fn a_full_channel_and_a_missing_writer_refuse_events() {
        let mut writer = EventPosts::new(1);
        let (ours, _wake) = UnixStream::pair().unwrap();
        let port = writer.connect(&ours).unwrap();
        for ticket in 0..limits::EVENT_POSTS_QUEUED_MAX as u64 {
            port.send(ticket, EventPost::default()).unwrap();
        }
        assert_eq!(port.send(0, EventPost::default()), Err(EventRefusal::QueueFull));
        drop(writer);
        assert_eq!(port.send(0, EventPost::default()), Err(EventRefusal::QueueFull));
    }
}
