//! `edge-proxy serve` and `demo`: starts all threads and waits for the supervisor to end.
//!
//! Sockets are bound before any thread starts, so that a failed start leaves nothing running. Reactors start
//! before the supervisor, which publishes to them before its first fetch.
use std::error::Error;
use std::fmt;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::admin::View;
use crate::channel::Publisher;
use crate::config::{Config, Inputs, Level, SettingError};
use crate::limits::{DESCRIPTORS_RESERVED, LAST_EXPORT_TIMEOUT};
use crate::log::{AccessFile, Log};
use crate::metrics::Metrics;
use crate::reactor::UnixSocket;
use crate::spans::{SpanSender, Tracer};
use crate::supervisor::MissingDocument;
use crate::systemd::Notify;
use crate::tls::Certificates;
use crate::trait_forwarding::TraitForwarder;
use crate::traits::{ForwardSink, TraitSink, TraitThread};
use crate::version::{COMMIT, VERSION};
use crate::{admin, config, demo, reactor, supervisor, telemetry, trait_forwarding, traits};

/// Time from the start to the check for other processes on the same port. Processes started simultaneously
/// listen by then.
const PORT_SHARED_DELAY: Duration = Duration::from_secs(1);
/// A hard limit of file descriptors below this is logged: each connection takes one.
const DESCRIPTORS_LOW: u64 = 10_000;
/// File descriptors that the process needs, and those that each reactor needs (listener, ring, wake-up pair,
/// a few connections). With fewer, the start fails.
const DESCRIPTORS_MIN: u64 = 24;
const DESCRIPTORS_REACTOR_MIN: u64 = 12;

/// Settings that were parsed but cannot be used, such as missing files.
#[derive(Debug)]
pub struct UnusableSettings(Vec<SettingError>);

impl fmt::Display for UnusableSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid configuration:")?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl Error for UnusableSettings {}

/// Another process listens on the demo's port.
#[derive(Debug)]
pub struct PortTaken(SocketAddr);

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, port) = (self.0, self.0.port());
        write!(
            f,
            "another process listens on {address} (`ss -ltnp 'sport = :{port}'` shows it): \
             set another port with --port"
        )
    }
}

impl Error for PortTaken {}

/// Documents on disk that do not exist.
#[derive(Debug)]
pub struct MissingDocumentsError(Vec<MissingDocument>);

impl fmt::Display for MissingDocumentsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("missing documents:")?;
        self.0.iter().try_for_each(|missing| write!(f, "\n  {missing}"))
    }
}

impl Error for MissingDocumentsError {}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An invalid configuration ([`config::ConfigError`]), a missing document or file, a failed bind, or a
/// thread that failed to start.
pub fn serve(inputs: Inputs) -> Result<(), Box<dyn Error>> {
    run(inputs, false, |_, _| {}).map_err(with_advice)
}

/// As [`serve`], and prints how to request the demo's flags.
///
/// # Errors
/// As [`serve`], and [`PortTaken`].
pub fn demo(inputs: Inputs) -> Result<(), Box<dyn Error>> {
    run(inputs, true, |address, admin| {
        // With a closed stdout the demo serves anyway.
        let _ = std::io::stdout().write_all(demo::greeting(address, admin).as_bytes());
    })
    .map_err(with_advice)
}

/// Adds which limit to raise to an error of a thread or descriptor limit.
fn with_advice(error: Box<dyn Error>) -> Box<dyn Error> {
    let Some(kind) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) else {
        return error;
    };
    match kind {
        libc::EAGAIN => {
            format!("failed to start a thread: {error}; raise TasksMax= of the unit, pids.max of the container, or ulimit -u").into()
        }
        libc::EMFILE | libc::ENFILE => {
            format!("too few file descriptors: {error}; raise LimitNOFILE= of the unit, ulimits of the container, or ulimit -n").into()
        }
        _ => error,
    }
}

/// With `needs_own_port`, another process on the port is an error. `on_bound` is called with the addresses
/// of the TCP listener, if there is one, and of the admin listener.
fn run(
    inputs: Inputs,
    needs_own_port: bool,
    on_bound: impl FnOnce(SocketAddr, Option<SocketAddr>),
) -> Result<(), Box<dyn Error>> {
    let (config, warnings) = config::load(&inputs)?;
    let missing = supervisor::missing_documents(&config, &[]);
    if !missing.is_empty() {
        return Err(MissingDocumentsError(missing).into());
    }
    check_settings(&config)?;
    let certificates =
        config.server.tls.as_ref().map(|tls| Certificates::load(tls, config.server.http2)).transpose();
    let certificates = certificates.map_err(|error| UnusableSettings(vec![error]))?;
    let access_file = open_access_file(&config).map_err(|error| UnusableSettings(vec![error]))?;
    reactor::check_driver(config.server.driver)?;
    check_descriptor_limit(config.cores.len())?;
    if needs_own_port {
        ports_are_free(&config)?;
    }
    let listeners = reactor::bind(&config)?;
    let unix_socket = reactor::bind_unix(&config)?;
    let admin = config.admin.as_ref().map(admin::bind).transpose()?;
    let address = listeners.first().map(TcpListener::local_addr).transpose()?;
    let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
    if let Some(address) = address {
        on_bound(address, admin_address);
    }
    let log = Log::start(&config.logging, access_file)?;
    log_listening(&config, address, &log);
    if let Some(address) = admin_address {
        log.event(Level::Info, "admin_listening", &[("address", &address)]);
    }
    warnings.iter().for_each(|warning| log.config_warning(warning));
    warn_if_shared(&config, &listeners, &log)?;
    let metrics = Arc::new(Metrics::new(&config.cores));
    let descriptors = raise_descriptor_limit(&log);
    let (certificates, tls) = certificates.unzip();
    let sockets = ListenSockets { listeners, unix_socket, tls };
    let spans = telemetry::span_queue(&config, &metrics);
    let sender = spans.as_ref().map(|(sender, _)| sender.clone());
    let limited = limit_connections(&config, descriptors, &log);
    let mut publisher = start_reactors(limited, sockets, &log, &metrics, sender.clone())?;
    let tracer = Tracer::of(sender, config.telemetry.sampler);
    let traits = start_traits(&config, &mut publisher, &metrics, &log, &tracer)?;
    let view = View::new(metrics.clone(), log.clone(), publisher.newest());
    let telemetry = telemetry::start(&config, view.clone(), &metrics, &log, spans)?;
    if let Some(listener) = admin {
        admin::start(listener, view.clone())?;
    }
    let hooks = supervisor::Hooks {
        read_config: Box::new(move || config::load(&inputs)),
        after_iteration: after_iteration(&view),
        tracer,
    };
    let supervisor = supervisor::start(config, log.clone(), publisher, hooks, certificates, metrics.clone())?;
    if let Some(notify) = Notify::from_process() {
        notify.ready();
        notify.watch(metrics)?;
    }
    let result = supervisor.join();
    if let Some((store, forwarder)) = traits {
        // What reactors have sent is written first, then forwarded.
        store.stop();
        forwarder.into_iter().for_each(TraitForwarder::stop);
    }
    telemetry.stop(Instant::now() + LAST_EXPORT_TIMEOUT);
    log.flush();
    Ok(result.map_err(|_| "the supervisor panicked; see stderr")??)
}

/// What the supervisor's thread does for the status page and the log of readiness.
fn after_iteration(view: &View) -> Box<dyn FnMut() + Send> {
    let (mut readiness, history) = (admin::Readiness::new(view.clone()), view.history());
    Box::new(move || {
        readiness.update();
        history.update(Instant::now());
    })
}

fn check_settings(config: &Config) -> Result<(), UnusableSettings> {
    supervisor::check(config).map_err(UnusableSettings)?;
    traits::check_settings(config).map_err(|error| UnusableSettings(vec![error]))
}

type TraitThreads = (TraitThread, Option<TraitForwarder>);

/// Starts the store of kept traits, and what forwards them. `None` without a store.
fn start_traits(
    config: &Config,
    publisher: &mut Publisher,
    metrics: &Arc<Metrics>,
    log: &Log,
    tracer: &Tracer,
) -> std::io::Result<Option<TraitThreads>> {
    let Some(link) = publisher.take_traits() else { return Ok(None) };
    let forwarder = match config.traits.forward {
        true => {
            Some(trait_forwarding::start(config, publisher.newest(), metrics, log.clone(), tracer.clone())?)
        }
        false => None,
    };
    let sink = |forwarder: &TraitForwarder| -> Box<dyn TraitSink> {
        Box::new(ForwardSink::new(forwarder.queue.clone()))
    };
    let sinks = forwarder.iter().map(sink).collect();
    let store = traits::start(config, link, sinks, metrics.clone(), log.clone())?;
    Ok(Some((store, forwarder)))
}

fn open_access_file(config: &Config) -> Result<Option<AccessFile>, SettingError> {
    let Some(path) = &config.logging.access_log_file else { return Ok(None) };
    let unusable = |error| {
        let problem = format!("{}: {error}: check the directory and its owner and mode", path.display());
        SettingError::new("logging.access_log_file", problem)
    };
    AccessFile::open(path).map(Some).map_err(unusable)
}

/// Both listeners would share the port with another process (SO_REUSEPORT), which would receive a part of
/// the connections.
fn ports_are_free(config: &Config) -> Result<(), PortTaken> {
    let admin = config.admin.as_ref().map(|admin| SocketAddr::new(admin.host, admin.port));
    let main = SocketAddr::new(config.server.host, config.server.port);
    let taken = [Some(main), admin].into_iter().flatten();
    match taken.into_iter().find(|address| address.port() != 0 && reactor::is_taken(*address)) {
        Some(address) => Err(PortTaken(address)),
        None => Ok(()),
    }
}

/// Warns if another process listens on the port, unless `server.take_over` is set: the kernel distributes
/// connections between them, so clients get responses of two configurations. Checks shortly after the
/// start, so that of two processes that start at the same time both warn.
fn warn_if_shared(config: &Config, listeners: &[TcpListener], log: &Log) -> std::io::Result<()> {
    if config.server.take_over || listeners.is_empty() {
        return Ok(());
    }
    // Only the inodes: a clone of a listener would keep it open after the reactor closed it.
    let (address, inodes, log) = (listeners[0].local_addr()?, reactor::inodes(listeners)?, log.clone());
    let check = move || {
        std::thread::sleep(PORT_SHARED_DELAY);
        // Without access to /proc the check is skipped.
        if reactor::is_shared(address.port(), &inodes).unwrap_or(false) {
            let hint = "another process also serves this port and receives a part of the connections: stop \
                        one of them, or start the successor with --take-over";
            log.event(Level::Warning, "port_shared", &[("address", &address), ("hint", &hint)]);
        }
    };
    std::thread::Builder::new().name("port".to_owned()).spawn(check).map(drop)
}

struct ListenSockets {
    listeners: Vec<TcpListener>,
    unix_socket: Option<Arc<UnixSocket>>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

fn start_reactors(
    config: Config,
    sockets: ListenSockets,
    log: &Log,
    metrics: &Metrics,
    spans: Option<SpanSender>,
) -> std::io::Result<Publisher> {
    let config = Arc::new(config);
    let mut publisher = Publisher::new(config.clone());
    let cores = config.cores.iter().zip(&metrics.reactors);
    let mut listeners = sockets.listeners.into_iter();
    for (index, (&core, metrics)) in cores.enumerate() {
        reactor::start(reactor::WorkerOptions {
            index,
            core,
            listener: listeners.next(),
            unix_socket: sockets.unix_socket.clone(),
            tls: sockets.tls.clone(),
            inbox: publisher.connect()?,
            config: config.clone(),
            log: log.clone(),
            metrics: metrics.clone(),
            spans: spans.clone(),
            times: reactor::Timeouts::of(&config),
        })?;
    }
    Ok(publisher)
}

/// The hard limit of file descriptors is too low for the number of reactors.
#[derive(Debug)]
pub struct DescriptorLimitError {
    limit: u64,
    needed: u64,
    reactors: usize,
}

impl fmt::Display for DescriptorLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, needed, reactors } = self;
        write!(
            f,
            "the limit of file descriptors is {limit}, but {reactors} reactors need at least {needed}, and one more for \
             each connection: raise LimitNOFILE= of the unit, ulimits of the container, or ulimit -n"
        )
    }
}

impl Error for DescriptorLimitError {}

/// Checks the limit of file descriptors. With fewer than needed, a reactor would fail and restart forever.
fn check_descriptor_limit(reactors: usize) -> Result<(), DescriptorLimitError> {
    let needed = DESCRIPTORS_MIN.saturating_add(DESCRIPTORS_REACTOR_MIN.saturating_mul(reactors as u64));
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < needed => Err(DescriptorLimitError { limit, needed, reactors }),
        _ => Ok(()),
    }
}

/// Raises the soft limit of file descriptors to the hard limit, and returns it. Each connection takes a
/// descriptor, and the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit(log: &Log) -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before });
    match &raised {
        Ok(()) if limit_of(before.maximum) < DESCRIPTORS_LOW => {
            let hint = "raise the hard limit: LimitNOFILE= of the unit, or ulimits of the container";
            log.event(
                Level::Warning,
                "low_fd_limit",
                &[("limit_count", &limit_of(before.maximum)), ("hint", &hint)],
            );
        }
        Ok(()) => {}
        Err(error) => log.event(Level::Warning, "fd_limit_not_raised", &[("error", &error)]),
    }
    limit_of(if raised.is_ok() { before.maximum } else { before.current })
}

/// `None` is unlimited.
fn limit_of(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX)
}

/// Lowers `connections_max` so that clients cannot use the descriptors that polling needs.
fn limit_connections(config: &Config, descriptors: u64, log: &Log) -> Config {
    let mut config = config.clone();
    // Each environment may have an event stream of upstream.
    let reserved = DESCRIPTORS_RESERVED.saturating_add(config.environments.len() as u64);
    let for_clients = descriptors.saturating_sub(reserved).max(descriptors / 2);
    let each = usize::try_from(for_clients).unwrap_or(usize::MAX) / config.cores.len().max(1);
    if each < config.server.connections_max {
        let hint = "server.connections_max exceeds what the limit of file descriptors allows";
        log.event(
            Level::Info,
            "connections_limited",
            &[("connections_max_count", &each), ("descriptors_count", &descriptors), ("hint", &hint)],
        );
        config.server.connections_max = each.max(1);
    }
    config
}

/// Logs the addresses of the listeners for SDKs.
fn log_listening(config: &Config, address: Option<SocketAddr>, log: &Log) {
    let path = config.server.unix_socket.as_ref().map(|path| path.display());
    let addresses = [address.as_ref().map(|a| a as &dyn fmt::Display), path.as_ref().map(|p| p as _)];
    for address in addresses.into_iter().flatten() {
        let fields: [(_, &dyn fmt::Display); 3] =
            [("address", &address), ("version", &VERSION), ("commit", &COMMIT)];
        log.event(Level::Info, "listening", &fields);
    }
}
