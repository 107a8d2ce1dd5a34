"""CPU time of a request with kept traits, compared with `traits.store` `none` in the same run.

kept_traits.py BINARY [SECONDS]: two proxies on core 0, one with a store in memory and one without; wrk on core 1
puts the same load on them in turn, several times, each time without, with, with and without. Prints the CPU time of
a request, that of the store thread included, and how much more it is with the store: the median over the rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import documents
import load
import servers

ROUNDS = 7
# Name, wrk script, body, path, and the most that it may cost more.
CASES = (
    ("POST, traits of new identities", "identities", documents.identity("user-000000"), None, 0.12),
    ("POST, one trait differs each time", "identities", documents.identity("changes", session="user-000000"), None, 0.12),
    ("POST, traits as kept", "identities", documents.identity("stays"), None, 0.06),
    ("GET, nothing kept but the identity", "flags", None, "/api/v1/identities/?identifier=other-user", 0.08),
)


def measure(server, script, seconds):
    command = [str(part) for part in load.wrk(server, script, seconds)]
    before = server.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, cwd=servers.ROOT, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if result["errors"] or result["not_200"]:
        raise load.WrongAnswer(f"{server.name}: {result}")
    return (server.cpu_seconds() - before) / result["requests"] * 1e6


def main():
    binary, seconds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    os.environ["BENCH_KEY"] = documents.SERVER_KEY
    with tempfile.TemporaryDirectory(prefix="edge-proxy-kept-") as directory:
        scratch = Path(directory)
        document = scratch / "heavy.json"
        document.write_text(documents.text(documents.document("heavy")))
        environments = [(documents.CLIENT_KEY, documents.SERVER_KEY, document)]
        pair = [
            servers.proxy(binary, scratch, environments, name=f"edge-proxy-{store}", traits={"store": store})
            for store in ("none", "memory")
        ]
        try:
            for name, script, body, path, most in CASES:
                os.environ.pop("BENCH_PATH", None)
                if path:
                    os.environ["BENCH_PATH"] = path
                if body:
                    file = scratch / "body.json"
                    file.write_text(documents.text(body))
                    os.environ["BENCH_BODY"] = str(file)
                rounds = []
                for _ in range(ROUNDS):
                    costs = [measure(pair[which], script, seconds) for which in (0, 1, 1, 0)]
                    rounds.append(((costs[0] + costs[3]) / 2, (costs[1] + costs[2]) / 2))
                none, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
                more = statistics.median(memory / none for none, memory in rounds) - 1
                print(f"{name:<38}{none:>8.2f} µs{memory:>8.2f} µs{more:>+8.1%}  (at most {most:.0%})", flush=True)
        finally:
            for server in pair:
                server.stop()


if __name__ == "__main__":
    main()
