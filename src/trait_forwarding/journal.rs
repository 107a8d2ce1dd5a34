//! The journal of the queue: a spool whose records are the changes of the queue, in order.
//!
//! A record has lines of JSON: a trait that was added, or one that is done. Replayed in order they give what
//! waits. When the journal has grown to a multiple of the queue, or has an identity that was erased, it is
//! written anew.
use std::collections::BTreeMap;
use std::io;

use crate::limits;
use crate::storage::disk::DiskFolder;
use crate::storage::spool::{RecordId, RecoveredRecord, Recovery, Spool, SpoolError, SpoolOptions};
use crate::trait_forwarding::entry::JournalEntry;
use crate::trait_forwarding::queue::{RestoredTrait, SharedTraitQueue};

/// The folder below `cache_dir`.
pub const FOLDER: &str = "traits-forward";

/// The journal may have this many bytes beyond twice the queue.
const SLACK_BYTES: u64 = 1024 * 1024;

/// An environment, an identifier and a key.
type TraitName = (String, String, String);

#[derive(Debug)]
struct ReplayedTrait {
    json: Box<str>,
    version: u64,
    at: u64,
}

/// What waits after a replay.
#[derive(Debug, Default)]
struct Replay {
    waiting: BTreeMap<TraitName, ReplayedTrait>,
    records: Vec<RecordId>,
}

impl Replay {
    fn add(&mut self, record: &RecoveredRecord<'_>) {
        self.records.push(record.id);
        for line in record.payload.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(JournalEntry::Set(environment, identifier, key, json, version, at)) => {
                    let name = (environment.into_owned(), identifier.into_owned(), key.into_owned());
                    self.waiting.insert(name, ReplayedTrait { json: json.into_owned().into(), version, at });
                }
                Ok(JournalEntry::Done(environment, identifier, key, version)) => {
                    let name = (environment.into_owned(), identifier.into_owned(), key.into_owned());
                    if self.waiting.get(&name).is_some_and(|waiting| waiting.version == version) {
                        self.waiting.remove(&name);
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// What waits, in the order in which it was added.
    fn waiting(self) -> impl Iterator<Item = RestoredTrait> {
        let mut waiting: Vec<_> = self.waiting.into_iter().collect();
        waiting.sort_by_key(|(_, replayed)| replayed.version);
        waiting.into_iter().map(|((environment, identifier, key), ReplayedTrait { json, at, .. })| {
            RestoredTrait { environment, identifier, key, json, at }
        })
    }
}

/// The spool with the changes.
#[derive(Debug)]
pub struct Journal {
    parent: DiskFolder,
    spool: Spool,
    options: SpoolOptions,
    records: Vec<RecordId>,
    adopted: Option<Adopted>,
}

/// The spool of a process that has ended, until what it had is in this journal.
#[derive(Debug)]
struct Adopted {
    spool: Spool,
    records: Vec<RecordId>,
    recovery: Recovery,
}

impl Journal {
    /// Opens the journal in `cache_dir`, and adds what earlier processes left in it to the queue. The next
    /// [`write`](Self::write) writes it anew. What waits is added once, whether that write fails or not:
    /// added again later, it would replace values that have been delivered meanwhile.
    ///
    /// # Errors
    /// The folder cannot be created, locked or read. The queue is unchanged.
    pub fn open(cache_dir: &DiskFolder, queue: &SharedTraitQueue) -> io::Result<(Self, Recovery)> {
        let parent = cache_dir.join(FOLDER);
        // What waits is written twice while the journal is written anew.
        let bytes_max = limits::TRAIT_FORWARD_BYTES_MAX * 8;
        let options = SpoolOptions { bytes_max, syncs: false };
        let mut replay = Replay::default();
        let (spool, recovery) = Spool::open_any(parent.clone(), options, |record| replay.add(&record))?;
        let records = std::mem::take(&mut replay.records);
        let mut queue = queue.lock();
        queue.restore(replay.waiting());
        queue.journal_failed();
        Ok((Self { parent, spool, options, records, adopted: None }, recovery))
    }

    /// Takes over what a process that has ended left, if there is one.
    ///
    /// # Errors
    /// A folder cannot be locked, read or written. What was added to the queue is removed from its old
    /// place by the next call.
    pub fn adopt(&mut self, queue: &SharedTraitQueue) -> io::Result<Option<Recovery>> {
        let recovery = self.finish_adoption(queue)?;
        if recovery.is_some() {
            return Ok(recovery);
        }
        let mut replay = Replay::default();
        let opened = Spool::open_abandoned(self.parent.clone(), self.options, |record| replay.add(&record))?;
        let Some((spool, recovery)) = opened else { return Ok(None) };
        let records = std::mem::take(&mut replay.records);
        queue.lock().restore(replay.waiting());
        self.adopted = Some(Adopted { spool, records, recovery });
        self.finish_adoption(queue)
    }

    /// Writes what was adopted, then removes it from its old place.
    fn finish_adoption(&mut self, queue: &SharedTraitQueue) -> io::Result<Option<Recovery>> {
        let Some(mut adopted) = self.adopted.take() else { return Ok(None) };
        let result = self
            .write(queue)
            .and_then(|()| self.spool.sync())
            .and_then(|()| adopted.spool.remove_durably(&adopted.records));
        if let Err(error) = result {
            self.adopted = Some(adopted);
            return Err(error);
        }
        Ok(Some(adopted.recovery))
    }

    /// Writes the changes since the last call; they survive the end of the process.
    ///
    /// # Errors
    /// The disk is full or failed. The journal is written anew by the next call.
    pub fn write(&mut self, queue: &SharedTraitQueue) -> io::Result<()> {
        let (unwritten, waiting_bytes) = {
            let mut queue = queue.lock();
            (queue.take_unwritten(), queue.size().1)
        };
        let result = match unwritten {
            Some(unwritten) if self.spool.bytes() <= waiting_bytes * 2 + SLACK_BYTES => {
                let parts = unwritten.split_inclusive(|byte| *byte == b'\n');
                self.append(chunks(parts))
            }
            _ => self.rewrite(queue),
        };
        if result.is_err() {
            queue.lock().journal_failed();
        }
        result
    }

    fn append(&mut self, payloads: Vec<Vec<u8>>) -> io::Result<()> {
        if payloads.is_empty() {
            return Ok(());
        }
        let ids = self.spool.append(&payloads).map_err(|error| match error {
            SpoolError::Io(error) => error,
            full => io::Error::new(io::ErrorKind::StorageFull, full.to_string()),
        })?;
        self.spool.commit()?;
        self.records.extend(ids);
        Ok(())
    }

    /// Writes what waits into a new file and removes all others, durably: after a loss of power
    /// they would bring back values that were delivered or replaced long ago.
    fn rewrite(&mut self, queue: &SharedTraitQueue) -> io::Result<()> {
        let parts = queue.lock().take_all();
        let old = std::mem::take(&mut self.records);
        self.spool.close_segment();
        let result = self
            .append(parts)
            .and_then(|()| self.spool.sync())
            .and_then(|()| self.spool.remove_durably(&old));
        if result.is_err() {
            self.records.extend(old);
        }
        result
    }

    /// Writes everything to the disk itself.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync(&mut self) -> io::Result<()> {
        self.spool.sync()
    }
}

/// Lines in payloads of bounded size.
fn chunks<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        match payloads.last_mut().filter(|last| last.len() < limits::EVENT_RECORD_BYTES_MAX) {
            Some(last) => last.extend_from_slice(line),
            None => payloads.push(line.to_vec()),
        }
    }
    payloads
}

#[cfg(test)]
mod tests;
