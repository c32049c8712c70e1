"""A netlink socket that sends many messages in one buffer and finds each one's outcome.

Knows: framing, sequence numbers, acknowledgements, dumps, attributes. Must not know: what any message means. Used by
ipvs, routes, conntrack and monitor.

The kernel handles a request inside `send`, so when it returns the outcome is already in the receive queue: nothing
here waits, except to let other tasks run between batches. Only a batch's last message asks for an acknowledgement; the
others are heard of only if they fail (netlink_rcv_skb acknowledges errors unasked).

Source: RFC 3549, linux/netlink.h, linux/net/netlink/af_netlink.c.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from ipvsproxy.dataplane import Interrupted
from ipvsproxy.kernel.errors import error_for

REQUEST = 0x1
ACK = 0x4
DUMP = 0x300
REPLACE = 0x100
EXCLUSIVE = 0x200
CREATE = 0x400
NESTED = 0x8000

_CAPPED_TLVS = 0x200  # NLM_F_ACK_TLVS; the request itself is always capped to its header, by NETLINK_CAP_ACK
_DUMP_INTERRUPTED = 0x10
_NOOP, _ERROR, _DONE, _OVERRUN = 1, 2, 3, 4

_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _GET_STRICT_CHECK = 10, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_LARGE_MESSAGE_BYTES = 64 << 20
"""An upper limit only: 100,000 elements are 8 MB."""

_BATCH_BYTES = 1 << 16
_RECEIVE_BYTES = 1 << 16
"""Dumps come in buffers of at most 32 KiB, and only if the reader offers as much (netlink_dump)."""
_RECEIVE_BUFFER_BYTES = 4 << 20
"""Room for a batch in which every message fails: 1,100 errors of 768 bytes of kernel memory each, with a margin."""
_ERROR_TRUESIZE_BYTES = 1024
_SHORT_MESSAGE_BYTES = 40
"""No message that changes something is shorter: so many bytes a batch has for each error there is room for."""
_LONG_BYTES = 8 << 10
"""A dump lets other tasks run after a buffer this full; a small one costs less than giving way does."""
_TIMEOUT_S = 5.0

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_SEQUENCE = struct.Struct("=I")
_FLAGS = struct.Struct("=H")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

T = TypeVar("T")


class Failure(NamedTuple):
    """What the kernel said of one message."""

    errno: int
    detail: str = ""
    offset: int = 0
    """Where in the message the attribute at fault begins; 0: not said."""


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """One request; its sequence number is set when it is sent."""
    return HEADER.pack(16 + len(payload), kind, flags | REQUEST, 0, 0) + payload


def numbered(encoded: bytes, sequence: int) -> bytes:
    """One message with this sequence number."""
    return encoded[:8] + _SEQUENCE.pack(sequence) + encoded[12:]


def single(encode: Callable[[T], bytes]) -> Callable[[T, int], bytes]:
    """What `Netlink.submit` takes, for items that are one message each."""
    return lambda item, sequence: numbered(encode(item), sequence)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes from `start` to the end, by type without the NESTED and byte order bits.

    The last of a type counts. What follows a malformed one is left out.
    """
    found: dict[int, bytes] = {}
    end = len(data)
    unpack = _ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(data, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def elements_of(raw: bytes) -> Iterator[bytes]:
    """The content of each attribute, in order: of a list, where all have one type."""
    start = 0
    while start + 4 <= len(raw):
        length, _ = _ATTRIBUTE.unpack_from(raw, start)
        if length < 4:
            return
        yield raw[start + 4 : start + length]
        start += (length + 3) & ~3


class Netlink:
    """One netlink socket; its operations take turns.

    Args:
        protocol: NETLINK_ROUTE and the like.
        strict: ask the kernel to check dump requests and filter by them (5.0 and newer; older ones do not filter).
    """

    def __init__(self, protocol: int, *, strict: bool = False) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setblocking(False)  # noqa: FBT003
        self._socket.bind((0, 0))
        room = self.receive_buffer(_RECEIVE_BUFFER_BYTES)
        self._batch_bytes = min(_BATCH_BYTES, room // _ERROR_TRUESIZE_BYTES * _SHORT_MESSAGE_BYTES)
        for option in (_CAP_ACK, _EXT_ACK, *([_GET_STRICT_CHECK] if strict else ())):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError as error:
                if option != _GET_STRICT_CHECK:
                    raise error_for(None, error.errno or 0, "netlink: this kernel is older than 4.12") from error
        self.port_id: int = self._socket.getsockname()[0]
        self._sequence = 0
        self._lock = asyncio.Lock()
        self._unread = False  # an operation ended early (cancelled, failed): answers to it may still come

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive_buffer(self, size: int) -> int:
        """Set the room for answers; returns the bytes it got."""
        return enlarge_receive_buffer(self._socket, size)

    async def submit(self, items: Sequence[T], encode: Callable[[T, int], bytes]) -> dict[int, Failure]:
        """Send what each item is encoded to, in order; the first that failed of each item, by index.

        One failure does not keep the following messages from being done. An item that cannot be encoded (ValueError)
        is an EINVAL. Lets other tasks run after each 64 KiB.

        Args:
            items: what to do.
            encode: the messages of an item, one or many, all with the sequence number it is given.
        """
        failures: dict[int, Failure] = {}
        index = 0
        async with self._lock:
            self._begin()
            while index < len(items):
                index = await self._submit_batch(items, encode, index, failures)
                await asyncio.sleep(0)
            self._unread = False
        return failures

    async def _submit_batch(
        self,
        items: Sequence[T],
        encode: Callable[[T, int], bytes],
        first: int,
        failures: dict[int, Failure],
    ) -> int:
        """Send the items from `first` on that fit in one buffer; returns the index of the next."""
        buffer = bytearray()
        base = (self._sequence + 1 - first) & 0xFFFFFFFF
        index, stop, room = first, len(items), self._batch_bytes
        while index < stop and len(buffer) < room:
            try:
                buffer += encode(items[index], (base + index) & 0xFFFFFFFF)
            except ValueError as error:
                failures[index] = Failure(errno.EINVAL, str(error))
            index += 1
        self._sequence = (base + index) & 0xFFFFFFFF
        if not buffer:
            return index
        # Does nothing but to be acknowledged after all before it was done: several messages may have a number together.
        buffer += HEADER.pack(16, _NOOP, REQUEST | ACK, self._sequence, 0)
        self._socket.send(buffer)
        try:
            await self._read_errors(base, first, index, failures)
        except Interrupted as error:
            self._drain()
            for lost in range(first, index):
                failures.setdefault(lost, Failure(error.errno, f"outcome unknown: {error.detail}"))
        return index

    async def _read_errors(self, base: int, first: int, end: int, failures: dict[int, Failure]) -> None:
        """Read what failed until the message that comes after all others, numbered as an item `end` were, is done."""
        while True:
            data = await self._receive()
            for kind, flags, sequence, start, stop in split(data):
                index = (sequence - base) & 0xFFFFFFFF
                if kind != _ERROR or not first <= index <= end:
                    continue
                if index == end:
                    return
                failure = _failure(data, flags, start, stop)
                if failure.errno:
                    failures.setdefault(index, failure)

    async def transact(self, encoded: Sequence[bytes]) -> list[tuple[int, Failure]]:
        """Send messages that the kernel takes as one transaction, begin and end included; what failed, by index.

        Raises: DataplaneError if the transaction is larger than the kernel lets a message be.
        """
        async with self._lock:
            self._begin()
            base = self._sequence + 1
            self._sequence += len(encoded)
            buffer = bytearray()
            for index, one in enumerate(encoded):
                start = len(buffer)
                buffer += one
                _SEQUENCE.pack_into(buffer, start + 8, (base + index) & 0xFFFFFFFF)
            try:
                self._socket.send(buffer)
            except OSError as error:
                raise error_for(None, error.errno or 0, f"a transaction of {len(buffer)} bytes: {error}") from error
            failures: list[tuple[int, Failure]] = []
            while True:  # only what failed is answered, and the answers are there already
                try:
                    data = self._receive_now()
                except BlockingIOError:
                    break
                for kind, flags, sequence, start, end in split(data):
                    index = (sequence - base) & 0xFFFFFFFF
                    if kind == _ERROR and index < len(encoded):
                        failure = _failure(data, flags, start, end)
                        if failure.errno:
                            failures.append((index, failure))
            self._unread = False
        return failures

    def allow_large_messages(self) -> None:
        """Let one send be as large as a transaction over all Services needs."""
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _LARGE_MESSAGE_BYTES)

    async def request(self, encoded: bytes) -> list[bytes]:
        """The payloads that answer one request, dumps excepted; empty if it is only acknowledged.

        Raises: DataplaneError.
        """
        async with self._lock:
            self._begin()
            sequence = self._send(encoded, ACK)
            answers: list[bytes] = []
            while True:
                data = await self._receive()
                for kind, flags, seq, start, end in split(data):
                    if seq != sequence:
                        continue
                    if kind != _ERROR:
                        answers.append(data[start:end])
                        continue
                    self._unread = False
                    failure = _failure(data, flags, start, end)
                    if failure.errno:
                        raise error_for(None, failure.errno, failure.detail)
                    return answers

    async def dump(self, encoded: bytes) -> AsyncIterator[list[bytes]]:
        """Yields the payloads of a dump, a buffer at a time, letting other tasks run after a full one.

        Raises: Interrupted if the table changed meanwhile; DataplaneError.
        """
        async with self._lock:
            self._begin()
            sequence = self._send(encoded, DUMP)
            interrupted = done = False
            while not done:
                data = await self._receive()
                payloads: list[bytes] = []
                for kind, flags, seq, start, end in split(data):
                    if seq != sequence:
                        continue
                    interrupted |= bool(flags & _DUMP_INTERRUPTED)
                    if kind in (_ERROR, _DONE):
                        self._unread = False
                        done = True
                        failure = _failure(data, flags, start, end)
                        if failure.errno:
                            raise error_for(None, failure.errno, failure.detail)
                    elif kind != _OVERRUN:
                        payloads.append(data[start:end])
                if payloads:
                    yield payloads
                if len(data) >= _LONG_BYTES:
                    await asyncio.sleep(0)
            if interrupted:
                raise Interrupted(None, errno.EINTR, "the table changed while it was read")

    def _begin(self) -> None:
        if self._unread:
            self._drain()
        self._unread = True

    def _send(self, encoded: bytes, flags: int) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        buffer = bytearray(encoded)
        _FLAGS.pack_into(buffer, 6, _FLAGS.unpack_from(buffer, 6)[0] | flags)
        _SEQUENCE.pack_into(buffer, 8, self._sequence)
        self._socket.send(buffer)
        return self._sequence

    async def _receive(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return self._receive_now()
        try:
            return await asyncio.wait_for(
                asyncio.get_running_loop().sock_recv(self._socket, _RECEIVE_BYTES), _TIMEOUT_S
            )
        except TimeoutError:
            raise Interrupted(None, errno.ETIMEDOUT, f"the kernel did not answer within {_TIMEOUT_S:g} s") from None

    def _receive_now(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise Interrupted(None, errno.ENOBUFS, "the netlink receive buffer overflowed") from error
            raise

    def _drain(self) -> None:
        """Read away what is left of an operation that ended early; a dump under way runs to its end."""
        while True:
            try:
                self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise


def enlarge_receive_buffer(sock: socket.socket, size: int) -> int:
    """Give `sock` that much room, past net.core.rmem_max where privileges allow; returns the bytes it got."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def split(data: bytes) -> list[tuple[int, int, int, int, int]]:
    """(type, flags, sequence, start of payload, end) of each message in a datagram."""
    found = []
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < 16:
            break
        found.append((kind, flags, sequence, offset + 16, offset + length))
        offset += (length + 3) & ~3
    return found


def _failure(data: bytes, flags: int, start: int, end: int) -> Failure:
    """Errno (0: none) and the kernel's words, of an NLMSG_ERROR or NLMSG_DONE."""
    if end - start < 4:
        return Failure(0)
    (code,) = _ERRNO.unpack_from(data, start)
    if code >= 0:
        return Failure(0)
    said: dict[int, bytes] = {}
    if flags & _CAPPED_TLVS and end - start > 20:
        said = attributes(data[:end], start + 20)
    words = said.get(1, b"").rstrip(b"\0").decode("utf-8", "replace")  # NLMSGERR_ATTR_MSG
    offset = _SEQUENCE.unpack(said[2])[0] if 2 in said else 0  # NLMSGERR_ATTR_OFFS
    return Failure(-code, words or os.strerror(-code), offset)
