//! Experiment events on the control plane: written to the spool, and forwarded from it in batches.
//!
//! [`writer`] is the thread that stores what the reactors accepted; [`queue`] is the spool with what waits in
//! it, behind a lock that only the control plane takes; [`round`] sends batches until none is left.
pub mod batch;
pub mod queue;
pub mod round;
pub mod writer;
