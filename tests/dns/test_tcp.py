"""TCP listeners over real sockets: framing, pipelining, order, limits, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dnsserver import tcp
from dnsserver.tcp import Limits, Reply, TcpListener, tcp_socket


class Echo:
    """A hot path that knows what begins with `hot`."""

    def __init__(self) -> None:
        self.answered = 0

    def reply_to(self, key: bytes) -> bytes | None:
        if key.startswith(b"big"):
            return b"B" * 60_000
        return b"re:" + key if key.startswith(b"hot") else None

    def tick(self, now_s: float) -> None:
        pass

    def note_batch(self, answered: int, took_s: float) -> None:
        self.answered += answered


class Slow:
    """A chain: answers after as many milliseconds as the query says; never, where it says `never`."""

    def __init__(self) -> None:
        self.waiting = 0
        self.most = 0
        self.clients: list[tuple[Any, ...]] = []

    def __call__(self, data: bytes, client: tuple[Any, ...], local: str, reply: Reply) -> None:
        self.clients.append((client[0], local))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        if b"none" in data:
            self.done(reply, None)
        elif b"never" not in data:
            delay_s = int(data[2:].split(b"-")[1]) / 1000
            asyncio.get_running_loop().call_later(delay_s, self.done, reply, data[:2] + b"late" + data[2:])

    def done(self, reply: Reply, data: bytes | None) -> None:
        self.waiting -= 1
        reply(data)


class Client:
    """A connection and the messages that come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(struct.pack("!H", len(m)) + m for m in messages))

    async def receive(self, timeout_s: float = 3.0) -> bytes | None:
        """The next message; None when the connection ends."""
        async with asyncio.timeout(timeout_s):
            try:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
                return await self.reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def closed_after(self, timeout_s: float = 5.0) -> float:
        """Seconds until the server closes."""
        began = time.monotonic()
        while await self.receive(timeout_s) is not None:
            pass
        return time.monotonic() - began


class Listening:
    def __init__(self, limits: Limits | None = None) -> None:
        self.hot, self.slow = Echo(), Slow()
        sock = tcp_socket("127.0.0.1", 0)
        self.listener = TcpListener(sock, self.hot, self.slow, limits)
        self.port: int = sock.getsockname()[1]

    async def client(self, **options: Any) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))


@contextlib.asynccontextmanager
async def listening(limits: Limits | None = None) -> AsyncIterator[Listening]:
    server = Listening(limits)
    await server.listener.start()
    try:
        yield server
    finally:
        await server.listener.stop(0.1)


def pad(text: bytes) -> bytes:
    """A message long enough to be one."""
    return text.ljust(12, b".")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines in tenths of seconds."""
    monkeypatch.setattr(tcp, "IDLE_S", 0.8)
    monkeypatch.setattr(tcp, "READ_S", 0.3)
    monkeypatch.setattr(tcp, "WRITE_S", 0.4)
    monkeypatch.setattr(tcp, "_SWEEP_S", 0.05)


async def test_pipelined_queries_are_all_answered() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(*(pad(b"%c%chot-%d" % (i % 256, i // 256, i)) for i in range(1000)))
        got = [await client.receive() for _ in range(1000)]
        assert got == [
            b"%c%cre:" % (i % 256, i // 256) + pad(b"%c%chot-%d" % (i % 256, i // 256, i))[2:] for i in range(1000)
        ]
        assert server.hot.answered == 1000


async def test_replies_overtake_each_other() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(pad(b"00slow-90-"), pad(b"11slow-40-"), pad(b"22hot"), pad(b"33slow-5-"))
        got = [await client.receive() for _ in range(4)]
        assert [reply[:2] for reply in got if reply] == [b"22", b"33", b"11", b"00"]
        assert server.slow.clients[0] == ("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_messages_may_arrive_in_any_pieces(size: int) -> None:
    async with listening() as server:
        client = await server.client()
        stream = b"".join(struct.pack("!H", 12) + pad(b"%c%chot" % (i, i)) for i in range(5))
        for at in range(0, len(stream), size):
            client.writer.write(stream[at : at + size])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert [(await client.receive() or b"")[:5] for _ in range(5)] == [b"%c%cre:" % (i, i) for i in range(5)]


async def test_a_query_without_a_reply_does_not_hold_up_others() -> None:
    async with listening(Limits(in_flight=2)) as server:
        client = await server.client()
        client.send(*(pad(b"00none") for _ in range(10)), pad(b"11hot"))
        assert (await client.receive() or b"")[:2] == b"11"


async def test_what_is_no_message_closes_the_connection() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(b"short")
        assert await client.receive() is None


async def test_what_was_asked_before_it_is_answered() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(pad(b"00slow-20-"), pad(b"11hot"), b"short", pad(b"22hot"))
        got = [await client.receive() for _ in range(3)]
        assert [reply and reply[:2] for reply in got] == [b"11", b"00", None]
        assert server.hot.answered == 1


async def test_whole_large_replies() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(*(pad(b"%c%cbig" % (i, i)) for i in range(30)))
        for i in range(30):
            assert await client.receive() == b"%c%c" % (i, i) + b"B" * 60_000


async def test_a_client_that_half_closes_still_gets_its_replies() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(pad(b"00hot"), pad(b"11slow-50-"), pad(b"22slow-100-"))
        client.writer.write_eof()
        assert [(await client.receive() or b"")[:2] for _ in range(3)] == [b"00", b"11", b"22"]
        assert await client.receive() is None


# -- deadlines


async def test_silence_after_connecting() -> None:
    async with listening() as server:
        assert 0.25 < await (await server.client()).closed_after() < 0.7


async def test_idle_between_messages() -> None:
    async with listening() as server:
        client = await server.client()
        for _ in range(3):
            client.send(pad(b"00hot"))
            assert await client.receive()
            await asyncio.sleep(0.5)  # longer than the time to read, shorter than the time to be idle
        assert 0.1 < await client.closed_after() < 0.7


async def test_slow_loris() -> None:
    async with listening() as server:
        client = await server.client()

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in struct.pack("!H", 500) + b"x" * 500:
                    client.writer.write(bytes((byte,)))
                    await client.writer.drain()
                    await asyncio.sleep(0.03)

        dripping = asyncio.create_task(drip())
        assert await client.closed_after() < 0.8
        dripping.cancel()


async def test_slow_loris_behind_good_queries() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(pad(b"00hot"))
        assert await client.receive()
        client.writer.write(b"\1")
        assert 0.2 < await client.closed_after() < 0.7


async def test_waiting_for_the_chain_is_not_idling() -> None:
    async with listening() as server:
        client = await server.client()
        client.send(pad(b"00slow-1200-"))
        assert (await client.receive() or b"")[:2] == b"00"


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with listening() as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
        await asyncio.get_running_loop().sock_sendall(sock, (struct.pack("!H", 12) + pad(b"00big")) * 500)
        await asyncio.sleep(0.1)
        assert server.listener.connections == 1
        before = server.hot.answered
        assert before < 200  # the rest is not even looked at
        await asyncio.sleep(0.6)
        assert server.listener.connections == 0
        sock.close()


# -- limits


async def test_queries_in_flight_are_limited_by_not_reading() -> None:
    async with listening(Limits(in_flight=10)) as server:
        client = await server.client()
        client.send(*(pad(b"%c%cslow-20-" % (i, i)) for i in range(100)))
        got = {(await client.receive() or b"")[:2] for _ in range(100)}
        assert len(got) == 100
        assert server.slow.most <= 10


async def test_connections_of_one_client_are_limited() -> None:
    async with listening(Limits(per_client=3)) as server:
        clients = [await server.client() for _ in range(5)]
        await asyncio.sleep(0.05)
        assert server.listener.connections == 3
        assert server.listener.refused == 2
        other = await server.client(local_addr=("127.0.0.2", 0))
        other.send(pad(b"00hot"))
        assert await other.receive()
        clients[0].writer.close()
        await asyncio.sleep(0.05)
        again = await server.client()
        again.send(pad(b"00hot"))
        assert await again.receive()


async def test_beyond_the_limit_an_idle_connection_makes_room() -> None:
    async with listening(Limits(connections=3)) as server:
        clients = [await server.client(local_addr=(f"127.0.0.{i + 1}", 0)) for i in range(3)]
        for client in clients:
            client.send(pad(b"00hot"))
            assert await client.receive()
        new = await server.client(local_addr=("127.0.0.9", 0))
        new.send(pad(b"00hot"))
        assert await new.receive()
        assert await clients[0].receive() is None
        assert server.listener.connections == 3


async def test_beyond_the_limit_busy_connections_stay() -> None:
    async with listening(Limits(connections=2)) as server:
        clients = [await server.client() for _ in range(2)]
        for client in clients:
            client.send(pad(b"00slow-300-"))
        await asyncio.sleep(0.05)
        new = await server.client()
        assert await new.receive() is None
        for client in clients:
            assert await client.receive()


# -- the end


async def test_draining_answers_what_was_asked() -> None:
    async with listening() as server:
        busy, idle = await server.client(), await server.client()
        busy.send(pad(b"00slow-150-"))
        idle.send(pad(b"00hot"))
        assert await idle.receive()
        await asyncio.sleep(0.03)
        stopping = asyncio.create_task(server.listener.stop(2.0))
        assert await idle.receive() is None
        assert (await busy.receive() or b"")[:2] == b"00"
        assert await busy.receive() is None
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await server.client()
