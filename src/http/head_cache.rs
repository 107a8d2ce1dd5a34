//! A cache of decoded request heads: SDKs send the same head with every request of a connection.
//!
//! A hit requires that all bytes match, to the empty line that ends the head, so a cached head means what
//! decoding it again would mean. One cache of fixed size serves all connections of a reactor; only heads
//! that were accepted, and came twice in a row on a connection, are admitted.
use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::rc::Rc;

use foldhash::fast::RandomState;
use http::request::Parts;

use crate::http::framing::{FramingHeaders, Length};
use crate::limits::{CACHED_HEAD_BYTES_MAX, CACHED_HEADS_MAX, HEAD_BYTES_MAX};

/// A decoded head and the bytes it was decoded from.
#[derive(Debug)]
pub struct CachedHead {
    pub(super) bytes: Box<[u8]>,
    pub(super) parts: Parts,
    pub(super) framing: FramingHeaders,
    pub(super) length: Length,
}

/// The cached heads of one reactor.
#[derive(Debug)]
pub struct HeadCache {
    /// The largest head that is accepted, cached or not (`server.head_bytes_max`).
    bytes_max: usize,
    /// Empty until the first head is admitted.
    entries: RefCell<Vec<CacheEntry>>,
    /// Seeded, so that clients cannot choose heads that share an entry.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct CacheEntry {
    hash: u64,
    head: Option<Rc<CachedHead>>,
    /// Hit since another head last competed for this entry.
    is_used: Cell<bool>,
}

impl Default for HeadCache {
    fn default() -> Self {
        Self::new(HEAD_BYTES_MAX)
    }
}

impl HeadCache {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, entries: RefCell::default(), hasher: RandomState::default() }
    }

    /// The largest head that is accepted, bytes. A target may take half of it.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The cache key of a head; `None` if the head is too long to be cached.
    pub fn hash(&self, head: &[u8]) -> Option<u64> {
        (head.len() <= CACHED_HEAD_BYTES_MAX).then(|| self.hasher.hash_one(head))
    }

    /// The cached head with this hash, if `bytes` begins with it.
    pub fn get(&self, hash: u64, bytes: &[u8]) -> Option<Rc<CachedHead>> {
        let entries = self.entries.borrow();
        let entry = entries.get(index(hash))?;
        let head = entry.head.as_ref().filter(|head| entry.hash == hash && bytes.starts_with(&head.bytes))?;
        entry.is_used.set(true);
        Some(head.clone())
    }

    /// Admits a head, unless the entry was hit since the last attempt: when two connections share an entry,
    /// they must not evict each other's head with every request.
    pub fn insert(&self, hash: u64, head: &Rc<CachedHead>) {
        let mut entries = self.entries.borrow_mut();
        entries.resize_with(CACHED_HEADS_MAX, CacheEntry::default);
        let entry = &mut entries[index(hash)];
        if !entry.is_used.take() {
            *entry = CacheEntry { hash, head: Some(head.clone()), is_used: Cell::new(true) };
        }
    }
}

fn index(hash: u64) -> usize {
    // The cast truncates on 32-bit targets; any bits of the hash will do.
    hash as usize % CACHED_HEADS_MAX
}
