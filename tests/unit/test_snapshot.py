"""ClusterState: which Services a change touches, relists, and when a resource can be trusted."""

from __future__ import annotations

import msgspec
import pytest

from kubecore.model import Delete, Event, Listed, ListStarted, ObjectKey, Resource, Upsert
from kubecore.snapshot import Changes, ClusterState
from tests.builders import endpoint_slice, key, node, pod, service

_WEB = service("ns/web", "10.96.0.1")
_SLICE = endpoint_slice("ns/web", "10.0.0.1")


def _state(*events: Event) -> ClusterState:
    state = ClusterState()
    for event in events:
        state.apply_event(event)
    return state


def _services(changes: Changes) -> list[str]:
    return sorted(map(str, changes.services))


def test_the_first_look_compares_with_an_empty_cluster() -> None:
    state = _state(Upsert(_WEB), Upsert(_SLICE), Upsert(node("n1")), Upsert(pod("ns/p", "10.0.0.1")))
    changes = state.take_changes()
    assert (_services(changes), changes.nodes, changes.pods) == (
        ["ns/web"],
        frozenset({ObjectKey("", "n1")}),
        frozenset({ObjectKey("ns", "p")}),
    )
    assert not state.take_changes()


@pytest.mark.parametrize(
    ("events", "changed"),
    [
        pytest.param([Upsert(_WEB)], [], id="the same again"),
        pytest.param([Upsert(service("ns/web", "10.96.0.2")), Upsert(_WEB)], [], id="there and back"),
        pytest.param([Delete(Resource.SERVICES, key("ns/web")), Upsert(_WEB)], [], id="deleted and restored"),
        pytest.param([Delete(Resource.SERVICES, key("ns/db"))], [], id="deleting what is not there"),
        pytest.param([Upsert(service("ns/web", "10.96.0.2"))], ["ns/web"], id="changed"),
        pytest.param([Upsert(endpoint_slice("ns/web", "10.0.0.2"))], ["ns/web"], id="its slice changed"),
        pytest.param([Delete(Resource.ENDPOINT_SLICES, key("ns/web-x"))], ["ns/web"], id="its slice went"),
        pytest.param(
            [Upsert(endpoint_slice("ns/db", "10.0.0.1", suffix="x"))],
            ["ns/db"],
            id="a slice of a Service that is not there (yet)",
        ),
    ],
)
def test_changes(events: list[Event], changed: list[str]) -> None:
    state = _state(Upsert(_WEB), Upsert(_SLICE))
    state.take_changes()
    for event in events:
        state.apply_event(event)
    assert _services(state.take_changes()) == changed


def test_a_slice_that_changes_hands_touches_both_services() -> None:
    state = _state(Upsert(_SLICE))
    state.take_changes()
    moved = msgspec.structs.replace(_SLICE, service="db")
    state.apply_event(Upsert(moved))
    assert _services(state.take_changes()) == ["ns/db", "ns/web"]
    assert state.slices_of(key("ns/web")) == ()
    assert state.slices_of(key("ns/db")) == (moved,)


def test_slices_of_a_service_are_sorted_by_name() -> None:
    slices = [endpoint_slice("ns/web", "10.0.0.1", suffix=s) for s in ("b", "c", "a")]
    state = _state(*map(Upsert, slices))
    assert [s.name for s in state.slices_of(key("ns/web"))] == ["web-a", "web-b", "web-c"]
    assert state.slices_of(key("ns/other")) == ()


def test_listed_is_said_once_and_only_after_a_complete_list() -> None:
    state = _state(ListStarted(Resource.SERVICES), Upsert(_WEB))
    assert not state.is_listed(Resource.SERVICES)
    state.apply_event(Listed(Resource.SERVICES))
    assert state.is_listed(Resource.SERVICES)
    assert not state.is_listed(Resource.SERVICES, Resource.ENDPOINT_SLICES)
    assert state.take_changes().listed == {Resource.SERVICES}
    state.apply_event(ListStarted(Resource.SERVICES))
    state.apply_event(Upsert(_WEB))
    state.apply_event(Listed(Resource.SERVICES))
    assert not state.take_changes()


def test_a_relist_removes_what_it_does_not_name_and_only_at_its_end() -> None:
    other = service("ns/db", "10.96.0.2")
    state = _state(Upsert(_WEB), Upsert(other), Upsert(_SLICE))
    state.take_changes()
    state.apply_event(ListStarted(Resource.SERVICES))
    state.apply_event(Upsert(other))
    assert set(state.services) == {key("ns/web"), key("ns/db")}
    state.apply_event(Listed(Resource.SERVICES))
    assert set(state.services) == {key("ns/db")}
    assert _services(state.take_changes()) == ["ns/web"]
    assert set(state.slices) == {key("ns/web-x")}


def test_a_list_that_begins_anew_forgets_what_the_broken_one_had_seen() -> None:
    state = _state(
        Upsert(_WEB),
        ListStarted(Resource.SERVICES),
        Upsert(_WEB),
        ListStarted(Resource.SERVICES),
        Listed(Resource.SERVICES),
    )
    assert not state.services


def test_states_are_equal_if_their_objects_are() -> None:
    one = _state(Upsert(_WEB), Upsert(_SLICE))
    other = _state(ListStarted(Resource.SERVICES), Upsert(_SLICE), Upsert(_WEB), Listed(Resource.SERVICES))
    other.take_changes()
    assert one == other
    other.apply_event(Delete(Resource.ENDPOINT_SLICES, key("ns/web-x")))
    assert one != other
