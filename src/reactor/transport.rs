//! Bytes in and out of a connection, whatever carries them.
//!
//! In: buffers by value (a ring owns them while it works). Out: the buffers again, and how far
//! it came. Invariant: nothing here knows HTTP; a future dropped half way may have lost bytes.
use std::io;
use std::rc::Rc;

use bytes::BytesMut;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};

use crate::reactor::connections::ConnectionState;

/// What can be sent: owned by the ring while it works, readable by a cipher.
pub trait Sendable: IoBuf + AsRef<[u8]> {}

impl<B: IoBuf + AsRef<[u8]>> Sendable for B {}

/// A stream of bytes in both directions.
pub trait Transport {
    /// Sets up what comes before the first byte of a request.
    async fn handshake(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Appends to the buffer, at most into its spare capacity. 0: the peer ended its side.
    async fn read(&mut self, buffer: BytesMut) -> (io::Result<usize>, BytesMut);

    /// Writes from `start` on; returns how many bytes were taken.
    async fn write<B: Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B);

    /// Ends our side; the peer may still send.
    async fn shutdown(&mut self) -> io::Result<()>;

    /// Says, before the socket is closed, that nothing was cut off. A plain socket's end says so itself.
    async fn farewell(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Gives back what it needs only while bytes flow.
    fn give_back(&mut self) {}
}

/// A socket as it is. Its operations run within [`ConnectionState::unless_ended`], which sees them wait.
pub struct PlainTransport<S> {
    socket: S,
    mark: Rc<ConnectionState>,
}

impl<S> PlainTransport<S> {
    pub fn new(socket: S, mark: &Rc<ConnectionState>) -> Self {
        Self { socket, mark: mark.clone() }
    }
}

impl<S: AsyncReadRent + AsyncWriteRent> Transport for PlainTransport<S> {
    async fn read(&mut self, buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        self.mark.turn.begin().await;
        let (length, capacity) = (buffer.len(), buffer.capacity());
        let (result, slice) = self.socket.read(buffer.slice_mut(length..capacity)).await;
        (self.mark.turn.spend(result), slice.into_inner())
    }

    async fn write<B: Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B) {
        self.mark.turn.begin().await;
        if start == 0 {
            let (result, bytes) = self.socket.write(bytes).await;
            return (self.mark.turn.spend(result), bytes);
        }
        let length = bytes.as_ref().len();
        let (result, slice) = self.socket.write(bytes.slice(start..length)).await;
        (self.mark.turn.spend(result), slice.into_inner())
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        self.socket.shutdown().await
    }
}
