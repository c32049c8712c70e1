"""Slices where nobody gave any, as the EndpointSlice controller and the mirroring controller make them."""

from __future__ import annotations

from typing import Any

import pytest

from kubecore.derive import MAX_ENDPOINTS_PER_SLICE, derive_slices
from kubecore.model import (
    ContainerPort,
    EndpointPort,
    Endpoints,
    EndpointsSubset,
    Node,
    Pod,
    Protocol,
    Service,
    ServiceType,
)
from tests.builders import endpoints, labels, node, pod, service, slice_line


def _derived(owner: Service, *pods: Pod, nodes: list[Node] | None = None, legacy: Endpoints | None = None) -> list[str]:
    return [slice_line(s) for s in derive_slices(owner, pods, legacy, {n.key: n for n in nodes or []})]


def _http(number: int, name: str = "http", protocol: Protocol = Protocol.TCP) -> dict[str, Any]:
    return {"container_ports": (ContainerPort(name, number, protocol),)}


_WEB = service("web", "10.96.0.1", "80>8080", selector="app=web")


@pytest.mark.parametrize(
    ("owner", "pods", "lines"),
    [
        pytest.param(
            _WEB,
            [pod("b", "10.0.0.2", "app=web"), pod("a", "10.0.0.1", "app=web,tier=x"), pod("c", "10.0.0.3", "app=db")],
            [":8080/TCP: 10.0.0.1 10.0.0.2"],
            id="the selector's pairs must all be there",
        ),
        pytest.param(
            service("web", "10.96.0.1", "80", selector="app=web"),
            [pod("a", "10.0.0.1", "app=web")],
            [":80/TCP: 10.0.0.1"],
            id="without targetPort the port itself",
        ),
        pytest.param(
            service("web", "10.96.0.1", "80>http", selector="app=web"),
            [
                pod("a", "10.0.0.1", "app=web", **_http(80)),
                pod("b", "10.0.0.2", "app=web", **_http(8080)),
                pod("c", "10.0.0.3", "app=web", **_http(80)),
            ],
            [":80/TCP: 10.0.0.1 10.0.0.3", ":8080/TCP: 10.0.0.2"],
            id="a named targetPort is looked up in each pod",
        ),
        pytest.param(
            service("web", "10.96.0.1", "a:80>http,b:90", selector="app=web"),
            [
                pod("a", "10.0.0.1", "app=web", **_http(8080)),
                pod("b", "10.0.0.2", "app=web"),
                pod("c", "10.0.0.3", "app=web", **_http(8080, protocol=Protocol.UDP)),
            ],
            ["a:8080/TCP,b:90/TCP: 10.0.0.1", "b:90/TCP: 10.0.0.2 10.0.0.3"],
            id="a pod without the named port serves the other ports only",
        ),
        pytest.param(
            _WEB,
            [
                pod("a", "10.0.0.1", "app=web", ready=False),
                pod("b", "10.0.0.2", "app=web", deleting=True),
                pod("c", "10.0.0.3", "app=web", deleting=True, ready=False),
                pod("d", "10.0.0.4", "app=web", phase="Succeeded"),
                pod("e", "10.0.0.5", "app=web", phase="Failed"),
                pod("f", "", "app=web", phase="Pending"),
            ],
            [":8080/TCP: 10.0.0.1! 10.0.0.2~ 10.0.0.3!"],
            id="conditions, and pods that do not count",
        ),
        pytest.param(
            service("web", "10.96.0.1", "80", selector="app=web", publish_not_ready=True),
            [pod("a", "10.0.0.1", "app=web", ready=False)],
            [":80/TCP: 10.0.0.1"],
            id="publishNotReadyAddresses",
        ),
        pytest.param(
            service("web", "10.96.0.1 fd00:96::1", "80", selector="app=web"),
            [pod("a", "10.0.0.1 fd00::1", "app=web"), pod("b", "fd00::2", "app=web")],
            [":80/TCP: 10.0.0.1", ":80/TCP: fd00::1 fd00::2"],
            id="a slice for each family of the Service",
        ),
        pytest.param(
            _WEB,
            [pod("a", "10.0.0.1 fd00::1", "app=web")],
            [":8080/TCP: 10.0.0.1"],
            id="a family the Service has not is left out",
        ),
        pytest.param(
            service("web", "None", "", selector="app=web"),
            [pod("a", "10.0.0.1 fd00::1", "app=web")],
            [": 10.0.0.1", ": fd00::1"],
            id="headless without ports",
        ),
        pytest.param(
            service("web", "None", "80", selector="app=web", ip_families=(4,)),
            [
                pod("a", "10.0.0.1", "app=web", hostname="web-0", subdomain="web"),
                pod("b", "10.0.0.2", "app=web", hostname="web-1", subdomain="other"),
                pod("c", "10.0.0.3", "app=web", hostname="web-2"),
            ],
            [":80/TCP: 10.0.0.1=web-0 10.0.0.2 10.0.0.3"],
            id="a hostname counts below the pod's own subdomain",
        ),
        pytest.param(
            _WEB,
            [pod("a", "192.168.0.1", "app=web", host_network=True, node_name="node-a")],
            [":8080/TCP: 192.168.0.1@node-a/zone-1"],
            id="host network: the node's address; the zone is the node's",
        ),
        pytest.param(service("web", "10.96.0.1"), [pod("a", "10.0.0.1", "app=web")], [], id="no selector, no slices"),
        pytest.param(
            service("web", type=ServiceType.EXTERNAL_NAME, selector="app=web", external_name="a.example"),
            [pod("a", "10.0.0.1", "app=web")],
            [],
            id="ExternalName has no endpoints",
        ),
    ],
)
def test_from_pods(owner: Service, pods: list[Pod], lines: list[str]) -> None:
    assert _derived(owner, *pods, nodes=[node("node-a", zone="zone-1")]) == lines
    assert _derived(owner, *reversed(pods), nodes=[node("node-a", zone="zone-1")]) == lines


def test_slices_have_at_most_100_endpoints_and_names_of_their_own() -> None:
    pods = [pod(f"web-{i}", f"10.0.{i // 200}.{i % 200}", "app=web") for i in range(250)]
    slices = derive_slices(_WEB, pods, None, {})
    assert [len(s.endpoints) for s in slices] == [MAX_ENDPOINTS_PER_SLICE, MAX_ENDPOINTS_PER_SLICE, 50]
    assert [s.name for s in slices] == ["web.pods-ipv4-0", "web.pods-ipv4-1", "web.pods-ipv4-2"]
    assert {(s.namespace, s.service) for s in slices} == {("default", "web")}


def test_labels_are_the_services_and_a_headless_one_is_marked() -> None:
    owner = service("web", "None", "80", selector="app=web", labels="team=a")
    [piece] = derive_slices(owner, [pod("a", "10.0.0.1", "app=web")], None, {})
    assert piece.labels == labels("service.kubernetes.io/headless=,team=a")


@pytest.mark.parametrize(
    ("distribution", "hints"),
    [
        ("", [((), ()), ((), ())]),
        ("PreferClose", [(("z1",), ()), ((), ())]),
        ("PreferSameZone", [(("z1",), ()), ((), ())]),
        ("PreferSameNode", [(("z1",), ("n1",)), ((), ("n2",))]),
        ("PreferTheMoon", [((), ()), ((), ())]),
    ],
)
def test_traffic_distribution_becomes_hints(distribution: str, hints: list[Any]) -> None:
    owner = service("web", "10.96.0.1", "80", selector="app=web", traffic_distribution=distribution)
    pods = [pod("a", "10.0.0.1", "app=web", node_name="n1"), pod("b", "10.0.0.2", "app=web", node_name="n2")]
    n1 = node("n1", zone="z1")
    [piece] = derive_slices(owner, pods, None, {n1.key: n1})
    assert [(e.hint_zones, e.hint_nodes) for e in piece.endpoints] == hints


def _legacy(*subsets: tuple[str, str], **fields: Any) -> Endpoints:
    """Endpoints from (addresses, port names and numbers) pairs."""
    made = []
    for addresses, listed in subsets:
        names = [p.rpartition(":") for p in listed.split(",") if p]
        ports = tuple(EndpointPort(name, int(number)) for name, _, number in names)
        made.append(EndpointsSubset(ports, endpoints(addresses)))
    return Endpoints("default", "web", tuple(made), **fields)


_BARE = service("web", "10.96.0.1", "80")


@pytest.mark.parametrize(
    ("legacy", "lines"),
    [
        pytest.param(_legacy(("10.0.0.1@n1 10.0.0.2!=db-0", "http:80")), ["http:80/TCP: 10.0.0.1@n1 10.0.0.2!=db-0"]),
        pytest.param(
            _legacy(("10.0.0.1", "80"), ("10.0.0.2", "8080"), ("10.0.0.3", "80")),
            [":80/TCP: 10.0.0.1 10.0.0.3", ":8080/TCP: 10.0.0.2"],
            id="a slice for each set of ports",
        ),
        pytest.param(_legacy(("10.0.0.1 fd00::1", "80")), [":80/TCP: 10.0.0.1", ":80/TCP: fd00::1"], id="by family"),
        pytest.param(_legacy(("10.0.0.1 10.0.0.1!", "80")), [":80/TCP: 10.0.0.1"], id="ready before not ready"),
        pytest.param(_legacy(), [], id="empty"),
        pytest.param(
            _legacy(("10.0.0.1", "80"), labels=labels("endpointslice.kubernetes.io/skip-mirror=true")),
            [],
            id="skip-mirror",
        ),
        pytest.param(_legacy(("10.0.0.1", "80"), leader_record=True), [], id="a leader election is none"),
    ],
)
def test_mirrored(legacy: Endpoints, lines: list[str]) -> None:
    assert _derived(_BARE, legacy=legacy) == lines


def test_trigger_time_is_mirrored() -> None:
    [piece] = derive_slices(_BARE, [], _legacy(("10.0.0.1", "80"), trigger_s=5.0), {})
    assert (piece.trigger_s, piece.name) == (5.0, "web.endpoints-ipv4-0")


def test_pods_come_before_endpoints_and_endpoints_before_nothing() -> None:
    legacy = _legacy(("10.0.0.9", "80"))
    assert _derived(_WEB, pod("a", "10.0.0.1", "app=web"), legacy=legacy) == [":8080/TCP: 10.0.0.1"]
    assert _derived(_WEB, pod("a", "10.0.0.1", "app=web", phase="Failed"), legacy=legacy) == []
    assert _derived(_WEB, pod("a", "10.0.0.1", "app=db"), legacy=legacy) == [":80/TCP: 10.0.0.9"]
