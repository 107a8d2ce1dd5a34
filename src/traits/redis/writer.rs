//! The thread that writes: batches in the order in which the store thread made them, each until Redis has it.
//! Between them it keeps the stream and the tombstones small.
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use redis::{Connection, Script, cmd};

use crate::clock;
use crate::traits::memory::TOMBSTONE_AGE_MAX;
use crate::traits::redis::client::{RedisFault, RedisTarget};
use crate::traits::redis::link::{RedisOrder, RedisReport, SharedState, Side, StoredHash, report};
use crate::traits::redis::outage::{Outage, pause};
use crate::traits::redis::pending::IdentityWrite;
use crate::traits::redis::reader::fetch;
use crate::traits::redis::wire;
use crate::traits::redis::wire::{Name, StreamId};

/// Changes that are kept for proxies that were away. Beyond: they read all identities.
const STREAM_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How often the stream is trimmed, and tombstones are removed.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Tombstones that are removed at a time.
const PURGED_MAX: usize = 200;
/// After an erasure other proxies have this time to read it. Then the stream is trimmed up to it, so that it
/// does not have what was erased.
const ERASURE_DELAY: Duration = Duration::from_secs(10);
/// The wait for the reader to name the data.
const GENERATION_WAIT: Duration = Duration::from_millis(50);

pub struct RedisWriter {
    target: RedisTarget,
    writer_id: String,
    shared: Arc<SharedState>,
    orders: Receiver<RedisOrder>,
    reports: SyncSender<RedisReport>,
    connection: Option<Connection>,
    outage: Outage,
    merge: Script,
    purge: Script,
    upkeep_at: Instant,
    /// The entry of the last erasure, and when the stream is to be trimmed up to it.
    erasure: Option<(StreamId, Instant)>,
}

impl RedisWriter {
    pub fn new(
        target: RedisTarget,
        writer_id: String,
        shared: Arc<SharedState>,
        orders: Receiver<RedisOrder>,
        reports: SyncSender<RedisReport>,
    ) -> Self {
        let (now, outage) = (clock::instant(), Outage::new(Side::Writer, shared.clone(), reports.clone()));
        Self {
            target,
            writer_id,
            shared,
            orders,
            reports,
            connection: None,
            outage,
            merge: Script::new(include_str!("merge.lua")),
            purge: Script::new(include_str!("purge.lua")),
            upkeep_at: now + UPKEEP_INTERVAL,
            erasure: None,
        }
    }

    /// Runs until the store thread ends.
    pub fn run(mut self) {
        while !self.shared.is_stopped() {
            let done = match self.orders.recv_timeout(UPKEEP_INTERVAL) {
                Ok(RedisOrder::Write { sequence, batch }) => self.until_done(|writer, connection| {
                    let generation = writer.shared.generation();
                    let (id, known) = writer.write(connection, &generation, sequence, &batch)?;
                    report(&writer.reports, RedisReport::Written { generation, id, known })
                }),
                Ok(RedisOrder::Fetch(names)) => self.until_done(|writer, connection| {
                    let hashes = writer.fetch(connection, &names)?;
                    report(&writer.reports, RedisReport::Fetched(hashes))
                }),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if done.is_err() {
                return;
            }
            if self.upkeep_at <= clock::instant() && !self.shared.generation().is_empty() {
                self.upkeep_at = clock::instant() + UPKEEP_INTERVAL;
                // What fails is done the next time.
                if let Some(mut connection) = self.connection.take()
                    && self.upkeep(&mut connection).is_ok()
                {
                    self.connection = Some(connection);
                }
            }
        }
    }

    /// Does something until it succeeds, with a new connection after each failure.
    fn until_done(
        &mut self,
        mut act: impl FnMut(&mut Self, &mut Connection) -> Result<(), RedisFault>,
    ) -> Result<(), RedisFault> {
        loop {
            if self.shared.is_stopped() {
                return Err(RedisFault::Stopped);
            }
            if self.shared.generation().is_empty() {
                pause(clock::instant() + GENERATION_WAIT, &self.shared);
                continue;
            }
            let connected = self.connection.take().map_or_else(|| self.target.connect(), Ok);
            let fault = match connected.and_then(|mut connection| {
                act(self, &mut connection)?;
                Ok(connection)
            }) {
                Ok(connection) => {
                    self.connection = Some(connection);
                    self.outage.reset();
                    return self.outage.ended();
                }
                Err(RedisFault::OtherGeneration) => {
                    // The reader finds it too, and names the new data.
                    pause(clock::instant() + GENERATION_WAIT, &self.shared);
                    continue;
                }
                Err(fault) => fault,
            };
            self.outage.failed(fault)?;
        }
    }

    /// Writes a batch once. Returns its entry in the stream, if it has one, and for each identity whether it
    /// was there; empty if the batch was there.
    fn write(
        &mut self,
        connection: &mut Connection,
        generation: &str,
        sequence: u64,
        batch: &[IdentityWrite],
    ) -> Result<(Option<StreamId>, String), RedisFault> {
        let key = |name: &str| self.target.key(name);
        let mut call = self.merge.prepare_invoke();
        call.key(key("generation")).key(key("stream"));
        call.key(key(&format!("writer:{}", self.writer_id))).key(key("tombstones"));
        call.arg(generation).arg(sequence).arg(&self.writer_id);
        call.arg(self.target.ttl_seconds).arg(TOMBSTONE_AGE_MAX.as_secs());
        for write in batch {
            call.key(self.target.identity_key(&write.name));
            call.arg(&*write.name).arg(if write.makes { "c" } else { "t" }).arg(write.seen);
            call.arg(write.erased.map(wire::stamp).unwrap_or_default()).arg(write.fields.len());
            for (field, value) in &write.fields {
                call.arg(field).arg(value);
            }
        }
        let (id, known): (String, String) = call.invoke(connection)?;
        let id = StreamId::parse(&id);
        if let Some(id) = id {
            self.shared.set_written(id);
            if batch.iter().any(|write| write.erased.is_some()) {
                self.erasure = Some((id, clock::instant() + ERASURE_DELAY));
            }
        }
        Ok((id, known))
    }

    fn fetch(&self, connection: &mut Connection, names: &[Name]) -> Result<Vec<StoredHash>, RedisFault> {
        let keys: Vec<String> = names.iter().map(|name| self.target.identity_key(name)).collect();
        fetch(connection, &self.target, &keys)
    }

    /// Trims the stream in time and bytes, and removes old tombstones.
    fn upkeep(&mut self, connection: &mut Connection) -> Result<(), RedisFault> {
        let stream = self.target.key("stream");
        // The clock of Redis, by which its entries have their ids.
        let (unix_seconds, _): (u64, u64) = cmd("TIME").query(connection)?;
        let oldest = unix_seconds.saturating_sub(TOMBSTONE_AGE_MAX.as_secs());
        cmd("XTRIM").arg(&stream).arg("MINID").arg(oldest * 1000).exec(connection)?;
        if let Some((id, due)) = self.erasure
            && due <= clock::instant()
        {
            cmd("XTRIM").arg(&stream).arg("MINID").arg(id.to_string()).exec(connection)?;
            self.erasure = None;
        }
        let bytes: Option<u64> = cmd("MEMORY").arg("USAGE").arg(&stream).query(connection)?;
        let bytes = bytes.unwrap_or_default();
        if bytes > STREAM_BYTES_MAX {
            let length: u64 = cmd("XLEN").arg(&stream).query(connection)?;
            let kept = (length as f64 * STREAM_BYTES_MAX as f64 / bytes as f64) as u64;
            cmd("XTRIM").arg(&stream).arg("MAXLEN").arg("~").arg(kept.max(1)).exec(connection)?;
        }
        self.purge_tombstones(connection, oldest)
    }

    fn purge_tombstones(&self, connection: &mut Connection, oldest: u64) -> Result<(), RedisFault> {
        let tombstones = self.target.key("tombstones");
        loop {
            let old: Vec<String> = cmd("ZRANGEBYSCORE")
                .arg(&tombstones)
                .arg("-inf")
                .arg(oldest)
                .arg("LIMIT")
                .arg(0)
                .arg(PURGED_MAX)
                .query(connection)?;
            if old.is_empty() {
                return Ok(());
            }
            let mut call = self.purge.prepare_invoke();
            call.key(&tombstones);
            for member in &old {
                // Identifiers and keys have no zero bytes.
                let (name, field) = member.split_once('\0').unwrap_or((member, ""));
                call.key(self.target.identity_key(name)).arg(member).arg(field);
            }
            let _: u64 = call.invoke(connection)?;
        }
    }
}
