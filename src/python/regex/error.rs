//! [`PatternError`]: why Python's `re.compile` rejects a pattern.

/// The reason, in the words of Python's `re.error`, with the offending character where Python names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError {
    message: &'static str,
    char: Option<char>,
}

impl PatternError {
    pub const fn new(message: &'static str) -> Self {
        Self { message, char: None }
    }

    pub const fn of_char(message: &'static str, char: char) -> Self {
        Self { message, char: Some(char) }
    }
}

impl std::fmt::Display for PatternError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message)?;
        self.char.map_or(Ok(()), |char| write!(f, "{char}"))
    }
}

impl std::error::Error for PatternError {}
