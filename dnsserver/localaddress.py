"""The addresses of this machine (in a pod: the pod's), which NS records and `ns.dns` name.

Knows getifaddrs(3) by way of ctypes. Must not know what they are for. Called when a configuration is put to work.
"""

from __future__ import annotations

import ctypes
import socket
from ipaddress import IPv4Address, IPv6Address

_IFF_UP = 0x1


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
)


def local_addresses() -> tuple[str, ...]:
    """Canonical addresses of all interfaces that are up, without loopback and link-local ones; sorted, IPv4 first.

    Empty where they cannot be found out.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        getifaddrs, freeifaddrs = libc.getifaddrs, libc.freeifaddrs
    except (OSError, AttributeError):
        return ()
    first = ctypes.POINTER(_IfAddrs)()
    getifaddrs.argtypes = (ctypes.POINTER(ctypes.POINTER(_IfAddrs)),)
    freeifaddrs.argtypes = (ctypes.POINTER(_IfAddrs),)
    if getifaddrs(ctypes.byref(first)):
        return ()
    try:
        found: set[IPv4Address | IPv6Address] = set()
        entry = first
        while bool(entry):
            item = entry.contents
            if item.address and item.flags & _IFF_UP:
                family = ctypes.c_ushort.from_address(item.address).value
                if family == socket.AF_INET:
                    found.add(IPv4Address(ctypes.string_at(item.address + 4, 4)))
                elif family == socket.AF_INET6:
                    found.add(IPv6Address(ctypes.string_at(item.address + 8, 16)))
            entry = item.next
    finally:
        freeifaddrs(first)
    wanted = [a for a in found if not (a.is_loopback or a.is_link_local or a.is_unspecified)]
    return tuple(str(a) for a in sorted(wanted, key=lambda a: (a.version, int(a))))
