"""A watch of 1,000 Services under churn, through every fault: the state converges, nothing is lost or comes back.

While a fault lasts the cluster keeps changing. Back-off begins at 20 ms instead of 0.8 s where only convergence is
looked at; how often a real client asks is tested with the real figures at the end, and in test_reflector over hours of
fake time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from kubecore import watchproto
from kubecore.access import Access
from kubecore.api import ApiClient
from kubecore.credentials import Fixed
from kubecore.model import Delete, Event, ObjectKey, Resource, Upsert
from kubecore.reflector import Reflector
from kubecore.store import Store
from kubecore.watchproto import Watched
from tests.lab.apiserver import ApiServer, Fault
from tests.watching import service

SERVICES = 1000
SURVIVORS = 50
"""Services that are never touched: losing one even for a moment is a failure."""


class WatchedStore(Store):
    """A Store that notes whenever something is gone that should not be."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[ObjectKey] = []

    def apply(self, event: Event) -> None:
        super().apply(event)
        listed = self.state.is_listed(Resource.SERVICES)
        if isinstance(event, Delete) and event.key.name.startswith("keep-"):
            self.lost.append(event.key)
        if listed and not isinstance(event, Upsert | Delete):
            self.lost += [
                k for i in range(SURVIVORS) if (k := ObjectKey("default", f"keep-{i}")) not in self.state.services
            ]


class Churn:
    """Creates, changes and deletes Services for as long as it runs."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self._random = random.Random(7)
        for i in range(SURVIVORS):
            server.put(service(f"keep-{i}"))
        for i in range(SERVICES - SURVIVORS):
            server.put(service(f"svc-{i}"))

    def step(self, changes: int = 20) -> None:
        for _ in range(changes):
            name = f"svc-{self._random.randrange(SERVICES - SURVIVORS)}"
            if self._random.random() < 0.4:
                self.server.delete("Service", "default", name)
            else:
                self.server.put(service(name, self._random.randrange(1, 9999)))

    async def run(self) -> None:
        while True:
            self.step()
            await asyncio.sleep(0.01)


def truth(server: ApiServer) -> dict[str, int]:
    """Name → port, as the server has it."""
    return {o["metadata"]["name"]: o["spec"]["ports"][0]["port"] for o in server.objects("Service")}


def known(store: Store) -> dict[str, int]:
    """The same, as the store has it."""
    return {key.name: s.ports[0].port for key, s in store.state.services.items()}


@contextlib.asynccontextmanager
async def running(*tasks: Awaitable[None]) -> AsyncIterator[None]:
    """Run in the background, cancel at the end; an exception in one of them is raised."""
    started = [asyncio.ensure_future(t) for t in tasks]
    try:
        yield
        for task in started:
            if task.done():
                task.result()
    finally:
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)


async def converged(server: ApiServer, store: Store, timeout_s: float = 20.0) -> None:
    """Wait until the store shows what the server has."""
    async with asyncio.timeout(timeout_s):
        while known(store) != truth(server):
            await store.wait_changed()
            store.take_changes()


async def _restart(server: ApiServer) -> None:
    await server.restart(down_s=0.2)


async def _restart_without_history(server: ApiServer) -> None:
    await server.restart(lose_history=True, down_s=0.2)


async def _break(server: ApiServer) -> None:
    server.break_connections()


async def _relist(server: ApiServer) -> None:
    """Force a list by losing the history, so that a list fault has something to strike."""
    server.storage.version += 1
    server.storage.compact()
    server.break_connections()


def _order(*faults: Fault, then: Callable[[ApiServer], Awaitable[None]]) -> Callable[[ApiServer], Awaitable[None]]:
    async def harm(server: ApiServer) -> None:
        for fault in faults:
            server.faults.add(Fault(**{f: getattr(fault, f) for f in fault.__struct_fields__}))
        await then(server)

    return harm


HARMS: dict[str, Callable[[ApiServer], Awaitable[None]]] = {
    "connections break": _break,
    "restart": _restart,
    "restart with lost history": _restart_without_history,
    "cut in the middle of a line": _order(Fault("cut", verb="watch", after=7, times=4), then=_break),
    "end in good order at once": _order(Fault("eof", verb="watch", times=4), then=_break),
    "silence": _order(Fault("stall", verb="watch", after=3, times=2), then=_break),
    "429 with Retry-After": _order(Fault("status", code=429, retry_after_s=1, times=2), then=_break),
    "500": _order(Fault("status", code=500, times=4), then=_break),
    "503": _order(Fault("status", code=503, times=4), then=_break),
    "410 as an answer": _order(Fault("gone", verb="watch"), then=_break),
    "410 as an event": _order(Fault("error_event", verb="watch", code=410, after=5, times=2), then=_break),
    "500 as an event": _order(Fault("error_event", verb="watch", code=500, after=5, times=2), then=_break),
    "garbage in the stream": _order(Fault("garbage", verb="watch", after=5, times=4), then=_break),
    "a list cut short": _order(Fault("cut", verb="list", times=3), then=_relist),
    "a list with half a document": _order(Fault("eof", verb="list", times=3), then=_relist),
    "a list that is a login page": _order(Fault("garbage", verb="list", times=3), then=_relist),
    "a slow list": _order(Fault("slow", verb="list", seconds=0.5, times=3), then=_relist),
    "a list that stops": _order(Fault("stall", verb="list", times=1), then=_relist),
    "410 on continue": _order(Fault("expire_continue", times=3), then=_relist),
    "a streaming list cut short": _order(Fault("cut", verb="watch", after=300, times=3), then=_relist),
    "everything at once": _order(
        Fault("status", code=500), Fault("cut", after=100), Fault("expire_continue"), Fault("garbage"),
        Fault("eof"), Fault("gone"), Fault("status", code=429, retry_after_s=1), then=_restart_without_history,
    ),
}  # fmt: skip


UNINJECTED = {"connections break", "restart", "restart with lost history"}
ONLY_PAGES = {name for name in HARMS if name.startswith("a list") or name in ("a slow list", "410 on continue")}
CASES = [
    pytest.param(harm, streaming, id=f"{harm}, {'streaming list' if streaming else 'pages'}")
    for harm in HARMS
    for streaming in (True, False)
    if not (streaming and harm in ONLY_PAGES)
]


@pytest.mark.parametrize(("harm", "streaming"), CASES)
async def test_the_state_converges_to_the_truth(harm: str, monkeypatch: pytest.MonkeyPatch, *, streaming: bool) -> None:
    monkeypatch.setattr(watchproto, "WATCH_SILENCE_S", 0.5)
    monkeypatch.setattr(watchproto, "LIST_SILENCE_S", 0.5)
    async with ApiServer(bookmark_interval_s=0.1) as server:
        churn = Churn(server)
        store = WatchedStore()
        async with ApiClient(Access(server.url, Fixed(), "test"), user_agent="test/1") as api:
            watched = Watched(Resource.SERVICES, page_limit=200)
            reflector = Reflector(api, [watched], streaming=streaming, waits_s=(0.02, 0.5))
            async with running(reflector.run(store)):
                await store.wait_listed(Resource.SERVICES)
                async with running(churn.run()):
                    await asyncio.sleep(0.05)
                    before = server.faults.struck
                    await HARMS[harm](server)
                    await asyncio.sleep(0.6)
                await converged(server, store)
                assert server.faults.struck > before or harm in UNINJECTED, "the fault had its chance"
                # Nothing comes back afterwards, through a late relist or a replayed event.
                churn.step(30)
                await converged(server, store)
        assert store.lost == []


async def test_requests_while_the_server_is_down_and_until_it_is_back_with_the_real_back_off() -> None:
    async with ApiServer() as server:
        churn = Churn(server)
        store = WatchedStore()
        attempts: list[float] = []
        clock = asyncio.get_running_loop().time
        async with ApiClient(Access(server.url, Fixed(), "test"), user_agent="test/1") as api:
            reflector = Reflector(api, [Watched(Resource.SERVICES)])
            counting = reflector._transport.get

            def get(path: str, query: object) -> object:
                attempts.append(clock())
                return counting(path, query)  # type: ignore[arg-type]

            api.get = get  # type: ignore[method-assign, assignment]
            async with running(reflector.run(store)):
                await store.wait_listed(Resource.SERVICES)
                down_at = clock()
                await server.refuse()
                churn.step(300)
                await asyncio.sleep(3)
                assert len(known(store)) == SERVICES, "what was known is served on"
                await server.listen()
                await converged(server, store)
        down = [t for t in attempts if t >= down_at]
        assert 2 <= len(down) <= 8
        assert max(sum(t <= later < t + 1 for later in down) for t in down) < 5
        assert store.lost == []
