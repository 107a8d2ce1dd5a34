//! Kept traits in memory: records, the tables that reactors look up, and how writes change them.
//!
//! The store thread (`crate::traits`) owns the table. Each reactor has a [`TraitView`] of it: large immutable
//! shards that all threads share, and small overlays with the records that changed since the shard was built.
//! A lookup neither waits nor locks. A reactor applies its own writes to its overlay and hands them to the
//! store thread, whose [`TraitUpdate`]s replace them.
mod changes;
mod encoding;
mod key_index;
mod message;
mod record;
mod shard;
mod table;
mod view;

pub use crate::trait_table::changes::{
    Applied, BodyChanges, Changes, apply, entries, make, merge, stored_value,
};
pub use crate::trait_table::key_index::KeyIndex;
pub use crate::trait_table::message::{
    ChangedRecord, RebuiltShard, TraitChange, TraitDelta, TraitUpdate, TraitWrite, WriteKind,
};
pub use crate::trait_table::record::{Entry, RecordWriter, Stamp, TraitHead, TraitRecord};
pub use crate::trait_table::shard::Shard;
pub use crate::trait_table::table::{Rebuild, SHARDS, TableBuilder, TraitTable, shard_of};
pub use crate::trait_table::view::{TraitView, ViewLimits};
