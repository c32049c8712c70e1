"""Plans Services for the reconciler: while the lists are still coming in what they have brought, later what changes.

Knows: what of an incomplete list can be planned, and who is told of a Service that cannot be. Must not know: the
kernel, how a Service is planned. Called by the reconciler and its programming.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, MutableMapping
from itertools import islice

import structlog

from ipvsproxy.model import Delta
from ipvsproxy.nodeview import NodeView
from ipvsproxy.planner import Planner
from kubecore import log
from kubecore.model import ObjectKey, Resource
from kubecore.store import Store

PORTION = 50
"""Services planned between two turns of the event loop while lists come in: 1 ms or so."""
NODES_PATIENCE_S = 2.0
"""How long a start waits for the list of Nodes after the others; it comes with them, as a rule."""

_log = structlog.get_logger()


class Planning:
    """The planner, and which Services it has yet to plan.

    Args:
        store: the cluster.
        planner: what is wanted.
        unplanned: told which Services cannot be planned, and why.
    """

    def __init__(self, store: Store, planner: Planner, unplanned: MutableMapping[str, str]) -> None:
        self.planner = planner
        self._store = store
        self._unplanned = unplanned
        self._waiting: set[ObjectKey] = set()

    async def ahead(self, note_node: Callable[[], object]) -> None:
        """Plan what the lists bring until both are complete, for they take longer to come than to be planned.

        Nothing of it is told: whether something is wanted is known when the lists are complete, and not before.

        Args:
            note_node: called when Nodes arrive, for /healthz shows at once whether this one is eligible.
        """
        state = self._store.state
        while not state.is_listed(Resource.SERVICES, Resource.ENDPOINT_SLICES):
            await self._store.wait_changed()
            changes = self._store.take_changes()
            if changes.nodes:
                note_node()
            arrived = iter(changes.services)
            while portion := list(islice(arrived, PORTION)):
                self._waiting.update(portion)
                # A Service without endpoints has some that come later, as a rule.
                self.update([key for key in portion if state.slices_of(key)])
                gc.freeze()  # most of this stays: a garbage collection that looks at all of it again finds nothing
                await asyncio.sleep(0)

    async def nodes(self) -> None:
        """Wait a moment for the list of Nodes, if there are external addresses, for these may be other nodes'.

        Routed here, such an address ends this node's connections to the other one.
        """
        if any(s.ingress or s.external_ips for s in self._store.state.services.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NODES_PATIENCE_S):
                    await self._store.wait_listed(Resource.NODES)

    async def rest(self) -> None:
        """Plan what `ahead` left and what changed since, so that it is settled who holds what several Services ask for.

        Else what works at a restart would be handed to one Service, and then to the next.
        """
        self._waiting |= self._store.take_changes().services
        while self._waiting:
            self.update(list(islice(self._waiting, PORTION)))
            await asyncio.sleep(0)

    def update(self, services: list[ObjectKey]) -> Delta:
        """Plan these Services; what may differ now."""
        self._waiting.difference_update(services)
        delta = self.planner.update(self._store.state, services)
        self._tell_failures()
        return delta

    def set_node(self, node: NodeView) -> Delta:
        """Take over a new picture of the node; what may differ now."""
        delta = self.planner.set_node(self._store.state, node)
        self._tell_failures()
        return delta

    def _tell_failures(self) -> None:
        failures = {str(key): error for key, error in self.planner.failures.items()}
        for service in [each for each in self._unplanned if each not in failures]:
            del self._unplanned[service]
        for service, error in failures.items():
            text = f"cannot be planned: {error}"
            if self._unplanned.get(service) != text:
                self._unplanned[service] = text
                _log.error(log.PLAN_FAILED, service=service, exc_info=error)
