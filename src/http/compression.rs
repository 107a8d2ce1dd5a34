//! gzip for response bodies that are rendered per request.
//!
//! Bodies that depend only on the document are compressed when the document changes, not here. Where only the
//! start of a body is new, the rest is compressed once ([`CompressedTail`]). Why gzip and zlib-rs, and not
//! zstd, brotli or libdeflate: bench/README.md.
use crc32fast::hash as crc;
use flate2::{Compress, Compression, FlushCompress, Status};

use crate::http::crc::CrcSuffix;
use crate::http::deflate;
use crate::http::deflate::BlockEnd;

/// Whether `Accept-Encoding` names gzip with a quality other than 0 (RFC 9110 12.5.3). `*` does not count:
/// the Python proxy compresses only if the field contains `gzip`.
pub fn accepts_gzip(accept_encoding: Option<&[u8]>) -> bool {
    accepts(accept_encoding, |coding| {
        coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip")
    })
}

/// Whether `Accept-Encoding` names `dcz`, zstd with a dictionary (RFC 9842 6.2).
pub fn accepts_dcz(accept_encoding: Option<&[u8]>) -> bool {
    accepts(accept_encoding, |coding| coding.eq_ignore_ascii_case(b"dcz"))
}

#[inline]
fn accepts(accept_encoding: Option<&[u8]>, is_coding: impl Fn(&[u8]) -> bool) -> bool {
    let mut accepts = false;
    for item in accept_encoding.unwrap_or_default().split(|byte| *byte == b',') {
        let mut parts = item.split(|byte| *byte == b';');
        let coding = parts.next().unwrap_or_default().trim_ascii();
        if is_coding(coding) {
            accepts = parts.all(|part| !is_zero_quality(part));
        }
    }
    accepts
}

/// Whether this is `q=0`, `q=0.0` and so on, which means "not acceptable".
fn is_zero_quality(parameter: &[u8]) -> bool {
    let mut sides = parameter.splitn(2, |byte| *byte == b'=');
    let (Some(name), Some(value)) = (sides.next(), sides.next()) else { return false };
    name.trim_ascii().eq_ignore_ascii_case(b"q")
        && !value.trim_ascii().is_empty()
        && value.trim_ascii().iter().all(|byte| matches!(byte, b'0' | b'.'))
}

/// A gzip compressor. Its state is reused for every body.
#[derive(Debug)]
pub struct Gzip {
    deflate: Compress,
}

impl Default for Gzip {
    fn default() -> Self {
        Self { deflate: Compress::new(Compression::fast(), false) }
    }
}

/// The checksum and the length at the end of a member, bytes.
const MEMBER_TRAILER_BYTES: usize = 8;
/// A member header without name and time, of an unknown system (RFC 1952 2.3).
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// The end of bodies that differ only in their start: the last blocks of a deflate stream, ready to be
/// appended to blocks that end at a byte.
#[derive(Debug)]
pub struct CompressedTail {
    blocks: Box<[u8]>,
    plain_bytes: usize,
    crc: CrcSuffix,
}

impl CompressedTail {
    /// Compresses `plain` well (level 6), with a compressor that is freed afterwards. `None` if it fails.
    pub fn new(plain: &[u8]) -> Option<Self> {
        let mut deflate = Compress::new(Compression::default(), false);
        let mut blocks = Vec::with_capacity(worst_case(plain));
        let result = deflate.compress_vec(plain, &mut blocks, FlushCompress::Finish);
        let is_whole = matches!(result, Ok(Status::StreamEnd));
        let crc = CrcSuffix::new(crc(plain), plain.len());
        is_whole.then(|| Self { blocks: blocks.as_slice().into(), plain_bytes: plain.len(), crc })
    }

    /// The length of the text that was compressed.
    pub fn plain_bytes(&self) -> usize {
        self.plain_bytes
    }

    /// The compressed text. In a gzip member it follows the start that [`Gzip::compress_start`] makes.
    pub fn blocks(&self) -> &[u8] {
        &self.blocks
    }

    /// The end of the member whose text is `start` followed by the tail's.
    pub fn trailer(&self, start: &[u8]) -> [u8; MEMBER_TRAILER_BYTES] {
        member_trailer(self.crc.after(crc(start)), start.len() + self.plain_bytes)
    }

    /// The tail's text as a gzip member.
    pub fn into_member(self) -> Box<[u8]> {
        [&GZIP_HEAD, &*self.blocks, &self.trailer(b"")].concat().into()
    }

    /// The memory that it takes besides its own size.
    pub fn heap_bytes(&self) -> usize {
        self.blocks.len()
    }
}

/// Space for what deflate makes of `plain` at worst: fixed Huffman codes of nine bits for each byte, and the
/// end of the block.
fn worst_case(plain: &[u8]) -> usize {
    plain.len() + plain.len() / 8 + 64
}

impl Gzip {
    /// Appends the start of a gzip member, with the blocks of `text`. The blocks and the trailer of a
    /// [`CompressedTail`] complete it. If the compressor fails, appends nothing and returns false.
    pub fn compress_start(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.reserve(GZIP_HEAD.len() + worst_case(text));
        out.extend_from_slice(&GZIP_HEAD);
        let is_compressed = deflate::encode(text, BlockEnd::AtByte, out) || self.compress_blocks(text, out);
        if !is_compressed {
            out.truncate(start);
        }
        is_compressed
    }

    /// Appends `text` as a whole deflate stream. False if the compressor fails.
    fn compress_whole(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
        self.deflate.reset();
        out.reserve(worst_case(text));
        matches!(self.deflate.compress_vec(text, out, FlushCompress::Finish), Ok(Status::StreamEnd))
    }

    /// Appends `text` as blocks that are not the last ones and end at a byte. False if the compressor fails.
    fn compress_blocks(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
        self.deflate.reset();
        out.reserve(worst_case(text));
        let result = self.deflate.compress_vec(text, out, FlushCompress::Sync);
        // With space left over, nothing is left in the compressor.
        matches!(result, Ok(Status::Ok))
            && self.deflate.total_in() == text.len() as u64
            && out.len() < out.capacity()
    }

    /// Appends `body` to `out` as one gzip member. If the compressor fails, appends nothing and returns
    /// false; the caller then sends the plain body.
    pub fn compress(&mut self, body: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(&GZIP_HEAD);
        if !deflate::encode(body, BlockEnd::Last, out) && !self.compress_whole(body, out) {
            out.truncate(start);
            return false;
        }
        out.extend_from_slice(&member_trailer(crc(body), body.len()));
        true
    }
}

/// The end of a gzip member: the checksum of its text, and its length modulo 2^32 (RFC 1952 2.3.1).
#[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 as the format says")]
pub fn member_trailer(crc: u32, bytes: usize) -> [u8; MEMBER_TRAILER_BYTES] {
    let mut trailer = [0; MEMBER_TRAILER_BYTES];
    trailer[..4].copy_from_slice(&crc.to_le_bytes());
    trailer[4..].copy_from_slice(&(bytes as u32).to_le_bytes());
    trailer
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn accepts_gzip_if_named_with_nonzero_quality() {
        for (field, gzip) in [
            ("gzip", true),
            ("GZIP", true),
            ("deflate, gzip;q=1.0, *;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; Q=0.000", false),
            ("gzip ; q = 0.001", true),
            ("x-gzip", true),
            ("br, zstd", false),
            ("*", false),
            ("identity;q=0, gzip", true),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(Some(field.as_bytes())), gzip, "{field}");
        }
        assert!(!accepts_gzip(None));
        for (field, dcz) in
            [("gzip, dcz", true), ("DCZ;q=0.1", true), ("gzip, dcz;q=0", false), ("gzip", false)]
        {
            assert_eq!(accepts_dcz(Some(field.as_bytes())), dcz, "{field}");
        }
    }

    fn gunzip(member: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        // The decoder checks the checksum and the length.
        flate2::bufread::GzDecoder::new(member).read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn head_and_compressed_tail_are_one_member() {
        let mut gzip = Gzip::default();
        let mut state = 1_u32;
        let mut noise = |length: usize| -> Vec<u8> {
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            (0..length).map(next).collect()
        };
        for tail_bytes in [0, 17, 9_000] {
            for tail in [vec![b'['; tail_bytes], noise(tail_bytes)] {
                let compressed = CompressedTail::new(&tail).unwrap();
                assert_eq!(compressed.plain_bytes(), tail.len());
                assert!(gunzip(&CompressedTail::new(&tail).unwrap().into_member()) == tail);
                let (short, long) = (deflate::SHORT_TEXT_BYTES_MAX, deflate::TEXT_BYTES_MAX);
                for head_bytes in [0, 1, 40, short, short + 1, long, long + 1, 70_000] {
                    for head in [vec![b'a'; head_bytes], noise(head_bytes)] {
                        let mut out = b"before".to_vec();
                        assert!(gzip.compress_start(&head, &mut out));
                        out.extend_from_slice(compressed.blocks());
                        out.extend_from_slice(&compressed.trailer(&head));
                        assert!(gunzip(&out[6..]) == [&*head, &*tail].concat(), "{head_bytes} {tail_bytes}");
                    }
                }
            }
        }
    }

    #[test]
    fn reused_compressor_round_trips_bodies() {
        let mut gzip = Gzip::default();
        for length in [0, 1, 1000, 70_000, 1_000_000, 3_000_000] {
            // One body is incompressible, so the reserved capacity is tested too.
            let mut state = 1_u64;
            let mut noise = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            };
            for body in [(0..length).map(|_| noise()).collect(), vec![b'a'; length]] {
                let mut out = b"before".to_vec();
                assert!(gzip.compress(&body, &mut out));
                let mut back = Vec::new();
                flate2::read::GzDecoder::new(&out[6..]).read_to_end(&mut back).unwrap();
                assert!(back == body, "{length}");
            }
        }
    }
}
