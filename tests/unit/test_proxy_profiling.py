"""/debug/pprof: a profile that has in it what ran, one at a time."""

from __future__ import annotations

import asyncio
import marshal

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from ipvsproxy.profiling import profiling_routes


def _busy_while_it_is_measured() -> int:
    return sum(range(20_000))


_KEPT: list[bytes] = []


async def ask(routes: dict[str, web.RouteDef], path_and_query: str) -> web.Response:
    path = path_and_query.partition("?")[0]
    answer = await routes[path].handler(make_mocked_request("GET", path_and_query))
    assert isinstance(answer, web.Response)
    return answer


@pytest.fixture
def routes() -> dict[str, web.RouteDef]:
    return {route.path: route for route in profiling_routes()}


async def measure(routes: dict[str, web.RouteDef], path: str) -> web.Response:
    """The answer to `path` while another task works."""
    measuring = asyncio.create_task(ask(routes, path), name="the measurement")
    while not measuring.done():
        _busy_while_it_is_measured()
        _KEPT.append(bytes(1000))
        await asyncio.sleep(0.005)
    return await measuring


async def test_a_profile_has_what_ran(routes: dict[str, web.RouteDef]) -> None:
    reply = await measure(routes, "/debug/pprof/profile?seconds=0.2")
    assert reply.status == 200
    assert isinstance(reply.body, bytes)
    functions = {name for _, _, name in marshal.loads(reply.body)}
    assert "_busy_while_it_is_measured" in functions


async def test_a_profile_as_a_table(routes: dict[str, web.RouteDef]) -> None:
    reply = await measure(routes, "/debug/pprof/profile?seconds=0.2&debug=1")
    assert "_busy_while_it_is_measured" in (reply.text or "")
    assert "tottime" in (reply.text or "")


async def test_memory_that_was_taken_and_is_held(routes: dict[str, web.RouteDef]) -> None:
    reply = await measure(routes, "/debug/pprof/heap?seconds=0.2")
    assert "test_proxy_profiling.py" in (reply.text or "")


async def test_what_every_task_does(routes: dict[str, web.RouteDef]) -> None:
    waiting = asyncio.create_task(asyncio.sleep(10), name="the one that waits")
    await asyncio.sleep(0)
    reply = await ask(routes, "/debug/pprof/goroutine")
    waiting.cancel()
    assert "the one that waits" in (reply.text or "")
    assert "MainThread" in (reply.text or "")


@pytest.mark.parametrize("seconds", ["0", "-1", "301", "nan", "soon"])
async def test_what_cannot_be_asked(routes: dict[str, web.RouteDef], seconds: str) -> None:
    assert (await ask(routes, f"/debug/pprof/profile?seconds={seconds}")).status == 400


async def test_one_measurement_at_a_time(routes: dict[str, web.RouteDef]) -> None:
    first = asyncio.create_task(ask(routes, "/debug/pprof/profile?seconds=0.2"))
    await asyncio.sleep(0.05)
    assert (await ask(routes, "/debug/pprof/heap?seconds=0.1")).status == 409
    assert (await first).status == 200
    assert (await ask(routes, "/debug/pprof/heap?seconds=0.01")).status == 200


async def test_the_index_names_the_rest(routes: dict[str, web.RouteDef]) -> None:
    text = (await ask(routes, "/debug/pprof/")).text or ""
    for path in set(routes) - {"/debug/pprof", "/debug/pprof/"}:
        assert path in text
