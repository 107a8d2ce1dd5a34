#!/usr/bin/env python3
"""system_calls.py EXECUTABLE: the system calls that an emulated executable makes while it serves, by QEMU's trace.

Fails if deploy/seccomp.json does not allow one: names differ between architectures (arm64 has no `epoll_wait`).
"""
import json, os, pathlib, re, signal, socket, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]


def allowed():
    profile = json.loads((ROOT / "deploy/seccomp.json").read_text())
    architectures = {entry["architecture"] for entry in profile["archMap"]}
    assert "SCMP_ARCH_AARCH64" in architectures, architectures
    return {name for group in profile["syscalls"] if group["action"] == "SCMP_ACT_ALLOW" for name in group["names"]}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fetch(port, path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body)
    request.add_header("X-Environment-Key", "client")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status


def serve(executable, scratch):
    """Serves, reloads and stops with what has system calls of its own: files of a cache, kept traits and the access log."""
    port, admin = free_port(), free_port()
    config = pathlib.Path(scratch, "config.json")
    settings = {
        "environment_key_pairs": [{"client_side_key": "client", "server_side_key": "ser.server",
                                   "document_path": str(ROOT / "src/demo/environment.json")}],
        "server": {"host": "127.0.0.1", "port": port, "unix_socket": f"{scratch}/socket"}, "admin": {"host": "127.0.0.1", "port": admin},
        "cache_dir": f"{scratch}/cache", "traits": {"store": "disk"},
        "logging": {"enable_access_log": True, "access_log_file": f"{scratch}/access.log"},
    }
    config.write_text(json.dumps(settings))
    command = [executable, "serve", "--cores", "2", "--config", str(config)]
    with open(pathlib.Path(scratch, "trace"), "wb") as trace:
        environment = {"QEMU_STRACE": "1", "PATH": os.environ["PATH"]}
        proxy = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=trace)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert fetch(port, "/proxy/health/readiness") == 200
                    break
                except OSError:
                    assert proxy.poll() is None and time.monotonic() < deadline, "the proxy does not become ready"
                    time.sleep(0.05)
            body = json.dumps({"identifier": "u", "traits": [{"trait_key": "t", "trait_value": 1}]}).encode()
            for _ in range(20):
                assert fetch(port, "/api/v1/flags/") == fetch(port, "/api/v1/identities/", body) == 200
            assert fetch(admin, "/metrics") == 200
            config.write_text(json.dumps(dict(settings, allow_origins=["https://example.com"])))
            for number in (signal.SIGHUP, signal.SIGUSR1):
                proxy.send_signal(number)
                time.sleep(1)
                assert fetch(port, "/api/v1/flags/") == 200
            proxy.send_signal(signal.SIGTERM)
            assert proxy.wait(timeout=60) == 0, proxy.returncode
        finally:
            if proxy.poll() is None:
                proxy.kill()
                proxy.wait()
    return pathlib.Path(scratch, "trace").read_text(errors="replace")


def main():
    with tempfile.TemporaryDirectory() as scratch:
        trace = serve(sys.argv[1], scratch)
    made = set(re.findall(r"^\d+ ([a-z][a-z0-9_]*)\(", trace, flags=re.M))
    if len(made) < 30:
        sys.exit(f"the trace has {len(made)} system calls: {sorted(made)}")
    missing = made - allowed()
    print(f"{len(made)} system calls of arm64, not in deploy/seccomp.json: {', '.join(sorted(missing)) or 'none'}")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
