//! Builds the runtime of a reactor thread: io_uring with the cheapest set-up that the kernel supports, or
//! epoll.
//!
//! Deferred task run needs Linux 6.1, cooperative task run 5.19. A forced driver never falls back to another.
//! A ring belongs to the thread that builds it.
use std::io;

use monoio::time::TimeDriver;
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::config::Driver;
use crate::limits::RING_ENTRIES;

/// A runtime on either driver.
pub type Runtime = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

/// A runtime, and its description for the log and metrics.
pub struct BuiltRuntime {
    pub runtime: Runtime,
    pub uring: bool,
    /// The name in metrics.
    pub label: &'static str,
    /// Such as `io_uring: coop_taskrun`.
    pub name: &'static str,
    /// Why this driver was chosen.
    pub why: String,
}

/// Ring set-ups; the first costs least per request.
///
/// Not `IORING_SETUP_DEFER_TASKRUN`: since Linux 6.13 one `io_uring_enter` of such a ring completes 20 to 40
/// operations that have waited, and every one that need not wait, so that with thousands of busy connections
/// a part of them starves (bench/README.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ring {
    CoopTaskRun,
    Plain,
}

/// The entries of a ring that only tests whether rings work.
const TRIAL_ENTRIES: u32 = 8;

const RINGS: [Ring; 2] = [Ring::CoopTaskRun, Ring::Plain];

impl Ring {
    fn name(self) -> &'static str {
        match self {
            Self::CoopTaskRun => "io_uring: coop_taskrun",
            Self::Plain => "io_uring: plain",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::CoopTaskRun => "uring_coop_taskrun",
            Self::Plain => "uring",
        }
    }

    fn builder(self, entries: u32) -> io_uring::Builder {
        let mut builder = io_uring::IoUring::builder();
        match self {
            Self::CoopTaskRun => {
                builder.setup_coop_taskrun();
            }
            Self::Plain => {}
        }
        // A larger completion queue for bursts: an overflow loses nothing, but is slower.
        builder.setup_cqsize(entries * 4).setup_clamp();
        builder
    }
}

/// Builds the runtime of this thread.
///
/// # Errors
/// No driver works, or the forced driver does not.
pub fn build(forced: Option<Driver>) -> io::Result<BuiltRuntime> {
    if forced == Some(Driver::Epoll) {
        return epoll("set by EDGE_PROXY_DRIVER".to_owned());
    }
    let mut refused = Vec::new();
    for ring in RINGS {
        match uring(ring) {
            Ok(runtime) => {
                let why = if refused.is_empty() {
                    "the kernel supports all flags".into()
                } else {
                    reasons(&refused)
                };
                return Ok(BuiltRuntime {
                    runtime,
                    uring: true,
                    label: ring.label(),
                    name: ring.name(),
                    why,
                });
            }
            Err(error) => refused.push((ring, refusal(&error))),
        }
    }
    if forced == Some(Driver::Uring) {
        return Err(no_ring(&refused));
    }
    epoll(reasons(&refused))
}

/// Checks that a forced driver works. Called before sockets are bound.
///
/// # Errors
/// The driver does not work; the message says why.
pub fn check(forced: Option<Driver>) -> io::Result<()> {
    if forced != Some(Driver::Uring) {
        return Ok(());
    }
    let mut refused = Vec::new();
    for ring in RINGS {
        match trial(ring) {
            Ok(()) => return Ok(()),
            Err(error) => refused.push((ring, refusal(&error))),
        }
    }
    Err(no_ring(&refused))
}

fn no_ring(refused: &[(Ring, String)]) -> io::Error {
    io::Error::other(format!("server.driver (EDGE_PROXY_DRIVER) is uring, but {}", reasons(refused)))
}

/// Sets up a small ring and submits to it: a seccomp profile may allow only the set-up. Also fails if the
/// kernel lacks ring operations that monoio needs (before 5.6).
fn trial(ring: Ring) -> io::Result<()> {
    let trial: io_uring::IoUring = ring.builder(TRIAL_ENTRIES).build(TRIAL_ENTRIES)?;
    trial.submit()?;
    if !monoio::utils::detect_uring() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel lacks ring operations"));
    }
    Ok(())
}

fn uring(ring: Ring) -> io::Result<Runtime> {
    trial(ring)?;
    let builder = RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(ring.builder(RING_ENTRIES))
        .with_entries(RING_ENTRIES)
        .enable_timer();
    Ok(builder.build()?.into())
}

fn epoll(why: String) -> io::Result<BuiltRuntime> {
    let runtime = RuntimeBuilder::<LegacyDriver>::new().with_entries(RING_ENTRIES).enable_timer().build()?;
    Ok(BuiltRuntime { runtime: runtime.into(), uring: false, label: "epoll", name: "epoll", why })
}

/// The reason per ring set-up; only one reason if it is the same for all.
fn reasons(refused: &[(Ring, String)]) -> String {
    match refused {
        [(_, first), rest @ ..]
            if rest.len() + 1 == RINGS.len() && rest.iter().all(|(_, why)| why == first) =>
        {
            format!("io_uring: {first}")
        }
        _ => {
            let lines: Vec<_> = refused.iter().map(|(ring, why)| format!("{}: {why}", ring.name())).collect();
            lines.join("; ")
        }
    }
}

/// The error with its probable cause.
fn refusal(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EINVAL) => "the kernel does not support these flags",
        Some(libc::EPERM | libc::EACCES) => {
            "not permitted, probably by a seccomp profile (Docker's default) or sysctl kernel.io_uring_disabled"
        }
        Some(libc::ENOSYS) => "the kernel does not support io_uring",
        Some(libc::ENOMEM) => "not enough locked memory: raise ulimit -l",
        _ => "refused",
    };
    format!("{cause} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forced_driver_runs() {
        let mut epoll = build(Some(Driver::Epoll)).unwrap();
        assert_eq!((epoll.name, epoll.uring), ("epoll", false));
        assert_eq!(epoll.runtime.block_on(async { 7 }), 7);
        // Without io_uring the result is an error, not a fallback.
        match build(Some(Driver::Uring)) {
            Ok(mut built) => {
                assert!(built.uring && built.name.starts_with("io_uring"));
                assert_eq!(built.runtime.block_on(async { 7 }), 7);
            }
            Err(error) => {
                assert!(error.to_string().contains("is uring, but io_uring"), "{error}")
            }
        }
    }

    #[test]
    fn error_names_its_probable_cause() {
        let text = refusal(&io::Error::from_raw_os_error(libc::EPERM));
        assert!(text.contains("seccomp") && text.contains("kernel.io_uring_disabled"), "{text}");
    }
}
