"""A fake of Flagsmith's API: any number of environments, each of which can be made to fail."""
import contextlib, http.server, json, threading

from common import ROOT


class Upstream:
    """`failing` holds server-side keys that are answered 500, `unknown` those that are answered 401."""

    def __init__(self, count):
        document = json.loads((ROOT / "src/demo/environment.json").read_text())
        self.pairs = [{"server_side_key": f"ser.key-{n:03}", "client_side_key": f"{n:03}-client-key"} for n in range(count)]
        self.bodies = {
            pair["server_side_key"]: json.dumps({**document, "api_key": pair["client_side_key"], "name": f"Environment {n:03}"}).encode()
            for n, pair in enumerate(self.pairs)
        }
        self.failing, self.unknown = set(), set()
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                status, body = upstream.answer(self.headers.get("X-Environment-Key", ""))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # A killed proxy resets its connections, which is expected.
        self.server.handle_error = lambda *_: None
        self.api_url = f"http://127.0.0.1:{self.server.server_port}/api/v1/"

    def answer(self, key):
        if key in self.failing:
            return 500, b"{}"
        if key in self.unknown:
            return 401, b'{"detail":"Invalid or missing Environment Key"}'
        return 200, self.bodies[key]


@contextlib.contextmanager
def upstream(count):
    made = Upstream(count)
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()
