"""The endpoints of one Service, merged from all its EndpointSlices: what traffic to one of its ports may go to.

Knows: which slice port belongs to which service port, and which of two mentions of an endpoint holds. Must not know:
policies, nodes, IPVS. Called by the proxy's planner; the DNS server publishes slices as they are.

Source: KEP-752; KEP-1669 for duplicates, which a pod moving between slices causes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from kubecore.model import Endpoint, EndpointSlice, Family, Protocol

PortKey = tuple[Family, str, Protocol]
"""What a service port's endpoints are found by; the name of the unnamed port is empty."""


class EndpointKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Where packets go: what tells a service port's endpoints apart.

    There are more of these than of anything else; a Struct is half the size of a tuple and quicker made.
    """

    address: str
    """The endpoint's first address; the API says the others are not for traffic."""
    port: int


def merge_slices(slices: Iterable[EndpointSlice]) -> Mapping[PortKey, Mapping[EndpointKey, Endpoint]]:
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
    merged: dict[PortKey, dict[EndpointKey, Endpoint]] = {}
    for piece in slices:
        for port in piece.ports:
            number = port.port
            if port.name is None or not number:
                continue
            found = merged.setdefault((piece.family, port.name, port.protocol), {})
            for e in piece.endpoints:
                if not e.addresses:
                    continue
                key = EndpointKey(e.addresses[0], number)
                if not e.terminating or key not in found:
                    found[key] = e
    return {port: {key: found[key] for key in sorted(found)} for port, found in merged.items()}
