//! Status codes and their status lines (RFC 9112 4).

/// An HTTP status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// The status line with its CRLF; empty for a status that no handler sends.
    pub fn line(self) -> &'static [u8] {
        match self.0 {
            200 => b"HTTP/1.1 200 OK\r\n",
            202 => b"HTTP/1.1 202 Accepted\r\n",
            204 => b"HTTP/1.1 204 No Content\r\n",
            304 => b"HTTP/1.1 304 Not Modified\r\n",
            307 => b"HTTP/1.1 307 Temporary Redirect\r\n",
            400 => b"HTTP/1.1 400 Bad Request\r\n",
            401 => b"HTTP/1.1 401 Unauthorized\r\n",
            403 => b"HTTP/1.1 403 Forbidden\r\n",
            404 => b"HTTP/1.1 404 Not Found\r\n",
            405 => b"HTTP/1.1 405 Method Not Allowed\r\n",
            406 => b"HTTP/1.1 406 Not Acceptable\r\n",
            408 => b"HTTP/1.1 408 Request Timeout\r\n",
            412 => b"HTTP/1.1 412 Precondition Failed\r\n",
            413 => b"HTTP/1.1 413 Content Too Large\r\n",
            414 => b"HTTP/1.1 414 URI Too Long\r\n",
            415 => b"HTTP/1.1 415 Unsupported Media Type\r\n",
            417 => b"HTTP/1.1 417 Expectation Failed\r\n",
            422 => b"HTTP/1.1 422 Unprocessable Entity\r\n",
            429 => b"HTTP/1.1 429 Too Many Requests\r\n",
            431 => b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
            500 => b"HTTP/1.1 500 Internal Server Error\r\n",
            501 => b"HTTP/1.1 501 Not Implemented\r\n",
            502 => b"HTTP/1.1 502 Bad Gateway\r\n",
            503 => b"HTTP/1.1 503 Service Unavailable\r\n",
            505 => b"HTTP/1.1 505 HTTP Version Not Supported\r\n",
            _ => b"",
        }
    }

    /// Responses with status 1xx, 204 or 304 never have a body (RFC 9110 6.4.1).
    pub fn has_no_body(self) -> bool {
        self.0 < 200 || matches!(self.0, 204 | 304)
    }
}
