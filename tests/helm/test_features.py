"""What each value makes: probes, stopping, scaling, models, GPUs, access, monitoring, and the notes."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, HELMS, of_kind, only, pod_templates, render, run_helm, server, settings, variables

FETCH = {"source": "fetch", "fetch": {"from": "https://example.com/models", "names": ["clothing/3", "adult/3"]}}


def pod_spec(values: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return only(render(values, **options), "Deployment")["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("kubernetes", "expected"),
    [("1.30.0", None), ("1.31.0", "PreferClose"), ("1.34.0", "PreferSameZone"), ("1.37.2", "PreferSameZone")],
)
def test_close_pods_are_preferred_by_the_name_that_each_version_of_kubernetes_knows(
    kubernetes: str, expected: str | None
) -> None:
    manifests = render({"service": {"trafficDistribution": "PreferClose"}}, kubernetes=kubernetes)

    assert only(manifests, "Service")["spec"].get("trafficDistribution") == expected


def test_each_probe_asks_something_of_its_own() -> None:
    container = server(render())

    assert {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "startupProbe": {"path": "/health/started", "port": "admin"},
        "readinessProbe": {"path": "/health/ready", "port": "admin"},
        "livenessProbe": {"path": "/health/live", "port": "admin"},
    }


@pytest.mark.parametrize(("budget", "period", "threshold"), [(600, 5, 120), (601, 5, 121), (3, 10, 1)])
def test_the_startup_probe_lasts_as_long_as_its_budget(budget: int, period: int, threshold: int) -> None:
    values = {"probes": {"startup": {"budgetSeconds": budget, "periodSeconds": period}}}

    manifests = render(values)

    assert server(manifests)["startupProbe"]["failureThreshold"] == threshold
    assert only(manifests, "Deployment")["spec"]["progressDeadlineSeconds"] > budget


def test_a_probe_can_be_replaced_or_left_out() -> None:
    values = {"probes": {"startup": {"enabled": False}, "liveness": {"custom": {"tcpSocket": {"port": "http"}}}}}

    container = server(render(values))

    assert "startupProbe" not in container
    assert container["livenessProbe"] == {"tcpSocket": {"port": "http"}}


def test_the_grace_period_is_the_sum_of_what_stopping_takes() -> None:
    values = {"lifecycle": {"preStopSeconds": 7, "drainSeconds": 2.5, "graceSeconds": 40}}

    manifests = render(values)

    assert pod_spec(values)["terminationGracePeriodSeconds"] == 7 + 3 + 40 + 5
    assert settings(manifests)["SEVENFOLD_DRAIN_SECONDS"] == "2.5"
    assert settings(manifests)["SEVENFOLD_GRACE_SECONDS"] == "40"


@pytest.mark.parametrize(
    ("kubernetes", "hook"),
    [
        ("1.29", {"exec": {"command": ["python", "-c", "import time; time.sleep(5)"]}}),
        ("1.30", {"sleep": {"seconds": 5}}),
    ],
)
def test_the_pause_before_sigterm_needs_no_shell(kubernetes: str, hook: dict[str, Any]) -> None:
    assert server(render(kubernetes=kubernetes))["lifecycle"] == {"preStop": hook}


@pytest.mark.parametrize(
    "autoscaling", [{"mode": "hpa"}, {"mode": "keda"}, {"mode": "hpa", "hpa": {"queueDepth": 4}}], ids=str
)
def test_replicas_are_left_to_what_scales(autoscaling: dict[str, Any]) -> None:
    manifests = render({"autoscaling": autoscaling, "replicaCount": 7})

    assert "replicas" not in only(manifests, "Deployment")["spec"]
    assert len(of_kind(manifests, "HorizontalPodAutoscaler") + of_kind(manifests, "ScaledObject")) == 1


@pytest.mark.parametrize(
    ("values", "budgets"),
    [
        ({"replicaCount": 1}, 0),
        ({"replicaCount": 2}, 1),
        ({"replicaCount": 2, "podDisruptionBudget": {"enabled": False}}, 0),
        ({"autoscaling": {"mode": "hpa", "minReplicas": 1}}, 0),
        ({"autoscaling": {"mode": "keda", "minReplicas": 2}}, 1),
    ],
    ids=str,
)
def test_a_disruption_budget_never_blocks_the_draining_of_nodes(values: dict[str, Any], budgets: int) -> None:
    found = of_kind(render(values), "PodDisruptionBudget")

    assert len(found) == budgets
    assert all(budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for budget in found)


def test_keda_without_prometheus_asks_the_pods_by_their_containers_port() -> None:
    values = {"autoscaling": {"mode": "keda"}, "service": {"ports": {"admin": 80}}, "containerPorts": {"admin": 9002}}

    (trigger,) = only(render(values), "ScaledObject")["spec"]["triggers"]

    assert (trigger["type"], trigger["metadata"]["url"], trigger["metadata"]["valueLocation"]) == (
        "metrics-api",
        "http://demo-sevenfold.models.svc:9002/health/load",
        "queue_depth",
    )
    assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_keda_with_prometheus_asks_for_this_release_alone() -> None:
    prometheus = {"serverAddress": "http://prometheus:9090", "latencySeconds": 0.25}
    values = {"autoscaling": {"mode": "keda", "keda": {"queueDepth": 8, "prometheus": prometheus}}}

    depth, latency = only(render(values), "ScaledObject")["spec"]["triggers"]

    pods = 'namespace="models",pod=~"demo-sevenfold-[a-z0-9]{1,10}-[a-z0-9]{5}"'
    assert depth["metadata"]["query"] == f"sum(sevenfold_queue_depth{{{pods}}})"
    assert pods in latency["metadata"]["query"]
    assert (depth["metadata"]["threshold"], latency["metadata"]["threshold"]) == ("8", "0.25")
    assert latency["metricType"] == "Value"


def test_the_hpa_scales_by_cpu_where_no_metric_is_given() -> None:
    (metric,) = only(render({"autoscaling": {"mode": "hpa"}}), "HorizontalPodAutoscaler")["spec"]["metrics"]

    assert metric["containerResource"] == {
        "name": "cpu",
        "container": "server",
        "target": {"type": "Utilization", "averageUtilization": 70},
    }


def test_a_gpu_is_a_limit_and_rolling_needs_no_second_one() -> None:
    gpu = {"enabled": True, "count": 2, "resourceName": "nvidia.com/mig-1g.10gb", "productSelector": "H100"}

    manifests = render({"gpu": gpu})

    deployment = only(manifests, "Deployment")["spec"]
    assert server(manifests)["resources"]["limits"] == {"cpu": "4", "memory": "4Gi", "nvidia.com/mig-1g.10gb": 2}
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert deployment["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in deployment["template"]["spec"][
        "tolerations"
    ]
    assert settings(manifests)["SEVENFOLD_DEVICE"] == "cuda"


def test_memory_that_the_server_may_fill_is_reserved_on_the_node() -> None:
    resources = server(render())["resources"]

    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_the_device_of_a_gpu_pod_can_be_chosen() -> None:
    assert settings(render({"gpu": {"enabled": True}, "server": {"device": "auto"}}))["SEVENFOLD_DEVICE"] == "auto"


def test_models_are_fetched_before_the_server_starts_and_are_read_only_for_it() -> None:
    checksum = "0" * 64
    models = FETCH | {"fetch": FETCH["fetch"] | {"sha256": {"adult/3": checksum}}}

    manifests = render({"models": models})

    (fetch,) = pod_spec({"models": models})["initContainers"]
    expected = ["fetch", "--from", "https://example.com/models", "--to", "/models", "--sha256", f"adult/3={checksum}"]
    assert fetch["args"] == [*expected, "clothing/3", "adult/3"]
    assert {"name": "models", "mountPath": "/models"} in fetch["volumeMounts"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in server(manifests)["volumeMounts"]


def test_models_in_the_image_need_no_volume() -> None:
    assert "models" not in {volume["name"] for volume in pod_spec()["volumes"]}


def test_a_new_claim_outlives_the_release() -> None:
    claim = only(render({"models": {"source": "pvc", "pvc": {"create": True}}}), "PersistentVolumeClaim")

    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_secrets_are_references_and_never_texts_of_the_config_map() -> None:
    values = {
        "auth": {"apiKeys": {"existingSecret": "keys"}, "adminToken": {"existingSecret": "admin", "key": "it"}},
        "tls": {"existingSecret": "cert"},
    }

    manifests = render(values)

    assert variables(manifests)["SEVENFOLD_ADMIN_TOKEN"] == {"secretKeyRef": {"name": "admin", "key": "it"}}
    assert "SEVENFOLD_ADMIN_TOKEN" not in settings(manifests)
    assert settings(manifests)["SEVENFOLD_API_KEYS_FILE"] == "/etc/sevenfold/api-keys/api-keys"
    assert settings(manifests)["SEVENFOLD_TLS_KEY"] == "/etc/sevenfold/tls/tls.key"
    mounts = {mount["name"]: mount for mount in server(manifests)["volumeMounts"]}
    assert "subPath" not in mounts["api-keys"], "such a mount would not follow changes of the Secret"
    assert all(mounts[name]["readOnly"] for name in ("api-keys", "tls"))


def test_tls_is_spoken_wherever_the_server_is_asked() -> None:
    values = {
        "tls": {"existingSecret": "cert"},
        "monitoring": {"serviceMonitor": {"enabled": True}},
        "autoscaling": {"mode": "keda"},
    }

    manifests = render(values)

    assert server(manifests)["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert only(manifests, "ServiceMonitor")["spec"]["endpoints"][0]["scheme"] == "https"
    assert only(manifests, "ScaledObject")["spec"]["triggers"][0]["metadata"]["url"].startswith("https://")
    assert only(manifests, "Pod")["spec"]["containers"][0]["args"][2] == "https://demo-sevenfold.models.svc:8080"


def test_with_api_keys_the_test_is_made_only_if_it_has_a_key() -> None:
    keys = {"auth": {"apiKeys": {"existingSecret": "keys"}}}

    without, having = render(keys), render(keys | {"tests": {"apiKey": {"existingSecret": "mine"}}})

    assert of_kind(without, "Pod") == []
    (variable,) = only(having, "Pod")["spec"]["containers"][0]["env"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "mine", "key": "key"}}


def test_a_variable_of_the_users_replaces_the_charts() -> None:
    values = {
        "tracing": {"endpoint": "http://collector:4318"},
        "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "mine"}, {"name": "SEVENFOLD_THREADS", "value": "3"}],
    }

    names = [entry["name"] for entry in server(render(values))["env"]]

    assert variables(render(values))["OTEL_SERVICE_NAME"] == "mine"
    assert len(set(names)) == len(names)
    assert names.index("POD_NAME") < names.index("OTEL_RESOURCE_ATTRIBUTES"), "Kubernetes expands what comes before"


def test_the_network_policy_lets_out_what_the_pods_need() -> None:
    models = FETCH | {"fetch": FETCH["fetch"] | {"from": "https://example.com:8443/models"}}
    values = {"networkPolicy": {"enabled": True}, "models": models, "tracing": {"endpoint": "http://collector:4318"}}

    policy = only(render(values), "NetworkPolicy")["spec"]

    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 8443, 4318]


def test_the_network_policy_lets_in_nobody_else() -> None:
    shop = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
    values = {"networkPolicy": {"enabled": True, "httpFrom": [shop], "adminNamespaces": ["monitoring"]}}

    http, admin = only(render(values), "NetworkPolicy")["spec"]["ingress"]

    test_labels = {"app.kubernetes.io/instance": "demo", "app.kubernetes.io/component": "test"}
    assert http["from"] == [shop, {"podSelector": {"matchLabels": test_labels}}]
    assert [port["port"] for port in admin["ports"]] == ["admin"]
    assert admin["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["monitoring"]


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_a_published_service_has_no_admin_port(kind: str) -> None:
    values = {
        "service": {"type": kind},
        "autoscaling": {"mode": "keda"},
    }

    manifests = render(values)

    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(manifests, "Service")}
    ports = {name: (spec["type"], [port["name"] for port in spec["ports"]]) for name, spec in services.items()}
    assert ports == {"demo-sevenfold": (kind, ["http"]), "demo-sevenfold-admin": ("ClusterIP", ["admin"])}
    (trigger,) = only(manifests, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["url"] == "http://demo-sevenfold-admin.models.svc:8082/health/load"


def test_only_the_port_http_is_reached_from_outside() -> None:
    values = {
        "ingress": {"enabled": True, "hosts": [{"host": "a.example.com"}]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
    }

    manifests = render(values)

    (path,) = only(manifests, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"] == {"service": {"name": "demo-sevenfold", "port": {"name": "http"}}}
    assert only(manifests, "HTTPRoute")["spec"]["rules"][0]["backendRefs"] == [{"name": "demo-sevenfold", "port": 8080}]


@pytest.fixture
def chart_with_monitoring(tmp_path: Path) -> Path:
    chart = Path(shutil.copytree(CHART, tmp_path / "helm", ignore=shutil.ignore_patterns("dashboards", "alerts")))
    for folder in ("dashboards", "alerts"):
        (chart / folder).mkdir()
    (chart / "dashboards" / "my_board.json").write_text('{"title": "{{ not a template }}"}')
    rules = [
        {
            "alert": name,
            "expr": "up == 0",
            "labels": {"severity": "page"},
            "annotations": {"summary": "{{ $labels.pod }}"},
        }
        for name in ("Down", "Slow")
    ]
    rules.append({"record": "a:b", "expr": "vector(1)"})
    (chart / "alerts" / "sevenfold.yaml").write_text(json.dumps({"groups": [{"name": "sevenfold", "rules": rules}]}))
    return chart


@pytest.mark.parametrize("helm", HELMS)
def test_alerts_and_dashboards_are_taken_as_they_are(chart_with_monitoring: Path, helm: str) -> None:
    monitoring = {
        "rules": {"enabled": True, "alertLabels": {"team": "ml"}, "disabled": ["Slow"]},
        "dashboards": {"enabled": True},
    }

    manifests = render({"monitoring": monitoring}, chart=chart_with_monitoring, helm=helm)

    alert, record = only(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert (alert["alert"], alert["labels"]) == ("Down", {"severity": "page", "team": "ml"})
    assert alert["annotations"] == {"summary": "{{ $labels.pod }}"}
    assert record == {"record": "a:b", "expr": "vector(1)"}
    (board,) = (m for m in of_kind(manifests, "ConfigMap") if "grafana_dashboard" in m["metadata"]["labels"])
    assert board["metadata"]["name"] == "demo-sevenfold-dashboard-my-board"
    assert board["data"] == {"my_board.json": '{"title": "{{ not a template }}"}'}


@pytest.mark.parametrize("base", ["https://git.example.com/main", "https://git.example.com/main/"])
def test_runbooks_are_linked_where_they_are(base: str) -> None:
    manifests = render({"monitoring": {"rules": {"enabled": True, "runbookBase": base}}})

    groups = only(manifests, "PrometheusRule")["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert {rule["annotations"]["runbook_url"] for rule in rules} == {
        f"https://git.example.com/main/docs/monitoring.md#{rule['alert'].lower()}" for rule in rules
    }


def test_without_their_files_no_alerts_and_dashboards_are_made(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "helm", ignore=shutil.ignore_patterns("dashboards", "alerts"))

    manifests = render({"monitoring": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}}, chart=chart)

    assert of_kind(manifests, "PrometheusRule") == []
    assert len(of_kind(manifests, "ConfigMap")) == 1


@pytest.mark.parametrize("helm", HELMS)
def test_the_package_has_no_tests(tmp_path: Path, helm: str) -> None:
    run_helm(helm, "package", CHART, "--destination", tmp_path)

    (package,) = tmp_path.glob("sevenfold-*.tgz")
    with tarfile.open(package) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Chart.yaml", "values.schema.json", "templates/tests/smoke.yaml", "README.md"} <= names
    assert not [name for name in names if name.startswith(("ci/", "extras/", "alerts/tests/"))]


def test_extra_objects_are_rendered_as_templates() -> None:
    objects = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "{{ .Release.Name }}-a"}},
        "apiVersion: v1\nkind: Secret\nmetadata: {name: {{ .Release.Name }}-b}",
    ]

    secrets = of_kind(render({"extraObjects": objects}), "Secret")

    assert [secret["metadata"]["name"] for secret in secrets] == ["demo-a", "demo-b"]


def test_labels_of_the_users_are_on_everything_but_never_replace_the_charts() -> None:
    manifests = render({"commonLabels": {"team": "vision", "app.kubernetes.io/name": "mine"}})

    labels = [manifest["metadata"]["labels"] for manifest in manifests]
    labels += [pod["metadata"]["labels"] for pod in pod_templates(manifests)]
    assert {label["team"] for label in labels} == {"vision"}
    assert {label["app.kubernetes.io/name"] for label in labels} == {"sevenfold"}


@pytest.mark.parametrize("release", ["sevenfold", "a" * 53], ids=["as the chart", "the longest"])
def test_names_fit_into_labels_and_are_not_repeated(release: str) -> None:
    names = [manifest["metadata"]["name"] for manifest in render(release=release)]

    assert all(len(name) <= 63 for name in names)
    assert not any("sevenfold-sevenfold" in name for name in names)


def notes(values: dict[str, Any]) -> str:
    printed = run_helm(
        "helm4",
        "install",
        "demo",
        CHART,
        "--dry-run=client",
        "--namespace",
        "models",
        "-f",
        "-",
        text=json.dumps(values),
    )
    return printed.partition("NOTES:\n")[2]


def test_the_notes_have_the_command_for_a_model_that_is_served() -> None:
    printed = notes({"models": FETCH})

    assert "port-forward service/demo-sevenfold 8080:8080" in printed
    assert "http://127.0.0.1:8080/v1/models/clothing/predict" in printed


def test_the_notes_say_that_the_models_have_to_be_in_the_image() -> None:
    assert "make image MODELS=baked" in notes({})
    assert "MODELS=baked" not in notes({"models": FETCH})


def test_the_notes_send_the_key_and_say_what_the_test_needs() -> None:
    printed = notes({"auth": {"apiKeys": {"existingSecret": "keys"}}})

    assert 'curl -s -H "Authorization: Bearer $KEY" http://127.0.0.1:8080/v1/models' in printed
    assert "tests.apiKey.existingSecret" in printed


def test_the_readme_of_the_chart_lists_every_value() -> None:
    listed = set(re.findall(r"`\.?([a-zA-Z0-9.]+)(?:\.\*)?`", (CHART / "README.md").read_text()))
    last_names = {name.rpartition(".")[2] for name in listed}

    for block, content in yaml.safe_load((CHART / "values.yaml").read_text()).items():
        names = {block} if not isinstance(content, dict) or block in listed else {f"{block}.{name}" for name in content}
        for path in names:
            is_listed = path in listed or any(name.startswith(f"{path}.") for name in listed)
            assert is_listed or path.rpartition(".")[2] in last_names, path
