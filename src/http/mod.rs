//! HTTP/1.1 and HTTP/2 without I/O: parses requests from bytes and appends responses to a buffer.
//!
//! Nothing here awaits, touches a socket, or depends on flags, keys or snapshots.
pub mod chunked;
pub mod compression;
pub mod cors;
pub mod crc;
pub mod date;
pub mod decompress;
pub mod deflate;
pub mod error;
pub mod fields;
pub mod framing;
pub mod h2;
pub mod head_cache;
pub mod hpack;
pub mod method;
pub mod request;
pub mod response;
pub mod response_cache;
pub mod route;
pub mod sdk;
pub mod status;
pub mod target;

pub use crate::http::decompress::{Coding, Gunzip};
pub use crate::http::error::ParseError;
pub use crate::http::fields::Fields;
pub use crate::http::head_cache::HeadCache;
pub use crate::http::method::Method;
pub use crate::http::request::{Progress, Request, RequestReader};
pub use crate::http::response::{Body, ContentType, HttpVersion, ResponseContext, ResponseWriter};
pub use crate::http::sdk::Sdk;
pub use crate::http::status::Status;
