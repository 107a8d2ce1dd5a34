"""The HTTP layer, in a few minutes: `make bench-http`. Uses the scenarios of bench.py.

edge.py [--rounds N] [--seconds S] [--only WORD[,WORD]] [--binary PATH]
Prints one line for each promise: what it may cost, what it costs here, whether that holds. Nothing
is kept; `make bench` keeps runs. Ends with 1 on a wrong answer only: a busy machine breaks no promise.
"""

import argparse
import csv
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import documents
import load
import servers
from bench import FLAGS, KEY, OURS

# Scenario of bench.py, its name here, and its maximum cost as a multiple of the floor.
RATIOS = (
    ("flags-simple-gzip", "GET flags", 1.15),
    ("flags-simple", "GET flags, plain", 1.15),
    ("document-heavy-gzip", "GET environment-document", 1.1),
    ("document-heavy", "GET environment-document, plain", 1.1),
    ("identities-simple-gzip", "POST identities, simple", 1.6),
    ("identities-heavy-match-gzip", "POST identities, heavy", 1.6),
    ("identities-heavy-none-gzip", "POST identities, heavy, none match", 1.6),
    ("identities-splits-gzip", "POST identities, each caller another result", 2.2),
    ("identities-heavy-match", "POST identities, heavy, plain", 1.8),
)
TOGETHER = 16
IDLE = 10_000
# Requests per second, and events in each post: SDKs send what has gathered.
FLAGS_RATE, POSTS_RATE, EXPOSURES = 40_000, 500, 10
LIVENESS = "/proxy/health/liveness"


class Edge:
    """One run and its table."""

    def __init__(self, options, scratch):
        self.options, self.scratch = options, Path(scratch)
        options.out, options.minutes = self.scratch / "run", 1
        self.bench = bench.Bench(options, scratch)
        self.bench.rounds, self.bench.seconds = options.rounds, options.seconds
        self.bench.deadline = time.monotonic() + 3600
        self.environment = {"BENCH_KEY": KEY}
        self.request = load.raw_request("GET", FLAGS, KEY)

    def line(self, what, value, bound="", holds=None):
        shown = {True: "holds", False: "**does not hold**", None: ""}[holds]
        print(f"| {what} | {bound} | {value} | {shown} |", flush=True)

    def selected(self, part):
        return not self.options.only or any(word in part for word in self.options.only)

    def proxy(self, kind="simple", **options):
        environments = [(documents.CLIENT_KEY, KEY, self.bench.document(kind))]
        return servers.proxy(self.options.binary, self.scratch, environments, **options)

    def in_turn(self, *loads, field="cpu_us", measure=load.closed):
        """The median of each load: (server, wrk script, what `measure` takes), one after the other,
        round after round, after one to warm up."""
        results = [[] for _ in loads]
        for seconds in [1] + [self.options.seconds] * self.options.rounds:
            for (server, script, more), measured in zip(loads, results, strict=True):
                request = more.get("request", self.request)
                also = {name: value for name, value in more.items() if name != "request"}
                measured.append(measure(server, script, request, seconds, **self.environment | also)[field])
        return [statistics.median(measured[1:]) for measured in results]

    def ratios(self):
        """CPU per request, compared with the floor with the same bytes."""
        for name, what, bound in RATIOS:
            gzip = name.endswith("-gzip")
            scenario = next(s for s in bench.SCENARIOS if s[0] == name.removesuffix("-gzip"))
            self.bench.scenario(*scenario[:5], OURS, gzip)
            rows = [row for row in csv.DictReader(self.bench.raw.open()) if row["scenario"] == name]
            cost = {
                server: statistics.median(float(row["cpu_us"]) for row in rows if row["server"] == server)
                for server in OURS
            }
            ratio = cost["edge-proxy"] / cost["floor"]
            value = f"{ratio:.2f} ({cost['edge-proxy']:.2f} µs, {cost['floor']:.2f} µs)"
            self.line(f"{what}: CPU per request / the floor's", value, f"<= {bound}", ratio <= bound)

    def new_heads(self):
        """The cost of the same request with a new head."""
        server = self.proxy()
        try:
            known, new = self.in_turn((server, "flags", {}), (server, "flags_new_heads", {}))
        finally:
            server.stop()
        self.line("GET flags, each head a new one / the same head", f"{new / known:.2f} ({new:.2f} µs)")

    def together(self):
        """Pipelining: requests per second with 16 pipelined and with single requests, compared with the floor."""
        for what, path in (("liveness", LIVENESS), ("GET flags", FLAGS)):
            request = load.raw_request("GET", path, KEY)
            server = self.proxy()
            running = {"edge-proxy": server}
            try:
                answer = b"".join(load.whole_answer(server.port, request))
                # One receive of the floor is a complete batch of requests.
                running["floor"] = servers.floor(self.scratch, answer)
                running["floor of batches"] = servers.floor(self.scratch, answer * TOGETHER)
                more = {"BENCH_PATH": path, "request": request}
                pairs = (("edge-proxy", 1), ("edge-proxy", TOGETHER), ("floor", 1), ("floor of batches", TOGETHER))
                loads = [(running[name], "flags", more | {"together": together}) for name, together in pairs]
                one, many, floor_one, floor_many = self.in_turn(*loads, field="rps")
            finally:
                bench.stop(running)
            value = f"{many / one:.1f} ({len(answer)} bytes each; the floor: {floor_many / floor_one:.1f})"
            self.line(f"{what}, {TOGETHER} together: requests/s / one at a time", value, ">= 5", many / one >= 5)

    def idle(self):
        """Ten thousand idle connections that were served once, besides 32 active ones."""
        server, baseline = self.proxy(), self.proxy(name="baseline")
        idle = []
        try:
            load.closed(server, "flags", self.request, 1, **self.environment)
            before = server.memory_kib()
            for _ in range(IDLE):
                connection = socket.create_connection(("127.0.0.1", server.port), 20)
                connection.sendall(self.request)
                idle.append(connection)
                if len(idle) % 100 == 0:
                    for waiting in idle[-100:]:
                        with waiting.makefile("rb") as stream:
                            load.read_answer(stream)
            # Buffers are released as soon as a connection is idle; waits for two sweeps.
            time.sleep(1)
            each = (server.memory_kib() - before) / IDLE
            few, many = self.in_turn((baseline, "flags", {}), (server, "flags", {}))
        finally:
            for connection in idle:
                connection.close()
            server.stop()
            baseline.stop()
        self.line(f"{IDLE:,} idle connections: our memory for each", f"{each:.2f} KiB", "<= 8 KiB", each <= 8)
        self.line(f"{IDLE:,} idle beside 32: CPU per request", f"{many / few:.2f}", "<= 1.3", many / few <= 1.3)

    def tls(self):
        """TLS on kept connections, plain beside it, and nginx with the same bytes (6 kB)."""
        pair = servers.certificate(self.scratch)
        running = {"plain": self.proxy(name="plain"), "tls": self.proxy(name="tls", tls=pair)}
        plain = load.raw_request("GET", FLAGS, KEY, accepts_gzip=False)
        running["nginx"] = servers.nginx(self.scratch, load.settled_answer(running["plain"].port, plain)[1], tls=pair)
        static = {"request": load.raw_request("GET", servers.NGINX_PATH, KEY), "BENCH_PATH": servers.NGINX_PATH}
        try:
            for count in bench.TLS_CONNECTIONS:
                more = {"connections": count, "BENCH_HEADS": str(self.bench.heads(gzip=False)), "request": plain}
                loads = [(running[name], "flags", more) for name in ("plain", "tls")]
                if running["nginx"]:
                    loads.append((running["nginx"], "flags", more | static))
                unencrypted, encrypted, *theirs = self.in_turn(*loads, measure=load.kept)
                ratio, what = encrypted / unencrypted, f"GET flags, {count} connections"
                self.line(f"TLS / plain, {what}", f"{ratio:.2f} ({encrypted:.2f} µs)", "<= 1.3", ratio <= 1.3)
                for cost in theirs:
                    ratio = cost / encrypted
                    self.line(f"TLS, nginx / ours, {what}", f"{ratio:.2f} ({cost:.2f} µs)", ">= 1.8", ratio >= 1.8)
        finally:
            bench.stop(running)

    def resumption(self):
        """CPU of a new TLS connection with one request, whole handshakes and resumed ones in turn."""
        server = self.proxy(name="tls", tls=servers.certificate(self.scratch))
        costs = {False: [], True: []}
        try:
            for _ in range(self.options.rounds):
                for resumes, measured in costs.items():
                    measured.append(load.handshakes(server, self.request, resumes))
        finally:
            server.stop()
        whole, resumed = (statistics.median(measured) for measured in costs.values())
        value = f"{resumed:.0f} µs; without resumption {whole:.0f} µs"
        self.line("a new TLS connection with one request, resumed: CPU", value, "less", resumed < whole)

    def spin(self):
        """Latency at a low rate, with and without server.spin_microseconds."""
        running = {"sleeps": self.proxy(name="sleeps"), "polls": self.proxy(name="polls", spin=bench.SPIN)}
        found = {name: [] for name in running}
        try:
            for _ in range(self.options.rounds):
                for name, server in running.items():
                    result = load.open_loop(server, self.request, bench.SPIN_RATE, self.options.seconds, self.scratch)
                    found[name].append(result)
        finally:
            bench.stop(running)
        middle = {
            (name, field): statistics.median(result[field] for result in results)
            for name, results in found.items()
            for field in ("p50_us", "cpu_us")
        }
        sleeps, polls = middle["sleeps", "p50_us"], middle["polls", "p50_us"]
        value = f"{polls / sleeps:.2f} ({polls:.0f} µs, {sleeps:.0f} µs without)"
        what = f"p50 at {bench.SPIN_RATE:,} requests/s with spin_microseconds {bench.SPIN}"
        self.line(what, value, "<= 0.5", polls <= sleeps / 2)
        value = f"{middle['polls', 'cpu_us']:.0f} µs, {middle['sleeps', 'cpu_us']:.0f} µs without"
        self.line("its CPU per request", value)

    def enters(self):
        """System calls of the reactor per request under load."""
        server = self.proxy()
        try:
            counted = {}
            load.closed(server, "flags", self.request, 1, **self.environment)
            count = ["perf", "stat", "--tid", server.thread("reactor"), "--field-separator", ","]
            count += ["--event", "raw_syscalls:sys_enter", "--event", "syscalls:sys_enter_io_uring_enter"]
            count += ["--", *load.wrk(server, "flags", 2)]
            environment = {**os.environ, **self.environment}
            command = [str(part) for part in count]
            done = subprocess.run(command, capture_output=True, text=True, cwd=servers.ROOT, env=environment)
            for number, _, event in re.findall(r"^(\d+),(.*?),([a-z_:]+)", done.stderr, re.M):
                counted[event] = int(number)
            requests = int(re.search(r'"requests":(\d+)', done.stdout)[1])
        finally:
            server.stop()
        enters = counted["syscalls:sys_enter_io_uring_enter"]
        others = counted["raw_syscalls:sys_enter"] - enters
        each = enters / requests
        self.line("io_uring_enter for each request, GET flags", f"{each:.2f}", "< 1", each < 1)
        # A few per second are of the reactor's timers and memory, independent of the load.
        none_each = others / requests < 0.001
        self.line("other system calls for each request", f"{others} in {requests:,} requests", "0.000", none_each)

    def access_log(self):
        """The access log at full speed: records may be dropped and must be counted; requests must not be slower."""
        port = servers.free_port()
        logging = {"log_level": "ERROR", "enable_access_log": True, "log_format": "json"}
        running = {
            "without": self.proxy(name="without"),
            "with": self.proxy(name="with", logging=logging, admin={"port": port}),
        }
        try:
            off, on = self.in_turn(*((server, "flags", {}) for server in running.values()))
            rps = load.closed(running["with"], "flags", self.request, self.options.seconds, **self.environment)["rps"]
            _, _, metrics = servers.fetch(port, "GET", "/metrics")
        finally:
            bench.stop(running)
        dropped = sum(int(number) for number in re.findall(rb"^edge_proxy_access\S*dropped\S* (\d+)", metrics, re.M))
        answered = sum(int(number) for number in re.findall(rb'^edge_proxy_http_requests_total\S* (\d+)', metrics, re.M))
        value = f"{on / off:.2f} ({rps:,.0f}/s, {dropped / answered:.0%} of the records dropped and counted)"
        self.line("access log on / off: CPU per request, its writer included", value)

    def events(self):
        """CPU of the reactor per flags request while it also takes experiment events.

        Four loads in turn, each for the same time at constant rates: I none, F flags, E events, B both. With the CPU
        time of the reactor's thread in each, flags alone cost (F - I) / requests, and beside events
        (B - E) / requests: what the events cost by themselves is subtracted.
        """
        upstream = servers.EventSink()
        server = self.proxy(
            cache_dir=str(self.scratch / "events"),
            events={"enabled": True, "url": f"http://127.0.0.1:{upstream.port}", "flush_interval_seconds": 1},
        )
        posted = load.raw_request("POST", "/v1/events", KEY, documents.exposures(EXPOSURES))
        kinds = {"flags": (FLAGS_RATE, self.request), "events": (POSTS_RATE, posted)}
        rounds = []
        try:
            for seconds in [1] + [self.options.seconds] * self.options.rounds:
                none = load.idle_cpu(server, seconds)
                flags = load.mixed(server, kinds, ["flags"], seconds, self.scratch)
                events = load.mixed(server, kinds, ["events"], seconds, self.scratch)
                both = load.mixed(server, kinds, ["flags", "events"], seconds, self.scratch)
                rounds.append(
                    {
                        what: (
                            (flags[what] - none[what]) / flags["completed"],
                            (both[what] - events[what]) / both["completed"],
                        )
                        for what in ("reactor", "process")
                    }
                )
        finally:
            server.stop()
            upstream.stop()
        for what, bound in (("reactor", 1.1), ("process", None)):
            alone, beside = (statistics.median(one[what][at] for one in rounds[1:]) * 1e6 for at in (0, 1))
            ratio = beside / alone
            name = f"GET flags beside {POSTS_RATE * EXPOSURES:,} events/s / alone: CPU of the {what} per request"
            value = f"{ratio:.2f} ({beside:.2f} µs, {alone:.2f} µs)"
            self.line(name, value, f"<= {bound}" if bound else "", bound and ratio <= bound)
        self.line("events that upstream got meanwhile", f"{upstream.events:,}")

    def run(self):
        print("| the HTTP edge | bound | here | |\n|---|---|---|---|")
        parts = (self.ratios, self.new_heads, self.together, self.idle, self.tls, self.resumption, self.spin)
        parts += (self.enters, self.access_log, self.events)
        for part in parts:
            if self.selected(part.__name__):
                part()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--binary", type=Path, default=servers.ROOT / "target/release/edge-proxy")
    options = parser.parse_args()
    for tool in ("wrk", "openssl", "perf"):
        if not shutil.which(tool) and options.only != ["events"]:
            sys.exit(f"{tool} is not installed (Debian: apt install wrk openssl linux-perf)")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="edge-proxy-http-") as scratch:
        try:
            Edge(options, scratch).run()
        except load.WrongAnswer as wrong:
            sys.exit(f"\nwrong answer under load: {wrong}")


if __name__ == "__main__":
    main()
