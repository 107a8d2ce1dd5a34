//! Content codings: what a client takes, and gzip of a body made for one request.
//!
//! In: the `Accept-Encoding` field; a plain body. Out: which codings are welcome; gzip bytes.
//! Invariant: quality values are respected (RFC 9110 12.5.3); the state of the compressor is
//! kept from one body to the next. Bodies that depend on the document alone never come here.
use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// What a client takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    pub gzip: bool,
    pub br: bool,
    pub zstd: bool,
}

/// Reads `Accept-Encoding`. A coding counts only if it is named (the Python proxy looks for
/// `gzip`, and compresses for nothing less) and its quality is not 0.
pub fn accepts(accept_encoding: Option<&[u8]>) -> Accepts {
    let mut accepts = Accepts::default();
    for item in accept_encoding.unwrap_or_default().split(|byte| *byte == b',') {
        let mut parts = item.split(|byte| *byte == b';');
        let coding = parts.next().unwrap_or_default().trim_ascii();
        let wanted = parts.all(|part| !is_zero_quality(part));
        if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
            accepts.gzip = wanted;
        } else if coding.eq_ignore_ascii_case(b"br") {
            accepts.br = wanted;
        } else if coding.eq_ignore_ascii_case(b"zstd") {
            accepts.zstd = wanted;
        }
    }
    accepts
}

/// True if the client takes gzip.
pub fn accepts_gzip(accept_encoding: Option<&[u8]>) -> bool {
    accepts(accept_encoding).gzip
}

/// `q=0`, `q=0.0`, `q=0.000`: not acceptable.
fn is_zero_quality(parameter: &[u8]) -> bool {
    let parameter = parameter.trim_ascii();
    let Some((name, value)) = parameter.split_once_byte(b'=') else { return false };
    name.trim_ascii().eq_ignore_ascii_case(b"q")
        && !value.trim_ascii().is_empty()
        && value.trim_ascii().iter().all(|byte| matches!(byte, b'0' | b'.'))
}

trait SplitOnce {
    fn split_once_byte(&self, byte: u8) -> Option<(&[u8], &[u8])>;
}

impl SplitOnce for [u8] {
    fn split_once_byte(&self, byte: u8) -> Option<(&[u8], &[u8])> {
        let at = self.iter().position(|b| *b == byte)?;
        Some((&self[..at], &self[at + 1..]))
    }
}

/// A gzip compressor whose state is reused.
#[derive(Debug)]
pub struct Gzip {
    deflate: Compress,
}

impl Default for Gzip {
    fn default() -> Self {
        Self { deflate: Compress::new(Compression::fast(), false) }
    }
}

/// No name, no time, unknown system (RFC 1952 2.3).
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

impl Gzip {
    /// Appends `body` as one gzip member to `out`.
    pub fn compress(&mut self, body: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&GZIP_HEAD);
        self.deflate.reset();
        // Stored blocks are the worst case: five bytes for each 16 KiB, and the end.
        out.reserve(body.len() + body.len() / 1024 + 64);
        loop {
            let read = usize::try_from(self.deflate.total_in()).unwrap_or(body.len());
            match self.deflate.compress_vec(&body[read..], out, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => break,
                _ => out.reserve(1024),
            }
        }
        let mut crc = Crc::new();
        crc.update(body);
        out.extend_from_slice(&crc.sum().to_le_bytes());
        out.extend_from_slice(&crc.amount().to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn codings_are_named_and_not_refused() {
        for (field, gzip) in [
            ("gzip", true),
            ("GZIP", true),
            ("deflate, gzip;q=1.0, *;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; Q=0.000", false),
            ("gzip ; q = 0.001", true),
            ("x-gzip", true),
            ("br", false),
            ("*", false),
            ("identity;q=0, gzip", true),
            ("", false),
        ] {
            assert_eq!(accepts(Some(field.as_bytes())).gzip, gzip, "{field}");
        }
        assert_eq!(accepts(None), Accepts::default());
        assert_eq!(accepts(Some(b"br, zstd;q=0.3")), Accepts { gzip: false, br: true, zstd: true });
    }

    #[test]
    fn compressed_bodies_come_back_whole_with_one_state() {
        let mut gzip = Gzip::default();
        for length in [0, 1, 1000, 70_000, 1_000_000] {
            let body: Vec<u8> =
                (0..length).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let mut out = b"before".to_vec();
            gzip.compress(&body, &mut out);
            let mut back = Vec::new();
            flate2::read::GzDecoder::new(&out[6..]).read_to_end(&mut back).unwrap();
            assert_eq!(back, body);
        }
    }
}
