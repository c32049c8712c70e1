"""Queries sent on to other servers: which of them, how many at a time, and which of them are alive.

Knows policies, health, limits, and that identical questions are asked once. Must not know the chain: `plugins.forward`
puts it there.

Source: RFC 5452 §5 (one outstanding question: coalescing also defeats birthday attacks).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from dnsserver import resolvconf, rrtext
from dnsserver.corefile_model import ForwardConfig, Upstream
from dnsserver.counters import Counters
from dnsserver.exchange import Asked, Attempt, Exchange, Outcome
from dnsserver.message import Message, QType, Query, Rcode
from dnsserver.names import from_text
from dnsserver.upstream import Pool
from kubecore.log import (
    FORWARD_STUB_RESOLVER_REPLACED,
    FORWARD_UPSTREAM_DOWN,
    FORWARD_UPSTREAM_UP,
    FORWARD_UPSTREAMS_LOADED,
    FORWARD_UPSTREAMS_UNREADABLE,
)

_log = structlog.get_logger()

MAX_IN_FLIGHT = 10_000
"""Queries under way where the configuration sets no bound; about 4 kB each."""
MAX_UPSTREAMS = 15
PROBE_TIMEOUT_S = 1.0
FILE_CHECK_S = 5.0
AILING_AFTER = 8
"""SERVFAILs in a row, to whatever names, after which an upstream is passed over if another is well."""
PROXY = "forward"
"""The label `proxy_name`."""


class Refusal(NamedTuple):
    """Why a query was not sent on at all."""

    rcode: int
    text: str


class Health:
    """One upstream: its sockets, and whether it is alive."""

    def __init__(self, address: Upstream, pool: Pool, config: ForwardConfig, counters: Counters) -> None:
        self.address = address
        self.name = str(address)
        self.pool = pool
        self.ailing = False
        self.plain = False
        self._config = config
        self._counters = counters
        self._fails = 0
        self._servfails = 0
        self._probing: asyncio.Task[None] | None = None
        self._durations: dict[int, Callable[[float], None]] = {}
        protocols = (PROXY, self.name)
        self._hits = {s: counters.proxy_conn_hits.labels(*protocols, self._protocol(s)) for s in (False, True)}
        self._misses = {s: counters.proxy_conn_misses.labels(*protocols, self._protocol(s)) for s in (False, True)}
        self._health_failures = counters.proxy_health_failures.labels(*protocols)

    def _protocol(self, stream: bool) -> str:  # noqa: FBT001 - a key of the dicts above
        return "tcp-tls" if self.pool.encrypted else "tcp" if stream else "udp"

    @property
    def down(self) -> bool:
        """Whether it failed so often that it is left alone."""
        return 0 < self._config.max_fails <= self._fails

    # -- what an exchange tells

    def send(self, attempt: Attempt, *, stream: bool) -> Callable[[], None]:
        """Send; what to call to forget. Raises OSError."""
        opened = self.pool.opened
        forget = self.pool.send(attempt, stream=stream)
        (self._hits if self.pool.opened == opened else self._misses)[stream].inc()
        return forget

    def replied(self, rcode: int, took_s: float) -> None:
        """It answered; any reply is a sign of life."""
        observe = self._durations.get(rcode)
        if observe is None:
            histogram = self._counters.proxy_duration.labels(PROXY, self.name, rrtext.rcode_name(rcode))
            observe = self._durations[rcode] = histogram.observe
        observe(took_s)
        if self._probing is None:
            self._alive()
        if rcode != Rcode.SERVFAIL:
            self._servfails = 0
            self.ailing = False
            return
        self._servfails += 1
        if self._servfails >= AILING_AFTER and not self.ailing:
            self.ailing = True
            self._probe_soon()

    def failed(self, reason: str) -> None:
        """It did not answer."""
        if self._config.max_fails == 0:
            return
        was_down = self.down
        self._fails += 1
        if self.down and not was_down:
            _log.warning(FORWARD_UPSTREAM_DOWN, upstream=self.name, reason=reason)
        self._probe_soon()

    def _alive(self) -> None:
        if self.down:
            _log.info(FORWARD_UPSTREAM_UP, upstream=self.name)
        self._fails = 0

    # -- probes

    def _probe_soon(self) -> None:
        if self._probing is None:
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        """Probe until it answers (and, if it was ailing, not with SERVFAIL)."""
        try:
            while True:
                await asyncio.sleep(self._config.health_interval_s)
                outcome = await self._probe_once()
                if outcome.message is None:
                    self._health_failures.inc()
                    self._fails += 1
                    continue
                self._alive()
                if not self.ailing or outcome.message.rcode != Rcode.SERVFAIL:
                    self.ailing = False
                    self._servfails = 0
                    return
        finally:
            self._probing = None

    async def _probe_once(self) -> Outcome:
        asked = Asked(
            lower=self._config.health_domain,
            qtype=int(QType.NS),
            do=False,
            cd=False,
            rd=self._config.health_recursion,
            stream=self._config.force_tcp,
        )
        return await run(asked, (_Probed(self),), max_attempts=1, deadline_s=PROBE_TIMEOUT_S)

    async def close(self) -> None:
        """Close its sockets."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing
        await self.pool.close()


class _Probed:
    """An upstream as a probe sees it: what it does is judged by the probe alone."""

    ailing = False

    def __init__(self, health: Health) -> None:
        self.name = health.name
        self.plain = health.plain
        self._health = health

    def send(self, attempt: Attempt, *, stream: bool) -> Callable[[], None]:
        return self._health.pool.send(attempt, stream=stream)

    def replied(self, rcode: int, took_s: float) -> None:
        """Judged by who awaits the probe."""

    def failed(self, reason: str) -> None:
        """Judged by who awaits the probe."""


async def run(asked: Asked, servers: Sequence[Health | _Probed], *, max_attempts: int, deadline_s: float) -> Outcome:
    """The outcome of one exchange of its own."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    exchange = Exchange(
        asked,
        servers,
        lambda outcome: None if future.done() else future.set_result(outcome),
        max_attempts=max_attempts,
        deadline_s=deadline_s,
    )
    exchange.begin()
    try:
        return await future
    finally:
        exchange.cancel()


class Forwarder:
    """The upstreams of one `forward` directive. Started and closed by the plugin."""

    def __init__(self, config: ForwardConfig, counters: Counters, rng: random.Random) -> None:
        self._config = config
        self._counters = counters
        self._rng = rng
        self._upstreams: tuple[Health, ...] = ()
        self._flights: dict[Asked, tuple[Exchange, list[asyncio.Future[Outcome]]]] = {}
        self._waiting = 0
        self._turn = 0
        self._files = tuple(Path(target) for target in config.upstreams if isinstance(target, str))
        self._stamps: tuple[object, ...] = ()
        self._watcher: asyncio.Task[None] | None = None
        self._tls_context: ssl.SSLContext | None = None

    # -- upstreams

    async def start(self) -> None:
        """Find the upstreams, and look at the files that name them from then on.

        Raises:
            OSError: a TLS file cannot be read, or a host name does not resolve; says which, and the remedy.
        """
        if any(isinstance(target, Upstream) and target.transport == "tls" for target in self._config.upstreams):
            self._tls_context = await asyncio.to_thread(_tls_context, self._config.tls)
        await self.reload()
        if self._files:
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Close every socket; queries under way fail."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        for exchange, _ in list(self._flights.values()):
            exchange.cancel()
        upstreams, self._upstreams = self._upstreams, ()
        await asyncio.gather(*(upstream.close() for upstream in upstreams))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(FILE_CHECK_S)
            if tuple(map(resolvconf.stamp, self._files)) != self._stamps:
                await self.reload()

    async def reload(self) -> None:
        """Read the files again; upstreams that stay keep their sockets and health."""
        self._stamps = tuple(map(resolvconf.stamp, self._files))
        addresses: dict[Upstream, None] = {}
        for target in self._config.upstreams:
            for address in self._from_file(Path(target)) if isinstance(target, str) else await self._resolved(target):
                addresses[address] = None
        wanted = list(addresses)[:MAX_UPSTREAMS]
        known = {upstream.address: upstream for upstream in self._upstreams}
        if not wanted and known:
            return  # a file that is just being written
        self._upstreams = tuple(known.pop(address) if address in known else self._health(address) for address in wanted)
        await asyncio.gather(*(upstream.close() for upstream in known.values()))
        _log.info(FORWARD_UPSTREAMS_LOADED, upstreams=[str(address) for address in wanted])

    def _from_file(self, path: Path) -> Iterable[Upstream]:
        try:
            found = resolvconf.read(path)
        except OSError as error:
            _log.error(FORWARD_UPSTREAMS_UNREADABLE, file=str(path), error=error.strerror)
            return ()
        if not found.upstreams:
            _log.error(FORWARD_UPSTREAMS_UNREADABLE, file=str(path), error="no nameserver line")
        if found.replaced:
            _log.warning(
                FORWARD_STUB_RESOLVER_REPLACED, file=str(path), stub=found.replaced, by=str(resolvconf.SYSTEMD_UPLINKS)
            )
        return found.upstreams

    async def _resolved(self, target: Upstream) -> Iterable[Upstream]:
        """The target with addresses for its host name."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(target.host)
            return (target,)
        server_name = target.server_name or (target.host if target.transport == "tls" else "")
        if not self._config.resolver:
            loop = asyncio.get_running_loop()
            try:
                found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)
            except OSError as error:
                raise _unresolved(target.host, error.strerror) from None
            hosts = dict.fromkeys(str(info[4][0]) for info in found)
        else:
            hosts = dict.fromkeys(await self._ask_resolver(target.host))
        if not hosts:
            raise _unresolved(target.host, "no address")
        return tuple(target._replace(host=host, server_name=server_name) for host in hosts)

    async def _ask_resolver(self, host: str) -> list[str]:
        servers = [self._health(address) for address in self._config.resolver]
        try:
            hosts: list[str] = []
            for qtype in (QType.A, QType.AAAA):
                asked = Asked(from_text(host).lower(), int(qtype), do=False, cd=False, rd=True, stream=False)
                outcome = await run(asked, servers, max_attempts=2 * len(servers), deadline_s=4.0)
                records = outcome.message.answer if outcome.message is not None else ()
                hosts += [str(ipaddress.ip_address(rr.rdata)) for rr in records if rr.type == qtype]
            return hosts
        finally:
            await asyncio.gather(*(server.close() for server in servers))

    def _health(self, address: Upstream) -> Health:
        config = self._config
        encrypted = address.transport == "tls"
        rejected = self._counters.forward_rejected_replies

        def reject(reason: str) -> None:
            rejected.labels(str(address), reason).inc()

        pool = Pool(
            address,
            rng=self._rng,
            reject=reject,
            expire_s=config.expire_s,
            max_idle=config.max_idle_conns,
            tls_context=self._tls_context if encrypted else None,
            server_name=address.server_name or config.tls_servername,
        )
        return Health(address, pool, config, self._counters)

    @property
    def upstreams(self) -> tuple[Health, ...]:
        """Those in use now."""
        return self._upstreams

    # -- queries

    async def ask(self, query: Query, told: Callable[[str], object] = lambda _server: None) -> Message | Refusal:
        """The reply of an upstream, or why there is none. Identical questions under way are asked once.

        Args:
            query: the question, and how it was asked.
            told: gets address and port of the upstream that replied.
        """
        config = self._config
        limit = config.max_concurrent or MAX_IN_FLIGHT
        if self._waiting >= limit:
            self._counters.forward_rejects.inc()
            return Refusal(Rcode.REFUSED, "too many queries are under way")
        question = query.question
        asked = Asked(
            lower=question.lower,
            qtype=question.qtype,
            do=query.edns is not None and query.edns.do,
            cd=query.cd,
            rd=query.rd,
            stream=config.force_tcp or (query.transport != "udp" and not config.prefer_udp),
        )
        self._waiting += 1
        try:
            outcome = await self._outcome(asked)
        finally:
            self._waiting -= 1
        if outcome.message is None:
            return Refusal(Rcode.SERVFAIL, outcome.reason)
        if outcome.server:
            told(outcome.server)
        return outcome.message

    async def _outcome(self, asked: Asked) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        flight = self._flights.get(asked)
        if flight is not None:
            self._counters.forward_coalesced.inc()
            flight[1].append(future)
        else:
            servers = self._order()
            if not servers:
                return Outcome(None, "no upstream is configured or alive")
            waiting = [future]
            exchange = Exchange(
                asked,
                servers,
                lambda outcome: self._landed(asked, waiting, outcome),
                max_attempts=self._config.max_connect_attempts or 2 * len(servers),
                failover=self._config.failover_rcodes,
                hedged=self._counters.forward_hedges.inc,
            )
            self._flights[asked] = exchange, waiting
            exchange.begin()
        return await future

    def _landed(self, asked: Asked, waiting: list[asyncio.Future[Outcome]], outcome: Outcome) -> None:
        self._flights.pop(asked, None)
        for future in waiting:
            if not future.done():
                future.set_result(outcome)

    def _order(self) -> list[Health]:
        """Whom to ask, in turn: the living by policy, those that are well first."""
        living = [upstream for upstream in self._upstreams if not upstream.down]
        if not living:
            if not self._upstreams:
                return []
            self._counters.forward_broken.inc()
            if self._config.failfast:
                return []
            # All taken for dead: more likely the probes fail than all of them at once.
            return self._rng.sample(self._upstreams, len(self._upstreams))
        if len(living) > 1:
            match self._config.policy:
                case "random":
                    self._rng.shuffle(living)
                case "round_robin":
                    turn = self._turn % len(living)
                    self._turn += 1
                    living = living[turn:] + living[:turn]
                case "sequential":
                    pass
            living.sort(key=lambda upstream: upstream.ailing)
        return living


def _unresolved(host: str, reason: str | None) -> OSError:
    return OSError(f"forward: upstream '{host}' does not resolve ({reason}); write its address, or correct the name")


def _tls_context(paths: tuple[str, ...]) -> ssl.SSLContext:
    """A client's context: paths are none, a CA, a certificate and its key, or these and a CA.

    Raises:
        OSError: one of them is not what it should be; says which.
    """
    authority = paths[0] if len(paths) == 1 else paths[2] if len(paths) == 3 else None
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise OSError(f"forward: tls: '{authority}': {_told(error)}; name a readable PEM file of the CA") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if len(paths) >= 2:
        try:
            context.load_cert_chain(paths[0], paths[1])
        except OSError as error:
            files = f"'{paths[0]}', '{paths[1]}'"
            remedy = "name readable PEM files of a certificate and its key"
            raise OSError(f"forward: tls: {files}: {_told(error)}; {remedy}") from None
    return context


def _told(error: OSError) -> str:
    return "not PEM, or not a pair" if isinstance(error, ssl.SSLError) else error.strerror or str(error)
