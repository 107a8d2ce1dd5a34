//! A change of an identity, as sinks get it.
use crate::trait_table::{Entry, Stamp, TraitRecord, entries};

/// Why a record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A write of this process.
    Written,
    /// The identity was seen again: only its head changed.
    Seen,
    /// Changes of another process.
    Merged,
    /// Erased on request.
    Erased,
    /// Erased by another process.
    ErasedElsewhere,
    /// Removed for the limits or its age.
    Evicted,
}

/// A change of one identity, for sinks.
#[derive(Debug)]
pub struct TraitChanges<'a> {
    pub environment: &'a str,
    /// The hash of the identifier ([`TraitTable::hash`](crate::trait_table::TraitTable::hash)).
    pub hash: u64,
    pub kind: ChangeKind,
    /// The record after the change: all keys in their order, with stamps. Erased: only the identifier.
    pub record: TraitRecord<'a>,
    /// The keys of this write, with `None` for those that it deletes, in the order sent.
    pub entries: ChangedEntries<'a>,
    /// Of a write that adds to an integer: its only entry has the sum.
    pub addition: Option<Addition>,
    /// When it was written, for an erased identity too.
    pub stamp: Stamp,
}

/// Keys as a reactor sent them, or as another process stamped them. They are decoded where they are needed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChangedEntries<'a> {
    sent: &'a [u8],
    /// The stamp before the first of those.
    before: Stamp,
    stamped: &'a [Entry<'a>],
}

impl<'a> ChangedEntries<'a> {
    /// Entries of a reactor, which get the stamps after `before`.
    pub fn of_sent(sent: &'a [u8], before: Stamp) -> Self {
        Self { sent, before, stamped: &[] }
    }

    pub fn of_stamped(stamped: &'a [Entry<'a>]) -> Self {
        Self { stamped, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.stamped.is_empty()
    }

    pub fn iter(self) -> impl Iterator<Item = Entry<'a>> {
        stamped(self.sent, self.before).chain(self.stamped.iter().copied())
    }
}

/// An increment, which other processes must add too instead of taking the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addition {
    pub amount: i64,
    /// The stamp of the value that it was added to. `None`: there was none, so that it was added to 0.
    pub before: Option<Stamp>,
}

/// The entries of a write with the stamps after `before`.
fn stamped(changes: &[u8], before: Stamp) -> impl Iterator<Item = Entry<'_>> {
    let mut stamp = before;
    entries(changes).map(move |entry| {
        stamp = stamp.next();
        Entry { stamp, born: stamp.clock, ..entry }
    })
}
