"""OpenFeature's Python providers and an exposure of an experiment: providers.py ORIGIN_OF_PROXY CLIENT_KEY SERVER_KEY.

The OFREP provider fails without `variant` and then returns the default of the code; the Flagsmith provider
reads flags as the SDK does. The SDK records an exposure only for a flag with an experiment.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from flagsmith import Flagsmith
from flagsmith.analytics import EventProcessorConfig
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature_flagsmith.provider import FlagsmithProvider

origin, client_key, server_key = sys.argv[1:]
PLAIN = EvaluationContext("u")
GOLD = EvaluationContext("u", {"plan": "gold"})
EXPERIMENT = {"experiment.id": 7, "experiment.name": "Split", "experiment.in_experiment": True}


def check(name, details, value, variant, reason, **more):
    found = (details.value, details.variant, str(details.reason.value if hasattr(details.reason, "value") else details.reason))
    assert details.error_code == more.get("error"), f"{name}: {details}"
    assert found == (value, variant, reason), f"{name}: {details}"
    for key, expected in more.get("metadata", {}).items():
        assert details.flag_metadata.get(key) == expected, f"{name}: {details}"


api.set_provider(OFREPProvider(origin, headers_factory=lambda: {"X-Environment-Key": client_key}), domain="ofrep")
ofrep = api.get_client("ofrep")
check("banner", ofrep.get_string_details("banner", "code", PLAIN), "hello", "default", "DEFAULT", metadata={"enabled": True})
check("banner", ofrep.get_string_details("banner", "code", GOLD), "golden", "default", "TARGETING_MATCH")
check("split", ofrep.get_string_details("split", "code", PLAIN), "variant-value", "b", "SPLIT", metadata=EXPERIMENT)
check("on", ofrep.get_boolean_details("on", False, PLAIN), True, "default", "STATIC")
check("off", ofrep.get_boolean_details("off", True, PLAIN), False, "default", "DISABLED")
check("count", ofrep.get_integer_details("count", -1, PLAIN), 1, "default", "STATIC")
check("dark", ofrep.get_string_details("dark", "code", PLAIN), "code", "default", "DISABLED")
missing = ofrep.get_string_details("unknown", "code", PLAIN)
assert (missing.value, missing.error_code.value) == ("code", "FLAG_NOT_FOUND"), missing
print("ofrep", flush=True)

remote = Flagsmith(environment_key=server_key, api_url=f"{origin}/api/v1/")
api.set_provider(FlagsmithProvider(remote), domain="flagsmith")
flags = api.get_client("flagsmith")
# This provider maps the environment's state to STATIC and keeps the segment's name in the reason.
check("banner", flags.get_string_details("banner", "code", PLAIN), "hello", None, "STATIC", metadata={"featureId": 1})
check("banner", flags.get_string_details("banner", "code", GOLD), "golden", None, "TARGETING_MATCH; segment=gold plan")
check("split", flags.get_string_details("split", "code", PLAIN), "variant-value", "b", "SPLIT; weight=100.0", metadata={"experiment.arm": "b"})
check("on", flags.get_boolean_details("on", False, PLAIN), True, None, "STATIC")
check("count", flags.get_integer_details("count", -1, PLAIN), 1, None, "STATIC")
print("flagsmith", flush=True)

received = []


class Events(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        received.append((self.path, json.loads(body)["events"]))
        self.send_response(202)
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Events)
Thread(target=server.handle_request, daemon=True).start()
config = EventProcessorConfig(events_api_url=f"http://127.0.0.1:{server.server_port}/", flush_interval_seconds=600)
events = Flagsmith(environment_key=server_key, api_url=f"{origin}/api/v1/", enable_events=True, event_processor_config=config)
split = events.get_experiment_flag("split", "u")
assert (split.experiment.id, split.experiment.name, split.experiment.in_experiment) == (7, "Split", True), split
# Not in an experiment: nothing is recorded.
assert events.get_experiment_flag("banner", "u").experiment is None
events._event_processor.flush()
for _ in range(600):
    if received:
        break
    time.sleep(0.1)
[(path, sent)] = received
assert path == "/v1/events", path
assert [(one["feature_name"], one["identifier"], one["value"], one["metadata"]["experiment_id"]) for one in sent] == [("split", "u", "b", 7)], sent
print("exposure", flush=True)
