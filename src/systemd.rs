//! Notifications to systemd (`sd_notify(3)`): readiness, shutdown and the watchdog.
//!
//! A watchdog message is sent only if the supervisor and every reactor thread have made progress since the
//! previous one, so that systemd restarts a process with a hung reactor. Failures to send are ignored.
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Metrics;

/// The notification socket of the service manager.
#[derive(Clone, Debug)]
pub struct Notify {
    address: SocketAddr,
    /// `WatchdogSec` of the unit: a watchdog message must be sent within this time.
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. `None` if the service manager does not
    /// expect notifications (the unit has no `Type=notify`).
    pub fn from_process() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self::new(&variable("NOTIFY_SOCKET")?, variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID"))
    }

    fn new(socket: &str, watchdog_us: Option<&str>, watchdog_pid: Option<String>) -> Option<Self> {
        let address = match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(socket),
        };
        let is_ours = watchdog_pid.is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog_us = watchdog_us.and_then(|text| text.parse().ok()).filter(|us| *us > 0 && is_ours);
        Some(Self { address: address.ok()?, watchdog: watchdog_us.map(Duration::from_micros) })
    }

    /// Reports that the process is listening and serves the snapshot it has.
    pub fn ready(&self) {
        self.send(&format!("READY=1\nSTATUS=serving\nMAINPID={}", std::process::id()));
    }

    /// Reports that shutdown has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=draining connections");
    }

    /// Starts the watchdog thread, if the unit sets `WatchdogSec`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn watch(&self, metrics: Arc<Metrics>) -> io::Result<()> {
        let Some(watchdog) = self.watchdog else { return Ok(()) };
        let notify = self.clone();
        let watch = move || {
            let mut before = ticks(&metrics);
            loop {
                std::thread::sleep(watchdog / 2);
                let now = ticks(&metrics);
                if before.iter().zip(&now).all(|(before, now)| before != now) {
                    notify.send("WATCHDOG=1");
                }
                before = now;
            }
        };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch)?;
        Ok(())
    }

    fn send(&self, state: &str) {
        let sent =
            UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), &self.address));
        // If the manager does not read its socket, its own timeouts apply.
        drop(sent);
    }
}

/// The loop counters of the supervisor and of each reactor.
fn ticks(metrics: &Metrics) -> Vec<u64> {
    let reactors = metrics.reactors.iter().map(|reactor| reactor.ticks.value());
    std::iter::once(metrics.supervisor.ticks.value()).chain(reactors).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket in the role of the service manager.
    struct Manager {
        socket: UnixDatagram,
        name: String,
    }

    impl Manager {
        fn new(name: &str) -> Self {
            let name = format!("edge-proxy-notify-{name}-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(&name).expect("a name");
            let socket = UnixDatagram::bind_addr(&address).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            Self { socket, name: format!("@{name}") }
        }

        fn next(&self) -> String {
            let mut bytes = [0; 256];
            let count = self.socket.recv(&mut bytes).expect("a datagram in time");
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        }
    }

    #[test]
    fn reports_readiness_and_shutdown() {
        let manager = Manager::new("ready");
        let notify = Notify::new(&manager.name, None, None).expect("an address");
        notify.ready();
        assert!(manager.next().starts_with("READY=1\n"));
        notify.stopping();
        assert!(manager.next().starts_with("STOPPING=1\n"));
    }

    #[test]
    fn a_hung_reactor_stops_the_watchdog() {
        let manager = Manager::new("watchdog");
        let notify = Notify::new(&manager.name, Some("40000"), None).expect("an address");
        let metrics = Arc::new(Metrics::new(&[0, 1]));
        notify.watch(metrics.clone()).expect("a thread");
        // Only one of the two reactors makes progress: nothing may arrive.
        manager.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let until = std::time::Instant::now() + Duration::from_millis(200);
        while std::time::Instant::now() < until {
            metrics.supervisor.ticks.add(1);
            metrics.reactors[0].ticks.add(1);
            std::thread::yield_now();
        }
        manager.socket.set_nonblocking(true).expect("a mode");
        assert!(manager.socket.recv(&mut [0; 64]).is_err(), "a watchdog message despite a hung reactor");
        manager.socket.set_nonblocking(false).expect("a mode");
        let turning = metrics.clone();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                turning.supervisor.ticks.add(1);
                turning.reactors.iter().for_each(|reactor| reactor.ticks.add(1));
                std::thread::yield_now();
            }
        });
        manager.socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        assert_eq!(manager.next(), "WATCHDOG=1");
        drop(stop);
        thread.join().expect("no panic");
    }

    #[test]
    fn ignores_a_watchdog_of_another_process() {
        let theirs = Notify::new("@x", Some("1000"), Some("1".to_owned())).expect("an address");
        assert_eq!(theirs.watchdog, None);
        let ours = Notify::new("@x", Some("1000"), Some(std::process::id().to_string())).expect("an address");
        assert_eq!(ours.watchdog, Some(Duration::from_millis(1)));
    }
}
