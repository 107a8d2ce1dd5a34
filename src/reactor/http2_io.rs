//! The I/O of one HTTP/2 connection: reads, writes, and applies what [`Http2Connection`] decides.
//!
//! While no stream is open, a read waits like that of HTTP/1.1. While streams are open, the connection waits
//! for the socket to be readable instead, which can be interrupted without losing bytes: by a new snapshot,
//! by an event that is due, by events that were written, or by the timeout of one stream, which must not end
//! the others.
use std::cell::Cell;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;

use crate::http::h2::event::Http2Limits;
use crate::limits;
use crate::metrics::ReactorMetrics;
use crate::reactor::connection_io::{ConnectionIo, PeerDisconnected};
use crate::reactor::connections::{Phase, Wakeup};
use crate::reactor::http2::{Http2Connection, Http2Next};
use crate::reactor::transport::Transport;

/// An HTTP/2 connection with its socket.
pub struct Http2Io<T> {
    io: ConnectionIo<T>,
    connection: Http2Connection,
    _open: OpenConnection,
}

/// Counts the connection as open.
struct OpenConnection(Arc<ReactorMetrics>);

impl OpenConnection {
    fn new(metrics: Arc<ReactorMetrics>) -> Self {
        metrics.http2.connections_opened.add(1);
        Self(metrics)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.http2.connections_closed.add(1);
    }
}

impl<T: Transport> Http2Io<T> {
    /// Serves a connection that has chosen HTTP/2, until it ends. State and future are boxed, so that a
    /// connection of HTTP/1.1 does not take their memory. An `async` function would hold its argument twice.
    pub fn start(
        io: ConnectionIo<T>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<(), PeerDisconnected>> {
        let mut state = Box::new(Self::new(io, peer));
        Box::pin(async move { state.run().await })
    }

    /// Takes over the bytes that were read.
    fn new(mut io: ConnectionIo<T>, peer: Option<IpAddr>) -> Self {
        let head_bytes_max = io.reactor.heads.bytes_max();
        let defaults = Http2Limits { head_bytes_max, streams_max: limits::HTTP2_STREAMS_MAX };
        let limits = io.reactor.http2.unwrap_or(defaults);
        let connection = Http2Connection::new(&io.reactor, limits, peer, io.connection.received());
        io.connection.release_buffer();
        let open = OpenConnection::new(io.reactor.metrics.clone());
        Self { io, connection, _open: open }
    }

    async fn run(&mut self) -> Result<(), PeerDisconnected> {
        let result = self.serve().await;
        self.finish_parked().await;
        result
    }

    /// After the end of the connection, waits for the events that are being written: they are accepted, and
    /// their requests are counted and logged.
    async fn finish_parked(&mut self) {
        self.io.guard.state.reset_cancelled();
        self.io.guard.set_phase(Phase::Storing);
        self.connection.discard();
        self.record(0);
        while !self.connection.abandon_parked(&self.io.reactor) {
            let (state, connection) = (&self.io.guard.state, &mut self.connection);
            let stored = std::future::poll_fn(|context| match connection.poll_parked(context) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            });
            if state.cancellable(pin!(stored)).await.is_none() {
                return;
            }
        }
    }

    async fn serve(&mut self) -> Result<(), PeerDisconnected> {
        loop {
            self.io.reactor.turns.begin(&self.io.guard.state).await;
            self.wait_for_memory().await?;
            let began = self.io.transport.now();
            let batch = self.connection.advance(&self.io.reactor, began);
            if batch.has_key {
                self.io.guard.state.memory.set_known();
            }
            self.io.reactor.count_batch(batch.requests, began);
            let bytes = batch.bytes.len();
            self.io.reactor.turns.count(batch.requests, bytes);
            self.write(batch.bytes).await?;
            self.io.reactor.turns.sent(bytes);
            let goes_on = match batch.next {
                Http2Next::Advance => true,
                Http2Next::Close => return self.io.linger().await,
                Http2Next::Read(phase, since) => self.read(phase, since).await?,
                Http2Next::Wait(tick) => self.wait(tick).await?,
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Before the connection grows: waits while the memory limit is reached.
    async fn wait_for_memory(&self) -> Result<(), PeerDisconnected> {
        if self.io.reactor.connections.memory.is_full() && !Box::pin(self.io.guard.wait_for_memory()).await {
            return Err(PeerDisconnected);
        }
        Ok(())
    }

    /// Records the memory of the connection, and of a buffer that it does not contain.
    fn record(&self, buffer_bytes: usize) {
        let bytes = self.connection.memory() + buffer_bytes;
        if self.connection.receives_body() {
            self.io.guard.record_request_bytes(bytes);
        } else {
            self.io.guard.record_response_bytes(bytes);
        }
    }

    async fn write(&mut self, mut bytes: Vec<u8>) -> Result<(), PeerDisconnected> {
        if !bytes.is_empty() {
            self.record(bytes.capacity());
            bytes = self.io.write_all(bytes).await?;
        }
        self.io.reactor.spare_buffers.give_back(bytes);
        self.record(0);
        Ok(())
    }

    /// Takes the buffer for the next read.
    async fn read_buffer(&mut self) -> Result<BytesMut, PeerDisconnected> {
        self.wait_for_memory().await?;
        let buffer = self.connection.read_buffer();
        if buffer.capacity() > limits::BUFFERED_BYTES_MIN {
            self.record(buffer.capacity());
        }
        Ok(buffer)
    }

    /// Reads while no stream is open. False: the connection has ended.
    async fn read(&mut self, phase: Phase, since: u32) -> Result<bool, PeerDisconnected> {
        self.io.guard.set_phase_since(phase, since);
        if phase == Phase::Idle {
            self.io.transport.release_buffers();
            self.connection.release_buffers();
        }
        // A large buffer is taken only once there is something for it.
        let ready = match self.connection.reads_much() {
            true => {
                let readable = pin!(self.io.transport.readable());
                self.io.guard.state.cancellable(readable).await
            }
            false => Some(Ok(())),
        };
        let read = match ready {
            Some(Ok(())) => {
                let buffer = self.read_buffer().await?;
                let read = pin!(self.io.transport.read(buffer));
                self.io.guard.state.cancellable(read).await
            }
            Some(Err(_)) => return Err(PeerDisconnected),
            None => None,
        };
        match read {
            Some((Ok(length), buffer)) => {
                self.connection.receive(buffer);
                self.io.reactor.metrics.bytes_read.add(length as u64);
                if length == 0 {
                    self.io.close_notify().await;
                }
                Ok(length > 0)
            }
            Some((Err(_), _)) => Err(PeerDisconnected),
            None => {
                self.io.guard.state.reset_cancelled();
                self.shut_down().await?;
                Ok(false)
            }
        }
    }

    /// Waits while streams are open, and reads if there is something. False: the connection has ended.
    async fn wait(&mut self, tick: u32) -> Result<bool, PeerDisconnected> {
        self.connection.shrink();
        self.io.guard.begin_read(Phase::Streaming);
        self.io.guard.state.set_due(tick);
        let is_stored = Cell::new(false);
        let wakeup = {
            let (connection, mut readable) = (&mut self.connection, pin!(self.io.transport.readable()));
            let ready = std::future::poll_fn(|context| {
                is_stored.set(connection.poll_parked(context));
                if is_stored.get() { Poll::Ready(Ok(())) } else { readable.as_mut().poll(context) }
            });
            self.io.guard.state.interruptible(pin!(ready)).await
        };
        match wakeup {
            Wakeup::Notified => return Ok(true),
            Wakeup::Ready if is_stored.get() => return Ok(true),
            Wakeup::Ready => {}
            Wakeup::Cancelled => {
                // The drain cancels connections with open streams once, so that event streams end.
                let is_drain = self.io.reactor.is_draining() && !self.connection.is_shutting_down();
                if !self.io.guard.state.is_cancelled() || !is_drain {
                    return Err(PeerDisconnected);
                }
                self.io.guard.state.reset_cancelled();
                return Ok(true);
            }
        }
        // TLS: the record may be incomplete, for which there is a time limit, because nothing else is done.
        self.io.guard.set_phase(Phase::Head);
        let buffer = self.read_buffer().await?;
        let read = pin!(self.io.transport.read(buffer));
        match self.io.guard.state.cancellable(read).await {
            Some((Ok(length), buffer)) => {
                self.connection.receive(buffer);
                self.io.reactor.metrics.bytes_read.add(length as u64);
                Ok(length > 0)
            }
            _ => Err(PeerDisconnected),
        }
    }

    async fn shut_down(&mut self) -> Result<(), PeerDisconnected> {
        let bytes = self.connection.shut_down(&self.io.reactor);
        self.io.write_all(bytes).await?;
        self.io.linger().await
    }
}
