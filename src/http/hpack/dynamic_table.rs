//! The dynamic table of a decoder (RFC 7541 2.3.2, 4).
use std::collections::VecDeque;

use crate::http::hpack::static_table::STATIC_TABLE;
use crate::limits::HPACK_TABLE_BYTES_MAX;

/// What an entry counts beyond its name and value, bytes (RFC 7541 4.1).
const ENTRY_BYTES: usize = 32;

/// The most that a table takes, bytes: see [`DynamicTable::memory`].
pub const TABLE_MEMORY_MAX: usize = HPACK_TABLE_BYTES_MAX
    + (HPACK_TABLE_BYTES_MAX / ENTRY_BYTES).next_power_of_two() * size_of::<TableEntry>();

/// Entries, the newest first, after those of the static table.
#[derive(Debug)]
pub struct DynamicTable {
    entries: VecDeque<TableEntry>,
    bytes: usize,
    bytes_max: usize,
    generation: u64,
}

#[derive(Debug)]
struct TableEntry {
    text: Box<[u8]>,
    name_bytes: usize,
}

impl TableEntry {
    fn bytes(&self) -> usize {
        self.text.len() + ENTRY_BYTES
    }
}

impl Default for DynamicTable {
    fn default() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: HPACK_TABLE_BYTES_MAX, generation: 0 }
    }
}

impl DynamicTable {
    /// A number that changes whenever the table does.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The name and value at an index; 1 is the first of the static table.
    pub fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        if let Some((name, value)) = STATIC_TABLE.get(index.checked_sub(1)?) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - 1 - STATIC_TABLE.len())?;
        Some(entry.text.split_at(entry.name_bytes))
    }

    /// The memory of the entries, bytes.
    pub fn memory(&self) -> usize {
        let text_bytes = self.bytes - self.entries.len() * ENTRY_BYTES;
        self.entries.capacity() * size_of::<TableEntry>() + text_bytes
    }

    /// Adds an entry. One that is larger than the table empties it (RFC 7541 4.4).
    pub fn insert(&mut self, name: &[u8], value: &[u8]) {
        self.generation += 1;
        let entry = TableEntry { text: [name, value].concat().into(), name_bytes: name.len() };
        self.evict(self.bytes_max.saturating_sub(entry.bytes()));
        if entry.bytes() <= self.bytes_max {
            self.bytes += entry.bytes();
            self.entries.push_front(entry);
        }
    }

    /// Changes the size. False: it exceeds what this decoder allows.
    pub fn resize(&mut self, bytes_max: usize) -> bool {
        if bytes_max > HPACK_TABLE_BYTES_MAX {
            return false;
        }
        self.generation += 1;
        self.bytes_max = bytes_max;
        self.evict(bytes_max);
        true
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.bytes -= oldest.bytes();
        }
    }
}
