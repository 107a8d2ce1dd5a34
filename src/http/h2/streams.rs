//! The streams of a connection with what they share: windows in both directions, and counters.
use crate::http::h2::event::{Http2Counts, WaitLimits, WrittenResponse};
use crate::http::h2::frame::{self, ErrorCode};
use crate::http::h2::misuse::MisuseCounter;
use crate::http::h2::peer_settings::WINDOW_MAX;
use crate::http::h2::receive_window::ReceiveWindow;
use crate::http::h2::sender::{Sender, Sent};
use crate::http::h2::stream_table::{OpenStream, StreamState, StreamTable};
use crate::limits::{BATCH_BYTES_MAX, HTTP2_OUTGOING_BYTES_MAX};

#[derive(Debug)]
pub struct Http2Streams {
    pub table: StreamTable,
    pub sender: Sender,
    pub receive_window: ReceiveWindow,
    pub misuse: MisuseCounter,
    pub counts: Http2Counts,
    /// After GOAWAY: streams beyond it are ignored.
    pub last_stream: Option<u32>,
}

/// A stream that has waited for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiredStream {
    /// Its body is incomplete.
    Body(u32),
    /// The peer does not take its response.
    Response(u32),
}

impl Http2Streams {
    pub fn new(out: &mut Vec<u8>) -> Self {
        Self {
            table: StreamTable::default(),
            sender: Sender::default(),
            receive_window: ReceiveWindow::open(out),
            misuse: MisuseCounter::default(),
            counts: Http2Counts::default(),
            last_stream: None,
        }
    }

    /// Whether the peer has not used this identifier. After GOAWAY it may have.
    pub fn is_idle(&self, id: u32) -> bool {
        id > self.table.highest() && self.last_stream.is_none()
    }

    /// Removes a stream with what it waits for.
    pub fn remove(&mut self, id: u32) {
        let Some(stream) = self.table.remove(id) else { return };
        if let StreamState::Receiving { body, .. } | StreamState::Waiting { body, .. } = stream.state {
            self.receive_window.free_body(&body);
        }
    }

    /// Resets a stream because of what the peer did.
    ///
    /// # Errors
    /// The peer does it too often.
    pub fn reset(&mut self, id: u32, code: ErrorCode, out: &mut Vec<u8>) -> Result<(), ErrorCode> {
        self.remove(id);
        self.table.end(id);
        self.counts.resets_by_server += 1;
        frame::append_reset(id, code, out);
        self.misuse.reset()
    }

    /// Applies the peer's settings: a changed initial window changes those of all streams (RFC 9113 6.9.2).
    ///
    /// # Errors
    /// A value is not valid, or a window would exceed 31 bits.
    fn apply_settings(&mut self, payload: &[u8]) -> Result<(), ErrorCode> {
        let before = self.sender.settings.initial_window;
        self.sender.settings.apply(payload)?;
        let change = self.sender.settings.initial_window - before;
        for stream in self.table.iter_mut() {
            stream.window += change;
            if stream.window > WINDOW_MAX {
                return Err(ErrorCode::FlowControl);
            }
        }
        Ok(())
    }

    /// Widens a window; stream 0 is the connection.
    ///
    /// # Errors
    /// The window would exceed 31 bits.
    fn widen(&mut self, id: u32, increment: i64) -> Result<(), ErrorCode> {
        if id == 0 {
            return self.sender.widen(increment);
        }
        // A stream without a record has ended.
        let Some(stream) = self.table.find(id) else { return Ok(()) };
        stream.window += increment;
        if stream.window > WINDOW_MAX { Err(ErrorCode::FlowControl) } else { Ok(()) }
    }

    /// WINDOW_UPDATE.
    pub fn window_update(&mut self, id: u32, payload: &[u8]) -> Result<(), ErrorCode> {
        if payload.len() != 4 {
            return Err(ErrorCode::FrameSize);
        }
        self.misuse.idle_frame()?;
        let increment = i64::from(frame::increment(payload));
        if increment == 0 || self.is_idle(id) {
            return Err(ErrorCode::Protocol);
        }
        self.widen(id, increment)
    }

    /// RST_STREAM.
    pub fn reset_by_peer(&mut self, id: u32, payload: &[u8]) -> Result<(), ErrorCode> {
        if payload.len() != 4 {
            return Err(ErrorCode::FrameSize);
        }
        if self.is_idle(id) {
            return Err(ErrorCode::Protocol);
        }
        self.counts.resets_by_client += 1;
        self.remove(id);
        self.misuse.reset()
    }

    /// SETTINGS.
    pub fn settings(&mut self, flags: u8, payload: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorCode> {
        self.misuse.idle_frame()?;
        if flags & frame::ACK != 0 {
            return if payload.is_empty() { Ok(()) } else { Err(ErrorCode::FrameSize) };
        }
        self.apply_settings(payload)?;
        frame::append(frame::SETTINGS, frame::ACK, 0, b"", out);
        Ok(())
    }

    /// PING.
    pub fn ping(&mut self, flags: u8, payload: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorCode> {
        if payload.len() != 8 {
            return Err(ErrorCode::FrameSize);
        }
        self.misuse.idle_frame()?;
        if flags & frame::ACK == 0 {
            frame::append(frame::PING, frame::ACK, 0, payload, out);
        }
        Ok(())
    }

    /// Frames a response. `is_half_open`: the peer has not ended its request.
    pub fn respond(
        &mut self,
        id: u32,
        mut window: i64,
        is_half_open: bool,
        mut response: WrittenResponse<'_>,
        now: u32,
    ) {
        match self.sender.frame_response(id, &mut window, &mut response) {
            Some(outgoing) => {
                let state = StreamState::Sending { outgoing, is_half_open };
                self.table.insert(OpenStream { id, window, since: now, is_stalled: false, state });
            }
            None if is_half_open => {
                frame::append_reset(id, ErrorCode::NoError, response.bytes);
                self.table.end(id);
            }
            None => {}
        }
    }

    /// Frames the response to a request that was parked. It is dropped if the stream has ended.
    pub fn respond_parked(&mut self, id: u32, response: WrittenResponse<'_>, now: u32) {
        match self.table.remove(id) {
            Some(stream) => self.respond(id, stream.window, false, response, now),
            None => response.bytes.truncate(response.start),
        }
    }

    /// DATA of a stream that receives none: ignored if the peer may not know that yet.
    ///
    /// # Errors
    /// The peer does it too often.
    pub fn unexpected_data(&mut self, id: u32, out: &mut Vec<u8>) -> Result<(), ErrorCode> {
        let is_half_open = self
            .table
            .find(id)
            .is_some_and(|stream| matches!(stream.state, StreamState::Sending { is_half_open: true, .. }));
        if !is_half_open && !self.table.is_ended(id) && id <= self.table.highest() {
            self.reset(id, ErrorCode::StreamClosed, out)?;
        }
        Ok(())
    }

    /// Appends to an event stream. `None`: the peer has ended it; otherwise how many bytes are not sent yet.
    pub fn push_event(&mut self, id: u32, bytes: &[u8], is_last: bool, now: u32) {
        let Some(stream) = self.table.find(id) else { return };
        let StreamState::Sending { outgoing, .. } = &mut stream.state else { return };
        if outgoing.left() == 0 {
            stream.since = now;
        }
        outgoing.push(bytes);
        outgoing.is_last |= is_last;
    }

    /// How many bytes of a response are not sent yet; `None` if the stream has ended.
    pub fn unsent(&mut self, id: u32) -> Option<usize> {
        match &self.table.find(id)?.state {
            StreamState::Sending { outgoing, .. } => Some(outgoing.left()),
            _ => None,
        }
    }

    /// Sends what the windows allow, a frame of each stream in turn, until `out` is large. Returns whether
    /// another call would send more.
    pub fn flush(&mut self, now: u32, out: &mut Vec<u8>) -> bool {
        self.receive_window.update(out);
        if self.table.is_empty() {
            return false;
        }
        self.table.allow_bodies(out);
        let mut sends = true;
        while sends && out.len() < BATCH_BYTES_MAX {
            sends = false;
            for stream in self.table.iter_mut() {
                let OpenStream { id, window, since, state, .. } = stream;
                let StreamState::Sending { outgoing, .. } = state else { continue };
                let before = outgoing.left();
                if self.sender.send(*id, window, outgoing, out) != Sent::Little {
                    *since = now;
                    if before > 0 {
                        self.misuse.progress();
                    }
                }
                sends |= outgoing.left() > 0 && outgoing.left() < before;
            }
        }
        self.close_sent(out);
        if !sends {
            self.count_stalls();
        }
        sends
    }

    /// Removes the streams whose last byte was sent.
    fn close_sent(&mut self, out: &mut Vec<u8>) {
        let is_sent = |stream: &&OpenStream| match &stream.state {
            StreamState::Sending { outgoing, .. } => outgoing.is_ended,
            _ => false,
        };
        let next =
            |table: &StreamTable| table.iter().find(is_sent).map(|stream| (stream.id, stream.is_half_open()));
        while let Some((id, is_half_open)) = next(&self.table) {
            self.table.remove(id);
            if is_half_open {
                frame::append_reset(id, ErrorCode::NoError, out);
                self.table.end(id);
            }
        }
    }

    fn count_stalls(&mut self) {
        for stream in self.table.iter_mut() {
            let is_stalled =
                matches!(&stream.state, StreamState::Sending { outgoing, .. } if outgoing.left() > 0);
            self.counts.window_stalls += u64::from(is_stalled && !stream.is_stalled);
            stream.is_stalled = is_stalled;
        }
    }

    /// The tick at which the first stream has waited for too long.
    pub fn deadline(&self, now: u32, limits: WaitLimits) -> Option<u32> {
        let left = self.table.iter().filter_map(|stream| {
            let ticks = limits.ticks(stream)?;
            Some(ticks.saturating_sub(now.wrapping_sub(stream.since)))
        });
        left.min().map(|left| now.wrapping_add(left))
    }

    /// A stream that has waited for too long.
    pub fn expired(&self, now: u32, limits: WaitLimits) -> Option<ExpiredStream> {
        let is_expired = |stream: &&OpenStream| {
            limits.ticks(stream).is_some_and(|ticks| now.wrapping_sub(stream.since) > ticks)
        };
        self.table.iter().find(is_expired).map(|stream| match stream.state {
            StreamState::Receiving { .. } => ExpiredStream::Body(stream.id),
            _ => ExpiredStream::Response(stream.id),
        })
    }

    /// Appends GOAWAY. Streams beyond those so far are ignored.
    pub fn go_away(&mut self, code: ErrorCode, out: &mut Vec<u8>) {
        let last = self.table.highest();
        self.last_stream = Some(last);
        self.counts.goaway = Some(code);
        let payload = [last.to_be_bytes(), (code as u32).to_be_bytes()].concat();
        frame::append(frame::GOAWAY, 0, 0, &payload, out);
    }

    /// Checks, records and counts a new stream.
    ///
    /// # Errors
    /// Its identifier is not valid.
    pub fn open(&mut self, id: u32) -> Result<(), ErrorCode> {
        self.table.open(id)?;
        self.misuse.stream();
        self.counts.streams += 1;
        Ok(())
    }

    /// Whether so much waits for the peer's window that further requests wait.
    pub fn is_stalled(&self) -> bool {
        !self.table.is_empty() && self.table.outgoing_bytes() >= HTTP2_OUTGOING_BYTES_MAX
    }

    /// The first complete request that waits although there is space for its response.
    pub fn waiting(&self) -> Option<u32> {
        if self.table.is_empty() || self.is_stalled() {
            return None;
        }
        let is_waiting = |stream: &&OpenStream| matches!(stream.state, StreamState::Waiting { .. });
        self.table.iter().find(is_waiting).map(|stream| stream.id)
    }

    /// Removes all streams: the connection has ended.
    pub fn discard(&mut self) {
        self.table = StreamTable::default();
    }

    /// Memory of request bodies and of responses, bytes.
    pub fn body_memory(&self) -> usize {
        self.table.body_bytes() + self.table.outgoing_bytes()
    }
}

impl WaitLimits {
    /// How long this stream may wait; `None` if it waits for nothing, or for others.
    fn ticks(self, stream: &OpenStream) -> Option<u32> {
        match &stream.state {
            StreamState::Receiving { .. } => Some(self.body_ticks),
            StreamState::Waiting { .. } | StreamState::Parked => None,
            StreamState::Sending { outgoing, .. } => (outgoing.left() > 0).then_some(self.write_ticks),
        }
    }
}
