//! Accepting connections, within the limits.
//!
//! In: the listener. Out: one task for each connection. Invariant: at the connection limit a
//! new one is closed at once and counted; at the descriptor limit the loop pauses instead of
//! spinning; a panic in a connection ends that connection and nothing else.
use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;

use socket2::{SockFilter, SockRef};

use super::registry::enter;
use super::transport::Plain;
use super::{Reactor, connection, panic};
use crate::config::Level;
use crate::limits;

/// A listener that can be shut before it is closed.
pub struct Listener {
    tcp: monoio::net::TcpListener,
    /// For socket options; the same socket as `tcp`.
    options: TcpListener,
    ended: Cell<bool>,
    waker: Cell<Option<std::task::Waker>>,
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
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        let options = listener.try_clone()?;
        let tcp = monoio::net::TcpListener::from_std(listener)?;
        Ok(Self { tcp, options, ended: Cell::new(false), waker: Cell::new(None) })
    }

    /// Lets no new handshake begin, while those under way go on. A closed listener would reset
    /// them, and what the client sent with them; a first segment that is dropped is sent again,
    /// to the process that took over.
    pub fn shut_out(&self) {
        let filter = [
            SockFilter::new(BPF_LOAD_BYTE, 0, 0, TCP_FLAGS_OFFSET),
            SockFilter::new(BPF_AND, 0, 0, TCP_SYN_OR_ACK),
            SockFilter::new(BPF_JUMP_EQUAL, 0, 1, TCP_SYN),
            SockFilter::new(BPF_RETURN, 0, 0, 0),
            SockFilter::new(BPF_RETURN, 0, 0, u32::MAX),
        ];
        // Where filters are refused the listener is closed a moment later all the same.
        let _ = SockRef::from(&self.options).attach_filter(&filter);
    }

    /// Ends the accept loop.
    pub fn end(&self) {
        self.ended.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn next(&self) -> Option<io::Result<(monoio::net::TcpStream, std::net::SocketAddr)>> {
        let mut accept = std::pin::pin!(self.tcp.accept());
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = accept.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            self.waker.set(Some(context.waker().clone()));
            if self.ended.get() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

/// Accepts until the listener is ended.
pub async fn accept(reactor: Rc<Reactor>, listener: Rc<Listener>) {
    let mut refused = 0_u64;
    while let Some(accepted) = listener.next().await {
        match accepted {
            Ok((stream, peer)) => {
                if reactor.registry.len() >= reactor.connections_max {
                    refused += 1;
                    if refused.is_power_of_two() {
                        log_full(&reactor, refused);
                    }
                    continue;
                }
                let place = enter(&reactor);
                let serve = connection::serve(reactor.clone(), place, Plain(stream), peer.ip());
                monoio::spawn(contain(reactor.clone(), serve));
            }
            Err(error) => pause(&reactor, &error).await,
        }
    }
}

fn log_full(reactor: &Reactor, refused: u64) {
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

/// A connection that broke off before it was accepted is the peer's affair. Anything else, above
/// all the descriptor limit, will be the same a microsecond later: so wait.
async fn pause(reactor: &Reactor, error: &io::Error) {
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
        return;
    }
    reactor.log.event(
        Level::Error,
        "accept_failed",
        &[
            ("reactor", &reactor.index),
            ("error", error),
            ("advice", &"at the descriptor limit: raise LimitNOFILE or ulimit -n"),
        ],
    );
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
