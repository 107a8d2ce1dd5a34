//! Building blocks of a compiled program's tables: 32-bit ranges and the hash builder of its maps.

/// Hash builder of a program's maps: fast, and randomly seeded, so a document cannot choose names that
/// collide.
pub type TableHashBuilder = foldhash::fast::RandomState;

/// A half-open range of a table: the children of an expression, the candidates of a feature, the bytes of a
/// rendered flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: u32,
    pub to: u32,
}

impl Span {
    pub const EMPTY: Self = Self { from: 0, to: 0 };

    /// The entries of `table` in this range.
    pub fn of<T>(self, table: &[T]) -> &[T] {
        &table[self.from as usize..self.to as usize]
    }

    pub fn is_empty(self) -> bool {
        self.from == self.to
    }

    pub fn len(self) -> usize {
        (self.to - self.from) as usize
    }
}

/// Converts a length or an index to its stored form. Documents are far smaller than 4 GiB
/// (`limits::DOCUMENT_BYTES_MAX`), and so is every table compiled from one. In a release build a longer table
/// would be truncated: later ranges would be empty, never out of bounds.
#[expect(clippy::cast_possible_truncation, reason = "bounded by limits::DOCUMENT_BYTES_MAX")]
pub fn offset(length: usize) -> u32 {
    debug_assert!(u32::try_from(length).is_ok(), "bounded by the size of a document");
    length as u32
}
