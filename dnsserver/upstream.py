"""Sockets to one upstream: UDP with ports that change, TCP and TLS connections shared by many queries.

Knows how bytes go out and which come back to whom. Must not know policies, retries, caches. `exchange` sends attempts
through it; each attempt is told once of its reply or failure.

A reply is taken only if it comes from the address asked (connected sockets: the kernel sees to it), to the port asked
from, with the id and the question asked. Anything else is counted and ignored: the true reply may still come.

Source: RFC 5452 §9 (forged replies), RFC 7766 (TCP), RFC 7858 (TLS).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from dnsserver.corefile_model import Upstream

MAX_PENDING_A_SOCKET = 256
MAX_SOCKETS = 16
"""UDP sockets to one upstream. With the above: 4096 queries under way."""
PREFERRED_SOCKETS = 4
"""Opened before any is used twice at a time."""
QUERIES_A_SOCKET = 64
"""After so many a socket is replaced, so that its port cannot be found out and used (RFC 5452 §4.5)."""
MAX_STREAMS = 8
MAX_PENDING_A_STREAM = 128
DIAL_TIMEOUT_S = 2.0
_RECEIVE_AT_ONCE = 64
_MAX_GARBAGE = 16
"""Replies nobody asked for on one stream before it is closed."""


class Attempt(Protocol):
    """One query to one upstream."""

    payload: bytes
    """The query without its id."""
    question: bytes
    """Its question section, in lower case but for type and class."""

    def replied(self, data: bytes) -> None:
        """The reply came."""
        ...

    def failed(self, reason: str) -> None:
        """No reply will come."""
        ...


Reject = Callable[[str], None]
"""Told why a reply was not taken."""


def fits(data: bytes, question: bytes) -> bool:
    """Whether a message is a reply to this question; one that repeats no question is only if FORMERR or NOTIMP."""
    if len(data) < 12 or not data[2] & 0x80:
        return False
    if data[4:6] == b"\0\1":
        end = 12 + len(question)
        # The name may come back in another case; type and class are the last four bytes.
        return data[12 : end - 4].lower() == question[:-4] and data[end - 4 : end] == question[-4:]
    return data[4:6] == b"\0\0" and data[3] & 15 in (1, 4)


class _Udp:
    """A connected UDP socket."""

    def __init__(self, address: Upstream, loop: asyncio.AbstractEventLoop, rng: random.Random, reject: Reject) -> None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # The kernel picks a random free port.
            sock.connect((address.host, address.port))
            loop.add_reader(sock.fileno(), self._readable)
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._loop = loop
        self._rng = rng
        self._reject = reject
        self.pending: dict[int, Attempt] = {}
        self.sent = 0
        self.last_s = loop.time()

    def send(self, attempt: Attempt) -> int:
        """Send, and remember under the id returned; raises OSError."""
        query_id = self._rng.getrandbits(16)
        while query_id in self.pending:
            query_id = self._rng.getrandbits(16)
        data = query_id.to_bytes(2, "big") + attempt.payload
        try:
            self._sock.send(data)
        except BlockingIOError:
            pass  # lost, as the network might lose it: the retry sees to it
        except OSError as error:
            # The error of an earlier query (ICMP), not of this one.
            self._fail(error)
            self._sock.send(data)
        self.pending[query_id] = attempt
        self.sent += 1
        self.last_s = self._loop.time()
        return query_id

    def _readable(self) -> None:
        for _ in range(_RECEIVE_AT_ONCE):
            try:
                data = self._sock.recv(65535)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error)  # ICMP: nobody listens there
                return
            query_id = int.from_bytes(data[:2], "big")
            attempt_found = self.pending.get(query_id) if len(data) >= 12 else None
            if attempt_found is None:
                self._reject("id")
            elif not fits(data, attempt_found.question):
                self._reject("question")
            else:
                del self.pending[query_id]
                attempt_found.replied(data)

    def _fail(self, error: OSError) -> None:
        failed, self.pending = list(self.pending.values()), {}
        for attempt in failed:
            self._loop.call_soon(attempt.failed, error.strerror or str(error))

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()


class _Stream:
    """A TCP or TLS connection; queries are written as they come, replies taken in any order."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.pending: dict[int, Attempt] = {}
        self._waiting: list[bytes] = []
        self._writer: asyncio.StreamWriter | None = None
        self.closed = False
        self.replies = 0
        self.last_s = pool.loop.time()
        self._task = pool.loop.create_task(self._run())

    def send(self, attempt: Attempt) -> int:
        query_id = self._pool.rng.getrandbits(16)
        while query_id in self.pending:
            query_id = self._pool.rng.getrandbits(16)
        self.pending[query_id] = attempt
        self.last_s = self._pool.loop.time()
        framed = (len(attempt.payload) + 2).to_bytes(2, "big") + query_id.to_bytes(2, "big") + attempt.payload
        if self._writer is None:
            self._waiting.append(framed)
        else:
            self._writer.write(framed)
        return query_id

    async def _run(self) -> None:
        reason = "connection closed"
        try:
            await self._talk()
        except (OSError, EOFError, ssl.SSLError, ValueError) as error:
            reason = str(error) or type(error).__name__
        finally:
            self.closed = True
            if self._writer is not None:
                self._writer.close()
            self._pool.stream_closed(self)
            failed, self.pending = list(self.pending.values()), {}
            for attempt in failed:
                attempt.failed(reason)

    async def _talk(self) -> None:
        pool = self._pool
        context = pool.tls_context
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                reader, self._writer = await asyncio.open_connection(
                    pool.address.host,
                    pool.address.port,
                    ssl=context,
                    server_hostname=pool.server_name if context is not None else None,
                )
        except TimeoutError:
            raise OSError("connecting timed out") from None
        if self._waiting:
            self._writer.write(b"".join(self._waiting))
            self._waiting.clear()
        garbage = 0
        while garbage < _MAX_GARBAGE:
            length = int.from_bytes(await reader.readexactly(2), "big")
            data = await reader.readexactly(length)
            query_id = int.from_bytes(data[:2], "big")
            attempt = self.pending.get(query_id) if length >= 12 else None
            if attempt is None or not fits(data, attempt.question):
                garbage += 1
                pool.reject("id" if attempt is None else "question")
                continue
            del self.pending[query_id]
            self.replies += 1
            attempt.replied(data)

    def abort(self) -> None:
        """End it without waiting."""
        self._task.cancel()

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


_SURPLUS_S = 1.0
"""How long more connections than wanted may be idle."""


class Pool:
    """Sockets of both kinds to one upstream, opened as needed, closed when idle for `expire_s`."""

    def __init__(
        self,
        address: Upstream,
        *,
        rng: random.Random,
        reject: Reject,
        expire_s: float = 10.0,
        max_idle: int = 0,
        tls_context: ssl.SSLContext | None = None,
        server_name: str = "",
    ) -> None:
        self.address = address
        self.loop = asyncio.get_running_loop()
        self.rng = rng
        self.reject = reject
        self.tls_context = tls_context
        self.server_name = server_name or address.host
        self._expire_s = expire_s
        self._max_idle = max_idle
        period_s = expire_s / 2 if not max_idle else min(expire_s / 2, _SURPLUS_S)
        self._period_s = max(period_s, 0.05)
        self._sockets: list[_Udp] = []
        self._retired: list[_Udp] = []
        self._streams: list[_Stream] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self.reused = 0
        """Queries on a socket that was open already."""
        self.opened = 0

    @property
    def encrypted(self) -> bool:
        """Whether there is only TLS."""
        return self.tls_context is not None

    @property
    def open_sockets(self) -> int:
        """Of both kinds, with those about to be closed."""
        return len(self._sockets) + len(self._retired) + len(self._streams)

    def send(self, attempt: Attempt, *, stream: bool) -> Callable[[], None]:
        """Send an attempt; what to call to forget it (its reply is then ignored).

        Raises:
            OSError: no socket could be had.
        """
        socket_ = self._stream() if stream or self.encrypted else self._udp()
        query_id = socket_.send(attempt)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._period_s, self._sweep)
        pending = socket_.pending

        def forget() -> None:
            if pending.get(query_id) is attempt:
                del pending[query_id]

        return forget

    def _udp(self) -> _Udp:
        sockets = self._sockets
        if len(sockets) >= PREFERRED_SOCKETS:
            found = sockets[self.rng.randrange(len(sockets))]
            if len(found.pending) >= MAX_PENDING_A_SOCKET // 4 and len(sockets) < MAX_SOCKETS:
                return self._open()
            if len(found.pending) >= MAX_PENDING_A_SOCKET:
                found = min(sockets, key=lambda s: len(s.pending))
                if len(found.pending) >= MAX_PENDING_A_SOCKET:
                    raise OSError("too many queries under way")
            self.reused += 1
            if found.sent + 1 >= QUERIES_A_SOCKET:
                sockets.remove(found)
                self._retired.append(found)
            return found
        return self._open()

    def _open(self) -> _Udp:
        if len(self._retired) > 4 * MAX_SOCKETS:
            self._close_retired(force=True)
        opened = _Udp(self.address, self.loop, self.rng, self.reject)
        self._sockets.append(opened)
        self.opened += 1
        return opened

    def _stream(self) -> _Stream:
        streams = [s for s in self._streams if not s.closed]
        if streams:
            found = min(streams, key=lambda s: len(s.pending))
            if len(found.pending) < MAX_PENDING_A_STREAM // 4 or (
                len(streams) >= MAX_STREAMS and len(found.pending) < MAX_PENDING_A_STREAM
            ):
                self.reused += 1
                return found
            if len(streams) >= MAX_STREAMS:
                raise OSError("too many queries under way")
        opened = _Stream(self)
        self._streams.append(opened)
        self.opened += 1
        return opened

    def stream_closed(self, stream: _Stream) -> None:
        """A stream ended."""
        if stream in self._streams:
            self._streams.remove(stream)

    def _close_retired(self, *, force: bool = False) -> None:
        kept: list[_Udp] = []
        for sock in self._retired:
            if sock.pending and not (force and len(kept) >= MAX_SOCKETS):
                kept.append(sock)
            else:
                _fail_all(sock)
                sock.close()
        self._retired = kept

    def _sweep(self) -> None:
        """Close what is idle."""
        self._sweeper = None
        now_s = self.loop.time()
        self._close_retired()
        idle = [s for s in self._sockets if not s.pending]
        surplus = len(idle) - self._max_idle if self._max_idle else 0
        for index, sock in enumerate(idle):
            if now_s - sock.last_s >= self._expire_s or index < surplus:
                self._sockets.remove(sock)
                sock.close()
        streams = [s for s in self._streams if not s.pending]
        surplus = len(streams) - self._max_idle if self._max_idle else 0
        for index, stream in enumerate(streams):
            if now_s - stream.last_s >= self._expire_s or index < surplus:
                stream.abort()
        if self.open_sockets:
            self._sweeper = self.loop.call_later(self._period_s, self._sweep)

    async def close(self) -> None:
        """Close every socket; attempts under way fail."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for sock in [*self._sockets, *self._retired]:
            _fail_all(sock)
            sock.close()
        self._sockets, self._retired = [], []
        await asyncio.gather(*(stream.close() for stream in list(self._streams)))


def _fail_all(sock: _Udp) -> None:
    failed, sock.pending = list(sock.pending.values()), {}
    for attempt in failed:
        attempt.failed("socket closed")
