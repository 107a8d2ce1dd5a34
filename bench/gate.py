"""Instruction counts of fixed work, compared with the committed baseline: `make bench-gate`.

gate.py            counts every case and fails if one costs over 3 % more than bench/baseline.json
gate.py --write    counts and writes the baseline (`make bench-baseline`), when a cost is intended
Counts do not depend on how busy the machine is. They do depend on the compiler and, through code
that picks instructions at run time, on the processor: a baseline of others is not compared, and
that is said.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import documents
from servers import ROOT

BASELINE = ROOT / "bench/baseline.json"
SHARE_MAX = 0.03
FEW, MANY = 20, 220
FEW_COMPILES, MANY_COMPILES = 1, 4


def build():
    command = ["cargo", "build", "--locked", "--profile", "quick", "--bench", "counts", "--message-format", "json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    built = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "counts"]
    return built[-1]


def prepare(directory):
    for kind in ("simple", "heavy", "splits", "wide", "overrides"):
        shape = {"overrides": 500} if kind == "overrides" else {}
        document = documents.document("simple" if kind == "overrides" else kind, **shape)
        (directory / f"{kind}.json").write_text(documents.text(document))
    for name, body in documents.requests().items():
        (directory / f"{name}.body.json").write_text(documents.text(body))


def instructions(program, case, times, directory):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, case, str(times), directory]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case}: {done.stderr}{done.stdout}")
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def count(program, case, directory):
    """Instructions of one request, or of one compilation."""
    few, many = (FEW_COMPILES, MANY_COMPILES) if case.startswith("compile") else (FEW, MANY)
    more = instructions(program, case, many, directory) - instructions(program, case, few, directory)
    return round(more / (many - few))


def where():
    """Properties of the machine that affect the counts."""
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    flags = set(re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    level = "avx2" if "avx2" in flags else "sse4.2" if "sse4_2" in flags else os.uname().machine
    return {"rustc": rustc, "processor": level}


def main():
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed (Debian: apt install valgrind)")
    program = build()
    cases = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    with tempfile.TemporaryDirectory(prefix="edge-proxy-gate-") as directory:
        prepare(Path(directory))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            counts = dict(zip(cases, pool.map(lambda case: count(program, case, directory), cases), strict=True))
    here = where()
    if "--write" in sys.argv:
        BASELINE.write_text(json.dumps({**here, "instructions": counts}, indent=2) + "\n")
    baseline = json.loads(BASELINE.read_text())
    known = baseline["instructions"]
    comparable = {key: baseline[key] for key in here} == here
    print(f"{'case':<28}{'instructions':>14}{'baseline':>14}{'change':>9}")
    worse = []
    for case in cases:
        before = known.get(case)
        change = counts[case] / before - 1 if before else None
        print(f"{case:<28}{counts[case]:>14,}{before or '-':>14}{'new' if change is None else f'{change:+.1%}':>9}")
        if change is None or change > SHARE_MAX:
            worse.append(case)
    if not comparable:
        print(f"NOT COMPARED: the baseline is of {baseline['rustc']}, {baseline['processor']}; here it is {here}.")
        print("Write one here with `make bench-baseline` on a clean tree, then measure the change against it.")
    elif worse:
        sys.exit(f"over {SHARE_MAX:.0%} more than the baseline, or not in it: {', '.join(worse)}. If this is intended: make bench-baseline")


if __name__ == "__main__":
    main()
