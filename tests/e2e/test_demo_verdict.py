"""What the demo makes of what it sees: a line that does not hold, its remedy, the verdict; no kernel needed."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from kubecore.files import load
from kubecore.manifest import ManifestError
from tests.demo import objects, services
from tests.demo.report import Report
from tests.demo.services import Expectation
from tests.lab.kernel.outcomes import REFUSED, TIMEOUT, Answer, Outcome


def test_one_line_that_does_not_hold_is_the_verdict() -> None:
    text = io.StringIO()
    report = Report(Console(file=text, width=100))
    report.check(True, "this holds", "3 ms")
    report.check(False, "this does not", seen="something else", remedy="look there")
    report.summary()
    assert not report.good
    summary = text.getvalue().partition("== Summary")[2]
    assert "✓ this holds: 3 ms" in summary
    assert "✗ this does not\n    seen: something else\n    next: look there" in summary
    assert "1 of 2 do not hold" in summary


def test_all_lines_hold_or_none_was_shown() -> None:
    report = Report(Console(file=io.StringIO()))
    nothing_shown = report.good
    report.check(True, "this holds")
    assert (nothing_shown, report.good) == (False, True)


def web(*endpoints: str, spread: bool = True) -> Expectation:
    return Expectation("demo/web", "10.96.20.1:80", "tcp", frozenset(endpoints), spread)


def by(*addresses: str) -> list[Outcome]:
    return [Answer(address, "10.244.1.99", 1, address) for address in addresses]


@pytest.mark.parametrize(
    ("expected", "seen", "good"),
    [
        (web("a:1", "b:1"), by("a:1", "b:1", "a:1"), True),
        (web("a:1", "b:1"), by("a:1", "a:1"), False),
        (web("a:1", "b:1", spread=False), by("a:1", "a:1"), True),
        (web("a:1"), by("a:1", "c:1"), False),
        (web("a:1"), [*by("a:1"), TIMEOUT], False),
        (web(), [REFUSED, REFUSED], True),
        (web(), [REFUSED, TIMEOUT], False),
        (web(), by("a:1"), False),
    ],
)
def test_who_may_answer(expected: Expectation, seen: list[Outcome], good: bool) -> None:
    assert (services._judge(expected, seen) == "") is good


def test_the_demos_own_objects_win() -> None:
    own = [{"kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}}]
    theirs = [
        {"kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}},
        {
            "kind": "EndpointSlice",
            "metadata": {
                "name": "x",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
        },
        {"kind": "Service", "metadata": {"name": "kube-dns"}},
    ]
    merged, left_out = objects.merged(own, theirs)
    assert merged == [own[0], theirs[2]]
    assert left_out == ["Service kube-system/kube-dns", "EndpointSlice kube-system/x"]


def service(name: str, namespace: str = "shop", **spec: object) -> objects.Object:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def pod(name: str, address: str, namespace: str = "shop", phase: str = "Running") -> objects.Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "status": {"phase": phase, "podIP": address},
    }


def test_two_pods_cannot_have_one_address() -> None:
    """Except where the first has ended, as dumps of clusters show."""
    job, web, second = pod("job", "10.1.0.1", phase="Succeeded"), pod("web", "10.1.0.1"), pod("second", "10.1.0.1")
    assert objects.merged([], [job, web, second]) == ([job, web], ["Pod shop/second"])


def test_pods_of_one_name_are_different_machines(tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    objects.write([pod("web", "10.1.0.1", "a"), pod("web", "10.1.0.2", "demo"), pod("outside", "10.1.0.3")], path)
    state, _ = load(path)
    names = {machine.name: machine.addresses for machine in objects.machines(state, [])}
    assert names == {"web": ("10.1.0.2",), "a.web": ("10.1.0.1",), "shop.outside": ("10.1.0.3",)}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: [Service", "mine.yaml:1: not YAML: .*"),
        ("", "nothing in it belongs to a service network; name a directory with .yaml"),
        ("{apiVersion: apps/v1, kind: Deployment, metadata: {name: shop}}", "nothing in it belongs"),
        ("{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: shop}}", "nothing in it belongs"),
    ],
)
def test_manifests_without_use_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ManifestError, match=complaint):
        objects.theirs(tmp_path)


def test_what_is_no_part_of_a_service_network_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop"}}
    unnamed = {"apiVersion": "v1", "kind": "Service", "metadata": {"generateName": "shop-"}, "spec": {}}
    mine = service("shop", selector={"app": "shop"}, ports=[{"port": 80}])
    objects.write([deployment, unnamed, mine, {"resources": []}], path)
    found, remarks = objects.theirs(tmp_path)
    assert found == [mine]
    assert [re.sub(r".*:\d+: ", "", remark).split(";")[0] for remark in remarks] == [
        "note: apps/v1 Deployment: objects of this kind are not used",
        "error: Service: metadata.name: missing",
        "error: apiVersion: missing",
    ]


@pytest.mark.parametrize(
    ("policy", "ready", "local"),
    [("Cluster", {"10.1.0.1:8080", "10.1.0.2:8080"}, False), ("Local", {"10.1.0.1:8080"}, True)],
)
def test_who_must_answer(policy: str, ready: set[str], local: bool) -> None:
    shop = service("shop", clusterIP="10.96.1.1", clusterIPs=["10.96.1.1"], ports=[{"port": 80}])
    shop["spec"]["internalTrafficPolicy"] = policy
    piece = {
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "shop"}},
        "ports": [{"port": 8080}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "nodeName": "node-a"},
            {"addresses": ["10.1.0.2"], "nodeName": "node-b"},
            {"addresses": ["10.1.0.3"], "nodeName": "node-a", "conditions": {"ready": False}},
        ],
    }
    (found,) = services.expectations([shop], [piece])
    assert found == Expectation("shop/shop", "10.96.1.1:80", "tcp", frozenset(ready), spread=True, local=local)
