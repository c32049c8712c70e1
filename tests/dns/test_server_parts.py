"""Parts of the server that need no sockets: figures, the link between processes, what is watched, where it listens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dnsserver import corefile, link, warmstart
from dnsserver.configuration import Corefile
from dnsserver.engine import layout, slices
from dnsserver.hotpath import DURATION_BOUNDS_S, HotPath
from dnsserver.kept import Fast, Lasting
from dnsserver.metrics import MergedFigures, Traffic, TrafficFigures, snapshot
from dnsserver.ops import STALE_S, Readiness, lameduck_s, stale
from dnsserver.server import ListenAddress
from dnsserver.source import watched
from kubecore.model import Delete, Event, KubeObject, Listed, ListStarted, ObjectKey, Resource, Upsert
from kubecore.snapshot import Changes, ClusterState
from kubecore.store import Store
from tests.dns import cluster

# -- figures


def traffic(**more: object) -> Traffic:
    base = Traffic("dns://:53", ".", "udp", 1, 1, 0, do=False, plugin="x", asked_bytes=40, replied_bytes=60, hot=None)
    return base._replace(**more)  # type: ignore[arg-type]


def lines(collector: object) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}


def test_traffic_is_shown_by_label() -> None:
    figures = TrafficFigures()
    figures.observe(traffic(), 0.0004)
    figures.observe(traffic(type=28, rcode=3, do=True), 0.1)
    figures.observe(traffic(type=999, proto="tcp", family=2, replied_bytes=5000), 9.0)
    shown = lines(figures)
    where = 'server="dns://:53",view="",zone="."'
    labels = 'family="1",proto="udp",server="dns://:53",type="A",view="",zone="."'
    assert shown[f"coredns_dns_requests_total{{{labels}}}"] == 1
    assert sum(v for k, v in shown.items() if k.startswith("coredns_dns_responses_total")) == 3
    assert sum(v for k, v in shown.items() if 'type="other"' in k) == 1
    assert sum(v for k, v in shown.items() if k.startswith("coredns_dns_do_requests_total")) == 1
    assert shown[f'coredns_dns_request_duration_seconds_bucket{{le="0.0005",{where}}}'] == 1
    assert shown[f"coredns_dns_request_duration_seconds_count{{{where}}}"] == 3
    assert shown[f"coredns_dns_request_duration_seconds_sum{{{where}}}"] == pytest.approx(9.1004)


def test_only_servers_with_the_plugin_are_shown() -> None:
    figures = TrafficFigures()
    figures.observe(traffic(), 0.1)
    figures.observe(traffic(server="dns://:54"), 0.1)
    figures.shown = frozenset({"dns://:54"})
    assert {k.partition('server="')[2].partition('"')[0] for k in lines(figures)} == {"dns://:54"}


def test_sizes_cannot_make_the_figures_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsserver.metrics._CELLS", 50)
    figures = TrafficFigures()
    for size in range(2000):
        figures.cell(traffic(asked_bytes=size, replied_bytes=2 * size)).hits += 1
    assert len(figures._cells) < 200
    shown = lines(figures)
    assert sum(v for k, v in shown.items() if k.startswith("coredns_dns_request_size_bytes_count")) == 2000


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=1, max_size=4),
            st.sampled_from(DURATION_BOUNDS_S),
        ),
        max_size=12,
    )
)
def test_durations_of_batches_are_shared_out_to_the_last_one(
    batches: list[tuple[list[tuple[str, int]], float]],
) -> None:
    """Whatever zones a batch was for: each zone has as many durations as replies, and buckets never shrink."""

    def nothing(lower: bytes, qtype: int, do: bool, cd: bool) -> Fast | None:
        return None

    figures, hot = TrafficFigures(), HotPath(nothing)
    figures.watch_hot("dns://:53", "udp", 1, hot)
    expected: dict[str, int] = {}
    before: dict[str, float] = {}
    for hits, took_s in batches:
        for zone, count in hits:
            figures.cell(traffic(zone=zone, hot=Lasting.UNTIL_CHANGED)).hits += count
            expected[zone] = expected.get(zone, 0) + count
        hot.note_batch(sum(count for _, count in hits), took_s)
        now = {k: v for k, v in lines(figures).items() if "duration" in k}
        assert all(now[k] >= v for k, v in before.items())
        before = now
        for zone, count in expected.items():
            labels = f'server="dns://:53",view="",zone="{zone}"'
            assert now[f"coredns_dns_request_duration_seconds_count{{{labels}}}"] == count


def process(queries: int, entries: int, stamp: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("queries", "Queries", ["zone"], registry=registry).labels("a").inc(queries)
    Gauge("coredns_cache_entries", "Entries", registry=registry).set(entries)
    Gauge("stamp", "Time stamp", registry=registry).set(stamp)
    Histogram("took", "Time", buckets=(1,), registry=registry).observe(queries)
    return registry


def test_several_processes_are_one() -> None:
    merged = MergedFigures()
    merged.update(0, snapshot(process(1, 10, 5)))
    merged.update(1, snapshot(process(2, 20, 7)))
    shown = lines(merged)
    assert shown['queries_total{zone="a"}'] == 3
    assert shown["coredns_cache_entries"] == 30
    assert shown["stamp"] == 7
    assert (shown['took_bucket{le="1.0"}'], shown["took_count"], shown["took_sum"]) == (1, 2, 3)


def test_what_a_dead_process_counted_stays_counted() -> None:
    merged = MergedFigures()
    merged.update(0, snapshot(process(1, 10, 5)))
    merged.bury(0)
    merged.update(0, snapshot(process(4, 1, 1)))
    merged.bury(0)
    merged.update(0, snapshot(process(8, 2, 2)))
    shown = lines(merged)
    assert (shown['queries_total{zone="a"}'], shown["coredns_cache_entries"], shown["stamp"]) == (13, 2, 2)


# -- between processes

OBJECTS: tuple[KubeObject, ...] = (
    cluster.service("default/web", "10.96.0.1 fd00::1", "http:80 dns:53/UDP"),
    cluster.piece("default/db", "10.1.0.1=db-0 10.1.0.2!", "pg:5432"),
    cluster.namespace("default", team="a"),
    cluster.pod("default/p", "10.0.0.1"),
)


def test_events_survive_the_link() -> None:
    puts = [Upsert(obj) for obj in OBJECTS]
    events: list[Event] = [ListStarted(Resource.SERVICES), *puts, Listed(Resource.SERVICES)]
    events.append(Delete(Resource.PODS, ObjectKey("default", "p")))
    raw = link.frame(link.pack_events(events, 12.5))
    assert int.from_bytes(raw[:4], "big") == len(raw) - 4
    message = link.to_worker.decode(raw[4:])
    assert isinstance(message, link.Events)
    assert message.now_s == 12.5
    assert list(link.unpack_events(message)) == events


def test_a_snapshot_file_holds_everything() -> None:
    objects = {resource: [o for o in OBJECTS if isinstance(o, kind)] for resource, kind in link.KINDS.items()}
    assert warmstart.unpack(warmstart.pack(objects)) == objects


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"x" + b, lambda _: b"", lambda _: b"\n"]
)
def test_a_spoilt_snapshot_file_is_refused(spoil: object) -> None:
    with pytest.raises(warmstart.SnapshotError):
        warmstart.unpack(spoil(warmstart.pack({Resource.SERVICES: []})))  # type: ignore[operator]


def test_slices_cover_every_change_in_an_order_all_workers_share() -> None:
    keys = frozenset(ObjectKey(f"ns{i % 3}", f"s{i}") for i in range(50))
    parts = list(slices(Changes(services=keys, pods=keys, namespaces=frozenset({ObjectKey("", "a")}))))
    assert frozenset().union(*(part.services for part in parts)) == keys
    assert frozenset().union(*(part.pods for part in parts)) == keys
    assert parts[0].namespaces == {ObjectKey("", "a")}
    flat = [sorted(part.services) for part in parts]
    assert [key for part in flat for key in part] == sorted(keys)


# -- configuration

BLOCK = "kubernetes cluster.local {{\n{}\n}}"


@pytest.mark.parametrize(
    ("directives", "expected"),
    [
        ([], []),
        ([""], ["services", "endpointslices", "namespaces"]),
        (["noendpoints"], ["services", "namespaces"]),
        (["pods verified"], ["services", "endpointslices", "namespaces", "pods|phase"]),
        (["namespaces shop"], ["services@shop", "endpointslices@shop", "namespaces|metadata.name=shop"]),
        (["namespaces shop front"], ["services", "endpointslices", "namespaces"]),
        (["labels app=web"], ["services?app=web", "endpointslices?app=web", "namespaces"]),
        (["labels app=web", ""], ["services", "endpointslices", "namespaces"]),
        (["noendpoints", "pods verified"], ["services", "endpointslices", "namespaces", "pods|phase"]),
    ],
)
def test_only_what_is_needed_is_watched(directives: list[str], expected: list[str]) -> None:
    blocks = [f".:{53 + n} {{\n{BLOCK.format(text)}\n}}\n" for n, text in enumerate(directives)]
    config = corefile.load("".join(blocks)) if blocks else None
    kubernetes = [b.kubernetes for b in config.blocks if b.kubernetes] if config else []
    found = []
    for w in watched(kubernetes):
        text = w.resource.value + (f"@{w.namespace}" if w.namespace else "")
        text += f"?{w.label_selector}" if w.label_selector else ""
        text += "|phase" if "phase" in w.field_selector else "|" + w.field_selector if w.field_selector else ""
        found.append(text)
    assert found == expected


@pytest.mark.parametrize(
    ("text", "listen", "expected"),
    [
        (".:53 { whoami }", [], ["0.0.0.0:53", "[::]:53"]),
        (".:53 { whoami\n bind 127.0.0.1 }", [], ["127.0.0.1:53"]),
        ("a.test:53 { whoami }\nb.test:54 { whoami }", [], ["0.0.0.0:53", "[::]:53", "0.0.0.0:54", "[::]:54"]),
        ("a.test:53 { whoami }\nb.test:54 { whoami }", [ListenAddress("::1", 9)], ["[::1]:9"]),
    ],
)
def test_where_it_listens(text: str, listen: list[ListenAddress], expected: list[str]) -> None:
    text = text.replace("{ ", "{\n").replace(" }", "\n}")
    assert [str(address) for address in layout(corefile.load(text), listen)] == expected


def test_a_rejected_corefile_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n    whoami\n}\n")
    source = Corefile(path)
    config = source.load()
    assert source.changed(config) is None
    path.write_text(".:53 {\n    whoam\n}\n")
    with pytest.raises(corefile.CorefileError):
        source.changed(config)
    assert source.changed(config) is None
    path.write_text(".:53 {\n    whoami # the same\n}\n")
    assert source.changed(config) is None
    path.write_text(".:53 {\n    whoami\n    errors\n}\n")
    assert source.changed(config) is not None


def test_readiness_is_kept_unless_asked_continuously() -> None:
    waiting = ["kubernetes"]
    ready = Readiness(lambda: waiting)
    assert ready() == (503, "kubernetes")
    waiting.clear()
    assert ready() == (200, "OK")
    waiting.append("kubernetes")
    assert ready() == (200, "OK")
    ready.continuously = True
    assert ready() == (503, "kubernetes")
    ready.stopping = True
    assert ready() == (503, "Shutting down")


def test_a_source_that_is_silent_for_long_is_not_ready() -> None:
    now_s = [1000.0]
    store = Store(clock=lambda: now_s[0])
    config = corefile.load(".:53 {\nkubernetes cluster.local\n}\nstub.test {\nwhoami\n}\n")
    needed = (Resource.SERVICES, Resource.ENDPOINT_SLICES, Resource.NAMESPACES)
    assert stale(config, store.staleness_s) == ("kubernetes",)
    for resource in needed:
        store.note_alive(resource)
    now_s[0] += STALE_S
    assert stale(config, store.staleness_s) == ()
    now_s[0] += 1
    assert stale(config, store.staleness_s) == ("kubernetes",)
    store.note_alive(Resource.SERVICES)
    assert stale(config, store.staleness_s) == ("kubernetes",)
    for resource in needed:
        store.note_alive(resource)
    assert stale(config, store.staleness_s) == ()
    assert stale(corefile.load(".:53 {\nwhoami\n}\n"), store.staleness_s) == ()


def test_the_longest_lameduck_counts() -> None:
    text = (
        ".:53 {\nhealth :1 {\nlameduck 2s\n}\n}\na.test:54 {\nhealth :2 {\nlameduck 7s\n}\n}\nb.test:55 {\nwhoami\n}\n"
    )
    assert lameduck_s(corefile.load(text)) == 7


def test_the_state_is_what_the_link_carries() -> None:
    state = ClusterState()
    message = link.pack_events([Upsert(obj) for obj in OBJECTS], 0)
    for event in link.unpack_events(message):
        state.apply_event(event)
    assert state == cluster.state_of(*OBJECTS, listed=False)
