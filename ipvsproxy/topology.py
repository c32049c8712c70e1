"""Which endpoints of a service port a node uses: the one place of that policy.

Knows: conditions, hints, traffic policies and the serving-terminating fallback. Must not know: virtual servers, sets,
time. Called by the planner for each service port and family.

Source: KEP-1669 (terminating endpoints), KEP-2086 (internalTrafficPolicy), KEP-2433 and KEP-4444 (hints), KEP-3015
(node hints).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kubecore.endpoints import MergedEndpoint


class Usable(NamedTuple):
    """The endpoints a policy may choose from."""

    cluster: tuple[MergedEndpoint, ...]
    """Policy Cluster."""
    local: tuple[MergedEndpoint, ...]
    """Policy Local: on this node; hints do not matter."""
    exists: bool
    """Whether some endpoint is usable somewhere, here or on another node."""
    hinted: bool
    """Whether hints were there to be looked at: then the answer depends on the node's zone."""


def categorise(endpoints: Sequence[MergedEndpoint], node: str, zone: str) -> Usable:
    """The endpoints that policy Cluster and policy Local may use on this node.

    Ready endpoints come first; only where there is none do those count that terminate and still serve, so that a
    Service whose last pods are going does not refuse clients before it must. Hints are followed only if every ready
    endpoint has them and at least one names this node (its zone), for less would overload the few that have.

    Args:
        endpoints: of one service port and family, duplicates merged.
        node: this node's name; only equality with an endpoint's node makes it local.
        zone: this node's zone; empty: unknown, zone hints are not followed.
    """
    ready = [e for e in endpoints if e.ready]
    hinted = any(e.hint_zones or e.hint_nodes for e in ready)
    if not ready:
        fallback = [e for e in endpoints if e.serving and e.terminating]
        return Usable(tuple(fallback), _on(fallback, node), bool(fallback), hinted=False)
    local = _on(ready, node)
    if not local:
        local = _on([e for e in endpoints if e.serving and e.terminating and not e.ready], node)
    cluster = _by_hints(ready, node, zone) if hinted else ready
    return Usable(tuple(cluster), local, exists=True, hinted=hinted)


def _on(endpoints: Sequence[MergedEndpoint], node: str) -> tuple[MergedEndpoint, ...]:
    return tuple([e for e in endpoints if e.node_name == node])


def _by_hints(ready: list[MergedEndpoint], node: str, zone: str) -> list[MergedEndpoint]:
    if all(e.hint_nodes for e in ready):
        mine = [e for e in ready if node in e.hint_nodes]
        if mine:
            return mine
    if zone and all(e.hint_zones for e in ready):
        mine = [e for e in ready if zone in e.hint_zones]
        if mine:
            return mine
    return ready
