//! The queue of stored events: a spool, and which of its records wait to be forwarded, by source.
//!
//! A batch consists of records of one source. It is marked in the spool before it is sent, so that after a
//! restart the same records have the same idempotency key, and they are marked as done before the next batch
//! is sent: a crash repeats one batch at most. Sources take turns, so that a flood of one delays no other.
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::value::RawValue;

use crate::events::{EventLoss, EventPost, EventRecord, EventRefusal, EventSource, RecordHalf, RecordHead};
use crate::forwarding::batch::{
    EventBatch, QueuedRecord, RecoveredEvents, by_spool, idempotency_key, take_records,
};
use crate::metrics::EventMetrics;
use crate::storage::disk::DiskFolder;
use crate::storage::spool::{RecoveredRecord, Recovery, Spool, SpoolError, SpoolOptions};
use crate::{clock, limits};

/// The folder below `cache_dir`.
pub const FOLDER: &str = "events";

/// The queue as the writer and the rounds share it. `None` while the spool cannot be opened.
#[derive(Clone, Debug, Default)]
pub struct SharedQueue(Arc<Mutex<Option<EventQueue>>>);

impl SharedQueue {
    pub fn lock(&self) -> MutexGuard<'_, Option<EventQueue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stored events that were not forwarded yet.
#[derive(Debug)]
pub struct EventQueue {
    parent: DiskFolder,
    options: SpoolOptions,
    /// The first is written to; the others were left by processes that have ended.
    spools: BTreeMap<u32, Spool>,
    next_spool: u32,
    sources: BTreeMap<EventSource, SourceQueue>,
    /// The source of the last batch: the next one is of a later source.
    last_source: EventSource,
    /// Appended since the last commit.
    uncommitted: Vec<(EventSource, QueuedRecord)>,
    /// Records that are delivered, and whose mark could not be written.
    unmarked: Vec<QueuedRecord>,
    metrics: Arc<EventMetrics>,
    events: u64,
}

/// What waits of one source.
#[derive(Debug, Default)]
struct SourceQueue {
    /// To be sent again, in order, before the other records.
    batches: VecDeque<EventBatch>,
    records: VecDeque<QueuedRecord>,
    /// The end of `Retry-After`.
    retry_at: Option<Instant>,
}

impl SourceQueue {
    fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.records.is_empty()
    }

    /// When the oldest events were accepted, seconds since the epoch.
    fn oldest(&self) -> Option<u64> {
        let batch = self.batches.iter().flat_map(|batch| &batch.records).map(|record| record.at).min();
        batch.into_iter().chain(self.records.front().map(|record| record.at)).min()
    }
}

impl EventQueue {
    /// Opens the spool in `cache_dir`, with the events that earlier processes left.
    ///
    /// # Errors
    /// The folder cannot be created, locked or read.
    pub fn open(
        cache_dir: impl Into<DiskFolder>,
        options: SpoolOptions,
        metrics: Arc<EventMetrics>,
    ) -> io::Result<(Self, Recovery)> {
        let parent = cache_dir.into().join(FOLDER);
        let mut found = RecoveredEvents::default();
        let (spool, recovery) = Spool::open_any(parent.clone(), options, |record| found.add(0, record))?;
        let mut queue = Self {
            parent,
            options,
            spools: BTreeMap::from([(0, spool)]),
            next_spool: 1,
            sources: BTreeMap::new(),
            last_source: EventSource::default(),
            uncommitted: Vec::new(),
            unmarked: Vec::new(),
            metrics,
            events: 0,
        };
        queue.add_recovered(0, found, recovery);
        Ok((queue, recovery))
    }

    /// Takes over the spool of a process that has ended, if there is one.
    ///
    /// # Errors
    /// A folder cannot be locked or read.
    pub fn adopt(&mut self) -> io::Result<Option<Recovery>> {
        let number = self.next_spool;
        let mut found = RecoveredEvents::default();
        let add = |record: RecoveredRecord<'_>| found.add(number, record);
        let Some((spool, recovery)) = Spool::open_abandoned(self.parent.clone(), self.options, add)? else {
            return Ok(None);
        };
        self.next_spool += 1;
        self.spools.insert(number, spool);
        self.add_recovered(number, found, recovery);
        Ok(Some(recovery))
    }

    fn add_recovered(&mut self, spool: u32, mut found: RecoveredEvents, recovery: Recovery) {
        let repeated = found.take_repeated();
        let number = self.spools.get(&spool).map(Spool::number).unwrap_or_default();
        // How many events a damaged record had is unknown.
        self.metrics.lost(EventLoss::Damaged, recovery.damaged + found.unreadable.len() as u64);
        for ((source, batch), records) in found.batches {
            self.events += records.iter().map(|record| u64::from(record.count)).sum::<u64>();
            let source = self.admitted(source);
            let idempotency_key = idempotency_key(number, batch);
            let batch = EventBatch { source: source.clone(), idempotency_key, records, faults: 0 };
            self.sources.entry(source).or_default().batches.push_back(batch);
        }
        for (source, record) in found.waiting {
            self.push(source, record);
        }
        self.finish(&found.unreadable);
        self.finish(&repeated);
        self.publish();
    }

    fn push(&mut self, source: EventSource, record: QueuedRecord) {
        self.events += u64::from(record.count);
        let source = self.admitted(source);
        self.sources.entry(source).or_default().records.push_back(record);
    }

    /// The source, or that of the environment without an SDK if there are too many.
    fn admitted(&self, source: EventSource) -> EventSource {
        if self.sources.contains_key(&source) {
            return source;
        }
        let plain = EventSource { sdk: "".into(), ..source.clone() };
        let of_environment = self
            .sources
            .range(&plain..)
            .take_while(|(other, _)| other.client_side_key == source.client_side_key);
        if of_environment.take(limits::EVENT_SDKS_MAX).count() < limits::EVENT_SDKS_MAX {
            source
        } else {
            plain
        }
    }

    /// The number of events that wait.
    pub fn count(&self) -> u64 {
        self.events
    }

    /// Appends the events of a request to the group that [`commit`](Self::commit) writes. `at` is the time in
    /// seconds since the epoch.
    ///
    /// # Errors
    /// The spool is full or failed.
    pub fn append(&mut self, post: &EventPost, at: u64) -> Result<(), EventRefusal> {
        let payloads: Vec<Vec<u8>> = post
            .parts
            .iter()
            .map(|part| {
                let head = RecordHead { source: post.source.clone(), count: part.count, at, half: None };
                head.encode(&part.events)
            })
            .collect();
        let Some(spool) = self.spools.get_mut(&0) else { return Err(EventRefusal::Disk) };
        let ids = spool.append(&payloads).map_err(|error| match error {
            SpoolError::Full => EventRefusal::SpoolFull,
            SpoolError::Damaged | SpoolError::Io(_) => EventRefusal::Disk,
        })?;
        for ((id, payload), part) in ids.into_iter().zip(&payloads).zip(&post.parts) {
            let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            let record = QueuedRecord { spool: 0, id, payload_bytes, count: part.count, at };
            self.uncommitted.push((post.source.clone(), record));
        }
        Ok(())
    }

    /// Writes the appended events; with `fsync` also to the disk itself.
    ///
    /// # Errors
    /// The disk is full or failed. None of the events since the last commit is stored.
    pub fn commit(&mut self) -> io::Result<()> {
        let appended = std::mem::take(&mut self.uncommitted);
        let Some(spool) = self.spools.get_mut(&0) else { return Err(io::ErrorKind::NotFound.into()) };
        spool.commit()?;
        if self.options.syncs
            && let Err(error) = spool.sync()
        {
            // They are refused, so that clients send them again.
            let records: Vec<QueuedRecord> = appended.iter().map(|(_, record)| *record).collect();
            self.finish(&records);
            return Err(error);
        }
        for (source, record) in appended {
            self.push(source, record);
        }
        self.publish();
        Ok(())
    }

    /// Writes everything to the disk itself.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync(&mut self) -> io::Result<()> {
        self.spools.values_mut().try_for_each(Spool::sync)
    }

    /// The next batch and its body. `None` if no source has events that are due, except those in `skipped`.
    ///
    /// # Errors
    /// The disk failed.
    pub fn next_batch(
        &mut self,
        now: Instant,
        skipped: &HashSet<EventSource>,
    ) -> Result<Option<(EventBatch, Vec<u8>)>, SpoolError> {
        self.mark_finished()?;
        loop {
            let is_due = |(source, queue): &(&EventSource, &SourceQueue)| {
                !skipped.contains(*source) && queue.retry_at.is_none_or(|at| at <= now)
            };
            let later = (Bound::Excluded(&self.last_source), Bound::Unbounded);
            let in_turn = self.sources.range::<EventSource, _>(later).chain(&self.sources);
            let Some((source, _)) = in_turn.into_iter().find(is_due) else { return Ok(None) };
            let source = source.clone();
            self.last_source = source.clone();
            if let Some(batch) = self.take_batch(source)? {
                return Ok(Some(batch));
            }
        }
    }

    /// Takes the next batch of a source; `None` if all its records are damaged.
    fn take_batch(&mut self, source: EventSource) -> Result<Option<(EventBatch, Vec<u8>)>, SpoolError> {
        let queue = self.sources.entry(source.clone()).or_default();
        queue.retry_at = None;
        let (mut batch, is_new) = match queue.batches.pop_front() {
            Some(batch) => (batch, false),
            None => {
                let records = take_records(&mut queue.records);
                (
                    EventBatch { source: source.clone(), idempotency_key: String::new(), records, faults: 0 },
                    true,
                )
            }
        };
        if queue.is_empty() {
            self.sources.remove(&source);
        }
        let body = match self.read_body(&mut batch) {
            Ok(body) => body,
            Err(error) => {
                self.keep(batch, None);
                return Err(error);
            }
        };
        if batch.records.is_empty() {
            return Ok(None);
        }
        if is_new || batch.idempotency_key.is_empty() {
            self.mark_batch(&mut batch);
        }
        Ok(Some((batch, body)))
    }

    /// Gives a batch its key. If the disk fails, a crash would send the same events with another key.
    fn mark_batch(&mut self, batch: &mut EventBatch) {
        let number = clock::random().unwrap_or_default().clamp(1, u64::MAX - 1);
        let spool = batch.records.first().and_then(|record| self.spools.get(&record.spool));
        let spool_number = spool.map(Spool::number).unwrap_or_default();
        batch.idempotency_key = idempotency_key(spool_number, number);
        for (spool, ids) in by_spool(&batch.records) {
            if let Some(spool) = self.spools.get_mut(&spool) {
                let _ = spool.mark_batch(&ids, number);
            }
        }
    }

    /// The body of a batch. Damaged records are removed from it.
    fn read_body(&mut self, batch: &mut EventBatch) -> Result<Vec<u8>, SpoolError> {
        let mut body = b"{\"events\":[".to_vec();
        let mut damaged = Vec::new();
        for record in &batch.records {
            let payload = match self.spools.get(&record.spool).map(|spool| spool.read(record.id)) {
                Some(Ok(payload)) => payload,
                Some(Err(SpoolError::Damaged)) | None => {
                    damaged.push(*record);
                    continue;
                }
                Some(Err(error)) => return Err(error),
            };
            let events = EventRecord::read_head(&payload).and_then(|(_, start)| payload.get(start..));
            if body.len() > b"{\"events\":[".len() {
                body.push(b',');
            }
            body.extend_from_slice(events.unwrap_or_default());
        }
        body.extend_from_slice(b"]}");
        if !damaged.is_empty() {
            batch.records.retain(|record| {
                !damaged.iter().any(|lost| lost.id == record.id && lost.spool == record.spool)
            });
            let count: u64 = damaged.iter().map(|record| u64::from(record.count)).sum();
            self.metrics.lost(EventLoss::Damaged, count);
            self.events = self.events.saturating_sub(count);
            self.finish(&damaged);
        }
        Ok(body)
    }

    /// Removes a batch that was delivered, or given up.
    pub fn remove(&mut self, batch: &EventBatch) {
        self.events = self.events.saturating_sub(batch.count());
        self.finish(&batch.records);
        self.publish();
    }

    /// Puts a batch back, to be sent again, not before `retry_at`.
    pub fn keep(&mut self, batch: EventBatch, retry_at: Option<Instant>) {
        let queue = self.sources.entry(batch.source.clone()).or_default();
        queue.retry_at = retry_at;
        queue.batches.push_front(batch);
        self.publish();
    }

    /// Counts an answer of 500 to a batch that was kept, in a round in which others were accepted. Returns
    /// the batch if it is to be divided.
    pub fn add_fault(&mut self, source: &EventSource, idempotency_key: &str) -> Option<EventBatch> {
        let queue = self.sources.get_mut(source)?;
        let place = queue.batches.iter().position(|batch| batch.idempotency_key == idempotency_key)?;
        let batch = queue.batches.get_mut(place)?;
        batch.faults += 1;
        if batch.faults < limits::EVENT_FAULTS_MAX {
            return None;
        }
        let batch = queue.batches.remove(place);
        if queue.is_empty() {
            self.sources.remove(source);
        }
        batch
    }

    /// Divides a batch in two, which are the next of its source. False: it is a single event, which the
    /// caller removes.
    ///
    /// # Errors
    /// The disk failed; the batch is kept.
    pub fn divide(&mut self, batch: EventBatch) -> Result<bool, SpoolError> {
        if batch.count() <= 1 {
            return Ok(false);
        }
        let halves = match &batch.records[..] {
            [record] => match self.divide_record(*record, &batch.source) {
                Ok(halves) => halves,
                Err(error) => {
                    self.keep(batch, None);
                    return Err(error);
                }
            },
            records => {
                let (first, second) = records.split_at(records.len().div_ceil(2));
                [first.to_vec(), second.to_vec()]
            }
        };
        for records in halves.into_iter().rev() {
            let faults = batch.faults.min(limits::EVENT_FAULTS_MAX - 1);
            let mut half =
                EventBatch { source: batch.source.clone(), idempotency_key: String::new(), records, faults };
            self.mark_batch(&mut half);
            self.keep(half, None);
        }
        Ok(true)
    }

    /// Replaces a record by two with half of its events each.
    fn divide_record(
        &mut self,
        record: QueuedRecord,
        source: &EventSource,
    ) -> Result<[Vec<QueuedRecord>; 2], SpoolError> {
        let payload =
            self.spools.get(&record.spool).map_or(Err(SpoolError::Damaged), |spool| spool.read(record.id))?;
        let stored = EventRecord::decode(payload).ok_or(SpoolError::Damaged)?;
        let list = [b"[", &stored.events[..], b"]"].concat();
        let events: Vec<&RawValue> = serde_json::from_slice(&list).map_err(|_| SpoolError::Damaged)?;
        let (first, second) = events.split_at(events.len().div_ceil(2));
        // In the spool of the record, so that a process that opens it finds both.
        let spool = self.spools.get_mut(&record.spool).ok_or(SpoolError::Damaged)?;
        let halves = [(first, false), (second, true)].map(|(events, is_second)| {
            let texts: Vec<&str> = events.iter().map(|event| event.get()).collect();
            let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
            let half = Some(RecordHalf { of: record.id.number(), is_second });
            let head = RecordHead { source: source.clone(), count, at: stored.at, half };
            let payload = head.encode(texts.join(",").as_bytes());
            let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            let id = spool.append_beyond(&payload);
            vec![QueuedRecord { spool: record.spool, id, payload_bytes, count, at: stored.at }]
        });
        spool.commit()?;
        if let Err(error) = spool.sync() {
            self.finish(&halves.concat());
            return Err(error.into());
        }
        self.finish(&[record]);
        Ok(halves)
    }

    /// Marks records as done. If the disk fails, [`next_batch`](Self::next_batch) tries again.
    fn finish(&mut self, records: &[QueuedRecord]) {
        self.unmarked.extend_from_slice(records);
        // The next batch is not sent before this succeeds.
        let _ = self.mark_finished();
    }

    fn mark_finished(&mut self) -> io::Result<()> {
        if self.unmarked.is_empty() {
            return Ok(());
        }
        for (spool, ids) in by_spool(&self.unmarked) {
            if let Some(spool) = self.spools.get_mut(&spool) {
                spool.remove(&ids)?;
            }
        }
        self.unmarked.clear();
        self.spools.retain(|number, spool| *number == 0 || !spool.is_empty());
        Ok(())
    }

    /// Updates the metrics of the queue.
    fn publish(&self) {
        self.metrics.queued.set(self.events);
        self.metrics.queued_bytes.set(self.spools.values().map(Spool::live_bytes).sum());
        let oldest = self.sources.values().filter_map(SourceQueue::oldest).min();
        self.metrics.oldest_at.set(oldest.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests;
