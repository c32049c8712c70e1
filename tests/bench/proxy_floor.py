"""The floor of the proxy's cold start: the very messages it sends, recorded in one guest and played back in another.

Knows: which messages change the kernel, and how to send them with nothing else to do. What runs in a guest is called
guest_*. Called by bench_proxy.
"""

from __future__ import annotations

import gc
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipvsproxy import nftables
from ipvsproxy.config import Config
from ipvsproxy.dataplane import AddVip
from ipvsproxy.kernel.conntrack import NETLINK_NETFILTER
from ipvsproxy.kernel.ipvs import NETLINK_GENERIC, NEW_DEST, NEW_SERVICE
from ipvsproxy.kernel.netlink import ACK, HEADER, Netlink
from ipvsproxy.kernel.plane import KernelDataPlane
from ipvsproxy.kernel.rtnetlink import NEW_ROUTE

_CHANGES = {
    NETLINK_GENERIC: {NEW_SERVICE, NEW_DEST},
    socket.NETLINK_ROUTE: {NEW_ROUTE},
    NETLINK_NETFILTER: {0x10},  # NFNL_MSG_BATCH_BEGIN
}
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_RECORD = struct.Struct("=II")  # protocol, bytes that follow
_FLAGS = struct.Struct("=H")
_ERRNO = struct.Struct("=i")
_NLMSG_ERROR = 2


class Recorder:
    """A socket that notes what it sends, if that changes the kernel."""

    def __init__(self, link: Netlink, protocol: int, sent: list[tuple[int, bytes]]) -> None:
        self._inner: socket.socket = link._socket
        self._protocol = protocol
        self._sent = sent
        link._socket = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, buffer: bytearray) -> int:
        kind = HEADER.unpack_from(buffer)[1]
        if self._protocol == NETLINK_GENERIC:
            kind = buffer[16]  # genlmsghdr.cmd
        if kind in _CHANGES[self._protocol]:
            self._sent.append((self._protocol, bytes(buffer)))
        return self._inner.send(buffer)


def record(plane: KernelDataPlane) -> list[tuple[int, bytes]]:
    """What `plane` sends from now on, in order."""
    sent: list[tuple[int, bytes]] = []
    Recorder(plane._ipvs.link, NETLINK_GENERIC, sent)
    Recorder(plane._host._link, socket.NETLINK_ROUTE, sent)
    Recorder(plane._sets._link, NETLINK_NETFILTER, sent)
    return sent


def save(sent: list[tuple[int, bytes]], file: str) -> None:
    """Write a record."""
    with Path(file).open("wb") as out:
        out.writelines(_RECORD.pack(protocol, len(buffer)) + buffer for protocol, buffer in sent)


def load(file: str) -> Iterator[tuple[int, bytearray]]:
    """Read a record."""
    data = Path(file).read_bytes()
    offset = 0
    while offset < len(data):
        protocol, size = _RECORD.unpack_from(data, offset)
        offset += _RECORD.size
        yield protocol, bytearray(data[offset : offset + size])
        offset += size


def touch_memory() -> None:
    """Have the host give the guest its memory now: user-mode Linux gets each page when it is first written."""
    bytearray(b"\1" * (512 << 20))


async def guest_floor(file: str, every: bool, fresh: bool) -> float:
    """Seconds to send the record again.

    With `every`, each message of IPVS and of routes is acknowledged, as programs mostly have it (the answers are read
    when the time has been taken). Without, the last of a buffer, as we do it.

    With `fresh`, the guest's memory is what a boot leaves. Without, the host has given it all of it before.
    """
    async with await KernelDataPlane.open() as plane:
        await plane.load_table(nftables.load(Config()))
        await plane.apply([AddVip("10.95.0.1")])  # makes the device
    sent = list(load(file))
    acknowledged = [1] * len(sent)
    if every:
        acknowledged = [_ask_for_all(buffer) if protocol != NETLINK_NETFILTER else 1 for protocol, buffer in sent]
    sockets = {protocol: _socket(protocol) for protocol in {protocol for protocol, _ in sent}}
    unread = dict.fromkeys(sockets, 0)
    if not fresh:
        touch_memory()
    gc.collect()
    started_s = time.perf_counter()
    for (protocol, buffer), answers in zip(sent, acknowledged, strict=True):
        sock = sockets[protocol]
        sock.send(buffer)
        if protocol != NETLINK_NETFILTER:  # there one message is a whole transaction, and answered only if it fails
            unread[protocol] += answers
            if not every:
                unread[protocol] -= _accepted(sock)
    took_s = time.perf_counter() - started_s
    for protocol, answers in unread.items():
        assert sum(_accepted(sockets[protocol]) for _ in range(answers)) == answers
    for sock in sockets.values():
        try:
            raise AssertionError(f"the kernel refused: {sock.recv(4096)!r}")
        except BlockingIOError:
            sock.close()
    return took_s


def _ask_for_all(buffer: bytearray) -> int:
    """Have each message of a buffer acknowledged; how many there are."""
    offset = count = 0
    while offset < len(buffer):
        length, _, flags, _, _ = HEADER.unpack_from(buffer, offset)
        _FLAGS.pack_into(buffer, offset + 6, flags | ACK)
        offset += length
        count += 1
    return count


def _socket(protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 512 << 20)
    sock.setblocking(False)
    return sock


def _accepted(sock: socket.socket) -> int:
    """Read one acknowledgement; 1, for it must be one."""
    answer = sock.recv(4096)
    kind, number = HEADER.unpack_from(answer)[1], _ERRNO.unpack_from(answer, 16)[0]
    assert (kind, number) == (_NLMSG_ERROR, 0), f"the kernel refused a message: {answer!r}"
    return 1
