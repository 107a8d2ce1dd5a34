//! The model of a fleet: proxies that poll by `edge_proxy::schedule`, their parents, links and outages.
//!
//! Time is simulated; random numbers are the same in every run.
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use edge_proxy::schedule::{Retry, Schedule, full_refresh};

/// From a proxy to its parent and back, without the transfer.
const ROUND_TRIP: Duration = Duration::from_millis(10);
/// What a proxy or the API can send, bytes a second: 1 Gbit/s.
const LINK_BYTES_PER_SECOND: f64 = 125e6;
/// A request or a 304, bytes.
const HEAD_BYTES: u64 = 400;
const INTERVAL: Duration = Duration::from_secs(10);
const EDIT_INTERVAL: Duration = Duration::from_secs(300);
/// Earlier editions that deltas are made from, and the edition itself.
const DELTA_EDITIONS: u64 = edge_proxy::limits::DELTA_EDITIONS_MAX as u64;

#[derive(Clone, Copy, Debug)]
pub struct Document {
    pub name: &'static str,
    pub bytes: usize,
    /// By gzip.
    pub compressed: u64,
    /// Of one flag, or of none.
    pub delta: u64,
    /// Validation, compilation and compression.
    pub compile: Duration,
}

/// Proxies by tier, the one that polls the API first. The children of a tier are dealt out evenly.
#[derive(Clone, Debug)]
pub struct Shape {
    pub tiers: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outage {
    None,
    /// This part of all polls fails.
    Polls(f64),
    /// The first proxy of the first tier is down for this time after each second edit.
    Parent(Duration),
    /// The API is down for this time from just before each second edit.
    Api(Duration),
}

#[derive(Clone, Debug)]
pub struct Fleet {
    pub shape: Shape,
    pub document: Document,
    /// Children follow the event stream of their parents.
    pub events: bool,
    pub deltas: bool,
    pub outage: Outage,
}

#[derive(Debug, Default)]
pub struct Report {
    pub api_polls_per_second: f64,
    pub api_bytes_per_edit: f64,
    pub parent_bytes_per_edit: f64,
    pub fleet_bytes_per_hour: f64,
    pub half: Duration,
    pub most: Duration,
    pub last: Duration,
    /// The longest time that a response waited for the link of its parent.
    pub longest_transfer: Duration,
    /// Edits that did not reach a leaf before the next one.
    pub missing: usize,
}

impl Report {
    pub fn row(&self, document: &str, shape: &str, events: bool, deltas: bool, failures: &str) -> String {
        let megabytes = |bytes: f64| {
            let megabytes = bytes / 1e6;
            if megabytes < 10.0 { format!("{megabytes:.2}") } else { format!("{megabytes:.0}") }
        };
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let parent =
            if shape == "all at the API" { "-".to_owned() } else { megabytes(self.parent_bytes_per_edit) };
        format!(
            "| {document} | {shape} | {} | {} | {failures} | {:.1} | {} | {parent} | {} | {} | {} | {} |",
            if events { "events" } else { "polls" },
            if deltas { "yes" } else { "no" },
            self.api_polls_per_second,
            megabytes(self.api_bytes_per_edit),
            megabytes(self.fleet_bytes_per_hour),
            seconds(self.half),
            seconds(self.most),
            seconds(self.last)
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Edit,
    Poll {
        node: usize,
        ticket: u64,
    },
    /// The request reaches the parent, which answers with what it has then.
    Arrive {
        node: usize,
        started: Duration,
    },
    /// The new document is in use.
    Published {
        node: usize,
        edition: u64,
        started: Duration,
    },
    Unchanged {
        node: usize,
        started: Duration,
    },
    Failed {
        node: usize,
    },
    Announce {
        node: usize,
        edition: u64,
    },
    Down {
        node: usize,
    },
    Up {
        node: usize,
    },
}

/// The API is node 0.
struct Node {
    parent: usize,
    children: Vec<usize>,
    schedule: Schedule,
    edition: u64,
    announced: u64,
    /// Outdates polls that are queued.
    ticket: u64,
    is_in_flight: bool,
    is_up: bool,
    full_at: Option<Duration>,
    is_full_next: bool,
    full_jitter: f64,
    /// When the link to the children is free again.
    link_free: Duration,
    sent: u64,
    is_leaf: bool,
}

struct Run<'f> {
    fleet: &'f Fleet,
    epoch: Instant,
    queue: BinaryHeap<Reverse<(Duration, u64, Happening)>>,
    sequence: u64,
    nodes: Vec<Node>,
    random: u64,
    edited_at: Vec<Duration>,
    reached: Vec<Vec<Duration>>,
    api_polls: u64,
    longest_transfer: Duration,
}

impl Fleet {
    pub fn run(&self, time: Duration) -> Report {
        let mut run = Run::new(self);
        let edits = (time.as_secs() / EDIT_INTERVAL.as_secs()) as usize;
        // The first minute is the start of the fleet.
        for edit in 0..edits {
            run.at(Duration::from_secs(60) + EDIT_INTERVAL * edit as u32, Happening::Edit);
        }
        let began = Duration::from_secs(60);
        let mut at_begin = None;
        while let Some(Reverse((now, _, happening))) = run.queue.pop() {
            if now >= began && at_begin.is_none() {
                at_begin = Some((run.api_polls, run.nodes.iter().map(|node| node.sent).collect::<Vec<_>>()));
            }
            if now >= began + time {
                break;
            }
            run.happen(now, happening);
        }
        let (polls, sent) = at_begin.expect("the fleet ran");
        run.report(time, polls, &sent)
    }
}

impl<'f> Run<'f> {
    fn new(fleet: &'f Fleet) -> Self {
        let epoch = Instant::now();
        let mut run = Self {
            fleet,
            epoch,
            queue: BinaryHeap::new(),
            sequence: 0,
            nodes: Vec::new(),
            random: 0x2545_f491_4f6c_dd1d,
            edited_at: Vec::new(),
            reached: Vec::new(),
            api_polls: 0,
            longest_transfer: Duration::ZERO,
        };
        let api = run.node(0, false);
        run.nodes.push(api);
        let mut above = vec![0];
        for (tier, count) in fleet.shape.tiers.iter().enumerate() {
            let is_leaf = tier + 1 == fleet.shape.tiers.len();
            let first = run.nodes.len();
            for number in 0..*count {
                let parent = above[number % above.len()];
                let node = run.node(parent, is_leaf);
                run.nodes.push(node);
                run.nodes[parent].children.push(first + number);
            }
            above = (first..first + count).collect();
        }
        for node in 1..run.nodes.len() {
            // A fleet is not started in one instant.
            let at = Duration::from_secs(20).mul_f64(run.jitter());
            run.at(at, Happening::Poll { node, ticket: 0 });
        }
        run
    }

    fn node(&mut self, parent: usize, is_leaf: bool) -> Node {
        Node {
            parent,
            children: Vec::new(),
            schedule: Schedule::new(INTERVAL, self.epoch),
            edition: u64::from(self.nodes.is_empty()),
            announced: 0,
            ticket: 0,
            is_in_flight: false,
            is_up: true,
            full_at: None,
            is_full_next: false,
            full_jitter: self.jitter(),
            link_free: Duration::ZERO,
            sent: 0,
            is_leaf,
        }
    }

    /// xorshift64, in [0, 1).
    fn jitter(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    fn at(&mut self, at: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, happening)));
    }

    /// Queues the next poll by the schedule.
    fn plan(&mut self, node: usize, now: Duration) {
        self.nodes[node].ticket += 1;
        let ticket = self.nodes[node].ticket;
        let due = self.nodes[node].schedule.due().saturating_duration_since(self.epoch).max(now);
        self.at(due, Happening::Poll { node, ticket });
    }

    fn happen(&mut self, now: Duration, happening: Happening) {
        match happening {
            Happening::Edit => self.edit(now),
            Happening::Poll { node, ticket } => self.poll(now, node, ticket),
            Happening::Arrive { node, started } => self.answer(now, node, started),
            Happening::Published { node, edition, started } => {
                self.publish(now, node, edition);
                self.succeeded(now, node, started);
            }
            Happening::Unchanged { node, started } => self.succeeded(now, node, started),
            Happening::Failed { node } => {
                let jitter = self.jitter();
                let at = self.epoch + now;
                let this = &mut self.nodes[node];
                (this.is_in_flight, this.full_at) = (false, None);
                this.schedule.failed(at, Retry::Serving(Duration::from_secs(30)), None, jitter);
                self.plan(node, now);
            }
            Happening::Announce { node, edition } => self.announce(now, node, edition),
            Happening::Down { node } => self.nodes[node].is_up = false,
            Happening::Up { node } => {
                self.nodes[node].is_up = true;
                self.notify_children(now, node);
            }
        }
    }

    fn edit(&mut self, now: Duration) {
        self.nodes[0].edition += 1;
        self.edited_at.push(now);
        self.reached.push(Vec::new());
        let is_second = self.edited_at.len().is_multiple_of(2);
        match self.fleet.outage {
            Outage::Parent(time) if is_second => {
                self.at(now, Happening::Down { node: 1 });
                self.at(now + time, Happening::Up { node: 1 });
            }
            Outage::Api(time) if is_second => {
                self.nodes[0].is_up = false;
                self.at(now + time, Happening::Up { node: 0 });
            }
            _ => {}
        }
        self.notify_children(now, 0);
    }

    fn notify_children(&mut self, now: Duration, node: usize) {
        if !self.fleet.events || !self.nodes[node].is_up {
            return;
        }
        let edition = self.nodes[node].edition;
        for child in self.nodes[node].children.clone() {
            self.at(now + ROUND_TRIP / 2, Happening::Announce { node: child, edition });
        }
    }

    fn announce(&mut self, now: Duration, node: usize, edition: u64) {
        let at = self.epoch + now;
        let this = &mut self.nodes[node];
        if edition <= this.edition.max(this.announced) || !this.is_up {
            return;
        }
        (this.announced, this.is_full_next) = (edition, true);
        this.schedule.hasten_after_retry_after(at);
        if !this.is_in_flight {
            self.plan(node, now);
        }
    }

    fn poll(&mut self, now: Duration, node: usize, ticket: u64) {
        if self.nodes[node].ticket != ticket || self.nodes[node].is_in_flight {
            return;
        }
        self.nodes[node].is_in_flight = true;
        let is_lost = match self.fleet.outage {
            Outage::Polls(part) => self.jitter() < part,
            _ => false,
        };
        if is_lost || !self.nodes[node].is_up {
            return self.at(now + ROUND_TRIP, Happening::Failed { node });
        }
        self.at(now + ROUND_TRIP / 2, Happening::Arrive { node, started: now });
    }

    fn answer(&mut self, now: Duration, node: usize, started: Duration) {
        let parent = self.nodes[node].parent;
        self.api_polls += u64::from(parent == 0);
        if !self.nodes[parent].is_up || self.nodes[parent].edition == 0 {
            return self.at(now + ROUND_TRIP / 2, Happening::Failed { node });
        }
        let document = self.fleet.document;
        let (edition, own) = (self.nodes[parent].edition, self.nodes[node].edition);
        let this = &mut self.nodes[node];
        let refresh = full_refresh(None, document.bytes, this.full_jitter);
        let is_full =
            std::mem::take(&mut this.is_full_next) || this.full_at.is_none_or(|at| now - at >= refresh);
        if is_full {
            this.full_at = Some(now);
        }
        let has_delta = self.fleet.deltas && parent != 0 && own > 0 && edition - own <= DELTA_EDITIONS;
        let bytes = HEAD_BYTES
            + match () {
                () if edition == own && !is_full => 0,
                () if has_delta => document.delta,
                () => document.compressed,
            };
        let link = &mut self.nodes[parent];
        link.sent += bytes;
        let sent_at = link.link_free.max(now) + Duration::from_secs_f64(bytes as f64 / LINK_BYTES_PER_SECOND);
        link.link_free = sent_at;
        self.longest_transfer = self.longest_transfer.max(sent_at - now);
        let received = sent_at + ROUND_TRIP / 2;
        if edition == own {
            return self.at(received, Happening::Unchanged { node, started });
        }
        self.at(received + document.compile, Happening::Published { node, edition, started });
    }

    fn publish(&mut self, now: Duration, node: usize, edition: u64) {
        let before = std::mem::replace(&mut self.nodes[node].edition, edition);
        if self.nodes[node].is_leaf {
            for reached in before.max(1)..edition {
                self.reached[reached as usize - 1].push(now);
            }
        }
        self.notify_children(now, node);
    }

    fn succeeded(&mut self, now: Duration, node: usize, started: Duration) {
        let jitter = self.jitter();
        let (started, at) = (self.epoch + started, self.epoch + now);
        let this = &mut self.nodes[node];
        this.is_in_flight = false;
        this.schedule.succeeded(started, at, jitter);
        if this.announced > this.edition {
            // An event that came during the poll.
            this.is_full_next = true;
            this.schedule.hasten(at + Duration::from_millis(50));
        }
        self.plan(node, now);
    }

    fn report(&self, time: Duration, polls: u64, sent: &[u64]) -> Report {
        let leaves = self.nodes.iter().filter(|node| node.is_leaf).count();
        let mut delays = Vec::new();
        for (edited_at, reached) in self.edited_at.iter().zip(&self.reached) {
            delays.extend(reached.iter().map(|at| *at - *edited_at));
        }
        delays.sort_unstable();
        let part = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize];
        let edits = self.edited_at.len() as f64;
        let bytes = |node: usize| (self.nodes[node].sent - sent[node]) as f64;
        let first_tier = 1..=self.fleet.shape.tiers[0];
        let busiest = first_tier.map(bytes).fold(0.0, f64::max);
        let all: f64 = (0..self.nodes.len()).map(bytes).sum();
        Report {
            api_polls_per_second: (self.api_polls - polls) as f64 / time.as_secs_f64(),
            api_bytes_per_edit: bytes(0) / edits,
            parent_bytes_per_edit: busiest / edits,
            fleet_bytes_per_hour: all * 3600.0 / time.as_secs_f64(),
            half: part(0.5),
            most: part(0.99),
            last: part(1.0),
            longest_transfer: self.longest_transfer,
            missing: leaves * self.edited_at.len() - delays.len(),
        }
    }
}
