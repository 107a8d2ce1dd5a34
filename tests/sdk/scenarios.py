"""Scenarios of OpenFeature with the Python provider: scenarios.py ORIGIN_OF_PROXY CLIENT_KEY.

Prints a line of JSON for each scenario of scenarios.json, and for the states of the provider.
"""

import json
import pathlib
import sys

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext

origin, key = sys.argv[1:]


def text(value):
    return getattr(value, "value", value)


def report(name, ok, found, waived=None):
    print(json.dumps({"name": name, "ok": ok, "found": found, "waived": waived}), flush=True)


def details_of(client, scenario, context):
    evaluate = getattr(client, f"get_{scenario['type']}_details")
    details = evaluate(scenario["flag"], scenario["default"], context)
    return {"value": details.value, "variant": details.variant, "reason": text(details.reason), "error": text(details.error_code)}


def provide(key, domain):
    api.set_provider(OFREPProvider(origin, headers_factory=lambda: {"X-Environment-Key": key}), domain=domain)
    return api.get_client(domain)


client = provide(key, "ofrep")
status = text(client.get_provider_status())
report("the provider becomes ready", status == "READY", status)
for scenario in json.loads((pathlib.Path(__file__).parent / "scenarios.json").read_text()):
    found = details_of(client, scenario, EvaluationContext("u", scenario.get("context", {})))
    ok = all(found[name] == scenario[name] and type(found[name]) is type(scenario[name]) for name in ("value", "variant", "reason") if name in scenario)
    is_error_expected = scenario.get("any_error") or found["error"] == scenario.get("error")
    report(scenario["name"], ok and is_error_expected, found, scenario.get("waived"))
plain = {"type": "string", "flag": "string-flag", "default": "code"}
found = details_of(client, plain, EvaluationContext())
report("a context without a targeting key is an error", found["error"] == "TARGETING_KEY_MISSING" and found["value"] == "code", found)
found = details_of(provide("unknown-key", "wrong"), plain, EvaluationContext("u"))
report("an unknown key gives the default", found["value"] == "code" and found["error"] is not None, found)
