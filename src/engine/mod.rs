//! The flag engine: document -> program -> flags of an identity. No HTTP, no I/O, no threads.
pub mod compile;
pub mod document;
pub mod evaluate;
pub mod identity;
pub mod jsonpath;
pub mod program;
pub mod render;
pub mod scalar;
pub mod table;
pub mod trace;
