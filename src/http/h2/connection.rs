//! The state of one HTTP/2 connection (RFC 9113).
//!
//! The owner passes received bytes to [`Http2::advance`], answers each request that it returns with
//! [`Http2::respond`], and writes the output. An error of the peer that is not about the content of a request
//! closes the connection, even where RFC 9113 allows to reset the stream only: a server that can be made to
//! reset streams can be made to work for nothing.
use std::rc::Rc;

use bytes::{Buf, BytesMut};

use crate::http::error::ParseError;
use crate::http::fields::Fields;
use crate::http::h2::current_request::CurrentRequest;
use crate::http::h2::event::{Http2Counts, Http2Event, Http2Limits, Incomplete, WaitLimits, WrittenResponse};
use crate::http::h2::field_block::FieldBlock;
use crate::http::h2::frame::{self, ErrorCode, FrameHead};
use crate::http::h2::head::RequestHead;
use crate::http::h2::head_reader::{DecodedBlock, HeadReader};
use crate::http::h2::peer_settings;
use crate::http::h2::receive_window::RequestBody;
use crate::http::h2::state_memory::{StateLimit, StateParts};
use crate::http::h2::stream_table::{OpenStream, StreamState};
use crate::http::h2::streams::{ExpiredStream, Http2Streams};
use crate::http::request::Request;
use crate::http::response::{HTTP2_FRAME_HEAD_BYTES, ResponseContext};
use crate::limits::{BATCH_BYTES_MAX, BODY_BYTES_MAX, HTTP2_FRAME_BYTES_MAX, KEPT_BODY_BYTES_MAX};

/// One connection.
pub struct Http2 {
    limits: Http2Limits,
    state_limit: StateLimit,
    heads: HeadReader,
    block: Option<FieldBlock>,
    pub streams: Http2Streams,
    current: Option<CurrentRequest>,
    /// Whether the owner decides on each head before its body arrives.
    pub judges_heads: bool,
    /// The buffer of the last body.
    spare_body: Vec<u8>,
    has_preface: bool,
    has_settings: bool,
    frames_read: u64,
}

impl Http2 {
    /// Appends this side's preface to `out`.
    pub fn new(limits: Http2Limits, out: &mut Vec<u8>) -> Self {
        let streams_max = u32::try_from(limits.streams_max).unwrap_or(u32::MAX);
        let head_bytes_max = u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX);
        peer_settings::append_own(streams_max, head_bytes_max, out);
        Self {
            limits,
            state_limit: StateLimit::new(limits),
            heads: HeadReader::new(limits.head_bytes_max),
            block: None,
            streams: Http2Streams::new(out),
            current: None,
            judges_heads: false,
            spare_body: Vec::new(),
            has_preface: false,
            has_settings: false,
            frames_read: 0,
        }
    }

    /// Handles the frames in the buffer until one completes a request. `now` is the tick at which a stream
    /// begins to wait. After [`Http2Event::Request`] and `Refused`, [`respond`](Self::respond) must follow;
    /// after `Head` that or [`accept`](Self::accept).
    pub fn advance(&mut self, buffer: &mut BytesMut, now: u32, out: &mut Vec<u8>) -> Http2Event {
        if self.take_waiting() {
            return Http2Event::Request;
        }
        match self.read_frames(buffer, now, out) {
            Ok(event) => event,
            Err(code) => self.close(code, out),
        }
    }

    fn read_frames(
        &mut self,
        buffer: &mut BytesMut,
        now: u32,
        out: &mut Vec<u8>,
    ) -> Result<Http2Event, ErrorCode> {
        if !self.has_preface {
            let length = buffer.len().min(frame::PREFACE.len());
            if buffer[..length] != frame::PREFACE[..length] {
                return Err(ErrorCode::Protocol);
            }
            if length < frame::PREFACE.len() {
                return Ok(Http2Event::NeedBytes);
            }
            buffer.advance(length);
            self.has_preface = true;
        }
        while let Some(head) = FrameHead::read(buffer) {
            if head.length > HTTP2_FRAME_BYTES_MAX {
                return Err(ErrorCode::FrameSize);
            }
            let end = HTTP2_FRAME_HEAD_BYTES + head.length;
            let Some(payload) = buffer.get(HTTP2_FRAME_HEAD_BYTES..end) else { break };
            let event = self.frame(head, payload, now, out)?;
            self.frames_read += 1;
            buffer.advance(end);
            if let Some(event) = event {
                return Ok(event);
            }
            if out.len() >= BATCH_BYTES_MAX {
                break;
            }
        }
        Ok(Http2Event::NeedBytes)
    }

    fn frame(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        now: u32,
        out: &mut Vec<u8>,
    ) -> Result<Option<Http2Event>, ErrorCode> {
        let is_block_end = head.kind == frame::CONTINUATION
            && self.block.as_ref().is_some_and(|block| block.stream == head.stream);
        if self.block.is_some() != is_block_end || !self.has_settings && head.kind != frame::SETTINGS {
            return Err(ErrorCode::Protocol);
        }
        if !head.is_on_its_stream() {
            return Err(ErrorCode::Protocol);
        }
        self.has_settings = true;
        match head.kind {
            frame::HEADERS => return self.headers(head, payload, now, out),
            frame::DATA => return self.data(head, payload, out),
            frame::CONTINUATION => return self.continuation(head, payload, now, out),
            frame::WINDOW_UPDATE => self.streams.window_update(head.stream, payload)?,
            frame::RST_STREAM => self.streams.reset_by_peer(head.stream, payload)?,
            frame::SETTINGS => self.streams.settings(head.flags, payload, out)?,
            frame::PING => self.streams.ping(head.flags, payload, out)?,
            // Priorities are deprecated and ignored (RFC 9113 5.3.2).
            frame::PRIORITY if payload.len() != 5 => return Err(ErrorCode::FrameSize),
            frame::GOAWAY if payload.len() < 8 => return Err(ErrorCode::FrameSize),
            frame::PUSH_PROMISE => return Err(ErrorCode::Protocol),
            _ => self.streams.misuse.idle_frame()?,
        }
        Ok(None)
    }

    fn headers(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        now: u32,
        out: &mut Vec<u8>,
    ) -> Result<Option<Http2Event>, ErrorCode> {
        let mut fragment = frame::unpadded(head.flags, payload)?;
        if head.flags & frame::HAS_PRIORITY != 0 {
            fragment = fragment.get(5..).ok_or(ErrorCode::FrameSize)?;
        }
        let ends_stream = head.flags & frame::END_STREAM != 0;
        if head.flags & frame::END_HEADERS != 0 {
            return self.field_block(head.stream, ends_stream, fragment, now, out);
        }
        self.state_limit.check(&self.state(), fragment.len())?;
        self.block = Some(FieldBlock::new(head.stream, ends_stream, self.limits.head_bytes_max, fragment));
        Ok(None)
    }

    fn continuation(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        now: u32,
        out: &mut Vec<u8>,
    ) -> Result<Option<Http2Event>, ErrorCode> {
        self.state_limit.check(&self.state(), payload.len())?;
        let Some(block) = &mut self.block else { return Err(ErrorCode::Protocol) };
        block.push(payload)?;
        if head.flags & frame::END_HEADERS == 0 {
            return Ok(None);
        }
        match self.block.take() {
            Some(block) => self.field_block(block.stream, block.ends_stream, &block.bytes, now, out),
            None => Ok(None),
        }
    }

    /// Handles a whole header block: it opens a stream, or ends a body.
    fn field_block(
        &mut self,
        id: u32,
        ends_stream: bool,
        block: &[u8],
        now: u32,
        out: &mut Vec<u8>,
    ) -> Result<Option<Http2Event>, ErrorCode> {
        if id.is_multiple_of(2) {
            return Err(ErrorCode::Protocol);
        }
        if self.streams.table.find(id).is_some() {
            return self.trailers(id, ends_stream, block, out);
        }
        let is_ignored = self.streams.last_stream.is_some_and(|last| id > last);
        if is_ignored || self.streams.table.is_ended(id) {
            // Decoded to keep the table in step.
            self.heads.read_trailers(block)?;
            self.streams.misuse.idle_frame()?;
            return Ok(None);
        }
        self.streams.open(id)?;
        let decoded = self.heads.read(block)?;
        let DecodedBlock::Valid(head) = decoded else {
            self.streams.reset(id, ErrorCode::Protocol, out)?;
            return Ok(None);
        };
        let is_full = self.streams.table.len() >= self.limits.streams_max;
        if is_full || !self.state_limit.has_space_for_stream(&self.state(), head.memory()) {
            self.streams.reset(id, ErrorCode::RefusedStream, out)?;
            return Ok(None);
        }
        let window = self.streams.sender.settings.initial_window;
        if head.error.is_some() || head.is_connect() {
            let event = head.error.map_or(Http2Event::Request, Http2Event::Refused);
            self.current = Some(CurrentRequest::bodiless(id, head, window, !ends_stream));
            return Ok(Some(event));
        }
        if !ends_stream {
            if self.judges_heads {
                self.current = Some(CurrentRequest::bodiless(id, head, window, true));
                return Ok(Some(Http2Event::Head));
            }
            return self.receive_body(id, head, now, out).map(|()| None);
        }
        if head.content_length.is_some_and(|length| length > 0) {
            self.streams.reset(id, ErrorCode::Protocol, out)?;
            return Ok(None);
        }
        let state = StreamState::Waiting { head, body: RequestBody::default() };
        Ok(self.complete(OpenStream { id, window, since: now, is_stalled: false, state }))
    }

    /// After [`Http2Event::Head`]: waits for the body.
    pub fn accept(&mut self, now: u32, out: &mut Vec<u8>) -> Http2Event {
        let Some(CurrentRequest { id, head, .. }) = self.current.take() else { return Http2Event::NeedBytes };
        match self.receive_body(id, head, now, out) {
            Ok(()) => Http2Event::NeedBytes,
            Err(code) => self.close(code, out),
        }
    }

    /// A request with a body: waits for it.
    fn receive_body(
        &mut self,
        id: u32,
        head: Rc<RequestHead>,
        now: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorCode> {
        if !self.state_limit.has_space_for_head(&self.state(), head.memory()) {
            return self.streams.reset(id, ErrorCode::RefusedStream, out);
        }
        if head.expects_continue {
            self.streams.sender.append_continue(id, out);
        }
        let body = RequestBody::new(std::mem::take(&mut self.spare_body));
        let state = StreamState::Receiving { head, body };
        let window = self.streams.sender.settings.initial_window;
        self.streams.table.insert(OpenStream { id, window, since: now, is_stalled: false, state });
        Ok(())
    }

    fn trailers(
        &mut self,
        id: u32,
        ends_stream: bool,
        block: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Http2Event>, ErrorCode> {
        let trailers = self.heads.read_trailers(block)?;
        let Some(stream) = self.streams.table.find(id) else { return Ok(None) };
        match &stream.state {
            StreamState::Receiving { .. } => {}
            StreamState::Sending { is_half_open: true, .. } => return Ok(None),
            _ => return Err(ErrorCode::StreamClosed),
        }
        match trailers {
            Some(trailers) if ends_stream => match trailers.error {
                Some(error) => Ok(self.refuse(id, error, false)),
                None => self.end_body(id, out),
            },
            _ => {
                self.streams.reset(id, ErrorCode::Protocol, out)?;
                Ok(None)
            }
        }
    }

    fn data(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Http2Event>, ErrorCode> {
        let (id, ends_stream) = (head.stream, head.flags & frame::END_STREAM != 0);
        let data = frame::unpadded(head.flags, payload)?;
        self.streams.receive_window.take(payload.len())?;
        if self.streams.is_idle(id) {
            return Err(ErrorCode::Protocol);
        }
        if data.is_empty() && !ends_stream {
            self.streams.misuse.idle_frame()?;
        } else {
            self.streams.misuse.progress();
        }
        let Some(OpenStream { state: StreamState::Receiving { head, body, .. }, .. }) =
            self.streams.table.find(id)
        else {
            self.streams.receive_window.free(payload.len());
            self.streams.unexpected_data(id, out)?;
            return Ok(None);
        };
        let length = body.bytes.len() + data.len();
        let is_beyond_length = head.content_length.is_some_and(|sent| length as u64 > sent);
        if length > BODY_BYTES_MAX || is_beyond_length {
            self.streams.receive_window.free(payload.len());
            if length > BODY_BYTES_MAX {
                return Ok(self.refuse(id, ParseError::BodyTooLarge, !ends_stream));
            }
            self.streams.reset(id, ErrorCode::Protocol, out)?;
            return Ok(None);
        }
        let padding = payload.len() - data.len();
        self.streams.receive_window.grow(body, data, padding);
        if ends_stream {
            return self.end_body(id, out);
        }
        if padding > 0 {
            frame::append_window(id, padding as u32, out);
        }
        Ok(None)
    }

    /// The last byte of a body has arrived.
    fn end_body(&mut self, id: u32, out: &mut Vec<u8>) -> Result<Option<Http2Event>, ErrorCode> {
        let Some(stream) = self.streams.table.remove(id) else { return Ok(None) };
        let OpenStream { window, since, state, .. } = stream;
        let StreamState::Receiving { head, body, .. } = state else { return Ok(None) };
        if head.content_length.is_some_and(|sent| sent != body.bytes.len() as u64) {
            self.streams.receive_window.free_body(&body);
            self.streams.reset(id, ErrorCode::Protocol, out)?;
            return Ok(None);
        }
        let state = StreamState::Waiting { head, body };
        Ok(self.complete(OpenStream { id, window, since, is_stalled: false, state }))
    }

    /// A request is complete: it is answered now, or waits until the peer has taken other responses.
    fn complete(&mut self, stream: OpenStream) -> Option<Http2Event> {
        if self.streams.is_stalled() {
            self.streams.table.insert(stream);
            return None;
        }
        self.set_current(stream).then_some(Http2Event::Request)
    }

    fn set_current(&mut self, stream: OpenStream) -> bool {
        let OpenStream { id, window, state, .. } = stream;
        let StreamState::Waiting { head, body } = state else { return false };
        self.current = Some(CurrentRequest { id, head, body, window, is_half_open: false });
        true
    }

    fn take_waiting(&mut self) -> bool {
        let stream = self.streams.waiting().and_then(|id| self.streams.table.remove(id));
        stream.is_some_and(|stream| self.set_current(stream))
    }

    /// Answers a request with an error before it is complete.
    fn refuse(&mut self, id: u32, error: ParseError, is_half_open: bool) -> Option<Http2Event> {
        let OpenStream { window, state, .. } = self.streams.table.remove(id)?;
        let StreamState::Receiving { head, body, .. } = state else { return None };
        self.current = Some(CurrentRequest { id, head, body, window, is_half_open });
        Some(Http2Event::Refused(error))
    }

    fn state(&self) -> StateParts<'_> {
        StateParts { heads: &self.heads, block: self.block.as_ref(), table: &self.streams.table }
    }

    /// The largest read buffer, bytes, beside what the connection has in memory.
    pub fn buffer_bytes_max(&self) -> usize {
        self.state_limit.buffer_bytes_max(&self.state())
    }

    /// Memory of requests and responses, bytes.
    pub fn memory(&self) -> usize {
        self.streams.body_memory() + self.spare_body.capacity() + self.state().request_memory()
    }

    /// Releases the buffer of the last body.
    pub fn release_buffers(&mut self) {
        self.spare_body = Vec::new();
    }

    /// The request to answer.
    pub fn request(&mut self) -> Option<Request<'_>> {
        self.current.as_mut().map(CurrentRequest::request)
    }

    /// The context and the fields of the request to refuse.
    pub fn refused(&self) -> Option<(ResponseContext, Fields<'_>)> {
        self.current.as_ref().map(CurrentRequest::refused)
    }

    /// Frames the response to the current request. Returns its stream.
    pub fn respond(&mut self, response: WrittenResponse<'_>, now: u32) -> u32 {
        let Some((id, window, is_half_open)) = self.take_current() else { return 0 };
        self.streams.respond(id, window, is_half_open, response, now);
        id
    }

    fn take_current(&mut self) -> Option<(u32, i64, bool)> {
        let CurrentRequest { id, mut body, window, is_half_open, .. } = self.current.take()?;
        self.streams.receive_window.free_body(&body);
        if body.bytes.capacity() <= KEPT_BODY_BYTES_MAX {
            body.bytes.clear();
            self.spare_body = body.bytes;
        }
        Some((id, window, is_half_open))
    }

    /// Instead of [`respond`](Self::respond), for a whole request: its response follows later, by
    /// [`Http2Streams::respond_parked`]. Returns its stream.
    pub fn park(&mut self, now: u32) -> u32 {
        let Some((id, window, _)) = self.take_current() else { return 0 };
        let state = StreamState::Parked;
        self.streams.table.insert(OpenStream { id, window, since: now, is_stalled: false, state });
        id
    }

    /// Handles one stream that has waited for too long. Call again until the result is `NeedBytes`.
    pub fn expire(&mut self, now: u32, limits: WaitLimits, out: &mut Vec<u8>) -> Http2Event {
        let event = match self.streams.expired(now, limits) {
            None => return Http2Event::NeedBytes,
            Some(ExpiredStream::Body(id)) => self.refuse(id, ParseError::Timeout, true),
            Some(ExpiredStream::Response(id)) => {
                if let Err(code) = self.streams.reset(id, ErrorCode::Cancel, out) {
                    return self.close(code, out);
                }
                None
            }
        };
        event.unwrap_or_else(|| self.expire(now, limits, out))
    }

    /// What the peer has begun and not completed.
    pub fn incomplete(&self, buffer: &[u8]) -> Incomplete {
        let is_data = FrameHead::read(buffer).is_some_and(|head| head.kind == frame::DATA);
        if self.block.is_some() || !self.has_settings || !buffer.is_empty() && !is_data {
            Incomplete::Head
        } else if buffer.is_empty() {
            Incomplete::Nothing
        } else {
            Incomplete::Data
        }
    }

    /// How many frames were complete.
    pub fn frames_read(&self) -> u64 {
        self.frames_read
    }

    /// Announces the end of the connection: requests so far are answered, later ones ignored, so that the
    /// peer sends them elsewhere (RFC 9113 6.8).
    pub fn shut_down(&mut self, out: &mut Vec<u8>) {
        if self.streams.last_stream.is_none() {
            self.streams.go_away(ErrorCode::NoError, out);
        }
    }

    /// Whether the end was announced.
    pub fn is_shutting_down(&self) -> bool {
        self.streams.last_stream.is_some()
    }

    /// Whether the end was announced and every request so far is answered.
    pub fn is_finished(&self) -> bool {
        self.streams.last_stream.is_some() && self.streams.table.is_empty()
    }

    /// Appends GOAWAY; the owner closes the connection.
    fn close(&mut self, code: ErrorCode, out: &mut Vec<u8>) -> Http2Event {
        self.streams.go_away(code, out);
        Http2Event::Close
    }

    /// The events since the last call.
    pub fn take_counts(&mut self) -> Http2Counts {
        std::mem::take(&mut self.streams.counts)
    }
}
