//! Kept traits for the counts: a view and the store thread's work, which run one after another.
use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use edge_proxy::channel::{TraitLink, TraitPort};
use edge_proxy::config::{self, Inputs};
use edge_proxy::handlers::SharedView;
use edge_proxy::limits;
use edge_proxy::log::Log;
use edge_proxy::metrics::Metrics;
use edge_proxy::trait_table::{TraitView, ViewLimits};
use edge_proxy::traits::store::TraitStore;

/// Writes that the store thread takes at a time: a few, as at a load that it copes with.
const GROUP: u64 = 8;

pub struct KeptTraits {
    pub view: SharedView,
    port: TraitPort,
    store: TraitStore,
    /// What wakes the reactor is never read.
    _wake: (UnixStream, UnixStream),
    requests: u64,
}

impl KeptTraits {
    pub fn new() -> Self {
        let config =
            config::load(&Inputs { without_file: true, may_serve_nothing: true, ..Inputs::default() })
                .expect("valid")
                .0;
        let log = Log::start_to(&config.logging, std::io::sink(), None).expect("a thread");
        let wake = UnixStream::pair().expect("two sockets");
        wake.0.set_nonblocking(true).expect("a socket");
        let mut link = TraitLink::new(1, 1);
        let port = link.connect(&wake.0).expect("a descriptor");
        let metrics = Arc::new(Metrics::new(&[0]));
        let store = TraitStore::new(&config, link, Vec::new(), metrics, log);
        let limits = ViewLimits {
            reactor: port.reactor(),
            writes_max: limits::TRAIT_WRITES_QUEUED_MAX,
            bytes_max: limits::TRAIT_WRITE_BYTES_QUEUED_REACTOR_MIN,
            ttl_seconds: 0,
        };
        let view = Rc::new(RefCell::new(TraitView::new(port.seed, limits)));
        Self { view, port, store, _wake: wake, requests: 0 }
    }

    /// Does what reactor and store thread do after a request.
    pub fn after_request(&mut self) {
        let mut view = self.view.borrow_mut();
        view.outbox().for_each(|write| assert!(self.port.send(write)));
        self.requests += 1;
        if self.requests.is_multiple_of(GROUP) {
            // Without writes the thread sleeps.
            if self.store.queued() > 0 {
                self.store.step(Duration::ZERO);
            }
            while let Some(update) = self.port.next_update() {
                view.apply(update);
            }
        }
        assert_eq!(view.take_not_kept(), 0);
    }
}
