"""A real Prometheus: exact counts, and every query of the dashboard and the alerts."""
import http.client, json, pathlib, re, subprocess, sys, tempfile

from common import KEY, ROOT, demo, fetch, free_port, need, process, say, until


def prometheus(executable):
    import yaml

    with demo(executable) as (port, admin, _), tempfile.TemporaryDirectory() as scratch:
        server = free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "deploy/prometheus/alerts.yml")],
            "scrape_configs": [{"job_name": "edge-proxy", "static_configs": [{"targets": [f"127.0.0.1:{admin}"]}]}],
        }
        path = pathlib.Path(scratch) / "prometheus.yml"
        path.write_text(json.dumps(config))
        command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={scratch}/data", f"--web.listen-address=127.0.0.1:{server}"]
        with process(*command, stderr=subprocess.DEVNULL):
            def query(expression):
                from urllib.parse import quote
                answer = json.loads(fetch(server, f"/api/v1/query?query={quote(expression)}", {})[1])
                return answer["data"]["result"] if answer["status"] == "success" else sys.exit(f"FAILED: {expression}: {answer}")

            until("Prometheus scrapes", lambda: query('up{job="edge-proxy"} == 1'))
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for index in range(500):
                connection.request("GET", "/api/v1/flags/" if index % 5 else "/api/v1/identities/?identifier=ada", headers=KEY)
                connection.getresponse().read()
            for route, count in {"flags": 400, "identities": 100}.items():
                sample = f'edge_proxy_http_requests_total{{route="{route}",status="2xx"}}'
                until(f"{sample} is {count}", lambda: [r["value"][1] for r in query(sample)] == [str(count)])
                say(f"Prometheus has {sample} {count}, equal to the number of requests")
            metrics = fetch(admin, "/metrics", {})[1]
            checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True)
            need(checked.returncode == 0 and not checked.stderr.strip(), f"promtool check metrics {checked.stderr.strip()}")
            known = set(re.findall(r"^# TYPE (\S+)", metrics, re.M))
            dashboard = (ROOT / "deploy/grafana/edge-proxy.json").read_text()
            expressions = [t["expr"] for p in json.loads(dashboard)["panels"] for t in p.get("targets", [])]
            rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
            expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
            for expression in expressions:
                query(expression.replace("$instance", ".*").replace("$__rate_interval", "1m"))
                for name in re.findall(r"edge_proxy_\w+", expression):
                    family = re.sub(r"_(bucket|sum|count)$", "", name)
                    if family not in known and name not in known:
                        sys.exit(f"FAILED: {name} in {expression} is not a metric of the proxy")
            say(f"all {len(expressions)} queries of the dashboard and the alerts run, on metrics that exist")
