//! Records of the access log, as the reactors send them to the writer.
use std::net::IpAddr;
use std::ops::Range;
use std::time::SystemTime;

use crate::config::Level;
use crate::limits::ACCESS_BATCH_RECORDS;
use crate::log::record::Record;

/// One request. The ranges are in the [`AccessText`] of its batch; an empty one is a missing value.
#[derive(Debug)]
pub struct AccessRecord {
    pub time: SystemTime,
    /// `None`: a unix socket.
    pub remote_ip: Option<IpAddr>,
    pub method: &'static str,
    pub path: Range<usize>,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    pub status: u16,
    pub bytes: usize,
    pub duration_us: u64,
    /// The client-side key of the environment, truncated.
    pub environment: Range<usize>,
    pub user_agent: Range<usize>,
    pub request_id: Range<usize>,
    /// That of a valid `traceparent`.
    pub trace_id: Range<usize>,
}

/// The capacity reserved for the text of each record; most take less.
const TEXT_BYTES_USUAL: usize = 120;

/// The texts of a batch share one string: an allocation for each of them, freed by the writer thread, would
/// cost more than the rest of the record.
#[derive(Debug, Default)]
pub struct AccessText(String);

impl AccessText {
    /// Appends what `write` appends, and returns its range.
    pub fn append(&mut self, write: impl FnOnce(&mut String)) -> Range<usize> {
        let start = self.0.len();
        write(&mut self.0);
        start..self.0.len()
    }

    fn get(&self, range: &Range<usize>) -> &str {
        self.0.get(range.clone()).unwrap_or_default()
    }
}

/// A batch of requests, in order.
#[derive(Debug, Default)]
pub struct AccessRecords {
    pub(super) records: Vec<AccessRecord>,
    pub(super) text: AccessText,
}

impl AccessRecords {
    pub fn push(&mut self, record: impl FnOnce(&mut AccessText) -> AccessRecord) {
        if self.records.capacity() == 0 {
            self.records.reserve_exact(ACCESS_BATCH_RECORDS);
            self.text.0.reserve(ACCESS_BATCH_RECORDS * TEXT_BYTES_USUAL);
        }
        self.records.push(record(&mut self.text));
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl AccessRecord {
    /// The record with its text, which is in `from`, appended to `text`.
    pub fn moved(
        self,
        from: &AccessText,
        text: &mut AccessText,
        status: u16,
        bytes: usize,
        duration_us: u64,
    ) -> Self {
        let mut moved = |range: &Range<usize>| text.append(|out| out.push_str(from.get(range)));
        let (path, environment) = (moved(&self.path), moved(&self.environment));
        let (user_agent, request_id) = (moved(&self.user_agent), moved(&self.request_id));
        let trace_id = moved(&self.trace_id);
        Self { path, environment, user_agent, request_id, trace_id, status, bytes, duration_us, ..self }
    }

    pub(super) fn into_record(self, text: &AccessText) -> Record {
        let remote_ip = self.remote_ip.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string());
        let mut fields = vec![
            ("remote_ip", remote_ip),
            ("method", self.method.to_owned()),
            ("path", text.get(&self.path).to_owned()),
            ("status", self.status.to_string()),
            ("bytes", self.bytes.to_string()),
            ("duration_us", self.duration_us.to_string()),
            ("protocol", self.protocol.to_owned()),
        ];
        let optional = [
            ("environment", &self.environment),
            ("user_agent", &self.user_agent),
            ("request_id", &self.request_id),
            ("trace_id", &self.trace_id),
        ];
        let present = optional.into_iter().filter(|(_, range)| !range.is_empty());
        fields.extend(present.map(|(name, range)| (name, text.get(range).to_owned())));
        Record { time: self.time, level: Level::Info, event: "http_request", fields }
    }
}
