"""Routing netlink: the messages about links, addresses and routes that we send and read.

Knows: layouts and numbers. Must not know: which routes are wanted. Called by host and monitor.

Source: RFC 3549, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ipvsproxy.kernel.addresses import family_number, pack, unpack
from ipvsproxy.kernel.netlink import CREATE, EXCLUSIVE, REPLACE, attribute, attributes, message

NEW_LINK, DEL_LINK, GET_LINK, SET_LINK = range(16, 20)
NEW_ADDRESS, DEL_ADDRESS, GET_ADDRESS = range(20, 23)
NEW_ROUTE, DEL_ROUTE, GET_ROUTE = range(24, 27)

OUR_PROTOCOL = 87
"""`proto 87` marks a route as ours; no daemon in iproute2's rt_protos has that number."""
TABLE_LOCAL = 255
LOOPBACK_INDEX = 1  # in every network namespace (LOOPBACK_IFINDEX)
_TYPE_UNICAST, _TYPE_LOCAL = 1, 2
_SCOPE_HOST = 254
_METRIC = 1024
"""What IPv6 gives a route anyway. The kernel's own route of an address has 0, so ours can stand beside it: neither
replaces the other, and the address can go while the route stays."""

_IFF_UP, _IFF_NOARP = 0x1, 0x80
_IFA_TENTATIVE, _IFA_DADFAILED, _IFA_OPTIMISTIC = 0x40, 0x08, 0x04
_ADDR_GEN_MODE_NONE = 1
_SKIP_STATISTICS = 1 << 3

_IFINFO = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change mask
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
_U32 = struct.Struct("=I")
_NEXT_HOP = struct.Struct("=HBBi")

_VIP4 = struct.Struct("=12s HH4s HHI HHI".replace(" ", ""))
_VIP6 = struct.Struct("=12s HH16s HHI HHI".replace(" ", ""))


class LinkInfo(NamedTuple):
    """One interface."""

    interface: int
    """Its index."""
    name: str
    kind: str
    """IFLA_INFO_KIND; empty for hardware and the loopback."""
    up: bool


class AddressInfo(NamedTuple):
    """One address of an interface."""

    interface: int
    """Its index."""
    address: str
    prefix_length: int
    usable: bool
    """False while IPv6 duplicate detection runs or after it failed."""


class VipRoute(NamedTuple):
    """A local route of ours."""

    address: str
    source: str
    """Empty: the kernel chooses."""
    interface: int
    """Its index."""


# -- to bytes


def put_vip(route: VipRoute) -> bytes:
    """Add the route, or change the source or interface of ours to that address in place.

    Raises: ValueError if an address is none.
    """
    return message(NEW_ROUTE, CREATE | REPLACE, _vip(route))


def delete_vip(address: str) -> bytes:
    """Delete our route to that address, on whatever interface."""
    body = _route_head(address) + attribute(1, pack(address)) + attribute(6, _U32.pack(_METRIC))
    return message(DEL_ROUTE, 0, body)


def _vip(route: VipRoute) -> bytes:
    address, source, interface = route
    six = ":" in address
    body = (_VIP6 if six else _VIP4).pack(
        _route_head(address),
        20 if six else 8, 1, pack(address),  # RTA_DST
        8, 4, interface,  # RTA_OIF
        8, 6, _METRIC,  # RTA_PRIORITY
    )  # fmt: skip
    return body + attribute(7, pack(source)) if source else body  # RTA_PREFSRC


_HEAD4 = _RTMSG.pack(socket.AF_INET, 32, 0, 0, TABLE_LOCAL, OUR_PROTOCOL, _SCOPE_HOST, _TYPE_LOCAL, 0)
_HEAD6 = _RTMSG.pack(socket.AF_INET6, 128, 0, 0, TABLE_LOCAL, OUR_PROTOCOL, _SCOPE_HOST, _TYPE_LOCAL, 0)


def _route_head(address: str) -> bytes:
    return _HEAD6 if ":" in address else _HEAD4


def dump_vips(family: int) -> bytes:
    """Ask for our routes of an address family; kernels before 5.0 answer with all routes."""
    return message(GET_ROUTE, 0, _RTMSG.pack(family, 0, 0, 0, TABLE_LOCAL, OUR_PROTOCOL, 0, _TYPE_LOCAL, 0))


def dump_unicast(family: int) -> bytes:
    """Ask for the unicast routes of every table."""
    return message(GET_ROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, _TYPE_UNICAST, 0))


def dump_links() -> bytes:
    """Ask for every interface, without its statistics."""
    return message(GET_LINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + attribute(29, _U32.pack(_SKIP_STATISTICS)))


def dump_addresses(index: int = 0) -> bytes:
    """Ask for every address; with an interface's index, of that one alone (kernels before 5.0: of all)."""
    return message(GET_ADDRESS, 0, _IFADDR.pack(0, 0, 0, 0, index))


def get_link(name: str) -> bytes:
    """Ask for one interface by name."""
    return message(GET_LINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0"))


def create_dummy(name: str) -> bytes:
    """Make a dummy interface, still down; EEXIST if the name is taken."""
    kind = attribute(1, b"dummy\0")  # IFLA_INFO_KIND in IFLA_LINKINFO
    flags = _IFINFO.pack(0, 0, 0, _IFF_NOARP, _IFF_NOARP)
    return message(NEW_LINK, CREATE | EXCLUSIVE, flags + attribute(3, name.encode() + b"\0") + attribute(18, kind))


def no_link_local(index: int) -> bytes:
    """Keep IPv6 from giving the interface a link-local address when it comes up."""
    mode = attribute(8, bytes([_ADDR_GEN_MODE_NONE]))  # IFLA_INET6_ADDR_GEN_MODE, AF_INET6, IFLA_AF_SPEC
    spec = attribute(26, attribute(socket.AF_INET6, mode))
    return message(SET_LINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + spec)


def set_up(index: int) -> bytes:
    """Bring the interface up."""
    return message(SET_LINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP))


def delete_link(name: str) -> bytes:
    """Delete an interface by name."""
    return message(DEL_LINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0"))


def delete_address(info: AddressInfo) -> bytes:
    """Delete an address from its interface."""
    head = _IFADDR.pack(family_number(info.address), info.prefix_length, 0, 0, info.interface)
    return message(DEL_ADDRESS, 0, head + attribute(2, pack(info.address)))  # IFA_LOCAL


# -- from bytes


def decode_link(payload: bytes) -> LinkInfo:
    """An interface from RTM_NEWLINK or RTM_DELLINK."""
    _, _, index, flags, _ = _IFINFO.unpack_from(payload)
    found = attributes(payload, 16)
    kind = attributes(found[18]).get(1, b"") if 18 in found else b""
    return LinkInfo(index, _text(found.get(3, b"")), _text(kind), bool(flags & _IFF_UP))


def decode_address(payload: bytes) -> AddressInfo:
    """An address from RTM_NEWADDR or RTM_DELADDR."""
    _, prefix_length, flags, _, index = _IFADDR.unpack_from(payload)
    found = attributes(payload, 8)
    raw = found.get(2) or found[1]  # IFA_LOCAL is ours, IFA_ADDRESS a peer's where both are there
    if 8 in found:  # IFA_FLAGS, the 32-bit form
        (flags,) = _U32.unpack(found[8])
    optimistic = flags & _IFA_OPTIMISTIC
    usable = not flags & _IFA_DADFAILED and (bool(optimistic) or not flags & _IFA_TENTATIVE)
    return AddressInfo(index, unpack(raw), prefix_length, usable)


def decode_vip(payload: bytes) -> VipRoute | None:
    """One of our routes from RTM_NEWROUTE or RTM_DELROUTE; None if it is not ours."""
    family, length, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(payload)
    if protocol != OUR_PROTOCOL or table != TABLE_LOCAL or kind != _TYPE_LOCAL:
        return None
    if length != (128 if family == socket.AF_INET6 else 32):
        return None
    found = attributes(payload, 12)
    source = unpack(found[7]) if 7 in found else ""
    return VipRoute(unpack(found[1]), source, _U32.unpack(found[4])[0] if 4 in found else 0)


def decode_gateways(payload: bytes) -> Iterator[str]:
    """Next hops of a unicast route from RTM_NEWROUTE."""
    if payload[7] != _TYPE_UNICAST:
        return
    found = attributes(payload, 12)
    yield from _next_hop(found)
    paths, offset = found.get(9, b""), 0  # RTA_MULTIPATH: struct rtnexthop, each with attributes of its own
    while offset + 8 <= len(paths):
        length = _NEXT_HOP.unpack_from(paths, offset)[0]
        if length < 8:
            return
        yield from _next_hop(attributes(paths[offset + 8 : offset + length]))
        offset += (length + 3) & ~3


def _next_hop(found: dict[int, bytes]) -> Iterator[str]:
    if 5 in found:  # RTA_GATEWAY
        yield unpack(found[5])
    if 18 in found:  # RTA_VIA: a gateway of another family, after two bytes that say which
        yield unpack(found[18][2:])


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")
