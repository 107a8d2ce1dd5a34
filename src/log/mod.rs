//! Structured log: any thread sends records to a bounded queue, and one thread writes them to stdout in the
//! formats of the Python proxy (structlog), text or JSON.
//!
//! Logging never blocks: a record that does not fit in the queue is dropped, and the number of dropped
//! records is logged. The value of a field named `*_key` is truncated; other secrets are
//! [`Secret`]s. Control characters are escaped.
mod access;
mod access_file;
mod record;

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::config::{ConfigWarning, Level, LogFormat, Logging, Secret};
use crate::limits::{ACCESS_RECORDS_MAX, LOG_RECORDS_MAX};
pub use crate::log::access::{AccessRecord, AccessRecords, AccessText};
pub use crate::log::access_file::AccessFile;
use crate::log::record::Record;
use crate::{terminal, timestamp};

/// How long a process that exits waits for the log to be written. Beyond: the rest is lost.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two attempts to queue the last message.
const LOG_FLUSH_PAUSE: Duration = Duration::from_millis(5);
/// Recent warnings and errors on the status page.
const LOG_RECENT_MAX: usize = 20;

/// A handle to the queue; cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    records: SyncSender<LogMessage>,
    shared: Arc<LogQueue>,
}

/// Memory ordering: the numbers, `level` and `access_waiting` publish no other data, so relaxed is enough.
/// `reopen` is sequentially consistent: it is stored before the queue is found full, and swapped after it
/// was read.
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
    /// Whether access records have a file, so that `level` does not concern them.
    has_access_file: bool,
    /// The access log file is to be opened again.
    reopen: AtomicBool,
    /// Access records that could not be written to the file.
    access_unwritten: AtomicU64,
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
    /// Wakes the writer, which looks at `LogQueue::reopen`.
    Reopen,
    /// The writer replies when everything before it is written.
    Flush(SyncSender<()>),
}

impl Log {
    /// Starts the writer thread. It ends when the last handle is dropped.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(settings: &Logging, access_file: Option<AccessFile>) -> std::io::Result<Self> {
        Self::start_to(settings, std::io::stdout(), access_file)
    }

    /// As [`start`](Self::start), with another output than stdout.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start_to(
        settings: &Logging,
        out: impl Write + Send + 'static,
        access_file: Option<AccessFile>,
    ) -> std::io::Result<Self> {
        let (records, queue) = sync_channel(LOG_RECORDS_MAX);
        let level = AtomicU8::new(settings.log_level as u8);
        let (dropped, dropped_total, recent) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::default());
        let (access_dropped, access_waiting) = (AtomicU64::new(0), AtomicUsize::new(0));
        let has_access_file = access_file.is_some();
        let shared = Arc::new(LogQueue {
            level,
            dropped,
            dropped_total,
            access_dropped,
            access_waiting,
            has_access_file,
            reopen: AtomicBool::new(false),
            access_unwritten: AtomicU64::new(0),
            recent,
        });
        let (settings, line) = (settings.clone(), Vec::new());
        let mut writer = Writer { settings, shared: shared.clone(), out, line, access_file };
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(Self { records, shared })
    }

    /// Logs `event` (a constant in lower_snake_case) with its fields. In JSON a
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

    /// Whether requests are logged: at this level, or to a file, which has no level.
    pub fn takes_accesses(&self) -> bool {
        self.shared.has_access_file || Level::Info as u8 >= self.shared.level.load(Ordering::Relaxed)
    }

    /// Opens the access log file again, after it was renamed. The writer does it before its next write.
    pub fn reopen(&self) {
        if self.shared.has_access_file {
            self.shared.reopen.store(true, Ordering::SeqCst);
            // If the queue is full the writer is busy, and looks at the flag anyway.
            let _ = self.records.try_send(LogMessage::Reopen);
        }
    }

    /// The number of access records that could not be written to the file.
    pub fn access_unwritten(&self) -> u64 {
        self.shared.access_unwritten.load(Ordering::Relaxed)
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

/// The state of the writer thread.
struct Writer<W> {
    settings: Logging,
    shared: Arc<LogQueue>,
    out: W,
    line: Vec<u8>,
    access_file: Option<AccessFile>,
}

impl<W: Write> Writer<W> {
    fn run(&mut self, queue: &Receiver<LogMessage>) {
        while let Ok(message) = queue.recv() {
            self.take(message);
            // One write for all queued lines.
            while self.line.len() + self.access_file.as_ref().map_or(0, AccessFile::waiting) < 64 * 1024 {
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
                    let record = access.into_record(&accesses.text);
                    match &mut self.access_file {
                        Some(file) => file.append(|line| render(&self.settings, &record, false, line)),
                        None => self.render(&record),
                    }
                }
            }
            LogMessage::Flush(done) => {
                self.report_dropped();
                self.write();
                let _ = done.send(());
            }
            LogMessage::Reopen => {}
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

    /// Ignores errors of stdout: a closed pipe must not end the process, and there is no other output for the
    /// error.
    fn write(&mut self) {
        self.write_accesses();
        let _ = self.out.write_all(&self.line);
        let _ = self.out.flush();
        self.line.clear();
    }

    /// Writes the access records to their file, and reports when that begins to fail.
    fn write_accesses(&mut self) {
        let Some(file) = &mut self.access_file else { return };
        let reopened = self.shared.reopen.swap(false, Ordering::SeqCst).then(|| file.reopen());
        let (lost, failed) = file.write();
        self.shared.access_unwritten.fetch_add(lost, Ordering::Relaxed);
        let path = file.path().display().to_string();
        let (time, fields) =
            (SystemTime::now(), |error: String| vec![("path", path.clone()), ("error", error)]);
        let record = |level, event, fields| Record { time, level, event, fields };
        let records = [
            reopened.map(|result| match result {
                Ok(()) => record(Level::Info, "access_log_reopened", vec![("path", path.clone())]),
                Err(error) => record(Level::Error, "access_log_reopen_failed", fields(error.to_string())),
            }),
            failed.map(|error| record(Level::Error, "access_log_write_failed", fields(error.to_string()))),
        ];
        for record in records.iter().flatten() {
            self.take(LogMessage::Record(Record::clone(record)));
        }
    }

    fn render(&mut self, record: &Record) {
        render(&self.settings, record, self.settings.colour, &mut self.line);
    }
}

fn render(settings: &Logging, record: &Record, is_coloured: bool, line: &mut Vec<u8>) {
    match settings.log_format {
        LogFormat::Json => render_json(record, &settings.log_event_field_name, line),
        LogFormat::Generic => render_generic(record, is_coloured, line),
    }
    line.push(b'\n');
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
    line.extend_from_slice(timestamp::rfc3339(record.time).as_bytes());
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
    let (time, level, event) = (timestamp::rfc3339(record.time), record.level.name(), record.event);
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

#[cfg(test)]
mod tests;
