"""/healthz, /livez, the health check servers of Services, and the events about them."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ipvsproxy.config import NodePortAddresses
from ipvsproxy.events import EventRecorder, Regarding
from ipvsproxy.health import TAINT_TO_BE_DELETED, ProxyHealth
from ipvsproxy.healthserver import ServiceHealthServers, healthz_body, healthz_routes, rfc3339
from ipvsproxy.surroundings import listening_addresses
from kubecore.api import ApiError, ConnectionFailed
from kubecore.model import ObjectKey

WEB = ObjectKey("default", "web")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def known_node(patience_s: float = 60.0) -> ProxyHealth:
    health = ProxyHealth(patience_s)
    health.serve((4, 6), now_s=1000.0)
    health.node_known = True
    return health


@pytest.mark.parametrize(
    ("queued_at_s", "now_s", "healthy"),
    [
        pytest.param(None, 9000.0, True, id="nothing queued: healthy for ever"),
        pytest.param(1000.0, 1059.9, True, id="queued less than twice the sync period ago"),
        pytest.param(1000.0, 1060.0, False, id="queued for twice the sync period"),
    ],
)
def test_a_family_is_healthy_until_its_oldest_update_waits_too_long(
    queued_at_s: float | None, now_s: float, healthy: bool
) -> None:
    health = known_node()
    if queued_at_s is not None:
        health.queued(queued_at_s)
        health.queued(now_s)  # a later change does not make the oldest one younger
    assert health.check(now_s).healthy is healthy


def test_a_finished_pass_makes_healthy_again() -> None:
    health = known_node()
    health.queued(1000.0)
    assert not health.check(2000.0).healthy
    health.updated(2000.0)
    assert health.check(2000.0).healthy


@pytest.mark.parametrize(
    ("known", "deleting", "taints", "eligible"),
    [
        (True, False, (), True),
        (True, False, ("node.kubernetes.io/not-ready",), True),
        (True, False, (TAINT_TO_BE_DELETED,), False),
        (True, True, (), False),
        (False, False, (), False),
    ],
)
def test_node_eligibility(known: bool, deleting: bool, taints: tuple[str, ...], eligible: bool) -> None:
    health = ProxyHealth(60.0, node_known=known, node_deleting=deleting, node_taints=taints)
    assert health.node_eligible is eligible


async def probe(health: ProxyHealth, path: str) -> tuple[int, dict[str, Any], list[tuple[str, int]]]:
    counted: list[tuple[str, int]] = []
    app = web.Application()
    app.add_routes(healthz_routes(health.check, lambda name, status: counted.append((name, status))))
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as reply:
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert reply.content_type == "application/json"
            return reply.status, await reply.json(), counted
    finally:
        await runner.cleanup()


async def test_healthz_needs_an_eligible_node_and_livez_does_not() -> None:
    health = known_node()
    health.node_taints = (TAINT_TO_BE_DELETED,)
    status, body, counted = await probe(health, "/healthz")
    assert (status, body["nodeEligible"], body["healthy"]) == (503, False, True)
    assert counted == [("healthz", 503)]
    assert set(body["status"]) == {"IPv4", "IPv6"}
    status, body, counted = await probe(health, "/livez")
    assert (status, body["healthy"]) == (200, True)
    assert "nodeEligible" not in body
    assert counted == [("livez", 200)]


@pytest.mark.parametrize(
    ("with_node", "eligible", "queued", "last_updated"),
    [
        (True, True, False, 1500.0),
        (True, False, False, 1000.0),
        (False, False, False, 1500.0),
        (True, True, True, 1000.0),
        (False, True, True, 1000.0),
    ],
)
def test_last_updated_is_now_while_the_answer_is_good(
    *, with_node: bool, eligible: bool, queued: bool, last_updated: float
) -> None:
    health = known_node()
    health.node_known = eligible
    if queued:
        health.queued(1000.0)
    body = json.loads(healthz_body(health.check(1500.0), 1500.0, with_node=with_node))
    assert body["lastUpdated"] == rfc3339(last_updated)
    assert body["status"]["IPv4"]["lastUpdated"] == rfc3339(1000.0)


async def test_what_is_degraded_is_named_and_does_not_fail_the_probe() -> None:
    health = known_node()
    health.degraded["default/web"] = "add virtual server 10.96.0.5:80/TCP: No buffer space"
    status, body, _ = await probe(health, "/healthz")
    assert status == 200
    assert body["degraded"] == {"default/web": "add virtual server 10.96.0.5:80/TCP: No buffer space"}


async def fetch(port: int) -> tuple[int, str, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.post(f"http://127.0.0.1:{port}/any/path") as reply:
        return reply.status, reply.headers["X-Load-Balancing-Endpoint-Weight"], await reply.json()


async def test_health_check_node_port_answers_as_kube_proxy_does() -> None:
    healthy = True
    failures: list[tuple[ObjectKey, str]] = []
    servers = ServiceHealthServers(lambda: healthy, lambda service, text: failures.append((service, text)))
    port = free_port()
    servers.set_count(WEB, 2)
    await servers.reconcile({WEB: port}, ["127.0.0.1"])
    try:
        body = {"service": {"namespace": "default", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": True}
        assert await fetch(port) == (200, "2", body)
        servers.set_count(WEB, 0)
        assert await fetch(port) == (503, "0", body | {"localEndpoints": 0})
        servers.set_count(WEB, 1)
        healthy = False
        assert await fetch(port) == (503, "1", body | {"localEndpoints": 1, "serviceProxyHealthy": False})
        moved = free_port()
        await servers.reconcile({WEB: moved}, ["127.0.0.1"])
        with pytest.raises(aiohttp.ClientConnectionError):
            await fetch(port)
        assert (await fetch(moved))[0] == 503
    finally:
        await servers.close()
    assert failures == []


async def test_health_check_body_is_kube_proxys_to_the_byte() -> None:
    servers = ServiceHealthServers(lambda: True, lambda *_: None)
    port = free_port()
    servers.set_count(WEB, 1)
    await servers.reconcile({WEB: port}, ["127.0.0.1"])
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as reply:
            text = await reply.text()
            headers = {name: reply.headers[name] for name in ("Content-Type", "X-Content-Type-Options")}
    finally:
        await servers.close()
    assert text.splitlines() == [
        "{",
        '\t"service": {',
        '\t\t"namespace": "default",',
        '\t\t"name": "web"',
        "\t},",
        '\t"localEndpoints": 1,',
        '\t"serviceProxyHealthy": true',
        "}",
    ]
    assert headers == {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (NodePortAddresses(), "0.0.0.0 ::"),
        (NodePortAddresses(primary=True), "10.0.0.5 fd00::5"),
        (NodePortAddresses(cidrs=("10.0.0.0/8", "fd00::/8")), "10.0.0.5 fd00::5"),
        (NodePortAddresses(cidrs=("10.0.0.0/8", "0.0.0.0/0")), "0.0.0.0 fd00::5"),
        (NodePortAddresses(cidrs=("::/0", "0.0.0.0/0")), "0.0.0.0 ::"),
    ],
)
def test_health_checks_listen_on_vips_where_nothing_restricts_them(setting: NodePortAddresses, expected: str) -> None:
    assert listening_addresses(setting, ("10.0.0.5", "fd00::5")) == tuple(expected.split())


async def test_a_client_that_never_ends_its_request_does_not_hold_up_the_end() -> None:
    servers = ServiceHealthServers(lambda: True, lambda *_: None)
    port = free_port()
    await servers.reconcile({WEB: port}, ["127.0.0.1"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nand then")
    assert (await reader.readline()).startswith(b"HTTP/1.1 503")
    async with asyncio.timeout(5):
        await servers.reconcile({}, [])
    writer.close()


async def test_a_port_in_use_is_reported_and_bound_once_it_is_free() -> None:
    failures: list[tuple[ObjectKey, str]] = []
    servers = ServiceHealthServers(lambda: True, lambda service, text: failures.append((service, text)))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        await servers.reconcile({WEB: port}, ["127.0.0.1"])
        assert [service for service, _ in failures] == [WEB]
        assert f"127.0.0.1 port {port}" in failures[0][1]
        assert servers.ports == {}
    await servers.reconcile({WEB: port}, ["127.0.0.1"])
    assert servers.ports == {WEB: port}
    await servers.close()


async def test_an_address_that_was_taken_is_bound_beside_the_others() -> None:
    failures: list[str] = []
    servers = ServiceHealthServers(lambda: True, lambda _service, text: failures.append(text))
    with socket.socket() as holder:
        holder.bind(("127.0.0.2", 0))
        holder.listen()
        port = holder.getsockname()[1]
        for _ in range(2):
            await servers.reconcile({WEB: port}, ["127.0.0.1", "127.0.0.2"])
        assert (servers.ports, servers.incomplete) == ({WEB: port}, True)
        assert len(failures) == 1, "told once"
    await servers.reconcile({WEB: port}, ["127.0.0.1", "127.0.0.2"])
    assert not servers.incomplete
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.2:{port}/") as reply:
        assert reply.status == 503
    await servers.close()


async def test_a_node_without_ipv6_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    start = web.TCPSite.start

    async def without_ipv6(site: web.TCPSite) -> None:
        if site._host == "::":
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        await start(site)

    monkeypatch.setattr(web.TCPSite, "start", without_ipv6)
    failures: list[str] = []
    servers = ServiceHealthServers(lambda: True, lambda _service, text: failures.append(text))
    port = free_port()
    await servers.reconcile({WEB: port}, ["0.0.0.0", "::"])
    assert (servers.ports, servers.incomplete, failures) == ({WEB: port}, False, [])
    await servers.close()


async def test_events_are_posted_once_and_repeats_become_a_series() -> None:
    now_s = 0.0
    sent: list[tuple[str, str, dict[str, Any]]] = []

    async def send(method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        sent.append((method, path, body))
        return {}

    recorder = EventRecorder(send, "node-a", lambda: now_s)
    task = asyncio.create_task(recorder.run())
    about = Regarding("Service", WEB, "uid-1")
    try:
        for moment in (0.0, 1.0, 2.0, 61.0):
            now_s = moment
            recorder.record(about, "Warning", "UnknownScheduler", "no scheduler named fast", "Plan")
            await asyncio.sleep(0.01)
    finally:
        task.cancel()
    (post, patch) = sent
    assert post[:2] == ("POST", "/apis/events.k8s.io/v1/namespaces/default/events")
    assert post[2]["regarding"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "name": "web",
        "namespace": "default",
        "uid": "uid-1",
    }
    assert (post[2]["type"], post[2]["reason"], post[2]["note"]) == (
        "Warning",
        "UnknownScheduler",
        "no scheduler named fast",
    )
    name = post[2]["metadata"]["name"]
    assert patch[:2] == ("PATCH", f"/apis/events.k8s.io/v1/namespaces/default/events/{name}")
    assert patch[2]["series"]["count"] == 4


async def test_a_refused_event_does_not_stop_later_ones() -> None:
    sent: list[str] = []

    async def send(_method: str, _path: str, body: dict[str, Any]) -> dict[str, Any]:
        if body["reason"] == "Bad":
            raise PermissionError("events is forbidden")
        sent.append(body["reason"])
        return {}

    recorder = EventRecorder(send, "node-a", lambda: 0.0)
    task = asyncio.create_task(recorder.run())
    recorder.record(Regarding("Node", ObjectKey("", "node-a")), "Normal", "Bad", "x", "Start")
    recorder.record(Regarding("Node", ObjectKey("", "node-a")), "Normal", "Starting", "x", "Start")
    await asyncio.sleep(0.05)
    task.cancel()
    assert sent == ["Starting"]


async def delivered(*refusals: Exception) -> tuple[list[str], list[float]]:
    """What is sent of one event to an API server that refuses so at first, and the seconds waited in between."""
    left = list(refusals)
    tried: list[str] = []
    waited: list[float] = []

    async def send(method: str, _path: str, body: dict[str, Any]) -> dict[str, Any]:
        tried.append(f"{method} {body['reason']}")
        if left:
            raise left.pop(0)
        return {}

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    recorder = EventRecorder(send, "node-a", lambda: 0.0, sleep)
    recorder.record(Regarding("Service", WEB), "Warning", "UnknownScheduler", "", "Plan")
    await recorder.flush(5.0)
    return tried, waited


async def test_an_event_waits_for_the_api_server_to_answer() -> None:
    nobody = ConnectionFailed("https://10.96.0.1:443: Connection refused")
    assert await delivered(nobody, nobody) == (["POST UnknownScheduler"] * 3, [0.5, 1.0])


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (ApiError(429, "TooManyRequests", "too many requests", 2.0), [2.0]),
        (ApiError(429, "TooManyRequests", "too many requests"), [0.5]),
        (ApiError(503, "ServiceUnavailable", "starting", 600.0), [10.0]),
        (ApiError(500, "InternalError", "no"), []),
        (ApiError(403, "Forbidden", "no"), []),
    ],
)
async def test_an_event_that_an_overloaded_api_server_puts_off(refusal: ApiError, expected: list[float]) -> None:
    """A burst of events is what it puts off first; what it refuses it refuses for good."""
    assert await delivered(refusal) == (["POST UnknownScheduler"] * (1 + len(expected)), expected)


async def test_a_farewell_does_not_last_for_ever() -> None:
    async def send(_method: str, _path: str, _body: dict[str, Any]) -> dict[str, Any]:
        raise ConnectionFailed("nobody there")

    recorder = EventRecorder(send, "node-a", lambda: 0.0)
    recorder.record(Regarding("Node", WEB), "Warning", "FailedToStartMetricServer", "", "StartKubeProxy")
    await asyncio.wait_for(recorder.flush(0.05), 5.0)
