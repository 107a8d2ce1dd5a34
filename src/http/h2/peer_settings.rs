//! The peer's settings (RFC 9113 6.5.2).
use crate::http::h2::frame;
use crate::http::h2::frame::{ErrorCode, number};
use crate::http::h2::receive_window::INITIAL_WINDOW;
use crate::limits::{HTTP2_FRAME_BYTES_MAX, HTTP2_SENT_FRAME_BYTES_MAX, HTTP2_STREAM_WINDOW};

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Windows have 31 bits.
pub const WINDOW_MAX: i64 = 0x7fff_ffff;

/// Appends this side's SETTINGS frame.
pub fn append_own(streams_max: u32, head_bytes_max: u32, out: &mut Vec<u8>) {
    let settings = [
        (MAX_CONCURRENT_STREAMS, streams_max),
        (INITIAL_WINDOW_SIZE, HTTP2_STREAM_WINDOW),
        (MAX_HEADER_LIST_SIZE, head_bytes_max),
    ];
    let mut payload = Vec::with_capacity(settings.len() * 6);
    for (name, value) in settings {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    frame::append(frame::SETTINGS, 0, 0, &payload, out);
}

#[derive(Debug)]
pub struct PeerSettings {
    pub initial_window: i64,
    /// The largest frame that is sent, bytes.
    pub frame_bytes_max: usize,
    /// The peer has named a table size, so the next block starts with a size update.
    pub updates_table: bool,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            initial_window: i64::from(INITIAL_WINDOW),
            frame_bytes_max: HTTP2_FRAME_BYTES_MAX,
            updates_table: false,
        }
    }
}

impl PeerSettings {
    /// Applies the payload of a SETTINGS frame, in order. Unknown settings are ignored.
    ///
    /// # Errors
    /// A value is not valid.
    pub fn apply(&mut self, payload: &[u8]) -> Result<(), ErrorCode> {
        if !payload.len().is_multiple_of(6) {
            return Err(ErrorCode::FrameSize);
        }
        for setting in payload.chunks_exact(6) {
            let (name, value) = (u16::from_be_bytes([setting[0], setting[1]]), number(&setting[2..]));
            match name {
                HEADER_TABLE_SIZE => self.updates_table = true,
                ENABLE_PUSH if value > 1 => return Err(ErrorCode::Protocol),
                INITIAL_WINDOW_SIZE if i64::from(value) > WINDOW_MAX => return Err(ErrorCode::FlowControl),
                INITIAL_WINDOW_SIZE => self.initial_window = i64::from(value),
                MAX_FRAME_SIZE => {
                    let size = value as usize;
                    if !(HTTP2_FRAME_BYTES_MAX..1 << 24).contains(&size) {
                        return Err(ErrorCode::Protocol);
                    }
                    self.frame_bytes_max = size.min(HTTP2_SENT_FRAME_BYTES_MAX);
                }
                _ => {}
            }
        }
        Ok(())
    }
}
