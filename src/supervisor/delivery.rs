//! Delivers messages to the reactors and frees the snapshots that they return.
use std::sync::{Arc, Weak};

use crate::channel::{Publisher, ReactorMessage};
use crate::counts::Counts;
use crate::snapshot::Snapshot;

/// The supervisor's end of the channel, with the messages that full inboxes did not accept.
#[derive(Debug)]
pub struct Delivery {
    publisher: Publisher,
    unsent: Vec<ReactorMessage>,
    /// Snapshots that reactors may still use.
    published: Vec<Weak<Snapshot>>,
}

impl Delivery {
    pub fn new(publisher: Publisher) -> Self {
        Self { publisher, unsent: Vec::new(), published: Vec::new() }
    }

    /// Sends in order. A message that an inbox has no capacity for is sent again by [`resend`](Self::resend);
    /// a newer snapshot replaces an unsent older one.
    pub fn send(&mut self, message: ReactorMessage) {
        if let ReactorMessage::Publish(snapshot) = &message {
            self.published.push(Arc::downgrade(snapshot));
            self.unsent.retain(|unsent| !matches!(unsent, ReactorMessage::Publish(_)));
        }
        if !self.unsent.is_empty() || self.publisher.send(&message) > 0 {
            self.unsent.push(message);
        }
    }

    pub fn resend(&mut self) {
        while let Some(message) = self.unsent.first() {
            if self.publisher.send(message) > 0 {
                return;
            }
            self.unsent.remove(0);
        }
    }

    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The snapshots that reactors returned, to be freed by the caller: some are large.
    pub fn take_retired(&mut self) -> Vec<Arc<Snapshot>> {
        let retired = self.publisher.take_retired();
        self.published.retain(|snapshot| snapshot.strong_count() > 0);
        retired
    }

    /// An older snapshot than the newest is still in use, and will be returned.
    pub fn has_older_snapshots(&self) -> bool {
        self.published.len() > 1
    }

    /// How many reactors are running.
    pub fn reactors(&mut self) -> usize {
        self.publisher.alive()
    }

    /// What reactors counted since the last call.
    pub fn take_counts(&self) -> Vec<Counts> {
        self.publisher.reports().collect()
    }
}
