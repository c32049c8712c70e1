"""Files that come, change and go in any order: the events add up to what the final files say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kubecore.folder import Folder
from kubecore.manifestfile import Entry, FileContent, Ident
from kubecore.model import Endpoints, EndpointsSubset, KubeObject, Resource
from kubecore.selectors import Selection, parse_selection
from kubecore.snapshot import ClusterState
from tests.strategies import endpoint_slices, endpoints, ipv4, names, namespaces, nodes, pods, services, steady

_legacy = st.builds(
    Endpoints,
    namespace=namespaces,
    name=names,
    subsets=st.tuples(st.builds(EndpointsSubset, endpoints=st.lists(endpoints(ipv4), max_size=2).map(tuple))),
)
_objects: st.SearchStrategy[KubeObject | Endpoints] = st.one_of(
    services(), services(), pods, pods, endpoint_slices(), nodes, _legacy
)


def _content(objects: list[KubeObject | Endpoints], chosen: list[bool]) -> FileContent:
    entries: dict[Ident, Entry] = {}
    for line, (obj, selected) in enumerate(zip(objects, chosen, strict=True), 1):
        entries[type(obj), obj.key] = Entry(obj, line, selected or isinstance(obj, Endpoints))
    return FileContent(entries)


@st.composite
def _contents(draw: st.DrawFn) -> FileContent:
    objects = draw(st.lists(_objects, max_size=6))
    return _content(objects, draw(st.lists(st.booleans(), min_size=len(objects), max_size=len(objects))))


_updates = st.dictionaries(st.sampled_from(["a.yaml", "b.yaml", "c.yaml"]), st.none() | _contents(), max_size=3)
_wanted = st.sampled_from(
    [
        {r: Selection() for r in Resource},
        {
            Resource.SERVICES: Selection(),
            Resource.ENDPOINT_SLICES: parse_selection(labels="!service.kubernetes.io/headless"),
        },
        {Resource.ENDPOINT_SLICES: parse_selection("default")},
    ],
)


@steady
@given(_wanted, st.lists(_updates, max_size=6))
def test_step_by_step_equals_at_once(
    wanted: dict[Resource, Selection], history: list[dict[str, FileContent | None]]
) -> None:
    folder, state = Folder(wanted), ClusterState()
    final: dict[str, FileContent] = {}
    for update in history:
        events, _ = folder.update(update)
        for event in events:
            state.apply_event(event)
        for file, content in update.items():
            final.pop(file, None)
            if content is not None:
                final[file] = content
    fresh = ClusterState()
    for event in Folder(wanted).update(final)[0]:
        fresh.apply_event(event)
    assert state == fresh


@steady
@given(_updates, _updates)
def test_the_same_contents_again_change_nothing(
    first: dict[str, FileContent | None], second: dict[str, FileContent | None]
) -> None:
    folder = Folder({r: Selection() for r in Resource})
    folder.update(first)
    folder.update(second)
    assert folder.update(second)[0] == []
