//! One connection: the only place where request bytes meet `.await`.
//!
//! In: bytes of a peer. Out: answers, in order; pipelined ones in one write. Invariant: between
//! read and write everything is synchronous (`batch`); a timed-out read is never
//! resumed; buffers grow only while a request needs them and are given back when it idles.
use std::net::IpAddr;
use std::rc::Rc;

use bytes::BytesMut;

use crate::http::{ParseError, RequestReader};
use crate::limits::{LINGER_BYTES_MAX, READ_BYTES_IDLE, READ_BYTES_MIN, WRITE_BYTES_MIN, WRITE_PARTS_MAX};
use crate::reactor::Reactor;
use crate::reactor::batch::{Batch, Next};
use crate::reactor::connections::{ConnectionGuard, Phase};
use crate::reactor::transport::{Sendable, Transport};

/// The peer is gone, or too slow: nothing more can be done for it.
pub(super) struct PeerGone;

/// Serves one connection until it ends.
pub async fn serve<T: Transport>(
    reactor: Rc<Reactor>,
    place: ConnectionGuard,
    transport: T,
    peer: Option<IpAddr>,
) {
    let (buffer, reader) = (BytesMut::new(), RequestReader::with_cache(reactor.heads.clone()));
    let requests_left = reactor.requests_max;
    let mut connection = Connection { reactor, place, transport, peer, buffer, reader, requests_left };
    // `PeerGone` has nobody left to be told.
    let _ = connection.live().await;
}

pub(super) struct Connection<T> {
    pub(super) reactor: Rc<Reactor>,
    pub(super) place: ConnectionGuard,
    pub(super) transport: T,
    /// `None` on a unix socket.
    peer: Option<IpAddr>,
    pub(super) buffer: BytesMut,
    reader: RequestReader,
    requests_left: u64,
}

impl<T: Transport> Connection<T> {
    async fn live(&mut self) -> Result<(), PeerGone> {
        if self.place.mark.phase() == Phase::Handshake {
            match self.place.mark.unless_ended(self.transport.handshake()).await {
                Some(Ok(())) => {}
                _ => return Err(PeerGone),
            }
        }
        loop {
            let left = &mut self.requests_left;
            let mut batch = self.reactor.answer_batch(&mut self.reader, &mut self.buffer, self.peer, left);
            #[cfg(test)]
            self.reactor.panic_if_asked(super::InjectedPanic::Connection);
            let (next, subscription) = (batch.next, batch.subscription.take());
            self.write(batch).await?;
            if let Some(subscription) = subscription {
                self.stream(subscription).await?;
                return self.linger().await;
            }
            match next {
                Next::Answer => {}
                Next::Close => return self.linger().await,
                Next::Read(phase) => {
                    if !self.read(phase).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads once. False: the peer ended its side, and with it any request it had begun.
    async fn read(&mut self, phase: Phase) -> Result<bool, PeerGone> {
        if phase == Phase::Idle || self.place.mark.phase() != phase {
            self.place.set_phase(phase);
        }
        self.make_room(phase);
        let buffer = std::mem::take(&mut self.buffer);
        match self.place.mark.unless_ended(self.transport.read(buffer)).await {
            Some((Ok(length), buffer)) => {
                self.buffer = buffer;
                self.reactor.metrics.bytes_read.add(length as u64);
                if length == 0 {
                    self.farewell().await;
                }
                Ok(length > 0)
            }
            Some((Err(_), _)) => Err(PeerGone),
            None if phase == Phase::Idle => {
                self.farewell().await;
                Err(PeerGone)
            }
            None => {
                self.refuse_slow().await?;
                Err(PeerGone)
            }
        }
    }

    fn make_room(&mut self, phase: Phase) {
        if phase == Phase::Idle {
            self.transport.give_back();
            if self.buffer.capacity() > READ_BYTES_IDLE {
                self.buffer = BytesMut::new();
            }
        }
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            // Doubles with a large body, so that few reads bring it in.
            self.buffer.reserve(READ_BYTES_IDLE.max(self.buffer.len()));
        }
        self.place.hold_request(self.buffer.capacity());
    }

    async fn write(&mut self, mut batch: Batch) -> Result<(), PeerGone> {
        if !batch.bytes.is_empty() {
            self.place.hold_answer(self.buffer.capacity() + batch.bytes.capacity());
            batch.bytes = self.write_whole(batch.bytes).await?;
        }
        self.reactor.give_back(batch.bytes);
        if self.place.holds() {
            self.place.hold_answer(self.buffer.capacity());
        }
        if let Some((tail, _lease)) = batch.tail {
            self.write_whole(tail).await?;
        }
        Ok(())
    }

    pub(super) async fn write_whole<B: Sendable>(&mut self, mut bytes: B) -> Result<B, PeerGone> {
        self.place.set_phase(Phase::Writing);
        let (mut written, mut pace) = (0, WriteProgress::of(bytes.as_ref().len()));
        while written < bytes.as_ref().len() {
            let write = self.transport.write(bytes, written);
            match self.place.mark.unless_ended(write).await {
                Some((Ok(length), back)) if length > 0 => {
                    bytes = back;
                    written += length;
                    self.reactor.metrics.bytes_written.add(length as u64);
                    if pace.counts(written) {
                        self.place.set_phase(Phase::Writing);
                    }
                }
                _ => return Err(PeerGone),
            }
        }
        Ok(bytes)
    }

    /// Tells a peer that took too long to send what it began.
    async fn refuse_slow(&mut self) -> Result<(), PeerGone> {
        let batch = self.reactor.refuse(&self.reader, &self.buffer, ParseError::Timeout);
        self.place.mark.revive();
        self.write(batch).await?;
        self.linger().await
    }

    /// The connection ends between two answers, which the peer should not take for a cut.
    async fn farewell(&mut self) {
        self.place.mark.revive();
        self.place.set_phase(Phase::Lingering);
        let _ = self.place.mark.unless_ended(self.transport.farewell()).await;
    }

    /// Ends our side and reads over what still comes: to close with bytes unread would make the
    /// kernel reset the connection, and the peer lose the answer (RFC 9112 9.6).
    async fn linger(&mut self) -> Result<(), PeerGone> {
        self.place.set_phase(Phase::Lingering);
        // Nothing of what was read is needed any more.
        self.buffer = BytesMut::new();
        self.place.hold_request(0);
        // TLS has something to say first, for which there may be no room.
        let _ = self.place.mark.unless_ended(self.transport.shutdown()).await;
        let mut read_over = 0;
        while read_over < LINGER_BYTES_MAX {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            buffer.reserve(READ_BYTES_IDLE);
            match self.place.mark.unless_ended(self.transport.read(buffer)).await {
                Some((Ok(length), buffer)) if length > 0 => {
                    self.buffer = buffer;
                    read_over += length;
                }
                _ => break,
            }
        }
        Ok(())
    }
}

/// What a peer must take of an answer to be given time anew: a byte now and then is not reading.
struct WriteProgress {
    part_bytes: usize,
    counted_bytes: usize,
}

impl WriteProgress {
    fn of(answer_bytes: usize) -> Self {
        Self { part_bytes: WRITE_BYTES_MIN.max(answer_bytes / WRITE_PARTS_MAX), counted_bytes: 0 }
    }

    /// Whether a part was taken since the last that counted.
    fn counts(&mut self, written_bytes: usize) -> bool {
        let counts = written_bytes - self.counted_bytes >= self.part_bytes;
        if counts {
            self.counted_bytes = written_bytes;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a peer that takes so much at a time is given time anew.
    fn times(answer_bytes: usize, step_bytes: usize) -> usize {
        let mut pace = WriteProgress::of(answer_bytes);
        (step_bytes..=answer_bytes).step_by(step_bytes).filter(|written| pace.counts(*written)).count()
    }

    #[test]
    fn a_peer_is_given_time_for_parts_and_not_for_bytes() {
        assert_eq!(times(1000, 1), 0, "all of a small answer within one time");
        assert_eq!(times(WRITE_BYTES_MIN * 4, 1), 4);
        assert_eq!(times(WRITE_BYTES_MIN * 4, WRITE_BYTES_MIN * 2), 2);
        for step_bytes in [1, WRITE_BYTES_MIN, 1 << 20] {
            assert!(times(40 << 20, step_bytes) <= WRITE_PARTS_MAX, "however it is taken");
        }
    }
}
