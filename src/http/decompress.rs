//! gzip request bodies (RFC 9110 8.4, RFC 1952), inflated to at most `BODY_BYTES_MAX` bytes.
//!
//! Several members form one body (RFC 1952 2.2); the checksum and length of each are verified. Call this only
//! after the key of the request is known to be valid.
use flate2::{Decompress, FlushDecompress, Status};

use crate::http::compression::member_trailer;
use crate::http::error::ParseError;
use crate::limits::{BODY_BYTES_MAX, KEPT_BODY_BYTES_MAX};
use crate::work;

/// The `Content-Encoding` of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    #[default]
    Identity,
    Gzip,
    /// Any other coding, or more than one.
    Unsupported,
}

/// A gzip decompressor. Its state and buffer are reused for every body.
#[derive(Debug)]
pub struct Gunzip {
    inflate: Decompress,
    body: Vec<u8>,
}

impl Default for Gunzip {
    fn default() -> Self {
        Self { inflate: Decompress::new(false), body: Vec::new() }
    }
}

const MAGIC: &[u8] = &[0x1f, 0x8b];

impl Gunzip {
    /// Inflates `coded` and returns the body.
    ///
    /// # Errors
    /// `coded` is not gzip, other bytes follow the last member, or the body exceeds `BODY_BYTES_MAX`.
    pub fn decode(&mut self, coded: &[u8]) -> Result<&mut [u8], ParseError> {
        self.body.clear();
        let mut rest = self.member(coded)?;
        while !rest.is_empty() {
            rest = self.member(rest).map_err(|error| match error {
                ParseError::BadCoding => ParseError::TrailingBytes,
                other => other,
            })?;
        }
        Ok(&mut self.body)
    }

    /// Releases the memory of a large body. Call it after each request.
    pub fn release(&mut self) {
        if self.body.capacity() > KEPT_BODY_BYTES_MAX {
            self.body = Vec::new();
        }
    }

    /// Appends one inflated member to the body; returns the bytes after it.
    fn member<'a>(&mut self, member: &'a [u8]) -> Result<&'a [u8], ParseError> {
        let mut rest = header_end(member).ok_or(ParseError::BadCoding)?;
        let start = self.body.len();
        self.inflate.reset(false);
        loop {
            if self.body.len() == self.body.capacity() {
                // The capacity of one more byte is enough to detect a body over the limit.
                let growth =
                    (BODY_BYTES_MAX + 1 - self.body.len()).min(rest.len().saturating_mul(4).max(512));
                self.body.reserve(growth.max(1));
            }
            let before = self.inflate.total_in();
            let written = self.body.len();
            let status = self.inflate.decompress_vec(rest, &mut self.body, FlushDecompress::None);
            let read = usize::try_from(self.inflate.total_in() - before).unwrap_or(rest.len());
            rest = rest.get(read..).unwrap_or_default();
            if self.body.len() > BODY_BYTES_MAX {
                return Err(ParseError::BodyTooLarge);
            }
            match status {
                Ok(Status::StreamEnd) => break,
                Ok(_) if read > 0 || self.body.len() > written => {}
                // Truncated or damaged.
                _ => return Err(ParseError::BadCoding),
            }
        }
        work::count_bytes(self.body.len() - start);
        let (trailer, rest) = rest.split_first_chunk().ok_or(ParseError::BadCoding)?;
        let body = self.body.get(start..).unwrap_or_default();
        let expected = member_trailer(crc32fast::hash(body), body.len());
        if *trailer != expected { Err(ParseError::BadCoding) } else { Ok(rest) }
    }
}

/// The bytes after the header of a member (RFC 1952 2.3); `None` if the header is invalid or incomplete.
fn header_end(member: &[u8]) -> Option<&[u8]> {
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;
    let (fixed, mut rest) = member.split_first_chunk::<10>()?;
    let flags = fixed[3];
    // 8 is deflate, the only method. A reserved bit may announce a field that cannot be skipped.
    if !fixed.starts_with(MAGIC) || fixed[2] != 8 || flags & RESERVED != 0 {
        return None;
    }
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_first_chunk::<2>()?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            rest = rest.get(memchr::memchr(0, rest)? + 1..)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        let (expected, after) = rest.split_first_chunk::<2>()?;
        let crc = crc32fast::hash(&member[..member.len() - rest.len()]);
        if crc.to_le_bytes()[..2] != expected[..] {
            return None;
        }
        rest = after;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(coded: &[u8]) -> Result<Vec<u8>, ParseError> {
        Gunzip::default().decode(coded).map(|body| body.to_vec())
    }

    #[test]
    fn joins_members_and_rejects_trailing_bytes() {
        let (one, two) = (gzip(b"{\"a\":"), gzip(b"1}"));
        assert_eq!(decode(&[&one[..], &two].concat()), Ok(b"{\"a\":1}".to_vec()));
        assert_eq!(decode(&[&one[..], &gzip(b""), &two].concat()), Ok(b"{\"a\":1}".to_vec()));
        assert_eq!(decode(&[&one[..], b"x"].concat()), Err(ParseError::TrailingBytes));
        assert_eq!(decode(&[&one[..], &[0; 8]].concat()), Err(ParseError::TrailingBytes));
        assert_eq!(decode(&[&one[..], &two[..two.len() - 1]].concat()), Err(ParseError::TrailingBytes));
        assert_eq!(decode(&[&one[..], MAGIC].concat()), Err(ParseError::TrailingBytes));
        for end in 0..one.len() {
            assert_eq!(decode(&one[..end]), Err(ParseError::BadCoding), "{end}");
        }
        let mut damaged = one.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(decode(&damaged), Err(ParseError::BadCoding), "the length");
        damaged = one.clone();
        damaged[one.len() - 8] ^= 1;
        assert_eq!(decode(&damaged), Err(ParseError::BadCoding), "the checksum");
    }

    #[test]
    fn limits_the_sum_of_all_members() {
        let half = gzip(&vec![b'x'; BODY_BYTES_MAX / 2]);
        assert_eq!(decode(&[&half[..], &half].concat()).unwrap().len(), BODY_BYTES_MAX);
        assert_eq!(decode(&[&half[..], &half, &gzip(b"y")].concat()), Err(ParseError::BodyTooLarge));
        let mut gunzip = Gunzip::default();
        assert_eq!(gunzip.decode(&gzip(&vec![b'x'; 64 << 20])), Err(ParseError::BodyTooLarge));
        assert!(gunzip.body.capacity() <= BODY_BYTES_MAX * 2, "{}", gunzip.body.capacity());
        gunzip.release();
        assert_eq!(gunzip.body.capacity(), 0);
        assert_eq!(gunzip.decode(&gzip(b"{}")).unwrap(), b"{}");
    }

    #[test]
    fn skips_every_optional_header_field() {
        let mut coded = vec![0x1f, 0x8b, 8, 2 | 4 | 8 | 16, 1, 2, 3, 4, 0, 3];
        coded.extend_from_slice(b"\x03\x00abcname\0comment\0");
        let crc = crc32fast::hash(&coded);
        coded.extend_from_slice(&crc.to_le_bytes()[..2]);
        coded.extend_from_slice(&gzip(b"{}")[10..]);
        assert_eq!(decode(&coded), Ok(b"{}".to_vec()));
        assert_eq!(flate2_reads(&coded), b"{}");
        coded[3] |= 0x20;
        assert_eq!(decode(&coded), Err(ParseError::BadCoding), "a reserved flag");
    }

    fn flate2_reads(coded: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(coded), &mut plain).unwrap();
        plain
    }
}
