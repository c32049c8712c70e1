"""Name servers out of files like resolv.conf.

Knows the format, and that a stub resolver on loopback leads back to whoever asked it. Must not know sockets. Called by
the forwarder.

Source: resolv.conf(5); systemd-resolved.service(8) for where the real servers of a host with a stub are listed.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import NamedTuple

from dnsserver.corefile_model import Upstream

SYSTEMD_UPLINKS = Path("/run/systemd/resolve/resolv.conf")
PORT = 53


class Nameservers(NamedTuple):
    """What a file gives."""

    upstreams: tuple[Upstream, ...]
    replaced: str = ""
    """The stub resolver that was passed over for the servers behind it; empty if none."""


def parse(text: str) -> tuple[Upstream, ...]:
    """The servers of the `nameserver` lines, each once, in order; lines without an address are skipped, as by libc."""
    found: dict[Upstream, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        found[Upstream(str(address), PORT)] = None
    return tuple(found)


def read(path: Path, *, uplinks: Path = SYSTEMD_UPLINKS) -> Nameservers:
    """The servers a file names; those of `uplinks` in place of systemd's stub resolver, which would ask us again.

    Raises:
        OSError: the file cannot be read.
    """
    found = parse(path.read_text(encoding="utf-8", errors="replace"))
    stubs = [upstream for upstream in found if is_loopback(upstream.host)]
    if not stubs:
        return Nameservers(found)
    try:
        behind = [u for u in parse(uplinks.read_text(encoding="utf-8", errors="replace")) if not is_loopback(u.host)]
    except OSError:
        behind = []
    if not behind:
        return Nameservers(found)
    others = [upstream for upstream in found if upstream not in stubs]
    return Nameservers(tuple(dict.fromkeys([*others, *behind])), replaced=stubs[0].host)


def is_loopback(host: str) -> bool:
    """Whether an address is this host's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells whether a file changed; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
