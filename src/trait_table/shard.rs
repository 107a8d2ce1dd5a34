//! A shard: the records of some identities of an environment, immutable and shared by all threads.
//!
//! Records are in chunks of one size, so that building a shard anew neither moves most of them nor leaves
//! memory that fits nothing else: a new version shares the chunks that did not change. A record that was
//! replaced is dead; a chunk is copied without its dead records when they are a quarter of it.
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use crate::trait_table::encoding::{Reader, write_number};
use crate::trait_table::record::TraitRecord;

/// Bytes of a chunk: with the counters of its `Arc` a power of two, which the allocator does not round up. A
/// record that is larger has its own chunk.
const CHUNK_BYTES: usize = 16 * 1024 - 16;
/// Bits of a location that are the offset in the chunk; the others are its number.
const OFFSET_BITS: u32 = 14;
const CHUNKS_MAX: usize = 1 << (32 - OFFSET_BITS);
/// A chunk is copied when this part of it is dead.
const DEAD_PART: usize = 4;
const INDEX_SLOTS_MIN: usize = 8;

/// Immutable records with their index.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    chunks: Vec<Chunk>,
    /// A power of two, at least a quarter of it free.
    index: Box<[IndexSlot]>,
    count: usize,
    /// The number of the chunk that new records are appended to.
    open: Option<usize>,
}

/// Where a record is. The part of its hash is beside it, so that the records of others are rarely read, and
/// an index grows without reading any.
#[derive(Clone, Copy, Debug, Default)]
struct IndexSlot {
    print: u32,
    /// 0: the slot is free.
    location_plus_one: u32,
}

impl IndexSlot {
    fn new(hash: u64, location: u32) -> Self {
        Self { print: print(hash), location_plus_one: location + 1 }
    }

    /// `None`: it is free.
    fn location(self) -> Option<u32> {
        self.location_plus_one.checked_sub(1)
    }
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    /// Records, each with its length before it. Empty: the number is free.
    bytes: Arc<[u8]>,
    /// How many of the bytes are of records that were replaced or removed.
    dead: usize,
}

impl Shard {
    /// How many records it has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first record that matches, of those that may have this hash.
    pub fn find(&self, hash: u64, is_match: impl Fn(&TraitRecord<'_>) -> bool) -> Option<TraitRecord<'_>> {
        let mask = self.index.len().checked_sub(1)?;
        let print = print(hash);
        let mut at = home(print, mask);
        loop {
            let slot = self.index.get(at)?;
            let location = slot.location()?;
            if slot.print == print {
                let record = self.record_at(location)?;
                if is_match(&record) {
                    return Some(record);
                }
            }
            at = (at + 1) & mask;
        }
    }

    /// The records with this hash that match.
    pub fn find_all<'s>(
        &'s self,
        hash: u64,
        is_match: impl Fn(&TraitRecord<'_>) -> bool + 's,
    ) -> impl Iterator<Item = TraitRecord<'s>> {
        let (print, mask) = (print(hash), self.index.len().wrapping_sub(1));
        let slots = (0..self.index.len()).map(move |step| home(print, mask).wrapping_add(step) & mask);
        let used = slots.map_while(|at| {
            let slot = self.index.get(at)?;
            Some((slot, slot.location()?))
        });
        let locations = used.filter(move |(slot, _)| slot.print == print).map(|(_, location)| location);
        locations.filter_map(|location| self.record_at(location)).filter(move |record| is_match(record))
    }

    /// All records, in no order.
    pub fn records(&self) -> impl Iterator<Item = TraitRecord<'_>> {
        self.index.iter().filter_map(|slot| self.record_at(slot.location()?))
    }

    fn record_at(&self, location: u32) -> Option<TraitRecord<'_>> {
        let (number, offset) = split(location);
        record_in(&self.chunks.get(number)?.bytes, offset)
    }

    /// The bytes of all chunks, and those of them that are dead.
    #[cfg(test)]
    pub fn sizes(&self) -> (usize, usize) {
        let sum = |size: fn(&Chunk) -> usize| self.chunks.iter().map(size).sum();
        (sum(|chunk| chunk.bytes.len()), sum(|chunk| chunk.dead))
    }
}

/// The hash of identifiers, with the seed of the process.
#[derive(Clone, Debug)]
pub struct IdentifierHash(foldhash::fast::FixedState);

impl IdentifierHash {
    pub fn new(seed: u64) -> Self {
        Self(foldhash::fast::FixedState::with_seed(seed))
    }

    pub fn of(&self, identifier: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write(identifier);
        hasher.finish()
    }
}

/// A new version of a shard.
#[derive(Debug)]
pub struct ShardEditor {
    shard: Shard,
    hash: IdentifierHash,
    /// The chunk that is written, its number, and its dead bytes.
    tail: Vec<u8>,
    tail_number: usize,
    tail_dead: usize,
    /// Numbers of chunks that are free.
    free: Vec<usize>,
    /// All dead records are removed: some were erased on request.
    purges: bool,
}

impl ShardEditor {
    pub fn new(base: &Shard, hash: IdentifierHash, purges: bool) -> Self {
        let mut shard = base.clone();
        let free = (0..shard.chunks.len()).filter(|number| shard.chunks[*number].bytes.is_empty());
        let free: Vec<usize> = free.collect();
        let (tail, tail_number) = (Vec::new(), 0);
        let open = shard.open.take().filter(|_| !purges);
        let mut editor = Self { shard, hash, tail, tail_number, tail_dead: 0, free, purges };
        match open {
            Some(number) => {
                let chunk = std::mem::take(&mut editor.shard.chunks[number]);
                editor.tail.extend_from_slice(&chunk.bytes);
                (editor.tail_number, editor.tail_dead) = (number, chunk.dead);
            }
            None => editor.tail_number = editor.free_number(),
        }
        editor
    }

    /// Adds a record, or replaces that of its identity. One that has no location is left out: a shard has at
    /// most 4 GiB.
    pub fn insert(&mut self, hash: u64, record: &[u8]) {
        let Some(identifier) = TraitRecord::new(record).map(|record| record.identifier()) else { return };
        let known = self.find(hash, identifier);
        let Some(location) = self.append(record) else { return };
        match known {
            Some(at) => {
                self.mark_dead(at);
                self.shard.index[at] = IndexSlot::new(hash, location);
            }
            None => {
                self.shard.count += 1;
                if self.shard.count * 4 > self.shard.index.len() * 3 {
                    self.resize_index((self.shard.index.len() * 2).max(INDEX_SLOTS_MIN));
                }
                insert_slot(&mut self.shard.index, IndexSlot::new(hash, location));
            }
        }
    }

    /// Removes the record of an identity, if there is one.
    pub fn remove(&mut self, hash: u64, identifier: &[u8]) {
        let Some(at) = self.find(hash, identifier) else { return };
        self.mark_dead(at);
        self.shard.count -= 1;
        // Entries that were moved on because of this one move back, so that no lookup ends too early.
        let mask = self.shard.index.len() - 1;
        let (mut hole, mut next) = (at, (at + 1) & mask);
        while self.shard.index[next].location().is_some() {
            let home = home(self.shard.index[next].print, mask);
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(hole) & mask {
                self.shard.index[hole] = self.shard.index[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.shard.index[hole] = IndexSlot::default();
    }

    /// The new version.
    pub fn finish(mut self) -> Shard {
        self.compact();
        if self.shard.index.len() > INDEX_SLOTS_MIN && self.shard.count * 6 < self.shard.index.len() {
            let slots = (self.shard.count * 2).next_power_of_two().max(INDEX_SLOTS_MIN);
            self.resize_index(slots);
        }
        if !self.tail.is_empty() {
            let (number, is_full) = (self.tail_number, self.tail.len() >= CHUNK_BYTES);
            self.close_tail();
            self.shard.open = Some(number).filter(|_| !is_full);
        }
        while self.shard.chunks.last().is_some_and(|chunk| chunk.bytes.is_empty()) {
            self.shard.chunks.pop();
        }
        self.shard.chunks.shrink_to_fit();
        self.shard
    }

    /// Copies the live records of chunks with many dead ones.
    fn compact(&mut self) {
        for number in 0..self.shard.chunks.len() {
            let Chunk { bytes, dead } = &self.shard.chunks[number];
            let is_due = *dead > bytes.len() / DEAD_PART || (self.purges && *dead > 0);
            if !is_due || number == self.tail_number {
                continue;
            }
            let bytes = std::mem::take(&mut self.shard.chunks[number]).bytes;
            let mut offset = 0;
            while let Some(record) = record_in(&bytes, offset) {
                let hash = self.hash.of(record.identifier());
                let slot = self.slot_of(hash, join(number, offset));
                offset += framed_bytes(record.bytes().len());
                let Some(slot) = slot else { continue };
                if let Some(location) = self.append(record.bytes()) {
                    self.shard.index[slot] = IndexSlot::new(hash, location);
                }
            }
            self.free.push(number);
        }
    }

    /// The slot of an identity.
    fn find(&self, hash: u64, identifier: &[u8]) -> Option<usize> {
        let mask = self.shard.index.len().checked_sub(1)?;
        let print = print(hash);
        let mut at = home(print, mask);
        loop {
            let slot = self.shard.index[at];
            let location = slot.location()?;
            if slot.print == print && self.record_at(location)?.identifier() == identifier {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    /// The slot that has this location.
    fn slot_of(&self, hash: u64, location: u32) -> Option<usize> {
        let mask = self.shard.index.len().checked_sub(1)?;
        let mut at = home(print(hash), mask);
        while self.shard.index[at].location()? != location {
            at = (at + 1) & mask;
        }
        Some(at)
    }

    fn record_at(&self, location: u32) -> Option<TraitRecord<'_>> {
        let (number, offset) = split(location);
        match number == self.tail_number {
            true => record_in(&self.tail, offset),
            false => record_in(&self.shard.chunks.get(number)?.bytes, offset),
        }
    }

    /// The record of this slot is replaced or removed.
    fn mark_dead(&mut self, at: usize) {
        let Some(location) = self.shard.index[at].location() else { return };
        let bytes = self.record_at(location).map_or(0, |record| framed_bytes(record.bytes().len()));
        match split(location).0 {
            number if number == self.tail_number => self.tail_dead += bytes,
            number => self.shard.chunks[number].dead += bytes,
        }
    }

    /// Appends a record to the tail; returns its location.
    fn append(&mut self, record: &[u8]) -> Option<u32> {
        if !self.tail.is_empty() && self.tail.len() + framed_bytes(record.len()) > CHUNK_BYTES {
            self.close_tail();
            self.tail_number = self.free_number();
        }
        if self.tail_number >= CHUNKS_MAX - 1 {
            return None;
        }
        let location = join(self.tail_number, self.tail.len());
        write_number(record.len() as u64, &mut self.tail);
        self.tail.extend_from_slice(record);
        Some(location)
    }

    fn close_tail(&mut self) {
        if self.shard.chunks.len() <= self.tail_number {
            self.shard.chunks.resize_with(self.tail_number + 1, Chunk::default);
        }
        let dead = std::mem::take(&mut self.tail_dead);
        self.shard.chunks[self.tail_number] = Chunk { bytes: self.tail.as_slice().into(), dead };
        self.tail.clear();
    }

    /// The number of a chunk that is not used.
    fn free_number(&mut self) -> usize {
        self.free.pop().unwrap_or(self.shard.chunks.len())
    }

    fn resize_index(&mut self, slots: usize) {
        let index = std::mem::replace(&mut self.shard.index, vec![IndexSlot::default(); slots].into());
        for slot in index.iter().filter(|slot| slot.location().is_some()) {
            insert_slot(&mut self.shard.index, *slot);
        }
    }
}

fn insert_slot(index: &mut [IndexSlot], slot: IndexSlot) {
    let mask = index.len() - 1;
    let mut at = home(slot.print, mask);
    while index[at].location().is_some() {
        at = (at + 1) & mask;
    }
    index[at] = slot;
}

/// The part of a hash that is in the index; its lowest byte has chosen the shard.
fn print(hash: u64) -> u32 {
    (hash >> 8) as u32
}

/// The slot that a search begins at.
fn home(print: u32, mask: usize) -> usize {
    print as usize & mask
}

/// The number of a chunk, and the offset in it.
fn split(location: u32) -> (usize, usize) {
    ((location >> OFFSET_BITS) as usize, (location & ((1 << OFFSET_BITS) - 1)) as usize)
}

fn join(number: usize, offset: usize) -> u32 {
    u32::try_from((number << OFFSET_BITS) + offset).unwrap_or(u32::MAX)
}

fn record_in(bytes: &[u8], offset: usize) -> Option<TraitRecord<'_>> {
    let mut reader = Reader { rest: bytes.get(offset..)? };
    let length = reader.length()?;
    TraitRecord::new(reader.take(length)?)
}

/// The bytes of a record with its length before it.
fn framed_bytes(record: usize) -> usize {
    let bits = (usize::BITS - record.leading_zeros()).max(1);
    record + bits.div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::evaluate::TraitValue;
    use crate::trait_table::record::{Entry, RecordWriter, Stamp, TraitHead};

    fn record(identifier: &str, text: &str) -> Vec<u8> {
        let mut writer = RecordWriter::new(TraitHead::default(), identifier);
        let value = Some(TraitValue::Text(text));
        writer.push(&Entry { key: "k", value, stamp: Stamp::default(), born: 0 });
        writer.finish()
    }

    #[test]
    fn versions_of_a_shard_are_what_a_map_is() {
        let mut random = 9_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let hasher = IdentifierHash::new(3);
        let hash = |identifier: &[u8]| hasher.of(identifier);
        let (mut shard, mut model) = (Shard::default(), BTreeMap::<String, Vec<u8>>::new());
        for version in 0..400_u64 {
            // Grows, then shrinks; one record in a hundred is larger than a chunk.
            let (purges, shrinks) = (next(8) == 0, version > 300);
            let mut editor = ShardEditor::new(&shard, hasher.clone(), purges);
            let before = (shard.count(), shard.sizes());
            let names: std::collections::BTreeSet<u64> = (0..40).map(|_| next(3000)).collect();
            for name in names {
                let name = format!("identity {name}");
                if shrinks || next(4) == 0 {
                    editor.remove(hash(name.as_bytes()), name.as_bytes());
                    model.remove(&name);
                } else {
                    let length = if next(100) == 0 { 20_000 } else { next(300) };
                    let bytes = record(&name, &"x".repeat(length as usize));
                    editor.insert(hash(name.as_bytes()), &bytes);
                    model.insert(name, bytes);
                }
            }
            let newer = editor.finish();
            assert_eq!((shard.count(), shard.sizes()), before, "the version before is as it was");
            shard = newer;
            let live: usize = model.values().map(|record| framed_bytes(record.len())).sum();
            let (bytes, dead) = shard.sizes();
            assert_eq!((shard.count(), bytes - dead), (model.len(), live));
            assert!(dead <= bytes / DEAD_PART + CHUNK_BYTES, "{dead} of {bytes} are dead");
            assert!(!purges || dead == 0, "{dead} bytes of erased records");
        }
        for name in (0..3000).map(|name| format!("identity {name}")) {
            let found = shard.find(hash(name.as_bytes()), |record| record.identifier() == name.as_bytes());
            assert_eq!(found.map(|record| record.bytes()), model.get(&name).map(Vec::as_slice), "{name}");
        }
        assert_eq!(shard.records().count(), model.len());
    }

    #[test]
    fn lengths_take_what_they_take() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 70_000] {
            let mut bytes = Vec::new();
            write_number(length as u64, &mut bytes);
            assert_eq!(framed_bytes(length), length + bytes.len());
        }
    }
}
