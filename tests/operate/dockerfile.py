"""Runs the Dockerfile without a Docker engine: each RUN in a debootstrap tree, each COPY by cp.

FROM an image of Debian is the minimal Debian of scripts/try-package; its Rust is the machine's own, whose folders
are mounted into the tree. FROM scratch is an empty folder. What Docker adds (namespaces, layers) is not imitated.
"""
import contextlib, json, os, pathlib, re, shlex, shutil, subprocess

from common import ROOT

RUST = [pathlib.Path(os.environ.get(name, pathlib.Path.home() / default))
        for name, default in [("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")]]


def instructions(text):
    """(word, rest) of each instruction, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line.strip()]


class Stage:
    def __init__(self, base, folder):
        self.base, self.root = base, folder
        self.directory, self.environment, self.labels, self.settings = "/", {}, {}, {}
        self.shell = ["/bin/sh", "-c"]
        self.root.mkdir()

    def path(self, inside):
        return self.root / str(pathlib.PurePosixPath(self.directory) / inside).lstrip("/")

    def expand(self, text):
        """Variables, with `${NAME:+text}`."""
        names = self.environment
        text = re.sub(r"\$\{(\w+):\+((?:[^{}]|\$\{\w+\})*)\}", lambda m: m[2] if names.get(m[1]) else "", text)
        return re.sub(r"\$\{(\w+)\}", lambda m: names.get(m[1], ""), text)

    @contextlib.contextmanager
    def mounted(self):
        mounts = [("proc", "/proc", ["-t", "proc", "proc"]), ("dev", "/dev", ["--rbind", "/dev"])]
        mounts += [(folder, folder, ["--bind", str(folder)]) for folder in RUST]
        done = []
        try:
            for _, inside, arguments in mounts:
                target = self.root / str(inside).lstrip("/")
                target.mkdir(parents=True, exist_ok=True)
                subprocess.run(["mount", *arguments, target], check=True)
                done.append(target)
                subprocess.run(["mount", "--make-rslave", target], check=False)
            yield
        finally:
            for target in reversed(done):
                subprocess.run(["umount", "--recursive", "--lazy", target], check=True)

    def run(self, command):
        environment = {
            **{name: value for name, value in os.environ.items() if "proxy" in name.lower() or name.startswith(("CARGO", "SSL_", "PIP"))},
            "HOME": "/root", "RUSTUP_HOME": str(RUST[0]), "CARGO_HOME": str(RUST[1]),
            "PATH": f"{RUST[1]}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **self.environment,
        }
        with self.mounted():
            inside = f"cd {shlex.quote(self.directory)} && exec \"$@\""
            subprocess.run(["chroot", self.root, "/bin/sh", "-c", inside, "sh", *self.shell, command],
                           env=environment, check=True)


class Build:
    def __init__(self, scratch, arguments):
        self.scratch, self.arguments, self.stages = pathlib.Path(scratch), arguments, {}

    def context(self):
        """The files that Docker would send: those of git, which .dockerignore does not name."""
        ignored = [line.strip().removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines()]
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
            if not any(name == entry or name.startswith(f"{entry}/") for entry in ignored) and (ROOT / name).is_file():
                yield name

    def copy(self, stage, rest):
        words = rest.split()
        source_stage = next((word[7:] for word in words if word.startswith("--from=")), None)
        *sources, target = [word for word in words if not word.startswith("--")]
        into = stage.path(target)
        if source_stage is None:
            for name in self.context():
                for source in sources:
                    if source == "." or name == source or name.startswith(source.rstrip("/") + "/"):
                        place = into / (name if source == "." else pathlib.Path(name).name) if target.endswith(("/", ".")) else into
                        place.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy2(ROOT / name, place)
            return
        for source in sources:
            command = "cp -a {0}/. {1}" if source.endswith("/") else "cp -a {0} {1}"
            into.parent.mkdir(parents=True, exist_ok=True)
            found = f"{shlex.quote(str(self.stages[source_stage].root))}{source}"
            subprocess.run(["sh", "-c", command.format(found, shlex.quote(str(into)))], check=True)

    def stage(self, rest):
        base, *name = rest.split(" AS ")
        stage = Stage(base, self.scratch / f"stage-{len(self.stages)}")
        self.stages[name[0] if name else base] = stage
        if base.startswith("rust:"):
            debian = ROOT / "target/debian.tar"
            subprocess.run(["tar", "-C", stage.root, "-xf", debian], check=True)
            shutil.copy("/etc/resolv.conf", stage.root / "etc/resolv.conf")
            for configuration in ["/etc/apt", "/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"]:
                if pathlib.Path(configuration).is_dir():
                    self.prepared(stage, configuration[1:])
                    subprocess.run(["cp", "-aT", configuration, f"{stage.root}{configuration}"], check=True)
            # What the image has besides Rust (rust:*-slim-*).
            stage.run("apt-get update && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev wget")
            # What `dist-tools` would build again: the machine's own, if they are there.
            if (ROOT / "target/tools").is_dir():
                subprocess.run(["cp", "-aT", ROOT / "target/tools", self.prepared(stage, "src/target/tools")], check=True)
        return stage

    @staticmethod
    def prepared(stage, inside):
        path = stage.root / inside
        path.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, text, wanted):
        """The stages up to the wanted one; stages of other images (busybox) are passed over."""
        stage = None
        for word, rest in instructions(text):
            if word == "FROM":
                if stage is not None and stage.base == wanted:
                    break
                stage = self.stage(rest)
            elif not (stage.base.startswith("rust:") or stage.base == "scratch"):
                continue
            elif word == "RUN":
                print(f"RUN {rest[:100]}", flush=True)
                stage.run(rest)
            elif word == "COPY":
                self.copy(stage, rest)
            elif word == "WORKDIR":
                stage.directory = rest
                stage.path("").mkdir(parents=True, exist_ok=True)
            elif word == "SHELL":
                stage.shell = json.loads(rest)
            elif word in ("ARG", "ENV", "LABEL"):
                for pair in shlex.split(rest):
                    name, _, value = pair.partition("=")
                    value = stage.expand(value)
                    if word == "LABEL":
                        stage.labels[name] = value
                    else:
                        given = self.arguments.get(name) if word == "ARG" else None
                        stage.environment[name] = given if given is not None else value
            else:
                stage.settings[word] = rest
        return stage
