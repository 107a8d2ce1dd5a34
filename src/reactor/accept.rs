//! Accepting connections from TCP and unix sockets.
//!
//! At `server.connections_max` a new connection is closed and counted. At the descriptor limit the loop
//! pauses instead of spinning. A panic ends only its connection. Cancelling the loop loses no connection.
//! With `server.spread` a connection may be passed on to another reactor before anything is read from it.
use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use monoio::io::{CancelHandle, Canceller};
use monoio::net::{TcpStream, UnixStream};
use socket2::{SockFilter, SockRef};

use crate::channel::{NewConnection, SpreadPort};
use crate::config::Level;
use crate::reactor::budget::Budget;
use crate::reactor::connections::{ConnectionGuard, Phase};
use crate::reactor::context::Reactor;
use crate::reactor::protocol;
use crate::reactor::tls::TlsTransport;
use crate::reactor::transport::{PlainTransport, Transport};

/// Pause of the accept loop at the descriptor limit, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket on the runtime of this thread, whose accept loops can be cancelled.
pub struct Listener {
    socket: ListenSocket,
    canceller: RefCell<Canceller>,
    handle: CancelHandle,
    is_cancelled: Cell<bool>,
    /// Accept loops that are running.
    loops: Cell<usize>,
    /// One of them has failed and waits.
    is_paused: Cell<bool>,
    budget: Budget,
    /// Accept by calls that do not block, because only their result can be passed on.
    is_spread: bool,
    waker: RefCell<Option<Waker>>,
}

/// The second handle of each socket is for options, and for accepting what may be passed on.
enum ListenSocket {
    Tcp(monoio::net::TcpListener, TcpListener),
    Unix(monoio::net::UnixListener, UnixListener),
}

/// A connection on the runtime of this thread.
enum Accepted {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

/// What a listener returns: with `server.spread` the runtime does not know the connection yet.
enum Arrival {
    Registered(Accepted),
    New(NewConnection),
}

/// Classic BPF instructions (`linux/filter.h`): load the byte at an offset, and, jump if equal, return.
const BPF_LOAD_BYTE: u16 = 0x30;
const BPF_AND: u16 = 0x54;
const BPF_JUMP_EQUAL: u16 = 0x15;
const BPF_RETURN: u16 = 0x06;
/// The offset of the flags in the TCP header, and the flags that identify the first segment.
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u32 = 0x02;
const TCP_SYN_OR_ACK: u32 = 0x12;

impl Listener {
    /// # Errors
    /// The descriptor limit is reached.
    pub fn tcp(listener: TcpListener, is_spread: bool) -> io::Result<Self> {
        let second = listener.try_clone()?;
        Ok(Self::new(ListenSocket::Tcp(monoio::net::TcpListener::from_std(listener)?, second), is_spread))
    }

    /// # Errors
    /// The descriptor limit is reached, or the runtime rejects the socket.
    pub fn unix(listener: UnixListener, is_spread: bool) -> io::Result<Self> {
        let second = listener.try_clone()?;
        Ok(Self::new(ListenSocket::Unix(monoio::net::UnixListener::from_std(listener)?, second), is_spread))
    }

    fn new(socket: ListenSocket, is_spread: bool) -> Self {
        let canceller = Canceller::new();
        let handle = canceller.handle();
        let (is_cancelled, loops, is_paused) = (Cell::new(false), Cell::new(0), Cell::new(false));
        let budget = Budget::default();
        let (canceller, waker) = (RefCell::new(canceller), RefCell::default());
        Self { socket, canceller, handle, is_cancelled, loops, is_paused, budget, is_spread, waker }
    }

    /// Drops the first segment of new TCP handshakes; handshakes in progress complete. Closing the listener
    /// would reset those. Clients retransmit a dropped segment, which reaches the process that took over.
    pub fn stop_accepting(&self) {
        let ListenSocket::Tcp(_, options) = &self.socket else { return };
        let filter = [
            SockFilter::new(BPF_LOAD_BYTE, 0, 0, TCP_FLAGS_OFFSET),
            SockFilter::new(BPF_AND, 0, 0, TCP_SYN_OR_ACK),
            SockFilter::new(BPF_JUMP_EQUAL, 0, 1, TCP_SYN),
            SockFilter::new(BPF_RETURN, 0, 0, 0),
            SockFilter::new(BPF_RETURN, 0, 0, u32::MAX),
        ];
        // If the filter is rejected, the listener still closes shortly afterwards.
        let _ = SockRef::from(options).attach_filter(&filter);
    }

    /// Cancels the accept loops. A connection that the kernel has accepted before the cancellation is still
    /// served; dropping it would leave the client waiting.
    pub fn cancel(&self) {
        self.is_cancelled.set(true);
        let canceller = self.canceller.take();
        self.canceller.replace(canceller.cancel());
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether an accept loop is running.
    pub fn is_accepting(&self) -> bool {
        self.loops.get() > 0
    }

    async fn next(&self) -> Option<io::Result<Arrival>> {
        if self.is_cancelled.get() {
            return None;
        }
        if self.is_spread {
            return self.next_new().await;
        }
        let accepted = match &self.socket {
            ListenSocket::Tcp(listener, _) => {
                let accepted = self.budget.run(listener.cancelable_accept(self.handle.clone())).await;
                accepted.map(|(stream, peer)| Accepted::Tcp(stream, peer.ip()))
            }
            ListenSocket::Unix(listener, _) => {
                let accepted = self.budget.run(listener.cancelable_accept(self.handle.clone())).await;
                accepted.map(|(stream, _)| Accepted::Unix(stream))
            }
        };
        let is_end = accepted.is_err() && self.is_cancelled.get();
        if is_end { None } else { Some(accepted.map(Arrival::Registered)) }
    }

    /// As [`next`](Self::next), for a connection that may be passed on. Nothing is accepted while it
    /// waits, so that a cancellation loses nothing.
    async fn next_new(&self) -> Option<io::Result<Arrival>> {
        loop {
            if let Err(error) = self.budget.run(self.readable()).await? {
                return Some(Err(error));
            }
            let accepted = match &self.socket {
                ListenSocket::Tcp(_, listener) => {
                    listener.accept().map(|(stream, peer)| NewConnection::Tcp(stream, peer.ip()))
                }
                ListenSocket::Unix(_, listener) => {
                    listener.accept().map(|(stream, _)| NewConnection::Unix(stream))
                }
            };
            match accepted {
                // Another reactor took it from the socket that all share, or the client has left.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return Some(accepted.map(Arrival::New)),
            }
        }
    }

    /// Waits for a connection; `None`: cancelled.
    async fn readable(&self) -> Option<io::Result<()>> {
        let mut readable = std::pin::pin!(async {
            match &self.socket {
                ListenSocket::Tcp(listener, _) => listener.readable(false).await,
                ListenSocket::Unix(listener, _) => listener.readable(false).await,
            }
        });
        std::future::poll_fn(|context| {
            if self.is_cancelled.get() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(result) = readable.as_mut().poll(context) {
                return Poll::Ready(Some(result));
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Accepts connections until the listener is cancelled.
pub async fn accept(reactor: Rc<Reactor>, listener: Rc<Listener>) {
    listener.loops.set(listener.loops.get() + 1);
    while let Some(accepted) = listener.next().await {
        match accepted {
            Ok(Arrival::New(connection)) => spread(&reactor, connection),
            Ok(_) if reactor.connections.len() >= reactor.connections_max => count_refused(&reactor),
            Ok(Arrival::Registered(accepted)) => spawn(&reactor, accepted),
            Err(error) => pause(&reactor, &listener, &error).await,
        }
    }
    listener.loops.set(listener.loops.get() - 1);
}

/// Passes a connection on, or serves it. While it drains a reactor keeps what it has accepted.
fn spread(reactor: &Rc<Reactor>, connection: NewConnection) {
    let Some(spread) = &reactor.spread else { return };
    let kept = match reactor.is_draining() {
        true => {
            spread.keep();
            Some(connection)
        }
        false => spread.pass(connection),
    };
    match kept {
        Some(connection) => serve_new(reactor, spread, connection),
        None => reactor.metrics.connections_passed.add(1),
    }
}

/// Serves what other reactors have passed on.
pub fn receive_passed(reactor: &Rc<Reactor>) {
    let Some(spread) = &reactor.spread else { return };
    while let Some(connection) = spread.next_passed() {
        serve_new(reactor, spread, connection);
    }
}

/// Serves a connection that is counted here.
fn serve_new(reactor: &Rc<Reactor>, spread: &SpreadPort, connection: NewConnection) {
    let accepted = if reactor.connections.len() >= reactor.connections_max {
        count_refused(reactor);
        None
    } else {
        adopt(reactor.is_uring, connection).ok()
    };
    match accepted {
        Some(accepted) => spawn(reactor, accepted),
        None => spread.closed(),
    }
}

/// Registers a connection with the runtime of this thread.
fn adopt(is_uring: bool, connection: NewConnection) -> io::Result<Accepted> {
    // As for listeners: a ring needs blocking descriptors, epoll non-blocking ones.
    match connection {
        NewConnection::Tcp(stream, peer) => {
            stream.set_nonblocking(!is_uring)?;
            Ok(Accepted::Tcp(TcpStream::from_std(stream)?, peer))
        }
        NewConnection::Unix(stream) => {
            stream.set_nonblocking(!is_uring)?;
            Ok(Accepted::Unix(UnixStream::from_std(stream)?))
        }
    }
}

fn spawn(reactor: &Rc<Reactor>, accepted: Accepted) {
    let guard = reactor.connections.enter();
    let tls = reactor.worker_state.tls.borrow().clone();
    match (accepted, tls) {
        (Accepted::Tcp(stream, peer), None) => {
            let plain = PlainTransport::new(stream, &guard.state);
            spawn_connection(reactor, guard, plain, Some(peer));
        }
        (Accepted::Tcp(stream, peer), Some(settings)) => {
            guard.set_phase(Phase::Handshake);
            // Fails only if the TLS settings are invalid, which the start checks.
            let (plain, spare) = (PlainTransport::new(stream, &guard.state), reactor.spare_buffers.clone());
            if let Ok(tls) = TlsTransport::new(plain, settings, guard.transport_memory(), spare) {
                spawn_connection(reactor, guard, tls, Some(peer));
            }
        }
        (Accepted::Unix(stream), _) => {
            let plain = PlainTransport::new(stream, &guard.state);
            spawn_connection(reactor, guard, plain, None);
        }
    }
}

fn spawn_connection<T: Transport + 'static>(
    reactor: &Rc<Reactor>,
    guard: ConnectionGuard,
    transport: T,
    peer: Option<IpAddr>,
) {
    let reactor = reactor.clone();
    monoio::spawn(async move {
        let serve = pin!(protocol::serve(reactor.clone(), guard, transport, peer));
        catch_panic(&reactor, serve).await;
    });
}

/// The caller has dropped the connection, which closes it. Logs each power of two.
fn count_refused(reactor: &Reactor) {
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

/// Waits after an error, because most errors (mainly the descriptor limit) would recur immediately. An
/// aborted connection is not an error of the listener. Counts one pause for all accept loops.
async fn pause(reactor: &Reactor, listener: &Listener, error: &io::Error) {
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
        return;
    }
    if listener.is_paused.replace(true) {
        return monoio::time::sleep(ACCEPT_PAUSE).await;
    }
    reactor.metrics.accept_pauses.add(1);
    let pauses = reactor.metrics.accept_pauses.value();
    // Logs each power of two: the error repeats ten times per second.
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
    monoio::time::sleep(ACCEPT_PAUSE).await;
    listener.is_paused.set(false);
}

/// Ends only this connection if it panics.
async fn catch_panic<F: Future<Output = ()>>(reactor: &Reactor, mut serve: Pin<&mut F>) {
    std::future::poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| serve.as_mut().poll(context))).unwrap_or_else(|_| {
            reactor.log_panic("connection_panicked", None);
            Poll::Ready(())
        })
    })
    .await;
}
