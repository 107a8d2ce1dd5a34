//! Turns signals into events of the supervisor, on a separate thread: no code of ours runs in a signal
//! handler.
use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// The signals that the process handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGUSR1.
    ReopenLog,
}

/// Calls `notify` for each signal until it returns false.
///
/// # Errors
/// The signal handlers cannot be installed, or the thread cannot be started.
pub fn watch(notify: impl Fn(Signal) -> bool + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let signal = match signal {
                SIGHUP => Signal::Reload,
                SIGUSR1 => Signal::ReopenLog,
                _ => Signal::Stop,
            };
            if !notify(signal) {
                return;
            }
        }
    })?;
    Ok(())
}
