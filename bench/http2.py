"""HTTP/2 beside HTTP/1.1, other servers and a floor: `make bench-h2`.

http2.py [--seconds S] [--rounds N] [--keep] [--only WORD[,WORD]] [--binary PATH]
Writes each measurement to target/bench-h2/raw.csv as soon as it is there; started again with the same
executable it goes on where it was stopped, and after a whole run it starts anew. Prints the medians and one line
for each target. `--keep` copies a whole run to bench/runs, from where `make readme` takes the README's table.
Ends with 1 on a wrong answer, not on a target that does not hold. bench/README.md describes the method.
"""

import argparse
import contextlib
import csv
import datetime
import gzip
import hashlib
import json
import re
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import documents
import heads
import load
import servers
from bench import FLAGS, IDENTITIES, KEY

PLACE = servers.ROOT / "target/bench-h2"
FIELDS = ("scenario", "server", "round", "cpu_us", "rps", "requests", "answer_bytes")
STREAMS = 32
IDLE = 2000
# A short run to estimate the next one, and to warm up.
FIRST_REQUESTS = 6400
# All frames of an answer fit in these windows.
WINDOW = (1 << 31) - 1

# Servers of a scenario: name of the column, server, connections, requests under way on each, HTTP/1.1.
FLOOR, OURS = ("HTTP/2 floor", "floor", 1, STREAMS, False), ("HTTP/2", "ours", 1, STREAMS, False)
TLS = ("HTTP/2, TLS", "tls", 1, STREAMS, False)
PIPELINED = ("HTTP/1.1, pipelined", "ours", 1, STREAMS, True)
SINGLE = ("HTTP/1.1", "ours", STREAMS, 1, True)
NGHTTPD, NGINX = ("nghttpd", "nghttpd", 1, STREAMS, False), ("nginx", "nginx", 1, STREAMS, False)
MANY_OURS, MANY_FLOOR = ("HTTP/2", "ours", STREAMS, 1, False), ("HTTP/2 floor", "floor", STREAMS, 1, False)
FOUR_OURS, FOUR_FLOOR = ("HTTP/2", "ours", 4, STREAMS, False), ("HTTP/2 floor", "floor", 4, STREAMS, False)

# Name, title, document, path, body, gzip accepted, servers.
SCENARIOS = (
    (
        "flags-gzip",
        f"GET flags, gzip, {STREAMS} streams on one connection",
        ("simple", FLAGS, None, True),
        (FLOOR, OURS, PIPELINED, SINGLE, TLS, NGHTTPD, NGINX),
    ),
    (
        "flags-plain",
        f"GET flags, plain, {STREAMS} streams on one connection",
        ("simple", FLAGS, None, False),
        (FLOOR, OURS, PIPELINED, NGHTTPD, NGINX),
    ),
    (
        "identities-gzip",
        f"POST identities, heavy, gzip, {STREAMS} streams on one connection",
        ("heavy", IDENTITIES, "heavy-match", True),
        # h2load does not pipeline requests that have a body.
        (FLOOR, OURS, SINGLE),
    ),
    (
        "connections-gzip",
        f"GET flags, gzip, {STREAMS} connections with one stream each",
        ("simple", FLAGS, None, True),
        (MANY_FLOOR, MANY_OURS, SINGLE),
    ),
    (
        "four-gzip",
        f"GET flags, gzip, 4 connections with {STREAMS} streams each",
        ("simple", FLAGS, None, True),
        (FOUR_FLOOR, FOUR_OURS),
    ),
)


# --- a client for one request ---


def string(text):
    """A string of HPACK without Huffman coding (RFC 7541 5.2)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    length, coded = len(text) - 127, bytearray([127])
    while length >= 128:
        coded.append(length % 128 | 128)
        length //= 128
    return bytes([*coded, length]) + text


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening():
    """The preface, with windows that never close."""
    settings = struct.pack(">HIHI", 2, 0, 4, WINDOW)
    update = struct.pack(">I", WINDOW - 65_535)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, settings) + frame(8, 0, 0, update)


def request_frames(stream, method, path, fields, body=None, port=0):
    pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", f"127.0.0.1:{port}")]
    lines = [*pseudo, *((name.lower(), value) for name, value in fields)]
    block = b"".join(b"\0" + string(name.encode()) + string(value.encode()) for name, value in lines)
    if body is None:
        return frame(1, 5, stream, block)
    parts = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    data = b"".join(frame(0, part is parts[-1], stream, part) for part in parts)
    return frame(1, 4, stream, block) + data


def read_frames(connection, stream):
    """The HEADERS and DATA frames of a stream until its end, and its body."""
    frames, body = [], b""
    with connection.makefile("rb") as reader:
        while True:
            head = reader.read(9)
            if len(head) < 9:
                raise load.WrongAnswer("the server closed the connection")
            payload = reader.read(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            if kind in (3, 7):
                raise load.WrongAnswer(f"frame {kind} with {payload!r}")
            if kind == 4 and not flags & 1:
                connection.sendall(frame(4, 1, 0))
            if int.from_bytes(head[5:], "big") != stream or kind not in (0, 1):
                continue
            frames.append(head + payload)
            body += payload if kind == 0 else b""
            if kind == 1 and payload[:1] != b"\x88":
                raise load.WrongAnswer(f"a status other than 200: {payload[:12]!r}")
            if flags & 1:
                return b"".join(frames), body


def answer(server, method, path, fields, body=None):
    """Frames and body of one request, as they are once the server has cached what it caches."""
    with load.connect(server.port) as connection:
        connection.sendall(opening())
        for stream in (1, 3, 5, 7):
            connection.sendall(request_frames(stream, method, path, fields, body, server.port))
            found = read_frames(connection, stream)
    return found


# --- servers ---


def floor(scratch, frames):
    port = servers.free_port()
    path = Path(scratch) / f"answer-{port}.frames"
    path.write_bytes(frames)
    command = [servers.PEERS / "http2-floor", port, path]
    started = servers.Server("http2-floor", command, port, "0", Path(scratch) / "http2-floor.log")
    return started.wait(accepts)


def nghttpd(scratch, body):
    """nghttp2's own server with the given bytes as a file."""
    port = servers.free_port()
    (Path(scratch) / servers.NGINX_PATH.lstrip("/")).write_bytes(body)
    command = ["nghttpd", "--no-tls", "--workers=1", "--address=127.0.0.1", f"--htdocs={scratch}", port]
    started = servers.Server("nghttpd", command, port, "0", Path(scratch) / "nghttpd.log")
    return started.wait(accepts)


def accepts(port):
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


class Measured:
    """One run: completed measurements, and the servers of the current scenario."""

    def __init__(self, options, scratch):
        self.options, self.scratch = options, Path(scratch)
        self.raw = PLACE / "raw.csv"
        self.bodies = {}
        self.begin()

    def begin(self):
        """Goes on with an interrupted run of the same executable; anew otherwise."""
        options = self.options
        made_with = hashlib.sha256(options.binary.read_bytes()).hexdigest()
        what = {"executable": made_with, "seconds": options.seconds, "rounds": options.rounds}
        note = PLACE / "run.json"
        PLACE.mkdir(parents=True, exist_ok=True)
        before = json.loads(note.read_text()) if note.exists() else {}
        is_same = {name: before.get(name) for name in what} == what
        if not is_same or before.get("is_whole") and not options.keep:
            self.raw.unlink(missing_ok=True)
            note.write_text(json.dumps(what | {"facts": self.facts()}, indent=2) + "\n")
        self.rows = list(csv.DictReader(self.raw.open())) if self.raw.exists() else []

    def facts(self):
        return {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": bench.version("git", "describe", "--always", "--dirty", "--abbrev=10"),
            "cpu": bench.cpu_model(),
            "kernel": bench.platform.release(),
            "h2load": bench.version("h2load", "--version"),
            "nginx": bench.version(shutil.which("nginx", path="/usr/bin:/usr/sbin") or "nginx", "-v"),
            "rounds": f"{self.options.rounds} of {self.options.seconds:g} s each, servers in turn, after a warm-up",
        }

    def end(self):
        note = PLACE / "run.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"is_whole": True}, indent=2) + "\n")

    def is_known(self, *key):
        return any((row["scenario"], row["server"], int(row["round"])) == key for row in self.rows)

    def write(self, **row):
        is_new = not self.raw.exists()
        with self.raw.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({name: str(value) for name, value in row.items()})

    def document(self, kind):
        path = self.scratch / f"{kind}.json"
        path.write_text(documents.text(documents.document(kind)))
        return path

    def proxy(self, kind, **options):
        environments = [(documents.CLIENT_KEY, KEY, self.document(kind))]
        return servers.proxy(self.options.binary, self.scratch, environments, **options)

    # --- load ---

    def command(self, server, column, request, count):
        _, _, connections, together, is_http1 = column
        _, path, body, accepts_gzip = request
        command = ["taskset", "--cpu-list", "1", "h2load", "-n", count, "-c", connections, "-m", together]
        url = f"{'https' if server.tls else 'http'}://127.0.0.1:{server.port}"
        if server.name in ("nghttpd", "nginx"):
            path = servers.NGINX_PATH
        for name, value in fields_of(accepts_gzip, body):
            command += ["-H", f"{name}: {value}"]
        if body:
            command += ["-d", self.body(body)]
        command += ["--h1"] if is_http1 else []
        return [str(part) for part in [*command, url + path]]

    def body(self, name):
        path = self.scratch / f"{name}.body.json"
        path.write_text(documents.text(documents.requests()[name]))
        return path

    def load(self, server, column, request, count):
        """Runs h2load; returns the CPU time of the server for each request, and requests per second."""
        before = server.cpu_seconds()
        done = subprocess.run(self.command(server, column, request, count), capture_output=True, text=True)
        cpu = server.cpu_seconds() - before
        text = done.stdout + done.stderr
        succeeded = re.search(r"(\d+) succeeded, 0 failed, 0 errored, 0 timeout", text)
        ok = re.search(rf"status codes: {count} 2xx, 0 3xx, 0 4xx, 0 5xx", text)
        if done.returncode or not ok or not succeeded or int(succeeded[1]) != count:
            raise load.WrongAnswer(f"{server.name}: h2load of {count} requests: {text[-1500:]}")
        data = int(re.search(r"\((\d+)\) data", text)[1])
        seconds = re.search(r"finished in ([\d.]+)(us|ms|s),", text)
        took = float(seconds[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1}[seconds[2]]
        return {"cpu_us": cpu * 1e6 / count, "rps": count / took, "bytes": data / count}

    def rounded(self, column, count):
        """At least one turn of all streams."""
        each = column[2] * column[3]
        return max(int(count) // each, 1) * each

    def scenario(self, name, title, request, columns):
        rounds = range(1, self.options.rounds + 1)
        if all(self.is_known(name, column[0], number) for column in columns for number in rounds):
            return
        kind, path, body, accepts_gzip = request
        content = self.body(body).read_bytes() if body else None
        fields = fields_of(accepts_gzip, body)
        with contextlib.ExitStack() as stack:
            running = {}

            def start(server, started):
                running[server] = started
                stack.callback(started.stop)

            start("ours", self.proxy(kind))
            frames, expected = answer(running["ours"], "POST" if body else "GET", path, fields, content)
            wanted = {column[1] for column in columns}
            if "tls" in wanted:
                start("tls", self.proxy(kind, name="tls", tls=servers.certificate(self.scratch)))
            start("floor", floor(self.scratch, frames))
            if answer(running["floor"], "GET", path, fields) != (frames, expected):
                raise load.WrongAnswer("the floor does not send our bytes")
            if "nghttpd" in wanted:
                start("nghttpd", nghttpd(self.scratch, expected))
            if "nginx" in wanted:
                start("nginx", servers.nginx(self.scratch, expected, http2=True))
            counts = {}
            for column in columns:
                counts[column] = self.warm_up(running[column[1]], column, request)
            for number in rounds:
                for column in columns:
                    if self.is_known(name, column[0], number):
                        continue
                    print(f"{title}: {column[0]}, round {number}/{len(rounds)}", file=sys.stderr, flush=True)
                    found = self.load(running[column[1]], column, request, counts[column])
                    # gzip of a result that is not cached yet has other bytes, so few answers may.
                    if abs(found["bytes"] - len(expected)) > 0.01 * len(expected):
                        raise load.WrongAnswer(f"{column[0]}: {found['bytes']} bytes, not {len(expected)}")
                    cells = {"cpu_us": f"{found['cpu_us']:.4f}", "rps": f"{found['rps']:.1f}"}
                    more = {"requests": counts[column], "answer_bytes": len(expected)}
                    self.write(scenario=name, server=column[0], round=number, **cells, **more)
            self.compare(running, path, fields, content, expected)

    def warm_up(self, server, column, request):
        """How many requests take the wanted time."""
        count = self.rounded(column, FIRST_REQUESTS)
        for seconds in (min(0.3, self.options.seconds), self.options.seconds):
            count = self.rounded(column, self.load(server, column, request, count)["rps"] * seconds)
        return count

    def compare(self, running, path, fields, content, expected):
        """After the load our answer is still the same, and that of HTTP/1.1 too."""
        _, after = answer(running["ours"], "POST" if content else "GET", path, fields, content)
        lines = [f"{name}: {value}" for name, value in fields]
        head = [f"{'POST' if content else 'GET'} {path} HTTP/1.1", "Host: a", *lines]
        head += [f"Content-Length: {len(content)}"] if content else []
        request = "\r\n".join([*head, "", ""]).encode() + (content or b"")
        before = load.plain_of(*load.settled_answer(running["ours"].port, request))
        plain = [gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body for body in (after, expected)]
        if plain != [before, before]:
            raise load.WrongAnswer("HTTP/2 and HTTP/1.1 have different bodies")

    # --- memory ---

    def idle(self):
        """Memory of an idle connection that has been served once."""
        if self.is_known("idle", "HTTP/2", 1):
            return
        print(f"memory of {IDLE:,} idle connections", file=sys.stderr, flush=True)
        server, connections = self.proxy("simple"), []
        request = ("simple", FLAGS, None, True)
        try:
            self.load(server, OURS, request, FIRST_REQUESTS)
            self.load(server, SINGLE, request, FIRST_REQUESTS)
            before = server.memory_kib()
            ask = opening() + request_frames(1, "GET", FLAGS, fields_of(True, None), port=server.port)
            for _ in range(IDLE):
                connection = load.connect(server.port)
                connections.append(connection)
                connection.sendall(ask)
                read_frames(connection, 1)
            # Buffers are released as soon as a connection is idle; waits for two sweeps.
            time.sleep(2)
            each = (server.memory_kib() - before) / IDLE
        finally:
            for connection in connections:
                connection.close()
            server.stop()
        # In KiB, in the place of the time.
        self.write(scenario="idle", server="HTTP/2", round=1, cpu_us=f"{each:.3f}", rps=0, requests=IDLE, answer_bytes=0)

    def run(self):
        for name, title, request, columns in SCENARIOS:
            if self.selected(name):
                self.scenario(name, title, request, columns)
        if self.selected("idle"):
            self.idle()

    def selected(self, name):
        return not self.options.only or any(word in name for word in self.options.only)


def fields_of(accepts_gzip, body):
    """What a client sends beside the fields of the protocol: those of the Python SDK."""
    fields = [line.split(": ", 1) for line in heads.of("python", accepts_gzip)]
    fields = [(name, value) for name, value in fields if name.lower() != "connection"]
    content = [("Content-Type", "application/json")] if body else []
    return [("X-Environment-Key", KEY), *fields, *content]


# --- the report ---


class Report:
    """The tables of a run."""

    def __init__(self, rows):
        self.rows = rows

    def values(self, scenario, server, field="cpu_us"):
        return [float(row[field]) for row in self.rows if (row["scenario"], row["server"]) == (scenario, server)]

    def median(self, *key):
        values = self.values(*key)
        return statistics.median(values) if values else None

    def costs(self):
        """CPU per request of each server."""
        lines = ["| load | body | server | CPU µs per request | worst round | requests/s |"]
        lines.append("|---|---:|---|---:|---:|---:|")
        for name, title, _, columns in SCENARIOS:
            for server, *_ in columns:
                values = self.values(name, server)
                if values:
                    size = next(row["answer_bytes"] for row in self.rows if row["scenario"] == name)
                    rps = statistics.median(self.values(name, server, "rps"))
                    cells = [title, f"{size} B", server, f"{statistics.median(values):.2f}", f"{max(values):.2f}"]
                    lines.append("| " + " | ".join([*cells, f"{rps:,.0f}"]) + " |")
        return "\n".join(lines)

    def short(self):
        """The README's table."""
        names = ("HTTP/2 floor", "HTTP/2", "HTTP/2, TLS", "HTTP/1.1", "nghttpd", "nginx")
        shown = ("floor", "edge-proxy", "edge-proxy, TLS", "edge-proxy, HTTP/1.1", "nghttpd", "nginx")
        lines = ["| HTTP/2 | " + " | ".join(f"{name} µs" for name in shown) + " |", "|---|" + "---:|" * len(names)]
        for name, title, *_ in SCENARIOS:
            values = [self.median(name, server) for server in names]
            if values[1] is not None:
                cells = [title, *("-" if value is None else f"{value:.3g}" for value in values)]
                lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def targets(self):
        """The targets, judged."""
        lines = ["| target | bound | here | |", "|---|---|---:|---|"]

        def judge(what, value, limit, at_most=True, unit=""):
            if value is None:
                return
            holds = value <= limit if at_most else value > limit
            bound = f"at most {limit:g}{unit}" if at_most else f"above {limit:g}{unit}"
            verdict = "holds" if holds else "**does not hold**"
            lines.append(f"| {what} | {bound} | {value:.2f}{unit} | {verdict} |")

        def ratio(scenario, over, under):
            upper, lower = self.median(scenario, over), self.median(scenario, under)
            return upper / lower if upper and lower else None

        def paired(scenario, over, under):
            """The median of the rounds' ratios."""
            pairs = zip(self.values(scenario, over), self.values(scenario, under), strict=False)
            ratios = [upper / lower for upper, lower in pairs]
            return statistics.median(ratios) if ratios else None

        gzip_name, plain_name = "GET flags, gzip", "GET flags, plain"
        for server, limit in (("HTTP/2 floor", 1.6), ("HTTP/1.1, pipelined", 1.35), ("HTTP/1.1", 0.45)):
            judge(f"{gzip_name}: HTTP/2 / {server}", ratio("flags-gzip", "HTTP/2", server), limit)
        judge(f"{plain_name}: HTTP/2 / HTTP/2 floor", ratio("flags-plain", "HTTP/2", "HTTP/2 floor"), 1.5)
        judge("POST identities, heavy, gzip: HTTP/2 / HTTP/1.1", ratio("identities-gzip", "HTTP/2", "HTTP/1.1"), 0.6)
        one = paired("connections-gzip", "HTTP/2", "HTTP/1.1")
        judge(f"{gzip_name}, {STREAMS} connections with one stream: HTTP/2 / HTTP/1.1", one, 1.25)
        judge(f"{gzip_name}: TLS / cleartext", ratio("flags-gzip", "HTTP/2, TLS", "HTTP/2"), 1.4)
        for scenario, title in (("flags-gzip", gzip_name), ("flags-plain", plain_name)):
            for server in ("nghttpd", "nginx"):
                judge(f"{title}: {server} / HTTP/2", ratio(scenario, server, "HTTP/2"), 1, False)
        judge("an idle HTTP/2 connection", self.median("idle", "HTTP/2"), 12, unit=" KiB")
        return "\n".join(lines)

    def text(self):
        return f"{self.costs()}\n\n{self.targets()}\n"


def keep(binary):
    """Copies the whole run to bench/runs."""
    note = json.loads((PLACE / "run.json").read_text())
    today = f"{note['facts']['date'][:10]}-{bench.machine()}"
    place = bench.place(servers.ROOT / "bench/runs" / today, binary)
    shutil.copy(PLACE / "raw.csv", place / "http2.csv")
    facts = "\n".join(f"- {name}: {fact}" for name, fact in note["facts"].items())
    with (PLACE / "raw.csv").open() as file:
        tables = Report(list(csv.DictReader(file))).text()
    (place / "http2.md").write_text(f"# A run of `make bench-h2`\n\n{facts}\n\n{tables}")
    return place


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--binary", type=Path, default=servers.ROOT / "target/release/edge-proxy")
    options = parser.parse_args()
    for tool in ("h2load", "nghttpd", "openssl"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed (Debian: apt install nghttp2-client nghttp2-server nginx openssl)")
    if not shutil.which("nginx", path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"):
        sys.exit("nginx is not installed (Debian: apt install nginx)")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="edge-proxy-h2-") as scratch:
        measured = Measured(options, scratch)
        try:
            measured.run()
        except load.WrongAnswer as wrong:
            sys.exit(f"\nwrong answer under load: {wrong}")
        if not options.only:
            measured.end()
        print(Report(measured.rows).text())
        if options.keep and not options.only:
            print(f"kept in {keep(options.binary).relative_to(servers.ROOT)}")


if __name__ == "__main__":
    main()
