"""A file of weights for `loadbalance weighted`: domain names, below each its addresses with weights.

    # a comment
    www.example.org
    192.0.2.1 3
    192.0.2.2 1

Knows the file's form and when it changed. Must not know replies.

Source: the weight file of CoreDNS' `loadbalance`.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from dnsserver import names
from dnsserver.plugins.base import Background
from kubecore import log

_log = structlog.get_logger()

MAX_WEIGHT = 255

Weights = Mapping[bytes, Mapping[bytes, int]]
"""By lower-case name, then by address as in rdata."""


class WeightFileError(OSError):
    """The file cannot be used; the message says where and why."""


def parse(lines: Iterable[str], file: str) -> Weights:
    """The weights in `lines`.

    Raises:
        WeightFileError: naming file, line and remedy.
    """
    table: dict[bytes, dict[bytes, int]] = {}
    name = b""
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        try:
            if len(words) == 1:
                name = names.from_text(words[0]).lower()
                table.setdefault(name, {})
            elif words:
                address, weight = _weight(words, known=bool(name))
                table[name][address] = weight
        except ValueError as error:
            raise WeightFileError(f"{file}:{number}: {error}") from None
    return table


def _weight(words: list[str], *, known: bool) -> tuple[bytes, int]:
    """Address and weight of a line. Raises ValueError."""
    if len(words) != 2:
        raise ValueError("write a domain name alone, or ADDRESS WEIGHT")
    if not known:
        raise ValueError("no domain name stands above this address; begin with the name")
    address, weight = words
    if not weight.isascii() or not weight.isdigit() or not 1 <= int(weight) <= MAX_WEIGHT:
        raise ValueError(f"{weight!r} is no weight; write 1 to {MAX_WEIGHT}")
    return ipaddress.ip_address(address).packed, int(weight)


class WeightFile:
    """The weights in a file, now."""

    def __init__(self, path: Path, reload_s: float) -> None:
        self.table: Weights = {}
        self._path = path
        self._reload_s = reload_s
        self._seen: tuple[int, int] | None = None
        self._background = Background()

    async def start(self) -> None:
        """Read the file, and look at it every `reload_s` from then on.

        Raises:
            WeightFileError: it cannot be used.
        """
        try:
            await self.refresh()
        except WeightFileError:
            raise
        except OSError as error:
            raise WeightFileError(f"{self._path}: {error.strerror}; loadbalance takes its weights there") from None
        if self._reload_s > 0:
            self._background.begin(self._watch())

    async def close(self) -> None:
        """Stop looking."""
        await self._background.end()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._reload_s)
            try:
                await self.refresh()
            except OSError as error:
                _log.error(log.WEIGHT_FILE_REJECTED, file=str(self._path), reason=str(error))

    async def refresh(self) -> None:
        """Read the file if its time or size changed. Raises OSError, and keeps what it had."""
        stat = self._path.stat()
        seen = stat.st_mtime_ns, stat.st_size
        if seen == self._seen:
            return
        self._seen = seen
        text = await asyncio.to_thread(self._path.read_text, encoding="utf-8", errors="replace")
        self.table = parse(text.splitlines(), str(self._path))
