"""Chains of plugins: one for each server block, and the choice among them by zone.

Knows the order in which plugins act, which does not depend on the order in the file. Must not know what they do, or
sockets. The server builds a Runtime from each configuration, and swaps it at a reload.

Source: the order is CoreDNS', so that the same Corefile means the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog

from dnsserver import names
from dnsserver.cache import Cache
from dnsserver.corefile_model import Config, ServerBlock
from dnsserver.message import ExtendedError, Handler, Message, Prepared, QClass, QType, Query, Rcode
from dnsserver.plugins.acl import Acl
from dnsserver.plugins.any import Any
from dnsserver.plugins.autopath import Autopath
from dnsserver.plugins.base import REFUSED, Environment, Service, end_of_chain, failure, within
from dnsserver.plugins.cached import Cached
from dnsserver.plugins.chaos import Chaos
from dnsserver.plugins.dns64 import Dns64
from dnsserver.plugins.errors import Errors
from dnsserver.plugins.forward import Forward
from dnsserver.plugins.hosts import Hosts
from dnsserver.plugins.loadbalance import Loadbalance
from dnsserver.plugins.loop import Loop
from dnsserver.plugins.querylog import QueryLog
from dnsserver.plugins.rewrite import Rewrite
from dnsserver.plugins.small import Cancel, Local, Minimal, whoami
from dnsserver.plugins.template import Templates

_log = structlog.get_logger()


class Chain:
    """The plugins of one server block, wired.

    `handler` answers queries for the block's zones. `services` have to be started before and closed after.
    """

    def __init__(self, block: ServerBlock, env: Environment, resolve: Handler, server: str = "") -> None:
        self.block = block
        self.server = server or _label(block)
        """The label `server` of the plugins' metrics: where the block is served, the first place if there are more."""
        self.bufsize = block.bufsize
        """The largest UDP reply, bytes; None: what the client takes."""
        self.plugins: tuple[str, ...] = plugin_names(block)
        self.services: list[Service] = []
        self.cache: Cached | None = None
        self._store = Cache(block.cache) if block.cache is not None else None
        self._templates: Templates | None = None
        self._hosts: Hosts | None = None
        self._acl: Acl | None = None
        self._autopath: Autopath | None = None
        self._rewrite: Rewrite | None = None
        self._query_log: QueryLog | None = None
        self._loadbalance: Loadbalance | None = None
        self.forwards: list[Forward] = []
        answering = self._answering(end_of_chain, env, resolve)
        self.handler: Handler = self._in_front(answering, env, resolve)

    def _answering(self, rest: Handler, env: Environment, resolve: Handler) -> Handler:
        """The plugins behind the cache, from the last to the first."""
        block = self.block
        if block.whoami:
            rest = whoami
        for config in reversed(block.forwards):
            forward = Forward(config, rest, env)
            self.forwards.insert(0, forward)
            self.services.append(forward)
            rest = forward
        if block.loop and block.forwards:
            loop = Loop(min(block.zones, key=len), rest, env)
            self.services.append(loop)
            rest = loop
        if block.cache is not None and self._store is not None:
            rest = behind = Cached(block.cache, self._store, rest, env, server=self.server, serves=self._is_known_here)
            self.services.append(behind)
        if block.kubernetes is not None:
            rest = env.kubernetes(block.kubernetes, rest)
        if block.external is not None:
            rest = env.external(block.external, rest)
        if block.hosts is not None:
            self._hosts = hosts = Hosts(block.hosts, rest, env)
            self.services.append(hosts)
            rest = hosts
        if block.templates:
            rest = self._templates = Templates(block.templates, rest, resolve, env, self.server)
        if block.minimal:
            rest = Minimal(rest)
        return rest

    def _in_front(self, rest: Handler, env: Environment, resolve: Handler) -> Handler:
        """The cache and the plugins in front of it, from the last to the first."""
        block = self.block
        if block.cache is not None and self._store is not None:
            known = self._is_known_here
            self.cache = cached = Cached(
                block.cache, self._store, rest, env, server=self.server, serves=lambda lower: not known(lower)
            )
            self.services.append(cached)
            rest = cached
        if block.acls:
            rest = self._acl = Acl(block.acls, rest, env, self.server)
        if block.autopath is not None:
            self._autopath = autopath = Autopath(block.autopath, block.kubernetes, rest, env, self.server)
            self.services.append(autopath)
            rest = autopath
        if block.rewrites:
            rest = self._rewrite = Rewrite(block.rewrites, rest, resolve)
        if block.loadbalance is not None:
            rest = self._loadbalance = balance = Loadbalance(block.loadbalance, rest)
            self.services.append(balance)
        if block.chaos is not None:
            rest = Chaos(block.chaos, rest, env)
        if block.any:
            rest = Any(rest)
        if block.dns64 is not None:
            rest = Dns64(block.dns64, rest, env, self.server)
        if block.local:
            rest = Local(rest)
        if block.logs:
            rest = self._query_log = QueryLog(block.logs, rest, env, block.bufsize, block.kubernetes)
        if block.errors is not None:
            errors = Errors(block.errors, rest, env)
            self.services.append(errors)
            rest = errors
        if block.cancel_s is not None:
            rest = Cancel(block.cancel_s, rest)
        return rest

    def _is_known_here(self, lower: bytes) -> bool:
        """Whether plugins behind the cache have a zone with this name, and the upstreams are asked only after them."""
        block = self.block
        if block.kubernetes is not None and within(lower, block.kubernetes.zones):
            return True
        if block.external is not None and within(lower, block.external.zones):
            return True
        return self._hosts is not None and self._hosts.concerns(lower)

    def takes_class(self, qclass: int) -> bool:
        """Whether a plugin here has something to say in a class other than IN."""
        block = self.block
        return (
            (block.chaos is not None and qclass == QClass.CH)
            or any(config.rclass in (QClass.ANY, qclass) for config in block.templates)
            or any(rule.field == "class" and rule.from_number == qclass for rule in block.rewrites)
        )

    # -- what the hot path may do alone

    def passes(self, lower: bytes, qtype: int, reply: Prepared) -> bool:
        """Whether the plugins in front of the cache give every client `reply` unchanged to this question (class IN).

        False where one depends on the client, changes questions or replies, or writes a line.
        """
        block = self.block
        if (qtype == QType.ANY and block.any) or (qtype == QType.AAAA and block.dns64 is not None):
            return False
        if self._query_log is not None and self._query_log.concerns(lower):
            return False
        answers = int.from_bytes(reply.counts[:2], "big")
        if self._loadbalance is not None and self._loadbalance.concerns(qtype, answers):
            return False
        if block.local and Local.concerns(lower):
            return False
        if self._acl is not None and self._acl.concerns(lower):
            return False
        if self._rewrite is not None and self._rewrite.concerns(lower, qtype):
            return False
        if self._autopath is not None and reply.flags & 15 == Rcode.NXDOMAIN and self._autopath.concerns(lower):
            return False
        # A success that carries more than its answer is what `minimal` strips.
        return not (block.minimal and reply.counts[:2] != b"\0\0" and reply.counts[2:] != b"\0\0\0\0")

    def passes_to_kubernetes(self, lower: bytes, qtype: int, reply: Prepared) -> bool:
        """Whether also no plugin between the cache and `kubernetes` has anything to do with this question."""
        if self._templates is not None and self._templates.concerns(lower, qtype):
            return False
        if self._hosts is not None and self._hosts.concerns(lower):
            return False
        external = self.block.external
        if external is not None and within(lower, external.zones):
            return False
        return self.passes(lower, qtype, reply)

    def cached(self, lower: bytes, qtype: int, *, do: bool, cd: bool, now_s: float) -> Prepared | None:
        """The cache's reply, if it may go to every client as it is until the second of `now_s` is over.

        For names that `kubernetes` does not have: the caller looks there first.
        """
        if self.cache is None or (self._hosts is not None and self._hosts.knows(lower)):
            return None
        if self.block.external is not None and within(lower, self.block.external.zones):
            return None
        reply = self.cache.prepared(lower, qtype, do=do, cd=cd, now_s=now_s)
        return reply if reply is not None and self.passes(lower, qtype, reply) else None


def _label(block: ServerBlock) -> str:
    host = block.bind[0] if block.bind else ""
    return f"dns://{f'[{host}]' if ':' in host else host}:{block.keys[0].port}" if block.keys else "dns://"


def plugin_names(block: ServerBlock) -> tuple[str, ...]:
    """The plugins a server block uses, in the order they act."""
    used = {
        "cancel": block.cancel_s is not None,
        "reload": block.reload is not None,
        "bufsize": block.bufsize is not None,
        "bind": bool(block.bind),
        "debug": block.debug,
        "ready": block.ready is not None,
        "health": block.health is not None,
        "prometheus": block.prometheus is not None,
        "errors": block.errors is not None,
        "log": bool(block.logs),
        "local": block.local,
        "dns64": block.dns64 is not None,
        "any": block.any,
        "chaos": block.chaos is not None,
        "loadbalance": block.loadbalance is not None,
        "rewrite": bool(block.rewrites),
        "autopath": block.autopath is not None,
        "acl": bool(block.acls),
        "cache": block.cache is not None,
        "minimal": block.minimal,
        "template": bool(block.templates),
        "hosts": block.hosts is not None,
        "k8s_external": block.external is not None,
        "kubernetes": block.kubernetes is not None,
        "loop": block.loop,
        "forward": bool(block.forwards),
        "whoami": block.whoami,
    }
    return tuple(name for name, is_used in used.items() if is_used)


class Match(NamedTuple):
    """Who answers for a name."""

    chain: Chain
    zone: bytes
    """The zone of the block the name is in: the label `zone` of the metrics."""


class Router:
    """A Handler: the chains that listen on one address and port, chosen by the longest zone the name is in."""

    def __init__(self, chains: Mapping[bytes, Chain], env: Environment) -> None:
        self._chains = dict(chains)
        self._env = env

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Each once."""
        return tuple(dict.fromkeys(self._chains.values()))

    @property
    def zones(self) -> Mapping[bytes, Chain]:
        """Who answers for which zone."""
        return self._chains

    def find(self, lower: bytes, qtype: int) -> Match | None:
        """Who answers; None: nobody. DS goes to the zone above: it is the parent's data (RFC 4035 §3.1.4.1)."""
        chains = self._chains
        at = 0
        if qtype == QType.DS and lower != names.ROOT:
            at = 1 + lower[0]
        while True:
            zone = lower[at:]
            chain = chains.get(zone)
            if chain is not None:
                return Match(chain, zone)
            if zone == names.ROOT:
                break
            at += 1 + lower[at]
        if qtype == QType.DS and (chain := chains.get(lower)) is not None:
            return Match(chain, lower)
        return None

    async def __call__(self, query: Query) -> Message | None:
        """The reply of the chain in charge; REFUSED where nobody is, and for classes nobody here speaks."""
        question = query.question
        match = self.find(question.lower, question.qtype)
        if match is None:
            return REFUSED
        chain = match.chain
        if question.qclass != QClass.IN and not chain.takes_class(question.qclass):
            return _OTHER_CLASS
        try:
            return await chain.handler(query)
        except Exception as error:
            block = chain.block
            self._env.panicked(error, query, block.debug or (block.errors is not None and block.errors.stacktrace))
            return failure("internal error")


_OTHER_CLASS = Message(
    rcode=Rcode.REFUSED, errors=((int(ExtendedError.NOT_SUPPORTED), "only class IN is served"),), cacheable=False
)


class Listen(NamedTuple):
    """A socket address a configuration asks for."""

    address: str
    """Empty: every address."""
    port: int


class Runtime:
    """Everything a configuration becomes: chains, and routers for the sockets."""

    def __init__(self, config: Config, env: Environment, server: str = "") -> None:
        """Nothing is started yet.

        Args:
            config: what to serve.
            env: what plugins get.
            server: the label `server` of metrics, where all blocks are served in one place whatever they say.
        """
        self.config = config
        self._env = env
        self._routers: dict[Listen, Router] = {}
        self.chains: tuple[Chain, ...] = tuple(
            Chain(block, env, self._resolver(block), server) for block in config.blocks
        )
        zones: dict[Listen, dict[bytes, Chain]] = {}
        for chain in self.chains:
            for key in chain.block.keys:
                for address in chain.block.bind or ("",):
                    zones.setdefault(Listen(address, key.port), {})[key.zone] = chain
        self._routers = {listen: Router(chains, env) for listen, chains in zones.items()}

    @property
    def routers(self) -> Mapping[Listen, Router]:
        """Who answers what comes in where."""
        return self._routers

    def router_of_all(self) -> Router:
        """Every block on one socket, whatever ports they were written with; where two have a zone, the first wins."""
        zones: dict[bytes, Chain] = {}
        for chain in self.chains:
            for key in chain.block.keys:
                zones.setdefault(key.zone, chain)
        return Router(zones, self._env)

    def _resolver(self, block: ServerBlock) -> Handler:
        """Names asked by the server itself, on behalf of a block: by the router the block's first key is in."""

        async def resolve(query: Query) -> Message | None:
            return await self.resolve(block, query)

        return resolve

    async def resolve(self, block: ServerBlock, query: Query) -> Message | None:
        """The reply the server itself would give to `query`, asked on behalf of `block`."""
        address = block.bind[0] if block.bind else ""
        return await self._routers[Listen(address, block.keys[0].port)](query)

    async def start(self) -> None:
        """Start what runs on its own.

        Raises:
            OSError: something could not start; what had started is closed again.
        """
        started: list[Service] = []
        try:
            for service in self._services():
                await service.start()
                started.append(service)
        except BaseException:
            await _close(started)
            raise

    async def close(self) -> None:
        """Close it all. Queries still under way get SERVFAIL."""
        await _close(list(self._services()))

    def _services(self) -> Iterable[Service]:
        return (service for chain in self.chains for service in chain.services)


async def _close(services: Sequence[Service]) -> None:
    await asyncio.gather(*(service.close() for service in reversed(services)), return_exceptions=True)
