//! The messages between the store thread and the threads of the connections, and what both connections share.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use crate::traits::redis::client::RedisFault;
use crate::traits::redis::pending::IdentityWrite;
use crate::traits::redis::wire::{Name, StreamId};

/// Why all identities are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadReason {
    /// The process has started.
    Start,
    /// The stream does not reach back to what was read last. What Redis does not have was erased or expired.
    Behind,
    /// Redis has lost data. What it does not have is written again.
    Lost,
}

/// An entry of the stream.
#[derive(Debug)]
pub struct StreamEntry {
    pub id: StreamId,
    /// Written by this process.
    pub is_own: bool,
    pub payload: String,
}

/// The fields of an identity's hash.
#[derive(Debug)]
pub struct StoredHash {
    pub name: String,
    pub fields: Vec<(String, String)>,
}

/// Which of the two connections a report is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Reader,
    Writer,
}

/// What a connection reports to the store thread.
#[derive(Debug)]
pub enum RedisReport {
    /// The clock of Redis is ahead by so many milliseconds.
    Connected {
        offset: i64,
    },
    /// All identities follow, then `Synced`. `generation` names the data from now on, of which `position` is
    /// the last entry of the stream.
    Reload {
        reason: ReloadReason,
        generation: String,
        position: StreamId,
    },
    Loaded(Vec<StoredHash>),
    /// Identities that were to be read.
    Fetched(Vec<StoredHash>),
    /// What follows are changes since this entry; `generation` names the data.
    Synced {
        generation: String,
        position: StreamId,
    },
    Changes(Vec<StreamEntry>),
    /// Nothing has changed.
    Idle,
    /// A batch was written, to these data: for each identity whether it was there before; empty if it was
    /// written twice. `id` is the entry of the stream, if something was added to it.
    Written {
        generation: String,
        id: Option<StreamId>,
        known: String,
    },
    /// Logged once for each outage.
    Failed(Side, RedisFault),
    Recovered(Side),
}

/// What the store thread orders from the writer.
#[derive(Debug)]
pub enum RedisOrder {
    Write { sequence: u64, batch: Arc<Vec<IdentityWrite>> },
    Fetch(Vec<Name>),
}

/// The state that both connections share.
#[derive(Debug, Default)]
pub struct SharedState {
    /// Memory ordering: relaxed, because the threads read nothing else that was written before it.
    pub is_stopped: AtomicBool,
    /// The last entry that this process has written, and the data that it belongs to.
    position: Mutex<(String, StreamId)>,
}

impl SharedState {
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// The data that batches are written to. Empty before the first.
    pub fn generation(&self) -> String {
        self.position.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Names the data. Nothing was written to other data than those of before.
    pub fn set_generation(&self, generation: &str) {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        *position = (generation.to_owned(), StreamId::default());
    }

    pub fn written(&self) -> StreamId {
        self.position.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    pub fn set_written(&self, id: StreamId) {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        position.1 = position.1.max(id);
    }
}

/// Sends a report; waits while the store thread has many.
///
/// # Errors
/// The store thread has ended.
pub fn report(reports: &SyncSender<RedisReport>, report: RedisReport) -> Result<(), RedisFault> {
    reports.send(report).map_err(|_| RedisFault::Stopped)
}
