//! HTTP/2 (RFC 9113) without I/O: bytes to requests, responses to bytes.
//!
//! [`Http2`](connection::Http2) is the state of one connection. Its memory is bounded, and there is no task
//! per stream: the requests in a buffer are returned one after another, and their responses are appended to
//! one output. Only streams that wait for the peer have a record.
pub mod connection;
pub mod current_request;
pub mod event;
pub mod field_block;
pub mod frame;
pub mod head;
pub mod head_reader;
pub mod misuse;
pub mod outgoing;
pub mod peer_settings;
pub mod receive_window;
pub mod sender;
pub mod state_memory;
pub mod stream_table;
pub mod streams;

#[cfg(test)]
mod tests;
