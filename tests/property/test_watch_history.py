"""Whatever happens on the way, a watch ends up where a list would: nothing lost, nothing resurrected.

The session talks to the API server stub's storage without IO, so that a thousand histories take seconds.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kubecore.lines import LineSplitter
from kubecore.model import Resource
from kubecore.watchproto import Watched
from tests.lab.apiserver.cluster import Cluster
from tests.watching import Wire, bookmark, line, names, service, session, told

NAMES = st.sampled_from([f"{ns}/{name}" for ns in ("a", "b") for name in ("w", "x", "y", "z")])
PORTS = st.integers(1, 3)


PUT = st.tuples(st.just("put"), NAMES, PORTS, st.sampled_from(["yes", "no"]))
DELETE = st.tuples(st.just("delete"), NAMES)
STEP = st.tuples(st.just("step"), st.none())
CUT = st.tuples(st.just("step"), st.integers(0, 1500))
HANG_UP = st.tuples(st.just("hang up"), st.booleans())
LOSS = st.tuples(st.just("lose"), st.booleans(), NAMES, NAMES)
OTHERS = st.sampled_from([("compact",), ("bookmark",)])
OPS = st.one_of(PUT, PUT, PUT, DELETE, STEP, STEP, STEP, CUT, HANG_UP, LOSS, LOSS, OTHERS)
"""What can happen, in proportions that make lists, outages and expired versions meet."""


@given(
    history=st.lists(OPS, min_size=20, max_size=80),
    streaming=st.booleans(),
    supported=st.booleans(),
    selector=st.sampled_from(["", "shown=yes"]),
)
@settings(max_examples=400, deadline=None)
def test_a_watch_through_any_history_equals_a_relist(
    history: list[tuple[Any, ...]], *, streaming: bool, supported: bool, selector: str
) -> None:
    cluster = Cluster((), bootstrap=False)
    watched = Watched(Resource.SERVICES, label_selector=selector, page_limit=2)
    wire = Wire(cluster, session(watched, streaming=streaming), watch_list=supported)
    was_listed = False
    for op in history:
        match op:
            case ("put", name, port, shown):
                cluster.put(service(name, port, shown=shown))
            case ("delete", name):
                cluster.delete("Service", *name.split("/"))
            case ("step", cut):
                wire.step(cut)
            case ("hang up", orderly):
                wire.hang_up(orderly=orderly)
            case ("lose", hang_up, gone, new):
                if hang_up:
                    wire.hang_up(orderly=False)
                cluster.delete("Service", *gone.split("/"))
                cluster.put(service(new, shown="yes"))
                cluster.storage.compact()
            case ("compact",):
                cluster.storage.compact()
            case _:
                wire.bookmark()
        listed = wire.state.is_listed(Resource.SERVICES)
        assert listed or not was_listed, "what was listed once stays so"
        was_listed = listed
    wire.settle()
    fresh = Wire(cluster, session(watched, streaming=False))
    fresh.settle()
    assert wire.state == fresh.state


@given(st.lists(st.tuples(NAMES, PORTS, st.booleans()), max_size=12), st.data())
@settings(deadline=None)
def test_however_a_watch_stream_is_cut_into_chunks_it_tells_the_same(
    history: list[tuple[str, int, bool]], data: st.DataObject
) -> None:
    stream = b"".join(
        line("DELETED" if gone else "MODIFIED", service(name, port, version=10 + i))
        for i, (name, port, gone) in enumerate(history)
    ) + bookmark(50)

    results = []
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    byte_by_byte = [stream[i : i + 1] for i in range(len(stream))]
    drawn = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    for chunks in ([stream], byte_by_byte, drawn):
        s = session(streaming=False)
        s.request()
        list(s.data(b'{"metadata":{"resourceVersion":"1"},"items":[]}', 0.0))
        list(s.end(0.0))
        s.request()
        s.opened(0.0)
        results.append(([note for chunk in chunks for note in told(s.data(chunk, 0.0))], s.resource_version))
    assert results[0] == results[1] == results[2]
    assert results[0][1] == "50"


@given(st.binary(max_size=300).map(lambda b: b.replace(b"\r", b"")), st.data())
def test_lines_do_not_depend_on_chunks(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    splitter = LineSplitter()
    found = [x for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) for x in splitter.feed(stream[a:b])]
    assert found == [x for x in stream.split(b"\n")[:-1] if x]


@given(st.permutations([f"n/{i}" for i in range(6)]))
@settings(max_examples=30, deadline=None)
def test_the_order_of_unrelated_objects_does_not_matter(order: list[str]) -> None:
    states = []
    for sequence in (order, sorted(order)):
        cluster = Cluster((), bootstrap=False)
        wire = Wire(cluster, session())
        wire.settle()
        for name in sequence:
            cluster.put({**service(name), "metadata": {**service(name)["metadata"], "uid": name,
                         "creationTimestamp": "2026-01-01T00:00:00Z"}})  # fmt: skip
            wire.step()
        states.append(wire.state)
    assert states[0] == states[1]
    assert names(states[0]) == sorted(order)
