//! The decoder of header blocks (RFC 7541 3, 5, 6).
use crate::http::hpack::dynamic_table::{DynamicTable, TABLE_MEMORY_MAX};
use crate::http::hpack::huffman;
use crate::limits::HPACK_SCRATCH_BYTES_MAX;

/// Why a block was not decoded. The table is then unknown, so the connection must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HpackError {
    /// Not valid by RFC 7541.
    Malformed,
    /// The receiver of the fields has stopped.
    Stopped,
}

/// The most that a decoder keeps, bytes: see [`HpackDecoder::memory`].
pub const DECODER_BYTES_MAX: usize = TABLE_MEMORY_MAX + 2 * HPACK_SCRATCH_BYTES_MAX;

/// The decoder of one connection.
#[derive(Debug, Default)]
pub struct HpackDecoder {
    table: DynamicTable,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl HpackDecoder {
    /// A number that changes whenever the dynamic table does. A block that leaves it unchanged means the same
    /// until the number changes.
    pub fn generation(&self) -> u64 {
        self.table.generation()
    }

    /// The memory of the table and of the scratch buffers, bytes.
    pub fn memory(&self) -> usize {
        self.table.memory() + self.name.capacity() + self.value.capacity()
    }

    /// Decodes a whole block and passes each name and value to `field`, which returns false to stop.
    ///
    /// # Errors
    /// The block is malformed, or `field` returned false.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), HpackError> {
        let mut rest = block;
        let mut is_first = true;
        while let Some(&first) = rest.first() {
            if first & 0xe0 == 0x20 {
                // Size updates come only at the start of a block (RFC 7541 4.2).
                let bytes_max = integer(&mut rest, 5)?;
                if !is_first || !self.table.resize(bytes_max) {
                    return Err(HpackError::Malformed);
                }
                continue;
            }
            is_first = false;
            let goes_on = if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.table.get(index).ok_or(HpackError::Malformed)?;
                field(name, value)
            } else {
                self.literal(first, &mut rest)?;
                field(&self.name, &self.value)
            };
            if !goes_on {
                return Err(HpackError::Stopped);
            }
        }
        for scratch in [&mut self.name, &mut self.value] {
            if scratch.capacity() > HPACK_SCRATCH_BYTES_MAX {
                *scratch = Vec::new();
            }
        }
        Ok(())
    }

    /// Reads a literal field into the scratch buffers (RFC 7541 6.2).
    fn literal(&mut self, first: u8, rest: &mut &[u8]) -> Result<(), HpackError> {
        let is_indexed = first & 0x40 != 0;
        let index = integer(rest, if is_indexed { 6 } else { 4 })?;
        self.name.clear();
        self.value.clear();
        if index == 0 {
            string(rest, &mut self.name)?;
        } else {
            let (name, _) = self.table.get(index).ok_or(HpackError::Malformed)?;
            self.name.extend_from_slice(name);
        }
        string(rest, &mut self.value)?;
        if is_indexed {
            self.table.insert(&self.name, &self.value);
        }
        Ok(())
    }
}

/// The bytes after the prefix that an integer may have: more than 2^21 is never needed here.
const INTEGER_BYTES_MAX: u32 = 3;

/// Reads an integer with a prefix of this many bits (RFC 7541 5.1).
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, HpackError> {
    let (first, mut after) = rest.split_first().ok_or(HpackError::Malformed)?;
    let prefix_max = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & prefix_max;
    if value == prefix_max {
        let mut index = 0;
        loop {
            let (byte, next) = after.split_first().ok_or(HpackError::Malformed)?;
            after = next;
            if index == INTEGER_BYTES_MAX {
                return Err(HpackError::Malformed);
            }
            value += usize::from(byte & 0x7f) << (7 * index);
            index += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = after;
    Ok(value)
}

/// Appends a string (RFC 7541 5.2).
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HpackError::Malformed)?;
    *rest = after;
    if !is_huffman {
        out.extend_from_slice(text);
    } else if !huffman::decode(text, out) {
        return Err(HpackError::Malformed);
    }
    Ok(())
}
