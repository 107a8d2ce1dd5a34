//! Response bodies that depend only on the document, and their compression.
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::limits::COMPRESS_BYTES_MIN;
use crate::yielding;

/// Largest ready body that is compressed at the best level, bytes. Beyond: the fast level, so that a new
/// document is not delayed by a second.
const COMPRESS_BEST_BYTES_MAX: usize = 1024 * 1024;

/// A complete response body that depends only on the document.
#[derive(Debug, Default)]
pub struct ReadyBody {
    pub plain: Bytes,
    /// `None` if the body is smaller than `limits::COMPRESS_BYTES_MIN`.
    pub gzip: Option<Bytes>,
    /// A strong entity tag with its quotes (RFC 9110 8.8.3).
    pub etag: Box<str>,
}

impl ReadyBody {
    pub fn new(plain: Vec<u8>, etag: Box<str>) -> Self {
        let gzip = (plain.len() >= COMPRESS_BYTES_MIN).then(|| gzip(&plain));
        Self { plain: plain.into(), gzip: gzip.map(Bytes::from), etag }
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let level = if plain.len() > COMPRESS_BEST_BYTES_MAX { Compression::fast() } else { Compression::best() };
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), level);
    // Writing to a vector cannot fail.
    yielding::in_pieces(plain, |piece| drop(encoder.write_all(piece)));
    let mut packed = encoder.finish().unwrap_or_default();
    packed.shrink_to_fit();
    packed
}
