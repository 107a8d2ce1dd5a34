//! Passing new connections on between reactors (`server.spread`).
//!
//! The kernel spreads connections by a hash, so that of few long ones some reactors get more than twice the
//! mean. Here a reactor that would exceed the mean by 30 % passes a connection on as soon as it has accepted
//! it. The reactors share only the numbers of their connections, which change when one opens or closes; no
//! request reads them. No call blocks.
//!
//! Memory ordering: sequentially consistent everywhere. A reactor that closes stores `is_open` and then
//! loads `connections`; one that passes a connection on changes `connections` and then loads `is_open`. One
//! of the two must see the other's store, or a connection would be sent to a reactor that has exited;
//! acquire and release do not order a store before a later load.
use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::limits::SPREAD_QUEUED_MAX;

/// The most connections of a reactor before it passes further ones on, in percent of the mean.
const LOAD_PERCENT_MAX: usize = 130;
/// Attempts to choose a reactor while the numbers of connections change. Beyond: the connection stays.
const ATTEMPTS_MAX: usize = 16;

/// A connection that was just accepted.
#[derive(Debug)]
pub enum NewConnection {
    /// With the address of the peer.
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

/// What the other reactors know of one reactor. No other data shares its cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct SharedLoad {
    /// Connections, and those on their way to it.
    connections: AtomicUsize,
    /// Whether it takes connections of others.
    is_open: AtomicBool,
    sender: Sender<NewConnection>,
    wake: OnceLock<UnixStream>,
}

/// The channels between all reactors.
#[derive(Debug)]
pub struct SpreadChannels {
    loads: Arc<[SharedLoad]>,
    receivers: Vec<Receiver<NewConnection>>,
}

/// The end of one reactor.
#[derive(Clone, Debug)]
pub struct SpreadPort {
    reactor: usize,
    loads: Arc<[SharedLoad]>,
    passed: Receiver<NewConnection>,
}

impl SpreadChannels {
    /// For this number of reactors.
    pub fn new(reactors: usize) -> Self {
        let (loads, receivers): (Vec<_>, Vec<_>) = (0..reactors)
            .map(|_| {
                let (sender, receiver) = bounded(SPREAD_QUEUED_MAX);
                let (connections, is_open) = (AtomicUsize::new(0), AtomicBool::new(false));
                (SharedLoad { connections, is_open, sender, wake: OnceLock::new() }, receiver)
            })
            .unzip();
        Self { loads: loads.into(), receivers }
    }

    /// The end of a reactor, which is woken by a byte on `wake`. `None`: there are fewer reactors.
    pub fn connect(&self, reactor: usize, wake: UnixStream) -> Option<SpreadPort> {
        let passed = self.receivers.get(reactor)?.clone();
        // Only the first call for a reactor sets it.
        let _ = self.loads.get(reactor)?.wake.set(wake);
        Some(SpreadPort { reactor, loads: Arc::clone(&self.loads), passed })
    }
}

impl Drop for SpreadChannels {
    /// The supervisor has exited. A reactor does not see the end of its socket, because the others can still
    /// write to it.
    fn drop(&mut self) {
        for mut wake in self.loads.iter().filter_map(|load| load.wake.get()) {
            let _ = wake.write(&[1]);
        }
    }
}

impl SpreadPort {
    fn own(&self) -> &SharedLoad {
        &self.loads[self.reactor]
    }

    /// Takes connections of other reactors from now on.
    pub fn open(&self) {
        self.own().is_open.store(true, Ordering::SeqCst);
    }

    /// Takes none any more. Some may still be on their way: [`is_awaiting`](Self::is_awaiting).
    pub fn close(&self) {
        self.own().is_open.store(false, Ordering::SeqCst);
    }

    /// Whether connections are on their way to this reactor, which has `open` of them.
    pub fn is_awaiting(&self, open: usize) -> bool {
        self.own().connections.load(Ordering::SeqCst) > open
    }

    /// Counts one more connection of the reactor that is to serve it. `None`: this one.
    fn assign(&self) -> Option<usize> {
        for _ in 0..ATTEMPTS_MAX {
            let (mut sum, mut least, mut least_at) = (0, usize::MAX, self.reactor);
            let reactors = self.loads.len();
            // Each reactor begins with the one after it, so that they choose different ones of equal loads.
            for step in 1..=reactors {
                let at = (self.reactor + step) % reactors;
                let load = &self.loads[at];
                let connections = load.connections.load(Ordering::SeqCst);
                sum += connections;
                let is_open = at == self.reactor || load.is_open.load(Ordering::SeqCst);
                if connections < least && is_open {
                    (least, least_at) = (connections, at);
                }
            }
            let own = self.own().connections.load(Ordering::SeqCst);
            let is_above = (own + 1) * reactors * 100 > (sum + 1) * LOAD_PERCENT_MAX;
            let (chosen, before) =
                if is_above && least < own { (least_at, least) } else { (self.reactor, own) };
            if !self.loads[chosen].count(before) {
                continue;
            }
            if chosen == self.reactor {
                return None;
            }
            // A reactor that closes waits for those that were counted before.
            if self.loads[chosen].is_open.load(Ordering::SeqCst) {
                return Some(chosen);
            }
            self.loads[chosen].connections.fetch_sub(1, Ordering::SeqCst);
        }
        self.own().connections.fetch_add(1, Ordering::SeqCst);
        None
    }

    /// Passes a connection on to another reactor if this one has too many, and counts it there; otherwise
    /// returns it, counted here.
    pub fn pass(&self, connection: NewConnection) -> Option<NewConnection> {
        let Some(peer) = self.assign() else { return Some(connection) };
        let load = &self.loads[peer];
        if let Err(error) = load.sender.try_send(connection) {
            self.own().connections.fetch_add(1, Ordering::SeqCst);
            load.connections.fetch_sub(1, Ordering::SeqCst);
            return Some(error.into_inner());
        }
        if let Some(mut wake) = load.wake.get() {
            // A full socket buffer means that a wake-up is already pending.
            let _ = wake.write(&[1]);
        }
        None
    }

    /// Counts a connection that stays without a choice: the reactor drains.
    pub fn keep(&self) {
        self.own().connections.fetch_add(1, Ordering::SeqCst);
    }

    /// The next connection of another reactor, which has counted it here.
    pub fn next_passed(&self) -> Option<NewConnection> {
        self.passed.try_recv().ok()
    }

    /// Counts the end of a connection of this reactor.
    pub fn closed(&self) {
        self.own().connections.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SharedLoad {
    /// Counts one more connection, unless their number has changed.
    fn count(&self, before: usize) -> bool {
        self.connections.compare_exchange(before, before + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn connection() -> NewConnection {
        NewConnection::Unix(UnixStream::pair().unwrap().0)
    }

    /// The channels, the ports of open reactors, and the other ends of their sockets.
    fn ports(reactors: usize) -> (SpreadChannels, Vec<SpreadPort>, Vec<UnixStream>) {
        let channels = SpreadChannels::new(reactors);
        let connect = |reactor| {
            let (ours, wake) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            wake.set_nonblocking(true).unwrap();
            let port = channels.connect(reactor, ours).unwrap();
            port.open();
            (port, wake)
        };
        let (ports, wakes) = (0..reactors).map(connect).unzip();
        (channels, ports, wakes)
    }

    fn loads(ports: &[SpreadPort]) -> Vec<usize> {
        ports.iter().map(|port| port.own().connections.load(Ordering::SeqCst)).collect()
    }

    #[test]
    fn what_one_reactor_accepts_is_spread_over_all() {
        let (_channels, ports, mut wakes) = ports(8);
        let kept = (0..32).filter(|_| ports[0].pass(connection()).is_some()).count();
        let spread = loads(&ports);
        assert!(spread.iter().max() <= Some(&5) && spread.iter().sum::<usize>() == 32, "{spread:?}");
        assert_eq!(kept, spread[0]);
        for (at, port) in ports.iter().enumerate().skip(1) {
            assert_eq!(std::iter::from_fn(|| port.next_passed()).count(), spread[at]);
            assert!(wakes[at].read(&mut [0; 64]).is_ok(), "woken");
        }
        (0..spread[3]).for_each(|_| ports[3].closed());
        assert_eq!(loads(&ports)[3], 0);
        assert!(ports[0].pass(connection()).is_none());
        assert_eq!(loads(&ports)[3], 1, "the one with the fewest");
    }

    /// Many times, all reactors accept at the same time.
    #[test]
    fn concurrent_accepts_stay_within_the_bound() {
        for round in 0..50 {
            let (_channels, ports, _wakes) = ports(8);
            std::thread::scope(|scope| {
                for (at, port) in ports.iter().enumerate() {
                    // The kernel's share of this reactor is between 0 and 8.
                    let share = (at + round) % 8 + usize::from(at.is_multiple_of(2));
                    scope.spawn(move || (0..share).for_each(|_| drop(port.pass(connection()))));
                }
            });
            let spread = loads(&ports);
            let (sum, most) = (spread.iter().sum::<usize>(), spread.iter().copied().max().unwrap());
            assert!(most * 8 * 10 <= sum * 13, "{spread:?}");
        }
    }

    #[test]
    fn a_closed_reactor_gets_nothing_more_and_waits_for_what_is_on_its_way() {
        let (_channels, ports, _wakes) = ports(2);
        ports[0].keep();
        assert!(ports[0].pass(connection()).is_none(), "passed on");
        ports[1].close();
        assert!(ports[1].is_awaiting(0));
        assert!(ports[0].pass(connection()).is_some() && ports[0].pass(connection()).is_some());
        assert!(ports[1].next_passed().is_some() && ports[1].next_passed().is_none());
        assert!(!ports[1].is_awaiting(1));
    }

    /// Miri, which simulates weak memory, loses connections here with acquire and release.
    #[test]
    fn connections_that_are_passed_on_while_a_reactor_closes_are_taken() {
        for _ in 0..200 {
            let (_channels, ports, _wakes) = ports(2);
            (0..2).for_each(|_| ports[0].keep());
            std::thread::scope(|scope| {
                let passing =
                    scope.spawn(|| (0..2).filter(|_| ports[0].pass(connection()).is_none()).count());
                let mut taken = 0;
                ports[1].close();
                while ports[1].is_awaiting(taken) {
                    taken += usize::from(ports[1].next_passed().is_some());
                }
                // The reactor has exited now.
                assert_eq!(passing.join().unwrap(), taken);
                assert!(ports[1].next_passed().is_none());
            });
        }
    }

    #[test]
    fn a_full_queue_leaves_the_connection_where_it_was_accepted() {
        let (_channels, ports, _wakes) = ports(2);
        (0..SPREAD_QUEUED_MAX * 4).for_each(|_| ports[0].keep());
        for _ in 0..SPREAD_QUEUED_MAX {
            assert!(ports[0].pass(connection()).is_none());
        }
        assert!(ports[0].pass(connection()).is_some());
        assert_eq!(loads(&ports), [SPREAD_QUEUED_MAX * 4 + 1, SPREAD_QUEUED_MAX]);
    }
}
