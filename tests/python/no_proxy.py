"""Compares src/upstream/no_proxy.txt with the installed httpx: pip install httpx; python no_proxy.py"""
import os
import pathlib

import httpx

TABLE = pathlib.Path(__file__).parents[2] / "src/upstream/no_proxy.txt"


def is_direct(no_proxy: str, url: str) -> bool:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update(http_proxy="http://proxy:1", https_proxy="http://proxy:1", no_proxy=no_proxy)
    with httpx.Client() as client:
        return client._transport_for_url(httpx.URL(url)) is client._transport


rows = [line.split("|") for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
for no_proxy, url, expected in ((cell.strip() for cell in row) for row in rows):
    assert is_direct(no_proxy, url) == (expected == "direct"), (no_proxy, url, expected)
print(f"{len(rows)} cases agree with httpx {httpx.__version__}")
