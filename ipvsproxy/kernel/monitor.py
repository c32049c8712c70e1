"""Notices what others change: links, addresses, VIP routes of ours, our nftables table.

Knows: which notices the kernel sends, and how to have it drop those of our own doing. Must not know: what is done about
them. Called by plane.

The filtering is the kernel's (socket filters), so that neither our own 10,000 routes nor somebody's full routing table
wakes this process.

Source: linux/rtnetlink.h, linux/netfilter/nf_tables.h, linux/filter.h.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

from ipvsproxy.kernel.conntrack import NETLINK_NETFILTER
from ipvsproxy.kernel.errors import error_for
from ipvsproxy.kernel.netlink import attributes, enlarge_receive_buffer
from ipvsproxy.kernel.netlink import split as split_messages
from ipvsproxy.kernel.rtnetlink import (
    DEL_ADDRESS,
    DEL_LINK,
    DEL_ROUTE,
    NEW_ADDRESS,
    NEW_LINK,
    NEW_ROUTE,
    OUR_PROTOCOL,
    decode_link,
    decode_vip,
)
from ipvsproxy.model import DEVICE

EVERYTHING = ("address", "link", "route", "nft")

_GROUP_LINK, _GROUP_ADDRESS4, _GROUP_ROUTE4, _GROUP_ADDRESS6, _GROUP_ROUTE6 = 1, 5, 7, 9, 11
_GROUP_NFTABLES = 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_ATTACH_FILTER = 26
_RECEIVE_BYTES = 1 << 16
_RECEIVE_BUFFER_BYTES = 1 << 20
_NFT_NEW_GENERATION = 10 << 8 | 15  # the subsystem, NFT_MSG_NEWGEN

# Classic BPF. A filter reads the message from its header on, in network byte order: hence htons and htonl on constants.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_IF_EQUAL, _RETURN = 0x15, 0x06
_AT_TYPE, _AT_PORT_ID, _AT_BODY = 4, 12, 16
_ACCEPT, _DROP = 0xFFFFFFFF, 0


class _Step(NamedTuple):
    code: int
    value: int
    if_true: int = 0
    if_false: int = 0


def _route_filter(own_port_id: int) -> list[_Step]:
    """Accept what is not our own doing and is about a link, an address, a default route, or a route of protocol 87."""
    return [
        _Step(_LOAD_WORD, _AT_PORT_ID),
        _Step(_IF_EQUAL, socket.htonl(own_port_id), if_true=8),
        _Step(_LOAD_HALF, _AT_TYPE),
        _Step(_IF_EQUAL, socket.htons(NEW_ROUTE), if_true=1),
        _Step(_IF_EQUAL, socket.htons(DEL_ROUTE), if_false=4),
        _Step(_LOAD_BYTE, _AT_BODY + 5),  # rtm_protocol
        _Step(_IF_EQUAL, OUR_PROTOCOL, if_true=2),
        _Step(_LOAD_BYTE, _AT_BODY + 1),  # rtm_dst_len
        _Step(_IF_EQUAL, 0, if_false=1),
        _Step(_RETURN, _ACCEPT),
        _Step(_RETURN, _DROP),
    ]


def _nft_filter(own_port_id: int, nft_pid: int) -> list[_Step]:
    """Accept what is not our own doing, nor nft's for us, except the mere note that a transaction ended."""
    return [
        _Step(_LOAD_WORD, _AT_PORT_ID),
        _Step(_IF_EQUAL, socket.htonl(own_port_id), if_true=4),
        _Step(_IF_EQUAL, socket.htonl(nft_pid), if_true=3),
        _Step(_LOAD_HALF, _AT_TYPE),
        _Step(_IF_EQUAL, socket.htons(_NFT_NEW_GENERATION), if_true=1),
        _Step(_RETURN, _ACCEPT),
        _Step(_RETURN, _DROP),
    ]


class Monitor:
    """Hears from the moment it is made; tells when `changes` is read, by one reader.

    Args:
        route_port_id: port id of the socket by which we change routes and addresses.
        nft_port_id: port id of the socket by which we change sets.
        table: name of our nftables table.
    """

    def __init__(self, route_port_id: int, nft_port_id: int, table: str) -> None:
        self._nft_port_id = nft_port_id
        self._table = table.encode() + b"\0"
        self._routing = _listener(
            socket.NETLINK_ROUTE,
            (_GROUP_LINK, _GROUP_ADDRESS4, _GROUP_ROUTE4, _GROUP_ADDRESS6, _GROUP_ROUTE6),
            _route_filter(route_port_id),
        )
        self._nft = _listener(NETLINK_NETFILTER, (_GROUP_NFTABLES,), _nft_filter(nft_port_id, 0))
        self._news: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def ignore_nft(self, pid: int) -> None:
        """From now on, say nothing of changes by the nft process with this pid (its socket's port id)."""
        _attach(self._nft, _nft_filter(self._nft_port_id, pid))

    def close(self) -> None:
        """Stop; `changes` ends."""
        self._closed = True
        self._wake.set()
        self._routing.close()
        self._nft.close()

    async def changes(self) -> AsyncIterator[str]:
        """Yields names of EVERYTHING, each once however often it changed since last asked for."""
        loop = asyncio.get_running_loop()
        sources = {self._routing.fileno(): self._read_routing, self._nft.fileno(): self._read_nft}
        for number, read in sources.items():
            loop.add_reader(number, read)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._news and not self._closed:
                    name = next(iter(self._news))
                    del self._news[name]
                    yield name
                if self._closed:
                    return
        finally:
            for number in sources:
                loop.remove_reader(number)

    def _read_routing(self) -> None:
        for kind, payload in self._read(self._routing):
            if kind in (NEW_ROUTE, DEL_ROUTE):
                self._tell("route" if decode_vip(payload) is not None else "address")
            elif kind in (NEW_ADDRESS, DEL_ADDRESS):
                self._tell("address")
                label = attributes(payload, 8).get(3, b"")  # IFA_LABEL, IPv4 only
                if kind == DEL_ADDRESS and label == DEVICE.encode() + b"\0":
                    self._tell("route")  # with its last address goes every route on it, and nothing is said of them
            elif kind in (NEW_LINK, DEL_LINK):
                self._tell("link")
                link = decode_link(payload)
                if link.name == DEVICE and (kind == DEL_LINK or not link.up):
                    self._tell("route")  # the same

    def _read_nft(self) -> None:
        # Every message about a table, chain, rule, set, element or object has the table's name as attribute 1.
        if any(attributes(payload, 4).get(1) == self._table for _, payload in self._read(self._nft)):
            self._tell("nft")

    def _read(self, source: socket.socket) -> list[tuple[int, bytes]]:
        """(type, payload) of each message in the next datagram."""
        try:
            data = source.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            for name in EVERYTHING:  # notices were lost
                self._tell(name)
            return []
        return [(kind, data[start:end]) for kind, _, _, start, end in split_messages(data)]

    def _tell(self, name: str) -> None:
        self._news[name] = None
        self._wake.set()


def _listener(protocol: int, groups: tuple[int, ...], steps: list[_Step]) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    enlarge_receive_buffer(sock, _RECEIVE_BUFFER_BYTES)
    _attach(sock, steps)
    sock.bind((0, 0))
    try:
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError as error:
        sock.close()
        raise error_for(None, error.errno or 0, f"listening to the kernel: {error.strerror}") from error
    return sock


def _attach(sock: socket.socket, steps: list[_Step]) -> None:
    """Replace the socket's filter."""
    program = b"".join(struct.pack("=HBBI", s.code, s.if_true, s.if_false, s.value) for s in steps)
    memory = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of steps, and a pointer to them
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(steps), ctypes.addressof(memory)))
