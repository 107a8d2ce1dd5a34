//! What systemd wants to know (`sd_notify(3)`): ready, stopping, still alive.
//!
//! In: the beats of the supervisor and of the reactors. Out: datagrams to `NOTIFY_SOCKET`.
//! Invariant: without that variable nothing happens; a datagram that cannot be sent changes
//! nothing for those who are served. Being alive is claimed only if every thread that must turn
//! did turn since the last claim, so that a hung reactor is a restart and not a mystery.
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Metrics;

/// The service manager's end, if there is one.
#[derive(Clone, Debug)]
pub struct Notify {
    address: SocketAddr,
    /// Between two signs of life, as the unit asks (`WatchdogSec`).
    watchdog: Option<Duration>,
}

impl Notify {
    /// From the environment of a unit with `Type=notify`.
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

    /// Listening, and answering with what there is.
    pub fn ready(&self) {
        self.send(&format!("READY=1\nSTATUS=serving\nMAINPID={}", std::process::id()));
    }

    /// Told to stop.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=answering what is in flight");
    }

    /// Starts to tell that we are alive, if the unit asks for it.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn watch(&self, metrics: Arc<Metrics>) -> io::Result<()> {
        let Some(watchdog) = self.watchdog else { return Ok(()) };
        let notify = self.clone();
        let watch = move || {
            let mut before = beats(&metrics);
            loop {
                std::thread::sleep(watchdog / 2);
                let now = beats(&metrics);
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
        // A manager that does not listen will judge by itself.
        drop(sent);
    }
}

/// One number for each thread that must never stand still.
fn beats(metrics: &Metrics) -> Vec<u64> {
    let reactors = metrics.reactors.iter().map(|reactor| reactor.beats.value());
    std::iter::once(metrics.supervisor.beats.value()).chain(reactors).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manager's socket and what arrives there.
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
    fn readiness_and_stopping_are_told() {
        let manager = Manager::new("ready");
        let notify = Notify::new(&manager.name, None, None).expect("an address");
        notify.ready();
        assert!(manager.next().starts_with("READY=1\n"));
        notify.stopping();
        assert!(manager.next().starts_with("STOPPING=1\n"));
    }

    #[test]
    fn a_reactor_that_stands_still_is_not_alive() {
        let manager = Manager::new("watchdog");
        let notify = Notify::new(&manager.name, Some("40000"), None).expect("an address");
        let metrics = Arc::new(Metrics::new(&[0, 1]));
        notify.watch(metrics.clone()).expect("a thread");
        // Only one of the two reactors turns: nothing may arrive.
        manager.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let until = std::time::Instant::now() + Duration::from_millis(200);
        while std::time::Instant::now() < until {
            metrics.supervisor.beats.add(1);
            metrics.reactors[0].beats.add(1);
            std::thread::yield_now();
        }
        manager.socket.set_nonblocking(true).expect("a mode");
        assert!(manager.socket.recv(&mut [0; 64]).is_err(), "a sign of life without life");
        manager.socket.set_nonblocking(false).expect("a mode");
        let turning = metrics.clone();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                turning.supervisor.beats.add(1);
                turning.reactors.iter().for_each(|reactor| reactor.beats.add(1));
                std::thread::yield_now();
            }
        });
        manager.socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        assert_eq!(manager.next(), "WATCHDOG=1");
        drop(stop);
        thread.join().expect("no panic");
    }

    #[test]
    fn another_process_is_watched_by_somebody_else() {
        let theirs = Notify::new("@x", Some("1000"), Some("1".to_owned())).expect("an address");
        assert_eq!(theirs.watchdog, None);
        let ours = Notify::new("@x", Some("1000"), Some(std::process::id().to_string())).expect("an address");
        assert_eq!(ours.watchdog, Some(Duration::from_millis(1)));
    }
}
