"""The configuration of a running process: read at the start, looked at again, and the sockets it asks for.

Knows: where the Corefile is, when it is time to look, what a port that cannot be bound means to the operator. Must not
know what a configuration does. Used by the daemon; workers read the same file.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from dnsserver import corefile
from dnsserver.corefile_model import Config
from dnsserver.server import ListenAddress, Sockets, bind
from kubecore import log
from kubecore.opsserver import bind_remedy

_log = structlog.get_logger()

_NO_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


class BindError(Exception):
    """Addresses that cannot be listened on; the message has a line for each, with its remedy."""

    def __init__(self, failures: Mapping[ListenAddress, OSError]) -> None:
        lines = [
            f"cannot listen on {address}: {error.strerror or error}"
            + (f": {remedy}" if (remedy := bind_remedy(error)) else "")
            for address, error in failures.items()
        ]
        super().__init__("\n".join(lines))
        self.failures = failures


class Corefile:
    """The Corefile of this process.

    Args:
        path: None: the default configuration, which never changes.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._rejected = ""

    def load(self) -> Config:
        """The configuration as the file says it now.

        Raises:
            CorefileError: with every problem found.
        """
        return corefile.load(self.path if self.path is not None else corefile.DEFAULT, name="default Corefile")

    def changed(self, current: Config) -> Config | None:
        """The configuration if it differs from `current` and is good.

        Raises:
            CorefileError: it has changed and is bad; raised once for each text, so that it is told once.
        """
        try:
            new = self.load()
        except corefile.CorefileError as error:
            if str(error) == self._rejected:
                return None
            self._rejected = str(error)
            raise
        self._rejected = ""
        return None if new.digest == current.digest else new


def bind_all(wanted: Iterable[ListenAddress], *, copies: int = 1) -> list[dict[ListenAddress, Sockets]]:
    """Sockets of every address, `copies` times over (one for each worker).

    The IPv6 wildcard is left out on machines without IPv6.

    Raises:
        BindError: with every address that failed; nothing stays open.
    """
    bound: list[dict[ListenAddress, Sockets]] = [{} for _ in range(copies)]
    failures: dict[ListenAddress, OSError] = {}
    for address in wanted:
        shared = is_shared(address)
        try:
            for sockets in bound:
                sockets[address] = bind(address)
        except OSError as error:
            if address.host == "::" and error.errno in _NO_FAMILY:
                continue
            failures[address] = error
        else:
            if shared:
                _log.warning(
                    log.DNS_LISTENER_SHARED, address=str(address), remedy="stop the other unless it is leaving"
                )
    if failures:
        for sockets in bound:
            for pair in sockets.values():
                pair.close()
        raise BindError(failures)
    return bound


def is_shared(address: ListenAddress) -> bool:
    """Whether somebody has the port already, be it for sharing.

    Sharing is meant for a successor that takes over from a server about to leave. Two that both stay would each get
    half of the queries.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


async def next_look(config: Config, asked: asyncio.Event) -> None:
    """Wait until the Corefile is to be read again: `reload`'s period with its jitter has passed, or somebody asked.

    Jitter keeps the replicas of a Deployment, which see the new file at the same moment, from reloading together.
    """
    settings = [block.reload for block in config.blocks if block.reload is not None]
    wait_s = None
    if settings:
        period_s = max(2.0, min(s.interval_s for s in settings))
        jitter_s = max(1.0, min(s.jitter_s for s in settings))
        wait_s = max(1.0, period_s + random.uniform(-1, 1) * min(jitter_s, period_s / 2))  # noqa: S311 - no secret
    try:
        async with asyncio.timeout(wait_s):
            await asked.wait()
    except TimeoutError:
        return
    asked.clear()
