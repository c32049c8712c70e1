"""`multicluster`: ServiceImports (KEP-1645) by zone-file lines; what they share with the cluster's zones, what not."""

from __future__ import annotations

import pytest

from dnsserver.answer import Reply, answer, prepare
from dnsserver.config import PodsMode
from dnsserver.explain import explain
from dnsserver.message import ExtendedError, Rcode
from dnsserver.zone import Zone
from kubecore.model import KubeObject, Listed, Resource
from kubecore.selectors import LabelSelector
from kubecore.snapshot import Changes
from tests.dns.cluster import (
    SERIAL,
    ask,
    config,
    imported,
    namespace,
    piece,
    put,
    remove,
    service,
    service_import,
    state_of,
    zone_of,
)
from tests.dns.notation import expected, question

OBJECTS: list[KubeObject] = [
    namespace("ns"),
    service("ns/web", "10.96.0.1", "http:80"),
    piece("ns/web", "10.1.0.1", "http:80"),
    service("ns/local", "10.96.0.2", "http:80"),
    service_import("ns/web", "10.42.42.42 fd42::1", "http:80 dns:53/UDP 9090"),
    imported("ns/web", "east", "172.16.0.1=a", "http:8080"),
    service_import("ns/set", "None", "pg:5432"),
    imported("ns/set", "east", "172.16.1.1=db-0 172.16.1.2! 172.16.1.3", "pg:5432"),
    imported("ns/set", "West", "172.17.1.1=db-0", "pg:5433"),
    imported("ns/set", "", "172.18.1.1=db-0", "pg:5434"),
    imported("ns/set", "east", "fd01::1=db-6", "pg:5432", name="east-6"),
    service_import("ns/idle", "None"),
    imported("ns/idle", "east", "172.16.2.1!"),
    service_import("ns/soon", ""),
    service_import("only/web", "10.42.42.43"),
]
SETTINGS = config(
    "cluster.local clusterset.local in-addr.arpa", multicluster="clusterset.local", pods=PodsMode.INSECURE
)
SOA = f"5 IN SOA ns.dns.Z hostmaster.Z {SERIAL} 7200 1800 86400 5"
Z = "clusterset.local."
WEB, SET = f"web.ns.svc.{Z}", f"set.ns.svc.{Z}"
PG = ("16.1.1", "16.1.3", "17.1.1", "18.1.1")

ROWS: list[tuple[str, str]] = [
    (f"{WEB} A", f"{WEB} 5 IN A 10.42.42.42"),
    (f"{WEB} AAAA", f"{WEB} 5 IN AAAA fd42::1"),
    (f"WEB.ns.SVC.{Z} A", f"WEB.ns.SVC.{Z} 5 IN A 10.42.42.42"),
    (f"_http._tcp.{WEB} A", f"_http._tcp.{WEB} 5 IN A 10.42.42.42"),
    (f"_http._udp.{WEB} SRV", "NXDOMAIN"),
    (f"_tcp.{WEB} A", "NODATA"),
    (f"a.east.{WEB} A", f"a.east.{WEB} 5 IN A 172.16.0.1"),
    (f"a.{WEB} A", "NXDOMAIN"),
    (f"east.{WEB} A", "NODATA"),
    (f"west.{WEB} A", "NXDOMAIN"),
    (f"{SET} A", "".join(f"{SET} 5 IN A 172.{ip}\n" for ip in PG)),
    (f"{SET} AAAA", f"{SET} 5 IN AAAA fd01::1"),
    (f"db-0.east.{SET} A", f"db-0.east.{SET} 5 IN A 172.16.1.1"),
    (f"db-0.west.{SET} A", f"db-0.west.{SET} 5 IN A 172.17.1.1"),
    (f"172-16-1-3.east.{SET} A", f"172-16-1-3.east.{SET} 5 IN A 172.16.1.3"),
    (f"172-16-1-2.east.{SET} A", "NXDOMAIN"),
    (f"db-0.north.{SET} A", "NXDOMAIN"),
    (f"db-0.{SET} A", "NXDOMAIN"),
    (f"x.db-0.east.{SET} A", "NXDOMAIN"),
    (f"_db-0.east.{SET} A", "NXDOMAIN"),
    (f"db-0._east.{SET} A", "NXDOMAIN"),
    (
        f"_pg._tcp.{SET} A",
        "".join(f"_pg._tcp.{SET} 5 IN A 172.{ip}\n" for ip in ("16.1.1", "16.1.3", "17.1.1", "18.1.1")),
    ),
    (f"idle.ns.svc.{Z} A", "NXDOMAIN"),
    (f"soon.ns.svc.{Z} A", "NODATA"),
    (f"local.ns.svc.{Z} A", "NXDOMAIN"),
    (f"ns.svc.{Z} A", "NODATA"),
    (f"only.svc.{Z} A", "NODATA"),
    (f"gone.svc.{Z} A", "NXDOMAIN"),
    (f"svc.{Z} A", "NODATA"),
    (f"{Z} SOA", f"{Z} {SOA.replace('Z', Z)}"),
    (f"dns-version.{Z} TXT", f'dns-version.{Z} 28800 IN TXT "1.1.0"'),
    (f"10-1-0-1.ns.pod.{Z} A", f"10-1-0-1.ns.pod.{Z} 5 IN A 10.1.0.1"),
    # the cluster's own zone knows nothing of imports
    ("web.ns.svc.cluster.local. A", "web.ns.svc.cluster.local. 5 IN A 10.96.0.1"),
    ("set.ns.svc.cluster.local. A", "NXDOMAIN"),
    ("a.east.web.ns.svc.cluster.local. A", "NXDOMAIN"),
    # nor do addresses
    ("1.0.96.10.in-addr.arpa. PTR", "1.0.96.10.in-addr.arpa. 5 IN PTR web.ns.svc.cluster.local."),
    ("42.42.42.10.in-addr.arpa. PTR", "NXDOMAIN"),
    ("1.1.16.172.in-addr.arpa. PTR", "NXDOMAIN"),
]


@pytest.mark.parametrize(("asked", "reply"), ROWS, ids=[row[0] for row in ROWS])
def test_names(asked: str, reply: str) -> None:
    zone = next(z for z in (Z, "in-addr.arpa.", "cluster.local.") if asked.split(maxsplit=1)[0].lower().endswith(z))
    soa = f";; AUTHORITY\n{zone} {SOA.replace('Z', zone)}"
    whole = {"NXDOMAIN": f"NXDOMAIN\n{soa}", "NODATA": f"NOERROR\n{soa}"}
    assert ask(zone_of(*OBJECTS, settings=SETTINGS), asked) == expected(whole.get(reply, f"NOERROR\n{reply}"))


def test_srv_of_a_clusterset_ip() -> None:
    assert ask(zone_of(*OBJECTS, settings=SETTINGS), f"_http._tcp.{WEB} SRV") == expected(
        f"""NOERROR
        _http._tcp.{WEB} 5 IN SRV 0 50 80 {WEB}
        ;; ADDITIONAL
        {WEB} 5 IN A 10.42.42.42
        {WEB} 5 IN AAAA fd42::1
        """
    )


def test_srv_of_a_headless_import_names_cluster_and_endpoint() -> None:
    """An endpoint of which nobody says the cluster has no name; the import's own leads to it."""
    assert ask(zone_of(*OBJECTS, settings=SETTINGS), f"_pg._tcp.{SET} SRV") == expected(
        f"""NOERROR
        _pg._tcp.{SET} 5 IN SRV 0 20 5432 db-0.east.{SET}
        _pg._tcp.{SET} 5 IN SRV 0 20 5432 172-16-1-3.east.{SET}
        _pg._tcp.{SET} 5 IN SRV 0 20 5432 db-6.east.{SET}
        _pg._tcp.{SET} 5 IN SRV 0 20 5433 db-0.West.{SET}
        _pg._tcp.{SET} 5 IN SRV 0 20 5434 {SET}
        ;; ADDITIONAL
        db-0.east.{SET} 5 IN A 172.16.1.1
        172-16-1-3.east.{SET} 5 IN A 172.16.1.3
        db-6.east.{SET} 5 IN AAAA fd01::1
        db-0.West.{SET} 5 IN A 172.17.1.1
        {SET} 5 IN A 172.18.1.1
        """
    )


def test_the_name_server_of_a_multicluster_zone_is_one_that_resolves_there() -> None:
    """The Service this server is an endpoint of has no name in the zone."""
    zone = zone_of(*OBJECTS, settings=SETTINGS, local="10.1.0.1")
    assert ask(zone, "cluster.local. NS").splitlines()[1] == "cluster.local. 5 IN NS web.ns.svc.cluster.local."
    assert ask(zone, f"{Z} NS").splitlines()[1] == f"{Z} 5 IN NS ns.dns.{Z}"
    assert ask(zone, f"ns.dns.{Z} A") == f"NOERROR\nns.dns.{Z} 5 IN A 10.1.0.1"


@pytest.mark.parametrize(
    ("options", "asked", "rcode"),
    [
        ({"noendpoints": True}, f"{WEB} A", Rcode.NOERROR),
        ({"noendpoints": True}, f"{SET} A", Rcode.NXDOMAIN),
        ({"noendpoints": True}, f"a.east.{WEB} A", Rcode.NXDOMAIN),
        ({"namespaces": frozenset({"only"})}, f"{WEB} A", Rcode.NXDOMAIN),
        ({"namespaces": frozenset({"only"})}, f"web.only.svc.{Z} A", Rcode.NOERROR),
        ({"labels": LabelSelector.parse("x=y")}, f"{WEB} A", Rcode.NXDOMAIN),
        ({"namespace_labels": LabelSelector.parse("x=y")}, f"{WEB} A", Rcode.NXDOMAIN),
        ({"ignore_empty_service": True}, f"web.only.svc.{Z} A", Rcode.NXDOMAIN),
        ({"ignore_empty_service": True}, f"{WEB} A", Rcode.NOERROR),
        ({"zonal": True}, f"x.pin._zone.{SET} A", Rcode.NXDOMAIN),
    ],
)
def test_options_hold_for_imports_too(options: dict[str, object], asked: str, rcode: Rcode) -> None:
    settings = config("cluster.local clusterset.local", multicluster="clusterset.local", **options)
    assert ask(zone_of(*OBJECTS, settings=settings), asked).split()[0] == rcode.name


def test_without_the_option_imports_are_not_shown() -> None:
    zone = zone_of(*OBJECTS, settings=config("cluster.local clusterset.local"))
    assert ask(zone, f"{WEB} A").splitlines()[1] == f"{WEB} 5 IN A 10.96.0.1", "an ordinary second zone"
    assert ask(zone, "only.svc.cluster.local. A").startswith("NXDOMAIN")


# -- lists


def test_until_imports_are_listed_only_their_zone_fails() -> None:
    """No ServiceImport resource, no permission: the cluster's own names are none the worse."""
    state = state_of(*OBJECTS, listed=False)
    for resource in Resource:
        if resource is not Resource.SERVICE_IMPORTS:
            state.apply_event(Listed(resource))
    zone = Zone(SETTINGS)
    zone.load(state, SERIAL)
    assert zone.synced
    assert ask(zone, "gone.ns.svc.cluster.local. A").startswith("NXDOMAIN")
    outcome = answer(zone, question(f"gone.ns.svc.{Z} A"))
    assert isinstance(outcome, Reply)
    assert outcome.message.rcode == Rcode.SERVFAIL
    assert outcome.message.errors == ((int(ExtendedError.NOT_READY), "the ServiceImports have not been listed yet"),)
    assert prepare(zone, question(f"gone.ns.svc.{Z} A")) is None
    assert "not listed yet: serviceimports; what is missing may still come" in explain(
        zone, state, question(f"gone.ns.svc.{Z} A")
    )
    state.apply_event(Listed(Resource.SERVICE_IMPORTS))
    assert zone.apply(state, Changes(), SERIAL).everything
    assert ask(zone, f"gone.ns.svc.{Z} A").startswith("NXDOMAIN")


# -- changes

CHANGES: list[tuple[str, list[KubeObject], list[KubeObject], str]] = [
    ("appears", [service_import("ns/new", "10.42.0.9")], [], f"new.ns.svc.{Z} A"),
    ("its namespace with it", [service_import("fresh/new", "10.42.0.9")], [], f"fresh.svc.{Z} A"),
    ("goes", [], [OBJECTS[4]], f"{WEB} A"),
    ("goes", [], [OBJECTS[4]], f"a.east.{WEB} A"),
    ("gets its address", [service_import("ns/soon", "10.42.0.8")], [], f"soon.ns.svc.{Z} A"),
    ("becomes headless", [service_import("ns/web", "None", "http:80")], [], f"{WEB} A"),
    ("becomes ready", [imported("ns/idle", "east", "172.16.2.1")], [], f"idle.ns.svc.{Z} A"),
    ("another cluster", [imported("ns/set", "south", "172.19.1.1", "pg:5432")], [], f"{SET} A"),
    ("another cluster", [imported("ns/set", "south", "172.19.1.1", "pg:5432")], [], f"south.{SET} A"),
    (
        "a cluster renamed",
        [imported("ns/web", "north", "172.16.0.1=a", "http:8080", name="east")],
        [],
        f"a.east.{WEB} A",
    ),
    ("port", [service_import("ns/web", "10.42.42.42", "https:443")], [], f"_https._tcp.{WEB} SRV"),
    ("serial", [service_import("ns/new", "10.42.0.9")], [], f"{Z} SOA"),
]


@pytest.mark.parametrize(("what", "put_in", "taken_out", "asked"), CHANGES, ids=[f"{c[0]}-{c[3]}" for c in CHANGES])
def test_a_changed_answer_is_renewed_and_the_clusters_serial_stays(
    what: str, put_in: list[KubeObject], taken_out: list[KubeObject], asked: str
) -> None:
    state = state_of(*OBJECTS)
    zone = Zone(SETTINGS)
    zone.load(state, SERIAL)
    before = prepare(zone, question(asked))
    put(state, *put_in)
    remove(state, *taken_out)
    dropped = zone.apply(state, state.take_changes(), SERIAL + 10)
    assert prepare(zone, question(asked)) != before, "the change was meant to change the answer"
    assert zone.tag(question(asked).lower) in dropped.tags
    assert zone.imports.serial == SERIAL + 10
    assert zone.serial == (SERIAL + 10 if "namespace" in what else SERIAL)
    scratch = Zone(SETTINGS)
    scratch.load(state, SERIAL + 10)
    assert prepare(zone, question(asked)) == prepare(scratch, question(asked))


def test_a_service_moves_the_clusters_serial_alone() -> None:
    state = state_of(*OBJECTS)
    zone = Zone(SETTINGS)
    zone.load(state, SERIAL)
    put(state, service("ns/new", "10.96.0.9"))
    zone.apply(state, state.take_changes(), SERIAL + 10)
    assert (zone.serial, zone.imports.serial) == (SERIAL + 10, SERIAL)


def test_what_changes_no_answer_moves_nothing() -> None:
    state = state_of(*OBJECTS)
    zone = Zone(SETTINGS)
    zone.load(state, SERIAL)
    put(state, service_import("ns/web", "10.42.42.42 fd42::1", "http:80 dns:53/UDP 9090", labels=(("a", "b"),)))
    assert not zone.apply(state, state.take_changes(), SERIAL + 10)
    assert zone.imports.serial == SERIAL


EAST = "EndpointSlice ns/set-east: 2 ready (172.16.1.1 db-0.east, 172.16.1.3 172-16-1-3.east), 1 not ready (172.16.1.2)"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (f"{WEB} A", ["ServiceImport ns/web (ClusterSetIP 10.42.42.42, fd42::1)"]),
        (
            f"db-0.west.{SET} A",
            [
                "ServiceImport ns/set (headless)",
                "EndpointSlice ns/set-West: 1 ready (172.17.1.1 db-0.West)",
                "EndpointSlice ns/set-a: 1 ready (172.18.1.1)",
                EAST,
                "EndpointSlice ns/set-east-6: 1 ready (fd01::1 db-6.east)",
            ],
        ),
        (f"webb.ns.svc.{Z} A", ["no ServiceImport webb in namespace ns; nearest: web"]),
    ],
)
def test_explanations(asked: str, said: list[str]) -> None:
    state = state_of(*OBJECTS)
    zone = Zone(SETTINGS)
    zone.load(state, SERIAL)
    assert explain(zone, state, question(asked)) == said


def test_a_directive_of_multicluster_zones_alone() -> None:
    zone = zone_of(*OBJECTS, settings=config("clusterset.local", multicluster="clusterset.local"))
    assert ask(zone, f"{WEB} A").startswith("NOERROR")
    assert zone.primary() is None
