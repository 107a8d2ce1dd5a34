//! `edge-proxy serve` from the first line to the last: the one place where the rooms meet.
//!
//! In: where to read the configuration. Out: a process that serves until it is told to stop.
//! Invariant: sockets are bound before any thread is started, so that a process that cannot
//! serve starts nothing; reactors are started before the supervisor, which publishes to them
//! before it fetches anything. Nothing here is on the way of a request.
use std::error::Error;
use std::fmt;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::admin::View;
use crate::channel::Publisher;
use crate::config::{Config, Inputs, Level, SettingError};
use crate::limits::{
    DESCRIPTORS_LOW, DESCRIPTORS_MIN, DESCRIPTORS_REACTOR_MIN, DESCRIPTORS_RESERVED, PORT_SHARED_DELAY,
};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::reactor::UnixSocket;
use crate::supervisor::MissingDocument;
use crate::systemd::Notify;
use crate::tls::Certificates;
use crate::{admin, config, demo, reactor, supervisor};

/// Why it could not start or go on.
pub type Ended = Result<(), Box<dyn Error>>;

/// Settings that were parsed but cannot be used, such as files that are missing.
#[derive(Debug)]
pub struct UnusableSettings(Vec<SettingError>);

impl fmt::Display for UnusableSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl Error for UnusableSettings {}

/// The demo's port belongs to another process.
#[derive(Debug)]
pub struct PortTaken(SocketAddr);

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, port) = (self.0, self.0.port());
        write!(
            f,
            "another process listens on {address}: `ss -ltnp 'sport = :{port}'` shows which; \
             choose another port with --port"
        )
    }
}

impl Error for PortTaken {}

/// Documents on disk that do not exist.
#[derive(Debug)]
pub struct MissingDocumentsError(Vec<MissingDocument>);

impl fmt::Display for MissingDocumentsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot start without the documents to serve:")?;
        self.0.iter().try_for_each(|missing| write!(f, "\n  {missing}"))
    }
}

impl Error for MissingDocumentsError {}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A wrong configuration ([`config::ConfigError`]), a port in use, or a thread that could not be started.
pub fn serve(inputs: Inputs) -> Ended {
    run(inputs, false, |_, _| {}).map_err(explained)
}

/// As [`serve`], and says on stdout how to ask for the demo's flags.
///
/// # Errors
/// As [`serve`].
pub fn demo(inputs: Inputs) -> Ended {
    run(inputs, true, |address, admin| {
        // If nobody reads it, the flags are served all the same.
        let _ = std::io::stdout().write_all(demo::greeting(address, admin).as_bytes());
    })
    .map_err(explained)
}

/// Adds what to do to an error of the system about threads or descriptors.
fn explained(error: Box<dyn Error>) -> Box<dyn Error> {
    let Some(kind) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) else {
        return error;
    };
    match kind {
        libc::EAGAIN => {
            format!("cannot start a thread: {error}; raise TasksMax= of the unit, pids.max of the container, or ulimit -u").into()
        }
        libc::EMFILE | libc::ENFILE => {
            format!("too few descriptors: {error}; raise LimitNOFILE= of the unit, ulimits of the container, or ulimit -n").into()
        }
        _ => error,
    }
}

/// `needs_own_port`: another process at the port is an error, not one to share it with.
/// `bound` is called with the addresses of both listeners once they are there, if callers come by TCP.
fn run(inputs: Inputs, needs_own_port: bool, bound: impl FnOnce(SocketAddr, Option<SocketAddr>)) -> Ended {
    let (config, notices) = config::load(&inputs)?;
    let missing = supervisor::missing_documents(&config, &[]);
    if !missing.is_empty() {
        return Err(MissingDocumentsError(missing).into());
    }
    supervisor::check(&config).map_err(UnusableSettings)?;
    let certificates = config.server.tls.as_ref().map(Certificates::load).transpose();
    let certificates = certificates.map_err(|error| UnusableSettings(vec![error]))?;
    reactor::check_driver(config.server.driver)?;
    enough_descriptors(config.cores.len())?;
    if needs_own_port {
        ports_are_free(&config)?;
    }
    let listeners = reactor::bind(&config)?;
    let unix_socket = reactor::bind_unix(&config)?;
    let admin = config.admin.as_ref().map(admin::bind).transpose()?;
    let address = listeners.first().map(TcpListener::local_addr).transpose()?;
    let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
    if let Some(address) = address {
        bound(address, admin_address);
    }
    let log = Log::start(&config.logging)?;
    log_listening(&config, address, &log);
    if let Some(address) = admin_address {
        log.event(Level::Info, "admin_listening", &[("address", &address)]);
    }
    notices.iter().for_each(|notice| log.notice(notice));
    watch_for_sharing(&config, &listeners, &log)?;
    let metrics = Arc::new(Metrics::new(&config.cores));
    let descriptors = raise_descriptor_limit(&log);
    let (certificates, tls) = certificates.unzip();
    let doors = Doors { listeners, unix_socket, tls };
    let publisher = start_reactors(bounded(&config, descriptors, &log), doors, &log, &metrics)?;
    let view = View::new(metrics.clone(), log.clone(), publisher.newest());
    let mut readiness = admin::Readiness::new(view.clone());
    if let Some(listener) = admin {
        admin::start(listener, view)?;
    }
    let hooks = supervisor::Hooks {
        reload: Box::new(move || config::load(&inputs)),
        turned: Box::new(move || readiness.update()),
    };
    let supervisor = supervisor::start(config, log.clone(), publisher, hooks, certificates, metrics.clone())?;
    if let Some(notify) = Notify::from_process() {
        notify.ready();
        notify.watch(metrics)?;
    }
    let ended = supervisor.join();
    log.flush();
    Ok(ended.map_err(|_| "the supervisor ended by a defect; stderr says where")??)
}

/// Both listeners would share a port with another process (SO_REUSEPORT), which gets half of what is asked.
fn ports_are_free(config: &Config) -> Result<(), PortTaken> {
    let admin = config.admin.as_ref().map(|admin| SocketAddr::new(admin.host, admin.port));
    let main = SocketAddr::new(config.server.host, config.server.port);
    let taken = [Some(main), admin].into_iter().flatten();
    match taken.into_iter().find(|address| address.port() != 0 && reactor::is_taken(*address)) {
        Some(address) => Err(PortTaken(address)),
        None => Ok(()),
    }
}

/// Warns when another process listens at the port, unless it is to be replaced: the kernel gives each
/// of them a part of the connections, and so callers meet two configurations. Looks a moment after the
/// start, so that of two processes that start at once both see it.
fn watch_for_sharing(config: &Config, listeners: &[TcpListener], log: &Log) -> std::io::Result<()> {
    if config.server.take_over || listeners.is_empty() {
        return Ok(());
    }
    // Not the listeners themselves: a copy of one would hold it open after the reactor closed it.
    let (address, inodes, log) = (listeners[0].local_addr()?, reactor::inodes(listeners)?, log.clone());
    let look = move || {
        std::thread::sleep(PORT_SHARED_DELAY);
        // Where /proc is closed nothing is known, and so nothing is said.
        if reactor::is_shared(address.port(), &inodes).unwrap_or(false) {
            let hint = "another process serves this port too and gets a part of the connections: stop one of \
                        them, or start the successor with --take-over";
            log.event(Level::Warning, "port_shared", &[("address", &address), ("hint", &hint)]);
        }
    };
    std::thread::Builder::new().name("port".to_owned()).spawn(look).map(drop)
}

/// What callers come in by.
struct Doors {
    listeners: Vec<TcpListener>,
    unix_socket: Option<Arc<UnixSocket>>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

fn start_reactors(config: Config, doors: Doors, log: &Log, metrics: &Metrics) -> std::io::Result<Publisher> {
    let config = Arc::new(config);
    let mut publisher = Publisher::new(config.clone());
    let cores = config.cores.iter().zip(&metrics.reactors);
    let mut listeners = doors.listeners.into_iter();
    for (index, (&core, metrics)) in cores.enumerate() {
        reactor::start(reactor::WorkerOptions {
            index,
            core,
            listener: listeners.next(),
            unix_socket: doors.unix_socket.clone(),
            tls: doors.tls.clone(),
            inbox: publisher.connect()?,
            config: config.clone(),
            log: log.clone(),
            metrics: metrics.clone(),
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
fn enough_descriptors(reactors: usize) -> Result<(), DescriptorLimitError> {
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
            let limit = &limit_of(before.maximum);
            let hint = "LimitNOFILE= of the unit, or ulimits of the container, sets the hard limit";
            log.event(Level::Warning, "few_descriptors", &[("limit_count", limit), ("hint", &hint)]);
        }
        Ok(()) => {}
        Err(error) => log.event(Level::Warning, "descriptor_limit_not_raised", &[("error", error)]),
    }
    limit_of(if raised.is_ok() { before.maximum } else { before.current })
}

/// `None` is unlimited.
fn limit_of(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX)
}

/// Callers that hold every descriptor would end the polling as well, so some are kept from them.
fn bounded(config: &Config, descriptors: u64, log: &Log) -> Config {
    let mut config = config.clone();
    // Each environment may hold an event stream upstream.
    let reserved = DESCRIPTORS_RESERVED.saturating_add(config.environments.len() as u64);
    let for_callers = descriptors.saturating_sub(reserved).max(descriptors / 2);
    let each = usize::try_from(for_callers).unwrap_or(usize::MAX) / config.cores.len().max(1);
    if each < config.server.connections_max {
        let hint = "server.connections_max is more than the descriptor limit allows";
        let fields: [(_, &dyn fmt::Display); 3] =
            [("connections_max_count", &each), ("descriptors_count", &descriptors), ("hint", &hint)];
        log.event(Level::Info, "connections_bounded", &fields);
        config.server.connections_max = each.max(1);
    }
    config
}

/// Says where callers come in.
fn log_listening(config: &Config, address: Option<SocketAddr>, log: &Log) {
    let version = env!("CARGO_PKG_VERSION");
    let path = config.server.unix_socket.as_ref().map(|path| path.display());
    let addresses = [address.as_ref().map(|a| a as &dyn fmt::Display), path.as_ref().map(|p| p as _)];
    for address in addresses.into_iter().flatten() {
        log.event(Level::Info, "listening", &[("address", address), ("version", &version)]);
    }
}
