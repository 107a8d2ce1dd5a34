//! The part of a response body that the peer's windows do not allow yet.
use std::any::Any;
use std::rc::Rc;

use bytes::Bytes;

use crate::limits::{WRITE_BYTES_MIN, WRITE_PARTS_MAX};

/// The end of a large body that is sent from where it is, and what keeps its memory valid.
pub struct SharedTail {
    // Dropped before its owner.
    pub bytes: Bytes,
    pub owner: Rc<dyn Any>,
}

impl std::fmt::Debug for SharedTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedTail({} bytes)", self.bytes.len())
    }
}

/// Bytes to send as DATA.
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Boxed, because few responses have one.
    tail: Option<Box<SharedTail>>,
    /// Whether the stream ends with them. False: an event stream.
    pub is_last: bool,
    /// The end of the stream was sent.
    pub is_ended: bool,
    /// The peer has made a whole part of progress when this many bytes are sent.
    part_bytes: usize,
    part_left: usize,
}

impl Outgoing {
    pub fn new(bytes: Vec<u8>, tail: Option<SharedTail>, is_last: bool) -> Self {
        let mut outgoing = Self { bytes, tail: tail.map(Box::new), is_last, ..Self::default() };
        outgoing.restart();
        outgoing
    }

    fn restart(&mut self) {
        self.part_bytes = WRITE_BYTES_MIN.max(self.left() / WRITE_PARTS_MAX);
        self.part_left = self.part_bytes;
    }

    /// Appends to the body of an event stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.restart();
    }

    /// Bytes that are not sent yet.
    pub fn left(&self) -> usize {
        self.bytes.len() + self.tail.as_ref().map_or(0, |tail| tail.bytes.len()) - self.sent
    }

    /// Bytes of memory that only this body uses.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends the next `length` bytes to `out`, of those that are left. Returns whether the peer has taken a
    /// whole part since this last returned true.
    pub fn take(&mut self, length: usize, out: &mut Vec<u8>) -> bool {
        let end = self.sent + length;
        if self.sent < self.bytes.len() {
            out.extend_from_slice(&self.bytes[self.sent..end.min(self.bytes.len())]);
        }
        if let Some(tail) = self.tail.as_ref().filter(|_| end > self.bytes.len()) {
            let start = self.sent.max(self.bytes.len()) - self.bytes.len();
            out.extend_from_slice(&tail.bytes[start..end - self.bytes.len()]);
        }
        self.sent = end;
        if self.left() == 0 {
            (self.bytes, self.tail, self.sent) = (Vec::new(), None, 0);
        }
        self.part_left = self.part_left.saturating_sub(length);
        let is_part = self.part_left == 0;
        if is_part {
            self.part_left = self.part_bytes;
        }
        is_part
    }
}
