"""The node's links, addresses and routes: reads them all, writes kube-ipvs0 and the VIP routes on it.

Knows: how a VIP route is made, and how an address that kube-proxy left gives way to one without a gap. Must not know:
which VIPs are wanted. Called by plane.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from ipvsproxy.dataplane import (
    AddVip,
    AlreadyExists,
    DataplaneError,
    DeleteVip,
    HostNetwork,
    Interrupted,
    NotFound,
    Unsupported,
)
from ipvsproxy.kernel import rtnetlink
from ipvsproxy.kernel.netlink import Failure, Netlink, single
from ipvsproxy.kernel.rtnetlink import AddressInfo, LinkInfo, VipRoute
from ipvsproxy.model import DEVICE, InterfaceAddress, Link
from kubecore.model import Family

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_READS = 5
"""How often a table that changes under our hands is read before we give up."""
_DEVICE_LOST = frozenset({errno.ENODEV, errno.ENETDOWN})


class Host:
    """Routing netlink of this network namespace."""

    def __init__(self) -> None:
        self._link = Netlink(socket.NETLINK_ROUTE, strict=True)
        self._reader = Netlink(socket.NETLINK_ROUTE, strict=True)  # so that a long dump holds up no change
        self._index = 0  # of DEVICE; 0: not looked for yet, or lost
        self.port_id = self._link.port_id
        """Whose changes the monitor need not tell: our own."""

    def close(self) -> None:
        """Close the sockets; everything in the kernel stays."""
        self._link.close()
        self._reader.close()

    async def submit(self, ops: Sequence[AddVip | DeleteVip]) -> dict[int, Failure]:
        """Do `ops` in order; what failed, by index. The device is made if it is missing or down."""
        if self._index == 0 and any(isinstance(op, AddVip) for op in ops):
            await self.ensure_device()
        failures = await self._link.submit(ops, single(self._encode))
        lost = [i for i, f in failures.items() if f.errno in _DEVICE_LOST and isinstance(ops[i], AddVip)]
        if lost:  # somebody deleted the device or took it down
            await self.ensure_device()
            again = await self._link.submit([ops[i] for i in lost], single(self._encode))
            for position, index in enumerate(lost):
                del failures[index]
                if position in again:
                    failures[index] = again[position]
        return failures

    def _encode(self, op: AddVip | DeleteVip) -> bytes:
        if isinstance(op, AddVip):
            return rtnetlink.put_vip(VipRoute(op.address, op.source, self._index))
        return rtnetlink.delete_vip(op.address)

    async def ensure_device(self) -> None:
        """Make kube-ipvs0, bring it up, and remember its index.

        Raises: Unsupported if the kernel has no dummy devices; DataplaneError if another kind of device has the name.
        """
        device = await self._device()
        if device is None:
            try:
                with contextlib.suppress(AlreadyExists):
                    await self._link.request(rtnetlink.create_dummy(DEVICE))
            except Unsupported as error:
                detail = f"cannot make {DEVICE}: load module dummy (modprobe dummy; package linux-modules has it)"
                raise Unsupported(None, error.errno, detail) from error
            device = await self._device()
            if device is None:
                raise NotFound(None, errno.ENODEV, f"{DEVICE} went away while it was made")
        if device.kind != "dummy":
            detail = f"interface {DEVICE} is a {device.kind or 'hardware'} device, not a dummy: rename or delete it"
            raise DataplaneError(None, errno.EBUSY, detail)  # EEXIST would say that what is wanted is there
        if not device.up:
            with contextlib.suppress(DataplaneError):  # a kernel without IPv6 gives none anyway
                await self._link.request(rtnetlink.no_link_local(device.interface))
            await self._link.request(rtnetlink.set_up(device.interface))
        self._index = device.interface

    async def remove_device(self) -> None:
        """Delete kube-ipvs0 with all on it; harmless if it is not there."""
        self._index = 0
        with contextlib.suppress(NotFound):
            await self._link.request(rtnetlink.delete_link(DEVICE))

    async def _device(self) -> LinkInfo | None:
        try:
            return rtnetlink.decode_link((await self._link.request(rtnetlink.get_link(DEVICE)))[0])
        except NotFound:
            return None

    async def vips(self) -> dict[str, str]:
        """Addresses with a route of ours, on whatever interface, and that route's source."""
        return {r.address: r.source for family in _FAMILIES for r in await self._routes(family)}

    async def _routes(self, family: int) -> list[VipRoute]:
        found = await self._read(rtnetlink.dump_vips(family))
        return [route for payload in found if (route := rtnetlink.decode_vip(payload)) is not None]

    async def device_addresses(self) -> list[AddressInfo]:
        """Addresses on kube-ipvs0, IPv6 link-local ones excepted; none if there is no such device."""
        device = await self._device()
        if device is None:
            return []
        found = await self._addresses(device.interface)
        return [a for a in found if a.interface == device.interface and not a.address.startswith("fe80:")]

    async def _addresses(self, index: int = 0) -> list[AddressInfo]:
        return [rtnetlink.decode_address(payload) for payload in await self._read(rtnetlink.dump_addresses(index))]

    async def _read(self, request: bytes) -> list[bytes]:
        for _ in range(_READS):
            with contextlib.suppress(Interrupted):
                return [payload async for payloads in self._reader.dump(request) for payload in payloads]
        raise Interrupted(None, errno.EINTR, f"the table changed during each of {_READS} reads")

    async def release(self, addresses: Iterable[str]) -> None:
        """Delete `addresses` from kube-ipvs0 while the routes of ours there stay.

        When an interface loses its last IPv4 address the kernel drops every IPv4 route on it (fib_disable_ip), local
        ones too. So before that one goes, our routes move to the loopback, each replaced in place, and come back after.
        """
        named = set(addresses)
        there = await self.device_addresses()
        going = [a for a in there if a.address in named]
        going4 = [a for a in going if ":" not in a.address]
        if not going:
            return
        last = going4[-1:] if len(going4) == sum(":" not in a.address for a in there) else []
        await self._delete_addresses([a for a in going if a not in last])
        if last:
            routes = await self._routes(socket.AF_INET)
            await self._put_routes([r._replace(interface=rtnetlink.LOOPBACK_INDEX) for r in routes])
            try:
                await self._delete_addresses(last)
            finally:
                await self._put_routes([r._replace(interface=last[0].interface) for r in routes])

    async def _delete_addresses(self, addresses: Sequence[AddressInfo]) -> None:
        failures = await self._link.submit(addresses, single(rtnetlink.delete_address))
        for index, failure in failures.items():
            if failure.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise DataplaneError(None, failure.errno, f"deleting {addresses[index].address}: {failure.detail}")

    async def _put_routes(self, routes: Sequence[VipRoute]) -> None:
        failures = await self._link.submit(routes, single(rtnetlink.put_vip))
        for index, failure in failures.items():
            raise DataplaneError(None, failure.errno, f"moving route {routes[index].address}: {failure.detail}")

    async def network(self) -> HostNetwork:
        """Addresses, links and gateways."""
        links = [rtnetlink.decode_link(payload) for payload in await self._read(rtnetlink.dump_links())]
        names = {link.interface: link.name for link in links}
        gateways = {
            gateway
            for family in _FAMILIES
            for payload in await self._read(rtnetlink.dump_unicast(family))
            for gateway in rtnetlink.decode_gateways(payload)
        }
        addresses = (
            InterfaceAddress(names[a.interface], a.address, a.prefix_length)
            for a in await self._addresses()
            if a.usable and a.interface in names
        )
        return HostNetwork(
            tuple(sorted(addresses)),
            tuple(sorted(Link(link.name, link.kind) for link in links)),
            frozenset(gateways),
            families_here(),
        )


def families_here(root: Path = Path("/proc")) -> tuple[Family, ...]:
    """Address families this network namespace has: IPv4 always, IPv6 unless it is absent or disabled."""
    disabled = root / "sys/net/ipv6/conf/all/disable_ipv6"
    if not (root / "net/if_inet6").exists():
        return (4,)
    try:
        return (4,) if disabled.read_text().strip() == "1" else (4, 6)
    except OSError:
        return (4, 6)
