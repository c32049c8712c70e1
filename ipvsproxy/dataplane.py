"""What the reconciler may ask of a kernel: operations, errors, and the interface kernel/ and its fake both satisfy.

Every operation carries its whole meaning; repeating one is harmless or raises AlreadyExists/NotFound.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol as Interface

import msgspec

from ipvsproxy.model import (
    ActualVirtualServer,
    Element,
    InterfaceAddress,
    Link,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.model import Family, Protocol

MAX_NEW_REAL_SERVERS = 256
"""Real servers that one AddVirtualServer brings along."""


class AddVirtualServer(msgspec.Struct, frozen=True, gc=False):
    """IPVS_CMD_NEW_SERVICE, then IPVS_CMD_NEW_DEST for each real server; AlreadyExists if there is one.

    One operation a Service port and not one an endpoint: at start there are ten times as many of these. A real server
    that the kernel refuses fails it, and keeps neither the virtual server nor the other real servers from being made.
    """

    key: VirtualServerKey
    config: VirtualServerConfig
    real_servers: tuple[RealServerKey, ...] = ()
    """At most MAX_NEW_REAL_SERVERS, so that a message buffer does not grow with a Service."""
    real_server_config: RealServerConfig = RealServerConfig()
    """Of each of them."""


class EditVirtualServer(msgspec.Struct, frozen=True, gc=False):
    """IPVS_CMD_SET_SERVICE; connections stay; NotFound if there is none."""

    key: VirtualServerKey
    config: VirtualServerConfig


class DeleteVirtualServer(msgspec.Struct, frozen=True, gc=False):
    """IPVS_CMD_DEL_SERVICE with its real servers; NotFound if there is none."""

    key: VirtualServerKey


class AddRealServer(msgspec.Struct, frozen=True, gc=False):
    """IPVS_CMD_NEW_DEST; AlreadyExists, or NotFound if the virtual server is missing."""

    server: VirtualServerKey
    key: RealServerKey
    config: RealServerConfig


class EditRealServer(msgspec.Struct, frozen=True, gc=False):
    """IPVS_CMD_SET_DEST; connections stay; NotFound if either is missing."""

    server: VirtualServerKey
    key: RealServerKey
    config: RealServerConfig


class DeleteRealServer(msgspec.Struct, frozen=True, gc=False):
    """IPVS_CMD_DEL_DEST; NotFound if either is missing."""

    server: VirtualServerKey
    key: RealServerKey


class AddVip(msgspec.Struct, frozen=True, gc=False):
    """Local route to `address` on kube-ipvs0, protocol 87, in table local; one of ours with another source is replaced.

    `source` is the node's address that the host's own connections to the VIP leave with; empty: the kernel chooses.
    Never disturbs a route that is not ours (another metric), so an address that kube-proxy left may stand beside it.
    """

    address: str
    source: str = ""


class DeleteVip(msgspec.Struct, frozen=True, gc=False):
    """Remove that route; NotFound if there is none. An address on the device is `DataPlane.release_addresses`'."""

    address: str


class ChangeElements(msgspec.Struct, frozen=True, gc=False):
    """One nftables transaction: all of it or none."""

    add: tuple[Element, ...] = ()
    delete: tuple[Element, ...] = ()


class CutFlows(msgspec.Struct, frozen=True, gc=False):
    """Delete conntrack entries of flows to a virtual server that were sent to a real server which is gone (UDP, SCTP).

    `real_server` None: all flows of that virtual server, whoever they went to.
    """

    protocol: Protocol
    address: str
    port: int
    real_server: str | None = None


Op = (
    AddVirtualServer
    | EditVirtualServer
    | DeleteVirtualServer
    | AddRealServer
    | EditRealServer
    | DeleteRealServer
    | AddVip
    | DeleteVip
    | ChangeElements
    | CutFlows
)


class DataplaneError(Exception):
    """A kernel call failed. `op` is what was asked (None: a dump or set-up), `errno` what the kernel said."""

    def __init__(self, op: Op | None, errno: int, detail: str = "") -> None:
        super().__init__(detail or f"errno {errno}")
        self.op = op
        self.errno = errno
        self.detail = detail


class AlreadyExists(DataplaneError):  # noqa: N818 - a condition, not a fault
    """EEXIST: someone else writes, or our picture is old: re-read before going on."""


class NotFound(DataplaneError):  # noqa: N818
    """ENOENT or ESRCH. Success where the op was to delete."""


class Unsupported(DataplaneError):  # noqa: N818
    """The kernel has no such family, scheduler or module; `detail` names what to load or install."""


class Interrupted(DataplaneError):  # noqa: N818
    """The dump was changed under our hands (NLM_F_DUMP_INTR) or timed out: ask again."""


class HostNetwork(msgspec.Struct, frozen=True, gc=False):
    """What a NodeView needs from the kernel. Equal networks mean that nothing of it changed."""

    addresses: tuple[InterfaceAddress, ...] = ()
    """Of every interface, the loopback's and kube-ipvs0's too, sorted; IPv6 ones that failed duplicate detection, or
    are still in it, are left out."""
    links: tuple[Link, ...] = ()
    gateways: frozenset[str] = frozenset()
    """Next hops of the unicast routes of every table."""
    families: tuple[Family, ...] = (4, 6)
    """Address families that this network namespace has."""


class DataPlane(Interface):
    """A kernel, or a fake that is as strict. Both pass tests/contract/test_dataplane.py.

    Nothing here flushes; nothing touches what was not named.
    """

    on_flows_cut: Callable[[Family, int, float], None]
    """Told of each round of CutFlows in a family: how many flows were deleted, and the seconds it took."""

    async def apply(self, ops: Sequence[Op]) -> list[DataplaneError | None]:
        """Do `ops` in order, in as few system calls as possible; one result each, None for success.

        Failure of one does not stop the others: the caller checks preconditions, not the data plane.
        """
        ...

    async def dump_virtual_servers(self) -> dict[VirtualServerKey, ActualVirtualServer]:
        """Every virtual server of every family with its real servers, foreign ones too.

        Raises: Interrupted.
        """
        ...

    async def dump_keys(self) -> list[tuple[VirtualServerKey, VirtualServerConfig]]:
        """Virtual servers without their real servers: the cheap half of an audit in slices."""
        ...

    async def dump_real_servers(self, key: VirtualServerKey) -> ActualVirtualServer:
        """One virtual server with its real servers, configuration and counters.

        Raises: NotFound.
        """
        ...

    async def fingerprints(self) -> dict[VirtualServerKey, int]:
        """A number for each virtual server that changes with its scheduler, its persistence or its real servers.

        What an audit compares instead of dumping everything. Scheduler flags, thresholds and counters are not in it;
        for a mark both families are named if there is either. Comparable within one process only.
        """
        ...

    async def dump_vips(self) -> dict[str, str]:
        """Addresses with a local route of ours → that route's preferred source ("" if none)."""
        ...

    async def dump_device_addresses(self) -> set[str]:
        """Addresses configured on kube-ipvs0 itself: what kube-proxy's IPVS mode left."""
        ...

    async def dump_elements(self) -> set[Element] | None:
        """Every element of every set and map in our table; None if the table is not there or not as we make it."""
        ...

    async def connections(self, key: VirtualServerKey) -> dict[RealServerKey, RealServerCounters]:
        """Open connections per real server of one virtual server; what draining asks.

        Raises: NotFound.
        """
        ...

    async def load_table(self, script: str) -> None:
        """Run an nft script, in one transaction: how our table is made and remade.

        Raises: DataplaneError with nft's words; then nothing of it was done.
        """
        ...

    async def read_host(self) -> HostNetwork:
        """Addresses, links and gateways of this network namespace."""
        ...

    async def release_addresses(self, addresses: Iterable[str]) -> None:
        """Delete these addresses from kube-ipvs0; the routes of ours that are there stay, without a gap.

        Call it once the routes for those still wanted stand. One that is not there is none too many.
        """
        ...

    async def remove_table(self) -> None:
        """Delete our nftables table; harmless if there is none. For `cleanup`."""
        ...

    async def remove_device(self) -> None:
        """Delete kube-ipvs0 with every route and address on it; harmless if there is none. For `cleanup`."""
        ...

    def changes(self) -> AsyncIterator[str]:
        """Yields what changed outside our hands, each name once however often it happened since last asked for.

        "address": addresses or default routes of the node; "link": its interfaces; "route": VIP routes of ours;
        "nft": our table. All of them where the kernel dropped notices: read everything again.
        """
        ...
