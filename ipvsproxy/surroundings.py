"""What surrounds the loop: clocks, metrics, health, events and health check servers, and what they are told of plans.

Knows: what of a plan concerns people and probes. Must not know: the kernel, when plans are made. Called by the
reconciler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol as Interface

from ipvsproxy.config import Config, NodePortAddresses
from ipvsproxy.health import ProxyHealth
from ipvsproxy.healthserver import ServiceHealthServers
from ipvsproxy.metrics import ProxyMetrics
from ipvsproxy.model import Problem
from ipvsproxy.planner import Planner
from ipvsproxy.serviceplan import ServicePlan
from ipvsproxy.site import FAMILIES
from kubecore.addresses import family_of
from kubecore.model import Family, ObjectKey, Resource
from kubecore.store import Store

_EVERYWHERE = {"0.0.0.0/0": "0.0.0.0", "::/0": "::"}
"""The prefix of all addresses of a family, and what listens on all of them."""


class Clock(Interface):
    """Both kinds of time, so that tests can turn them."""

    def monotonic(self) -> float:
        """Seconds that only grow."""
        ...

    def time(self) -> float:
        """Unix seconds."""
        ...

    def process_time(self) -> float:
        """CPU seconds of this process."""
        ...


@dataclass(slots=True)
class Surroundings:
    """What the loop tells the world, besides the kernel."""

    metrics: ProxyMetrics
    health: ProxyHealth
    report: Callable[[ObjectKey, Problem], None]
    """Told each problem of a Service once."""
    health_servers: ServiceHealthServers


def listening_addresses(setting: NodePortAddresses, node_ports: Iterable[str]) -> tuple[str, ...]:
    """Where health check servers listen: everywhere in a family without restriction, VIPs included, else `node_ports`.

    Args:
        setting: `nodePortAddresses`.
        node_ports: the addresses that carry node ports.
    """
    if not setting.primary and not setting.cidrs:
        return tuple(_EVERYWHERE.values())
    wide = {everywhere for cidr, everywhere in _EVERYWHERE.items() if cidr in setting.cidrs}
    families = {family_of(everywhere) for everywhere in wide}
    return (*sorted(wide), *(address for address in node_ports if family_of(address) not in families))


class Telling:
    """Tells the surroundings what changes of Services mean for them.

    Args:
        around: who is told.
        store: the cluster.
        config: settings.
        clock: the `time` module, or a test's.
    """

    def __init__(self, around: Surroundings, store: Store, config: Config, clock: Clock) -> None:
        self._around = around
        self._store = store
        self._config = config
        self._clock = clock
        self._started_s = clock.time()
        self._problems: dict[ObjectKey, frozenset[Problem]] = {}
        self._no_local: dict[tuple[str, Family], set[ObjectKey]] = {
            (policy, family): set() for policy in ("internal", "external") for family in FAMILIES
        }
        self._events_seen = {Resource.SERVICES: 0, Resource.ENDPOINT_SLICES: 0}
        self._measured: dict[ObjectKey, dict[str, float]] = {}
        """Trigger times of slices whose programming was measured, by Service and slice."""
        self.listen_at_s: float | None = None
        """When to try again to listen for health checks where that failed."""

    def queued(self) -> None:
        """Changes of the cluster have been taken in, and wait to be programmed."""
        now_s = self._clock.time()
        new = {}
        for resource, seen in self._events_seen.items():
            figures = self._store.figures[resource]
            self._events_seen[resource] = figures.upserts + figures.deletes
            new[resource] = self._events_seen[resource] - seen
        self._around.metrics.queued(now_s, new[Resource.SERVICES], new[Resource.ENDPOINT_SLICES])
        self._around.health.queued(now_s)

    async def planned(self, planner: Planner, services: Iterable[ObjectKey]) -> None:
        """Events, gauges and health check servers of Services whose plan may have changed."""
        rebind = False
        for key in services:
            self._report(key, frozenset(planner.problems(key)))
            plan = planner.plans.get(key)
            lacking = _lacking(plan) if plan is not None else ()
            for place, held in self._no_local.items():
                (held.add if place in lacking else held.discard)(key)
            wanted = plan.health_check if plan is not None else None
            running = self._around.health_servers.ports.get(key)
            if wanted is not None:
                self._around.health_servers.set_count(key, wanted.local_ready)
            rebind |= (wanted.port if wanted else None) != running
        for (policy, family), held in self._no_local.items():
            self._around.metrics.no_local_endpoints.labels(f"IPv{family}", policy).set(len(held))
        if rebind:
            await self.serve_health_checks(planner)

    def _report(self, key: ObjectKey, problems: frozenset[Problem]) -> None:
        before = self._problems.get(key, frozenset())
        if problems == before:
            return
        for problem in sorted(problems - before, key=lambda p: p.message):
            self._around.report(key, problem)
        if problems:
            self._problems[key] = problems
        else:
            del self._problems[key]

    async def serve_health_checks(self, planner: Planner) -> None:
        """Have a server on every healthCheckNodePort that is wanted, on the addresses of node ports."""
        wanted = {key: plan.health_check.port for key, plan in planner.plans.items() if plan.health_check is not None}
        addresses = listening_addresses(self._config.node_port_addresses, planner.node_port_addresses())
        servers = self._around.health_servers
        await servers.reconcile(wanted, addresses)
        self.listen_at_s = self._clock.monotonic() + self._config.ipvs.sync_period_s if servers.incomplete else None

    def programmed(self, services: Iterable[ObjectKey]) -> None:
        """kube-proxy's network programming latency: from the last change of an endpoint to now, once a change."""
        now_s = self._clock.time()
        for key in services:
            before = self._measured.pop(key, {})
            for piece in self._store.state.slices_of(key):
                if piece.trigger_s < self._started_s:
                    continue
                self._measured.setdefault(key, {})[piece.name] = piece.trigger_s
                if before.get(piece.name) != piece.trigger_s:
                    label = f"IPv{piece.family}"
                    self._around.metrics.programming.labels(label).observe(max(0.0, now_s - piece.trigger_s))


def _lacking(plan: ServicePlan) -> list[tuple[str, Family]]:
    """The policies and families for which a Service has endpoints elsewhere and none here."""
    internal = [("internal", family) for family in plan.no_local_internal]
    return internal + [("external", family) for family in plan.no_local_external]
