//! What reactors send to the store thread, and what it sends to them.
use std::sync::Arc;

use crate::trait_table::shard::Shard;
use crate::trait_table::table::TraitTable;

/// A write of one identity.
#[derive(Debug)]
pub struct TraitWrite {
    /// The client-side key of the environment.
    pub environment: Arc<str>,
    pub identifier: Box<str>,
    pub operation: TraitOperation,
}

#[derive(Debug)]
pub enum TraitOperation {
    /// Applies these changes ([`Changes`](crate::trait_table::Changes)); makes the identity.
    Set(Box<[u8]>),
    /// Adds to a trait that is an integer or not there; makes the identity.
    Add { key: Box<str>, amount: i64 },
    /// The identity was requested again.
    Touch,
    /// Removes the identity.
    Erase,
}

impl TraitWrite {
    /// The memory that it takes while it waits, bytes.
    pub fn bytes(&self) -> usize {
        let changes = match &self.operation {
            TraitOperation::Set(changes) => changes.len(),
            TraitOperation::Add { key, .. } => key.len(),
            TraitOperation::Touch | TraitOperation::Erase => 0,
        };
        size_of::<Self>() + self.identifier.len() + changes
    }
}

/// The record of an identity after a write. An erased one hides what the shard has.
#[derive(Clone, Debug)]
pub struct ChangedRecord {
    pub environment: Arc<str>,
    pub hash: u64,
    pub record: Arc<[u8]>,
}

/// A shard that was built anew, with all records up to this delta.
#[derive(Clone, Debug)]
pub struct RebuiltShard {
    pub environment: Arc<str>,
    pub index: usize,
    pub shard: Arc<Shard>,
}

/// Changes of the table: first records, then shards.
#[derive(Debug, Default)]
pub struct TraitDelta {
    pub records: Vec<ChangedRecord>,
    pub shards: Vec<RebuiltShard>,
}

/// An update of a reactor's view.
#[derive(Clone, Debug)]
pub struct TraitUpdate {
    pub change: TraitChange,
    /// How many writes of this reactor the change includes, since it started.
    pub acknowledged: u64,
}

/// A delta, or the whole table for a reactor that missed one.
#[derive(Clone, Debug)]
pub enum TraitChange {
    Delta(Arc<TraitDelta>),
    Table(Box<TraitTable>),
}
