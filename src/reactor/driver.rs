//! Ring flags and the way down when the kernel refuses them.
//!
//! In: which driver the configuration forces, if any. Out: a runtime for this thread, which
//! driver it is and why. Invariant: tried in order of measured cost (deferred task run needs
//! Linux 6.1, cooperative 5.19, then a plain ring, then epoll); a forced driver never falls
//! back to another one. The ring belongs to the thread that builds it.
use std::io;

use monoio::time::TimeDriver;
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::config::Driver;
use crate::limits::RING_ENTRIES;

/// A runtime on either driver.
pub type Runtime = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

/// A runtime, and what to say about it in the log.
pub struct BuiltRuntime {
    pub runtime: Runtime,
    pub uring: bool,
    /// The name in metrics.
    pub label: &'static str,
    /// Such as `io_uring: single_issuer, defer_taskrun, coop_taskrun`.
    pub name: &'static str,
    pub why: String,
}

/// Ring set-ups, cheapest request first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ring {
    DeferTaskRun,
    CoopTaskRun,
    Plain,
}

/// Of a ring that is made to see whether it runs.
const TRIAL_ENTRIES: u32 = 8;

const RINGS: [Ring; 3] = [Ring::DeferTaskRun, Ring::CoopTaskRun, Ring::Plain];

impl Ring {
    fn name(self) -> &'static str {
        match self {
            Self::DeferTaskRun => "io_uring: single_issuer, defer_taskrun, coop_taskrun",
            Self::CoopTaskRun => "io_uring: coop_taskrun",
            Self::Plain => "io_uring: plain",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::DeferTaskRun => "uring_defer_taskrun",
            Self::CoopTaskRun => "uring_coop_taskrun",
            Self::Plain => "uring",
        }
    }

    fn builder(self, entries: u32) -> io_uring::Builder {
        let mut builder = io_uring::IoUring::builder();
        match self {
            Self::DeferTaskRun => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
            }
            Self::CoopTaskRun => {
                builder.setup_coop_taskrun();
            }
            Self::Plain => {}
        }
        // A burst of completions must not overflow the queue: overflow is slower, not lost.
        builder.setup_cqsize(entries * 4).setup_clamp();
        builder
    }
}

/// Builds the runtime of this thread.
///
/// # Errors
/// No driver works, or not the one that is forced.
pub fn build(forced: Option<Driver>) -> io::Result<BuiltRuntime> {
    if forced == Some(Driver::Epoll) {
        return epoll("EDGE_PROXY_DRIVER asks for it".to_owned());
    }
    let mut refused = Vec::new();
    for ring in RINGS {
        match uring(ring) {
            Ok(runtime) => {
                let why =
                    if refused.is_empty() { "the kernel takes every flag".into() } else { reasons(&refused) };
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

/// Whether a forced driver works here; asked before anything is bound.
///
/// # Errors
/// Why it does not.
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

/// Makes a small ring and runs it. A profile may allow the one and not the other, which would show
/// too late; and a ring may lack an operation (before 5.6), or answer no probe.
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

/// What was refused and why; once, if all of it was for the same reason.
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

/// The likely cause in words, as the error number alone tells nobody what to do.
fn refusal(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EINVAL) => "this kernel does not know these flags",
        Some(libc::EPERM | libc::EACCES) => {
            "not allowed: a seccomp profile (Docker's default) or sysctl kernel.io_uring_disabled"
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring",
        Some(libc::ENOMEM) => "not enough locked memory: raise ulimit -l",
        _ => "refused",
    };
    format!("{cause} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_driver_can_be_forced_and_runs() {
        let mut epoll = build(Some(Driver::Epoll)).unwrap();
        assert_eq!((epoll.name, epoll.uring), ("epoll", false));
        assert_eq!(epoll.runtime.block_on(async { 7 }), 7);
        // Where io_uring is refused the error must say so, and nothing else may be taken.
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
    fn a_refusal_names_its_likely_cause() {
        let text = refusal(&io::Error::from_raw_os_error(libc::EPERM));
        assert!(text.contains("seccomp") && text.contains("kernel.io_uring_disabled"), "{text}");
    }
}
