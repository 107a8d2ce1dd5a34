"""systemd-analyze on the units."""
import pathlib, subprocess, tempfile

from common import ROOT, need, run, say


def units(executable):
    with tempfile.TemporaryDirectory() as scratch:
        for name in ["edge-proxy.service", "edge-proxy@.service"]:
            # The unit with another path of the executable.
            unit = pathlib.Path(scratch) / name.replace("@", "@a")
            unit.write_text((ROOT / "deploy" / name).read_text().replace("/usr/bin/edge-proxy", str(executable)))
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
            need(not done.stderr.strip(), f"systemd-analyze verify {name} {done.stderr.strip()}")
            exposure = run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)
            say(exposure.strip().splitlines()[-1].lstrip("→ "))
