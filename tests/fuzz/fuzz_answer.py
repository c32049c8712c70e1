"""Coverage-guided fuzzing of a datagram's whole way through the pure core: accept, answer, encode.

Run `python -m tests.fuzz.fuzz_answer [SECONDS] [CORPUS-DIRECTORY]`. With atheris installed it drives the search;
without, a mutator of our own does, keeping inputs that reach a line of the core not reached before. A failing input is
written to `crash-…` in the working directory, and the exit code is 1.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from dnsserver.answer import NeedsTarget, answer, finish
from dnsserver.config import ExternalConfig, PodsMode
from dnsserver.encode import encode, encode_query
from dnsserver.external import answer_external
from dnsserver.message import Message, Rcode
from dnsserver.names import from_text
from dnsserver.wire import Reject, accept, parse_reply
from kubecore.model import LoadBalancerIngress
from tests.dns.cluster import config, imported, namespace, piece, service, service_import, zone_of
from tests.dns.notation import question

EXTERNAL = ExternalConfig(zones=(from_text("ext.example"),), headless=True)
ZONE = zone_of(
    namespace("default"),
    service("default/web", "10.96.0.1 fd00::1", "http:80 dns:53/UDP", external_ips=("192.0.2.80",)),
    piece("default/web", "10.244.0.1=web-0 10.244.0.2", "http:8080"),
    service("default/db", "None", "pg:5432"),
    piece("default/db", " ".join(f"10.244.1.{i}=db-{i % 7}" for i in range(60)), "pg:5432"),
    piece("default/db", "fd00:244::1 2001:db8::", "pg:5432", name="six"),
    service("default/none", "None"),
    service("default/alias", to="www.example.org"),
    service("default/inner", to="web.default.svc.cluster.local"),
    service("default/loop", to="loop.default.svc.cluster.local"),
    service("default/lb", "10.96.0.3", "http:80", ingress=(LoadBalancerIngress(hostname="lb.example.org"),)),
    service_import("default/web", "10.42.0.1", "http:80"),
    service_import("default/set", "None", "pg:5432"),
    imported("default/set", "east", "172.16.0.1=db-0/zone-a 172.16.0.2", "pg:5432"),
    imported("default/set", "", "172.17.0.1=db-0", "pg:5432"),
    settings=config(
        "cluster.local set.local 10.in-addr.arpa ip6.arpa",
        pods=PodsMode.INSECURE,
        zonal=True,
        multicluster="set.local",
    ),
    local="10.244.0.1",
)

SEEDS = [
    encode_query(question(text), 4711, udp_size_bytes=size, do=bool(size))
    for size in (0, 1232)
    for text in (
        "web.default.svc.cluster.local. A",
        "_pg._tcp.db.default.svc.cluster.local. SRV",
        "db.default.svc.cluster.local. A",
        "a.pin._zone.db.default.svc.cluster.local. A",
        "a.prefer._zone.db.default.svc.cluster.local. SRV",
        "_pg._tcp.set.default.svc.set.local. SRV",
        "db-0.east.set.default.svc.set.local. A",
        "alias.default.svc.cluster.local. AAAA",
        "inner.default.svc.cluster.local. A",
        "loop.default.svc.cluster.local. A",
        "1-2-3-4.default.pod.cluster.local. A",
        "cluster.local. NS",
        "1.0.244.10.in-addr.arpa. PTR",
        "0.0.d.f.ip6.arpa. PTR",
        "web.default.ext.example. SRV",
        "lb.default.ext.example. A",
        "www.example.org. A",
    )
]


def check(data: bytes) -> None:
    """Take one datagram through the core, and assert what must hold of every reply."""
    for transport in ("udp", "tcp"):
        made = accept(data, transport, "192.0.2.1")
        if made is None:
            assert len(data) < 12 or data[2] & 0x80
            continue
        assert len(data) >= 12
        assert not data[2] & 0x80
        if isinstance(made, Reject):
            assert made.reply[:2] == data[:2]
            assert made.reply[2] & 0x80
            continue
        asked = made.question
        outcome = answer(ZONE, asked) or answer_external(ZONE, EXTERNAL, asked)
        if outcome is None:
            message = Message(rcode=Rcode.REFUSED)
        else:
            message = finish(outcome, None) if isinstance(outcome, NeedsTarget) else outcome.message
        raw = encode(message, made)
        assert raw[:2] == data[:2]
        assert len(raw) <= made.limit_bytes
        assert raw[12 : 12 + len(asked.name)] == asked.name
        parsed = parse_reply(raw)
        assert parsed.question == asked
        assert parsed.message.tc or parsed.message.answer == message.answer


def mutate(data: bytes, rng: random.Random, corpus: list[bytes]) -> bytes:
    """A neighbour of `data`: bytes flipped, cut, doubled, or spliced with another input."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice((0, 1, 0x3F, 0x40, 0xC0, 0x0C, 0xFF, rng.randrange(256)))
            case 2:
                del out[at : at + rng.randint(1, 8)]
            case 3:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                out[at:at] = out[at : at + rng.randint(1, 40)]
            case _:
                other = rng.choice(corpus)
                out[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(out[:4096])


def _reached(data: bytes) -> set[tuple[str, int]]:
    """The lines of the pure core that `check(data)` executes."""
    lines: set[tuple[str, int]] = set()

    def local(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame: FrameType, event: str, _: object) -> Any:
        return local if event == "call" and "dnsserver" in frame.f_code.co_filename else None

    sys.settrace(trace)
    try:
        check(data)
    finally:
        sys.settrace(None)
    return lines


def search(seconds: float, corpus: list[bytes], seed: int = 1) -> tuple[int, int]:
    """Mutate and check for so long: how many inputs, how many lines reached. An assertion or exception escapes."""
    rng = random.Random(seed)
    seen: set[tuple[str, int]] = set()
    for data in list(corpus):
        seen |= _reached(data)
    deadline = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < deadline:
        data = mutate(rng.choice(corpus), rng, corpus)
        tried += 1
        try:
            if tried % 8:  # tracing is slow: most inputs only have to pass
                check(data)
                continue
            lines = _reached(data)
        except Exception:
            Path("crash-" + hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            raise
        if lines - seen:
            seen |= lines
            corpus.append(data)
    return tried, len(seen)


def main(argv: list[str]) -> int:
    """Fuzz for the given seconds (default 30), starting from the seeds and a directory's files."""
    seconds = float(argv[0]) if argv else 30.0
    corpus = list(SEEDS)
    if len(argv) > 1:
        corpus += [path.read_bytes() for path in sorted(Path(argv[1]).iterdir()) if path.is_file()]
    try:
        import atheris
    except ImportError:
        try:
            tried, lines = search(seconds, corpus, seed=random.randrange(1 << 30))
        except Exception:
            traceback.print_exc()
            return 1
        print(f"{tried} inputs, {lines} lines of the core reached, no failure")
        return 0
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", *argv[1:2]], check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
