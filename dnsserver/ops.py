"""What the DNS server reports over HTTP: /health, /ready and /metrics, on the addresses the Corefile names.

Knows the endpoints' words and which plugin asks for which. Must not know how the state it shows comes about.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import Counter, Histogram

from dnsserver.corefile_model import Address as Configured
from dnsserver.corefile_model import Config
from dnsserver.source import watched
from kubecore.model import Resource
from kubecore.opsserver import Address, FamilySource, OpsServer, metrics_route, text_route

_PROBE_PERIOD_S = 1.0
_PROBE_TIMEOUT_S = 5.0
STALE_S = 300.0
"""Silence of the cluster's source that `ready { monitor continuously }` does not put up with. A watch that works is
heard from at least every 150 s (`kubecore.watchproto.WATCH_SILENCE_S`)."""


@dataclass(slots=True)
class Readiness:
    """What /ready says. A plugin that was ready once is not asked again, unless `continuously`."""

    not_ready: Callable[[], Iterable[str]]
    continuously: bool = False
    stopping: bool = False
    _was_ready: bool = False

    def __call__(self) -> tuple[int, str]:
        """Status and text."""
        if self.stopping:
            return 503, "Shutting down"
        if self._was_ready and not self.continuously:
            return 200, "OK"
        waiting = sorted(set(self.not_ready()))
        if waiting:
            return 503, ",".join(waiting)
        self._was_ready = True
        return 200, "OK"


@dataclass(slots=True)
class Report:
    """Where the answers come from."""

    healthy: Callable[[], tuple[int, str]]
    ready: Readiness
    metrics: FamilySource
    refresh: Callable[[], Awaitable[None]]
    """Brings figures up to date before a scrape."""


def stale(config: Config, staleness_s: Callable[[Resource], float]) -> tuple[str, ...]:
    """The plugins whose data may be long out of date, for nothing was heard from their source.

    Args:
        config: the configuration in effect.
        staleness_s: seconds since the last proof of life of a resource.
    """
    needed = watched(b.kubernetes for b in config.blocks if b.kubernetes is not None)
    return ("kubernetes",) if any(staleness_s(w.resource) > STALE_S for w in needed if not w.optional) else ()


async def configure(server: OpsServer, config: Config, report: Report) -> None:
    """Serve what the blocks of `config` ask for; several may share an address."""
    wanted: list[tuple[Address, list[web.RouteDef]]] = []
    report.ready.continuously = any(b.ready.continuously for b in config.blocks if b.ready)
    for block in config.blocks:
        if block.health is not None:
            wanted.append((_address(block.health.address), [text_route("/health", report.healthy)]))
        if block.ready is not None:
            wanted.append((_address(block.ready.address), [text_route("/ready", report.ready)]))
        if block.prometheus is not None:
            route = metrics_route(report.metrics, before=report.refresh)
            wanted.append((_address(block.prometheus.address), [route]))
    await server.configure(wanted)


def lameduck_s(config: Config) -> float:
    """How long to answer on after being told to stop: the longest of the blocks' `lameduck`."""
    return max((b.health.lameduck_s for b in config.blocks if b.health), default=0.0)


def _address(configured: Configured) -> Address:
    return Address(configured.host, configured.port)


async def probe_health(server: OpsServer, config: Callable[[], Config], took: Histogram, failed: Counter) -> None:
    """Ask the own health endpoint every second, until cancelled: how long it takes tells of an overloaded process."""
    while True:
        await asyncio.sleep(_PROBE_PERIOD_S)
        address = next((_address(b.health.address) for b in config().blocks if b.health), None)
        if address is None or not server.port(address):
            continue
        host = "127.0.0.1" if address.host in {"", "0.0.0.0", "::"} else address.host
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                good = await _is_ok(host, server.port(address))
        except (OSError, TimeoutError):
            good = False
        took.observe(time.monotonic() - began_s)
        if not good:
            failed.inc()


async def _is_ok(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
