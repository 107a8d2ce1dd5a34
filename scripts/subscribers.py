#!/usr/bin/env python3
"""Measures event stream subscribers: subscribers.py PID ADDRESS CLIENT_KEY DOCUMENT [COUNT].

Opens COUNT streams (default 10,000) to a proxy that serves the file DOCUMENT, prints the resident memory
per stream, edits the document and prints the time until all streams were notified. Needs `ulimit -n`
above COUNT on both sides. Example, with `edge-proxy demo --cores 1 --document demo.json` running:
    scripts/subscribers.py $(pgrep -f 'edge-proxy demo') 127.0.0.1:8000 demo-client-side-key demo.json
"""

import json
import selectors
import socket
import sys
import time

pid, address, key, path = sys.argv[1:5]
count = int(sys.argv[5]) if len(sys.argv) > 5 else 10_000
host, port = address.rsplit(":", 1)


def resident_kib():
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


before = resident_kib()
request = f"GET /sse/environments/{key}/stream HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
streams = []
for _ in range(count):
    stream = socket.create_connection((host, int(port)))
    stream.sendall(request)
    streams.append(stream)
selector = selectors.DefaultSelector()
for stream in streams:
    head = b""
    while b"updated_at" not in head:
        head += stream.recv(4096)
    stream.setblocking(False)
    selector.register(stream, selectors.EVENT_READ)
after = resident_kib()
print(f"{count} subscribers: {(after - before) * 1024 / count:,.0f} bytes of the proxy's memory each")

with open(path) as file:
    document = json.load(file)
document["name"] = f"{document['name']}."
with open(path, "w") as file:
    json.dump(document, file)
start, first, notified = time.monotonic(), None, set()
while len(notified) < count and time.monotonic() - start < 30:
    for found, _ in selector.select(1):
        if b"updated_at" in found.fileobj.recv(4096):
            first = first or time.monotonic()
            notified.add(found.fd)
if first is None:
    sys.exit("no subscriber was notified within 30 seconds")
print(f"{len(notified)} notified, the first {first - start:.3f} s after the edit, all after {time.monotonic() - start:.3f} s")
