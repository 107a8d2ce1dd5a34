"""The PyPI SDK's counts and its event stream: events.py ORIGIN_OF_PROXY SERVER_KEY.

Prints "change" when the document must change, and waits for the event long before the SDK's refresh.
"""

import sys
import time

from flagsmith import Flagsmith

origin, key = sys.argv[1:]
local = Flagsmith(
    environment_key=key,
    api_url=f"{origin}/api/v1/",
    realtime_api_url=f"{origin}/",
    enable_local_evaluation=True,
    enable_realtime_updates=True,
    environment_refresh_interval_seconds=600,
)


def count():
    return local.get_environment_flags().get_feature_value("count")


deadline = time.monotonic() + 60
before = count()
print("change", flush=True)
while count() == before:
    assert time.monotonic() < deadline, "the stream did not bring the new document"
    time.sleep(0.05)
print("realtime", flush=True)

remote = Flagsmith(environment_key=key, api_url=f"{origin}/api/v1/", enable_analytics=True)
flags = remote.get_environment_flags()
for _ in range(3):
    flags.is_feature_enabled("banner")
flags.get_feature_value("count")
remote._analytics_processor.flush()
print("counted", flush=True)
time.sleep(1)
