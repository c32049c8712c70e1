"""A data plane in memory, as strict as the kernel: what the kernel refuses it refuses, with the same errors.

Knows: the kernel's rules for virtual servers, routes and nft transactions. tests/contract runs one suite on this and on
a kernel. Used by tests, which also make it fail and crash at will.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from ipvsproxy.dataplane import (
    AddRealServer,
    AddVip,
    AddVirtualServer,
    ChangeElements,
    CutFlows,
    DataplaneError,
    DeleteRealServer,
    DeleteVip,
    DeleteVirtualServer,
    EditRealServer,
    EditVirtualServer,
    HostNetwork,
    NotFound,
    Op,
)
from ipvsproxy.kernel.errors import error_for
from ipvsproxy.model import (
    ActualRealServer,
    ActualVirtualServer,
    Element,
    ForwardMethod,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    Scheduler,
    ServiceFlag,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.addresses import family_of
from kubecore.model import Family, Protocol

_SET = re.compile(r"^\s*(?:set|map) (\w+) \{\s*type ([^\n]*)((?:\n\s+flags [^\n]*)?)", re.MULTILINE)
_CHAIN = re.compile(r"^\s*chain (\w+) \{", re.MULTILINE)
_ADD = re.compile(r"^add element \w+ \w+ (\w+) \{ (.*) \}$", re.MULTILINE)


class Crash(BaseException):
    """The process "died": as kill -9 between two operations. Nothing should catch it but the test."""


class Flow(NamedTuple):
    """A tracked flow through a virtual server."""

    protocol: Protocol
    address: str
    port: int
    real_server: str


class _Set(NamedTuple):
    parts: tuple[str, ...]
    """nft's types of the key's parts."""
    is_map: bool
    interval: bool
    elements: dict[tuple[str, ...], str]


class FakeDataPlane:
    """See `dataplane.DataPlane`. Everything in it may be looked at and, to play the stranger, changed.

    Args:
        host: what `read_host` tells; where it names addresses, a route's source must be one of them, as in the kernel.
        schedulers: those "loadable".
    """

    def __init__(self, host: HostNetwork | None = None, schedulers: Iterable[Scheduler] | None = None) -> None:
        self.host = host or HostNetwork()
        self.schedulers = set(schedulers if schedulers is not None else Scheduler) - {Scheduler.OTHER}
        self.virtual_servers: dict[VirtualServerKey, ActualVirtualServer] = {}
        self.vips: dict[str, str] = {}
        self.device_addresses: set[str] = set()
        self.flows: set[Flow] = set()
        self.on_flows_cut: Callable[[Family, int, float], None] = lambda _family, _flows, _seconds: None
        self.done: list[Op] = []
        """Every operation that was done, in order; a virtual server and the real servers it brings, each by itself."""
        self.calls: list[str] = []
        """Names of the other methods called, in order."""
        self.fail: Callable[[Op], int] = lambda _: 0
        """Asked before each operation: an errno makes it fail, 0 lets it go on."""
        self.crash_after: int | None = None
        """Raise Crash after so many more operations."""
        self.altered = False
        """Somebody changed our table's rules."""
        self._sets: dict[str, _Set] | None = None
        self._chains: set[str] = set()
        self._news: asyncio.Queue[str] = asyncio.Queue()

    # -- what a test does to it

    def tell(self, name: str) -> None:
        """Let `changes` yield this."""
        self._news.put_nowait(name)

    def drop_table(self) -> None:
        """Somebody deletes our table."""
        self._sets = None

    def set_counters(self, server: VirtualServerKey, key: RealServerKey, counters: RealServerCounters) -> None:
        """Let a real server have these connections."""
        there = self.virtual_servers[server].real_servers
        there[key] = ActualRealServer(there[key].config, counters)

    @property
    def elements(self) -> set[Element]:
        """What is in the table; empty without one."""
        return {
            Element(name, key, value) for name, s in (self._sets or {}).items() for key, value in s.elements.items()
        }

    # -- DataPlane

    async def apply(self, ops: Sequence[Op]) -> list[DataplaneError | None]:
        """Do `ops` in order."""
        results: list[DataplaneError | None] = []
        for op in ops:
            codes = [self._attempt(message) for message in _messages(op)] if _encodable(op) else [errno.EINVAL]
            code = next(filter(None, codes), 0)
            results.append(error_for(op, code) if code else None)
        await asyncio.sleep(0)
        return results

    async def dump_virtual_servers(self) -> dict[VirtualServerKey, ActualVirtualServer]:
        """A copy of all."""
        self.calls.append("dump_virtual_servers")
        return {key: _copy(server) for key, server in self.virtual_servers.items()}

    async def dump_keys(self) -> list[tuple[VirtualServerKey, VirtualServerConfig]]:
        """Keys and configurations."""
        self.calls.append("dump_keys")
        return [(key, server.config) for key, server in self.virtual_servers.items()]

    async def dump_real_servers(self, key: VirtualServerKey) -> ActualVirtualServer:
        """A copy of one."""
        self.calls.append("dump_real_servers")
        return _copy(self._server(key))

    async def fingerprints(self) -> dict[VirtualServerKey, int]:
        """Hashes."""
        self.calls.append("fingerprints")
        return {
            key: hash((s.config.scheduler, s.config.persistence_s, *((k, r.config) for k, r in s.real_servers.items())))
            for key, s in self.virtual_servers.items()
        }

    async def dump_vips(self) -> dict[str, str]:
        """A copy."""
        self.calls.append("dump_vips")
        return dict(self.vips)

    async def dump_device_addresses(self) -> set[str]:
        """A copy."""
        self.calls.append("dump_device_addresses")
        return set(self.device_addresses)

    async def dump_elements(self) -> set[Element] | None:
        """A copy; None without a table or with altered rules."""
        self.calls.append("dump_elements")
        return None if self._sets is None or self.altered else self.elements

    async def connections(self, key: VirtualServerKey) -> dict[RealServerKey, RealServerCounters]:
        """Counters as `set_counters` left them."""
        self.calls.append("connections")
        return {server: actual.counters for server, actual in self._server(key).real_servers.items()}

    async def load_table(self, script: str) -> None:
        """Understands what `nftables.load` writes: sets, maps, names of chains, added elements."""
        self.calls.append("load_table")
        chains = set(_CHAIN.findall(script))
        sets = {name: _parse_set(shape, flags) for name, shape, flags in _SET.findall(script)}
        if not sets:
            raise DataplaneError(None, errno.EINVAL, f"no set in this script: {script[:80]!r}")
        added = tuple(
            Element(name, *_parse_element(text)) for name, texts in _ADD.findall(script) for text in texts.split(", ")
        )
        before, self._sets, self._chains = (self._sets, self._chains), sets, chains
        code = self._change_elements(ChangeElements(added))
        if code:
            self._sets, self._chains = before
            raise error_for(None, code)
        self.altered = False

    async def read_host(self) -> HostNetwork:
        """`host`."""
        self.calls.append("read_host")
        return self.host

    async def release_addresses(self, addresses: Iterable[str]) -> None:
        """Delete addresses from the device."""
        self.calls.append("release_addresses")
        self.device_addresses -= set(addresses)

    async def remove_table(self) -> None:
        """Delete the table."""
        self.calls.append("remove_table")
        self._sets = None

    async def remove_device(self) -> None:
        """Delete the device with routes and addresses."""
        self.calls.append("remove_device")
        self.vips.clear()
        self.device_addresses.clear()

    async def changes(self) -> AsyncIterator[str]:
        """What `tell` was told."""
        while True:
            yield await self._news.get()

    # -- the kernel's rules; each returns an errno, 0 for success

    def _attempt(self, op: Op) -> int:
        if self.crash_after is not None:
            if not self.crash_after:
                raise Crash
            self.crash_after -= 1
        code = self.fail(op) or self._do(op)
        if not code:
            self.done.append(op)
        return code

    def _server(self, key: VirtualServerKey) -> ActualVirtualServer:
        if key not in self.virtual_servers:
            raise NotFound(None, errno.ESRCH, f"no virtual server {key}")
        return self.virtual_servers[key]

    def _do(self, op: Op) -> int:
        match op:
            case AddVirtualServer(key, config) | EditVirtualServer(key, config):
                return self._put_virtual_server(key, config, new=isinstance(op, AddVirtualServer))
            case DeleteVirtualServer(key):
                return 0 if self.virtual_servers.pop(key, None) is not None else errno.ESRCH
            case AddRealServer(server, key, config) | EditRealServer(server, key, config):
                return self._put_real_server(server, key, config, new=isinstance(op, AddRealServer))
            case DeleteRealServer(server, key):
                if server not in self.virtual_servers:
                    return errno.ESRCH
                return 0 if self.virtual_servers[server].real_servers.pop(key, None) is not None else errno.ENOENT
            case AddVip(address, source):
                return self._add_vip(address, source)
            case DeleteVip(address):
                return 0 if self.vips.pop(address, None) is not None else errno.ESRCH
            case ChangeElements():
                return self._change_elements(op)
            case CutFlows(protocol, address, port, real_server):
                front = (protocol, address, port)
                before = len(self.flows)
                self.flows = {f for f in self.flows if f[:3] != front or real_server not in (None, f.real_server)}
                self.on_flows_cut(family_of(address), before - len(self.flows), 0.0)
                return 0

    def _put_virtual_server(self, key: VirtualServerKey, config: VirtualServerConfig, *, new: bool) -> int:
        if not _expressible(key) or config.scheduler is Scheduler.OTHER or not 0 <= config.persistence_s < 1 << 32:
            return errno.EINVAL
        there = self.virtual_servers.get(key)
        if (there is not None) == new:
            return errno.EEXIST if new else errno.ESRCH
        if config.scheduler not in self.schedulers:
            return errno.ENOENT
        stored = VirtualServerConfig(config.scheduler, config.flags & ~ServiceFlag.FOREIGN, config.persistence_s)
        self.virtual_servers[key] = ActualVirtualServer(stored, there.real_servers if there is not None else {})
        return 0

    def _put_real_server(
        self, server: VirtualServerKey, key: RealServerKey, config: RealServerConfig, *, new: bool
    ) -> int:
        if not _is_place(key):
            return errno.EINVAL
        if server not in self.virtual_servers:
            return errno.ESRCH
        if not _is_unicast(key.address):
            return errno.EINVAL
        if (":" in key.address) != (server.family == 6) and config.method is not ForwardMethod.TUNNEL:
            return errno.EINVAL
        if config.weight < 0 or not config.lower_threshold <= config.upper_threshold < 1 << 31:
            return errno.ERANGE
        there = self.virtual_servers[server].real_servers
        if (key in there) == new:
            return errno.EEXIST if new else errno.ENOENT
        old = there.get(key)
        there[key] = ActualRealServer(config, old.counters) if old is not None else ActualRealServer(config)
        return 0

    def _add_vip(self, address: str, source: str) -> int:
        if not _is_address(address) or (source and not _is_address(source)):
            return errno.EINVAL
        own = {a.address for a in self.host.addresses}
        if source and (":" in source) != (":" in address):
            return errno.EINVAL
        if source and own and source not in own:
            return errno.EINVAL
        self.vips[address] = source
        return 0

    def _change_elements(self, op: ChangeElements) -> int:
        """All or none; deletes come first."""
        if self._sets is None:
            return errno.ENOENT
        after = {name: s._replace(elements=dict(s.elements)) for name, s in self._sets.items()}
        for name, key, _ in op.delete:
            if name not in after:
                return errno.ENOENT
            if not _fits(after[name], key):
                return errno.EINVAL
            if after[name].elements.pop(key, None) is None:
                return errno.ENOENT
        for element in op.add:
            code = self._add_element(after, element)
            if code:
                return code
        self._sets = after
        return 0

    def _add_element(self, after: dict[str, _Set], element: Element) -> int:
        name, key, value = element
        target = after.get(name)
        if target is None:
            return errno.ENOENT
        if not _fits(target, key) or bool(value) != target.is_map:
            return errno.EINVAL
        verb, _, chain = value.partition(" ")
        if verb in ("goto", "jump") and chain not in self._chains:
            return errno.ENOENT
        if key in target.elements:
            return 0 if target.elements[key] == value else errno.EEXIST
        if target.interval and any(_overlaps(key, other) for other in target.elements):
            return errno.EEXIST
        target.elements[key] = value
        return 0


def _copy(server: ActualVirtualServer) -> ActualVirtualServer:
    return ActualVirtualServer(server.config, dict(server.real_servers), server.traffic)


def _messages(op: Op) -> list[Op]:
    """What the kernel is sent for an operation, which it takes or refuses by itself."""
    if not isinstance(op, AddVirtualServer):
        return [op]
    bare = AddVirtualServer(op.key, op.config)
    return [bare, *(AddRealServer(op.key, real, op.real_server_config) for real in op.real_servers)]


def _encodable(op: Op) -> bool:
    """Whether all of it can be put in messages; if not, none is sent."""
    if not isinstance(op, AddVirtualServer):
        return True
    return all(map(_is_place, op.real_servers))


def _is_place(key: RealServerKey) -> bool:
    return _is_address(key.address) and 0 <= key.port < 1 << 16


def _expressible(key: VirtualServerKey) -> bool:
    if key.protocol is None:
        return 0 < key.fwmark < 1 << 32
    return _is_address(key.address) and (":" in key.address) == (key.family == 6) and 0 <= key.port < 1 << 16


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_unicast(text: str) -> bool:
    """Whether ip_vs_new_dest takes it for a real server."""
    address = ip_address(text)
    link_local = address.version == 6 and address.is_link_local
    return not (address.is_multicast or address.is_unspecified or link_local or text == "255.255.255.255")


def _parse_set(shape: str, flags: str) -> _Set:
    key, _, value = shape.partition(" : ")
    return _Set(tuple(key.strip().split(" . ")), bool(value), "interval" in flags, {})


def _parse_element(text: str) -> tuple[tuple[str, ...], str]:
    key, _, value = text.strip().partition(" : ")
    return tuple(part.strip('"') for part in key.split(" . ")), value


def _fits(target: _Set, key: tuple[str, ...]) -> bool:
    return len(key) == len(target.parts) and all(
        _part_fits(kind, part, interval=target.interval) for kind, part in zip(target.parts, key, strict=True)
    )


def _part_fits(kind: str, part: str, *, interval: bool) -> bool:
    if kind in ("ipv4_addr", "ipv6_addr"):
        if "/" in part and not interval:
            return False
        try:
            return ip_network(part).version == (4 if kind == "ipv4_addr" else 6)
        except ValueError:
            return False
    if kind == "inet_service":
        return part.isdecimal() and int(part) < 1 << 16
    if kind == "inet_proto":
        return part in ("tcp", "udp", "sctp")
    return kind == "ifname" and 0 < len(part) < 16


def _overlaps(key: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the prefix at the end of both overlaps, all before being equal."""
    return key[:-1] == other[:-1] and ip_network(key[-1]).overlaps(ip_network(other[-1]))
