"""Forgets flows of dead endpoints in the kernel's connection tracking.

Knows: ctnetlink's attributes and its filter. Must not know: why a flow is to go. Called by plane.

A UDP "connection" lives as long as packets come, wherever they are sent; only without its entry is the next packet
scheduled anew.

Source: linux/netfilter/nfnetlink_conntrack.h, linux/net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ipvsproxy.dataplane import CutFlows
from ipvsproxy.kernel.addresses import family_number, pack
from ipvsproxy.kernel.errors import error_for
from ipvsproxy.kernel.netlink import NESTED, Netlink, attribute, attributes, message, numbered
from kubecore.model import Protocol

NETLINK_NETFILTER = 12
_GET, _DELETE = 0x0101, 0x0102  # subsystem conntrack, IPCTNL_MSG_CT_GET and _DELETE
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_DESTINATION = 1, 3
_BY_ADDRESS, _BY_PROTOCOL, _BY_PORT = 1 << 1, 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_IP_DST and so on
_U32 = struct.Struct("=I")
_BE16 = struct.Struct("!H")

_NUMBER = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: socket.IPPROTO_SCTP}
_FEW = 4
"""So many fronts are asked for one by one, the kernel filtering; for more, one dump of the protocol is cheaper."""


class _Front(NamedTuple):
    """Where the flows went to, as the client saw it."""

    family: int
    protocol: int
    address: bytes
    port: int


class Conntrack:
    """Connection tracking of this network namespace."""

    def __init__(self) -> None:
        self._link = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._link.close()

    async def cut(self, ops: Sequence[CutFlows]) -> int:
        """Delete the entries that any of `ops` names, in both families; the number deleted.

        Raises: Interrupted if entries came and went faster than they could be read; DataplaneError; ValueError for an
            address that is none.
        """
        wanted: dict[_Front, set[bytes | None]] = {}
        for op in ops:
            wanted.setdefault(_front(op), set()).add(pack(op.real_server) if op.real_server else None)
        doomed: list[bytes] = []
        for request in _requests(wanted):
            async for payloads in self._link.dump(request):
                doomed += [deletion for payload in payloads if (deletion := _match(payload, wanted)) is not None]
        failures = await self._link.submit(doomed, numbered)
        for failure in failures.values():
            if failure.errno != errno.ENOENT:  # it expired meanwhile
                raise error_for(None, failure.errno, f"deleting a connection tracking entry: {failure.detail}")
        return len(doomed) - len(failures)


def _front(op: CutFlows) -> _Front:
    return _Front(family_number(op.address), _NUMBER[op.protocol], pack(op.address), op.port)


def _requests(fronts: Iterable[_Front]) -> Iterator[bytes]:
    """Dump requests that cover `fronts`. Kernels before 5.8 do not know the filter and answer with everything."""
    fronts = list(fronts)
    if len(fronts) <= _FEW:
        for front in fronts:
            yield _request(front, _BY_ADDRESS | _BY_PROTOCOL | _BY_PORT)
    else:
        for family, protocol in sorted({(f.family, f.protocol) for f in fronts}):
            size = 16 if family == socket.AF_INET6 else 4
            yield _request(_Front(family, protocol, bytes(size), 0), _BY_PROTOCOL)


def _request(front: _Front, flags: int) -> bytes:
    destination = 4 if front.family == socket.AF_INET6 else 2  # CTA_IP_V6_DST, CTA_IP_V4_DST
    original = attribute(_TUPLE_IP | NESTED, attribute(destination, front.address)) + attribute(
        _TUPLE_PROTO | NESTED,
        attribute(_PROTO_NUM, bytes([front.protocol])) + attribute(_PROTO_DESTINATION, _BE16.pack(front.port)),
    )
    wanted = attribute(_FILTER | NESTED, attribute(1, _U32.pack(flags)) + attribute(2, _U32.pack(0)))
    return message(_GET, 0, bytes([front.family, 0, 0, 0]) + attribute(_ORIGINAL | NESTED, original) + wanted)


def _match(payload: bytes, wanted: dict[_Front, set[bytes | None]]) -> bytes | None:
    """The message that deletes this entry, if one of `wanted` means it."""
    found = attributes(payload, 4)
    family = payload[0]
    original = attributes(found[_ORIGINAL])
    protocol = attributes(original[_TUPLE_PROTO])
    if _PROTO_DESTINATION not in protocol:  # ICMP
        return None
    six = family == socket.AF_INET6
    address = attributes(original[_TUPLE_IP])[4 if six else 2]
    (port,) = _BE16.unpack(protocol[_PROTO_DESTINATION])
    servers = wanted.get(_Front(family, protocol[_PROTO_NUM][0], address, port))
    if servers is None:
        return None
    # The reply comes from the real server: IPVS wrote it into the entry when it chose (ip_vs_update_conntrack).
    answering = attributes(attributes(found[_REPLY])[_TUPLE_IP])[3 if six else 1]
    if None not in servers and answering not in servers:
        return None
    # The tuple must be there: a delete message without one empties the whole table.
    body = attribute(_ORIGINAL | NESTED, found[_ORIGINAL]) + attribute(_ID, found[_ID])
    if _ZONE in found:
        body += attribute(_ZONE, found[_ZONE])
    return message(_DELETE, 0, bytes([family, 0, 0, 0]) + body)
