//! The state that all tasks of a reactor share.
use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::channel::{Inbox, Lease, ReactorMessage, Reporter, SpreadPort};
use crate::config::Level;
use crate::handlers;
use crate::handlers::{Exceeded, HandlerState, RequestOutcome};
use crate::http::framing::TARGET_PART;
use crate::http::h2::event::Http2Limits;
use crate::http::{HeadCache, ParseError, ResponseWriter};
use crate::limits::{FLAG_CYCLE_STEPS_MAX, JSONPATH_STEPS_MAX, PATTERN_STEPS_REQUEST_MAX};
use crate::log::Log;
use crate::metrics::ReactorMetrics;
use crate::reactor::access_log::AccessLog;
use crate::reactor::client_address::ClientAddress;
use crate::reactor::connections::Connections;
use crate::reactor::kept_traits::KeptTraits;
#[cfg(test)]
use crate::reactor::options::InjectedPanic;
use crate::reactor::options::WorkerOptions;
use crate::reactor::panic;
use crate::reactor::posts::PendingPosts;
use crate::reactor::request_spans::RequestSpans;
use crate::reactor::spare_buffers::SpareBuffers;
use crate::reactor::spin::Spin;
use crate::reactor::turns::Turns;
use crate::snapshot::Snapshot;
use crate::spans::TraceParent;
use crate::spans::context::lower_hex;

/// Whether a head over the limit was logged: once per process, because such clients repeat such heads.
/// Memory ordering: relaxed, because the swap itself finds the first.
static LARGE_HEAD_LOGGED: AtomicBool = AtomicBool::new(false);

/// What the supervisor last sent. It survives a restart after a panic.
pub struct WorkerState {
    pub lease: RefCell<Option<Rc<Lease>>>,
    pub settings: RefCell<Rc<handlers::HandlerSettings>>,
    pub tls: RefCell<Option<Arc<rustls::ServerConfig>>>,
    pub draining: Cell<bool>,
    /// Requests that are still open are ended.
    pub ending: Cell<bool>,
    /// Requests whose events are being written.
    pub posts: Rc<PendingPosts>,
    /// Kept traits; `None` without a store.
    pub traits: Option<KeptTraits>,
}

/// The state of a reactor since its last (re)start. No `RefCell` is borrowed across an await.
pub struct Reactor {
    pub index: usize,
    pub log: Log,
    pub metrics: Arc<ReactorMetrics>,
    /// `None`: the access log is disabled.
    pub access: Option<AccessLog>,
    /// `None`: requests have no spans.
    pub spans: Option<RequestSpans>,
    pub addresses: ClientAddress,
    pub worker_state: Rc<WorkerState>,
    pub request_state: RefCell<RequestState>,
    pub heads: Rc<HeadCache>,
    pub connections: Rc<Connections>,
    pub turns: Rc<Turns>,
    /// `None`: the reactor sleeps as soon as it has nothing to do.
    pub spin: Option<Spin>,
    /// `None`: connections stay where the kernel put them.
    pub spread: Option<SpreadPort>,
    /// The driver of the runtime is io_uring.
    pub is_uring: bool,
    pub connections_max: usize,
    /// Per connection.
    pub requests_max: u64,
    /// `None`: only HTTP/1.1 is spoken.
    pub http2: Option<Http2Limits>,
    pub spare_buffers: Rc<SpareBuffers>,
    reporter: Reporter,
    #[cfg(test)]
    fault: &'static std::sync::atomic::AtomicU8,
}

/// Handler state and response buffers, reused by every request of the reactor.
#[derive(Default)]
pub struct RequestState {
    pub handler: HandlerState,
    pub output: ResponseWriter,
}

impl RequestState {
    fn new(traits: Option<&KeptTraits>) -> Self {
        Self { handler: HandlerState::new(traits.map(KeptTraits::view)), ..Self::default() }
    }

    /// Frees what is cached of documents that this new snapshot does not have.
    pub fn forget_documents(&mut self, snapshot: &Snapshot) {
        self.output.clear_cache();
        self.handler.retain_results(snapshot);
    }
}

impl WorkerState {
    pub fn new(options: &WorkerOptions) -> Self {
        Self {
            lease: RefCell::new(None),
            settings: RefCell::new(Rc::new(handlers::HandlerSettings::new(&options.config))),
            tls: RefCell::new(options.tls.clone()),
            draining: Cell::new(false),
            ending: Cell::new(false),
            posts: Rc::new(PendingPosts::new(options.inbox.events.clone(), options.config.cores.len())),
            traits: options.inbox.traits.clone().map(|port| KeptTraits::new(port, options)),
        }
    }
}

impl Reactor {
    pub fn new(options: &WorkerOptions, worker_state: Rc<WorkerState>, is_uring: bool) -> Self {
        let server = &options.config.server;
        Self {
            index: options.index,
            log: options.log.clone(),
            metrics: options.metrics.clone(),
            access: AccessLog::new(&options.config),
            spans: options
                .spans
                .clone()
                .zip(options.config.telemetry.sampler)
                .map(|(sender, sampler)| RequestSpans::new(sender, sampler)),
            addresses: ClientAddress::new(&options.config),
            request_state: RefCell::new(RequestState::new(worker_state.traits.as_ref())),
            worker_state,
            heads: Rc::new(HeadCache::new(server.head_bytes_max)),
            connections: Rc::new(Connections::new(
                options.times,
                options.metrics.clone(),
                options.inbox.spread.clone(),
            )),
            turns: Rc::new(Turns::new(options.metrics.clone())),
            spin: Spin::new(server.spin),
            spread: options.inbox.spread.clone(),
            is_uring,
            connections_max: server.connections_max,
            requests_max: server.requests_max.unwrap_or(u64::MAX),
            http2: server.http2.then_some(Http2Limits {
                head_bytes_max: server.head_bytes_max,
                streams_max: server.http2_streams_max,
            }),
            spare_buffers: Rc::default(),
            reporter: options.inbox.reporter(),
            #[cfg(test)]
            fault: options.times.fault,
        }
    }

    #[cfg(test)]
    pub fn panic_if_injected(&self, here: InjectedPanic) {
        if self.fault.compare_exchange(here as u8, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            panic!("injected by a test");
        }
    }

    pub fn is_draining(&self) -> bool {
        self.worker_state.draining.get()
    }

    pub fn is_ending(&self) -> bool {
        self.worker_state.ending.get()
    }

    /// Applies all messages of the supervisor. False: the supervisor has exited.
    pub fn receive_messages(&self, inbox: &Inbox) -> bool {
        self.worker_state.posts.receive();
        self.worker_state.traits.iter().for_each(KeptTraits::receive);
        loop {
            match inbox.try_next() {
                Ok(Some(ReactorMessage::Publish(snapshot))) => {
                    self.metrics.snapshot_taken(snapshot.version);
                    self.settle_counts();
                    self.request_state.borrow_mut().forget_documents(&snapshot);
                    *self.worker_state.lease.borrow_mut() = Some(inbox.lease(snapshot));
                    self.connections.notify_streams();
                }
                Ok(Some(ReactorMessage::Configure(config))) => {
                    let settings = handlers::HandlerSettings::new(&config);
                    *self.worker_state.settings.borrow_mut() = Rc::new(settings);
                    // OFREP results contain the base path.
                    self.request_state.borrow_mut().handler.clear_results();
                }
                Ok(Some(ReactorMessage::Certificates(settings))) => {
                    *self.worker_state.tls.borrow_mut() = Some(settings);
                }
                Ok(Some(ReactorMessage::Drain)) => self.worker_state.draining.set(true),
                Ok(Some(ReactorMessage::End)) => self.worker_state.ending.set(true),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// The work of each `SWEEP_INTERVAL`: timeouts, memory limits, and reports to other threads.
    pub fn sweep(&self) {
        self.connections.sweep();
        // The worker does not wait for wake-ups while it drains.
        self.worker_state.posts.receive();
        self.worker_state.traits.iter().for_each(KeptTraits::receive);
        self.report_counts();
        self.report_caches();
        self.flush_access_log();
        self.flush_spans();
    }

    /// Resolves counts by slot to keys, before another snapshot assigns the slots anew.
    pub fn settle_counts(&self) {
        if let Some(lease) = self.worker_state.lease.borrow().as_deref() {
            let key = |slot: usize| lease.slots.get(slot).map(|slot| &*slot.client_side_key);
            self.request_state.borrow_mut().handler.counts().settle(key);
        }
    }

    /// Sends counts to the supervisor. If its queue is full they are kept for the next call.
    pub fn report_counts(&self) {
        if self.request_state.borrow_mut().handler.counts().is_empty() {
            return;
        }
        self.settle_counts();
        let counts = std::mem::take(self.request_state.borrow_mut().handler.counts());
        if let Err(counts) = self.reporter.report(Box::new(counts)) {
            // Nothing was counted in between.
            *self.request_state.borrow_mut().handler.counts() = *counts;
        }
    }

    /// Copies the counts of the handlers' caches to the metrics.
    pub fn report_caches(&self) {
        let counts = self.request_state.borrow().handler.result_cache_counts();
        self.metrics.result_cache_hits.set(counts.hits);
        self.metrics.result_cache_misses.set(counts.misses);
        self.metrics.result_cache_evicted.set(counts.evicted);
        self.metrics.result_cache_bytes.set(counts.bytes);
    }

    /// Sends buffered access records to the log thread.
    pub fn flush_access_log(&self) {
        if let Some(access) = &self.access {
            self.metrics.access_dropped.add(access.flush(&self.log));
        }
    }

    /// Sends buffered spans to the exporter.
    pub fn flush_spans(&self) {
        self.spans.iter().for_each(RequestSpans::flush);
    }

    /// Counts the requests of a batch; its duration is divided evenly among them.
    #[inline]
    pub fn count_batch(&self, requests: u64, began: SystemTime) {
        if requests == 0 {
            return;
        }
        let duration = began.elapsed().unwrap_or(Duration::ZERO);
        // Nearly always 1, and the division costs more than the rest of this function.
        let each = match requests {
            1 => duration,
            many => duration / u32::try_from(many).unwrap_or(u32::MAX),
        };
        self.metrics.batch(requests, each);
        if let Some(spin) = &self.spin {
            spin.answered();
        }
    }

    /// Counts an error response to a request that was not read.
    pub fn count_error(&self, error: ParseError) {
        self.metrics.rejected(error);
        self.metrics.answered(crate::http::route::Route::Unknown, error.status().0);
    }

    #[cold]
    pub fn log_large_head(&self, error: ParseError) {
        if LARGE_HEAD_LOGGED.swap(true, Ordering::Relaxed) {
            return;
        }
        let bytes_max = self.heads.bytes_max();
        let limit = if error == ParseError::TargetTooLong { bytes_max / TARGET_PART } else { bytes_max };
        let hint =
            "if clients need it, raise server.head_bytes_max (at most 65536; a target may take half of it)";
        let fields: [(_, &dyn Display); 5] = [
            ("status", &error.status().0),
            ("reason", &error.name()),
            ("limit_bytes", &limit),
            ("setting", &"server.head_bytes_max"),
            ("hint", &hint),
        ];
        self.log.event(Level::Warning, "request_head_refused", &fields);
    }

    /// Counts a request that exceeded a budget, and logs the first per environment.
    #[cold]
    pub fn record_exceeded(
        &self,
        exceeded: Exceeded,
        snapshot: &Snapshot,
        outcome: &RequestOutcome,
        handler: &HandlerState,
        traceparent: Option<&[u8]>,
    ) {
        self.metrics.jsonpath_exceeded.add(u64::from(exceeded.jsonpath));
        self.metrics.patterns_exceeded.add(u64::from(exceeded.patterns));
        self.metrics.flag_cycles_exceeded.add(u64::from(exceeded.flag_cycles));
        self.metrics.bulk_refused.add(u64::from(exceeded.bulk));
        let Some(slot) = outcome.slot.and_then(|slot| snapshot.slots.get(slot)) else { return };
        let Some(environment) = slot.environment() else { return };
        let key: &dyn Display = &slot.client_side_key;
        let reported = &slot.reported;
        let trace_id = trace_id(traceparent);
        let trace_id = trace_id.as_ref().map(|trace_id| ("trace_id", trace_id as &dyn Display));
        let warn = |event, fields: &[(&'static str, &dyn Display)]| {
            let fields: Vec<_> = fields.iter().copied().chain(trace_id).collect();
            self.log.event(Level::Warning, event, &fields);
        };
        if exceeded.jsonpath && !reported.jsonpath.swap(true, Ordering::Relaxed) {
            let property = handler.cut_property(environment).unwrap_or_default();
            warn(
                "jsonpath_budget_exceeded",
                &[("client_side_key", key), ("property", &property), ("steps_max", &JSONPATH_STEPS_MAX)],
            );
        }
        if exceeded.patterns && !reported.patterns.swap(true, Ordering::Relaxed) {
            warn(
                "regex_budget_exceeded",
                &[("client_side_key", key), ("steps_max", &PATTERN_STEPS_REQUEST_MAX)],
            );
        }
        if exceeded.flag_cycles && !reported.flag_cycles.swap(true, Ordering::Relaxed) {
            warn(
                "flag_cycle_budget_exceeded",
                &[("client_side_key", key), ("steps_max", &FLAG_CYCLE_STEPS_MAX)],
            );
        }
    }

    /// `traceparent`: that of the request, if it is known which it was.
    #[cold]
    pub fn log_panic(&self, event: &'static str, traceparent: Option<&[u8]>) {
        let (location, trace_id) = (panic::take_last(), trace_id(traceparent));
        let mut fields: Vec<(&'static str, &dyn Display)> =
            vec![("reactor", &self.index), ("place", &location)];
        fields.extend(trace_id.as_ref().map(|trace_id| ("trace_id", trace_id as &dyn Display)));
        self.log.event(Level::Critical, event, &fields);
    }
}

/// The trace id of a valid `traceparent`.
fn trace_id(traceparent: Option<&[u8]>) -> Option<String> {
    Some(lower_hex(&TraceParent::parse(traceparent?)?.trace_id))
}
