//! Signals, turned into events for the supervisor's loop.
//!
//! In: SIGTERM, SIGINT, SIGHUP. Out: one call per signal, on a thread of its own that does
//! nothing else. Invariant: nothing of ours runs inside a signal handler.
use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What somebody outside asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Calls `tell` for each signal until it says that nobody listens.
///
/// # Errors
/// The handlers or the thread could not be set up.
pub fn watch(tell: impl Fn(Signal) -> bool + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if !tell(if signal == SIGHUP { Signal::Reload } else { Signal::Stop }) {
                return;
            }
        }
    })?;
    Ok(())
}
