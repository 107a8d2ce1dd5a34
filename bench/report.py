"""From a run's raw.csv to its summary, its plots and the README's section.

report.py [RUN]           writes summary.md and the plots of RUN (default: the newest)
report.py --readme        also writes the README's section between its bench markers
report.py --check         ends with 1 if that section is not what the newest run says
"""

import csv
import re
import statistics
import sys
from pathlib import Path

import http2
import plot

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "bench/runs"
BEGIN, END = "<!-- bench:begin (written by `make readme`) -->", "<!-- bench:end -->"
SERVERS = ("floor", "edge-proxy", "nginx", "axum", "python")
# Rows `NAME-gzip` are what clients send by default; `NAME` is the same without compression.
TITLES = {
    "flags-simple": "simple: GET flags",
    "identities-simple": "simple: POST identities",
    "identities-get": "simple: GET identities",
    "flags-heavy": "heavy: GET flags",
    "identities-heavy-match": "heavy: POST identities, all segments match",
    "identities-heavy-none": "heavy: POST identities, none match",
    # Runs before 2026-11-27.
    "identities-heavy": "heavy: POST identities, the same request again and again",
    "identities-heavy-varied": "heavy: POST identities, new identifier each",
    "identities-splits": "50 multivariate features: POST identities",
    "ofrep-heavy": "heavy: OFREP, all flags",
    "document-heavy": "heavy: environment-document",
    "identities-wide": "1,000 features: GET identities",
    "document-wide": "1,000 features: environment-document",
    "flags-one": "simple: one flag (under 200 B)",
    "identities-500-overrides": "500 overrides: POST identities",
    "identities-no-overrides": "no overrides, same request",
    "mixed-heavy": "heavy: flags, identities, document mixed",
}
SHORT = {
    "flags-simple": "simple flags",
    "identities-simple": "simple identities",
    "identities-heavy-match": "heavy identities",
    "identities-heavy-varied": "heavy, new identifier",
    "identities-splits": "50 multivariate",
    "document-heavy": "document",
}
GZIP = "-gzip"


def newest():
    """The newest run with a summary or measurements."""
    runs = sorted(path.parent for path in RUNS.glob("*/raw.csv"))
    return runs[-1] if runs else None


class Run:
    def __init__(self, place):
        self.place = place
        with (place / "raw.csv").open() as file:
            self.rows = list(csv.DictReader(file))

    def of(self, scenario, server, x=""):
        return [row for row in self.rows if (row["scenario"], row["server"], row["x"]) == (scenario, server, str(x))]

    def values(self, field, *where):
        return [float(row[field]) for row in self.of(*where) if row[field]]

    def median(self, field, *where):
        values = self.values(field, *where)
        return statistics.median(values) if values else None

    def axis(self, scenario, server):
        """The values of a sweep, in order."""
        found = {row["x"] for row in self.rows if row["scenario"] == scenario and row["server"] == server}
        return sorted(found, key=lambda x: (float(x) if re.fullmatch(r"[\d.]+", x) else -1, x))

    def line(self, field, scenario, server):
        points = [(float(x), self.median(field, scenario, server, x)) for x in self.axis(scenario, server)]
        return [(x, y) for x, y in points if y is not None]


def figure(number):
    """Three significant digits, as the spread allows."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def spread(run, *where):
    values = run.values("cpu_us", *where)
    if not values:
        return "-"
    middle = statistics.median(values)
    share = max(abs(value - middle) for value in values) / middle
    return f"{figure(middle)} ±{share:.0%}"


def cpu_table(run, suffix=""):
    """CPU per request by route and server, with how far ours is from the floor and the others from ours. With
    gzip, what the same costs without it is the last column."""
    rows = []
    for base, title in TITLES.items():
        scenario = base + suffix
        ours, floor = (run.median("cpu_us", scenario, server) for server in ("edge-proxy", "floor"))
        if ours is None:
            continue
        ratios = [f"{ours / floor:.2f}" if floor else "-"]
        for server in ("nginx", "axum", "python"):
            other = run.median("cpu_us", scenario, server)
            ratios.append(f"{other / ours:,.3g}" if other else "-")
        rows.append([title, *(spread(run, scenario, server) for server in SERVERS), *ratios])
        if suffix:
            plain, plain_floor = (run.median("cpu_us", base, server) for server in ("edge-proxy", "floor"))
            ratio = f" ({plain / plain_floor:.2f})" if plain and plain_floor else ""
            rows[-1].append(figure(plain) + ratio)
    if not rows:
        return ""
    what = "CPU µs per request, as clients send it (gzip)" if suffix else "CPU µs per request, plain"
    head = [what, *SERVERS, "ours / floor", "nginx / ours", "axum / ours", "python / ours"]
    return table([*head, "ours plain (/ floor)"] if suffix else head, rows)


def load_table(run):
    """Requests a second and latency of the closed loop."""
    rows = []
    scenarios = [(name + suffix, title + suffix.replace("-", ", ")) for suffix in (GZIP, "") for name, title in TITLES.items()]
    for scenario, title in scenarios:
        for server in SERVERS:
            if run.of(scenario, server):
                fields = [figure(run.median(field, scenario, server)) for field in ("rps", "p50_us", "p99_us", "p999_us")]
                memory = run.median("rss_kib", scenario, server)
                note = run.of(scenario, server)[0]["note"]
                rows.append([title, server, *fields, f"{memory / 1024:.1f}" if memory else "-", note])
    return table(["closed loop", "server", "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "RSS MiB", "answers"], rows)


def sweep_table(run, scenario, label):
    rows = []
    for x in run.axis(scenario, "edge-proxy"):
        where = (scenario, "edge-proxy", x)
        ours, floor = run.median("cpu_us", *where), run.median("cpu_us", scenario, "floor", x)
        size = run.of(*where)[0]["answer_bytes"]
        memory = run.median("rss_kib", *where)
        fields = [figure(run.median(field, *where)) for field in ("rps", "p50_us", "p99_us", "p999_us")]
        ratio = f"{ours / floor:.2f}" if ours and floor else "-"
        name = f"{int(x):,}" if x.isdigit() else x
        rows.append([name, spread(run, *where), ratio, *fields, size or "-", f"{memory / 1024:.1f}" if memory else "-"])
    if not rows:
        return ""
    head = [label, "CPU µs", "ours / floor", "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "answer bytes", "RSS MiB"]
    return f"\n## {label}\n\n" + table(head, rows)


def open_table(run, scenario="open-loop", where=""):
    rows = []
    for server in SERVERS:
        for x in run.axis(scenario, server):
            fields = [figure(run.median(f, scenario, server, x)) for f in ("p50_us", "p90_us", "p99_us", "p999_us")]
            rows.append([server, f"{int(x):,}", *fields, run.of(scenario, server, x)[0]["note"]])
    if not rows:
        return ""
    text = f"\n## open loop{where}: heavy POST identities at a constant rate, latency from the scheduled time of each\n\n"
    return text + table(["server", "requests/s", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "at most"], rows)


def fair_table(run):
    """Busy connections: cost, latency and the answers of each connection."""
    rows = []
    titles = (("fairness", "busy connections"), ("reconnect", "a new connection for each request"), ("unix", "unix socket"))
    for scenario, title in titles:
        for x in run.axis(scenario, "edge-proxy"):
            for server in ("floor", "edge-proxy"):
                found = run.of(scenario, server, x)
                if found:
                    fields = [figure(run.median(f, scenario, server, x)) for f in ("cpu_us", "p50_us", "p99_us", "p999_us")]
                    name = f"{int(x):,} {title}" if x else title
                    rows.append([name, server, *fields, found[0]["note"]])
    head = ["closed loop by `busy`, heavy POST identities", "server", "CPU µs", "p50 µs", "p99 µs", "p99.9 µs"]
    head.append("answers of a connection: least / median / most")
    return "\n## busy connections\n\n" + table(head, rows) if rows else ""


def tls_table(run):
    rows = []
    for x in run.axis("tls", "edge-proxy"):
        values = [run.median("cpu_us", "tls", server, x) for server in ("plain", "edge-proxy", "nginx")]
        rows.append([f"{int(x):,}", *(figure(value) for value in values)])
    return "\n## TLS, CPU µs per request\n\n" + table(["connections", "plain", "TLS", "nginx, TLS"], rows) if rows else ""


def swap_scenarios(run):
    """The scenarios of replaced documents that the run has, in order."""
    return [kind for kind in ("swaps-heavy", "swaps-huge", "swaps-huge-one-cpu") if run.axis(kind, "edge-proxy")]


def few_table(run):
    """New TLS connections, and polling at a low rate."""
    rows = []
    for scenario, x, title in (
        ("resumption", "whole", "a new TLS connection with one request, whole handshake"),
        ("resumption", "resumed", "the same, resumed"),
        ("spin", "0", "5,000 requests/s, default"),
        ("spin", "500", "5,000 requests/s, server.spin_microseconds 500"),
    ):
        if run.of(scenario, "edge-proxy", x):
            fields = [figure(run.median(field, scenario, "edge-proxy", x)) for field in ("cpu_us", "p50_us", "p99_us")]
            rows.append([title, *fields])
    head = ["", "CPU µs", "p50 µs", "p99 µs"]
    return "\n## new TLS connections, and polling\n\n" + table(head, rows) if rows else ""


def answers(run, server, x):
    """Least and median answers of a connection, in the worst round."""
    notes = [re.findall(r"\d+", row["note"]) for row in run.of("fairness", server, x)]
    return min(((int(least), int(middle)) for least, middle, _ in notes), default=None)


def targets(run):
    """The performance targets of the project, evaluated for this run."""

    def ratio(over, under):
        upper, lower = run.median("cpu_us", *over), run.median("cpu_us", *under)
        return upper / lower if upper and lower else None

    def ours(scenario, x=""):
        return (scenario, "edge-proxy", x)

    rows = []

    def judge(what, value, limit, at_most=True, unit=""):
        if value is not None:
            holds = value <= limit if at_most else value >= limit
            bound = f"{'at most' if at_most else 'at least'} {limit:g}{unit}"
            rows.append([what, bound, f"{value:.3g}{unit}", "holds" if holds else "**does not hold**"])

    def judge_peer(name, scenario, peer, least):
        """Relative to a peer, with the factor of the floor, which is the maximum for any server."""
        judge(f"{name}: {peer} / ours", ratio((scenario, peer), ours(scenario)), least, False)
        best = ratio((scenario, peer), (scenario, "floor"))
        if best and rows and rows[-1][0].startswith(name):
            rows[-1][2] += f" (the floor: {best:.3g})"

    for name, what, limit in (
        ("flags-simple-gzip", "simple flags", 1.15),
        ("identities-simple-gzip", "simple identities", 1.6),
        ("identities-get-gzip", "GET identities", 1.6),
        ("identities-heavy-match-gzip", "heavy identities (match)", 1.6),
        ("identities-heavy-none-gzip", "heavy identities (none)", 1.6),
        ("identities-splits-gzip", "50 multivariate features", 2.2),
    ):
        judge(f"{what}, gzip / floor", ratio(ours(name), (name, "floor")), limit)
    for name, what in (("identities-wide", "GET identities"), ("document-wide", "document")):
        for suffix, coding in ((GZIP, ", gzip"), ("", "")):
            scenario = name + suffix
            judge(f"1,000 features: {what}{coding} / floor", ratio(ours(scenario), (scenario, "floor")), 1.2)
    few = ratio(ours("fairness", 32), ("fairness", "floor", "32"))
    for count in (2048, 8192):
        many = ratio(ours("fairness", count), ("fairness", "floor", str(count)))
        if few and many and count == 2048:
            judge(f"ratio to the floor, {count:,} busy connections / 32", many / few, 1.15)
        found = answers(run, "edge-proxy", count)
        if found and found[1]:
            judge(f"{count:,} busy connections: least served / median", found[0] / found[1], 0.7, False)
        slow = [run.median("p999_us", "fairness", server, count) for server in ("edge-proxy", "floor")]
        if all(slow):
            judge(f"{count:,} busy connections: p99.9 / the floor's", slow[0] / slow[1], 2)
    judge("one connection / floor", ratio(ours("connections", 1), ("connections", "floor", "1")), 1.2)
    slow = [run.median("p50_us", "connections", server, 1) for server in ("edge-proxy", "floor")]
    if all(slow):
        judge("one connection: p50 / the floor's", slow[0] / slow[1], 1.08)
    slow = [run.median("p50_us", "spin", "edge-proxy", x) for x in ("500", "0")]
    if all(slow):
        judge("p50 at 5,000 requests/s, spin_microseconds 500 / default", slow[0] / slow[1], 0.5)
    for kind in swap_scenarios(run):
        slow = [run.median("p999_us", kind, "edge-proxy", x) for x in ("every second", "never")]
        if all(slow):
            judge(f"{kind}: p99.9 / quiet", slow[0] / slow[1], 2)
    for count in (32, 512):
        judge(f"TLS / plain, {count} connections", ratio(ours("tls", count), ("tls", "plain", str(count))), 1.3)
        judge(f"TLS, {count} connections: nginx / ours", ratio(("tls", "nginx", str(count)), ours("tls", count)), 1.8, False)
    resumed = ratio(ours("resumption", "resumed"), ours("resumption", "whole"))
    judge("a new TLS connection, resumed / whole handshake", resumed, 1)
    judge("simple flags / floor", ratio(ours("flags-simple"), ("flags-simple", "floor")), 1.15)
    judge_peer("simple flags", "flags-simple", "axum", 6)
    judge_peer("simple flags", "flags-simple", "python", 40)
    judge_peer("simple flags", "flags-simple", "nginx", 1)
    for kind in ("match", "none", "varied"):
        name = f"identities-heavy-{kind}"
        judge(f"heavy identities ({kind}) / floor", ratio(ours(name), (name, "floor")), 1.8)
        judge_peer(f"heavy identities ({kind})", name, "axum", 80)
        judge_peer(f"heavy identities ({kind})", name, "python", 300)
    for name in ("document-heavy", "document-heavy-gzip"):
        judge(f"{name} / floor", ratio(ours(name), (name, "floor")), 1.1)
    judge("500 overrides / none", ratio(ours("identities-500-overrides"), ours("identities-no-overrides")), 1.05)
    judge("CPU per request, 2 reactors / 1", ratio(ours("cores", 2), ours("cores", 1)), 1.05)
    for what, where, limit in (
        ("resident, idle with the demo", ours("memory-demo-idle"), 12),
        ("resident, heavy under load", ours("identities-heavy-match-gzip"), 20),
    ):
        memory = run.median("rss_kib", *where)
        judge(what, memory / 1024 if memory else None, limit, unit=" MiB")
    return "\n## targets\n\n" + table(["target", "bound", "here", ""], rows) if rows else ""


def draw(run):
    """The plots of the measured sweeps."""
    cpu = {
        SHORT[name] + suffix.replace("-", ", "): {
            s: run.median("cpu_us", name + suffix, s) for s in SERVERS if run.median("cpu_us", name + suffix, s)
        }
        for suffix in (GZIP, "")
        for name in SHORT
        if run.median("cpu_us", name + suffix, "edge-proxy")
    }
    pictures = {
        "cpu-by-route": plot.bars("CPU per request, one core, keep-alive", "µs per request, logarithmic", cpu),
        "throughput-connections": plot.lines(
            "Throughput against connections, heavy POST identities",
            "connections",
            "requests per second",
            {server: run.line("rps", "connections", server) for server in ("edge-proxy", "floor")},
        ),
        "latency-connections": plot.lines(
            "Latency against connections, heavy POST identities (closed loop)",
            "connections",
            "µs",
            {n: run.line(f, "connections", "edge-proxy") for n, f in PERCENTILES},
            log_y=True,
        ),
        "latency-rate": plot.lines(
            "Latency at a constant rate, heavy POST identities (open loop)",
            "requests per second",
            "µs",
            {
                f"{server} {name}": run.line(field, "open-loop", server)
                for server in ("floor", "edge-proxy")
                for name, field in PERCENTILES[1:]
            },
            log_y=True,
        ),
        "scaling-cores": plot.bars(
            "CPU per request, one reactor and two (load on the same two cores)",
            "µs per request, logarithmic",
            {f"{x} reactor(s)": {"edge-proxy": run.median("cpu_us", "cores", "edge-proxy", x)} for x in run.axis("cores", "edge-proxy")},
        ),
        "latency-swaps": plot.bars(
            "Latency at a constant rate while the document is replaced",
            "µs, logarithmic",
            {
                f"{kind[6:]}, {x}": {n: run.median(f, kind, "edge-proxy", x) for n, f in PERCENTILES}
                for kind in swap_scenarios(run)
                for x in run.axis(kind, "edge-proxy")
            },
        ),
    }
    for axis in ("features", "segments", "overrides", "environments"):
        series = {server: run.line("cpu_us", axis, server) for server in ("edge-proxy", "floor")}
        series = {server: line for server, line in series.items() if line}
        pictures[f"cost-{axis}"] = plot.lines(f"Cost against {axis}", axis, "CPU µs per request", series)
    for name, picture in pictures.items():
        if picture:
            (run.place / f"{name}.svg").write_text(picture)


PERCENTILES = (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"))

QUOTED = """
## Quoted, not measured here

| who says so | what | requests/s |
|---|---|---:|
| Python Edge Proxy's documentation | 1 vCPU, heavy profile: identities, flags, document | 72, 63, 570 |
| official axum rewrite's README | 1 CPU, 50 features: identities, flags, document | 14,110, 10,075, 17,904 |
| Unleash Edge's documentation | 1 CPU: 5 features; 350 features | 39,000; 6,900 |
"""


def summarise(place):
    """Writes summary.md and the plots; returns the summary."""
    run = Run(place)
    parts = ["# Summary: medians; ± is the farthest round from the median\n\n"]
    parts += [cpu_table(run, GZIP), "\n", cpu_table(run), targets(run), fair_table(run), tls_table(run), few_table(run)]
    parts += ["\n## closed loop, wrk\n\n", load_table(run), open_table(run)]
    parts.append(open_table(run, "open-loop-fifo", ", server and load under SCHED_FIFO"))
    for scenario in ("connections", "features", "segments", "overrides", "environments", "cores"):
        parts.append(sweep_table(run, scenario, scenario))
    for scenario in swap_scenarios(run):
        parts.append(sweep_table(run, scenario, f"{scenario}: latency at a constant rate, document replaced"))
        notes = [row["note"] for row in run.rows if row["scenario"] == scenario and row["note"]]
        parts.append(f"\n{notes[0]}\n" if notes else "")
    parts.append(QUOTED)
    text = "".join(parts)
    (place / "summary.md").write_text(text)
    draw(run)
    return text


def readme_section(place):
    """The performance section of the README, from one run."""
    run = Run(place)
    name = place.relative_to(ROOT)
    rows = []
    for suffix in (GZIP, ""):
        for base, title in TITLES.items():
            scenario = base + suffix
            if base in SHORT and run.of(scenario, "edge-proxy"):
                cells = [spread(run, scenario, server).split(" ")[0] for server in SERVERS]
                shown = title + (", gzip" if suffix else "")
                rows.append([shown, figure(run.median("rps", scenario, "edge-proxy")), *cells])
    head = ["one core, 32 connections", "our requests/s", *(f"{server} µs" for server in SERVERS)]
    about = (place / "README.md").read_text() if (place / "README.md").exists() else ""
    facts = dict(re.findall(r"^- (\w[\w ]*): (.*)$", about, re.M))
    where = f"{facts.get('cpu', '?')}, Linux {facts.get('kernel', '?')}, {facts.get('date', '?')[:10]}"
    kept = sorted(RUNS.glob("*/http2.csv"))
    text_http2 = ""
    if kept:
        about_http2 = kept[-1].with_suffix(".md").relative_to(ROOT)
        with kept[-1].open() as file:
            table_http2 = http2.Report(list(csv.DictReader(file))).short()
        text_http2 = f"\nHTTP/2, by `make bench-h2` ([{about_http2}]({about_http2})); HTTP/1.1 has 32 connections:\n\n" + table_http2
    return (
        f"`{facts.get('command', 'make bench')}` measured this ({where}; the whole run with every command and "
        f"version: [{name}]({name}/README.md)). The µs are CPU time of the server per request. *Floor* is a raw "
        "io_uring server that parses nothing and sends the same bytes; *nginx* sends them as a static file; *axum* "
        "is a server of ours around the official Rust engine crate, *python* one around the official PyPI engine.\n\n"
        + table(head, rows)
        + text_http2
        + f"\n![CPU per request by route]({name}/cpu-by-route.svg)\n"
    )


def with_section(readme, place):
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{readme_section(place)}{END}{after}"


def main():
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    place = Path(arguments[0]).resolve() if arguments else newest()
    if place is None:
        sys.exit("there is no run in bench/runs: make bench")
    readme = ROOT / "README.md"
    if "--check" in sys.argv:
        text = readme.read_text()
        if with_section(text, place) != text:
            sys.exit(f"the README's numbers are not those of {place.relative_to(ROOT)}: make readme")
        return
    print(summarise(place))
    if "--readme" in sys.argv:
        readme.write_text(with_section(readme.read_text(), place))


if __name__ == "__main__":
    main()
