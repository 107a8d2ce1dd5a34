//! The data plane: one pinned thread per core, its ring, its listener, its connections.
//!
//! In: a bound listener, an [`Inbox`] of snapshots. Out: answers on sockets. Invariant: a
//! reactor shares nothing with another one, never blocks, never calls upstream, never frees an
//! environment; it accepts only once it has a snapshot. What is asked of one connection is in
//! `connection`; this file is the thread around it.
mod accept;
mod connection;
mod driver;
mod panic;
mod registry;
mod transport;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::answer;
use crate::channel::{Inbox, Lease, Message};
use crate::config::{Config, Level};
use crate::http::Output;
use crate::limits;
use crate::log::Log;
use registry::Registry;

/// What one reactor needs to run.
pub struct Start {
    /// 0, 1, ...: names the thread.
    pub index: usize,
    /// The CPU it is pinned to.
    pub core: usize,
    pub listener: TcpListener,
    pub inbox: Inbox,
    pub config: Arc<Config>,
    pub log: Log,
    pub times: Times,
}

/// How long a peer may take over what.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between two requests.
    pub keep_alive: Duration,
    pub head: Duration,
    pub body: Duration,
    pub write: Duration,
    /// After the last answer, for the peer to close.
    pub linger: Duration,
}

impl Times {
    /// Those of the configuration and of `limits`.
    pub fn of(config: &Config) -> Self {
        Self {
            keep_alive: config.server.timeout_keep_alive,
            head: limits::HEAD_TIMEOUT,
            body: limits::BODY_TIMEOUT,
            write: limits::WRITE_TIMEOUT,
            linger: limits::LINGER_TIMEOUT,
        }
    }
}

/// Binds one listener for each core to the same address (SO_REUSEPORT), so that the kernel
/// spreads connections and a second process can take over from this one.
///
/// # Errors
/// The address cannot be bound; the message says what to do.
pub fn bind(config: &Config) -> io::Result<Vec<TcpListener>> {
    let mut address = SocketAddr::new(config.server.host, config.server.port);
    let mut listeners = Vec::with_capacity(config.cores.len());
    for _ in &config.cores {
        let listener = listen(address).map_err(|error| explain(address, &error))?;
        // Port 0 means any free one; the others must have the same.
        address.set_port(listener.local_addr()?.port());
        listeners.push(listener);
    }
    Ok(listeners)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.ip() == IpAddr::from([0u16; 8]) {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(limits::BACKLOG_MAX)?;
    Ok(socket.into())
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let port = address.port();
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another program listens there: `ss -ltnp 'sport = :{port}'` shows which; set server.port"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("port {port} needs CAP_NET_BIND_SERVICE; set server.port to 1024 or more")
        }
        io::ErrorKind::AddrNotAvailable => "no interface has this address; set server.host".to_owned(),
        _ => "check server.host and server.port".to_owned(),
    };
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}; {advice}"))
}

/// Starts the thread of one reactor. It ends after [`Message::Drain`], or when the publisher is
/// gone; a panic in it is logged and it starts again with a fresh ring.
///
/// # Errors
/// The thread could not be made.
pub fn start(start: Start) -> io::Result<JoinHandle<()>> {
    panic::remember_places();
    std::thread::Builder::new().name(format!("reactor-{}", start.index)).spawn(move || supervise(start))
}

/// Runs the reactor until it ends of its own will.
fn supervise(start: Start) {
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: start.core });
    if !pinned {
        start.log.event(
            Level::Warning,
            "reactor_not_pinned",
            &[("reactor", &start.index), ("core", &start.core)],
        );
    }
    // What must outlive a panic: the inbox, and the snapshot that was last published.
    let memory = Memory { lease: RefCell::new(None), draining: Cell::new(false) };
    loop {
        let built = match driver::build(start.config.server.driver) {
            Ok(built) => built,
            Err(error) => {
                start.log.event(Level::Critical, "reactor_has_no_driver", &[("error", &error)]);
                return;
            }
        };
        start.log.event(
            Level::Info,
            "reactor_started",
            &[
                ("reactor", &start.index),
                ("core", &start.core),
                ("driver", &built.name),
                ("reason", &built.why),
            ],
        );
        match run(&start, &memory, built) {
            Ok(()) => return,
            Err(Failure::Panic) => {
                let place = panic::last_place();
                start.log.event(
                    Level::Critical,
                    "reactor_panicked",
                    &[("reactor", &start.index), ("place", &place)],
                );
            }
            Err(Failure::Io(error)) => {
                start.log.event(
                    Level::Critical,
                    "reactor_failed",
                    &[("reactor", &start.index), ("error", &error)],
                );
                std::thread::sleep(limits::ACCEPT_PAUSE);
            }
        }
    }
}

/// What a reactor keeps when it starts again.
struct Memory {
    lease: RefCell<Option<Rc<Lease>>>,
    draining: Cell<bool>,
}

enum Failure {
    Panic,
    Io(io::Error),
}

fn run(start: &Start, memory: &Memory, mut built: driver::Built) -> Result<(), Failure> {
    let listener = start.listener.try_clone().map_err(Failure::Io)?;
    let wake = start.inbox.wake.try_clone().map_err(Failure::Io)?;
    // A ring waits on blocking descriptors by itself and fails on others; epoll needs the reverse.
    listener.set_nonblocking(!built.uring).map_err(Failure::Io)?;
    wake.set_nonblocking(!built.uring).map_err(Failure::Io)?;
    let reactor = Rc::new(Reactor::new(start));
    let ended = catch_unwind(AssertUnwindSafe(|| {
        built.runtime.block_on(reactor.clone().live(start, memory, listener, wake))
    }));
    match ended {
        Ok(result) => result.map_err(Failure::Io),
        Err(_) => {
            // Connections hold their ring alive; they are ended on it before it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                built.runtime.block_on(reactor.registry.end_all(limits::DRAIN_IDLE_TIMEOUT))
            }));
            Err(Failure::Panic)
        }
    }
}

/// What the tasks of one reactor have in common. `RefCell`s are never borrowed over an await.
struct Reactor {
    index: usize,
    log: Log,
    settings: RefCell<Rc<answer::Settings>>,
    lease: RefCell<Option<Rc<Lease>>>,
    spine: RefCell<Spine>,
    spare_buffers: RefCell<Vec<Vec<u8>>>,
    registry: Registry,
    connections_max: usize,
    draining: Cell<bool>,
}

/// The buffers of the spine, reused by every request of this reactor.
#[derive(Default)]
struct Spine {
    room: answer::Room,
    output: Output,
}

impl Reactor {
    fn new(start: &Start) -> Self {
        let server = &start.config.server;
        Self {
            index: start.index,
            log: start.log.clone(),
            settings: RefCell::new(Rc::new(answer::Settings::new(&start.config))),
            lease: RefCell::new(None),
            spine: RefCell::default(),
            spare_buffers: RefCell::default(),
            registry: Registry::new(start.times),
            connections_max: server.connections_max,
            draining: Cell::new(false),
        }
    }

    async fn live(
        self: Rc<Self>,
        start: &Start,
        memory: &Memory,
        listener: TcpListener,
        wake: std::os::unix::net::UnixStream,
    ) -> io::Result<()> {
        *self.lease.borrow_mut() = memory.lease.borrow().clone();
        self.draining.set(memory.draining.get());
        let mut wake = UnixStream::from_std(wake)?;
        let mut bytes = vec![0; 64];
        while self.lease.borrow().is_none() {
            if !self.take_messages(start, memory) {
                return Ok(());
            }
            if self.lease.borrow().is_none() {
                (_, bytes) = wake.read(bytes).await;
            }
        }
        let listener = Rc::new(accept::Listener::new(listener)?);
        monoio::spawn(accept::accept(self.clone(), listener.clone()));
        monoio::spawn(registry::sweep(self.clone()));
        // A message may have come before the first read of the pair.
        while self.take_messages(start, memory) && !self.draining.get() {
            (_, bytes) = wake.read(bytes).await;
        }
        memory.draining.set(true);
        self.drain(&listener, start).await;
        Ok(())
    }

    /// Takes in what the supervisor sent. False when it is gone.
    fn take_messages(&self, start: &Start, memory: &Memory) -> bool {
        loop {
            match start.inbox.try_next() {
                Ok(Some(Message::Publish(snapshot))) => {
                    let lease = start.inbox.lease(snapshot);
                    *memory.lease.borrow_mut() = Some(lease.clone());
                    *self.lease.borrow_mut() = Some(lease);
                }
                Ok(Some(Message::Configure(config))) => {
                    *self.settings.borrow_mut() = Rc::new(answer::Settings::new(&config));
                }
                Ok(Some(Message::Drain)) => self.draining.set(true),
                Ok(None) => return true,
                Err(()) => return false,
            }
        }
    }

    /// Answers what is in flight and ends: new connections are shut out first, those whose
    /// handshake was under way are still served, idle ones may bring one more request.
    async fn drain(&self, listener: &accept::Listener, start: &Start) {
        self.draining.set(true);
        self.registry.drain();
        let began = Instant::now();
        listener.shut_out();
        monoio::time::sleep(limits::DRAIN_ACCEPT_TIME).await;
        listener.end();
        let grace = start.config.server.shutdown_grace;
        while !self.registry.is_empty() && began.elapsed() < grace {
            monoio::time::sleep(limits::DRAIN_ACCEPT_TIME).await;
        }
        let left = self.registry.len();
        let milliseconds = began.elapsed().as_millis();
        start.log.event(
            Level::Info,
            "reactor_drained",
            &[("reactor", &self.index), ("connections_cut_count", &left), ("took_ms", &milliseconds)],
        );
        self.registry.end_all(limits::DRAIN_ACCEPT_TIME).await;
    }
}

#[cfg(test)]
mod tests;
