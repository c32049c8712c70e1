"""`autopath`: a pod's search path tried here, in one query instead of five.

A pod's resolver appends `NS.svc.ZONE`, `svc.ZONE`, `ZONE` and the node's own domains to a name with few dots, one
query after another. The first of these queries says which name the pod is after; this plugin tries the rest itself and
answers with an alias from the name asked to the name found.

Safe, because it acts only where the pod's resolver would do the same: the client's address belongs to exactly one live
pod (so not to a host's processes), in the very namespace whose search domain ends the question; a name that exists in
any way (other types, failures too) ends the search, so that A and AAAA find the same name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from dnsserver import names
from dnsserver.config import KubernetesConfig
from dnsserver.corefile_model import AutopathConfig
from dnsserver.message import RR, Handler, Message, QClass, QType, Query, Rcode
from dnsserver.plugins.base import Environment, within

MAX_SEARCH = 32
"""Domains; more are ignored, as glibc does."""


def search_domains(text: str) -> tuple[bytes, ...]:
    """The domains of the last `search` (or `domain`) line of a resolv.conf."""
    found: tuple[bytes, ...] = ()
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] not in ("search", "domain"):
            continue
        domains = []
        for word in words[1:]:
            try:
                domains.append(names.from_text(word).lower())
            except ValueError:
                continue
        found = tuple(domain for domain in domains if domain != names.ROOT)
    return found[:MAX_SEARCH]


class Autopath:
    """A Handler and a Service: reads a resolv.conf when it starts."""

    def __init__(
        self,
        config: AutopathConfig,
        kubernetes: KubernetesConfig | None,
        rest: Handler,
        env: Environment,
        server: str,
        *,
        resolv_conf: str = "/etc/resolv.conf",
    ) -> None:
        self._zones = config.zones
        self._rest = rest
        self._namespace_of = env.namespace_of
        self._successes = env.counters.autopath_successes.labels(server)
        self._cluster_zone = (
            next((zone for zone in kubernetes.zones if not names.is_reverse(zone)), None)
            if kubernetes is not None and not config.resolv_conf
            else None
        )
        self._path = config.resolv_conf or resolv_conf
        self._host_search: tuple[bytes, ...] = ()

    async def start(self) -> None:
        """Read the search line."""
        try:
            text = await asyncio.to_thread(Path(self._path).read_text, encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        self._host_search = search_domains(text)

    async def close(self) -> None:
        """Nothing is open."""

    def concerns(self, lower: bytes) -> bool:
        """Whether a name that does not exist may be tried elsewhere."""
        return within(lower, self._zones)

    def _search(self, client: str) -> Sequence[bytes]:
        if self._cluster_zone is None:
            return self._host_search
        namespace = self._namespace_of(client)
        if namespace is None:
            return ()
        zone = self._cluster_zone
        label = namespace.encode()
        try:
            first = names.join((label, b"svc"), zone)
        except ValueError:
            return ()
        own = (first, names.join((b"svc",), zone), zone)
        return (*own, *(domain for domain in self._host_search if domain not in own))

    async def __call__(self, query: Query) -> Message | None:
        """The reply for the first name of the search path that exists; all missing: the reply to the name asked."""
        question = query.question
        if question.qclass != QClass.IN or not within(question.lower, self._zones):
            return await self._rest(query)
        search = self._search(query.client)
        if not search or not names.is_below(question.lower, search[0]) or question.lower == search[0]:
            return await self._rest(query)
        first = await self._rest(query)
        if first is None or first.rcode != Rcode.NXDOMAIN:
            return first
        base = question.name[: len(question.name) - len(search[0])]
        for name in self._candidates(base, search[1:]):
            asked = question._replace(name=name, lower=name.lower())
            found = await self._rest(msgspec.structs.replace(query, question=asked))
            if found is None or found.rcode == Rcode.NXDOMAIN:
                continue
            if found.rcode != Rcode.NOERROR or not found.answer:
                return msgspec.structs.replace(found, cacheable=False)
            self._successes.inc()
            alias = RR(question.name, QType.CNAME, QClass.IN, found.answer[0].ttl, name)
            return msgspec.structs.replace(found, answer=(alias, *found.answer), cacheable=False)
        return first

    @staticmethod
    def _candidates(base: bytes, search: Iterable[bytes]) -> Iterable[bytes]:
        for domain in (*search, names.ROOT):
            if len(base) + len(domain) <= names.MAX_NAME_BYTES:
                yield base + domain
