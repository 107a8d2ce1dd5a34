#!/usr/bin/env python3
"""Mutation tests: `run.py MINUTES`, from `make mutants`.

cargo-mutants lists the mutants. A fixed sample of them is built into one copy of the sources, each behind a switch
(the environment variable EDGE_PROXY_MUTANT, its number), so that one build serves all of them and a mutant takes only
the time of its tests: first the unit tests, then the wire tests that `tests.tsv` names for its file, then some seeds of
the simulation. The first test that fails ends it. Verdicts are kept in `verdicts.tsv`; a run goes on where the last one
stopped, and a mutant runs again once its function has changed. `AGAIN=` selects kept verdicts that are to be judged
again, such as `AGAIN=missed`.
"""

import collections
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TREE = ROOT / "target/mutants/tree"
BUILD = ROOT / "target/mutants/build"
CARGO_MUTANTS = ROOT / "target/tools/bin/cargo-mutants"
PAGE = ROOT / "docs/reliability.md"
VERDICTS, REASONS, TESTS = HERE / "verdicts.tsv", HERE / "survivors.tsv", HERE / "tests.tsv"
CARGO = os.environ.get("CARGO", "cargo")

MODULES = ("engine", "http", "handlers", "supervisor", "upstream", "storage")
SAMPLE = int(os.environ.get("SAMPLE", "48"))
SEED = "2026"
# For the unit tests of a mutant, for its wire tests, and for the simulation, seconds.
TIMEOUT = 120
# A test that fails at times without a mutant does not judge one.
ATTEMPTS = 3
JUDGED_MIN = 40
CAUGHT_MIN = 0.9

SWITCH = """//! Which mutant is switched on.
use std::sync::OnceLock;

#[must_use]
pub fn is_on(number: u32) -> bool {
    static NUMBER: OnceLock<u32> = OnceLock::new();
    *NUMBER.get_or_init(|| std::env::var("EDGE_PROXY_MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0))
        == number
}
"""


class Source:
    """The text of a file, and the offsets of lines and columns."""

    def __init__(self, path):
        self.text = (ROOT / path).read_text()
        self.starts = [0]
        for line in self.text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def offset(self, place):
        return self.starts[place["line"] - 1] + place["column"] - 1

    def span(self, span):
        return self.offset(span["start"]), self.offset(span["end"])

    def body(self, span):
        """The extent of a function's body, with its braces, from that of the function."""
        start, end = self.span(span)
        depth, at = 0, start
        while at < end:
            character = self.text[at]
            if self.text.startswith("//", at):
                at = self.text.index("\n", at)
                continue
            if character == '"':  # In an attribute.
                at = self.text.index('"', at + 1)
            elif character in "([":
                depth += 1
            elif character in ")]":
                depth -= 1
            elif character == "{" and depth == 0:
                return at, end
            at += 1
        raise SystemExit(f"no body: {self.text[start:start + 80]}")


class Mutant:
    """A change of one function. Its key has no line number, so that edits elsewhere do not change it."""

    def __init__(self, entry, source):
        self.file, self.function, self.source = entry["file"], entry["function"], source
        self.module = self.file.split("/")[1]
        self.replacement = entry["replacement"]
        self.start, self.end = source.span(entry["span"])
        self.body = source.body(self.function["span"])
        self.key = re.sub(r"^(\S+?):\d+:\d+: ", r"\1: ", entry["name"])
        self.number = 0

    def signature(self):
        return self.source.text[self.source.span(self.function["span"])[0] : self.body[0]]

    def function_hash(self):
        start, end = self.source.span(self.function["span"])
        return hashlib.sha256(self.source.text[start:end].encode()).hexdigest()[:12]

    def is_switchable(self):
        """Functions of the compiler cannot read a switch; the bodies of one `impl` type would be two types."""
        signature = self.signature()
        is_fixed = re.search(r"\bconst\s+(unsafe\s+)?fn\b", signature) or re.search(r"->[^{]*\bimpl\b", signature)
        return not is_fixed and self.body[0] <= self.start and self.end <= self.body[1]

    def mutated(self):
        """The body with the change."""
        text = self.source.text
        return text[self.body[0] : self.start] + self.replacement + text[self.end : self.body[1]]


def listed():
    """All mutants of the modules that a switch can select, by their keys."""
    command = [CARGO_MUTANTS, "mutants", "--list", "--json"]
    for module in MODULES:
        command += ["--file", f"src/{module}/**"]
    entries = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    sources, mutants, seen = {}, [], collections.Counter()
    for entry in entries:
        if entry["function"] is None:
            continue
        source = sources.setdefault(entry["file"], Source(entry["file"]))
        mutant = Mutant(entry, source)
        seen[mutant.key] += 1
        if seen[mutant.key] > 1:
            mutant.key += f" #{seen[mutant.key]}"
        mutants.append(mutant)
    return mutants


def sampled(mutants):
    """The same mutants in each run: those with the smallest digests of their keys, in turns of the modules."""
    chosen, taken = [], []
    for module in MODULES:
        of_module = [mutant for mutant in mutants if mutant.module == module and mutant.is_switchable()]
        of_module.sort(key=lambda mutant: hashlib.sha256((SEED + mutant.key).encode()).digest())
        taken.append(of_module[:SAMPLE])
    for number in range(SAMPLE):
        chosen += [of_module[number] for of_module in taken if number < len(of_module)]
    # A function inside another one would be changed in two copies.
    spans = collections.defaultdict(set)
    for mutant in chosen:
        spans[mutant.file].add(mutant.body)
    inside = lambda body, file: any(one[0] < body[0] and body[1] <= one[1] for one in spans[file] if one != body)
    chosen = [mutant for mutant in chosen if not inside(mutant.body, mutant.file)]
    for number, mutant in enumerate(chosen, 1):
        mutant.number = number
    return chosen


# --- verdicts ---


class Verdicts:
    """The kept table: key -> (verdict, test that caught it, seconds, hash of the function)."""

    def __init__(self):
        self.rows = {}
        if VERDICTS.exists():
            for line in VERDICTS.read_text().splitlines()[1:]:
                key, *row = line.split("\t")
                self.rows[key] = row

    def of(self, mutant):
        row = self.rows.get(mutant.key)
        return row if row and row[3] == mutant.function_hash() else None

    def set(self, mutant, verdict, by, seconds):
        self.rows[mutant.key] = [verdict, by, f"{seconds:.0f}", mutant.function_hash()]
        lines = ["\t".join([key, *row]) for key, row in sorted(self.rows.items())]
        VERDICTS.write_text("\n".join(["mutant\tverdict\tby\tseconds\tfunction", *lines]) + "\n")

    def forget_others(self, mutants):
        keys = {mutant.key for mutant in mutants}
        self.rows = {key: row for key, row in self.rows.items() if key in keys}


def reasons():
    """Survivors that no test can catch: key -> reason."""
    rows = [line.split("\t") for line in REASONS.read_text().splitlines() if line and not line.startswith("#")]
    return {key: reason for key, reason in rows}


# --- the build ---


def write(path, data):
    """Writes a file only if it changes, so that the build is incremental."""
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tree(mutants):
    """The copy of the repository, with these mutants behind switches."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    by_file = collections.defaultdict(lambda: collections.defaultdict(list))
    for mutant in mutants:
        by_file[mutant.file][mutant.body].append(mutant)
    for name in filter(None, names):
        origin = ROOT / name
        if not origin.is_file():
            continue
        data = origin.read_bytes()
        if name in by_file:
            text = data.decode()
            for body, of_body in sorted(by_file[name].items(), reverse=True):
                branches = [f"if crate::mutation::is_on({mutant.number}) {mutant.mutated()} else " for mutant in of_body]
                text = text[: body[0]] + "{ " + "".join(branches) + text[body[0] : body[1]] + " }" + text[body[1] :]
            data = text.encode()
        elif name == "src/lib.rs":
            data = data.replace(b"pub mod metrics;", b"pub mod metrics;\npub mod mutation;")
        elif name == "tests/support/proxy.rs":
            data = data.replace(b'"LLVM_PROFILE_FILE"', b'"LLVM_PROFILE_FILE", "EDGE_PROXY_MUTANT"')
            assert b"EDGE_PROXY_MUTANT" in data, "the harness passes the switch on"
        write(TREE / name, data)
        if origin.stat().st_mode & 0o111:
            (TREE / name).chmod(0o755)
    write(TREE / "src/mutation.rs", SWITCH.encode())
    if not (TREE / ".venv").exists() and (ROOT / ".venv").exists():
        (TREE / ".venv").symlink_to(ROOT / ".venv")


def build():
    """Builds the tests. Returns their executables by target, and the errors: (file, line) each."""
    command = [CARGO, "test", "--locked", "--no-run", "--message-format", "json", "--target-dir", BUILD]
    command += ["--lib", "--test", "integration", "--test", "simulation"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    executables, errors = {}, []
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("executable") and message["profile"]["test"]:
            executables[message["target"]["name"]] = message["executable"]
        if message.get("reason") == "compiler-message" and message["message"]["level"] == "error":
            spans = [span for span in message["message"]["spans"] if span["is_primary"]]
            errors += [(span["file_name"], span["byte_start"], message["message"]["message"]) for span in spans]
    if done.returncode and not errors:
        sys.exit(f"the copy does not build:\n{done.stderr[-3000:]}")
    return executables, errors


def unviable(mutants, errors):
    """The mutants whose branch of the copy has an error."""
    texts, found = {}, {}
    for file, at, message in errors:
        text = texts.setdefault(file, (TREE / file).read_bytes())
        before = text[:at]
        # The branch that the error is in: the last switch before it, unless the original body stands between.
        switches = list(re.finditer(rb"crate::mutation::is_on\((\d+)\) ", before))
        number = int(switches[-1][1]) if switches else 0
        of_number = [mutant for mutant in mutants if mutant.number == number and mutant.file == file]
        if not of_number:
            sys.exit(f"the copy does not build: {file}: {message}")
        found[of_number[0].key] = (of_number[0], message)
    return list(found.values())


def built(mutants, verdicts):
    """Builds until all mutants that are left compile."""
    while True:
        write_tree(mutants)
        executables, errors = build()
        if not errors:
            return mutants, executables
        bad = unviable(mutants, errors)
        for mutant, message in bad:
            print(f"unviable  {mutant.key}: {message.splitlines()[0]}", flush=True)
            verdicts.set(mutant, "unviable", message.splitlines()[0].replace("\t", " "), 0)
        keys = {mutant.key for mutant, _ in bad}
        mutants = [mutant for mutant in mutants if mutant.key not in keys]


# --- the tests ---


def stages(file):
    """The test runs that judge a mutant in this file: (target, filters)."""
    rows = [line.split("\t") for line in TESTS.read_text().splitlines() if line and not line.startswith("#")]
    row = max((row for row in rows if file.startswith(row[0])), key=lambda row: len(row[0]))
    runs = [("edge_proxy", row[1].split()), ("integration", row[2].split())]
    return runs + ([("simulation", ["seeds_keep_all_promises"])] if row[3] else [])


def run_tests(executable, filters, number, seconds):
    """None if all tests pass, the first that failed, or "timeout"."""
    environment = {"EDGE_PROXY_SHARED": str(ROOT / "../shared"), **os.environ}
    environment |= {"EDGE_PROXY_MUTANT": str(number), "SEEDS": "2"}
    skipped = [word for name in filters if name.startswith("!") for word in ("--skip", name[1:])]
    filters = [name for name in filters if not name.startswith("!")]
    command = ["nice", "-n", "10", executable, "--test-threads", os.environ.get("MUTANTS_THREADS", "4"), *filters, *skipped]
    process = subprocess.Popen(
        command, cwd=TREE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    )
    late = threading.Event()

    def end():
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    failed, ended = None, False
    try:
        for line in process.stdout:
            found = re.match(r"test (\S+).* FAILED$", line)
            if found:
                failed = found[1]
                break
            ended = ended or line.startswith("test result: ok")
    finally:
        timer.cancel()
        # The process group is this run's own: the test executable and the proxies it started.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.stdout.close()
        process.wait()
    if failed:
        return failed
    if late.is_set():
        return "timeout"
    return None if ended else "the process ended"


class Judge:
    """Judges mutants by the test executables of one build."""

    def __init__(self, executables):
        self.executables = executables
        self.seconds_without = {}

    def fails_for(self, executable, test, number):
        """Whether this test fails with the mutant again, and passes without: the machine may be busy."""
        only = ["--exact", test]
        return run_tests(executable, only, number, TIMEOUT) and not run_tests(executable, only, 0, TIMEOUT)

    def is_slow(self, executable, filters):
        """Whether the tests are slow, or fail, without a mutant: then a timeout says nothing."""
        key = (executable, *filters)
        if key not in self.seconds_without:
            started = time.monotonic()
            failed = run_tests(executable, filters, 0, TIMEOUT)
            self.seconds_without[key] = TIMEOUT if failed else time.monotonic() - started
        return self.seconds_without[key] > TIMEOUT / 2

    def stage(self, target, filters, number):
        """None, or how these tests find the mutant. "unclear" if that cannot be said."""
        executable = self.executables[target]
        for _ in range(ATTEMPTS):
            failed = run_tests(executable, filters, number, TIMEOUT)
            if failed == "timeout":
                return "unclear" if self.is_slow(executable, filters) else failed
            if failed is None or " " in failed or self.fails_for(executable, failed, number):
                return failed
        return "unclear"

    def judge(self, mutant):
        """The verdict and the test that led to it."""
        for target, filters in stages(mutant.file):
            found = self.stage(target, filters, mutant.number)
            if found:
                return (found if found in ("timeout", "unclear") else "caught"), f"{target} {found}"
        return "missed", ""


# --- the report ---


def table(mutants, verdicts):
    """The rows of the docs and whether enough were caught."""
    known = reasons()
    rows = ["| module | sample | not run yet | unviable | caught | by a timeout | missed | caught of viable |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    total, holds = collections.Counter(), True
    for module in (*MODULES, None):
        count = collections.Counter()
        for mutant in mutants:
            row = verdicts.of(mutant)
            if mutant.module == module:
                count[row[0] if row else "not run"] += 1
        if module:
            total += count
        count = count if module else total
        viable = count["caught"] + count["timeout"] + count["missed"]
        share = (count["caught"] + count["timeout"]) / max(viable, 1)
        name = f"`{module}`" if module else "all"
        # A part of the sample says little.
        caught_share = "" if count["not run"] else f"{share:.0%}"
        rows.append(
            f"| {name} | {viable + count['unviable'] + count['not run']} | {count['not run']} | {count['unviable']} | "
            f"{count['caught'] + count['timeout']} | {count['timeout']} | {count['missed']} | {caught_share} |"
        )
        judged = viable + count["unviable"]
        holds = holds and judged >= JUDGED_MIN and share >= CAUGHT_MIN if module else holds
    missed = [mutant for mutant in mutants if (verdicts.of(mutant) or [""])[0] == "missed"]
    if missed:
        rows += ["", "| survivor | reason |", "|---|---|"]
        escape = lambda text: text.replace("|", "\\|")
        rows += [f"| `{escape(mutant.key)}` | {known.get(mutant.key, 'no test yet')} |" for mutant in missed]
    unexplained = [mutant.key for mutant in missed if mutant.key not in known]
    return "\n".join(rows) + "\n", holds and not unexplained and not total["not run"]


def write_page(text):
    page = PAGE.read_text()
    head, rest = page.split("<!-- mutants -->\n", 1)
    _, tail = rest.split("<!-- /mutants -->", 1)
    PAGE.write_text(f"{head}<!-- mutants -->\n{text}<!-- /mutants -->{tail}")


def main():
    until = time.monotonic() + float(sys.argv[1]) * 60
    again = os.environ.get("AGAIN", "").split(",")
    mutants, verdicts = sampled(listed()), Verdicts()
    verdicts.forget_others(mutants)
    has_run = lambda mutant: verdicts.of(mutant) and verdicts.of(mutant)[0] not in again
    is_viable = lambda mutant: (verdicts.of(mutant) or [""])[0] != "unviable"
    pending = [mutant for mutant in mutants if not has_run(mutant)]
    print(f"{len(mutants)} mutants, {len(pending)} to run", flush=True)
    if pending:
        alive, executables = built([mutant for mutant in mutants if is_viable(mutant)], verdicts)
        pending = [mutant for mutant in pending if mutant in alive]
        judge = Judge(executables)
        for mutant in pending:
            if time.monotonic() > until:
                break
            started = time.monotonic()
            verdict, by = judge.judge(mutant)
            seconds = time.monotonic() - started
            # Its tests are slow, or fail at times, without it too: it is judged on a machine with less to do.
            if verdict != "unclear":
                verdicts.set(mutant, verdict, by, seconds)
            print(f"{verdict:9} {mutant.key}  [{by}, {seconds:.0f} s]", flush=True)
    text, holds = table(mutants, verdicts)
    write_page(text)
    print(text)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
