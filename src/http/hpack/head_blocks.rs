//! A cache of encoded response heads: status, date, media type and the fields that a handler added.
//!
//! A hit requires that all of them are equal. The encoding depends on no table, so connections share it.
use crate::http::date::DateLine;
use crate::http::hpack::encoder;
use crate::limits::{CACHED_BLOCK_BYTES_MAX, CACHED_BLOCKS_MAX};

/// The encoded heads of one reactor.
#[derive(Debug, Default)]
pub struct HeadBlocks {
    entries: Vec<HeadBlock>,
    /// The entry to replace next.
    next: usize,
}

#[derive(Debug, Default)]
struct HeadBlock {
    status: u16,
    date_seconds: u64,
    content_type: &'static [u8],
    fields: Vec<u8>,
    block: Vec<u8>,
}

impl HeadBlocks {
    /// Appends the encoded head. `content_type` and `fields` are rendered header lines.
    pub fn append(
        &mut self,
        status: u16,
        date: &DateLine,
        content_type: &'static [u8],
        fields: &[u8],
        out: &mut Vec<u8>,
    ) {
        let seconds = date.seconds();
        let is_hit = |entry: &&HeadBlock| {
            entry.status == status
                && entry.date_seconds == seconds
                && entry.content_type == content_type
                && entry.fields == fields
        };
        if let Some(entry) = self.entries.iter().find(is_hit) {
            return out.extend_from_slice(&entry.block);
        }
        let start = out.len();
        encoder::status(status, out);
        encoder::lines(date.line(), out);
        encoder::lines(content_type, out);
        encoder::lines(fields, out);
        if fields.len() <= CACHED_BLOCK_BYTES_MAX {
            let (fields, block) = (fields.to_vec(), out[start..].to_vec());
            self.insert(HeadBlock { status, date_seconds: seconds, content_type, fields, block });
        }
    }

    fn insert(&mut self, entry: HeadBlock) {
        // The head of an earlier second is not used again.
        let is_outdated = |old: &HeadBlock| {
            (old.status, old.content_type, &old.fields) == (entry.status, entry.content_type, &entry.fields)
        };
        if let Some(old) = self.entries.iter_mut().find(|old| is_outdated(old)) {
            *old = entry;
        } else if self.entries.len() < CACHED_BLOCKS_MAX {
            self.entries.push(entry);
        } else {
            self.entries[self.next] = entry;
            self.next = (self.next + 1) % CACHED_BLOCKS_MAX;
        }
    }
}
