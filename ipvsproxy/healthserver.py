"""HTTP for load balancers and kubelets: /healthz and /livez of the proxy, and one server per healthCheckNodePort.

Shows what `health` computes; decides nothing itself. Bodies and headers are kube-proxy's, so that cloud load balancers
need no change.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from aiohttp import web

from ipvsproxy.health import Health
from kubecore import log
from kubecore.model import ObjectKey

HEADERS = {"X-Content-Type-Options": "nosniff"}

_EVERYWHERE = frozenset({"0.0.0.0", "::"})
_NO_SUCH_FAMILY = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""What binding to `::` gives where IPv6 is disabled."""

_IMPATIENT: dict[str, Any] = {"lingering_time": 0.0, "shutdown_timeout": 0.5}
"""A client that never ends its request must not hold up a server's end, which the reconciler waits for."""

_log = structlog.get_logger()


def rfc3339(seconds: float) -> str:
    """Unix seconds as RFC 3339 with microseconds, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def healthz_body(health: Health, now_s: float, *, with_node: bool) -> bytes:
    """JSON of /healthz (`with_node`) or /livez; `lastUpdated` is now in a good answer, the true time in a bad one."""
    good = health.healthy and (health.node_eligible or not with_node)
    updated_s = now_s if good else health.updated_s
    body: dict[str, object] = {"lastUpdated": rfc3339(updated_s), "currentTime": rfc3339(now_s)}
    if with_node:
        body["nodeEligible"] = health.node_eligible
    body["healthy"] = health.healthy
    body["status"] = {
        f"IPv{family}": {"lastUpdated": rfc3339(status.updated_s), "healthy": status.healthy}
        for family, status in sorted(health.families.items())
    }
    if health.degraded:
        body["degraded"] = dict(sorted(health.degraded.items()))
    return msgspec.json.encode(body)


Count = Callable[[str, int], None]
"""Counts one probe: (`healthz` or `livez`, HTTP status)."""


def healthz_routes(check: Callable[[float], Health], count: Count) -> list[web.RouteDef]:
    """Routes /healthz (healthy and eligible) and /livez (healthy), for any aiohttp application."""

    def reply(path: str, *, good: bool, body: bytes) -> web.Response:
        status = 200 if good else 503
        count(path, status)
        return web.Response(status=status, body=body, content_type="application/json", headers=HEADERS)

    async def healthz(_: web.Request) -> web.Response:
        now_s = time.time()
        health = check(now_s)
        good = health.healthy and health.node_eligible
        return reply("healthz", good=good, body=healthz_body(health, now_s, with_node=True))

    async def livez(_: web.Request) -> web.Response:
        now_s = time.time()
        health = check(now_s)
        return reply("livez", good=health.healthy, body=healthz_body(health, now_s, with_node=False))

    return [web.get("/healthz", healthz), web.get("/livez", livez)]


@dataclass(slots=True)
class _Listener:
    """A running health check server of one Service."""

    port: int
    addresses: frozenset[str]
    """Where it is to listen."""
    runner: web.AppRunner
    refused: dict[str, str]
    """Addresses that could not be bound, and why."""

    @property
    def bound(self) -> bool:
        """Whether it listens anywhere."""
        return len(self.refused) < len(self.addresses)


class ServiceHealthServers:
    """One HTTP server per Service with a healthCheckNodePort, on the node port addresses.

    Args:
        healthy: whether the proxy itself is healthy now.
        failed: told (Service, message) when a port cannot be bound; it is tried again at the next `reconcile`.
    """

    def __init__(self, healthy: Callable[[], bool], failed: Callable[[ObjectKey, str], None]) -> None:
        self._healthy = healthy
        self._failed = failed
        self._listeners: dict[ObjectKey, _Listener] = {}
        self._local_ready: dict[ObjectKey, int] = {}

    @property
    def ports(self) -> dict[ObjectKey, int]:
        """Services whose server runs, and where."""
        return {service: listener.port for service, listener in self._listeners.items() if listener.bound}

    @property
    def incomplete(self) -> bool:
        """Whether some address could not be bound: the next `reconcile` tries it again."""
        return any(listener.refused for listener in self._listeners.values())

    def set_count(self, service: ObjectKey, local_ready: int) -> None:
        """Number of distinct ready local endpoint addresses, as the next probe is to see it."""
        self._local_ready[service] = local_ready

    async def reconcile(self, wanted: dict[ObjectKey, int], addresses: Iterable[str]) -> None:
        """Run exactly the servers of `wanted` (Service → port) on `addresses` (`0.0.0.0`, `::` or node addresses).

        Idempotent; what cannot be bound is reported, once for each reason, and left for the next call. An address
        family that this node does not have is no failure while the other is served.
        """
        where = frozenset(addresses)
        for service, listener in list(self._listeners.items()):
            if wanted.get(service) != listener.port or listener.addresses != where:
                del self._listeners[service]
                await listener.runner.cleanup()
        for service in [s for s in self._local_ready if s not in wanted]:
            del self._local_ready[service]
        for service, port in wanted.items():
            if service not in self._listeners:
                app = web.Application()
                app.router.add_route("*", "/{any:.*}", self._handler(service))
                runner = web.AppRunner(app, access_log=None, handle_signals=False, **_IMPATIENT)
                await runner.setup()
                self._listeners[service] = _Listener(port, where, runner, dict.fromkeys(where, ""))
            if self._listeners[service].refused:
                await self._listen(service, self._listeners[service])

    async def close(self) -> None:
        """Stop all servers."""
        await self.reconcile({}, ())

    async def _listen(self, service: ObjectKey, listener: _Listener) -> None:
        """Bind what is not bound yet."""
        before, listener.refused = listener.refused, {}
        was_bound = len(before) < len(listener.addresses)
        for address in sorted(before):
            try:
                await web.TCPSite(listener.runner, address, listener.port, reuse_address=True).start()
            except OSError as error:
                if not (error.errno in _NO_SUCH_FAMILY and address in _EVERYWHERE and listener.addresses > {address}):
                    listener.refused[address] = error.strerror or str(error)
        news = [f"{a} port {listener.port}: {why}" for a, why in listener.refused.items() if before[a] != why]
        if news:
            self._failed(service, f"node port health check cannot listen on {'; '.join(news)}")
        if listener.bound and not was_bound:
            _log.info(log.HEALTH_CHECK_STARTED, service=str(service), port=listener.port)

    def _handler(self, service: ObjectKey) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(_: web.Request) -> web.Response:
            count = self._local_ready.get(service, 0)
            healthy = self._healthy()
            body = {
                "service": {"namespace": service.namespace, "name": service.name},
                "localEndpoints": count,
                "serviceProxyHealthy": healthy,
            }
            return web.Response(
                status=200 if count and healthy else 503,
                body=json.dumps(body, indent="\t").encode(),
                content_type="application/json",
                headers={**HEADERS, "X-Load-Balancing-Endpoint-Weight": str(count)},
            )

        return handle
