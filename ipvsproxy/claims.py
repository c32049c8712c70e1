"""Who holds what several Services ask for: a virtual server goes to one of them, a route stays while anyone asks.

Knows: the order of precedence. Must not know: how a Service comes to ask. Used by the planner alone.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from typing import Generic, TypeVar

import msgspec

from ipvsproxy.model import VirtualServerKey
from ipvsproxy.serviceplan import Entry
from kubecore.model import ObjectKey

K = TypeVar("K", bound=Hashable)


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A Service's wish for a virtual server. That of the lowest rank holds it."""

    created_s: float
    service: ObjectKey
    entry: Entry

    @property
    def rank(self) -> tuple[bool, float, ObjectKey]:
        """What the API server allocated (ClusterIP, node port) outranks what a user wrote (externalIPs, ingress).

        Nobody can take another's ClusterIP (CVE-2020-8554). Then the older Service, then the name decides, so that
        every node agrees.
        """
        return not self.entry.allocated, self.created_s, self.service


class Claims:
    """Claims on virtual servers. Contested ones are few, so only those have a list."""

    def __init__(self) -> None:
        self._held: dict[VirtualServerKey, Claim] = {}
        self._waiting: dict[VirtualServerKey, dict[ObjectKey, Claim]] = {}

    @property
    def contested(self) -> bool:
        """Whether anything is claimed more than once."""
        return bool(self._waiting)

    def holder(self, key: VirtualServerKey) -> ObjectKey | None:
        """The Service that holds `key`."""
        held = self._held.get(key)
        return held.service if held else None

    def held(self, key: VirtualServerKey) -> Entry | None:
        """What the holder wants at `key`."""
        held = self._held.get(key)
        return held.entry if held else None

    def put(self, claim: Claim) -> set[ObjectKey]:
        """Add or renew a claim; returns the other Services that won or lost by it."""
        key = claim.entry.server.key
        held = self._held.get(key)
        if held is None or held.service == claim.service:
            before = self.take(key, claim.service) if held else set()
            if key not in self._held:
                self._held[key] = claim
                return before
            held = self._held[key]
        if claim.rank < held.rank:
            self._waiting.setdefault(key, {}).pop(claim.service, None)
            self._waiting[key][held.service] = held
            self._held[key] = claim
            return {held.service}
        self._waiting.setdefault(key, {})[claim.service] = claim
        return {held.service}

    def take(self, key: VirtualServerKey, service: ObjectKey) -> set[ObjectKey]:
        """Withdraw a claim; returns the other Services that won by it."""
        waiting = self._waiting.get(key)
        held = self._held.get(key)
        won: set[ObjectKey] = set()
        if held is not None and held.service == service:
            del self._held[key]
            if waiting:
                heir = min(waiting.values(), key=lambda c: c.rank)
                del waiting[heir.service]
                self._held[key] = heir
                won = {heir.service}
        elif waiting:
            waiting.pop(service, None)
        if waiting is not None and not waiting:
            del self._waiting[key]
        return won


class Counted(Generic[K]):
    """How many Services ask for something; it is wanted while the count is not 0.

    Args:
        wanted: what is asked for at all; the caller's to change. Nearly everything is asked for once, so only what is
            asked for more often takes room here.
    """

    def __init__(self, wanted: Container[K]) -> None:
        self._wanted = wanted
        self._more: dict[K, int] = {}

    def add(self, key: K) -> bool:
        """One more; True if it is the first, and now to be put into `wanted`."""
        if key not in self._wanted:
            return True
        self._more[key] = self._more.get(key, 0) + 1
        return False

    def drop(self, key: K) -> bool:
        """One less; True if it was the last, and now to be taken out of `wanted`."""
        more = self._more.pop(key, 0)
        if more > 1:
            self._more[key] = more - 1
        return more == 0
