"""Plays http2.jsonl against a server: http2_conformance.py CASES HOST:PORT [--tls] [--path /] [--field name:value] [-v] [id ...]

Without --tls it is HTTP/2 by prior knowledge, with it ALPN without verification of the certificate. Prints a line for
each case that fails (-v: for every case), then totals; exits with 1 if a case failed. With --pid the resident memory of
that process is printed after each case of abuse. tests/fixtures/conformance/README.md says what the members of a case mean.
"""
import argparse, json, pathlib, select, socket, ssl, sys, time
from hpack import Decoder, HPACKError
from hyperframe.frame import Frame

TYPES = ['DATA', 'HEADERS', 'PRIORITY', 'RST_STREAM', 'SETTINGS', 'PUSH_PROMISE', 'PING', 'GOAWAY', 'WINDOW_UPDATE', 'CONTINUATION']
FLAGS = {'END_STREAM': 1, 'ACK': 1, 'END_HEADERS': 4, 'PADDED': 8, 'PRIORITY': 32}
CODES = ['NO_ERROR', 'PROTOCOL_ERROR', 'INTERNAL_ERROR', 'FLOW_CONTROL_ERROR', 'SETTINGS_TIMEOUT', 'STREAM_CLOSED', 'FRAME_SIZE_ERROR',
         'REFUSED_STREAM', 'CANCEL', 'COMPRESSION_ERROR', 'CONNECT_ERROR', 'ENHANCE_YOUR_CALM', 'INADEQUATE_SECURITY', 'HTTP_1_1_REQUIRED']
PREFACE = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
PATIENCE = 2.0   # seconds for what is expected
FLOOD = 15.0     # the same after a flood


class Closed(Exception):
    pass


class Skip(Exception):
    pass


def integer(value, bits, first=0):
    """An integer as HPACK writes it (RFC 7541 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    value, out = value - limit, [first | limit]
    while value >= 128:
        out.append(0x80 | value & 0x7f)
        value >>= 7
    return bytes([*out, value])


def block(fields):
    """Fields as literals that enter no table, so that no case depends on another block."""
    text = lambda s: integer(len(s), 7) + s.encode('latin-1')
    return b''.join(b'\0' + text(name) + text(value) for name, value in fields)


class Connection:
    def __init__(self):
        self.socket = socket.create_connection((HOST, PORT), 5)
        if ARGUMENTS.tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(['h2'])
            self.socket = context.wrap_socket(self.socket, server_hostname=HOST)
            if self.socket.selected_alpn_protocol() != 'h2':
                raise SystemExit('the server does not offer h2')
        self.socket.setblocking(False)
        self.received, self.out = b'', b''
        self.events, self.mark, self.closed = [], 0, False
        self.decoder, self.fragment = Decoder(), b''
        self.settings, self.highest, self.last, self.same = {}, -1, 1, []

    def pump(self, seconds, write=True):
        """Reads, and writes what waits to be written, for so long or until something was read."""
        if self.closed:
            return False
        if not (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
            readable, writable, _ = select.select([self.socket], [self.socket] if write and self.out else [], [], seconds)
        else:
            readable, writable = [self.socket], []
        try:
            if writable:
                self.out = self.out[self.socket.send(self.out[:65536]):]
            if readable:
                data = self.socket.recv(65536)
                if not data:
                    self.closed = True
                self.received += data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            pass
        except OSError:
            self.closed = True
        self.parse()
        return bool(readable) or self.closed

    def parse(self):
        while len(self.received) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self.received[:9]))
            if len(self.received) < 9 + length:
                return
            payload, self.received = self.received[9:9 + length], self.received[9 + length:]
            kind = TYPES[frame.type] if frame.type < len(TYPES) else 'UNKNOWN'
            event = {'frame': kind, 'stream': frame.stream_id, 'length': length, 'flags': set(frame.flags), 'payload': payload}
            if kind == 'GOAWAY':
                event['code'] = CODES[int.from_bytes(payload[4:8], 'big')]
            if kind == 'RST_STREAM':
                event['code'] = CODES[int.from_bytes(payload, 'big')]
            if kind == 'SETTINGS' and 'ACK' not in event['flags']:
                for at in range(0, length, 6):
                    self.settings[int.from_bytes(payload[at:at + 2], 'big')] = int.from_bytes(payload[at + 2:at + 6], 'big')
            if kind in ('HEADERS', 'CONTINUATION'):
                frame.parse_body(memoryview(payload))
                self.fragment += frame.data
                if 'END_HEADERS' in event['flags']:
                    fields = dict(self.decoder.decode(self.fragment, raw=True))
                    self.fragment, event['status'] = b'', fields.get(b':status', b'').decode()
            self.events.append(event)

    def flush(self, seconds=FLOOD):
        end = time.monotonic() + seconds
        while self.out and not self.closed and time.monotonic() < end:
            self.pump(0.5)

    def until(self, met, seconds):
        end = time.monotonic() + seconds
        while not met() and not self.closed and (left := end - time.monotonic()) > 0:
            self.pump(left)
        return met()

    def raw(self, data):
        self.out += data
        if len(self.out) > 1 << 16:
            self.flush()
        if self.closed:
            raise Closed

    def frame(self, kind, flags, stream, payload):
        self.raw(len(payload).to_bytes(3, 'big') + bytes([TYPES.index(kind), flags]) + stream.to_bytes(4, 'big') + payload)

    def handshake(self):
        self.raw(PREFACE)
        self.frame('SETTINGS', 0, 0, bytes.fromhex('00040000ffff'))
        settled = lambda: {'ACK' in e['flags'] for e in self.events if e['frame'] == 'SETTINGS'} == {True, False}
        self.flush()
        if not self.until(settled, 5):
            raise SystemExit(f'no handshake: {self.received_text()}')
        self.frame('SETTINGS', 1, 0, b'')
        self.mark = len(self.events)

    def stream(self, name):
        number = {'next': self.highest + 2, 'last': self.last}.get(name, name)
        self.last, self.highest = number, max(self.highest, number | 1 if number else -1)
        return number

    def fields(self, listed):
        if listed == '$same':
            return self.same
        out = []
        for entry in [listed] if isinstance(listed, str) else listed:
            if isinstance(entry, str):
                method = {'$get': 'GET', '$post': 'POST'}[entry]
                out += [(':method', method), (':scheme', '$scheme'), (':path', '$path'), (':authority', '$authority'), *ARGUMENTS.field]
            else:
                out.append(tuple(entry))
        names = {'$scheme': 'https' if ARGUMENTS.tls else 'http', '$path': ARGUMENTS.path, '$authority': f'{HOST}:{PORT}'}
        self.same = [(name, names.get(value, value)) for name, value in out]
        return self.same

    def fragment_of(self, op):
        if op.get('hpack') is not None:
            return bytes.fromhex(op['hpack'])
        out = block(self.fields(op['fields']))
        if 'hpack_before' in op:
            hex = op['hpack_before']
            out = (integer(self.settings.get(1, 4096) + 1, 5, 0x20) if hex[0] == '$' else bytes.fromhex(hex)) + out
        out += bytes.fromhex(op.get('hpack_after', ''))
        if 'hpack_fill' in op:
            left = op['hpack_fill'] - len(out) - 6
            out += b'\0\x01x' + integer(left, 7) + b'x' * left
        if 'cut' in op:
            out = out[slice(*op['cut'])]
        return out

    def do(self, op):
        if 'raw' in op:
            return self.raw(bytes.fromhex(op['raw']))
        if 'repeat' in op:
            times = op['repeat'] if isinstance(op['repeat'], int) else self.settings.get(3)
            if times is None or times > 100000:
                raise Skip('no limit of streams')
            for _ in range(times):
                for inner in op['do']:
                    self.do(inner)
            return None
        if 'wait' in op:
            self.flush()
            met = {'settings-ack': lambda: any(e['frame'] == 'SETTINGS' and 'ACK' in e['flags'] for e in self.events[self.mark:]),
                   'stream-closed': lambda: any('END_STREAM' in e['flags'] for e in self.events[self.mark:]),
                   'DATA': lambda: any(e['frame'] == 'DATA' for e in self.events[self.mark:])}[op['wait']]
            if not self.until(met, PATIENCE):
                raise Skip(f'waited for {op["wait"]}: {self.received_text()}')
            self.mark = len(self.events)
            return None
        kind, stream = op['frame'], self.stream(op['stream']) if op.get('stream') is not None else 0
        flags = sum({FLAGS[name] for name in op.get('flags', [])})
        if 'settings' in op:
            payload = b''.join(name.to_bytes(2, 'big') + value.to_bytes(4, 'big') for name, value in op['settings'])
        elif 'text' in op:
            payload = (op['text'] if isinstance(op['text'], str) else op['text'][0] * op['text'][1]).encode('latin-1')
        elif 'fields' in op:
            payload = bytes.fromhex(op.get('prefix', '')) + self.fragment_of(op)
        else:
            payload = bytes.fromhex(op.get('hex', ''))
        if 'priority' in op:
            payload = op['priority'][0].to_bytes(4, 'big') + bytes([op['priority'][1]]) + payload
        if 'pad' in op:
            payload = bytes([op['pad']]) + payload + bytes(op['pad'])
        if 'pad_claim' in op:
            payload = bytes([len(payload) + 2]) + payload
        return self.frame(kind, flags, stream, payload)

    def fits(self, want):
        events = self.events[self.mark:]
        first = lambda kind, **more: next((e for e in events if e['frame'] == kind and all(e.get(k) == v for k, v in more.items())), None)
        goaway = first('GOAWAY')
        if 'connection_error' in want or 'stream_error' in want:
            codes = want.get('connection_error') or want['stream_error']
            stream = self.last if want.get('stream') == 'last' else want.get('stream')
            reset = 'stream_error' in want and first('RST_STREAM', stream=stream)
            return bool(reset and reset['code'] in codes or (goaway['code'] in codes if goaway else self.closed))
        if 'goaway' in want:
            return bool(goaway and goaway['code'] in want['goaway'])
        if 'close' in want:
            return self.closed
        if 'answer' in want:
            answer = first('HEADERS', stream=want['answer'])
            status = want.get('status', answer['status'] if answer else '')
            return bool(answer and (answer['status'] == status or status[1:] == 'xx' and answer['status'][0] == status[0]))
        if 'data' in want:
            data = first('DATA', stream=want['data'])
            return bool(data and data['length'] == want.get('length', data['length']))
        if 'ping' in want:
            return any(e['frame'] == 'PING' and 'ACK' in e['flags'] and e['payload'].hex() == want['ping'] for e in events)
        if 'settings_ack' in want:
            return any(e['frame'] == 'SETTINGS' and 'ACK' in e['flags'] for e in events)
        return bool(self.events) and self.events[0]['frame'] == want['first'] and 'ACK' not in self.events[0]['flags']

    def received_text(self):
        """What came, in short."""
        out = []
        for e in self.events[self.mark:]:
            word = f'{e["frame"]} {e["stream"]} {e.get("code") or e.get("status") or ("ACK" if "ACK" in e["flags"] else e["length"])}'
            out.append(word)
        out = out if len(out) < 7 else [*out[:3], f'... {len(out)} frames ...', *out[-3:]]
        return ', '.join(out + (['closed'] if self.closed else ['open']))


def play(case):
    """`pass`, `tolerated`, `FAIL` or `n/a`, and what came."""
    connection = Connection()
    flood = case['id'].startswith('abuse-')
    try:
        if case.get('handshake', True):
            connection.handshake()
        for op in case['do']:
            connection.do(op)
        connection.flush()
    except Closed:
        pass
    except Skip as why:
        return 'n/a', str(why)
    met = lambda: any(map(connection.fits, case['expect'])) and all(map(connection.fits, case.get('also', [])))
    verdict = 'pass' if connection.until(met, FLOOD if flood else PATIENCE) else 'FAIL'
    if verdict == 'FAIL' and any(map(connection.fits, case.get('tolerated', []))):
        verdict = 'tolerated'
    if 'never' in case:
        connection.pump(0.2)
        verdict = 'FAIL' if connection.fits(case['never']) else verdict
    came = connection.received_text()
    if case.get('others'):
        began = time.monotonic()
        other = Connection()
        other.handshake()
        other.do({'frame': 'HEADERS', 'stream': 1, 'flags': ['END_STREAM', 'END_HEADERS'], 'fields': '$get'})
        other.flush()
        if not other.until(lambda: other.fits({'answer': 1}), 3):
            verdict = 'FAIL'
        came += f'; others were answered after {time.monotonic() - began:.3f} s'
        other.socket.close()
        if ARGUMENTS.pid:
            status = pathlib.Path(f'/proc/{ARGUMENTS.pid}/status').read_text()
            came += f', {status.split("VmRSS:")[1].split()[0]} kB resident'
    connection.socket.close()
    return verdict, came


def main():
    counts = {'pass': 0, 'tolerated': 0, 'FAIL': 0, 'n/a': 0}
    for line in ARGUMENTS.cases.open():
        case = json.loads(line)
        if ARGUMENTS.only and case['id'] not in ARGUMENTS.only:
            continue
        try:
            verdict, came = play(case)
        except (OSError, HPACKError) as error:
            verdict, came = 'FAIL', repr(error)
        counts[verdict] += 1
        if verdict == 'FAIL' or ARGUMENTS.verbose:
            print(f'{verdict:4} {case["id"]}: {came}; expected {json.dumps(case["expect"])} ({case["level"]}, RFC {case["rfc"]}: {case["why"]})', flush=True)
    print(f'{sum(counts.values())} cases, {counts["pass"]} pass, {counts["tolerated"]} tolerated, {counts["n/a"]} not applicable, {counts["FAIL"]} failed')
    return 1 if counts['FAIL'] else 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', type=pathlib.Path)
    parser.add_argument('server')
    parser.add_argument('only', nargs='*')
    parser.add_argument('--tls', action='store_true')
    parser.add_argument('--path', default='/')
    parser.add_argument('--field', action='append', default=[], type=lambda text: tuple(text.split(':', 1)))
    parser.add_argument('--pid', type=int)
    parser.add_argument('-v', dest='verbose', action='store_true')
    ARGUMENTS = parser.parse_args()
    HOST, PORT = ARGUMENTS.server.rsplit(':', 1)
    PORT = int(PORT)
    sys.exit(main())
