"""Compares how mutated payloads are framed with two other parsers: parsers.py PORT KEY PAYLOADS SEED

Each payload is sent to the proxy on a new connection whose sending side is then closed, and to h11 and httptools
(llhttp). A difference is what request smuggling requires: both parsers accept every byte without an error and
find a different number of requests, or a different body. Rejecting is not a difference.
Prints each difference, then totals; exits with 1 if there is one, or if too few payloads are accepted by all.
"""
import json, random, socket, sys
from concurrent.futures import ThreadPoolExecutor

import h11, httptools

PATH = '/api/v1/identities/?feature=none'


def head(method, path, fields=''):
    return f'{method} {path} HTTP/1.1\r\nHost: a\r\nX-Environment-Key: $KEY\r\n{fields}\r\n'


def body(name):
    return json.dumps({'identifier': name})


def sized(name):
    text = body(name)
    return head('POST', PATH, f'Content-Type: application/json\r\nContent-Length: {len(text)}\r\n') + text


def chunked(name, extension='', trailer=''):
    text = body(name)
    first, rest = text[:5], text[5:]
    chunks = f'5{extension}\r\n{first}\r\n{len(rest):X}\r\n{rest}\r\n0\r\n{trailer}\r\n'
    return head('POST', PATH, 'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n') + chunks


CORPUS = [text.encode('latin-1') for text in [
    head('GET', PATH + '&identifier=g') + sized('a'),
    sized('a') + sized('b') + sized('c'),
    chunked('a') + sized('b'),
    chunked('a', ';x=y;z="q"', 'X-Sum: 1\r\n') + chunked('b'),
    sized('a') + chunked('b') + head('GET', PATH + '&identifier=g'),
    head('GET', PATH + '&identifier=g', 'Content-Length: 0\r\n') + sized('a'),
    head('GET', PATH + '&identifier=g', 'Connection: keep-alive\r\n') + head('GET', PATH + '&identifier=h', 'Connection: close\r\n'),
    f'GET {PATH}&identifier=g HTTP/1.0\r\nHost: a\r\nX-Environment-Key: $KEY\r\n\r\n',
]]
PIECES = [b'\r\n', b'\n', b'\r', b'\0', b' ', b'\t', b':', b';', b',', b'0', b'1', b'5', b'a', b'F', b'+', b'-', b'0x', b'\x0b', b'\x85',
          b'\xff', b'"', b'Content-Length: 5\r\n', b'Content-Length: 0\r\n', b'Transfer-Encoding: chunked\r\n',
          b'Transfer-Encoding: identity\r\n', b'Transfer-Encoding:\x0bchunked\r\n', b'Connection: close\r\n', b'Host: b\r\n',
          b'Expect: 100-continue\r\n', b' HTTP/1.1', b'0\r\n\r\n', b'\r\n\r\n', b'GET / HTTP/1.1\r\nHost: a\r\n\r\n']


def payload(number, seed, key):
    """Some requests with this key, mutated up to three times."""
    pick = random.Random(seed * 1_000_003 + number)
    data = bytearray(pick.choice(CORPUS).replace(b'$KEY', key.encode()))
    for _ in range(pick.randint(0, 3)):
        at = pick.randrange(len(data))
        kind = pick.randrange(5)
        if kind == 0:
            data[at:at + 1] = pick.choice(PIECES)
        elif kind == 1:
            data[at:at] = pick.choice(PIECES)
        elif kind == 2:
            del data[at:at + pick.randint(1, 4)]
        elif kind == 3:
            # At the start of a line, where fields begin.
            lines = [i + 2 for i in range(len(data) - 1) if data[i:i + 2] == b'\r\n']
            at = pick.choice(lines) if lines else at
            data[at:at] = pick.choice(PIECES)
        else:
            data[at:at] = data[at:at + pick.randint(1, 40)]
    return bytes(data)


class Reading:
    """The parsed requests, and whether the parser rejected or stopped before the last byte."""

    def __init__(self):
        self.bodies, self.ended, self.bytes_in = [], False, b''


def of_llhttp(data):
    reading = Reading()

    class Events:
        def on_message_begin(self): reading.bytes_in = b''
        def on_body(self, part): reading.bytes_in += part
        def on_message_complete(self):
            reading.bodies.append(reading.bytes_in)
            if not parser.should_keep_alive():
                reading.ended = True
                raise StopIteration
    parser = httptools.HttpRequestParser(Events())
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, StopIteration):
        reading.ended = True
    return reading


def of_h11(data):
    reading, server = Reading(), h11.Connection(h11.SERVER)
    try:
        server.receive_data(data)
        while True:
            event = server.next_event()
            if event is h11.NEED_DATA:
                return reading
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                reading.ended = True
                return reading
            if isinstance(event, h11.Request):
                reading.bytes_in = b''
            elif isinstance(event, h11.Data):
                reading.bytes_in += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                reading.bodies.append(reading.bytes_in)
                server.send(h11.Response(status_code=200, headers=[('content-length', '0')]))
                server.send(h11.EndOfMessage())
                if server.our_state is h11.MUST_CLOSE:
                    reading.ended = True
                    return reading
                server.start_next_cycle()
    except h11.ProtocolError:
        reading.ended = True
    return reading


REFUSALS = {408, 413, 414, 415, 417, 431, 501, 505}


def of_proxy(data):
    """Responses identify requests; the response of an identity identifies the body."""
    reading, got = Reading(), b''
    with socket.create_connection(('127.0.0.1', PORT), 10) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                got += part
        except ConnectionError:
            reading.ended = True
    while got:
        top, _, rest = got.partition(b'\r\n\r\n')
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b':') for line in top.split(b'\r\n')[1:])}
        status = int(top.split()[1])
        got = rest[int(fields.get(b'content-length', 0)):] if status >= 200 else rest
        answer = rest[:int(fields.get(b'content-length', 0))]
        if status == 100:
            continue
        if status in REFUSALS or status == 400 and answer == b'{"detail":"Bad request"}':
            reading.ended = True
            break
        reading.bodies.append(json.loads(answer).get('identifier') if status == 200 and answer.startswith(b'{') else None)
        reading.ended = fields.get(b'connection') == b'close'
    return reading


def named(sent):
    try:
        return json.loads(sent)['identifier']
    except (ValueError, KeyError, TypeError):
        return None


def compare(number):
    """Whether all three parsers accept the payload, and how they differ."""
    data, found, whole = payload(number, SEED, KEY), [], True
    ours = of_proxy(data)
    for name, read in ('h11', of_h11), ('httptools', of_llhttp):
        theirs = read(data)
        if ours.ended or theirs.ended:
            whole = False
        elif len(ours.bodies) != len(theirs.bodies):
            found.append(f'{len(ours.bodies)} requests, {name} has {len(theirs.bodies)}: {data!r}')
        for mine, sent in zip(ours.bodies, theirs.bodies):
            # A response without an identifier does not identify the body.
            if mine is not None and sent and named(sent) is not None and named(sent) != mine:
                found.append(f'{mine!r} was read, {name} has {sent!r}: {data!r}')
    return whole, found


def main():
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(compare, range(PAYLOADS)))
    differences = [text for _, found in results for text in found]
    for text in differences[:20]:
        print('DIFFERENT', text)
    whole = sum(whole for whole, _ in results)
    print(f'{PAYLOADS} payloads (seed {SEED}), {whole} accepted by all three, {len(differences)} differences')
    # A comparison in which everything is rejected would prove nothing.
    return 1 if differences or whole < PAYLOADS // 20 else 0


if __name__ == '__main__':
    PORT, KEY, PAYLOADS, SEED = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    sys.exit(main())
