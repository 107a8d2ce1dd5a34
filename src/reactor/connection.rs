//! One connection: the only place where request bytes meet `.await`.
//!
//! In: bytes of a peer. Out: answers, in order; pipelined ones in one write. Invariant: between
//! read and write everything is synchronous (`Reactor::answer_batch`); a timed-out read is never
//! resumed; buffers grow only while a request needs them and are given back when it idles.
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use monoio::buf::IoBuf;

use super::registry::{Phase, Place};
use super::transport::Transport;
use super::{Reactor, Spine, panic};
use crate::answer;
use crate::channel::Lease;
use crate::config::Level;
use crate::http::{Output, Progress, Reject, RequestReader};
use crate::limits::{
    BATCH_BYTES_MAX, LINGER_BYTES_MAX, READ_BYTES_IDLE, READ_BYTES_MIN, SPARE_BUFFER_BYTES_MAX,
    SPARE_BUFFERS_MAX,
};

/// The peer is gone, or too slow: nothing more can be done for it.
struct Gone;

/// Serves one connection until it ends.
pub async fn serve<T: Transport>(reactor: Rc<Reactor>, place: Place, transport: T, _peer: IpAddr) {
    let mut connection =
        Connection { reactor, place, transport, buffer: BytesMut::new(), reader: RequestReader::default() };
    // `Gone` has nobody left to be told.
    let _ = connection.live().await;
}

struct Connection<T> {
    reactor: Rc<Reactor>,
    place: Place,
    transport: T,
    buffer: BytesMut,
    reader: RequestReader,
}

/// What a batch of requests left to do.
struct Batch {
    bytes: Vec<u8>,
    /// The end of a large body, and the snapshot it belongs to.
    tail: Option<(Bytes, Rc<Lease>)>,
    next: Next,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Read(Phase),
    /// There may be more whole requests in the buffer.
    Answer,
    Close,
}

impl<T: Transport> Connection<T> {
    async fn live(&mut self) -> Result<(), Gone> {
        loop {
            let batch = self.reactor.answer_batch(&mut self.reader, &mut self.buffer);
            let next = batch.next;
            self.write(batch).await?;
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
    async fn read(&mut self, phase: Phase) -> Result<bool, Gone> {
        if phase == Phase::Idle || self.place.mark.phase() != phase {
            self.place.set_phase(phase);
        }
        self.make_room(phase);
        let buffer = std::mem::take(&mut self.buffer);
        match self.place.mark.unless_ended(self.transport.read(buffer)).await {
            Some((Ok(length), buffer)) => {
                self.buffer = buffer;
                Ok(length > 0)
            }
            Some((Err(_), _)) => Err(Gone),
            None if phase == Phase::Idle => Err(Gone),
            None => {
                self.refuse_slow().await?;
                Err(Gone)
            }
        }
    }

    fn make_room(&mut self, phase: Phase) {
        if phase == Phase::Idle && self.buffer.capacity() > READ_BYTES_IDLE {
            self.buffer = BytesMut::new();
        }
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            // Doubles with a large body, so that few reads bring it in.
            self.buffer.reserve(READ_BYTES_IDLE.max(self.buffer.len()));
        }
    }

    async fn write(&mut self, batch: Batch) -> Result<(), Gone> {
        if !batch.bytes.is_empty() {
            self.place.set_phase(Phase::Writing);
            let bytes = self.write_whole(batch.bytes).await?;
            self.reactor.give_back(bytes);
            if let Some((tail, _lease)) = batch.tail {
                self.write_whole(tail).await?;
            }
        }
        Ok(())
    }

    async fn write_whole<B: IoBuf>(&mut self, mut bytes: B) -> Result<B, Gone> {
        let mut written = 0;
        while written < bytes.bytes_init() {
            let write = self.transport.write(bytes, written);
            match self.place.mark.unless_ended(write).await {
                Some((Ok(length), back)) if length > 0 => {
                    bytes = back;
                    written += length;
                    self.place.set_phase(Phase::Writing);
                }
                _ => return Err(Gone),
            }
        }
        Ok(bytes)
    }

    /// Tells a peer that took too long to send what it began.
    async fn refuse_slow(&mut self) -> Result<(), Gone> {
        let bytes = self.reactor.refuse(&self.reader, Reject::Timeout);
        self.place.mark.revive();
        self.write(Batch { bytes, tail: None, next: Next::Close }).await?;
        self.linger().await
    }

    /// Ends our side and reads over what still comes: to close with bytes unread would make the
    /// kernel reset the connection, and the peer lose the answer (RFC 9112 9.6).
    async fn linger(&mut self) -> Result<(), Gone> {
        self.place.set_phase(Phase::Lingering);
        let _ = self.transport.shutdown().await;
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

impl Reactor {
    /// Answers every whole request in the buffer, up to the size of one write.
    fn answer_batch(&self, reader: &mut RequestReader, buffer: &mut BytesMut) -> Batch {
        let mut spine = self.spine.borrow_mut();
        let Spine { room, output } = &mut *spine;
        let lease = self.lease.borrow();
        let settings = self.settings.borrow();
        let mut begun = None;
        let next = loop {
            let refused = match reader.advance(buffer) {
                Ok(Progress::Idle) => break Next::Read(Phase::Idle),
                Ok(Progress::Head) => break Next::Read(Phase::Head),
                Ok(Progress::Body { expects_continue }) => {
                    if expects_continue {
                        self.begin(&mut begun, output);
                        output.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    break Next::Read(Phase::Body);
                }
                Ok(Progress::Ready) => None,
                Err(reject) => Some(reject),
            };
            let now = self.begin(&mut begun, output);
            match (refused, lease.as_deref()) {
                (None, Some(snapshot)) => {
                    self.answer_one(&settings, snapshot, now, reader, buffer, room, output)
                }
                (refused, _) => output.reject(reader.reply(), refused.unwrap_or(Reject::Internal)),
            }
            if output.close {
                break Next::Close;
            }
            reader.consume(buffer);
            if output.tail.is_some() || output.bytes.len() >= BATCH_BYTES_MAX {
                break Next::Answer;
            }
        };
        output.close = false;
        let tail = output.tail.take().zip(lease.clone());
        Batch { bytes: std::mem::take(&mut output.bytes), tail, next }
    }

    /// At the first answer of a batch: takes a buffer, and the time that all of them carry.
    fn begin(&self, begun: &mut Option<SystemTime>, output: &mut Output) -> SystemTime {
        *begun.get_or_insert_with(|| {
            output.bytes = self.spare_buffers.borrow_mut().pop().unwrap_or_default();
            let now = SystemTime::now();
            output.set_date(now);
            now
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn answer_one(
        &self,
        settings: &answer::Settings,
        snapshot: &Lease,
        now: SystemTime,
        reader: &mut RequestReader,
        buffer: &mut BytesMut,
        room: &mut answer::Room,
        output: &mut Output,
    ) {
        let Some(mut request) = reader.request(buffer) else {
            return output.reject(reader.reply(), Reject::Internal);
        };
        request.keep_alive &= !self.draining.get();
        let reply = request.reply();
        let before_bytes = output.bytes.len();
        let answered = catch_unwind(AssertUnwindSafe(|| {
            answer::answer(settings, snapshot, now, &mut request, room, output)
        }));
        if answered.is_err() {
            let place = panic::last_place();
            self.log.event(
                Level::Critical,
                "request_panicked",
                &[("reactor", &self.index), ("place", &place)],
            );
            // Whatever was left half done is forgotten with its buffers.
            *room = answer::Room::default();
            output.bytes.truncate(before_bytes);
            output.tail = None;
            output.reject(reply, Reject::Internal);
        }
    }

    /// One refusal in a buffer of its own.
    fn refuse(&self, reader: &RequestReader, reject: Reject) -> Vec<u8> {
        let mut output = Output::default();
        output.set_date(SystemTime::now());
        output.reject(reader.reply(), reject);
        output.bytes
    }

    /// Keeps an answer buffer for the next batch, of whatever connection.
    fn give_back(&self, mut bytes: Vec<u8>) {
        let mut spare = self.spare_buffers.borrow_mut();
        if spare.len() < SPARE_BUFFERS_MAX && bytes.capacity() <= SPARE_BUFFER_BYTES_MAX {
            bytes.clear();
            spare.push(bytes);
        }
    }
}
