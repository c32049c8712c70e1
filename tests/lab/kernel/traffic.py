"""The lab's servers and clients: all of them in the agent's one process, each socket made in its own network namespace.

Servers answer every line (or datagram) with `NAME saw SOURCE:PORT at ADDRESS:PORT`, an HTTP request with that as body.
Knows sockets and outcomes; knows nothing of the channel to the host or of processes. Called by the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from . import namespaces
from .outcomes import CLOSED, TIMEOUT, Answer, Outcome, answer_line, endpoint, failure_of, parse_answer, split_endpoint

T = TypeVar("T")
IPPROTO_SCTP = 132
_TRANSPORTS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, IPPROTO_SCTP),
}
_HTTP_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ")
_LINE_LIMIT_BYTES = 65536
_GLANCES = 20
"""A time limit is waited for in so many pieces; at least this often the sockets are looked at before it is over."""
_source_ports: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.cycle(range(32768, 61000)))
"""A namespace's clients over UDP take a port of their own each. IPVS remembers a flow for five minutes, and an answer
belongs to the newest flow of its pod and its client's port: a port that chance picks for one virtual server, then for
another, then for the first again gets the answer of the third from the address of the second, and nobody takes it."""
# linux/in.h IP_PKTINFO and linux/ipv6.h: Python 3.11 names only the second.
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50


def new_socket(namespace: str | None, address: str, transport: str) -> socket.socket:
    """A non-blocking socket in `namespace`, of the address's family."""
    kind, protocol = _TRANSPORTS[transport]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespaces.inside(namespace):
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


class Server:
    """A server on several ports; `close` ends its listening and, unless told otherwise, its connections."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.seen: deque[str] = deque(maxlen=100_000)
        self.delay_s = 0.0
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: dict[asyncio.Task[None], socket.socket] = {}

    def listen(self, transport: str, address: str, port: int) -> None:
        """Starts answering on one port. Raises OSError when it is taken or the address is not local."""
        listener = new_socket(self.namespace, address, transport)
        self._listeners.append(listener)
        try:
            if transport == "udp":
                option = (
                    (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO) if ":" in address else (socket.IPPROTO_IP, _IP_PKTINFO)
                )
                listener.setsockopt(*option, 1)
            listener.bind((address, port))
        except OSError as error:
            raise OSError(
                error.errno, f"{self.name} cannot bind {transport} {endpoint(address, port)}: {error.strerror}"
            ) from None
        if transport == "udp":
            asyncio.get_running_loop().add_reader(listener, self._datagram, listener)
        else:
            listener.listen(1024)
            self._accepting.append(asyncio.create_task(self._accept(listener, transport)))

    def close(self, *, connections: bool = True) -> None:
        """Stops listening; with `connections`, also ends what is established. Idempotent."""
        for task in self._accepting:
            task.cancel()
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners.clear()
        self._accepting.clear()
        if connections:
            for task in self._connections:
                task.cancel()

    def _line(self, transport: str, seen: tuple[Any, ...], at: tuple[Any, ...]) -> str:
        self.seen.append(f"{transport} {endpoint(seen[0], seen[1])}")
        return answer_line(self.name, (seen[0], seen[1]), (at[0], at[1]))

    async def _accept(self, listener: socket.socket, transport: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # reset between SYN and accept
            task = asyncio.create_task(self._serve(connection, transport, peer))
            self._connections[task] = connection
            task.add_done_callback(self._connections.pop)

    async def _serve(self, connection: socket.socket, transport: str, peer: tuple[Any, ...]) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        with connection, contextlib.suppress(OSError):
            at = connection.getsockname()
            while chunk := await loop.sock_recv(connection, 4096):
                buffer += chunk
                if buffer.startswith(_HTTP_METHODS):
                    if b"\r\n\r\n" in buffer:
                        await asyncio.sleep(self.delay_s)
                        await loop.sock_sendall(connection, _http(buffer, self._line("http", peer, at)))
                        return
                    continue
                while b"\n" in buffer:
                    _, buffer = buffer.split(b"\n", 1)
                    await asyncio.sleep(self.delay_s)
                    await loop.sock_sendall(connection, self._line(transport, peer, at).encode() + b"\n")
                if len(buffer) > _LINE_LIMIT_BYTES:
                    return

    def _datagram(self, listener: socket.socket) -> None:
        for _ in range(64):  # then let the others run
            try:
                _, ancillary, _, peer = listener.recvmsg(65536, 128)
            except OSError:
                return
            # Answer from the address that was asked, which on a host with several is not what routing would choose.
            to, reply = _packet_info(ancillary)
            line = self._line("udp", peer, (to, listener.getsockname()[1]))
            with contextlib.suppress(OSError):
                listener.sendmsg([line.encode() + b"\n"], reply, 0, peer)


def _packet_info(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, list[tuple[int, int, bytes]]]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            address = data[8:12]  # struct in_pktinfo: ifindex, spec_dst, addr
            return socket.inet_ntop(socket.AF_INET, address), [
                (level, kind, struct.pack("=i4s4s", 0, address, bytes(4)))
            ]
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            text = socket.inet_ntop(socket.AF_INET6, data[:16])
            # A link-local source needs its interface, any other must not be tied to one.
            index = data[16:20] if text.startswith("fe80:") else bytes(4)
            return text, [(level, kind, data[:16] + index)]
    return "?", []


def _http(request: bytes, line: str) -> bytes:
    body = line.encode() + b"\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head if request.startswith(b"HEAD ") else head + body


async def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    """connect(2) without blocking; the event loop's own would look up names for SCTP, which it does not know."""
    try:
        sock.connect(address)
    except BlockingIOError:
        loop = asyncio.get_running_loop()
        connected = asyncio.Event()
        loop.add_writer(sock, connected.set)
        try:
            await connected.wait()
        finally:
            loop.remove_writer(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, "connect") from None


async def _in_time(waited_for: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Its result. Raises TimeoutError.

    The time counts in pieces, and a machine that stood still has lost one piece, however long it stood: packets that
    are on their way through clients and servers, which stood still as well, have the rest. And unlike wait_for of
    Python 3.11 this swallows no cancellation.
    """
    task = asyncio.create_task(waited_for)
    try:
        for _ in range(_GLANCES):
            done, _ = await asyncio.wait([task], timeout=timeout_s / _GLANCES)
            if done:
                break
        if not done:
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


class Connection:
    """A client's socket towards one target."""

    def __init__(self, sock: socket.socket, transport: str) -> None:
        self.sock = sock
        self.transport = transport
        self._buffer = b""

    @classmethod
    async def open(
        cls, namespace: str, target: str, transport: str, *, source: str | None, source_port: int, timeout_s: float
    ) -> Connection:
        """A connected socket. Raises OSError (TimeoutError when nothing answers)."""
        address, port = split_endpoint(target)
        sock = new_socket(namespace, address, transport)
        if transport == "udp" and not source_port:
            source_port = next(_source_ports[namespace])
        try:
            if source is not None or source_port:
                sock.bind((source or ("::" if ":" in address else "0.0.0.0"), source_port))
            await _in_time(_connect(sock, (address, port)), timeout_s)
        except BaseException:
            sock.close()
            raise
        return cls(sock, transport)

    async def ask(self, timeout_s: float) -> Outcome:
        """Sends one line and returns what came back."""
        try:
            return await _in_time(self._ask(), timeout_s)
        except TimeoutError:
            return TIMEOUT
        except OSError as error:
            return failure_of(error)

    async def _ask(self) -> Outcome:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.sock, b"who\n")
        while b"\n" not in self._buffer:
            chunk = await loop.sock_recv(self.sock, 4096)
            if not chunk:
                return CLOSED
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return parse_answer(line.decode(errors="replace"))

    def close(self, *, reset: bool = False) -> None:
        """Ends the connection, with FIN or (TCP) RST."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


async def attempt(
    namespace: str, target: str, transport: str, *, source: str | None, source_port: int, timeout_s: float, reset: bool
) -> Outcome:
    """One connection (or datagram) and its answer."""
    try:
        connection = await Connection.open(
            namespace, target, transport, source=source, source_port=source_port, timeout_s=timeout_s
        )
    except OSError as error:
        return failure_of(error)
    try:
        return await connection.ask(timeout_s)
    finally:
        connection.close(reset=reset)


class Traffic:
    """Connections one after another in the background, until `stop`, a number, or a time; counted by who answered."""

    def __init__(
        self, once: Callable[[], Awaitable[Outcome]], *, seconds: float | None, limit: int | None, interval_s: float
    ) -> None:
        self._once = once
        self._seconds = seconds
        self._limit = limit
        self._interval_s = interval_s
        self._started = time.monotonic()
        self._last_answer = self._started
        self.answers: dict[str, int] = {}
        self.failures: list[tuple[float, str]] = []
        self.count = 0
        self.longest_gap_s = 0.0
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while (self._limit is None or self.count < self._limit) and (
            self._seconds is None or time.monotonic() - self._started < self._seconds
        ):
            asked = time.monotonic()
            outcome = await self._once()
            now = time.monotonic()
            self.count += 1
            if isinstance(outcome, Answer):
                self.answers[outcome.server] = self.answers.get(outcome.server, 0) + 1
                self.longest_gap_s = max(self.longest_gap_s, now - self._last_answer)
                self._last_answer = now
            else:
                self.failures.append((round(asked - self._started, 3), str(outcome)))
            await asyncio.sleep(max(self._interval_s - (now - asked), 0))

    def report(self) -> dict[str, Any]:
        """Counts so far, as a JSON object."""
        waiting_s = 0.0 if self.task.done() else time.monotonic() - self._last_answer
        return {
            "count": self.count,
            "answers": self.answers,
            "failures": self.failures,
            "longest_gap_s": max(self.longest_gap_s, waiting_s),
            "done": self.task.done(),
        }
