//! The I/O of one connection: reads, writes, and applies what [`Connection`] decides.
use std::pin::{Pin, pin};
use std::rc::Rc;

use bytes::BytesMut;

use crate::events::EventRefusal;
use crate::handlers::sse::StreamSubscription;
use crate::limits::{LINGER_BYTES_MAX, READ_BYTES_IDLE, WRITE_BYTES_MIN, WRITE_PARTS_MAX};
use crate::reactor::batch::{Batch, Next, StoredResponse};
use crate::reactor::connection::Connection;
use crate::reactor::connections::{ConnectionGuard, Phase};
use crate::reactor::context::Reactor;
#[cfg(test)]
use crate::reactor::options::InjectedPanic;
use crate::reactor::sse::{EventStream, StreamAction};
use crate::reactor::transport::{Sendable, Transport};

/// The peer has disconnected or did not read or write in time, so the socket is closed.
pub struct PeerDisconnected;

/// A connection with its socket.
pub struct ConnectionIo<T> {
    pub reactor: Rc<Reactor>,
    pub guard: ConnectionGuard,
    pub transport: T,
    pub connection: Connection,
}

impl<T: Transport> ConnectionIo<T> {
    /// Serves HTTP/1.1 until the connection ends. What is rare is boxed, so that a connection takes little
    /// memory.
    pub async fn run(&mut self) -> Result<(), PeerDisconnected> {
        loop {
            match self.respond().await? {
                Next::Advance => {}
                Next::Close => return Box::pin(self.linger()).await,
                Next::Read(phase) => {
                    if !self.read(phase).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Answers the requests in the buffer.
    async fn respond(&mut self) -> Result<Next, PeerDisconnected> {
        self.reactor.turns.begin(&self.guard.state).await;
        if self.reactor.connections.memory.is_full() && !Box::pin(self.guard.wait_for_memory()).await {
            return Err(PeerDisconnected);
        }
        let mut batch = self.advance();
        if let Some(stored) = batch.stored.take() {
            Box::pin(self.store(*stored, &mut batch)).await;
        }
        let turn_bytes = self.turn_bytes(&batch);
        self.write(&mut batch).await?;
        self.reactor.turns.sent(turn_bytes);
        let Some(subscription) = batch.subscription else { return Ok(batch.next) };
        Box::pin(self.stream(*subscription)).await?;
        Ok(Next::Close)
    }

    /// Answers a batch and counts its requests; its duration is divided evenly among them.
    fn advance(&mut self) -> Batch {
        let began = self.transport.now();
        let batch = self.connection.advance(&self.reactor, began);
        if batch.has_key {
            self.guard.state.memory.set_known();
        }
        self.reactor.count_batch(batch.requests, began);
        self.reactor.turns.count(batch.requests, self.turn_bytes(&batch));
        #[cfg(test)]
        self.reactor.panic_if_injected(InjectedPanic::Connection);
        batch
    }

    /// The bytes of a batch that were rendered for it, or will be encrypted.
    fn turn_bytes(&self, batch: &Batch) -> usize {
        let tail = batch.tail.as_ref().filter(|_| self.transport.copies());
        batch.bytes.len() + tail.map_or(0, |(tail, _)| tail.len())
    }

    /// Waits until the events of a request are written, or for `limits::EVENT_WRITE_TIMEOUT`.
    async fn store(&mut self, mut stored: StoredResponse, batch: &mut Batch) {
        self.guard.set_phase(Phase::Storing);
        self.guard.record_response_bytes(self.connection.buffer_bytes() + batch.bytes.capacity());
        let result = self.guard.state.cancellable(Pin::new(&mut stored.ticket)).await;
        self.guard.state.reset_cancelled();
        let response = stored.complete(result.unwrap_or(Err(EventRefusal::Timeout)), &self.reactor);
        batch.bytes.extend_from_slice(&response.bytes);
    }

    /// Reads once. False: the connection ends, because the peer has shut down its side.
    pub async fn read(&mut self, phase: Phase) -> Result<bool, PeerDisconnected> {
        self.guard.begin_read(phase);
        if phase == Phase::Idle {
            self.transport.release_buffers();
        }
        if self.connection.is_growing(phase)
            && self.reactor.connections.memory.is_full()
            && !Box::pin(self.guard.wait_for_memory()).await
        {
            return Box::pin(self.time_out(phase)).await;
        }
        let buffer = self.connection.read_buffer(phase);
        self.guard.record_request_bytes(self.connection.taken_bytes());
        if self.guard.state.is_cancelled() {
            drop(buffer);
            return Box::pin(self.time_out(phase)).await;
        }
        let read = {
            let read = pin!(self.transport.read(buffer));
            self.guard.state.cancellable(read).await
        };
        match read {
            Some((Ok(length), buffer)) => {
                self.connection.receive(buffer);
                self.reactor.metrics.bytes_read.add(length as u64);
                if length == 0 {
                    Box::pin(self.close_notify()).await;
                }
                Ok(length > 0)
            }
            Some((Err(_), _)) => Err(PeerDisconnected),
            None => Box::pin(self.time_out(phase)).await,
        }
    }

    /// The timeout of a read has expired.
    async fn time_out(&mut self, phase: Phase) -> Result<bool, PeerDisconnected> {
        match self.connection.time_out(&self.reactor, phase, self.transport.now()) {
            Some(mut batch) => {
                self.guard.state.reset_cancelled();
                self.write(&mut batch).await?;
                self.linger().await?;
            }
            None => self.close_notify().await,
        }
        Err(PeerDisconnected)
    }

    async fn write(&mut self, batch: &mut Batch) -> Result<(), PeerDisconnected> {
        let mut bytes = std::mem::take(&mut batch.bytes);
        if !bytes.is_empty() {
            self.guard.record_response_bytes(self.connection.buffer_bytes() + bytes.capacity());
            bytes = self.write_all(bytes).await?;
        }
        self.reactor.spare_buffers.give_back(bytes);
        if self.guard.state.memory.counted() > 0 {
            self.guard.record_response_bytes(self.connection.buffer_bytes());
        }
        if let Some((tail, _lease)) = batch.tail.take() {
            Box::pin(self.write_all(tail)).await?;
        }
        Ok(())
    }

    /// Writes all bytes.
    pub async fn write_all<B: Sendable>(&mut self, mut bytes: B) -> Result<B, PeerDisconnected> {
        self.guard.set_phase(Phase::Writing);
        let (mut written, mut progress) = (0, WriteProgress::new(bytes.as_ref().len()));
        while written < bytes.as_ref().len() {
            let write = pin!(self.transport.write(bytes, written));
            match self.guard.state.cancellable(write).await {
                Some((Ok(length), back)) if length > 0 => {
                    bytes = back;
                    written += length;
                    self.reactor.metrics.bytes_written.add(length as u64);
                    if progress.restarts_timeout(written) {
                        self.guard.set_phase(Phase::Writing);
                    }
                }
                _ => return Err(PeerDisconnected),
            }
        }
        Ok(bytes)
    }

    /// Serves an event stream until it ends.
    async fn stream(&mut self, subscription: StreamSubscription) -> Result<(), PeerDisconnected> {
        self.connection.release_buffer();
        self.transport.release_buffers();
        self.guard.record_response_bytes(0);
        let reactor = self.reactor.clone();
        let connections = &reactor.connections;
        let mut stream = EventStream::new(subscription, connections.now(), connections.stream_time());
        loop {
            let action = {
                let lease = reactor.worker_state.lease.borrow();
                let (now, time) = (connections.now(), self.transport.now());
                stream.next(lease.as_deref().map(|lease| &**lease), time, now, reactor.is_draining())
            };
            match action {
                StreamAction::Write(bytes) => {
                    self.write_all(bytes).await?;
                    stream.written(connections.now());
                }
                StreamAction::End(bytes) => return self.write_all(bytes).await.map(drop),
                StreamAction::Wait(tick) => {
                    self.guard.set_phase(Phase::Streaming);
                    self.guard.state.set_due(tick);
                    if !self.guard.state.notified().await && !reactor.is_draining() {
                        return Ok(());
                    }
                    self.guard.state.reset_cancelled();
                }
            }
        }
    }

    /// The connection ends between two requests.
    pub async fn close_notify(&mut self) {
        self.guard.state.reset_cancelled();
        self.guard.set_phase(Phase::Lingering);
        let close = pin!(self.transport.close_notify());
        let _ = self.guard.state.cancellable(close).await;
    }

    /// Shuts down the write side and discards what the peer still sends: if a socket is closed with unread
    /// bytes, the kernel resets the connection and the peer may lose the response (RFC 9112 9.6).
    pub async fn linger(&mut self) -> Result<(), PeerDisconnected> {
        self.guard.set_phase(Phase::Lingering);
        self.connection.release_buffer();
        self.guard.record_request_bytes(0);
        // Cancellable, because TLS writes close_notify first, which the peer may not read.
        {
            let shutdown = pin!(self.transport.shutdown_write());
            let _ = self.guard.state.cancellable(shutdown).await;
        }
        let (mut discarded, mut buffer) = (0, BytesMut::new());
        while discarded < LINGER_BYTES_MAX {
            buffer.clear();
            buffer.reserve(READ_BYTES_IDLE);
            let read = pin!(self.transport.read(buffer));
            match self.guard.state.cancellable(read).await {
                Some((Ok(length), back)) if length > 0 => {
                    buffer = back;
                    discarded += length;
                }
                _ => break,
            }
        }
        Ok(())
    }
}

/// Decides when a write restarts its timeout: after a part of the response, not after each byte.
struct WriteProgress {
    part_bytes: usize,
    counted_bytes: usize,
}

impl WriteProgress {
    fn new(response_bytes: usize) -> Self {
        Self { part_bytes: WRITE_BYTES_MIN.max(response_bytes / WRITE_PARTS_MAX), counted_bytes: 0 }
    }

    /// Whether a whole part was written since this last returned true.
    fn restarts_timeout(&mut self, written_bytes: usize) -> bool {
        let restarts = written_bytes - self.counted_bytes >= self.part_bytes;
        if restarts {
            self.counted_bytes = written_bytes;
        }
        restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often the timeout restarts if the peer takes `step_bytes` at a time.
    fn restarts(response_bytes: usize, step_bytes: usize) -> usize {
        let mut progress = WriteProgress::new(response_bytes);
        let steps = (step_bytes..=response_bytes).step_by(step_bytes);
        steps.filter(|written| progress.restarts_timeout(*written)).count()
    }

    #[test]
    fn write_timeout_restarts_per_part_and_not_per_byte() {
        assert_eq!(restarts(1000, 1), 0, "a small response has one timeout");
        assert_eq!(restarts(WRITE_BYTES_MIN * 4, 1), 4);
        assert_eq!(restarts(WRITE_BYTES_MIN * 4, WRITE_BYTES_MIN * 2), 2);
        for step_bytes in [1, WRITE_BYTES_MIN, 1 << 20] {
            assert!(restarts(40 << 20, step_bytes) <= WRITE_PARTS_MAX, "for any step");
        }
    }
}
