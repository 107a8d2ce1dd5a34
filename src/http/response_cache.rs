//! A cache of rendered responses: head and body in one buffer, shared instead of copied.
//!
//! A hit requires the same body, header fields and `Date`. The body is compared by address; the entry owns a
//! reference to it, so the address cannot be reused for another body. A response is admitted when it is
//! requested twice within a second; large bodies never are.
use bytes::Bytes;

/// Rendered responses that a reactor caches for a second, and the largest body, bytes: 0.5 MiB at most.
const CACHED_RESPONSES_MAX: usize = 8;
const CACHED_RESPONSE_BYTES_MAX: usize = 64 * 1024;

/// The cached responses of one reactor.
#[derive(Debug, Default)]
pub struct ResponseCache {
    entries: Vec<CachedResponse>,
    /// The entry to replace next.
    next: usize,
}

#[derive(Debug)]
struct CachedResponse {
    body: Bytes,
    date_seconds: u64,
    fields: Vec<u8>,
    /// Empty until the response is admitted.
    bytes: Bytes,
}

/// The result of a look-up.
#[derive(Debug, PartialEq, Eq)]
pub enum CacheLookup {
    /// The rendered response.
    Hit(Bytes),
    /// The second request within a second: render the response and [`insert`](ResponseCache::insert) it at
    /// this index.
    Admit(usize),
    Miss,
}

impl ResponseCache {
    /// Looks a response up and records the request for it.
    pub fn lookup(&mut self, body: &Bytes, fields: &[u8], date_seconds: u64) -> CacheLookup {
        if body.len() > CACHED_RESPONSE_BYTES_MAX {
            return CacheLookup::Miss;
        }
        let is_same = |entry: &CachedResponse| is_same_memory(&entry.body, body) && entry.fields == fields;
        match self.entries.iter().position(is_same) {
            Some(index) if self.entries[index].date_seconds != date_seconds => {
                self.entries[index].date_seconds = date_seconds;
                self.entries[index].bytes = Bytes::new();
                CacheLookup::Miss
            }
            Some(index) if self.entries[index].bytes.is_empty() => CacheLookup::Admit(index),
            Some(index) => CacheLookup::Hit(self.entries[index].bytes.clone()),
            None => {
                self.record(body, fields, date_seconds);
                CacheLookup::Miss
            }
        }
    }

    fn record(&mut self, body: &Bytes, fields: &[u8], date_seconds: u64) {
        let body = body.clone();
        if self.entries.len() < CACHED_RESPONSES_MAX {
            let fields = fields.to_vec();
            return self.entries.push(CachedResponse { body, date_seconds, fields, bytes: Bytes::new() });
        }
        let entry = &mut self.entries[self.next];
        self.next = (self.next + 1) % CACHED_RESPONSES_MAX;
        (entry.body, entry.date_seconds, entry.bytes) = (body, date_seconds, Bytes::new());
        entry.fields.clear();
        entry.fields.extend_from_slice(fields);
    }

    /// Stores a rendered response at an index that [`lookup`](Self::lookup) returned.
    pub fn insert(&mut self, index: usize, bytes: Bytes) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.bytes = bytes;
        }
    }

    /// Releases all bodies and responses. Correctness does not depend on it.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.next = 0;
    }
}

fn is_same_memory(one: &Bytes, other: &Bytes) -> bool {
    std::ptr::eq(&one[..], &other[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_require_the_same_body_fields_and_second() {
        let (body, other) = (Bytes::from_static(b"{\"a\":1}"), Bytes::from_static(b"{\"b\":2}"));
        let mut cache = ResponseCache::default();
        assert_eq!(cache.lookup(&body, b"f", 7), CacheLookup::Miss);
        let CacheLookup::Admit(index) = cache.lookup(&body, b"f", 7) else { panic!("requested twice") };
        cache.insert(index, Bytes::from_static(b"whole"));
        assert_eq!(cache.lookup(&body, b"f", 7), CacheLookup::Hit(Bytes::from_static(b"whole")));
        assert_eq!(cache.lookup(&body, b"g", 7), CacheLookup::Miss);
        assert_eq!(cache.lookup(&other, b"f", 7), CacheLookup::Miss);
        assert_eq!(cache.lookup(&body, b"f", 8), CacheLookup::Miss);
        assert_eq!(cache.lookup(&body, b"f", 8), CacheLookup::Admit(index));
        cache.clear();
        assert_eq!(cache.lookup(&body, b"f", 8), CacheLookup::Miss);
    }

    #[test]
    fn limits_the_number_and_size_of_entries() {
        let bodies: Vec<Bytes> =
            (0..=CACHED_RESPONSES_MAX).map(|at| Bytes::from(vec![b'x'; at + 1])).collect();
        let mut cache = ResponseCache::default();
        for body in bodies.iter().chain(&bodies) {
            assert_eq!(
                cache.lookup(body, b"f", 7),
                CacheLookup::Miss,
                "one more body than entries, in rotation"
            );
        }
        assert_eq!(cache.entries.len(), CACHED_RESPONSES_MAX);
        let large = Bytes::from(vec![0; CACHED_RESPONSE_BYTES_MAX + 1]);
        assert_eq!(cache.lookup(&large, b"f", 7), CacheLookup::Miss);
        assert_eq!(cache.lookup(&large, b"f", 7), CacheLookup::Miss);
    }

    #[test]
    fn equal_bodies_at_different_addresses_are_different_entries() {
        let mut cache = ResponseCache::default();
        let body = Bytes::from(b"{}".to_vec());
        assert_eq!(cache.lookup(&body, b"f", 7), CacheLookup::Miss);
        drop(body);
        // The entry keeps the first body alive, so no later body can have its address.
        for _ in 0..CACHED_RESPONSES_MAX {
            assert_eq!(cache.lookup(&Bytes::from(b"{}".to_vec()), b"f", 7), CacheLookup::Miss);
        }
    }
}
