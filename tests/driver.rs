//! Fallbacks when the kernel rejects ring flags, the ring, or its memory: the process serves, and logs its
//! driver and the reason.
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

fn prepare() -> Start {
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

/// Checks that it serves concurrent and sequential connections on this driver, and logs this reason.
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

/// Whether io_uring works on this machine.
pub fn has_ring() -> bool {
    let proxy = prepare().ready();
    let has_ring = proxy.wait_for_log("reactor_started").contains("coop_taskrun");
    if !has_ring {
        println!("skipped: no io_uring with every flag on this machine");
    }
    has_ring
}

#[test]
fn retries_without_unsupported_ring_flags() {
    if !has_ring() {
        return;
    }
    let shim = Shim::new();
    let unknown = "the kernel does not support these flags";
    for (flags, driver, label) in [
        (0, "\"io_uring: coop_taskrun\"", "uring_coop_taskrun"),
        (COOP_TASKRUN, "\"io_uring: plain\"", "uring"),
        (u32::MAX, "epoll", "epoll"),
    ] {
        let reason = if flags == 0 { "the kernel supports all flags" } else { unknown };
        serves_on(shim.without_ring_flags(prepare(), flags).ready(), driver, label, reason);
    }
}

#[test]
fn falls_back_to_epoll_without_io_uring() {
    let launcher = Launcher::new();
    for (call, error, reason) in [
        (IO_URING_SETUP, EPERM, "seccomp profile"),
        (IO_URING_SETUP, ENOSYS, "the kernel does not support io_uring"),
        (IO_URING_SETUP, ENOMEM, "raise ulimit -l"),
        // A seccomp profile that lists the calls by name may omit one.
        (IO_URING_ENTER, EPERM, "seccomp profile"),
        (IO_URING_REGISTER, EPERM, "lacks ring operations"),
    ] {
        let proxy = launcher.narrow(prepare(), &[&format!("refuse={call}:{error}")]).ready();
        let line = proxy.wait_for_log("reactor_started");
        assert_eq!(line.matches(reason).count(), 1, "once: {line}");
        serves_on(proxy, "epoll", "epoll", reason);
    }
}

#[test]
fn serves_with_no_locked_memory() {
    // Since Linux 5.12 a ring is charged to the cgroup instead, so both results are possible.
    let proxy = Launcher::new().narrow(prepare(), &["memlock=0"]).ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    let line = proxy.wait_for_log("reactor_started");
    assert!(line.contains("io_uring") || line.contains("ulimit -l"), "{line}");
}

#[test]
fn fails_if_the_configured_driver_is_unavailable() {
    let refused = format!("refuse={IO_URING_SETUP}:{EPERM}");
    let start = prepare().set("server.driver", "uring");
    let (code, text) = Launcher::new().narrow(start, &[&refused]).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("server.driver") && text.contains("seccomp profile"), "{text}");
    assert!(!text.contains("listening"), "nothing is bound: {text}");
    serves_on(prepare().set("server.driver", "epoll").ready(), "epoll", "epoll", "set by EDGE_PROXY_DRIVER");
}

#[test]
fn exits_without_a_reactor() {
    // The system call has another number in the generic table of newer architectures.
    const EPOLL_CREATE1: i32 = if cfg!(target_arch = "x86_64") { 291 } else { 20 };
    let refused = [format!("refuse={IO_URING_SETUP}:{EPERM}"), format!("refuse={EPOLL_CREATE1}:{EPERM}")];
    let (code, text) = Launcher::new().narrow(prepare(), &[&refused[0], &refused[1]]).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("reactor_no_driver") && text.contains("no reactor is running"), "{text}");
}
