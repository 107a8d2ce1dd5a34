//! Big documents: what it costs to take one up while requests are served.
//!
//! `make bench-swap` runs this in the optimised profile, with 20 MB and 50,000 overrides, and prints the
//! numbers: once with a CPU left for the supervisor's threads, once with all of the proxy on the
//! reactor's CPU. In an ordinary test run a twentieth of that is swapped, so that the bench cannot rot;
//! there only the answers are judged, not the times. Requests leave at a fixed rate, whatever the
//! proxy does, and are timed from when they should have left; quiet and swapping seconds alternate.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::document::{CLIENT_KEY, SERVER_KEY, override_of, value};
use crate::support::{PATIENCE, Proxy, Reply, Start, Upstream, eventually, request};

const IS_BENCH: bool = !cfg!(debug_assertions);
const OVERRIDES: u32 = if IS_BENCH { 50_000 } else { 2_500 };
/// Each of so many swaps in a row, a second apart, after as long a quiet time.
const ROUNDS: u32 = if IS_BENCH { 3 } else { 1 };
const SWAPS: u32 = if IS_BENCH { 4 } else { 2 };
const EACH: Duration = if IS_BENCH { Duration::from_secs(1) } else { Duration::from_millis(300) };
/// Requests a second: about a third of what the reactor could do beside nothing else.
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

/// What a proxy takes with hardly any document.
fn memory_kb_of_small() -> u64 {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, value(1).to_string());
    let proxy = Start::serve().environment(CLIENT_KEY, SERVER_KEY).set("api_url", upstream.api_url()).ready();
    memory_kb(&proxy, "VmRSS")
}

/// Longest time that memory is held before it is given back (`limits::THREAD_IDLE_MAX`), and more.
fn wait_for_rest() {
    wait_until(Instant::now() + Duration::from_secs(if IS_BENCH { 4 } else { 0 }));
}

/// A single `park_timeout` ends at once where a scope of threads ended before.
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

/// Microseconds, one for each request.
#[derive(Default)]
struct Times {
    /// From when it should have left to its answer.
    answered: Vec<u64>,
    /// From when it should have left to when it did: our own doing.
    late: Vec<u64>,
}

/// One connection on which requests leave at [`RATE`], pipelined if the answers are late.
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

    /// Until `is_over`, and until all is answered.
    fn run(&mut self, times: &mut Times, is_over: impl Fn() -> bool) {
        let (started, mut sent, mut answered) = (Instant::now(), 0, 0);
        let due = |number: u32| started + Duration::from_secs(1) * number / RATE;
        loop {
            let now = Instant::now();
            let over = is_over();
            if over && answered == sent {
                return;
            }
            assert!(now < due(answered) + PATIENCE, "an answer is missing");
            if !over && now >= due(sent) {
                // So small that the socket always takes it whole, or the proxy is long stuck.
                let count = self.stream.write(&self.request).expect("the proxy reads");
                assert_eq!(count, self.request.len());
                times.late.push(micros(now - due(sent)));
                sent += 1;
            }
            if !IS_BENCH {
                // Spinning is for measuring; the tests beside this one need the CPU.
                std::thread::park_timeout(Duration::from_millis(1));
            }
            for _ in 0..self.answers() {
                times.answered.push(micros(due(answered).elapsed()));
                answered += 1;
            }
        }
    }

    /// How many answers came; each is looked at.
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

/// Runs `work` on a thread of its own with these CPUs, so that what it starts inherits them.
fn on<T: Send>(cpus: CpuSet, nice: i32, work: impl FnOnce() -> T + Send) -> T {
    let placed = move || {
        sched_setaffinity(None, &cpus).expect("CPUs of ours");
        rustix::process::nice(nice).expect("lower is always allowed");
        work()
    };
    std::thread::scope(|scope| scope.spawn(placed).join().expect("told above"))
}

/// All CPUs, the first for the reactor, and the rest (or the same if there is no other).
fn cpus() -> (CpuSet, CpuSet, CpuSet) {
    let all = sched_getaffinity(None).expect("it always works");
    let (mut first, mut rest) = (CpuSet::new(), all);
    let cpu = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).expect("a CPU");
    first.set(cpu);
    rest.unset(cpu);
    (all, first, if rest.count() > 0 { rest } else { all })
}

/// Quiet and swapping seconds in turn.
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

/// A proxy on `place`, with the whole of the rest for us.
fn swap(name: &str, place: CpuSet, bodies: &[Reply]) {
    let (_, _, rest) = cpus();
    // What we do ourselves must not pass for a stall of the proxy.
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
fn a_big_document_is_swapped_under_load() {
    let bodies: Vec<Reply> = (0..=ROUNDS * SWAPS).map(|version| Reply::json(big(version))).collect();
    let megabytes = bodies[0].body.len() as f64 / 1e6;
    println!("swap | document {megabytes:.1} MB, {OVERRIDES} overrides, {RATE} requests a second");
    let (all, first, _) = cpus();
    swap("a CPU beside the reactor's", all, &bodies);
    swap("all on the reactor's CPU", first, &bodies);
}
