"""The loop that keeps this node's kernel in step with the cluster.

Knows: when to plan, diff, apply, drain, audit and retry, and in which portions so that nothing waits long. Must not
know: policy (planner), order (diff), preconditions (picture), netlink (the data plane behind its interface).

Everything it holds can be lost: at start it reads the kernel, adopts what is ours, and goes on from there. It never
flushes, and stopping it changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol as Interface
from typing import TypeVar

import structlog

from ipvsproxy import nftables
from ipvsproxy.applier import Applier, describe
from ipvsproxy.config import Config
from ipvsproxy.dataplane import (
    ChangeElements,
    DataPlane,
    DataplaneError,
    DeleteRealServer,
    HostNetwork,
    Interrupted,
    NotFound,
    Op,
)
from ipvsproxy.diff import diff
from ipvsproxy.draining import Draining, leaving
from ipvsproxy.health import ProxyHealth
from ipvsproxy.healthserver import ServiceHealthServers
from ipvsproxy.metrics import ProxyMetrics
from ipvsproxy.model import ActualVirtualServer, Delta, Problem, Scheduler, VirtualServerKey
from ipvsproxy.nodeview import NodeView, node_view
from ipvsproxy.picture import Picture
from ipvsproxy.planner import Planner, in_order, priority
from ipvsproxy.site import FAMILIES
from ipvsproxy.takeover import left_by_kube_proxy
from kubecore import log
from kubecore.addresses import family_of
from kubecore.backoff import Backoff
from kubecore.model import Family, Node, ObjectKey, Resource
from kubecore.store import Store

PORTION = 250
"""Services planned and applied before the store is looked at again: what a newcomer waits for behind a burst."""
START_PORTION = 500
"""The same at start, when nobody waits for a single change and fewer transactions are cheaper."""
AUDIT_SHARE = 0.001
"""Share of a core that audits may take where their interval is not set."""
AUDIT_PORTION = 100
"""Virtual servers read back in one slice of the audit; between slices changes go first."""
COUNTERS_EVERY_S = 30.0
"""A scrape reads the kernel's counters at most this often: a dump of 100,000 real servers costs about half a second."""

_log = structlog.get_logger()
_T = TypeVar("_T")


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


@dataclass(slots=True)
class _Pending:
    """Services to be planned: newcomers first, so that a burst does not hold up a single change."""

    fresh: dict[ObjectKey, None] = field(default_factory=dict)
    backlog: dict[ObjectKey, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.fresh or self.backlog)

    def add(self, services: Iterable[ObjectKey], limit: int) -> None:
        """Put newcomers in front; a crowd of more than `limit` goes behind, where only what is left waits."""
        new = dict.fromkeys(services)
        if len(new) > limit:
            self.backlog |= new
        else:
            self.fresh |= new

    def take(self, limit: int) -> list[ObjectKey]:
        """The next services; each once, with its newest state whichever queue it was in."""
        taken: list[ObjectKey] = []
        for queue in (self.fresh, self.backlog):
            while queue and len(taken) < limit:
                key = next(iter(queue))
                del queue[key]
                taken.append(key)
        for key in taken:
            self.fresh.pop(key, None)
            self.backlog.pop(key, None)
        return taken


class Reconciler:
    """Keeps the kernel in step until cancelled.

    Args:
        store: the cluster; both lists must come from a running source.
        dataplane: the kernel.
        config: settings.
        node_name: this node.
        schedulers: those this kernel has.
        around: metrics, health, events, health check servers.
        clock: the `time` module, or a test's.
        rng: jitter of retries.
    """

    def __init__(
        self,
        *,
        store: Store,
        dataplane: DataPlane,
        config: Config,
        node_name: str,
        schedulers: frozenset[Scheduler],
        around: Surroundings,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._dataplane = dataplane
        self._config = config
        self._node_name = node_name
        self._schedulers = schedulers
        self._around = around
        self._clock = clock
        self._started_s = clock.time()
        additions = config.additions
        self._draining = Draining(additions.drain_grace_s, additions.drain_poll_s)
        self._backoff = Backoff((rng or random.Random()).uniform, first_s=0.5, cap_s=30.0)  # noqa: S311 - jitter
        self._retry_at_s: float | None = None
        self._audit_at_s: float | None = None
        self._listen_at_s: float | None = None
        self._pending = _Pending()
        self._kernel_news: set[str] = set()
        self._wake = asyncio.Event()
        self._host = HostNetwork()
        self._problems: dict[ObjectKey, frozenset[Problem]] = {}
        self._no_local: dict[tuple[str, Family], set[ObjectKey]] = {
            (policy, family): set() for policy in ("internal", "external") for family in FAMILIES
        }
        self._events_seen = {Resource.SERVICES: 0, Resource.ENDPOINT_SLICES: 0}
        self._measured: dict[ObjectKey, dict[str, float]] = {}
        """Trigger times of slices whose programming was measured, by Service and slice."""
        dataplane.on_flows_cut = around.metrics.cut
        self._legacy: set[str] = set()
        self._counters_at_s = 0.0
        self._audit_cost_s = 0.0
        self._fingerprints: dict[VirtualServerKey, int] = {}
        self._planner: Planner
        self._applier: Applier
        self.in_step = asyncio.Event()
        """Set while the kernel has everything that was told; a test (and the start-up log line) waits for it."""

    # -- reading, for metrics

    @property
    def picture(self) -> Picture | None:
        """What is known of the kernel; None before the start."""
        return self._applier.picture if hasattr(self, "_applier") else None

    @property
    def draining(self) -> Draining:
        """The real servers that drain."""
        return self._draining

    def owned(self) -> list[tuple[VirtualServerKey, str, ActualVirtualServer]]:
        """Virtual servers of ours with the names of their Services."""
        if self.picture is None:
            return []
        rows = []
        for key in self.picture.owned():
            service = self._planner.service_of(key)
            rows.append((key, str(service) if service else "", self.picture.servers[key]))
        return rows

    def table_sizes(self) -> dict[Family, tuple[int, int, int]]:
        """Virtual servers, real servers and VIPs of ours in the kernel, by family."""
        sizes: dict[Family, tuple[int, int, int]] = {}
        picture = self.picture
        for family in FAMILIES if picture is not None else ():
            assert picture is not None  # noqa: S101 - the line above
            owned = [k for k in picture.servers if k.family == family and picture.owns(k)]
            reals = sum(len(picture.servers[k].real_servers) for k in owned)
            sizes[family] = (len(owned), reals, sum(1 for v in picture.vips if family_of(v) == family))
        return sizes

    async def refresh_counters(self) -> None:
        """Read traffic and connections of all virtual servers into the picture, for a scrape.

        Raises: DataplaneError.
        """
        picture, now_s = self.picture, self._clock.monotonic()
        if picture is None or now_s < self._counters_at_s:
            return
        self._counters_at_s = now_s + COUNTERS_EVERY_S
        for key, server in (await self._dataplane.dump_virtual_servers()).items():
            known = picture.servers.get(key)
            # Only counters are taken over: what differs otherwise is for the audit to see and to count as drift.
            if (
                known is None
                or known.config != server.config
                or known.real_servers.keys() != server.real_servers.keys()
            ):
                continue
            if all(known.real_servers[k].config == real.config for k, real in server.real_servers.items()):
                picture.put_server(key, server)

    # -- the loop

    async def run(self) -> None:
        """Wait for both lists, adopt the kernel, then keep it in step until cancelled."""
        await self._store.wait_listed(Resource.SERVICES, Resource.ENDPOINT_SLICES)
        watcher = asyncio.create_task(self._watch_kernel())
        try:
            with _without_garbage_collection():
                await self._until_it_works(self._start)
            while True:
                await self._wait()
                try:
                    await self._turn()
                except DataplaneError as error:
                    # A read failed, so nothing is known of what it was for: look at everything again when it is time.
                    self._kernel_news |= {"address", "link", "route", "nft"}
                    self._conclude([error], None)
                    await asyncio.sleep(1.0)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            await self._around.health_servers.close()

    async def _until_it_works(self, step: Callable[[], object]) -> None:
        """Repeat the start with back-off: a kernel that refuses now may serve in a moment (a module being loaded)."""
        while True:
            try:
                await step()  # type: ignore[misc]  # a coroutine function without result
            except DataplaneError as error:
                self._around.health.degraded["kernel"] = describe(error)
                wait_s = self._backoff.next_s()
                _log.warning(log.RECONCILE_FAILED, error=describe(error), retry_s=round(wait_s, 1))
                await asyncio.sleep(wait_s)
            else:
                self._around.health.degraded.pop("kernel", None)
                self._backoff.reset()
                return

    async def _watch_kernel(self) -> None:
        async for news in self._dataplane.changes():
            self._kernel_news.add(news)
            self._wake.set()

    async def _wait(self) -> None:
        """Until there is something to do, or a deadline passes."""
        if self._pending:
            return
        deadlines = [self._retry_at_s, self._audit_at_s, self._listen_at_s, self._draining.next_deadline_s()]
        soonest_s = min((d for d in deadlines if d is not None), default=None)
        timeout_s = None if soonest_s is None else max(0.0, soonest_s - self._clock.monotonic())
        waiters = [
            asyncio.create_task(self._store.wait_changed()),
            asyncio.create_task(self._wake.wait()),
        ]
        try:
            await asyncio.wait(waiters, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)

    async def _turn(self) -> None:
        """Everything that is due, changes first."""
        started_s = self._clock.monotonic()
        failures: list[DataplaneError] = []
        worked = await self._take_changes(failures)
        while self._pending:
            worked = True
            failures += await self._portion(PORTION)
            await self._take_changes(failures)
        now_s = self._clock.monotonic()
        failures += await self._drain(now_s)
        if self._listen_at_s is not None and now_s >= self._listen_at_s:
            await self._serve_health_checks()
        if self._retry_at_s is not None and now_s >= self._retry_at_s:
            worked = True
            failures += await self._repair("retry")
        if self._audit_at_s is not None and now_s >= self._audit_at_s:
            before_s = self._clock.process_time()
            failures += await self._audit()
            self._audit_cost_s = self._clock.process_time() - before_s
            self._plan_audit()
        self._conclude(failures, self._clock.monotonic() - started_s if worked else None)
        if worked and self._config.ipvs.min_sync_period_s:
            await asyncio.sleep(self._config.ipvs.min_sync_period_s)

    # -- start

    async def _start(self) -> None:
        dataplane = self._dataplane
        started_s = self._clock.monotonic()
        self._host = await dataplane.read_host()
        servers = await self._patiently(dataplane.dump_virtual_servers)
        vips = await dataplane.dump_vips()
        elements = await dataplane.dump_elements()
        self._legacy = await dataplane.dump_device_addresses()
        own = {a.address for a in self._host.addresses}
        # Even when our table is there already: a takeover may have been cut short. Its last step is to release the
        # addresses, and without any of those there is nothing to adopt.
        adopted = left_by_kube_proxy(servers, self._legacy, own, self._config.ipvs.exclude_cidrs)
        self._store.take_changes()  # everything is planned below
        self._note_queued()
        self._planner = Planner(self._config, self._view(), self._schedulers, nftables.mark_elements(elements or ()))
        if elements is None:  # a new table is loaded with what depends on the node alone
            elements = set(self._planner.desired.elements)
        self._applier = Applier(dataplane, Picture(servers, vips, elements, adopted), self._count)
        await self._load_table()
        state = self._store.state
        # The API server and DNS come first and alone: a node without them cannot even start its pods.
        services = in_order(state, state.services)
        urgent = [key for key in services if priority(state.services[key]) < 2]
        failures: list[DataplaneError] = []
        for portion in (urgent, *_portions(services[len(urgent) :], START_PORTION)):
            failures += await self._program(portion)
        # Only now, with everything planned, is it known what is not wanted any more. The rest was compared above.
        failures += await self._repair("start", None if failures else self._unwanted())
        if self._legacy and not failures:
            await dataplane.release_addresses(self._legacy)
            _log.info(log.KUBE_PROXY_TAKEN_OVER, addresses=len(self._legacy), virtual_servers=len(adopted))
            self._legacy = set()
        self._plan_audit()
        self._conclude(failures, self._clock.monotonic() - started_s)
        # What is there was read or acknowledged a moment ago: the audit has to look only at what changes from now on.
        self._fingerprints = await dataplane.fingerprints()
        self._applier.touched.clear()
        _log.info(
            log.RECONCILE_STARTED,
            services=len(services),
            virtual_servers=len(self._planner.desired.virtual_servers),
            found=len(servers),
            seconds=round(self._clock.monotonic() - started_s, 3),
        )

    async def _patiently(self, dump: Callable[[], object]) -> dict[VirtualServerKey, ActualVirtualServer]:
        """A dump that is interrupted by somebody's changes is asked for again, a few times."""
        for attempt in range(5):
            try:
                return await dump()  # type: ignore[misc,no-any-return]
            except Interrupted:
                if attempt == 4:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def _unwanted(self) -> Delta:
        """What is known to be in the kernel and not wanted."""
        desired, picture = self._planner.desired, self._applier.picture
        return Delta(
            {},
            {key: None for key in picture.servers if key not in desired.virtual_servers},
            {vip: None for vip in picture.vips if vip not in desired.vips},
            {element: None for element in picture.elements.values() if element not in desired.elements},
        )

    async def _load_table(self) -> None:
        """Make our table as this version and configuration want it, with every element that is known, at once."""
        await self._dataplane.load_table(
            nftables.load(self._config, self._applier.picture.elements.values()),
        )

    # -- changes

    async def _take_changes(self, failures: list[DataplaneError]) -> bool:
        """Move what the store and the kernel report into `_pending`; True if there was anything."""
        changes = self._store.take_changes()
        news, self._kernel_news = self._kernel_news, set()
        self._wake.clear()
        if not changes and not news:
            return False
        if changes.services:
            self._note_queued()
            self.in_step.clear()
            self._pending.add(in_order(self._store.state, changes.services), PORTION)
        if news & {"address", "link"}:
            self._host = await self._dataplane.read_host()
        if changes.nodes or news & {"address", "link"}:
            failures += await self._node_changed()
        if news & {"route", "nft"}:
            failures += await self._look_again(news)
        return True

    def _note_queued(self) -> None:
        now_s = self._clock.time()
        new = {}
        for resource, seen in self._events_seen.items():
            figures = self._store.figures[resource]
            self._events_seen[resource] = figures.upserts + figures.deletes
            new[resource] = self._events_seen[resource] - seen
        self._around.metrics.queued(now_s, new[Resource.SERVICES], new[Resource.ENDPOINT_SLICES])
        self._around.health.queued(now_s)

    async def _portion(self, limit: int) -> list[DataplaneError]:
        return await self._program(self._pending.take(limit))

    async def _program(self, services: list[ObjectKey]) -> list[DataplaneError]:
        """Plan, diff and apply some Services."""
        if not services:
            return []
        failures: list[DataplaneError] = []
        for delta in self._plan(services):
            failures += await self._apply_delta(delta)
        self._measure_programming(services)
        # A long list must not hold the loop: probes and the watch go on in between.
        await asyncio.sleep(0)
        return failures

    def _plan(self, services: list[ObjectKey]) -> Iterable[Delta]:
        """Plan together; should planning fail for one Service, plan each alone so that the others are served."""
        try:
            return [self._planner.update(self._store.state, services)]
        except Exception as error:
            if len(services) == 1:
                _log.exception(log.PLAN_FAILED, service=str(services[0]))
                self._around.health.degraded[str(services[0])] = f"cannot be planned: {error}"
                return []
            return [delta for service in services for delta in self._plan([service])]

    async def _apply_delta(self, delta: Delta) -> list[DataplaneError]:
        failures: list[DataplaneError] = []
        if delta:
            failures = await self._apply_diff(delta)
            self._track(delta.virtual_servers)
        await self._tell(delta.services)
        return failures

    async def _apply_diff(self, delta: Delta | None = None) -> list[DataplaneError]:
        """Apply what differs; once more if somebody else had added what we wanted to add."""
        self._applier.surprised = False
        failures = await self._applier.apply(diff(self._planner.desired, self._applier.picture, delta))
        if self._applier.surprised:
            failures += await self._applier.apply(diff(self._planner.desired, self._applier.picture, delta))
        return failures

    def _track(self, servers: Iterable[VirtualServerKey]) -> None:
        now_s = self._clock.monotonic()
        for key in servers:
            stays = leaving(self._planner.desired, self._applier.picture, key)
            self._draining.track(key, stays, now_s)

    async def _node_changed(self) -> list[DataplaneError]:
        view = self._view()
        if view == self._planner.node:
            return []
        _log.info(log.NODE_CHANGED, node=self._node_name, primary=view.primary, addresses=len(view.addresses))
        failures = await self._apply_delta(self._planner.set_node(self._store.state, view))
        await self._serve_health_checks()
        return failures

    def _view(self) -> NodeView:
        nodes = self._store.state.nodes
        own = nodes.get(ObjectKey("", self._node_name))
        self._note_node(own)
        return node_view(
            self._node_name,
            own,
            addresses=self._host.addresses,
            links=self._host.links,
            gateways=self._host.gateways,
            nodes=nodes.values(),
            bind_address=self._config.bind_address,
        )

    def _note_node(self, own: Node | None) -> None:
        health = self._around.health
        if own is None and health.node_known:
            # Gone while we run: it is being taken out of the cluster, whatever becomes of its object.
            health.node_deleting = True
            return
        health.node_known = own is not None
        health.node_deleting = own is not None and own.deleting
        health.node_taints = own.taints if own is not None else ()

    # -- draining, drift, failures

    async def _drain(self, now_s: float) -> list[DataplaneError]:
        """Count connections where it is due, and let go who has none left."""
        ops: list[Op] = []
        for server in self._draining.due(now_s):
            try:
                counters = await self._dataplane.connections(server)
            except NotFound:
                counters = {}
            except DataplaneError as error:
                _log.warning(log.RECONCILE_FAILED, error=describe(error))
                continue
            ops += [DeleteRealServer(server, key) for key in self._draining.counted(server, counters, now_s)]
        failures = await self._applier.apply(ops) if ops else []
        self._around.metrics.draining.set(sum(1 for _ in self._draining))
        return failures

    async def _look_again(self, news: set[str]) -> list[DataplaneError]:
        """Somebody changed our routes or our table: read them and put them right."""
        picture = self._applier.picture
        if "route" in news:
            vips = await self._dataplane.dump_vips()
            if vips == picture.vips:
                news = news - {"route"}
            picture.vips = vips
        if "nft" in news:
            elements = await self._dataplane.dump_elements()
            known = {e.set: None for e in picture.elements.values()}
            if elements is None:
                _log.warning(log.DRIFT_FOUND, what="table", known_sets=len(known))
                await self._load_table()
            elif elements == set(picture.elements.values()):
                news = news - {"nft"}
            else:
                self._applier.picture = Picture(picture.servers, picture.vips, elements, picture.adopted)
        if not news & {"route", "nft"}:
            return []
        return await self._repair("drift")

    async def _audit(self) -> list[DataplaneError]:
        """Compare all that is ours with the kernel, in slices between which changes go first.

        Fingerprints tell which virtual servers are as they were when last read; only the others are read again.
        """
        failures: list[DataplaneError] = []
        try:
            # What is touched from here on may differ from the fingerprints for good reason.
            touched, self._applier.touched = self._applier.touched, set()
            fingerprints = await self._dataplane.fingerprints()
            there = dict(await self._dataplane.dump_keys())
            picture = self._applier.picture
            missing = [k for k in picture.servers if k not in there]
            for key in missing:
                picture.put_server(key, None)
            known, self._fingerprints = self._fingerprints, fingerprints
            suspects = [
                key
                for key, config in there.items()
                if (key in self._planner.desired.virtual_servers or picture.owns(key))
                and (
                    key in touched
                    or known.get(key) != fingerprints.get(key)
                    or key not in picture.servers
                    or picture.servers[key].config != config
                )
            ]
            for portion in _portions(suspects, AUDIT_PORTION):
                for key in portion:
                    try:
                        picture.put_server(key, await self._dataplane.dump_real_servers(key))
                    except NotFound:
                        picture.put_server(key, None)
                await asyncio.sleep(0)
                if await self._take_changes(failures):
                    while self._pending:
                        failures += await self._portion(PORTION)
                picture = self._applier.picture
            vips = await self._dataplane.dump_vips()
            elements = await self._dataplane.dump_elements()
        except DataplaneError as error:
            self._around.metrics.audits.labels("failed").inc()
            return [*failures, error]
        if elements is None:
            picture.vips = vips
            await self._load_table()
        elif vips == picture.vips and elements == set(picture.elements.values()):
            # Nothing but these can differ, so that nothing else has to be compared.
            return failures + await self._repair("audit", Delta({}, dict.fromkeys([*missing, *suspects]), {}, {}))
        else:
            self._applier.picture = Picture(picture.servers, vips, elements, picture.adopted)
        return failures + await self._repair("audit")

    async def _repair(self, why: str, delta: Delta | None = None) -> list[DataplaneError]:
        """Diff everything (in memory), or what `delta` names, and apply what differs."""
        if not await self._applier.reread() and self._applier.table_lost:
            await self._load_table()
            await self._applier.reread()
        ops = diff(self._planner.desired, self._applier.picture, delta)
        failures = await self._apply_diff(delta) if ops else []
        self._track(self._planner.desired.virtual_servers if delta is None else delta.virtual_servers)
        if why in {"audit", "drift"}:
            self._around.metrics.audits.labels("drift" if ops else "clean").inc()
            if ops:
                self._around.metrics.drift_repaired.inc(len(ops))
                _log.warning(log.DRIFT_REPAIRED, by=why, operations=len(ops), first=type(ops[0]).__name__)
        return failures

    def _plan_audit(self) -> None:
        interval_s = self._config.additions.audit_interval_s
        if interval_s is None:
            interval_s = max(self._config.ipvs.sync_period_s, self._audit_cost_s / AUDIT_SHARE)
        self._audit_at_s = self._clock.monotonic() + interval_s if interval_s else None

    def _conclude(self, failures: list[DataplaneError], seconds: float | None) -> None:
        """Note how a turn went: in step, or what is retried when."""
        around, now_s = self._around, self._clock.monotonic()
        if failures:
            if self._retry_at_s is None or now_s >= self._retry_at_s:
                wait_s = self._backoff.next_s()
                self._retry_at_s = now_s + wait_s
                for error in failures[:10]:
                    _log.warning(log.RECONCILE_FAILED, error=describe(error), retry_s=round(wait_s, 1))
            around.health.degraded |= {self._blame(error): describe(error) for error in failures}
        elif self._retry_at_s is None or now_s >= self._retry_at_s:
            self._retry_at_s = None
            self._backoff.reset()
            around.health.degraded.clear()
        around.metrics.degraded.set(len(around.health.degraded))
        # A Service that the kernel refuses is shown as degraded; only when our table or routes cannot be written is the
        # node itself out of order, for then every Service is concerned.
        if not any(error.op is None or isinstance(error.op, ChangeElements) for error in failures):
            around.health.updated(self._clock.time())
        if seconds is None:
            return
        around.metrics.synced(seconds, self._clock.time())
        if not failures and not self._pending:
            around.metrics.in_step()
            self.in_step.set()

    def _blame(self, error: DataplaneError) -> str:
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

    # -- telling

    async def _tell(self, services: Iterable[ObjectKey]) -> None:
        """Events, gauges and health check servers of Services whose plan may have changed."""
        rebind = False
        for key in services:
            problems = frozenset(self._planner.problems(key))
            for problem in sorted(problems - self._problems.get(key, frozenset()), key=lambda p: p.message):
                self._around.report(key, problem)
            if problems:
                self._problems[key] = problems
            else:
                self._problems.pop(key, None)
            plan = self._planner.plans.get(key)
            for (policy, family), held in self._no_local.items():
                lacking = getattr(plan, f"no_local_{policy}", ())
                (held.add if family in lacking else held.discard)(key)
            wanted = self._planner.health_check(key)
            running = self._around.health_servers.ports.get(key)
            if wanted is not None:
                self._around.health_servers.set_count(key, wanted.local_ready)
            rebind |= (wanted.port if wanted else None) != running
        for (policy, family), held in self._no_local.items():
            self._around.metrics.no_local_endpoints.labels(f"IPv{family}", policy).set(len(held))
        if rebind:
            await self._serve_health_checks()

    async def _serve_health_checks(self) -> None:
        wanted = {
            key: plan.health_check.port for key, plan in self._planner.plans.items() if plan.health_check is not None
        }
        setting = self._config.node_port_addresses
        addresses = self._planner.node_port_addresses() if setting.primary or setting.cidrs else ("0.0.0.0", "::")
        servers = self._around.health_servers
        await servers.reconcile(wanted, addresses)
        self._listen_at_s = self._clock.monotonic() + self._config.ipvs.sync_period_s if servers.incomplete else None

    def _measure_programming(self, services: Iterable[ObjectKey]) -> None:
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


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Start-up makes hundreds of thousands of objects that stay: collecting in between would look at all of them again.

    Afterwards what there is counts as permanent, so that later collections look at what came since.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _portions(items: list[_T], size: int) -> Iterable[list[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
