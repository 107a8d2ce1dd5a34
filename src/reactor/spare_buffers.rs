//! Response buffers that are kept for reuse.
use std::cell::{Cell, RefCell};

use crate::limits::{SPARE_BUFFER_BYTES_MAX, SPARE_BUFFERS_BYTES_MAX};

/// The spare buffers of a reactor, bounded in bytes.
#[derive(Debug, Default)]
pub struct SpareBuffers {
    buffers: RefCell<Vec<Vec<u8>>>,
    /// The sum of their capacities.
    bytes: Cell<usize>,
    /// The length of the last response: most clients ask for the same.
    last_bytes: Cell<usize>,
}

impl SpareBuffers {
    /// An empty buffer; [`give_back`](Self::give_back) takes it back.
    pub fn take(&self) -> Vec<u8> {
        match self.buffers.borrow_mut().pop() {
            Some(buffer) => {
                self.bytes.set(self.bytes.get() - buffer.capacity());
                buffer
            }
            // With space for a response like the last one, so that it does not grow by doubling.
            None => Vec::with_capacity(self.last_bytes.get() + self.last_bytes.get() / 8),
        }
    }

    /// Keeps a buffer, unless it is too large or there are enough.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if capacity == 0 {
            return;
        }
        self.last_bytes.set(buffer.len().min(SPARE_BUFFERS_BYTES_MAX / 4));
        if capacity <= SPARE_BUFFER_BYTES_MAX && self.bytes.get() + capacity <= SPARE_BUFFERS_BYTES_MAX {
            self.bytes.set(self.bytes.get() + capacity);
            buffer.clear();
            self.buffers.borrow_mut().push(buffer);
        }
    }
}
