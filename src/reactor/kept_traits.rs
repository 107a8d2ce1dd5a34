//! A reactor's kept traits: its view of the table, and its end of the channel to the store thread.
//!
//! Survives a restart of the reactor, as the numbers of its writes must.
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::channel::TraitPort;
use crate::config::Level;
use crate::handlers::SharedView;
use crate::limits;
use crate::log::Log;
use crate::metrics::ReactorMetrics;
use crate::reactor::options::WorkerOptions;
use crate::trait_table::{TraitView, ViewLimits};

pub struct KeptTraits {
    view: SharedView,
    port: TraitPort,
    metrics: Arc<ReactorMetrics>,
    log: Log,
    index: usize,
}

impl KeptTraits {
    pub fn new(port: TraitPort, options: &WorkerOptions) -> Self {
        let config = &options.config;
        let share = limits::TRAIT_WRITE_BYTES_QUEUED_MAX / config.cores.len().max(1);
        let limits = ViewLimits {
            reactor: port.reactor(),
            writes_max: limits::TRAIT_WRITES_QUEUED_MAX,
            bytes_max: share.max(limits::TRAIT_WRITE_BYTES_QUEUED_REACTOR_MIN),
            ttl_seconds: u32::try_from(config.traits.ttl.as_secs()).unwrap_or(u32::MAX),
        };
        let view = Rc::new(RefCell::new(TraitView::new(port.seed, limits)));
        Self { view, port, metrics: options.metrics.clone(), log: options.log.clone(), index: options.index }
    }

    pub fn view(&self) -> SharedView {
        self.view.clone()
    }

    /// Sends the writes of the last request to the store thread.
    #[inline]
    pub fn send(&self) {
        if self.view.borrow().has_outbox() {
            self.send_writes();
        }
    }

    fn send_writes(&self) {
        let mut view = self.view.borrow_mut();
        let lost = view.outbox().map(|write| u64::from(!self.port.send(write))).sum();
        view.not_sent(lost);
    }

    /// Applies the updates of the store thread, if there are any. Call it before requests are answered.
    #[inline]
    pub fn receive_new(&self) {
        if self.port.has_updates() {
            self.receive();
        }
    }

    /// Applies the updates of the store thread, and reports writes that were not kept.
    pub fn receive(&self) {
        let mut view = self.view.borrow_mut();
        while let Some(update) = self.port.next_update() {
            view.apply(update);
        }
        let not_kept = view.take_not_kept();
        if not_kept > 0 {
            if self.metrics.traits_not_kept.value() == 0 {
                let hint = "more traits are written than the store thread merges: they were answered, but not \
                            kept, see edge_proxy_traits_not_kept_total";
                self.log.event(Level::Error, "traits_not_kept", &[("reactor", &self.index), ("hint", &hint)]);
            }
            self.metrics.traits_not_kept.add(not_kept);
        }
    }
}
