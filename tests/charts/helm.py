"""Running the real helm on the charts, and what comes out of it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tools.helm import fetch

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ROOT / "charts"
NAMES = ("ipvsproxy", "dnsserver")
KUBERNETES = tuple(f"1.{minor}.0" for minor in range(29, 38))

Object = dict[str, Any]


class Refused(Exception):  # noqa: N818 - says what happened
    """helm said no; the text is its complaint."""


class Rendered(list[Object]):
    """The objects of a rendered chart."""

    def one(self, kind: str, name: str = "") -> Object:
        """The only object of a kind, or the one with this name."""
        found = [o for o in self if o["kind"] == kind and (not name or o["metadata"]["name"] == name)]
        assert len(found) == 1, f"{len(found)} objects {kind} {name}: {[o['metadata']['name'] for o in found]}"
        return found[0]

    def kinds(self) -> set[str]:
        return {o["kind"] for o in self}


def helm(*argv: str, stdin: str = "") -> str:
    """What helm prints. Raises Refused."""
    command = [str(fetch()["helm"]), *argv]
    done = subprocess.run(command, check=False, input=stdin, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def _arguments(values: Any) -> list[str]:
    return ["--values", "-"] if values else []


def template(
    chart: str, values: Object | None = None, *, kubernetes: str = "1.36.0", release: str = "", namespace: str = ""
) -> Rendered:
    """A chart rendered as `helm template` does. Raises Refused."""
    return Rendered(d for d in yaml.safe_load_all(text(chart, values, kubernetes, release, namespace)) if d)


def text(
    chart: str, values: Object | None = None, kubernetes: str = "1.36.0", release: str = "", namespace: str = ""
) -> str:
    """The text helm renders. Raises Refused."""
    where = ["--namespace", namespace or "kube-system", "--kube-version", kubernetes]
    argv = ["template", release or chart, str(CHARTS / chart), *where, *_arguments(values)]
    return helm(*argv, stdin=yaml.safe_dump(values or {}))


def notes(chart: str, values: Object | None = None) -> str:
    """What is said after an installation. Raises Refused."""
    argv = ["install", chart, str(CHARTS / chart), "--namespace", "kube-system", "--dry-run=client"]
    said = helm(*argv, *_arguments(values), stdin=yaml.safe_dump(values or {}))
    return said.partition("\nNOTES:\n")[2]


def lint(chart: str, values: Object | None = None) -> str:
    """helm's judgement. Raises Refused."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values or {}, file)
        file.flush()
        return helm("lint", "--strict", str(CHARTS / chart), "--values", file.name)


def pod_specs(objects: Rendered) -> list[tuple[str, Object]]:
    """Every pod, with the name of what makes it."""
    return [
        (f"{o['kind']}/{o['metadata']['name']}", o["spec"] if o["kind"] == "Pod" else o["spec"]["template"]["spec"])
        for o in objects
        if o["kind"] in {"Pod", "Deployment", "DaemonSet", "Job"}
    ]


class Rule(NamedTuple):
    """One permission."""

    verb: str
    group: str
    resource: str


def rules(objects: Rendered, name: str) -> set[Rule]:
    """The permissions of a rendered ClusterRole, one by one."""
    return {
        Rule(verb, group, resource)
        for rule in objects.one("ClusterRole", name)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
