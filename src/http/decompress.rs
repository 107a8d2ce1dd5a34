//! Request bodies that come compressed: gzip, within a limit (RFC 9110 8.4, RFC 1952).
//!
//! In: a coded body. Out: what it inflates to, or a [`ParseError`]. Invariant: at most `BODY_BYTES_MAX` bytes
//! are inflated, several members are one body (RFC 1952 2.2), and every member's checksum and length
//! are checked. Nothing here is called before the caller's key is known to be valid.
use flate2::{Crc, Decompress, FlushDecompress, Status};

use crate::http::ParseError;
use crate::limits::{BODY_BYTES_MAX, KEPT_BODY_BYTES_MAX};

/// The `Content-Encoding` of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    #[default]
    Identity,
    Gzip,
    /// Any other, or more than one.
    Unsupported,
}

/// A gzip decompressor whose state and buffer are reused.
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
/// The CRC-32 and the length of what a member inflates to.
const TRAILER_BYTES: usize = 8;

impl Gunzip {
    /// The body that `coded` is the gzip form of.
    ///
    /// # Errors
    /// It is not gzip, something else follows the last member, or it inflates to more than `BODY_BYTES_MAX`.
    pub fn decode(&mut self, coded: &[u8]) -> Result<&mut [u8], ParseError> {
        self.body.clear();
        let mut rest = self.member(coded)?;
        while !rest.is_empty() {
            rest = self.member(rest).map_err(|reject| match reject {
                ParseError::BadCoding => ParseError::TrailingBytes,
                other => other,
            })?;
        }
        Ok(&mut self.body)
    }

    /// After a request: memory for a large body is released.
    pub fn release(&mut self) {
        if self.body.capacity() > KEPT_BODY_BYTES_MAX {
            self.body = Vec::new();
        }
    }

    /// Inflates one member to the end of the body, and gives what follows it.
    fn member<'a>(&mut self, member: &'a [u8]) -> Result<&'a [u8], ParseError> {
        let mut rest = header_end(member).ok_or(ParseError::BadCoding)?;
        let start = self.body.len();
        self.inflate.reset(false);
        loop {
            if self.body.len() == self.body.capacity() {
                // One byte beyond the limit says that there are more.
                let room = (BODY_BYTES_MAX + 1 - self.body.len()).min(rest.len().saturating_mul(4).max(512));
                self.body.reserve(room.max(1));
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
                // Cut off, or damaged.
                _ => return Err(ParseError::BadCoding),
            }
        }
        let (trailer, rest) = rest.split_first_chunk::<TRAILER_BYTES>().ok_or(ParseError::BadCoding)?;
        let mut crc = Crc::new();
        crc.update(self.body.get(start..).unwrap_or_default());
        let expected = [crc.sum().to_le_bytes(), crc.amount().to_le_bytes()].concat();
        if trailer[..] != expected[..] { Err(ParseError::BadCoding) } else { Ok(rest) }
    }
}

/// What follows the header of a member (RFC 1952 2.3). `None`: it is no header, or not whole.
fn header_end(member: &[u8]) -> Option<&[u8]> {
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;
    let (fixed, mut rest) = member.split_first_chunk::<10>()?;
    let flags = fixed[3];
    // 8 is deflate, the one method there is; a reserved bit may say that there is more to read over.
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
        let mut crc = Crc::new();
        crc.update(&member[..member.len() - rest.len()]);
        if crc.sum().to_le_bytes()[..2] != expected[..] {
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
    fn members_are_one_body_and_anything_else_behind_them_is_refused() {
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
    fn the_limit_is_one_for_all_members_together() {
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
    fn every_field_of_a_header_is_read_over() {
        let mut coded = vec![0x1f, 0x8b, 8, 2 | 4 | 8 | 16, 1, 2, 3, 4, 0, 3];
        coded.extend_from_slice(b"\x03\x00abcname\0comment\0");
        let mut crc = Crc::new();
        crc.update(&coded);
        coded.extend_from_slice(&crc.sum().to_le_bytes()[..2]);
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
