//! Taking turns: no task keeps the thread from the others by never having to wait.
//!
//! In: an operation that may be done at once. Out: what it gave. Invariant: a task whose operations
//! are done at once rests for a moment when it has done enough, so that other connections, the timers
//! and the inbox get their turn. A ring makes each operation wait; epoll tries it first, and a peer
//! that always has something ready (a flood of pipelined requests) would have the thread for itself.
//! To wake oneself is not enough: monoio looks at its timers only once no task is ready.
use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::task::Poll;

use crate::limits::{TURN_BYTES, TURN_OPERATIONS_MAX, TURN_REST};

/// What a task did since it last waited.
#[derive(Debug, Default)]
pub struct Budget {
    /// In operations; many bytes count as several.
    spent: Cell<u32>,
}

impl Budget {
    /// Runs an operation, after a rest if the turn is over.
    pub async fn take<T>(&self, operation: impl Future<Output = T>) -> T {
        self.begin().await;
        let mut operation = pin!(operation);
        std::future::poll_fn(|context| {
            let polled = operation.as_mut().poll(context);
            if matches!(polled, Poll::Pending) {
                self.waited();
            }
            polled
        })
        .await
    }

    /// Before an operation: rests if the turn is over.
    pub async fn begin(&self) {
        if self.spent.get() >= TURN_OPERATIONS_MAX {
            // In a box, for every future that holds this one is moved about with each request.
            Box::pin(monoio::time::sleep(TURN_REST)).await;
            self.waited();
        }
        self.spent.set(self.spent.get() + 1);
    }

    /// The others had their turn.
    pub fn waited(&self) {
        self.spent.set(0);
    }

    /// Notes how many bytes an operation moved.
    pub fn spend(&self, moved: io::Result<usize>) -> io::Result<usize> {
        if let Ok(bytes) = moved {
            let operations = u32::try_from(bytes / TURN_BYTES).unwrap_or(TURN_OPERATIONS_MAX);
            self.spent.set(self.spent.get().saturating_add(operations));
        }
        moved
    }
}
