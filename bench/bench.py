"""All benchmarks: `make bench`. bench/README.md describes the method.

bench.py [--minutes M] [--only WORD[,WORD]] [--out DIRECTORY] [--binary PATH]
Writes each measurement to DIRECTORY/raw.csv as soon as it is there; started again with the same
directory (the default is today's) it goes on where it was stopped. Ends with 1 on a wrong answer.
"""

import argparse
import csv
import datetime
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import documents
import heads
import load
import servers
from servers import ROOT

FIELDS = (
    "scenario,server,x,round,rps,cpu_us,p50_us,p90_us,p99_us,p999_us,rss_kib,"
    "answer_bytes,connections,seconds,note"
).split(",")
# From thorough to quick: rounds of each pair and seconds of each run. The first that fits is used.
PLANS = ((5, 3), (5, 2), (3, 2), (3, 1), (2, 1), (1, 1))
KEY = documents.SERVER_KEY
FLAGS, IDENTITIES, DOCUMENT = "/api/v1/flags/", "/api/v1/identities/", "/api/v1/environment-document/"
OFREP = "/ofrep/v1/evaluate/flags"
EVERYONE = ("floor", "edge-proxy", "nginx", "axum", "python")
ENGINES = ("floor", "edge-proxy", "axum", "python")
OURS = ("floor", "edge-proxy")

# name, document, wrk script, path, body, servers. Each is measured as clients send it, with gzip (rows
# `NAME-gzip`), and without (rows `NAME`). Each request has another identifier where the body has one. Their order
# is that of the tables.
SCENARIOS = (
    ("flags-simple", "simple", "flags", FLAGS, None, EVERYONE),
    ("identities-simple", "simple", "identities", IDENTITIES, "varied-simple", ENGINES),
    ("identities-get", "simple", "flags", f"{IDENTITIES}?identifier=user-000000", None, OURS),
    ("flags-heavy", "heavy", "flags", FLAGS, None, EVERYONE),
    ("identities-heavy-match", "heavy", "identities", IDENTITIES, "varied", ENGINES),
    ("identities-heavy-none", "heavy", "identities", IDENTITIES, "varied-none", ENGINES),
    ("identities-splits", "splits", "identities", IDENTITIES, "varied-few", ENGINES),
    ("ofrep-heavy", "heavy", "identities", OFREP, "context", OURS),
    ("document-heavy", "heavy", "document", DOCUMENT, None, EVERYONE),
    ("identities-wide", "wide", "flags", f"{IDENTITIES}?identifier=user-000000", None, OURS),
    ("document-wide", "wide", "document", DOCUMENT, None, OURS),
    ("flags-one", "simple", "flags", f"{FLAGS}?feature=feature_07", None, OURS),
    ("identities-500-overrides", "overrides", "identities", IDENTITIES, "overridden", ENGINES),
    ("identities-no-overrides", "simple", "identities", IDENTITIES, "overridden", OURS),
    ("mixed-heavy", "heavy", "mixed", IDENTITIES, "varied", ("edge-proxy",)),
)
CODINGS = (("-gzip", True), ("", False))
# Connections that are busy at once, and how many answers each of them gets.
FAIRNESS = (32, 512, 2048, 8192)
TLS_CONNECTIONS = (32, 512)
CONNECTIONS = (1, 8, 32, 128, 512, 2048)
# Cost by size: name of the axis, values, and the other properties of the document.
SWEEPS = (
    ("features", (10, 50, 200, 1000), {}),
    ("segments", (0, 15, 150, 1500), {"conditions": 3, "targets": 4}),
    ("overrides", (0, 500, 10_000, 100_000), {}),
)
ENVIRONMENTS = (1, 10, 100, 1000)
# Microseconds, longer than the time between two requests at this rate per second.
SPIN, SPIN_RATE = 500, 5_000
SWAP_SECONDS = 10
# After the load, a busy machine may need longer for a large document.
SERVED_SECONDS_MAX = 60
RATES = (5_000, 10_000, 20_000, 40_000, 60_000, 80_000)


class Bench:
    """One run: completed measurements, remaining ones, and the output directory."""

    def __init__(self, options, scratch):
        self.options, self.scratch = options, Path(scratch)
        self.out = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.raw = self.out / "raw.csv"
        rows = list(csv.DictReader(self.raw.open())) if self.raw.exists() else []
        self.known = {(row["scenario"], row["server"], row["x"], row["round"]) for row in rows}
        self.deadline = time.monotonic() + options.minutes * 60
        self.started, self.done, self.total, self.late = time.monotonic(), 0, 0, []
        self.rounds, self.seconds = self.plan()
        self.paths = {}
        self.skipped = set()

    def plan(self):
        """The most thorough plan that fits the time; completed measurements take none."""
        names = [(name + suffix, len(wanted)) for name, *_, wanted in SCENARIOS for suffix, _ in CODINGS]
        pairs = sum(count for name, count in names if self.selected(name))
        sweeps = {
            "connections": 2 * len(CONNECTIONS),
            "sizes": 2 * sum(len(values) for _, values, _ in SWEEPS),
            "environments": len(ENVIRONMENTS),
            "cores": 2,
            "fairness": 2 * len(FAIRNESS),
            "reconnect": 2,
            "unix": 2,
            "tls": 3 * len(TLS_CONNECTIONS),
            "resumption": 2,
            "spin": 2,
        }
        # Handshakes are measured as well, and with few seconds there are too many of them.
        sweeps["tls"] *= 2
        swept = sum(runs for part, runs in sweeps.items() if self.selected(part))
        # Open loop, swaps and memory are measured once.
        once = {"open_loop": 2 * len(RATES) + 2, "fifo": 4, "swaps": 6, "memory": 1}
        single = sum(runs for part, runs in once.items() if self.selected(part))
        for rounds, seconds in PLANS:
            self.total = pairs * rounds + swept * min(rounds, 2) + single
            # Overhead: a warm-up of each pair, starting servers, writing large documents.
            around = 1.5 * (pairs + swept) + 3 * single + once["swaps"] * SWAP_SECONDS * self.selected("swaps")
            if self.total * (seconds + 0.6) + around < self.options.minutes * 60:
                return rounds, seconds
        return PLANS[-1]

    def selected(self, scenario):
        return not self.options.only or any(word in scenario for word in self.options.only)

    def write(self, scenario, server, x, number, result, **more):
        row = dict.fromkeys(FIELDS, "")
        row |= {"scenario": scenario, "server": server, "x": x, "round": number, **more}
        for field in ("rps", "cpu_us", "p50_us", "p90_us", "p99_us", "p999_us"):
            if field in result:
                row[field] = f"{result[field]:.3f}"
        row["rss_kib"] = result.get("rss_kib", "")
        new = not self.raw.exists()
        with self.raw.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.known.add((scenario, server, str(x), str(number)))

    def is_known(self, scenario, server, x, number):
        return (scenario, server, str(x), str(number)) in self.known

    def is_late(self, what):
        """True past the deadline; the summary lists skipped measurements."""
        if time.monotonic() < self.deadline:
            return False
        if what not in self.late:
            self.late.append(what)
        return True

    def progress(self, what):
        self.done += 1
        share = min(self.done / max(self.total, 1), 1.0)
        spent = time.monotonic() - self.started
        bar = "#" * int(share * 30)
        line = f"[{bar:<30}] {share:4.0%} {spent / 60:4.1f} min  {what:<60}"
        end = "" if sys.stderr.isatty() else "\n"
        print(("\r" if sys.stderr.isatty() else "") + line, end=end, file=sys.stderr, flush=True)

    # --- what the servers serve ---

    def document(self, kind, **changes):
        """Path of a generated document."""
        name = "-".join([kind, *(f"{key}{value}" for key, value in changes.items())])
        if name not in self.paths:
            base = "simple" if kind == "overrides" else kind
            changes = {"overrides": 500, **changes} if kind == "overrides" else changes
            path = self.scratch / f"{name}.json"
            path.write_text(documents.text(documents.document(base, **changes)))
            self.paths[name] = path
        return self.paths[name]

    def body(self, name):
        path = self.scratch / f"{name}.body.json"
        path.write_text(documents.text(documents.requests()[name]))
        return path

    def proxy(self, path, **options):
        environments = [(documents.CLIENT_KEY, KEY, path)]
        return servers.proxy(self.options.binary, self.scratch, environments, **options)

    def start(self, name, path, head, body):
        """One server of a scenario; None if it is not installed."""
        if name == "edge-proxy":
            return self.proxy(path)
        if name == "floor":
            return servers.floor(self.scratch, head + body)
        if name == "axum":
            return servers.axum(self.scratch, KEY, path)
        if name == "python":
            return servers.python(self.scratch, KEY, path) if servers.PYTHON.exists() else None
        return servers.nginx(self.scratch, body)

    # --- the measurements ---

    def heads(self, gzip=True):
        """A file with the heads of all clients."""
        path = self.scratch / f"heads-{'gzip' if gzip else 'plain'}.txt"
        path.write_text(heads.text(gzip))
        return path

    def request(self, path, body=None, gzip=True):
        """A request as bytes."""
        if body:
            return load.raw_request("POST", path, KEY, self.body(body).read_bytes(), gzip)
        return load.raw_request("GET", path, KEY, accepts_gzip=gzip)

    def environment(self, body=None, gzip=True):
        """What the wrk scripts read."""
        environment = {"BENCH_KEY": KEY, "BENCH_HEADS": str(self.heads(gzip))}
        return environment | ({"BENCH_BODY": str(self.body(body))} if body else {})

    def scenario(self, base, kind, script, target, body, selected, gzip=True):
        name = base + ("-gzip" if gzip else "")
        rounds = range(1, self.rounds + 1)
        if all(self.is_known(name, server, "", number) for server in selected for number in rounds):
            return
        path = self.document(kind)
        request = self.request(target, body, gzip)
        environment = self.environment(body, gzip)
        if script != "mixed":
            environment["BENCH_PATH"] = target
        running = {"edge-proxy": self.proxy(path)}
        try:
            head, answer = load.settled_answer(running["edge-proxy"].port, request)
            for server in selected:
                if server not in running:
                    running[server] = self.start(server, path, head, answer)
            for server in [server for server in selected if running[server] is None]:
                self.skipped.add(server)
            selected = [server for server in selected if running[server]]
            requests = dict.fromkeys(selected, request)
            requests["nginx"] = load.raw_request("GET", servers.NGINX_PATH, KEY, accepts_gzip=gzip)
            expected = load.plain_of(head, answer)
            note = {server: self.agreement(running[server], requests[server], expected) for server in selected}
            for number in rounds:
                for server in selected:
                    if self.is_known(name, server, "", number) or self.is_late(name):
                        continue
                    self.progress(f"{name} {server} round {number}/{self.rounds}")
                    target = (running[server], script, requests[server])
                    also = environment | ({"BENCH_PATH": servers.NGINX_PATH} if server == "nginx" else {})
                    if number == 1:
                        load.closed(*target, 1, **also)
                    result = load.closed(*target, self.seconds, **also)
                    size = len(head) + len(answer)
                    more = {"answer_bytes": size, "connections": 32, "seconds": self.seconds, "note": note[server]}
                    self.write(name, server, "", number, result, **more)
        finally:
            stop(running)

    def agreement(self, server, request, expected):
        """Whether a peer's response equals that of edge-proxy: bytes for static servers, flags for engines."""
        if server.name == "edge-proxy":
            return ""
        head, body = load.whole_answer(server.port, request)
        if server.name == "nginx" and body[:2] == b"\x1f\x8b":
            # A static file without its coding.
            head += b"content-encoding: gzip"
        body = load.plain_of(head, body)
        if server.name in ("floor", "nginx"):
            if body != expected:
                raise load.WrongAnswer(f"{server.name} does not serve our bytes")
            return "same bytes"
        ours, theirs = (flags_of(json.loads(text)) for text in (expected, body))
        different = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
        return "same flags" if not different else f"{different} of {len(ours)} flags differ"

    def pair(self, name, x, path, body, connections=32):
        """edge-proxy and the floor with the same bytes, alternating, at one value of an axis."""
        rounds = range(1, min(self.rounds, 2) + 1)
        if all(self.is_known(name, server, x, number) for server in OURS for number in rounds) or self.is_late(name):
            return
        script, request, environment = "identities", self.request(IDENTITIES, body), self.environment(body)
        running = {"edge-proxy": self.proxy(path)}
        try:
            head, answer = load.settled_answer(running["edge-proxy"].port, request)
            running["floor"] = servers.floor(self.scratch, head + answer)
            for number in rounds:
                for server in OURS:
                    if self.is_known(name, server, x, number) or self.is_late(name):
                        continue
                    self.progress(f"{name} {x} {server} round {number}")
                    if number == 1:
                        load.closed(running[server], script, request, 1, connections, **environment)
                    result = load.closed(running[server], script, request, self.seconds, connections, **environment)
                    more = {"answer_bytes": len(head) + len(answer), "connections": connections, "seconds": self.seconds}
                    self.write(name, server, x, number, result, **more)
        finally:
            stop(running)

    def connections(self):
        path = self.document("heavy")
        for count in CONNECTIONS:
            self.pair("connections", count, path, "varied", connections=count)

    def sizes(self):
        for axis, values, also in SWEEPS:
            for value in values:
                path = self.document("simple", **{axis: value}, **also)
                self.pair(axis, value, path, "varied" if axis == "segments" else "overridden")

    def environments(self):
        """Flags of many environments, requested in turn."""
        for count in ENVIRONMENTS:
            rounds = range(1, min(self.rounds, 2) + 1)
            if all(self.is_known("environments", "edge-proxy", count, number) for number in rounds):
                continue
            if self.is_late("environments"):
                return
            path = self.document("simple")
            keys = [(f"client-{at}", f"{KEY}-{at}", path) for at in range(count)]
            running = {"edge-proxy": servers.proxy(self.options.binary, self.scratch, keys)}
            environment = self.environment() | {"BENCH_ENVIRONMENTS": str(count)}
            request = load.raw_request("GET", FLAGS, f"{KEY}-0")
            try:
                load.closed(running["edge-proxy"], "environments", request, 1, **environment)
                for number in rounds:
                    self.progress(f"environments {count} round {number}")
                    result = load.closed(running["edge-proxy"], "environments", request, self.seconds, **environment)
                    self.write("environments", "edge-proxy", count, number, result, seconds=self.seconds)
            finally:
                stop(running)

    def open_loop(self, name="open-loop", wanted=("edge-proxy", "floor", "axum", "python"), rates=RATES, scheduler=()):
        """Latency at constant rates; the peers at half of their maximum."""
        path = self.document("heavy")
        request, environment = self.request(IDENTITIES, "varied"), self.environment("varied")
        running = {"edge-proxy": self.proxy(path)}
        try:
            head, answer = load.settled_answer(running["edge-proxy"].port, request)
            for server_name in wanted:
                if server_name not in running:
                    running[server_name] = self.start(server_name, path, head, answer)
            for server_name in wanted:
                server = running[server_name]
                if server is None or self.is_late(name):
                    continue
                if scheduler:
                    server.schedule(scheduler)
                most = load.closed(server, "identities", request, 1, **environment)["rps"]
                chosen = [rate for rate in rates if rate < 0.8 * most] if server_name in OURS else [int(most / 2)]
                for rate in chosen:
                    if self.is_known(name, server_name, rate, 1):
                        continue
                    self.progress(f"{name} {server_name} {rate}/s")
                    result = load.open_loop(
                        server, request, rate, max(self.seconds, 2), self.scratch, scheduler=scheduler
                    )
                    self.write(name, server_name, rate, 1, result, connections=64, note=f"closed loop {most:.0f}/s")
        finally:
            stop(running)

    def fifo(self):
        """The open loop with server and load under SCHED_FIFO, so that other processes of the machine are not
        measured. Needs CAP_SYS_NICE (root, and not a container without it)."""
        scheduler = ("chrt", "--fifo", "50")
        if subprocess.run([*scheduler, "true"], capture_output=True).returncode:
            self.skipped.add("SCHED_FIFO (needs CAP_SYS_NICE)")
            return
        self.open_loop("open-loop-fifo", OURS, RATES[:2], scheduler)

    def fair(self, name, x, connections, options=(), unix=False, closes=False):
        """edge-proxy and the floor with `busy`: CPU, latency, and the answers of each connection."""
        rounds = range(1, min(self.rounds, 2) + 1)
        if all(self.is_known(name, server, x, number) for server in OURS for number in rounds) or self.is_late(name):
            return
        path = self.document("heavy")
        body = self.body("varied")
        sockets = {server: self.scratch / f"{server}.sock" for server in OURS} if unix else {}
        running = {"edge-proxy": self.proxy(path, unix=sockets.get("edge-proxy"))}
        options = ["--heads", self.heads(), "--key", KEY, "--body", body, *options]
        try:
            request = self.request(IDENTITIES, "varied")
            settled = request
            if closes:
                settled = request.replace(b"Connection: keep-alive", b"Connection: close")
            head, answer = load.settled_answer(running["edge-proxy"].port, settled)
            running["floor"] = servers.floor(self.scratch, head + answer, unix=sockets.get("floor"), closes=closes)
            for number in rounds:
                for server in OURS:
                    if self.is_known(name, server, x, number) or self.is_late(name):
                        continue
                    self.progress(f"{name} {x} {server} round {number}")
                    seconds = max(self.seconds, 2)
                    result = load.fair(running[server], IDENTITIES, settled, seconds, connections, options)
                    answers = "{answers_min} / {answers_median} / {answers_max}".format(**result)
                    more = {"answer_bytes": len(head) + len(answer), "connections": connections, "seconds": seconds}
                    self.write(name, server, x, number, result, note=answers, **more)
        finally:
            stop(running)

    def fairness(self):
        """Many busy connections: how many answers each of them gets."""
        for count in FAIRNESS:
            self.fair("fairness", count, count)

    def reconnect(self):
        """A new connection for each request."""
        self.fair("reconnect", "", 32, ["--reconnect"], closes=True)

    def unix(self):
        """The unix socket."""
        self.fair("unix", "", 32, unix=True)

    def tls(self):
        """TLS on kept connections, plain beside it, and nginx with the same bytes (6 kB). Without handshakes."""
        pair = servers.certificate(self.scratch)
        path = self.document("simple")
        request, environment = self.request(FLAGS, gzip=False), self.environment(gzip=False)
        running = {"plain": self.proxy(path, name="plain"), "edge-proxy": self.proxy(path, tls=pair)}
        try:
            _, answer = load.settled_answer(running["plain"].port, request)
            running["nginx"] = servers.nginx(self.scratch, answer, tls=pair)
            if running["nginx"] is None:
                self.skipped.add("nginx")
            for count in TLS_CONNECTIONS:
                for number in range(1, min(self.rounds, 2) + 1):
                    for name in [name for name, server in running.items() if server]:
                        if self.is_known("tls", name, count, number) or self.is_late("tls"):
                            continue
                        self.progress(f"tls {name} {count} round {number}")
                        sent, also = request, environment
                        if name == "nginx":
                            sent = load.raw_request("GET", servers.NGINX_PATH, KEY, accepts_gzip=False)
                            also = environment | {"BENCH_PATH": servers.NGINX_PATH}
                        if number == 1:
                            load.closed(running[name], "flags", sent, 2, count, **also)
                        result = load.kept(running[name], "flags", sent, max(self.seconds, 3), count, **also)
                        self.write("tls", name, count, number, result, connections=count, seconds=self.seconds)
        finally:
            stop(running)

    def resumption(self):
        """CPU of a new TLS connection with one request: whole handshakes and resumed ones."""
        server = self.proxy(self.document("simple"), tls=servers.certificate(self.scratch))
        try:
            for number in range(1, min(self.rounds, 2) + 1):
                for x, resumes in (("whole", False), ("resumed", True)):
                    if self.is_known("resumption", "edge-proxy", x, number) or self.is_late("resumption"):
                        continue
                    self.progress(f"resumption {x} round {number}")
                    cost = load.handshakes(server, self.request(FLAGS), resumes)
                    self.write("resumption", "edge-proxy", x, number, {"cpu_us": cost})
        finally:
            server.stop()

    def spin(self):
        """Latency at a low rate, with and without server.spin_microseconds."""
        path, request = self.document("simple"), self.request(FLAGS)
        running = {str(spin): self.proxy(path, name=f"spin-{spin}", spin=spin) for spin in (0, SPIN)}
        try:
            for number in range(1, min(self.rounds, 2) + 1):
                for x, server in running.items():
                    if self.is_known("spin", "edge-proxy", x, number) or self.is_late("spin"):
                        continue
                    self.progress(f"spin {x} round {number}")
                    result = load.open_loop(server, request, SPIN_RATE, max(self.seconds, 2), self.scratch)
                    self.write("spin", "edge-proxy", x, number, result, connections=64)
        finally:
            stop(running)

    def swaps(self):
        """Latency at a constant rate while the document is replaced, and without."""
        # A rate that leaves the reactor idle half of the time: responses of huge have 1,000 features. The
        # supervisor may use both cores, as on a machine with more cores than reactors, or only the reactor's.
        for kind, rate, cpus in (("heavy", 10_000, "0,1"), ("huge", 2_000, "0,1"), ("huge", 2_000, "0")):
            name = f"swaps-{kind}" + ("-one-cpu" if cpus == "0" else "")
            if self.is_late(name):
                return
            path = self.scratch / f"swap-{kind}.json"
            # Only the time of the change differs, so that every response under load can be compared.
            text = documents.text(documents.document(kind))
            texts = [text, text.replace("2026-01-15T10:30:00", "2026-01-15T10:30:01")]
            path.write_text(texts[0])
            running = {"edge-proxy": self.proxy(path, cpus=cpus, cores="0-0")}
            # Plain: `paced` compares bytes, and a new document's answers are not cached at first.
            request = self.request(IDENTITIES, "varied", gzip=False)
            try:
                for number, swapping in ((1, False), (1, True)):
                    x = "every second" if swapping else "never"
                    if self.is_known(name, "edge-proxy", x, number):
                        continue
                    self.progress(f"{name} {x}")
                    result = swap_load(self, running["edge-proxy"], path, texts, swapping, request, rate)
                    self.write(name, "edge-proxy", x, number, result, note=result["note"])
            finally:
                stop(running)

    def cores(self):
        """One reactor and two, the load generator sharing the same two cores."""
        path = self.document("heavy")
        request, environment = self.request(IDENTITIES, "varied"), self.environment("varied")
        running = {cores: self.proxy(path, cpus="0,1", cores=cores, name=f"edge-proxy-{cores}") for cores in ("1", "2")}
        try:
            for number in range(1, min(self.rounds, 2) + 1):
                for cores, server in running.items():
                    if self.is_known("cores", "edge-proxy", cores, number) or self.is_late("cores"):
                        continue
                    self.progress(f"cores {cores} round {number}")
                    load.closed(server, "identities", request, 1, 64, 2, "0,1", **environment)
                    result = load.closed(server, "identities", request, self.seconds, 64, 2, "0,1", **environment)
                    self.write("cores", "edge-proxy", cores, number, result, connections=64, seconds=self.seconds)
        finally:
            stop(running)

    def memory(self):
        """Resident memory of the idle demo; that of heavy is in the rows above."""
        if self.is_known("memory-demo-idle", "edge-proxy", "", 1):
            return
        server = servers.demo(self.options.binary, self.scratch)
        try:
            result = {"rss_kib": server.memory_kib()}
            self.write("memory-demo-idle", "edge-proxy", "", 1, result)
        finally:
            server.stop()

    def run(self):
        for suffix, gzip in CODINGS:
            for scenario in SCENARIOS:
                if self.selected(scenario[0] + suffix):
                    self.scenario(*scenario, gzip=gzip)
        parts = (self.memory, self.fairness, self.reconnect, self.unix, self.tls, self.open_loop, self.fifo)
        parts += (self.resumption, self.spin, self.cores, self.connections, self.sizes, self.environments, self.swaps)
        for part in parts:
            if self.selected(part.__name__):
                part()
        print(file=sys.stderr)


def swap_load(bench, server, path, texts, swapping, request, rate):
    """Open loop while the document is replaced, every second or as soon as the last one is served."""
    over, delays = threading.Event(), []

    def served():
        head, _ = load.whole_answer(server.port, request)
        return re.search(rb"(?i)document-updated-at: *(\S+)", head)[1]

    def swap():
        while not over.wait(1.0):
            before, replaced = served(), time.monotonic()
            partial = path.with_suffix(".next")
            partial.write_text(texts[(len(delays) + 1) % 2])
            os.replace(partial, path)
            while served() == before:
                if time.monotonic() - replaced > SERVED_SECONDS_MAX:
                    return
                time.sleep(0.05)
            delays.append(time.monotonic() - replaced)

    thread = threading.Thread(target=swap, daemon=True)
    if swapping:
        thread.start()
    try:
        result = load.open_loop(server, request, rate, SWAP_SECONDS, bench.scratch)
    finally:
        over.set()
        if swapping:
            thread.join()
    if swapping and not delays:
        raise load.WrongAnswer(f"a document was replaced and not served within {SERVED_SECONDS_MAX} seconds")
    middle = f"{sorted(delays)[len(delays) // 2]:.1f} s from file to answers" if delays else ""
    result["note"] = f"{len(delays)} swaps, {middle}" if swapping else ""
    return result


def flags_of(answer):
    """Name -> (enabled, value) of a flags or identities answer; the document as it is."""
    if isinstance(answer, dict) and "flags" in answer:
        answer = answer["flags"]
    if isinstance(answer, dict):
        return {"document": (answer["api_key"], len(answer["feature_states"]))}
    return {flag["feature"]["name"]: (flag["enabled"], flag["feature_state_value"]) for flag in answer}


def stop(running):
    for server in running.values():
        if server is not None:
            server.stop()


def version(*command):
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        return "not installed"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "?"


def cpu_model():
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def machine():
    """A short name of the machine, for the directory."""
    words = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*|\d+-Core", " ", cpu_model())
    slug = "-".join(re.findall(r"[a-z0-9]+", words.lower()))[:30]
    return f"{slug}-{os.cpu_count()}cpu"


def place(folder, binary):
    """Today's directory if it is new or has measurements of the same executable, otherwise the next one."""
    made_with = hashlib.sha256(binary.read_bytes()).hexdigest()
    for candidate in [folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 100))]:
        note = candidate / "executable.sha256"
        if not candidate.exists():
            candidate.mkdir(parents=True)
            note.write_text(made_with + "\n")
        if note.exists() and note.read_text().strip() == made_with:
            return candidate
    sys.exit(f"{folder} and 98 more are taken: remove some")


def about(bench):
    """README.md of the run: versions, machine, and how to repeat it."""
    binary = bench.options.binary
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": "make bench" + (f" BENCH_MINUTES={bench.options.minutes:g}" if bench.options.minutes != 16 else ""),
        "commit": version("git", "describe", "--always", "--dirty", "--abbrev=10"),
        "edge-proxy": version(binary, "--version"),
        "cpu": f"{cpu_model()}, {os.cpu_count()} CPUs",
        "kernel": platform.release(),
        "rustc": version("rustc", "--version"),
        "wrk": version("wrk", "-v"),
        "nginx": version(shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or "nginx", "-v"),
        "python": version(servers.PYTHON, "--version") + ", packages of bench/requirements.txt",
        "axum peer": "axum 0.8.9, flagsmith-flag-engine 0.7.0, bench/peers/Cargo.lock",
        "rounds": f"{bench.rounds} of {bench.seconds} s each, servers in turn, after 1 s of warm-up",
        "pinning": "servers on CPU 0, load on CPU 1 (cores, swaps: both on both)",
        "load": "wrk -t1 -c32 unless said; open loop: bench/peers/src/paced.rs, 64 connections",
    }
    lines = ["# A run of `make bench`", "", *(f"- {name}: {fact}" for name, fact in facts.items()), ""]
    if bench.skipped:
        lines.append(f"Not to be had here, so not measured: {', '.join(sorted(bench.skipped))}.")
    if bench.late:
        lines.append(f"Time was up before: {', '.join(bench.late)}. Run the same command again to go on.")
    lines += ["", "`raw.csv` has every measurement, `summary.md` the medians, the `.svg` files the plots.", ""]
    (bench.out / "README.md").write_text("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{machine()}"
    parser.add_argument("--minutes", type=float, default=16)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/edge-proxy")
    options = parser.parse_args()
    options.out = options.out or place(ROOT / "bench/runs" / today, options.binary)
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed (Debian: apt install wrk)")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="edge-proxy-bench-") as scratch:
        bench = Bench(options, scratch)
        try:
            bench.run()
        except load.WrongAnswer as wrong:
            sys.exit(f"\nwrong answer under load: {wrong}")
        about(bench)
    import report

    print(report.summarise(options.out))


if __name__ == "__main__":
    main()
