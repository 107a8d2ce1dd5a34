"""The servers of a run: pinned, ready before use, stopped by their process id."""

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "target/peers/release"
PYTHON = ROOT / ".venv/bench/bin/python"
START_SECONDS_MAX = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process, its port, and its CPU time so far."""

    def __init__(self, name, command, port, cpus, log, environment=None):
        self.name, self.port, self.tls = name, port, False
        self.log = open(log, "ab")  # noqa: SIM115 (closed by stop)
        pinned = ["taskset", "--cpu-list", cpus, *map(str, command)]
        environment = {"PATH": os.environ["PATH"], **(environment or {})}
        self.process = subprocess.Popen(
            pinned, stdout=self.log, stderr=self.log, env=environment, start_new_session=True
        )

    def processes(self):
        """This process and its children (nginx has workers)."""
        found = [self.process.pid]
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            found += [int(pid) for pid in children.split()]
        return found

    def cpu_seconds(self):
        """User and system time of all threads, including ended ones, by the process's CPU clock."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.processes())

    def schedule(self, scheduler):
        """Puts all of its threads under a scheduler, as `chrt` names it."""
        for pid in self.processes():
            command = [scheduler[0], "--all-tasks", *scheduler[1:2], "--pid", scheduler[2], str(pid)]
            subprocess.run(command, check=True, capture_output=True)

    def memory_kib(self, field="VmRSS"):
        total = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1])
        return total

    def thread(self, word):
        """The first thread with this word in its name."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            if word in (task / "comm").read_text():
                return int(task.name)
        raise SystemExit(f"{self.name} has no thread {word}")

    def wait(self, probe):
        """Waits until `probe` succeeds; fails with the server's log if the server exits first."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if probe(self.port):
                    return self
            time.sleep(0.02)
        self.stop()
        log = Path(self.log.name).read_text()[-3000:]
        raise SystemExit(f"{self.name} did not start on port {self.port}:\n{log}")

    def stop(self):
        if self.process.poll() is None:
            # nginx and uvicorn may have children: the process group belongs to this server.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


class EventSink:
    """An events API that accepts everything, on a thread of this process."""

    def __init__(self):
        self.events = 0
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.events += body.count(b'"event":')
                answer = b'{"accepted":1,"rejected":[]}'
                self.send_response(202)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def certificate(scratch):
    """A certificate of the run's own, and its key."""
    pair = (Path(scratch) / "cert.pem", Path(scratch) / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-days", "2", "-out", pair[0], "-keyout", pair[1]]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return pair


def fetch(port, method, path, headers=None, body=None):
    """Status, header list and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()
    finally:
        connection.close()


def answers(path, headers=None):
    return lambda port: fetch(port, "GET", path, headers)[0] == 200


def proxy(
    binary, scratch, environments, cpus="0", cores="1", name="edge-proxy", tls=None, unix=None, spin=None, **sections
):
    """edge-proxy, serving documents from disk: (client key, server key, path) each.
    `tls`: its certificate and key; `unix`: the path of a socket beside the port, which load uses then;
    `spin`: server.spin_microseconds; `sections`: more of the configuration."""
    port = free_port()
    pairs = [
        {"client_side_key": client, "server_side_key": server, "document_path": str(path)}
        for client, server, path in environments
    ]
    config = Path(scratch) / f"config-{port}.json"
    server = {"host": "127.0.0.1", "port": port}
    if tls:
        server["tls"] = {"cert": str(tls[0]), "key": str(tls[1])}
    if unix:
        server["unix_socket"] = str(unix)
    if spin:
        server["spin_microseconds"] = spin
    written = {"environment_key_pairs": pairs, "server": server, "logging": {"log_level": "ERROR"}} | sections
    config.write_text(json.dumps(written))
    command = [binary, "serve", "--config", config, "--cores", cores]
    started = Server(name, command, port, cpus, Path(scratch) / f"{name}.log")
    if not tls:
        started.wait(answers("/proxy/health/readiness"))
        started.port = unix or started.port
        return started
    started.tls = True
    return started.wait(lambda port: socket.create_connection(("127.0.0.1", port), 1).close() or True)


def demo(binary, scratch, cpus="0"):
    port = free_port()
    command = [binary, "demo", "--host", "127.0.0.1", "--port", port]
    started = Server("demo", command, port, cpus, Path(scratch) / "demo.log")
    return started.wait(answers("/proxy/health/readiness"))


def floor(scratch, answer, cpus="0", unix=None, closes=False):
    """Sends the given bytes to every request. `closes`: one answer for each connection."""
    port = free_port()
    path = Path(scratch) / f"answer-{port}.bin"
    path.write_bytes(answer)
    command = [PEERS / "floor", unix or port, path, *(["--close"] if closes else [])]
    started = Server("floor", command, port, cpus, Path(scratch) / "floor.log")
    if unix:
        started.port = unix
        return started.wait(lambda place: Path(place).exists())
    return started.wait(lambda port: socket.create_connection(("127.0.0.1", port), 1).close() or True)


# Workers run as the user of this script, so that they can read the scratch directory.
NGINX = """{user} daemon off; pid {scratch}/nginx-{port}.pid; error_log {scratch}/nginx.log warn;
worker_processes 1;
events {{ worker_connections 16384; use epoll; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; default_type application/json;
  keepalive_requests 1000000000; keepalive_timeout 90s; open_file_cache max=100 inactive=1h;
  client_body_temp_path {scratch}/nginx-body; proxy_temp_path {scratch}/nginx-proxy;
  fastcgi_temp_path {scratch}/nginx-fastcgi; uwsgi_temp_path {scratch}/nginx-uwsgi; scgi_temp_path {scratch}/nginx-scgi;
  server {{ listen 127.0.0.1:{port} {tls} location = {path} {{ root {scratch}; }} }}
}}
"""


NGINX_PATH = "/answer.json"


def nginx(scratch, body, cpus="0", tls=None, http2=False):
    """The given bytes as a static file at NGINX_PATH. None if nginx is not installed. `tls`: its certificate
    and key; `http2`: it speaks HTTP/2 only."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not binary:
        return None
    port = free_port()
    (Path(scratch) / NGINX_PATH.lstrip("/")).write_bytes(body)
    config = Path(scratch) / f"nginx-{port}.conf"
    user = "user root;" if os.getuid() == 0 else ""
    secure = f"ssl backlog=4096; ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]};" if tls else "backlog=4096;"
    secure = f"http2 {secure}" if http2 else secure
    config.write_text(NGINX.format(scratch=scratch, port=port, path=NGINX_PATH, user=user, tls=secure))
    started = Server("nginx", [binary, "-c", config], port, cpus, Path(scratch) / "nginx-start.log")
    if tls or http2:
        started.tls = bool(tls)
        return started.wait(lambda port: socket.create_connection(("127.0.0.1", port), 1).close() or True)
    return started.wait(answers(NGINX_PATH))


def axum(scratch, key, document, cpus="0"):
    port = free_port()
    command = [PEERS / "axum-engine", port, key, document]
    started = Server("axum", command, port, cpus, Path(scratch) / "axum.log")
    return started.wait(answers("/api/v1/environment-document/", {"X-Environment-Key": key}))


def python(scratch, key, document, cpus="0"):
    port = free_port()
    command = [PYTHON, ROOT / "bench/peers/python_engine.py", port, key, document]
    started = Server("python", command, port, cpus, Path(scratch) / "python.log")
    return started.wait(answers("/api/v1/environment-document/", {"X-Environment-Key": key}))
