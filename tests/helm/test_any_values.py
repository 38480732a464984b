"""Whatever is combined, the chart renders valid manifests, or refuses with a reason."""

from typing import Any

from hypothesis import HealthCheck, given, reject
from hypothesis import settings as configured
from hypothesis import strategies as st

from service.settings import read_settings
from tests.helm.chart import Manifest, Refused, containers, of_kind, pod_templates, render, settings
from tests.helm.schemas import VERSIONS, NoSchema, problems
from tests.helm.server_schema import known

names = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
label_values = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9])?", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cn"]), max_size=20)
secrets = st.fixed_dictionaries({"existingSecret": names})
FEATURES: dict[str, st.SearchStrategy[Any]] = {
    "replicaCount": st.integers(0, 5),
    "fullnameOverride": names,
    "nameOverride": names,
    "commonLabels": st.dictionaries(names, label_values, max_size=2),
    "commonAnnotations": st.dictionaries(names, texts, max_size=2),
    "podAnnotations": st.dictionaries(names, texts, max_size=2),
    "autoscaling": st.fixed_dictionaries(
        {"mode": st.sampled_from(["none", "hpa", "keda"])},
        optional={
            "minReplicas": st.integers(1, 4),
            "hpa": st.fixed_dictionaries({}, optional={"queueDepth": st.integers(1, 9)}),
            "keda": st.fixed_dictionaries({}, optional={"queueDepth": st.integers(1, 9)}),
        },
    ),
    "gpu": st.fixed_dictionaries({"enabled": st.booleans(), "count": st.integers(1, 8)}),
    "models": st.sampled_from(
        [
            {"source": "baked"},
            {"source": "pvc", "pvc": {"existingClaim": "models"}},
            {"source": "pvc", "pvc": {"create": True}},
            {"source": "image", "image": {"reference": "models:1"}},
            {"source": "fetch", "fetch": {"from": "https://example.com", "names": ["clothing/3"]}},
        ]
    ),
    "auth": st.fixed_dictionaries({}, optional={"apiKeys": secrets, "adminToken": secrets}),
    "tls": secrets,
    "tracing": st.fixed_dictionaries({"endpoint": st.just("http://collector:4318")}, optional={"headers": secrets}),
    "networkPolicy": st.fixed_dictionaries({"enabled": st.booleans()}),
    "ingress": st.just({"enabled": True, "hosts": [{"host": "example.com"}]}),
    "httpRoute": st.just({"enabled": True, "parentRefs": [{"name": "public"}]}),
    "monitoring": st.fixed_dictionaries(
        {},
        optional={name: st.just({"enabled": True}) for name in ("serviceMonitor", "podMonitor", "rules", "dashboards")},
    ),
    "extraEnv": st.lists(
        st.fixed_dictionaries({"name": st.sampled_from(["POD_NAME", "OTEL_SERVICE_NAME", "MINE"]), "value": texts}),
        max_size=3,
    ),
    "server": st.fixed_dictionaries(
        {},
        optional={"maxBatch": st.integers(0, 512), "only": st.just(["adult"]), "deadlines": st.just({"adult": 0.5e3})},
    ),
    "lifecycle": st.fixed_dictionaries({"preStopSeconds": st.integers(0, 30), "drainSeconds": st.floats(0, 30)}),
    "sharedMemory": st.just({"sizeLimit": "1Gi"}),
}


def render_or_refuse(values: dict[str, Any], **options: Any) -> list[Manifest]:
    """Render the chart; a refusal must be one of the chart's own messages, and no error in a template."""
    try:
        return render(values, **options)
    except Refused as refused:
        reason = str(refused)
    assert "execution error at" in reason
    assert "nil pointer" not in reason
    return reject()


@configured(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    st.fixed_dictionaries({}, optional=FEATURES),
    names,
    st.sampled_from(["helm3", "helm4"]),
    st.sampled_from([VERSIONS[0], VERSIONS[-1]]),
)
def test_any_values_render_to_valid_manifests_or_are_refused_with_a_reason(
    values: dict[str, Any], release: str, helm: str, kubernetes: str
) -> None:
    manifests = render_or_refuse(values, helm=helm, release=release, kubernetes=kubernetes)

    for manifest in manifests:
        try:
            assert problems(manifest, kubernetes) == []
        except NoSchema:
            continue
    read_settings([], known(settings(manifests)))
    for pod in pod_templates(manifests):
        for container in containers(pod):
            variables = [entry["name"] for entry in container.get("env", [])]
            assert len(set(variables)) == len(variables)
    identities = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(identities)) == len(identities)
    scaled = of_kind(manifests, "HorizontalPodAutoscaler") + of_kind(manifests, "ScaledObject")
    (deployment,) = of_kind(manifests, "Deployment")
    assert ("replicas" in deployment["spec"]) == (not scaled)
