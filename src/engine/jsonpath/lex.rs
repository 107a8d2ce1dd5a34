//! The JSONPath lexer. Accepts what PyPI's jsonpath-rfc9535 0.2.0 accepts.
//!
//! The package is laxer than RFC 9535 in places (a name may have a hyphen) and stricter in others (no
//! unquoted characters beyond the BMP). Both matter, because they decide whether a property is a path or the
//! name of a trait.

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    And,
    Colon,
    Comma,
    Current,
    DoubleDot,
    DoubleQuoted,
    Equal,
    End,
    False,
    Filter,
    Float,
    Function,
    GreaterEqual,
    Greater,
    Index,
    Int,
    OpenBracket,
    LessEqual,
    OpenParen,
    Less,
    NotEqual,
    Not,
    Null,
    Or,
    Property,
    CloseBracket,
    Root,
    CloseParen,
    SingleQuoted,
    True,
    Wild,
}

/// A token and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathToken {
    pub kind: TokenKind,
    pub text: String,
}

/// The grammar rule that applies next.
enum LexState {
    Segment,
    Descendant,
    Shorthand,
    Bracketed,
    Filter,
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    filters: usize,
    /// Number of open parentheses in each enclosing function call.
    calls: Vec<usize>,
    brackets: Vec<char>,
    tokens: Vec<PathToken>,
}

/// The tokens of `text`, ending with [`TokenKind::End`]; `None` if it is not a JSONPath.
pub fn tokens(text: &str) -> Option<Vec<PathToken>> {
    let mut lexer = Lexer {
        chars: text.chars().collect(),
        at: 0,
        filters: 0,
        calls: Vec::new(),
        brackets: Vec::new(),
        tokens: Vec::new(),
    };
    if lexer.next()? != '$' {
        return None;
    }
    lexer.emit(TokenKind::Root, "$");
    let mut state = LexState::Segment;
    loop {
        let next = match state {
            LexState::Segment => lexer.segment()?,
            LexState::Descendant => Some(lexer.descendant()?),
            LexState::Shorthand => Some(lexer.shorthand()?),
            LexState::Bracketed => Some(lexer.bracketed()?),
            LexState::Filter => Some(lexer.filter()?),
        };
        match next {
            Some(next) => state = next,
            None => break,
        }
    }
    lexer.brackets.is_empty().then_some(lexer.tokens)
}

impl Lexer {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek();
        self.at += usize::from(char.is_some());
        char
    }

    fn emit(&mut self, kind: TokenKind, text: &str) {
        self.tokens.push(PathToken { kind, text: text.to_owned() });
    }

    fn take(&mut self, literal: &str) -> bool {
        let rest = self.chars.get(self.at..).unwrap_or_default();
        let found =
            rest.len() >= literal.len() && literal.chars().eq(rest.iter().take(literal.len()).copied());
        if found {
            self.at += literal.len();
        }
        found
    }

    /// Emits the next `count` characters as a token.
    fn take_token(&mut self, kind: TokenKind, count: usize) {
        let text: String = self.chars.get(self.at..self.at + count).unwrap_or_default().iter().collect();
        self.at += count;
        self.tokens.push(PathToken { kind, text });
    }

    fn skip_blanks(&mut self) -> bool {
        let before = self.at;
        while matches!(self.peek(), Some(' ' | '\n' | '\r' | '\t')) {
            self.at += 1;
        }
        self.at > before
    }

    /// Between two segments. `Some(None)` is the end of the path.
    #[expect(clippy::option_option, reason = "outer: not a JSONPath; inner: its end")]
    fn segment(&mut self) -> Option<Option<LexState>> {
        if self.skip_blanks() && self.peek().is_none() {
            return None;
        }
        match self.peek() {
            None => {
                self.emit(TokenKind::End, "");
                Some(None)
            }
            Some('.') => {
                self.at += 1;
                if self.take(".") {
                    self.emit(TokenKind::DoubleDot, "..");
                    return Some(Some(LexState::Descendant));
                }
                Some(Some(LexState::Shorthand))
            }
            Some('[') => Some(Some(self.open_bracket())),
            Some(_) if self.filters > 0 => Some(Some(LexState::Filter)),
            Some(_) => None,
        }
    }

    fn open_bracket(&mut self) -> LexState {
        self.at += 1;
        self.emit(TokenKind::OpenBracket, "[");
        self.brackets.push('[');
        LexState::Bracketed
    }

    fn descendant(&mut self) -> Option<LexState> {
        match self.peek()? {
            '*' => {
                self.take_token(TokenKind::Wild, 1);
                Some(LexState::Segment)
            }
            '[' => Some(self.open_bracket()),
            _ => self.name(),
        }
    }

    fn shorthand(&mut self) -> Option<LexState> {
        if self.peek()? == '*' {
            self.take_token(TokenKind::Wild, 1);
            return Some(LexState::Segment);
        }
        self.name()
    }

    fn name(&mut self) -> Option<LexState> {
        let is_start = |char: char| matches!(char, '\u{80}'..='\u{FFFF}' | 'a'..='z' | 'A'..='Z' | '_');
        let rest = self.chars.get(self.at..).unwrap_or_default();
        if !rest.first().copied().is_some_and(is_start) {
            return None;
        }
        let count =
            rest.iter().take_while(|char| is_start(**char) || char.is_ascii_digit() || **char == '-').count();
        self.take_token(TokenKind::Property, count);
        Some(LexState::Segment)
    }

    fn digits_from(&self, at: usize) -> usize {
        self.chars.get(at..).unwrap_or_default().iter().take_while(|char| char.is_ascii_digit()).count()
    }

    fn bracketed(&mut self) -> Option<LexState> {
        loop {
            self.skip_blanks();
            match self.peek()? {
                ']' => {
                    if self.brackets.pop() != Some('[') {
                        return None;
                    }
                    self.take_token(TokenKind::CloseBracket, 1);
                    return Some(LexState::Segment);
                }
                '*' => self.take_token(TokenKind::Wild, 1),
                '?' => {
                    self.take_token(TokenKind::Filter, 1);
                    self.filters += 1;
                    return Some(LexState::Filter);
                }
                ',' => self.take_token(TokenKind::Comma, 1),
                ':' => self.take_token(TokenKind::Colon, 1),
                quote @ ('\'' | '"') => self.string(quote)?,
                _ => {
                    let sign = usize::from(self.peek() == Some('-'));
                    let digits = self.digits_from(self.at + sign);
                    if digits == 0 {
                        return None;
                    }
                    self.take_token(TokenKind::Index, sign + digits);
                }
            }
        }
    }

    fn string(&mut self, quote: char) -> Option<()> {
        self.at += 1;
        let start = self.at;
        loop {
            match self.next()? {
                '\\' => {
                    let escaped = self.next()?;
                    if !matches!(escaped, 'b' | 'f' | 'n' | 'r' | 't' | 'u' | '/' | '\\') && escaped != quote
                    {
                        return None;
                    }
                }
                char if char == quote => break,
                _ => {}
            }
        }
        let text: String = self.chars.get(start..self.at - 1).unwrap_or_default().iter().collect();
        self.emit(if quote == '\'' { TokenKind::SingleQuoted } else { TokenKind::DoubleQuoted }, &text);
        Some(())
    }

    fn filter(&mut self) -> Option<LexState> {
        loop {
            self.skip_blanks();
            match self.peek()? {
                ']' => {
                    self.filters = self.filters.saturating_sub(1);
                    return Some(LexState::Bracketed);
                }
                ',' => {
                    self.take_token(TokenKind::Comma, 1);
                    if self.calls.is_empty() {
                        self.filters = self.filters.saturating_sub(1);
                        return Some(LexState::Bracketed);
                    }
                }
                quote @ ('\'' | '"') => self.string(quote)?,
                '(' => {
                    self.take_token(TokenKind::OpenParen, 1);
                    self.brackets.push('(');
                    if let Some(open) = self.calls.last_mut() {
                        *open += 1;
                    }
                }
                ')' => self.close_paren()?,
                '$' => {
                    self.take_token(TokenKind::Root, 1);
                    return Some(LexState::Segment);
                }
                '@' => {
                    self.take_token(TokenKind::Current, 1);
                    return Some(LexState::Segment);
                }
                '.' => return Some(LexState::Segment),
                _ => self.operator_or_literal()?,
            }
        }
    }

    fn close_paren(&mut self) -> Option<()> {
        if self.brackets.pop() != Some('(') {
            return None;
        }
        self.take_token(TokenKind::CloseParen, 1);
        match self.calls.last_mut() {
            Some(1) => drop(self.calls.pop()),
            Some(open) => *open -= 1,
            None => {}
        }
        Some(())
    }

    fn operator_or_literal(&mut self) -> Option<()> {
        const WORDS: [(&str, TokenKind); 12] = [
            ("!=", TokenKind::NotEqual),
            ("!", TokenKind::Not),
            ("==", TokenKind::Equal),
            ("<=", TokenKind::LessEqual),
            ("<", TokenKind::Less),
            (">=", TokenKind::GreaterEqual),
            (">", TokenKind::Greater),
            ("&&", TokenKind::And),
            ("||", TokenKind::Or),
            ("true", TokenKind::True),
            ("false", TokenKind::False),
            ("null", TokenKind::Null),
        ];
        for (word, kind) in WORDS {
            if self.take(word) {
                self.emit(kind, word);
                return Some(());
            }
        }
        match self.number() {
            Some((kind, count)) => {
                self.take_token(kind, count);
                Some(())
            }
            None => self.function(),
        }
    }

    /// The kind and length of the number at the current position. A float is
    /// `-?\d+\.\d+([eE][+-]?\d+)?` or `-?\d+[eE]-\d+`, an integer `-?\d+([eE]\+?\d+)?`.
    fn number(&self) -> Option<(TokenKind, usize)> {
        let at = |offset: usize| self.chars.get(self.at + offset).copied();
        let digits = |offset: usize| self.digits_from(self.at + offset);
        let sign = usize::from(at(0) == Some('-'));
        let whole = digits(sign);
        if whole == 0 {
            return None;
        }
        let mut end = sign + whole;
        let fraction = if at(end) == Some('.') { digits(end + 1) } else { 0 };
        if fraction > 0 {
            end += 1 + fraction;
        }
        let mut kind = if fraction > 0 { TokenKind::Float } else { TokenKind::Int };
        if let Some('e' | 'E') = at(end) {
            let sign = at(end + 1).filter(|char| matches!(char, '+' | '-'));
            let exponent_from = end + 1 + usize::from(sign.is_some());
            let exponent = digits(exponent_from);
            if exponent > 0 {
                end = exponent_from + exponent;
                if sign == Some('-') {
                    kind = TokenKind::Float;
                }
            }
        }
        Some((kind, end))
    }

    fn function(&mut self) -> Option<()> {
        let rest = self.chars.get(self.at..).unwrap_or_default();
        let count = rest.iter().take_while(|char| matches!(char, 'a'..='z' | '_' | '0'..='9')).count();
        if !rest.first().is_some_and(char::is_ascii_lowercase) || rest.get(count) != Some(&'(') {
            return None;
        }
        self.take_token(TokenKind::Function, count);
        self.calls.push(1);
        self.brackets.push('(');
        self.at += 1;
        Some(())
    }
}
