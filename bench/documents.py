"""Environment documents for benchmarks, seeded, so that every machine measures the same work.

documents.py KIND [KEY=NUMBER ...]: prints one document. Kinds and what may be set:
  simple   50 features, no segments
  heavy    50 features, 15 segments of 15 trait conditions, each feature overridden by each segment
           (Flagsmith's published load profile)
  huge     1,000 features, 1,500 segments, 100,000 identity overrides
  splits   50 features, each with variants of its own: as many results as callers
  wide     1,000 features without variants, so that all callers get the same result
  any of them with features=, segments=, overrides=, conditions=, targets= (features a segment overrides)
`requests()` gives the bodies that go with them. Only `random()` is drawn from the generator: its
sequence for a seed is the same in every Python.
"""

import json
import random
import sys
import uuid

CLIENT_KEY = "BenchClientKey00000000"
SERVER_KEY = "ser.BenchServerKey000000"

KINDS = {
    "simple": {"features": 50, "segments": 0, "overrides": 0, "conditions": 0, "targets": 0},
    "heavy": {"features": 50, "segments": 15, "overrides": 0, "conditions": 15, "targets": 50},
    "huge": {"features": 1000, "segments": 1500, "overrides": 100_000, "conditions": 3, "targets": 4},
    "splits": {"features": 50, "segments": 0, "overrides": 0, "conditions": 0, "targets": 0, "variants_each": 1},
    "wide": {"features": 1000, "segments": 0, "overrides": 0, "conditions": 0, "targets": 0, "variants_each": 0},
}

# The traits of the matching request, with one matching condition on each.
TRAITS = {
    "plan": "enterprise-gold",
    "country": "DE",
    "age": 42,
    "orders": 1000,
    "is_beta": True,
    "email": "user.name@example.com",
    "app_version": "4.7.2",
    "score": 87.5,
    "locale": "de-DE",
    "device": "iphone-15",
    "signup_year": 2021,
    "roles": "admin,editor,viewer",
    "team": "team-7",
    "balance": 250,
    "last_seen_days": 3,
}


class Source:
    """Generates everything from one seed."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def below(self, limit):
        return int(self.random() * limit)

    def uuid(self):
        return str(uuid.UUID(int=self.below(2**53) << 75 | self.below(2**53) << 22 | self.below(2**22)))

    def letters(self, length):
        return "".join("abcdefghij"[self.below(10)] for _ in range(length))


def value(source, number, label):
    """Values of every type that Flagsmith stores, in turn."""
    kind = number % 7
    if kind == 0:
        return None
    if kind == 1:
        return f"value-{label}-{source.letters(12)}"
    if kind == 2:
        return source.below(100_000)
    if kind == 3:
        return True
    if kind == 4:
        return f"{source.below(30000) / 100}"
    if kind == 5:
        return json.dumps({"theme": "dark", "limit": source.below(100), "tags": ["a", "b"]})
    return f"unicode-é-日本-{number}"


def state(source, number, label, priority=None, variants=0):
    splits = [
        {
            "id": 9000 + number * 10 + index,
            "percentage_allocation": (25.0, 25.0, 30.0)[index],
            "mv_fs_value_uuid": source.uuid(),
            "multivariate_feature_option": {"id": 8000 + number * 10 + index, "value": f"variant-{index}"},
        }
        for index in range(variants)
    ]
    return {
        "feature": {
            "id": 1000 + number,
            "name": f"feature_{number:02}",
            "type": "MULTIVARIATE" if variants else "STANDARD",
        },
        "enabled": source.random() < 0.7,
        "django_id": None if label == "identity" else 5000 + source.below(1_000_000),
        "featurestate_uuid": source.uuid(),
        "feature_segment": None if priority is None else {"priority": priority},
        "feature_state_value": None if variants else value(source, number, label),
        "multivariate_feature_state_values": splits,
        "segment_id": None,
    }


def conditions(source):
    """One condition on each trait, met by TRAITS, with operands that differ by segment."""
    below = source.below
    return [
        ("plan", "EQUAL", "enterprise-gold"),
        ("country", "IN", ",".join(["NL", "IT", "US", "ES", "DE"][below(5) :] + ["DE", "FR"])),
        ("age", "GREATER_THAN", str(18 + below(20))),
        ("orders", "LESS_THAN_INCLUSIVE", str(1000 + below(500))),
        ("is_beta", "EQUAL", "true"),
        ("email", "CONTAINS", ["@example", "name@", "user."][below(3)]),
        ("app_version", "GREATER_THAN_INCLUSIVE", f"4.{below(7)}.{below(10)}:semver"),
        ("score", "GREATER_THAN", str(50 + below(140) / 4)),
        ("locale", "NOT_EQUAL", ["en-GB", "fr-FR", "en-US"][below(3)]),
        ("device", "REGEX", ["i[a-z]+-\\d{2}", "iphone-\\d+", "(iphone|ipad)-1\\d"][below(3)]),
        ("signup_year", "GREATER_THAN_INCLUSIVE", str(2010 + below(11))),
        ("roles", "CONTAINS", ["viewer", "editor", "admin"][below(3)]),
        ("team", "NOT_CONTAINS", f"team-{80 + below(20)}"),
        ("balance", "MODULO", ["10|0", "25|0", "50|0"][below(3)]),
        ("last_seen_days", "LESS_THAN", str(4 + below(10))),
    ]


def segment(source, number, shape):
    chosen = conditions(source)[: shape["conditions"]]
    if number % 100 >= 15:
        # Beyond the published profile most segments do not match, as in a large project.
        chosen = [("plan", "EQUAL", f"plan-{number}")] + chosen[1:]
    features = [(number * shape["targets"] + index) % shape["features"] for index in range(shape["targets"])]
    priorities = [source.below(15) for _ in features]
    rule = {
        "type": "ALL",
        "rules": [],
        "conditions": [{"property_": name, "operator": operator, "value": text} for name, operator, text in chosen],
    }
    return {
        "id": 300 + number,
        "name": f"segment_{number:02}",
        "rules": [{"type": "ALL", "conditions": [], "rules": [rule]}],
        "feature_states": [
            state(source, feature, f"seg{number}", priority)
            for feature, priority in zip(features, priorities, strict=True)
        ],
    }


def override(source, number, shape):
    entry = state(source, number % shape["features"], "identity")
    entry["feature_state_value"] = f"override-{number}"
    return {
        "identifier": f"user-{number}",
        "identity_uuid": source.uuid(),
        "created_date": "2024-01-01T00:00:00Z",
        "updated_at": "2024-01-01T00:00:00Z",
        "environment_api_key": CLIENT_KEY,
        "django_id": None,
        "identity_features": [entry],
    }


def document(kind, seed=11, client_key=CLIENT_KEY, **changes):
    """The document as Python objects."""
    shape = {**KINDS[kind], **changes}
    source = Source(seed)
    features = range(shape["features"])
    # Every tenth feature is multivariate, unless the kind says otherwise; none if it says 0.
    each = shape.get("variants_each", 10)
    variants = [3 if each and number % each == each - 1 else 0 for number in features]
    states = [state(source, number, number, variants=variants[number]) for number in features]
    return {
        "id": 1,
        "name": f"Bench {kind}",
        "api_key": client_key,
        "updated_at": "2026-01-15T10:30:00.123456+00:00",
        "allow_client_traits": True,
        "hide_disabled_flags": None,
        "hide_sensitive_data": False,
        "use_identity_composite_key_for_hashing": True,
        "use_identity_overrides_in_local_eval": True,
        "project": {
            "id": 1,
            "name": "Bench project",
            "hide_disabled_flags": False,
            "enable_realtime_updates": False,
            "server_key_only_feature_ids": [],
            "organisation": {
                "id": 1,
                "name": "Bench organisation",
                "feature_analytics": False,
                "persist_trait_data": True,
                "stop_serving_flags": False,
            },
            "segments": [segment(source, number, shape) for number in range(shape["segments"])],
        },
        "feature_states": states,
        "identity_overrides": [override(source, number, shape) for number in range(shape["overrides"])],
    }


def text(body):
    """Compact, ASCII only, as Flagsmith's API writes it."""
    return json.dumps(body, separators=(",", ":"))


def identity(identifier="bench-user", **changes):
    traits = {**TRAITS, **changes, "unused_a": "zzz", "unused_b": 12}
    return {
        "identifier": identifier,
        "traits": [{"trait_key": name, "trait_value": value} for name, value in traits.items()],
    }


def exposures(count):
    """A post of experiment events, as bytes."""
    exposure = {
        "event": "$flag_exposure",
        "feature_name": "feature_0001",
        "identifier": "bench-user",
        "value": "b",
        "traits": None,
        "metadata": {"experiment_id": 7},
        "timestamp": 1_735_229_888_000,
    }
    return text({"events": [exposure] * count}).encode()


def requests():
    """Name -> body of POST identities."""
    return {
        "simple": {
            "identifier": "do_it_all_in_one_go_identity",
            "traits": [
                {"trait_key": "my_trait_key", "trait_value": 123},
                {"trait_key": "my_other_key", "trait_value": True},
            ],
        },
        "heavy-match": identity(),
        "heavy-none": identity(plan="free"),
        "overridden": {"identifier": "user-77", "traits": [{"trait_key": "a", "trait_value": 1}]},
        # Each request has another number in the place of user-000000.
        "varied": identity("user-000000"),
        "changed": identity(session="user-000000"),
        "varied-none": identity("user-000000", plan="free"),
        "varied-simple": {
            "identifier": "user-000000",
            "traits": [
                {"trait_key": "my_trait_key", "trait_value": 123},
                {"trait_key": "my_other_key", "trait_value": True},
            ],
        },
        "varied-few": {"identifier": "user-000000", "traits": [{"trait_key": "plan", "trait_value": "gold"}]},
        "context": {"context": {"targetingKey": "user-000000", **TRAITS}},
    }


if __name__ == "__main__":
    kind, *settings = sys.argv[1:]
    changes = {name: int(number) for name, number in (setting.split("=") for setting in settings)}
    print(text(document(kind, **changes)))
