"""A reconciler on a fake kernel, with a clock that tests turn; the unit and property tests of the loop stand on it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterable

from prometheus_client import CollectorRegistry

from ipvsproxy.config import Additions, Config
from ipvsproxy.dataplane import HostNetwork, Op
from ipvsproxy.diff import diff
from ipvsproxy.health import ProxyHealth
from ipvsproxy.healthserver import ServiceHealthServers
from ipvsproxy.kernel.fake import FakeDataPlane
from ipvsproxy.metrics import ProxyMetrics
from ipvsproxy.model import InterfaceAddress, Link, Problem
from ipvsproxy.reconciler import Reconciler
from ipvsproxy.site import ALL_SCHEDULERS
from ipvsproxy.surroundings import Surroundings
from kubecore.model import (
    RESOURCE_OF,
    Delete,
    KubeObject,
    Listed,
    ListStarted,
    ObjectKey,
    Resource,
    Upsert,
)
from kubecore.store import Store

NODE = "node-a"
HOST = HostNetwork(
    addresses=(InterfaceAddress("eth0", "192.0.2.10", 24), InterfaceAddress("lo", "127.0.0.1", 8)),
    links=(Link("eth0", ""), Link("lo", "")),
    gateways=frozenset({"192.0.2.1"}),
)
CONFIG = Config(additions=Additions(drain_grace_s=60.0, drain_poll_s=5.0, audit_interval_s=300.0))


class Clock:
    """Both kinds of time, pushed forward by tests on top of the real passing."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def time(self) -> float:
        return time.time() + self.ahead_s

    def process_time(self) -> float:
        return time.process_time()


class World:
    """A node: cluster objects in, fake kernel out. Survives restarts of the proxy: the kernel and the objects stay."""

    def __init__(self, config: Config = CONFIG, fake: FakeDataPlane | None = None, host: HostNetwork = HOST) -> None:
        self.config = config
        self.fake = fake or FakeDataPlane(host)
        self.clock = Clock()
        self.store = Store()
        self.problems: list[tuple[ObjectKey, Problem]] = []
        self.health = ProxyHealth(60.0)
        self.reconciler = self._reconciler()
        self._task: asyncio.Task[None] | None = None

    def _reconciler(self) -> Reconciler:
        self.health = ProxyHealth(60.0)
        self.registry = CollectorRegistry()
        self.health.serve((4, 6), self.clock.time())
        around = Surroundings(
            metrics=ProxyMetrics(self.registry, (4, 6)),
            health=self.health,
            report=lambda key, problem: self.problems.append((key, problem)),
            health_servers=ServiceHealthServers(lambda: True, lambda _key, _text: None),
        )
        return Reconciler(
            store=self.store,
            dataplane=self.fake,
            config=self.config,
            node_name=NODE,
            schedulers=ALL_SCHEDULERS,
            around=around,
            clock=self.clock,
            rng=random.Random(0),
        )

    # -- the cluster

    def put(self, *objects: KubeObject) -> None:
        for each in objects:
            self.store.apply(Upsert(each))

    def delete(self, *objects: KubeObject) -> None:
        for each in objects:
            self.store.apply(Delete(RESOURCE_OF[type(each)], each.key))

    def list_all(self, resources: Iterable[Resource] = Resource) -> None:
        """Everything there is has been told."""
        present: list[KubeObject] = [*self.store.state.services.values(), *self.store.state.slices.values()]
        for resource in resources:
            self.store.apply(ListStarted(resource))
            for each in present:
                if RESOURCE_OF[type(each)] is resource:
                    self.store.apply(Upsert(each))
            if resource is Resource.NODES:
                for node in list(self.store.state.nodes.values()):
                    self.store.apply(Upsert(node))
            self.store.apply(Listed(resource))

    # -- the proxy

    async def start(self, *objects: KubeObject) -> None:
        """Tell these objects, complete the lists, run, and wait until the kernel is in step."""
        self.put(*objects)
        self.list_all()
        self.launch()
        await self.settle()

    def launch(self) -> None:
        self._task = asyncio.create_task(self.reconciler.run())

    async def settle(self) -> None:
        """Until the kernel has everything told so far. Fails if the loop ended, or does not get there."""
        for _ in range(2000):
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while not self.reconciler.in_step.is_set():
                self.check_alive()
                await asyncio.sleep(0.002)
        self.check_alive()

    def check_alive(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()
            raise AssertionError("the loop ended")

    async def advance(self, seconds: float) -> None:
        """Let time pass, then let the loop do what is due."""
        self.clock.ahead_s += seconds
        self.reconciler._wake.set()
        await self.settle()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def renew(self) -> None:
        """Another process on the same kernel, which knows nothing of the cluster and does not run yet."""
        await self.stop()
        self.store = Store()
        self.reconciler = self._reconciler()

    async def restart(self) -> None:
        """Another process on the same kernel."""
        old = self.store.state
        await self.renew()
        await self.start(*old.services.values(), *old.slices.values(), *old.nodes.values())

    # -- looking

    def difference(self) -> list[Op]:
        """What a full diff would still do; empty when in step."""
        assert self.reconciler.picture is not None
        return diff(self.reconciler._planner.desired, self.reconciler.picture)

    def assert_picture_is_true(self) -> None:
        """What the reconciler believes is what the kernel holds."""
        picture = self.reconciler.picture
        assert picture is not None
        believed = {k: (v.config, {r: a.config for r, a in v.real_servers.items()}) for k, v in picture.servers.items()}
        actual = {
            k: (v.config, {r: a.config for r, a in v.real_servers.items()})
            for k, v in self.fake.virtual_servers.items()
        }
        assert believed == actual
        assert picture.vips == self.fake.vips
        assert set(picture.elements.values()) == self.fake.elements

    def assert_no_stranded_vip(self) -> None:
        """Every routed address has a virtual server: without one, packets to it end at the host's own daemons."""
        addresses = {key.address for key in self.fake.virtual_servers}
        assert {vip for vip in self.fake.vips if vip not in addresses} == set()


@contextlib.asynccontextmanager
async def world(*objects: KubeObject, config: Config = CONFIG, host: HostNetwork = HOST) -> AsyncIterator[World]:
    """A World, started with `objects` unless there are none, and stopped at the end."""
    it = World(config, host=host)
    try:
        if objects:
            await it.start(*objects)
        yield it
    finally:
        await it.stop()
