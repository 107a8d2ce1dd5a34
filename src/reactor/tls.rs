//! TLS over another transport: a rustls session between two buffers.
//!
//! monoio-rustls is not used because it keeps two buffers for each connection, 32 KiB. Here an idle
//! connection has a buffer of the size of a request, and what is sent is encrypted into the buffers that all
//! connections share. Output of the session is written before more input is read. No plain text is returned
//! before the handshake completes.
use std::io::{self, BufRead, Write};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::{ServerConfig, ServerConnection};

use crate::limits::READ_BYTES_IDLE;
use crate::reactor::spare_buffers::SpareBuffers;
use crate::reactor::transport::{Sendable, Transport};

/// Buffer for encrypted input that is longer than most requests, bytes: one complete record with its header.
const TLS_READ_BYTES: usize = 16 * 1024 + 256;

/// A TLS session and its socket.
pub struct TlsTransport<S> {
    socket: S,
    session: ServerConnection,
    /// Received, not yet decrypted.
    received: BytesMut,
    /// The buffer was filled by a read, so that it was replaced by a longer one.
    is_long: bool,
    spare_buffers: Rc<SpareBuffers>,
}

impl<S: Transport> TlsTransport<S> {
    /// # Errors
    /// The settings are invalid.
    pub fn new(
        socket: S,
        settings: Arc<ServerConfig>,
        spare_buffers: Rc<SpareBuffers>,
    ) -> Result<Self, rustls::Error> {
        let session = ServerConnection::new(settings)?;
        Ok(Self { socket, session, received: BytesMut::new(), is_long: false, spare_buffers })
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
        Ok(())
    }

    /// Decrypts until there is plain text to read; reads from the socket if nothing is left to decrypt.
    /// False: the peer has shut down its side.
    async fn receive(&mut self) -> io::Result<bool> {
        if self.received.is_empty() {
            self.received.reserve(if self.is_long { TLS_READ_BYTES } else { READ_BYTES_IDLE });
            let received = std::mem::take(&mut self.received);
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
            match self.session.process_new_packets() {
                // Returned before more is decrypted: rustls accepts no input while its buffer is full.
                Ok(state) if state.plaintext_bytes_to_read() > 0 => return Ok(true),
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
        }
    }
}
