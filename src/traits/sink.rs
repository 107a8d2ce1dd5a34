//! Where the store thread hands changes to: a disk, a fleet, or upstream.
//!
//! A sink is loaded once, is informed of each change in the order of the changes, and does its own work in
//! [`TraitSink::tick`]. It must not block there: what waits for a disk or a network has a thread.
use std::time::SystemTime;

use crate::traits::changes::TraitChanges;
use crate::traits::memory::TraitMemory;

/// Informs the other sinks of what one of them merges.
pub type Inform<'a> = &'a mut dyn FnMut(&TraitChanges<'_>);

/// A part of the store thread that persists, shares or forwards changes. All calls are on that thread.
pub trait TraitSink: Send {
    /// Records that were stored before. Called once, before the first write; reactors wait for it. Sinks that
    /// were loaded before are informed of what it merges.
    fn load(&mut self, memory: &mut TraitMemory, inform: Inform<'_>);

    /// An identity changed.
    fn changed(&mut self, changes: &TraitChanges<'_>);

    /// After each group of writes, and every `TICK`: writes what is due, and merges what other processes
    /// wrote, of which it informs the others. With `is_last` everything is written: the process ends.
    fn tick(&mut self, memory: &mut TraitMemory, now: SystemTime, is_last: bool, inform: Inform<'_>);

    /// Whether deleted keys must leave tombstones, so that other processes do not bring them back.
    fn needs_tombstones(&self) -> bool {
        false
    }
}
