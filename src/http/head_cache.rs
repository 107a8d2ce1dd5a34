//! Heads that were decoded before: SDKs send the same head with every request of a connection.
//!
//! In: the bytes of a connection. Out: the decoded head they begin with, if it is known. Invariant:
//! a head is known only by all of its bytes, to the empty line that ends it, so that it means what
//! decoding it again would; one reactor's connections share a table of fixed size, and an idle
//! connection holds no head. Nothing that was refused is kept, and no head that came once only.
use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::rc::Rc;

use foldhash::fast::RandomState;
use http::request::Parts;

use crate::http::framing::{FramingHeaders, Length};
use crate::limits::{HEAD_BYTES_MAX, HEADS_KNOWN_MAX, KNOWN_HEAD_BYTES_MAX};

/// A decoded head and the bytes it was decoded from.
#[derive(Debug)]
pub struct Head {
    pub(super) bytes: Box<[u8]>,
    pub(super) parts: Parts,
    pub(super) facts: FramingHeaders,
    pub(super) length: Length,
}

/// The known heads of one reactor.
#[derive(Debug)]
pub struct HeadCache {
    /// The largest head that is read, bytes (`server.head_bytes_max`); a target may take half of it.
    pub(super) bytes_max: usize,
    /// Empty until a head came twice.
    places: RefCell<Vec<CacheEntry>>,
    /// Seeded, so that nobody can choose heads that share a place.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct CacheEntry {
    mark: u64,
    head: Option<Rc<Head>>,
    /// Used since another head asked for this place.
    is_used: Cell<bool>,
}

impl Default for HeadCache {
    fn default() -> Self {
        Self::new(HEAD_BYTES_MAX)
    }
}

impl HeadCache {
    /// No head is known yet; larger ones than `bytes_max` are refused.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, places: RefCell::default(), hasher: RandomState::default() }
    }

    /// The largest head that is read, bytes.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// What tells this head from others, nearly always; `None` for one too long to be kept.
    pub fn mark(&self, head: &[u8]) -> Option<u64> {
        (head.len() <= KNOWN_HEAD_BYTES_MAX).then(|| self.hasher.hash_one(head))
    }

    /// The head with this mark if the bytes begin with it.
    pub fn find(&self, mark: u64, bytes: &[u8]) -> Option<Rc<Head>> {
        let places = self.places.borrow();
        let place = places.get(place_of(mark))?;
        let head = place.head.as_ref().filter(|head| place.mark == mark && bytes.starts_with(&head.bytes))?;
        place.is_used.set(true);
        Some(head.clone())
    }

    /// Keeps a head, unless the one in its place was used since the last time this was tried: of
    /// two connections with one place, the first must not be evicted with every request.
    pub fn keep(&self, mark: u64, head: &Rc<Head>) {
        let mut places = self.places.borrow_mut();
        places.resize_with(HEADS_KNOWN_MAX, CacheEntry::default);
        let place = &mut places[place_of(mark)];
        if !place.is_used.take() {
            *place = CacheEntry { mark, head: Some(head.clone()), is_used: Cell::new(true) };
        }
    }
}

fn place_of(mark: u64) -> usize {
    // Cut on purpose: any bits of a hash will do.
    mark as usize % HEADS_KNOWN_MAX
}
