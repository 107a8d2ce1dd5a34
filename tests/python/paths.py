"""Random properties of conditions, with the results of the engine's `get_context_value`.

With `context` it prints the document and the identity instead.
"""
import json
import sys

import jsonpath_rfc9535
from flag_engine.segments import evaluator
from flagsmith.mappers import map_context_and_identity_data_to_context, map_environment_document_to_context

DOCUMENT = {
    "api_key": "env",
    "name": "Env 12",
    "feature_states": [
        {"feature": {"id": 1, "name": "f", "type": "STANDARD"}, "enabled": True, "feature_state_value": "v",
         "featurestate_uuid": "00000000-0000-0000-0000-000000000001", "multivariate_feature_state_values": [], "django_id": 10},
        {"feature": {"id": 2, "name": "my name", "type": "STANDARD"}, "enabled": False, "feature_state_value": 12,
         "featurestate_uuid": "00000000-0000-0000-0000-000000000002", "multivariate_feature_state_values": []},
        {"feature": {"id": 3, "name": "é-x", "type": "MULTIVARIATE"}, "enabled": True, "feature_state_value": None,
         "featurestate_uuid": "00000000-0000-0000-0000-000000000003", "django_id": 0, "multivariate_feature_state_values": [
             {"id": 7, "percentage_allocation": 30.5, "multivariate_feature_option": {"value": "one", "key": "k1"}},
             {"id": None, "percentage_allocation": 20, "mv_fs_value_uuid": "00000000-0000-0000-0000-0000000000ff",
              "multivariate_feature_option": {"value": 1.5}}]},
    ],
    "project": {"segments": [
        {"id": 5, "name": "s five", "rules": [{"type": "ALL", "conditions": [
            {"property_": "t", "operator": "EQUAL", "value": "1"}, {"property_": None, "operator": "PERCENTAGE_SPLIT", "value": "50"}],
            "rules": []}], "feature_states": []},
        {"id": 11, "name": "s eleven", "rules": [], "feature_states": []},
    ]},
    "identity_overrides": [],
}
TRAITS = {"t": 1, "a-b": "x", "big": 2**70, "é": "accent", "zero": 0, "empty": "", "no": False, "half": 0.5, "text": "a1\nb",
          "$.identity.key": "spoofed", "$.identity.traits.t2": "shadow", "null": None, "n1": "12", "true": True}
NAMES = ["environment", "identity", "features", "segments", "flags", "traits", "key", "name", "identifier", "t", "a-b", "f", "my name",
         "é-x", "é", "value", "enabled", "variant", "reason", "metadata", "id", "variants", "weight", "rules", "conditions", "zero",
         "empty", "no", "half", "text", "big", "null", "5", "11", "x", "😀", "priority", "overrides", "type", "true", "n1", "property"]


def quoted(rng, name):
    quote = rng.choice("'\"")
    text = "".join(rng.choice([c, c, c, c, f"\\u{ord(c):04x}"]) if ord(c) < 0xD800 else c for c in name)
    return quote + text + quote


def index(rng):
    return str(rng.choice([0, 0, 1, -1, 2, -3, 5, "01", "-0", 2**53, "99999999999999999999"]
                          if rng.random() < 0.1 else [0, 0, 1, -1, 2, -3]))


def literal(rng):
    return rng.choice(["1", "0", "-1", "12", "1.0", "0.5", "1e0", "1E2", "10e-1", "true", "false", "null", "'x'", '"f"', "'12'", "-0", "01",
                       "-01", "1.", "9007199254740993", "'s five'", "'v'", "30.5", "1e400", '"my name"', "'\\n'", "'a1\\nb'", ""])


def singular(rng):
    return rng.choice("@@$") + "".join(rng.choice([f".{rng.choice(NAMES)}", f"[{quoted(rng, rng.choice(NAMES))}]", f"[{index(rng)}]"])
                                       for _ in range(rng.choice([0, 1, 1, 2])))


def comparable(rng, depth):
    roll = rng.random()
    if roll < 0.45:
        return singular(rng)
    if roll < 0.85:
        return literal(rng)
    return call(rng, depth)


def call(rng, depth):
    name = rng.choice(["length", "count", "value", "match", "search", "length", "match", "nope"])
    if name in ("match", "search"):
        pattern = rng.choice(["'a.*'", "'[a-z]+'", "'.'", "'x|f'", r"'\\d+'", "'a1.b'", "'[^0-9]{1,3}'", r"'\\p{L}+'", "'('", "'s .*'", "'^f$'",
                              "'[a-c-]+'", "'(ab)*x?'", r"'\\.'", "'a{1,}'", "@.key", r"'[\\p{Nd}_]'", "'12'"])
        return f"{name}({comparable(rng, depth - 1) if rng.random() < .1 else singular(rng)}, {pattern})"
    if name == "length":
        return f"length({comparable(rng, depth - 1) if rng.random() < 0.3 else singular(rng)})"
    return f"{name}({rng.choice('@$')}{segments(rng, depth - 1)})"


def test(rng, depth):
    roll = rng.random()
    blank = rng.choice(["", " "])
    if roll < 0.5:
        return comparable(rng, depth) + blank + rng.choice(["==", "!=", "<", "<=", ">", ">=", "=", "=="]) + blank + comparable(rng, depth)
    if roll < 0.65 or depth <= 0:
        return rng.choice("@@$") + segments(rng, depth - 1)
    if roll < 0.72:
        return call(rng, depth)
    if roll < 0.80:
        return "!" + blank + rng.choice([test, lambda r, d: f"({test(r, d)})"])(rng, depth - 1)
    if roll < 0.86:
        return f"({test(rng, depth - 1)})"
    return test(rng, depth - 1) + rng.choice([" && ", "||", " && ", " & "][:4 if rng.random() < 0.1 else 3]) + test(rng, depth - 1)


def selector(rng, depth):
    roll = rng.random()
    if roll < 0.45:
        return quoted(rng, rng.choice(NAMES))
    if roll < 0.6:
        return index(rng)
    if roll < 0.7:
        return rng.choice(["*", ":", "1:", ":1", "::2", "::-1", "0:2:1", "-1:", ":0:-1", "1:1", "::0", " : 1 : ", "01:", ":-0"])
    if depth > 0:
        return "?" + rng.choice(["", " "]) + test(rng, depth - 1)
    return "*"


def segments(rng, depth):
    parts = []
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        roll = rng.random()
        if roll < 0.5:
            parts.append("." + rng.choice(NAMES))
        elif roll < 0.85:
            parts.append("[" + rng.choice([",", " , ", ","]).join(selector(rng, depth) for _ in range(rng.choice([1, 1, 1, 2]))) + "]")
        elif roll < 0.93:
            parts.append(".." + rng.choice([rng.choice(NAMES), "*", f"[{selector(rng, depth)}]"]))
        else:
            parts.append(rng.choice([".*", "[*]", ". x", ".1", "..", "[]", "[", "]", ".", " .t", "[1,]", ".-a", ".a-", "[t]", "[''']"]))
    return "".join(parts)


def plain(value):
    """Usually a literal of the value."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if isinstance(value, (int, float, bool, type(None))) else "1"


def guided(rng, context):
    """A path that usually exists."""
    text, node = "$", context
    while isinstance(node, (dict, list)) and len(node):
        members = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        key, child = rng.choice(members)
        roll = rng.random()
        if node is context and rng.random() < 0.5:
            key, child = "identity", context.get("identity", {})
        if roll < 0.5 or node is context:
            if isinstance(key, int):
                text += f"[{rng.choice([key, key - len(node)])}]"
            elif key.isidentifier() and key.isascii() and rng.random() < 0.7:
                text += "." + key
            elif node is context:
                text += "." + key
            else:
                text += f"[{quoted(rng, key)}]"
        elif roll < 0.6:
            text += rng.choice([".*", "[*]", "[::-1]", "[1:]", "[:]"])
        elif roll < 0.65:
            text += ".." + (key if isinstance(key, str) and key.isascii() and key.isidentifier() else "*")
        elif roll < 0.7 and isinstance(key, str):
            text += f"[{quoted(rng, rng.choice(NAMES))}, {quoted(rng, key)}]"
        else:
            below = [(k, v) for _, m in members if isinstance(m, dict) for k, v in m.items()]
            if below and rng.random() < 0.6:
                name, value = rng.choice(below)
                query = f"@[{quoted(rng, name)}]"
            else:
                query, value = "@", child
            operator = rng.choice(["==", "!=", "<", ">", "<=", ">="])
            roll = rng.random()
            if roll < 0.6:
                condition = f"{query} {operator} {plain(value)}"
            elif roll < 0.7:
                condition = f"length({query}) {operator} {rng.randint(0, 6)}"
            elif roll < 0.8:
                condition = f"{rng.choice(['match', 'search'])}({query}, {rng.choice(['.*', '[a-z]+', 'f', '.e.*', '[0-9.]+', 's .+'])!r})"
            elif roll < 0.9:
                condition = f"{query} {rng.choice(['&&', '||'])} {query} {operator} {plain(value)}"
            else:
                condition = rng.choice(["!", ""]) + query
            text += f"[?{condition}]"
        node = child
    return text if text.startswith("$.") else "$.identity" + text[1:]


def whole(rng):
    if rng.random() < 0.6:
        return guided(rng, lazy_context(True))
    if rng.random() < 0.1:
        return rng.choice(["t", "a-b", "", "$", "$.", "$['identity']", "x", "$.identity.traits.t2"])
    start = rng.choice(["$.identity.traits", "$.identity", "$.environment", "$.features", "$.segments", "$.flags", "$.flags.f",
                        "$.features.f", "$.segments['5'].rules", "$.features['é-x'].variants", "$.", "$."])
    text = start + segments(rng, rng.randint(0, 3)) if start != "$." else "$." + rng.choice(NAMES) + segments(rng, 3)
    if rng.random() < 0.04:
        at = rng.randint(2, len(text))
        text = text[:at] + rng.choice([" ", "'", '"', "]", ")", "(", "?", "@", "$", "\\", "&&", "\n"]) + text[at:]
    return text


def lazy_context(identity):
    context = map_environment_document_to_context(DOCUMENT)
    if identity:
        context = map_context_and_identity_data_to_context(context, "user 1", TRAITS)
    context = evaluator.get_enriched_context(context)
    flags = evaluator._LazyFlags()
    context = {**context, "flags": flags}
    flags.bind(context)
    return context


def ask(rng):
    """[property, is there an identity, type, str()]; type "raises" where the engine would."""
    text = whole(rng)
    identity = rng.random() < 0.9
    # Wildcards find flags that an earlier query resolved, so each input has a new context.
    context = lazy_context(identity)
    try:
        value = evaluator.get_context_value(context, text)
    except jsonpath_rfc9535.JSONPathError:
        return [text, identity, "raises", ""]
    except (TypeError, AttributeError, OverflowError, RuntimeError):
        # A RuntimeError: the mapping of flags grew during the query, or the query is too deep.
        return [text, identity, "fails", ""]
    return [text, identity, type(value).__name__, str(value)]


if __name__ == "__main__" and sys.argv[1:] == ["context"]:
    traits = [[key, type(value).__name__, str(value)] for key, value in TRAITS.items()]
    print(json.dumps({"document": DOCUMENT, "traits": traits}))
