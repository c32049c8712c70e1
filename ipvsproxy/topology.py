"""Which endpoints of a service port a node uses: the one place of that policy.

Knows: conditions, hints, traffic policies and the serving-terminating fallback. Must not know: virtual servers, sets,
time. Called by the planner for each service port and family.

Source: KEP-1669 (terminating endpoints), KEP-2086 (internalTrafficPolicy), KEP-2433 and KEP-4444 (hints), KEP-3015
(node hints).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kubecore.endpoints import EndpointKey
from kubecore.model import Endpoint

Endpoints = Mapping[EndpointKey, Endpoint]
"""Of one service port and family, in the order that `merge_slices` gives them."""


class Usable(NamedTuple):
    """The endpoints a policy may choose from."""

    cluster: tuple[EndpointKey, ...]
    """Policy Cluster."""
    local: tuple[EndpointKey, ...]
    """Policy Local: on this node; hints do not matter."""
    exists: bool
    """Whether some endpoint is usable somewhere, here or on another node."""
    hinted: bool
    """Whether hints were there to be looked at: then the answer depends on the node's zone."""


def categorise(endpoints: Endpoints, node: str, zone: str) -> Usable:
    """The endpoints that policy Cluster and policy Local may use on this node.

    Ready endpoints come first; only where there is none do those count that terminate and still serve, so that a
    Service whose last pods are going does not refuse clients before it must. Hints are followed only if every ready
    endpoint has them and at least one names this node (its zone), for less would overload the few that have.

    Args:
        endpoints: of one service port and family, duplicates merged.
        node: this node's name; only equality with an endpoint's node makes it local.
        zone: this node's zone; empty: unknown, zone hints are not followed.
    """
    ready = [key for key, e in endpoints.items() if e.ready]
    if not ready:
        fallback = _leaving(endpoints)
        return Usable(tuple(fallback), _on(endpoints, fallback, node), bool(fallback), hinted=False)
    local = _on(endpoints, ready, node)
    if not local and len(ready) < len(endpoints):
        local = _on(endpoints, [key for key in _leaving(endpoints) if not endpoints[key].ready], node)
    hinted = any(e.hint_zones or e.hint_nodes for e in endpoints.values() if e.ready)
    cluster = _by_hints(endpoints, ready, node, zone) if hinted else ready
    return Usable(tuple(cluster), local, exists=True, hinted=hinted)


def _leaving(endpoints: Endpoints) -> list[EndpointKey]:
    return [key for key, e in endpoints.items() if e.serving and e.terminating]


def _on(endpoints: Endpoints, keys: list[EndpointKey], node: str) -> tuple[EndpointKey, ...]:
    return tuple([key for key in keys if endpoints[key].node_name == node])


def _by_hints(endpoints: Endpoints, ready: list[EndpointKey], node: str, zone: str) -> list[EndpointKey]:
    if all(endpoints[key].hint_nodes for key in ready):
        mine = [key for key in ready if node in endpoints[key].hint_nodes]
        if mine:
            return mine
    if zone and all(endpoints[key].hint_zones for key in ready):
        mine = [key for key in ready if zone in endpoints[key].hint_zones]
        if mine:
            return mine
    return ready
