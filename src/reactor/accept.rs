//! Accepting connections, within the limits.
//!
//! In: a listener, of TCP or of a unix socket. Out: one task for each connection. Invariant: at
//! the connection limit a new one is closed at once and counted; at the descriptor limit the
//! loop pauses instead of spinning; a panic in a connection ends that connection and nothing
//! else; no accepted connection is lost when the loop ends.
use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;

use monoio::io::{CancelHandle, Canceller};
use monoio::net::{TcpStream, UnixStream};
use socket2::{SockFilter, SockRef};

use crate::config::Level;
use crate::limits;
use crate::reactor::budget::Budget;
use crate::reactor::connections::{ConnectionGuard, Phase, enter};
use crate::reactor::tls::TlsTransport;
use crate::reactor::transport::{PlainTransport, Transport};
use crate::reactor::{Reactor, connection, panic};

/// A listener that can be shut before it is closed.
pub struct Listener {
    door: ListenSocket,
    canceller: RefCell<Canceller>,
    handle: CancelHandle,
    ended: Cell<bool>,
    accepting: Cell<bool>,
    turn: Budget,
}

enum ListenSocket {
    /// The second is the same socket, for its options.
    Tcp(monoio::net::TcpListener, TcpListener),
    Unix(monoio::net::UnixListener),
}

enum Accepted {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

/// Loads the byte at an absolute offset; compares; returns (classic BPF, `linux/filter.h`).
const BPF_LOAD_BYTE: u16 = 0x30;
const BPF_AND: u16 = 0x54;
const BPF_JUMP_EQUAL: u16 = 0x15;
const BPF_RETURN: u16 = 0x06;
/// Where TCP keeps its flags, and the two that tell a first segment from all others.
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u32 = 0x02;
const TCP_SYN_OR_ACK: u32 = 0x12;

impl Listener {
    /// # Errors
    /// The descriptor limit.
    pub fn tcp(listener: TcpListener) -> io::Result<Self> {
        let options = listener.try_clone()?;
        Ok(Self::new(ListenSocket::Tcp(monoio::net::TcpListener::from_std(listener)?, options)))
    }

    /// # Errors
    /// The ring does not take the socket.
    pub fn unix(listener: UnixListener) -> io::Result<Self> {
        Ok(Self::new(ListenSocket::Unix(monoio::net::UnixListener::from_std(listener)?)))
    }

    fn new(door: ListenSocket) -> Self {
        let canceller = Canceller::new();
        let handle = canceller.handle();
        let (ended, accepting) = (Cell::new(false), Cell::new(false));
        let turn = Budget::default();
        Self { door, canceller: RefCell::new(canceller), handle, ended, accepting, turn }
    }

    /// Lets no new handshake begin, while those under way go on. A closed listener would reset
    /// them, and what the client sent with them; a first segment that is dropped is sent again,
    /// to the process that took over.
    pub fn shut_out(&self) {
        let ListenSocket::Tcp(_, options) = &self.door else { return };
        let filter = [
            SockFilter::new(BPF_LOAD_BYTE, 0, 0, TCP_FLAGS_OFFSET),
            SockFilter::new(BPF_AND, 0, 0, TCP_SYN_OR_ACK),
            SockFilter::new(BPF_JUMP_EQUAL, 0, 1, TCP_SYN),
            SockFilter::new(BPF_RETURN, 0, 0, 0),
            SockFilter::new(BPF_RETURN, 0, 0, u32::MAX),
        ];
        // Where filters are refused the listener is closed a moment later all the same.
        let _ = SockRef::from(options).attach_filter(&filter);
    }

    /// Ends the accept loop. The kernel says whether it took the cancellation or had accepted
    /// a connection already, which is then served: one that is dropped here would hang.
    pub fn end(&self) {
        self.ended.set(true);
        let canceller = self.canceller.take();
        self.canceller.replace(canceller.cancel());
    }

    /// True until the accept loop has ended.
    pub fn accepting(&self) -> bool {
        self.accepting.get()
    }

    async fn next(&self) -> Option<io::Result<Accepted>> {
        if self.ended.get() {
            return None;
        }
        let accepted = match &self.door {
            ListenSocket::Tcp(listener, _) => {
                let accepted = self.turn.take(listener.cancelable_accept(self.handle.clone())).await;
                accepted.map(|(stream, peer)| Accepted::Tcp(stream, peer.ip()))
            }
            ListenSocket::Unix(listener) => {
                let accepted = self.turn.take(listener.cancelable_accept(self.handle.clone())).await;
                accepted.map(|(stream, _)| Accepted::Unix(stream))
            }
        };
        if accepted.is_err() && self.ended.get() { None } else { Some(accepted) }
    }
}

/// Accepts until the listener is ended.
pub async fn accept(reactor: Rc<Reactor>, listener: Rc<Listener>) {
    listener.accepting.set(true);
    while let Some(accepted) = listener.next().await {
        match accepted {
            Ok(_) if reactor.registry.len() >= reactor.connections_max => refuse(&reactor),
            Ok(accepted) => spawn(&reactor, accepted),
            Err(error) => pause(&reactor, &error).await,
        }
    }
    listener.accepting.set(false);
}

fn spawn(reactor: &Rc<Reactor>, accepted: Accepted) {
    let place = enter(reactor);
    let tls = reactor.tls.borrow().clone();
    match (accepted, tls) {
        (Accepted::Tcp(stream, peer), None) => {
            let plain = PlainTransport::new(stream, &place.mark);
            begin(reactor, place, plain, Some(peer));
        }
        (Accepted::Tcp(stream, peer), Some(settings)) => {
            place.set_phase(Phase::Handshake);
            // An error here is one of our own settings; the connection cannot be served.
            if let Ok(tls) = TlsTransport::new(PlainTransport::new(stream, &place.mark), settings) {
                begin(reactor, place, tls, Some(peer));
            }
        }
        (Accepted::Unix(stream), _) => {
            let plain = PlainTransport::new(stream, &place.mark);
            begin(reactor, place, plain, None);
        }
    }
}

fn begin<T: Transport + 'static>(
    reactor: &Rc<Reactor>,
    place: ConnectionGuard,
    transport: T,
    peer: Option<IpAddr>,
) {
    let serve = connection::serve(reactor.clone(), place, transport, peer);
    monoio::spawn(contain(reactor.clone(), serve));
}

/// The connection was dropped, and with it closed; one line for each power of two.
fn refuse(reactor: &Reactor) {
    reactor.metrics.connections_refused.add(1);
    let refused = reactor.metrics.connections_refused.value();
    if refused.is_power_of_two() {
        reactor.log.event(
            Level::Warning,
            "connection_limit_reached",
            &[
                ("reactor", &reactor.index),
                ("limit", &reactor.connections_max),
                ("refused_count", &refused),
                ("advice", &"raise server.connections_max or add cores"),
            ],
        );
    }
}

/// A connection that broke off before it was accepted is the peer's affair. Anything else, above
/// all the descriptor limit, will be the same a microsecond later: so wait.
async fn pause(reactor: &Reactor, error: &io::Error) {
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
        return;
    }
    reactor.metrics.accept_pauses.add(1);
    let pauses = reactor.metrics.accept_pauses.value();
    // Ten lines a second, for as long as it lasts, would tell no more.
    if pauses.is_power_of_two() {
        reactor.log.event(
            Level::Error,
            "accept_failed",
            &[
                ("reactor", &reactor.index),
                ("error", error),
                ("pauses_count", &pauses),
                ("advice", &"at the descriptor limit: raise LimitNOFILE or ulimit -n"),
            ],
        );
    }
    monoio::time::sleep(limits::ACCEPT_PAUSE).await;
}

/// Keeps a panic inside its connection.
async fn contain(reactor: Rc<Reactor>, serve: impl Future<Output = ()>) {
    let mut serve = std::pin::pin!(serve);
    std::future::poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| serve.as_mut().poll(context))).unwrap_or_else(|_| {
            let place = panic::last_place();
            reactor.log.event(
                Level::Critical,
                "connection_panicked",
                &[("reactor", &reactor.index), ("place", &place)],
            );
            Poll::Ready(())
        })
    })
    .await;
}
