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
pub struct Built {
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

    fn builder(self) -> io_uring::Builder {
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
        builder.setup_cqsize(RING_ENTRIES * 4).setup_clamp();
        builder
    }
}

/// Builds the runtime of this thread.
///
/// # Errors
/// No driver works, or not the one that is forced.
pub fn build(forced: Option<Driver>) -> io::Result<Built> {
    if forced == Some(Driver::Epoll) {
        return epoll("EDGE_PROXY_DRIVER asks for it".to_owned());
    }
    let mut refused = Vec::new();
    for ring in RINGS {
        match uring(ring) {
            Ok(runtime) => {
                let why = if refused.is_empty() {
                    "the kernel takes every flag".into()
                } else {
                    refused.join("; ")
                };
                return Ok(Built { runtime, uring: true, label: ring.label(), name: ring.name(), why });
            }
            Err(error) => refused.push(refusal(ring, &error)),
        }
    }
    let refused = refused.join("; ");
    if forced == Some(Driver::Uring) {
        return Err(io::Error::other(format!("EDGE_PROXY_DRIVER=uring, but {refused}")));
    }
    epoll(refused)
}

fn uring(ring: Ring) -> io::Result<Runtime> {
    let builder = RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(ring.builder())
        .with_entries(RING_ENTRIES)
        .enable_timer();
    let runtime = builder.build()?;
    // A ring that can be made may still lack an operation (before 5.6), or answer no probe.
    if !monoio::utils::detect_uring() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel lacks ring operations"));
    }
    Ok(runtime.into())
}

fn epoll(why: String) -> io::Result<Built> {
    let runtime = RuntimeBuilder::<LegacyDriver>::new().with_entries(RING_ENTRIES).enable_timer().build()?;
    Ok(Built { runtime: runtime.into(), uring: false, label: "epoll", name: "epoll", why })
}

/// The likely cause in words, as the error number alone tells nobody what to do.
fn refusal(ring: Ring, error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EINVAL) => "this kernel does not know these flags",
        Some(libc::EPERM | libc::EACCES) => {
            "not allowed: a seccomp profile (Docker's default) or sysctl kernel.io_uring_disabled"
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring",
        Some(libc::ENOMEM) => "not enough locked memory: raise ulimit -l",
        _ => "refused",
    };
    format!("{}: {cause} ({error})", ring.name())
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
                assert!(error.to_string().contains("EDGE_PROXY_DRIVER=uring, but io_uring"), "{error}")
            }
        }
    }

    #[test]
    fn a_refusal_names_its_likely_cause() {
        let text = refusal(Ring::Plain, &io::Error::from_raw_os_error(libc::EPERM));
        assert!(text.contains("seccomp") && text.contains("kernel.io_uring_disabled"), "{text}");
    }
}
