"""The alerts, the recording rules and the dashboard as they are written, and what their PromQL expressions name."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "alerts" / "sevenfold.yaml"
RULE_TESTS = ROOT / "helm" / "alerts" / "tests"
DASHBOARD = ROOT / "helm" / "dashboards" / "sevenfold.json"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"}
_SUFFIXES = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Rule:
    """An alert or a recording rule.

    Attributes:
        record: the name of the series that it writes, or an empty string.
        alert: the name of the alert, or an empty string.
        fields: all of it, as in the file.
    """

    record: str
    alert: str
    expression: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Query:
    """A query of a panel of the dashboard.

    Attributes:
        expression: PromQL, with the variables of the dashboard.
        legend: the name of a series, as a template.
        is_instant: it asks for the current values only.
    """

    panel: str
    expression: str
    legend: str
    is_instant: bool


def read_rules() -> list[Rule]:
    """Return all rules of the rules file, in its order."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [
        Rule(rule.get("record", ""), rule.get("alert", ""), rule["expr"], rule)
        for group in groups
        for rule in group["rules"]
    ]


def read_alerts() -> list[Rule]:
    """Return the alerts of the rules file, in its order."""
    return [rule for rule in read_rules() if rule.alert]


def read_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return dashboard


def panels_of(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that draw something: all but the titles of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries_of(panels: Iterable[Mapping[str, Any]]) -> Iterator[Query]:
    """Return the queries of panels."""
    for panel in panels:
        for target in panel["targets"]:
            legend = target.get("legendFormat", "")
            yield Query(panel["title"], target["expr"], legend, bool(target.get("instant")))


def substitute(expression: str, *, interval: str, **variables: str) -> str:
    """Replace the variables of a dashboard as Grafana does; those that are not given stand for all values."""
    expression = expression.replace("$__rate_interval", interval)
    return re.sub(r"\$(\w+)", lambda match: variables.get(match[1], ".*"), expression)


def metric_names(expression: str) -> set[str]:
    """Return the names of the series that a PromQL expression reads."""
    expression = _STRING.sub('""', expression)
    expression = re.sub(r"\{[^}]*\}", "", expression)
    expression = re.sub(r"\[[^\]]*\]", "", expression)
    expression = re.sub(r"\boffset\s+\w+", "", expression)
    expression = _LABELS.sub("", expression)
    return {name for name in _NAME.findall(expression) if name not in _KEYWORDS}


def exposed_names(exposition: str) -> set[str]:
    """Return the names of the series that the metrics of a server have or can have, in Prometheus' text format."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE):
        names |= {name} if kind != "histogram" else {name + suffix for suffix in _SUFFIXES}
    return names
