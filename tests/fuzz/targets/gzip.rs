//! Fuzz target: a body that is compressed in two parts decodes to both.
use std::io::Read as _;

use edge_proxy::http::compression::{CompressedTail, Gzip};
use edge_proxy::http::deflate::{SHORT_TEXT_BYTES_MAX, TEXT_BYTES_MAX};

/// The first two bytes say where the rest is divided.
pub fn gzip(data: &[u8]) {
    let Some((place, text)) = data.split_at_checked(2) else { return };
    let place = usize::from(place[0]) << 8 | usize::from(place[1]);
    let (mut gzip, mut out) = (Gzip::default(), Vec::new());
    for at in [place % (text.len() + 1), text.len().min(SHORT_TEXT_BYTES_MAX), text.len()] {
        let (head, tail) = text.split_at(at);
        let Some(tail) = CompressedTail::new(tail) else { panic!("the compressor failed") };
        out.clear();
        assert!(gzip.compress_start(head, &mut out), "the compressor failed");
        out.extend_from_slice(tail.blocks());
        out.extend_from_slice(&tail.trailer(head));
        let bound = 64 + text.len() + text.len() / 8;
        assert!(out.len() <= bound, "{} bytes for {}", out.len(), text.len());
        let mut plain = Vec::new();
        let mut decoder = flate2::bufread::GzDecoder::new(&out[..]);
        let decoded = decoder.read_to_end(&mut plain);
        assert!(decoded.is_ok() && decoder.into_inner().is_empty(), "{decoded:?}, divided at {at}");
        assert!(plain == text, "divided at {at}: {}", String::from_utf8_lossy(&plain));
    }
    // The same text as one block; repeated, until it is longer than the encoder takes.
    for text in [text.to_vec(), text.repeat(1 + TEXT_BYTES_MAX / text.len().max(1))] {
        out.clear();
        assert!(gzip.compress(&text, &mut out), "the compressor failed");
        let mut plain = Vec::new();
        let mut decoder = flate2::bufread::GzDecoder::new(&out[..]);
        let decoded = decoder.read_to_end(&mut plain);
        assert!(decoded.is_ok() && decoder.into_inner().is_empty() && plain == text, "{decoded:?}");
    }
}
