"""The abusers of `make abuse`: what each sends, at what rate, and whether it holds a client-side key.

A table for abuse.py. Requests are built before anything is measured; connection floods are functions that
run for a given time. Only the client-side key is used: it is public.
"""

import gzip
import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

MIB = 1 << 20
CLIENT_KEY = "abuse-client-side-key"
IDENTITIES, BULK, TRAITS = "/api/v1/identities/", "/api/v1/bulk-identities/", "/api/v1/traits/"
FLAGS = "/api/v1/flags/"
HONEST = "/api/v1/flags/?feature=honest"
COUNTS_V1, COUNTS_V2 = "/api/v1/analytics/flags/", "/api/v2/analytics/flags/"
OFREP, EXPLAIN = "/ofrep/v1/evaluate/flags", "/proxy/explain/"

# Requests a second beside honest callers. At the bound of CPU a request (2 ms without a key, 20 ms with
# one) an abuser then takes a fifth of the core, or two fifths.
RATE_ANONYMOUS, RATE_KEYED = 100, 20


@dataclass(frozen=True)
class Tally:
    """What an abuser did: requests (or connections, or streams), bytes sent, bytes received."""

    units: int
    sent: int
    received: int
    statuses: Counter = field(default_factory=Counter)

    def plus(self, other):
        return Tally(
            self.units + other.units,
            self.sent + other.sent,
            self.received + other.received,
            self.statuses + other.statuses,
        )


@dataclass(frozen=True)
class Abuser:
    name: str
    keyed: bool
    # One request of that number, or None for an abuser that `run`s.
    request: Callable | None = None
    # Runs against (host, port) until a time of the monotonic clock; gives a Tally.
    run: Callable | None = None
    document: str = "plain"
    # Requests measured alone; 1 MiB each takes a while to send.
    count: int = 20
    # Whom the honest callers ask: the admin listener where that is attacked.
    honest: str = "proxy"


# --- documents ---


def state(number, name, value, values=()):
    return {
        "id": number,
        "django_id": number,
        "featurestate_uuid": f"00000000-0000-4000-8000-{number:012}",
        "feature": {"id": number, "name": name, "type": "MULTIVARIATE" if values else "STANDARD"},
        "enabled": True,
        "feature_state_value": value,
        "feature_segment": None,
        "multivariate_feature_state_values": list(values),
    }


def variant(number, share):
    return {
        "id": number,
        "percentage_allocation": share,
        "mv_fs_value_uuid": f"00000000-0000-4000-8000-{number:012}",
        "multivariate_feature_option": {"id": number, "value": f"variant-{number}"},
    }


def segment(number, prop, operator, value):
    condition = {"property_": prop, "operator": operator, "value": value}
    rule = {"type": "ALL", "conditions": [], "rules": [{"type": "ANY", "rules": [], "conditions": [condition]}]}
    states = [state(1000 + number, f"flag-{number % 10}", "matched")]
    return {"id": number, "name": f"segment-{number}", "rules": [rule], "feature_states": states}


def document(conditions=(), multivariates=0):
    segments = [segment(number + 1, *condition) for number, condition in enumerate(conditions)]
    states = [state(number + 1, f"flag-{number}", "plain") for number in range(10)]
    states.append(state(99, "honest", "x" * 500))
    states += [
        state(100 + number, f"variants-{number}", "control", [variant(2 * number + 1, 30), variant(2 * number + 2, 30)])
        for number in range(multivariates)
    ]
    organisation = {
        "id": 1,
        "name": "Abuse",
        "feature_analytics": False,
        "stop_serving_flags": False,
        "persist_trait_data": True,
    }
    return {
        "id": 1,
        "api_key": CLIENT_KEY,
        "name": "Abuse",
        "updated_at": "2026-01-01T00:00:00.000000+00:00",
        "project": {
            "id": 1,
            "name": "Abuse",
            "hide_disabled_flags": False,
            "organisation": organisation,
            "segments": segments,
        },
        "feature_states": states,
        "identity_overrides": [],
    }


def large_document():
    """Flags of a megabyte in all, for those who do not read them."""
    whole = document()
    for flag in whole["feature_states"][:10]:
        flag["feature_state_value"] = "x" * (MIB // 10)
    return whole


JSONPATHS = {
    "wildcard": "$.identity.traits.*",
    "filter": "$.identity.traits[?@ == 2]",
    "length": "$.identity.traits[?length(@) == 2]",
    "match": "$.identity.traits[?match(@, 'a.*b')]",
    "nested": "$.identity.traits[?count($.identity.traits[?@ > 0]) == 7]",
    "ten ..*": "$" + "..*" * 10,
}
DOCUMENTS = {
    "plain": document(),
    "large": large_document(),
    "identifiers": document(
        [("", "PERCENTAGE_SPLIT", "50")] * 100
        + [("$.identity.identifier", "REGEX", f"(a|b)*x{number}(c+c+)+$") for number in range(100)]
        + [("$.identity.identifier", "CONTAINS", f"needle-{number}") for number in range(100)],
        multivariates=100,
    ),
    "backtracking": document([("t", "REGEX", rf"(x+x+)+\1y{number}") for number in range(200)]),
    "versions": document([("t", "GREATER_THAN", f"1.0.0-{'a.' * 900}{number}:semver") for number in range(1000)]),
    "flag cycle": document([(f"$.flags.flag-{(number + 1) % 10}.value", "EQUAL", "matched") for number in range(1000)]),
    "flag cycle, queries": document(
        [(f"$.flags['flag-{(number + 1) % 10}', 'x'].value", "EQUAL", "matched") for number in range(1000)]
    ),
    "jsonpath, all": document([(path, "EQUAL", "nothing") for path in JSONPATHS.values()]),
} | {f"jsonpath, {name}": document([(path, "EQUAL", "nothing")]) for name, path in JSONPATHS.items()}


# --- requests ---


def request(path, body=b"", key=CLIENT_KEY, method="POST", fields=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if key:
        lines.append(f"X-Environment-Key: {key}")
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += fields
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def coded(path, body, key=CLIENT_KEY):
    return request(path, body, key, fields=["Content-Encoding: gzip"])


def fill(start, item, end, size=MIB):
    """`start` and `end` around as many items as fit; `item` may count them."""
    parts, left = [], size - len(start) - len(end)
    while True:
        part = item(len(parts)) if callable(item) else item
        left -= len(part) + 1
        if left < 0:
            return (start + ",".join(parts) + end).encode()
        parts.append(part)


def packed(body):
    return gzip.compress(body, 9)


def members(body, count):
    """The body in `count` gzip members."""
    step = len(body) // count + 1
    return b"".join(packed(body[at : at + step]) for at in range(0, len(body), step))


def same(data):
    return lambda number: data


EMPTY_TRAITS = fill('{"identifier":"a","traits":[', "{}", "]}")
MANY_TRAITS = fill(
    '{"identifier":"a","traits":[', lambda n: f'{{"trait_key":"{n:x}","trait_value":1}}', "]}"
)
MANY_FIELDS = fill('{"context":{"targetingKey":"a",', lambda n: f'"{n:x}":1', "}}")
BROKEN = {
    "identities": (IDENTITIES, EMPTY_TRAITS),
    "bulk": (BULK, fill('{"data":[', "{}", "]}")),
    "traits": (TRAITS, fill('{"identity":{"identifier":7},"x":[', "{}", "]}")),
    "explain": (EXPLAIN, EMPTY_TRAITS),
    "OFREP": (OFREP, fill('{"context":[', "{}", "]}")),
    "analytics v2": (COUNTS_V2, fill('{"evaluations":[', "{}", "]}")),
}
LONG = "x" * 1_000_000
HUGE_NUMBER = "9" * 4300


def long_identifier(number):
    return fill(f'{{"identifier":"{number}{LONG}","traits":[', "{}", "]}", size=len(LONG) + 60)


def counts_v2(number):
    row = {
        "feature_name": "flag-1",
        "identity_identifier": f"{number}{LONG}",
        "enabled_when_evaluated": True,
        "count": 1,
    }
    return request(COUNTS_V2, json.dumps({"evaluations": [row]}).encode())


def counts_v1(number):
    return request(COUNTS_V1, b'{"flag-1":1}', fields=[f"User-Agent: {number}{'a' * 15_000}"])


def many_rows(number):
    row = '{{"feature_name":"flag-{}","identity_identifier":"{}-{}","enabled_when_evaluated":true,"count":1}}'
    return request(COUNTS_V2, fill('{"evaluations":[', lambda n: row.format(n % 10, number, n), "]}"))


def bulk_identities(length):
    identities = [{"identifier": f"{n:03}{'x' * (length - 3)}", "traits": []} for n in range(100)]
    return request(BULK, json.dumps({"data": identities}).encode())


def chunked(chunks):
    head = [f"POST {IDENTITIES} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head += [f"X-Environment-Key: {CLIENT_KEY}", "Transfer-Encoding: chunked"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + chunks + b"0\r\n\r\n"


def anonymous():
    for name, (path, body) in BROKEN.items():
        yield Abuser(f"422, plain, {name}", False, same(request(path, body, None)))
    for name, (path, body) in BROKEN.items():
        yield Abuser(f"gzip bomb, {name}", False, same(coded(path, packed(body), None)))
    yield Abuser("gzip bomb, unknown key", False, same(coded(IDENTITIES, packed(EMPTY_TRAITS), "unknown")))
    yield Abuser("gzip, 20 members", False, same(coded(IDENTITIES, members(EMPTY_TRAITS, 20), None)))
    yield Abuser("valid traits, plain", False, same(request(IDENTITIES, MANY_TRAITS, None)))
    yield Abuser("deep JSON", False, same(request(IDENTITIES, b"[" * MIB, None)))
    yield Abuser("deep JSON that ends", False, same(request(IDENTITIES, b"[" * 1490 + b"]" * 1490, None)))
    yield Abuser("huge numbers", False, same(request(IDENTITIES, fill("[", HUGE_NUMBER, "]"), None)))
    yield Abuser("long unknown key", False, same(request(FLAGS, key="\\" * 15_000, method="GET")), count=50)


def keyed():
    for name, (path, body) in BROKEN.items():
        yield Abuser(f"422, plain, {name}", True, same(request(path, body)))
        yield Abuser(f"gzip bomb, {name}", True, same(coded(path, packed(body))))
    yield Abuser("gzip, 20 members", True, same(coded(IDENTITIES, members(MANY_TRAITS, 20))))
    empty = packed(b"") * 50_000 + packed(b'{"identifier":"a","traits":[]}')
    yield Abuser("gzip, 50,000 empty members", True, same(coded(IDENTITIES, empty)))
    yield Abuser("bulk, large flags", True, same(bulk_identities(10)), document="large")
    yield Abuser("huge numbers", True, same(request(IDENTITIES, traits_of(HUGE_NUMBER))), document="identifiers")
    yield Abuser("deep JSON", True, same(request(IDENTITIES, b"[" * MIB)))
    yield Abuser("counts v2, identifiers of 1 MB", True, counts_v2)
    yield Abuser("counts v2, many rows", True, many_rows)
    yield Abuser("counts v1, agents of 15 kB", True, counts_v1, count=200)
    for name in (*JSONPATHS, "all"):
        body = request(IDENTITIES, MANY_TRAITS) if name != "all" else coded(IDENTITIES, packed(MANY_TRAITS))
        yield Abuser(f"JSONPath, {name}", True, same(body), document=f"jsonpath, {name}")
    yield Abuser("JSONPath, OFREP context", True, same(request(OFREP, MANY_FIELDS)), document="jsonpath, all")
    yield Abuser("identifier of 1 MB", True, lambda n: request(IDENTITIES, long_identifier(n)), document="identifiers")
    yield Abuser("bulk, 2,000 characters each", True, same(bulk_identities(2000)), document="identifiers")
    yield Abuser("bulk, 100 characters each", True, same(bulk_identities(100)), document="identifiers")
    text = {"identifier": "a", "traits": [{"trait_key": "t", "trait_value": "x" * 2000}]}
    yield Abuser("backtracking", True, same(request(IDENTITIES, json.dumps(text).encode())), document="backtracking")
    version = {"trait_key": "t", "trait_value": f"1.0.0-{'a.' * 996}b"}
    alone = {"identifier": "a", "traits": [version]}
    several = {"data": [{"identifier": f"{n}", "traits": [version]} for n in range(100)]}
    for name, path, body in (("", IDENTITIES, alone), (", bulk", BULK, several)):
        sent = same(request(path, json.dumps(body).encode()))
        yield Abuser(f"versions{name}", True, sent, document="versions")
        yield Abuser(f"flag cycle{name}", True, sent, document="flag cycle")
        yield Abuser(f"flag cycle, queries{name}", True, sent, document="flag cycle, queries")
    one_byte = b"1;" + b"a" * 250 + b"\r\n \r\n"
    yield Abuser("chunk extensions of 1 MiB", True, same(chunked(one_byte * (MIB // len(one_byte)))))
    yield Abuser("chunk extension without end", True, same(chunked(b"1;" + b"a" * MIB)))
    yield Abuser("chunks of one byte", True, same(chunked(b"1\r\n \r\n" * (MIB // 6))))


def traits_of(value):
    return fill('{"identifier":"a","traits":[', lambda n: f'{{"trait_key":"{n:x}","trait_value":{value}}}', "]}")


# --- connections ---


def connect(address):
    return socket.create_connection(address, 5)


def drain(connection):
    """What has arrived; 0 too if it was closed."""
    total = 0
    try:
        while data := connection.recv(1 << 16):
            total += len(data)
    except (BlockingIOError, ConnectionError):
        pass
    return total


def open_many(address, count, data):
    """Connections that have sent `data`, as long as they are taken."""
    connections = []
    for _ in range(count):
        try:
            connection = connect(address)
            connection.sendall(data)
            connection.setblocking(False)
            connections.append(connection)
        except OSError:
            break
    return connections


def hold(address, until, count, data, drip=b""):
    """Holds `count` connections that sent `data`, and sends a byte of `drip` on each now and then."""
    connections = open_many(address, count, data)
    sent, at = len(data) * len(connections), 0
    while time.monotonic() < until:
        for connection in connections if drip else ():
            try:
                sent += connection.send(drip[at % len(drip) :][:1])
            except OSError:
                pass
        at += 1
        time.sleep(min(0.5, max(0.0, until - time.monotonic())))
    received = sum(drain(connection) for connection in connections)
    for connection in connections:
        connection.close()
    return Tally(len(connections), sent, received)


def slow_heads(address, until):
    return hold(address, until, 500, b"GET / HTTP/1.1\r\nHost: l\r\nX: ", drip=b"a")


def slow_bodies(address, until):
    data = request(IDENTITIES, b" " * MIB, None)[: MIB // 2]
    return hold(address, until, 100, data, drip=b" ")


def slow_readers(address, until):
    get = request(FLAGS, method="GET")
    connections = []
    for _ in range(200):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            connection.connect(address)
            connection.sendall(get * 4)
            connections.append(connection)
        except OSError:
            break
    received = 0
    while time.monotonic() < until:
        for connection in connections:
            try:
                received += len(connection.recv(1, socket.MSG_DONTWAIT))
            except OSError:
                pass
        time.sleep(0.2)
    for connection in connections:
        connection.close()
    return Tally(len(connections), len(get) * 4 * len(connections), received)


def pipelining(address, until):
    """Batches of 200 requests on one connection, the next when the answers are there."""
    batch = request(FLAGS, method="GET") * 200
    units = sent = received = 0
    with connect(address) as connection:
        connection.sendall(batch[: len(batch) // 200])
        time.sleep(0.1)
        length = len(connection.recv(1 << 20))
        while time.monotonic() < until:
            connection.sendall(batch)
            expected = 200 * length
            while expected > 0:
                expected -= len(connection.recv(1 << 20)) or expected
            units, sent, received = units + 200, sent + len(batch), received + 200 * length
            time.sleep(0.01)
    return Tally(units, sent, received)


def connections(address, until):
    """Opens and closes, up to 1,000 a second."""
    units = 0
    while time.monotonic() < until:
        for _ in range(10):
            with connect(address):
                units += 1
        time.sleep(0.01)
    return Tally(units, 0, 0)


def idle(address, until):
    return hold(address, until, 2000, b"")


def streams(address, until):
    get = request(f"/sse/environments/{CLIENT_KEY}/stream", key=None, method="GET")
    return hold(address, until, 2000, get)


def admin_idle(address, until):
    """Twenty idle connections a second, kept open: `address` is the admin listener's here."""
    opened = []
    while time.monotonic() < until:
        opened += open_many(address, 2, b"")
        time.sleep(0.1)
    for connection in opened:
        connection.close()
    return Tally(len(opened), 0, 0)


def floods():
    yield Abuser("slow heads, 500", False, run=slow_heads)
    yield Abuser("slow bodies, 100 of 0.5 MiB", False, run=slow_bodies)
    yield Abuser("idle connections, 2,000", False, run=idle)
    yield Abuser("connections opened and closed", False, run=connections)
    yield Abuser("admin port, idle connections", False, run=admin_idle, honest="admin")
    yield Abuser("slow readers, 200", True, run=slow_readers, document="large")
    yield Abuser("pipelined requests", True, run=pipelining)
    yield Abuser("event streams, 2,000", True, run=streams)


def all_of_them():
    return [*anonymous(), *keyed(), *floods()]
