"""UDP listeners over real sockets: both ways of reading, where replies leave from, what does not get one."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import itertools
import socket
from collections.abc import Callable
from typing import Any

import pytest

from dnsserver.kept import Cell, Lasting, Memo, Rotation
from dnsserver.udp import BATCH, SLOT_BYTES, SMALL_BATCH, BatchedUdpListener, Peer, UdpListener, udp_socket

KINDS = [BatchedUdpListener, UdpListener]
pytestmark = pytest.mark.parametrize("kind", KINDS, ids=["batched", "plain"])


class Echo:
    """A hot path: knows keys beginning with `hot`, `turn` and `long`; the rest is slow."""

    def __init__(self) -> None:
        self.cell = Cell(Lasting.UNTIL_CHANGED)
        self.memo: dict[bytes, Memo] = {}
        self.turns = Rotation((b"one", b"two"), self.cell)
        self.batches: list[int] = []

    def lookup(self) -> Callable[[bytes], Memo | None]:
        return self.memo.get

    def lookup_timed(self) -> Callable[[bytes], Memo | None]:
        return {b"timed": Memo(b"for a second", self.cell, None, b"")}.get

    def lookup_denied(self) -> Callable[[bytes], Memo | None]:
        return {b"denied": Memo(b"at this serial", self.cell, None, b"")}.get

    def miss(self, key: bytes) -> bytes | None:
        if key.startswith(b"long"):
            return b"L" * int(key[4:])
        return b"re:" + key if key.startswith(b"hot") else None

    def reply_to(self, key: bytes) -> bytes | None:
        entry = self.memo.get(key) or self.lookup_timed()(key) or self.lookup_denied()(key)
        if entry is None:
            return self.miss(key)
        return entry.rotation.next_reply() if entry.rotation else entry.reply

    def tick(self, now_s: float) -> None:
        pass

    def note_batch(self, answered: int, took_s: float) -> None:
        assert took_s >= 0
        self.batches.append(answered)


class Listening:
    def __init__(self, kind: type[UdpListener], host: str = "127.0.0.1") -> None:
        self.hot = Echo()
        self.slow: list[tuple[bytes, Peer]] = []
        self.answer_slow = True
        self.listener = kind(udp_socket(host, 0), self.hot, self.take_slow)
        self.port: int = self.listener.address[1]
        self.listener.start(asyncio.get_running_loop())

    def take_slow(self, data: bytes, peer: Peer, listener: UdpListener) -> None:
        self.slow.append((data, peer))
        if self.answer_slow and data[2:6] == b"slow":
            asyncio.get_running_loop().call_later(0.02, listener.send, data[:2] + b"late", peer)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


class Client:
    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect((host, port))

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.sock.send(datagram)

    async def receive(self, count: int, timeout_s: float = 2.0) -> list[bytes]:
        """As many as come, at most `count`."""
        found: list[bytes] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while len(found) < count:
                    found.append(await asyncio.get_running_loop().sock_recv(self.sock, 65535))
        return found


async def test_replies_carry_the_id_and_find_their_peer(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        clients = [Client(server.port) for _ in range(5)]
        for n, client in enumerate(clients):
            client.send(*(b"%c%chot-%d-%d" % (n, i, n, i) for i in range(40)))
        for n, client in enumerate(clients):
            got = await client.receive(40)
            assert got == [b"%c%cre:hot-%d-%d" % (n, i, n, i) for i in range(40)]
        assert sum(server.hot.batches) == 200


async def test_memos_and_turns(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        server.hot.memo = {
            b"memo": Memo(b"kept", server.hot.cell, None, b""),
            b"turn": Memo(b"", server.hot.cell, server.hot.turns, b""),
        }
        client = Client(server.port)
        client.send(b"aamemo", b"bbturn", b"ccturn", b"ddturn", b"eetimed", b"ffdenied")
        expected = [b"aakept", b"bbone", b"cctwo", b"ddone", b"eefor a second", b"ffat this serial"]
        assert await client.receive(6) == expected


async def test_gaps_in_a_batch_send_nothing(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        client = Client(server.port)
        client.send(*(b"%c%c%s" % (i, i, (b"hot" if i % 3 else b"drop")) for i in range(BATCH)))
        got = await client.receive(BATCH, 0.3)
        assert got == [b"%c%cre:hot" % (i, i) for i in range(BATCH) if i % 3]
        assert [data[2:] for data, _ in server.slow] == [b"drop"] * len([i for i in range(BATCH) if not i % 3])


async def test_a_flood_of_slow_ones_is_taken_in_small_batches(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        turns: list[int] = []

        def turn() -> None:
            turns.append(len(server.slow))
            if len(server.slow) < 3 * BATCH:
                asyncio.get_running_loop().call_soon(turn)

        client = Client(server.port)
        client.send(*(b"%c%cslow" % (i, i) for i in range(3 * BATCH)))
        turn()
        got = await client.receive(3 * BATCH)
        assert got == [b"%c%clate" % (i, i) for i in range(3 * BATCH)]
        taken = [b - a for a, b in itertools.pairwise(turns)]
        assert sum(taken) == 3 * BATCH
        assert max(taken[2:]) <= SMALL_BATCH


async def test_easy_ones_are_taken_in_large_batches_again(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        client = Client(server.port)
        client.send(*(b"%c%cslow" % (i, i) for i in range(BATCH)))
        await client.receive(BATCH)
        client.send(b"aahot")
        await client.receive(1)
        server.hot.batches.clear()
        client.send(*(b"%c%chot" % (i, i) for i in range(BATCH)))
        assert len(await client.receive(BATCH)) == BATCH
        assert max(server.hot.batches) > SMALL_BATCH


@pytest.mark.parametrize("runt", [b"", b"a", b"ab", b"abc"])
async def test_runts_are_not_sent_back(kind: type[UdpListener], runt: bytes) -> None:
    with Listening(kind) as server:
        client = Client(server.port)
        client.send(runt, b"zzhot")
        assert await client.receive(2, 0.2) == [b"zzre:hot"]
        assert server.slow[0][0] == runt


async def test_slow_replies_come_later_and_stay_what_they_are(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        client = Client(server.port)
        client.send(b"00slow", *(b"%c%chot" % (i, i) for i in range(1, 100)))
        got = await client.receive(100)
        assert got[-1] == b"00late"
        assert server.slow[0][0] == b"00slow"
        assert server.slow[0][1].address == client.sock.getsockname()


@pytest.mark.parametrize("length", [SLOT_BYTES - 2, SLOT_BYTES - 1, 9000, 60000])
async def test_long_replies_are_sent_by_themselves(kind: type[UdpListener], length: int) -> None:
    with Listening(kind) as server:
        client = Client(server.port)
        client.send(b"aahot", b"bblong%d" % length, b"cchot")
        assert sorted(await client.receive(3)) == [b"aare:hot", b"bb" + b"L" * length, b"ccre:hot"]


async def test_long_queries_arrive_cut(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        client = Client(server.port)
        client.send(b"aaqq" + b"x" * 8000, b"bbhot")
        assert await client.receive(1) == [b"bbre:hot"]
        assert len(server.slow[0][0]) == SLOT_BYTES


@pytest.mark.parametrize(
    ("wildcard", "addresses"), [("0.0.0.0", ["127.0.0.1", "127.0.0.2", "127.9.8.7"]), ("::", ["::1"])]
)
@pytest.mark.parametrize("path", [b"hot", b"slow", b"long9000"])
async def test_replies_leave_from_the_address_that_was_asked(
    kind: type[UdpListener], wildcard: str, addresses: list[str], path: bytes
) -> None:
    with Listening(kind, wildcard) as server:
        for address in addresses:
            client = Client(server.port, address)  # connected: the kernel drops what comes from elsewhere
            client.send(b"aa" + path)
            assert len(await client.receive(1)) == 1
            if path == b"slow":
                assert socket.inet_ntop(client.sock.family, server.slow[-1][1].local) == address


async def test_a_client_that_is_gone_harms_nobody(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        for _ in range(20):
            gone, client = Client(server.port), Client(server.port)
            gone.send(b"aahot", b"bbslow")
            gone.sock.close()
            client.send(b"cchot")
            assert await client.receive(1) == [b"ccre:hot"]


async def test_a_full_send_buffer_keeps_replies_for_later(
    kind: type[UdpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Listening(kind) as server:
        client, full = Client(server.port), [True]
        listener = server.listener
        send_now = listener._send_now

        def blocked(reply: bytes, peer: Peer) -> bool:
            return False if full[0] else send_now(reply, peer)

        monkeypatch.setattr(listener, "_send_now", blocked)
        if isinstance(listener, BatchedUdpListener):
            real = listener._sendmmsg

            def refused(*arguments: Any) -> int:
                if full[0]:
                    ctypes.set_errno(errno.EAGAIN)
                    return -1
                return int(real(*arguments))

            monkeypatch.setattr(listener, "_sendmmsg", refused)
        client.send(*(b"%c%chot" % (i, i) for i in range(10)))
        assert await client.receive(10, 0.2) == []
        full[0] = False
        assert await client.receive(10) == [b"%c%cre:hot" % (i, i) for i in range(10)]
        client.send(b"zzhot")
        assert await client.receive(1) == [b"zzre:hot"]


async def test_a_send_that_can_never_work_costs_one_reply(
    kind: type[UdpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not issubclass(kind, BatchedUdpListener):
        pytest.skip("one datagram a call: there is no rest of a batch")
    with Listening(kind) as server:
        listener = server.listener
        assert isinstance(listener, BatchedUdpListener)
        real, calls = listener._sendmmsg, [0]

        def picky(fd: int, address: int, count: int, flags: int) -> int:
            calls[0] += 1
            if calls[0] == 1:
                return int(real(fd, address, 3, flags))  # a part of the batch
            if calls[0] == 2:
                ctypes.set_errno(errno.EPERM)
                return -1
            return int(real(fd, address, count, flags))

        monkeypatch.setattr(listener, "_sendmmsg", picky)
        client = Client(server.port)
        client.send(*(b"%c%chot" % (i, i) for i in range(10)))
        got = await client.receive(9)
        assert [reply[0] for reply in got] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert listener.dropped_sends == 1


async def test_what_waits_in_the_socket_is_answered_by_whoever_reads_next(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        client = Client(server.port)
        server.listener.stop()
        client.send(b"aahot", b"bbhot")
        assert await client.receive(1, 0.1) == []
        server.listener.drain()
        assert await client.receive(2) == [b"aare:hot", b"bbre:hot"]


async def test_nothing_is_sent_after_closing(kind: type[UdpListener]) -> None:
    with Listening(kind) as server:
        Client(server.port).send(b"aaslow")
        await asyncio.sleep(0.01)
        server.listener.close()
        await asyncio.sleep(0.05)
        assert server.listener.dropped_sends == 1
