//! Request methods (RFC 9110 9).

/// The methods that routes distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Options,
    /// Any other valid method token; every route answers it with 405.
    Other,
}

impl Method {
    /// The name in the access log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Options => "OPTIONS",
            Self::Other => "OTHER",
        }
    }
}
