//! Request methods (RFC 9110 9).

/// The methods that routes distinguish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    /// Only in HTTP/2, where it has no path: 405. In HTTP/1.1 its target is invalid.
    Connect,
    /// Any other valid method token; every route answers it with 405.
    #[default]
    Other,
}

impl Method {
    /// The method with this name.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// The name in the access log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Connect => "CONNECT",
            Self::Other => "OTHER",
        }
    }
}
