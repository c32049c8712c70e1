"""Fingerprints of virtual servers from /proc/net/ip_vs: what an audit of thousands can afford.

Knows: that file's text. A netlink dump of 100,000 real servers costs seconds of Python; the same as text, hashed
without being understood, a tenth of one. A fingerprint says only "as before" or "not": what differs is read by netlink.

Source: net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show. It shows weights, forwarding, scheduler and persistence,
not scheduler flags and thresholds.
"""

from __future__ import annotations

import asyncio
import re
from ipaddress import IPv6Address
from pathlib import Path

from ipvsproxy.model import VirtualServerKey
from kubecore.model import Family, Protocol

FILE = Path("/proc/thread-self/net/ip_vs")
_CHUNK_BYTES = 64 * 1024
"""Read and hashed in one go. The kernel writes the text while it is read, which on one CPU holds up everything else."""
_COUNTERS = re.compile(rb"[ \t]+\d+[ \t]+\d+[ \t]*$", re.MULTILINE)
_HEADERS = re.compile(rb"^(?=[A-Z])", re.MULTILINE)
_PROTOCOLS = {p.value.encode(): p for p in Protocol}


async def fingerprints(file: Path = FILE) -> dict[VirtualServerKey, int]:
    """A number for each virtual server; while it stays, so do its configuration and real servers, counters apart.

    Real servers in another order give another number. Marks of both families share the file's line, and so a number.

    Raises: OSError if the file cannot be read.
    """
    found: dict[VirtualServerKey, int] = {}
    marks: dict[int, int] = {}
    rest = b""
    with file.open("rb", buffering=0) as source:
        while chunk := source.read(_CHUNK_BYTES):
            text = rest + chunk
            # The last virtual server may go on in the next chunk.
            starts = [match.start() for match in _HEADERS.finditer(text)]
            end = starts[-1] if starts else 0
            rest = text[end:]
            _take_in(text[:end], found, marks)
            await asyncio.sleep(0)
    _take_in(rest, found, marks)
    families: tuple[Family, Family] = (4, 6)
    for mark, value in marks.items():
        for family in families:
            found[VirtualServerKey(family, None, "", 0, mark)] = value
    return found


def _take_in(text: bytes, found: dict[VirtualServerKey, int], marks: dict[int, int]) -> None:
    for block in _HEADERS.split(_COUNTERS.sub(b"", text)):
        words = block.split(None, 2)
        if len(words) < 2:
            continue
        if words[0] == b"FWM":
            mark = int(words[1], 16)
            marks[mark] = hash((marks.get(mark, 0), block))
        elif words[0] in _PROTOCOLS:
            found[_key(words[0], words[1])] = hash(block)


def _key(protocol: bytes, where: bytes) -> VirtualServerKey:
    address, _, port = where.rpartition(b":")
    if address.startswith(b"["):
        text = str(IPv6Address(address[1:-1].decode()))
        return VirtualServerKey(6, _PROTOCOLS[protocol], text, int(port, 16))
    number = int(address, 16)
    text = f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return VirtualServerKey(4, _PROTOCOLS[protocol], text, int(port, 16))
