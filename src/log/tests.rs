use std::sync::Mutex;

use super::*;
use crate::limits::LOG_RECORDS_MAX;

/// An output that can be read, and blocked by locking it.
#[derive(Clone, Default)]
struct TestOutput(Arc<Mutex<Vec<u8>>>);

impl Write for TestOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("unpoisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl TestOutput {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("unpoisoned").clone()).expect("UTF-8")
    }
}

fn settings(log_format: LogFormat) -> Logging {
    Logging {
        log_level: Level::Info,
        log_format,
        log_event_field_name: "message".to_owned(),
        colour: false,
        enable_access_log: false,
        access_log_file: None,
    }
}

#[test]
fn writes_json_as_structlog() {
    let output = TestOutput::default();
    let log = Log::start_to(&settings(LogFormat::Json), output.clone(), None).expect("a thread");
    log.event(Level::Debug, "not_logged", &[]);
    log.event(
        Level::Warning,
        "poll_failed",
        &[("error", &"say \"what\"\n"), ("wait_seconds", &1.5), ("key", &12)],
    );
    log.set_level(Level::Debug);
    log.event(Level::Debug, "logged_now", &[("wait_seconds", &"never")]);
    log.flush();
    let text = output.text();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["message"], "poll_failed");
    assert_eq!(lines[0]["level"], "warning");
    assert_eq!(lines[0]["logger"], "edge_proxy");
    assert_eq!(lines[0]["error"], "say \"what\"\n");
    assert_eq!(lines[0]["wait_seconds"], 1.5, "a number, by its unit");
    assert_eq!(lines[0]["key"], "12", "a string, without a unit");
    assert_eq!(lines[1]["wait_seconds"], "never", "a string, because it is not a number");
    let time = lines[0]["timestamp"].as_str().expect("text");
    assert!(time.len() == 27 && time.starts_with("20") && time.ends_with('Z'), "{time}");
}

#[test]
fn writes_text_as_structlog_and_escapes_control_characters() {
    let output = TestOutput::default();
    let log = Log::start_to(&settings(LogFormat::Generic), output.clone(), None).expect("a thread");
    log.event(Level::Info, "listening", &[("address", &"[::]:8000"), ("text", &"a b\x1b[31m\u{9b}\n")]);
    log.flush();
    let text = output.text();
    let (_, rest) = text.split_once(' ').expect("a time");
    assert_eq!(
        rest,
        "[info     ] listening                      address=[::]:8000 text=\"a b\\u001b[31m\\u009b\\n\"\n"
    );
}

#[test]
fn counts_dropped_records() {
    let output = TestOutput::default();
    let blocked = output.0.clone();
    let log = Log::start_to(&settings(LogFormat::Json), output.clone(), None).expect("a thread");
    let beyond = 500;
    {
        let _guard = blocked.lock().expect("unpoisoned");
        // The writer takes some records before its output blocks; the rest fills the queue.
        for _ in 0..4 * LOG_RECORDS_MAX + beyond {
            log.event(Level::Info, "flood", &[]);
        }
    }
    log.flush();
    log.event(Level::Info, "after", &[]);
    log.flush();
    let text = output.text();
    let written = text.lines().filter(|line| line.contains("\"flood\"")).count();
    let dropped: usize = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .filter_map(|line| line["dropped_count"].as_u64())
        .map(|count| usize::try_from(count).expect("small"))
        .sum();
    assert!(dropped >= beyond, "{dropped}");
    assert_eq!(written + dropped, 4 * LOG_RECORDS_MAX + beyond);
    assert!(text.contains("\"after\""));
}

fn access(path: &str, user_agent: &str, text: &mut access::AccessText) -> AccessRecord {
    AccessRecord {
        time: SystemTime::now(),
        remote_ip: Some([192, 0, 2, 1].into()),
        method: "GET",
        path: text.append(|out| out.push_str(path)),
        protocol: "HTTP/1.1",
        status: 200,
        bytes: 1234,
        duration_us: 7,
        environment: text.append(|_| {}),
        user_agent: text.append(|out| out.push_str(user_agent)),
        request_id: text.append(|_| {}),
        trace_id: text.append(|_| {}),
    }
}

#[test]
fn access_records_do_not_displace_errors() {
    let output = TestOutput::default();
    let blocked = output.0.clone();
    let log = Log::start_to(&settings(LogFormat::Json), output.clone(), None).expect("a thread");
    let mut dropped = 0;
    {
        let _guard = blocked.lock().expect("unpoisoned");
        for _ in 0..2 * LOG_RECORDS_MAX {
            let mut two = AccessRecords::default();
            two.push(|text| access("/other/", "", text));
            two.push(|text| access("/api/v1/flags/", "a b", text));
            dropped += if log.accesses(two) { 0 } else { 2 };
        }
        log.event(Level::Error, "something_else", &[]);
    }
    log.flush();
    let text = output.text();
    let requests: Vec<&str> = text.lines().filter(|line| line.contains("http_request")).collect();
    assert_eq!(requests.len() + dropped, 4 * LOG_RECORDS_MAX);
    assert!(dropped > LOG_RECORDS_MAX, "{dropped}");
    assert!(text.contains("something_else"), "the error was queued");
    assert!(requests[0].contains("\"path\":\"/other/\""), "{}", requests[0]);
    let request: serde_json::Value = serde_json::from_str(requests[1]).expect("JSON");
    assert_eq!(request["remote_ip"], "192.0.2.1");
    assert_eq!((&request["status"], &request["bytes"]), (&200.into(), &1234.into()));
    assert_eq!((&request["duration_us"], &request["path"]), (&7.into(), &"/api/v1/flags/".into()));
    assert_eq!((&request["user_agent"], &request["protocol"]), (&"a b".into(), &"HTTP/1.1".into()));
    assert!(!requests[0].contains("user_agent") && !requests[0].contains("request_id"), "{}", requests[0]);
}

#[test]
fn truncates_keys() {
    let output = TestOutput::default();
    let log = Log::start_to(&settings(LogFormat::Json), output.clone(), None).expect("a thread");
    log.event(
        Level::Info,
        "environment_updated",
        &[("client_side_key", &"a-client-side-key"), ("bytes", &12)],
    );
    log.event(Level::Info, "environment_updated", &[("client_side_key", &"/etc/documents/main.json")]);
    log.flush();
    let text = output.text();
    assert!(text.contains("\"client_side_key\":\"a-clie...\"") && !text.contains("side-key"), "{text}");
    assert!(text.contains("/etc/documents/main.json"), "{text}");
}

#[test]
fn access_file_that_cannot_be_written_is_reported_once_and_its_records_are_counted() {
    let output = TestOutput::default();
    let full = AccessFile::open("/dev/full".as_ref()).expect("a character device");
    let settings = Logging { log_level: Level::Error, ..settings(LogFormat::Json) };
    let log = Log::start_to(&settings, output.clone(), Some(full)).expect("a thread");
    assert!(log.takes_accesses(), "the level does not concern the file");
    for _ in 0..3 {
        let mut records = AccessRecords::default();
        records.push(|text| access("/", "", text));
        assert!(log.accesses(records));
        log.flush();
    }
    let text = output.text();
    assert_eq!(text.matches("access_log_write_failed").count(), 1, "{text}");
    assert!(text.contains("\"path\":\"/dev/full\"") && !text.contains("http_request"), "{text}");
    assert_eq!(log.access_unwritten(), 3);
    assert_eq!(log.recent().len(), 1, "the status page shows it");
}
