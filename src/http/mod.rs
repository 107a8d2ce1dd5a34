//! HTTP/1 as bytes: a request read from them, an answer written to them.
//!
//! In: bytes of a connection. Out: a [`Request`] with the few fields this product reads, and
//! an [`ResponseWriter`] with whole responses. Invariant: nothing here knows what a flag, a key or a
//! snapshot is. It may not await and may not touch a socket.
pub mod chunked;
pub mod compression;
pub mod cors;
pub mod date;
pub mod decompress;
pub mod error;
pub mod framing;
pub mod head_cache;
pub mod request;
pub mod response;
pub mod response_cache;
pub mod route;
pub mod target;

pub use crate::http::decompress::{Coding, Gunzip};
pub use crate::http::error::ParseError;
pub use crate::http::head_cache::HeadCache;
pub use crate::http::request::{Fields, Method, Progress, Request, RequestReader};
pub use crate::http::response::{Body, ContentType, ResponseContext, ResponseWriter, Status};
