"""Where an answer comes from, or why there is none: what `dnsserver query` says below the reply."""

from __future__ import annotations

import msgspec
import pytest

from dnsserver.config import PodsMode
from dnsserver.explain import explain
from dnsserver.zone import Zone
from kubecore.model import Endpoint, KubeObject
from kubecore.selectors import LabelSelector
from tests.dns.cluster import SERIAL, config, namespace, piece, pod, service, state_of
from tests.dns.notation import question

PODS = msgspec.structs.replace(
    piece("prod/db", "10.1.0.1", "pg:5432"),
    endpoints=(
        Endpoint(("10.1.0.1",), hostname="db-0", target_kind="Pod", target_name="db-0"),
        Endpoint(("10.1.0.2",), ready=False, target_kind="Pod", target_name="db-1"),
        Endpoint(("10.1.0.3",), ready=False),
    ),
)
OBJECTS: list[KubeObject] = [
    namespace("prod", tier="live"),
    namespace("test", tier="toy"),
    service("prod/web", "10.96.0.1", "http:80 9090"),
    piece("prod/web", "10.1.1.1=web-0", "http:8080"),
    service("test/web", "10.96.0.2"),
    service("prod/db", "None", "pg:5432"),
    PODS,
    service("prod/cold", "None"),
    piece("prod/cold", "10.1.2.1! 10.1.2.2!"),
    service("prod/bare", "None"),
    piece("prod/orphan", "10.1.3.1"),
    service("prod/inner", to="web.prod.svc.cluster.local"),
    service("prod/outer", to="www.example.org"),
    service("prod/odd", to="10.0.0.1"),
    service("prod/loop", to="loop.prod.svc.cluster.local"),
    pod("prod/p", "10.1.9.9"),
]

SAID: list[tuple[dict[str, object], str, list[str]]] = [
    ({}, "web.prod.svc.cluster.local. A", ["Service prod/web (ClusterIP 10.96.0.1)"]),
    (
        {},
        "web-0.web.prod.svc.cluster.local. A",
        ["Service prod/web (ClusterIP 10.96.0.1)", "EndpointSlice prod/web-a: 1 ready (10.1.1.1 web-0)"],
    ),
    (
        {},
        "db.prod.svc.cluster.local. A",
        [
            "Service prod/db (headless)",
            "EndpointSlice prod/db-a: 1 ready (10.1.0.1 db-0 Pod db-0), 2 not ready (10.1.0.2 Pod db-1, 10.1.0.3)",
        ],
    ),
    (
        {},
        "cold.prod.svc.cluster.local. A",
        [
            "Service prod/cold (headless)",
            "no ready endpoints",
            "EndpointSlice prod/cold-a: 2 not ready (10.1.2.1, 10.1.2.2)",
        ],
    ),
    ({}, "bare.prod.svc.cluster.local. A", ["Service prod/bare (headless)", "no ready endpoints: no EndpointSlice"]),
    (
        {},
        "weeb.prod.svc.cluster.local. A",
        ["no Service weeb in namespace prod; nearest: web"],
    ),
    (
        {},
        "orphan.prod.svc.cluster.local. A",
        ["no Service orphan in namespace prod", "EndpointSlices without their Service: orphan-a"],
    ),
    (
        {},
        "db.test.svc.cluster.local. A",
        ["no Service db in namespace test; nearest: web", "a Service of that name is in: prod"],
    ),
    ({}, "web.pord.svc.cluster.local. A", ["no namespace pord; nearest: prod"]),
    ({}, "prod.svc.cluster.local. A", ["Namespace prod"]),
    (
        {},
        "_https._tcp.web.prod.svc.cluster.local. SRV",
        ["Service prod/web (ClusterIP 10.96.0.1)", "no port _https._tcp; named ports: _http._tcp"],
    ),
    (
        {},
        "web-1.web.prod.svc.cluster.local. A",
        [
            "Service prod/web (ClusterIP 10.96.0.1)",
            "no ready endpoint called web-1; nearest: web-0",
            "EndpointSlice prod/web-a: 1 ready (10.1.1.1 web-0)",
        ],
    ),
    (
        {},
        "inner.prod.svc.cluster.local. A",
        ["Service prod/inner (ExternalName web.prod.svc.cluster.local)", "Service prod/web (ClusterIP 10.96.0.1)"],
    ),
    (
        {},
        "outer.prod.svc.cluster.local. A",
        [
            "Service prod/outer (ExternalName www.example.org)",
            "www.example.org. is in none of the cluster's zones (cluster.local., in-addr.arpa.)",
        ],
    ),
    (
        {},
        "odd.prod.svc.cluster.local. A",
        ["Service prod/odd (ExternalName 10.0.0.1)", "externalName '10.0.0.1' is not a domain name"],
    ),
    (
        {},
        "loop.prod.svc.cluster.local. A",
        ["Service prod/loop (ExternalName loop.prod.svc.cluster.local)", "the aliases lead back to where they began"],
    ),
    (
        {"namespaces": frozenset({"prod"})},
        "web.test.svc.cluster.local. A",
        ["Namespace test is not among the directive's namespaces: prod"],
    ),
    (
        {"namespace_labels": LabelSelector.parse("tier=live")},
        "web.test.svc.cluster.local. A",
        ["Namespace test is not selected by namespace_labels tier=live"],
    ),
    (
        {"labels": LabelSelector.parse("app")},
        "web.prod.svc.cluster.local. A",
        ["Service prod/web is not selected by labels app"],
    ),
    ({}, "10-1-9-9.prod.pod.cluster.local. A", ["pod names are disabled (pods disabled)"]),
    (
        {"pods": PodsMode.INSECURE},
        "1-2-3-4.prod.pod.cluster.local. A",
        ["Namespace prod; the address is echoed (pods insecure)"],
    ),
    ({"pods": PodsMode.VERIFIED}, "10-1-9-9.prod.pod.cluster.local. A", ["Pod prod/p (Running)"]),
    ({"pods": PodsMode.VERIFIED}, "10-1-9-8.prod.pod.cluster.local. A", ["no Pod has the address 10.1.9.8"]),
    ({"pods": PodsMode.VERIFIED}, "x.prod.pod.cluster.local. A", ["x is no address with dashes for dots or colons"]),
    ({}, "1.0.96.10.in-addr.arpa. PTR", ["Service prod/web (ClusterIP 10.96.0.1)"]),
    ({}, "1.0.1.10.in-addr.arpa. PTR", ["Service prod/db (headless)", "EndpointSlice prod/db-a Pod db-0"]),
    (
        {},
        "2.0.1.10.in-addr.arpa. PTR",
        ["10.1.0.2 is no ClusterIP, and no ready endpoint of a Service", "EndpointSlice prod/db-a has it, not ready"],
    ),
    (
        {},
        "1.3.1.10.in-addr.arpa. PTR",
        [
            "10.1.3.1 is no ClusterIP, and no ready endpoint of a Service",
            "EndpointSlice prod/orphan-a has it, of no visible Service",
        ],
    ),
    ({}, "cluster.local. NS", ["a name of the zone itself"]),
    ({}, "x.y.cluster.local. A", ["the cluster's zone has no names of this form"]),
    ({}, "example.org. A", ["example.org. is in none of the cluster's zones (cluster.local., in-addr.arpa.)"]),
]


@pytest.mark.parametrize(("options", "asked", "lines"), SAID, ids=[f"{list(r[0])}-{r[1]}" for r in SAID])
def test_explanations(options: dict[str, object], asked: str, lines: list[str]) -> None:
    state = state_of(*OBJECTS)
    zone = Zone(config("cluster.local in-addr.arpa", **options))
    zone.load(state, SERIAL)
    assert explain(zone, state, question(asked)) == lines


def test_what_is_not_listed_yet_is_said() -> None:
    state = state_of(listed=False)
    zone = Zone(config())
    zone.load(state, SERIAL)
    assert explain(zone, state, question("web.prod.svc.cluster.local. A"))[-1] == (
        "not listed yet: services, namespaces, endpointslices; what is missing may still come"
    )
