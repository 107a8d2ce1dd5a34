"""Decodes exports with the definitions of OTLP from PyPI, as a collector does.

otlp.py FOLDER: each file in it, in the order of their names, is the body of an export to v1/traces or v1/metrics,
which the name ends with. Prints a list of spans and a list of exports of metrics as JSON, one per line.
"""
import gzip
import json
import pathlib
import sys

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def attributes(pairs):
    found = {pair.key: value(pair.value) for pair in pairs}
    assert len(found) == len(pairs), "an attribute is repeated"
    return found


def point(data):
    found = {"attributes": attributes(data.attributes), "start": data.start_time_unix_nano, "time": data.time_unix_nano}
    if hasattr(data, "bucket_counts"):
        assert len(data.bucket_counts) == len(data.explicit_bounds) + 1
        assert sum(data.bucket_counts) == data.count and list(data.explicit_bounds) == sorted(data.explicit_bounds)
        return found | {"bounds": list(data.explicit_bounds), "buckets": list(data.bucket_counts), "sum": data.sum}
    return found | {"value": getattr(data, data.WhichOneof("value"))}


def metric(data):
    kind = data.WhichOneof("data")
    body = getattr(data, kind)
    found = {"kind": kind, "unit": data.unit, "points": [point(one) for one in body.data_points]}
    if kind != "gauge":
        found["temporality"] = body.aggregation_temporality
    if kind == "sum":
        found["monotonic"] = body.is_monotonic
    return data.name, found


def span(data, resource):
    assert len(data.trace_id) == 16 and len(data.span_id) == 8 and data.start_time_unix_nano <= data.end_time_unix_nano
    return {
        "trace": data.trace_id.hex(),
        "span": data.span_id.hex(),
        "parent": data.parent_span_id.hex(),
        "flags": data.flags,
        "name": data.name,
        "kind": data.kind,
        "attributes": attributes(data.attributes),
        "status": data.status.code,
        "message": data.status.message,
        "resource": resource,
    }


spans, exports = [], []
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    body = file.read_bytes()
    body = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
    if file.name.endswith("traces"):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            own = attributes(resource.resource.attributes)
            spans += [span(one, own) for scope in resource.scope_spans for one in scope.spans]
    else:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            metrics = [metric(one) for scope in resource.scope_metrics for one in scope.metrics]
            assert len(dict(metrics)) == len(metrics), "a name is repeated"
            exports.append({"resource": attributes(resource.resource.attributes), "metrics": dict(metrics)})
print(json.dumps(spans))
print(json.dumps(exports))
