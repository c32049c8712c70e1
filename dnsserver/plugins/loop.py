"""`loop`: finds out whether forwarding leads back here, and if so stops forwarding rather than the server.

A query with a name nobody can know is sent to the upstreams. If it comes in here, from whomever, the upstreams lead
back. Then forwarded names get SERVFAIL, a gauge and an event tell the operator, cluster names are answered as ever, and
the probe is repeated until the loop is gone.
"""

from __future__ import annotations

import asyncio

import structlog

from dnsserver import names
from dnsserver.message import Handler, Message, QClass, QType, Query, Question
from dnsserver.plugins.base import REFUSED, Background, Environment, failure
from kubecore.log import FORWARD_LOOP_ENDED, FORWARD_LOOP_FOUND

_log = structlog.get_logger()

FIRST_PROBES_S = (0.0, 0.5, 2.0, 10.0, 30.0)
"""When probes are sent after the start: upstreams may come up later than this server."""
RECHECK_S = 10.0
"""How often a loop is probed for having ended."""

_LOOPED = failure("forwarding is stopped: the upstreams lead back to this server; see the loop event in its log")


class Loop:
    """A Handler and a Service."""

    def __init__(self, zone: bytes, rest: Handler, env: Environment) -> None:
        self._zone = zone
        self._rest = rest
        self._rng = env.rng
        self._gauge = env.counters.forward_looped.labels(names.to_text(zone))
        self._gauge.set(0)
        self._probe = self._new_probe()
        self._seen = False
        self._looped = False
        self._background = Background()

    def _new_probe(self) -> bytes:
        labels = (b"%016x" % self._rng.getrandbits(64), b"%016x" % self._rng.getrandbits(64))
        return names.join(labels, self._zone) if len(self._zone) + 34 <= names.MAX_NAME_BYTES else self._zone

    @property
    def looped(self) -> bool:
        """Whether forwarding is stopped."""
        return self._looped

    async def start(self) -> None:
        """Begin to probe."""
        self._background.begin(self._probe_on())

    async def close(self) -> None:
        """Stop probing."""
        await self._background.end()

    async def _probe_on(self) -> None:
        before = 0.0
        for after in FIRST_PROBES_S:
            await asyncio.sleep(after - before)
            before = after
            await self.probe()
            if self._looped:
                break
        while self._looped:
            await asyncio.sleep(RECHECK_S)
            await self.probe()

    async def probe(self) -> None:
        """Send one probe and judge by whether it came in."""
        self._seen = False
        question = Question(self._probe, self._probe, int(QType.HINFO))
        reply = await self._rest(Query(id=0, question=question, transport="udp", client="127.0.0.1", client_port=0))
        if self._seen and not self._looped:
            self._looped = True
            self._gauge.set(1)
            _log.error(
                FORWARD_LOOP_FOUND,
                zone=names.to_text(self._zone),
                remedy="forward to servers that do not forward here; on a host with systemd-resolved that is "
                "/run/systemd/resolve/resolv.conf",
            )
        elif self._looped and not self._seen and reply is not None:
            self._looped = False
            self._gauge.set(0)
            _log.info(FORWARD_LOOP_ENDED, zone=names.to_text(self._zone))

    async def __call__(self, query: Query) -> Message | None:
        """SERVFAIL while looped; the probe that came round is REFUSED, which ends its round."""
        question = query.question
        if question.qtype == QType.HINFO and question.lower == self._probe and question.qclass == QClass.IN:
            self._seen = True
            return REFUSED
        if self._looped:
            return _LOOPED
        return await self._rest(query)
