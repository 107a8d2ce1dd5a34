//! Counts on their way to the API: the outbox that batches them.
pub mod outbox;
pub mod parcel;
pub mod upload;
