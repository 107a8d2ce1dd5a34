//! HTTP/1 as bytes: a request read from them, an answer written to them.
//!
//! In: bytes of a connection. Out: a [`Request`] with the few fields this product reads, and
//! an [`Output`] with whole responses. Invariant: nothing here knows what a flag, a key or a
//! snapshot is. It may not await and may not touch a socket.
pub mod chunked;
pub mod compress;
pub mod cors;
pub mod date;
pub mod decompress;
pub mod framing;
pub mod heads;
pub mod reject;
pub mod request;
pub mod response;
pub mod target;
pub mod whole;

pub use decompress::{Coding, Gunzip};
pub use heads::Heads;
pub use reject::Reject;
pub use request::{Fields, Method, Progress, Request, RequestReader};
pub use response::{Body, ContentType, Output, Reply, Status};
