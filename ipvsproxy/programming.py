"""Carries plans to the kernel: diff, apply, drain, and repair what is found to differ.

Knows: a Service's way from its plan to the kernel, and who has to be told on it. Must not know: when (the reconciler),
what failures mean for the node (standing), order (diff), preconditions (picture).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from ipvsproxy import nftables
from ipvsproxy.applier import Applier, describe
from ipvsproxy.config import Config
from ipvsproxy.dataplane import DataPlane, DataplaneError, NotFound
from ipvsproxy.diff import diff, without
from ipvsproxy.draining import Draining, leaving
from ipvsproxy.model import Delta, PlannedVirtualServer, RealServerKey, VirtualServerKey
from ipvsproxy.picture import Picture
from ipvsproxy.planning import Planning
from ipvsproxy.surroundings import Clock, Surroundings, Telling
from kubecore import log
from kubecore.model import ObjectKey

_log = structlog.get_logger()


class Programming:
    """What is wanted, what is known to be there, and the way from one to the other.

    Args:
        planning: plans, and knows what is wanted.
        dataplane: the kernel.
        config: settings.
        around: metrics and health.
        telling: tells the rest of the world.
        clock: the `time` module, or a test's.
        picture: what was found in the kernel.
    """

    def __init__(
        self,
        *,
        planning: Planning,
        dataplane: DataPlane,
        config: Config,
        around: Surroundings,
        telling: Telling,
        clock: Clock,
        picture: Picture,
    ) -> None:
        self._planning = planning
        self._planner = planning.planner
        self._dataplane = dataplane
        self._config = config
        self._around = around
        self._telling = telling
        self._clock = clock
        self.applier = Applier(dataplane, picture, self._count)
        self.draining = Draining(config.additions.drain_grace_s, config.additions.drain_poll_s)

    @property
    def picture(self) -> Picture:
        """What is known of the kernel."""
        return self.applier.picture

    async def program(self, services: list[ObjectKey]) -> list[DataplaneError]:
        """Plan, diff and apply some Services; returns what failed."""
        return await self._apply(self._planning.update(services), services)

    async def program_listed(self, services: list[ObjectKey]) -> list[DataplaneError]:
        """The same at start, when all have been planned."""
        return await self._apply(self._planner.asked_by(services), services)

    async def _apply(self, delta: Delta, services: list[ObjectKey]) -> list[DataplaneError]:
        failures = await self.apply_delta(delta)
        self._telling.programmed(services)
        # A long list must not hold the loop: probes and the watch go on in between.
        await asyncio.sleep(0)
        return failures

    async def apply_delta(self, delta: Delta) -> list[DataplaneError]:
        """Apply what differs of `delta`, and tell what changed with it."""
        failures: list[DataplaneError] = []
        if delta:
            failures = await self._apply_diff(delta)
            self._track(delta.virtual_servers)
        await self._telling.planned(self._planner, delta.services)
        return failures

    async def _apply_diff(self, delta: Delta | None = None) -> list[DataplaneError]:
        """Apply what differs; once more if somebody else had added what we wanted to add."""
        self.applier.surprised = False
        failures = await self.applier.apply(diff(self._planner.desired, self.picture, delta))
        if self.applier.surprised:
            failures += await self.applier.apply(diff(self._planner.desired, self.picture, delta))
        return failures

    def _track(self, servers: Iterable[VirtualServerKey]) -> None:
        now_s = self._clock.monotonic()
        for key in servers:
            stays = leaving(self._planner.desired, self.picture, key)
            self.draining.track(key, stays, now_s)

    async def drain(self, now_s: float) -> list[DataplaneError]:
        """Count connections where it is due, and let go who has none left."""
        gone: list[tuple[PlannedVirtualServer, RealServerKey]] = []
        for server in self.draining.due(now_s):
            try:
                counters = await self._dataplane.connections(server)
            except NotFound:
                counters = {}
            except DataplaneError as error:
                _log.warning(log.RECONCILE_FAILED, error=describe(error))
                continue
            planned = self._planner.desired.virtual_servers.get(server)
            finished = self.draining.counted(server, counters, now_s)
            if planned is not None:
                gone += [(planned, key) for key in finished]
        failures = await self.applier.apply(without(gone)) if gone else []
        self._around.metrics.draining.set(sum(1 for _ in self.draining))
        return failures

    async def repair(self, why: str, delta: Delta | None = None) -> list[DataplaneError]:
        """Diff everything (in memory), or what `delta` names, and apply what differs."""
        if not await self.applier.reread() and self.applier.table_lost:
            await self.load_table()
            await self.applier.reread()
        ops = diff(self._planner.desired, self.picture, delta)
        failures = await self._apply_diff(delta) if ops else []
        self._track(self._planner.desired.virtual_servers if delta is None else delta.virtual_servers)
        if why in {"audit", "drift"}:
            self._around.metrics.audits.labels("drift" if ops else "clean").inc()
            if ops:
                self._around.metrics.drift_repaired.inc(len(ops))
                _log.warning(log.DRIFT_REPAIRED, by=why, operations=len(ops), first=type(ops[0]).__name__)
        return failures

    def unwanted(self) -> Delta:
        """What is known to be in the kernel and not wanted."""
        desired, picture = self._planner.desired, self.picture
        return Delta(
            {},
            {key: None for key in picture.servers if key not in desired.virtual_servers},
            {vip: None for vip in picture.vips if vip not in desired.vips},
            {element: None for element in picture.elements.values() if element not in desired.elements},
        )

    async def load_table(self) -> None:
        """Make our table as this version and configuration want it, with every element that is known, at once."""
        await self._dataplane.load_table(
            nftables.load(self._config, self.picture.elements.values()),
        )

    def blame(self, error: DataplaneError) -> str:
        """The Service that an operation belongs to, or the operation's kind."""
        key = getattr(error.op, "server", None) or getattr(error.op, "key", None)
        if isinstance(key, VirtualServerKey):
            service = self._planner.service_of(key)
            if service is not None:
                return str(service)
        return type(error.op).__name__ if error.op is not None else "kernel"

    def _count(self, operation: str, outcome: str, times: int) -> None:
        self._around.metrics.operations.labels(operation, outcome).inc(times)
        if (operation, outcome) == ("ChangeElements", "failed"):
            self._around.metrics.table_failed(times)
