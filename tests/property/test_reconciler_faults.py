"""Whatever fails, and wherever the process dies: the kernel converges, no routed address is without virtual server."""

from __future__ import annotations

import asyncio
import errno
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsproxy.dataplane import Op
from ipvsproxy.kernel.fake import Crash, FakeDataPlane
from ipvsproxy.model import RealServerCounters
from kubecore.model import KubeObject, ServiceType, TrafficPolicy
from tests.builders import endpoint_slice, node, service
from tests.reconciling import HOST, NODE, World

NAMES = ("a", "b", "c")
ENDPOINTS = ("10.244.0.1@node-a", "10.244.0.2@node-b", "10.244.0.3@node-a", "10.244.0.4~@node-a", "10.244.0.5!@node-b")
ERRNOS = (errno.ENOBUFS, errno.EBUSY, errno.EIO, errno.ENOMEM)


@st.composite
def clusters(draw: st.DrawFn) -> list[KubeObject]:
    """A few Services of every kind on one node, with endpoints."""
    objects: list[KubeObject] = [node(NODE, "192.0.2.10")]
    for index, name in enumerate(NAMES):
        if not draw(st.booleans()):
            continue
        exposed = draw(st.booleans())
        objects.append(
            service(
                name,
                f"10.96.0.{index + 1}",
                draw(st.sampled_from([":80", "http:80,dns:53/UDP", ":80@30080" if index == 0 else ":81"])),
                type=ServiceType.NODE_PORT if exposed else ServiceType.CLUSTER_IP,
                external_ips=draw(st.sampled_from([(), ("203.0.113.7",), (f"203.0.113.{index + 10}",)])),
                external_policy=draw(st.sampled_from(TrafficPolicy)),
                internal_policy=draw(st.sampled_from(TrafficPolicy)),
                affinity_timeout_s=draw(st.sampled_from([0, 600])),
            )
        )
        chosen = draw(st.lists(st.sampled_from(ENDPOINTS), unique=True, max_size=4))
        ports = draw(st.sampled_from([":80", "http:8080,dns:53/UDP", ":81"]))
        objects.append(endpoint_slice(name, " ".join(chosen), ports))
    return objects


def become(world: World, wanted: list[KubeObject]) -> None:
    """Turn the cluster into `wanted`."""
    state = world.store.state
    keys = {(type(o), o.key) for o in wanted}
    present: list[KubeObject] = [*state.services.values(), *state.slices.values(), *state.nodes.values()]
    world.delete(*(o for o in present if (type(o), o.key) not in keys))
    world.put(*wanted)


class FlakyKernel(FakeDataPlane):
    """Fails any operation with a chance, and gives real servers connections now and then."""

    def __init__(self, seed: int, chance: float) -> None:
        super().__init__(HOST)
        self.rng = random.Random(seed)
        self.chance = chance
        self.fail = self._fail

    def _fail(self, _: Op) -> int:
        return self.rng.choice(ERRNOS) if self.rng.random() < self.chance else 0

    def busy(self) -> None:
        for server, there in self.virtual_servers.items():
            for key in there.real_servers:
                if self.rng.random() < 0.3:
                    self.set_counters(server, key, RealServerCounters(active=self.rng.randrange(3)))

    def idle(self) -> None:
        for server, there in self.virtual_servers.items():
            for key in list(there.real_servers):
                self.set_counters(server, key, RealServerCounters())


async def converge(world: World) -> None:
    """Let retries and draining finish."""
    for _ in range(4):
        await world.advance(400)
    assert world.difference() == []
    world.assert_picture_is_true()
    world.assert_no_stranded_vip()


@given(st.lists(clusters(), min_size=1, max_size=4), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_any_operation_may_fail_and_the_kernel_still_converges(history: list[list[KubeObject]], seed: int) -> None:
    async def run() -> None:
        kernel = FlakyKernel(seed, chance=0.3)
        world = World(fake=kernel)
        become(world, history[0])
        world.list_all()
        world.launch()
        try:
            for wanted in history:
                become(world, wanted)
                for _ in range(40):
                    await asyncio.sleep(0)
                    world.assert_no_stranded_vip()
                kernel.busy()
                world.clock.ahead_s += 31
                world.reconciler._wake.set()
                for _ in range(40):
                    await asyncio.sleep(0)
                    world.assert_no_stranded_vip()
                world.check_alive()
            kernel.chance = 0.0
            kernel.idle()
            world.clock.ahead_s += 60
            world.reconciler._wake.set()
            await asyncio.sleep(0.01)
            await converge(world)
        finally:
            await world.stop()

    asyncio.run(run())


@given(clusters(), clusters(), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_killed_after_any_number_of_operations_and_started_again(
    before: list[KubeObject], after: list[KubeObject], operations: int
) -> None:
    async def run() -> None:
        world = World()
        become(world, before)
        world.list_all()
        try:
            await world.start()
            become(world, after)
            world.fake.crash_after = operations
            for _ in range(60):
                await asyncio.sleep(0)
            world.fake.crash_after = None
            task, world._task = world._task, None
            assert task is not None
            if task.done() and isinstance(task.exception(), Crash):
                world.assert_no_stranded_vip()
            else:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await world.restart()
            await converge(world)
        finally:
            await world.stop()

    asyncio.run(run())


@given(clusters(), st.lists(clusters(), max_size=3), clusters())
@settings(max_examples=80, deadline=None)
def test_what_incomplete_lists_brought_leaves_no_trace(
    kernel: list[KubeObject], incomplete: list[list[KubeObject]], complete: list[KubeObject]
) -> None:
    """Whatever was planned before the lists were complete, the kernel then has what it would have without."""

    async def run() -> None:
        world, plain = World(), World()
        try:
            await world.start(*kernel)
            await world.renew()
            world.launch()
            done = len(world.fake.done)
            for wanted in incomplete:
                become(world, wanted)
                for _ in range(20):
                    await asyncio.sleep(0)
            assert world.fake.done[done:] == []
            become(world, complete)
            world.list_all()
            await converge(world)
            await plain.start(*complete)
            await converge(plain)
            assert _held(world) == _held(plain)
        finally:
            await world.stop()
            await plain.stop()

    asyncio.run(run())


def _held(world: World) -> tuple[object, ...]:
    """What the kernel holds, but for the numbers of marks: those that are found in it are used again."""
    servers = [(key._replace(fwmark=bool(key.fwmark)), server) for key, server in world.fake.virtual_servers.items()]
    elements = {(element.set, element.key) for element in world.fake.elements}
    return sorted(servers, key=repr), world.fake.vips, elements
