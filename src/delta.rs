//! Deltas of documents: the content coding `dcz`, zstd with a dictionary (RFC 9842).
//!
//! The dictionary is a document that the receiver has, so that one that differs little takes a few kilobytes.
//! The control plane makes and reads deltas; reactors only send them.
use std::fmt;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use crate::limits::{DELTA_DOCUMENT_BYTES_MAX, DELTA_WINDOW_BYTES_MIN};
use crate::yielding;
use zstd::zstd_safe::CParameter;

/// The start of a `dcz` body: the header of a skippable frame that contains the dictionary's digest
/// (RFC 9842 5).
const MAGIC: [u8; 8] = [0x5e, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0];
/// The magic number and the digest.
pub const HEAD_BYTES: usize = MAGIC.len() + 32;
/// The fastest level: long-distance matching finds what the documents have in common at any level.
const LEVEL: i32 = 1;
/// Bytes that must be equal for a long-distance match; shorter ones are found within 128 kB only.
const LONG_MATCH_BYTES: usize = 512;

/// SHA-256, which identifies a dictionary and checks a result.
pub type DocumentDigest = [u8; 32];

/// SHA-256 of a document.
pub fn digest_of(document: &[u8]) -> DocumentDigest {
    let mut digest = Sha256::new();
    yielding::in_pieces(document, |piece| digest.update(piece));
    digest.finalize().into()
}

/// The largest window of a delta from a dictionary of this size (RFC 9842 5).
fn window_bytes_max(dictionary_bytes: usize) -> usize {
    DELTA_WINDOW_BYTES_MIN.max(dictionary_bytes.saturating_add(dictionary_bytes / 4))
}

/// Encodes `document` as a `dcz` body of at most `bytes_max` bytes. `None`: it would be larger, or one of
/// the documents is too large.
pub fn encode(
    dictionary: &[u8],
    digest: &DocumentDigest,
    document: &[u8],
    bytes_max: usize,
) -> Option<Vec<u8>> {
    let largest = dictionary.len().max(document.len());
    // The window is the whole document: a decoder may then refer to all of the dictionary.
    let is_allowed =
        largest <= DELTA_DOCUMENT_BYTES_MAX && document.len() <= window_bytes_max(dictionary.len());
    let head = [&MAGIC[..], digest].concat();
    is_allowed
        .then(|| compress(dictionary, document, BoundedOutput { bytes: head, bytes_max }).ok())
        .flatten()
}

fn compress(dictionary: &[u8], document: &[u8], output: BoundedOutput) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(output, LEVEL, dictionary)?;
    // Every byte of both may be referred to.
    let reach = (dictionary.len() + document.len()).max(1024).next_power_of_two();
    encoder.window_log(reach.trailing_zeros())?;
    encoder.long_distance_matching(true)?;
    // Shorter matches would be found between different entries of a list, which are alike.
    let match_bytes = (document.len() / 64).clamp(64, LONG_MATCH_BYTES);
    encoder.set_parameter(CParameter::LdmMinMatch(u32::try_from(match_bytes).unwrap_or(u32::MAX)))?;
    encoder.set_pledged_src_size(Some(document.len() as u64))?;
    encoder.include_contentsize(true)?;
    encoder.include_checksum(false)?;
    for piece in document.chunks(yielding::PIECE_BYTES * 4) {
        encoder.write_all(piece)?;
        yielding::checkpoint();
    }
    let mut coded = encoder.finish()?.bytes;
    coded.shrink_to_fit();
    Ok(coded)
}

/// Output that fails beyond a number of bytes.
struct BoundedOutput {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for BoundedOutput {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + piece.len() > self.bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the delta is too large to be of use"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a delta is not usable.
#[derive(Debug)]
pub enum DeltaError {
    /// The body does not begin as `dcz` does (RFC 9842 5).
    Header,
    /// It was made with another dictionary.
    Dictionary,
    Damaged(io::Error),
    /// Its result is larger than this number of bytes.
    TooLarge(usize),
    /// `Unencoded-Digest` names another document than the result.
    Digest,
    /// The response has no `Unencoded-Digest`.
    NoDigest,
}

impl fmt::Display for DeltaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("it does not begin as dcz does (RFC 9842 5)"),
            Self::Dictionary => f.write_str("it was made from another document"),
            Self::Damaged(error) => write!(f, "it is damaged: {error}"),
            Self::TooLarge(bytes_max) => {
                write!(f, "its result is larger than {bytes_max} bytes (api_document_bytes_max)")
            }
            Self::Digest => f.write_str("its result is not the document that Unencoded-Digest names"),
            Self::NoDigest => f.write_str("there is no Unencoded-Digest to check its result by"),
        }
    }
}

impl std::error::Error for DeltaError {}

/// Decodes a `dcz` body made with this dictionary to at most `bytes_max` bytes.
///
/// # Errors
/// Another dictionary is meant, the body is damaged, or its result or its window is too large.
pub fn decode(
    coded: &[u8],
    dictionary: &[u8],
    digest: &DocumentDigest,
    bytes_max: usize,
) -> Result<Vec<u8>, DeltaError> {
    let frame = coded
        .strip_prefix(&MAGIC)
        .ok_or(DeltaError::Header)?
        .strip_prefix(digest)
        .ok_or(DeltaError::Dictionary)?;
    let mut decoder =
        zstd::stream::read::Decoder::with_ref_prefix(frame, dictionary).map_err(DeltaError::Damaged)?;
    let window = window_bytes_max(dictionary.len()).next_power_of_two();
    decoder.window_log_max(window.trailing_zeros()).map_err(DeltaError::Damaged)?;
    let (mut document, mut piece) = (Vec::new(), vec![0; yielding::PIECE_BYTES * 4]);
    loop {
        let count = decoder.read(&mut piece).map_err(DeltaError::Damaged)?;
        if count == 0 {
            return Ok(document);
        }
        if document.len() + count > bytes_max {
            return Err(DeltaError::TooLarge(bytes_max));
        }
        document.extend_from_slice(&piece[..count]);
        yielding::checkpoint();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that does not repeat.
    fn text(bytes: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            b'a' + ((state >> 33) % 26) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    #[test]
    fn a_small_change_of_a_large_document_takes_little() {
        for bytes in [2_000, 300_000, 20_000_000] {
            let before = text(bytes, 1);
            let mut after = before.clone();
            after[bytes / 2] = b'0';
            after.splice(bytes / 3..bytes / 3, *b"inserted");
            let digest = digest_of(&before);
            let coded = encode(&before, &digest, &after, usize::MAX).unwrap();
            assert!(coded.len() < 200 + bytes / 1_000, "{bytes}: {}", coded.len());
            assert!(decode(&coded, &before, &digest, after.len()).unwrap() == after);
            assert_eq!(encode(&before, &digest, &after, coded.len() - 1), None, "beyond the bound");
        }
    }

    /// Entries that differ in a number only: matches with other entries cost a hundred times as much.
    #[test]
    fn a_list_of_similar_entries_takes_little() {
        let document = |version: u32| -> Vec<u8> {
            let entry = |number| {
                format!(
                    r#"{{"created_date":"2026-01-01T00:00:00Z","environment_api_key":"key","identifier":"identity-{number}","identity_features":[{{"enabled":true,"feature":{{"id":2,"name":"colour","type":"STANDARD"}},"feature_state_value":"gold-{number}","featurestate_uuid":"00000000-0000-4000-8000-000000000003"}}]}},"#
                )
            };
            let entries: String = (0..3_000).map(entry).collect();
            format!("{{\"version\":{version},\"list\":[{entries}],\"last\":{version}}}").into_bytes()
        };
        let (before, after) = (document(1), document(2));
        let digest = digest_of(&before);
        let coded = encode(&before, &digest, &after, usize::MAX).unwrap();
        assert!(coded.len() < 500, "{}", coded.len());
        assert!(decode(&coded, &before, &digest, after.len()).unwrap() == after);
    }

    #[test]
    fn an_equal_document_takes_little() {
        let document = text(20_000_000, 1);
        let digest = digest_of(&document);
        let coded = encode(&document, &digest, &document, usize::MAX).unwrap();
        assert!(coded.len() < 20_000, "{}", coded.len());
        assert!(decode(&coded, &document, &digest, document.len()).unwrap() == document);
    }

    #[test]
    fn refuses_damage_other_dictionaries_and_large_results() {
        let (before, after) = (text(50_000, 1), text(50_000, 2));
        let digest = digest_of(&before);
        let coded = encode(&before, &digest, &after, usize::MAX).unwrap();
        assert!(decode(&coded, &before, &digest, after.len()).unwrap() == after);
        let error = |coded: &[u8], digest: &DocumentDigest, bytes_max| {
            decode(coded, &before, digest, bytes_max).unwrap_err().to_string()
        };
        assert!(error(&coded, &digest, after.len() - 1).contains("larger than 49999 bytes"));
        assert!(error(&coded, &digest_of(&after), usize::MAX).contains("another document"));
        assert!(error(&coded[1..], &digest, usize::MAX).contains("RFC 9842"));
        assert!(error(b"", &digest, usize::MAX).contains("RFC 9842"));
        assert!(error(&coded[..coded.len() - 9], &digest, usize::MAX).contains("damaged"));
        assert!(
            error(&[&coded[..HEAD_BYTES], b"no frame"].concat(), &digest, usize::MAX).contains("damaged")
        );
    }

    /// RFC 9842 5: a window of at most 8 MB, or 1.25 times the dictionary.
    #[test]
    fn a_window_beyond_the_standard_is_neither_made_nor_read() {
        let small = text(1_000, 1);
        let digest = digest_of(&small);
        let large = vec![b'a'; DELTA_WINDOW_BYTES_MIN + 1];
        assert_eq!(encode(&small, &digest, &large, usize::MAX), None);
        let mut encoder = zstd::stream::write::Encoder::new([&MAGIC[..], &digest].concat(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&vec![b'a'; 17_000_000]).unwrap();
        let coded = encoder.finish().unwrap();
        assert!(decode(&coded, &small, &digest, usize::MAX).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn a_bomb_costs_no_more_than_its_bound() {
        let dictionary = text(1_000, 1);
        let digest = digest_of(&dictionary);
        let mut encoder = zstd::stream::write::Encoder::new([&MAGIC[..], &digest].concat(), 1).unwrap();
        for _ in 0..256 {
            encoder.write_all(&[0; 1 << 20]).unwrap();
        }
        let coded = encoder.finish().unwrap();
        assert!(coded.len() < 64 * 1024);
        assert!(
            decode(&coded, &dictionary, &digest, 1 << 20).unwrap_err().to_string().contains("larger than")
        );
    }
}
