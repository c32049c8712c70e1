"""The asyncio shell around ClusterState: sources write events in, one reader waits for changes and takes them out.

Knows: when to wake whom, and how long ago each resource gave its last proof of life. Must not know: where events come
from or what a change means. Written by the sources (`reflector`, `files`), read by each daemon's main loop and the
operations server. Not thread-safe: everything happens in one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kubecore.model import RESOURCE_OF, Delete, Event, Listed, ListStarted, Resource, Upsert
from kubecore.snapshot import Changes, ClusterState


@runtime_checkable
class Source(Protocol):
    """Something that tells a Store about the cluster: the API server, or a directory of manifests."""

    async def run(self, store: Store) -> None:
        """Feed `store` until cancelled.

        Order: for each resource it knows, `ListStarted`, the objects, `Listed`, then changes; a new list may begin at
        any time. Failures are retried and logged inside; the only way out is cancellation, and then nothing is left
        running.
        """


@dataclass(slots=True)
class ResourceFigures:
    """Counters of one resource since the process started. Sources add to them, the operations server exposes them."""

    upserts: int = 0
    deletes: int = 0
    lists: int = 0
    """Complete lists. The first is the start; each further one is a relist."""
    skipped: int = 0
    """Malformed objects that were left out."""
    requests: int = 0
    """Requests sent to the API server (files: scans of the directory)."""
    failures: int = 0
    """Requests (scans) that ended in an error and are retried."""


_OBJECTS: dict[Resource, Callable[[ClusterState], Sized]] = {
    Resource.SERVICES: lambda s: s.services,
    Resource.ENDPOINT_SLICES: lambda s: s.slices,
    Resource.NODES: lambda s: s.nodes,
    Resource.NAMESPACES: lambda s: s.namespaces,
    Resource.PODS: lambda s: s.pods,
    Resource.SERVICE_CIDRS: lambda s: s.service_cidrs,
    Resource.SERVICE_IMPORTS: lambda s: s.service_imports,
}


class Store:
    """One ClusterState with its wake-ups and its freshness."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = ClusterState()
        """What the cluster looks like now. Readers may keep the objects they take out; only `apply` changes it."""
        self.figures: Mapping[Resource, ResourceFigures] = {r: ResourceFigures() for r in Resource}
        self._clock = clock
        self._alive_s: dict[Resource, float] = {}
        self._changed = asyncio.Event()
        self._listed = asyncio.Event()

    # -- the writing side

    def apply(self, event: Event) -> None:
        """Take one event in and wake who waits for it. Never raises, never waits."""
        self.state.apply_event(event)
        match event:
            case Upsert(obj):
                self.figures[RESOURCE_OF[type(obj)]].upserts += 1
            case Delete(resource):
                self.figures[resource].deletes += 1
            case Listed(resource):
                self.figures[resource].lists += 1
                self.note_alive(resource)
                self._listed.set()
                self._listed = asyncio.Event()
            case ListStarted():
                return
        self._changed.set()

    def apply_all(self, events: Iterable[Event]) -> None:
        """Take several events in, in order."""
        for event in events:
            self.apply(event)

    def note_alive(self, resource: Resource) -> None:
        """Record a proof of life of `resource`'s source: bytes of a watch (bookmarks too), or a scan of the files."""
        self._alive_s[resource] = self._clock()

    # -- the reading side

    def take_changes(self) -> Changes:
        """What differs from the previous call; false when nothing does. Changes are handed out once, to one reader."""
        self._changed.clear()
        return self.state.take_changes()

    def count(self, resource: Resource) -> int:
        """How many objects of `resource` are known now."""
        return len(_OBJECTS[resource](self.state))

    async def wait_changed(self) -> None:
        """Return as soon as something arrived since the last `take_changes`; what it then takes can still be empty."""
        await self._changed.wait()

    async def wait_listed(self, *resources: Resource) -> None:
        """Return once each of `resources` has been listed completely; nothing destructive may happen before."""
        while not self.state.is_listed(*resources):
            await self._listed.wait()

    # -- freshness

    def staleness_s(self, resource: Resource) -> float:
        """Seconds since the last proof of life of `resource`; infinity before the first."""
        alive_s = self._alive_s.get(resource)
        return math.inf if alive_s is None else max(0.0, self._clock() - alive_s)

    def staleness(self) -> dict[Resource, float]:
        """`staleness_s` of every resource that was heard from or counted a request, for metrics."""
        return {r: self.staleness_s(r) for r in Resource if r in self._alive_s or self.figures[r].requests}
