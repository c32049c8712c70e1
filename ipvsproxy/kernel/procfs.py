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
_CHUNK_BYTES = 256 * 1024
"""Read and hashed in one go: well below a millisecond of the loop's time."""
_COUNTERS = re.compile(rb"[ \t]+\d+[ \t]+\d+[ \t]*$", re.MULTILINE)
_HEADERS = re.compile(rb"^(?=[A-Z])", re.MULTILINE)
_PROTOCOLS = {p.value.encode(): p for p in Protocol}


async def fingerprints(file: Path = FILE) -> dict[VirtualServerKey, int]:
    """A number for each virtual server; while it stays, so do its configuration and real servers, counters apart.

    Real servers in another order give another number. Marks of both families share the file's line, and so a number.

    Raises: OSError if the file cannot be read.
    """
    text = await asyncio.to_thread(file.read_bytes)
    found: dict[VirtualServerKey, int] = {}
    marks: dict[int, int] = {}
    start, size = 0, len(text)
    while start < size:
        end = text.find(b"\n", start + _CHUNK_BYTES)
        # A chunk ends where a virtual server begins.
        while end != -1 and text[end + 1 : end + 5] == b"  ->":
            end = text.find(b"\n", end + 1)
        chunk = text[start : end + 1] if end != -1 else text[start:]
        start = end + 1 if end != -1 else size
        for block in _HEADERS.split(_COUNTERS.sub(b"", chunk)):
            words = block.split(None, 2)
            if len(words) < 2:
                continue
            if words[0] == b"FWM":
                mark = int(words[1], 16)
                marks[mark] = hash((marks.get(mark, 0), block))
            elif words[0] in _PROTOCOLS:
                found[_key(words[0], words[1])] = hash(block)
        await asyncio.sleep(0)
    families: tuple[Family, Family] = (4, 6)
    for mark, value in marks.items():
        for family in families:
            found[VirtualServerKey(family, None, "", 0, mark)] = value
    return found


def _key(protocol: bytes, where: bytes) -> VirtualServerKey:
    address, _, port = where.rpartition(b":")
    if address.startswith(b"["):
        text = str(IPv6Address(address[1:-1].decode()))
        return VirtualServerKey(6, _PROTOCOLS[protocol], text, int(port, 16))
    number = int(address, 16)
    text = f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return VirtualServerKey(4, _PROTOCOLS[protocol], text, int(port, 16))
