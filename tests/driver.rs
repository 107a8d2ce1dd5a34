//! The way down when the kernel refuses ring flags, the ring, or the memory for it: whatever is
//! refused, the process says on what it runs and why, and serves.
use crate::support::{Launcher, Proxy, Shim, Start, get};
use crate::surface::{CLIENT, SERVER, document};

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const ENOSYS: i32 = 38;
/// Numbers of the three system calls, the same on every architecture.
const IO_URING_SETUP: i32 = 425;
const IO_URING_ENTER: i32 = 426;
const IO_URING_REGISTER: i32 = 427;
const COOP_TASKRUN: u32 = 1 << 8;
const DEFER_TASKRUN: u32 = 1 << 13;

fn prepare() -> Start {
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

/// It serves, many at a time and one after the other, on this driver, for this reason.
fn serves_on(mut proxy: Proxy, driver: &str, label: &str, reason: &str) {
    let line = proxy.wait_for_log("reactor_started");
    assert!(
        line.contains(&format!("driver={driver} ")) && line.contains(reason),
        "{driver} {reason}: {line}"
    );
    let mut clients: Vec<_> = (0..20).map(|_| proxy.client()).collect();
    for _ in 0..5 {
        for client in &mut clients {
            let key = [("X-Environment-Key", SERVER)];
            assert_eq!(client.request("GET", "/api/v1/flags/", &key, b"").status, 200);
        }
    }
    let status = get(proxy.admin(), "/status.json", "").json();
    assert_eq!(status["reactors"][0]["driver"], label, "{status}");
    proxy.signal("TERM");
    assert!(proxy.wait().success(), "{}", proxy.log());
    assert!(proxy.log().contains("connections_cut_count=0"), "{}", proxy.log());
}

/// Whether io_uring works here at all: its steps cannot be shown where it does not.
fn has_ring() -> bool {
    let proxy = prepare().ready();
    let has_ring = proxy.wait_for_log("reactor_started").contains("defer_taskrun");
    if !has_ring {
        println!("skipped: no io_uring with every flag on this machine");
    }
    has_ring
}

#[test]
fn flags_that_the_kernel_does_not_know_are_left_out_one_step_after_the_other() {
    if !has_ring() {
        return;
    }
    let shim = Shim::new();
    let unknown = "the kernel does not support these flags";
    for (flags, driver, label) in [
        (0, "\"io_uring: single_issuer, defer_taskrun, coop_taskrun\"", "uring_defer_taskrun"),
        (DEFER_TASKRUN, "\"io_uring: coop_taskrun\"", "uring_coop_taskrun"),
        (DEFER_TASKRUN | COOP_TASKRUN, "\"io_uring: plain\"", "uring"),
        (u32::MAX, "epoll", "epoll"),
    ] {
        let reason = if flags == 0 { "the kernel supports all flags" } else { unknown };
        serves_on(shim.without_ring_flags(prepare(), flags).ready(), driver, label, reason);
    }
}

#[test]
fn whatever_of_the_ring_is_refused_epoll_serves() {
    let launcher = Launcher::new();
    for (call, error, reason) in [
        (IO_URING_SETUP, EPERM, "seccomp profile"),
        (IO_URING_SETUP, ENOSYS, "the kernel does not support io_uring"),
        (IO_URING_SETUP, ENOMEM, "raise ulimit -l"),
        // A profile that lists the calls by name may have forgotten one.
        (IO_URING_ENTER, EPERM, "seccomp profile"),
        (IO_URING_REGISTER, EPERM, "lacks ring operations"),
    ] {
        let proxy = launcher.narrow(prepare(), &[&format!("refuse={call}:{error}")]).ready();
        let line = proxy.wait_for_log("reactor_started");
        assert_eq!(line.matches(reason).count(), 1, "said once: {line}");
        serves_on(proxy, "epoll", "epoll", reason);
    }
}

#[test]
fn without_locked_memory_it_serves() {
    // Since Linux 5.12 a ring is charged to the memory of the group instead, so either may win.
    let proxy = Launcher::new().narrow(prepare(), &["memlock=0"]).ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    let line = proxy.wait_for_log("reactor_started");
    assert!(line.contains("io_uring") || line.contains("ulimit -l"), "{line}");
}

#[test]
fn a_driver_that_is_asked_for_and_refused_stops_the_start() {
    let refused = format!("refuse={IO_URING_SETUP}:{EPERM}");
    let start = prepare().set("server.driver", "uring");
    let (code, text) = Launcher::new().narrow(start, &[&refused]).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("server.driver") && text.contains("seccomp profile"), "{text}");
    assert!(!text.contains("listening"), "nothing is bound: {text}");
    serves_on(prepare().set("server.driver", "epoll").ready(), "epoll", "epoll", "set by EDGE_PROXY_DRIVER");
}

#[test]
fn a_process_without_a_reactor_ends_and_says_so() {
    // The generic table of newer architectures has it at another place.
    const EPOLL_CREATE1: i32 = if cfg!(target_arch = "x86_64") { 291 } else { 20 };
    let refused = [format!("refuse={IO_URING_SETUP}:{EPERM}"), format!("refuse={EPOLL_CREATE1}:{EPERM}")];
    let (code, text) = Launcher::new().narrow(prepare(), &[&refused[0], &refused[1]]).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("reactor_no_driver") && text.contains("no reactor is running"), "{text}");
}
