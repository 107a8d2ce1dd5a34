"""Shared by all parts: child processes, waits with a deadline, and one line per result."""
import contextlib, http.client, os, pathlib, socket, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = {"X-Environment-Key": "demo-client-side-key"}


def say(text):
    print(f"ok  {text}", flush=True)


def need(condition, text):
    if not condition:
        sys.exit(f"FAILED: {text}")
    say(text)


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"FAILED: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(port, path, headers=KEY, host="127.0.0.1", method="GET", body=None, timeout=10):
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def until(what, probe, patience=30):
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            found = probe()
            if found:
                return found
        if time.monotonic() > end:
            sys.exit(f"FAILED: not within {patience} s: {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def process(*command, **options):
    started = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, **options)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


@contextlib.contextmanager
def demo(executable, **variables):
    port, admin = free_port(), free_port()
    with process(executable, "demo", "--port", port, "--admin-port", admin, env={**os.environ, **variables}) as proxy:
        until("the demo is ready", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
        yield port, admin, proxy
