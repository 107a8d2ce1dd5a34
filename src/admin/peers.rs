//! The connections of the admin listener, one thread each, and which of them gives way to a new one.
//!
//! Probes and scrapers take some milliseconds; who holds a connection longer waits for nothing or attacks. At
//! the limit the connection that has waited longest is closed, so that idle ones cannot keep a probe out.
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::metrics::Metrics;

/// All open connections, the oldest first.
#[derive(Debug)]
pub struct Peers {
    open: Mutex<Vec<Peer>>,
    /// Threads, some of which may just be ending.
    threads: AtomicUsize,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Peer {
    stream: Arc<TcpStream>,
    is_answered: bool,
}

/// One connection's place in the table, given up when dropped.
#[derive(Debug)]
pub struct PeerGuard {
    peers: Arc<Peers>,
    pub stream: Arc<TcpStream>,
}

impl Peers {
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), threads: AtomicUsize::new(0), metrics })
    }

    /// Takes a connection, closing another one if there are too many: one that has its answer, or else the
    /// one that came first.
    pub fn add(self: &Arc<Self>, stream: TcpStream) -> PeerGuard {
        let stream = Arc::new(stream);
        let mut open = self.lock();
        while open.len() >= ADMIN_CONNECTIONS_MAX {
            let answered = open.iter().position(|peer| peer.is_answered);
            let peer = open.remove(answered.unwrap_or(0));
            // Its thread's read returns at once. An error means that it is closed already.
            let _ = peer.stream.shutdown(Shutdown::Both);
            self.metrics.background.admin_connections_closed.add(u64::from(!peer.is_answered));
        }
        open.push(Peer { stream: Arc::clone(&stream), is_answered: false });
        self.threads.fetch_add(1, Ordering::Relaxed);
        PeerGuard { peers: Arc::clone(self), stream }
    }

    /// Whether the threads of closed connections have to end before there are more.
    pub fn is_full(&self) -> bool {
        self.threads.load(Ordering::Relaxed) >= 2 * ADMIN_CONNECTIONS_MAX
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PeerGuard {
    /// The whole answer is written.
    pub fn answered(&self) {
        let mut open = self.peers.lock();
        let own = open.iter_mut().find(|peer| Arc::ptr_eq(&peer.stream, &self.stream));
        own.into_iter().for_each(|peer| peer.is_answered = true);
    }
}

impl Drop for PeerGuard {
    fn drop(&mut self) {
        self.peers.lock().retain(|peer| !Arc::ptr_eq(&peer.stream, &self.stream));
        self.peers.threads.fetch_sub(1, Ordering::Relaxed);
    }
}
