"""Every query of dashboards and alerts, and every metric in the docs, is about a metric that a daemon exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHARTS, NAMES, ROOT, template
from tools import reference

_NOT_METRICS = {
    "sum", "max", "min", "count", "avg", "by", "rate", "increase", "topk", "histogram_quantile", "le", "without",
}  # fmt: skip
_NAME = re.compile(r"(?<![\w$.])[a-z_][a-z0-9_]*")


@cache
def exported(chart: str) -> frozenset[str]:
    """Names of a daemon's samples; that the running daemon has just these, test_run shows."""
    names: set[str] = set()
    for registry in (reference.registries()[chart], reference.registries()["both"]):
        for family in registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            names |= {family.name + suffix for suffix in suffixes}
    return frozenset(names)


def metrics_of(expression: str) -> set[str]:
    """The metric names in a PromQL expression."""
    bare = re.sub(r"\{[^{}]*\}", "", expression)
    bare = re.sub(r"\b(by|without)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    return {name for name in _NAME.findall(bare) if name not in _NOT_METRICS}


def dashboard(chart: str) -> Any:
    return json.loads((CHARTS / chart / "dashboards" / f"{chart}.json").read_text())


def alerts(chart: str) -> list[Any]:
    groups = yaml.safe_load((CHARTS / chart / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions(chart: str) -> Iterator[tuple[str, str]]:
    for panel in dashboard(chart)["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for variable in dashboard(chart)["templating"]["list"]:
        if variable["type"] == "query":
            yield (
                f"variable {variable['name']}",
                variable["definition"].removeprefix("label_values(").split(",")[0].split("{")[0],
            )
    for rule in alerts(chart):
        yield f"alert {rule['alert']}", rule["expr"]


@pytest.mark.parametrize("chart", NAMES)
def test_queries_are_about_exported_metrics(chart: str) -> None:
    found = list(expressions(chart))
    assert len(found) > 20
    for where, expression in found:
        names = metrics_of(expression)
        assert names, f"{where}: {expression}"
        unknown = names - exported(chart)
        assert not unknown, f"{where}: nobody exports {unknown}"


@pytest.mark.parametrize("chart", NAMES)
def test_alerts_say_what_to_do_and_are_documented(chart: str) -> None:
    documented = (ROOT / "docs" / "metrics.md").read_text()
    for rule in alerts(chart):
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert f"`{rule['alert']}`" in documented
    rendered = template(chart, {"prometheus": {"prometheusRule": {"enabled": True}}}).one("PrometheusRule")
    assert [r["alert"] for g in rendered["spec"]["groups"] for r in g["rules"]] == [r["alert"] for r in alerts(chart)]


@pytest.mark.parametrize("chart", NAMES)
def test_the_rendered_dashboard_is_the_file(chart: str) -> None:
    rendered = template(chart, {"dashboards": {"enabled": True}}).one("ConfigMap", f"{chart}-dashboard")
    assert json.loads(rendered["data"][f"{chart}.json"]) == dashboard(chart)
    assert rendered["metadata"]["labels"]["grafana_dashboard"] == "1"
    at = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard(chart)["panels"]]
    assert len(set(at)) == len(at), "panels lie on one another"


@pytest.mark.parametrize("file", reference.FILES)
def test_references_are_current(file: str) -> None:
    assert (reference.DOCS / file).read_text() == reference.FILES[file](), "run python -m tools.reference"
