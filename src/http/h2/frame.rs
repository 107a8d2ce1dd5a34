//! Frames (RFC 9113 4, 6) and error codes (RFC 9113 7).
use crate::http::response::HTTP2_FRAME_HEAD_BYTES;
use crate::limits::HTTP2_FRAME_BYTES_MAX;

/// What a client sends first (RFC 9113 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const HAS_PRIORITY: u8 = 0x20;

/// Stream identifiers and window increments have 31 bits.
const BITS_31: u32 = 0x7fff_ffff;

/// The first nine bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl FrameHead {
    /// `None`: fewer than nine bytes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let &[high, middle, low, kind, flags, ..] = bytes else { return None };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        Some(Self { length, kind, flags, stream: number(bytes.get(5..9)?) & BITS_31 })
    }

    /// Whether a frame of this type belongs to a stream, or to the connection, as it says (RFC 9113 6).
    pub fn is_on_its_stream(self) -> bool {
        match self.kind {
            DATA | HEADERS | PRIORITY | RST_STREAM | CONTINUATION => self.stream != 0,
            SETTINGS | PING | GOAWAY => self.stream == 0,
            _ => true,
        }
    }

    /// Writes to the first nine bytes.
    pub fn write(self, bytes: &mut [u8]) {
        let length = self.length as u32;
        bytes[..3].copy_from_slice(&length.to_be_bytes()[1..]);
        bytes[3] = self.kind;
        bytes[4] = self.flags;
        bytes[5..HTTP2_FRAME_HEAD_BYTES].copy_from_slice(&self.stream.to_be_bytes());
    }

    pub fn append(self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HTTP2_FRAME_HEAD_BYTES]);
        self.write(&mut out[start..]);
    }
}

/// The first four bytes as a number; 0 if there are fewer.
pub fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// The increment of a WINDOW_UPDATE frame.
pub fn increment(payload: &[u8]) -> u32 {
    number(payload) & BITS_31
}

/// How many bytes the frame at the start of the buffer lacks; 0 if it is complete or has not begun.
pub fn missing_bytes(buffer: &[u8]) -> usize {
    let length = FrameHead::read(buffer).map_or(0, |head| head.length.min(HTTP2_FRAME_BYTES_MAX));
    (HTTP2_FRAME_HEAD_BYTES + length).saturating_sub(buffer.len())
}

/// Appends a frame with a payload.
pub fn append(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    FrameHead { length: payload.len(), kind, flags, stream }.append(out);
    out.extend_from_slice(payload);
}

/// Appends RST_STREAM.
pub fn append_reset(stream: u32, code: ErrorCode, out: &mut Vec<u8>) {
    append(RST_STREAM, 0, stream, &(code as u32).to_be_bytes(), out);
}

/// Appends WINDOW_UPDATE; stream 0 is the connection.
pub fn append_window(stream: u32, increment: u32, out: &mut Vec<u8>) {
    append(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes(), out);
}

/// The payload without its padding (RFC 9113 6.1, 6.2).
pub fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8], ErrorCode> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(ErrorCode::FrameSize)?;
    let length = rest.len().checked_sub(usize::from(*padding)).ok_or(ErrorCode::Protocol)?;
    Ok(&rest[..length])
}

/// Why a stream or a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    NoError = 0,
    Protocol = 1,
    Internal = 2,
    FlowControl = 3,
    StreamClosed = 5,
    FrameSize = 6,
    RefusedStream = 7,
    Cancel = 8,
    Compression = 9,
    EnhanceYourCalm = 11,
}

impl ErrorCode {
    /// All variants that a GOAWAY frame of this server may have.
    pub const GOAWAY: [Self; 8] = [
        Self::NoError,
        Self::Protocol,
        Self::Internal,
        Self::FlowControl,
        Self::StreamClosed,
        Self::FrameSize,
        Self::Compression,
        Self::EnhanceYourCalm,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoError => "no_error",
            Self::Protocol => "protocol_error",
            Self::Internal => "internal_error",
            Self::FlowControl => "flow_control_error",
            Self::StreamClosed => "stream_closed",
            Self::FrameSize => "frame_size_error",
            Self::RefusedStream => "refused_stream",
            Self::Cancel => "cancel",
            Self::Compression => "compression_error",
            Self::EnhanceYourCalm => "enhance_your_calm",
        }
    }
}
