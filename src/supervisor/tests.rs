//! Drives the state machine through scripted events and times, without a thread or a socket, and compares the
//! exact actions.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime};
use std::{io, thread};

use super::action::Action;
use super::affinity::Affinity;
use super::config_file::{ConfigReader, LoadedConfig, ReloadError};
use super::context::Now;
use super::delivery::Delivery;
use super::event::Event;
use super::pool::Pool;
use super::refresh::{Compiled, Compilers, EnvironmentId, Polled, RefreshResult, RefreshSource, compile};
use super::run_loop::RunLoop;
use super::signals::Signal;
use super::state::{Supervisor, SupervisorOptions};
use super::uploads::StoredUploads;
use crate::analytics::batch::ReportKind;
use crate::analytics::upload::RoundResult;
use crate::channel::{Publisher, ReactorMessage};
use crate::config::{self, Config, EnvironmentConfig, Secret, SettingError};
use crate::counts::{Counts, Resource};
use crate::delta::digest_of;
use crate::limits;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::spans::Tracer;
use crate::storage::test_folder::TestFolder;
use crate::storage::{Store, StoredDocument};
use crate::upstream::{DeltaOutcome, DiscoveredEnvironment, PollError, PollErrorKind, ServerKey, Upstream};
use crate::validators::Validators;

const RUNNING: Event = Event::Tick { reactors: 1 };

/// The defaults, with these environments and without event streams.
fn config(client_side_keys: &[&str]) -> Config {
    let inputs = config::Inputs { without_file: true, may_serve_nothing: true, ..Default::default() };
    let mut config = config::load(&inputs).expect("the defaults").0;
    let environment = |key: &&str| EnvironmentConfig {
        client_side_key: (*key).to_owned(),
        server_side_key: Some(Secret::new(format!("ser.{key}"))),
        ..EnvironmentConfig::default()
    };
    config.environments = client_side_keys.iter().map(environment).collect();
    config.realtime.enabled = false;
    config.api_poll_frequency = Duration::from_secs(10);
    config
}

fn options(config: Config) -> SupervisorOptions {
    SupervisorOptions {
        config,
        metrics: Arc::new(Metrics::new(&[0])),
        has_storage: false,
        has_certificates: false,
        config_files: None,
        stored_uploads: StoredUploads::default(),
    }
}

struct Script {
    supervisor: Supervisor,
    start: Instant,
}

impl Script {
    fn new(config: Config) -> Self {
        let start = Instant::now();
        Self { supervisor: Supervisor::new(options(config), start), start }
    }

    /// Handles an event this many seconds after the start.
    fn at(&mut self, seconds: f64, event: Event) -> Vec<String> {
        let elapsed = Duration::from_secs_f64(seconds);
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + elapsed;
        let now = Now { instant: self.start + elapsed, wall, jitter: 0.0 };
        self.supervisor.handle(event, now).iter().map(describe).collect()
    }

    fn refreshed(
        &mut self,
        seconds: f64,
        id: EnvironmentId,
        result: Result<Polled, PollError>,
    ) -> Vec<String> {
        let started = self.start + Duration::from_secs_f64(seconds);
        self.at(
            seconds,
            Event::Refreshed(RefreshResult { id, started, seen: None, delta: DeltaOutcome::None, result }),
        )
    }

    fn discovered(&mut self, seconds: f64, client_side_keys: &[&str]) -> Vec<String> {
        let environment = |key: &&str| DiscoveredEnvironment {
            client_side_key: (*key).to_owned(),
            server_side_keys: vec![ServerKey { key: Secret::new(format!("ser.{key}")), expires_at: None }],
        };
        let environments = client_side_keys.iter().map(environment).collect();
        self.at(seconds, Event::Discovered(Ok((environments, Vec::new()))))
    }
}

/// Without environments, with reactors that run, a delay of 5 s and a grace period of 30 s for shutdown.
fn running_script() -> Script {
    let mut config = config(&[]);
    config.server.shutdown_delay = Duration::from_secs(5);
    config.server.shutdown_grace = Duration::from_secs(30);
    let mut script = Script::new(config);
    script.at(0.0, Event::Started);
    script.at(0.0, RUNNING);
    script
}

fn describe(action: &Action) -> String {
    match action {
        Action::Log { event, fields, .. } => {
            let fields = fields.iter().filter(|(name, _)| !matches!(*name, "hint" | "serving"));
            let fields: Vec<String> = fields.map(|(name, value)| format!(" {name}={value}")).collect();
            format!("log {event}{}", fields.concat())
        }
        Action::Refresh(job) => {
            let is_whole = matches!(job.source, RefreshSource::Upstream { validators: None, .. });
            format!("refresh {} {}", job.id, if is_whole { "whole" } else { "if changed" })
        }
        Action::Send(ReactorMessage::Publish(snapshot)) => {
            let slots = snapshot.slots.iter().map(|slot| {
                let document = if slot.document.is_some() { "document" } else { "empty" };
                let error = slot.last_error.as_ref().map_or("ok", |error| error.kind);
                format!(" {} {document} {error}", slot.client_side_key)
            });
            let phase = if snapshot.draining { " draining" } else { "" };
            format!("publish {}{}{phase}", snapshot.version, slots.collect::<Vec<_>>().join(","))
        }
        Action::Send(ReactorMessage::Configure(_)) => "configure".to_owned(),
        Action::Send(ReactorMessage::Drain) => "drain".to_owned(),
        Action::Send(ReactorMessage::End) => "end".to_owned(),
        Action::Upload { kind, waiting } => format!("upload {kind:?} {}", waiting.len()),
        Action::UploadLast { kind, waiting, .. } => format!("upload last {kind:?} {}", waiting.len()),
        Action::OpenStream { id, client_side_key } => format!("open stream {id} {client_side_key}"),
        Action::UseUpstream(_) => "use upstream".to_owned(),
        other => format!("{other:?}"),
    }
}

fn document(client_side_key: &str) -> Polled {
    let text = include_str!("../demo/environment.json").replace("demo-client-side-key", client_side_key);
    let (environment, warnings) = compile(text.as_bytes()).expect("a valid document");
    Polled::New(Box::new(Compiled {
        environment: Arc::new(environment),
        edited_at: None,
        warnings,
        validators: Validators::default(),
        digest: digest_of(text.as_bytes()),
        document: None,
        document_bytes: 1000,
        took: Duration::ZERO,
    }))
}

fn failure(kind: PollErrorKind, retry_after: Option<u64>) -> PollError {
    PollError { retry_after: retry_after.map(Duration::from_secs), ..PollError::new(kind, "failed") }
}

#[test]
fn retries_a_failed_poll_honours_retry_after_and_recovers() {
    let mut script = Script::new(config(&["a"]));
    assert_eq!(script.at(0.0, Event::Started), [""; 0]);
    assert_eq!(script.at(0.0, RUNNING), ["publish 1 a empty ok", "refresh 1 whole"]);
    // Without a document the retry comes after a second, shortened by the jitter.
    let failed = script.refreshed(1.0, 1, Err(failure(PollErrorKind::Timeout, None)));
    let expected = "log environment_poll_failed client_side_key=a error=failed failures_count=1 \
                    failing_seconds=0 retry_seconds=0.9";
    assert_eq!(failed, [expected]);
    assert_eq!(script.at(1.0, RUNNING), ["publish 2 a empty timeout"]);
    assert_eq!(script.at(1.8, RUNNING), [""; 0]);
    assert_eq!(script.at(1.9, RUNNING), ["refresh 1 whole"]);
    let recovered = script.refreshed(2.0, 1, Ok(document("a")));
    let expected = [
        "log environment_recovered client_side_key=a failures_count=1 failing_seconds=1",
        "log environment_updated client_side_key=a bytes=1000 took_ms=0",
    ];
    assert_eq!(recovered, expected);
    assert_eq!(script.at(2.0, RUNNING), ["publish 3 a document ok"]);
    assert_eq!(script.at(11.0, RUNNING), [""; 0]);
    assert_eq!(script.at(13.0, RUNNING), ["refresh 1 if changed"]);
    // With a document, `Retry-After` is honoured, and the document stays.
    let failed = script.refreshed(13.0, 1, Err(failure(PollErrorKind::Status(429), Some(8))));
    let expected = "log environment_poll_failed client_side_key=a error=failed failures_count=1 \
                    failing_seconds=0 retry_seconds=8.0";
    assert_eq!(failed, [expected]);
    assert_eq!(script.at(13.0, RUNNING), ["publish 4 a document http_status"]);
    assert_eq!(script.at(20.9, RUNNING), [""; 0]);
    assert_eq!(script.at(21.0, RUNNING), ["refresh 1 whole"]);
    let recovered = script.refreshed(21.0, 1, Ok(Polled::Same(None)));
    let expected = ["log environment_recovered client_side_key=a failures_count=1 failing_seconds=8"];
    assert_eq!(recovered, expected);
    assert_eq!(script.at(21.0, RUNNING), ["publish 5 a document ok"]);
}

#[test]
fn an_empty_discovery_list_removes_environments_only_after_the_grace_period() {
    let mut config = config(&["a"]);
    config.proxy_key = Some(Secret::new("proxy"));
    config.discovery_empty_grace = Duration::from_secs(60);
    let mut script = Script::new(config);
    script.at(0.0, Event::Started);
    assert_eq!(script.at(0.0, RUNNING), ["publish 1 a empty ok", "refresh 1 whole", "Discover"]);
    assert_eq!(script.discovered(0.0, &["a", "b"]), ["log environment_discovered client_side_key=b"]);
    assert_eq!(script.at(0.0, RUNNING), ["publish 2 a empty ok, b empty ok", "refresh 2 whole"]);
    assert_eq!(script.at(10.0, RUNNING), ["Discover"]);
    assert_eq!(script.discovered(10.0, &[]), ["log discovery_empty grace_seconds=60"]);
    // A failure does not confirm that the list is empty: the grace period starts again.
    assert_eq!(script.at(30.0, RUNNING), ["Discover"]);
    let failed = script.at(30.0, Event::Discovered(Err(failure(PollErrorKind::Timeout, None))));
    assert_eq!(failed, ["log discovery_failed error=failed retry_seconds=1.0"]);
    assert_eq!(script.at(40.0, RUNNING), ["Discover"]);
    assert_eq!(script.discovered(40.0, &[]), ["log discovery_recovered"]);
    assert_eq!(script.at(99.0, RUNNING), ["Discover"]);
    assert_eq!(script.discovered(99.0, &[]), [""; 0]);
    assert_eq!(script.at(110.0, RUNNING), ["Discover"]);
    let removed = script.discovered(110.0, &[]);
    assert_eq!(removed, ["RemoveMetrics(\"b\")", "log environment_removed client_side_key=b"]);
    assert_eq!(script.at(110.0, RUNNING), ["publish 3 a empty ok"]);
}

fn loaded(config: Config) -> Event {
    let upstream = Arc::new(Upstream::new(&config).expect("the defaults"));
    let result = Ok(Box::new(LoadedConfig { config, warnings: Vec::new(), upstream }));
    Event::ConfigRead { is_requested: false, result }
}

#[test]
fn a_reload_changes_the_interval_of_discovery_and_of_discovered_environments() {
    let mut config = config(&[]);
    config.proxy_key = Some(Secret::new("proxy"));
    config.api_poll_frequency = Duration::from_secs(600);
    let mut script = Script::new(config.clone());
    script.at(0.0, Event::Started);
    script.at(0.0, RUNNING);
    script.discovered(0.0, &["a"]);
    assert_eq!(script.at(0.0, RUNNING), ["publish 2 a empty ok", "refresh 1 whole"]);
    script.refreshed(0.0, 1, Ok(document("a")));
    config.api_poll_frequency = Duration::from_secs(10);
    script.at(1.0, loaded(config));
    assert_eq!(script.at(10.9, RUNNING).len(), 1, "the publication of the document");
    let due = script.at(11.0, RUNNING);
    assert_eq!(due, ["refresh 1 if changed", "Discover"], "ten seconds after the reload");
}

#[test]
fn a_reload_changes_the_interval_of_uploads() {
    let mut config = config(&[]);
    config.proxy_key = Some(Secret::new("proxy"));
    config.usage_flush_interval = Duration::from_secs(600);
    let mut script = Script::new(config.clone());
    script.at(0.0, Event::Started);
    script.at(0.0, RUNNING);
    let mut counts = Counts::default();
    counts.usage.insert(("a".into(), Resource::Flags), 7);
    script.at(0.0, Event::Counted(counts));
    config.usage_flush_interval = Duration::from_secs(10);
    script.at(1.0, loaded(config));
    let mut has_upload = |seconds| script.at(seconds, RUNNING).contains(&"upload Usage 1".to_owned());
    assert!(!has_upload(10.9));
    assert!(has_upload(11.0), "ten seconds after the reload");
}

#[test]
fn a_reload_removes_an_environment_with_its_stream_and_its_metrics() {
    let with_streams = |client_side_keys: &[&str]| {
        let mut config = config(client_side_keys);
        config.realtime.enabled = true;
        config
    };
    let mut script = Script::new(with_streams(&["a", "b"]));
    assert_eq!(script.at(0.0, Event::Started), ["open stream 1 a", "open stream 2 b"]);
    script.at(0.0, RUNNING);
    assert_eq!(script.at(1.0, loaded(with_streams(&["a", "b"]))), [""; 0], "nothing changed");
    let expected = [
        "use upstream",
        "CloseStream(1)",
        "RemoveMetrics(\"a\")",
        "open stream 3 c",
        "SetLogLevel(Info)",
        "configure",
        "log configuration_reloaded environments_added=1 environments_removed=1 environments_changed=0",
    ];
    assert_eq!(script.at(2.0, loaded(with_streams(&["b", "c"]))), expected);
    assert_eq!(script.refreshed(2.0, 1, Ok(document("a"))), [""; 0], "its refresh was in flight");
    assert_eq!(script.at(2.0, RUNNING), ["publish 2 b empty ok, c empty ok", "refresh 3 whole"]);
    let invalid = Event::ConfigRead {
        is_requested: true,
        result: Err(ReloadError::Upstream(vec![SettingError::new("api_url", "x")])),
    };
    assert_eq!(script.at(3.0, invalid), ["log configuration_refused mistake=api_url: x"]);
}

#[test]
fn a_shutdown_drains_uploads_and_exits() {
    let mut script = running_script();
    let stopping = script.at(1.0, Event::Signal(Signal::Stop));
    assert_eq!(stopping, ["log stopping delay_seconds=5", "NotifyStopping", "publish 2 draining"]);
    assert_eq!(script.at(5.9, RUNNING), [""; 0]);
    assert_eq!(script.at(6.0, RUNNING), ["log draining", "drain"]);
    assert_eq!(script.at(35.9, RUNNING), [""; 0]);
    assert_eq!(script.at(36.0, RUNNING), ["end"]);
    assert_eq!(script.at(36.9, RUNNING), [""; 0]);
    assert_eq!(script.at(37.0, RUNNING), ["log shutdown_timeout reactors=1", "upload last Usage 0"]);
    let uploaded = |kind| Event::Uploaded(RoundResult::new(kind));
    assert_eq!(script.at(37.0, uploaded(ReportKind::Usage)), ["upload last Analytics 0"]);
    let last = script.at(37.0, uploaded(ReportKind::Analytics));
    assert_eq!(last, ["FlushStorage", "log stopped", "Exit(Ok(()))"]);
}

/// Each further signal says what it ends, and ends it.
#[test]
fn a_further_signal_skips_the_wait_of_its_phase() {
    let mut script = running_script();
    script.at(1.0, Event::Signal(Signal::Stop));
    let second = script.at(1.1, Event::Signal(Signal::Stop));
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second[0].starts_with("log stopping_sooner effect=no new connections"), "{second:?}");
    assert!(second[0].contains("open requests have 30 s"), "{second:?}");
    assert_eq!(script.at(1.1, RUNNING), ["log draining", "drain"]);
    let third = script.at(1.2, Event::Signal(Signal::Stop));
    assert!(third[0].starts_with("log stopping_sooner effect=open requests are ended"), "{third:?}");
    assert_eq!(script.at(1.2, RUNNING), ["end"]);
    let fourth = script.at(1.3, Event::Signal(Signal::Stop));
    assert!(fourth[0].starts_with("log stopping_sooner effect=reactors that do not end"), "{fourth:?}");
    assert_eq!(script.at(1.3, RUNNING), ["log shutdown_timeout reactors=1", "upload last Usage 0"]);
    let fifth = script.at(1.4, Event::Signal(Signal::Stop));
    assert!(fifth[0].starts_with("log stopping_sooner effect=counts are not uploaded"), "{fifth:?}");
}

/// Counts that reactors report when they end are part of the last upload.
#[test]
fn reactors_end_before_the_last_upload() {
    let mut script = running_script();
    script.at(1.0, Event::Signal(Signal::Stop));
    script.at(6.0, RUNNING);
    script.at(6.1, Event::Signal(Signal::Stop));
    assert_eq!(script.at(6.1, RUNNING), ["end"]);
    assert_eq!(script.at(6.2, Event::Tick { reactors: 0 }), ["upload last Usage 0"]);
}

#[test]
fn exits_with_an_error_when_no_reactor_is_left() {
    let mut script = Script::new(config(&[]));
    script.at(0.0, Event::Started);
    assert_eq!(script.at(1.0, Event::Tick { reactors: 0 }), ["upload last Usage 0"]);
    script.at(1.0, Event::Uploaded(RoundResult::new(ReportKind::Usage)));
    let last = script.at(1.0, Event::Uploaded(RoundResult::new(ReportKind::Analytics)));
    let exit = "Exit(Err(\"no reactor is running: see the log for the reason\"))";
    assert_eq!(last, ["FlushStorage", "log stopped", exit]);
}

#[test]
fn the_files_of_the_configuration_are_checked_at_their_interval() {
    let mut with_file = config(&[]);
    with_file.path = Some("/etc/edge-proxy/config.json".into());
    for (config, expected) in [(with_file, &["CheckConfigFiles"][..]), (config(&[]), &[])] {
        let mut script = Script::new(config);
        script.at(0.0, Event::Started);
        script.at(0.0, RUNNING);
        let interval = limits::CONFIG_POLL.as_secs_f64();
        assert_eq!(script.at(0.9 * interval, RUNNING), [""; 0]);
        assert_eq!(script.at(interval, RUNNING), expected);
        assert_eq!(script.at(1.9 * interval, RUNNING), [""; 0]);
        assert_eq!(script.at(2.0 * interval, RUNNING), expected);
    }
}

/// A loop without a document, a pool of one thread, and this store.
fn run_loop(config: &Config, publisher: Publisher, store: Option<Store>) -> RunLoop {
    let (sender, events) = channel();
    RunLoop {
        state: Supervisor::new(options(config.clone()), Instant::now()),
        events,
        sender,
        results: VecDeque::new(),
        log: Log::start_to(&config.logging, io::sink(), None).unwrap(),
        metrics: Arc::new(Metrics::new(&[0])),
        store,
        event_queue: None,
        delivery: Delivery::new(publisher),
        upstream: Arc::new(Upstream::new(config).unwrap()),
        tracer: Tracer::default(),
        pool: Pool::new("fetch", 1, Affinity::anywhere()),
        compilers: Arc::new(Compilers::beside(&[])),
        config_reader: ConfigReader::new(config, Box::new(|| Err(config::ConfigError::default()))),
        certificates: None,
        streams: HashMap::new(),
        after_iteration: Box::new(|| ()),
        exit: None,
    }
}

#[test]
fn the_loop_frees_the_snapshots_that_reactors_return() {
    let config = config(&[]);
    let mut publisher = Publisher::new(Arc::new(config.clone()));
    let inbox = publisher.connect().unwrap();
    let mut run_loop = run_loop(&config, publisher, None);
    run_loop.dispatch(Event::Started);
    let snapshot = Arc::new(Snapshot::default());
    let weak = Arc::downgrade(&snapshot);
    drop(inbox.lease(snapshot));
    assert_eq!(weak.strong_count(), 1, "a reactor never frees one");
    let sender = run_loop.sender.clone();
    let thread = thread::spawn(move || run_loop.run());
    let until = Instant::now() + Duration::from_secs(10);
    while weak.strong_count() > 0 {
        assert!(Instant::now() < until, "not freed");
        thread::sleep(Duration::from_millis(1));
    }
    drop(inbox);
    sender.send(RUNNING).unwrap();
    assert!(thread.join().unwrap().is_err(), "no reactor is left");
}

#[test]
fn the_loop_ends_after_the_documents_are_written() {
    let config = config(&[]);
    let folder = TestFolder::new("loop-flush");
    let log = Log::start_to(&config.logging, io::sink(), None).unwrap();
    let store = Store::open(&folder.0, &log).unwrap();
    let document = vec![b' '; 20 << 20];
    let digest = digest_of(&document);
    let (validators, saved_at) = (Validators::default(), SystemTime::UNIX_EPOCH);
    store.save("key", StoredDocument { document, validators, digest, saved_at });
    let run_loop = run_loop(&config, Publisher::new(Arc::new(config.clone())), Some(store));
    // No reactor runs.
    assert!(run_loop.run().is_err());
    let found = crate::storage::load(&folder.0, "key").unwrap().map(|found| found.document.len());
    assert_eq!(found, Some(20 << 20));
}
