//! Three proxies in network namespaces around a Redis in a fourth, and a model that has the right answer for each
//! identity: under load, with a partition, and with a proxy that is killed.
//!
//! Each writer has its own key in each identity, whose last answered value must be the final one. All
//! writers set a common key, of which the latest write must win; they increment common counters, of which none
//! may be lost; and some identities are erased, which must not come back. `TRAITS_FLEET=60` is the long form.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::redis::free_port;
use crate::support::{Client, Proxy, Scratch, Start, fixture, get, proxy};
use crate::traits::numbers::{Row, publish};
use crate::traits::{CLIENT, SERVER, count};

const PROXIES: usize = 3;
/// Identities of a request of a writer.
const ITEMS: usize = 25;
/// How long one write may be in the future of another one by another clock.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(500);

/// Runs a program; returns whether it succeeded.
fn run(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The namespaces; removed when dropped.
struct Network {
    /// Of the proxies, then of Redis.
    names: Vec<String>,
    /// The second byte of all addresses.
    byte: u8,
}

impl Network {
    /// `None`, with a message, if this user may not make namespaces or a program is missing.
    fn new() -> Option<Self> {
        let process = std::process::id();
        let names: Vec<String> = (0..=PROXIES).map(|index| format!("ep{process}-{index}")).collect();
        let network = Self { names, byte: u8::try_from(process % 200).expect("small") + 20 };
        let has_programs = ["redis-server", "nsenter"].iter().all(|program| run(program, &["--version"]));
        if !has_programs || !network.make() {
            fixture::say("SKIPPED: this test needs root, iproute2, nsenter and redis-server");
            return None;
        }
        Some(network)
    }

    fn make(&self) -> bool {
        let redis = &self.names[PROXIES];
        let mut has_made = self.names.iter().all(|name| run("ip", &["netns", "add", name]));
        for (index, name) in self.names.iter().take(PROXIES).enumerate() {
            let (ours, theirs, to_redis, to_proxy) =
                (format!("{name}h"), format!("{name}c"), format!("{name}r"), format!("{name}p"));
            let address = |group: u8, host: u8| format!("10.{}.{}.{host}/24", self.byte, group + index as u8);
            let steps: [&[&str]; 12] = [
                &["link", "add", &ours, "type", "veth", "peer", "name", &theirs, "netns", name],
                &["addr", "add", &address(0, 1), "dev", &ours],
                &["link", "set", &ours, "up"],
                &["-n", name, "addr", "add", &address(0, 2), "dev", &theirs],
                &["-n", name, "link", "set", &theirs, "up"],
                &["-n", name, "link", "set", "lo", "up"],
                &[
                    "-n", name, "link", "add", &to_redis, "type", "veth", "peer", "name", &to_proxy, "netns",
                    redis,
                ],
                &["-n", name, "addr", "add", &address(100, 2), "dev", &to_redis],
                &["-n", redis, "addr", "add", &address(100, 1), "dev", &to_proxy],
                &["-n", name, "link", "set", &to_redis, "up"],
                &["-n", redis, "link", "set", &to_proxy, "up"],
                &["-n", redis, "link", "set", "lo", "up"],
            ];
            has_made &= steps.iter().all(|step| run("ip", step));
        }
        has_made
    }

    /// Parts a proxy from Redis, or joins them.
    fn set_link(&self, index: usize, is_up: bool) {
        let (name, redis) = (&self.names[index], &self.names[PROXIES]);
        let state = if is_up { "up" } else { "down" };
        // At the end of Redis: the proxy's end keeps its address and its route.
        assert!(run("ip", &["-n", redis, "link", "set", &format!("{name}p"), state]));
        if is_up {
            let address = format!("10.{}.{}.1/24", self.byte, 100 + index);
            run("ip", &["-n", redis, "addr", "replace", &address, "dev", &format!("{name}p")]);
        }
    }

    fn address(&self, index: usize, port: u16) -> SocketAddr {
        let index = u8::try_from(index).expect("few");
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, self.byte, index, 2)), port)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            run("ip", &["netns", "del", name]);
        }
    }
}

/// Killed when dropped.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Fleet {
    network: Network,
    ports: [(u16, u16); PROXIES],
    proxies: Vec<Option<Proxy>>,
    redis_port: u16,
    disks: Scratch,
    _redis: Redis,
}

impl Fleet {
    fn start() -> Option<Self> {
        let network = Network::new()?;
        let (disks, redis_port) = (Scratch::new(), free_port());
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", network.names[PROXIES])).args(["--", "redis-server"]);
        command.args(["--port", &redis_port.to_string(), "--protected-mode", "no", "--save", ""]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir(disks.path());
        let redis = Redis(command.spawn().expect("nsenter"));
        let ports = std::array::from_fn(|_| (free_port(), free_port()));
        let mut fleet = Self { network, ports, proxies: Vec::new(), redis_port, disks, _redis: redis };
        fleet.proxies = (0..PROXIES).map(|index| Some(fleet.start_proxy(index))).collect();
        Some(fleet)
    }

    fn start_proxy(&self, index: usize) -> Proxy {
        let url = format!("redis://10.{}.{}.1:{}", self.network.byte, 100 + index, self.redis_port);
        let namespace = format!("--net=/run/netns/{}", self.network.names[index]);
        let launcher = ["nsenter", &namespace];
        let path = self.disks.path().join(format!("traits-{index}"));
        let (port, admin) = self.ports[index];
        let mut proxy = Start::demo_document()
            .set("server.host", "0.0.0.0")
            .set("server.port", port)
            .set("admin", json!({"host": "0.0.0.0", "port": admin}))
            .set("traits.store", "redis")
            .set("traits.redis_url", url)
            .set("traits.path", path.to_string_lossy().into_owned())
            .set("traits.require", true)
            .under(launcher.iter().map(std::ffi::OsStr::new))
            .spawn();
        let address = self.address(index);
        proxy.until("the proxy is ready", || {
            let mut client = Client::try_connect(address).ok()?;
            let request = crate::support::request("GET", "/proxy/health/readiness", &[], b"");
            client.try_send(request).ok()?;
            (client.try_answer("GET").ok()??.status == 200).then_some(())
        });
        proxy
    }

    fn address(&self, index: usize) -> SocketAddr {
        self.network.address(index, self.ports[index].0)
    }

    fn metric(&self, index: usize, sample: &str) -> f64 {
        let text = get(self.network.address(index, self.ports[index].1), "/metrics", "").text();
        proxy::metric(&text, sample).unwrap_or_else(|| panic!("{sample} in\n{text}"))
    }
}

/// A write that was answered: its value, and between which times it was made.
#[derive(Clone, Debug, Default)]
struct Answered {
    value: u64,
    times: Option<(Instant, Instant)>,
}

/// What the writers were answered.
#[derive(Default)]
struct Model {
    /// By identity and writer: its own key.
    own: Mutex<HashMap<(usize, usize), Answered>>,
    /// By identity and writer: the common key.
    common: Mutex<HashMap<(usize, usize), Answered>>,
    /// By counter: increments.
    counts: Mutex<HashMap<usize, u64>>,
    writes: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the writers write.
#[derive(Clone, Copy)]
struct Load {
    identities: usize,
    /// Of all writers together.
    writes_per_second: usize,
    counters: usize,
}

/// A writer at one proxy, until it is stopped.
struct Writer<'a> {
    index: usize,
    address: SocketAddr,
    model: &'a Model,
    load: Load,
    is_over: &'a AtomicBool,
}

impl Writer<'_> {
    fn run(&self, mut random: u64) {
        let mut client = Client::connect(self.address);
        let pause = Duration::from_secs_f64((PROXIES * ITEMS) as f64 / self.load.writes_per_second as f64);
        let mut due = Instant::now();
        let mut round = 0_u64;
        while !self.is_over.load(Ordering::Relaxed) {
            let mut chosen: HashMap<(usize, bool), u64> = HashMap::new();
            for _ in 0..ITEMS {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let identity = usize::try_from(random >> 33).expect("31 bits") % self.load.identities;
                chosen.insert((identity, (random >> 32) & 7 == 0), random >> 20);
            }
            self.write(&mut client, &chosen);
            round += 1;
            if round.is_multiple_of(5) {
                self.increment(
                    &mut client,
                    usize::try_from(random >> 40).expect("24 bits") % self.load.counters,
                );
            }
            due = (due + pause).max(Instant::now() - Duration::from_secs(1));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }

    fn write(&self, client: &mut Client, chosen: &HashMap<(usize, bool), u64>) {
        let key = |is_common| if is_common { "common".to_owned() } else { format!("own-{}", self.index) };
        let item = |(&(identity, is_common), value): (&(usize, bool), &u64)| json!({"identity": {"identifier": name(identity)}, "trait_key": key(is_common), "trait_value": value});
        let items: Vec<Value> = chosen.iter().map(item).collect();
        let began = Instant::now();
        let body = json!(items).to_string();
        let fields = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
        let answer = client.request("PUT", "/api/v1/traits/bulk/", &fields, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let times = Some((began, Instant::now()));
        for (&(identity, is_common), &value) in chosen {
            let table = if is_common { &self.model.common } else { &self.model.own };
            lock(table).insert((identity, self.index), Answered { value, times });
        }
        self.model.writes.fetch_add(items.len() as u64, Ordering::Relaxed);
    }

    fn increment(&self, client: &mut Client, counter: usize) {
        let identifier = format!("counter-{counter}");
        let body = json!({"identifier": identifier, "trait_key": "count", "increment_by": 1}).to_string();
        let fields = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
        let answer = client.request("POST", "/api/v1/traits/increment-value/", &fields, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        *lock(&self.model.counts).entry(counter).or_default() += 1;
    }
}

fn name(identity: usize) -> String {
    format!("identity-{identity:06}")
}

/// The traits of an identity at a proxy, by key.
fn traits_of(client: &mut Client, identifier: &str) -> Option<HashMap<String, Value>> {
    let target = format!("/proxy/traits/?identifier={identifier}");
    let answer = client.request("GET", &target, &[("X-Environment-Key", SERVER)], b"");
    let json = (answer.status == 200).then(|| answer.json())?;
    let pair = |item: &Value| {
        (item["trait_key"].as_str().unwrap_or_default().to_owned(), item["trait_value"].clone())
    };
    Some(json["traits"].as_array().into_iter().flatten().map(pair).collect())
}

/// Times from an answered write at one proxy until another one has it.
fn probe(from: SocketAddr, to: SocketAddr, is_over: &AtomicBool) -> Vec<Duration> {
    let (mut from, mut to) = (Client::connect(from), Client::connect(to));
    let (mut times, mut number) = (Vec::new(), 0_u64);
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        let body =
            json!({"identifier": "probe", "traits": [{"trait_key": "n", "trait_value": number}]}).to_string();
        let fields = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
        let answer = from.request("POST", "/api/v1/identities/", &fields, body.as_bytes());
        assert_eq!(answer.status, 200);
        let began = Instant::now();
        while traits_of(&mut to, "probe").is_none_or(|traits| traits.get("n") != Some(&json!(number))) {
            assert!(began.elapsed() < Duration::from_secs(30), "never visible");
            std::thread::sleep(Duration::from_millis(2));
        }
        times.push(began.elapsed());
    }
    times
}

/// Writes at these proxies for a time, and probes from the first to the last, if `probes`.
fn write_for(
    fleet: &Fleet,
    (proxies, probes): (&[usize], bool),
    model: &Model,
    load: Load,
    (span, mut meanwhile): (Duration, impl FnMut()),
) -> Vec<Duration> {
    let is_over = AtomicBool::new(false);
    let (first, last) = (fleet.address(proxies[0]), fleet.address(proxies[proxies.len() - 1]));
    std::thread::scope(|scope| {
        for &index in proxies {
            let writer = Writer { index, address: fleet.address(index), model, load, is_over: &is_over };
            let seed = model.writes.load(Ordering::Relaxed).wrapping_mul(31).wrapping_add(index as u64);
            scope.spawn(move || writer.run(seed));
        }
        let prober = probes.then(|| scope.spawn(|| probe(first, last, &is_over)));
        let until = Instant::now() + span;
        meanwhile();
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        is_over.store(true, Ordering::Relaxed);
        prober.map(|prober| prober.join().expect("probed")).unwrap_or_default()
    })
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get((times.len() * 99 / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// Why what a proxy has of an identity is wrong.
fn fault(model: &Model, identity: usize, found: &HashMap<String, Value>) -> Option<String> {
    let (own, common) = (lock(&model.own), lock(&model.common));
    for writer in 0..PROXIES {
        let answered = own.get(&(identity, writer)).map(|answered| json!(answered.value));
        let kept = found.get(&format!("own-{writer}"));
        if answered.as_ref() != kept {
            return Some(format!("own-{writer} is {kept:?}, answered was {answered:?}"));
        }
    }
    let writes: Vec<&Answered> = (0..PROXIES).filter_map(|writer| common.get(&(identity, writer))).collect();
    let Some(kept) = found.get("common") else {
        return (!writes.is_empty()).then(|| format!("no common key, {writes:?} were answered"));
    };
    let Some(winner) = writes.iter().find(|write| json!(write.value) == *kept) else {
        return Some(format!("common is {kept}, the last writes were {writes:?}"));
    };
    let (Some((_, ended)), latest) =
        (winner.times, writes.iter().filter_map(|write| Some(write.times?.0)).max())
    else {
        return None;
    };
    let is_older = latest.is_some_and(|began| began > ended + CLOCK_TOLERANCE);
    is_older.then(|| format!("common is {kept}, which is older than another of {writes:?}"))
}

/// Waits until all proxies agree on everything and with the model.
fn agree(fleet: &Fleet, model: &Model, load: Load, erased: &[usize]) -> Duration {
    let began = Instant::now();
    let patience = Duration::from_secs(60);
    let mut clients: Vec<Client> = (0..PROXIES).map(|index| Client::connect(fleet.address(index))).collect();
    for identity in 0..load.identities {
        for client in &mut clients {
            loop {
                let found = traits_of(client, &name(identity));
                let fault = match erased.contains(&identity) {
                    true => found.map(|found| format!("was erased, is {found:?}")),
                    false => fault(model, identity, &found.unwrap_or_default()),
                };
                let Some(fault) = fault else { break };
                assert!(began.elapsed() < patience, "{}: {fault}", name(identity));
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    for (counter, expected) in &*lock(&model.counts) {
        for client in &mut clients {
            let mut found = None;
            while found != Some(*expected) {
                let traits = traits_of(client, &format!("counter-{counter}"));
                found = traits.and_then(|traits| traits.get("count")?.as_u64());
                assert!(began.elapsed() < patience, "counter {counter} is {found:?} instead of {expected}");
            }
        }
    }
    began.elapsed()
}

/// `TRAITS_FLEET` is the seconds of each phase.
#[test]
fn proxies_agree_under_load_after_a_partition_and_a_kill() {
    let Some(mut fleet) = Fleet::start() else { return };
    let seconds = count("TRAITS_FLEET", 2);
    let is_long = seconds >= 60;
    let span = Duration::from_secs(seconds as u64);
    let model = Model::default();
    let load = match is_long {
        true => Load { identities: 10_000, writes_per_second: 5_000, counters: 20 },
        false => Load { identities: 300, writes_per_second: 600, counters: 5 },
    };
    let all: Vec<usize> = (0..PROXIES).collect();
    let before = model.writes.load(Ordering::Relaxed);
    let mut times = write_for(&fleet, (&all, true), &model, load, (span, || {}));
    let rate = (model.writes.load(Ordering::Relaxed) - before) / seconds as u64;
    let p99_time = p99(&mut times);
    let mut rows = vec![Row {
        what: format!("a write at one proxy counts at another, {rate} writes a second for {seconds} s"),
        bound: "p99 1 s",
        found: format!("p99 {} of {} writes", milliseconds(p99_time), times.len()),
        is_kept: p99_time <= Duration::from_secs(1) && rate >= load.writes_per_second as u64 * 95 / 100,
    }];
    let took = agree(&fleet, &model, load, &[]);
    rows.push(Row {
        what: format!(
            "the same: all {} identities are as the model has them at all proxies",
            load.identities
        ),
        bound: "agree",
        found: format!("after {:.1} s, with reading them all", took.as_secs_f64()),
        is_kept: true,
    });

    // One proxy is parted from Redis; another one is killed a second after its last write, and starts again.
    let slower = Load { writes_per_second: load.writes_per_second / 5, ..load };
    fleet.network.set_link(1, false);
    write_for(&fleet, (&all, false), &model, slower, (span / 2, || {}));
    let settle = Duration::from_millis(1000);
    write_for(&fleet, (&[0, 1], false), &model, slower, (settle, || {}));
    if let Some(mut killed) = fleet.proxies[2].take() {
        killed.signal("KILL");
        killed.wait();
    }
    write_for(&fleet, (&[0, 1], false), &model, slower, (span / 4, || {}));
    fleet.proxies[2] = Some(fleet.start_proxy(2));
    // Erased at the proxy that has Redis, and written before at the one that does not.
    let erased: Vec<usize> = (0..load.identities).step_by(50).collect();
    for identity in &erased {
        let target = format!("/proxy/traits/?identifier={}", name(*identity));
        let mut client = Client::connect(fleet.address(0));
        assert_eq!(client.request("DELETE", &target, &[("X-Environment-Key", SERVER)], b"").status, 204);
    }
    std::thread::sleep(span / 4);
    assert!(fleet.metric(1, "edge_proxy_traits_redis_unsent") > 0.0, "the partition was one");
    fleet.network.set_link(1, true);
    let took = agree(&fleet, &model, load, &erased);
    rows.push(Row {
        what: format!("a partition of {seconds} s of one proxy, a kill of another, erasures meanwhile"),
        bound: "agree",
        found: format!("after {:.1} s, with reading them all", took.as_secs_f64()),
        is_kept: true,
    });
    for index in 0..PROXIES {
        assert_eq!(fleet.metric(index, "edge_proxy_traits_redis_dropped_total"), 0.0);
        assert_eq!(fleet.metric(index, "edge_proxy_traits_not_kept_total"), 0.0);
    }

    if is_long {
        let faster = Load { writes_per_second: 20_000, ..load };
        let (before, span) = (model.writes.load(Ordering::Relaxed), Duration::from_secs(15));
        let mut times = write_for(&fleet, (&all, true), &model, faster, (span, || {}));
        let rate = (model.writes.load(Ordering::Relaxed) - before) / span.as_secs();
        let p99_time = p99(&mut times);
        rows.push(Row {
            what: format!("the same with as many writes as are made, of 20,000 a second: {rate}"),
            bound: "",
            found: format!("p99 {}", milliseconds(p99_time)),
            is_kept: true,
        });
    }
    publish("traits-fleet", &rows, is_long);
}
