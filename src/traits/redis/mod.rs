//! Kept traits in Redis, which several proxies share: hashes with the state, a stream with the changes.
//!
//! The store thread never waits for Redis. One thread reads what others write, another one writes what this
//! process does; while Redis is not available the names of what it lacks are kept. Redis merges by the stamp
//! of each key (`merge.lua`), so that all proxies agree in whichever order they reach it.
mod client;
mod increments;
mod link;
mod loading;
mod outage;
mod pending;
mod reader;
mod stored_mark;
#[cfg(test)]
mod tests;
mod wire;
mod writer;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::clock;
use crate::config::{Config, Level, SettingError};
use crate::limits::TRAIT_STOP_TIMEOUT;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::trait_table::{Entry, Stamp};
use crate::traits::changes::{ChangeKind, TraitChanges};
use crate::traits::memory::{RemoteChange, TraitMemory};
use crate::traits::redis::client::RedisFault;
pub use crate::traits::redis::client::{RedisTarget, check_redis};
use crate::traits::redis::increments::Answer;
use crate::traits::redis::link::{
    RedisOrder, RedisReport, ReloadReason, SharedState, Side, StoredHash, StreamEntry,
};
use crate::traits::redis::loading::{FirstTable, Loading};
use crate::traits::redis::pending::{IdentityWrite, Pending};
use crate::traits::redis::reader::StreamReader;
use crate::traits::redis::stored_mark::StoredMark;
use crate::traits::redis::wire::{Name, StreamChange, StreamChanges, StreamId};
use crate::traits::redis::writer::RedisWriter;
use crate::traits::sink::{Inform, TraitSink};

/// Time for reading all identities at the start. Beyond: served without the rest, which follows.
const LOAD_TIMEOUT: Duration = Duration::from_secs(50);
/// Batches that are sent and not confirmed.
const IN_FLIGHT_MAX: usize = 4;
/// Reports that wait for the store thread; entries of the stream are at most 16 in each.
const REPORTS_MAX: usize = 8;
/// Time that merging may take before writes of reactors have their turn.
const MERGE_TIME_MAX: Duration = Duration::from_millis(20);
/// Identities that are read again at a time.
const FETCHED_MAX: usize = 500;
/// Erasures that wait for Redis and are remembered so.
const ERASURES_MAX: usize = 100_000;
/// How often it is noted on the disk that Redis has everything.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);
/// The wait for a report while the process starts or ends.
const REPORT_WAIT: Duration = Duration::from_millis(20);

/// The sink of the store thread.
pub struct TraitRedis {
    target: RedisTarget,
    /// Distinguishes the batches of this process from those of others.
    writer_id: String,
    shared: Arc<SharedState>,
    orders: Option<SyncSender<RedisOrder>>,
    reports: Option<Receiver<RedisReport>>,
    pending: Pending,
    /// Batches by their numbers.
    in_flight: VecDeque<(u64, Arc<Vec<IdentityWrite>>)>,
    sequence: u64,
    /// Identities whose hashes must be read, because this process does not have all of their keys.
    to_fetch: HashSet<Name>,
    /// Erasures of this process that it has not read in the stream yet: what they erase must not come back.
    erasures: HashMap<Name, Stamp>,
    loading: Option<Loading>,
    /// At the start of a process whose table is empty.
    first_table: Option<FirstTable>,
    /// By side, of the current outage.
    is_failing: [bool; 2],
    is_synced: bool,
    /// Of the copy on disk. `None`: there is none.
    folder: Option<PathBuf>,
    /// The data that are read, and up to which entry of the stream.
    position: (String, StreamId),
    /// What was last noted of that on the disk, and when.
    noted: (String, StreamId),
    noted_at: Instant,
    was_logged: bool,
    offset: i64,
    metrics: Arc<Metrics>,
    log: Log,
}

impl TraitRedis {
    /// # Errors
    /// See [`RedisTarget::new`].
    pub fn new(config: &Config, metrics: Arc<Metrics>, log: Log) -> Result<Self, SettingError> {
        let id = clock::random().unwrap_or_else(|_| u64::from(std::process::id()));
        Ok(Self {
            target: RedisTarget::new(config)?,
            writer_id: format!("{id:016x}"),
            shared: Arc::default(),
            orders: None,
            reports: None,
            pending: Pending::new(config.traits.identities_max),
            in_flight: VecDeque::new(),
            sequence: 0,
            to_fetch: HashSet::new(),
            erasures: HashMap::new(),
            loading: None,
            first_table: None,
            is_failing: [false; 2],
            is_synced: false,
            folder: config.traits_folder(),
            position: Default::default(),
            noted: Default::default(),
            noted_at: Instant::now(),
            was_logged: false,
            offset: 0,
            metrics,
            log,
        })
    }

    fn start(&mut self) -> io::Result<()> {
        let (to_store, reports) = sync_channel(REPORTS_MAX);
        let (to_writer, orders) = sync_channel(IN_FLIGHT_MAX + 1);
        let (target, shared) = (self.target.clone(), self.shared.clone());
        let writer = RedisWriter::new(
            target.clone(),
            self.writer_id.clone(),
            shared.clone(),
            orders,
            to_store.clone(),
        );
        let reader = StreamReader::new(target, self.writer_id.clone(), shared, to_store);
        thread::Builder::new().name("traits-read".into()).spawn(move || reader.run())?;
        thread::Builder::new().name("traits-write".into()).spawn(move || writer.run())?;
        (self.orders, self.reports) = (Some(to_writer), Some(reports));
        Ok(())
    }

    /// Applies the reports that have arrived, within a time; waits for the first.
    fn receive(&mut self, memory: &mut TraitMemory, now: SystemTime, wait: Duration, inform: Inform<'_>) {
        let until = Instant::now() + MERGE_TIME_MAX;
        let mut report = self.reports.as_ref().and_then(|reports| reports.recv_timeout(wait).ok());
        while let Some(found) = report {
            self.apply(found, memory, now, inform);
            report = match Instant::now() < until {
                true => self.reports.as_ref().and_then(|reports| reports.try_recv().ok()),
                false => None,
            };
        }
    }

    fn apply(&mut self, report: RedisReport, memory: &mut TraitMemory, now: SystemTime, inform: Inform<'_>) {
        let metrics = &self.metrics.traits;
        match report {
            RedisReport::Connected { offset } => {
                self.offset = offset;
                memory.set_clock_offset(offset);
            }
            RedisReport::Reload { reason, generation, position } => {
                metrics.redis_reloads.add(1);
                if reason == ReloadReason::Lost {
                    let hint = "Redis has lost data of kept traits: what this process keeps is written again";
                    self.log.event(Level::Warning, "traits_store_lost_data", &[("hint", &hint)]);
                }
                self.reload(reason, generation, position);
            }
            RedisReport::Loaded(hashes) => {
                for hash in &hashes {
                    // A scan may return one twice.
                    let is_first = self.loading.as_mut().is_none_or(|loading| loading.note(&hash.name));
                    match (&mut self.first_table, wire::parse_name(&hash.name)) {
                        (Some(table), Some(name)) if is_first => {
                            table.push(memory, name, &wire::stored(&hash.fields));
                        }
                        (None, _) => self.merge_stored(hash, memory, now, inform),
                        _ => {}
                    }
                }
            }
            RedisReport::Fetched(hashes) => {
                hashes.iter().for_each(|hash| self.merge_stored(hash, memory, now, inform));
            }
            RedisReport::Synced { generation, position } => {
                self.is_synced = true;
                self.first_table.take().into_iter().for_each(|table| table.finish(memory));
                let memo = self.folder.as_deref().and_then(StoredMark::read);
                let memo = memo.filter(|memo| memo.generation == generation && memo.position <= position);
                self.loading.iter_mut().for_each(|loading| loading.finish(memo.clone()));
                self.position = (generation, position);
                self.pending.settle(position);
            }
            RedisReport::Changes(entries) => {
                entries.iter().for_each(|entry| self.merge_entry(entry, memory, now, inform));
            }
            RedisReport::Idle => metrics.redis_lag_ms.set(0),
            RedisReport::Written { generation, id, known } => self.written(&generation, id, &known),
            RedisReport::Failed(side, fault) => self.failed(side, &fault),
            RedisReport::Recovered(side) => self.recovered(side),
        }
    }

    /// All identities are read again.
    fn reload(&mut self, reason: ReloadReason, generation: String, position: StreamId) {
        let mut loading = Loading::new(reason);
        let in_flight = self.in_flight.iter().flat_map(|(_, batch)| batch.iter());
        let written =
            in_flight.filter(|write| !write.fields.is_empty() || write.makes).map(|write| &write.name);
        written.chain(self.pending.changed_names()).for_each(|name| loading.protect(name));
        self.loading = Some(loading);
        if reason == ReloadReason::Lost {
            // An older copy of the same data may have some of the entries.
            if self.position.0 == generation {
                self.pending.settle(position);
            }
            self.pending.lost();
            self.position.1 = StreamId::default();
        }
        self.position.0 = generation;
    }

    /// Merges the hash of an identity. What it lacks is written.
    fn merge_stored(
        &mut self,
        hash: &StoredHash,
        memory: &mut TraitMemory,
        now: SystemTime,
        inform: Inform<'_>,
    ) {
        let Some((environment, identifier)) = wire::parse_name(&hash.name) else { return };
        let mut stored = wire::stored(&hash.fields);
        if let Some(erased) = stored.erased {
            memory.erase_elsewhere((environment, identifier), erased, now, inform);
        }
        let own_erasure = self.erasures.get(hash.name.as_str()).copied();
        stored.entries.retain(|entry| own_erasure.is_none_or(|erased| entry.stamp > erased));
        if let Some(seen) = stored.seen.filter(|_| own_erasure.is_none() || !stored.entries.is_empty()) {
            let (entries, is_promoted) = (&stored.entries[..], stored.is_promoted);
            let change = RemoteChange { environment, identifier, entries, seen, is_promoted };
            self.merge(&hash.name, &change, memory, now, inform);
        }
        let since = memory.tombstones_since(now).unwrap_or_default();
        let record = memory.table().find(environment, identifier);
        let is_lacking = |local: Entry<'_>| {
            let is_old = local.value.is_none() && local.stamp.clock < since;
            let theirs = stored.entries.iter().find(|entry| entry.key == local.key);
            let is_later = theirs.is_none_or(|theirs| theirs.stamp < local.stamp);
            !is_old && is_later && !self.pending.is_counting(&hash.name, local.key)
        };
        if record.is_some_and(|record| record.entries().any(is_lacking)) {
            self.pending.mark_all(&hash.name);
        }
    }

    fn merge(
        &mut self,
        name: &str,
        change: &RemoteChange<'_>,
        memory: &mut TraitMemory,
        now: SystemTime,
        inform: Inform<'_>,
    ) {
        change.entries.iter().for_each(|entry| self.pending.read(name, entry));
        if !memory.merge(change, now, inform) {
            self.metrics.traits.redis_refused.add(1);
        }
    }

    fn merge_entry(
        &mut self,
        entry: &StreamEntry,
        memory: &mut TraitMemory,
        now: SystemTime,
        inform: Inform<'_>,
    ) {
        for change in StreamChanges::new(&entry.payload) {
            match change {
                StreamChange::Erased { name, stamp } => {
                    let Some(parsed) = wire::parse_name(name) else { continue };
                    memory.erase_elsewhere(parsed, stamp, now, inform);
                    if self.erasures.get(name).is_some_and(|own| *own <= stamp) {
                        self.erasures.remove(name);
                    }
                }
                StreamChange::Merged { name, seen, is_new, mut entries, sums } => {
                    let Some((environment, identifier)) = wire::parse_name(name) else { continue };
                    let is_known = memory.table().find(environment, identifier).is_some();
                    if let Some(loading) = &mut self.loading {
                        match is_new && !is_known {
                            // Redis has all that there is of it.
                            true => _ = loading.note(name),
                            false => loading.protect(name),
                        }
                    }
                    if entry.is_own {
                        // This process has them, except what Redis added up.
                        entries.clear();
                    } else if !is_known && !is_new {
                        self.to_fetch.insert(name.into());
                        continue;
                    }
                    entries.extend(sums);
                    let own_erasure = self.erasures.get(name).copied();
                    entries.retain(|entry| own_erasure.is_none_or(|erased| entry.stamp > erased));
                    if (entry.is_own || own_erasure.is_some()) && entries.is_empty() {
                        continue;
                    }
                    let (entries, is_promoted) = (&entries[..], !is_new);
                    let change = RemoteChange { environment, identifier, entries, seen, is_promoted };
                    self.merge(name, &change, memory, now, inform);
                }
            }
        }
        self.position.1 = entry.id;
        self.pending.settle(entry.id);
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now =
            u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX).saturating_add_signed(self.offset);
        self.metrics.traits.redis_lag_ms.set(now.saturating_sub(entry.id.milliseconds));
    }

    /// Records that Redis has a batch, or had it, if these data are not there any more.
    fn written(&mut self, generation: &str, id: Option<StreamId>, known: &str) {
        let Some((sequence, batch)) = self.in_flight.pop_front() else { return };
        let is_current = generation == self.position.0;
        for (index, write) in batch.iter().enumerate() {
            let was_there = known.as_bytes().get(index);
            // Another process has made it too, or this one had removed it: there are more keys.
            if was_there == Some(&b'1') && write.makes && !write.is_whole {
                self.to_fetch.insert(write.name.clone());
            }
            let is_refused = was_there == Some(&b'0') && !write.makes && write.erased.is_none();
            let answer = match id {
                _ if is_refused || !is_current => Answer::NotStored,
                Some(id) => Answer::Stored(id),
                None => Answer::Settled,
            };
            self.pending.answered(write, sequence, answer);
        }
        if is_current {
            self.pending.settle(self.position.1);
        }
    }

    // Memory ordering: relaxed, because readers of the flag read nothing that was written before it.
    fn failed(&mut self, side: Side, fault: &RedisFault) {
        self.is_failing[side as usize] = true;
        self.metrics.traits.is_available.store(false, Ordering::Relaxed);
        if !std::mem::replace(&mut self.was_logged, true) {
            let hint = "requests are answered from memory; what is written is kept and stored when Redis is \
                        available again";
            let fields: [(_, &dyn Display); 3] =
                [("address", &self.target.address), ("error", fault), ("hint", &hint)];
            self.log.event(Level::Error, "traits_store_unavailable", &fields);
        }
    }

    fn recovered(&mut self, side: Side) {
        self.is_failing[side as usize] = false;
        if self.is_failing.contains(&true) {
            return;
        }
        self.metrics.traits.is_available.store(true, Ordering::Relaxed);
        if std::mem::take(&mut self.was_logged) {
            self.metrics.traits.redis_reconnects.add(1);
            self.log.event(Level::Info, "traits_store_available", &[("address", &self.target.address)]);
        }
    }

    /// Sends what the writer can take.
    fn send(&mut self, memory: &TraitMemory, now: SystemTime) {
        let Some(orders) = &self.orders else { return };
        if !self.to_fetch.is_empty() && self.is_synced {
            let names: Vec<Name> = self.to_fetch.iter().take(FETCHED_MAX).cloned().collect();
            if let Err(TrySendError::Full(RedisOrder::Fetch(_))) =
                orders.try_send(RedisOrder::Fetch(names.clone()))
            {
                return;
            }
            for name in &names {
                self.to_fetch.remove(name);
            }
        }
        while self.in_flight.len() < IN_FLIGHT_MAX && self.pending.len() > 0 {
            let batch = Arc::new(self.pending.take_batch(memory, now, self.sequence + 1));
            if batch.is_empty() {
                continue;
            }
            self.sequence += 1;
            self.in_flight.push_back((self.sequence, batch.clone()));
            // The channel has capacity for all batches, and an order to read.
            if orders.try_send(RedisOrder::Write { sequence: self.sequence, batch }).is_err() {
                break;
            }
        }
    }

    /// Writes what is left when the process ends.
    fn flush(&mut self, memory: &mut TraitMemory, now: SystemTime, inform: Inform<'_>) {
        let until = Instant::now() + TRAIT_STOP_TIMEOUT;
        while !self.is_failing.contains(&true) && Instant::now() < until {
            self.send(memory, now);
            if self.in_flight.is_empty() {
                break;
            }
            self.receive(memory, now, REPORT_WAIT, inform);
        }
        let in_flight: usize = self.in_flight.iter().map(|(_, batch)| batch.len()).sum();
        let left = self.pending.len() + in_flight;
        if left > 0 {
            let fields: [(_, &dyn Display); 2] =
                [("address", &self.target.address), ("identities_count", &left)];
            self.log.event(Level::Error, "traits_not_stored", &fields);
        }
    }

    /// Notes on the disk, from time to time, that Redis has everything.
    fn note(&mut self, memory: &TraitMemory, now: SystemTime, is_last: bool) {
        let Some(folder) = &self.folder else { return };
        let is_stored = self.is_synced && self.loading.is_none() && self.in_flight.is_empty();
        let is_due = is_last || self.noted_at.elapsed() >= NOTE_INTERVAL;
        if is_due && is_stored && self.pending.len() == 0 && self.noted != self.position {
            (self.noted_at, self.noted) = (Instant::now(), self.position.clone());
            let ((generation, position), clock) = (self.position.clone(), memory.stamp(now).clock);
            StoredMark { generation, position, clock }.write(folder);
        }
    }

    fn measure(&mut self) {
        let metrics = &self.metrics.traits;
        let in_flight: usize = self.in_flight.iter().map(|(_, batch)| batch.len()).sum();
        metrics.redis_unsent.set((self.pending.len() + in_flight) as u64);
        metrics.redis_dropped.add(self.pending.take_dropped());
    }
}

impl TraitSink for TraitRedis {
    fn load(&mut self, memory: &mut TraitMemory, inform: Inform<'_>) {
        self.metrics.traits.has_redis.set(1);
        if let Err(error) = self.start() {
            return self.log.event(Level::Error, "traits_store_unavailable", &[("error", &error)]);
        }
        self.first_table = (memory.identities() == 0).then(FirstTable::default);
        let until = Instant::now() + LOAD_TIMEOUT;
        while !self.is_synced && !self.is_failing.contains(&true) && Instant::now() < until {
            self.receive(memory, clock::wall(), REPORT_WAIT, inform);
        }
        self.first_table.take().into_iter().for_each(|table| table.finish(memory));
    }

    fn changed(&mut self, changes: &TraitChanges<'_>) {
        let identifier = std::str::from_utf8(changes.record.identifier()).unwrap_or_default();
        if changes.kind == ChangeKind::Erased && self.erasures.len() < ERASURES_MAX {
            self.erasures.insert(wire::name(changes.environment, identifier).into(), changes.stamp);
        }
        if let Some(loading) = self.loading.as_mut().filter(|_| changes.kind != ChangeKind::Seen) {
            loading.protect(&wire::name(changes.environment, identifier));
        }
        self.pending.changed(changes);
    }

    fn tick(&mut self, memory: &mut TraitMemory, now: SystemTime, is_last: bool, inform: Inform<'_>) {
        self.receive(memory, now, Duration::ZERO, inform);
        if let Some(loading) = &mut self.loading
            && loading.sweep(memory, &mut self.pending, now, inform)
        {
            self.loading = None;
        }
        self.send(memory, now);
        if is_last {
            self.flush(memory, now, inform);
        }
        self.note(memory, now, is_last);
        self.measure();
    }

    fn needs_tombstones(&self) -> bool {
        true
    }
}

impl Drop for TraitRedis {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
    }
}
