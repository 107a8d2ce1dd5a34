//! The cost of replacing large documents while requests are served.
//!
//! `make bench-swap` runs this in the optimised profile, with 20 MB and 50,000 overrides, and prints the numbers:
//! once with a CPU for the supervisor's threads, once with all threads on the reactor's CPU. `make test` uses a
//! twentieth of that and checks only the responses, not the times. Requests are sent at a fixed rate and timed
//! from their scheduled time, so that a stall is counted in full; quiet seconds and seconds with replacements
//! alternate.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::document::{CLIENT_KEY, SERVER_KEY, override_of, value};
use crate::support::{PATIENCE, Proxy, Reply, Start, Upstream, eventually, request};

const IS_BENCH: bool = !cfg!(debug_assertions);
const OVERRIDES: u32 = if IS_BENCH { 50_000 } else { 2_500 };
/// Replacements, one second apart, after an equal number of quiet seconds.
const ROUNDS: u32 = if IS_BENCH { 3 } else { 1 };
const SWAPS: u32 = if IS_BENCH { 4 } else { 2 };
const EACH: Duration = if IS_BENCH { Duration::from_secs(1) } else { Duration::from_millis(300) };
/// Requests per second: about a third of the reactor's capacity.
const RATE: u32 = if IS_BENCH { 5_000 } else { 200 };

fn big(version: u32) -> Vec<u8> {
    let mut document = value(version);
    let overrides = (0..OVERRIDES).map(|number| override_of(&format!("identity-{number}"), number));
    document["identity_overrides"] = overrides.collect();
    document.to_string().into_bytes()
}

/// Kilobytes of a line of /proc/PID/status, such as `VmHWM`.
fn memory_kb(proxy: &Proxy, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of that name");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// The memory of a proxy with a small document.
fn memory_kb_of_small() -> u64 {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, value(1).to_string());
    let proxy = Start::serve().environment(CLIENT_KEY, SERVER_KEY).set("api_url", upstream.api_url()).ready();
    memory_kb(&proxy, "VmRSS")
}

/// Waits until idle threads have exited and their memory is returned (`THREAD_IDLE_MAX`).
fn wait_for_rest() {
    wait_until(Instant::now() + Duration::from_secs(if IS_BENCH { 4 } else { 0 }));
}

/// `park_timeout` may return early after a scope of threads has ended.
fn wait_until(time: Instant) {
    while let Some(left) = time.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

fn fetch_ms(proxy: &Proxy) -> Vec<u64> {
    let log = proxy.log();
    let lines = log.lines().filter(|line| line.contains("environment_updated"));
    lines.filter_map(|line| line.split("took_ms=").nth(1)?.split_whitespace().next()?.parse().ok()).collect()
}

/// Times of requests, microseconds.
#[derive(Default)]
struct Times {
    /// From the scheduled time to the response.
    answered: Vec<u64>,
    /// From the scheduled time to the sending: the delay of the client.
    late: Vec<u64>,
}

/// A connection that sends requests at [`RATE`], pipelined if responses are late.
struct Load {
    stream: TcpStream,
    request: Vec<u8>,
    unread: Vec<u8>,
}

impl Load {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_nonblocking(true).expect("a socket");
        let target = "/api/v1/identities/?identifier=identity-77&feature=colour";
        let request = request("GET", target, &[("X-Environment-Key", CLIENT_KEY)], b"");
        Self { stream, request, unread: Vec::new() }
    }

    /// Sends requests until `is_over`, then waits for all responses.
    fn run(&mut self, times: &mut Times, is_over: impl Fn() -> bool) {
        let (started, mut sent, mut answered) = (Instant::now(), 0, 0);
        let due = |number: u32| started + Duration::from_secs(1) * number / RATE;
        loop {
            let now = Instant::now();
            let over = is_over();
            if over && answered == sent {
                return;
            }
            assert!(now < due(answered) + PATIENCE, "a response is missing");
            if !over && now >= due(sent) {
                // The socket accepts all of it, because it is small.
                let count = self.stream.write(&self.request).expect("the proxy reads");
                assert_eq!(count, self.request.len());
                times.late.push(micros(now - due(sent)));
                sent += 1;
            }
            if !IS_BENCH {
                // Spins only for measurements; concurrent tests need the CPU.
                std::thread::park_timeout(Duration::from_millis(1));
            }
            for _ in 0..self.answers() {
                times.answered.push(micros(due(answered).elapsed()));
                answered += 1;
            }
        }
    }

    /// Reads and checks responses; returns their number.
    fn answers(&mut self) -> usize {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => panic!("the proxy closed the connection"),
            Ok(count) => self.unread.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        let (mut count, mut from) = (0, 0);
        while let Some(length) = self.unread[from..].windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&self.unread[from..from + length]).to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            let body_length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let body_from = from + length + 4;
            let to = body_from + body_length.expect("a length").trim().parse::<usize>().expect("a number");
            let Some(body) = self.unread.get(body_from..to) else { break };
            assert!(String::from_utf8_lossy(body).contains("gold-77"), "{}", String::from_utf8_lossy(body));
            (count, from) = (count + 1, to);
        }
        self.unread.drain(..from);
        count
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("short")
}

fn quantile(times: &mut [u64], share: f64) -> u64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize]
}

fn written(times: &mut Times) -> String {
    let late = quantile(&mut times.late, 0.999);
    let mut of = |share| quantile(&mut times.answered, share);
    let (p50, p99, p999, worst) = (of(0.5), of(0.99), of(0.999), of(1.0));
    let count = times.answered.len();
    format!("{count} requests, p50 {p50} us, p99 {p99}, p99.9 {p999}, worst {worst}; sent late p99.9 {late}")
}

/// Runs `work` on a new thread with these CPUs, which its children inherit.
fn on<T: Send>(cpus: CpuSet, nice: i32, work: impl FnOnce() -> T + Send) -> T {
    let placed = move || {
        sched_setaffinity(None, &cpus).expect("allowed CPUs");
        rustix::process::nice(nice).expect("lower is always allowed");
        work()
    };
    std::thread::scope(|scope| scope.spawn(placed).join().expect("no panic"))
}

/// All CPUs, the first one for the reactor, and the rest (or the same one if there is no other).
fn cpus() -> (CpuSet, CpuSet, CpuSet) {
    let all = sched_getaffinity(None).expect("it always works");
    let (mut first, mut rest) = (CpuSet::new(), all);
    let cpu = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).expect("a CPU");
    first.set(cpu);
    rest.unset(cpu);
    (all, first, if rest.count() > 0 { rest } else { all })
}

/// Alternates quiet seconds and seconds with a replacement.
fn measure(proxy: &Proxy, upstream: &Upstream, bodies: &[Reply]) -> (Times, Times) {
    let stream = format!("/sse/environments/{CLIENT_KEY}/stream");
    let mut load = Load::open(proxy.address());
    let (mut quiet, mut busy) = (Times::default(), Times::default());
    let until = Instant::now() + EACH;
    load.run(&mut Times::default(), || Instant::now() >= until);
    for round in 0..ROUNDS {
        let until = Instant::now() + EACH * SWAPS;
        load.run(&mut quiet, || Instant::now() >= until);
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                rustix::process::nice(10).expect("lower is always allowed");
                for swap in 0..SWAPS {
                    let (started, number) = (Instant::now(), round * SWAPS + swap + 1);
                    upstream.on_key(SERVER_KEY, bodies[number as usize].clone());
                    let seconds = UPDATED_AT + u64::from(number);
                    upstream.push(&stream, &format!("data: {{\"updated_at\": {seconds}.0}}\n\n"));
                    wait_until(started + EACH);
                }
            });
            load.run(&mut busy, || swapping.is_finished());
        });
    }
    let last = format!("{}.0", UPDATED_AT + u64::from(ROUNDS * SWAPS));
    eventually("the last document is served", || {
        let answer = proxy.get("/api/v1/flags/", CLIENT_KEY);
        (answer.header("x-flagsmith-document-updated-at") == Some(&last)).then_some(())
    });
    (quiet, busy)
}

/// The `updated_at` of version 0, seconds since the epoch.
const UPDATED_AT: u64 = 1_767_225_600;

/// Measures a proxy on the CPUs `place`; the client has the rest.
fn swap(name: &str, place: CpuSet, bodies: &[Reply]) {
    let (_, _, rest) = cpus();
    // A delay of the client must not be counted as a stall of the proxy.
    let upstream = on(rest, 10, Upstream::start);
    upstream.on_key(SERVER_KEY, bodies[0].clone());
    let stream = format!("/sse/environments/{CLIENT_KEY}/stream");
    upstream.on(&stream, Reply::events(""));
    let realtime = serde_json::json!({"enabled": true, "url": format!("{}/", upstream.origin())});
    let (json_kb, small) = (bodies[0].body.len() as u64 / 1024, memory_kb_of_small());
    let proxy = on(place, 0, || {
        let start = Start::serve().environment(CLIENT_KEY, SERVER_KEY).set("api_url", upstream.api_url());
        start.set("api_poll_frequency_seconds", 3600).set("realtime", realtime).ready()
    });
    eventually("the stream is open", || (upstream.streams(&stream) == 1).then_some(()));
    wait_for_rest();
    let first = (memory_kb(&proxy, "VmHWM"), memory_kb(&proxy, "VmRSS"));
    let (mut quiet, mut busy) = on(rest, 0, || measure(&proxy, &upstream, bodies));
    wait_for_rest();
    let swapped = (memory_kb(&proxy, "VmHWM"), memory_kb(&proxy, "VmRSS"));

    let share = |kb: u64| kb.saturating_sub(small) as f64 / json_kb as f64;
    println!("swap | {name}: fetch, check and compile, ms: {:?}", fetch_ms(&proxy));
    println!("swap |   first load: peak {:.1} x the JSON, at rest {:.1} x", share(first.0), share(first.1));
    let swaps = ROUNDS * SWAPS;
    println!("swap |   {swaps} swaps: peak {:.1} x, at rest {:.1} x", share(swapped.0), share(swapped.1));
    println!("swap |   quiet:    {}", written(&mut quiet));
    println!("swap |   swapping: {}", written(&mut busy));
    let ratio = quantile(&mut busy.answered, 0.999) as f64 / quantile(&mut quiet.answered, 0.999) as f64;
    println!("swap |   p99.9 while swapping / quiet: {ratio:.2}");
}

#[test]
fn large_document_is_replaced_under_load() {
    let bodies: Vec<Reply> = (0..=ROUNDS * SWAPS).map(|version| Reply::json(big(version))).collect();
    let megabytes = bodies[0].body.len() as f64 / 1e6;
    println!("swap | document {megabytes:.1} MB, {OVERRIDES} overrides, {RATE} requests a second");
    let (all, first, _) = cpus();
    swap("a CPU beside the reactor's", all, &bodies);
    swap("all on the reactor's CPU", first, &bodies);
}
