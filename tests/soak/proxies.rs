//! The proxies of a run: one that runs from its start to its end, and one that is replaced by takeovers.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::core::Core;
use crate::documents::{ADDED, ENVIRONMENTS};
use crate::peers::TIMEOUT_SECONDS;
use crate::shared::{Shared, add, read};
use crate::support::{Proxy, Start, eventually};

fn serve(core: &Core) -> Start {
    let start =
        ENVIRONMENTS.iter().fold(Start::serve(), |start, (client, server)| start.environment(client, server));
    start
        .set("api_url", core.upstream.api_url())
        .set("api_poll_frequency_seconds", 0.5)
        .set("api_poll_timeout_seconds", 1)
        .set("analytics", json!({"flush_interval_seconds": 1}))
        .set("server.timeout_head", TIMEOUT_SECONDS)
        .set("server.timeout_body", TIMEOUT_SECONDS)
        .set("server.timeout_write", TIMEOUT_SECONDS)
        .set("server.timeout_keep_alive", TIMEOUT_SECONDS)
}

/// A proxy with experiment events, which are stored on disk.
pub fn steady(core: &Core) -> Proxy {
    let start = serve(core);
    let cache = start.scratch().path().join("cache");
    let events = json!({"enabled": true, "url": core.upstream.origin(), "flush_interval_seconds": 1});
    start.set("cache_dir", cache.to_str().expect("a plain path")).set("events", events).ready()
}

/// Adds an environment to the configuration, or removes it, and sends SIGHUP.
pub fn reload(proxy: &Proxy, with_added: bool) {
    let mut config = proxy.config().clone();
    if with_added {
        let pairs = config["environment_key_pairs"].as_array_mut().expect("a list");
        pairs.push(json!({"client_side_key": ADDED.0, "server_side_key": ADDED.1}));
    }
    // The process may read while this writes, so the file is replaced by a rename.
    let written = proxy.scratch().write("config.json.new", config.to_string());
    std::fs::rename(&written, written.with_extension("")).expect("the configuration is replaced");
    proxy.signal("HUP");
}

/// The address and the process of the proxy that is replaced.
pub struct Replaced<'a> {
    core: &'a Core,
    address: SocketAddr,
    /// 0 while there are two processes.
    only_process: AtomicU32,
    pub takeovers: AtomicU64,
}

impl<'a> Replaced<'a> {
    /// Starts the first process.
    pub fn start(core: &'a Core) -> (Self, Proxy) {
        let proxy = serve(core).ready();
        let (address, only_process) = (proxy.address(), AtomicU32::new(proxy.pid()));
        (Self { core, address, only_process, takeovers: AtomicU64::new(0) }, proxy)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process, unless there are two of them.
    pub fn pid(&self) -> Option<u32> {
        Some(self.only_process.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Starts a process at the same port, waits until it serves, and stops the old one.
    pub fn take_over(&self, old: &mut Proxy, shared: &Shared) -> Proxy {
        self.only_process.store(0, Ordering::Relaxed);
        let start = serve(self.core).set("server.port", self.address.port()).set("server.take_over", true);
        let new = start.spawn();
        new.wait_for_log("reactor_started");
        eventually("the new process has all documents", || {
            (new.log().matches("environment_updated").count() >= ENVIRONMENTS.len()).then_some(())
        });
        eventually("the new process listens", || listens(new.pid(), self.address.port()).then_some(()));
        old.signal("TERM");
        let status = old.wait();
        if !status.success() {
            shared.error(format!("the old process of a takeover ended with {status}"));
        }
        judge_log("the replaced proxy", old, shared);
        self.only_process.store(new.pid(), Ordering::Relaxed);
        add(&self.takeovers);
        new
    }

    pub fn count(&self) -> u64 {
        read(&self.takeovers)
    }
}

/// Reports lines of the log that no injected fault explains.
pub fn judge_log(name: &str, proxy: &Proxy, shared: &Shared) {
    let is_unexpected = |line: &&str| {
        let line = line.to_lowercase();
        line.contains("panic") || (line.contains("[error") && !line.contains("environment_poll_failed"))
    };
    proxy
        .log()
        .lines()
        .filter(is_unexpected)
        .take(3)
        .for_each(|line| shared.error(format!("log of {name}: {line}")));
}

/// Bytes of resident memory; `None` once the process has ended.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// The CPUs of the first reactor.
pub fn reactor_cpus(pid: u32) -> Option<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().map(|entry| entry.path());
    let is_reactor = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.contains("reactor"))
    };
    let status = std::fs::read_to_string(tasks.into_iter().find(is_reactor)?.join("status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned())
}

/// Open descriptors.
pub fn descriptors(pid: u32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Open descriptors except connections to upstream, whose number depends on the faults before. One that upstream
/// has reset is in no table; the proxy drops it from its pool after 15 seconds.
pub fn own_descriptors(pid: u32, upstream: SocketAddr) -> Option<usize> {
    let remote = format!(":{:04X}", upstream.port());
    let upstream: BTreeSet<String> = sockets(|columns| columns[2].ends_with(&remote))
        .into_iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    Some(links(pid)?.iter().filter(|link| !upstream.contains(*link)).count())
}

fn listens(pid: u32, port: u16) -> bool {
    let local = format!(":{port:04X}");
    let listening = sockets(|columns| columns[1].ends_with(&local) && columns[3] == "0A");
    let links = links(pid).unwrap_or_default();
    listening.iter().any(|inode| links.contains(&format!("socket:[{inode}]")))
}

/// The inodes of the TCP sockets of the machine that a test of their columns in /proc/net/tcp selects.
fn sockets(is_selected: impl Fn(&[&str]) -> bool) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|columns| columns.len() > 9 && is_selected(columns))
        .map(|columns| columns[9].to_owned())
        .collect()
}

/// What the descriptors of a process refer to.
fn links(pid: u32) -> Option<Vec<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Some(links.map(|link| link.to_string_lossy().into_owned()).collect())
}

/// The number of own descriptors without callers, once it has not changed for this time.
pub fn settled_descriptors(pid: u32, core: &Core, unchanged: Duration) -> usize {
    let count = || own_descriptors(pid, core.upstream.address()).unwrap_or(0);
    let started = Instant::now();
    let (mut last, mut since) = (count(), started);
    while since.elapsed() < unchanged && started.elapsed() < unchanged * 6 {
        std::thread::sleep(Duration::from_millis(200));
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}
