//! Deltas from the last editions of a document, for proxies that poll this one (RFC 9842).
//!
//! They are made on a compile thread when a document replaces another, if a child has requested one. Earlier
//! editions are kept as deltas too, each from the edition after it, so that they take kilobytes.
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use crate::delta::{self, DocumentDigest};
use crate::json::base64::field_bytes;
use crate::json::hex::hex;
use crate::limits::{DELTA_BYTES_MAX, DELTA_EDITIONS_MAX, DELTA_IDLE_EDITIONS_MAX};
use crate::snapshot::environment::ready_body::ReadyBody;

/// A ready body with `Content-Encoding: dcz`.
#[derive(Clone, Debug)]
pub struct ReadyDelta {
    /// The document that it is a delta from, as `Available-Dictionary` names it.
    dictionary: Box<str>,
    pub body: Bytes,
    pub etag: Box<str>,
    /// The value of `Unencoded-Digest`: of the document that it results in.
    pub unencoded_digest: Box<str>,
}

/// An edition that was replaced.
#[derive(Clone, Debug)]
struct EarlierEdition {
    digest: DocumentDigest,
    /// The edition as a delta from the one after it.
    backward: Bytes,
}

/// The deltas to one document.
#[derive(Debug, Default)]
pub struct DocumentDeltas {
    /// Editions for which deltas are still made without a further request for one. Memory ordering: relaxed,
    /// because a compile thread that reads a request late makes the delta of the next edition.
    requested: AtomicU8,
    digest: OnceLock<DocumentDigest>,
    ready: Vec<ReadyDelta>,
    /// Newest first.
    earlier: Vec<EarlierEdition>,
}

impl DocumentDeltas {
    /// The delta from the document that `Available-Dictionary` names.
    pub fn find(&self, available: &[u8]) -> Option<&ReadyDelta> {
        self.ready.iter().find(|delta| delta.dictionary.as_bytes() == available)
    }

    /// Records that a child has requested a delta.
    pub fn request(&self) {
        // A store would take the cache line from the other reactors each time.
        if self.requested.load(Ordering::Relaxed) != DELTA_IDLE_EDITIONS_MAX {
            self.requested.store(DELTA_IDLE_EDITIONS_MAX, Ordering::Relaxed);
        }
    }

    /// Whether a child has requested a delta to this document or to one of the last ones.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed) > 0
    }

    /// Memory in use, bytes.
    pub fn bytes(&self) -> usize {
        let ready = self.ready.iter().map(|delta| delta.body.len());
        ready.chain(self.earlier.iter().map(|edition| edition.backward.len())).sum()
    }

    fn digest(&self, document: &[u8]) -> DocumentDigest {
        *self.digest.get_or_init(|| delta::digest_of(document))
    }

    /// The deltas to `document`, which replaces `replaced` with its deltas `before`.
    pub fn new(document: &ReadyBody, replaced: &ReadyBody, before: &Self) -> Self {
        let requested = AtomicU8::new(before.requested.load(Ordering::Relaxed).saturating_sub(1));
        let Some(gzip) = &document.gzip else { return Self { requested, ..Self::default() } };
        if document.plain == replaced.plain && !before.ready.is_empty() {
            let digest = before.digest.clone();
            let (ready, earlier) = (before.ready.clone(), before.earlier.clone());
            return Self { requested, digest, ready, earlier };
        }
        let digest = delta::digest_of(&document.plain);
        let mut made = Self { requested, digest: digest.into(), ..Self::default() };
        let maker = DeltaMaker { document, digest, bytes_max: DELTA_BYTES_MAX.min(gzip.len() / 2) };
        // For a poll without conditions of a child that has the document.
        made.ready.extend(maker.delta(&document.plain, &digest));
        if document.plain != replaced.plain {
            maker.add_editions(replaced, before, &mut made);
        }
        made
    }
}

struct DeltaMaker<'a> {
    document: &'a ReadyBody,
    digest: DocumentDigest,
    bytes_max: usize,
}

impl DeltaMaker<'_> {
    fn delta(&self, dictionary: &[u8], digest: &DocumentDigest) -> Option<ReadyDelta> {
        let body = delta::encode(dictionary, digest, &self.document.plain, self.bytes_max)?;
        let tag = self.document.etag.trim_end_matches('"');
        Some(ReadyDelta {
            dictionary: field_bytes(digest).into(),
            body: body.into(),
            // Another dictionary results in other bytes, which need another tag.
            etag: format!("{tag}-dcz-{}\"", hex(&digest[..4])).into(),
            unencoded_digest: format!("sha-256={}", field_bytes(&self.digest)).into(),
        })
    }

    fn add_editions(&self, replaced: &ReadyBody, before: &DocumentDeltas, made: &mut DocumentDeltas) {
        let digest = before.digest(&replaced.plain);
        made.ready.extend(self.delta(&replaced.plain, &digest));
        // The first edition of the chain is decoded with this document, each further one with its successor.
        let backward = delta::encode(&self.document.plain, &self.digest, &replaced.plain, self.bytes_max);
        let Some(backward) = backward else { return };
        made.earlier.push(EarlierEdition { digest, backward: backward.into() });
        let (mut newer, mut newer_digest) = (replaced.plain.clone(), digest);
        for edition in before.earlier.iter().take(DELTA_EDITIONS_MAX - 1) {
            let decoded = delta::decode(
                &edition.backward,
                &newer,
                &newer_digest,
                crate::limits::DELTA_DOCUMENT_BYTES_MAX,
            );
            let Ok(older) = decoded else { return };
            if edition.digest != self.digest {
                made.ready.extend(self.delta(&older, &edition.digest));
            }
            made.earlier.push(edition.clone());
            (newer, newer_digest) = (older.into(), edition.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edition(number: u32) -> ReadyBody {
        let filler: String =
            (0..2_000).map(|n| format!("{{\"id\":{n},\"hash\":{}}},", n * 7919 % 1009)).collect();
        ReadyBody::new(format!("[{filler}{number}]").into_bytes(), format!("\"tag{number}\"").into())
    }

    /// The deltas after the editions 0 to `last`.
    fn after(last: u32) -> (ReadyBody, DocumentDeltas) {
        let (mut document, mut deltas) = (edition(0), DocumentDeltas::default());
        for number in 1..=last {
            let next = edition(number);
            deltas = DocumentDeltas::new(&next, &document, &deltas);
            document = next;
        }
        (document, deltas)
    }

    #[test]
    fn the_last_editions_and_the_document_itself_lead_to_it() {
        let (document, deltas) = after(7);
        for number in 0..=7 {
            let dictionary = edition(number).plain;
            let digest = delta::digest_of(&dictionary);
            let found = deltas.find(field_bytes(&digest).as_bytes());
            assert_eq!(found.is_some(), number >= 3, "edition {number}");
            let Some(found) = found else { continue };
            assert!(found.body.len() < 200, "{}", found.body.len());
            let decoded = delta::decode(&found.body, &dictionary, &digest, 1 << 20).unwrap();
            assert!(decoded == document.plain);
            assert_eq!(*found.etag, format!("\"tag7-dcz-{}\"", hex(&digest[..4])));
        }
        assert!(deltas.bytes() < 2_000, "{}", deltas.bytes());
        assert!(deltas.find(b":AAAA:").is_none() && deltas.find(b"").is_none());
    }

    #[test]
    fn an_equal_document_keeps_the_deltas() {
        let (document, deltas) = after(2);
        let again = DocumentDeltas::new(&edition(2), &document, &deltas);
        assert_eq!((again.ready.len(), again.earlier.len()), (3, 2));
        let first = DocumentDeltas::new(&document, &edition(2), &DocumentDeltas::default());
        assert_eq!((first.ready.len(), first.earlier.len()), (1, 0), "only that from itself");
    }

    #[test]
    fn an_edition_that_returns_has_one_delta() {
        let (document, deltas) = after(2);
        let back = DocumentDeltas::new(&edition(1), &document, &deltas);
        let digest = field_bytes(&delta::digest_of(&edition(1).plain));
        assert_eq!(back.ready.iter().filter(|delta| *delta.dictionary == *digest).count(), 1);
    }

    #[test]
    fn a_delta_that_saves_little_is_not_kept() {
        let other = ReadyBody::new(vec![b'x'; 100_000], "\"x\"".into());
        let deltas = DocumentDeltas::new(&edition(1), &other, &DocumentDeltas::default());
        assert_eq!((deltas.ready.len(), deltas.earlier.len()), (1, 1));
        let small = ReadyBody::new(b"{}".to_vec(), "\"s\"".into());
        assert_eq!(DocumentDeltas::new(&small, &edition(1), &deltas).bytes(), 0);
    }

    #[test]
    fn requests_are_remembered_for_some_editions() {
        let mut deltas = DocumentDeltas::default();
        assert!(!deltas.is_requested());
        deltas.request();
        for _ in 0..DELTA_IDLE_EDITIONS_MAX {
            assert!(deltas.is_requested());
            deltas = DocumentDeltas::new(&edition(1), &edition(1), &deltas);
        }
        assert!(!deltas.is_requested());
    }
}
