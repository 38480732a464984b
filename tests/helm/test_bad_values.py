"""What is wrong in the values is refused before anything is installed, and the message names it."""

from typing import Any

import pytest

from tests.helm.chart import HELMS, Refused, render

UNKNOWN = {
    "at the top": ({"replicas": 2}, "replicas"),
    "in a block": ({"image": {"name": "x"}}, "name"),
    "a setting with a typing error": ({"server": {"maxBacth": 8}}, "maxBacth"),
    "in a list": ({"imagePullSecrets": [{"name": "a", "secret": "b"}]}, "secret"),
    "of a variable": ({"extraEnv": [{"name": "A", "vaule": "b"}]}, "vaule"),
    "a switch of the HPA": ({"autoscaling": {"hpa": {"enabled": True}}}, "enabled"),
}
WRONG = {
    "a number as text": ({"replicaCount": "two"}, "replicaCount"),
    "a negative number": ({"server": {"threads": -1}}, "threads"),
    "an unknown way to scale": ({"autoscaling": {"mode": "hpa,keda"}}, "mode"),
    "scaling to none": ({"autoscaling": {"mode": "keda", "minReplicas": 0}}, "minReplicas"),
    "a number as a variable's value": ({"extraEnv": [{"name": "A", "value": 1}]}, "extraEnv"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "digest"),
    "a checksum that is none": ({"models": {"fetch": {"sha256": {"clothing/3": "abc"}}}}, "sha256"),
    "a name without a version": ({"models": {"fetch": {"names": ["clothing"]}}}, "names"),
    "a URL of another kind": ({"models": {"fetch": {"from": "ftp://example.com"}}}, "from"),
    "a privileged port": ({"containerPorts": {"http": 80}}, "http"),
    "an interval without a unit": ({"monitoring": {"serviceMonitor": {"interval": "15"}}}, "interval"),
    "an origin with a path": ({"corsOrigins": ["https://example.com/app"]}, "corsOrigins"),
    "a memory limit that is none": ({"resources": {"limits": {"memory": "4 GB"}}}, "memory"),
}
CONTRADICTIONS = {
    "HPA and KEDA": (
        {"autoscaling": {"mode": "hpa", "hpa": {"queueDepth": 8}, "keda": {"queueDepth": 8}}},
        "autoscaling.keda is set, but autoscaling.mode is hpa",
    ),
    "KEDA and HPA": (
        {"autoscaling": {"mode": "keda", "hpa": {"cpuUtilization": 50}}},
        "autoscaling.hpa is set, but autoscaling.mode is keda",
    ),
    "more replicas at least than at most": (
        {"autoscaling": {"mode": "hpa", "minReplicas": 5, "maxReplicas": 2}},
        "minReplicas is 5, but autoscaling.maxReplicas is 2",
    ),
    "too little time to stop": (
        {"lifecycle": {"terminationGracePeriodSeconds": 30}},
        "terminationGracePeriodSeconds is 30, but stopping takes up to 45 s",
    ),
    "one port for two": ({"containerPorts": {"admin": 8080}}, "the same port"),
    "one port of the Service for two": ({"service": {"ports": {"admin": 8080}}}, "the same port"),
    "two monitors": (
        {"monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
        "scraped twice",
    ),
    "a claim without a name": ({"models": {"source": "pvc"}}, "models.pvc.existingClaim"),
    "no image of models": ({"models": {"source": "image"}}, "models.image.reference"),
    "nothing to fetch": ({"models": {"source": "fetch"}}, "models.fetch.from"),
    "a checksum of what is not fetched": (
        {
            "models": {
                "source": "fetch",
                "fetch": {"from": "https://example.com", "names": ["adult/3"], "sha256": {"cards/1": "0" * 64}},
            }
        },
        "models.fetch.sha256 has cards/1",
    ),
    "a variable twice": (
        {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "extraEnv has A twice",
    ),
    "an ingress for no host": ({"ingress": {"enabled": True}}, "ingress.hosts is empty"),
    "a route without a gateway": ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty"),
}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("values", "name"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_value_is_refused_by_its_name(values: dict[str, Any], name: str, helm: str) -> None:
    with pytest.raises(Refused, match=rf"(?is)additional propert.*{name}"):
        render(values, helm=helm)


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("values", "name"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], name: str, helm: str) -> None:
    with pytest.raises(Refused, match=rf"(?s)don't meet the specifications of the schema.*{name}"):
        render(values, helm=helm)


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("values", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_values_that_contradict_each_other_are_refused_with_what_to_do(
    values: dict[str, Any], message: str, helm: str
) -> None:
    with pytest.raises(Refused) as refused:
        render(values, helm=helm)

    assert message in str(refused.value)


@pytest.mark.parametrize("helm", HELMS)
def test_kubernetes_before_1_29_is_refused(helm: str) -> None:
    with pytest.raises(Refused, match=r">=1\.29"):
        render(helm=helm, kubernetes="1.28")


def test_image_volumes_are_refused_where_kubernetes_has_none() -> None:
    with pytest.raises(Refused, match=r"Kubernetes v?1\.30[.0]* has no image volumes"):
        render({"models": {"source": "image", "image": {"reference": "models:1"}}}, kubernetes="1.30")
