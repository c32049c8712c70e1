"""Listeners, chains and the hot path put together: what a datagram or a message over TCP goes through.

Knows: which server block a query goes to, how many may be in flight, what is counted. Must not know how a configuration
comes about or when the cluster changes: `engine` tells it. One Server in each process.

A query meets, in this order: the HotPath; `wire.accept`, which drops or refuses what is no proper query; the Router;
and the chain of plugins of one server block, in a task of its own.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import structlog

from dnsserver import encode, names, tcp, udp, wire
from dnsserver.answer import prepare
from dnsserver.cache import Kind
from dnsserver.chain import Chain, Match, Router
from dnsserver.hotpath import HotPath
from dnsserver.kept import Cell, Fast, Lasting
from dnsserver.message import ExtendedError, Message, Prepared, QType, Query, Question, Rcode, Transport
from dnsserver.metrics import DROPPED_ZONE, ServerMetrics, Traffic
from dnsserver.zone import Zone
from kubecore import log

_log = structlog.get_logger()

MAX_IN_FLIGHT = 4096
"""Queries in the chains at a time. Beyond, new ones are turned away at once: those that wait are the ones to finish."""
QUERY_TIMEOUT_S = 8.0
"""Nothing waits longer for a chain; plugins have shorter limits of their own."""
MAX_UDP_PAYLOAD_BYTES = 65507
"""What an IPv4 datagram holds: 65535 less the headers of IP and UDP."""

Reply = Callable[[bytes | None], None]


class ListenAddress(NamedTuple):
    """One address and port, UDP and TCP."""

    host: str
    port: int

    def __str__(self) -> str:
        """As in `--listen`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def server_label(address: ListenAddress) -> str:
    """How metrics name an address: `dns://:53`, without a wildcard host."""
    host = "" if address.host in {"0.0.0.0", "::"} else address.host
    return f"dns://{ListenAddress(host, address.port)}"


@dataclass(slots=True)
class Sockets:
    """Both sockets of one address, bound."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        """Close both."""
        self.udp.close()
        self.tcp.close()


def bind(address: ListenAddress) -> Sockets:
    """Both sockets of an address.

    Raises:
        OSError: as bind(2); nothing is left open.
    """
    first = udp.udp_socket(address.host, address.port)
    try:
        second = tcp.tcp_socket(address.host, first.getsockname()[1])
    except BaseException:
        first.close()
        raise
    return Sockets(first, second)


@dataclass(frozen=True, slots=True)
class Service:
    """Whom an address is served for."""

    router: Router
    zones: Mapping[Chain, Zone]
    """What the `kubernetes` plugins of the chains serve."""


@dataclass(slots=True)
class Front:
    """One address: its sockets being served, and whom they are served for."""

    address: ListenAddress
    service: Service
    label: str
    """`dns://:53`, as the metrics name it."""
    udp: udp.UdpListener
    tcp: tcp.TcpListener
    hot: tuple[HotPath, HotPath]
    counted: list[int] = field(default_factory=lambda: [0, 0])
    """Unsent replies and refused connections that are in the metrics already."""


class Server:
    """All addresses of a process. Chains are replaced under running sockets; see `configure`."""

    def __init__(self, metrics: ServerMetrics, *, limits: tcp.Limits | None = None) -> None:
        self.metrics = metrics
        self._limits = limits or tcp.Limits()
        self._fronts: dict[ListenAddress, Front] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._cache_cells: dict[Cell, tuple[Chain, Kind, list[int]]] = {}
        """Counters of cached replies: whose, of which kind, and how many hits the cache's own figures have already."""

    # -- configuration

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        """Served now."""
        return tuple(self._fronts)

    @property
    def in_flight(self) -> int:
        """Queries in chains now."""
        return len(self._tasks)

    async def configure(
        self, services: Mapping[ListenAddress, Service], sockets: Mapping[ListenAddress, Sockets]
    ) -> None:
        """Serve exactly these addresses from now on.

        An address already served keeps its sockets and connections: the next query simply meets the new Router, and
        those in flight finish in the old chain. `sockets` must hold those of every address that is new; they are owned
        from now on.
        """
        loop = asyncio.get_running_loop()
        self._count_cached()
        self._cache_cells.clear()
        for address, service in services.items():
            front = self._fronts.get(address)
            if front is not None:
                front.service = service
                for hot in front.hot:
                    hot.clear()
                continue
            front = self._front(address, service, sockets[address])
            self._fronts[address] = front
            front.udp.start(loop)
            await front.tcp.start()
            _log.info(log.DNS_LISTENER_OPENED, address=str(address), zones=len(service.router.zones))
        for address in [a for a in self._fronts if a not in services]:
            await self._close(self._fronts.pop(address), grace_s=2.0)
            _log.info(log.DNS_LISTENER_CLOSED, address=str(address))

    def _front(self, address: ListenAddress, service: Service, sockets: Sockets) -> Front:
        label = server_label(address)
        v6 = ":" in address.host
        family = 2 if v6 else 1
        front: Front

        def resolve(proto: str, lower: bytes, qtype: int, do: bool, cd: bool) -> Fast | None:  # noqa: FBT001 - Resolve
            return self._resolve(front, proto, family, lower, qtype, do=do, cd=cd)

        over_udp = HotPath(partial(resolve, "udp"))
        over_tcp = HotPath(partial(resolve, "tcp"), tcp=True)
        front = Front(
            address,
            service,
            label,
            udp.listen(sockets.udp, over_udp, lambda data, peer, listener: self._from_udp(front, data, peer, listener)),
            tcp.TcpListener(
                sockets.tcp,
                over_tcp,
                lambda data, client, local, reply: self._take(front, data, "tcp", client, local, reply),
                self._limits,
            ),
            (over_udp, over_tcp),
        )
        for proto, hot in (("udp", over_udp), ("tcp", over_tcp)):
            self.metrics.traffic.watch_hot(label, proto, family, hot)
        return front

    def forget(self, tags: Collection[bytes]) -> None:
        """Drop ready-made replies that carry one of these tags (`Zone.tag`); denials show the serials of now."""
        for front in self._fronts.values():
            for hot in front.hot:
                hot.forget(tags)

    def forget_everything(self) -> None:
        """Drop every ready-made reply."""
        for front in self._fronts.values():
            for hot in front.hot:
                hot.clear()

    # -- the way of a query

    def _resolve(
        self, front: Front, proto: str, family: int, lower: bytes, qtype: int, *, do: bool, cd: bool
    ) -> Fast | None:
        match = front.service.router.find(lower, qtype)
        fast = None if match is None else _without_chain(front.service, match.chain, lower, qtype, do=do, cd=cd)
        if match is None or fast is None:
            return None
        prepared, lasting, tag, plugin = fast
        zone_here = front.service.zones.get(match.chain)
        zone, rcode = names.to_text(match.zone), prepared.flags & 15

        def cell(asked: int, replied: int, do: bool) -> Cell:  # noqa: FBT001 - as Fast has it
            found = self.metrics.traffic.cell(
                Traffic(front.label, zone, proto, family, qtype, rcode, do, plugin, asked, replied, lasting)
            )
            if plugin == "cache":
                kind = Kind.SUCCESS if prepared.counts[:2] != b"\0\0" else Kind.NXDOMAIN
                # The look-up itself was counted by the cache.
                self._cache_cells.setdefault(found, (match.chain, kind, [found.hits]))[2][0] += 1
            return found

        # Within our own zones a name that falls through may become ours at any moment.
        counts_down = (
            lasting is Lasting.UNTIL_SECOND
            and _only_counts_down(match.chain)
            and (zone_here is None or zone_here.cut(lower) is None)
        )
        shows = zone_here.serial_of(lower) if zone_here is not None and lasting is Lasting.UNTIL_SERIAL else None
        return Fast(prepared, tag, cell, _most(match.chain), counts_down, shows)

    def _from_udp(self, front: Front, data: bytes, peer: udp.Peer, listener: udp.UdpListener) -> None:
        def reply(message: bytes | None) -> None:
            if message is not None:
                listener.send(message, peer)

        if peer.local:
            local = socket.inet_ntop(socket.AF_INET6 if len(peer.local) == 16 else socket.AF_INET, peer.local)
        else:
            local = listener.address[0]
        self._take(front, data, "udp", peer.address, local, reply)

    def _take(  # noqa: PLR0917 - as the listeners call it
        self, front: Front, data: bytes, transport: Transport, client: tuple[Any, ...], local: str, reply: Reply
    ) -> None:
        """Decide what becomes of a query; `reply` is called once, now or later."""
        host = client[0].partition("%")[0]
        accepted = wire.accept(data, transport, host, client[1], local.partition("%")[0])
        if isinstance(accepted, Query):
            match = front.service.router.find(accepted.question.lower, accepted.question.qtype)
            if match is None:
                self._refuse(front, accepted, Rcode.REFUSED, ExtendedError.NOT_AUTHORITATIVE, reply)
            elif len(self._tasks) >= MAX_IN_FLIGHT:
                self.metrics.shed.labels(front.label).inc()
                self._refuse(front, accepted, Rcode.SERVFAIL, ExtendedError.OTHER, reply)
            else:
                task = asyncio.create_task(self._ask(front, match, accepted, reply))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        elif accepted is None:
            reply(None)
        else:
            family = 2 if ":" in host else 1
            traffic = Traffic(
                front.label,
                DROPPED_ZONE,
                transport,
                family,
                type=0,
                rcode=accepted.rcode,
                do=False,
                plugin="",
                asked_bytes=len(data),
                replied_bytes=len(accepted.reply),
                hot=None,
            )
            self.metrics.traffic.cell(traffic).hits += 1
            reply(accepted.reply)

    def _refuse(self, front: Front, query: Query, rcode: Rcode, error: ExtendedError, reply: Reply) -> None:
        text = "no zone of this server" if rcode is Rcode.REFUSED else "too many queries in flight"
        raw = encode.encode(Message(rcode=rcode, errors=((int(error), text),)), query)
        self._count(front, DROPPED_ZONE, query, rcode, len(raw), "", time.monotonic())
        reply(raw)

    async def _ask(self, front: Front, match: Match, query: Query, reply: Reply) -> None:
        """Have the chain answer."""
        began_s = time.monotonic()
        plugin, raw = "", None
        message: Message | None
        try:
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                message = await front.service.router(query)
            if message is not None:
                raw = encode.encode(message, query, self._limit(match.chain, query))
                plugin = "" if message.rcode == Rcode.REFUSED else "kubernetes" if not message.cacheable else "forward"
        except TimeoutError:
            message = Message(rcode=Rcode.SERVFAIL, errors=((int(ExtendedError.OTHER), "timed out"),))
            raw = encode.encode(message, query)
        except asyncio.CancelledError:
            reply(None)
            raise
        except Exception as error:  # nothing a client sends may end the server
            self.metrics.panics.inc()
            _log.exception(log.DNS_QUERY_FAILED, error=repr(error))
            message = Message(rcode=Rcode.SERVFAIL)
            raw = encode.encode(message, query)
        reply(raw)
        if message is not None and raw is not None:
            self._count(front, names.to_text(match.zone), query, message.rcode, len(raw), plugin, began_s)

    @staticmethod
    def _limit(chain: Chain, query: Query) -> int | None:
        return _most(chain) if query.transport == "udp" else None

    def _count(  # noqa: PLR0917
        self, front: Front, zone: str, query: Query, rcode: int, replied: int, plugin: str, began_s: float
    ) -> None:
        traffic = Traffic(
            front.label,
            zone,
            query.transport,
            2 if ":" in query.client else 1,
            query.question.qtype,
            rcode,
            query.edns is not None and query.edns.do,
            plugin,
            query.size_bytes,
            replied,
            None,
        )
        self.metrics.traffic.observe(traffic, time.monotonic() - began_s)

    # -- the end

    async def stop(self, grace_s: float) -> None:
        """Take no more queries, answer those that are here within `grace_s`, close everything."""
        fronts, self._fronts = list(self._fronts.values()), {}
        end_s = time.monotonic() + grace_s
        for front in fronts:
            front.udp.drain()
            front.udp.stop()
        await asyncio.gather(*(front.tcp.stop(grace_s) for front in fronts))
        while self._tasks and time.monotonic() < end_s:
            await asyncio.wait(list(self._tasks), timeout=max(0.0, end_s - time.monotonic()))
        for task in list(self._tasks):
            task.cancel()
        for front in fronts:
            front.udp.close()
        self._unwatch(fronts)

    async def _close(self, front: Front, grace_s: float) -> None:
        front.udp.drain()
        front.udp.stop()
        await front.tcp.stop(grace_s)
        # Queries of this address still in a chain answer into the closed socket's `send`, which drops them.
        front.udp.close()
        self._unwatch([front])

    def _unwatch(self, fronts: Iterable[Front]) -> None:
        for front in fronts:
            for hot in front.hot:
                self.metrics.traffic.unwatch_hot(hot)

    def gauge(self) -> None:
        """Bring the gauges up to date; called when somebody scrapes."""
        self.metrics.in_flight.set(len(self._tasks))
        self.metrics.hot_entries.set(sum(hot.entries for front in self._fronts.values() for hot in front.hot))
        for front in self._fronts.values():
            self.metrics.tcp_connections.labels(front.label).set(front.tcp.connections)
            now = [front.udp.dropped_sends, front.tcp.refused]
            self.metrics.dropped_sends.labels(front.label).inc(now[0] - front.counted[0])
            self.metrics.tcp_refused.labels(front.label).inc(now[1] - front.counted[1])
            front.counted = now
        self._count_cached()

    def _count_cached(self) -> None:
        """Tell the caches of the replies the hot path made out of theirs."""
        for cell, (chain, kind, counted) in self._cache_cells.items():
            fresh = cell.hits - counted[0]
            if chain.cache is not None and fresh > 0:
                chain.cache.count_hits(kind, fresh)
                counted[0] = cell.hits


_NEVER_FAST = frozenset({QType.DS, QType.ANY, QType.AXFR, QType.IXFR, QType.OPT, QType.HINFO})
"""HINFO is what the loop plugin probes with."""


def _most(chain: Chain) -> int:
    """Bytes of the longest reply over UDP, whatever the client takes."""
    return min(chain.bufsize or MAX_UDP_PAYLOAD_BYTES, MAX_UDP_PAYLOAD_BYTES)


def _only_counts_down(chain: Chain) -> bool:
    """Whether a cached reply stays what it is, TTLs aside, until they are over: nothing is renewed before."""
    cache = chain.block.cache
    return cache is not None and cache.prefetch is None and not cache.keepttl


def _without_chain(
    service: Service, chain: Chain, lower: bytes, qtype: int, *, do: bool, cd: bool
) -> tuple[Prepared, Lasting, bytes, str] | None:
    """The reply `chain` would give whoever asks this question of class IN, how long it lasts, its tag, and whose it is.

    None: only the chain can tell.
    """
    if qtype in _NEVER_FAST:
        return None
    zone = service.zones.get(chain)
    if zone is not None and zone.cut(lower) is not None:
        prepared = prepare(zone, Question(lower, lower, qtype))
        if prepared is not None:
            if not chain.passes_to_kubernetes(lower, qtype, prepared):
                return None
            # Every denial shows the SOA record, and so the serial, which moves with any change.
            lasting = Lasting.UNTIL_SERIAL if prepared.counts[2:4] != b"\0\0" else Lasting.UNTIL_CHANGED
            return prepared, lasting, zone.tag(lower), "kubernetes"
        # What falls through is cached like any foreign name, but not before it is known what falls through.
        if not zone.synced or zone.config.fallthrough is None:
            return None
    prepared = chain.cached(lower, qtype, do=do, cd=cd, now_s=time.monotonic())
    return None if prepared is None else (prepared, Lasting.UNTIL_SECOND, lower, "cache")
