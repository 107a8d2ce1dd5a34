"""Without a container runtime: the seccomp profile, and the Dockerfile."""
import json, os, pathlib, subprocess, tempfile

from common import ROOT, demo, fetch, free_port, need, process, run, until
from dockerfile import Build

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
            port, admin = free_port(), free_port()
            config.write_text(json.dumps({
                "documents": [str(ROOT / "src/demo/environment.json")], "cache_dir": f"{scratch}/cache", "traits": {"store": "disk"},
                "server": {"host": "127.0.0.1", "port": port}, "admin": {"port": admin},
            }))
            # Debian's own Python has the binding of libseccomp.
            command = ["/usr/bin/python3", "-c", UNDER_PROFILE, ROOT / "deploy/seccomp.json", executable, "serve", "--config", config]
            with process(*command, env={"EDGE_PROXY_DRIVER": driver}) as proxy:
                until("it serves under the profile", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
                need(all(fetch(port, "/api/v1/flags/")[0] == 200 for _ in range(100)), f"serves on {driver} under deploy/seccomp.json")
                errors = json.loads(fetch(admin, "/status.json")[1])["errors"]
                need(not errors, f"and logs no refused call {errors or ''}".strip())
                limited = pathlib.Path(f"/proc/{proxy.pid}/status").read_text()
                need("Seccomp:\t2" in limited, "and the kernel says that the filter is on")


LABELS = ["title", "description", "source", "documentation", "version", "revision", "created", "licenses"]


def image(executable):
    """The Dockerfile itself: its RUN lines in a debootstrap tree, then the image as a container would start it.

    IMAGE_PROFILE=dev builds in a tenth of the time.
    """
    text = (ROOT / "Dockerfile").read_text()
    arguments = {"EDGE_PROXY_GIT_SHA": "0123456789ab", "SOURCE_DATE_EPOCH": "1795651200", "EDGE_PROXY_CREATED": "2026-11-26T00:00:00Z",
                 "EDGE_PROXY_SOURCE": "https://example.com/edge-proxy"}
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as scratch:
        pathlib.Path(scratch).chmod(0o755)
        build = Build(scratch, arguments)
        profile = os.environ.get("IMAGE_PROFILE", "release")
        stage = build.run(text.replace("WORKDIR /src\n", f"WORKDIR /src\nENV PROFILE={profile}\n"), "scratch")
        root = stage.root
        need(all(stage.labels.get(f"org.opencontainers.image.{name}") for name in LABELS), "every label of OCI is set")
        entry, health = (json.loads(stage.settings[word].split("CMD ")[-1]) for word in ["ENTRYPOINT", "HEALTHCHECK"])
        user = stage.settings["USER"]
        files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
        need(files == {
            "edge-proxy", "usr/local/bin/edge-proxy", "usr/local/bin/edge-proxy-serve", "usr/local/bin/edge-proxy-render-config",
            "usr/share/edge-proxy/LICENSE", "usr/share/edge-proxy/THIRD-PARTY-LICENCES",
        }, "the image contains the executable, its names and licences, and nothing else")
        size = (root / "usr/local/bin/edge-proxy").stat().st_size
        print(f"the executable of the image has {size / 1e6:.1f} MB ({profile})")
        licences = (root / "usr/share/edge-proxy/THIRD-PARTY-LICENCES").read_text()
        need(all(name in licences for name in ["monoio ", "rustls ", "Apache License"]), "the licences are those of linked crates")

        def chroot(*command, user=user, **options):
            return process("/usr/sbin/chroot", f"--userspec={user}", root, *command, env=stage.environment, **options)

        for who, what in [(user, "its user"), ("1234:1234", "another user, as by --user")]:
            port = free_port()
            with chroot(*entry, "demo", "--port", port, user=who):
                until("the image's demo is ready", lambda: fetch(port, "/proxy/health/readiness")[0] == 200)
                run("/usr/sbin/chroot", f"--userspec={who}", root, *health, "--port", port, env=stage.environment)
                need(fetch(port, "/api/v1/flags/")[0] == 200, f"the empty image serves as {what}, and its health check passes")
            need(run("/usr/sbin/chroot", f"--userspec={who}", root, "edge-proxy", "--version", env=stage.environment).startswith("edge-proxy 0."),
                 "commands are found on PATH")
        version = run("/usr/sbin/chroot", f"--userspec={user}", root, "edge-proxy", "--version", env=stage.environment)
        need("(0123456789ab 2026-11-26, " in version, "--version has the commit and the date of the build arguments")
        refused = subprocess.run(["/usr/sbin/chroot", f"--userspec={user}", root, "edge-proxy-serve"], capture_output=True, env=stage.environment)
        need(refused.returncode == 64, "edge-proxy-serve is on PATH and acts by its name")
        need((root / "cache").stat().st_mode & 0o1777 == 0o1777, "any user may write the cache")
