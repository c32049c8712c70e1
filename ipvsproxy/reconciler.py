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
from collections.abc import Callable, Iterator

import structlog

from ipvsproxy import nftables
from ipvsproxy.audit import Audit
from ipvsproxy.config import Config
from ipvsproxy.dataplane import (
    DataPlane,
    DataplaneError,
    HostNetwork,
    Interrupted,
)
from ipvsproxy.model import ActualVirtualServer, Element, Scheduler, VirtualServerKey
from ipvsproxy.nodeview import NodeView, node_view
from ipvsproxy.pending import Pending
from ipvsproxy.picture import Picture
from ipvsproxy.planner import Planner, in_order, priority
from ipvsproxy.planning import Planning
from ipvsproxy.programming import Programming
from ipvsproxy.standing import Standing
from ipvsproxy.surroundings import Clock, Surroundings, Telling
from ipvsproxy.takeover import left_by_kube_proxy
from kubecore import log
from kubecore.model import Family, Node, ObjectKey
from kubecore.store import Store

PORTION = 250
"""Services planned and applied before the store is looked at again: what a newcomer waits for behind a burst."""
START_PORTION = 500
"""The same at start, when nobody waits for a single change and fewer transactions are cheaper."""
AUDIT_SHARE = 0.0008
"""Share of a core that audits may take where their interval is not set."""
COUNTERS_EVERY_S = 30.0
"""A scrape reads the kernel's counters at most this often: a dump of 100,000 real servers costs about half a second."""

_log = structlog.get_logger()


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
        self._standing = Standing(around, clock, rng or random.Random())  # noqa: S311 - jitter
        self._telling = Telling(around, store, config, clock)
        self._pending = Pending()
        self._audit_at_s: float | None = None
        self._kernel_news: set[str] = set()
        self._wake = asyncio.Event()
        self._host = HostNetwork()
        self._found: set[Element] = set()
        """What our table held when it was made; empty once started."""
        dataplane.on_flows_cut = around.metrics.cut
        self._legacy: set[str] = set()
        self._counters_at_s = 0.0
        self._audit_cost_s = 0.0
        self._planning: Planning
        self._programming: Programming
        self._auditing: Audit
        self.in_step = asyncio.Event()
        """Set while the kernel has everything that was told; a test (and the start-up log line) waits for it."""

    @property
    def _planner(self) -> Planner:
        return self._planning.planner

    # -- reading, for metrics

    @property
    def picture(self) -> Picture | None:
        """What is known of the kernel; None before the start."""
        return self._programming.picture if hasattr(self, "_programming") else None

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
        return self.picture.sizes() if self.picture is not None else {}

    async def refresh_counters(self) -> None:
        """Read traffic and connections of all virtual servers into the picture, for a scrape.

        Raises: DataplaneError.
        """
        picture, now_s = self.picture, self._clock.monotonic()
        if picture is None or now_s < self._counters_at_s:
            return
        self._counters_at_s = now_s + COUNTERS_EVERY_S
        picture.take_counters(await self._dataplane.dump_virtual_servers())

    # -- the loop

    async def run(self) -> None:
        """Wait for both lists, adopt the kernel, then keep it in step until cancelled."""
        await self._standing.until_it_works(self._prepare)
        await self._planning.ahead(self._note_node)
        await self._planning.nodes()
        watcher = asyncio.create_task(self._watch_kernel())
        try:
            with _without_garbage_collection():
                await self._standing.until_it_works(self._start)
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

    async def _watch_kernel(self) -> None:
        async for news in self._dataplane.changes():
            self._kernel_news.add(news)
            self._wake.set()

    async def _wait(self) -> None:
        """Until there is something to do, or a deadline passes."""
        if self._pending:
            return
        deadlines = [
            self._standing.retry_at_s,
            self._audit_at_s,
            self._telling.listen_at_s,
            self._programming.draining.next_deadline_s(),
        ]
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
        failures += await self._programming.drain(now_s)
        if self._telling.listen_at_s is not None and now_s >= self._telling.listen_at_s:
            await self._telling.serve_health_checks(self._planner)
        if self._standing.begin_retry(now_s):
            worked = True
            try:
                failures += await self._programming.repair("retry")
            except DataplaneError as error:  # what is in doubt stays so
                failures.append(error)
        if self._audit_at_s is not None and now_s >= self._audit_at_s:
            failures += await self._audit()
            worked |= not self.in_step.is_set()  # there were changes meanwhile
        self._conclude(failures, self._clock.monotonic() - started_s if worked else None)
        if worked and self._config.ipvs.min_sync_period_s:
            await asyncio.sleep(self._config.ipvs.min_sync_period_s)

    # -- start

    async def _prepare(self) -> None:
        """Make our table, while the lists are still on their way: running nft takes as long as a thousand Services."""
        self._host = await self._dataplane.read_host()
        elements = await self._dataplane.dump_elements()
        known_marks = nftables.mark_elements(elements or ())
        planner = Planner(self._config, self._view(), self._schedulers, known_marks)
        self._found = elements or set(planner.node_elements)
        await self._dataplane.load_table(nftables.load(self._config, self._found))
        self._planning = Planning(self._store, planner, self._around.health.unplanned)

    async def _start(self) -> None:
        dataplane = self._dataplane
        started_s, cpu_s = self._clock.monotonic(), self._clock.process_time()
        self._host = await dataplane.read_host()
        servers = await self._patiently(dataplane.dump_virtual_servers)
        vips = await dataplane.dump_vips()
        elements = await dataplane.dump_elements()
        if elements is None:  # somebody deleted the table since it was made
            elements = self._found  # its claims tell whose virtual servers those are that nobody wants any more
            await dataplane.load_table(nftables.load(self._config, elements))
        self._legacy = await dataplane.dump_device_addresses()
        own = {a.address for a in self._host.addresses}
        # Even when our table is there already: a takeover may have been cut short. Its last step is to release the
        # addresses, and without any of those there is nothing to adopt.
        adopted = left_by_kube_proxy(servers, self._legacy, own, self._config.ipvs.exclude_cidrs)
        self._planning.set_node(self._view())
        await self._planning.rest()
        self._telling.queued()
        self._programming = Programming(
            planning=self._planning,
            dataplane=dataplane,
            config=self._config,
            around=self._around,
            telling=self._telling,
            clock=self._clock,
            picture=Picture(servers, vips, elements, adopted),
        )
        self._auditing = Audit(dataplane, self._programming.applier, self._planner, self._programming.load_table)
        state = self._store.state
        # The API server and DNS come first and alone: a node without them cannot even start its pods.
        urgent = in_order(state, [key for key, service in state.services.items() if priority(service) < 2])
        others = [key for key in state.services if key not in urgent]
        failures: list[DataplaneError] = []
        failures += await self._programming.program_listed(urgent)
        for start in range(0, len(others), START_PORTION):
            failures += await self._programming.program_listed(others[start : start + START_PORTION])
        # What is wanted was compared above.
        failures += await self._programming.repair("start", None if failures else self._programming.unwanted())
        if self._legacy and not failures:
            await dataplane.release_addresses(self._legacy)
            _log.info(log.KUBE_PROXY_TAKEN_OVER, addresses=len(self._legacy), virtual_servers=len(adopted))
            self._legacy = set()
        self._audit_cost_s = self._clock.process_time() - cpu_s  # until one has shown what it costs
        self._plan_audit()
        self._conclude(failures, self._clock.monotonic() - started_s)
        self._found = set()
        _log.info(
            log.RECONCILE_STARTED,
            services=len(state.services),
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

    # -- changes

    async def _take_changes(self, failures: list[DataplaneError]) -> bool:
        """Move what the store and the kernel report into `_pending`; True if there was anything."""
        changes = self._store.take_changes()
        news, self._kernel_news = self._kernel_news, set()
        self._wake.clear()
        if not changes and not news:
            return False
        if changes.services:
            self._telling.queued()
            self.in_step.clear()
            self._pending.add(in_order(self._store.state, changes.services), PORTION)
        if news & {"address", "link"}:
            self._host = await self._dataplane.read_host()
        if changes.nodes or news & {"address", "link"}:
            failures += await self._node_changed()
        if news & {"route", "nft"}:
            try:
                delta = await self._auditing.look_again(news)
                if delta:
                    failures += await self._programming.repair("drift", delta)
            except DataplaneError as error:  # Services go on, as far as they can; the retry looks at this again
                self._programming.applier.doubt_all()
                failures.append(error)
        return True

    async def _portion(self, limit: int) -> list[DataplaneError]:
        return await self._programming.program(self._pending.take(limit))

    async def _node_changed(self) -> list[DataplaneError]:
        view = self._view()
        if view == self._planner.node:
            return []
        _log.info(log.NODE_CHANGED, node=self._node_name, primary=view.primary, addresses=len(view.addresses))
        failures = await self._programming.apply_delta(self._planning.set_node(view))
        await self._telling.serve_health_checks(self._planner)
        return failures

    def _view(self) -> NodeView:
        nodes = self._store.state.nodes
        return node_view(
            self._node_name,
            self._note_node(),
            addresses=self._host.addresses,
            links=self._host.links,
            gateways=self._host.gateways,
            nodes=nodes.values(),
            bind_address=self._config.bind_address,
            families=self._host.families,
        )

    def _note_node(self) -> Node | None:
        """This node's object as it is now, which health is told of."""
        own = self._store.state.nodes.get(ObjectKey("", self._node_name))
        health = self._around.health
        if own is None and health.node_known:
            # Gone while we run: it is being taken out of the cluster, whatever becomes of its object.
            health.node_deleting = True
            return None
        health.node_known = own is not None
        health.node_deleting = own is not None and own.deleting
        health.node_taints = own.taints if own is not None else ()
        return own

    # -- drift, failures

    async def _audit(self) -> list[DataplaneError]:
        """Compare all that is ours with the kernel, while changes go first, and put right what differs."""
        failures: list[DataplaneError] = []

        async def meanwhile() -> None:
            if await self._take_changes(failures):
                while self._pending:
                    failures.extend(await self._portion(PORTION))

        before_s, is_first = self._clock.process_time(), self._auditing.is_first
        try:
            delta = await self._auditing.compare(meanwhile)
            failures += await self._programming.repair("audit", delta)
        except DataplaneError as error:
            self._around.metrics.audits.labels("failed").inc()
            failures.append(error)
        if not is_first:  # which reads everything, and says nothing of the next
            self._audit_cost_s = self._clock.process_time() - before_s
        self._plan_audit()
        return failures

    def _plan_audit(self) -> None:
        interval_s = self._config.additions.audit_interval_s
        if interval_s is None:
            interval_s = max(self._config.ipvs.sync_period_s, self._audit_cost_s / AUDIT_SHARE)
        self._audit_at_s = self._clock.monotonic() + interval_s if interval_s else None

    def _conclude(self, failures: list[DataplaneError], seconds: float | None) -> None:
        """Note how a turn went, and that the kernel is in step if it is; `seconds` None: there was nothing to do."""
        self._standing.conclude(failures, self._programming.blame)
        if seconds is None:
            return
        self._around.metrics.synced(seconds, self._clock.time(), done=not failures)
        if self._standing.retry_at_s is None and not self._pending:
            self._around.metrics.in_step()
            self.in_step.set()


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
