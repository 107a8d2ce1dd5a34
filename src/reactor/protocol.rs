//! Decides which protocol a connection speaks, and serves it.
//!
//! HTTP/2 is chosen in the TLS handshake, or by the preface that its clients send first (RFC 9113 3.2, 3.3).
//! Only the first bytes of a connection are compared, so requests of HTTP/1.1 pay nothing.
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;

use crate::http::h2::frame::PREFACE;
use crate::reactor::connection::Connection;
use crate::reactor::connection_io::{ConnectionIo, PeerDisconnected};
use crate::reactor::connections::{ConnectionGuard, Phase};
use crate::reactor::context::Reactor;
use crate::reactor::http2_io::Http2Io;
use crate::reactor::transport::Transport;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Serves a connection until it ends.
pub async fn serve<T: Transport>(
    reactor: Rc<Reactor>,
    guard: ConnectionGuard,
    transport: T,
    peer: Option<IpAddr>,
) {
    let connection = Connection::new(&reactor, peer);
    let mut io = ConnectionIo { reactor, guard, transport, connection };
    // A disconnected peer cannot be sent an error.
    let _ = match choose(&mut io).await {
        Ok(Some(Protocol::Http1)) => io.run().await,
        // Boxed, so that connections of HTTP/1.1 do not take more memory.
        Ok(Some(Protocol::Http2)) => Http2Io::start(io, peer).await,
        Ok(None) | Err(PeerDisconnected) => Ok(()),
    };
}

/// Completes the handshake, and reads until the protocol is known. `None`: the connection has ended.
async fn choose<T: Transport>(io: &mut ConnectionIo<T>) -> Result<Option<Protocol>, PeerDisconnected> {
    if io.guard.state.phase() == Phase::Handshake {
        let handshake = pin!(io.transport.handshake());
        match io.guard.state.cancellable(handshake).await {
            Some(Ok(())) => io.guard.set_phase(Phase::Idle),
            _ => return Err(PeerDisconnected),
        }
    }
    if io.reactor.http2.is_none() {
        return Ok(Some(Protocol::Http1));
    }
    if io.transport.is_http2() {
        return Ok(Some(Protocol::Http2));
    }
    let mut phase = Phase::Idle;
    loop {
        if !io.read(phase).await? {
            return Ok(None);
        }
        if let Some(protocol) = protocol_of(io.connection.received()) {
            return Ok(Some(protocol));
        }
        phase = Phase::Head;
    }
}

/// The protocol of a connection that begins with these bytes; `None` if they are too few.
fn protocol_of(received: &[u8]) -> Option<Protocol> {
    let length = received.len().min(PREFACE.len());
    if received[..length] != PREFACE[..length] {
        return Some(Protocol::Http1);
    }
    (length == PREFACE.len()).then_some(Protocol::Http2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::transport::PlainTransport;

    /// A future that is passed by value, or an argument that is kept, takes its space once more.
    #[test]
    fn the_task_of_a_connection_is_small() {
        fn size<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let plain = size(serve::<PlainTransport<monoio::net::TcpStream>>);
        assert!(plain <= 1200, "{plain} bytes");
    }

    #[test]
    fn only_the_whole_preface_chooses_http_2() {
        for end in 0..PREFACE.len() {
            assert_eq!(protocol_of(&PREFACE[..end]), None);
            let other = [&PREFACE[..end], b"X"].concat();
            assert_eq!(protocol_of(&other), Some(Protocol::Http1), "{end}");
        }
        assert_eq!(protocol_of(PREFACE), Some(Protocol::Http2));
        assert_eq!(protocol_of(&[PREFACE, b"\0"].concat()), Some(Protocol::Http2));
        assert_eq!(protocol_of(b"POST / HTTP/1.1\r\n"), Some(Protocol::Http1));
    }
}
