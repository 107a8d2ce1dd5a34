"""CPU time of a request with kept traits, compared with `traits.store` `none` in the same run.

kept_traits.py BINARY [--seconds 1] [--rounds 7] [--page docs/traits.md]: two proxies on core 0, one with a store in
memory and one without. wrk on core 1 has 32 connections with one request in flight each, with the head of the Python
SDK, and loads one after the other, in each round without, with, with and without a store. The CPU time is that of all
threads of the process. Prints how much more a request takes with the store, the median over the rounds, and writes the
table of the page. Fails if a bound is exceeded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import documents
import heads
import load
import servers

# For more identities than a run makes, so that none is removed.
SETTINGS = {"identities_max": 2_000_000, "bytes_max": 1 << 30}
GET_NONE = "/api/v1/identities/?identifier=other-user"
GET_KEPT = "/api/v1/identities/?identifier=stays"
# Name; body and path of the requests to both proxies, or to each of them; the most that it may cost more.
# In each run another text is in the place of RUN, in each request another number in that of user-000000.
CASES = (
    ("`POST`, a new identity", documents.identity("RUN-user-000000"), None, 0.12),
    ("`POST`, one trait has a new value", documents.identity("changes", session="RUN-user-000000"), None, 0.12),
    ("`POST`, traits as they are kept", documents.identity("stays"), None, 0.06),
    ("`GET` by identifier, no traits are kept", None, GET_NONE, 0.08),
    ("`GET` by identifier with kept traits; without a store the `POST` with these traits", documents.identity("stays"), GET_KEPT, None),
)


class Pair:
    """The two proxies."""

    def __init__(self, binary, scratch):
        document = scratch / "heavy.json"
        document.write_text(documents.text(documents.document("heavy")))
        environments = [(documents.CLIENT_KEY, documents.SERVER_KEY, document)]
        self.scratch, self.runs = scratch, 0
        (scratch / "heads.txt").write_text("\n".join(heads.of("python")) + "\n")
        self.proxies = [
            servers.proxy(binary, scratch, environments, name=f"edge-proxy-{store}", traits={"store": store, **SETTINGS})
            for store in ("none", "memory")
        ]

    def cost(self, has_store, body, path, seconds):
        """Microseconds of CPU time of a request."""
        self.runs += 1
        server = self.proxies[has_store]
        environment = {"BENCH_KEY": documents.SERVER_KEY, "BENCH_HEADS": str(self.scratch / "heads.txt")}
        is_get = path and (has_store or not body)
        if is_get:
            environment["BENCH_PATH"] = path
        else:
            file = self.scratch / "body.json"
            file.write_text(documents.text(body).replace("RUN", f"run{self.runs:03}"))
            environment["BENCH_BODY"] = str(file)
        command = [str(part) for part in load.wrk(server, "flags" if is_get else "identities", seconds)]
        before = server.cpu_seconds()
        environment = {**os.environ, **environment}
        done = subprocess.run(command, capture_output=True, text=True, cwd=servers.ROOT, check=True, env=environment)
        result = json.loads(done.stdout.splitlines()[-1])
        if result["errors"] or result["not_200"]:
            raise load.WrongAnswer(f"{server.name}: {result}")
        return (server.cpu_seconds() - before) / result["requests"] * 1e6

    def compare(self, body, path, seconds, rounds):
        """Microseconds without and with a store, and the median of how much more it is with one."""
        self.cost(False, body, path, 1)
        self.cost(True, body, path, 1)
        sides = []
        for _ in range(rounds):
            costs = [self.cost(has_store, body, path, seconds) for has_store in (False, True, True, False)]
            sides.append(((costs[0] + costs[3]) / 2, (costs[1] + costs[2]) / 2))
        none, memory = (statistics.median(column) for column in zip(*sides, strict=True))
        return none, memory, statistics.median(memory / none for none, memory in sides) - 1


def write(page, rows):
    text = page.read_text()
    head, rest = text.split("<!-- traits-cpu -->\n")
    _, tail = rest.split("<!-- /traits-cpu -->")
    table = "| request | without | with | more | bound | |\n|---|---:|---:|---:|---:|---|\n" + "".join(rows)
    page.write_text(f"{head}<!-- traits-cpu -->\n{table}<!-- /traits-cpu -->{tail}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    rows, exceeded = [], []
    with tempfile.TemporaryDirectory(prefix="edge-proxy-kept-") as directory:
        pair = Pair(arguments.binary.resolve(), Path(directory))
        try:
            for name, body, path, most in CASES:
                none, memory, more = pair.compare(body, path, arguments.seconds, arguments.rounds)
                verdict = "" if most is None else "kept" if more <= most else "**exceeded**"
                bound = "" if most is None else f"{most:.0%}".replace("%", " %")
                rows.append(f"| {name} | {none:.1f} µs | {memory:.1f} µs | {more * 100:+.1f} % | {bound} | {verdict} |\n")
                print(rows[-1], end="", flush=True)
                if verdict == "**exceeded**":
                    exceeded.append(name)
        finally:
            for server in pair.proxies:
                server.stop()
    if arguments.page:
        write(arguments.page, rows)
    if exceeded:
        sys.exit(f"exceeded: {'; '.join(exceeded)}")


if __name__ == "__main__":
    main()
