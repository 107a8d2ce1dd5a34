//! Notifications to the service manager (`sd_notify(3)`).
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Shim, Start, fixture};
use crate::surface::{CLIENT, SERVER};

/// The manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    /// Starts the proxy as a unit with `Type=notify` and a watchdog.
    fn of(start: Start) -> (Self, Start) {
        let path = start.scratch().path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("scratch space");
        let start = start.env("NOTIFY_SOCKET", path.to_str().expect("UTF-8")).env("WATCHDOG_USEC", "1200000");
        (Self(socket), start.document(CLIENT, SERVER, fixture::path("environments/Main.json")))
    }

    fn next(&self, patience: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(patience)).expect("a timeout");
        let mut bytes = [0; 512];
        let count = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..count]).into_owned())
    }

    fn wait_for(&self, state: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Some(state_lines) =
            self.next(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))
        {
            if state_lines.lines().any(|line| line == state) {
                return state_lines;
            }
        }
        panic!("no {state} in time");
    }
}

#[test]
fn notifies_readiness_watchdog_and_stop() {
    let (manager, start) = Manager::of(Start::serve());
    let mut proxy = start.spawn();
    let state_lines = manager.wait_for("READY=1");
    assert!(state_lines.contains(&format!("MAINPID={}", proxy.pid())), "{state_lines}");
    // READY is sent after it listens, so that a connection is not refused.
    proxy.wait_until_ready();
    (0..2).for_each(|_| drop(manager.wait_for("WATCHDOG=1")));
    proxy.signal("TERM");
    manager.wait_for("STOPPING=1");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn blocked_reactor_triggers_the_watchdog() {
    let shim = Shim::new();
    let (manager, start) = Manager::of(Start::serve().cores(2));
    let _proxy = shim.preload(start).spawn();
    manager.wait_for("WATCHDOG=1");
    shim.reactor_is_stuck(true);
    // WATCHDOG is sent twice per watchdog time, so a silence of two such times proves that it stopped.
    let deadline = Instant::now() + PATIENCE;
    while manager.next(Duration::from_millis(2400)).is_some() {
        assert!(Instant::now() < deadline, "a process with a blocked reactor sends WATCHDOG");
    }
    shim.reactor_is_stuck(false);
    manager.wait_for("WATCHDOG=1");
}
