//! gzip for response bodies that are rendered per request.
//!
//! Bodies that depend only on the document are compressed when the document changes, not here. Why gzip and
//! zlib-rs, and not zstd, brotli or libdeflate: bench/README.md.
use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Whether `Accept-Encoding` names gzip with a quality other than 0 (RFC 9110 12.5.3). `*` does not count:
/// the Python proxy compresses only if the field contains `gzip`.
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

/// A member header without name and time, of an unknown system (RFC 1952 2.3).
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

impl Gzip {
    /// Appends `body` to `out` as one gzip member. If the compressor fails, appends nothing and returns
    /// false; the caller then sends the plain body.
    pub fn compress(&mut self, body: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(&GZIP_HEAD);
        self.deflate.reset();
        // Worst case: fixed Huffman codes of nine bits per byte, and the end of the block.
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
