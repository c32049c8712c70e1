"""What a change does: which memoised answers go, when the serial moves, what stays untouched."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsserver.answer import prepare
from dnsserver.config import PodsMode
from dnsserver.message import Prepared
from dnsserver.services import differing_pairs, slice_pairs
from dnsserver.zone import Zone
from kubecore.model import Endpoint, EndpointSlice, KubeObject, ServiceType
from kubecore.selectors import LabelSelector
from kubecore.snapshot import ClusterState
from tests.dns.cluster import SERIAL, config, namespace, piece, pod, put, remove, service, state_of
from tests.dns.notation import question

WEB = service("default/web", "10.96.0.1", "http:80")
SET = service("default/set", "None", "pg:5432")
SLICE = piece("default/set", "10.244.0.1=a 10.244.0.2=b 10.244.0.3!", "pg:5432")
BASE: list[KubeObject] = [namespace("default"), WEB, SET, SLICE]
ZONES = "cluster.local 10.in-addr.arpa ip6.arpa"

# a change, and a question whose answer it must renew
CHANGES: list[tuple[str, list[KubeObject], list[KubeObject], str]] = [
    ("service appears", [service("default/new", "10.96.0.9")], [], "new.default.svc.cluster.local. A"),
    ("service appears", [service("default/new", "10.96.0.9")], [], "9.0.96.10.in-addr.arpa. PTR"),
    ("service appears", [service("default/new", "10.97.0.9")], [], "97.10.in-addr.arpa. A"),
    ("service appears", [service("default/new", "10.97.0.9")], [], "0.97.10.in-addr.arpa. A"),
    ("service appears", [service("default/new", "10.96.0.9", "x:1")], [], "_x._tcp.new.default.svc.cluster.local. SRV"),
    ("service appears", [service("default/new", "10.96.0.9", "x:1")], [], "_tcp.new.default.svc.cluster.local. A"),
    ("its namespace with it", [service("fresh/new", "10.96.0.9")], [], "fresh.svc.cluster.local. A"),
    ("its namespace with it", [service("fresh/new", "10.96.0.9")], [], "1-2-3-4.fresh.pod.cluster.local. A"),
    ("namespace appears", [namespace("fresh")], [], "fresh.svc.cluster.local. A"),
    ("namespace appears", [namespace("fresh")], [], "1-2-3-4.fresh.pod.cluster.local. A"),
    ("service goes", [], [WEB], "web.default.svc.cluster.local. A"),
    ("service goes", [], [WEB], "web.default.svc.cluster.local. TXT"),
    ("service goes", [], [WEB], "1.0.96.10.in-addr.arpa. PTR"),
    ("service goes", [], [SET], "1.0.244.10.in-addr.arpa. PTR"),
    ("service goes", [], [SET], "244.10.in-addr.arpa. PTR"),
    (
        "second ClusterIP",
        [service("default/web", "10.96.0.1 fd00::1", "http:80")],
        [],
        "web.default.svc.cluster.local. AAAA",
    ),
    (
        "port renamed",
        [service("default/web", "10.96.0.1", "https:80")],
        [],
        "_http._tcp.web.default.svc.cluster.local. SRV",
    ),
    ("becomes an alias", [service("default/web", to="example.org")], [], "web.default.svc.cluster.local. A"),
    ("becomes an alias", [service("default/set", to="example.org")], [], "1.0.244.10.in-addr.arpa. PTR"),
    (
        "becomes ready",
        [piece("default/set", "10.244.0.1=a 10.244.0.2=b 10.244.0.3", "pg:5432")],
        [],
        "set.default.svc.cluster.local. A",
    ),
    (
        "becomes ready",
        [piece("default/set", "10.244.0.1=a 10.244.0.2=b 10.244.0.3", "pg:5432")],
        [],
        "3.0.244.10.in-addr.arpa. PTR",
    ),
    ("becomes unready", [piece("default/set", "10.244.0.1=a!", "pg:5432")], [], "a.set.default.svc.cluster.local. A"),
    ("becomes unready", [piece("default/set", "10.244.0.1=a!", "pg:5432")], [], "0.244.10.in-addr.arpa. PTR"),
    ("renamed", [piece("default/set", "10.244.0.1=z 10.244.0.2=b", "pg:5432")], [], "1.0.244.10.in-addr.arpa. PTR"),
    (
        "renamed",
        [piece("default/set", "10.244.0.1=z 10.244.0.2=b", "pg:5432")],
        [],
        "z.set.default.svc.cluster.local. A",
    ),
    (
        "port number",
        [piece("default/set", "10.244.0.1=a 10.244.0.2=b", "pg:5433")],
        [],
        "_pg._tcp.set.default.svc.cluster.local. SRV",
    ),
    ("slice goes", [], [SLICE], "set.default.svc.cluster.local. A"),
    (
        "second slice",
        [piece("default/set", "fd00::1=c", "pg:5432", name="b")],
        [],
        "set.default.svc.cluster.local. AAAA",
    ),
    ("serial", [service("default/new", "10.96.0.9")], [], "cluster.local. SOA"),
    ("serial", [service("default/new", "10.96.0.9")], [], "10.in-addr.arpa. SOA"),
]


def loaded(*objects: KubeObject, **options: object) -> tuple[Zone, ClusterState]:
    state = state_of(*objects)
    zone = Zone(config(ZONES, **{"pods": PodsMode.INSECURE, **options}))
    zone.load(state, SERIAL)
    return zone, state


@pytest.mark.parametrize(("what", "put_in", "taken_out", "asked"), CHANGES, ids=[f"{c[0]}-{c[3]}" for c in CHANGES])
def test_a_changed_answer_is_renewed(
    what: str, put_in: list[KubeObject], taken_out: list[KubeObject], asked: str
) -> None:
    zone, state = loaded(*BASE)
    before = prepare(zone, question(asked))
    put(state, *put_in)
    remove(state, *taken_out)
    dropped = zone.apply(state, state.take_changes(), SERIAL + 10)
    assert prepare(zone, question(asked)) != before, "the change was meant to change the answer"
    assert zone.tag(question(asked).lower) in dropped.tags
    assert not dropped.everything
    assert zone.serial == SERIAL + 10


@pytest.mark.parametrize(
    "untouched",
    ["web.default.svc.cluster.local. A", "1.0.96.10.in-addr.arpa. PTR", "default.svc.cluster.local. A",
    "x.y.cluster.local. A",
     "2.0.244.10.in-addr.arpa. PTR"],
)  # fmt: skip
def test_the_rest_stays(untouched: str) -> None:
    zone, state = loaded(*BASE)
    put(state, piece("default/set", "10.244.0.1=a 10.244.0.2=b 10.244.0.3", "pg:5432"))
    dropped = zone.apply(state, state.take_changes(), SERIAL + 10)
    assert zone.tag(question(untouched).lower) not in dropped.tags


METADATA: list[KubeObject] = [
    msgspec.structs.replace(WEB, annotations=(("a", "b"),), labels=(("c", "d"),)),
    msgspec.structs.replace(SLICE, labels=(("c", "d"),), trigger_s=7.0),
    piece("default/set", "10.244.0.1=a 10.244.0.2=b 10.244.0.9!", "pg:5432"),
    namespace("default", team="x"),
    pod("default/p", "10.244.0.1"),
    msgspec.structs.replace(WEB, type=ServiceType.LOAD_BALANCER),
    msgspec.structs.replace(WEB, source_ranges=("10.0.0.0/8",), affinity_timeout_s=3),
]


@pytest.mark.parametrize("obj", METADATA)
def test_what_changes_no_answer_moves_no_serial(obj: KubeObject) -> None:
    zone, state = loaded(*BASE)
    put(state, obj)
    dropped = zone.apply(state, state.take_changes(), SERIAL + 10)
    assert not dropped
    assert zone.serial == SERIAL


def test_every_change_moves_the_serial_even_within_a_second() -> None:
    zone, state = loaded(*BASE)
    seen = [zone.serial]
    for step in range(4):
        put(state, service("default/web", f"10.96.1.{step}"))
        zone.apply(state, state.take_changes(), SERIAL)
        seen.append(zone.serial)
    assert seen == sorted(set(seen))


def test_first_lists_renew_everything() -> None:
    state = state_of(*BASE, listed=False)
    zone = Zone(config())
    zone.load(state, SERIAL)
    assert not zone.synced
    assert prepare(zone, question("gone.default.svc.cluster.local. A")) is None
    assert isinstance(prepare(zone, question("web.default.svc.cluster.local. A")), Prepared)
    other = state_of()
    put(other, *BASE)
    assert zone.apply(other, other.take_changes(), SERIAL).everything
    assert prepare(zone, question("gone.default.svc.cluster.local. A")) is not None


def test_verified_pods_come_and_go() -> None:
    zone, state = loaded(*BASE, pods=PodsMode.VERIFIED)
    asked = question("10-244-9-9.default.pod.cluster.local. A")
    absent = prepare(zone, asked)
    put(state, pod("default/p", "10.244.9.9"))
    dropped = zone.apply(state, state.take_changes(), SERIAL + 1)
    assert zone.tag(asked.lower) in dropped.tags
    present = prepare(zone, asked)
    assert present is not None
    assert present != absent
    put(state, pod("default/q", "10.244.9.9"))
    zone.apply(state, state.take_changes(), SERIAL + 2)
    remove(state, pod("default/p", ""))
    zone.apply(state, state.take_changes(), SERIAL + 3)
    assert prepare(zone, asked) == present  # q still has the address
    put(state, pod("default/q", "10.244.9.9", phase="Succeeded"))
    zone.apply(state, state.take_changes(), SERIAL + 4)
    assert prepare(zone, asked) != present


def test_namespace_labels_bring_services_into_sight() -> None:
    zone, state = loaded(
        service("default/web", "10.96.0.1"), namespace("default"), namespace_labels=LabelSelector.parse("dns=on")
    )
    asked = question("web.default.svc.cluster.local. A")
    absent = prepare(zone, asked)
    put(state, namespace("default", dns="on"))
    dropped = zone.apply(state, state.take_changes(), SERIAL + 1)
    assert {zone.tag(asked.lower), zone.tag(question("1.0.96.10.in-addr.arpa. PTR").lower)} <= dropped.tags
    present = prepare(zone, asked)
    assert present != absent
    put(state, namespace("default"))
    zone.apply(state, state.take_changes(), SERIAL + 1)
    hidden = prepare(zone, asked)
    assert hidden is not None
    assert hidden.flags == (absent and absent.flags)


def test_a_slice_before_its_service_is_no_endpoint_until_it_comes() -> None:
    zone, state = loaded(namespace("default"), SLICE)
    ptr = question("1.0.244.10.in-addr.arpa. PTR")
    absent = prepare(zone, ptr)
    put(state, SET)
    dropped = zone.apply(state, state.take_changes(), SERIAL + 1)
    assert zone.tag(ptr.lower) in dropped.tags
    assert prepare(zone, ptr) != absent


@given(data=st.data(), pod_names=st.booleans())
def test_only_endpoints_that_differ_are_looked_at(data: st.DataObject, *, pod_names: bool) -> None:
    """Whatever is in both slices, even an address twice, the differences are those of all pairs."""
    some = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    endpoint = st.builds(
        Endpoint,
        addresses=st.lists(some, max_size=2).map(tuple),
        ready=st.booleans(),
        hostname=st.sampled_from(["", "a", "b"]),
        target_name=st.sampled_from(["", "p"]),
    )
    endpoints = st.lists(endpoint, max_size=4).map(tuple)
    old = EndpointSlice("default", "a", "web", 4, endpoints=data.draw(endpoints))
    new = EndpointSlice("default", "a", "web", 4, endpoints=data.draw(endpoints))
    had, has = slice_pairs(old, pod_names=pod_names), slice_pairs(new, pod_names=pod_names)
    less_had, less_has = differing_pairs(old, new, pod_names=pod_names)
    assert less_had ^ less_has == had ^ has
    for less, all_of in ((less_had, had), (less_has, has)):
        assert less <= all_of
    assert {a for a, _ in less_had} - {a for a, _ in less_has} == {a for a, _ in had} - {a for a, _ in has}
    assert {a for a, _ in less_has} - {a for a, _ in less_had} == {a for a, _ in has} - {a for a, _ in had}
