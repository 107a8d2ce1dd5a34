//! The thread that reads: changes of all processes from the stream, and all identities if the stream does not
//! reach back far enough.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use redis::{Connection, cmd};

use crate::clock;
use crate::limits::BACKOFF_URGENT_MAX;
use crate::traits::redis::client::{RedisFault, RedisTarget, clock_offset};
use crate::traits::redis::link::{
    RedisReport, ReloadReason, SharedState, Side, StoredHash, StreamEntry, report,
};
use crate::traits::redis::outage::Outage;
use crate::traits::redis::wire::StreamId;

/// Longest wait for a change: then the generation is checked.
const BLOCK: Duration = Duration::from_secs(1);
/// Entries of the stream that are read at a time, and identities of a reload.
const ENTRIES_MAX: usize = 16;
const SCAN_COUNT: usize = 500;

/// What `XREAD` and `XRANGE` return: ids with their fields.
type Entries = Vec<(String, HashMap<String, String>)>;

pub struct StreamReader {
    target: RedisTarget,
    writer_id: String,
    shared: Arc<SharedState>,
    reports: SyncSender<RedisReport>,
    outage: Outage,
    /// The last entry that was read. `None`: none yet.
    position: Option<StreamId>,
    /// A reload that a lost connection has ended.
    unfinished: Option<ReloadReason>,
}

impl StreamReader {
    pub fn new(
        target: RedisTarget,
        writer_id: String,
        shared: Arc<SharedState>,
        reports: SyncSender<RedisReport>,
    ) -> Self {
        let outage = Outage::new(Side::Reader, shared.clone(), reports.clone());
        Self { target, writer_id, shared, reports, outage, position: None, unfinished: None }
    }

    /// Runs until the store thread ends: connects again for ever.
    pub fn run(mut self) {
        while !self.shared.is_stopped() {
            let began = clock::instant();
            let fault = match self.session() {
                Ok(()) => return,
                Err(fault) => fault,
            };
            // A connection that served for a while was not a failed attempt.
            if clock::elapsed(began) > BACKOFF_URGENT_MAX {
                self.outage.reset();
            }
            if self.outage.failed(fault).is_err() {
                return;
            }
        }
    }

    fn session(&mut self) -> Result<(), RedisFault> {
        let mut connection = self.target.connect()?;
        let offset = clock_offset(&mut connection)?;
        report(&self.reports, RedisReport::Connected { offset })?;
        let mut generation = self.generation(&mut connection)?;
        if let Some(reason) = self.reason_to_reload(&mut connection, &generation)? {
            self.reload(&mut connection, reason, &generation)?;
        }
        self.synced(&generation)?;
        self.outage.ended()?;
        let mut checked_at = clock::instant();
        while !self.shared.is_stopped() {
            let entries = self.read(&mut connection)?;
            report(
                &self.reports,
                if entries.is_empty() { RedisReport::Idle } else { RedisReport::Changes(entries) },
            )?;
            if clock::elapsed(checked_at) >= BLOCK {
                checked_at = clock::instant();
                let current = self.generation(&mut connection)?;
                if current != generation {
                    generation = current;
                    self.reload(&mut connection, ReloadReason::Lost, &generation)?;
                    self.synced(&generation)?;
                }
            }
        }
        Ok(())
    }

    fn synced(&self, generation: &str) -> Result<(), RedisFault> {
        let (generation, position) = (generation.to_owned(), self.position.unwrap_or_default());
        report(&self.reports, RedisReport::Synced { generation, position })
    }

    /// The name of the data in Redis; makes one if there are none.
    fn generation(&self, connection: &mut Connection) -> Result<String, RedisFault> {
        let key = self.target.key("generation");
        let known: Option<String> = cmd("GET").arg(&key).query(connection)?;
        if let Some(known) = known {
            return Ok(known);
        }
        let random = clock::random().unwrap_or_default();
        cmd("SET").arg(&key).arg(format!("{random:016x}")).arg("NX").exec(connection)?;
        let made: Option<String> = cmd("GET").arg(&key).query(connection)?;
        made.ok_or(RedisFault::OtherGeneration)
    }

    /// Why the stream is not enough. `None`: it goes on where this process has stopped.
    fn reason_to_reload(
        &self,
        connection: &mut Connection,
        generation: &str,
    ) -> Result<Option<ReloadReason>, RedisFault> {
        let known = self.shared.generation();
        if !known.is_empty() && known != generation {
            return Ok(Some(ReloadReason::Lost));
        }
        if self.unfinished.is_some() {
            return Ok(self.unfinished);
        }
        let Some(read) = self.position else { return Ok(Some(ReloadReason::Start)) };
        let last = self.last_id(connection)?;
        let written = self.shared.written();
        if last < read.max(written) {
            return Ok(Some(ReloadReason::Lost));
        }
        if last == read || read == StreamId::default() {
            return Ok(None);
        }
        let first: Entries = self.range(connection, "-", "+")?;
        let first = first.first().and_then(|(id, _)| StreamId::parse(id));
        if first.is_none_or(|first| first > read) {
            return Ok(Some(ReloadReason::Behind));
        }
        // An older copy of the data may have got new entries since.
        for id in [read, read.max(written)] {
            if self.range(connection, &id.to_string(), &id.to_string())?.is_empty() {
                return Ok(Some(ReloadReason::Lost));
            }
        }
        Ok(None)
    }

    fn range(&self, connection: &mut Connection, from: &str, to: &str) -> Result<Entries, RedisFault> {
        let stream = self.target.key("stream");
        Ok(cmd("XRANGE").arg(stream).arg(from).arg(to).arg("COUNT").arg(1).query(connection)?)
    }

    /// The last id that the stream has given, even if the entry was trimmed.
    fn last_id(&self, connection: &mut Connection) -> Result<StreamId, RedisFault> {
        let stream = self.target.key("stream");
        let exists: bool = cmd("EXISTS").arg(&stream).query(connection)?;
        if !exists {
            return Ok(StreamId::default());
        }
        let info: HashMap<String, redis::Value> = cmd("XINFO").arg("STREAM").arg(stream).query(connection)?;
        let id = info.get("last-generated-id").and_then(|id| redis::from_redis_value_ref::<String>(id).ok());
        Ok(id.and_then(|id| StreamId::parse(&id)).unwrap_or_default())
    }

    /// Reads all identities. The position is taken before, so that no change is missed.
    fn reload(
        &mut self,
        connection: &mut Connection,
        reason: ReloadReason,
        generation: &str,
    ) -> Result<(), RedisFault> {
        self.unfinished = Some(reason);
        let position = self.last_id(connection)?;
        // In this order: the store thread gets the name of the data before an answer about them.
        let generation = generation.to_owned();
        report(&self.reports, RedisReport::Reload { reason, generation: generation.clone(), position })?;
        self.shared.set_generation(&generation);
        let mut cursor = "0".to_owned();
        loop {
            let (next, keys): (String, Vec<String>) = cmd("SCAN")
                .arg(&cursor)
                .arg("MATCH")
                .arg(self.target.identity_pattern())
                .arg("COUNT")
                .arg(SCAN_COUNT)
                .query(connection)?;
            let hashes = fetch(connection, &self.target, &keys)?;
            if !hashes.is_empty() {
                report(&self.reports, RedisReport::Loaded(hashes))?;
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        (self.position, self.unfinished) = (Some(position), None);
        Ok(())
    }

    fn read(&mut self, connection: &mut Connection) -> Result<Vec<StreamEntry>, RedisFault> {
        let position = self.position.unwrap_or_default();
        let found: Option<Vec<(String, Entries)>> = cmd("XREAD")
            .arg("COUNT")
            .arg(ENTRIES_MAX)
            .arg("BLOCK")
            .arg(BLOCK.as_millis().to_string())
            .arg("STREAMS")
            .arg(self.target.key("stream"))
            .arg(position.to_string())
            .query(connection)?;
        let mut entries = Vec::new();
        for (id, mut fields) in found.into_iter().flatten().flat_map(|(_, entries)| entries) {
            let Some(id) = StreamId::parse(&id) else { continue };
            self.position = Some(id);
            let is_own = fields.get("w").is_some_and(|writer| *writer == self.writer_id);
            let payload = fields.remove("d").unwrap_or_default();
            entries.push(StreamEntry { id, is_own, payload });
        }
        Ok(entries)
    }
}

/// The hashes with these keys; those that are not there have no fields.
pub fn fetch(
    connection: &mut Connection,
    target: &RedisTarget,
    keys: &[String],
) -> Result<Vec<StoredHash>, RedisFault> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    for key in keys {
        pipeline.cmd("HGETALL").arg(key);
    }
    let hashes: Vec<Vec<(String, String)>> = pipeline.query(connection)?;
    let named = keys.iter().zip(hashes);
    let named = named
        .filter_map(|(key, fields)| Some(StoredHash { name: target.identity_name(key)?.to_owned(), fields }));
    Ok(named.collect())
}
