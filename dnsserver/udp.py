"""UDP listeners: datagrams in and replies out, many in one system call.

Knows: recvmmsg and sendmmsg through ctypes, their buffers, which address a reply must leave from, what each send error
means. Must not know what is in a datagram beyond its two id bytes. The server opens one `UdpListener` per address and
hands it a HotPath for what can be answered at once and a callback for everything else.

A wake-up takes up to `BATCH` datagrams with one recvmmsg and answers them with one sendmmsg. The reply is written over
the query in its own slot: the id is already there, the peer's address already in the header. A datagram that gets no
reply at once leaves a gap, over which the headers behind it are moved.

Source: recvmmsg(2), sendmmsg(2), ip(7) IP_PKTINFO, RFC 3542 §6 IPV6_PKTINFO.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol

from dnsserver.kept import Memo

BATCH = 64
"""Datagrams a system call; beyond it the gain is below the noise."""
BATCHES_PER_WAKEUP = 4
"""Then other work of the event loop gets its turn: 4 x 64 hot answers take about 1 ms."""
SMALL_BATCH = 16
"""After a batch that was no easy one: its replies leave together, and what the chain has to see is worked off before
the next is taken."""
EASY_BATCH_S = 0.0005
"""Replies that lie ready take a quarter of that; 64 that have to be made, six times as long."""
SLOT_BYTES = 4096
"""Longest datagram taken in; longer queries have no lawful reason over UDP and arrive cut, hence malformed."""
_STRIDE = SLOT_BYTES + 64  # a power of two would put every slot on the same lines of the first-level cache
_NAME_BYTES = 32  # sockaddr_in6 is 28
_CONTROL_BYTES = 64  # CMSG_SPACE of in6_pktinfo is 40 on 64-bit
_PENDING_REPLIES = 1024
"""Replies kept while the socket's send buffer is full; more are dropped, as UDP does."""

# Linux numbers the socket module does not have in every build.
_IP_PKTINFO = 8
_IP_MTU_DISCOVER, _IP_PMTUDISC_OMIT = 10, 5
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_OMIT = 23, 5
_PKTINFO4 = struct.Struct("@i4s4s")  # ipi_ifindex, ipi_spec_dst, ipi_addr
_PKTINFO6 = struct.Struct("@16sI")  # ipi6_addr, ipi6_ifindex


class Peer(NamedTuple):
    """Who asked and where: what a reply needs to find its way back."""

    address: tuple[Any, ...]
    """As the socket module has it: (host, port) or (host, port, flow, scope)."""
    local: bytes = b""
    """Packed address it was asked on; empty where the socket is bound to one address."""


class Hot(Protocol):
    """What answers at once: `HotPath`. Keys and replies are without the two id bytes."""

    def lookup(self) -> Callable[[bytes], Memo | None]:
        """The memo's look-up, good for one wake-up."""
        ...

    def lookup_timed(self) -> Callable[[bytes], Memo | None]:
        """A second memo, asked when the first has nothing."""
        ...

    def lookup_denied(self) -> Callable[[bytes], Memo | None]:
        """A third."""
        ...

    def reply_to(self, key: bytes) -> bytes | None:
        """The reply by any layer, or None."""
        ...

    def miss(self, key: bytes) -> bytes | None:
        """The reply by the slower layers, or None."""
        ...

    def tick(self, now_s: float) -> None:
        """Forget what is no longer true at `now_s`."""
        ...

    def note_batch(self, answered: int, took_s: float) -> None:
        """Count the time `answered` replies took."""
        ...


Slow = Callable[[bytes, Peer, "UdpListener"], None]
"""Takes a datagram the hot path has no reply to; may call `UdpListener.send` now or later."""


class _MsgHdr(ctypes.Structure):
    # struct msghdr as the kernel has it. musl declares the two lengths as int with padding: the same in memory on
    # little-endian machines, as long as the padding is zero.
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("hdr", _MsgHdr), ("len", ctypes.c_uint))


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


def _load() -> tuple[Any, Any] | None:
    """(recvmmsg, sendmmsg) of the C library, or None where it has none."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        recvmmsg, sendmmsg = libc.recvmmsg, libc.sendmmsg
    except (OSError, AttributeError):
        return None
    recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    return recvmmsg, sendmmsg


_MMSG = _load()


def udp_socket(host: str, port: int, *, receive_bytes: int = 4 << 20) -> socket.socket:
    """A bound, non-blocking UDP socket that shares its port with the other workers.

    A wildcard `host` asks the kernel for each datagram's destination, so that the reply can leave from it.

    Raises:
        OSError: as bind(2).
    """
    v6 = ":" in host
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - its only form
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_bytes)
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # A forged "fragmentation needed" must not change how replies are sent.
        level, option, value = (
            (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_OMIT)
            if v6
            else (socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_OMIT)
        )
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:  # not there in every container sandbox
            if error.errno not in {errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP}:
                raise
        if ip_address(host.partition("%")[0]).is_unspecified:
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


class UdpListener:
    """One socket served by the event loop. `stop` leaves it open, so that it can be handed on; `close` closes it."""

    def __init__(self, sock: socket.socket, hot: Hot, slow: Slow) -> None:
        self.sock = sock
        self.v6 = sock.family == socket.AF_INET6
        self.address: tuple[Any, ...] = sock.getsockname()
        self.dropped_sends = 0
        """Replies the kernel refused or that found the queue full."""
        self._hot = hot
        self._slow = slow
        self._wildcard = ip_address(self.address[0].partition("%")[0]).is_unspecified
        self._pending: deque[tuple[bytes, Peer]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve from now on."""
        self._loop = loop
        loop.add_reader(self.sock.fileno(), self._on_readable)

    def stop(self) -> None:
        """Take no more datagrams; replies still owed can be sent."""
        if self._loop is not None:
            self._loop.remove_reader(self.sock.fileno())

    def close(self) -> None:
        """Stop and close the socket."""
        if self.sock.fileno() < 0:
            return
        self.stop()
        if self._loop is not None:
            self._loop.remove_writer(self.sock.fileno())
        self._pending.clear()
        self.sock.close()

    def drain(self) -> None:
        """Answer what already lies in the socket's queue. For the moment between `stop` and `close`."""
        self._on_readable()

    def send(self, reply: bytes, peer: Peer) -> None:
        """Send `reply`, id included, to `peer`; kept for a moment if the send buffer is full, dropped if that lasts."""
        if self.sock.fileno() < 0:
            self.dropped_sends += 1
        elif self._pending or not self._send_now(reply, peer):
            self._queue(reply, peer)

    def _send_now(self, reply: bytes, peer: Peer) -> bool:
        """Whether the kernel took it or will never take it; False: try again when the socket is writable."""
        try:
            if not peer.local:
                self.sock.sendto(reply, peer.address)
            elif self.v6:
                control = _PKTINFO6.pack(peer.local, 0)
                self.sock.sendmsg([reply], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, control)], 0, peer.address)
            else:
                control = _PKTINFO4.pack(0, peer.local, peer.local)
                self.sock.sendmsg([reply], [(socket.IPPROTO_IP, _IP_PKTINFO, control)], 0, peer.address)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.ENOBUFS, errno.EINTR}:
                return False
            self.dropped_sends += 1  # the peer is unreachable, or its port number 0
        return True

    def _queue(self, reply: bytes, peer: Peer) -> None:
        if len(self._pending) >= _PENDING_REPLIES or self._loop is None:
            self.dropped_sends += 1
            return
        if not self._pending:
            self._loop.add_writer(self.sock.fileno(), self._on_writable)
        self._pending.append((reply, peer))

    def _on_writable(self) -> None:
        for _ in range(BATCH):
            if not self._pending:
                break
            if not self._send_now(*self._pending[0]):
                return
            self._pending.popleft()
        if not self._pending and self._loop is not None:
            self._loop.remove_writer(self.sock.fileno())

    def _on_readable(self) -> None:
        """One datagram a system call: where the C library has no recvmmsg."""
        hot, began_s, answered, slow = self._hot, time.monotonic(), 0, 0
        hot.tick(began_s)
        while answered < BATCH and slow < SMALL_BATCH:
            try:
                data, control, _flags, address = self.sock.recvmsg(SLOT_BYTES, _CONTROL_BYTES)
            except OSError as error:
                if error.errno not in {errno.EAGAIN, errno.EINTR, errno.ECONNREFUSED}:
                    raise
                break
            peer = Peer(address, self._local_of(control))
            reply = hot.reply_to(data[2:])
            if reply is None:
                slow += 1
                self._slow(data, peer, self)
            else:
                answered += 1
                self.send(data[:2] + reply, peer)
        if answered:
            hot.note_batch(answered, time.monotonic() - began_s)

    def _local_of(self, control: list[tuple[int, int, bytes]]) -> bytes:
        for level, kind, data in control:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                return bytes(_PKTINFO4.unpack(data[: _PKTINFO4.size])[1])
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                return bytes(_PKTINFO6.unpack(data[: _PKTINFO6.size])[0])
        return b""


class BatchedUdpListener(UdpListener):
    """The same with recvmmsg and sendmmsg."""

    def __init__(self, sock: socket.socket, hot: Hot, slow: Slow) -> None:
        super().__init__(sock, hot, slow)
        if _MMSG is None:
            msg = "the C library has neither recvmmsg nor sendmmsg"
            raise NotImplementedError(msg)
        self._recvmmsg, self._sendmmsg = _MMSG
        head, vec = ctypes.sizeof(_MMsgHdr), ctypes.sizeof(_IoVec)
        # One anonymous mapping holds all the kernel reads or writes. Slicing a mapping gives bytes in one step, its
        # address never moves, and it lives as long as this object because of the ctypes view on it.
        vecs_at = BATCH * head
        names_at = vecs_at + BATCH * vec
        self._names_at = names_at
        self._control_at = control_at = names_at + BATCH * _NAME_BYTES
        slots_at = control_at + BATCH * _CONTROL_BYTES
        self._memory = mmap.mmap(-1, slots_at + BATCH * _STRIDE)
        self._anchor = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        base = self._address = ctypes.addressof(self._anchor)
        name_bytes = 28 if self.v6 else 16
        cmsg_head = ctypes.sizeof(ctypes.c_size_t) + 8
        info_bytes = _PKTINFO6.size if self.v6 else _PKTINFO4.size
        align = ctypes.sizeof(ctypes.c_size_t)
        control_bytes = (cmsg_head + (info_bytes + align - 1) // align * align) if self._wildcard else 0
        for i in range(BATCH):
            iov = _IoVec.from_buffer(self._memory, vecs_at + i * vec)
            iov.base, iov.len = base + slots_at + i * _STRIDE, SLOT_BYTES
            h = _MMsgHdr.from_buffer(self._memory, i * head).hdr
            h.name, h.namelen = base + names_at + i * _NAME_BYTES, name_bytes
            h.iov, h.iovlen = base + vecs_at + i * vec, 1
            h.control = base + control_at + i * _CONTROL_BYTES if control_bytes else None
            h.controllen = control_bytes
        self._head_bytes = head
        self._fresh = self._memory[:names_at]  # headers and vectors as recvmmsg wants them
        view = memoryview(self._memory)
        words = view[: BATCH * head].cast("I")
        self._lengths = words[_MMsgHdr.len.offset // 4 :: head // 4]
        self._reply_sizes = view[vecs_at:names_at].cast("P")[1::2]
        # Interface numbers within the packet infos, zeroed before sending: the way back need not be the way it came.
        self._info_at = cmsg_head
        index_at = control_at + cmsg_head + (16 if self.v6 else 0)
        span = (BATCH - 1) * _CONTROL_BYTES + 4
        self._interfaces = view[index_at : index_at + span].cast("I")[:: _CONTROL_BYTES // 4]
        self._no_interfaces = memoryview(bytes(4 * BATCH)).cast("I")
        self._starts = [slots_at + i * _STRIDE + 2 for i in range(BATCH)]
        self._indices = list(range(BATCH))
        self._room = BATCH
        """Datagrams to take next."""

    def _on_readable(self) -> None:
        for _ in range(BATCHES_PER_WAKEUP):
            if self._serve_batch() < BATCH or self._room < BATCH:
                return

    def drain(self) -> None:
        """Answer what already lies in the socket's queue."""
        for _ in range(1024):
            if self._serve_batch() <= 0:
                return

    def _serve_batch(self) -> int:
        """Datagrams taken; 0 or less when there was none."""
        memory, fresh = self._memory, self._fresh
        memory[: len(fresh)] = fresh
        taken: int = self._recvmmsg(self.sock.fileno(), self._address, self._room, socket.MSG_DONTWAIT, None)
        if taken <= 0:
            return taken  # EAGAIN, or an ICMP error that belongs to an earlier reply
        hot = self._hot
        began_s = time.monotonic()
        hot.tick(began_s)
        lookup, timed, denied, miss = hot.lookup(), hot.lookup_timed(), hot.lookup_denied(), hot.miss
        sizes = self._reply_sizes
        head, kept, answered = self._head_bytes, 0, 0
        for i, start, size in zip(self._indices, self._starts, self._lengths[:taken].tolist(), strict=False):
            key = memory[start : start + size - 2]
            entry = lookup(key) or timed(key) or denied(key)
            if entry is None:
                reply = miss(key)
                if reply is None:
                    self._give_slow(i, start, size)
                    continue
            elif entry.rotation is None:
                reply = entry.reply
                entry.cell.hits += 1
            else:
                reply = entry.rotation.next_reply()
            length = len(reply)
            answered += 1
            if length > SLOT_BYTES - 2:
                self.send(memory[start - 2 : start] + reply, self._peer(i))
                continue
            memory[start : start + length] = reply
            sizes[i] = length + 2
            if kept != i:
                memory[kept * head : (kept + 1) * head] = memory[i * head : (i + 1) * head]
            kept += 1
        if kept:
            self._send_batch(kept)
        took_s = time.monotonic() - began_s
        if answered:
            hot.note_batch(answered, took_s)
        self._room = SMALL_BATCH if took_s > EASY_BATCH_S or taken - answered > SMALL_BATCH // 2 else BATCH
        return taken

    def _send_batch(self, count: int) -> None:
        if self._wildcard:
            self._interfaces[:] = self._no_interfaces
        at, fd, send, head = 0, self.sock.fileno(), self._sendmmsg, self._head_bytes
        if self._pending:
            self._queue_rest(0, count)
            return
        while at < count:
            sent: int = send(fd, self._address + at * head, count - at, socket.MSG_DONTWAIT)
            if sent > 0:
                at += sent
                continue
            code = ctypes.get_errno()
            if code == errno.EINTR:
                continue
            if code in {errno.EAGAIN, errno.ENOBUFS}:
                self._queue_rest(at, count)
                return
            # ECONNREFUSED, EHOSTUNREACH, EPERM (a filter), EINVAL (port 0), EMSGSIZE: not this reply, perhaps the next.
            self.dropped_sends += 1
            at += 1

    def _queue_rest(self, at: int, count: int) -> None:
        """Keep copies of the unsent replies of headers `at` to `count` for when the socket is writable again."""
        for k in range(at, count):
            header = _MMsgHdr.from_buffer(self._memory, k * self._head_bytes).hdr
            i = (header.name - self._address - self._names_at) // _NAME_BYTES
            start = self._starts[i] - 2
            self._queue(self._memory[start : start + self._reply_sizes[i]], self._peer(i))

    def _give_slow(self, i: int, start: int, size: int) -> None:
        data = self._memory[start - 2 : start - 2 + size]
        self._slow(data, self._peer(i), self)

    def _peer(self, i: int) -> Peer:
        at = self._names_at + i * _NAME_BYTES
        raw = self._memory[at : at + 28]
        address: tuple[Any, ...]
        port = int.from_bytes(raw[2:4], "big")
        if self.v6:
            flow, scope = int.from_bytes(raw[4:8], "big"), int.from_bytes(raw[24:28], sys.byteorder)
            address = (socket.inet_ntop(socket.AF_INET6, raw[8:24]), port, flow, scope)
        else:
            address = (socket.inet_ntop(socket.AF_INET, raw[4:8]), port)
        if not self._wildcard:
            return Peer(address)
        at = self._control_at + i * _CONTROL_BYTES + self._info_at
        return Peer(address, self._memory[at : at + 16] if self.v6 else self._memory[at + 4 : at + 8])


def listen(sock: socket.socket, hot: Hot, slow: Slow) -> UdpListener:
    """A listener on `sock`, batched where the C library allows it."""
    return BatchedUdpListener(sock, hot, slow) if _MMSG is not None else UdpListener(sock, hot, slow)
