//! The connections of the admin listener, one thread each, and which one is closed at the limit.
//!
//! Probes and scrapers finish in milliseconds, so a connection that stays open longer is idle or hostile. At
//! the limit the oldest connection is closed, so that idle ones cannot lock out a probe.
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::metrics::Metrics;

/// All open connections, oldest first.
#[derive(Debug)]
pub struct Peers {
    open: Mutex<Vec<Peer>>,
    /// Running threads, including those of connections already closed. Memory ordering: relaxed, because
    /// only the number counts; the accepting thread may see the end of another one late, and then refuses
    /// once more.
    threads: AtomicUsize,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Peer {
    stream: Arc<TcpStream>,
    is_answered: bool,
}

/// Removes its connection from the table when dropped.
#[derive(Debug)]
pub struct PeerGuard {
    peers: Arc<Peers>,
    pub stream: Arc<TcpStream>,
}

impl Peers {
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), threads: AtomicUsize::new(0), metrics })
    }

    /// Adds a connection. At the limit it closes another one: one that has its response, or else the oldest.
    pub fn add(self: &Arc<Self>, stream: TcpStream) -> PeerGuard {
        let stream = Arc::new(stream);
        let mut open = self.lock();
        while open.len() >= ADMIN_CONNECTIONS_MAX {
            let answered = open.iter().position(|peer| peer.is_answered);
            let peer = open.remove(answered.unwrap_or(0));
            // This ends a blocked read of its thread. An error means that it is already closed.
            let _ = peer.stream.shutdown(Shutdown::Both);
            self.metrics.background.admin_connections_closed.add(u64::from(!peer.is_answered));
        }
        open.push(Peer { stream: Arc::clone(&stream), is_answered: false });
        self.threads.fetch_add(1, Ordering::Relaxed);
        PeerGuard { peers: Arc::clone(self), stream }
    }

    /// Whether threads of closed connections must end before another one is started.
    pub fn is_full(&self) -> bool {
        self.threads.load(Ordering::Relaxed) >= 2 * ADMIN_CONNECTIONS_MAX
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PeerGuard {
    /// Records that the response was written.
    pub fn set_answered(&self) {
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
