//! A long run: two proxies under the load of SDKs, with everything around them that changes and fails.
//!
//! One proxy runs from the start to the end, so that its memory shows a leak; the other is replaced by takeovers.
//! `make soak` runs it for ten minutes or longer; `make test` for seconds, which shows only that it works.
mod core;
mod documents;
mod floor;
mod load;
mod peers;
mod proxies;
#[path = "../simulation/random.rs"]
#[allow(dead_code)] // The simulation uses all of it.
mod random;
mod record;
mod shared;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::core::{Core, FAULTS};
use crate::floor::Floor;
use crate::load::{Target, call_floor, heads};
use crate::peers::{be_slow, subscribe};
use crate::proxies::{Replaced, descriptors, judge_log, reload, resident_bytes, settled_descriptors, steady};
use crate::record::{Judged, Minute, Samples, judge_memory, mib, table, write_block, write_csv};
use crate::shared::{Latencies, Shared, median, quantile, read};
use crate::support::Proxy;

/// Connections of SDKs to the proxy that stays, to the one that is replaced, and to the floor.
const CALLERS: [u64; 3] = [32, 12, 8];
const STREAMS: usize = 8;
/// p99.9 latencies of small answers, divided by those of the floor in the same minute: the median of all minutes.
/// The floor parses nothing and has no other work, while a proxy swaps documents and reloads beside its answers.
const RATIO_MAX: f64 = 3.0;

/// How long a run takes, and how often something happens in it.
#[derive(Clone, Copy, Debug)]
struct Plan {
    whole: Duration,
    /// Between two requests of a connection.
    interval: Duration,
    minute: Duration,
    fault_every: Duration,
    fault_lasts: Duration,
    reload_every: Duration,
    takeover_every: Duration,
    /// Descriptors are counted once they have not changed for this time.
    settles: Duration,
}

impl Plan {
    /// `SOAK_SECONDS=`, or the short form.
    fn read() -> Self {
        let seconds = Duration::from_secs;
        let minutes = std::env::var("SOAK_SECONDS").ok().map(|text| seconds(text.parse().expect("seconds")));
        match minutes {
            Some(whole) => Self {
                whole,
                interval: Duration::from_millis(25),
                minute: seconds(60),
                fault_every: seconds(20),
                fault_lasts: seconds(3),
                reload_every: seconds(15),
                takeover_every: seconds(60),
                settles: seconds(20),
            },
            None => Self {
                whole: seconds(6),
                interval: Duration::from_millis(200),
                minute: seconds(1),
                fault_every: seconds(2),
                fault_lasts: seconds(1),
                reload_every: seconds(1),
                takeover_every: seconds(3),
                settles: seconds(1),
            },
        }
    }

    fn is_short(&self) -> bool {
        self.whole < Duration::from_secs(300)
    }
}

/// What the run measures beside the counts of its callers.
#[derive(Default)]
struct Measured {
    memory: Samples,
    replaced_memory: Samples,
    minutes: Vec<Minute>,
    swaps: u64,
    faults: u64,
    reloads: u64,
    /// Descriptors without callers, after the first fifth and at the end: of the proxy that stays and of the
    /// one that is replaced.
    settled: Vec<[usize; 2]>,
}

/// A point in time that comes again.
struct Every {
    period: Duration,
    due: Instant,
}

impl Every {
    fn new(period: Duration) -> Self {
        Self { period, due: Instant::now() + period }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if now < self.due {
            return false;
        }
        self.due = now.max(self.due + self.period);
        true
    }
}

struct Run<'a> {
    plan: Plan,
    core: &'a Core,
    shared: &'a Shared,
    steady: &'a Proxy,
    replaced: &'a Replaced<'a>,
    latencies: &'a Latencies,
    floor_latencies: &'a Latencies,
    /// Set while a takeover or a reload of the replaced proxy must wait.
    is_calm: &'a AtomicBool,
    measured: Measured,
}

impl Run<'_> {
    /// Plays a part of the run.
    fn play(&mut self, length: Duration) {
        self.is_calm.store(false, Ordering::Relaxed);
        self.shared.pause(false);
        let plan = self.plan;
        let end = Instant::now() + length;
        let (mut swap, mut sample) = (Every::new(Duration::from_secs(1)), Every::new(Duration::from_secs(1)));
        let (mut fault, mut minute) = (Every::new(plan.fault_every), Every::new(plan.minute));
        let (mut reloads, mut fault_ends) = (Every::new(plan.reload_every), None);
        let mut part = Part::new(self);
        // Those of the pause before.
        self.latencies.take();
        self.floor_latencies.take();
        while Instant::now() < end {
            if swap.is_due() {
                self.core.publish();
                self.measured.swaps += 1;
            }
            if sample.is_due() {
                self.sample(&mut part);
            }
            if fault_ends.is_some_and(|ends| Instant::now() >= ends) {
                self.core.recover();
                fault_ends = None;
            } else if fault.is_due() {
                // One more than there are answers: connections are refused.
                let number = self.measured.faults as usize % (FAULTS.len() + 1);
                self.core.fail(FAULTS.get(number).map(|(_, reply)| *reply));
                self.measured.faults += 1;
                fault_ends = Some(Instant::now() + plan.fault_lasts);
            }
            if reloads.is_due() {
                self.measured.reloads += 1;
                reload(self.steady, self.measured.reloads % 2 == 1);
            }
            if minute.is_due() {
                self.end_minute(std::mem::replace(&mut part, Part::new(self)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if plan.minute > part.began.elapsed() * 2 {
            part.descriptors.clear();
        } else {
            self.end_minute(part);
        }
        if fault_ends.is_some() {
            self.core.recover();
        }
    }

    fn sample(&mut self, part: &mut Part) {
        let pid = self.steady.pid();
        self.measured.memory.push(resident_bytes(pid));
        self.measured.replaced_memory.push(self.replaced.pid().and_then(resident_bytes));
        part.descriptors.extend(descriptors(pid).map(|count| count as f64));
    }

    fn end_minute(&mut self, part: Part) {
        let (proxy, floor) = (self.latencies.take(), self.floor_latencies.take());
        let of = |samples: &Samples| {
            let part = samples[part.first_sample..].iter().flatten();
            mib(median(part.map(|bytes| *bytes as f64).collect()))
        };
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let minute = Minute {
            answers: self.answers() - part.answers,
            errors: read(&self.shared.counts.errors) - part.errors,
            memory_mib: of(&self.measured.memory),
            replaced_memory_mib: of(&self.measured.replaced_memory),
            descriptors: median(part.descriptors),
            p50_us: quantile(&proxy, 0.5),
            p99_us: quantile(&proxy, 0.99),
            p999_us: quantile(&proxy, 0.999),
            floor_p50_us: quantile(&floor, 0.5),
            floor_p99_us: quantile(&floor, 0.99),
            floor_p999_us: quantile(&floor, 0.999),
            machine_load: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
            swaps: self.measured.swaps,
            faults: self.measured.faults,
            reloads: self.measured.reloads,
            takeovers: self.replaced.count(),
        };
        println!(
            "soak | {:>4} | {} answers, {} errors | {:.2} and {:.2} MiB | {:.0} descriptors | p50 {} us, p99 {} us, p99.9 {} us | \
             floor {} us, {} us, {} us | ratio of p99.9 {} | load {}",
            self.measured.minutes.len() + 1,
            minute.answers,
            minute.errors,
            minute.memory_mib,
            minute.replaced_memory_mib,
            minute.descriptors,
            minute.p50_us,
            minute.p99_us,
            minute.p999_us,
            minute.floor_p50_us,
            minute.floor_p99_us,
            minute.floor_p999_us,
            minute.ratio().map_or("not measured".into(), |ratio| format!("{ratio:.2}")),
            minute.machine_load,
        );
        self.measured.minutes.push(minute);
        if let Some(directory) = record_directory() {
            write_csv(&directory, &self.measured.minutes);
        }
    }

    fn answers(&self) -> u64 {
        read(&self.shared.counts.answers) + read(&self.shared.counts.http2_answers)
    }

    /// Waits without callers until descriptors are settled, and counts them.
    fn settle(&mut self) {
        self.shared.pause(true);
        self.is_calm.store(true, Ordering::Relaxed);
        reload(self.steady, false);
        let replaced = support::eventually("one process is left", || self.replaced.pid());
        let counts =
            [self.steady.pid(), replaced].map(|pid| settled_descriptors(pid, self.core, self.plan.settles));
        println!("soak | descriptors without callers: {} and {}", counts[0], counts[1]);
        self.measured.settled.push(counts);
    }

    fn judge(&self, callers: u64) -> Vec<Judged> {
        let counts = &self.shared.counts;
        // A run of seconds only shows that nothing is far off: memory still grows to its working size.
        let slack = if self.plan.is_short() { 16.0 } else { 1.0 };
        let [before, after] = self.measured.settled[..] else { panic!("settled twice") };
        let errors = read(&counts.errors);
        let replaced = (!self.plan.is_short()).then(|| {
            // In seconds there are few samples of a process between two takeovers, or none.
            judge_memory("memory, a process replaced by takeovers", &self.measured.replaced_memory, slack)
        });
        let mut judged = vec![
            judge_memory("memory, one process for the whole run", &self.measured.memory, slack),
            Judged {
                name: "descriptors without callers, after a fifth and at the end",
                measured: format!("{} and {}; replaced: {} and {}", before[0], after[0], before[1], after[1]),
                bound: if self.plan.is_short() { "differ by at most 8" } else { "equal" }.into(),
                holds: before == after || self.plan.is_short() && are_near(before, after),
            },
            Judged {
                name: "errors that were not injected",
                measured: format!("{errors} of {} answers", self.answers()),
                bound: "none".into(),
                holds: errors == 0,
            },
        ];
        judged.extend(replaced);
        let ratios: Vec<f64> = self.measured.minutes.iter().filter_map(Minute::ratio).collect();
        if !ratios.is_empty() {
            let (worst, ratio) = (ratios.iter().copied().fold(0.0, f64::max), median(ratios));
            judged.push(Judged {
                name: "p99.9 latency in ratio to the floor's in the same minute",
                measured: format!("median {ratio:.2}, worst minute {worst:.2}"),
                bound: format!("median at most {RATIO_MAX}"),
                holds: ratio <= RATIO_MAX,
            });
        }
        let planned = callers as f64 * self.plan.whole.as_secs_f64() / self.plan.interval.as_secs_f64();
        let share = self.answers() as f64 / planned;
        judged.push(Judged {
            name: "load",
            measured: format!(
                "{:.0} % of {:.0} requests/s",
                share * 100.0,
                planned / self.plan.whole.as_secs_f64()
            ),
            bound: "at least 50 %".into(),
            holds: share >= 0.5 || self.plan.is_short(),
        });
        judged
    }

    fn summary(&self) -> String {
        let counts = &self.shared.counts;
        let minutes = &self.measured.minutes;
        let load = median(minutes.iter().map(|minute| minute.machine_load).collect());
        format!(
            "{:.0} minutes: {} answers ({} over HTTP/2, {} times 304), {} swaps of all documents, {} faults of upstream of {} kinds, {} SIGHUPs, \
             {} takeovers, {} reconnects ({} by requests that were left; {} requests crossed the end of a connection in a takeover and were \
             sent again), {} slow peers cut off, {} events on {} streams. Median load average of the machine: {load:.1}.\n",
            self.plan.whole.as_secs_f64() / 60.0,
            self.answers(),
            read(&counts.http2_answers),
            read(&counts.not_modified),
            self.measured.swaps,
            self.measured.faults,
            FAULTS.len() + 1,
            self.measured.reloads,
            self.replaced.count(),
            read(&counts.reconnects),
            read(&counts.abandoned),
            read(&counts.sent_again),
            read(&counts.slow_peers),
            read(&counts.stream_events),
            STREAMS + STREAMS / 2,
        )
    }
}

/// Whether descriptors that a short run had no time to release explain the difference.
fn are_near(before: [usize; 2], after: [usize; 2]) -> bool {
    before.iter().zip(after).all(|(before, after)| before.abs_diff(after) <= 8)
}

/// The values at the start of a minute.
struct Part {
    began: Instant,
    first_sample: usize,
    answers: u64,
    errors: u64,
    descriptors: Vec<f64>,
}

impl Part {
    fn new(run: &Run) -> Self {
        Self {
            began: Instant::now(),
            first_sample: run.measured.memory.len(),
            answers: run.answers(),
            errors: read(&run.shared.counts.errors),
            descriptors: Vec::new(),
        }
    }
}

/// Takes the replaced proxy over again and again, with reloads between.
fn keep_replacing(replaced: &Replaced, first: Proxy, plan: Plan, shared: &Shared, is_calm: &AtomicBool) {
    // The first one keeps the port.
    let (mut first, mut newest): (Proxy, Option<Proxy>) = (first, None);
    let (mut takeover, mut reloads) = (Every::new(plan.takeover_every), Every::new(plan.reload_every));
    let mut is_added = false;
    while !shared.is_stopped() {
        std::thread::sleep(Duration::from_millis(50));
        if is_calm.load(Ordering::Relaxed) {
            if is_added {
                is_added = false;
                reload(newest.as_ref().unwrap_or(&first), false);
            }
            continue;
        }
        if takeover.is_due() {
            newest = Some(replaced.take_over(newest.as_mut().unwrap_or(&mut first), shared));
            is_added = false;
        } else if reloads.is_due() {
            is_added = !is_added;
            reload(newest.as_ref().unwrap_or(&first), is_added);
        }
    }
    judge_log("the replaced proxy", newest.as_ref().unwrap_or(&first), shared);
}

#[test]
fn a_long_run_neither_leaks_nor_fails() {
    let (plan, core, shared, heads) = (Plan::read(), Core::start(), Shared::default(), heads());
    let proxy = steady(&core);
    let (replaced, first) = Replaced::start(&core);
    let (latencies, other, floor_latencies) =
        (Latencies::default(), Latencies::default(), Latencies::default());
    let floor = Floor::start(&proxy, &heads[0]);
    let is_calm = AtomicBool::new(false);
    let target = |address, is_replaced, latencies| Target {
        address,
        is_replaced,
        accepts_events: !is_replaced,
        core: &core,
        shared: &shared,
        latencies,
        heads: &heads,
        interval: plan.interval,
    };
    let stays = target(proxy.address(), false, &latencies);
    let moves = target(replaced.address(), true, &other);
    let seeds = AtomicU64::new(1);
    let seed = || seeds.fetch_add(1, Ordering::Relaxed);
    let (shared, stays, moves) = (&shared, &stays, &moves);
    std::thread::scope(|scope| {
        let stop = StopAtEnd(shared);
        for _ in 0..CALLERS[0] {
            let seed = seed();
            scope.spawn(move || stays.call(seed));
        }
        for _ in 0..CALLERS[1] {
            let seed = seed();
            scope.spawn(move || moves.call(seed));
        }
        for number in 0..2 {
            let seed = seed();
            scope.spawn(move || stays.call_http2(seed));
            scope.spawn(move || be_slow(stays.address, number * 2, shared));
        }
        for number in 0..STREAMS {
            scope.spawn(move || subscribe(stays.address, false, number, shared));
        }
        for number in 0..STREAMS / 2 {
            scope.spawn(move || subscribe(moves.address, true, number, shared));
        }
        if let Some(address) = floor.as_ref().map(|floor| floor.address) {
            for _ in 0..CALLERS[2] {
                let (seed, latencies) = (seed(), &floor_latencies);
                scope.spawn(move || call_floor(address, stays, latencies, seed));
            }
        }
        let (of_replaced, calm) = (&replaced, &is_calm);
        scope.spawn(move || keep_replacing(of_replaced, first, plan, shared, calm));
        let mut run = Run {
            plan,
            core: &core,
            shared,
            steady: &proxy,
            replaced: &replaced,
            latencies: &latencies,
            floor_latencies: &floor_latencies,
            is_calm: &is_calm,
            measured: Measured::default(),
        };
        run.play(plan.whole / 5);
        run.settle();
        run.play(plan.whole * 4 / 5);
        run.settle();
        judge_log("the proxy", &proxy, shared);
        let judged = run.judge(CALLERS[0] + CALLERS[1] + 2);
        report(&run, &judged);
        drop(stop);
        let broken: Vec<_> = judged.iter().filter(|row| !row.holds).map(|row| row.name).collect();
        assert!(broken.is_empty(), "do not hold: {broken:?}; {:?}", shared.errors());
    });
}

/// Stops the other threads, also when this one panics.
struct StopAtEnd<'a>(&'a Shared);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// `SOAK_RECORD=`.
fn record_directory() -> Option<PathBuf> {
    std::env::var_os("SOAK_RECORD").map(PathBuf::from)
}

/// Prints the verdict, and writes it with the record into `SOAK_RECORD=`; into the page `TABLES=` as well, if the
/// run is one to keep.
fn report(run: &Run, judged: &[Judged]) {
    let block = format!("{}\n{}", run.summary(), table(judged));
    block.lines().filter(|line| !line.is_empty()).for_each(|line| println!("soak | {line}"));
    let Some(directory) = record_directory() else { return };
    std::fs::write(directory.join("verdict.md"), &block).expect("the verdict is written");
    if let Some(page) = std::env::var_os("TABLES") {
        write_block(Path::new(&page), &format!("{block}{RECORD}"));
    }
}

/// Where `make soak SOAK_HOURS=` keeps the record, seen from the page.
const RECORD: &str = "\nMinute by minute: [minutes.csv](../tests/soak/record/minutes.csv).\n\n\
    ![Memory](../tests/soak/record/memory.svg)\n\n![Latency](../tests/soak/record/latency.svg)\n";
