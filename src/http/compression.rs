//! gzip: whether a client takes it, and a body made for one request put into it.
//!
//! In: the `Accept-Encoding` field; a plain body. Out: yes or no; gzip bytes. Invariant: quality
//! values are respected (RFC 9110 12.5.3); the state of the compressor is kept from one body to the
//! next. Bodies that depend on the document alone never come here. gzip alone is spoken, and by
//! zlib-rs: bench/README.md has what zstd, brotli and libdeflate would have given.
use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// True if the client takes gzip: it is named (the Python proxy looks for `gzip`, and compresses
/// for nothing less) and its quality is not 0.
pub fn accepts_gzip(accept_encoding: Option<&[u8]>) -> bool {
    let mut accepts = false;
    for item in accept_encoding.unwrap_or_default().split(|byte| *byte == b',') {
        let mut parts = item.split(|byte| *byte == b';');
        let coding = parts.next().unwrap_or_default().trim_ascii();
        if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
            accepts = parts.all(|part| !is_zero_quality(part));
        }
    }
    accepts
}

/// `q=0`, `q=0.0`, `q=0.000`: not acceptable.
fn is_zero_quality(parameter: &[u8]) -> bool {
    let mut sides = parameter.splitn(2, |byte| *byte == b'=');
    let (Some(name), Some(value)) = (sides.next(), sides.next()) else { return false };
    name.trim_ascii().eq_ignore_ascii_case(b"q")
        && !value.trim_ascii().is_empty()
        && value.trim_ascii().iter().all(|byte| matches!(byte, b'0' | b'.'))
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
    /// Appends `body` as one gzip member to `out`. False, and nothing is appended, if the
    /// compressor fails, which it has no reason to: then the plain body is to be sent.
    pub fn compress(&mut self, body: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(&GZIP_HEAD);
        self.deflate.reset();
        // The worst case is fixed codes of nine bits for each byte, and the end.
        out.reserve(body.len() + body.len() / 8 + 64);
        if !matches!(self.deflate.compress_vec(body, out, FlushCompress::Finish), Ok(Status::StreamEnd)) {
            out.truncate(start);
            return false;
        }
        let mut crc = Crc::new();
        crc.update(body);
        out.extend_from_slice(&crc.sum().to_le_bytes());
        out.extend_from_slice(&crc.amount().to_le_bytes());
        true
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
            ("br, zstd", false),
            ("*", false),
            ("identity;q=0, gzip", true),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(Some(field.as_bytes())), gzip, "{field}");
        }
        assert!(!accepts_gzip(None));
    }

    #[test]
    fn compressed_bodies_come_back_whole_with_one_state() {
        let mut gzip = Gzip::default();
        for length in [0, 1, 1000, 70_000, 1_000_000, 3_000_000] {
            // Nothing to find, and everything: what no compressor makes smaller must fit as well.
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
