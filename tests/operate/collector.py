"""A real collector of OpenTelemetry, Rotel: it accepts what the proxy exports, and forwards all of it."""
import contextlib, gzip, http.client, http.server, importlib.util, pathlib, subprocess, tempfile, threading

from common import KEY, demo, fetch, free_port, need, process, say, until

REQUESTS = 500


class Sink(http.server.BaseHTTPRequestHandler):
    """The end of the way: keeps what the collector forwards."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def sink():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    server.received = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()


def rotel(scratch, port, end):
    program = pathlib.Path(importlib.util.find_spec("rotel").origin).parent / "rotel-agent"
    program.chmod(0o755)
    flags = {
        "pid-file": f"{scratch}/pid", "log-file": f"{scratch}/log", "otlp-http-endpoint": f"127.0.0.1:{port}",
        "otlp-grpc-endpoint": f"127.0.0.1:{free_port()}", "exporter": "otlp", "otlp-exporter-protocol": "http",
        "otlp-exporter-endpoint": f"http://127.0.0.1:{end}",
    }
    return process(program, "start", *(f"--{name}={value}" for name, value in flags.items()), stderr=subprocess.DEVNULL)


def decode(received):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans, metrics = [], {}
    for path, body in list(received):
        if path.endswith("/traces"):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                metrics |= {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
    return spans, metrics


def collector(executable):
    port = free_port()
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    with tempfile.TemporaryDirectory() as scratch, sink() as end, rotel(scratch, port, end.server_port):
        until("the collector listens", lambda: fetch(port, "/")[0])
        with demo(executable, **variables) as (own, admin, _):
            connection = http.client.HTTPConnection("127.0.0.1", own)
            for _ in range(REQUESTS):
                connection.request("GET", "/api/v1/flags/", headers=KEY)
                connection.getresponse().read()
            flags = lambda: [span for span in decode(end.received)[0] if span.name == "GET /api/v1/flags/"]
            until(f"{REQUESTS} spans of requests", lambda: len(flags()) >= REQUESTS)
            need(len({span.span_id for span in flags()}) == REQUESTS == len(flags()), f"Rotel forwards {REQUESTS} spans of as many requests")

            def counted():
                points = decode(end.received)[1]["edge_proxy_http_requests_total"].sum.data_points
                labels = lambda point: {pair.key: pair.value.string_value for pair in point.attributes}
                return [p.as_int for p in points if labels(p) == {"route": "flags", "status": "2xx"}]

            until("the counter arrives", lambda: counted() == [REQUESTS])
            say(f"Rotel forwards edge_proxy_http_requests_total {REQUESTS}, equal to the number of requests")
            page = fetch(admin, "/metrics", {})[1]
            names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE ")}
            need(names == set(decode(end.received)[1]), f"Rotel forwards all {len(names)} metrics of /metrics")
            need('edge_proxy_otlp_exports_total{signal="traces",result="failed"} 0' in page, "no export failed")
