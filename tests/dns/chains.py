"""A server block without a server: a Corefile's directives, asked directly."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import NamedTuple

import msgspec
from prometheus_client import CollectorRegistry

from dnsserver import corefile, rrtext
from dnsserver.chain import Chain, Router, Runtime
from dnsserver.counters import Counters
from dnsserver.forwarder import Health
from dnsserver.message import Message, Query
from dnsserver.plugins.base import Environment
from tests.dns import notation


class Answer(NamedTuple):
    """A reply, and how tests show it."""

    message: Message

    @property
    def rcode(self) -> str:
        """The response code."""
        return rrtext.rcode_name(self.message.rcode)

    @property
    def answered(self) -> str:
        """The response code and the records of ANSWER in their order, a line each."""
        return "\n".join((self.rcode, *map(rrtext.to_text, self.message.answer)))

    @property
    def error(self) -> str:
        """The text of the first extended error; empty if none."""
        return self.message.errors[0][1] if self.message.errors else ""

    @property
    def ttls(self) -> list[int]:
        """Of ANSWER and AUTHORITY."""
        return [rr.ttl for rr in self.message.answer + self.message.authority]


class Ask:
    """Questions to a router."""

    def __init__(self, runtime: Runtime, registry: CollectorRegistry, lines: list[str]) -> None:
        self.runtime = runtime
        self.router: Router = next(iter(runtime.routers.values()))
        self.lines = lines
        """What `log` and `errors` wrote."""
        self._registry = registry

    async def __call__(self, text: str, **more: object) -> Answer:
        """The answer to `name [class] type`."""
        message = await self.maybe(text, **more)
        assert message is not None
        return Answer(message)

    async def maybe(self, text: str, **more: object) -> Message | None:
        """The same, where there may be no reply at all."""
        query = notation.query(text, transport=str(more.pop("transport", "udp")))
        return await self.router(_with(query, **more))

    @property
    def chain(self) -> Chain:
        """The first server block's."""
        return self.runtime.chains[0]

    def upstream(self, index: int) -> Health:
        """One of the first `forward`'s upstreams."""
        return self.chain.forwards[0].forwarder.upstreams[index]

    def counter(self, name: str, **labels: str) -> float:
        """A metric's value, summed over the labels that are not given."""
        return sum(
            sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def _with(query: Query, **more: object) -> Query:
    return msgspec.structs.replace(query, **more)


@contextlib.asynccontextmanager
async def chain(
    directives: str, *, clock: Callable[[], float] | None = None, environment: Environment | None = None
) -> AsyncIterator[Ask]:
    """A running `.:53` block with these directives."""
    text = f".:53 {{\n{directives}\n}}\n"
    registry = CollectorRegistry()
    lines: list[str] = []
    env = replace(
        environment or Environment(), counters=Counters(registry), write_line=lines.append, rng=random.Random(4711)
    )
    if clock is not None:
        env = replace(env, clock=clock)
    runtime = Runtime(corefile.load(text, env={}), env)
    await runtime.start()
    try:
        yield Ask(runtime, registry, lines)
    finally:
        await runtime.close()
