#!/usr/bin/env python3
"""Draws the record of a soak: `plot.py DIRECTORY` reads its minutes.csv and writes memory.svg and latency.svg."""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import plot


def main():
    directory = Path(sys.argv[1])
    with (directory / "minutes.csv").open() as file:
        rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]

    def series(column, scale=1.0):
        return [(row["minute"], row[column] * scale) for row in rows]

    memory = {
        "one process": series("memory_mib"),
        "replaced by takeovers": series("replaced_memory_mib"),
    }
    svg = plot.lines("Resident memory of a soak", "minute", "MiB, median of a minute", memory, log_x=False)
    (directory / "memory.svg").write_text(svg)
    latency = {
        "p50": series("p50_us", 0.001),
        "p99.9": series("p999_us", 0.001),
    }
    if any(row["floor_p999_us"] for row in rows):
        latency |= {"floor p50": series("floor_p50_us", 0.001), "floor p99.9": series("floor_p999_us", 0.001)}
    svg = plot.lines("Latency of small answers in a soak", "minute", "milliseconds", latency, log_x=False, log_y=True)
    (directory / "latency.svg").write_text(svg)


if __name__ == "__main__":
    main()
