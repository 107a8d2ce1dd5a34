#!/usr/bin/env python3
"""Random environment documents and requests, with the results of the reference engine.

    evaluations.py SEED COUNT

Prints a document as one line and its requests with their results as the next, COUNT evaluations in total. Values
that JSON cannot represent exactly are written as Python's repr. `tests/differential.rs` runs the engine on the
same requests. Requests with a deliberate difference (differences.md 5 to 9) are excluded by the rules in
`excluded`, never by their results; the last line has their numbers.
"""
import contextlib
import json
import random
import re
import signal
import sys
import uuid
import warnings

from flag_engine.engine import get_evaluation_result
from flag_engine.segments import evaluator
from flag_engine.context.mappers import map_any_value_to_context_value
from flagsmith.mappers import (_map_environment_document_feature_states_to_feature_contexts, map_context_and_identity_data_to_context,
                               map_environment_document_to_context)

import patterns
import values

OPERATORS = ["EQUAL", "NOT_EQUAL", "GREATER_THAN", "GREATER_THAN_INCLUSIVE", "LESS_THAN", "LESS_THAN_INCLUSIVE", "CONTAINS", "NOT_CONTAINS",
             "REGEX", "MODULO", "IN", "PERCENTAGE_SPLIT", "IS_SET", "IS_NOT_SET"]
AWKWARD = [0, 1, -1, 7, 10, "7", "007", "1.0", 1.0, 1.5, "1.50", "1.5", True, False, "true", "True", "false", "False", "", " ", "abc", "ABC", "ab",
           "1.2.3", "1.2.3-beta.2", "1.2.3-beta.11", "2.0.0+x", "1.2.10", "é", "e\u0301", "😀", "\ufffd", 2**63, 2**63 - 1, -(2**63), 2**70, -(2**65), str(2**70),
           1e16, 1e-7, 0.1 + 0.2, 100000.0, "nan", "inf", "-0", "-0.0", -0.0, "１２", "1_000", 1000, None, 9007199254740993, 9007199254740992.0, "[a]",
           "a,b", "a", "b", " 7", "+7", "None", "abc\n", "x\ny", "vip", "u1", "0", "00",
           "7\n", "\t7", "\u20037", "7\u00a0", "\x1c7", "7\x00", "\x00", "-", "-7", "--7", "7.", ".5", "-.5", "0.0", "-0.50", "1e3", "1E3", "1e400", "-1e400",
           "1.0e5", "Infinity", "-inf", "NaN", "1__0", "_1", "0x1f", "٣", "1٣", "1.٣", "²", "½", 1e15, 1e17, -1e16, 1e22, 5e-324, 1.7976931348623157e308, 1e-5, 1e-4,
           123456789012345680.0, 10**400, -(10**309), "9" * 310, "9" * 310 + ".0", "0" * 30 + "7", 2**53 + 1, 2**63 + 1, 0.30000000000000004, "null", "undefined",
           "1.2.3-beta", "1.2.3+b", "beta", "1.2.3\n", "01.2.3", "1.2", "v1.2.3", "1.2.3.4", "99999999999999999999.0.0", "1.2.3-01", "1.2.3-", "İ", "ß", "ＡＢＣ",
           "\u0301a", "\u1680", "\u180e", "7\ufeff", "\u200b7", "-\u0661", "𝟙", "Ⅷ", "\u212a", "ſ", "ΑΣ", "FALSE", "1_0", "0e0", "0x7", "1j", "-00", "00.1", "0.10", "iNf", "+inf",
           2**53 - 1, 2**64, 2**64 - 1, float(2**63), float(2**64), 1e308, -5e-324, 2.2250738585072014e-308, "9223372036854775808", "-9223372036854775809", "18446744073709551616",
           "0.0.0-0", "0.0.0--", "1.2.3-alpha.1", "1.2.3-alpha.beta", "1.2.3-9", "1.2.3-10", "1.2.3+001", "18446744073709551616.0.0", "999999999999999999.0.0", "\u0661.2.3", " 1.2.3",
           "1" * 4301, "[]", "{}", ",", ",a", "|", "2|0"]
# Condition values with the suffix of version comparisons, and similar ones.
SEMVER = ["1.2.3:semver", "1.2.3-beta.2:semver", "1.2:semver", ":semver", "1.2.3+b:semver", "1.2.3-beta:semver", "beta:semver", "b:semver", "beta.2:semver", "2.0.0:semver",
          "7:semver", "semver", "1.2.3::semver", "1.2.3 :semver", "1.2.3:semver ", "1.2.3-01:semver", "99999999999999999999.0.0:semver", "true:semver", "x:semver",
          "0.0.0-0:semver", "1.2.3-9:semver", "1.2.3-10:semver", "18446744073709551616.0.0:semver", "999999999999999999.0.0:semver", " 1.2.3:semver", "\u0661.2.3:semver"]
MODULI = ["2|0", "2|1", "3|2", "-3|-1", "0.5|0", "1|0.5", " 2 | 0 ", "2|0|1", "x|1", "", "7", "5|0", "1e3|7", "inf|1", "1_0|7", "4|-0.0", "-inf|1", "nan|1", "2|nan", "|", "2|", "|0",
          "٢|٠", "2\u00a0|\u20031", "1e-320|0", "1e308|1", "-0.1|-0.1", "0.1|0.1", "2|-1", "-2|1", "3|3", "2|0x1", "1e400|7", "-1e400|7", "3.0|0.0", "10|-3", "infinity|7", "2|+1",
          "\x1c2|0", "2|\x1f0", "2||0", "1e-300|0", "7|-0", "9007199254740993|0", "1e16|1", "-inf|-inf", "-inf|inf", "_1|0", "1_|0", "2.|.0", "2|\n0", "nan|nan"]
LIMITS = ["0", "10", "25", "50", "50", "75", "99.99", "100", "x", " 50 ", "inf", "nan", 50, 30.5, "", "-inf", "-1", "1e2", "5_0", "٥٠", "50%", "0x32", "100.0", "99.999999", True, False,
          "1e400", "\u200350\n", "50,0", 0, 10**400, -5, "39.21784356871375",
          "100.00000000000001", "1_0_0", "+50", "-0", "-0.0", "1e-320", "Infinity", "50\x1c", "\x8550"]
IDENTIFIERS = ["u1", "u2", "vip", "7", "007", "0", "00", "-0", "1.50", "1.0", "", "é😀", "a,b", str(10**22), "True", "[x]", "-5"]
TRAITS = ["t1", "t2", "t3", "a.b", "plan", "é"]
ODD_TRAITS = ["", "T1", "t1 ", "e\u0301", "$", "a'b", "a\"b", "None", "missing", "$.t1", "$.identity.traits"]
NAMES = ["f0", "f1", "my flag", "é", "f4", "f5"]
ODD_NAMES = ["a'b", "x.y", "", "$", "İ", "F0", 'q"', "back\\slash", "f0 ", "\u2028", "1", "*", "name"]
SHADOWS = ["$.identity.key", "$.environment.key", "$", "$.", "$.identity", "$.flags.f0.value", "$.identity.identifier", "$.environment.name", "$.identity.traits.t1", "$.flags.f0.enabled", "$['identity']", "$.bad["]
QUERIES = ["$.features.f0.value", "$.identity.traits['t1','t2']", "$.environment[?@ == 'env']", "$..name", "$.segments.*.name",
           "$.flags['f0','f1'].enabled", "$.identity.traits[?@ > 1]", "$.identity.traits.*", "$.identity", "$.environment['name']",
           "$.flags.f1", "$.flags.f0.nothing", "$.flags.missing.value", "$.features[?@.enabled == true].value", "$.flags['my flag'].variant",
           "$.identity.traits[?match(@, '[a-z]+')]", "$.segments['1'].rules[0].conditions[0].value", "$.nothing",
           "$.identity.traits", "$.environment", "$.identity['identifier']", "$.identity.traits['$.identity.identifier']", "$.identity.traits.t1.x", "$.environment.key.x",
           "$.identity.traits[0]", "$.identity[?@ == 'u1']", "$.identity.*", "$.environment.*", "$.flags.f0", "$.flags", "$.flags[0]", "$.flags.f0['enabled']",
           "$.flags['f0']['value']", "$.features.*.enabled", "$.segments[?@.name == 's0'].name", "$.environment.nothing", "$.identity.name", "$..t1", "$..['t1']",
           "$.identity.traits[?length(@) == 2]", "$.identity.traits[?value(@) != null]", "$.flags[?@.enabled]", "$.flags.*.enabled", "$.flags[?@.enabled].value", "$.flags..value", "$.flags['f0','f1'].value", "$.flags[*].reason", "$.features['f0','f1']['key']",
           "$.features.f0.variants[0].value", "$.features.f0.variants[-1].weight", "$.features.f0.metadata.id", "$.segments['1'].metadata.source", "$.segments['1'].overrides[0].value",
           "$.segments['1'].overrides[*].priority", "$.segments[*].key", "$.features.f0.priority"]


def scalar(rng):
    roll = rng.random()
    if roll < 0.7:
        return rng.choice(AWKWARD)
    if roll < 0.8:
        return values.number_text(rng)[:60]
    if roll < 0.87:
        return values.version_text(rng)[:60]
    if roll < 0.94:
        number = values.any_float(rng)
        return number if number - number == 0 else 3.25
    return rng.randint(-20, 20)


def anything(rng, depth=2):
    """Any JSON value, including those that no SDK sends but a document may contain."""
    roll = rng.random()
    if depth and roll < 0.15:
        return [anything(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if depth and roll < 0.3:
        return {rng.choice(["id", "name", "priority", "a", "é", ""]): anything(rng, depth - 1) for _ in range(rng.randint(0, 2))}
    return rng.choice([None, True, False, 0, 1, -1, 7, 1.0, 1.5, 2**70, "", "a", "1", "true"]) if roll < 0.8 else scalar(rng)


def number_or_text(rng):
    value = scalar(rng)
    return value if value is None or isinstance(value, str) else str(value)


def condition_value(rng, operator):
    """The value of a condition, usually one that a trait may have."""
    if operator == "IN":
        roll = rng.random()
        items = [number_or_text(rng) or "" for _ in range(rng.randint(0, 5))]
        if roll < 0.3:
            return ",".join(items)
        if roll < 0.5:
            return json.dumps([rng.choice([item, scalar(rng)]) for item in items], ensure_ascii=rng.random() < 0.5)
        if roll < 0.6:
            return values.json_text(rng)
        if roll < 0.97:
            return [scalar(rng) if rng.random() < 0.3 else item for item in items]
        return None
    if operator == "REGEX":
        for _ in range(20):
            text = rng.choice([patterns.whole, patterns.whole, lambda r: rng.choice(["^\\d+$", "[a-z]+", "(?i)ABC", "(a)\\1?b", "a(?=b)", "1\\.50", "True|None",
                                                                                 "(?P<x>.)(?P=x)", "(?<!x)7", "\\w+$", ".*"])])(rng)
            try:
                re.compile(text)
                return text
            except Exception:
                if rng.random() < 0.05:
                    return text
        return ".*"
    if operator == "MODULO":
        if rng.random() < 0.03:
            return rng.choice(["0|0", "-0.0|1", None, 5, True, [], ["2|0"], {}])
        return rng.choice(MODULI)
    if operator == "PERCENTAGE_SPLIT":
        return rng.choice([None, [], ["50"], {}]) if rng.random() < 0.01 else rng.choice(LIMITS)
    roll = rng.random()
    if roll < 0.12:
        return values.version_text(rng)[:40] + rng.choice([":semver", ":semver", ":SEMVER"])
    if roll < 0.2:
        return rng.choice(SEMVER)
    if roll < 0.22:
        return None
    if roll < 0.24:
        return scalar(rng)
    if roll < 0.25:
        return anything(rng)
    return number_or_text(rng)


def property_(rng, features, wants_flags):
    roll = rng.random()
    if wants_flags and roll < 0.45:
        name = rng.choice(features)
        step = f".{name}" if name.isidentifier() and name.isascii() and rng.random() < 0.8 else f"[{json.dumps(name, ensure_ascii=False)}]"
        return f"$.flags{step}.{rng.choice(['enabled', 'enabled', 'value', 'value', 'variant', 'reason', 'name', 'metadata.id'])}"
    if wants_flags and roll < 0.48:
        return rng.choice(["$.flags.*.enabled", "$.flags[*].name", "$.flags[?@.enabled == true].value", "$..variant", "$.flags..reason", "$.flags.*", "$.flags[?@.name == 'f1'].reason"])
    if roll < 0.7:
        return rng.choice(TRAITS if rng.random() < 0.95 else ODD_TRAITS)
    if roll < 0.85:
        return rng.choice(["$.identity.identifier", "$.identity.key", "$.environment.key", "$.environment.name", "$.identity.traits.t1", "$.identity.traits['a.b']"])
    if roll < 0.92:
        return rng.choice(SHADOWS)
    if roll < 0.95:
        return rng.choice(QUERIES) if wants_flags or rng.random() < 0.3 else rng.choice(["", None])
    return rng.choice(["", None, "missing"])


def condition(rng, features, wants_flags, pool=()):
    """A condition, sometimes from a pool, because segments share conditions."""
    if pool and rng.random() < 0.25:
        return rng.choice(pool)
    made = new_condition(rng, features, wants_flags)
    if isinstance(pool, list):
        pool.append(made)
    return made


def new_condition(rng, features, wants_flags):
    operator = rng.choice(OPERATORS) if rng.random() < 0.98 else rng.choice(["FOO", "equal", ""])
    name = property_(rng, features, wants_flags)
    if operator == "PERCENTAGE_SPLIT" and rng.random() < 0.5:
        name = rng.choice(["", None])
    if name and ".enabled" in name and rng.random() < 0.7:
        return {"property_": name, "operator": rng.choice(["EQUAL", "NOT_EQUAL", "IS_SET", "IS_NOT_SET"]), "value": rng.choice(["true", "false"])}
    return {"property_": name, "operator": operator, "value": condition_value(rng, operator)}


def rule(rng, features, wants_flags, depth=2, pool=()):
    made = {"type": rng.choice(["ALL", "ALL", "ANY", "ANY", "NONE"]),
            "conditions": [condition(rng, features, wants_flags, pool) for _ in range(rng.choice([0, 1, 1, 2, 3]))]}
    if depth and rng.random() < 0.4:
        made["rules"] = [rule(rng, features, wants_flags, depth - 1, pool) for _ in range(rng.randint(0, 2))]
    elif rng.random() < 0.5:
        made["rules"] = []
    return made


def variants(rng):
    if rng.random() < 0.6:
        return []
    made = []
    for _ in range(rng.randint(1, 4)):
        option = {"value": scalar(rng)}
        if rng.random() < 0.6:
            option["key"] = rng.choice(["a", "b", "control", None, "é"] if rng.random() < 0.97 else [5, True, 1.5, "", "7"])
        entry = {"percentage_allocation": rng.choice([0, 10, 25, 30, 33.3, 50, 100, 0.1, 20.0, 1e-7, -10, 250, 1e16, 1e22, 100000.0, 2**70, True, False, -0.0]
                                                     if rng.random() < 0.3 else [10, 25, 30, 33.3, 50, 100]),
                 "multivariate_feature_option": option}
        if rng.random() < 0.6:
            entry["id"] = rng.choice([1, 2, 3, 9, 0, None, -1, 2**130, 1.5, 2.0, True, False] if rng.random() < 0.2 else [1, 2, 3, 9, 0, None])
        number = uuid.UUID(int=rng.getrandbits(rng.choice([4, 128])))
        entry["mv_fs_value_uuid"] = rng.choice([str(number), str(number), str(number).upper(), number.hex, number.urn, "{%s}" % number, "-".join(number.hex)])
        made.append(entry)
    return made


def written(rng, number):
    """A number, as an integer or a float."""
    return float(number) if rng.random() < 0.03 else number


def state(rng, identifier, name, in_segment):
    options = variants(rng)
    made = {"feature": {"id": written(rng, identifier), "name": name, "type": "MULTIVARIATE" if options else "STANDARD"},
            "enabled": rng.random() < 0.6 if rng.random() < 0.97 else rng.choice([None, 0, 1, 1.5, 0.0]),
            "feature_state_value": scalar(rng) if rng.random() < 0.97 else anything(rng), "featurestate_uuid": str(uuid.UUID(int=rng.getrandbits(128))),
            "multivariate_feature_state_values": options}
    if rng.random() < 0.7:
        made["django_id"] = rng.choice([None, 0, rng.randint(1, 99), rng.randint(1, 99), "7", "", 1.5, 0.0, -3, 2**70, True, False]
                                       if rng.random() < 0.1 else [None, 0, rng.randint(1, 99)])
    if in_segment or rng.random() < 0.3:
        made["feature_segment"] = rng.choice([None, None, {"priority": rng.choice([0, 0, 1, 2, 5, -1, 1.5, 2**70, -0.0, 1e300, -(2**70), 2**53 + 1, 2**53])}, {}])
    return made


def own_state(rng, identifier, name):
    """An identity override; a variant chosen in the dashboard has 100 %, the others 0."""
    options = variants(rng)
    if rng.random() < 0.5:
        for at, option in enumerate(rng.sample(options, len(options))):
            option["percentage_allocation"] = 0 if at else 100
    made = {"feature": {"id": identifier, "name": name, "type": "STANDARD"}, "enabled": rng.random() < 0.5, "feature_state_value": scalar(rng),
            "multivariate_feature_state_values": options, "featurestate_uuid": str(uuid.UUID(int=rng.getrandbits(128)))}
    if rng.random() < 0.5:
        made["django_id"] = rng.choice([None, 0, rng.randint(1, 99)])
    if rng.random() < 0.05:
        made["django_id"] = rng.choice(["7", 1.5, 2**70, True, [], [1], ["é", "it's"], {"a": [1.5, None, False]}])
    return made


def document(rng):
    names = NAMES[: rng.randint(1, 6)]
    if rng.random() < 0.1:
        names = rng.sample(NAMES + ODD_NAMES, rng.randint(1, 8))
    pool = []
    # Enough segments for the segment index; their rules have one condition, to limit the time.
    is_wide = rng.random() < 0.005
    wants_flags = rng.random() < 0.35
    features = [(at + 1, name) for at, name in enumerate(names)]
    if rng.random() < 0.08:
        features.append((50, rng.choice(names)))
    states = [state(rng, identifier, name, False) for identifier, name in features]
    segments = []
    for at in range(rng.randint(60, 140) if is_wide else rng.choice([0, 1, 2, 3, 5, 8])):
        chosen = rng.sample(features, rng.randint(0, min(3, len(features))))
        if rng.random() < 0.1:
            chosen.append((99, rng.choice(["elsewhere", names[0]])))
        depth = rng.choice([0, 0, 1]) if is_wide else (4 if rng.random() < 0.05 else 2)
        rules = [rule(rng, names, wants_flags, depth, pool) for _ in range(rng.choice([0, 1, 1, 1, 2]) if rng.random() < 0.3 else 1)]
        segments.append({"id": at + 1 if rng.random() < 0.97 else 1, "name": rng.choice([f"s{at}", "two words", "é", "s;0", 'q"'] if rng.random() < 0.2 else [f"s{at}"]),
                         "rules": rules, "feature_states": [state(rng, identifier, name, True) for identifier, name in chosen]})
    overrides = []
    for _ in range(rng.choice([0, 0, 1, 2, 4])):
        chosen = rng.sample(features, rng.randint(0, min(2, len(features))))
        overrides.append({"identifier": rng.choice(IDENTIFIERS), "identity_features": [own_state(rng, identifier, name) for identifier, name in chosen]})
    return {"api_key": "env", "name": rng.choice(["env", "Env é", "7"]), "feature_states": states,
            "project": {"segments": segments, "hide_disabled_flags": rng.random() < 0.3,
                        "server_key_only_feature_ids": [written(rng, one) for one in rng.sample([1, 2, 3, 50, 99], rng.choice([0, 0, 1, 2]))]},
            "hide_disabled_flags": rng.choice([None, None, True, False]), "identity_overrides": overrides}


def places(value, path=()):
    """Every position in a document: the container and the key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key, (*path, key)
        yield from places(inner, (*path, key))


def strange(rng, doc):
    """A document with one or two members removed, repeated, or of another type."""
    for _ in range(rng.choice([1, 1, 2])):
        container, key, path = rng.choice(list(places(doc)))
        roll = rng.random()
        if roll < 0.2:
            del container[key]
        elif roll < 0.3 and isinstance(container, list):
            container.insert(rng.randint(0, len(container)), container[key])
        else:
            container[key] = anything(rng)
    return doc


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_served(doc):
    """False: the reference accepts this document although a member has a type that SDKs cannot read or that
    cannot be compared. Such a document is rejected (differences.md 4)."""
    def is_text(value):
        return value is None or isinstance(value, str)

    def states(entries, is_override=False):
        for entry in entries:
            feature = entry["feature"]
            if not is_number(feature["id"]) or not isinstance(feature["name"], str) or isinstance(entry["enabled"], (str, list, dict)):
                return False
            if is_override and isinstance(entry["feature_state_value"], (list, dict)):
                return False
            if not is_override and any(isinstance(entry.get(key), (list, dict)) for key in ("django_id", "featurestate_uuid")):
                return False
        return True

    for container, key, _ in places(doc):
        # Python iterates over an empty text or object as over an empty list.
        if key in ("rules", "conditions", "segments", "feature_states", "identity_overrides") and container[key] in ("", {}):
            return False
    segments = doc["project"]["segments"]
    hidden = doc["project"].get("server_key_only_feature_ids")
    overrides = [entry for entry in doc.get("identity_overrides") or [] if entry["identity_features"]]
    return (is_text(doc["api_key"]) and is_text(doc["name"]) and (hidden is None or isinstance(hidden, list))
            and states(doc["feature_states"])
            and all(not isinstance(one["id"], (list, dict)) and not isinstance(one["name"], (list, dict)) and states(one.get("feature_states") or []) for one in segments)
            and all(entry["identifier"] is not None and not isinstance(entry["identifier"], (list, dict)) and states(entry["identity_features"], True) for entry in overrides))


def request(rng):
    """(identifier or None, traits as pairs in the order sent)."""
    if rng.random() < 0.04:
        return None, []
    traits = [(rng.choice(TRAITS if rng.random() < 0.95 else ODD_TRAITS), scalar(rng) if rng.random() < 0.99 else rng.choice([1e999, -1e999, 1e999 - 1e999])) for _ in range(rng.choice([0, 1, 2, 3, 5]))]
    if rng.random() < 0.15:
        traits.append((rng.choice(SHADOWS), scalar(rng)))
    return rng.choice(IDENTIFIERS) if rng.random() < 0.6 else f"user-{rng.randint(0, 10**6)}", traits


def merges(overrides):
    """Differences 8: entries whose values are equal in Python but not identical."""
    seen = {}
    for entry in overrides:
        group = tuple((f["feature"]["id"], f["feature"]["name"], f["enabled"], f["feature_state_value"]) for f in entry["identity_features"])
        if seen.setdefault(group, repr(group)) != repr(group):
            return True
    return False


def excluded(doc, identifier, traits):
    """The rule of differences.md by which this request has a different result, if any."""
    entries = [e for e in doc.get("identity_overrides") or [] if e["identity_features"]]
    if identifier is None or not entries:
        return None
    if any(name == "$.identity.identifier" and value is not None for name, value in traits):
        return "7"
    coerced = map_any_value_to_context_value(identifier)
    text = str(coerced)
    if not isinstance(coerced, str) and (text != identifier or isinstance(coerced, float)):
        if any(str(e["identifier"]) in (identifier, text) for e in entries):
            return "6"
    if merges(entries):
        return "8"
    own = [f["feature"]["name"] for e in entries if str(e["identifier"]) == identifier for f in e["identity_features"]]
    return "9" if len(own) != len(set(own)) else None


ENGINES_FLAG_RESULT = evaluator.get_flag_result_from_context


def follow_core_on_identity_overrides(doc, identifier):
    """Differences 43, the only change of the reference: an identity override of a multivariate feature selects the
    variant that its own weights choose, as core has it; the client's mapper drops the variants. Value and variant are the
    engine's choice among them; the reason stays that of an override. Variants that the mapper cannot read are ignored."""
    own = {}
    for entry in doc.get("identity_overrides") or []:
        if entry["identity_features"] and str(entry["identifier"]) == identifier:
            for state in entry["identity_features"]:
                own.setdefault(state["feature"]["name"], state)

    def flag_result(context, feature_context, reason):
        state = own.get(feature_context["name"])
        if state is None or reason != "TARGETING_MATCH; segment=identity_overrides":
            return ENGINES_FLAG_RESULT(context=context, feature_context=feature_context, reason=reason)
        readable = {"feature": state["feature"], "enabled": True, "feature_state_value": None, "featurestate_uuid": "",
                    **{key: state[key] for key in ("django_id", "featurestate_uuid", "multivariate_feature_state_values") if key in state}}
        variants = {}
        with contextlib.suppress(Exception):
            chosen = next(iter(_map_environment_document_feature_states_to_feature_contexts([readable])))
            variants = {"key": chosen["key"], "variants": chosen.get("variants")}
        return {**ENGINES_FLAG_RESULT(context=context, feature_context={**feature_context, **variants}, reason=reason), "reason": reason}

    evaluator.get_flag_result_from_context = flag_result


def seen_by_clients(doc, flag):
    """Whether a client-side key may read a flag: the Python proxy's filter, with the environment's setting first (differences.md 10)."""
    hides = doc.get("hide_disabled_flags")
    hides = doc["project"].get("hide_disabled_flags") if hides is None else hides
    hidden = doc["project"].get("server_key_only_feature_ids") or []
    return flag["metadata"]["id"] not in hidden and not (hides and not flag["enabled"])


def answer(doc, context, identifier, traits):
    """([name, enabled, value, variant, reason, id, type, visible to clients] of each flag, the names of the matching segments)."""
    kinds = [(one["feature"]["id"], one["feature"].get("type")) for one in doc["feature_states"]]
    types = {number: kind if isinstance(kind, str) else "STANDARD" for number, kind in kinds}
    if identifier is not None:
        context = map_context_and_identity_data_to_context(context, identifier, dict(traits))
    follow_core_on_identity_overrides(doc, identifier)
    try:
        # Repeated after a second, in case Python drops the exception.
        signal.setitimer(signal.ITIMER_VIRTUAL, 1, 1)
        result = get_evaluation_result(context)
        flags = [[f["name"], json.dumps(f["enabled"]), json.dumps(f["value"]), f["variant"], f["reason"], f["metadata"]["id"],
                 types.get(f["metadata"]["id"], "STANDARD"), seen_by_clients(doc, f)] for f in result["flags"].values()]
        # The client converts each group of identity overrides to a segment.
        return flags, [str(one["name"]) for one in result["segments"] if one.get("metadata", {}).get("source") != "identity_overrides"]
    except patterns.TooSlow:
        return "slow"
    except Exception as error:  # Differences 5: any exception of a condition.
        return f"raises {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def typed(value):
    if isinstance(value, float):
        return ["float", str(values.bits(value))]
    return [type(value).__name__, str(value)]


def main():
    seed, count = sys.argv[1], int(sys.argv[2])
    rng = random.Random(f"evaluations {seed}")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGVTALRM, patterns.give_up)
    report = sys.unraisablehook
    sys.unraisablehook = lambda dropped: None if dropped.exc_type is patterns.TooSlow else report(dropped)
    asked, left_out = 0, {}
    while asked < count:
        doc = document(rng)
        is_strange = rng.random() < 0.15
        if is_strange:
            doc = strange(rng, doc)
        try:
            context = map_environment_document_to_context(doc)
            if is_strange and not is_served(doc):
                raise ValueError("refused here")
        except Exception:  # Differences 4: such a document is rejected.
            left_out["4"] = left_out.get("4", 0) + 1
            continue
        requests = []
        for _ in range(min(40, count - asked)):
            identifier, traits = request(rng)
            rule_number = excluded(doc, identifier, traits)
            found = answer(doc, context, identifier, traits) if rule_number is None else None
            if isinstance(found, str):
                rule_number = "5"
            if rule_number is not None:
                left_out[rule_number] = left_out.get(rule_number, 0) + 1
                continue
            asked += 1
            requests.append([identifier, [[name, *typed(value)] for name, value in traits], *found])
        print(json.dumps(doc, ensure_ascii=rng.random() < 0.5))
        print(json.dumps(requests))
        if not requests and sum(left_out.values()) > 20 * count + 10_000:
            sys.exit("hardly a request is left: the generator is wrong")
    print(json.dumps({"asked": asked, "left_out": left_out}))


if __name__ == "__main__":
    main()
