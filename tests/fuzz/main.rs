//! One target under libFuzzer: `FUZZ_TARGET` names it. `tests/fuzz/run` builds and starts this.
//!
//! A finding is a panic, a failed assertion, more than a second of CPU time, or more than 256 MiB of memory for one
//! input.
#![no_main]
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

mod targets;

/// For one input of at most 32 KiB: a hundred times the largest document of the corpus.
const BYTES_MAX: usize = 256 * 1024 * 1024;
/// For a request: a body of 1 MiB, compressed or not, becomes up to 16 MiB of values, in several rounds.
const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;
const LONGEST: Duration = Duration::from_secs(1);

/// The system's allocator; counts the allocated bytes and their maximum.
struct Measuring;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn allocated(bytes: usize) {
    MOST.fetch_max(ALLOCATED.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is forwarded unchanged; the counters allocate nothing.
unsafe impl GlobalAlloc for Measuring {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        hold(size);
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Measuring = Measuring;

static TARGET: LazyLock<&targets::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| {
        let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("FUZZ_TARGET is {name:?}: it must be one of {}", names.join(", "));
        std::process::exit(64)
    })
});

/// CPU time of this thread, which is independent of the load of the machine.
fn time_used() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is that of a `timespec` which outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let before = ALLOCATED.load(Relaxed);
    MOST.store(before, Relaxed);
    TARGET.run_within(data, LONGEST, time_used);
    let most = MOST.load(Relaxed) - before;
    let bound = if matches!(TARGET.name, "identity" | "answer") { REQUEST_BYTES_MAX } else { BYTES_MAX };
    assert!(most < bound, "{} allocates {most} bytes", TARGET.name);
});
