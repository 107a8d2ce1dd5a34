"""The cost of one evaluation with its JSON: `make bench-engine`.

engine.py [DOCUMENT BODY ...]: prints one table per question: the profiles beside the PyPI engine and
the official crate, how cost grows with segments, overrides and features, and what compiling a large
document takes. Times are the best of ten rounds on this machine; instructions are callgrind's and do
not depend on how busy it is. Extra pairs of files become profiles of the table.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import documents
from servers import ROOT

BINARY = ROOT / "target/engine-bench/release/engine-bench"
FEW, MANY = 5, 105


def ask(what, document, body, times):
    command = [str(BINARY), what, str(document), str(body), str(times)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def nanoseconds(what, document, body, times):
    return float(ask(what, document, body, times).split()[0])


def instructions(what, document, body):
    """Of one evaluation; each of the ten rounds runs `times`."""
    counts = []
    for times in (FEW, MANY):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(BINARY), what]
        done = subprocess.run(
            [*command, str(document), str(body), str(times)], capture_output=True, text=True, check=True
        )
        counts.append(int(re.search(r"Collected : (\d+)", done.stderr)[1]))
    return (counts[1] - counts[0]) / ((MANY - FEW) * 10)


def pypi(document, body):
    """Nanoseconds of the PyPI engine and orjson for the same work."""
    import orjson
    from flag_engine.engine import get_evaluation_result
    from flagsmith.mappers import map_context_and_identity_data_to_context, map_environment_document_to_context

    context = map_environment_document_to_context(json.loads(document.read_bytes()))
    sent = json.loads(body.read_bytes())
    traits = {trait["trait_key"]: trait["trait_value"] for trait in sent["traits"]}
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter_ns()
        with_identity = map_context_and_identity_data_to_context(context, sent["identifier"], traits)
        orjson.dumps(list(get_evaluation_result(with_identity)["flags"].values()))
        best = min(best, time.perf_counter_ns() - start)
    return best


def profiles(cases):
    print("| profile | answer, bytes | ns | of it copying | instructions | PyPI | official crate |")
    print("|---|---|---|---|---|---|---|")
    for name, document, body in cases:
        ours = ask("ours", document, body, 3000).split()
        copying = nanoseconds("copy", document, body, 3000)
        theirs = nanoseconds("official", document, body, 20) / float(ours[0])
        python = pypi(document, body) / float(ours[0])
        count = instructions("ours", document, body)
        print(
            f"| {name} | {ours[1]} | {float(ours[0]):.0f} | {copying:.0f} | {count:.0f} "
            f"| {python:.0f} times | {theirs:.0f} times |",
            flush=True,
        )


def grown_segments(count):
    """Segments of EQUAL and IN on a few traits, each overriding every feature of ten. One in 100 matches."""
    document = documents.document("heavy", features=10, segments=0, conditions=0)
    source = documents.Source(5)
    for number in range(count):
        country = ",".join(["NL", "FR", "DE", "IT"][number % 4 :])
        rule = {
            "type": "ALL",
            "rules": [],
            "conditions": [
                {"property_": "plan", "operator": "EQUAL", "value": "enterprise-gold" if number % 5 == 0 else "free"},
                {"property_": "country", "operator": "IN", "value": country},
                {"property_": "team", "operator": "IN", "value": f"team-{number % 16},team-{(number + 1) % 16}"},
            ],
        }
        states = [documents.state(source, feature, f"seg{number}", source.below(count)) for feature in range(10)]
        rules = [{"type": "ALL", "conditions": [], "rules": [rule]}]
        segment = {"id": 300 + number, "name": f"s{number}", "rules": rules, "feature_states": states}
        document["project"]["segments"].append(segment)
    return document


def growth(folder, body):
    shapes = {
        "15 segments": grown_segments(15),
        "1,500 segments": grown_segments(1500),
        "no overrides": documents.document("simple"),
        "100,000 overrides": documents.document("simple", overrides=100_000),
        "50 features": documents.document("simple"),
        "1,000 features": documents.document("simple", features=1000),
    }
    costs = {}
    for name, document in shapes.items():
        path = folder / "grown.json"
        path.write_text(documents.text(document))
        nanos, size = ask("ours", path, body, 2000).split()
        copying = nanoseconds("copy", path, body, 2000)
        # Compiling the largest under callgrind would take minutes.
        count = instructions("ours", path, body) if path.stat().st_size < 10**7 else float("nan")
        costs[name] = (float(nanos), int(size), count, copying)
    print("\n| growth | ns | ns | time | of it copying | instructions | answer, bytes |\n|---|---|---|---|---|---|---|")
    names = list(costs)
    for small, large in zip(names[::2], names[1::2], strict=True):
        a, b = costs[small], costs[large]
        time, size, count, copying = (y / x for x, y in zip(a, b, strict=True))
        print(
            f"| {small} -> {large} | {a[0]:.0f} | {b[0]:.0f} | {time:.2f} times | {copying:.2f} times "
            f"| {count:.2f} times | {size:.2f} times |",
            flush=True,
        )


def main():
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed (Debian: apt install valgrind)")
    with tempfile.TemporaryDirectory(prefix="edge-proxy-engine-") as directory:
        folder = Path(directory)
        for kind in ("simple", "heavy"):
            (folder / f"{kind}.json").write_text(documents.text(documents.document(kind)))
        for name, body in documents.requests().items():
            (folder / f"{name}.body.json").write_text(documents.text(body))
        cases = [
            ("simple", folder / "simple.json", folder / "simple.body.json"),
            ("heavy, all match", folder / "heavy.json", folder / "heavy-match.body.json"),
            ("heavy, none match", folder / "heavy.json", folder / "heavy-none.body.json"),
        ]
        more = [Path(path) for path in sys.argv[1:]]
        cases += [(document.stem, document, body) for document, body in zip(more[::2], more[1::2], strict=True)]
        profiles(cases)
        growth(folder, folder / "heavy-match.body.json")
        big = folder / "big.json"
        big.write_text(documents.text(documents.document("simple", overrides=50_000)))
        print("\ncompiling 50,000 overrides:", ask("memory", big, folder / "simple.body.json", 1))
    print(f"\n{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
