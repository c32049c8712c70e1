"""The `kubernetes` link: what is passed on, what is asked of the server itself, and that loops through it end."""

from __future__ import annotations

import pytest

from dnsserver.encode import encode
from dnsserver.message import Edns, Message, Query, Rcode
from dnsserver.plugins.base import Environment, end_of_chain
from dnsserver.plugins.kubernetes import Kubernetes
from kubecore.model import KubeObject
from tests.dns.chains import chain
from tests.dns.cluster import config, namespace, service, zone_of
from tests.dns.notation import query, records, shown

OBJECTS: list[KubeObject] = [
    namespace("prod"),
    service("prod/web", "10.96.0.1"),
    service("prod/alias", to="www.example.org"),
]


class Recorder:
    """A Handler that keeps what it was asked and always says the same."""

    def __init__(self, message: Message | None) -> None:
        self.message = message
        self.asked: list[Query] = []

    async def __call__(self, query: Query) -> Message | None:
        self.asked.append(query)
        return self.message


REST = Message(rcode=Rcode.NOERROR, answer=records("x. 1 IN A 192.0.2.1"))


@pytest.mark.parametrize(
    ("asked", "fallthrough", "passed_on"),
    [
        ("web.prod.svc.cluster.local. A", None, False),
        ("gone.prod.svc.cluster.local. A", None, False),
        ("gone.prod.svc.cluster.local. A", ".", True),
        ("web.prod.svc.cluster.local. AAAA", ".", False),
        ("example.org. A", None, True),
    ],
)
async def test_passing_on(asked: str, fallthrough: str | None, passed_on: bool) -> None:
    rest = Recorder(REST)
    link = Kubernetes(zone_of(*OBJECTS, settings=config(fallthrough=fallthrough)), rest, Recorder(None))
    message = await link(query(asked))
    assert (message is REST) is passed_on
    assert len(rest.asked) == passed_on


async def test_nobody_comes_next() -> None:
    link = Kubernetes(zone_of(*OBJECTS, settings=config(fallthrough=".")), end_of_chain, Recorder(None))
    message = await link(query("gone.prod.svc.cluster.local. A"))
    assert message is not None
    assert (message.rcode, message.aa) == (Rcode.NXDOMAIN, True)


@pytest.mark.parametrize("directives", ["cache 30", "forward example.org 192.0.2.1"])
async def test_nobody_who_comes_next_knows_the_name(directives: str) -> None:
    zone = zone_of(*OBJECTS, settings=config(fallthrough="."))
    env = Environment(kubernetes=lambda _, rest: Kubernetes(zone, rest, end_of_chain))
    async with chain(f"kubernetes cluster.local {{\n fallthrough\n}}\n{directives}", environment=env) as ask:
        message = await ask.maybe("gone.prod.svc.cluster.local. A")
    assert message is not None
    assert (message.rcode, message.aa) == (Rcode.NXDOMAIN, True)


async def test_a_target_is_asked_of_the_server_with_the_clients_edns() -> None:
    ask_self = Recorder(Message(answer=records("www.example.org. 60 IN A 192.0.2.1")))
    link = Kubernetes(zone_of(*OBJECTS), end_of_chain, ask_self)
    asked = query("alias.prod.svc.cluster.local. A", edns=Edns(1400, do=True))
    message = await link(asked)
    assert message is not None
    assert shown(encode(message, asked)).splitlines() == [
        "NOERROR",
        "alias.prod.svc.cluster.local. 5 IN CNAME www.example.org.",
        "www.example.org. 60 IN A 192.0.2.1",
    ]
    (inner,) = ask_self.asked
    assert inner.question == query("www.example.org. A").question
    assert (inner.edns, inner.chased, inner.client) == (asked.edns, 1, asked.client)


async def test_a_loop_through_the_server_ends() -> None:
    async def ask_self(inner: Query) -> Message | None:
        """As a rewrite rule that leads back would."""
        asked.append(inner)
        return await link(query("alias.prod.svc.cluster.local. A", chased=inner.chased))

    asked: list[Query] = []
    link = Kubernetes(zone_of(*OBJECTS), end_of_chain, ask_self)
    message = await link(query("alias.prod.svc.cluster.local. A"))
    assert message is not None
    assert message.rcode == Rcode.SERVFAIL
    assert len(asked) == 10
