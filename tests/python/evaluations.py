#!/usr/bin/env python3
"""Random environment documents and requests, with the model's answers.

    evaluations.py SEED COUNT

A document is one line, its requests with their answers are the next; values that JSON would blur are
written as Python writes them. COUNT evaluations are asked for. `tests/differential.rs` asks the engine the same. Where this
project differs on purpose (differences.md 5 to 9) a request is left out by the rule that is named
in `excluded`, never by its result; how many is told on the last line.
"""
import json
import random
import re
import signal
import sys
import uuid
import warnings

from flag_engine.engine import get_evaluation_result
from flag_engine.context.mappers import map_any_value_to_context_value
from flagsmith.mappers import map_context_and_identity_data_to_context, map_environment_document_to_context

import patterns
import values

OPERATORS = ["EQUAL", "NOT_EQUAL", "GREATER_THAN", "GREATER_THAN_INCLUSIVE", "LESS_THAN", "LESS_THAN_INCLUSIVE", "CONTAINS", "NOT_CONTAINS",
             "REGEX", "MODULO", "IN", "PERCENTAGE_SPLIT", "IS_SET", "IS_NOT_SET"]
AWKWARD = [0, 1, -1, 7, 10, "7", "007", "1.0", 1.0, 1.5, "1.50", "1.5", True, False, "true", "True", "false", "False", "", " ", "abc", "ABC", "ab",
           "1.2.3", "1.2.3-beta.2", "1.2.3-beta.11", "2.0.0+x", "1.2.10", "é", "e\u0301", "😀", "\ufffd", 2**63, 2**63 - 1, -(2**63), 2**70, -(2**65), str(2**70),
           1e16, 1e-7, 0.1 + 0.2, 100000.0, "nan", "inf", "-0", "-0.0", -0.0, "１２", "1_000", 1000, None, 9007199254740993, 9007199254740992.0, "[a]",
           "a,b", "a", "b", " 7", "+7", "None", "abc\n", "x\ny", "vip", "u1", "0", "00"]
IDENTIFIERS = ["u1", "u2", "vip", "7", "007", "0", "00", "-0", "1.50", "1.0", "", "é😀", "a,b", str(10**22), "True", "[x]", "-5"]
TRAITS = ["t1", "t2", "t3", "a.b", "plan", "é"]
SHADOWS = ["$.identity.identifier", "$.environment.name", "$.identity.traits.t1", "$.flags.f0.enabled", "$['identity']", "$.bad["]
QUERIES = ["$.features.f0.value", "$.identity.traits['t1','t2']", "$.environment[?@ == 'env']", "$..name", "$.segments.*.name",
           "$.flags['f0','f1'].enabled", "$.identity.traits[?@ > 1]", "$.identity.traits.*", "$.identity", "$.environment['name']",
           "$.flags.f1", "$.flags.f0.nothing", "$.flags.missing.value", "$.features[?@.enabled == true].value", "$.flags['my flag'].variant",
           "$.identity.traits[?match(@, '[a-z]+')]", "$.segments['1'].rules[0].conditions[0].value", "$.nothing"]


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


def number_or_text(rng):
    value = scalar(rng)
    return value if value is None or isinstance(value, str) else str(value)


def condition_value(rng, operator):
    """What the condition is compared with: mostly something that a trait may have."""
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
        return rng.choice(["2|0", "2|1", "3|2", "-3|-1", "0.5|0", "1|0.5", " 2 | 0 ", "2|0|1", "x|1", "", "7", "0|0" if rng.random() < 0.1 else "5|0",
                           "1e3|7", "inf|1", "1_0|7", "4|-0.0"])
    if operator == "PERCENTAGE_SPLIT":
        return rng.choice(["0", "10", "25", "50", "50", "75", "99.99", "100", "x", " 50 ", "inf", "nan", None if rng.random() < 0.05 else "50", 50, 30.5])
    roll = rng.random()
    if roll < 0.12:
        return values.version_text(rng)[:40] + rng.choice([":semver", ":semver", ":SEMVER"])
    if roll < 0.2:
        return rng.choice(["1.2.3:semver", "1.2.3-beta.2:semver", "1.2:semver"])
    if roll < 0.22:
        return None
    if roll < 0.24:
        return scalar(rng)
    return number_or_text(rng)


def property_(rng, features, wants_flags):
    roll = rng.random()
    if wants_flags and roll < 0.45:
        name = rng.choice(features)
        step = f".{name}" if name.isidentifier() and name.isascii() and rng.random() < 0.8 else f"[{json.dumps(name, ensure_ascii=False)}]"
        return f"$.flags{step}.{rng.choice(['enabled', 'enabled', 'value', 'value', 'variant', 'reason', 'name', 'metadata.id'])}"
    if roll < 0.7:
        return rng.choice(TRAITS)
    if roll < 0.85:
        return rng.choice(["$.identity.identifier", "$.identity.key", "$.environment.key", "$.environment.name", "$.identity.traits.t1", "$.identity.traits['a.b']"])
    if roll < 0.92:
        return rng.choice(SHADOWS)
    if roll < 0.95:
        return rng.choice(QUERIES) if wants_flags else rng.choice(["", None])
    return rng.choice(["", None, "missing"])


def condition(rng, features, wants_flags):
    operator = rng.choice(OPERATORS) if rng.random() < 0.98 else rng.choice(["FOO", "equal", ""])
    name = property_(rng, features, wants_flags)
    if operator == "PERCENTAGE_SPLIT" and rng.random() < 0.5:
        name = rng.choice(["", None])
    if name and ".enabled" in name and rng.random() < 0.7:
        return {"property_": name, "operator": rng.choice(["EQUAL", "NOT_EQUAL", "IS_SET", "IS_NOT_SET"]), "value": rng.choice(["true", "false"])}
    return {"property_": name, "operator": operator, "value": condition_value(rng, operator)}


def rule(rng, features, wants_flags, depth=2):
    made = {"type": rng.choice(["ALL", "ALL", "ANY", "ANY", "NONE"]),
            "conditions": [condition(rng, features, wants_flags) for _ in range(rng.choice([0, 1, 1, 2, 3]))]}
    if depth and rng.random() < 0.4:
        made["rules"] = [rule(rng, features, wants_flags, depth - 1) for _ in range(rng.randint(0, 2))]
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
            option["key"] = rng.choice(["a", "b", "control", None, "é"])
        entry = {"percentage_allocation": rng.choice([0, 10, 25, 30, 33.3, 50, 100, 0.1, 20.0, 1e-7]), "multivariate_feature_option": option}
        if rng.random() < 0.6:
            entry["id"] = rng.choice([1, 2, 3, 9, 0, None])
        entry["mv_fs_value_uuid"] = str(uuid.UUID(int=rng.getrandbits(rng.choice([4, 128]))))
        made.append(entry)
    return made


def state(rng, identifier, name, in_segment):
    options = variants(rng)
    made = {"feature": {"id": identifier, "name": name, "type": "MULTIVARIATE" if options else "STANDARD"}, "enabled": rng.random() < 0.6,
            "feature_state_value": scalar(rng), "featurestate_uuid": str(uuid.UUID(int=rng.getrandbits(128))),
            "multivariate_feature_state_values": options}
    if rng.random() < 0.7:
        made["django_id"] = rng.choice([None, 0, rng.randint(1, 99)])
    if in_segment or rng.random() < 0.3:
        made["feature_segment"] = rng.choice([None, None, {"priority": rng.choice([0, 0, 1, 2, 5, -1, 1.5, 2**70])}, {}])
    return made


def document(rng):
    names = ["f0", "f1", "my flag", "é", "f4", "f5"][: rng.randint(1, 6)]
    wants_flags = rng.random() < 0.35
    features = [(at + 1, name) for at, name in enumerate(names)]
    if rng.random() < 0.08:
        features.append((50, rng.choice(names)))
    states = [state(rng, identifier, name, False) for identifier, name in features]
    segments = []
    for at in range(rng.choice([0, 1, 2, 3, 5, 8])):
        chosen = rng.sample(features, rng.randint(0, min(3, len(features))))
        if rng.random() < 0.1:
            chosen.append((99, rng.choice(["elsewhere", names[0]])))
        rules = [rule(rng, names, wants_flags) for _ in range(rng.choice([0, 1, 1, 1, 2]) if rng.random() < 0.3 else 1)]
        segments.append({"id": at + 1 if rng.random() < 0.97 else 1, "name": rng.choice([f"s{at}", "two words", "é", "s;0", 'q"'] if rng.random() < 0.2 else [f"s{at}"]),
                         "rules": rules, "feature_states": [state(rng, identifier, name, True) for identifier, name in chosen]})
    overrides = []
    for _ in range(rng.choice([0, 0, 1, 2, 4])):
        chosen = rng.sample(features, rng.randint(0, min(2, len(features))))
        overrides.append({"identifier": rng.choice(IDENTIFIERS), "identity_features": [
            {"feature": {"id": identifier, "name": name, "type": "STANDARD"}, "enabled": rng.random() < 0.5, "feature_state_value": scalar(rng),
             "multivariate_feature_state_values": variants(rng), "featurestate_uuid": str(uuid.uuid4())} for identifier, name in chosen]})
    return {"api_key": "env", "name": rng.choice(["env", "Env é", "7"]), "feature_states": states,
            "project": {"segments": segments, "hide_disabled_flags": False, "server_key_only_feature_ids": []}, "identity_overrides": overrides}


def request(rng):
    """(identifier or None, traits as pairs in the order sent)."""
    if rng.random() < 0.04:
        return None, []
    traits = [(rng.choice(TRAITS), scalar(rng)) for _ in range(rng.choice([0, 1, 2, 3, 5]))]
    if rng.random() < 0.15:
        traits.append((rng.choice(SHADOWS), scalar(rng)))
    return rng.choice(IDENTIFIERS) if rng.random() < 0.6 else f"user-{rng.randint(0, 10**6)}", traits


def merges(overrides):
    """Differences 8: entries whose values are equal in Python and yet not the same."""
    seen = {}
    for entry in overrides:
        group = tuple((f["feature"]["id"], f["feature"]["name"], f["enabled"], f["feature_state_value"]) for f in entry["identity_features"])
        if seen.setdefault(group, repr(group)) != repr(group):
            return True
    return False


def excluded(doc, identifier, traits):
    """The rule of differences.md by which this request has another answer here, if any."""
    entries = [e for e in doc["identity_overrides"] if e["identity_features"]]
    if identifier is None or not entries:
        return None
    if any(name == "$.identity.identifier" and value is not None for name, value in traits):
        return "7"
    coerced = map_any_value_to_context_value(identifier)
    text = str(coerced)
    if not isinstance(coerced, str) and (text != identifier or isinstance(coerced, float)):
        if any(e["identifier"] in (identifier, text) for e in entries):
            return "6"
    if merges(entries):
        return "8"
    own = [f["feature"]["name"] for e in entries if e["identifier"] == identifier for f in e["identity_features"]]
    return "9" if len(own) != len(set(own)) else None


def answer(context, identifier, traits):
    if identifier is not None:
        context = map_context_and_identity_data_to_context(context, identifier, dict(traits))
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        flags = get_evaluation_result(context)["flags"]
        return [[f["name"], json.dumps(f["enabled"]), json.dumps(f["value"]), f["variant"], f["reason"]] for f in flags.values()]
    except patterns.TooSlow:
        return "slow"
    except Exception as error:  # Differences 5: whatever a condition raises.
        return f"raises {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def typed(value):
    if isinstance(value, float):
        return ["float", str(values.bits(value))]
    return [type(value).__name__, str(value)]


def main():
    seed, count = sys.argv[1], int(sys.argv[2])
    rng = random.Random(f"evaluations {seed}")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, patterns.give_up)
    asked, left_out = 0, {}
    while asked < count:
        doc = document(rng)
        context = map_environment_document_to_context(doc)
        requests = []
        for _ in range(min(40, count - asked)):
            identifier, traits = request(rng)
            rule_number = excluded(doc, identifier, traits)
            found = answer(context, identifier, traits) if rule_number is None else None
            if isinstance(found, str):
                rule_number = "5"
            if rule_number is not None:
                left_out[rule_number] = left_out.get(rule_number, 0) + 1
                continue
            asked += 1
            requests.append([identifier, [[name, *typed(value)] for name, value in traits], found])
        print(json.dumps(doc, ensure_ascii=rng.random() < 0.5))
        print(json.dumps(requests))
        if not requests and sum(left_out.values()) > 20 * count + 10_000:
            sys.exit("hardly a request is left: the generator is wrong")
    print(json.dumps({"asked": asked, "left_out": left_out}))


if __name__ == "__main__":
    main()
