"""Experiment events of the PyPI SDK: exposures.py ORIGIN_OF_PROXY SERVER_KEY.

Resolves the flag of a running experiment for 1,500 identities, which is more than the SDK's buffer, and tracks
a custom event.
"""

import sys

from flagsmith import Flagsmith
from flagsmith.analytics import EventProcessorConfig

origin, key = sys.argv[1:]
client = Flagsmith(
    environment_key=key,
    api_url=f"{origin}/api/v1/",
    enable_local_evaluation=False,
    enable_events=True,
    event_processor_config=EventProcessorConfig(events_api_url=origin, flush_interval_seconds=0.5),
)
assert client.get_experiment_flag("banner", "user-1").experiment is None
flag = client.get_experiment_flag("split", "user-1", {"plan": "gold"})
assert (flag.variant, flag.experiment.id, flag.experiment.in_experiment) == ("b", 7, True), flag
for number in range(2, 1501):
    client.track_exposure_event("split", f"user-{number}", "b", {"plan": "gold"}, {"experiment_id": 7})
client.track_event("purchase", identifier="user-1", value=9.99)
client._event_processor.stop()
# Waits for the requests in flight.
from flagsmith import analytics

analytics.session.executor.shutdown()
assert client._event_processor._buffer == []
print("exposed 1500")
