"""`zonal`: the endpoints of a headless Service in one topology zone."""

from __future__ import annotations

import pytest

from dnsserver.answer import prepare
from dnsserver.zone import Zone
from kubecore.model import KubeObject
from tests.dns.cluster import SERIAL, ask, config, namespace, piece, put, service, state_of, zone_of
from tests.dns.notation import expected, question

PLACED = "172.0.0.1/us-west-2a 172.0.0.2/us-west-2b 172.0.0.3=b/us-west-2b"
OBJECTS: list[KubeObject] = [
    namespace("ns"),
    service("ns/set", "None", "http:80"),
    piece(
        "ns/set", "172.0.0.1/us-west-2a 172.0.0.2/us-west-2b 172.0.0.3=b/us-west-2b 172.0.0.4/us-west-2d!", "http:80"
    ),
    piece("ns/set", "fd00::1/us-west-2a 172.0.0.9", "http:80", name="b", family=6),
    service("ns/dotted", "None"),
    piece("ns/dotted", "172.0.1.1/Rack1.corp.example 172.0.1.2/elsewhere"),
    service("ns/idle", "None"),
    piece("ns/idle", "172.0.2.1/us-west-2a!"),
    service("ns/web", "10.0.0.10", "http:80"),
    piece("ns/web", "172.0.3.1/us-west-2a", "http:80"),
    service("ns/alias", to="example.org"),
]
SOA = (
    f";; AUTHORITY\n cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. {SERIAL} 7200 1800 86400 5"
)
SVC = "set.ns.svc.cluster.local."

ROWS: list[tuple[str, str]] = [
    (f"us-west-2a.pin._zone.{SVC} A", "5 IN A 172.0.0.1"),
    (f"us-west-2a.pin._zone.{SVC} AAAA", "5 IN AAAA fd00::1"),
    (f"US-West-2A.Pin._Zone.{SVC} A", "5 IN A 172.0.0.1"),
    (f"us-west-2b.pin._zone.{SVC} A", "5 IN A 172.0.0.2 | 5 IN A 172.0.0.3"),
    (f"us-west-2b.pin._zone.{SVC} AAAA", "NODATA"),
    (f"us-west-2c.pin._zone.{SVC} A", "NODATA"),
    (f"us-west-2c.pin._zone.{SVC} TXT", "NODATA"),
    (f"us-west-2d.pin._zone.{SVC} A", "NODATA"),
    (f"us-west-2a.prefer._zone.{SVC} A", "5 IN A 172.0.0.1"),
    (f"us-west-2c.prefer._zone.{SVC} A", " | ".join(f"5 IN A 172.0.0.{i}" for i in (1, 2, 3, 9))),
    (f"us-west-2d.prefer._zone.{SVC} A", " | ".join(f"5 IN A 172.0.0.{i}" for i in (1, 2, 3, 9))),
    (f"us-west-2c.prefer._zone.{SVC} TXT", "NODATA"),
    (f"us-west-2b.prefer._zone.{SVC} AAAA", "NODATA"),
    ("rack1.corp.example.pin._zone.dotted.ns.svc.cluster.local. A", "5 IN A 172.0.1.1"),
    ("corp.example.pin._zone.dotted.ns.svc.cluster.local. A", "NODATA"),
    (f"pin._zone.{SVC} A", "NODATA"),
    (f"prefer._zone.{SVC} A", "NODATA"),
    (f"_zone.{SVC} A", "NODATA"),
    (f"us-west-2a.florp._zone.{SVC} A", "NXDOMAIN"),
    (f"us-west-2a._zone.{SVC} A", "NXDOMAIN"),
    (f"us-west-2a.pin.zone.{SVC} A", "NXDOMAIN"),
    ("us-west-2a.pin._zone.ghost.ns.svc.cluster.local. A", "NXDOMAIN"),
    ("us-west-2a.pin._zone.web.ns.svc.cluster.local. A", "NXDOMAIN"),
    ("_zone.web.ns.svc.cluster.local. A", "NXDOMAIN"),
    ("us-west-2a.pin._zone.alias.ns.svc.cluster.local. A", "NXDOMAIN"),
    (f"_http._tcp.{SVC} A", " | ".join(f"5 IN A 172.0.0.{i}" for i in (1, 2, 3, 9))),
]


@pytest.mark.parametrize(("asked", "reply"), ROWS, ids=[row[0] for row in ROWS])
def test_a_zone_of_endpoints(asked: str, reply: str) -> None:
    owner = asked.split(maxsplit=1)[0]
    whole = {"NXDOMAIN": f"NXDOMAIN\n{SOA}", "NODATA": f"NOERROR\n{SOA}"}
    records = "\n".join(f"{owner} {record}" for record in reply.split(" | "))
    zone = zone_of(*OBJECTS, settings=config(zonal=True))
    assert ask(zone, asked) == expected(whole.get(reply, f"NOERROR\n{records}"))


def test_srv_of_a_zone_points_to_the_endpoints_own_names() -> None:
    owner = f"us-west-2b.pin._zone.{SVC}"
    assert ask(zone_of(*OBJECTS, settings=config(zonal=True)), f"{owner} SRV") == expected(
        f"""NOERROR
        {owner} 5 IN SRV 0 50 80 172-0-0-2.{SVC}
        {owner} 5 IN SRV 0 50 80 b.{SVC}
        ;; ADDITIONAL
        172-0-0-2.{SVC} 5 IN A 172.0.0.2
        b.{SVC} 5 IN A 172.0.0.3
        """
    )


def test_a_service_without_ready_endpoints_has_no_names_below_it_either() -> None:
    zone = zone_of(*OBJECTS, settings=config(zonal=True))
    for name in ("us-west-2a.pin._zone.idle", "us-west-2a.prefer._zone.idle", "idle"):
        assert ask(zone, f"{name}.ns.svc.cluster.local. A").startswith("NXDOMAIN")


@pytest.mark.parametrize("name", ["us-west-2a.pin._zone", "us-west-2c.prefer._zone", "pin._zone", "_zone"])
def test_without_the_option_there_are_no_such_names(name: str) -> None:
    assert ask(zone_of(*OBJECTS), f"{name}.{SVC} A") == expected(f"NXDOMAIN\n{SOA}")


@pytest.mark.parametrize(("zonal", "moves"), [(True, True), (False, False)])
def test_an_endpoint_that_changes_its_zone_changes_answers_with_the_option_only(zonal: bool, moves: bool) -> None:
    state = state_of(*OBJECTS)
    zone = Zone(config(zonal=zonal))
    zone.load(state, SERIAL)
    asked = question(f"us-west-2a.pin._zone.{SVC} A")
    before = prepare(zone, asked)
    put(state, piece("ns/set", "172.0.0.1/us-west-2b 172.0.0.2/us-west-2a 172.0.0.3=b/us-west-2b", "http:80"))
    dropped = zone.apply(state, state.take_changes(), SERIAL + 1)
    assert (zone.serial > SERIAL) is moves
    assert (zone.tag(asked.lower) in dropped.tags) is moves
    assert (prepare(zone, asked) != before) is moves
