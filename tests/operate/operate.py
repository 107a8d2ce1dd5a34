"""Tests the files of deploy/ with the real programs from Debian and PyPI.

operate.py EXECUTABLE [PART...]: parts are files, units, prometheus, collector, fleet, seccomp, image, page; all by default.
Each part prints one line per successful check; the first failure ends the run. Processes are stopped by their
id. Only 127.0.0.1 and network namespaces of this run are used.
"""
import pathlib, sys

from collector import collector
from containers import image, seccomp
from files import files
from fleet import fleet
from metrics import prometheus
from page import page
from units import units

PARTS = {part.__name__: part for part in [files, units, prometheus, collector, fleet, seccomp, image, page]}

if __name__ == "__main__":
    executable = pathlib.Path(sys.argv[1]).resolve()
    for name in sys.argv[2:] or PARTS:
        print(f"--- {name}", flush=True)
        PARTS[name](executable)
    print("all parts hold", flush=True)
