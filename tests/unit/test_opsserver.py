"""The operations server over real sockets: routes, several ports, busy ports, changes of configuration."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client import Counter
from structlog.testing import capture_logs

from kubecore import log
from kubecore.opsserver import Address, OpsServer, metrics_route, new_registry, tcp_sockets, text_route

LOOPBACK = Address("127.0.0.1", 0)


@pytest.fixture
async def ops() -> AsyncIterator[OpsServer]:
    server = OpsServer()
    yield server
    await server.stop()


async def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, f"http://{host}:{port}{path}") as reply:
        return reply.status, await reply.text()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/health", (200, "OK")),
        ("HEAD", "/health", (200, "")),
        ("GET", "/ready", (503, "kubernetes")),
        ("GET", "/nothing", (404, "404: not found\n")),
        ("POST", "/health", (405, "405: method not allowed\n")),
    ],
)
async def test_routes(ops: OpsServer, method: str, path: str, expected: tuple[int, str]) -> None:
    await ops.configure(
        [
            (LOOPBACK, [text_route("/health", lambda: (200, "OK"))]),
            (LOOPBACK, [text_route("/ready", lambda: (503, "kubernetes"))]),
        ]
    )
    assert await get(ops.port(LOOPBACK), path, method) == expected


async def test_metrics_are_brought_up_to_date_before_they_are_shown(ops: OpsServer) -> None:
    registry = new_registry()
    counter = Counter("queries", "Queries", registry=registry)

    async def fold() -> None:
        counter.inc(7)

    await ops.configure([(LOOPBACK, [metrics_route(registry, before=fold)])])
    status, text = await get(ops.port(LOOPBACK), "/metrics")
    assert status == 200
    assert "# TYPE queries_total counter\nqueries_total 7.0\n" in text


async def test_a_busy_port_is_said_with_its_remedy_and_taken_once_it_is_free(ops: OpsServer) -> None:
    other = socket.create_server(("127.0.0.1", 0))
    address = Address("127.0.0.1", other.getsockname()[1])
    with capture_logs() as events:
        await ops.configure([(address, [text_route("/health", lambda: (200, "OK"))])])
    assert [(e["event"], e["address"]) for e in events] == [(log.OPS_LISTENER_REFUSED, str(address))]
    assert "another process listens there" in events[0]["remedy"]
    assert address in ops.refused
    other.close()
    async with asyncio.timeout(10):
        while ops.refused:  # noqa: ASYNC110 - nothing signals a retry's success
            await asyncio.sleep(0.05)
    assert await get(address.port, "/health") == (200, "OK")


async def test_the_first_port_works_while_the_second_is_busy(ops: OpsServer) -> None:
    other = socket.create_server(("127.0.0.1", 0))
    busy = Address("127.0.0.1", other.getsockname()[1])
    route = text_route("/health", lambda: (200, "OK"))
    await ops.configure([(busy, [route]), (LOOPBACK, [route])])
    assert await get(ops.port(LOOPBACK), "/health") == (200, "OK")
    assert set(ops.refused) == {busy}
    other.close()


async def test_reconfiguring_keeps_sockets_that_stay_and_closes_those_that_go(ops: OpsServer) -> None:
    gone, stays = Address("127.0.0.1", 0), Address("127.0.0.2", 0)
    await ops.configure([(a, [text_route("/health", lambda: (200, "old"))]) for a in (gone, stays)])
    port, closed = ops.port(stays), ops.port(gone)
    await ops.configure([(stays, [text_route("/health", lambda: (200, "new"))])])
    assert ops.port(stays) == port
    assert await get(port, "/health", host="127.0.0.2") == (200, "new")
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(closed, "/health")


def test_every_address_has_one_port_in_both_families() -> None:
    sockets = tcp_sockets(Address("", 0))
    try:
        assert len({s.getsockname()[1] for s in sockets}) == 1
        assert len({s.family for s in sockets}) == len(sockets)
    finally:
        for sock in sockets:
            sock.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match=r"[Cc]annot assign"):
        tcp_sockets(Address("192.0.2.1", 0))
