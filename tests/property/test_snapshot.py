"""ClusterState under any history: a watch equals a relist, order between objects is free, undone changes vanish."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from kubecore.model import RESOURCE_OF, Delete, Event, KubeObject, Listed, ListStarted, ObjectKey, Resource, Upsert
from kubecore.snapshot import ClusterState
from tests.strategies import changes, kube_objects, steady

_Identity = tuple[Resource, ObjectKey]


def _apply(state: ClusterState, events: Iterable[Event]) -> ClusterState:
    for event in events:
        state.apply_event(event)
    return state


def _final(events: Iterable[Event]) -> dict[_Identity, KubeObject]:
    """What is there in the end, computed the simplest way."""
    found: dict[_Identity, KubeObject] = {}
    for event in events:
        match event:
            case Upsert(obj):
                found[RESOURCE_OF[type(obj)], obj.key] = obj
            case Delete(resource, key):
                found.pop((resource, key), None)
    return found


def _relist(objects: Iterable[KubeObject]) -> list[Event]:
    events: list[Event] = [ListStarted(r) for r in Resource]
    events += [Upsert(obj) for obj in objects]
    return events + [Listed(r) for r in Resource]


@steady
@given(st.lists(changes(), max_size=30), st.lists(kube_objects(), max_size=5))
def test_history_equals_relist(history: list[Event], stale: list[KubeObject]) -> None:
    watched = _apply(ClusterState(), history)
    relisted = _apply(_apply(ClusterState(), map(Upsert, stale)), _relist(_final(history).values()))
    assert watched == relisted
    owners = {s.service_key for s in relisted.slices.values() if s.service}
    for owner in owners | set(watched.services):
        assert watched.slices_of(owner) == relisted.slices_of(owner)
        assert {s.key for s in watched.slices_of(owner)} == {
            k for k, s in watched.slices.items() if s.service and s.service_key == owner
        }


@steady
@given(st.lists(changes(), max_size=20), st.randoms(use_true_random=False))
def test_order_between_objects_is_free(history: list[Event], rng: object) -> None:
    by_object: dict[_Identity, list[Event]] = {}
    for event in history:
        [identity] = _identities([event])
        by_object.setdefault(identity, []).append(event)
    shuffled: list[Event] = []
    while by_object:
        identity = rng.choice(sorted(by_object, key=str))  # type: ignore[attr-defined]  # hypothesis' own Random
        shuffled.append(by_object[identity].pop(0))
        if not by_object[identity]:
            del by_object[identity]
    one, other = _apply(ClusterState(), history), _apply(ClusterState(), shuffled)
    assert one == other
    assert one.take_changes() == other.take_changes()


def _identities(events: Iterable[Event]) -> set[_Identity]:
    found: set[_Identity] = set()
    for event in events:
        match event:
            case Upsert(obj):
                found.add((RESOURCE_OF[type(obj)], obj.key))
            case Delete(resource, key):
                found.add((resource, key))
    return found


@steady
@given(st.lists(changes(), max_size=20), st.lists(changes(), max_size=20))
def test_an_undone_change_vanishes(past: list[Event], excursion: list[Event]) -> None:
    state = _apply(ClusterState(), past)
    state.take_changes()
    before = _final(past)
    _apply(state, excursion)
    for resource, key in _identities(excursion):
        obj = before.get((resource, key))
        state.apply_event(Upsert(obj) if obj is not None else Delete(resource, key))
    assert not state.take_changes()
    assert state == _apply(ClusterState(), past)


@steady
@given(st.lists(changes(), max_size=20), st.lists(changes(), max_size=20))
def test_changes_name_exactly_the_services_that_differ(past: list[Event], news: list[Event]) -> None:
    state = _apply(ClusterState(), past)
    state.take_changes()
    _apply(state, news)
    old, new = _apply(ClusterState(), past), _apply(ClusterState(), [*past, *news])
    keys = set(old.services) | set(new.services)
    keys |= {s.service_key for each in (old, new) for s in each.slices.values() if s.service}
    differing = {k for k in keys if old.services.get(k) != new.services.get(k) or old.slices_of(k) != new.slices_of(k)}
    assert state.take_changes().services == differing
