"""Load on a server and its cost: closed loop by wrk, open loop by `paced`.

While either runs, a prober sends the same request every few milliseconds on a separate
connection and compares each response with the first: a wrong response under load aborts the run.
"""

import gzip
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import heads
from servers import PEERS, ROOT

PROBE_SECONDS = 0.02
# New connections by which `kept` measures a handshake.
HANDSHAKES_MEASURED = 100


class WrongAnswer(Exception):
    """A response under load differed from the expected one."""


def raw_request(method, path, key, body=None, accepts_gzip=True, client="python"):
    """One request as bytes, sent whole, as this client of `heads.py` sends it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"X-Environment-Key: {key}"]
    lines += heads.of(client, accepts_gzip)
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def read_answer(stream):
    """Head and body of the next response on a buffered stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            raise WrongAnswer("the server closed the connection")
        head += line
    for line in head.decode("latin-1").lower().split("\r\n"):
        if line.startswith("content-length:"):
            return head, stream.read(int(line.split(":")[1]))
        if line == "transfer-encoding: chunked":
            return head, b"".join(chunks(stream))
    raise WrongAnswer(f"an answer without a length: {head!r}")


def chunks(stream):
    """The chunks of a body: axum compresses while it sends."""
    while size := int(stream.readline(), 16):
        yield stream.read(size)
        stream.readline()
    stream.readline()


def plain_of(head, body):
    """The body without its content coding: a cached answer has other bytes than one made for a request."""
    return gzip.decompress(body) if b"content-encoding: gzip" in head.lower() else body


def settled_answer(port, request, tls=False):
    """Head and body as they are once the server has cached what it caches."""
    for _ in range(4):
        answer = whole_answer(port, request, tls)
    return answer


def connect(port, tls=False):
    """A connection to a port, or to a unix socket at a path; a certificate of the run's own is believed."""
    if isinstance(port, (str, Path)):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(port))
        return connection
    connection = socket.create_connection(("127.0.0.1", port), 20)
    if not tls:
        return connection
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)


def whole_answer(port, request, tls=False):
    """The bytes of one response: head and body."""
    with connect(port, tls) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as stream:
            head, body = read_answer(stream)
    if not head.startswith(b"HTTP/1.1 200"):
        raise WrongAnswer(f"{head[:60]!r} to {request[:60]!r}")
    return head, body


class Prober(threading.Thread):
    """Sends requests continuously during a load."""

    def __init__(self, server, request, together=1, reconnects=False):
        super().__init__(daemon=True)
        self.reconnects = reconnects
        self.server, self.request, self.together = server, request * together, together
        self.sent, self.wrong, self.over = 0, None, threading.Event()
        self.expected = plain_of(*whole_answer(server.port, self.request, server.tls))

    def reconnect(self):
        """One connection for each request, since the server closes it."""
        try:
            while not self.over.wait(PROBE_SECONDS):
                self.sent += 1
                if plain_of(*whole_answer(self.server.port, self.request)) != self.expected:
                    self.wrong = "another body"
                    return
        except (OSError, WrongAnswer) as error:
            self.wrong = str(error)

    def run(self):
        if self.reconnects:
            return self.reconnect()
        try:
            with connect(self.server.port, self.server.tls) as connection, connection.makefile("rb") as stream:
                while not self.over.wait(PROBE_SECONDS):
                    connection.sendall(self.request)
                    for _ in range(self.together):
                        head, body = read_answer(stream)
                        self.sent += 1
                        if not head.startswith(b"HTTP/1.1 200") or plain_of(head, body) != self.expected:
                            self.wrong = f"{head[:80]!r} with {len(body)} bytes, plain {len(self.expected)} expected"
                            return
        except (OSError, WrongAnswer) as error:
            self.wrong = str(error)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def measured(server, request, command, environment=None, together=1, reconnects=False):
    """Runs a load generator; returns its JSON with the server's CPU time per request."""
    with Prober(server, request, together, reconnects) as prober:
        before = server.cpu_seconds()
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        cpu = server.cpu_seconds() - before
    if prober.wrong:
        raise WrongAnswer(f"{server.name}: {prober.wrong}")
    if done.returncode:
        raise WrongAnswer(f"{server.name}: {command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    completed = result.get("requests", result.get("completed", 0))
    if not completed:
        raise WrongAnswer(f"{server.name}: no request was answered")
    result["answered"] = completed + prober.sent
    result["cpu_us"] = cpu * 1e6 / result["answered"]
    result["rss_kib"] = server.memory_kib()
    return result


def wrk(server, script, seconds, connections=32, threads=1, cpus="1"):
    """The command of the load generator, run in the repository's root."""
    command = ["taskset", "--cpu-list", cpus, "wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s"]
    url = f"{'https' if server.tls else 'http'}://127.0.0.1:{server.port}"
    return [*command, "--timeout", "20s", "--latency", "-s", f"bench/wrk/{script}.lua", url]


def closed(server, script, request, seconds, connections=32, threads=1, cpus="1", together=1, **environment):
    """wrk: each connection sends its next request, or `together` of them, after the responses."""
    command = wrk(server, script, seconds, connections, threads, cpus)
    if together > 1:
        environment["BENCH_TOGETHER"] = str(together)
    result = measured(server, request, command, environment, together)
    if result["errors"] or result["not_200"]:
        raise WrongAnswer(f"{server.name}: wrk saw {result['errors']} errors, {result['not_200']} answers not 200")
    result["rps"] = result["requests"] / result["seconds"]
    return result


def kept(server, script, request, seconds, connections=32, **environment):
    """As `closed`, without the TLS handshakes: wrk opens its connections while it measures."""
    result = closed(server, script, request, seconds, connections, **environment)
    if server.tls:
        each = handshakes(server, request, resumes=False, count=HANDSHAKES_MEASURED)
        result["cpu_us"] -= each * connections / result["answered"]
    return result


def busy(server, path, seconds, connections, options, cpus="1"):
    """The command of `busy`: all connections at once, and how many answers each of them got."""
    where = ["--port" if isinstance(server.port, int) else "--unix", server.port]
    command = ["taskset", "--cpu-list", cpus, PEERS / "busy", *where, "--connections", connections]
    return [*command, "--seconds", seconds, "--path", path, "--vary", *options]


def fair(server, path, request, seconds, connections, options):
    """Closed loop by `busy`: as `closed`, with the least, median and most answers of a connection."""
    command = busy(server, path, seconds, connections, options)
    result = measured(server, request, command, reconnects="--reconnect" in options)
    result["rps"] = result["requests"] / seconds
    return result


def open_loop(server, request, rate, seconds, scratch, connections=64, cpus="1", warm_up=0.5, scheduler=()):
    """paced: requests leave at a constant rate; latency is measured from the scheduled time. `scheduler`: a
    command that puts it under another scheduler."""
    request_path, expect_path = Path(scratch) / "paced.request", Path(scratch) / "paced.expect"
    request_path.write_bytes(request)
    expect_path.write_bytes(settled_answer(server.port, request)[1])
    command = ["taskset", "--cpu-list", cpus, *scheduler, PEERS / "paced", "--port", server.port, "--rate", rate]
    command += ["--connections", connections, "--seconds", seconds, "--warm-up", warm_up]
    command += ["--request", request_path, "--expect", expect_path]
    result = measured(server, request, command)
    result["rps"] = result["measured"] / seconds
    return result


def mixed(server, kinds, names, seconds, scratch, connections=32, cpus="1"):
    """paced, with one or two of these kinds of request at their rates: (rate, request) by name. Returns the
    seconds of CPU of the reactor and of the process, and how many requests of the first kind were answered."""
    command = ["taskset", "--cpu-list", cpus, PEERS / "paced", "--port", server.port, "--connections", connections]
    command += ["--seconds", seconds, "--warm-up", 0]
    for name, (file, rate) in zip(names, (("--request", "--rate"), ("--also", "--also-rate")), strict=False):
        path = Path(scratch) / f"{name}.request"
        path.write_bytes(kinds[name][1])
        command += [file, path, rate, kinds[name][0]]
    before = cpu_times(server)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    after = cpu_times(server)
    if done.returncode:
        raise WrongAnswer(f"{server.name}: paced ended with {done.returncode}: {done.stdout}{done.stderr}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    for name, field in zip(names, ("completed", "also_completed"), strict=False):
        if result[field] < kinds[name][0] * seconds * 0.9:
            raise WrongAnswer(f"{server.name}: {result[field]} {name} in {seconds} s: the rate was not kept")
    return {what: after[what] - before[what] for what in after} | {"completed": result["completed"]}


def handshakes(server, request, resumes, count=300):
    """CPU per new TLS connection with one request; with `resumes` each resumes the session of the one before."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    session, before = None, server.cpu_seconds()
    for number in range(count):
        plain = socket.create_connection(("127.0.0.1", server.port), 20)
        with context.wrap_socket(plain, session=session) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as stream:
                read_answer(stream)
            if resumes:
                if number and not connection.session_reused:
                    raise WrongAnswer("the server does not resume")
                # The ticket has come before the response.
                session = connection.session
    return (server.cpu_seconds() - before) * 1e6 / count


def cpu_times(server):
    """Seconds of CPU so far, of the reactor's thread and of the process."""
    path = Path(f"/proc/{server.process.pid}/task/{server.thread('reactor')}/schedstat")
    return {"reactor": int(path.read_text().split()[0]) / 1e9, "process": server.cpu_seconds()}


def idle_cpu(server, seconds):
    """What `mixed` returns without a load."""
    before = cpu_times(server)
    time.sleep(seconds)
    after = cpu_times(server)
    return {what: after[what] - before[what] for what in after}
