"""The operations server of a daemon: /metrics, health and readiness over HTTP, on as many addresses as wanted.

Knows: sockets and routes, and that a busy port is no reason to give up. Must not know what the routes report: each
daemon brings its own. Everything happens in the caller's event loop; a scrape is cut into slices, so that it never
holds the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from kubecore import log
from kubecore.backoff import Backoff

_log = structlog.get_logger()

_UNAVAILABLE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_REMEDIES = {
    errno.EADDRINUSE: "another process listens there: stop it or choose another port",
    errno.EACCES: "ports below 1024 need the capability CAP_NET_BIND_SERVICE (or net.ipv4.ip_unprivileged_port_start)",
    errno.EADDRNOTAVAIL: "the address is not on this machine: correct it, or assign it first",
}


class Address(NamedTuple):
    """Where to listen. An empty host is every address of both families."""

    host: str
    port: int

    def __str__(self) -> str:
        """`host:port` as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def bind_remedy(error: OSError) -> str:
    """What the operator can do about a failed bind; empty where the error says it all."""
    return _REMEDIES.get(error.errno or 0, "")


def tcp_sockets(address: Address) -> list[socket.socket]:
    """Bound, not yet listening sockets for every address that `address` means and this machine has.

    Raises:
        OSError: as bind(2) or getaddrinfo(3), when not even one could be bound, or one is refused for a reason other
            than an address family that is not there.
    """
    infos = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    bound: list[socket.socket] = []
    missing: OSError | None = None
    port = address.port
    for family, _type, _proto, _name, where in sorted(set(infos), key=lambda info: info[0] == socket.AF_INET6):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            missing = error
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((where[0], port, *where[2:]))
        except OSError as error:
            sock.close()
            if error.errno in _UNAVAILABLE:
                missing = error
                continue
            for other in bound:
                other.close()
            raise
        port = port or sock.getsockname()[1]  # an ephemeral port is the same in both families
        bound.append(sock)
    if not bound:
        raise missing or OSError(errno.EADDRNOTAVAIL, f"no address for {address}")
    return bound


class _Listener:
    """One address: its routes, and its server once the bind has worked."""

    def __init__(self, address: Address, routes: Iterable[web.RouteDef]) -> None:
        self.address = address
        self.routes = {route.path: route for route in routes}
        self.error: OSError | None = None
        self.port = 0
        self._runner: web.ServerRunner | None = None
        self._retry: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind now, or keep trying behind the caller's back."""
        if not await self._try():
            self._retry = asyncio.create_task(self._keep_trying())

    async def stop(self) -> None:
        """Close the port and let open requests finish for a moment."""
        if self._retry is not None:
            self._retry.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._retry
        if self._runner is not None:
            await self._runner.cleanup()
            _log.info(log.OPS_LISTENER_CLOSED, address=str(self.address))

    async def _keep_trying(self) -> None:
        backoff = Backoff(random.uniform, cap_s=15.0)
        while True:
            await asyncio.sleep(backoff.next_s())
            if await self._try():
                return

    async def _try(self) -> bool:
        try:
            sockets = tcp_sockets(self.address)
        except OSError as error:
            if self.error is None or self.error.errno != error.errno:
                _log.warning(
                    log.OPS_LISTENER_REFUSED,
                    address=str(self.address),
                    error=error.strerror or str(error),
                    remedy=bind_remedy(error),
                )
            self.error = error
            return False
        runner = web.ServerRunner(web.Server(self._serve, access_log=None), handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        for sock in sockets:
            await web.SockSite(runner, sock).start()
        self.error, self._runner, self.port = None, runner, sockets[0].getsockname()[1]
        _log.info(log.OPS_LISTENER_OPENED, address=str(self.address), port=self.port, paths=sorted(self.routes))
        return True

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        route = self.routes.get(request.path)
        if route is None:
            return web.Response(status=404, text="404: not found\n")
        if request.method not in {route.method, "HEAD"}:
            return web.Response(
                status=405, text="405: method not allowed\n", headers={"Allow": f"{route.method}, HEAD"}
            )
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = route.handler  # type: ignore[assignment]
        return await handler(request)


class OpsServer:
    """Listeners by address. A port that cannot be bound is logged with its remedy and tried again until it can."""

    def __init__(self) -> None:
        self._listeners: dict[Address, _Listener] = {}

    async def configure(self, wanted: Iterable[tuple[Address, Iterable[web.RouteDef]]]) -> None:
        """Serve exactly these routes from now on; routes given for one address are merged.

        Addresses already served keep their sockets and open connections. Never raises on a failed bind.
        """
        merged: dict[Address, list[web.RouteDef]] = {}
        for address, routes in wanted:
            merged.setdefault(address, []).extend(routes)
        for address in [a for a in self._listeners if a not in merged]:
            await self._listeners.pop(address).stop()
        for address, routes in merged.items():
            if address in self._listeners:
                self._listeners[address].routes = {route.path: route for route in routes}
            else:
                self._listeners[address] = listener = _Listener(address, routes)
                await listener.start()

    async def stop(self) -> None:
        """Close everything."""
        await self.configure(())

    def port(self, address: Address) -> int:
        """The port really bound for `address`; 0 while there is none. Tells apart port 0's outcomes."""
        listener = self._listeners.get(address)
        return listener.port if listener else 0

    @property
    def refused(self) -> dict[Address, OSError]:
        """Addresses that could not be bound so far, and why."""
        return {a: listener.error for a, listener in self._listeners.items() if listener.error is not None}


class FamilySource(Protocol):
    """What has metrics: a CollectorRegistry is one."""

    def collect(self) -> Iterable[Metric]:
        """The metric families with their samples."""
        ...


class _OneFamily:
    def __init__(self, family: Metric) -> None:
        self.family = family

    def collect(self) -> Iterable[Metric]:
        return (self.family,)


async def render_metrics(source: FamilySource) -> bytes:
    """The text exposition of every family, with other tasks running in between: one family is the longest stretch."""
    parts = []
    for family in source.collect():
        parts.append(generate_latest(_OneFamily(family)))
        await asyncio.sleep(0)
    return b"".join(parts)


def metrics_route(
    source: FamilySource, *, before: Callable[[], Awaitable[None]] | None = None, path: str = "/metrics"
) -> web.RouteDef:
    """GET `path` in Prometheus' text format; `before` brings figures up to date first."""

    async def metrics(_: web.BaseRequest) -> web.Response:
        if before is not None:
            await before()
        body = await render_metrics(source)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return web.RouteDef("GET", path, metrics, {})


Check = Callable[[], tuple[int, str]]
"""The HTTP status and the text to show now."""


def text_route(path: str, check: Check, content_type: str = "text/plain") -> web.RouteDef:
    """GET `path`, answered by what `check` returns."""

    async def handler(_: web.BaseRequest) -> web.Response:
        status, text = check()
        return web.Response(status=status, text=text, content_type=content_type)

    return web.RouteDef("GET", path, handler, {})


def new_registry() -> CollectorRegistry:
    """A registry of one's own: the library's global one would mix several daemons in one test process."""
    return CollectorRegistry(auto_describe=False)
