"""TCP listeners: framed queries in, replies out as they become ready, and no client able to hold more than its share.

Knows: framing (RFC 1035 §4.2.2), pipelining and order (RFC 7766 §6.2.1, §7: replies may overtake each other), limits
and deadlines. Must not know what a query says. The server opens one `TcpListener` per address, with a HotPath for what
can be answered at once and a callback for everything else.

A connection that sends nothing is closed after `READ_S`, one that begins a message has as long to finish it, however it
spaces the bytes; between messages it may be idle for `IDLE_S`. A client that does not take its replies is read no
further, and cut off after `WRITE_S`.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

IDLE_S = 10.0
READ_S = 3.0
WRITE_S = 5.0
_SWEEP_S = 0.25
_FRAMES_A_TURN = 64
"""Queries of one connection answered before other work of the event loop gets its turn."""
_READ_BYTES = 1 << 16
_FLUSH_BYTES = 1 << 16
"""Replies gathered before they are handed to the transport."""
_UNTAKEN_BYTES = 1 << 19
"""Replies a client may leave untaken; beyond, it is cut off."""
_EVICTION_CANDIDATES = 64
_HEADER_BYTES = 12


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may take."""

    connections: int = 4096
    """Open at once. Beyond, the longest idle one goes, or else the new one."""
    per_client: int = 128
    """Open at once from one address. NodeLocal DNSCache keeps many, so this is no small number."""
    in_flight: int = 128
    """Queries of one connection that wait for the chain; reading stops at it."""


class Hot(Protocol):
    """What answers at once: `HotPath`."""

    def reply_to(self, key: bytes) -> bytes | None:
        """The reply to a query, both without the id; or None."""
        ...

    def tick(self, now_s: float) -> None:
        """Forget what is no longer true."""
        ...

    def note_batch(self, answered: int, took_s: float) -> None:
        """Count the time `answered` replies took."""
        ...


Reply = Callable[[bytes | None], None]
"""To be called once, with the reply or None for none."""
Slow = Callable[[bytes, tuple[Any, ...], str, Reply], None]
"""Takes a query, the client's and the local address, and the way to answer."""


class _Connection(asyncio.BufferedProtocol):
    """One client. All of one listener share its read buffer: what is read is taken out at once."""

    def __init__(self, listener: TcpListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._in_flight = 0
        self._write_blocked = False
        self._reading = True
        self._ended = False
        self._turn: asyncio.Handle | None = None
        self.client: tuple[Any, ...] = ("", 0)
        self.local = ""
        self.deadline_s = math.inf
        """When to cut it off, by the listener's clock."""

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - tells the type checker
        self._transport = transport
        self.client = transport.get_extra_info("peername") or ("", 0)
        self.local = (transport.get_extra_info("sockname") or ("",))[0]
        transport.set_write_buffer_limits(high=0)  # any reply not taken stops reading
        if not self._listener.admit(self):
            transport.abort()
            return
        self.deadline_s = time.monotonic() + READ_S

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._unread = b""
        if self._turn is not None:
            self._turn.cancel()
        self._listener.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._listener.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        was_empty = not self._unread
        self._unread += bytes(self._listener.read_buffer[:nbytes])
        self._serve(fresh=was_empty)
        self._close_if_done()

    def eof_received(self) -> bool:
        self._ended = True
        self._close_if_done()
        return True  # replies may still be owed

    def pause_writing(self) -> None:
        self._write_blocked = True
        self._set_reading()
        self.deadline_s = time.monotonic() + WRITE_S

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._rest()
        if self._unread and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._next_turn)
        self._set_reading()
        self._close_if_done()

    # -- serving

    def _next_turn(self) -> None:
        self._turn = None
        self._serve(fresh=True)
        self._close_if_done()

    def _serve(self, *, fresh: bool) -> None:
        """Take whole messages out of what was read. `fresh`: the message at its front has only now begun."""
        listener, data = self._listener, self._unread
        hot, began_s = listener.hot, time.monotonic()
        hot.tick(began_s)
        at, answered, frames = 0, 0, 0
        out = bytearray()
        while len(data) - at >= 2 and not self._write_blocked and self._in_flight < listener.limits.in_flight:
            size = data[at] << 8 | data[at + 1]
            if size < _HEADER_BYTES:
                data, self._ended = data[:at], True  # not DNS; what was asked before is answered
                break
            if len(data) - at < 2 + size or frames == _FRAMES_A_TURN:
                break
            message = data[at + 2 : at + 2 + size]
            at += 2 + size
            frames += 1
            reply = hot.reply_to(message[2:])
            if reply is None:
                self._in_flight += 1
                listener.slow(message, self.client, self.local, partial(self._answer, listener))
                if self._transport is None:
                    return
            else:
                answered += 1
                out += (len(reply) + 2).to_bytes(2, "big") + message[:2] + reply
                if len(out) > _FLUSH_BYTES:
                    self._write(bytes(out))
                    out.clear()
        self._unread = data[at:]
        if at or fresh:
            self._rest()
        if out:
            self._write(bytes(out))
        if answered:
            hot.note_batch(answered, time.monotonic() - began_s)
        if frames == _FRAMES_A_TURN and self._turn is None and not self._write_blocked:
            self._turn = asyncio.get_running_loop().call_soon(self._next_turn)
        self._set_reading()

    def _answer(self, listener: TcpListener, reply: bytes | None) -> None:
        """Send what the chain said."""
        self._in_flight -= 1
        if self._transport is None:
            return
        if reply is not None:
            self._write(len(reply).to_bytes(2, "big") + reply)
        if not self._unread:
            self._rest()
        if self._unread and self._turn is None and self._in_flight == listener.limits.in_flight - 1:
            self._turn = asyncio.get_running_loop().call_soon(self._next_turn)
        self._set_reading()
        self._close_if_done()

    def _write(self, framed: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(framed)
        if self._transport.get_write_buffer_size() > _UNTAKEN_BYTES:
            self.abort()

    def _rest(self) -> None:
        """Set the deadline for what is awaited now."""
        if self._write_blocked:
            return
        if self._in_flight >= self._listener.limits.in_flight or (self._in_flight and not self._unread):
            self.deadline_s = math.inf  # the chain has its own
        else:
            self.deadline_s = time.monotonic() + (READ_S if self._unread else IDLE_S)

    def _set_reading(self) -> None:
        """Read only while there is room for what comes."""
        if self._transport is None or self._transport.is_closing():
            return
        wanted = not (
            self._write_blocked
            or self._turn is not None
            or self._in_flight >= self._listener.limits.in_flight
            or self._listener.draining
            or self._ended
        )
        if wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _close_if_done(self) -> None:
        if self._transport is None or self.busy:
            return
        if self._ended or self._listener.draining:
            self._transport.close()

    # -- called by the listener

    @property
    def busy(self) -> bool:
        """Whether replies are owed."""
        return self._in_flight > 0 or self._write_blocked or self._turn is not None

    def drain(self) -> None:
        """Take no more queries; close once everything is answered."""
        self._set_reading()
        self._close_if_done()

    def abort(self) -> None:
        """Cut it off."""
        if self._transport is not None:
            self._transport.abort()


class TcpListener:
    """A listening socket and its connections."""

    def __init__(self, sock: socket.socket, hot: Hot, slow: Slow, limits: Limits | None = None) -> None:
        self.sock = sock
        self.address: tuple[Any, ...] = sock.getsockname()
        self.hot = hot
        self.slow = slow
        self.limits = limits or Limits()
        self.draining = False
        self.read_buffer = memoryview(bytearray(_READ_BYTES))
        self.refused = 0
        """Connections closed for a limit."""
        self._connections: dict[_Connection, None] = {}
        self._clients: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._connections)

    async def start(self) -> None:
        """Accept from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=self.sock, backlog=512)
        self._sweep = loop.call_later(_SWEEP_S, self._cut_overdue, loop)

    async def stop(self, grace_s: float) -> None:
        """Accept no more, answer what was asked, close. Connections with replies owed get `grace_s`."""
        if self._server is not None:
            await asyncio.sleep(0)  # connections that wait to be accepted are
            self._server.close()
        self.draining = True
        for connection in list(self._connections):
            connection.drain()
        end_s = time.monotonic() + grace_s
        while any(c.busy for c in self._connections) and time.monotonic() < end_s:  # noqa: ASYNC110 - seldom, at the end
            await asyncio.sleep(0.02)
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)

    def admit(self, connection: _Connection) -> bool:
        """Whether there is room for one more; if not, room may be made by closing an idle one."""
        client = str(connection.client[0])
        if self._clients.get(client, 0) >= self.limits.per_client:
            self.refused += 1
            return False
        if len(self._connections) >= self.limits.connections and not self._evict():
            self.refused += 1
            return False
        self._connections[connection] = None
        self._clients[client] = self._clients.get(client, 0) + 1
        return True

    def forget(self, connection: _Connection) -> None:
        """Take a closed connection off the books."""
        if connection not in self._connections:
            return
        del self._connections[connection]
        client = str(connection.client[0])
        left = self._clients[client] - 1
        if left:
            self._clients[client] = left
        else:
            del self._clients[client]

    def _evict(self) -> bool:
        """Close one of the oldest connections that owe nothing."""
        for _, connection in zip(range(_EVICTION_CANDIDATES), self._connections, strict=False):
            if not connection.busy:
                self.forget(connection)
                connection.abort()
                return True
        return False

    def _cut_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = time.monotonic()
        for connection in [c for c in self._connections if c.deadline_s <= now_s]:
            connection.abort()
        self._sweep = loop.call_later(_SWEEP_S, self._cut_overdue, loop)


def tcp_socket(host: str, port: int) -> socket.socket:
    """A bound, non-blocking TCP socket that shares its port with the other workers; not yet listening.

    Raises:
        OSError: as bind(2).
    """
    v6 = ":" in host
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - its only form
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
