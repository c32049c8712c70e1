"""When a real server that is no longer wanted may go: a state machine without a clock.

Knows: why a real server stays (its endpoint still serves, still exists, or is gone) and its limits. Must not know: how
connections are counted or anything removed. The reconciler feeds it after each diff and asks for the next deadline.

A real server that is not wanted has weight 0 (diff sees to that) until this says it is finished. Nothing is stored: a
restart finds weight 0 and no wish, and drains from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from ipvsproxy.model import (
    Desired,
    PlannedVirtualServer,
    RealServerCounters,
    RealServerKey,
    VirtualServerKey,
)
from ipvsproxy.picture import Alike, Picture
from kubecore.model import Protocol


class Stay(Enum):
    """Why a real server that gets no new connections is still there."""

    SERVING = "serving"
    """Its endpoint terminates and still serves: it stays, with or without connections."""
    LISTED = "listed"
    """Its endpoint exists but is not wanted (not ready): it stays as long as it has connections."""
    GONE = "gone"
    """Its endpoint is gone: it stays as long as it has connections, and no longer than the grace."""
    ANSWERING = "answering"
    """Its endpoint exists but is not wanted, and its flows have no end to wait for: it stays for ANSWERS_S."""


ANSWERS_S = 0.5
"""So long answers over UDP and SCTP may be under way from an endpoint that is still there. Deleting a real server makes
the kernel forget its flows (`expire_nodest_conn`), and an answer without a flow comes from the pod's address: nobody
takes it."""


def leaving(desired: Desired, picture: Picture, server: VirtualServerKey) -> dict[RealServerKey, Stay]:
    """The real servers of one virtual server that drain, and why they stay; none if it is not wanted itself."""
    planned = desired.virtual_servers.get(server)
    actual = picture.servers.get(server)
    if planned is None or actual is None:
        return {}
    reals = actual.real_servers
    if isinstance(reals, Alike) and reals.are(planned.real_servers):
        return {}
    extra = reals.keys() - planned.real_servers
    if not extra:  # as nearly always
        return {}
    return {key: _stay(planned, key) for key in reals if key in extra and drains(planned, key)}


def drains(planned: PlannedVirtualServer, key: RealServerKey) -> bool:
    """Whether a real server that is no longer wanted is drained rather than cut off at once.

    Only TCP has an end to wait for; a UDP or SCTP flow would stay on a dead endpoint for as long as its client talks.
    """
    return planned.protocol is Protocol.TCP or key in planned.draining or key in planned.listed


def _stay(planned: PlannedVirtualServer, key: RealServerKey) -> Stay:
    if planned.protocol is not Protocol.TCP:
        return Stay.ANSWERING
    if key in planned.draining:
        return Stay.SERVING
    return Stay.LISTED if key in planned.listed else Stay.GONE


_FOREVER_S = float("inf")


@dataclass(slots=True)
class _Drain:
    stay: Stay
    until_s: float
    """When it goes, connections or not; infinite: they decide alone."""


@dataclass(slots=True)
class _Server:
    real_servers: dict[RealServerKey, _Drain] = field(default_factory=dict)
    poll_s: float = 0.0


class Draining:
    """The real servers that drain.

    Args:
        grace_s: limit from the moment an endpoint was seen to be gone.
        every_s: how often connections are counted.
    """

    def __init__(self, grace_s: float, every_s: float) -> None:
        self._limits_s = {Stay.GONE: grace_s, Stay.ANSWERING: ANSWERS_S}
        self._every_s = every_s
        self._servers: dict[VirtualServerKey, _Server] = {}

    def __iter__(self) -> Iterator[tuple[VirtualServerKey, RealServerKey, Stay]]:
        """Everything that drains now."""
        for server, state in self._servers.items():
            for key, drain in state.real_servers.items():
                yield server, key, drain.stay

    def track(self, server: VirtualServerKey, stays: Mapping[RealServerKey, Stay], now_s: float) -> None:
        """Take note of what drains at `server`: replaces what was known; an empty mapping forgets the server.

        A newcomer is due at once, so that one without connections goes without waiting for a poll.
        """
        if not stays:
            self._servers.pop(server, None)
            return
        state = self._servers.setdefault(server, _Server())
        before = state.real_servers
        state.real_servers = {}
        for key, stay in stays.items():
            old = before.get(key)
            if old is not None and old.stay is stay:
                state.real_servers[key] = old
                continue
            state.real_servers[key] = _Drain(stay, now_s + self._limits_s.get(stay, _FOREVER_S))
            state.poll_s = now_s

    def due(self, now_s: float) -> list[VirtualServerKey]:
        """The virtual servers whose connections are to be counted now."""
        return [k for k, state in self._servers.items() if (at := self._deadline(state)) is not None and at <= now_s]

    def next_deadline_s(self) -> float | None:
        """When `due` has something; None: never, as things are."""
        return min((at for s in self._servers.values() if (at := self._deadline(s)) is not None), default=None)

    def counted(
        self,
        server: VirtualServerKey,
        counters: Mapping[RealServerKey, RealServerCounters],
        now_s: float,
    ) -> list[RealServerKey]:
        """The real servers of `server` that are finished, by a count taken now; they are forgotten here.

        One that the count does not know is gone already.
        """
        state = self._servers.get(server)
        if state is None:
            return []
        finished = [key for key, drain in state.real_servers.items() if self._finished(drain, counters.get(key), now_s)]
        for key in finished:
            del state.real_servers[key]
        if not state.real_servers:
            del self._servers[server]
        state.poll_s = now_s + self._every_s
        return finished

    def _finished(self, drain: _Drain, count: RealServerCounters | None, now_s: float) -> bool:
        if drain.stay is Stay.SERVING:
            return False
        if count is None or (count.drained and drain.stay is not Stay.ANSWERING):
            return True
        return now_s >= drain.until_s

    def _deadline(self, state: _Server) -> float | None:
        drains = [d for d in state.real_servers.values() if d.stay is not Stay.SERVING]
        if not drains:
            return None
        polled = any(d.stay is not Stay.ANSWERING for d in drains)
        return min(state.poll_s if polled else _FOREVER_S, *(d.until_s for d in drains))
