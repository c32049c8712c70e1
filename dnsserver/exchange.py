"""One question, put to upstreams until one replies: whom next, and when to give up.

Knows retries, hedging, truncation, failover. Must not know sockets, policies, caches. The forwarder starts an Exchange
for each question under way; it runs on callbacks, with no task of its own.

Times, in seconds from the start, with silent upstreams: the second is asked at 0.25, the third at 0.5; one asked alone
is asked again at 1. All is over at 4, before the usual client gives up at 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from dnsserver.message import Message, Question, Rcode
from dnsserver.unpack import UpstreamReply, WireError, parse_reply
from dnsserver.wire import encode_query

DEADLINE_S = 4.0
HEDGE_S = 0.25
"""A healthy resolver answers sooner, most of the time."""
REPEAT_S = 1.0
"""Until the same upstream is asked again."""
TCP_PATIENCE_S = 1.5
"""For the whole of a reply that came truncated."""
READ_TIMEOUT_S = 2.0
"""Silence that counts as a failure of the upstream. A reply is still taken afterwards."""
UDP_SIZE_BYTES = 1232
"""Advertised to upstreams: fits every path unfragmented."""
_OPTION_EXTENDED_ERROR = 15


class Server(Protocol):
    """An upstream as an exchange sees it."""

    name: str
    ailing: bool
    """Gives SERVFAIL to everything of late."""
    plain: bool
    """Does not know EDNS."""

    def send(self, attempt: Attempt, *, stream: bool) -> Callable[[], None]:
        """Send; what to call to forget. Raises OSError."""
        ...

    def replied(self, rcode: int, took_s: float) -> None:
        """It answered."""
        ...

    def failed(self, reason: str) -> None:
        """It did not, or with something unreadable."""
        ...


class Asked(msgspec.Struct, frozen=True):
    """What is asked of upstreams: all that makes two queries the same to them."""

    lower: bytes
    qtype: int
    do: bool
    cd: bool
    rd: bool
    stream: bool
    """Over TCP from the start."""


class Outcome(msgspec.Struct, frozen=True):
    """How an exchange ended."""

    message: Message | None
    """None: nobody replied."""
    reason: str = ""
    server: str = ""
    """Whose reply it is: address and port."""


class Attempt:
    """One query of an exchange to one server."""

    __slots__ = (
        "_exchange",
        "_forget",
        "_timer",
        "over",
        "payload",
        "plain",
        "question",
        "server",
        "started_s",
        "stream",
    )

    def __init__(self, exchange: Exchange, server: Server, *, stream: bool, plain: bool) -> None:
        asked = exchange.asked
        self._exchange = exchange
        self.server = server
        self.stream = stream
        self.plain = plain
        """Without EDNS."""
        self.question = asked.lower + asked.qtype.to_bytes(2, "big") + b"\0\1"
        size = 0 if plain else UDP_SIZE_BYTES
        question = Question(asked.lower, asked.lower, asked.qtype)
        self.payload = encode_query(
            question, 0, rd=asked.rd, cd=asked.cd, udp_size_bytes=size, do=asked.do and size > 0
        )[2:]
        self.over = False
        self._forget: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.started_s = 0.0

    def begin(self) -> None:
        """Send it; failures are told like those of the network."""
        loop = self._exchange.loop
        self.started_s = loop.time()
        try:
            self._forget = self.server.send(self, stream=self.stream)
        except OSError as error:
            loop.call_soon(self.failed, error.strerror or str(error))
            return
        self._timer = loop.call_later(READ_TIMEOUT_S, self._silent)

    def _silent(self) -> None:
        self._timer = None
        self.server.failed("no reply in time")
        self._exchange.silent()

    def replied(self, data: bytes) -> None:
        """The reply came."""
        if not self.over:
            self.end()
            self._exchange.replied(self, data)

    def failed(self, reason: str) -> None:
        """No reply will come."""
        if not self.over:
            self.end()
            self.server.failed(reason)
            self._exchange.failed(reason)

    def end(self) -> None:
        """Wait no longer."""
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._forget is not None:
            self._forget()


class Exchange:
    """See the module's words. `done` is called once, with the Outcome."""

    def __init__(
        self,
        asked: Asked,
        servers: Sequence[Server],
        done: Callable[[Outcome], None],
        *,
        max_attempts: int,
        failover: frozenset[int] = frozenset(),
        hedged: Callable[[], object] = lambda: None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.asked = asked
        self.loop = asyncio.get_running_loop()
        self._servers = servers
        self._done = done
        self._max_attempts = max_attempts
        self._failover = failover
        self._hedged = hedged
        self._attempts: list[Attempt] = []
        self._started = 0
        self._last: Message | None = None
        """A reply to fall back on, of a code that asks for another upstream."""
        self._truncated: Message | None = None
        """A reply to make do with if the whole one cannot be had over TCP."""
        self._reason = ""
        self._over = False
        self._next_timer: asyncio.TimerHandle | None = None
        self._deadline = self.loop.call_later(deadline_s, self._give_up)

    def begin(self) -> None:
        """Ask the first server."""
        if not self._servers:
            self._finish(Outcome(None, "no upstreams"))
        else:
            self._next()

    def cancel(self) -> None:
        """Give up now."""
        self._finish(Outcome(None, "cancelled"))

    # -- moves

    def _next(self) -> bool:
        """Ask the next server; False if enough were asked."""
        if self._started >= self._max_attempts:
            return False
        server = self._servers[self._started % len(self._servers)]
        self._started += 1
        self._ask(server, stream=self.asked.stream)
        # Once all have been asked, patience: they are slow, or the name is.
        self._schedule(HEDGE_S if self._started < len(self._servers) else REPEAT_S, self._hedge)
        return True

    def _schedule(self, wait_s: float, move: Callable[[], None]) -> None:
        """What to do next, unless something happens first."""
        if self._next_timer is not None:
            self._next_timer.cancel()
        self._next_timer = self.loop.call_later(wait_s, move)

    def _ask(self, server: Server, *, stream: bool, plain: bool = False) -> None:
        attempt = Attempt(self, server, stream=stream, plain=plain or server.plain)
        self._attempts.append(attempt)
        attempt.begin()

    def _hedge(self) -> None:
        self._next_timer = None
        if not self._over and self._next():
            self._hedged()

    # -- told by attempts

    def replied(self, attempt: Attempt, data: bytes) -> None:
        """A server replied."""
        if self._over:
            return
        server = attempt.server
        try:
            reply = parse_reply(data)
        except WireError as error:
            server.failed(f"malformed reply: {error}")
            self.failed(f"malformed reply: {error}")
            return
        message = reply.message
        # Who does not know EDNS gives one of these, without OPT (RFC 6891 §7), and an answer without EDNS. Who gives it
        # again has something against the question.
        refused = message.rcode in (Rcode.FORMERR, Rcode.NOTIMP)
        if refused and reply.edns is None and not attempt.plain:
            self._ask(server, stream=attempt.stream, plain=True)
            return
        if attempt.plain and not refused:
            server.plain = True
        server.replied(message.rcode, self.loop.time() - attempt.started_s)
        message = _as_ours(reply)
        if message.tc and not attempt.stream:
            self._truncated = message
            self._schedule(TCP_PATIENCE_S, self._make_do)
            self._ask(server, stream=True)
            return
        if message.rcode in self._failover or (message.rcode == Rcode.SERVFAIL and server.ailing):
            self._last = message
            # Each server once; one that failed this way has said what it has to say.
            if self._started < len(self._servers) and self._next():
                return
            if self._waiting():
                return
        self._finish(Outcome(message, server=server.name))

    def silent(self) -> None:
        """A server has not replied for long."""
        if not self._over and not self._next_timer:
            self._next()

    def failed(self, reason: str) -> None:
        """An attempt is over without a reply."""
        self._reason = reason
        if self._truncated is not None and not self._waiting():
            self._make_do()
        elif not self._over and not self._next() and not self._waiting():
            self._finish(Outcome(self._last, reason))

    def _make_do(self) -> None:
        """The client gets what came over UDP, and TC tells it so."""
        self._finish(Outcome(self._truncated))

    def _waiting(self) -> bool:
        return any(not attempt.over for attempt in self._attempts)

    def _give_up(self) -> None:
        self._finish(Outcome(self._truncated or self._last, self._reason or "no upstream replied in time"))

    def _finish(self, outcome: Outcome) -> None:
        if self._over:
            return
        self._over = True
        self._deadline.cancel()
        if self._next_timer is not None:
            self._next_timer.cancel()
        for attempt in self._attempts:
            if not attempt.over:
                attempt.end()
        self._done(outcome)


def _as_ours(reply: UpstreamReply) -> Message:
    """The reply as this server sends it on: not authoritative, with the upstream's extended errors."""
    errors: list[tuple[int, str]] = []
    for code, data in reply.edns.options if reply.edns is not None else ():
        if code == _OPTION_EXTENDED_ERROR and len(data) >= 2:
            errors.append((int.from_bytes(data[:2], "big"), data[2:].decode("utf-8", "replace").rstrip("\0")))
    return msgspec.structs.replace(reply.message, aa=False, errors=tuple(errors))
