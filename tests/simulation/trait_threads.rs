//! The threads of kept traits, without threads: the store, the writer of its file, and forwarding.
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edge_proxy::channel::{Newest, TraitLink};
use edge_proxy::clock;
use edge_proxy::config::Config;
use edge_proxy::limits;
use edge_proxy::metrics::Metrics;
use edge_proxy::spans::Tracer;
use edge_proxy::storage::disk::DiskFolder;
use edge_proxy::trait_forwarding::Scheduler;
use edge_proxy::trait_forwarding::queue::{SharedTraitQueue, TraitQueue};
use edge_proxy::trait_forwarding::round::TraitRoundResult;
use edge_proxy::trait_forwarding::worker::{RoundOrder, RoundWorker};
use edge_proxy::traits::disk::{DiskWriter, TraitDisk};
use edge_proxy::traits::store::TraitStore;
use edge_proxy::traits::{ForwardSink, TraitSink};
use edge_proxy::upstream::Upstream;

use crate::process::Shared;
use crate::random::Random;

/// How often forwarding is played while it has nothing to do.
const IDLE_INTERVAL: Duration = Duration::from_secs(120);

/// How often a disk that fails for long is tried: the program does so each second.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// So many attempts are made each second.
const FAILURES_EAGER: u32 = 5;

/// When something is next due, of each thread.
#[derive(Debug, Default)]
struct Due {
    store: Option<Duration>,
    writer: Option<Duration>,
    scheduler: Option<Duration>,
}

pub struct PlayedTraits {
    store: TraitStore,
    /// `None`: the store is in memory only.
    writer: Arc<Mutex<Option<DiskWriter>>>,
    forwarding: Option<Forwarding>,
    metrics: Arc<Metrics>,
    due: Due,
    /// Since when something is not on the disk.
    unwritten_since: Option<Duration>,
    /// Failed attempts of the writer since the disk was last changed.
    failures: u32,
    random: Random,
}

struct Forwarding {
    queue: SharedTraitQueue,
    scheduler: Scheduler,
    worker: RoundWorker,
    orders: Receiver<RoundOrder>,
    /// The round that is in flight, and what it came to.
    order: Option<RoundOrder>,
    result: Option<TraitRoundResult>,
}

impl PlayedTraits {
    /// What `serve` starts.
    pub fn start(
        config: &Config,
        link: TraitLink,
        newest: Newest,
        folder: Option<&DiskFolder>,
        metrics: &Arc<Metrics>,
        seed: u64,
        shared: &Shared<'_>,
    ) -> Self {
        let Shared { network, log, now, .. } = *shared;
        let forwarding = config.traits.forward.then(|| {
            let forward_metrics = Arc::clone(&metrics.trait_forwarding);
            let queue = TraitQueue::new(
                limits::TRAIT_FORWARD_BYTES_MAX,
                folder.is_some(),
                Arc::clone(&forward_metrics),
            );
            let queue = SharedTraitQueue::new(queue);
            let network = network.clone();
            let upstream = move |config: &Config| Upstream::over(config, network.clone());
            let tracer = Tracer::default();
            let worker = RoundWorker::new(queue.clone(), newest.clone(), Box::new(upstream), tracer);
            let (to_worker, orders) = channel();
            let scheduler = Scheduler::new(
                config,
                folder.cloned(),
                queue.clone(),
                newest,
                to_worker,
                forward_metrics,
                log.clone(),
            );
            Forwarding { queue, scheduler, worker, orders, order: None, result: None }
        });
        let sink = |forwarding: &Forwarding| -> Box<dyn TraitSink> {
            Box::new(ForwardSink::new(forwarding.queue.clone()))
        };
        let mut sinks: Vec<Box<dyn TraitSink>> = forwarding.iter().map(sink).collect();
        let writer = Arc::new(Mutex::new(None));
        if let Some(folder) = folder.filter(|_| config.traits_folder().is_some()) {
            let here = Arc::clone(&writer);
            let run = move |writer| {
                *here.lock().expect("no panic while it is locked") = Some(writer);
                Ok(())
            };
            let disk = TraitDisk::on(folder.join("traits"), Box::new(run), Arc::clone(metrics), log.clone());
            sinks.push(Box::new(disk));
        }
        let store = TraitStore::new(config, link, sinks, Arc::clone(metrics), log.clone());
        let due = Due { store: None, writer: Some(now), scheduler: forwarding.as_ref().map(|_| now) };
        Self {
            unwritten_since: None,
            failures: 0,
            store,
            writer,
            forwarding,
            metrics: Arc::clone(metrics),
            due,
            random: Random::new(seed),
        }
    }

    /// When one of the threads has something to do.
    pub fn due(&self) -> Option<Duration> {
        let Due { store, writer, scheduler } = self.due;
        [store, writer, scheduler].into_iter().flatten().min()
    }

    /// Connections were used: what they have written is merged soon.
    pub fn used(&mut self, now: Duration) {
        if self.due.store.is_none() && self.store.queued() > 0 {
            self.due.store = Some(now + Duration::from_millis(self.random.below(100)));
        }
    }

    /// Does what is due first. Returns a round that is to be sent upstream.
    pub fn step(&mut self, now: Duration) -> Option<RoundOrder> {
        if self.due.store.is_some_and(|at| at <= now) {
            self.step_store(now);
        } else if self.due.writer.is_some_and(|at| at <= now) {
            self.step_writer(now);
        } else if self.due.scheduler.is_some_and(|at| at <= now) {
            return self.step_scheduler(now);
        }
        None
    }

    fn step_store(&mut self, now: Duration) {
        self.store.step(Duration::ZERO);
        let is_unwritten = self.metrics.traits.unwritten.value() > 0;
        self.unwritten_since = self.unwritten_since.or(Some(now)).filter(|_| is_unwritten);
        // While the disk fails, the store hears nothing of the writer.
        let is_due = is_unwritten && !self.is_failing() || self.store.is_awaited();
        let again = if self.store.is_awaited() { 10 } else { 250 };
        self.due.store = is_due.then(|| now + Duration::from_millis(again));
        if is_unwritten && self.due.writer.is_none() {
            self.due.writer = Some(now + Duration::from_millis(self.random.between(1, 100)));
        }
        if self.forwarding.is_some() {
            let soon = now + Duration::from_millis(self.random.between(1, 1000));
            self.due.scheduler = self.due.scheduler.map(|at| at.min(soon));
        }
    }

    fn step_writer(&mut self, now: Duration) {
        self.due.writer = None;
        let mut writer = self.writer.lock().expect("no panic while it is locked");
        let Some(writer) = writer.as_mut() else { return };
        writer.step(Duration::ZERO, |_| {});
        if writer.is_failing() {
            self.failures += 1;
            let wait = if self.failures < FAILURES_EAGER { Duration::from_secs(1) } else { RETRY_INTERVAL };
            self.due.writer = Some(now + wait);
            return;
        }
        self.failures = 0;
        // The store hears of it at its next step.
        let soon = now + Duration::from_millis(50);
        self.due.store = Some(self.due.store.map_or(soon, |at| at.min(soon)));
    }

    fn is_failing(&self) -> bool {
        let writer = self.writer.lock().expect("no panic while it is locked");
        writer.as_ref().is_some_and(DiskWriter::is_failing)
    }

    fn step_scheduler(&mut self, now: Duration) -> Option<RoundOrder> {
        let forwarding = self.forwarding.as_mut()?;
        let wait = forwarding.scheduler.tick();
        let is_idle = forwarding.queue.lock().size().0 == 0;
        self.due.scheduler = Some(now + if is_idle { IDLE_INTERVAL } else { wait });
        let order = forwarding.orders.try_recv().ok()?;
        forwarding.order = Some(order);
        Some(order)
    }

    /// A disk that works again is written to soon.
    pub fn disk_changed(&mut self, now: Duration) {
        let soon = now + Duration::from_secs(1);
        self.failures = 0;
        self.due.writer = Some(self.due.writer.map_or(soon, |at| at.min(soon)));
        self.due.scheduler = self.due.scheduler.map(|at| at.min(soon));
    }

    /// Upstream answers the round.
    pub fn serve(&mut self) {
        let Some(forwarding) = &mut self.forwarding else { return };
        if let Some(order) = forwarding.order.take() {
            forwarding.result = Some(forwarding.worker.round(order.until));
        }
    }

    /// The answer arrives.
    pub fn served(&mut self, now: Duration) {
        let Some(forwarding) = &mut self.forwarding else { return };
        if let Some(result) = forwarding.result.take() {
            forwarding.scheduler.apply(&result);
            self.due.scheduler = Some(now);
        }
    }

    /// The process ends: what reactors have sent is written, and forwarded once more.
    pub fn stop(mut self) {
        while self.store.queued() > 0 {
            self.store.step(Duration::ZERO);
        }
        let (start, wall) = (clock::instant(), clock::wall());
        for quarter in 0..20 {
            if self.metrics.traits.unwritten.value() == 0 {
                break;
            }
            let time = Duration::from_millis(250 * quarter);
            clock::fix(start + time, wall + time, 0);
            if let Some(writer) = self.writer.lock().expect("no panic while it is locked").as_mut()
                && (quarter % 4 == 0 || !writer.is_failing())
            {
                writer.step(Duration::ZERO, |_| {});
            }
            self.store.step(Duration::ZERO);
        }
        let Some(mut forwarding) = self.forwarding else { return };
        while forwarding.scheduler.order_last().is_some() {
            if let Ok(order) = forwarding.orders.try_recv() {
                forwarding.order = Some(order);
            }
            if let Some(order) = forwarding.order.take() {
                forwarding.result = Some(forwarding.worker.round(order.until));
            }
            let Some(result) = forwarding.result.take() else { break };
            forwarding.scheduler.apply(&result);
        }
        forwarding.scheduler.finish();
    }

    /// Since when something is not on the disk.
    pub fn unwritten_since(&self) -> Option<Duration> {
        self.unwritten_since
    }
}
