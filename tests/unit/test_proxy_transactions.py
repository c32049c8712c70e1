"""Decision 1: a large change of our table comes in slices; what belongs together changes in one transaction."""

from __future__ import annotations

from ipvsproxy import sets
from ipvsproxy.dataplane import ChangeElements, Op
from ipvsproxy.diff import TRANSACTION_ELEMENTS, diff
from ipvsproxy.model import Delta, Desired, Element, VirtualServerKey
from ipvsproxy.picture import Picture
from ipvsproxy.sets import Kind
from kubecore.model import Protocol

SERVERS = [VirtualServerKey(4, Protocol.TCP, f"10.96.{i >> 8}.{i & 255}", 80) for i in range(1500)]


def elements(kind: Kind, ranges: tuple[str, ...] = ()) -> dict[Element, None]:
    """As planned: each virtual server's claim and ranges, then its VIP."""
    found: dict[Element, None] = {}
    for key in SERVERS:
        found[sets.service(key, kind)] = None
        found |= dict.fromkeys(sets.source_range(key, prefix) for prefix in ranges)
        found[sets.vip(4, key.address)] = None
    return found


def transactions(before: dict[Element, None], after: dict[Element, None]) -> list[ChangeElements]:
    ops: list[Op] = diff(Desired({}, {}, after), Picture(elements=before), Delta({}, {}, {}, before | after))
    changes = [op for op in ops if isinstance(op, ChangeElements)]
    assert len(changes) == len(ops)
    return changes


def numbers(changes: list[ChangeElements], name: str) -> list[int]:
    """In which of the transactions each element of the set changes."""
    return [n for n, c in enumerate(changes) for e in (*c.add, *c.delete) if e.set == name]


def test_large_changes_come_in_slices() -> None:
    changes = transactions({}, elements(Kind.CLUSTER_IP))
    assert len(changes) == 3
    assert all(len(c.add) <= TRANSACTION_ELEMENTS for c in changes)
    assert sum(len(c.add) for c in changes) == 3000


def test_claims_come_before_vips_and_go_after_them() -> None:
    coming = transactions({}, elements(Kind.CLUSTER_IP))
    assert max(numbers(coming, "service4")) <= min(numbers(coming, "vip4"))
    going = transactions(elements(Kind.CLUSTER_IP), {})
    assert max(numbers(going, "vip4")) <= min(numbers(going, "service4"))


def test_what_belongs_to_one_virtual_server_changes_at_once() -> None:
    before = elements(Kind.RANGED_EXTERNAL, ("10.0.0.0/8",))
    after = elements(Kind.RANGED_EXTERNAL_LOCAL, ("10.0.0.0/9", "10.128.0.0/9"))
    where: dict[tuple[str, ...], set[int]] = {}
    for number, change in enumerate(transactions(before, after)):
        for element in (*change.add, *change.delete):
            where.setdefault(element.key[:3], set()).add(number)
    assert {len(found) for found in where.values()} == {1}
    assert len(set().union(*where.values())) > 1


def test_prefixes_that_may_overlap_change_at_once() -> None:
    networks = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(1500)]
    before = dict.fromkeys(sets.prefix(sets.ON_NODE, 4, network) for network in networks)
    after = {sets.prefix(sets.ON_NODE, 4, "10.0.0.0/8"): None}
    (change,) = transactions(before, after)
    assert len(change.delete) == 1500
    assert change.add == tuple(after)


def test_what_a_dump_says_is_taken_over_and_told() -> None:
    kept, lost, found = (sets.service(key, Kind.CLUSTER_IP) for key in SERVERS[:3])
    claim, renamed = sets.service(SERVERS[3], Kind.EXTERNAL), sets.service(SERVERS[3], Kind.EMPTY)
    picture = Picture(vips={"10.96.0.1": "", "10.96.0.2": "", "10.96.0.3": ""}, elements=[kept, lost, claim])
    assert picture.take_elements({kept, found, renamed}) == dict.fromkeys([lost, claim, found, renamed])
    assert set(picture.elements.values()) == {kept, found, renamed}
    assert picture.take_elements({kept, found, renamed}) == {}
    vips = {"10.96.0.1": "", "10.96.0.2": "192.0.2.10", "10.96.0.4": ""}
    assert picture.take_vips(vips) == dict.fromkeys(["10.96.0.2", "10.96.0.3", "10.96.0.4"])
    assert picture.vips == vips
    assert picture.take_vips(dict(vips)) == {}
