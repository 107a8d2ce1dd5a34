"""Runs public conformance suites against edge-proxy: conformance.py BINARY http1.jsonl|json.jsonl

http1.jsonl   one case per line; tests/fixtures/conformance/README.md describes its members
json.jsonl    the test_parsing files of JSONTestSuite, each as a trait's value, as a body and as a feature's value
Prints a line for each case that fails or that a waiver covers, then totals; exits with 1 if a case failed.
"""
import base64, json, pathlib, re, select, socket, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor

KEY = 'ser.demo-server-side-key'
QUIET = 0.5      # seconds without a byte, after which the response is complete
PATIENCE = 3.0   # seconds without a response, after which none is expected


class Server:
    """The demo, on a port of five digits: lengths in http1.jsonl depend on it."""

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            self.port = probe.getsockname()[1]
        self.log = tempfile.TemporaryFile()
        command = [BINARY, 'demo', '--port', str(self.port), '--admin-port', '0', '--cores', '1']
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(200):
            try:
                if ask(self, 'GET', '/proxy/health/readiness').status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit('the server did not start')

    def __exit__(self, *_):
        alive = self.process.poll() is None
        self.process.terminate()
        self.process.wait(15)
        self.log.seek(0)
        if not alive or b'panic' in self.log.read():
            raise SystemExit('the server died or panicked')


class Answer:
    def __init__(self, status, fields, body):
        self.status, self.fields, self.body = status, fields, body


def answers(data, head):
    """All responses in the received data, and the rest."""
    found = []
    while b'\r\n\r\n' in data:
        top, data = data.split(b'\r\n\r\n', 1)
        lines = top.decode('latin-1').split('\r\n')
        if not re.fullmatch(r'HTTP/1\.[01] [0-9]{3}( .*)?', lines[0]):
            return found, top + data
        status = int(lines[0].split()[1])
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(':')
            fields[name.lower()] = value
        length = 0 if head or status < 200 or status in (204, 304) else int(fields.get('content-length', len(data)))
        found.append(Answer(status, fields, data[:length]))
        data = data[length:]
    return found, data


def pieces(send, server, last):
    """What a step sends: text in Latin-1, [text, times], a pause in seconds, or None: wait for a response."""
    tag = last.fields.get('etag', '').strip() if last else ''
    names = {'$HOST': f'127.0.0.1:{server.port}', '$KEY': KEY, '$ETAG': tag, '$BARE': tag.strip('"'),
             '$MODIFIED': last.fields.get('last-modified', '').strip() if last else ''}
    for piece in send:
        if piece is None or isinstance(piece, (int, float)):
            yield piece
            continue
        text = piece[0] * piece[1] if isinstance(piece, list) else piece
        yield re.sub(r'\$[A-Z]+', lambda name: names.get(name[0], name[0]), text).encode('latin-1')


def receive(connection, quiet, patience):
    data = b''
    while True:
        connection.settimeout(quiet if data else patience)
        try:
            more = connection.recv(65536)
        except TimeoutError:
            return data, 'open'
        except OSError:
            return data, 'close'
        if not more:
            return data, 'close'
        data += more


def exchange(connection, step, server, last, quiet):
    """The outcome of a step, such as `100 200 open`, and its responses."""
    sent = b''
    try:
        for piece in pieces(step['send'], server, last):
            if isinstance(piece, bytes):
                connection.sendall(piece)
                sent += piece
            elif piece is None:
                select.select([connection], [], [], PATIENCE)
            else:
                time.sleep(piece)
    except OSError:
        pass
    data, end = receive(connection, quiet, max(quiet, PATIENCE))
    found, rest = answers(data, sent.startswith(b'HEAD '))
    if rest:
        end = f'garbage={rest[:40]!r} {end}'
    return ' '.join([*(str(answer.status) for answer in found), end]), found


def fits(outcome, pattern):
    """`400 close`, `2xx`, `!101`, `open`, `gone`: without open or close at the end both are allowed."""
    got, want = outcome.split(), pattern.split()
    if want[-1] not in ('open', 'close', 'gone'):
        got = got[:-1]
    one = lambda g, w: (g != w[1:] and g.isdigit()) if w[0] == '!' else g == w or (w[1:] == 'xx' and g[0] == w[0])
    return len(got) == len(want) and all(map(one, got, want))


def amiss(step, found):
    """The first requirement that the last response does not meet."""
    last = found[-1] if found else Answer(0, {}, b'')
    for name, want in step.get('header', {}).items():
        value = last.fields.get(name, '')
        if not (re.search(want[1:], value) if want[0] == '~' else want in value):
            return f'{name}:{value!r} is not {want!r}'
    if step.get('header_absent') in last.fields:
        return f'{step["header_absent"]} is there'
    if step.get('no_body') and last.body:
        return f'a body of {len(last.body)} bytes'
    if step.get('contains', '').encode() not in last.body:
        return f'body {last.body[:60]!r}'
    if step.get('not_contains') and step['not_contains'].encode() in last.body:
        return f'{step["not_contains"]!r} is in the body'
    return None


def http1_case(case, server):
    """`pass`, `tolerated` or `FAIL`, with the outcomes."""
    verdict, outcomes, last, gone = 'pass', [], None, False
    with socket.create_connection(('127.0.0.1', server.port), 5) as connection:
        for step in case['steps']:
            if gone:
                outcome, found = 'gone', []
            else:
                outcome, found = exchange(connection, step, server, last, case.get('wait', QUIET))
                gone, last = outcome.endswith('close'), found[-1] if found else last
                if outcome == 'close' and len(outcomes) > 0:
                    outcome = 'gone'
            outcomes.append(outcome)
            if any(fits(outcome, pattern) for pattern in step['ok']):
                wrong = amiss(step, found) if found and found[-1].status < 400 or 'header' in step else None
                if wrong:
                    return 'FAIL', f'{" | ".join(outcomes)}; {wrong}'
            elif any(fits(outcome, pattern) for pattern in step.get('tolerated', [])):
                verdict = 'tolerated'
            else:
                return 'FAIL', f'{" | ".join(outcomes)}; expected {" or ".join(step["ok"] + step.get("tolerated", []))}'
    return verdict, ' | '.join(outcomes)


def ask(server, method, target, body=b''):
    head = f'{method} {target} HTTP/1.1\r\nHost: h\r\nX-Environment-Key: {KEY}\r\n' \
           f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'
    with socket.create_connection(('127.0.0.1', server.port), 5) as connection:
        connection.sendall(head.encode() + body)
        found, _ = answers(receive(connection, 5, 10)[0], False)
    return found[0] if found else Answer(0, {}, b'')


def python_takes(data):
    """Whether Python's json.loads accepts it, with NaN, UTF-16 and lone surrogates."""
    try:
        json.loads(data)
        return True
    except (ValueError, RecursionError):
        return False


def posted(server, body):
    """Whether a body was accepted as JSON, valid or not; None: another response."""
    answer = ask(server, 'POST', '/api/v1/identities/', body)
    if answer.status == 200:
        return True, answer
    if answer.status == 422:
        return b'"json_invalid"' not in answer.body and body != b'', answer
    return (False if answer.status == 400 else None), answer


def explained(document):
    with tempfile.NamedTemporaryFile(suffix='.json') as file:
        file.write(document)
        file.flush()
        command = [BINARY, 'explain', '--document', file.name, '--identifier', 'x', '--json']
        return subprocess.run(command, capture_output=True, timeout=60)


def json_case(case, server):
    """A body is parsed as by Python's json.loads, a document by RFC 8259 (i: implementation-defined)."""
    text = b''.join(base64.b64decode(part) * times for part, times in case['parts'])
    trait = b'{"identifier":"x","traits":[{"trait_key":"k","trait_value":%s}]}' % text
    outcomes = []
    for name, body in ('body', text), ('trait', trait):
        taken, answer = posted(server, body)
        if taken != python_takes(body):
            outcomes.append(f'{name}: {answer.status} {answer.body[:160].decode("latin-1")}')
    run = explained(server.document.replace(b'"Hello from the edge"', text, 1))
    if run.returncode not in ({'y': [0], 'n': [1], 'i': [0, 1]}[case['expect']]):
        outcomes.append(f'document: exit {run.returncode} {run.stderr[-200:].decode("latin-1").strip()}')
    return ('FAIL', ' / '.join(outcomes)) if outcomes else ('pass', f'document: exit {run.returncode}')


# Requirements of RFC 9110 that are not met, each with its reason.
WAIVED = {
    'www-authenticate': 'a 401 has no WWW-Authenticate (RFC 9110 11.6.1): the key is sent in X-Environment-Key, for which no '
                        'scheme is registered, and a scheme such as Basic would make a browser prompt for a password',
    'h2-preface': 'the preface of HTTP/2 is answered by SETTINGS: h2.jsonl has the cases of HTTP/2',
}

SUITES = {'http1': (http1_case, 16), 'json': (json_case, 2)}


def waived(server):
    """Fails if a waiver is not needed any more."""
    answer = ask(server, 'GET', '/api/v1/flags/')
    bare = f'GET /api/v1/flags/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n'.encode()
    with socket.create_connection(('127.0.0.1', server.port), 5) as connection:
        connection.sendall(bare)
        refused = answers(receive(connection, 5, 10)[0], False)[0][0]
    if answer.status != 200 or refused.status != 401 or 'www-authenticate' in refused.fields:
        raise SystemExit(f'the waiver of WWW-Authenticate does not describe this: {refused.status} {refused.fields}')
    for name, reason in WAIVED.items():
        print(f'waived    {name}: {reason}')


def main(path):
    suite = pathlib.Path(path).stem
    play, workers = SUITES[suite]
    cases = [json.loads(line) for line in open(path)]
    counts = {'pass': 0, 'tolerated': 0, 'FAIL': 0}
    with Server() as server, ThreadPoolExecutor(workers) as pool:
        server.document = ask(server, 'GET', '/api/v1/environment-document/').body
        if suite == 'http1':
            waived(server)
        for case, (verdict, how) in zip(cases, pool.map(lambda case: play(case, server), cases)):
            if case['id'] in WAIVED:
                # A response that is not HTTP/1.1, as the waiver says.
                verdict = 'tolerated' if verdict == 'FAIL' and how.startswith('garbage=') else 'FAIL'
            counts[verdict] += 1
            if verdict == 'FAIL':
                why = f' ({case["level"]}, RFC {case["rfc"]}: {case["why"]})' if 'why' in case else ''
                print(f'{verdict:9} {suite} {case["id"]}: {how}{why}')
    print(f'{suite}: {len(cases)} cases, {counts["pass"]} pass, {counts["tolerated"]} tolerated, {counts["FAIL"]} failed')
    return 1 if counts['FAIL'] else 0


if __name__ == '__main__':
    BINARY = sys.argv[1]
    sys.exit(main(sys.argv[2]))
