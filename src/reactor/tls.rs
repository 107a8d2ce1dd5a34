//! TLS over a socket: rustls between two buffers of ours.
//!
//! In: a socket, the process's TLS settings. Out: a [`Transport`] of plain bytes. Invariant:
//! what rustls has to say is written before it is asked to read on; nothing is trusted before
//! the handshake is done; the buffers are given back when the connection idles.
use std::io::{self, BufRead, Write};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::{ServerConfig, ServerConnection};

use crate::limits::{READ_BYTES_IDLE, TLS_READ_BYTES};
use crate::reactor::transport::{Sendable, Transport};

/// A socket that speaks TLS.
pub struct TlsTransport<S> {
    socket: S,
    session: ServerConnection,
    /// What came and is not decrypted.
    received: BytesMut,
    /// What is encrypted and not written.
    to_send: Vec<u8>,
}

impl<S: Transport> TlsTransport<S> {
    /// # Errors
    /// The settings do not make a session.
    pub fn new(socket: S, settings: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let session = ServerConnection::new(settings)?;
        Ok(Self { socket, session, received: BytesMut::new(), to_send: Vec::new() })
    }

    /// Writes all that rustls has to say.
    async fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.to_send)?;
        }
        let mut bytes = std::mem::take(&mut self.to_send);
        let mut written = 0;
        while written < bytes.len() {
            let (result, back) = self.socket.write(bytes, written).await;
            bytes = back;
            match result? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                length => written += length,
            }
        }
        bytes.clear();
        self.to_send = bytes;
        Ok(())
    }

    /// Receives if all that came is decrypted, and decrypts until there is something to read. False:
    /// the peer ended its side.
    async fn receive(&mut self) -> io::Result<bool> {
        if self.received.is_empty() {
            if self.received.capacity() < READ_BYTES_IDLE {
                let room_bytes = if self.session.is_handshaking() { READ_BYTES_IDLE } else { TLS_READ_BYTES };
                self.received.reserve(room_bytes);
            }
            let received = std::mem::take(&mut self.received);
            let (result, received) = self.socket.read(received).await;
            self.received = received;
            if result? == 0 {
                return Ok(false);
            }
        }
        while !self.received.is_empty() {
            let taken = self.session.read_tls(&mut &self.received[..])?;
            self.received.advance(taken);
            match self.session.process_new_packets() {
                // To be read before any more is decrypted: rustls takes nothing in while its room is full.
                Ok(state) if state.plaintext_bytes_to_read() > 0 => return Ok(true),
                Ok(_) => {}
                Err(error) => {
                    // The peer is told why before the connection ends.
                    let _ = self.flush().await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            if taken == 0 {
                // It said that nothing more would come.
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
            // Answers to key updates and the like.
            if self.session.wants_write()
                && let Err(error) = self.flush().await
            {
                return (Err(error), buffer);
            }
        }
    }

    async fn write<B: Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B) {
        // Takes as much as its buffer holds; the rest comes with the next call.
        let taken = self.session.writer().write(&bytes.as_ref()[start..]);
        let result = match taken {
            Ok(length) => self.flush().await.map(|()| length),
            Err(error) => Err(error),
        };
        (result, bytes)
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        self.farewell().await?;
        self.socket.shutdown().await
    }

    async fn farewell(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        self.flush().await
    }

    fn give_back(&mut self) {
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
        self.to_send = Vec::new();
    }
}
