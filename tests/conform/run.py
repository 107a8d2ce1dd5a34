"""Runs all conformance suites against a binary and writes docs/conformance.md: run.py BINARY [SUITE...]

Prints a line for each suite, and the output of one that fails. Data that this project may not copy is in the folder
EDGE_PROXY_SHARED (default ../shared). A suite whose data or tool is missing fails: a table without it would look complete.
"""
import collections, json, os, pathlib, re, shutil, subprocess, sys, tempfile, time

import proxy, servers

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get('EDGE_PROXY_SHARED', ROOT.parent / 'shared'))
FIXTURES = ROOT / 'tests/fixtures/conformance'
TESTS, CONFORM, SDK = (str(ROOT / f'.venv/{name}/bin') for name in ('tests', 'conform', 'sdk'))
MUTANTS = int(os.environ.get('MUTANTS', 100_000))
SECONDS_MAX = 600
BINARY = ''

# version, cases, passed; the reason of each waiver with the number of its cases; the output if it failed; a note.
Result = collections.namedtuple('Result', 'version cases passed waived failure note', defaults=({}, None, None))


def run(*command, seconds=400, **options):
    """The exit code and the output of a program."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, **options)
    return done.returncode, done.stdout


def tolerated_note(count):
    return f'{count} of the passed cases have an outcome that the RFC leaves to the server' if count else None


def of_script(version, *command):
    """A script that ends with `name: N cases, N pass, ...` and prints `waived NAME: REASON`."""
    code, text = run(*command)
    total = re.search(r'(\d+) cases, (\d+) pass(?:, (\d+) tolerated)?', text)
    if code or not total:
        return Result(version, 0, 0, failure=text)
    waived = collections.Counter(re.findall(r'^waived +[^:]+: (.*)$', text, re.M))
    cases, passed, tolerated = (int(number or 0) for number in total.groups())
    note = tolerated_note(tolerated)
    return Result(version, cases, passed + tolerated, dict(waived), note=note)


def demo():
    return json.loads((ROOT / 'src/demo/environment.json').read_text())


def http1():
    result = of_script('Http11Probe 95bc6a9, and cases of this project', f'{TESTS}/python', ROOT / 'tests/python/conformance.py', BINARY, FIXTURES / 'http1.jsonl')
    # `tolerated` of the waived case; the other waiver is of a requirement of RFC 9110 that no case of the suite has.
    waived = {reason: int('h2.jsonl' in reason) for reason in result.waived}
    tolerated = int(result.note.split()[0]) - sum(waived.values()) if result.note else 0
    note = tolerated_note(tolerated)
    return result._replace(passed=result.passed - sum(waived.values()), waived=waived, note=note)


def http2(tls):
    with proxy.Proxy(BINARY, demo(), tls=tls) as own:
        field = f'x-environment-key:{proxy.SERVER_KEY}'
        return of_script('h2spec af83a65, and cases of this project', f'{TESTS}/python', ROOT / 'tests/python/http2_conformance.py', FIXTURES / 'http2.jsonl',
                         f'127.0.0.1:{own.port}', '--path', '/api/v1/flags/', '--field', field, *(['--tls'] if tls else []))


def json_files():
    return of_script('JSONTestSuite 1ef36fa', f'{TESTS}/python', ROOT / 'tests/python/conformance.py', BINARY, SHARED / 'conformance/json.jsonl')


def jsonpath():
    return of_script('compliance test suite 7be7c1f', f'{TESTS}/python', ROOT / 'tests/conform/jsonpath.py', BINARY, SHARED / 'conformance/jsonpath/cts.json')


def engine_test_data():
    cargo = os.environ.get('CARGO', 'cargo')
    code, text = run(cargo, 'test', '--locked', '--lib', 'shared_engine_cases_pass', '--', '--nocapture', seconds=1500, cwd=ROOT)
    found = re.search(r'engine-test-data: (\d+) cases', text)
    if code or not found:
        return Result('2.0.0', 0, 0, failure=text)
    return Result('2.0.0', int(found[1]), int(found[1]), note='the reason DEFAULT of this version is read as STATIC where engine 11.1.1 says so')


def sslyze():
    with proxy.Proxy(BINARY, demo(), tls=True) as own, tempfile.NamedTemporaryFile(suffix='.json') as file:
        # Its exit code says whether the server complies with Mozilla's intermediate configuration.
        code, text = run(f'{CONFORM}/sslyze', '--json_out', file.name, '--certinfo_ca_file', own.authority, f'localhost:{own.port}')
        scans = json.load(file)['server_scan_results'][0]['scan_result']
    found = {name: scan['result'] for name, scan in scans.items() if scan and scan['status'] == 'COMPLETED'}
    suites = {name: found.get(f'{name}_cipher_suites', {}).get('is_tls_version_supported') for name in ('ssl_2_0', 'ssl_3_0', 'tls_1_0', 'tls_1_1', 'tls_1_2', 'tls_1_3')}
    checks = {name: is_supported == (name in ('tls_1_2', 'tls_1_3')) for name, is_supported in suites.items()}
    checks |= {
        'mozilla intermediate': code == 0 and 'OK - Compliant' in text,
        'no compression': found['tls_compression']['supports_compression'] is False,
        'no CCS injection': found['openssl_ccs_injection']['is_vulnerable_to_ccs_injection'] is False,
        'no heartbleed': found['heartbleed']['is_vulnerable_to_heartbleed'] is False,
        'no ROBOT': found['robot']['robot_result'].startswith('NOT_VULNERABLE'),
        'fallback SCSV': found['tls_fallback_scsv']['supports_fallback_scsv'] is True,
        'secure renegotiation': found['session_renegotiation']['supports_secure_renegotiation'] is True,
        'no renegotiation by clients': found['session_renegotiation']['is_vulnerable_to_client_renegotiation_dos'] is False,
        'extended master secret': found['tls_extended_master_secret']['supports_ems_extension'] is True,
    }
    failed = [name for name, is_met in checks.items() if not is_met]
    return Result(version_of_package('conform', 'sslyze'), len(checks), len(checks) - len(failed), failure=f'{text}\n{failed}' if failed else None)


# Findings of testssl.sh that are not met, each with its reason.
TESTSSL_WAIVED = {
    'cipher_order': 'every cipher suite offered is AEAD with forward secrecy, so the client chooses the one that is fast for it (as Mozilla recommends)',
    'cert_revocation': 'the certificate is of this run',
    'DNS_CAArecord': 'the certificate is of this run',
}


def testssl():
    with proxy.Proxy(BINARY, demo(), tls=True) as own, tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / 'found.json'
        environment = {'PATH': os.environ['PATH'], 'HOME': folder, 'TERM': 'dumb'}
        code, text = run('testssl', '--quiet', '--warnings', 'off', '--color', '0', '--jsonfile', file, '--add-ca', own.authority,
                         '-p', '-s', '-f', '-P', '-S', '-U', f'localhost:{own.port}', env=environment)
        found = json.loads(file.read_text())
    # WARN is a check that the tool could not make, such as one of its own OpenSSL; INFO is neither good nor bad.
    found = [one for one in found if one['severity'] not in ('INFO', 'WARN')]
    bad = {one['id']: f'{one["severity"]} {one["finding"]}' for one in found if one['severity'] != 'OK'}
    failed = {name: text for name, text in bad.items() if name not in TESTSSL_WAIVED}
    failed |= {name: 'the waiver covers nothing' for name in TESTSSL_WAIVED.keys() - bad.keys()}
    waived = collections.Counter(TESTSSL_WAIVED[name] for name in bad.keys() & TESTSSL_WAIVED.keys())
    version = re.search(r'testssl +([\d.]+)', run('testssl', '--version')[1])
    # Fewer would be a scan that did not reach the server.
    failure = f'{text}\n{failed}' if failed or len(found) < 38 else None
    return Result(version[1] if version else '', len(found), len(found) - len(bad), dict(waived), failure)


def redbot():
    routes = [('/api/v1/flags/', [proxy.SERVER_KEY]), ('/api/v1/flags/?feature=banner', [proxy.SERVER_KEY]), ('/api/v1/flags/', [proxy.CLIENT_KEY]),
              ('/api/v1/environment-document/', [proxy.SERVER_KEY]), ('/openapi.json', []), ('/docs', []), ('/', [])]
    cases, failed = 0, []
    with proxy.Proxy(BINARY, demo()) as own:
        feature = demo()['feature_states'][0]['feature']['name']
        for path, keys in routes:
            code, text = run(f'{CONFORM}/python', ROOT / 'tests/conform/caching.py', own.origin + path.replace('banner', feature), *keys, seconds=60)
            found = json.loads(text.splitlines()[-1]) if code == 0 and text else {'status': 0, 'notes': [{'level': 'bad', 'id': 'none', 'text': text}], 'supports': {}}
            judged = [note for note in found['notes'] if note['level'] != 'info']
            cases += 1 + len(judged)
            failed += [] if str(found['status']) == '200' else [f'{path}: {found["status"]}']
            failed += [f'{path}: {note["id"]}: {note["text"]}' for note in judged if note['level'] != 'good']
            if 'flags/' in path and '?' not in path or 'document' in path:
                cases += len(found['supports'])
                failed += [f'{path}: no support of {name}' for name, is_met in found['supports'].items() if is_met is not True]
    return Result(version_of_package('conform', 'redbot'), cases, cases - len(failed), failure='\n'.join(failed) or None)


def version_of_package(venv, package):
    code, text = run(ROOT / f'.venv/{venv}/bin/pip', 'show', package)
    found = re.search(r'^Version: (.*)$', text, re.M)
    return found[1] if found else ''


def version_of_module(package):
    return json.loads((ROOT / f'tests/sdk/node_modules/{package}/package.json').read_text())['version']


def openfeature_document():
    """The flags of OpenFeature's scenarios."""
    document = demo()
    values = {'boolean-flag': None, 'string-flag': 'hi', 'integer-flag': 10, 'float-flag': 0.5, 'object-flag': '{"showImages":true}', 'context-aware': 'EXTERNAL',
              'wrong-flag': 'uno', 'disabled-boolean': None, 'disabled-string': 'unseen', 'text-flag': '"é"\n日本 😀\\', 'empty-flag': '', 'negative-flag': -7,
              'boolean-variant': False, 'string-variant': 'bye', 'integer-variant': 1}
    variants = {'boolean-variant': ('on', True), 'string-variant': ('greeting', 'hi'), 'integer-variant': ('ten', 10)}

    def state(at, name, value):
        options = [{'id': at, 'percentage_allocation': 100.0, 'mv_fs_value_uuid': f'00000000-0000-4000-9000-{at:012}',
                    'multivariate_feature_option': {'id': at, 'key': key, 'value': option}} for key, option in [variants[name]]] if name in variants else []
        return {'feature': {'id': at, 'name': name, 'type': 'MULTIVARIATE' if options else 'STANDARD'}, 'enabled': not name.startswith('disabled'),
                'feature_state_value': value, 'django_id': at, 'featurestate_uuid': f'00000000-0000-4000-8000-{at:012}', 'feature_segment': None,
                'multivariate_feature_state_values': options}
    document['feature_states'] = [state(1 + at, name, value) for at, (name, value) in enumerate(values.items())]
    document['identity_overrides'] = []
    document['project']['server_key_only_feature_ids'] = []
    conditions = [{'operator': 'EQUAL', 'property_': name, 'value': value} for name, value in [('fn', 'Sulisław'), ('ln', 'Świętopełk'), ('age', '29'), ('customer', 'false')]]
    document['project']['segments'] = [{'id': 1, 'name': 'internal', 'rules': [{'type': 'ALL', 'conditions': conditions, 'rules': []}],
                                        'feature_states': [state(6, 'context-aware', 'INTERNAL')]}]
    return document


def openfeature(version, *command):
    with proxy.Proxy(BINARY, openfeature_document(), allow_origins=['*']) as own:
        code, text = run(*command, own.origin, proxy.CLIENT_KEY, cwd=ROOT / 'tests/sdk')
    results = [json.loads(line) for line in text.splitlines() if line.startswith('{')]
    waived = collections.Counter(one['waived'] for one in results if not one['ok'] and one.get('waived'))
    failed = [one for one in results if not one['ok'] and not one.get('waived')]
    failed += [{**one, 'problem': 'the waiver covers nothing'} for one in results if one['ok'] and one.get('waived')]
    failure = '\n'.join([*map(json.dumps, failed), text if code or not results else '']) if failed or code or len(results) < 20 else None
    return Result(version, len(results), sum(one['ok'] for one in results), dict(waived), failure)


def contracts():
    cargo = os.environ.get('CARGO', 'cargo')
    code, text = run(cargo, 'test', '--locked', '--test', 'sdk', 'holds', '--', '--nocapture', seconds=1500, cwd=ROOT)
    found = re.findall(r'(\d+) generated, (\d+) passed', text)
    version = version_of_package('sdk', 'schemathesis')
    if code or len(found) != 3:
        return Result(version, 0, 0, failure=text)
    return Result(version, sum(int(cases) for cases, _ in found), sum(int(passed) for _, passed in found))


def mutants():
    code, text = run(f'{TESTS}/python', ROOT / 'tests/conform/mutants.py', BINARY, MUTANTS)
    total = re.search(r'(\d+) mutants \(seed (\d+)\), (\d+) servers, .* (\d+) violations', text)
    versions = [f'{name} {servers.version_of(name)}' for name in ('nginx', 'haproxy', 'apache2', 'node')]
    versions += [f'{name} {version_of_package("tests", name)}' for name in ('h11', 'httptools')]
    if code or not total or int(total[3]) < 6:
        return Result(', '.join(versions), 0, 0, failure=text)
    return Result(', '.join(versions), int(total[1]), int(total[1]) - int(total[4]))


SUITES = {
    'HTTP/1.1': http1,
    'HTTP/2, cleartext': lambda: http2(False),
    'HTTP/2, TLS': lambda: http2(True),
    'requests as strict as other servers': mutants,
    'JSON parsing': json_files,
    'JSONPath': jsonpath,
    'engine-test-data': engine_test_data,
    'TLS by sslyze': sslyze,
    'TLS by testssl.sh': testssl,
    'caching by REDbot': redbot,
    'OpenFeature scenarios, servers (JavaScript)': lambda: openfeature(f'@openfeature/ofrep-provider {version_of_module("@openfeature/ofrep-provider")}', 'node', 'scenarios.mjs'),
    'OpenFeature scenarios, web': lambda: openfeature(f'@openfeature/ofrep-web-provider {version_of_module("@openfeature/ofrep-web-provider")}', 'node', 'scenarios-web.mjs'),
    'OpenFeature scenarios, Python': lambda: openfeature(f'openfeature-provider-ofrep {version_of_package("sdk", "openfeature-provider-ofrep")}', f'{SDK}/python', 'scenarios.py'),
    'contracts by schemathesis': contracts,
}

HEADER = """# Conformance

Written by `make conform`. A waived case is one that is not met, for the reason below. [differences.md](differences.md) lists
where the proxy differs from Flagsmith's on purpose.

| suite | version | cases | passed | waived |
|---|---|---:|---:|---:|
"""
MUTANTS_NOTE = """
"Requests as strict as other servers" sends the same mutated requests to the proxy and to the servers of that row. Each request that
the proxy accepts must be accepted by another one; a payload that it takes as a whole must be taken as the same number of
requests by the strictest server that takes it.
"""


COUNTED = {0: 'required, though no case tests it', 1: '1 case'}


def write_table(results):
    rows = ''.join(f'| {name} | {one.version} | {one.cases:,} | {one.passed:,} | {sum(one.waived.values())} |\n' for name, one in results.items())
    reasons = [f'- {name}: {COUNTED.get(count, f"{count} cases")}: {reason}.\n' for name, one in results.items() for reason, count in one.waived.items()]
    notes = ''.join(f'\n{name}: {one.note}.\n' for name, one in results.items() if one.note)
    text = HEADER + rows + MUTANTS_NOTE + notes + '\n## Waived\n\n' + ''.join(reasons)
    (ROOT / 'docs/conformance.md').write_text(text)


def main(wanted):
    began, results = time.monotonic(), {}
    for name, suite in SUITES.items():
        if wanted and name not in wanted:
            continue
        start = time.monotonic()
        try:
            result = suite()
        except (OSError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
            result = Result('', 0, 0, failure=repr(error))
        results[name] = result
        took = time.monotonic() - start
        print(f'conform | {name}: {result.cases} cases, {result.passed} passed, {sum(result.waived.values())} waived ({took:.0f} s)', flush=True)
        if result.failure is not None:
            print(f'FAILED  | {name}:\n{result.failure[-4000:]}', flush=True)
    took = time.monotonic() - began
    failed = [name for name, one in results.items() if one.failure is not None]
    print(f'conform | {len(results)} suites, {len(failed)} failed, {took:.0f} s')
    if took > SECONDS_MAX:
        print(f'conform | over {SECONDS_MAX} s: fewer mutants (MUTANTS=) or a faster machine')
    if not failed and not wanted:
        write_table(results)
    return 1 if failed else 0


if __name__ == '__main__':
    BINARY = str(pathlib.Path(sys.argv[1]).resolve())
    sys.exit(main(sys.argv[2:]))
