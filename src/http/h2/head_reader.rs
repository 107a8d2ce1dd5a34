//! Decodes header blocks to request heads, with a memo of the blocks that a connection repeats.
//!
//! A block means the same while the dynamic table does not change, so a memo entry is the head for a table
//! generation and the bytes of the block.
use std::rc::Rc;

use crate::http::h2::frame::ErrorCode;
use crate::http::h2::head::{BlockKind, HeadBuilder, RequestHead};
use crate::http::hpack::decoder::{DECODER_BYTES_MAX, HpackDecoder, HpackError};
use crate::limits::{HTTP2_KEPT_BLOCK_BYTES_MAX, HTTP2_KEPT_HEAD_BYTES_MAX, HTTP2_KEPT_HEADS_MAX};

/// The most that a [`HeadReader`] keeps, bytes: see [`HeadReader::memory`].
pub const HEAD_READER_BYTES_MAX: usize = DECODER_BYTES_MAX
    + HTTP2_KEPT_HEADS_MAX * (size_of::<KeptHead>() + HTTP2_KEPT_BLOCK_BYTES_MAX + HTTP2_KEPT_HEAD_BYTES_MAX);

/// The HPACK state of one connection.
#[derive(Debug)]
pub struct HeadReader {
    decoder: HpackDecoder,
    bytes_max: usize,
    kept: Vec<KeptHead>,
    /// The entry to replace next.
    next: usize,
}

#[derive(Debug)]
struct KeptHead {
    generation: u64,
    block: Box<[u8]>,
    head: Rc<RequestHead>,
}

/// A decoded block.
#[derive(Debug)]
pub enum DecodedBlock {
    Valid(Rc<RequestHead>),
    /// RFC 9113 8.1.1: an error of the stream.
    Malformed,
}

impl HeadReader {
    /// `bytes_max`: the largest head, counted as in HTTP/1.1.
    pub fn new(bytes_max: usize) -> Self {
        Self { decoder: HpackDecoder::default(), bytes_max, kept: Vec::new(), next: 0 }
    }

    /// The memory of the decoder and of the heads that are kept, bytes.
    pub fn memory(&self) -> usize {
        let kept = self.kept.iter().map(|kept| kept.block.len() + kept.head.memory());
        self.decoder.memory() + self.kept.capacity() * size_of::<KeptHead>() + kept.sum::<usize>()
    }

    /// Decodes the block of a request.
    ///
    /// # Errors
    /// The block cannot be decoded, or exceeds the limit so far that the rest is not decoded: the connection
    /// closes, because the table is unknown.
    pub fn read(&mut self, block: &[u8]) -> Result<DecodedBlock, ErrorCode> {
        let generation = self.decoder.generation();
        let is_same = |kept: &&KeptHead| kept.generation == generation && *kept.block == *block;
        if let Some(kept) = self.kept.iter().find(is_same) {
            return Ok(DecodedBlock::Valid(kept.head.clone()));
        }
        let Some(head) = self.decode(block, BlockKind::Head)? else { return Ok(DecodedBlock::Malformed) };
        let head = Rc::new(head);
        if self.decoder.generation() == generation {
            self.keep(generation, block, &head);
        }
        Ok(DecodedBlock::Valid(head))
    }

    /// Decodes the block of trailers, or one whose fields are ignored, to keep the table in step.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_trailers(&mut self, block: &[u8]) -> Result<Option<RequestHead>, ErrorCode> {
        self.decode(block, BlockKind::Trailers)
    }

    fn decode(&mut self, block: &[u8], kind: BlockKind) -> Result<Option<RequestHead>, ErrorCode> {
        let mut builder = HeadBuilder::new(kind, self.bytes_max);
        match self.decoder.decode(block, |name, value| builder.add(name, value)) {
            Ok(()) => Ok(builder.finish()),
            Err(HpackError::Malformed) => Err(ErrorCode::Compression),
            Err(HpackError::Stopped) => Err(ErrorCode::EnhanceYourCalm),
        }
    }

    fn keep(&mut self, generation: u64, block: &[u8], head: &Rc<RequestHead>) {
        if block.len() > HTTP2_KEPT_BLOCK_BYTES_MAX || head.memory() > HTTP2_KEPT_HEAD_BYTES_MAX {
            return;
        }
        let entry = KeptHead { generation, block: block.into(), head: head.clone() };
        if self.kept.len() < HTTP2_KEPT_HEADS_MAX {
            self.kept.push(entry);
        } else {
            self.kept[self.next] = entry;
            self.next = (self.next + 1) % HTTP2_KEPT_HEADS_MAX;
        }
    }
}
