//! The memory of a connection besides bodies: its read buffer, header blocks, heads, and tables.
use crate::http::h2::event::Http2Limits;
use crate::http::h2::field_block::FieldBlock;
use crate::http::h2::frame::ErrorCode;
use crate::http::h2::head_reader::{HEAD_READER_BYTES_MAX, HeadReader};
use crate::http::h2::stream_table::{EVENT_STREAM_BYTES, RECORD_BYTES, RECORDS_STEP, StreamTable};
use crate::http::response::HTTP2_FRAME_HEAD_BYTES;
use crate::limits::{
    HEAD_BYTES_MAX, HTTP2_FRAME_BYTES_MAX, HTTP2_HEADS_BYTES_MAX, HTTP2_STATE_BYTES_MAX, HTTP2_STREAMS_MAX,
    READ_BYTES_MIN,
};

/// A read buffer for one frame, bytes: always available.
const BUFFER_BYTES_MIN: usize = HTTP2_FRAME_HEAD_BYTES + HTTP2_FRAME_BYTES_MAX + READ_BYTES_MIN;

/// The connection itself, bytes.
const CONNECTION_BYTES: usize = 2048;

/// The limits of a connection's state.
#[derive(Clone, Copy, Debug)]
pub struct StateLimit {
    bytes_max: usize,
    heads_bytes_max: usize,
}

/// What a connection has besides its read buffer and bodies.
pub struct StateParts<'a> {
    pub heads: &'a HeadReader,
    pub block: Option<&'a FieldBlock>,
    pub table: &'a StreamTable,
}

impl StateLimit {
    /// Streams and heads beyond the default settings add to the limit.
    pub fn new(limits: Http2Limits) -> Self {
        let streams = limits.streams_max.saturating_sub(HTTP2_STREAMS_MAX);
        let head_bytes = limits.head_bytes_max.saturating_sub(HEAD_BYTES_MAX);
        Self {
            bytes_max: HTTP2_STATE_BYTES_MAX + streams * (RECORD_BYTES + EVENT_STREAM_BYTES) + 2 * head_bytes,
            heads_bytes_max: HTTP2_HEADS_BYTES_MAX.max(limits.head_bytes_max),
        }
    }

    /// Checks that there is space for this many more bytes of a header block.
    ///
    /// # Errors
    /// There is not.
    pub fn check(&self, parts: &StateParts<'_>, bytes: usize) -> Result<(), ErrorCode> {
        if self.has_space(parts, bytes) { Ok(()) } else { Err(ErrorCode::EnhanceYourCalm) }
    }

    /// Whether there is space for this many more bytes, beside a read buffer.
    fn has_space(&self, parts: &StateParts<'_>, bytes: usize) -> bool {
        let used = CONNECTION_BYTES + parts.block_memory() + parts.table.memory() + HEAD_READER_BYTES_MAX;
        used + bytes + BUFFER_BYTES_MIN <= self.bytes_max
    }

    /// Whether there is space for another stream with a head of this size.
    pub fn has_space_for_stream(&self, parts: &StateParts<'_>, head_bytes: usize) -> bool {
        let record_bytes = RECORDS_STEP * RECORD_BYTES + EVENT_STREAM_BYTES;
        parts.table.is_empty() || self.has_space(parts, head_bytes + record_bytes)
    }

    /// Whether there is space for a head that waits for its body.
    pub fn has_space_for_head(&self, parts: &StateParts<'_>, bytes: usize) -> bool {
        parts.table.head_bytes() + bytes <= self.heads_bytes_max
    }

    /// The largest read buffer, bytes.
    pub fn buffer_bytes_max(&self, parts: &StateParts<'_>) -> usize {
        self.bytes_max.saturating_sub(parts.memory()).max(BUFFER_BYTES_MIN)
    }
}

impl StateParts<'_> {
    /// What an idle connection does not have, bytes.
    pub fn request_memory(&self) -> usize {
        self.block_memory() + self.table.memory()
    }

    fn block_memory(&self) -> usize {
        self.block.map_or(0, |block| block.bytes.capacity())
    }

    /// Their memory, bytes.
    pub fn memory(&self) -> usize {
        CONNECTION_BYTES + self.heads.memory() + self.block_memory() + self.table.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_read_buffer_leaves_space_for_what_the_connection_has() {
        let limits = Http2Limits { head_bytes_max: HEAD_BYTES_MAX, streams_max: HTTP2_STREAMS_MAX };
        let (limit, heads, table) =
            (StateLimit::new(limits), HeadReader::new(HEAD_BYTES_MAX), StreamTable::default());
        let idle = StateParts { heads: &heads, block: None, table: &table };
        assert_eq!(limit.buffer_bytes_max(&idle), HTTP2_STATE_BYTES_MAX - CONNECTION_BYTES - heads.memory());
        let block = FieldBlock::new(1, true, HEAD_BYTES_MAX, &[0; 1000]);
        let receiving = StateParts { block: Some(&block), ..idle };
        assert_eq!(receiving.memory(), idle.memory() + 1000);
        assert_eq!(limit.buffer_bytes_max(&receiving), limit.buffer_bytes_max(&idle) - 1000);
    }
}
