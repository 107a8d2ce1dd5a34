//! The thread that sends rounds, with the keys and settings that are in use then.
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::channel::{Newest, Published};
use crate::clock;
use crate::config::{Config, Secret, SettingError};
use crate::snapshot::DocumentSource;
use crate::spans::Tracer;
use crate::trait_forwarding::queue::SharedTraitQueue;
use crate::trait_forwarding::round::{Destination, RoundMemory, TraitRoundResult, forward_round};
use crate::upstream::{TraitRequest, Upstream};

/// Run a round until then.
#[derive(Clone, Copy, Debug)]
pub struct RoundOrder {
    pub until: Instant,
}

/// What wakes the thread that gives the orders.
#[derive(Debug)]
pub enum Wake {
    RoundEnded(TraitRoundResult),
    Stop,
}

/// Makes the client of upstream.
pub type MakeUpstream = Box<dyn Fn(&Config) -> Result<Upstream, Vec<SettingError>> + Send>;

/// Sends rounds.
pub struct RoundWorker {
    queue: SharedTraitQueue,
    newest: Newest,
    make_upstream: MakeUpstream,
    memory: RoundMemory,
    tracer: Tracer,
    /// The client of upstream, and the configuration that it was made from.
    upstream: Option<(Arc<Config>, Upstream)>,
}

impl RoundWorker {
    pub fn new(queue: SharedTraitQueue, newest: Newest, make_upstream: MakeUpstream, tracer: Tracer) -> Self {
        Self { queue, newest, make_upstream, memory: RoundMemory::default(), tracer, upstream: None }
    }

    /// Starts the thread. It ends when the sender of orders is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(self, wake: Sender<Wake>) -> io::Result<Sender<RoundOrder>> {
        let (orders, ordered) = channel();
        thread::Builder::new().name("traits-send".into()).spawn(move || self.run(&ordered, &wake))?;
        Ok(orders)
    }

    fn run(mut self, ordered: &Receiver<RoundOrder>, wake: &Sender<Wake>) {
        while let Ok(RoundOrder { until }) = ordered.recv() {
            // The queue is as it was after the last request, which is sent again.
            let result = catch_unwind(AssertUnwindSafe(|| self.round(until)));
            let result = result.unwrap_or_else(|_| {
                TraitRoundResult::failed("forwarding panicked, which is a bug in this proxy".to_owned())
            });
            if wake.send(Wake::RoundEnded(result)).is_err() {
                return;
            }
        }
    }

    /// Runs a round. No request begins after `until`. A round without traits is not worth a span.
    pub fn round(&mut self, until: Instant) -> TraitRoundResult {
        let has_traits = self.queue.lock().size().0 > 0;
        let tracer = if has_traits { self.tracer.clone() } else { Tracer::default() };
        tracer.trace("upload", |span| {
            let result = self.send_round(until);
            span.set("edge_proxy.upload.kind", || "traits");
            span.set("edge_proxy.upload.sent", || result.sent);
            if let Some(failure) = &result.failure {
                span.fail(failure.kind.name(), &failure.message);
            }
            result
        })
    }

    fn send_round(&mut self, until: Instant) -> TraitRoundResult {
        let published = self.newest.get();
        if let Err(errors) = self.use_config(&published.config) {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return TraitRoundResult::failed(lines.join("; "));
        }
        let Some((_, upstream)) = &self.upstream else { return TraitRoundResult::empty() };
        let send = |request: TraitRequest, key: &Secret, body: &[u8], time: Duration| {
            upstream.send_traits(request, key, body, Some(time))
        };
        let destination = |environment: &str| destination(&published, environment);
        forward_round(&self.queue, &mut self.memory, until, destination, send)
    }

    fn use_config(&mut self, config: &Arc<Config>) -> Result<(), Vec<SettingError>> {
        if self.upstream.as_ref().is_some_and(|(used, _)| Arc::ptr_eq(used, config)) {
            return Ok(());
        }
        self.upstream = Some((Arc::clone(config), (self.make_upstream)(config)?));
        self.memory.reset();
        Ok(())
    }
}

/// Where the traits of the environment with this client-side key go.
fn destination(published: &Published, client_side_key: &str) -> Destination {
    let snapshot = &published.snapshot;
    let place = snapshot.slots.iter().position(|slot| &*slot.client_side_key == client_side_key);
    let Some((place, slot)) = place.and_then(|place| Some((place, snapshot.slots.get(place)?))) else {
        return if snapshot.is_complete { Destination::NotServed } else { Destination::Unknown };
    };
    match slot.document.as_ref().map(|document| document.source) {
        None => return Destination::Unknown,
        Some(DocumentSource::File | DocumentSource::Embedded) => return Destination::NotServed,
        Some(DocumentSource::Upstream | DocumentSource::Cache) => {}
    }
    let mut keys: Vec<&[u8]> = snapshot.server_keys(place, clock::wall()).collect();
    // In the same order in each round, so that a refused key is followed by another one.
    keys.sort_unstable();
    let keys: Vec<Secret> = keys.iter().map(|key| Secret::new(String::from_utf8_lossy(key))).collect();
    if keys.is_empty() { Destination::Unknown } else { Destination::Keys(keys) }
}
