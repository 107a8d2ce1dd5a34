//! Structured log: any thread sends records to a bounded queue, and one thread writes them to stdout in the
//! formats of the Python proxy (structlog), text or JSON.
//!
//! Logging never blocks: a record that does not fit in the queue is dropped, and the number of dropped
//! records is logged. The value of a field named `*_key` is truncated; other secrets are
//! [`Secret`]s. Control characters are escaped.
use std::collections::VecDeque;
use std::fmt::{Display, Write as _};
use std::io::Write;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use time::OffsetDateTime;

use crate::config::{ConfigWarning, Level, LogFormat, Logging, Secret};
use crate::limits::{
    ACCESS_BATCH_RECORDS, ACCESS_RECORDS_MAX, LOG_FLUSH_PAUSE, LOG_FLUSH_TIMEOUT, LOG_RECENT_MAX,
    LOG_RECORDS_MAX,
};
use crate::terminal;

/// Logs an event: `event!(log, Warning, "port_shared", address = address, hint = hint)`.
macro_rules! event {
    ($log:expr, $level:ident, $name:literal $(, $field:ident = $value:expr)* $(,)?) => {
        $log.event(
            $crate::config::Level::$level,
            $name,
            &[$((stringify!($field), &$value as &dyn std::fmt::Display)),*],
        )
    };
}
pub(crate) use event;

/// A handle to the queue; cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    records: SyncSender<LogMessage>,
    shared: Arc<LogQueue>,
}

#[derive(Debug)]
struct LogQueue {
    level: AtomicU8,
    /// Dropped events since the last `log_records_dropped`.
    dropped: AtomicU64,
    dropped_total: AtomicU64,
    /// Dropped access records since the last `log_records_dropped`. Reactors count the total.
    access_dropped: AtomicU64,
    /// Access records in the queue. Bounded, so that they do not displace events.
    access_waiting: AtomicUsize,
    /// Locked by the writer and the status page, never by a caller that logs.
    recent: Mutex<VecDeque<Recent>>,
}

/// A warning or an error, for the status page.
#[derive(Clone, Debug)]
pub struct Recent {
    pub time: SystemTime,
    pub level: Level,
    pub event: &'static str,
    /// `name=value name=value`
    pub text: String,
}

#[derive(Debug)]
enum LogMessage {
    Record(Record),
    Accesses(AccessRecords),
    /// The writer replies when everything before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
struct Record {
    time: SystemTime,
    level: Level,
    event: &'static str,
    fields: Vec<(&'static str, String)>,
}

/// One request of the access log.
#[derive(Debug)]
pub struct AccessRecord {
    pub time: SystemTime,
    /// `None`: a unix socket.
    pub remote_ip: Option<IpAddr>,
    pub method: &'static str,
    /// The range of the path in [`AccessRecords::paths`].
    pub path: Range<usize>,
    pub status: u16,
    pub bytes: usize,
    pub duration_us: u64,
}

/// The capacity reserved for each path; most are shorter.
const PATH_BYTES_USUAL: usize = 40;

/// A batch of requests, in order. All paths share one string: one allocation per path, freed by the writer
/// thread, would cost more than the rest of the record.
#[derive(Debug, Default)]
pub struct AccessRecords {
    records: Vec<AccessRecord>,
    paths: String,
}

impl AccessRecords {
    /// Adds a record; its path is what `path` appends.
    pub fn push(
        &mut self,
        path: impl FnOnce(&mut String),
        record: impl FnOnce(Range<usize>) -> AccessRecord,
    ) {
        if self.records.capacity() == 0 {
            self.records.reserve_exact(ACCESS_BATCH_RECORDS);
            self.paths.reserve(ACCESS_BATCH_RECORDS * PATH_BYTES_USUAL);
        }
        let start = self.paths.len();
        path(&mut self.paths);
        self.records.push(record(start..self.paths.len()));
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl Log {
    /// Starts the writer thread. It ends when the last handle is dropped.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(settings: &Logging) -> std::io::Result<Self> {
        Self::start_to(settings, std::io::stdout())
    }

    /// As [`start`](Self::start), with another output than stdout.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start_to(settings: &Logging, out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (records, queue) = sync_channel(LOG_RECORDS_MAX);
        let level = AtomicU8::new(settings.log_level as u8);
        let (dropped, dropped_total, recent) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::default());
        let (access_dropped, access_waiting) = (AtomicU64::new(0), AtomicUsize::new(0));
        let shared =
            Arc::new(LogQueue { level, dropped, dropped_total, access_dropped, access_waiting, recent });
        let mut writer = Writer { settings: settings.clone(), shared: shared.clone(), out, line: Vec::new() };
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(Self { records, shared })
    }

    /// Logs `event` (a constant in lower_snake_case) with its fields; see the macro `event!`. In JSON a
    /// field whose name ends in a unit (`_seconds`, `_bytes`, `_count`, ...) is a number, any other a string.
    pub fn event(&self, level: Level, event: &'static str, fields: &[(&'static str, &dyn Display)]) {
        if (level as u8) < self.shared.level.load(Ordering::Relaxed) {
            return;
        }
        let fields = fields.iter().map(|(name, value)| (*name, field_text(name, value))).collect();
        let record = Record { time: SystemTime::now(), level, event, fields };
        if self.records.try_send(LogMessage::Record(record)).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            self.shared.dropped_total.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn config_warning(&self, warning: &ConfigWarning) {
        let fields: Vec<(&'static str, &dyn Display)> =
            warning.fields.iter().map(|(name, value)| (*name, value as &dyn Display)).collect();
        self.event(warning.level, warning.event, &fields);
    }

    /// Whether requests are logged at this level.
    pub fn takes_accesses(&self) -> bool {
        Level::Info as u8 >= self.shared.level.load(Ordering::Relaxed)
    }

    /// Logs requests. Returns false if they were dropped because the queue is full; the caller counts them.
    pub fn accesses(&self, accesses: AccessRecords) -> bool {
        let (waiting, count) = (&self.shared.access_waiting, accesses.len());
        let is_sent = waiting.fetch_add(count, Ordering::Relaxed) + count <= ACCESS_RECORDS_MAX
            && self.records.try_send(LogMessage::Accesses(accesses)).is_ok();
        if !is_sent {
            waiting.fetch_sub(count, Ordering::Relaxed);
            self.shared.access_dropped.fetch_add(count as u64, Ordering::Relaxed);
        }
        is_sent
    }

    /// The number of events dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped_total.load(Ordering::Relaxed)
    }

    /// The latest warnings and errors, the latest last.
    pub fn recent(&self) -> Vec<Recent> {
        self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub fn set_level(&self, level: Level) {
        self.shared.level.store(level as u8, Ordering::Relaxed);
    }

    /// Waits until everything logged so far is written, at the end of the process. Waits for a blocked
    /// pipe no longer than `LOG_FLUSH_TIMEOUT`.
    pub fn flush(&self) {
        let deadline = Instant::now() + LOG_FLUSH_TIMEOUT;
        let (done, written) = sync_channel(1);
        let mut message = LogMessage::Flush(done);
        while let Err(TrySendError::Full(back)) = self.records.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = back;
            std::thread::sleep(LOG_FLUSH_PAUSE);
        }
        // An error means that the writer has ended or is blocked.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Truncates keys. An environment without a key is named by its file, which is not truncated.
fn field_text(name: &str, value: &dyn Display) -> String {
    let text = value.to_string();
    if name.ends_with("_key") && !text.contains('/') { Secret::new(text).to_string() } else { text }
}

impl AccessRecord {
    fn into_record(self, path: &str) -> Record {
        let remote_ip = self.remote_ip.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string());
        let fields = vec![
            ("remote_ip", remote_ip),
            ("method", self.method.to_owned()),
            ("path", path.to_owned()),
            ("status", self.status.to_string()),
            ("bytes", self.bytes.to_string()),
            ("duration_us", self.duration_us.to_string()),
        ];
        Record { time: self.time, level: Level::Info, event: "http_request", fields }
    }
}

/// The state of the writer thread.
struct Writer<W> {
    settings: Logging,
    shared: Arc<LogQueue>,
    out: W,
    line: Vec<u8>,
}

impl<W: Write> Writer<W> {
    fn run(&mut self, queue: &Receiver<LogMessage>) {
        while let Ok(message) = queue.recv() {
            self.take(message);
            // One write for all queued lines.
            while self.line.len() < 64 * 1024 {
                match queue.try_recv() {
                    Ok(message) => self.take(message),
                    Err(_) => break,
                }
            }
            self.report_dropped();
            self.write();
        }
    }

    fn take(&mut self, message: LogMessage) {
        match message {
            LogMessage::Record(record) => {
                self.render(&record);
                if record.level >= Level::Warning {
                    self.add_recent(&record);
                }
            }
            LogMessage::Accesses(accesses) => {
                self.shared.access_waiting.fetch_sub(accesses.len(), Ordering::Relaxed);
                for access in accesses.records {
                    let path = accesses.paths.get(access.path.clone()).unwrap_or_default();
                    self.render(&access.into_record(path));
                }
            }
            LogMessage::Flush(done) => {
                self.report_dropped();
                self.write();
                let _ = done.send(());
            }
        }
    }

    fn report_dropped(&mut self) {
        let count = self.shared.dropped.swap(0, Ordering::Relaxed);
        let access_count = self.shared.access_dropped.swap(0, Ordering::Relaxed);
        if count > 0 || access_count > 0 {
            let fields = vec![
                ("dropped_count", count.to_string()),
                ("access_dropped_count", access_count.to_string()),
            ];
            let (time, level) = (SystemTime::now(), Level::Warning);
            self.render(&Record { time, level, event: "log_records_dropped", fields });
        }
    }

    fn add_recent(&self, record: &Record) {
        let mut text = Vec::new();
        render_fields(&record.fields, "", "", "", &mut text);
        let text = String::from_utf8_lossy(text.trim_ascii()).into_owned();
        let mut recent = self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == LOG_RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(Recent { time: record.time, level: record.level, event: record.event, text });
    }

    /// Ignores errors: a closed pipe must not end the process, and there is no other output for the error.
    fn write(&mut self) {
        let _ = self.out.write_all(&self.line);
        let _ = self.out.flush();
        self.line.clear();
    }

    fn render(&mut self, record: &Record) {
        match self.settings.log_format {
            LogFormat::Json => render_json(record, &self.settings.log_event_field_name, &mut self.line),
            LogFormat::Generic => render_generic(record, self.settings.colour, &mut self.line),
        }
        self.line.push(b'\n');
    }
}

/// `{"message":"...","level":"info","timestamp":"...","logger":"edge_proxy",...}`
fn render_json(record: &Record, event_name: &str, line: &mut Vec<u8>) {
    line.push(b'{');
    json_text(line, event_name);
    line.push(b':');
    json_text(line, record.event);
    line.extend_from_slice(b",\"level\":\"");
    line.extend_from_slice(record.level.name().as_bytes());
    line.extend_from_slice(b"\",\"timestamp\":\"");
    line.extend_from_slice(timestamp(record.time).as_bytes());
    line.extend_from_slice(b"\",\"logger\":\"edge_proxy\"");
    for (name, value) in &record.fields {
        line.push(b',');
        json_text(line, name);
        line.push(b':');
        if is_number(name, value) {
            line.extend_from_slice(value.as_bytes());
        } else {
            json_text(line, value);
        }
    }
    line.push(b'}');
}

/// Whether the name ends in a unit and the value is a number.
fn is_number(name: &str, value: &str) -> bool {
    const UNITS: [&str; 8] = ["seconds", "ms", "us", "bytes", "count", "port", "status", "version"];
    let unit = name.rsplit('_').next().unwrap_or(name);
    let is_plain = value.strip_prefix('-').unwrap_or(value).starts_with(|c: char| c.is_ascii_digit());
    // Fast path for most numbers.
    if !value.starts_with('0') && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return is_plain && UNITS.contains(&unit);
    }
    UNITS.contains(&unit) && is_plain && serde_json::from_str::<serde_json::Number>(value).is_ok()
}

/// `2026-11-23T09:20:00.123456Z [info     ] event                          name=value`
fn render_generic(record: &Record, is_coloured: bool, line: &mut Vec<u8>) {
    let paint = |code: &'static str| if is_coloured { code } else { "" };
    let (reset, bold, dim) = (paint("\x1b[0m"), paint("\x1b[1m"), paint("\x1b[2m"));
    let (name_colour, value_colour) = (paint("\x1b[36m"), paint("\x1b[35m"));
    let level_colour = paint(match record.level {
        Level::Debug | Level::Info => "\x1b[32m",
        Level::Warning => "\x1b[33m",
        Level::Error | Level::Critical => "\x1b[31m",
    });
    let (time, level, event) = (timestamp(record.time), record.level.name(), record.event);
    // Writing to a vector cannot fail.
    let _ = write!(line, "{dim}{time}{reset} [{level_colour}{bold}{level:<9}{reset}] {bold}");
    match record.fields.is_empty() {
        true => line.extend_from_slice(event.as_bytes()),
        false => drop(write!(line, "{event:<30}")),
    }
    line.extend_from_slice(reset.as_bytes());
    render_fields(&record.fields, name_colour, value_colour, reset, line);
}

fn render_fields(
    fields: &[(&'static str, String)],
    name_colour: &str,
    value_colour: &str,
    reset: &str,
    line: &mut Vec<u8>,
) {
    for (name, value) in fields {
        let _ = write!(line, " {name_colour}{name}{reset}={value_colour}");
        let needs_quotes = value.is_empty() || value.contains([' ', '\t', '=', '"', '\'', '\\']);
        if needs_quotes || value.chars().any(terminal::is_unsafe) {
            json_text(line, value);
        } else {
            line.extend_from_slice(value.as_bytes());
        }
        line.extend_from_slice(reset.as_bytes());
    }
}

/// Writes a JSON string. Escapes all control characters, also those that JSON does not require, such as
/// U+009B.
fn json_text(line: &mut Vec<u8>, text: &str) {
    line.push(b'"');
    let is_plain = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    let plain_bytes = text.bytes().take_while(|byte| is_plain(*byte)).count();
    line.extend_from_slice(&text.as_bytes()[..plain_bytes]);
    for character in text[plain_bytes..].chars() {
        // Writing to a vector cannot fail.
        let _ = match character {
            '"' => line.write_all(b"\\\""),
            '\\' => line.write_all(b"\\\\"),
            '\n' => line.write_all(b"\\n"),
            control if terminal::is_unsafe(control) => write!(line, "\\u{:04x}", control as u32),
            other => write!(line, "{other}"),
        };
    }
    line.push(b'"');
}

/// RFC 3339 in UTC with microseconds, as structlog's `TimeStamper(fmt="iso")`.
fn timestamp(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let mut text = String::with_capacity(27);
    let (date, hour, minute, second) = (time.date(), time.hour(), time.minute(), time.second());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let micros = time.microsecond();
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z");
    text
}

#[cfg(test)]
mod tests;
