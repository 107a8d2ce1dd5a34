"""The same mutated requests at the proxy and at other servers: mutants.py BINARY MUTANTS [SEED]

The servers are nginx, HAProxy, Apache and node where they are installed, and the parsers h11 and httptools. The proxy
must be as strict as the strictest server that accepts a payload: each request that it accepts must be accepted by
another one, and where it takes a payload as a whole, so must another one, as the same number of requests. Of several
that take it as a whole the strictest one counts, which is the one that refuses most mutants of the run.
Prints each violation, how often the other servers violate the same rule, how much each refuses, then totals. Exits
with 1 if the proxy violates it, or if the run proves nothing: few mutants accepted, or no server that violates it.
"""
import collections, concurrent.futures, multiprocessing, pathlib, sys, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'python'))
import parsers
import servers

KEY = 'ser.demo-server-side-key'


def of_parser(read, data):
    found = read(data)
    return len(found.bodies), 'refused' if found.ended else 'whole'


def judge(number):
    """The readings of a mutant by name; ours is `edge-proxy`."""
    data = parsers.payload(number, SEED, KEY)
    found = {'h11': of_parser(parsers.of_h11, data), 'httptools': of_parser(parsers.of_llhttp, data)}
    for name, port in PORTS.items():
        found[name] = servers.reading(port, data)
    return number, found


def violation(found, strictness, judged='edge-proxy'):
    """Why a server is more lenient than the others, or None."""
    accepted, end = found[judged]
    others = {name: one for name, one in found.items() if name not in (judged, 'edge-proxy')}
    if accepted > max(count for count, _ in others.values()):
        return f'{accepted} requests accepted, the others accept fewer'
    if end != 'whole':
        return None
    whole = [name for name, (_, end) in others.items() if end == 'whole']
    if not whole:
        # A parser that was told to stop says nothing about what follows.
        return None if any(end == 'closed' for _, end in others.values()) else 'accepted as a whole, by no other'
    strictest = max(whole, key=lambda name: strictness[name])
    if others[strictest][0] != accepted:
        return f'{accepted} requests, {strictest} has {others[strictest][0]}'
    return None


def start_proxy():
    port = servers.free_port()
    command = [BINARY, 'demo', '--port', str(port), '--admin-port', '0', '--cores', '1']
    process = servers.spawn(command)
    for _ in range(400):
        try:
            if servers.responses(port, b'GET /proxy/health/liveness HTTP/1.0\r\n\r\n')[0] == [200]:
                return process, port
        except OSError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    raise SystemExit('the proxy did not start')


def initialize(ports):
    global PORTS
    PORTS = ports


def threads(numbers):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(judge, numbers))


def main():
    process, port = start_proxy()
    readings = {}
    with servers.Servers() as others:
        names = ['h11', 'httptools', *others.ports]
        ports = {**others.ports, 'edge-proxy': port}
        blocks = [range(at, min(at + 200, MUTANTS)) for at in range(0, MUTANTS, 200)]
        with multiprocessing.get_context('fork').Pool(2, initialize, (ports,)) as pool:
            for block in pool.imap_unordered(threads, blocks):
                readings.update(block)
        missing = others.missing
    alive = process.poll() is None
    process.terminate()
    process.wait(20)
    if not alive:
        raise SystemExit('the proxy died')
    return report(readings, names, missing)


def report(readings, names, missing):
    refusals = collections.Counter(name for found in readings.values() for name, (_, end) in found.items() if end == 'refused')
    violations, whole = [], 0
    for number in sorted(readings):
        whole += readings[number]['edge-proxy'][1] == 'whole'
        problem = violation(readings[number], refusals)
        if problem is not None:
            data = parsers.payload(number, SEED, KEY)
            violations.append(f'{problem}: mutant {number}: {data!r}: {readings[number]}')
    for text in violations[:20]:
        print('VIOLATION', text)
    for name in missing:
        print(f'missing   {name} is not installed')
    lenient = {name: sum(violation(found, refusals, name) is not None for found in readings.values()) for name in names}
    print(f'lenient   by the same rule: {", ".join(f"{name} {count}" for name, count in lenient.items())}')
    shares = [f'{name} {refusals[name] * 100 // max(len(readings), 1)} %' for name in ['edge-proxy', *names]]
    print(f'refused   {", ".join(shares)}')
    print(f'mutants: {len(readings)} mutants (seed {SEED}), {len(names)} servers, {whole} accepted as a whole, '
          f'{len(violations)} violations')
    # A rule that holds for every server would prove nothing.
    return 1 if violations or whole < len(readings) // 20 or not any(lenient.values()) else 0


if __name__ == '__main__':
    BINARY, MUTANTS, SEED = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    sys.exit(main())
