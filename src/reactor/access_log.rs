//! The access log. Records never contain whole keys, queries (which contain identifiers) or bodies.
use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, SystemTimeError};

use crate::config::{Config, Secret};
use crate::http::Request;
use crate::limits::ACCESS_BATCH_RECORDS;
use crate::log::{AccessRecord, AccessRecords, AccessText, Log};
use crate::reactor::redaction::{write_path, write_user_agent};
use crate::spans::TraceParent;
use crate::spans::context::write_hex;

/// Creates and buffers the access records of one reactor.
#[derive(Default)]
pub struct AccessLog {
    /// Buffered, because waking the log thread for each record would cost more than the request.
    records: RefCell<AccessRecords>,
}

/// What the access log records of a response.
pub struct AccessOutcome<'a> {
    pub status: u16,
    pub bytes: usize,
    /// When the request was read.
    pub began: SystemTime,
    /// The client-side key of the environment, if a key was valid.
    pub environment: Option<&'a str>,
}

/// The access record of a request whose response waits for a result.
#[derive(Debug)]
pub struct DeferredAccess {
    record: AccessRecord,
    text: AccessText,
}

impl AccessLog {
    /// `None` if the access log is disabled.
    pub fn new(config: &Config) -> Option<Self> {
        config.logging.enable_access_log.then(Self::default)
    }

    /// Buffers one record; returns how many were dropped.
    pub fn write(
        &self,
        log: &Log,
        remote_ip: Option<IpAddr>,
        request: &Request<'_>,
        outcome: &AccessOutcome<'_>,
    ) -> u64 {
        if !log.takes_accesses() {
            return 0;
        }
        self.push(log, |text| record(text, remote_ip, request, outcome))
    }

    fn push(&self, log: &Log, record: impl FnOnce(&mut AccessText) -> AccessRecord) -> u64 {
        let mut records = self.records.borrow_mut();
        records.push(record);
        let is_full = records.len() >= ACCESS_BATCH_RECORDS;
        drop(records);
        if is_full { self.flush(log) } else { 0 }
    }

    /// The record of a request, for [`write_deferred`](Self::write_deferred); `None`: requests are not
    /// logged.
    pub fn defer(
        &self,
        log: &Log,
        remote_ip: Option<IpAddr>,
        request: &Request<'_>,
        outcome: &AccessOutcome<'_>,
    ) -> Option<DeferredAccess> {
        log.takes_accesses().then(|| {
            let mut text = AccessText::default();
            DeferredAccess { record: record(&mut text, remote_ip, request, outcome), text }
        })
    }

    /// Buffers a record whose response is known now; returns how many were dropped.
    pub fn write_deferred(&self, log: &Log, deferred: DeferredAccess, status: u16, bytes: usize) -> u64 {
        let DeferredAccess { record, text } = deferred;
        let duration_us = micros(record.time.elapsed());
        self.push(log, |out| record.moved(&text, out, status, bytes, duration_us))
    }

    /// Sends the buffered records to the log thread; returns how many were dropped.
    pub fn flush(&self, log: &Log) -> u64 {
        let records = self.records.take();
        let count = records.len() as u64;
        if count == 0 || log.accesses(records) { 0 } else { count }
    }
}

fn record(
    text: &mut AccessText,
    remote_ip: Option<IpAddr>,
    request: &Request<'_>,
    outcome: &AccessOutcome<'_>,
) -> AccessRecord {
    AccessRecord {
        time: outcome.began,
        remote_ip,
        method: request.method.name(),
        path: text.append(|out| write_path(request.path, out)),
        protocol: request.version.name(),
        status: outcome.status,
        bytes: outcome.bytes,
        duration_us: micros(outcome.began.elapsed()),
        environment: text.append(|out| {
            // Writing to a string cannot fail.
            let _ = outcome.environment.map(|key| write!(out, "{}", Secret::new(key)));
        }),
        user_agent: text.append(|out| write_user_agent(request.fields.user_agent, out)),
        request_id: text.append(|out| {
            out.push_str(&String::from_utf8_lossy(request.fields.request_id.unwrap_or_default()));
        }),
        trace_id: text.append(|out| {
            if let Some(caller) = request.fields.traceparent.and_then(TraceParent::parse) {
                write_hex(&caller.trace_id, out);
            }
        }),
    }
}

fn micros(took: Result<Duration, SystemTimeError>) -> u64 {
    u64::try_from(took.unwrap_or(Duration::ZERO).as_micros()).unwrap_or(u64::MAX)
}
