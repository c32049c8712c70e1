"""Compares what is known of the kernel with the kernel, at a cost that never holds up a change for long.

Knows: what can be compared cheaply, and what has to be read again because of it. Must not know: policy, when an audit
is due, how drift is repaired. Called by the reconciler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Set
from itertools import islice
from typing import Any, TypeVar

import structlog

from ipvsproxy.applier import Applier
from ipvsproxy.dataplane import AddVip, ChangeElements, DataPlane, DeleteVip, Interrupted, NotFound, Op
from ipvsproxy.model import Delta, Element, VirtualServerKey
from ipvsproxy.planner import Planner
from kubecore import log

PORTION = 25
"""Virtual servers read back in one slice of an audit, 5 ms or so; between slices changes go first."""

POLL_S = 0.01
"""How soon a change is seen while something long is read."""

T = TypeVar("T")
Meanwhile = Callable[[], Awaitable[None]]
"""Takes changes in and programs them."""

_log = structlog.get_logger()


class Audit:
    """Keeps the applier's picture true to the kernel.

    Args:
        dataplane: the kernel.
        applier: whose picture it is.
        planner: knows what is wanted, and so which virtual servers concern us.
        load_table: makes our table anew, with every element that is known.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        applier: Applier,
        planner: Planner,
        load_table: Callable[[], Awaitable[None]],
    ) -> None:
        self._dataplane = dataplane
        self._applier = applier
        self._planner = planner
        self._load_table = load_table
        self._fingerprints: dict[VirtualServerKey, int] | None = None
        """As of the last comparison. None before the first, which reads everything: what somebody altered while we
        started would else be taken for ours for good."""

    @property
    def is_first(self) -> bool:
        """Whether the next comparison is the first one."""
        return self._fingerprints is None

    async def look_again(self, what: Set[str], meanwhile: Meanwhile | None = None) -> Delta:
        """Read routes ("route") or elements ("nft") again; returns what differs from what was known.

        What `meanwhile` changes while they are read is left to the next time.

        Raises: DataplaneError.
        """
        vips = await self._routes(meanwhile) if "route" in what else {}
        return Delta({}, {}, vips, await self._elements(meanwhile) if "nft" in what else {})

    async def _routes(self, meanwhile: Meanwhile | None) -> dict[str, None]:
        picture, done = self._applier.picture, list[Op]()
        with self._applier.noting(done):
            found = await self._reading(self._dataplane.dump_vips, meanwhile)
        for op in done:
            if isinstance(op, AddVip | DeleteVip):
                found.pop(op.address, None)
                if op.address in picture.vips:
                    found[op.address] = picture.vips[op.address]
        return picture.take_vips(found)

    async def _elements(self, meanwhile: Meanwhile | None) -> dict[Element, None]:
        picture, done = self._applier.picture, list[Op]()
        with self._applier.noting(done):
            found = await self._reading(self._dataplane.dump_elements, meanwhile)
        if found is None:
            _log.warning(log.DRIFT_FOUND, what="table", known_elements=len(picture.elements))
            await self._load_table()
            return {}
        changed = [e for op in done if isinstance(op, ChangeElements) for e in (*op.add, *op.delete)]
        found.difference_update(changed)
        found.update(there for e in changed if (there := picture.elements.get((e.set, e.key))) is not None)
        return picture.take_elements(found)

    async def compare(self, meanwhile: Meanwhile) -> Delta:
        """Look at all that is ours, in slices between which `meanwhile` runs; returns what may differ from before.

        Fingerprints tell which virtual servers are as they were when last read; only the others are read again.

        Raises: DataplaneError.
        """
        # What is touched from here on may differ from the fingerprints for good reason.
        touched, self._applier.touched = self._applier.touched, set()
        fingerprints = await self._reading(self._dataplane.fingerprints, meanwhile)
        there = dict(await self._reading(self._dataplane.dump_keys, meanwhile))
        picture = self._applier.picture
        known, self._fingerprints = self._fingerprints or {}, fingerprints
        # Not in a list that was read while it changed: most likely gone, but that is seen by asking for it.
        suspects = [key for key in picture.servers if key not in there]
        suspects += [
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
        differing: dict[VirtualServerKey, None] = {}
        unread = iter(suspects)
        while portion := list(islice(unread, PORTION)):
            for key in portion:
                try:
                    found = await self._dataplane.dump_real_servers(key)
                except NotFound:
                    picture.put_server(key, None)
                    differing[key] = None
                    continue
                if not picture.agrees(key, found):
                    picture.put_server(key, found)
                    differing[key] = None
            await asyncio.sleep(0)
            await meanwhile()
        delta = await self.look_again({"route", "nft"}, meanwhile)
        delta.virtual_servers.update(differing)
        return delta

    @staticmethod
    async def _reading(read: Callable[[], Coroutine[Any, Any, T]], meanwhile: Meanwhile | None) -> T:
        """What `read` returns. Changes go on while it reads, unless that keeps it from coming to an end."""
        if meanwhile is None:
            return await read()
        task = asyncio.create_task(read())
        try:
            while not task.done():
                await meanwhile()
                await asyncio.wait([task], timeout=POLL_S)
            return task.result()
        except Interrupted:
            return await read()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
