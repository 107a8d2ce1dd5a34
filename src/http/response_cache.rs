//! Whole answers that are asked for again and again: head and ready body in one piece.
//!
//! In: a ready body and the header fields it is sent with. Out: the answer that was sent with
//! them in this second, shared and not copied. Invariant: an answer is used again only for the
//! same body, fields and date; `forget` is called before a body's memory can become another's.
//! Few answers are kept, none of them large, and none that was not asked for twice in a second.
use bytes::Bytes;

use crate::limits::{WHOLE_ANSWER_BYTES_MAX, WHOLE_ANSWERS_MAX};

/// The whole answers of one reactor.
#[derive(Debug, Default)]
pub struct ResponseCache {
    answers: Vec<Whole>,
    /// The one that is replaced next.
    next: usize,
}

#[derive(Debug)]
struct Whole {
    /// Where the body is: two that live at once are never in one place.
    body: (usize, usize),
    date_seconds: u64,
    fields: Vec<u8>,
    /// Empty while it was asked for once.
    bytes: Bytes,
}

/// What is known about an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum CacheLookup {
    /// It need not be written: here it is.
    Whole(Bytes),
    /// It was asked for before in this second: worth keeping, in this place.
    Twice(usize),
    No,
}

impl ResponseCache {
    /// Looks for the answer, and notes that it was asked for.
    pub fn find(&mut self, body: &Bytes, fields: &[u8], date_seconds: u64) -> CacheLookup {
        if body.len() > WHOLE_ANSWER_BYTES_MAX {
            return CacheLookup::No;
        }
        let body = (body.as_ptr().addr(), body.len());
        let same = |whole: &Whole| whole.body == body && whole.fields == fields;
        match self.answers.iter().position(same) {
            Some(at) if self.answers[at].date_seconds != date_seconds => {
                self.answers[at].date_seconds = date_seconds;
                self.answers[at].bytes = Bytes::new();
                CacheLookup::No
            }
            Some(at) if self.answers[at].bytes.is_empty() => CacheLookup::Twice(at),
            Some(at) => CacheLookup::Whole(self.answers[at].bytes.clone()),
            None => {
                self.note(body, fields, date_seconds);
                CacheLookup::No
            }
        }
    }

    fn note(&mut self, body: (usize, usize), fields: &[u8], date_seconds: u64) {
        if self.answers.len() < WHOLE_ANSWERS_MAX {
            self.answers.push(Whole { body, date_seconds, fields: fields.to_vec(), bytes: Bytes::new() });
            return;
        }
        let place = &mut self.answers[self.next];
        self.next = (self.next + 1) % WHOLE_ANSWERS_MAX;
        (place.body, place.date_seconds, place.bytes) = (body, date_seconds, Bytes::new());
        place.fields.clear();
        place.fields.extend_from_slice(fields);
    }

    /// Keeps the answer in the place that `find` said.
    pub fn keep(&mut self, at: usize, bytes: Bytes) {
        if let Some(whole) = self.answers.get_mut(at) {
            whole.bytes = bytes;
        }
    }

    /// Forgets all: bodies are about to be replaced.
    pub fn forget(&mut self) {
        self.answers.clear();
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_used_again_for_the_same_body_fields_and_second_only() {
        let (body, other) = (Bytes::from_static(b"{\"a\":1}"), Bytes::from_static(b"{\"b\":2}"));
        let mut wholes = ResponseCache::default();
        assert_eq!(wholes.find(&body, b"f", 7), CacheLookup::No);
        let CacheLookup::Twice(at) = wholes.find(&body, b"f", 7) else { panic!("asked for twice") };
        wholes.keep(at, Bytes::from_static(b"whole"));
        assert_eq!(wholes.find(&body, b"f", 7), CacheLookup::Whole(Bytes::from_static(b"whole")));
        assert_eq!(wholes.find(&body, b"g", 7), CacheLookup::No);
        assert_eq!(wholes.find(&other, b"f", 7), CacheLookup::No);
        assert_eq!(wholes.find(&body, b"f", 8), CacheLookup::No);
        assert_eq!(wholes.find(&body, b"f", 8), CacheLookup::Twice(at));
        wholes.forget();
        assert_eq!(wholes.find(&body, b"f", 8), CacheLookup::No);
    }

    #[test]
    fn few_are_kept_and_none_that_is_large() {
        let bodies: Vec<Bytes> = (0..=WHOLE_ANSWERS_MAX).map(|at| Bytes::from(vec![b'x'; at + 1])).collect();
        let mut wholes = ResponseCache::default();
        for body in bodies.iter().chain(&bodies) {
            assert_eq!(
                wholes.find(body, b"f", 7),
                CacheLookup::No,
                "one more than there are places, in turn"
            );
        }
        assert_eq!(wholes.answers.len(), WHOLE_ANSWERS_MAX);
        let large = Bytes::from(vec![0; WHOLE_ANSWER_BYTES_MAX + 1]);
        assert_eq!(wholes.find(&large, b"f", 7), CacheLookup::No);
        assert_eq!(wholes.find(&large, b"f", 7), CacheLookup::No);
    }
}
