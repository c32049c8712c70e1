"""Devices, addresses and default routes of hosts, by netlink: an `ip` command takes the guest 30 ms, this 0.2.

Knows only what `Net.link` and `Net.lan` need; tests that want more say it in the words of `ip` (`Host.ip`). Called by
the agent. Source: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface
from typing import Any

from . import namespaces

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24
_IFF_UP = 0x1
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 3, 10, 18, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_OIF, _RTA_GATEWAY, _RTNH_F_ONLINK = 4, 5, 0x4
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1


def configure(namespace: str, steps: Sequence[Sequence[Any]]) -> None:
    """Carries out steps in a namespace, in order.

    Args:
        namespace: where.
        steps: ("veth", device, peer, namespace of the peer), ("bridge", device), ("up", device),
            ("port", device, bridge), ("address", device, "10.0.0.1/24") or ("default", device, gateway).

    Raises:
        OSError: the kernel refused one; the message names it, and those after it are not done.
    """
    with namespaces.inside(namespace):
        route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        with route:
            for step in steps:
                try:
                    _BUILDERS[step[0]](route, *step[1:])
                except OSError as error:
                    message = f"{namespace}: {' '.join(map(str, step))}: {error.strerror}"
                    raise OSError(error.errno, message) from None


def _veth(route: socket.socket, device: str, peer: str, peer_namespace: str) -> None:
    handle = os.open(namespaces.NETNS / peer_namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        far = _interface(0) + _name(peer) + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", handle))
        data = _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, far))
        _new_link(route, device, "veth", data)
    finally:
        os.close(handle)


def _bridge(route: socket.socket, device: str) -> None:
    _new_link(route, device, "bridge", b"")


def _up(route: socket.socket, device: str) -> None:
    # The kernel's own link-local address comes only when the link is seen to be up, a second later, and neighbour
    # discovery fails until then: `Net` gives one instead.
    mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, struct.pack("B", _ADDR_GEN_MODE_NONE))
    if device != "lo":
        _change_link(route, device, _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode)), 0)
    _change_link(route, device, b"", _IFF_UP)


def _port(route: socket.socket, device: str, bridge: str) -> None:
    _change_link(route, device, _attribute(_IFLA_MASTER, struct.pack("=I", socket.if_nametoindex(bridge))), _IFF_UP)


def _address(route: socket.socket, device: str, text: str) -> None:
    interface = ip_interface(text)
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    flags = 0 if interface.version == 4 else _IFA_F_NODAD
    head = struct.pack("=BBBBI", family, interface.network.prefixlen, flags, 0, socket.if_nametoindex(device))
    packed = interface.ip.packed
    body = head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    _ask(route, _RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, body)


def _default(route: socket.socket, device: str, gateway: str) -> None:
    address = ip_address(gateway)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, _RTNH_F_ONLINK)
    oif = _attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(device)))
    _ask(route, _RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, head + _attribute(_RTA_GATEWAY, address.packed) + oif)


def _new_link(route: socket.socket, device: str, kind: str, data: bytes) -> None:
    info = _attribute(_IFLA_INFO_KIND, kind.encode() + b"\0") + data
    body = _interface(0) + _name(device) + _attribute(_IFLA_LINKINFO, info)
    _ask(route, _RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body)


def _change_link(route: socket.socket, device: str, attributes: bytes, flags: int) -> None:
    _ask(route, _RTM_NEWLINK, 0, _interface(socket.if_nametoindex(device), flags) + attributes)


def _interface(index: int, flags: int = 0) -> bytes:
    # struct ifinfomsg: family, pad, type, index, flags, change
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, flags, flags)


def _name(device: str) -> bytes:
    return _attribute(_IFLA_IFNAME, device.encode() + b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(route: socket.socket, kind: int, flags: int, body: bytes) -> None:
    route.send(struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0) + body)
    reply = route.recv(65536)
    (answer,) = struct.unpack_from("=H", reply, 4)
    (code,) = struct.unpack_from("=i", reply, 16)
    if answer != _NLMSG_ERROR or code != 0:
        raise OSError(-code, os.strerror(-code))


_BUILDERS: dict[str, Callable[..., None]] = {
    "veth": _veth,
    "bridge": _bridge,
    "up": _up,
    "port": _port,
    "address": _address,
    "default": _default,
}
