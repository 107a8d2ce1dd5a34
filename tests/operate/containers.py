"""Without a container runtime: the seccomp profile, and the last stage of the Dockerfile."""
import json, pathlib, re, tempfile

from common import ROOT, demo, fetch, free_port, need, process, run, until

UNDER_PROFILE = """
import json, os, seccomp, sys
profile = json.load(open(sys.argv[1]))
rules = seccomp.SyscallFilter(seccomp.ERRNO(profile["defaultErrnoRet"]))
for group in profile["syscalls"]:
    for name in group["names"]:
        try:
            rules.add_rule(seccomp.ALLOW, name)
        except (OSError, RuntimeError):
            pass  # Unknown to this kernel or library; container runtimes skip it too.
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
    built = re.search(r"^RUN (cargo build .*)", text, re.M)[1]
    dist = (ROOT / "Makefile").read_text() + (ROOT / "scripts/dist").read_text()
    need("--release --locked --target $(uname -m)-unknown-linux-musl --bin edge-proxy" in built and "MUSL = x86_64-unknown-linux-musl" in dist,
         "the Dockerfile builds what `make dist` builds")
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch) / "image"
        # The RUN that lays out the final image, with this machine's executable.
        lay_out = re.search(r"^RUN (mkdir -p /root-of-image.*?[^\\])$", text, re.M | re.S)[1].replace("\\\n", " ")
        from_build = "target/$(uname -m)-unknown-linux-musl/release/edge-proxy"
        need(from_build in lay_out and "COPY --from=build /root-of-image/ /" in last, "its last stage takes what its build laid out")
        run("sh", "-ec", lay_out.replace("/root-of-image", str(root)).replace(from_build, str(executable)))
        pathlib.Path(scratch).chmod(0o755)
        port = free_port()
        command = ["/usr/sbin/chroot", f"--userspec={user}", root]
        with process(*command, *entry, "demo", "--port", port, env=environment):
            until("the image's demo is ready", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
            run(*command, *health, "--port", port, env=environment)
            need(fetch(port, "/api/v1/flags/")[0] == 200, f"the empty image serves as {user}, and its health check passes")
            need((root / "cache").stat().st_uid == 65532, "its cache is its user's")
