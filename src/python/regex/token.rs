//! Lexer of patterns: characters, and backslashes with the character they escape.
//!
//! One token of lookahead, as in Python's tokenizer: a backslash at the end is an error as soon as it becomes
//! the next token.
use crate::python::regex::error::PatternError;

/// A character, or a backslash and one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegexToken {
    Char(char),
    Escape(char),
}

#[derive(Debug)]
pub struct Tokens {
    chars: Vec<char>,
    /// Where the token after [`Self::next`] starts.
    index: usize,
    next: Option<RegexToken>,
}

impl Tokens {
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let mut tokens = Self { chars: text.chars().collect(), index: 0, next: None };
        tokens.advance()?;
        Ok(tokens)
    }

    fn advance(&mut self) -> Result<(), PatternError> {
        self.next = match self.chars.get(self.index) {
            None => None,
            Some('\\') => match self.chars.get(self.index + 1) {
                None => return Err(PatternError::new("bad escape (end of pattern)")),
                Some(char) => Some(RegexToken::Escape(*char)),
            },
            Some(char) => Some(RegexToken::Char(*char)),
        };
        self.index += Self::width(self.next);
        Ok(())
    }

    fn width(token: Option<RegexToken>) -> usize {
        match token {
            None => 0,
            Some(RegexToken::Char(_)) => 1,
            Some(RegexToken::Escape(_)) => 2,
        }
    }

    pub fn peek(&self) -> Option<RegexToken> {
        self.next
    }

    /// Consumes the next token.
    pub fn take(&mut self) -> Result<Option<RegexToken>, PatternError> {
        let token = self.next;
        self.advance()?;
        Ok(token)
    }

    /// Consumes the next token, which must be a plain character.
    pub fn take_char(&mut self, error: &'static str) -> Result<char, PatternError> {
        match self.take()? {
            Some(RegexToken::Char(char)) => Ok(char),
            _ => Err(PatternError::new(error)),
        }
    }

    /// Consumes the next token if it is this character.
    pub fn take_if(&mut self, char: char) -> Result<bool, PatternError> {
        let found = self.next == Some(RegexToken::Char(char));
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    /// Consumes up to `most` characters that `accept` returns true for.
    pub fn take_while(&mut self, most: usize, accept: fn(&char) -> bool) -> Result<String, PatternError> {
        let mut taken = String::new();
        while taken.len() < most {
            match self.next {
                Some(RegexToken::Char(char)) if accept(&char) => taken.push(char),
                _ => break,
            }
            self.advance()?;
        }
        Ok(taken)
    }

    /// Consumes a name and the character `end` after it.
    pub fn take_until(&mut self, end: char) -> Result<String, PatternError> {
        let mut name = String::new();
        loop {
            match self.take()? {
                None => return Err(PatternError::new("unterminated name")),
                Some(RegexToken::Char(char)) if char == end => break,
                Some(RegexToken::Char(char)) => name.push(char),
                Some(RegexToken::Escape(char)) => name.extend(['\\', char]),
            }
        }
        if name.is_empty() { Err(PatternError::new("missing name")) } else { Ok(name) }
    }

    /// The start of the next token, for [`Self::seek`].
    pub fn position(&self) -> usize {
        self.index - Self::width(self.next)
    }

    pub fn seek(&mut self, position: usize) -> Result<(), PatternError> {
        self.index = position;
        self.advance()
    }
}
