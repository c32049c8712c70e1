"""The endpoints of one Service, merged from all its EndpointSlices: what traffic to one of its ports may go to.

Knows: which slice port belongs to which service port, and which of two mentions of an endpoint holds. Must not know:
policies, nodes, IPVS. Called by the proxy's planner; the DNS server publishes slices as they are.

Source: KEP-752; KEP-1669 for duplicates, which a pod moving between slices causes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

import msgspec

from kubecore.model import EndpointSlice, Family, Protocol

PortKey = tuple[Family, str, Protocol]
"""What a service port's endpoints are found by; the name of the unnamed port is empty."""


class MergedEndpoint(msgspec.Struct, frozen=True, gc=False):
    """Where packets go, and under which conditions; fields as in `Endpoint`."""

    address: str
    """The endpoint's first address; the API says the others are not for traffic."""
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()


_ORDER = attrgetter("address", "port")


def merge_slices(slices: Iterable[EndpointSlice]) -> Mapping[PortKey, tuple[MergedEndpoint, ...]]:
    """All endpoints of a Service by service port, each address and port once, sorted by both (as text, as number).

    A slice port counts for the service port of the same name and protocol, whatever the number: the controller has
    resolved targetPort, and pods may differ in it. A port without name (null) or number (null or 0) matches nothing.
    Of two mentions a non-terminating one wins over a terminating one, else the later of two non-terminating ones, the
    first of two terminating ones.

    Args:
        slices: of one Service, families mixed; "later" means later in here, so give them in an order of their own.

    Returns:
        A key for every port that some slice has, even if without endpoints.
    """
    merged: dict[PortKey, dict[tuple[str, int], MergedEndpoint]] = {}
    for piece in slices:
        for port in piece.ports:
            number = port.port
            if port.name is None or not number:
                continue
            found = merged.setdefault((piece.family, port.name, port.protocol), {})
            for e in piece.endpoints:
                if not e.addresses:
                    continue
                address = e.addresses[0]
                if e.terminating and (address, number) in found:
                    continue
                found[address, number] = MergedEndpoint(
                    address,
                    number,
                    e.ready,
                    e.serving,
                    e.terminating,
                    e.node_name,
                    e.hint_zones,
                    e.hint_nodes,
                )
    return {key: tuple(sorted(found.values(), key=_ORDER)) for key, found in merged.items()}
