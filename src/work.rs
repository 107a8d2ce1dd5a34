//! Counts of work, which builds with debug assertions keep for tests and fuzz targets.
//!
//! A request may cost time in proportion to its bytes and to the document; anything beyond must be spent
//! from a step budget. The fuzz targets assert this with these counts. Release builds count nothing.
#[cfg(debug_assertions)]
use std::cell::Cell;

/// Work since the last [`take`], of this thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Steps that no budget was charged for: values, conditions, list items, or 64 bytes of text.
    pub free: u64,
    /// Steps of budgets ([`crate::step_budget`]).
    pub charged: u64,
}

/// Bytes that are scanned in a step.
pub const BYTES_PER_STEP: usize = 64;

#[cfg(debug_assertions)]
thread_local! {
    static WORK: Cell<Work> = const { Cell::new(Work { free: 0, charged: 0 }) };
}

/// Counts steps that no budget is charged for.
#[inline]
pub fn count(steps: usize) {
    add(steps, 0);
}

/// Counts a text that is scanned.
#[inline]
pub fn count_bytes(bytes: usize) {
    add(1 + bytes / BYTES_PER_STEP, 0);
}

/// Counts steps of a budget.
#[inline]
pub fn charge(steps: usize) {
    add(0, steps);
}

/// What was counted since the last call; nothing in a build without debug assertions.
pub fn take() -> Work {
    #[cfg(debug_assertions)]
    return WORK.take();
    #[cfg(not(debug_assertions))]
    Work::default()
}

#[inline]
fn add(free: usize, charged: usize) {
    #[cfg(debug_assertions)]
    WORK.with(|work| {
        let Work { free: before, charged: charged_before } = work.get();
        let sum = |count: u64, steps: usize| count.saturating_add(steps as u64);
        work.set(Work { free: sum(before, free), charged: sum(charged_before, charged) });
    });
    #[cfg(not(debug_assertions))]
    let _ = (free, charged);
}
