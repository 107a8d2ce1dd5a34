"""What a container runtime would do, without one: the seccomp profile, and the Dockerfile's last stage."""
import json, os, pathlib, re, shutil, subprocess, tempfile

from common import ROOT, demo, fetch, free_port, need, process, run, say, until

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
