"""`cache`: the cache in a chain of plugins.

Knows when to ask the rest of the chain. Must not know what may be kept or for how long: `dnsserver.cache` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from dnsserver import names
from dnsserver.cache import MAX_STALE_FAILURE_S, Cache, Entry, Kind, State, recased
from dnsserver.corefile_model import CacheConfig, ServeStale
from dnsserver.message import RR, ExtendedError, Handler, Message, Prepared, QClass, Query, Rcode
from dnsserver.plugins.base import Environment, within

MAX_REFRESHES = 256
"""Renewals under way behind replies; more wait for the next hit."""


_DNAME = 39

Serves = Callable[[bytes], bool]
"""Whether a link of the chain is the one to look into the cache for a lower-case name."""


class Cached:
    """A Handler and a Service: renewals run behind replies.

    A chain has two links with one store. Names that plugins here know about (`kubernetes`, `hosts`) are looked up
    behind those plugins, so that a denial kept from an upstream never hides a Service that came into being meanwhile;
    all others in front of them.
    """

    def __init__(
        self, config: CacheConfig, store: Cache, rest: Handler, env: Environment, *, server: str, serves: Serves
    ) -> None:
        self.store = store
        self._config = config
        self._serves = serves
        self._rest = rest
        self._clock = env.clock
        zones = ",".join(map(names.to_text, config.zones))
        counters = env.counters
        labels = (server, zones, "")
        self._requests = counters.cache_requests.labels(*labels)
        self._misses = counters.cache_misses.labels(*labels)
        self._prefetches = counters.cache_prefetches.labels(*labels)
        self._drops = counters.cache_drops.labels(*labels)
        self._stale = counters.cache_stale.labels(*labels)
        self._success_hits = counters.cache_hits.labels(server, "success", zones, "")
        self._denial_hits = counters.cache_hits.labels(server, "denial", zones, "")
        self._success_evictions = counters.cache_evictions.labels(server, "success", zones, "")
        self._denial_evictions = counters.cache_evictions.labels(server, "denial", zones, "")
        self._success_entries = counters.cache_entries.labels(server, "success", zones, "")
        self._denial_entries = counters.cache_entries.labels(server, "denial", zones, "")
        self._success_entries.set_function(lambda: self.store.sizes[0])
        self._denial_entries.set_function(lambda: self.store.sizes[1])
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Nothing to begin."""

    async def close(self) -> None:
        """Stop renewals."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- for the hot path

    def prepared(self, lower: bytes, qtype: int, *, do: bool, cd: bool, now_s: float) -> Prepared | None:
        """A fresh reply in the form the hot path copies out, right until the second of `now_s` is over.

        None: nothing fresh, or the chain has to see the query because the entry is due for renewal.
        """
        if not within(lower, self._config.zones):
            return None
        found = self.store.find(lower, qtype, do=do, cd=cd, now_s=now_s)
        if found is None or found.state is not State.FRESH or found.entry.message.ad:
            return None  # AD depends on the client's own AD bit
        entry = found.entry
        return entry.prepared(lower, qtype, entry.ttl_s if self._config.keepttl else entry.left_s(now_s))

    def count_hits(self, kind: Kind, hits: int) -> None:
        """Count replies the hot path made out of `prepared` ones."""
        self._requests.inc(hits)
        (self._success_hits if kind is Kind.SUCCESS else self._denial_hits).inc(hits)

    # -- in the chain

    async def __call__(self, query: Query) -> Message | None:
        """The reply that is kept, or the rest of the chain's, kept from now on."""
        question = query.question
        lower = question.lower
        if question.qclass != QClass.IN or not within(lower, self._config.zones) or not self._serves(lower):
            return await self._rest(query)
        do = query.edns is not None and query.edns.do
        now_s = self._clock()
        self._requests.inc()
        found = self.store.find(lower, question.qtype, do=do, cd=query.cd, now_s=now_s)
        if found is None:
            self._misses.inc()
            return await self._ask(query)
        entry = found.entry
        hits = self._success_hits if entry.kind is Kind.SUCCESS else self._denial_hits
        if found.state is State.STALE:
            stale = self._config.serve_stale
            return await self._ask(query) if stale is None else await self._serve_stale(stale, query, entry, now_s)
        hits.inc()
        if found.state is State.PREFETCH and self._spawn(entry, self._refresh(query, entry)):
            self._prefetches.inc()
        ttl_s = entry.ttl_s if self._config.keepttl else entry.left_s(now_s)
        return recased(entry.reply(ttl_s), lower, question.name)

    async def _ask(self, query: Query) -> Message | None:
        """The reply of the rest of the chain, kept if it is for keeping."""
        reply = await self._rest(query)
        if reply is None or not reply.cacheable:
            return reply
        question = query.question
        if reply.answer and not any(_concerns(rr, question.lower) for rr in reply.answer):
            self._drops.inc()
            return reply
        entry, evicted = self.store.store(
            question,
            reply,
            do=query.edns is not None and query.edns.do,
            cd=query.cd,
            now_s=self._clock(),
            wall_s=time.time(),
        )
        if evicted.success:
            self._success_evictions.inc(evicted.success)
        if evicted.denial:
            self._denial_evictions.inc(evicted.denial)
        if entry is None:
            return reply
        if entry.kind is Kind.FAILURE:
            return reply
        return recased(entry.reply(entry.ttl_s), question.lower, question.name)

    # -- renewal

    async def _serve_stale(self, stale: ServeStale, query: Query, entry: Entry, now_s: float) -> Message | None:
        if stale.verify and now_s >= entry.retry_s:
            reply = await self._verified(stale, query, entry)
            if reply is not None:
                return reply
        elif not entry.refreshing and now_s >= entry.retry_s:
            self._spawn(entry, self._refresh(query, entry))
        self._stale.inc()
        (self._success_hits if entry.kind is Kind.SUCCESS else self._denial_hits).inc()
        question = query.question
        code = ExtendedError.STALE_NXDOMAIN if entry.kind is Kind.NXDOMAIN else ExtendedError.STALE_ANSWER
        reply = recased(entry.reply(stale.ttl_s), question.lower, question.name)
        return msgspec.structs.replace(reply, errors=(*reply.errors, (int(code), "")))

    async def _verified(self, stale: ServeStale, query: Query, entry: Entry) -> Message | None:
        """A new reply in time; None if the source is out of reach or fails. It goes on being asked behind the reply."""
        task = asyncio.ensure_future(self._refresh(query, entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        done, _ = await asyncio.wait((task,), timeout=stale.verify_timeout_s)
        return task.result() if done else None

    def _spawn(self, entry: Entry, work: Coroutine[Any, Any, Any]) -> bool:
        if len(self._tasks) >= MAX_REFRESHES:
            work.close()
            return False
        entry.refreshing = True
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _refresh(self, query: Query, entry: Entry) -> Message | None:
        """The new reply; None where the source fails, and then the entry is left alone for a while."""
        entry.refreshing = True
        reply: Message | None = None
        try:
            reply = await self._ask(query)
        finally:
            entry.refreshing = False
            if reply is None or reply.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
                entry.retry_s = self._clock() + MAX_STALE_FAILURE_S
                reply = None
        return reply


def _concerns(rr: RR, lower: bytes) -> bool:
    """Whether a record is of the name asked for, or a DNAME of one above it (RFC 6672)."""
    owner = rr.name.lower()
    return owner == lower or (rr.type == _DNAME and names.is_below(lower, owner))
