"""The running proxy put together: source, kernel, reconciler, probes, metrics, events; and how it starts and stops.

Knows: which part needs which. Must not know: how any of them works. Called by the `run` command. This is the one place
where reconciler and kernel meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from aiohttp import web
from prometheus_client import ProcessCollector

from ipvsproxy.config import Bind, Config
from ipvsproxy.configfields import EXTERNAL_IPS_GATE
from ipvsproxy.configwrite import documents
from ipvsproxy.dataplane import DataPlane, DataplaneError
from ipvsproxy.events import EventRecorder, Regarding
from ipvsproxy.health import ProxyHealth
from ipvsproxy.healthserver import ServiceHealthServers, healthz_routes
from ipvsproxy.metrics import (
    ApiMetrics,
    HealthCollector,
    ProxyMetrics,
    TableCollector,
    VirtualServerCollector,
    declare_build,
)
from ipvsproxy.model import Problem, Scheduler
from ipvsproxy.profiling import profiling_routes
from ipvsproxy.reconciler import Reconciler
from ipvsproxy.surroundings import Surroundings
from kubecore import __version__, log
from kubecore.api import ApiClient
from kubecore.metrics import StoreCollector
from kubecore.model import Family, ObjectKey
from kubecore.opsserver import Address, OpsServer, metrics_route, new_registry, text_route
from kubecore.store import Source, Store

_log = structlog.get_logger()


FAREWELL_S = 5.0
"""How long an event about why this process ends is tried to be delivered."""


class BindFailed(Exception):  # noqa: N818 - says what happened
    """A listening address is taken and `bindAddressHardFail` is set."""


class Daemon:
    """One running proxy.

    Args:
        config: settings.
        node_name: this node.
        source: where objects come from.
        client: the API server, for events; None with a file source.
        dataplane: the kernel.
        schedulers: those it has.
        families: address families of this node.
    """

    def __init__(
        self,
        *,
        config: Config,
        node_name: str,
        source: Source,
        client: ApiClient | None,
        dataplane: DataPlane,
        schedulers: frozenset[Scheduler],
        families: tuple[Family, ...],
    ) -> None:
        self._config = config
        self._node_name = node_name
        self._source = source
        self._client = client
        self._dataplane = dataplane
        self._registry = new_registry()
        ProcessCollector(registry=self._registry)
        self._metrics = ProxyMetrics(self._registry, families)
        gates = {EXTERNAL_IPS_GATE: config.additions.allow_external_ips != ()}
        declare_build(self._registry, __version__, f"linux/{platform.machine()}", gates)
        self._health = ProxyHealth(patience_s=2 * config.ipvs.sync_period_s)
        self._health.serve(families, time.time())
        self._events = EventRecorder(self._send if client is not None else None, node_name, time.monotonic)
        self.store = Store()
        around = Surroundings(
            metrics=self._metrics,
            health=self._health,
            report=self._report,
            health_servers=ServiceHealthServers(
                lambda: self._health.check(time.time()).healthy,
                self._health_check_failed,
            ),
        )
        self.reconciler = Reconciler(
            store=self.store,
            dataplane=dataplane,
            config=config,
            node_name=node_name,
            schedulers=schedulers,
            around=around,
            clock=time,
        )
        self._levels = new_registry()
        self._levels.register(HealthCollector(self._probes))
        limit = config.additions.metrics_max_virtual_servers
        self._registry.register(VirtualServerCollector(self.reconciler.owned, limit))
        self._registry.register(TableCollector(self.reconciler.table_sizes))
        self._registry.register(StoreCollector(self.store))
        if client is not None:
            client.observe = ApiMetrics(self._registry).observe
        self._ops = OpsServer()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Leaving changes nothing in the kernel.

        Raises:
            BindFailed: a port is taken and `bindAddressHardFail` is set.
            Exception: a part ended that must not; the process should end and be started again.
        """
        try:
            await self._open_ports()
        except BindFailed:
            await self._ops.stop()
            if self._client is not None:
                await self._client.close()
            raise
        self._record_start()
        parts: list[tuple[str, Coroutine[Any, Any, None]]] = [
            ("source", self._source.run(self.store)),
            ("reconciler", self.reconciler.run()),
        ]
        if self._client is not None:
            parts.append(("events", self._events.run()))
        tasks = [asyncio.create_task(part, name=name) for name, part in parts]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                await task  # raises what ended it
                raise RuntimeError(f"{task.get_name()} ended by itself")
        finally:
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
            await self._ops.stop()
            if self._client is not None:
                await self._client.close()

    # -- probes and metrics

    async def _open_ports(self) -> None:
        wanted: dict[Address, list[web.RouteDef]] = {}
        if self._config.healthz_bind is not None:
            wanted[_address(self._config.healthz_bind)] = healthz_routes(self._health.check, self._count_probe)
        if self._config.metrics_bind is not None:
            here = wanted.setdefault(_address(self._config.metrics_bind), [])
            taken = {route.path for route in here}  # the /healthz of the metrics is always well: no probe would do
            here += [route for route in self._metrics_routes() if route.path not in taken]
        await self._ops.configure(wanted.items())
        if self._config.bind_hard_fail and self._ops.refused:
            address, error = next(iter(self._ops.refused.items()))
            kind = "FailedToStartMetricServer"
            if self._config.healthz_bind is not None and address == _address(self._config.healthz_bind):
                kind = "FailedToStartProxierHealthcheck"
            self._events.record(self._node, "Warning", kind, f"{address}: {error.strerror}", "StartKubeProxy")
            await self._events.flush(FAREWELL_S)
            raise BindFailed(f"{address}: {error.strerror}; bindAddressHardFail is set")

    def _metrics_routes(self) -> list[web.RouteDef]:
        return [
            metrics_route(self._registry, before=self._read_counters),
            metrics_route(self._levels, path="/metrics/slis"),
            text_route("/healthz", lambda: (200, "ok")),
            text_route("/proxyMode", lambda: (200, "ipvs")),
            text_route("/configz", lambda: (200, _configz(self._config)), "application/json"),
            *(profiling_routes() if self._config.profiling else ()),
        ]

    def _probes(self) -> dict[str, bool]:
        health = self._health.check(time.time())
        families = {f"IPv{family}": status.healthy for family, status in health.families.items()}
        return {**families, "node": health.node_eligible}

    async def _read_counters(self) -> None:
        """Bring the counters of our virtual servers up to date for a scrape; a kernel that refuses leaves old ones."""
        with contextlib.suppress(DataplaneError):
            await self.reconciler.refresh_counters()

    def _count_probe(self, name: str, status: int) -> None:
        counter = self._metrics.healthz if name == "healthz" else self._metrics.livez
        counter.labels(str(status)).inc()

    # -- events

    @property
    def _node(self) -> Regarding:
        return Regarding("Node", ObjectKey("", self._node_name), self._node_name)

    def _record_start(self) -> None:
        self._events.record(self._node, "Normal", "Starting", "", "StartKubeProxy")
        _log.info(log.PROCESS_STARTED, version=__version__, node=self._node_name, pid=os.getpid())

    def _report(self, service: ObjectKey, problem: Problem) -> None:
        known = self.store.state.services.get(service)
        about = Regarding("Service", service, known.uid if known else "")
        self._events.record(about, "Warning", problem.reason, problem.message, "Plan")

    def _health_check_failed(self, service: ObjectKey, message: str) -> None:
        known = self.store.state.services.get(service)
        about = Regarding("Service", service, known.uid if known else "")
        self._events.record(about, "Warning", "FailedToStartServiceHealthcheck", message, "Listen")

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert self._client is not None  # noqa: S101 - only given to the recorder with a client
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        reply: dict[str, Any] = await self._client.request(method, path, body, content_type=kind)
        return reply


def stop_on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT end the process in order; a second one ends it at once."""

    def first() -> None:
        stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first)


def _address(bind: Bind) -> Address:
    # kube-proxy's 0.0.0.0 is served in both families, as its probes are.
    return Address("" if bind.host in {"0.0.0.0", "::"} else bind.host, bind.port)


def _configz(config: Config) -> str:
    """The settings in effect, by API group, as kube-proxy shows its own."""
    shown = {document["apiVersion"].partition("/")[0]: document for document in documents(config)}
    return json.dumps(shown, indent=2)
