//! The store thread: takes writes of reactors in groups, applies them, informs sinks and reactors.
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::channel::{TraitLink, TraitMessage};
use crate::clock;
use crate::config::Config;
use crate::limits::TRAIT_GROUP_MAX;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::trait_table::{TraitChange, TraitDelta, TraitUpdate};
use crate::traits::accounts::AccountLimits;
use crate::traits::changes::{ChangeKind, TraitChanges};
use crate::traits::memory::TraitMemory;
use crate::traits::sink::{Inform, TraitSink};

/// The time between two sweeps of a shard for old identities, and the longest wait for messages.
const TICK: Duration = Duration::from_millis(50);
/// The pause after a group of writes: under load they are taken together, so that few of them wake this
/// thread, and few updates wake the reactors.
const GROUP_PAUSE: Duration = Duration::from_millis(1);
/// The wait while a reactor lacks an update.
const RESEND_WAIT: Duration = Duration::from_millis(10);

/// The state of the store thread.
pub struct TraitStore {
    link: TraitLink,
    memory: TraitMemory,
    sinks: Vec<Box<dyn TraitSink>>,
    metrics: Arc<Metrics>,
    log: Log,
    ttl_seconds: u32,
    swept_at: Instant,
    /// By reactor: writes that were applied, and those that it was informed of.
    applied: Vec<u64>,
    informed: Vec<u64>,
    /// By reactor: it missed an update and needs the whole table.
    needs_table: Vec<bool>,
    /// Deltas that reactors may be reading, the oldest first. They are freed here: a reactor that drops the
    /// last reference would wait for the memory of each record, which this thread has written.
    published: VecDeque<Arc<TraitDelta>>,
    /// Messages of the last step.
    group: usize,
}

impl TraitStore {
    /// The store with its table in memory. Changes go to `sinks`.
    pub fn new(
        config: &Config,
        link: TraitLink,
        mut sinks: Vec<Box<dyn TraitSink>>,
        metrics: Arc<Metrics>,
        log: Log,
    ) -> Self {
        let limits = AccountLimits {
            identities_max: config.traits.identities_max as u64,
            bytes_max: config.traits.bytes_max,
        };
        let mut memory = TraitMemory::new(link.seed(), limits, proxy_id());
        memory.keeps_tombstones = sinks.iter().any(|sink| sink.needs_tombstones());
        each_sink(&mut sinks, |sink, inform| sink.load(&mut memory, inform));
        let reactors = link.reactors();
        metrics.traits.is_enabled.set(1);
        let mut store = Self {
            link,
            memory,
            sinks,
            metrics,
            log,
            ttl_seconds: u32::try_from(config.traits.ttl.as_secs()).unwrap_or(u32::MAX),
            swept_at: clock::instant(),
            applied: vec![0; reactors],
            informed: vec![0; reactors],
            needs_table: vec![true; reactors],
            published: VecDeque::new(),
            group: 0,
        };
        store.evict(clock::wall());
        store.publish(false);
        store.measure();
        store
    }

    /// Runs until `TraitMessage::Stop`.
    pub fn run(mut self) {
        while self.step(if self.is_awaited() { RESEND_WAIT } else { TICK }) {
            if (1..TRAIT_GROUP_MAX).contains(&self.group) {
                thread::sleep(GROUP_PAUSE);
            }
        }
    }

    /// Whether a reactor lacks an update that it had no capacity for.
    pub fn is_awaited(&self) -> bool {
        self.needs_table.contains(&true)
    }

    /// How many writes wait for the next step.
    pub fn queued(&self) -> usize {
        self.link.queued()
    }

    /// Waits for messages, for `wait` at most, applies them, and does what is due. False: the last of them
    /// was `TraitMessage::Stop`, and everything is written.
    pub fn step(&mut self, wait: Duration) -> bool {
        let mut is_last = false;
        let group = self.link.next_group(wait, TRAIT_GROUP_MAX);
        self.group = group.len();
        let (now, is_idle, mut writes) = (clock::wall(), group.is_empty(), 0);
        for message in group {
            match message {
                TraitMessage::Write(reactor, write) => {
                    let sinks = &mut self.sinks;
                    self.memory
                        .write(reactor, &write, now, &mut |changes| inform(sinks, &self.metrics, changes));
                    writes += 1;
                    if let Some(applied) = self.applied.get_mut(reactor) {
                        *applied += 1;
                    }
                }
                TraitMessage::Stop => is_last = true,
            }
        }
        self.metrics.traits.writes.add(writes);
        self.evict(now);
        self.sweep(now);
        self.publish(is_idle);
        let memory = &mut self.memory;
        each_sink(&mut self.sinks, |sink, inform| sink.tick(memory, now, is_last, inform));
        // What a sink has merged.
        self.publish(false);
        self.measure();
        !is_last
    }

    fn evict(&mut self, now: SystemTime) {
        let sinks = &mut self.sinks;
        let count = self.memory.evict(now, &mut |changes| inform(sinks, &self.metrics, changes));
        let evicted = &self.metrics.traits.evicted;
        if count > 0 && evicted.value() == 0 {
            let hint = "kept traits have reached traits.bytes_max or traits.identities_max: the least used \
                        identities are removed, see edge_proxy_traits_evicted_total";
            self.log.event(crate::config::Level::Warning, "traits_evicted", &[("hint", &hint)]);
        }
        evicted.add(count);
    }

    fn sweep(&mut self, now: SystemTime) {
        if self.ttl_seconds == 0 || clock::elapsed(self.swept_at) < TICK {
            return;
        }
        self.swept_at = clock::instant();
        let (sinks, ttl) = (&mut self.sinks, self.ttl_seconds);
        let count = self.memory.sweep(ttl, now, &mut |changes| inform(sinks, &self.metrics, changes));
        self.metrics.traits.expired.add(count);
    }

    /// Informs the reactors of what changed, and of their writes that were applied.
    fn publish(&mut self, is_idle: bool) {
        let delta = Arc::new(self.memory.take_delta(is_idle));
        let is_empty = delta.records.is_empty() && delta.shards.is_empty();
        while self.published.front().is_some_and(|delta| Arc::strong_count(delta) == 1) {
            self.published.pop_front();
        }
        for reactor in 0..self.applied.len() {
            let acknowledged = self.applied[reactor];
            if self.needs_table[reactor] {
                if !self.link.has_capacity(reactor) {
                    continue;
                }
                let table = self.memory.table().clone();
                self.needs_table[reactor] = !self.send(reactor, TraitChange::Table(Box::new(table)));
                self.metrics.traits.tables_sent.add(u64::from(!self.needs_table[reactor]));
            } else if !is_empty || self.informed[reactor] != acknowledged {
                self.needs_table[reactor] = !self.send(reactor, TraitChange::Delta(delta.clone()));
            }
        }
        if !is_empty {
            self.published.push_back(delta);
        }
    }

    fn send(&mut self, reactor: usize, change: TraitChange) -> bool {
        let acknowledged = self.applied[reactor];
        let is_sent = self.link.send(reactor, TraitUpdate { change, acknowledged });
        if is_sent {
            self.informed[reactor] = acknowledged;
        }
        is_sent
    }

    fn measure(&self) {
        let metrics = &self.metrics.traits;
        metrics.identities.set(self.memory.identities());
        metrics.bytes.set(self.memory.bytes());
        metrics.queued.set(self.link.queued() as u64);
    }
}

/// Calls each sink with what informs the others.
fn each_sink(sinks: &mut [Box<dyn TraitSink>], mut call: impl FnMut(&mut dyn TraitSink, Inform<'_>)) {
    for index in 0..sinks.len() {
        let (before, rest) = sinks.split_at_mut(index);
        let Some((sink, after)) = rest.split_first_mut() else { continue };
        call(sink.as_mut(), &mut |changes| {
            before.iter_mut().chain(after.iter_mut()).for_each(|other| other.changed(changes));
        });
    }
}

fn inform(sinks: &mut [Box<dyn TraitSink>], metrics: &Metrics, changes: &TraitChanges<'_>) {
    if changes.kind == ChangeKind::Erased {
        metrics.traits.erased.add(1);
    }
    sinks.iter_mut().for_each(|sink| sink.changed(changes));
}

/// Distinguishes the stamps of this process from those of others.
fn proxy_id() -> u32 {
    clock::random().map_or_else(|_| std::process::id(), |random| random as u32)
}
