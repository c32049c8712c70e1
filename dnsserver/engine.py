"""One process' DNS service: the zones brought up to date, the chains of a configuration, the listeners they answer on.

Knows: the order in which a configuration is put to work, how changes of the cluster reach zones and ready-made replies
without holding the event loop. Must not know where configuration, sockets and changes come from: the daemon of a single
process or a worker's link to its supervisor bring them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dnsserver import names
from dnsserver.chain import Listen, Router, Runtime
from dnsserver.config import ExternalConfig, KubernetesConfig
from dnsserver.corefile_model import Config, ServerBlock
from dnsserver.localaddress import local_addresses
from dnsserver.message import Handler, Message, Query
from dnsserver.metrics import ServerMetrics
from dnsserver.plugins.base import Environment
from dnsserver.plugins.k8s_external import KubernetesExternal
from dnsserver.plugins.kubernetes import Kubernetes
from dnsserver.podindex import PodIndex
from dnsserver.server import ListenAddress, Server, Service, Sockets, server_label
from dnsserver.zone import Invalidation, Zone
from kubecore.model import ObjectKey, Pod
from kubecore.snapshot import Changes
from kubecore.store import Store
from kubecore.turns import give_way

SERVICES_A_SLICE = 8
"""Changed Services taken in before the event loop gets its turn. One of 1,000 endpoints takes about a millisecond."""
PATIENT_QUERIES = 1000
"""Queries that may wait for the first lists; more fail at once, so that other zones keep their share of the server."""
WILDCARDS = ("0.0.0.0", "::")
_RETIRE_S = 10.0
"""After this time nothing can still be in an old chain."""


def layout(config: Config, listen: Iterable[ListenAddress] = ()) -> tuple[ListenAddress, ...]:
    """The addresses to listen on, each once.

    Args:
        config: what is to be served.
        listen: addresses of the command line, which replace those of the Corefile: then every block answers on each.
    """
    wanted = tuple(listen) or (
        ListenAddress(host, key.port)
        for block in config.blocks
        for key in block.keys
        for host in (block.bind or WILDCARDS)
    )
    return tuple(dict.fromkeys(wanted))


@dataclass(slots=True)
class _Running:
    """A configuration at work."""

    config: Config
    runtime: Runtime | None = None
    zones: dict[KubernetesConfig, Zone] = field(default_factory=dict)
    asking: dict[KubernetesConfig, ServerBlock] = field(default_factory=dict)
    """On whose behalf the targets of aliases are looked up."""
    externals: dict[ExternalConfig, KubernetesConfig] = field(default_factory=dict)


class Engine:
    """See the module's words. Everything happens in one event loop."""

    def __init__(
        self,
        store: Store,
        metrics: ServerMetrics,
        environment: Environment,
        *,
        server: Server | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.metrics = metrics
        self.server = server or Server(metrics)
        self._environment = dataclasses.replace(
            environment,
            kubernetes=self._kubernetes,
            external=self._external,
            namespace_of=self._namespace_of,
            pod_of=self._pod_of,
        )
        self._pods = PodIndex()
        self._building = _Running(Config(blocks=()))
        self._patient_until_s = 0.0
        self._waiting = 0
        self._synced = asyncio.Event()
        self._clock = clock
        self._running = _Running(Config(blocks=()))
        self._zone_lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._triggers_s: dict[ObjectKey, float] = {}
        self._began_s = clock()

    # -- what others ask

    def _namespace_of(self, address: str) -> str | None:
        pod = self._pod_of(address)
        return None if pod is None else pod.namespace

    def _pod_of(self, address: str) -> Pod | None:
        """The one pod with this address; None if there is none, several, or it is the host's."""
        owners = self._pods.owners(address)
        pod = self.store.state.pods.get(owners[0]) if len(owners) == 1 else None
        return None if pod is None or pod.host_network else pod

    @property
    def config(self) -> Config:
        """In effect."""
        return self._running.config

    def not_ready(self) -> tuple[str, ...]:
        """Plugins that cannot answer yet, each once; without a configuration the server as such."""
        if self._running.runtime is None:
            return ("dnsserver",)
        return ("kubernetes",) if any(not zone.synced for zone in self._running.zones.values()) else ()

    @property
    def serials(self) -> list[int]:
        """Those of the zones, in the order of the configuration: the cluster's own, then the ServiceImports'."""
        return [serial for zone in self._running.zones.values() for serial in (zone.serial, zone.imports.serial)]

    def set_serials(self, serials: Iterable[int]) -> None:
        """Show the serials other workers have reached: a zone must not look different from query to query."""
        holders = [holder for zone in self._running.zones.values() for holder in (zone, zone.imports)]
        for holder, serial in zip(holders, serials, strict=False):
            holder.serial = max(serial, 1)
        self.server.forget_everything()

    # -- configuration

    async def configure(
        self, config: Config, where: Collection[ListenAddress], sockets: Mapping[ListenAddress, Sockets], *, one: bool
    ) -> None:
        """Put a configuration to work, in place of the one in effect, without losing a query.

        Zones whose directive did not change are kept. New ones are filled before anybody can ask them.

        Args:
            config: what to serve.
            where: every address to serve on.
            sockets: those of the addresses not served yet.
            one: every block answers on every address (`--listen`).

        Raises:
            OSError: a plugin could not start; everything is as before.
        """
        new = _Running(config)
        async with self._zone_lock:
            for block in config.blocks:
                if block.kubernetes is None:
                    continue
                new.asking.setdefault(block.kubernetes, block)
                if block.kubernetes not in new.zones:
                    zone = self._running.zones.get(block.kubernetes)
                    new.zones[block.kubernetes] = zone or await self._new_zone(block.kubernetes)
                if block.external is not None:
                    new.externals[block.external] = block.kubernetes
            self._building = new
            label = server_label(next(iter(where))) if one and where else ""
            new.runtime = runtime = Runtime(config, self._environment, label)
            await runtime.start()
            old, self._running = self._running, new
        zones = {c: new.zones[c.block.kubernetes] for c in runtime.chains if c.block.kubernetes is not None}
        everything = runtime.router_of_all() if one else None
        services = {
            address: Service(everything or runtime.routers[_key(address, runtime.routers)], zones) for address in where
        }
        await self.server.configure(services, sockets)
        self._show(config, services)
        if old.runtime is not None:
            task = asyncio.create_task(self._retire(old.runtime))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _kubernetes(self, config: KubernetesConfig, rest: Handler) -> Handler:
        """The `kubernetes` link of a chain."""
        return self._patient(Kubernetes(self._building.zones[config], rest, self._asker(config)), config)

    def _external(self, config: ExternalConfig, rest: Handler) -> Handler:
        """The `k8s_external` link of a chain."""
        kubernetes = self._building.externals[config]
        zone = self._building.zones[kubernetes]
        return KubernetesExternal(config, zone, rest, self._asker(kubernetes))

    def _asker(self, config: KubernetesConfig) -> Handler:
        running = self._building

        async def ask(query: Query) -> Message | None:
            return await running.runtime.resolve(running.asking[config], query) if running.runtime else None

        return ask

    def _patient(self, link: Kubernetes, config: KubernetesConfig) -> Handler:
        """`link`, but during start-up a query for the zone waits for the first lists rather than fail."""
        zone = self._building.zones[config]

        async def patient(query: Query) -> Message | None:
            if not zone.synced and self._waiting < PATIENT_QUERIES and zone.cut(query.question.lower) is not None:
                self._waiting += 1
                try:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(self._patient_until_s):
                            await self._synced.wait()
                finally:
                    self._waiting -= 1
            return await link(query)

        return patient

    def be_patient(self, seconds: float) -> None:
        """Let queries for cluster names wait this long from now for the first lists."""
        self._patient_until_s = asyncio.get_running_loop().time() + seconds

    async def _retire(self, old: Runtime) -> None:
        """Close what an old configuration opened, once nothing is in its chains any more."""
        await asyncio.sleep(_RETIRE_S)
        await old.close()

    def _show(self, config: Config, services: Mapping[ListenAddress, Service]) -> None:
        """Bring the figures that describe the configuration up to date."""
        self.metrics.plugin_enabled.clear()
        shown: set[str] = set()
        for address, service in services.items():
            label = server_label(address)
            for zone, chain in service.router.zones.items():
                if chain.block.prometheus is not None:
                    shown.add(label)
                for name in chain.plugins:
                    self.metrics.plugin_enabled.labels(label, names.to_text(zone), "", name).set(1)
        self.metrics.traffic.shown = frozenset(shown)
        self.metrics.reload_version.clear()
        self.metrics.reload_version.labels("sha512", config.digest).set(1)

    # -- the cluster

    async def _new_zone(self, config: KubernetesConfig) -> Zone:
        """A zone of everything the store has, filled in slices: others are being served meanwhile."""
        zone = Zone(config, local_addresses())
        everything = Changes(
            services=frozenset(self.store.state.services) | {s.service_key for s in self.store.state.slices.values()},
            service_imports=frozenset(self.store.state.service_imports),
            namespaces=frozenset(self.store.state.namespaces),
            pods=frozenset(self.store.state.pods),
        )
        await self._apply_to((zone,), everything, self._clock(), lambda _zone, _invalidation: None)
        return zone

    async def follow(self) -> None:
        """Take every change of the store in, until cancelled."""
        while True:
            await self.store.wait_changed()
            await give_way()
            await self.apply(self.store.take_changes(), self._clock())

    async def apply(self, changes: Changes, now_s: float) -> None:
        """Take these changes in, as of `now_s`. Returns when all of them can be seen by clients."""
        if not changes:
            return
        async with self._zone_lock:
            await self._apply_to(tuple(self._running.zones.values()), changes, now_s, self._invalidate)
        if not self.not_ready():
            self._synced.set()
        self.metrics.changes.inc(len(changes.services))

    async def _apply_to(
        self,
        zones: Collection[Zone],
        changes: Changes,
        now_s: float,
        tell: Callable[[Zone, Invalidation], None],
    ) -> None:
        """Apply in slices. A zone says that it is complete only after the last one."""
        were_synced = [(zone.synced, zone.imports.synced) for zone in zones]
        parts = list(slices(changes))
        for number, part in enumerate(parts, 1):
            began_s = time.perf_counter()
            last = number == len(parts)
            for zone, (was_synced, had_imports) in zip(zones, were_synced, strict=True):
                invalidation = zone.apply(self.store.state, part, now_s)
                if not was_synced:
                    zone.synced = zone.synced and last
                    zone.serial = int(now_s)  # one change, however many parts it has
                if not had_imports:
                    zone.imports.synced = zone.imports.synced and last
                    zone.imports.serial = int(now_s)
                tell(zone, invalidation)
            for key in part.pods:
                pod = self.store.state.pods.get(key)
                self._pods.put(key, pod.ips if pod else ())
            self.metrics.slice_duration.observe(time.perf_counter() - began_s)
            await give_way()  # the clients first, then the books
            self._observe_programming(part)

    def _invalidate(self, zone: Zone, invalidation: Invalidation) -> None:
        if invalidation.everything:
            self.server.forget_everything()
        elif invalidation.tags:
            self.server.forget(invalidation.tags)

    def _observe_programming(self, changes: Changes) -> None:
        """Measure how long endpoint changes took from the controller to here (KEP-1669's annotation)."""
        state, now_s = self.store.state, self._clock()
        for key in changes.services:
            service = state.services.get(key)
            if service is None:
                self._triggers_s.pop(key, None)
                continue
            trigger_s = max((s.trigger_s for s in state.slices_of(key)), default=0.0)
            if trigger_s < self._began_s or self._triggers_s.get(key) == trigger_s:
                continue
            self._triggers_s[key] = trigger_s
            kind = "cluster_ip"
            if service.headless:
                kind = "headless_with_selector" if service.selector else "headless_without_selector"
            self.metrics.programming.labels(kind).observe(max(0.0, now_s - trigger_s))

    # -- the end

    async def stop(self, grace_s: float) -> None:
        """Answer what is in flight, close everything."""
        await self.server.stop(grace_s)
        for task in list(self._retiring):
            task.cancel()
        if self._running.runtime is not None:
            await self._running.runtime.close()


def slices(changes: Changes) -> Iterator[Changes]:
    """`changes` in small parts, in an order that every process finds: so that all workers count serials alike."""
    if changes.namespaces or changes.listed:
        yield Changes(namespaces=changes.namespaces, listed=changes.listed)
    for pods in _chunks(changes.pods, 64):
        yield Changes(pods=pods)
    for services in _chunks(changes.services, SERVICES_A_SLICE):
        yield Changes(services=services)
    for imports in _chunks(changes.service_imports, SERVICES_A_SLICE):
        yield Changes(service_imports=imports)


def _chunks(keys: Collection[ObjectKey], size: int) -> Iterator[frozenset[ObjectKey]]:
    ordered = sorted(keys)
    for at in range(0, len(ordered), size):
        yield frozenset(ordered[at : at + size])


def _key(address: ListenAddress, routers: Mapping[Listen, Router]) -> Listen:
    """Under which name the configuration has an address: the wildcards have none."""
    named = Listen(address.host, address.port)
    return named if named in routers else Listen("", address.port)


def relax_memory() -> None:
    """Have the garbage collector look at few objects at a time, and at old ones seldom. To be called at the start.

    2,000 new objects take it 0.3 ms. A full collection over a million would hold the event loop for hundreds of
    milliseconds, for nothing: what changes of the cluster leave behind has no cycles and is freed by reference counts.
    """
    gc.set_threshold(2_000, 5, 2_000)


def settle_memory() -> None:
    """Take what start-up made out of the collector's sight; nearly all of it lives as long as the process."""
    gc.freeze()
