"""Runs what is deployed around the proxy with the real programs of Debian.

operate.py EXECUTABLE [PART...]: parts are files, units, prometheus, fleet, seccomp, browser, image; all by default.
Each part prints one line for each thing it found true and ends the run at the first that is not.
Invariant: processes started here are ended here, by their own id; only 127.0.0.1 and network
namespaces of this run are used.
"""
import contextlib, http.client, json, os, pathlib, re, shutil, socket, subprocess, sys, tempfile, threading, time

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
def demo(executable):
    port, admin = free_port(), free_port()
    with process(executable, "demo", "--port", port, "--admin-port", admin) as proxy:
        until("the demo is ready", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
        yield port, admin, proxy


# --- files: what can be judged without running anything ---

def files(executable):
    import kubernetes_validate, yaml

    run("haproxy", "-c", "-f", ROOT / "deploy/haproxy.cfg")
    run("nginx", "-t", "-c", ROOT / "deploy/nginx.conf")
    say("haproxy and nginx take their configurations")
    run("promtool", "check", "rules", ROOT / "deploy/prometheus/alerts.yml")
    run("promtool", "test", "rules", ROOT / "deploy/prometheus/alerts_test.yml")
    run("promtool", "check", "config", ROOT / "deploy/prometheus/scrape.yml")
    say("promtool takes the alert rules, and their tests pass")
    envoy = yaml.safe_load((ROOT / "deploy/envoy.yaml").read_text())["static_resources"]
    clusters = {cluster["name"] for cluster in envoy["clusters"]}
    need(set(re.findall(r"'cluster': '(\w+)'", str(envoy["listeners"]))) == clusters, "envoy's routes name its clusters")
    manifests = [("deploy/kubernetes/edge-proxy.yaml", (ROOT / "deploy/kubernetes/edge-proxy.yaml").read_text())]
    chart = ROOT / "deploy/helm/edge-proxy"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    keys = [{"server_side_key": "ser.key", "client_side_key": "key"}]
    for name, change in {
        "the chart": {"environmentKeyPairs": keys},
        "the chart with everything on": {
            "existingSecret": "mine", "useProxyKey": True, "autoscaling": {**values["autoscaling"], "enabled": True},
            "ingress": {**values["ingress"], "enabled": True, "className": "nginx", "tlsSecretName": "tls"},
            "serviceMonitor": {"enabled": True, "interval": "5s"}, "tolerations": [{"operator": "Exists"}],
        },
    }.items():
        manifests.append((name, render_chart(chart, about, {**values, **change})))
    for name, text in manifests:
        documents = [document for document in yaml.safe_load_all(text) if document]
        for document in documents:
            if document["kind"] != "ServiceMonitor":
                kubernetes_validate.validate(document, "1.31", strict=True)
            if document["kind"] == "ConfigMap":
                check_config(executable, document["data"]["config.json"])
        say(f"{name}: {', '.join(document['kind'] for document in documents)} fit Kubernetes 1.31's schemas")
    context = {"Values": values, "Release": {"Name": "x", "Namespace": "y", "Service": "Helm"}, "Chart": {"AppVersion": "1"}}
    refused = subprocess.run(renderer(chart), input=json.dumps(context), text=True, capture_output=True)
    need("environmentKeyPairs" in refused.stderr, "the chart without keys says what to give")


def renderer(chart):
    binary = ROOT / "target/render_chart"
    if not binary.exists():
        environment = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
        run("go", "build", "-o", binary, ROOT / "tests/operate/render_chart.go", env=environment)
    return [str(binary), str(chart)]


def render_chart(chart, about, values):
    context = {
        "Values": values, "Release": {"Name": "demo", "Namespace": "flags", "Service": "Helm"},
        "Chart": {"AppVersion": about["appVersion"], "Name": about["name"]},
    }
    return run(*renderer(chart), input=json.dumps(context))


def check_config(executable, text):
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "config.json"
        config = {**json.loads(text), "cache_dir": scratch}
        path.write_text(json.dumps(config))
        pairs = '[{"server_side_key": "ser.key", "client_side_key": "key"}]'
        lines = run(executable, "check", "--config", path, env={"ENVIRONMENT_KEY_PAIRS": pairs})
        need("warn" not in lines and "FAIL" not in lines, "its config.json is taken without a warning")


# --- units: systemd's own judgement ---

def units(executable):
    with tempfile.TemporaryDirectory() as scratch:
        for name in ["edge-proxy.service", "edge-proxy@.service"]:
            # The unit as it stands, but for where the executable is.
            unit = pathlib.Path(scratch) / name.replace("@", "@a")
            unit.write_text((ROOT / "deploy" / name).read_text().replace("/usr/bin/edge-proxy", str(executable)))
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
            need(not done.stderr.strip(), f"systemd-analyze verify {name} {done.stderr.strip()}")
            exposure = run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)
            say(exposure.strip().splitlines()[-1].lstrip("→ "))


# --- prometheus: exact counts, and every query of the dashboard and the alerts ---

def prometheus(executable):
    import yaml

    with demo(executable) as (port, admin, _), tempfile.TemporaryDirectory() as scratch:
        server = free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "deploy/prometheus/alerts.yml")],
            "scrape_configs": [{"job_name": "edge-proxy", "static_configs": [{"targets": [f"127.0.0.1:{admin}"]}]}],
        }
        path = pathlib.Path(scratch) / "prometheus.yml"
        path.write_text(json.dumps(config))
        command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={scratch}/data", f"--web.listen-address=127.0.0.1:{server}"]
        with process(*command, stderr=subprocess.DEVNULL):
            def query(expression):
                from urllib.parse import quote
                answer = json.loads(fetch(server, f"/api/v1/query?query={quote(expression)}", {})[1])
                return answer["data"]["result"] if answer["status"] == "success" else sys.exit(f"FAILED: {expression}: {answer}")

            until("Prometheus scrapes", lambda: query('up{job="edge-proxy"} == 1'))
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for index in range(500):
                connection.request("GET", "/api/v1/flags/" if index % 5 else "/api/v1/identities/?identifier=ada", headers=KEY)
                connection.getresponse().read()
            for route, count in {"flags": 400, "identities": 100}.items():
                sample = f'edge_proxy_http_requests_total{{route="{route}",status="2xx"}}'
                until(f"{sample} is {count}", lambda: [r["value"][1] for r in query(sample)] == [str(count)])
                say(f"Prometheus has {sample} {count}, exactly what was asked")
            metrics = fetch(admin, "/metrics", {})[1]
            checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True)
            need(checked.returncode == 0 and not checked.stderr.strip(), f"promtool check metrics {checked.stderr.strip()}")
            known = set(re.findall(r"^# TYPE (\S+)", metrics, re.M))
            dashboard = (ROOT / "deploy/grafana/edge-proxy.json").read_text()
            expressions = [t["expr"] for p in json.loads(dashboard)["panels"] for t in p.get("targets", [])]
            rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
            expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
            for expression in expressions:
                query(expression.replace("$instance", ".*").replace("$__rate_interval", "1m"))
                for name in re.findall(r"edge_proxy_\w+", expression):
                    family = re.sub(r"_(bucket|sum|count)$", "", name)
                    if family not in known and name not in known:
                        sys.exit(f"FAILED: {name} in {expression} is no metric of the proxy")
            say(f"all {len(expressions)} queries of the dashboard and the alerts run, on metrics that exist")


# --- fleet: three proxies behind HAProxy, one killed, one restarted, under load ---

NAMES = ["epa", "epb", "epc"]


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
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", "epbr"], capture_output=True)


def fleet(executable):
    with tempfile.TemporaryDirectory() as scratch, spaces(), contextlib.ExitStack() as stack:
        document = json.dumps({
            "documents": [str(ROOT / "src/demo/environment.json")],
            "server": {"host": "0.0.0.0", "port": 8000, "shutdown_delay_seconds": 2},
        })
        config = pathlib.Path(scratch) / "config.json"
        config.write_text(document)

        def start(name):
            proxy = stack.enter_context(process(*in_space(name, executable, "serve", "--config", config, "--cores", 1)))
            host = f"10.213.7.{11 + NAMES.index(name)}"
            until(f"{name} is ready", lambda: fetch(8000, "/proxy/health/readiness", {}, host)[0] == 200)
            return proxy

        proxies = {name: start(name) for name in NAMES}
        port = free_port()
        text = (ROOT / "deploy/haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{port}")
        path = pathlib.Path(scratch) / "haproxy.cfg"
        path.write_text(text.replace("10.0.0.", "10.213.7."))
        stack.enter_context(process("haproxy", "-db", "-f", path, stderr=subprocess.DEVNULL))
        until("HAProxy serves", lambda: fetch(port, "/api/v1/flags/")[0] == 200)
        stop, answers, failures = threading.Event(), [0] * 8, []

        def load(worker):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
            body = json.dumps({"identifier": f"u{worker}", "traits": [{"trait_key": "spend", "trait_value": 2000}]})
            while not stop.is_set():
                try:
                    if answers[worker] % 2:
                        connection.request("POST", "/api/v1/identities/", body, {**KEY, "Content-Type": "application/json"})
                    else:
                        connection.request("GET", "/api/v1/flags/", headers=KEY)
                    answer = connection.getresponse()
                    text = answer.read()
                    if answer.status != 200 or b"welcome_message" not in text:
                        failures.append((answer.status, text[:80]))
                    answers[worker] += 1
                except (OSError, http.client.HTTPException) as error:
                    failures.append(repr(error))
                    connection.close()

        threads = [threading.Thread(target=load, args=(worker,)) for worker in range(len(answers))]
        [thread.start() for thread in threads]
        until("the load runs", lambda: sum(answers) > 500)
        proxies["epa"].kill()
        proxies["epa"].wait()
        before = sum(answers)
        until("requests go on after the kill", lambda: sum(answers) > before + 1000)
        start("epa")
        proxies["epb"].terminate()
        need(proxies["epb"].wait(20) == 0, "the stopped proxy ended with exit code 0")
        start("epb")
        before = sum(answers)
        until("requests go on after the restart", lambda: sum(answers) > before + 1000)
        stop.set()
        [thread.join() for thread in threads]
        need(not failures, f"{sum(answers)} requests through HAProxy over a kill and a restart, failed: {failures[:3] or 0}")


# --- seccomp: the profile, applied as a container runtime does, to both drivers ---

UNDER_PROFILE = """
import json, os, seccomp, sys
profile = json.load(open(sys.argv[1]))
rules = seccomp.SyscallFilter(seccomp.ERRNO(profile["defaultErrnoRet"]))
for group in profile["syscalls"]:
    for name in group["names"]:
        try:
            rules.add_rule(seccomp.ALLOW, name)
        except (OSError, RuntimeError):
            pass  # Unknown to this kernel or library, as runtimes pass over it.
rules.load()
os.execv(sys.argv[2], sys.argv[2:])
"""


def seccomp(executable):
    for driver in ["uring", "epoll"]:
        with tempfile.TemporaryDirectory() as scratch:
            config = pathlib.Path(scratch) / "config.json"
            port = free_port()
            config.write_text(json.dumps({
                "documents": [str(ROOT / "src/demo/environment.json")], "cache_dir": f"{scratch}/cache",
                "server": {"host": "127.0.0.1", "port": port}, "admin": {"port": 0},
            }))
            # Debian's own Python has the binding of libseccomp.
            command = ["/usr/bin/python3", "-c", UNDER_PROFILE, ROOT / "deploy/seccomp.json", executable, "serve", "--config", config]
            with process(*command, env={"EDGE_PROXY_DRIVER": driver}) as proxy:
                until("it serves under the profile", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
                need(all(fetch(port, "/api/v1/flags/")[0] == 200 for _ in range(100)), f"serves on {driver} under deploy/seccomp.json")
                limited = pathlib.Path(f"/proc/{proxy.pid}/status").read_text()
                need("Seccomp:\t2" in limited, "and the kernel says that the filter is on")


# --- browser: the status page in Chromium, light, dark and on a phone ---

def browser(executable):
    out = ROOT / "target/operate"
    out.mkdir(parents=True, exist_ok=True)
    with demo(executable) as (port, admin, _):
        stop = threading.Event()

        def load():
            connection = http.client.HTTPConnection("127.0.0.1", port)
            while not stop.wait(0.002):
                connection.request("GET", "/api/v1/flags/", headers=KEY)
                connection.getresponse().read()

        thread = threading.Thread(target=load)
        thread.start()
        fetch(port, "/api/v1/nothing/")
        try:
            for name, size, extra in [("light", "1280,1500", []), ("dark", "1280,1500", ["--blink-settings=preferredColorScheme=0"]), ("phone", "500,2600", [])]:
                with tempfile.TemporaryDirectory() as profile:
                    common = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=6000", f"--window-size={size}", *extra]
                    run(*common, f"--screenshot={out}/status-{name}.png", f"http://127.0.0.1:{admin}/", timeout=120)
                need((out / f"status-{name}.png").stat().st_size > 20_000, f"a screenshot: target/operate/status-{name}.png")
            with tempfile.TemporaryDirectory() as profile:
                dom = run("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=6000", "--dump-dom", f"http://127.0.0.1:{admin}/", timeout=120)
        finally:
            stop.set()
            thread.join()
    need('id="fresh" class="good">1 of 1<' in dom, "the page shows 1 of 1 environments fresh")
    need("Reactor 0, CPU" in dom and "<polyline" in dom, "the page shows its reactors and plots")
    need(re.search(r">flags</td><td class=\"number\">\d", dom), "the page counts requests by route")


# --- image: the Dockerfile's last stage, put together by hand and run in a chroot ---

def image(executable):
    text = (ROOT / "Dockerfile").read_text()
    last = text[text.index("FROM scratch"):]
    user = re.search(r"^USER (\S+)", last, re.M)[1]
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)", last, re.M)[1])
    health = json.loads(re.search(r"^HEALTHCHECK .* CMD (.*)", last, re.M)[1])
    environment = dict(re.findall(r"^ENV (\w+)=(\S+)", last, re.M))
    static = subprocess.run(["ldd", str(executable)], capture_output=True, text=True)
    if "statically linked" not in static.stdout + static.stderr and "not a dynamic" not in static.stdout + static.stderr:
        say("image: skipped, this executable is not static (`make dist` builds one)")
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        root.chmod(0o755)
        for name in ["app", "cache"]:
            (root / name).mkdir()
            os.chown(root / name, 65532, 65532)
        shutil.copy(executable, root / "edge-proxy")
        port = free_port()
        command = ["/usr/sbin/chroot", f"--userspec={user}", scratch]
        with process(*command, *entry, "demo", "--port", port, env=environment):
            until("the image's demo is ready", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
            run(*command, *health, "--port", port, env=environment)
            need(fetch(port, "/api/v1/flags/")[0] == 200, f"the empty image serves as {user}, and its health check passes")


PARTS = {part.__name__: part for part in [files, units, prometheus, fleet, seccomp, browser, image]}

if __name__ == "__main__":
    executable = pathlib.Path(sys.argv[1]).resolve()
    for name in sys.argv[2:] or PARTS:
        print(f"--- {name}", flush=True)
        PARTS[name](executable)
