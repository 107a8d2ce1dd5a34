//! Hands what this process wrote to the queue that is sent upstream (`traits.forward`).
use std::time::SystemTime;

use crate::clock;
use crate::trait_forwarding::queue::SharedTraitQueue;
use crate::traits::changes::{ChangeKind, TraitChanges};
use crate::traits::memory::TraitMemory;
use crate::traits::sink::{Inform, TraitSink};

/// Forwards writes. What other processes wrote, they forward themselves.
#[derive(Debug)]
pub struct ForwardSink {
    queue: SharedTraitQueue,
}

impl ForwardSink {
    pub fn new(queue: SharedTraitQueue) -> Self {
        Self { queue }
    }
}

impl TraitSink for ForwardSink {
    fn load(&mut self, _: &mut TraitMemory, _: Inform<'_>) {}

    fn changed(&mut self, changes: &TraitChanges<'_>) {
        let Ok(identifier) = std::str::from_utf8(changes.record.identifier()) else { return };
        match changes.kind {
            ChangeKind::Written if !changes.entries.is_empty() => {
                let (mut queue, now) = (self.queue.lock(), clock::wall());
                for entry in changes.entries.iter() {
                    queue.add(changes.environment, identifier, entry.key, entry.value, now);
                }
            }
            ChangeKind::Erased | ChangeKind::ErasedElsewhere => {
                self.queue.lock().erase(changes.environment, identifier);
            }
            ChangeKind::Written | ChangeKind::Seen | ChangeKind::Merged | ChangeKind::Evicted => {}
        }
    }

    fn tick(&mut self, _: &mut TraitMemory, _: SystemTime, _: bool, _: Inform<'_>) {}
}
