"""What hostile or broken clients cannot do: crash the server, make it grow, or keep others from being answered.

`DNS_MUTATIONS=1000000` sends a million mutated packets; fewer are sent by default, to keep the suite short.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from dnsserver import names
from tests.dns.running import Running, server

MUTATIONS = int(os.environ.get("DNS_MUTATIONS", "150000"))
WEB = "web.default.svc.cluster.local"
WEB_IS_THERE = "NOERROR 10.96.0.10"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    more = "    any\n    chaos us\n    cache 30\n    forward . 127.0.0.1:9 {\n        max_concurrent 100\n    }\n"
    with server(more=more) as found:
        yield found


def seeds() -> list[bytes]:
    """Queries that are good, each in a few forms."""
    found = []
    texts = [WEB, "db.default.svc.cluster.local", "_pg._tcp.db.default.svc.cluster.local", "10.0.96.10.in-addr.arpa"]
    for text in [*texts, "cluster.local", "x.y.z.example.org", "version.bind", "."]:
        for qtype in (1, 28, 33, 12, 6, 2, 255, 65, 43):
            for opt in (b"", b"\0\0\x29\x04\xd0\0\0\0\0\0\0", b"\0\0\x29\x10\0\0\0\x80\0\0\x0c\0\x0a\0\x0812345678"):
                counts = struct.pack("!4H", 1, 0, 0, bool(opt))
                name = names.from_text(text)
                found.append(b"\x12\x34\x01\0" + counts + name + struct.pack("!HH", qtype, 1) + opt)
    return found


def mutated(rng: random.Random, samples: list[bytes]) -> bytes:
    """A query with some bytes changed, cut out, doubled, or put in."""
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(6):
            case 0 if data:
                data[at] = rng.randrange(256)
            case 1 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randrange(1, 12)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 30)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 12))
            case 5 if data:
                data[at] = rng.choice((0, 1, 0x3F, 0x40, 0xC0, 0xFF))
    return bytes(data)


def drain(sock: socket.socket) -> int:
    """Replies thrown away; they must all be replies."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            data = sock.recv(65535)
            assert len(data) >= 12
            assert data[2] & 0x80
            count += 1
    return count


def catch_up(sock: socket.socket) -> int:
    """Wait until the server has read everything sent so far, so that nothing falls out of its socket; replies seen."""
    mark = b"\xff\xfe\x01\0\0\1\0\0\0\0\0\0" + names.from_text(WEB) + b"\0\1\0\1"
    count = 0
    for _ in range(20):
        sock.send(mark)
        while select.select([sock], [], [], 1.0)[0]:
            data = sock.recv(65535)
            assert data[2] & 0x80
            if data[:2] == mark[:2]:
                return count
            count += 1
    raise AssertionError("the server answers no more")


def test_mutated_packets(running: Running) -> None:
    rng, samples = random.Random(20_240_601), seeds()
    pool = [mutated(rng, samples) for _ in range(50_000)]
    replies, before = 0, 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.connect(("127.0.0.1", running.port))
        sock.setblocking(False)
        for sent in range(MUTATIONS):
            data = pool[sent % len(pool)]
            if sent >= len(pool):  # the second time round each is changed once more
                at = 2 + sent * 7 % max(len(data) - 2, 1)
                data = data[:at] + bytes((sent & 255,)) + data[at + 1 :]
            with contextlib.suppress(BlockingIOError):
                sock.send(data)
            if sent % 256 == 255:
                replies += catch_up(sock)
            if sent == MUTATIONS // 3:
                before = running.rss_mb()
    running.wait(WEB, expected=WEB_IS_THERE)  # behind what still waits in its socket
    assert replies > MUTATIONS / 10
    assert running.metric("coredns_panics_total") == 0
    assert running.rss_mb() - before < 40
    assert "Traceback" not in running.log


def test_mutated_streams(running: Running) -> None:
    rng, samples = random.Random(7), seeds()
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", running.port), timeout=0.05) as sock:
            for _ in range(rng.randrange(1, 20)):
                data = mutated(rng, samples)
                size = len(data) if rng.random() < 0.8 else rng.randrange(65536)
                sock.sendall(struct.pack("!H", size) + data)
            sock.recv(65535)
    assert running.ask(WEB, tcp=True) == WEB_IS_THERE
    assert running.metric("coredns_panics_total") == 0


@pytest.mark.parametrize("suffix", ["default.svc.cluster.local", "example.org"], ids=["cluster", "forwarded"])
def test_a_flood_of_random_names_takes_no_memory_and_no_service(running: Running, suffix: str) -> None:
    rng, tail = random.Random(3), names.from_text(suffix)
    head, end = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0", b"\0\1\0\1"
    good, asked, levels = 0, 0, []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", running.port))
        sock.setblocking(False)
        began_s = time.monotonic()
        for sent in range(60_000):
            label = b"%016x" % rng.getrandbits(64)
            with contextlib.suppress(BlockingIOError):
                sock.send(head + bytes((16,)) + label + tail + end)
            if sent % 64 == 63:
                select.select([sock], [], [], 0.02)
                drain(sock)
            if sent % 5_000 == 4_999:
                asked += 1
                good += running.ask(WEB, timeout_s=5) == WEB_IS_THERE
                levels.append(running.rss_mb())
            if time.monotonic() - began_s > 25:
                break
    assert good == asked
    assert levels[-1] < 180  # MB; two generations of the hot path, a full cache, and what Python needs
    assert running.metric("dnsserver_hot_replies") < 200_000


def test_many_connections_that_say_nothing(running: Running) -> None:
    idle = []
    for _ in range(400):
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", running.port), timeout=1)
            sock.sendall(b"\0")
            idle.append(sock)
    assert running.ask(WEB) == WEB_IS_THERE
    assert running.metric("dnsserver_tcp_connections") <= 130
    time.sleep(4)  # they have 3 s to finish a message
    assert running.ask(WEB, tcp=True) == WEB_IS_THERE
    assert running.metric("dnsserver_tcp_connections") < 10
    for sock in idle:
        sock.close()
