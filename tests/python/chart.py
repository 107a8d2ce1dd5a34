"""Renders the Helm chart with Helm's own code and compares it with tests/fixtures/chart.

chart.py compare     renders each case, and fails if its golden file differs
chart.py write       writes the golden files, and the schema of `config` in values.schema.json
chart.py refuse      values that the schema or a template must refuse
chart.py validate    the manifests against the schemas of Kubernetes, values.yaml against values.schema.json
chart.py config CASE prints the config.json of a case
chart.py restart JSON prints for each of a list of [path, value] whether its change replaces the pods
"""
import difflib, json, pathlib, sys

import helm_python
import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/edge-proxy"
GOLDEN = ROOT / "tests/fixtures/chart"
KEYS = [{"server_side_key": "ser.environment_key", "client_side_key": "environment_key"}]
# The chart sets these itself, so that a value of the user would have no effect.
OWN_SETTINGS = ["admin.host", "admin.port", "cache_dir", "environment_key_pairs", "proxy_key", "server.host", "server.port"]

CASES = {
    "default": {"environmentKeyPairs": KEYS},
    "existing-secret": {
        "existingSecret": "mine", "useProxyKey": True, "serviceAccount": {"create": False},
        "image": {"repository": "registry.example.com/edge-proxy", "digest": "sha256:" + "0" * 64},
        "podDisruptionBudget": {"minAvailable": None, "maxUnavailable": 1}, "networkPolicy": {"enabled": False},
    },
    "everything": {
        "environmentKeyPairs": KEYS, "proxyKey": "proxy-key",
        "config": {
            "api_headers": {"X-Gateway-Token": "secret"}, "server": {"base_path": "/flags", "deny_list": ["192.0.2.0/24"]},
            "logging": {"access_log_file": "/logs/access.log"}, "admin": {"allowed_hosts": ["status.example.com"]},
        },
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.internal:3128"}],
        "envFrom": [{"configMapRef": {"name": "proxies"}}],
        "extraVolumes": [{"name": "logs", "emptyDir": {"sizeLimit": "1Gi"}}],
        "extraVolumeMounts": [{"name": "logs", "mountPath": "/logs"}],
        "podAnnotations": {"prometheus.io/scrape": "false", "example.com/team": "flags"},
        "podLabels": {"team": "flags", "app.kubernetes.io/name": "not-ours"},
        "serviceAccount": {"name": "flags", "annotations": {"example.com/role": "none"}},
        "imagePullSecrets": [{"name": "registry"}],
        "service": {"port": 8080, "annotations": {"example.com/zone": "a"}},
        "ingress": {
            "enabled": True, "className": "nginx", "tlsSecretName": "tls",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600"},
        },
        "autoscaling": {"enabled": True, "maxReplicas": 5},
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"},
        ],
        "networkPolicy": {
            "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "prometheus": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        },
        "serviceMonitor": {"enabled": True, "interval": "5s", "labels": {"release": "kube-prometheus-stack"}},
        "nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": [{"operator": "Exists"}],
    },
    "client-certificates": {
        "environmentKeyPairs": KEYS,
        "config": {"server": {"tls": {"cert": "/tls/tls.crt", "key": "/tls/tls.key", "client_ca": "/tls/ca.crt"}}},
        "extraVolumes": [{"name": "tls", "secret": {"secretName": "edge-proxy-tls"}}],
        "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
    },
}

# Values beside the keys, and a part of the message that refuses them.
REFUSED = [
    ({"replicas": 3}, "replicas"),
    ({"image": {"repositry": "x"}}, "repositry"),
    ({"ingress": {"hosts": ["a"]}}, "hosts"),
    ({"config": {"api_pol_frequency": 1}}, "api_pol_frequency"),
    ({"config": {"server": {"port": 9000}}}, "port"),
    ({"config": {"server": {"timeout_haed": 1}}}, "timeout_haed"),
    ({"config": {"environment_key_pairs": KEYS}}, "environment_key_pairs"),
    ({"environmentKeyPairs": [{"client_side_key": "a", "server_side_key": "b"}]}, "server_side_key"),
    ({"environmentKeyPairs": [{"client": "a"}]}, "client"),
    ({"replicaCount": "two"}, "replicaCount"),
    ({"service": {"port": 70000}}, "port"),
    ({"networkPolicy": {"prometheus": {"app": "x"}}}, "prometheus"),
    ({"image": {"digest": "latest"}}, "digest"),
    ({"extraEnv": {"A": "b"}}, "extraEnv"),
    ({"environmentKeyPairs": []}, "existingSecret"),
]


def render(values):
    with helm_python.Chart.load(CHART) as chart:
        return chart.render(values, name="demo", namespace="flags")


def text(values):
    """All manifests and the notes, in the order of their names, without empty ones."""
    parts = []
    for path, rendered in sorted(render(values).items()):
        if rendered.strip():
            lines = [line.rstrip() for line in rendered.strip().splitlines()]
            parts.append(f"# --- {path} ---\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def compare():
    differences = []
    for name, values in CASES.items():
        golden = (GOLDEN / f"{name}.yaml").read_text()
        rendered = text(values)
        differences += difflib.unified_diff(
            golden.splitlines(), rendered.splitlines(), f"{name}.yaml", f"{name} as rendered", lineterm=""
        )
    schema = json.loads((CHART / "values.schema.json").read_text())
    if schema["properties"]["config"] != config_schema():
        differences.append("values.schema.json: config differs from docs/config.schema.json")
    if differences:
        sys.exit("\n".join(differences) + "\nIf this is intended: tests/python/chart.py write")


def write():
    path = CHART / "values.schema.json"
    schema = json.loads(path.read_text())
    schema["properties"]["config"] = config_schema()
    path.write_text(json.dumps(schema, indent=2) + "\n")
    GOLDEN.mkdir(exist_ok=True)
    for name, values in CASES.items():
        (GOLDEN / f"{name}.yaml").write_text(text(values))


def config_schema():
    """The schema of config.json (docs/config.schema.json), without the settings that the chart sets."""
    published = json.loads((ROOT / "docs/config.schema.json").read_text())
    schema = {key: value for key, value in published.items() if key not in ("$schema", "$id", "title")}
    schema["description"] = "config.json, see docs/configuration.md; generated from docs/config.schema.json."
    del schema["properties"]["$schema"]
    schema.pop("required", None)
    for path in OWN_SETTINGS:
        *groups, name = path.split(".")
        members = schema["properties"]
        for group in groups:
            members = members[group]["properties"]
        del members[name]
    return without_look_ahead(schema)


def without_look_ahead(schema):
    """Helm matches patterns with Go's regexp, which has none: the proxy itself checks those values."""
    if isinstance(schema, list):
        return [without_look_ahead(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_kept = lambda name, value: name != "pattern" or not isinstance(value, str) or "(?" not in value
    return {name: without_look_ahead(value) for name, value in schema.items() if is_kept(name, value)}


def refuse():
    accepted = []
    for values, word in REFUSED:
        try:
            render({"environmentKeyPairs": KEYS, **values})
        except helm_python.HelmError as refused:
            if word not in str(refused):
                accepted.append(f"{values}: the message lacks {word!r}: {refused}")
        else:
            accepted.append(f"{values}: accepted")
    if accepted:
        sys.exit("\n".join(accepted))


def validate():
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(defaults)
    undescribed = set(defaults) ^ set(schema["properties"])
    if undescribed:
        sys.exit(f"in one of values.yaml and values.schema.json only: {undescribed}")
    for name, values in CASES.items():
        found = helm_python.lint(CHART, values, strict=True)
        complaints = [message for message in found["messages"] if message["severity"] > 1] + found["errors"]
        if complaints:
            sys.exit(f"helm lint of {name}: {complaints}")
        for document in documents(values):
            # A ServiceMonitor is not Kubernetes' own, and has no schema there.
            if document["kind"] != "ServiceMonitor":
                kubernetes_validate.validate(document, "1.31", strict=True)


def documents(values):
    for path, rendered in render(values).items():
        if path.endswith(".yaml"):
            yield from (document for document in yaml.safe_load_all(rendered) if document)


def config(case):
    secrets = [document for document in documents(CASES[case]) if document["kind"] == "Secret"]
    print(secrets[0]["stringData"]["config.json"])


def restart(settings):
    """A JSON object: for each setting of a list of [path, value], whether a change replaces the pods."""
    print(json.dumps({path: annotations(path, value) != annotations(None, None) for path, value in json.loads(settings)}))


def annotations(path, value):
    """Those of the pods, with one setting after the defaults of the chart."""
    changed = members = {}
    if path:
        *groups, name = path.split(".")
        for group in groups:
            members = members.setdefault(group, {})
        members[name] = value
    values = {**CASES["default"], "config": changed}
    deployment = next(document for document in documents(values) if document["kind"] == "Deployment")
    return deployment["spec"]["template"]["metadata"]["annotations"]


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    commands = {
        "compare": compare, "write": write, "refuse": refuse, "validate": validate, "config": config, "restart": restart,
    }
    commands[command](*arguments)
