//! The sending side of a connection: frames responses within the peer's windows (RFC 9113 5.2, 6.9).
use crate::http::h2::event::WrittenResponse;
use crate::http::h2::frame::{self, ErrorCode, FrameHead};
use crate::http::h2::outgoing::Outgoing;
use crate::http::h2::peer_settings::{PeerSettings, WINDOW_MAX};
use crate::http::h2::receive_window::INITIAL_WINDOW;
use crate::http::hpack::encoder;
use crate::http::response::HTTP2_FRAME_HEAD_BYTES;

/// The peer's settings and the window of the connection.
#[derive(Debug)]
pub struct Sender {
    pub settings: PeerSettings,
    window: i64,
}

/// The result of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it.
    All,
    /// A part that restarts the timeout of the stream.
    Part,
    /// A smaller part, or nothing.
    Little,
}

impl Default for Sender {
    fn default() -> Self {
        Self { settings: PeerSettings::default(), window: i64::from(INITIAL_WINDOW) }
    }
}

impl Sender {
    /// Widens the window of the connection.
    ///
    /// # Errors
    /// It would exceed 31 bits.
    pub fn widen(&mut self, increment: i64) -> Result<(), ErrorCode> {
        self.window += increment;
        if self.window > WINDOW_MAX { Err(ErrorCode::FlowControl) } else { Ok(()) }
    }

    /// What may be sent of a stream with this window.
    pub fn allowed(&self, stream_window: i64) -> usize {
        usize::try_from(self.window.min(stream_window)).unwrap_or(0)
    }

    /// Appends `HEADERS` with status 100.
    pub fn append_continue(&mut self, stream: u32, out: &mut Vec<u8>) {
        let mut block = Vec::new();
        if std::mem::take(&mut self.settings.updates_table) {
            block.push(encoder::SIZE_UPDATE_0);
        }
        encoder::status(100, &mut block);
        frame::append(frame::HEADERS, frame::END_HEADERS, stream, &block, out);
    }

    /// Frames a response in place. Returns the part of the body that the windows do not allow yet, and for an
    /// event stream, which stays open, always something.
    pub fn frame_response(
        &mut self,
        stream: u32,
        window: &mut i64,
        response: &mut WrittenResponse<'_>,
    ) -> Option<Outgoing> {
        if std::mem::take(&mut self.settings.updates_table) {
            response.bytes.insert(response.start + HTTP2_FRAME_HEAD_BYTES, encoder::SIZE_UPDATE_0);
            response.body_start += 1;
        }
        let block_end = response.body_start - HTTP2_FRAME_HEAD_BYTES;
        let body_bytes = response.bytes.len() - response.body_start;
        let is_empty = body_bytes == 0 && response.tail.is_none();
        let ends_stream = if is_empty && response.is_last { frame::END_STREAM } else { 0 };
        let fits = response.tail.is_none()
            && body_bytes <= self.allowed(*window)
            && body_bytes <= self.settings.frame_bytes_max;
        if is_empty {
            response.bytes.truncate(block_end);
            self.frame_block(stream, ends_stream, response.start, response.bytes);
            return (!response.is_last).then(Outgoing::default);
        }
        let block_bytes = block_end - response.start - HTTP2_FRAME_HEAD_BYTES;
        if !fits || !response.is_last || block_bytes > self.settings.frame_bytes_max {
            let body = response.bytes.split_off(response.body_start);
            response.bytes.truncate(block_end);
            self.frame_block(stream, 0, response.start, response.bytes);
            return Some(Outgoing::new(body, response.tail.take(), response.is_last));
        }
        let (kind, flags) = (frame::HEADERS, frame::END_HEADERS);
        FrameHead { length: block_bytes, kind, flags, stream }.write(&mut response.bytes[response.start..]);
        let (kind, flags) = (frame::DATA, frame::END_STREAM);
        FrameHead { length: body_bytes, kind, flags, stream }.write(&mut response.bytes[block_end..]);
        self.window -= body_bytes as i64;
        *window -= body_bytes as i64;
        None
    }

    /// Frames the block at the end of `bytes`, in several frames if it is too large for one.
    fn frame_block(&self, stream: u32, flags: u8, start: usize, bytes: &mut Vec<u8>) {
        let length = bytes.len() - start - HTTP2_FRAME_HEAD_BYTES;
        let length_max = self.settings.frame_bytes_max;
        if length <= length_max {
            let flags = flags | frame::END_HEADERS;
            return FrameHead { length, kind: frame::HEADERS, flags, stream }.write(&mut bytes[start..]);
        }
        let block = bytes.split_off(start + HTTP2_FRAME_HEAD_BYTES);
        bytes.truncate(start);
        let mut parts = block.chunks(length_max).peekable();
        let (mut kind, mut flags) = (frame::HEADERS, flags);
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            frame::append(kind, flags | if is_last { frame::END_HEADERS } else { 0 }, stream, part, bytes);
            (kind, flags) = (frame::CONTINUATION, 0);
        }
    }

    /// Sends one DATA frame of what is left.
    pub fn send(
        &mut self,
        stream: u32,
        window: &mut i64,
        outgoing: &mut Outgoing,
        out: &mut Vec<u8>,
    ) -> Sent {
        let left = outgoing.left();
        let length = left.min(self.allowed(*window)).min(self.settings.frame_bytes_max);
        let is_all = length == left;
        let ends_stream = is_all && outgoing.is_last;
        if outgoing.is_ended || length == 0 && !ends_stream {
            return if is_all { Sent::All } else { Sent::Little };
        }
        outgoing.is_ended = ends_stream;
        let flags = if ends_stream { frame::END_STREAM } else { 0 };
        FrameHead { length, kind: frame::DATA, flags, stream }.append(out);
        let is_part = outgoing.take(length, out);
        self.window -= length as i64;
        *window -= length as i64;
        match (is_all, is_part) {
            (true, _) => Sent::All,
            (false, true) => Sent::Part,
            (false, false) => Sent::Little,
        }
    }
}
