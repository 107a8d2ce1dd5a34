"""The PyPI SDK against a running proxy: sdk.py API_URL SERVER_KEY.

Prints one line per kind of evaluation; exits with 1 at the first difference.
"""

import random
import sys

import requests
from flag_engine.engine import get_evaluation_result
from flagsmith import Flagsmith
from flagsmith.mappers import map_environment_document_to_context

api_url, key = sys.argv[1:]
remote = Flagsmith(environment_key=key, api_url=api_url, enable_analytics=False)
local = Flagsmith(
    environment_key=key, api_url=api_url, enable_local_evaluation=True, enable_analytics=False
)


def plain(flags):
    """Name -> (enabled, value), in a form that distinguishes 1, True and 1.0."""
    return {f.feature_name: (f.enabled, repr(f.value)) for f in flags.all_flags()}


def compare(what, left, right):
    different = {n: (left.get(n), right.get(n)) for n in left.keys() | right.keys() if left.get(n) != right.get(n)}
    if different:
        sys.exit(f"{what}: remote and local differ (remote, local): {different}")


environment = plain(remote.get_environment_flags())
assert environment, "the environment has flags"
assert local.get_environment_flags().all_flags(), "the document was fetched"
# Without an identity the SDK ignores segments; the Python proxy, the reference, evaluates them.
answer = requests.get(f"{api_url}environment-document/", headers={"X-Environment-Key": key}, timeout=10)
model = get_evaluation_result(map_environment_document_to_context(answer.json()))
compare(
    "environment",
    environment,
    {name: (flag["enabled"], repr(flag["value"])) for name, flag in model["flags"].items()},
)
print(f"environment: {len(environment)} flags agree")

# Values near those of the segments' conditions, so that many match and many do not.
POOL = {
    "plan": ["gold", "silver", "Gold", ""],
    "country": ["GB", "DE", "US"],
    "age": [17, 18, 19, 64.5, "18"],
    "score": [1.5, 0, -3, "x"],
    "email": ["a@example.com", "b@flagsmith.com", "c"],
    "version": ["1.2.3", "1.10.0", "2.0.0-rc.1", "bad"],
    "beta": [True, False, "true"],
}
chance = random.Random(11)
results = set()
for number in range(50):
    traits = {k: chance.choice(v) for k, v in POOL.items() if chance.random() < 0.7}
    # A transient trait is evaluated as any other, but the SDK serialises it differently.
    if number % 5 == 0 and "plan" in traits:
        traits["plan"] = {"value": traits["plan"], "transient": True}
    identifier = f"user-{number}"
    left = plain(remote.get_identity_flags(identifier, traits))
    compare(f"{identifier} {traits}", left, plain(local.get_identity_flags(identifier, traits)))
    results.add(tuple(sorted(left.items())))
assert len(results) > 10, f"the identities must differ: {len(results)} kinds of answer"
print(f"50 identities agree ({len(results)} kinds of answer)")
