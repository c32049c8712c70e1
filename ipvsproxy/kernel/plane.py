"""The kernel as a data plane: sorts operations to the sockets that do them.

Knows: which operation is whose. Must not know: netlink's bytes, nft's language, what is wanted. Made by `__main__`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import groupby
from typing import Self, cast

from ipvsproxy import nftables
from ipvsproxy.dataplane import (
    AddVip,
    ChangeElements,
    CutFlows,
    DataplaneError,
    DeleteVip,
    HostNetwork,
    Interrupted,
    Op,
)
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.errors import error_for
from ipvsproxy.kernel.host import Host
from ipvsproxy.kernel.ipvs import GENL_OPS, GenlOp, Ipvs, open_ipvs
from ipvsproxy.kernel.monitor import Monitor
from ipvsproxy.kernel.netlink import Failure
from ipvsproxy.kernel.nft import Nft
from ipvsproxy.kernel.procfs import FILE, fingerprints
from ipvsproxy.kernel.setelements import SetElements
from ipvsproxy.model import (
    ActualVirtualServer,
    Element,
    RealServerCounters,
    RealServerKey,
    VirtualServerConfig,
    VirtualServerKey,
)
from ipvsproxy.site import FAMILIES
from kubecore.addresses import family_of
from kubecore.model import Family

_READS = 5
"""How often a table that changes under our hands is read before we give up."""


class KernelDataPlane:
    """The IPVS, routes, nftables and conntrack of this network namespace; see `dataplane.DataPlane`.

    Made by `open`, inside the event loop that is to use it.
    """

    def __init__(self, ipvs: Ipvs, reader: Ipvs) -> None:
        self._ipvs = ipvs
        self._reader = reader  # so that a long dump holds up no change
        self._host = Host()
        self._conntrack = Conntrack()
        self._sets = SetElements(nftables.TABLE)
        self._monitor = Monitor(self._host.port_id, self._sets.port_id, nftables.TABLE)
        self._nft = Nft(nftables.FAMILY, nftables.TABLE, self._monitor.ignore_nft)
        self.on_flows_cut: Callable[[Family, int, float], None] = lambda _family, _flows, _seconds: None
        self._rules: bytes | None = None  # of the table as we loaded it; None: not loaded yet

    @classmethod
    async def open(cls) -> Self:
        """A data plane on this network namespace; nothing in the kernel is changed by it.

        Raises: Unsupported, naming what to load, if there is no IPVS; DataplaneError without CAP_NET_ADMIN.
        """
        return cls(await open_ipvs(), await open_ipvs())

    def close(self) -> None:
        """Close every socket; everything in the kernel stays and works."""
        for part in (self._monitor, self._ipvs, self._reader, self._host, self._conntrack, self._sets):
            part.close()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    async def apply(self, ops: Sequence[Op]) -> list[DataplaneError | None]:
        """Do `ops` in order, one result each; a run of one kind goes out in as few sends as fit."""
        results: list[DataplaneError | None] = [None] * len(ops)
        start = 0
        for kind, group in groupby(ops, key=_kind):
            run = list(group)
            for index, failure in (await self._apply_run(kind, run)).items():
                results[start + index] = error_for(run[index], failure.errno, failure.detail)
            start += len(run)
        return results

    async def _apply_run(self, kind: str, run: list[Op]) -> dict[int, Failure]:
        """What failed of a run of one kind, by index."""
        try:
            if kind == "ipvs":
                return await self._ipvs.submit(cast("list[GenlOp]", run))
            if kind == "route":
                return await self._host.submit(cast("list[AddVip | DeleteVip]", run))
            if kind == "conntrack":
                await self._cut(cast("list[CutFlows]", run))
                return {}
        except DataplaneError as error:  # the socket or the device failed, not one message
            return dict.fromkeys(range(len(run)), Failure(error.errno, error.detail))
        except ValueError as error:
            return dict.fromkeys(range(len(run)), Failure(errno.EINVAL, str(error)))
        return await self._change_elements(cast("list[ChangeElements]", run))

    async def _cut(self, run: list[CutFlows]) -> None:
        for family in FAMILIES:
            ops = [op for op in run if family_of(op.address) == family]
            if ops:
                started_s = time.perf_counter()
                flows = await self._conntrack.cut(ops)
                self.on_flows_cut(family, flows, time.perf_counter() - started_s)

    async def _change_elements(self, run: list[ChangeElements]) -> dict[int, Failure]:
        failures = {}
        for index, op in enumerate(run):
            if index:
                await asyncio.sleep(0)  # a large change comes in slices, between which others have their turn
            try:
                if await self._sets.can_change(op):
                    failure = await self._sets.change(op)
                    if failure is not None:
                        failures[index] = failure
                else:
                    await self._nft.run(nftables.transaction(op), op)
            except DataplaneError as error:
                failures[index] = Failure(error.errno, error.detail)
            except ValueError as error:
                failures[index] = Failure(errno.EINVAL, str(error))
        return failures

    async def dump_virtual_servers(self) -> dict[VirtualServerKey, ActualVirtualServer]:
        """Every virtual server with its real servers."""
        found = {}
        async for services in self._reader.services():
            for service in services:
                found[service.key] = ActualVirtualServer(service.config, {}, service.traffic)
        for count, (key, server) in enumerate(found.items()):
            server.real_servers.update(await self._reader.dests(key))
            if count % 16 == 15:
                await asyncio.sleep(0)
        return found

    async def dump_keys(self) -> list[tuple[VirtualServerKey, VirtualServerConfig]]:
        """Virtual servers without their real servers."""
        return [(s.key, s.config) async for services in self._reader.services() for s in services]

    async def dump_real_servers(self, key: VirtualServerKey) -> ActualVirtualServer:
        """One virtual server with its real servers."""
        service = await self._reader.service(key)
        return ActualVirtualServer(service.config, await self._reader.dests(key), service.traffic)

    async def fingerprints(self) -> dict[VirtualServerKey, int]:
        """Numbers that change with what virtual servers hold."""
        try:
            return await fingerprints()
        except OSError as error:
            raise error_for(None, error.errno or errno.EIO, f"{FILE}: {error.strerror}") from error

    async def dump_vips(self) -> dict[str, str]:
        """Addresses with a local route of ours, and its source."""
        return await self._host.vips()

    async def dump_device_addresses(self) -> set[str]:
        """Addresses on kube-ipvs0."""
        return {a.address for a in await self._host.device_addresses()}

    async def dump_elements(self) -> set[Element] | None:
        """Every element in our table; None if it is missing, or its rules are not those we loaded."""
        for _ in range(_READS):
            with contextlib.suppress(Interrupted):
                if self._rules is not None and await self._sets.rules() != self._rules:
                    return None
                return await self._sets.dump()
        raise Interrupted(None, errno.EINTR, f"the table changed during each of {_READS} reads")

    async def connections(self, key: VirtualServerKey) -> dict[RealServerKey, RealServerCounters]:
        """Open connections per real server."""
        found = await self._reader.dests(key)
        if not found:
            await self._reader.service(key)  # tells an empty one from a missing one
        return {server: actual.counters for server, actual in found.items()}

    async def load_table(self, script: str) -> None:
        """Make our table, and note its rules, so that `dump_elements` sees if somebody alters them."""
        self._rules = None
        await self._nft.run(script)
        self._rules = await self._sets.rules()
        await self._sets.learn()

    async def read_host(self) -> HostNetwork:
        """Addresses, links and gateways."""
        return await self._host.network()

    async def release_addresses(self, addresses: Iterable[str]) -> None:
        """Delete addresses from kube-ipvs0, keeping our routes."""
        await self._host.release(addresses)

    async def remove_table(self) -> None:
        """Delete our table."""
        await self._nft.remove()
        self._rules = None

    async def remove_device(self) -> None:
        """Delete kube-ipvs0."""
        await self._host.remove_device()

    def changes(self) -> AsyncIterator[str]:
        """What others changed."""
        return self._monitor.changes()


def _kind(op: Op) -> str:
    if isinstance(op, GENL_OPS):
        return "ipvs"
    if isinstance(op, AddVip | DeleteVip):
        return "route"
    return "conntrack" if isinstance(op, CutFlows) else "nft"
