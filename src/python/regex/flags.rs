//! Flags of a pattern, set by `(?aimsux)` and `(?aimsux-imsx:...)`.
/// A set of flags, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegexFlags(pub u8);

impl RegexFlags {
    pub const ASCII: Self = Self(1);
    pub const IGNORE_CASE: Self = Self(2);
    pub const MULTI_LINE: Self = Self(4);
    pub const DOT_ALL: Self = Self(8);
    pub const UNICODE: Self = Self(16);
    pub const VERBOSE: Self = Self(32);
    /// Flags that exclude each other.
    pub const TYPES: Self = Self(1 | 16);

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}
