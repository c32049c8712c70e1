"""The running DNS server put together, and how it starts, reloads and stops.

Knows: which part needs which, and in what order things end. Must not know how any of them works. The `run` command
calls `run`, which serves in this process; `supervisor` does the same with processes of their own.

Start: sockets, operations endpoints, then the source; foreign names are answered at once, cluster names wait for the
first lists up to `startup_timeout` and are then SERVFAIL until those arrive. End: SIGTERM makes /ready fail, answers go
on for the lameduck time, then what is in flight is finished. A second signal skips the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from dnsserver import ops
from dnsserver.configuration import Corefile, bind_all, next_look
from dnsserver.corefile import CorefileError
from dnsserver.corefile_model import Config
from dnsserver.counters import Counters
from dnsserver.engine import Engine, layout, relax_memory, settle_memory
from dnsserver.metrics import ServerMetrics
from dnsserver.plugins.base import Environment
from dnsserver.server import ListenAddress
from dnsserver.source import OpenSource, open_source, watched
from dnsserver.warmstart import Snapshots
from kubecore import __version__, log
from kubecore.metrics import StoreCollector
from kubecore.model import Resource
from kubecore.opsserver import OpsServer, new_registry
from kubecore.store import Store

_log = structlog.get_logger()

DRAIN_S = 5.0
"""For queries in flight, once no new ones are taken."""
SWITCH_INTERVAL_S = 0.0005
"""Reading manifests and writing snapshots happens in threads; they must not hold the interpreter for long."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `run`."""

    corefile: Path | None = None
    source: str = "cluster"
    listen: tuple[ListenAddress, ...] = ()
    workers: int = 1
    snapshot: Path | None = None
    log_level: str = "info"
    log_format: str = "auto"


@dataclass(slots=True)
class Signals:
    """What the operator asked for."""

    stop: asyncio.Event
    hurry: asyncio.Event
    reload: asyncio.Event

    @classmethod
    def install(cls) -> Signals:
        """Begin to listen to SIGTERM, SIGINT (twice: hurry), SIGUSR1 and SIGHUP (reload)."""
        found = cls(asyncio.Event(), asyncio.Event(), asyncio.Event())
        loop = asyncio.get_running_loop()

        def on_stop() -> None:
            (found.hurry if found.stop.is_set() else found.stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop)
        for number in (signal.SIGUSR1, signal.SIGHUP):
            loop.add_signal_handler(number, found.reload.set)
        return found


@dataclass(slots=True)
class Cluster:
    """The store and whatever feeds it."""

    store: Store
    where: str
    metrics: ServerMetrics
    _open: OpenSource | None = None
    _task: asyncio.Task[None] | None = None

    async def follow(self, config: Config, timeout_s: float) -> None:
        """Feed the store with what `config` needs. The source before goes on until the new one has listed.

        Raises:
            SourceError: as `open_source`.
            AccessError: as `open_source`.
        """
        configs = [b.kubernetes for b in config.blocks if b.kubernetes is not None]
        opened = open_source(self.where, configs, self.metrics.observe_exchange)
        old, old_task = self._open, self._task
        self._open, self._task = opened, None
        if opened is not None:
            self._task = asyncio.create_task(opened.source.run(self.store), name="source")
            if old_task is not None:
                needed = [w.resource for w in watched(configs) if not w.optional]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self.store.wait_listed(*needed)
        await _end(old, old_task)

    async def watch(self) -> None:
        """Wait for the source to fail, which it must not; raises what ended it."""
        while True:
            task = self._task
            if task is None:
                await asyncio.sleep(1.0)
                continue
            await asyncio.wait([task])
            if task is self._task:
                await task
                raise RuntimeError("the source ended by itself")

    async def close(self) -> None:
        """Stop following."""
        await _end(self._open, self._task)
        self._open = self._task = None


async def _end(opened: OpenSource | None, task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if opened is not None and opened.client is not None:
        await opened.client.close()


def needs_new_source(old: Config, new: Config) -> bool:
    """Whether `new` has to be fed differently."""

    def needs(config: Config) -> object:
        configs = [b.kubernetes for b in config.blocks if b.kubernetes is not None]
        return watched(configs), {c.api for c in configs}

    return needs(old) != needs(new)


def startup_timeout_s(config: Config) -> float:
    """How long cluster names wait for the first lists."""
    return max((b.kubernetes.startup_timeout_s for b in config.blocks if b.kubernetes is not None), default=0.0)


def new_environment(registry: CollectorRegistry, metrics: ServerMetrics) -> Environment:
    """What plugins get in this process."""

    def panicked(error: Exception, query: object, trace: bool) -> None:  # noqa: FBT001 - as Environment has it
        metrics.panics.inc()
        _log.error(log.DNS_QUERY_FAILED, error=repr(error), query=str(query), **({"exc_info": error} if trace else {}))

    return Environment(counters=Counters(registry), panicked=panicked)


def set_log_level(config: Config, otherwise: str) -> None:
    """Log from now on as `debug` in a server block says, or the command line."""
    log.set_level("debug" if any(block.debug for block in config.blocks) else otherwise)


def load(options: Options) -> tuple[Corefile, Config]:
    """The configuration to begin with; also sets what holds for the whole process.

    Raises:
        CorefileError: with every problem.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    relax_memory()
    corefile = Corefile(options.corefile)
    return corefile, corefile.load()


async def run(options: Options) -> int:
    """Serve in this process until told to stop; the exit code.

    Raises:
        CorefileError: with every problem.
        BindError: an address is taken or not allowed.
        AccessError: there is no way to the API server.
        SourceError: the configuration names several clusters.
    """
    corefile, config = load(options)
    return await _Single(options, corefile, config).run()


class MainProcess(ABC):
    """What one process alone and the supervisor of several share: a cluster to follow, endpoints, and their life cycle.

    Args:
        options: the command line.
        corefile: where the configuration comes from.
        config: the one to begin with.
        store: what the cluster is told to.
    """

    _report: ops.Report

    def __init__(self, options: Options, corefile: Corefile, config: Config, store: Store) -> None:
        self._options = options
        self._corefile = corefile
        self._config = config
        self._registry = new_registry()
        ProcessCollector(registry=self._registry)
        self._metrics = ServerMetrics(self._registry, __version__)
        self._store = store
        self._registry.register(StoreCollector(store))
        self._cluster = Cluster(store, options.source, self._metrics)
        self._ops = OpsServer()
        self._snapshots = Snapshots(options.snapshot, store) if options.snapshot else None

    @abstractmethod
    async def run(self) -> int:
        """Serve until told to stop; the exit code."""

    @abstractmethod
    async def _apply(self, new: Config) -> None:
        """Put another configuration to work, or raise and go on with the old one."""

    @abstractmethod
    async def _finish(self, grace_s: float) -> None:
        """Answer what is in flight, for no longer than this, and take nothing new."""

    async def _serve(self, signals: Signals, parts: Mapping[str, Coroutine[Any, Any, None]], **told: object) -> int:
        """Run `parts` and what every main process has until told to stop, then end in order; the exit code.

        Args:
            signals: what ends, hurries and reloads.
            parts: coroutines that must not end, by name.
            told: what the log says of the start.
        """
        set_log_level(self._config, self._options.log_level)
        _log.info(log.PROCESS_STARTED, version=__version__, pid=os.getpid(), source=self._options.source, **told)
        tasks = [
            asyncio.create_task(part, name=name)
            for name, part in {
                "source": self._cluster.watch(),
                **parts,
                "reload": self._reload_on(signals),
                "health probe": ops.probe_health(
                    self._ops, lambda: self._config, self._metrics.health_duration, self._metrics.health_failures
                ),
                **({"snapshots": self._snapshots.keep()} if self._snapshots is not None else {}),
            }.items()
        ]
        try:
            await until_stopped(signals, tasks)
            self._report.ready.stopping = True
            await lameduck(self._config, signals)
        finally:
            await self._finish(0.2 if signals.hurry.is_set() else DRAIN_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._snapshots is not None:
                await self._snapshots.write()
            await self._cluster.close()
            await self._ops.stop()
            _log.info(log.PROCESS_STOPPED)
        return 0

    async def _reload_on(self, signals: Signals) -> None:
        while True:
            await next_look(self._config, signals.reload)
            try:
                await self._reload()
            except CorefileError as error:
                self._metrics.reload_failed.inc()
                _log.error(log.DNS_CONFIG_REJECTED, problems=[str(p) for p in error.problems])
            except Exception as error:  # whatever it is, what runs goes on
                self._metrics.reload_failed.inc()
                _log.error(log.DNS_CONFIG_REJECTED, problems=[str(error)])

    async def _reload(self) -> None:
        new = self._corefile.changed(self._config)
        if new is None:
            return
        await self._apply(new)
        self._config = new
        set_log_level(new, self._options.log_level)
        await ops.configure(self._ops, new, self._report)
        _log.info(log.DNS_CONFIG_RELOADED, digest=new.digest[:16])


class _Single(MainProcess):
    """One process that does everything."""

    def __init__(self, options: Options, corefile: Corefile, config: Config) -> None:
        super().__init__(options, corefile, config, Store())
        self._engine = Engine(self._store, self._metrics, new_environment(self._registry, self._metrics))
        self._report = ops.Report(
            healthy=lambda: (200, "OK"),
            ready=ops.Readiness(self._not_ready),
            metrics=self._registry,
            refresh=self._refresh,
        )
        self._metrics.workers.set(1)

    def _not_ready(self) -> tuple[str, ...]:
        if self._snapshots is not None and not self._snapshots.confirmed(self._config):
            return ("kubernetes",)
        return self._engine.not_ready() or ops.stale(self._config, self._store.staleness_s)

    async def _refresh(self) -> None:
        self._engine.server.gauge()

    async def run(self) -> int:
        """Serve until told to stop."""
        signals = Signals.install()
        (sockets,) = bind_all(layout(self._config, self._options.listen))
        one = bool(self._options.listen)
        await ops.configure(self._ops, self._config, self._report)
        timeout_s = startup_timeout_s(self._config)
        if self._snapshots is not None:
            self._snapshots.load(self._config)
        await self._cluster.follow(self._config, timeout_s)
        self._engine.be_patient(timeout_s)
        await self._engine.configure(self._config, tuple(sockets), sockets, one=one)
        parts = {"zones": self._engine.follow(), "memory": self._settle()}
        return await self._serve(signals, parts, listen=[str(address) for address in sockets])

    async def _finish(self, grace_s: float) -> None:
        await self._engine.stop(grace_s)

    async def _settle(self) -> None:
        """Once the cluster is listed, most of what is in memory stays there."""
        await self._store.wait_listed(Resource.SERVICES)
        await asyncio.sleep(1.0)
        settle_memory()
        await asyncio.Event().wait()  # once is enough, but a part that ends stops the daemon

    async def _apply(self, new: Config) -> None:
        where = layout(new, self._options.listen)
        known = set(self._engine.server.addresses)
        (sockets,) = bind_all(address for address in where if address not in known)
        where = tuple(address for address in where if address in sockets or address in known)
        try:
            if needs_new_source(self._config, new):
                await self._cluster.follow(new, startup_timeout_s(new))
            await self._engine.configure(new, where, sockets, one=bool(self._options.listen))
        except BaseException:
            for pair in sockets.values():
                pair.close()
            raise


async def until_stopped(signals: Signals, parts: list[asyncio.Task[None]]) -> None:
    """Wait for the signal to stop.

    Raises:
        Exception: what ended a part that must not end.
    """
    stopping = asyncio.create_task(signals.stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([stopping, *parts], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            await task
            raise RuntimeError(f"{task.get_name()} ended by itself")
    finally:
        stopping.cancel()


async def lameduck(config: Config, signals: Signals) -> None:
    """Go on answering while the endpoints of the Service still name this server."""
    wait_s = ops.lameduck_s(config)
    if wait_s:
        _log.info(log.DNS_LAMEDUCK_STARTED, seconds=wait_s)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await signals.hurry.wait()
