//! What reactors send to the store thread, and what it sends to them.
use std::sync::Arc;

use crate::trait_table::record::{RecordWriter, TraitHead, TraitRecord};
use crate::trait_table::shard::Shard;
use crate::trait_table::table::TraitTable;

/// A write of one identity.
#[derive(Clone, Debug)]
pub struct TraitWrite {
    /// The client-side key of the environment.
    pub environment: Arc<str>,
    pub kind: WriteKind,
    /// A record with the identifier, and with what is written as entries without valid stamps.
    message: Arc<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// Applies changes ([`Changes`](crate::trait_table::Changes)); makes the identity.
    Set,
    /// The same for an identity that the reactor did not have: the message is its record after it. So many
    /// keys, each once, none deleted.
    Make(u32),
    /// Adds to a trait that is an integer or not there; makes the identity. The entry has the amount.
    Add,
    /// The identity was requested again.
    Touch,
    /// Removes the identity.
    Erase,
}

impl TraitWrite {
    /// With entries, as in [`Changes`](crate::trait_table::Changes).
    pub fn new(environment: Arc<str>, kind: WriteKind, identifier: &str, entries: &[u8]) -> Self {
        let message = RecordWriter::with_entries(TraitHead::default(), identifier, entries);
        Self { environment, kind, message: message.into() }
    }

    /// Makes an identity with this record of so many keys.
    pub fn make(environment: Arc<str>, record: Arc<[u8]>, keys: u32) -> Self {
        Self { environment, kind: WriteKind::Make(keys), message: record }
    }

    /// The identifier and the entries.
    pub fn parts(&self) -> Option<(&str, &[u8])> {
        let record = TraitRecord::new(&self.message)?;
        Some((std::str::from_utf8(record.identifier()).ok()?, record.entries_bytes()))
    }

    /// The memory that it takes while it waits, bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.message.len()
    }
}

/// The record of an identity after a write. An erased one hides what the shard has.
#[derive(Clone, Debug)]
pub struct ChangedRecord {
    pub environment: Arc<str>,
    pub hash: u64,
    pub record: Arc<[u8]>,
    /// The reactor whose write made the identity: it has this record already.
    pub writer: Option<usize>,
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
