//! Cooperative scheduling: a task pauses after a number of operations that completed without waiting.
//!
//! With io_uring every operation waits. With epoll an operation is tried first, so a peer that always has
//! data ready (a flood of pipelined requests) would keep the thread from other connections, timers and the
//! inbox. A task that only wakes itself does not help: monoio polls its timers only once no task is ready.
use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::task::Poll;

use crate::limits::{BUDGET_OPERATION_BYTES, BUDGET_OPERATIONS_MAX, BUDGET_PAUSE};

/// The work of one task since it last waited.
#[derive(Debug, Default)]
pub struct Budget {
    /// In operations; many bytes count as several.
    spent: Cell<u32>,
}

impl Budget {
    /// Runs an operation, after a pause if the budget is spent.
    pub async fn run<T>(&self, operation: impl Future<Output = T>) -> T {
        self.begin().await;
        let mut operation = pin!(operation);
        std::future::poll_fn(|context| {
            let polled = operation.as_mut().poll(context);
            if matches!(polled, Poll::Pending) {
                self.reset();
            }
            polled
        })
        .await
    }

    /// Counts an operation that is about to start; pauses first if the budget is spent.
    pub async fn begin(&self) {
        if self.spent.get() >= BUDGET_OPERATIONS_MAX {
            // Boxed, because every future that contains this one is moved with each request.
            Box::pin(monoio::time::sleep(BUDGET_PAUSE)).await;
            self.reset();
        }
        self.spent.set(self.spent.get() + 1);
    }

    /// The task has waited, so that others could run.
    pub fn reset(&self) {
        self.spent.set(0);
    }

    /// Counts the bytes that an operation transferred.
    pub fn spend(&self, transferred: io::Result<usize>) -> io::Result<usize> {
        if let Ok(bytes) = transferred {
            let operations = u32::try_from(bytes / BUDGET_OPERATION_BYTES).unwrap_or(BUDGET_OPERATIONS_MAX);
            self.spent.set(self.spent.get().saturating_add(operations));
        }
        transferred
    }
}
