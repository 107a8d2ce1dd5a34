#!/usr/bin/env python3
"""Measures what abusive callers cost and what honest callers notice of them: `make abuse`.

abuse.py [--binary PATH] [--only WORD[,WORD]] [--seconds S]
One proxy with one reactor for each abuser (scripts/abusers.py), with one abuser at a time. First the abuser
alone: CPU for each of its requests, bytes in each direction, growth of the process's memory at its peak. Then
the abuser at a fixed rate beside honest callers, whose requests are timed from when each was due. Prints a row
for each abuser, with `holds` or `does not hold`. Exit codes: 0 all bounds hold, 1 one does not,
2 not all could be measured.

Only the loopback is used, and only processes started here are ended.
"""

import argparse
import http.server
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path

import abusers
from abusers import MIB, Tally

ROOT = Path(__file__).resolve().parent.parent
# The bounds.
ANONYMOUS_BYTES_OUT, ANONYMOUS_CPU_MS, KEYED_CPU_MS = 64 * 1024, 2.0, 20.0
ANONYMOUS_GROWTH_MB, KEYED_GROWTH_MB, HONEST_MEDIAN_MS = 32, 64, 5.0
HONEST_RATE, BATCHES = 200, 4
# Above this without any abuser, the machine is too busy to judge the honest median.
HONEST_ALONE_MS = 2.0
SERVER_KEY = "ser.abuse"


# --- the honest callers: a process of its own ---


def honest(host, port, path, seconds):
    """Requests at a constant rate, each on a connection that is free at the time it is due."""
    data = abusers.request(path, method="GET")
    selector, free, pending = selectors.DefaultSelector(), deque(), {}
    took, failed, started = [], 0, time.monotonic()
    total, sent = int(seconds * HONEST_RATE), 0
    while True:
        now = time.monotonic()
        while sent < total and started + sent / HONEST_RATE <= now:
            due = started + sent / HONEST_RATE
            sent += 1
            try:
                connection = free.popleft() if free else socket.create_connection((host, port), 5)
                connection.sendall(data)
            except OSError:
                failed += 1
                continue
            pending[connection] = (due, bytearray())
            selector.register(connection, selectors.EVENT_READ)
        if sent == total and (not pending or now > started + seconds + 10):
            break
        for key, _ in selector.select(max(0.0, min(0.1, started + sent / HONEST_RATE - now))):
            connection = key.fileobj
            due, answer = pending[connection]
            try:
                chunk = connection.recv(1 << 16)
            except OSError:
                chunk = b""
            answer += chunk
            length = whole_length(answer)
            if chunk and (length is None or len(answer) < length):
                continue
            selector.unregister(connection)
            del pending[connection]
            if length is None or not answer.startswith(b"HTTP/1.1 200"):
                failed += 1
                connection.close()
                continue
            took.append(time.monotonic() - due)
            if chunk and b"\r\nconnection: close" not in bytes(answer[:400]).lower():
                free.append(connection)
            else:
                connection.close()
    took += [time.monotonic() - due for due, _ in pending.values()]
    took.sort()
    median, worst = (took[len(took) // 2], took[-1]) if took else (float("inf"),) * 2
    return {"count": len(took), "failed": failed + len(pending), "median": median * 1000, "worst": worst * 1000}


def whole_length(answer):
    """Of an answer with Content-Length; None while its head is not whole."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    for line in bytes(answer[:end]).split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return end + 4 + int(line.split(b":")[1])
    return end + 4


# --- upstream ---


class Upstream(http.server.BaseHTTPRequestHandler):
    """Serves one document and takes all counts."""

    protocol_version = "HTTP/1.1"
    document = b"{}"

    def do_GET(self):
        self.answer(self.document)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(b"{}")

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """The proxy was ended with a connection open."""


# --- the proxy ---


class Proxy:
    def __init__(self, binary, scratch, document, cpu):
        self.scratch = Path(scratch)
        handler = type("Handler", (Upstream,), {"document": json.dumps(document).encode()})
        self.upstream = Listener(("127.0.0.1", 0), handler)
        threading.Thread(target=self.upstream.serve_forever, daemon=True).start()
        self.address, self.admin = free_address(), free_address()
        config = {
            "api_url": f"http://127.0.0.1:{self.upstream.server_port}/api/v1/",
            "environment_key_pairs": [{"client_side_key": abusers.CLIENT_KEY, "server_side_key": SERVER_KEY}],
            "server": {"host": self.address[0], "port": self.address[1]},
            "analytics": {"flush_interval_seconds": 1},
            "admin": {"host": self.admin[0], "port": self.admin[1]},
            "logging": {"log_level": "ERROR"},
        }
        path = self.scratch / f"config-{self.address[1]}.json"
        path.write_text(json.dumps(config))
        environment = {"PATH": os.environ["PATH"], "CONFIG_PATH": str(path)}
        self.log = (self.scratch / "proxy.log").open("ab")
        self.process = subprocess.Popen(
            [binary, "serve", "--cores", "1"],
            env=environment,
            stdout=self.log,
            stderr=self.log,
            cwd=scratch,
            preexec_fn=lambda: pin(cpu),
        )
        self.pid = self.process.pid
        self.wait()

    def wait(self):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                answered = honest(*self.address, "/proxy/health/readiness", 1 / HONEST_RATE)
                if answered["count"] == 1 and answered["failed"] == 0:
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        sys.exit(f"the proxy did not start: {(self.scratch / 'proxy.log').read_text()[-2000:]}")

    def cpu_ms(self):
        """CPU time of its threads. One of them looks once, a second after the start, who else has the port."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                if (task / "comm").read_text().strip() != "port":
                    total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                pass  # It has ended.
        return total / 1e6

    def memory_mb(self, name):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) / 1024
        raise KeyError(name)

    def forget_peak(self):
        """From here on VmHWM is the peak (proc_pid_clear_refs(5))."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.upstream.shutdown()
        self.upstream.server_close()


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()


def pin(cpu):
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


# --- abuse ---


def exchange(connection, data):
    """Sends one request and reads its answer: status, bytes, and whether the connection goes on."""
    try:
        connection.sendall(data)
    except OSError:
        pass  # Refused before its end: the answer is there, or the connection was ended.
    answer = bytearray()
    goes_on = True
    while True:
        length = whole_length(answer)
        if length is not None and len(answer) >= length:
            break
        try:
            chunk = connection.recv(1 << 16)
        except OSError:
            chunk = b""
        if not chunk:
            goes_on = False
            break
        answer += chunk
    status = bytes(answer[9:12]).decode() or "closed"
    closes = b"\r\nconnection: close" in bytes(answer[:600]).lower()
    return status, len(answer), goes_on and not closes


def send_all(address, requests, rate=None, until=None):
    """One request after the other; with a rate none is sent before it is due."""
    connection, statuses = None, Counter()
    units = sent = received = 0
    started = time.monotonic()
    for number, data in enumerate(requests):
        if until and time.monotonic() >= until:
            break
        if rate:
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
        connection = connection or abusers.connect(address)
        status, length, goes_on = exchange(connection, data)
        if not goes_on:
            connection.close()
            connection = None
        units, sent, received = units + 1, sent + len(data), received + length
        statuses[status] += 1
    if connection:
        connection.close()
    return Tally(units, sent, received, statuses)


def batches(requests):
    step = max(1, len(requests) // BATCHES)
    return [requests[at : at + step] for at in range(0, len(requests), step)]


class Abuse:
    def __init__(self, options, scratch):
        self.options, self.scratch = options, scratch
        cpus = sorted(os.sched_getaffinity(0))
        # The proxy has the last CPU, its callers have the others.
        self.cpu = cpus[-1] if len(cpus) > 1 else None
        if self.cpu is not None:
            os.sched_setaffinity(0, set(cpus[:-1]))

    def proxy(self, document):
        return Proxy(self.options.binary, self.scratch, abusers.DOCUMENTS[document], self.cpu)

    def honest(self, proxy, kind, beside=None):
        host, port = proxy.admin if kind == "admin" else proxy.address
        path = "/proxy/health/liveness" if kind == "admin" else abusers.HONEST
        command = [sys.executable, __file__, "--honest", f"{host},{port},{path},{self.options.seconds}"]
        caller = subprocess.Popen(command, stdout=subprocess.PIPE)
        until = time.monotonic() + self.options.seconds + 0.3
        tally = beside(until) if beside else None
        return json.loads(caller.communicate(timeout=60)[0]), tally

    def measure(self, abuser):
        proxy = self.proxy(abuser.document)
        try:
            address = proxy.admin if abuser.honest == "admin" else proxy.address
            requests = [abuser.request(number) for number in range(abuser.count)] if abuser.request else []
            # What the first requests need for good is not growth by an abuser.
            send_all(proxy.address, [abusers.request(abusers.FLAGS, method="GET")] * 20)
            idle = proxy.cpu_ms()
            time.sleep(0.3)
            idle = (proxy.cpu_ms() - idle) / 0.3
            before = proxy.memory_mb("VmRSS")
            proxy.forget_peak()
            alone, cpu = Tally(0, 0, 0), float("inf")
            # The machine may be busy with other work, which only adds: the least of the batches counts.
            for batch in batches(requests) if requests else [None]:
                started, spent = time.monotonic(), proxy.cpu_ms()
                if batch is None:
                    tally = abuser.run(address, started + self.options.seconds / 2)
                else:
                    tally = send_all(address, batch)
                spent = proxy.cpu_ms() - spent - idle * (time.monotonic() - started)
                cpu, alone = min(cpu, max(spent, 0.0) / max(tally.units, 1)), alone.plus(tally)
            rate = abusers.RATE_KEYED if abuser.keyed else abusers.RATE_ANONYMOUS

            def beside(until):
                if abuser.run:
                    return abuser.run(address, until)
                many = (requests[number % len(requests)] for number in range(1 << 20))
                return send_all(address, many, rate, until)

            callers, _ = self.honest(proxy, abuser.honest, beside)
            growth = proxy.memory_mb("VmHWM") - before
            return self.row(abuser, alone, cpu, growth, callers)
        finally:
            proxy.end()

    def row(self, abuser, tally, cpu, growth, callers):
        sent, received = tally.sent / max(tally.units, 1), tally.received / max(tally.units, 1)
        broken = []
        if not abuser.keyed and received > ANONYMOUS_BYTES_OUT:
            broken.append("bytes out")
        if cpu > (KEYED_CPU_MS if abuser.keyed else ANONYMOUS_CPU_MS):
            broken.append("CPU")
        if growth > (KEYED_GROWTH_MB if abuser.keyed else ANONYMOUS_GROWTH_MB):
            broken.append("memory")
        if self.is_quiet and callers["median"] >= HONEST_MEDIAN_MS:
            broken.append("honest median")
        if callers["failed"]:
            broken.append(f"{callers['failed']} honest requests failed")
        verdict = "holds" if not broken else f"**does not hold**: {', '.join(broken)}"
        answers = " ".join(f"{status}x{count}" for status, count in sorted(tally.statuses.items()))
        cells = [
            abuser.name,
            "client key" if abuser.keyed else "none",
            f"{answers or tally.units}",
            f"{sent:,.0f}",
            f"{received:,.0f}",
            f"{cpu:.2f}",
            f"{growth:.1f}",
            f"{callers['median']:.2f}",
            f"{callers['worst']:.1f}",
            verdict,
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
        return not broken

    def run(self):
        wanted = [
            abuser
            for abuser in abusers.all_of_them()
            if not self.options.only or any(word in abuser.name for word in self.options.only)
        ]
        if not wanted:
            sys.exit("no abuser of that name")
        proxy = self.proxy("plain")
        try:
            callers, _ = self.honest(proxy, "proxy")
        finally:
            proxy.end()
        self.is_quiet = callers["median"] < HONEST_ALONE_MS
        pinned = "not pinned (one CPU)" if self.cpu is None else f"pinned to CPU {self.cpu}"
        print(f"{self.options.binary}, one reactor, {pinned}; {HONEST_RATE} honest requests a second, "
              f"alone: median {callers['median']:.2f} ms, worst {callers['worst']:.1f} ms.")
        print("Bytes and CPU are those of one request of the abuser; memory is its peak above the start.\n")
        print("| abuser | key | answers | bytes in | bytes out | CPU ms | memory MB | honest median ms | worst ms | bounds |")
        print("|---|---|---|---:|---:|---:|---:|---:|---:|---|")
        verdicts = [self.measure(abuser) for abuser in wanted]
        held = sum(verdicts)
        print(f"\n{held} of {len(verdicts)} hold")
        if not self.is_quiet:
            print(f"honest medians were not judged: alone it is {callers['median']:.2f} ms, so the machine is busy")
        return 1 if held < len(verdicts) else 0 if self.is_quiet else 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=str(ROOT / "target/quick/edge-proxy"))
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--seconds", type=float, default=2.0, help="of honest load beside each abuser")
    parser.add_argument("--honest", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.honest:
        host, port, path, seconds = options.honest.split(",")
        print(json.dumps(honest(host, int(port), path, float(seconds))))
        return 0
    if not os.access(options.binary, os.X_OK):
        print(f"{options.binary} does not exist: run `make abuse`, or name one with --binary", file=sys.stderr)
        return 2
    if not Path("/proc/self/clear_refs").exists() or not Path("/proc/self/schedstat").exists():
        print("needs Linux with /proc", file=sys.stderr)
        return 2
    scratch = tempfile.mkdtemp(prefix="edge-proxy-abuse-")
    try:
        return Abuse(options, scratch).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
