//! Upload of counts to the API: evaluations that SDKs report, and usage.
pub mod batch;
pub mod outbox;
pub mod upload;
