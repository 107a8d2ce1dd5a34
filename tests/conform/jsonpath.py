"""The JSONPath Compliance Test Suite against the engine: jsonpath.py BINARY CTS_JSON

The documents of the suite become values of flags. Each query is the property of a condition, and `explain` shows what the
condition read: the query itself gives the value of its first node, within `count() >= 0` it says whether it is valid, and
within `count() == N` how many nodes it has. Every one must give what PyPI's jsonpath-rfc9535 gives, the package that
flag-engine uses: a case in which the package differs from the suite is waived, and a waiver that covers none fails.
"""
import json, pathlib, re, subprocess, sys, tempfile

import jsonpath_rfc9535

ROOT = pathlib.Path(__file__).resolve().parents[2]
STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
# Names of cases in which the package differs from the suite, each with what it does.
WAIVED = {}


def rooted(selector, root):
    """The selector with another root; `$` within quotes is text."""
    return re.sub(f'{STRING}|\\$', lambda found: root if found[0] == '$' else found[0], selector, flags=re.S)


def scalar(value):
    return None if isinstance(value, (list, dict)) else value


def same(one, other):
    return json.dumps(one) == json.dumps(other) or type(one) is type(other) and one == other


def of_package(query, context):
    """What flag-engine reads."""
    try:
        nodes = jsonpath_rfc9535.compile(query).find(context)
    except Exception:
        return None
    return scalar(nodes[0].value) if nodes else None


def queries_of(cases, names):
    """The number of a case, the kind of query, and the query."""
    for number, case in enumerate(cases):
        query = rooted(case['selector'], f'$.features.{names[json.dumps(case.get("document"))]}.value')
        yield number, 'first', query
        # Blanks around a query are invalid, within count() they are not; and the package reads no list of filters there.
        if query != query.strip() or case['name'].startswith('filter, multiple selectors'):
            continue
        yield number, 'valid', f'$.environment[?count({query})>=0]'
        if not case.get('invalid_selector'):
            for count in {len(result) for result in case.get('results', [case.get('result', [])])}:
                yield number, 'count', f'$.environment[?count({query})=={count}]'


def document_of(names, queries):
    """An environment with a flag for each document of the suite, and a segment for each query."""
    document = json.loads((ROOT / 'src/demo/environment.json').read_text())
    document['identity_overrides'] = []
    document['feature_states'] = [
        {'feature': {'id': 1 + at, 'name': name, 'type': 'STANDARD'}, 'enabled': True, 'feature_state_value': json.loads(text),
         'django_id': 1 + at, 'featurestate_uuid': f'18f135d2-5f55-4203-8e5c-{at:012}'} for at, (text, name) in enumerate(names.items())]
    document['project']['segments'] = [
        {'id': at, 'name': str(at), 'feature_states': [], 'rules': [{'type': 'ALL', 'rules': [], 'conditions': [
            {'property_': text, 'operator': 'EQUAL', 'value': 'nothing'}]}]} for at, (_, _, text) in enumerate(queries)]
    return document


def main(binary, suite):
    cases = json.loads(pathlib.Path(suite).read_text())['tests']
    names = {}
    for case in cases:
        names.setdefault(json.dumps(case.get('document')), f'd{len(names)}')
    queries = list(queries_of(cases, names))
    document = document_of(names, queries)
    with tempfile.NamedTemporaryFile('w', suffix='.json') as file:
        json.dump(document, file)
        file.flush()
        command = [binary, 'explain', '--document', file.name, '--identifier', 'x', '--json']
        explained = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    seen = {int(segment['name']): segment['rules'][0]['conditions'][0]['seen'] for segment in explained['segments']}
    context = {'environment': {'key': document['api_key'], 'name': document['name']},
               'features': {name: {'value': json.loads(text)} for text, name in names.items()}}
    failed, differs = {}, {}
    for at, (number, kind, text) in enumerate(queries):
        case = cases[number]
        expected = of_package(text, context)
        if not same(seen[at], expected):
            failed.setdefault(number, f'{text}: {seen[at]!r}, the package has {expected!r}')
        results = case.get('results', [case.get('result', [])])
        good = {'first': lambda: any(same(expected, scalar(result[0]) if result else None) for result in results),
                'valid': lambda: (expected is None) == bool(case.get('invalid_selector')),
                'count': lambda: expected is not None or len(results) > 1}[kind]()
        if not good:
            differs.setdefault(number, f'{text}: the package has {expected!r}')
    for number, how in failed.items():
        print(f'FAIL      {cases[number]["name"]}: {how}')
    named = {cases[number]['name'] for number in differs}
    for number, how in differs.items():
        name = cases[number]['name']
        print(f'waived    {name}: {WAIVED[name]}' if name in WAIVED else f'FAIL      {name}: {how}')
    for name in WAIVED.keys() - named:
        print(f'FAIL      {name}: the waiver covers nothing')
    bad = len(failed.keys() | {number for number in differs if cases[number]['name'] not in WAIVED}) + len(WAIVED.keys() - named)
    print(f'jsonpath: {len(cases)} cases, {len(cases) - len(failed.keys() | differs.keys())} pass, {len(named & WAIVED.keys())} waived, '
          f'{bad} failed ({len(queries)} queries)')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
