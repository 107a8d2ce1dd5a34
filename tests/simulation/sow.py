#!/usr/bin/env python3
"""`sow.py FOLDER`, from `make simulate`: writes a copy of the crate in which each bug of sown.json is behind a switch.

The switch of a bug is its number in the environment variable SOWN_BUG; without it the copy does what the sources do.
Only files that differ are written, so that only what changed is compiled. The copy has the library and the simulation.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUGS = json.loads((Path(__file__).parent / "sown.json").read_text())

SWITCH = """//! Which sown bug is switched on: the number in the variable `SOWN_BUG`.
use std::sync::OnceLock;

static ON: OnceLock<usize> = OnceLock::new();

pub fn is(number: usize) -> bool {
    *ON.get_or_init(|| std::env::var("SOWN_BUG").ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX)) == number
}
"""


def write(path, data):
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def sown(name, text):
    for number, bug in enumerate(BUGS):
        if bug["file"] == name:
            if text.count(bug["code"]) != 1:
                sys.exit(f"{name}: not there once: {bug['code']}")
            text = text.replace(bug["code"], bug["bug"].replace("SOWN", f"crate::sown::is({number})"))
    if name == "src/lib.rs":
        text = text.replace("pub mod storage;", "pub mod sown;\npub mod storage;")
    return text


def renamed(text):
    """Another version, so that cargo does not take the copy for the crate: both are built in one target folder."""
    return re.sub(r'(name = "edge-proxy"\nversion = "[^"+]+)"', r'\1+sown"', text, count=1)


def manifest(text):
    """Without the other targets: the executable has the name of the real one."""
    sections = re.findall(r"(?s).*?(?:\n\n|\Z)", text)
    others = lambda section: re.search(r"^\[\[(bin|test|bench)\]\]", section, re.M) and '"simulation"' not in section
    kept = "".join(section for section in sections if not others(section))
    return kept.replace("autotests = false", "autotests = false\nautobins = false")


def main():
    tree = Path(sys.argv[1])
    copied = set()
    for folder in ("src", "tests/simulation"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file():
                name = str(path.relative_to(ROOT))
                data = path.read_bytes()
                if name.startswith("src/") and name.endswith(".rs"):
                    data = sown(name, data.decode()).encode()
                write(tree / name, data)
                copied.add(tree / name)
    write(tree / "src/sown.rs", SWITCH.encode())
    write(tree / "Cargo.toml", renamed(manifest((ROOT / "Cargo.toml").read_text())).encode())
    write(tree / "Cargo.lock", renamed((ROOT / "Cargo.lock").read_text()).encode())
    write(tree / "build.rs", (ROOT / "build.rs").read_bytes())
    # Files that the sources do not have any more.
    for path in [*(tree / "src").rglob("*"), *(tree / "tests").rglob("*")]:
        if path.is_file() and path not in copied and path != tree / "src/sown.rs":
            path.unlink()


if __name__ == "__main__":
    main()
