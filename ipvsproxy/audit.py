"""Compares what is known of the kernel with the kernel, at a cost that never holds up a change for long.

Knows: what can be compared cheaply, and what has to be read again because of it. Must not know: policy, when an audit
is due, how drift is repaired. Called by the reconciler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from itertools import islice

import structlog

from ipvsproxy.applier import Applier
from ipvsproxy.dataplane import DataPlane, NotFound
from ipvsproxy.model import Delta, Element, VirtualServerKey
from ipvsproxy.planner import Planner
from kubecore import log

PORTION = 25
"""Virtual servers read back in one slice of an audit, 5 ms or so; between slices changes go first."""

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

    async def look_again(self, what: Set[str]) -> Delta:
        """Read routes ("route") or elements ("nft") again; returns what differs from what was known.

        Raises: DataplaneError.
        """
        picture = self._applier.picture
        vips = picture.take_vips(await self._dataplane.dump_vips()) if "route" in what else {}
        elements: dict[Element, None] = {}
        if "nft" in what:
            found = await self._dataplane.dump_elements()
            if found is None:
                _log.warning(log.DRIFT_FOUND, what="table", known_elements=len(picture.elements))
                await self._load_table()
            else:
                elements = picture.take_elements(found)
        return Delta({}, {}, vips, elements)

    async def compare(self, meanwhile: Callable[[], Awaitable[None]]) -> Delta:
        """Look at all that is ours, in slices between which `meanwhile` runs; returns what may differ from before.

        Fingerprints tell which virtual servers are as they were when last read; only the others are read again.

        Raises: DataplaneError.
        """
        # What is touched from here on may differ from the fingerprints for good reason.
        touched, self._applier.touched = self._applier.touched, set()
        fingerprints = await self._dataplane.fingerprints()
        there = dict(await self._dataplane.dump_keys())
        picture = self._applier.picture
        missing = [k for k in picture.servers if k not in there]
        for key in missing:
            picture.put_server(key, None)
        known, self._fingerprints = self._fingerprints or {}, fingerprints
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
        differing = dict.fromkeys(missing)
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
        delta = await self.look_again({"route", "nft"})
        delta.virtual_servers.update(differing)
        return delta
