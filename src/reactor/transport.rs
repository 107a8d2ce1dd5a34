//! Byte streams of connections: plain sockets here, TLS in `tls`.
//!
//! Buffers are passed by value, because an io_uring operation owns its buffer. Dropping a future before it
//! completes may lose bytes; the connection must then be closed.
use std::io;
use std::rc::Rc;
use std::time::SystemTime;

use bytes::BytesMut;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::{TcpStream, UnixStream};

use crate::reactor::connections::ConnectionState;

/// A buffer that an operation can own and that a cipher can read.
pub trait Sendable: IoBuf + AsRef<[u8]> {}

impl<B: IoBuf + AsRef<[u8]>> Sendable for B {}

/// A bidirectional byte stream.
#[expect(async_fn_in_trait, reason = "a connection stays on the thread of its reactor")]
pub trait Transport {
    /// Completes what must precede the first request.
    async fn handshake(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Appends to the buffer, up to its capacity. Returns 0 once the peer has shut down its side.
    async fn read(&mut self, buffer: BytesMut) -> (io::Result<usize>, BytesMut);

    /// Waits until a read completes soon. May be dropped without losing bytes.
    async fn readable(&mut self) -> io::Result<()>;

    /// The wall clock.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Whether what is written is copied, as it is to be encrypted.
    fn copies(&self) -> bool {
        false
    }

    /// Whether the handshake has agreed on HTTP/2.
    fn is_http2(&self) -> bool {
        false
    }

    /// Writes the bytes from `start` on; returns how many were taken.
    async fn write<B: Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B);

    /// Shuts down the write side; the peer may still send.
    async fn shutdown_write(&mut self) -> io::Result<()>;

    /// TLS: sends close_notify, so that the peer does not take the end of the connection for a truncation.
    async fn close_notify(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Releases buffers that are needed only while bytes flow.
    fn release_buffers(&mut self) {}
}

/// A plain socket. Callers run its operations in [`ConnectionState::cancellable`], which resets the budget
/// whenever they wait.
pub struct PlainTransport<S> {
    socket: S,
    state: Rc<ConnectionState>,
}

impl<S> PlainTransport<S> {
    pub fn new(socket: S, state: &Rc<ConnectionState>) -> Self {
        Self { socket, state: state.clone() }
    }
}

/// A socket that can be polled for input.
#[expect(async_fn_in_trait, reason = "a connection stays on the thread of its reactor")]
pub trait PollRead {
    async fn poll_read(&self) -> io::Result<()>;
}

impl PollRead for TcpStream {
    async fn poll_read(&self) -> io::Result<()> {
        self.readable(false).await
    }
}

impl PollRead for UnixStream {
    async fn poll_read(&self) -> io::Result<()> {
        self.readable(false).await
    }
}

impl<S: AsyncReadRent + AsyncWriteRent + PollRead> Transport for PlainTransport<S> {
    async fn readable(&mut self) -> io::Result<()> {
        self.socket.poll_read().await
    }

    async fn read(&mut self, buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        self.state.budget.begin().await;
        let (length, capacity) = (buffer.len(), buffer.capacity());
        let (result, slice) = self.socket.read(buffer.slice_mut(length..capacity)).await;
        (self.state.budget.spend(result), slice.into_inner())
    }

    async fn write<B: Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B) {
        self.state.budget.begin().await;
        if start == 0 {
            let (result, bytes) = self.socket.write(bytes).await;
            return (self.state.budget.spend(result), bytes);
        }
        let length = bytes.as_ref().len();
        let (result, slice) = self.socket.write(bytes.slice(start..length)).await;
        (self.state.budget.spend(result), slice.into_inner())
    }

    async fn shutdown_write(&mut self) -> io::Result<()> {
        self.socket.shutdown().await
    }
}
