"""What every Source promises a Store, tried on both: the API server (the stub) and a directory of manifests.

A Ground is a cluster that can be changed, and the source that watches it. The same objects must give the same state.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kubecore.access import Access
from kubecore.api import ApiClient
from kubecore.credentials import Fixed
from kubecore.files import FileSource
from kubecore.model import ObjectKey, Resource
from kubecore.reflector import Reflector
from kubecore.snapshot import ClusterState
from kubecore.store import Source, Store
from kubecore.watchproto import Watched
from tests.lab.apiserver import ApiServer, manifests
from tests.lab.apiserver.controllers import SliceController
from tests.lab.apiserver.definitions import SERVICE_IMPORTS
from tests.watching import service

Object = dict[str, Any]
EVERYTHING = [Watched(r) for r in Resource]
SCENARIOS = Path(__file__).parents[1] / "scenarios"


class Ground(ABC):
    """A cluster as one kind of source sees it."""

    @abstractmethod
    def source(self, *watched: Watched) -> Source:
        """A source that follows these resources (default: all)."""

    @abstractmethod
    def put(self, obj: Object) -> None:
        """Create or replace an object."""

    @abstractmethod
    def delete(self, obj: Object) -> None:
        """Delete an object."""

    @abstractmethod
    def withdraw(self) -> None:
        """Make the cluster unreachable."""

    @abstractmethod
    async def restore(self) -> None:
        """Undo `withdraw`."""


class ApiGround(Ground):
    """The API server stub with the slice controller."""

    def __init__(self, server: ApiServer, client: ApiClient) -> None:
        self._server = server
        self._client = client
        self._controller = SliceController(server)

    def source(self, *watched: Watched) -> Source:
        return Reflector(self._client, watched or EVERYTHING, waits_s=(0.02, 0.2))

    def put(self, obj: Object) -> None:
        self._server.put(copy.deepcopy(obj))
        self._controller.settle()

    def delete(self, obj: Object) -> None:
        self._server.delete(obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        self._controller.settle()

    def withdraw(self) -> None:
        self._server.tokens = {"nobody": "x"}
        self._server.break_connections()

    async def restore(self) -> None:
        self._server.tokens = {}


class FileGround(Ground):
    """A directory with a file for each object."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def source(self, *watched: Watched) -> Source:
        return FileSource(self._directory, watched or EVERYTHING, poll_s=0.02)

    def put(self, obj: Object) -> None:
        self._file(obj).write_text(json.dumps(obj))

    def delete(self, obj: Object) -> None:
        self._file(obj).unlink()

    def withdraw(self) -> None:
        self._directory.rename(self._directory.with_name("elsewhere"))

    async def restore(self) -> None:
        self._directory.with_name("elsewhere").rename(self._directory)

    def _file(self, obj: Object) -> Path:
        metadata = obj["metadata"]
        return self._directory / f"{obj['kind']}-{metadata.get('namespace', '')}-{metadata['name']}.json"


@pytest.fixture(params=["api", "files"])
async def ground(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ground]:
    if request.param == "files":
        (tmp_path / "manifests").mkdir()
        yield FileGround(tmp_path / "manifests")
        return
    async with (
        ApiServer(bookmark_interval_s=0.05) as server,
        ApiClient(Access(server.url, Fixed(), "test"), user_agent="test/1") as client,
    ):
        server.create(SERVICE_IMPORTS)
        ticking = asyncio.create_task(_node_leases(server))
        yield ApiGround(server, client)
        ticking.cancel()


async def _node_leases(server: ApiServer) -> None:
    """In a cluster something always moves the version, and so there are bookmarks."""
    while True:
        server.storage.version += 1
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def followed(source: Source) -> AsyncIterator[Store]:
    """A store that the source feeds meanwhile; afterwards no task of it is left."""
    store = Store()
    task = asyncio.create_task(source.run(store))
    try:
        yield store
        assert not task.done(), "a source runs until it is cancelled"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert not [t for t in asyncio.all_tasks() if t.get_name().startswith("watch ")]


async def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is anything
            await asyncio.sleep(0.01)


def services(store: Store) -> dict[str, int]:
    """Name → first port."""
    return {str(k): s.ports[0].port for k, s in store.state.services.items()}


def _equals(look: Callable[[Store], object], store: Store, expected: object) -> bool:
    return look(store) == expected


def pod(name: str, ip: str, node: str = "n1", **labels: str) -> Object:
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


# -- lists


async def test_an_empty_cluster_is_listed_and_empty(ground: Ground) -> None:
    async with followed(ground.source()) as store:
        await asyncio.wait_for(store.wait_listed(*Resource), 5)
        assert store.state == ClusterState()
        assert store.take_changes().listed == frozenset(Resource)


async def test_services_of_other_clusters(ground: Ground) -> None:
    imported: Object = {
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport",
        "metadata": {"name": "web", "namespace": "default"}, "spec": {"type": "Headless", "ports": [{"port": 80}]},
    }  # fmt: skip
    labels = {"multicluster.kubernetes.io/service-name": "web", "multicluster.kubernetes.io/source-cluster": "east"}
    piece: Object = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "default", "labels": labels},
        "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 8080}],
    }  # fmt: skip
    web = ObjectKey("default", "web")
    async with followed(ground.source()) as store:
        ground.put(imported)
        ground.put(piece)
        await eventually(lambda: web in store.state.service_imports and bool(store.state.import_slices_of(web)))
        assert store.state.service_imports[web].headless
        assert [s.source_cluster for s in store.state.import_slices_of(web)] == ["east"]
        assert store.take_changes().service_imports == {web}
        ground.delete(piece)
        await eventually(lambda: not store.state.import_slices_of(web))
        assert store.take_changes().service_imports == {web}
        assert store.state.slices_of(web) == ()


async def test_only_what_is_asked_for_is_listed(ground: Ground) -> None:
    ground.put(service("a"))
    ground.put(pod("p", "10.1.0.1"))
    async with followed(ground.source(Watched(Resource.SERVICES))) as store:
        await asyncio.wait_for(store.wait_listed(Resource.SERVICES), 5)
        await asyncio.sleep(0.1)
        assert not store.state.is_listed(Resource.PODS)
        assert not store.state.pods


async def test_a_cluster_that_cannot_be_reached_is_not_empty(ground: Ground) -> None:
    ground.put(service("a"))
    ground.withdraw()
    async with followed(ground.source()) as store:
        await asyncio.sleep(0.2)
        assert not store.state.is_listed(Resource.SERVICES)
        assert math.isinf(store.staleness_s(Resource.SERVICES))
        assert store.figures[Resource.SERVICES].failures > 0
        await ground.restore()
        await eventually(lambda: services(store) == {"default/a": 80})


async def test_what_was_known_stays_while_the_cluster_is_away(ground: Ground) -> None:
    ground.put(service("a"))
    async with followed(ground.source()) as store:
        await asyncio.wait_for(store.wait_listed(Resource.SERVICES), 5)
        ground.withdraw()
        await asyncio.sleep(0.3)
        assert services(store) == {"default/a": 80}
        assert store.staleness_s(Resource.SERVICES) > 0.1
        await ground.restore()
        ground.put(service("b"))
        await eventually(lambda: services(store) == {"default/a": 80, "default/b": 80})


# -- changes


async def test_additions_changes_and_deletions_arrive(ground: Ground) -> None:
    ground.put(service("a"))
    async with followed(ground.source()) as store:
        await asyncio.wait_for(store.wait_listed(Resource.SERVICES), 5)
        store.take_changes()
        steps: list[tuple[Callable[[], None], dict[str, int]]] = [
            (lambda: ground.put(service("b")), {"default/a": 80, "default/b": 80}),
            (lambda: ground.put(service("b", 81)), {"default/a": 80, "default/b": 81}),
            (lambda: ground.delete(service("b")), {"default/a": 80}),
        ]
        for change, expected in steps:
            change()
            await eventually(partial(_equals, services, store, expected))
            assert store.take_changes().services == {ObjectKey("default", "b")}


async def test_a_quiet_cluster_is_fresh_and_costs_no_change(ground: Ground) -> None:
    ground.put(service("a"))
    async with followed(ground.source()) as store:
        await asyncio.wait_for(store.wait_listed(*Resource), 5)
        store.take_changes()
        await asyncio.sleep(0.5)
        assert not store.take_changes()
        assert store.staleness_s(Resource.SERVICES) < 0.4


async def test_slices_follow_pods(ground: Ground) -> None:
    web = service("web")
    web["spec"]["selector"] = {"app": "web"}
    ground.put(web)

    def addresses(store: Store) -> list[str]:
        pieces = store.state.slices_of(ObjectKey("default", "web"))
        return [e.addresses[0] for piece in pieces for e in piece.endpoints]

    async with followed(ground.source()) as store:
        steps: list[tuple[Callable[[], None], list[str]]] = [
            (lambda: ground.put(pod("p", "10.1.0.1", app="web")), ["10.1.0.1"]),
            (lambda: ground.put(pod("q", "10.1.0.2", app="web")), ["10.1.0.1", "10.1.0.2"]),
            (lambda: ground.put(pod("p", "10.1.0.1", app="other")), ["10.1.0.2"]),
            (lambda: ground.delete(pod("q", "10.1.0.2")), []),
        ]
        for change, expected in steps:
            change()
            await eventually(partial(_equals, addresses, store, expected))


# -- selectors


@pytest.mark.parametrize(
    ("watched", "expected"),
    [
        (Watched(Resource.SERVICES, label_selector="tier in (front,back)"), ["x/a", "x/b"]),
        (Watched(Resource.SERVICES, label_selector="!tier"), ["y/c"]),
        (Watched(Resource.SERVICES, label_selector="tier!=front"), ["x/b", "y/c"]),
        (Watched(Resource.SERVICES, field_selector="metadata.name=b"), ["x/b"]),
        (Watched(Resource.SERVICES, namespace="y"), ["y/c"]),
    ],
    ids=["in", "absent", "not", "field", "namespace"],
)
async def test_selectors_mean_the_same(ground: Ground, watched: Watched, expected: list[str]) -> None:
    for obj in (service("x/a", tier="front"), service("x/b", tier="back"), service("y/c")):
        ground.put(obj)
    async with followed(ground.source(watched)) as store:
        await asyncio.wait_for(store.wait_listed(Resource.SERVICES), 5)
        assert sorted(services(store)) == expected


async def test_what_leaves_a_selection_is_gone_and_may_come_back(ground: Ground) -> None:
    watched = Watched(Resource.SERVICES, label_selector="shown=yes")
    async with followed(ground.source(watched)) as store:
        for shown in ("yes", "no", "yes"):
            ground.put(service("a", shown=shown))
            await eventually(partial(_equals, services, store, {"default/a": 80} if shown == "yes" else {}))


# -- malformed objects


async def test_a_malformed_object_is_named_and_stops_nothing(ground: Ground) -> None:
    bad = service("bad")
    bad["spec"]["ports"][0]["port"] = 99999
    ground.put(bad)
    ground.put(service("good"))
    with capture_logs() as logs:
        async with followed(ground.source(Watched(Resource.SERVICES))) as store:
            await eventually(lambda: services(store) == {"default/good": 80})
            assert store.state.is_listed(Resource.SERVICES)
            assert store.figures[Resource.SERVICES].skipped == 1
            ground.put(service("bad", 81))
            await eventually(lambda: services(store) == {"default/good": 80, "default/bad": 81})
    assert any("bad" in str(e) and "port" in str(e) for e in logs if e["log_level"] in ("warning", "error"))


# -- the same objects, the same state


def identified(objects: Iterable[Object]) -> list[Object]:
    """With the uid and creation time that an API server would give, so that both sources see the same."""
    result = []
    for obj in objects:
        metadata = {**obj["metadata"]}
        name = f"{obj['kind']}/{metadata.get('namespace', '')}/{metadata['name']}"
        metadata.setdefault("uid", str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        result.append({**obj, "metadata": metadata})
    return result


@pytest.mark.parametrize("scenario", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
async def test_a_scenario_gives_an_equal_state_from_both_sources(scenario: Path, tmp_path: Path) -> None:
    objects = identified(manifests.read(scenario))
    assert objects
    files = FileGround(tmp_path)
    async with ApiServer() as server, ApiClient(Access(server.url, Fixed(), "test"), user_agent="test/1") as client:
        server.create(SERVICE_IMPORTS)
        api = ApiGround(server, client)
        for obj in objects:
            files.put(obj)
            api.put(obj)
        async with followed(files.source()) as by_file, followed(api.source()) as by_api:
            await asyncio.wait_for(by_file.wait_listed(*Resource), 5)
            await asyncio.wait_for(by_api.wait_listed(*Resource), 5)
            assert by_file.state.services
            assert by_file.state == by_api.state
