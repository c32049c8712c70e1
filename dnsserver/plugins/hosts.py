"""`hosts`: records out of a file like /etc/hosts, and lines in the configuration.

Source: hosts(5); RFC 4592 §2.1.1 is deliberately not followed by `*.`: it stands for exactly one label.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import structlog

from dnsserver import names, records
from dnsserver.corefile_model import HostsConfig, Zones
from dnsserver.message import RR, Handler, Message, QClass, QType, Query
from dnsserver.plugins.base import Background, Environment, failure, falls_through, within
from kubecore.log import HOSTS_FILE_LOADED, HOSTS_FILE_UNREADABLE

_log = structlog.get_logger()

_WILDCARD = b"\x01*"


class Table(NamedTuple):
    """Names and addresses of hosts files."""

    addresses: dict[bytes, tuple[str, ...]]
    """By lower-case name."""
    pointers: dict[str, tuple[bytes, ...]]
    """Names by canonical address, as written."""

    @property
    def entries(self) -> int:
        """Pairs of name and address."""
        return sum(map(len, self.addresses.values()))


def parse(lines: Iterable[str], zones: Zones) -> Table:
    """The table of `ADDRESS NAME…` lines; broken addresses and names, and names outside `zones`, are skipped."""
    addresses: dict[bytes, dict[str, None]] = {}
    pointers: dict[str, dict[bytes, None]] = {}
    for line in lines:
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            address = str(ipaddress.ip_address(words[0].partition("%")[0]))
        except ValueError:
            continue
        for word in words[1:]:
            try:
                name = names.from_text(word)
            except ValueError:
                continue
            lower = name.lower()
            if not within(lower, zones):
                continue
            addresses.setdefault(lower, {})[address] = None
            if not lower.startswith(_WILDCARD):
                pointers.setdefault(address, {})[name] = None
    return Table(
        {name: tuple(found) for name, found in addresses.items()},
        {address: tuple(found) for address, found in pointers.items()},
    )


class Hosts:
    """A Handler and a Service: looks at its file from time to time."""

    def __init__(self, config: HostsConfig, rest: Handler, env: Environment) -> None:
        self._config = config
        self._rest = rest
        self._counters = env.counters
        self._inline = parse(config.inline, config.zones)
        self._table = self._inline
        self._seen: tuple[float, int] | None = None
        self._background = Background()

    async def start(self) -> None:
        """Read the file, and look at it every `reload_s` from then on."""
        await self.refresh()
        if self._config.reload_s > 0:
            self._background.begin(self._watch())

    async def close(self) -> None:
        """Stop looking."""
        await self._background.end()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._config.reload_s)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the file if its time or size changed. What cannot be read leaves everything as it was."""
        path = Path(self._config.path)
        try:
            stat = path.stat()  # noqa: ASYNC240 - one call on a local file
            seen = stat.st_mtime, stat.st_size
            if seen == self._seen:
                return
            table = await asyncio.to_thread(self._read, path)
        except OSError as error:
            if self._seen is None:
                self._seen = (0.0, -1)
                _log.warning(HOSTS_FILE_UNREADABLE, file=str(path), error=error.strerror)
            return
        self._seen = seen
        self._table = table
        self._counters.hosts_entries.set(table.entries)
        self._counters.hosts_reloaded.set(time.time())
        _log.info(HOSTS_FILE_LOADED, file=str(path), entries=table.entries)

    def _read(self, path: Path) -> Table:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return parse([*self._config.inline, *lines], self._config.zones)

    def concerns(self, lower: bytes) -> bool:
        """Whether it has the last word for this name: within its zones, or a pointer of its own."""
        if names.is_reverse(lower):
            return self._names(lower) != () or within(lower, self._config.zones)
        return within(lower, self._config.zones)

    def knows(self, lower: bytes) -> bool:
        """Whether it has records of this name."""
        return bool(self._addresses(lower) or self._names(lower))

    async def __call__(self, query: Query) -> Message | None:
        """The name's records. An unknown name is the next plugin's, or SERVFAIL: there is no SOA to deny it with."""
        question = query.question
        if question.qclass != QClass.IN:
            return await self._rest(query)
        name, lower, ttl_s = question.name, question.lower, self._config.ttl_s
        if question.qtype == QType.PTR and not self._config.no_reverse:
            pointers = self._names(lower)
            if pointers:
                return _reply(tuple(records.ptr(name, ttl_s, target) for target in pointers))
            return await self._rest(query)
        if not within(lower, self._config.zones):
            return await self._rest(query)
        found = self._addresses(lower)
        if not found:
            if not self._config.no_reverse and self._names(lower):
                return _reply(())
            if falls_through(lower, self._config.fallthrough):
                return await self._rest(query)
            return _UNKNOWN
        wanted = (address for address in found if records.address_type(address) == question.qtype)
        return _reply(tuple(records.address(name, ttl_s, address) for address in wanted))

    def _addresses(self, lower: bytes) -> tuple[str, ...]:
        found = self._table.addresses.get(lower)
        if found is None and len(lower) > 1:
            found = self._table.addresses.get(_WILDCARD + lower[1 + lower[0] :])
        return found or ()

    def _names(self, lower: bytes) -> tuple[bytes, ...]:
        reverse = names.parse_reverse(lower)
        address = reverse.address if reverse is not None else None
        return self._table.pointers.get(address, ()) if address is not None else ()


_UNKNOWN = failure("the hosts file does not have this name")


def _reply(answer: tuple[RR, ...]) -> Message:
    """Authoritative, and not for a cache: the table is in memory anyway and may change."""
    return Message(answer=answer, aa=True, cacheable=False)
