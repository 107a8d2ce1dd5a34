//! TLS over another transport: a rustls session between two buffers.
//!
//! monoio-rustls is not used because it keeps two buffers for each connection, 32 KiB. Here an idle
//! connection has a buffer of the size of a request, and what is sent is encrypted into the buffers that all
//! connections share. Output of the session is written before more input is read. No plain text is returned
//! before the handshake completes.
use std::io::{self, BufRead, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::{ServerConfig, ServerConnection};

use crate::limits::READ_BYTES_IDLE;
use crate::reactor::connections::TransportMemory;
use crate::reactor::spare_buffers::SpareBuffers;
use crate::reactor::transport::{Sendable, Transport};

/// Buffer for encrypted input that is longer than most requests, bytes: one complete record with its header.
const TLS_READ_BYTES: usize = 16 * 1024 + 256;
/// The most that a session keeps of incomplete messages of a handshake, bytes (rustls).
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
/// Buffers of an idle connection, bytes, in addition to those of its session. Beyond: they count as memory of
/// connections.
const TLS_BYTES_IDLE: usize = 2 * READ_BYTES_IDLE;

/// A TLS session and its socket.
pub struct TlsTransport<S> {
    socket: S,
    session: ServerConnection,
    /// Received, not yet decrypted.
    received: BytesMut,
    /// The buffer was filled by a read, so that it was replaced by a longer one.
    is_long: bool,
    /// Decrypted and not yet read, bytes.
    plain_bytes: usize,
    /// What the session has received since it last had plain text, bytes: more than it keeps of incomplete
    /// records and messages.
    incomplete_bytes: usize,
    memory: TransportMemory,
    spare_buffers: Rc<SpareBuffers>,
}

/// A reader that has nothing.
struct NothingToRead;

impl Read for NothingToRead {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl<S: Transport> TlsTransport<S> {
    /// # Errors
    /// The settings are invalid.
    pub fn new(
        socket: S,
        settings: Arc<ServerConfig>,
        memory: TransportMemory,
        spare_buffers: Rc<SpareBuffers>,
    ) -> Result<Self, rustls::Error> {
        let session = ServerConnection::new(settings)?;
        let (received, is_long, plain_bytes, incomplete_bytes) = (BytesMut::new(), false, 0, 0);
        Ok(Self { socket, session, received, is_long, plain_bytes, incomplete_bytes, memory, spare_buffers })
    }

    /// Records the memory of the buffers.
    fn record(&self, output_bytes: usize) {
        // The session takes a whole record from a long buffer.
        let (received_bytes, record_bytes) =
            if self.is_long { (TLS_READ_BYTES, TLS_READ_BYTES) } else { (READ_BYTES_IDLE, 0) };
        let session_bytes = self.incomplete_bytes.max(record_bytes);
        let bytes = received_bytes + session_bytes + self.plain_bytes + output_bytes;
        self.memory.record(if bytes > TLS_BYTES_IDLE { bytes } else { 0 });
    }

    /// Writes all pending output of the session.
    async fn flush(&mut self) -> io::Result<()> {
        if !self.session.wants_write() {
            return Ok(());
        }
        let mut bytes = self.spare_buffers.take();
        while self.session.wants_write() {
            self.session.write_tls(&mut bytes)?;
        }
        self.record(bytes.capacity());
        let mut written = 0;
        while written < bytes.len() {
            let (result, back) = self.socket.write(bytes, written).await;
            bytes = back;
            match result? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                length => written += length,
            }
        }
        self.spare_buffers.give_back(bytes);
        self.record(0);
        Ok(())
    }

    /// Decrypts until there is plain text to read; reads from the socket if nothing is left to decrypt.
    /// False: the peer has shut down its side.
    async fn receive(&mut self) -> io::Result<bool> {
        if self.received.is_empty() {
            let is_growing = self.is_long || self.incomplete_bytes > 0;
            if is_growing && self.memory.is_full() && !Box::pin(self.memory.wait()).await {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.received.reserve(if self.is_long { TLS_READ_BYTES } else { READ_BYTES_IDLE });
            let received = std::mem::take(&mut self.received);
            self.record(0);
            let (result, received) = self.socket.read(received).await;
            self.is_long |= received.len() >= READ_BYTES_IDLE;
            self.received = received;
            if result? == 0 {
                return Ok(false);
            }
        }
        while !self.received.is_empty() {
            let taken = self.session.read_tls(&mut &self.received[..])?;
            self.received.advance(taken);
            let is_handshake = self.session.is_handshaking();
            self.incomplete_bytes = (self.incomplete_bytes + taken).min(HANDSHAKE_BYTES_MAX);
            match self.session.process_new_packets() {
                // Returned before more is decrypted: rustls accepts no input while its buffer is full.
                Ok(state) if state.plaintext_bytes_to_read() > 0 => {
                    self.plain_bytes = state.plaintext_bytes_to_read();
                    self.incomplete_bytes = taken;
                    return Ok(true);
                }
                Ok(_) if is_handshake && !self.session.is_handshaking() => self.incomplete_bytes = taken,
                Ok(_) => {}
                Err(error) => {
                    // Sends the alert before the connection closes.
                    let _ = self.flush().await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            if taken == 0 {
                // The peer has sent close_notify.
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<S: Transport> Transport for TlsTransport<S> {
    async fn handshake(&mut self) -> io::Result<()> {
        while self.session.is_handshaking() {
            if self.session.wants_write() {
                self.flush().await?;
            } else if !self.receive().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.flush().await
    }

    async fn read(&mut self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        loop {
            match self.session.reader().fill_buf() {
                Ok(plain) => {
                    let length = plain.len().min(buffer.capacity() - buffer.len());
                    buffer.extend_from_slice(&plain[..length]);
                    self.session.reader().consume(length);
                    self.plain_bytes = self.plain_bytes.saturating_sub(length);
                    return (Ok(length), buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return (Err(error), buffer),
            }
            match self.receive().await {
                Ok(true) => {}
                Ok(false) => return (Ok(0), buffer),
                Err(error) => return (Err(error), buffer),
            }
            // Responses to key updates and similar messages.
            if self.session.wants_write()
                && let Err(error) = self.flush().await
            {
                return (Err(error), buffer);
            }
        }
    }

    async fn readable(&mut self) -> io::Result<()> {
        let has_plain = self.session.reader().fill_buf().is_ok_and(|plain| !plain.is_empty());
        if has_plain || !self.received.is_empty() {
            return Ok(());
        }
        self.socket.readable().await
    }

    fn copies(&self) -> bool {
        true
    }

    fn is_http2(&self) -> bool {
        self.session.alpn_protocol() == Some(b"h2")
    }

    async fn write<B: Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B) {
        // Takes at most what fits into its buffer; the caller writes the rest with another call.
        let taken = self.session.writer().write(&bytes.as_ref()[start..]);
        let result = match taken {
            Ok(length) => self.flush().await.map(|()| length),
            Err(error) => Err(error),
        };
        (result, bytes)
    }

    async fn shutdown_write(&mut self) -> io::Result<()> {
        self.close_notify().await?;
        self.socket.shutdown_write().await
    }

    async fn close_notify(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        self.flush().await
    }

    fn release_buffers(&mut self) {
        if self.is_long && self.received.is_empty() {
            self.received = BytesMut::new();
            self.is_long = false;
            // The session shrinks its buffer before it reads.
            let _ = self.session.read_tls(&mut NothingToRead);
            self.record(0);
        }
    }
}
