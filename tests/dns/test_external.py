"""k8s_external: names for external addresses."""

from __future__ import annotations

import pytest

from dnsserver.answer import Fallthrough, NeedsTarget, Reply, prepare
from dnsserver.config import ExternalConfig
from dnsserver.encode import encode
from dnsserver.external import answer_external
from dnsserver.message import Rcode
from dnsserver.names import zones_of
from dnsserver.zone import Zone
from kubecore.model import KubeObject, LoadBalancerIngress
from tests.dns.chains import chain
from tests.dns.cluster import SERIAL, config, namespace, piece, put, service, state_of
from tests.dns.notation import expected, query, shown

SOA_LINE = f"5 IN SOA ns1.dns.ext.test. hostmaster.dns.ext.test. {SERIAL} 7200 1800 86400 5"
SOA = f";; AUTHORITY\next.test. {SOA_LINE}"
OBJECTS: list[KubeObject] = [
    namespace("prod"),
    service(
        "prod/web",
        "10.96.0.1",
        "http:80 https:443",
        external_ips=("192.0.2.1",),
        ingress=(LoadBalancerIngress(ip="192.0.2.2"), LoadBalancerIngress(ip="2001:db8::2")),
    ),
    service("prod/named", "10.96.0.2", "http:80", ingress=(LoadBalancerIngress(hostname="lb.cloud.example"),)),
    service(
        "prod/both",
        "10.96.0.3",
        ingress=(LoadBalancerIngress(hostname="lb.cloud.example"), LoadBalancerIngress(ip="192.0.2.3")),
    ),
    service("prod/inside", "10.96.0.4", "80"),
    service("prod/set", "None", "pg:5432"),
    piece("prod/set", "10.1.0.1=a 10.1.0.2=b 10.1.0.3!", "pg:5432"),
]
ZONES = zones_of("ext.test") + zones_of("192.0.2.0/24")
REVERSE = zones_of("ext.test") + zones_of("192.0.0.0/8")
REVERSE_SOA = f""";; AUTHORITY
192.in-addr.arpa. 5 IN SOA ns1.dns.192.in-addr.arpa. hostmaster.dns.192.in-addr.arpa. {SERIAL} 7200 1800 86400 5"""


def loaded(**options: object) -> tuple[Zone, ExternalConfig]:
    zone = Zone(config(), ["10.9.9.9"])
    zone.load(state_of(*OBJECTS), SERIAL)
    return zone, ExternalConfig(**{"zones": ZONES, **options})  # type: ignore[arg-type]


def ask(text: str, **options: object) -> str:
    asked = query(text, transport="tcp")
    outcome = answer_external(*loaded(**options), asked.question)
    assert isinstance(outcome, Reply), outcome
    assert outcome.message.aa
    return shown(encode(outcome.message, asked))


NS1 = "ns1.dns.ext.test. 5 IN A 10.9.9.9"


def both(name: str) -> str:
    return f"{name} 5 IN A 10.1.0.1\n{name} 5 IN A 10.1.0.2"


HEADLESS: dict[str, object] = {"headless": True}
ROWS: list[tuple[dict[str, object], str, str]] = [
    ({}, "web.prod.ext.test. A", "NOERROR\nweb.prod.ext.test. 5 IN A 192.0.2.1\nweb.prod.ext.test. 5 IN A 192.0.2.2"),
    ({}, "Web.prod.Ext.test. AAAA", "NOERROR\nWeb.prod.Ext.test. 5 IN AAAA 2001:db8::2"),
    ({"ttl_s": 60}, "web.prod.ext.test. AAAA", "NOERROR\nweb.prod.ext.test. 60 IN AAAA 2001:db8::2"),
    ({}, "web.prod.ext.test. TXT", f"NOERROR\n{SOA}"),
    (
        {},
        "_http._tcp.web.prod.ext.test. SRV",
        """NOERROR
        _http._tcp.web.prod.ext.test. 5 IN SRV 0 33 80 web.prod.ext.test.
        ;; ADDITIONAL
        web.prod.ext.test. 5 IN A 192.0.2.1
        web.prod.ext.test. 5 IN A 192.0.2.2
        web.prod.ext.test. 5 IN AAAA 2001:db8::2""",
    ),
    ({}, "_http._udp.web.prod.ext.test. SRV", f"NXDOMAIN\n{SOA}"),
    ({}, "_tcp.web.prod.ext.test. SRV", f"NOERROR\n{SOA}"),
    ({}, "_udp.web.prod.ext.test. SRV", f"NXDOMAIN\n{SOA}"),
    (
        {},
        "_http._tcp.named.prod.ext.test. SRV",
        "NOERROR\n_http._tcp.named.prod.ext.test. 5 IN SRV 0 100 80 lb.cloud.example.",
    ),
    ({}, "named.prod.ext.test. CNAME", "NOERROR\nnamed.prod.ext.test. 5 IN CNAME lb.cloud.example."),
    ({}, "both.prod.ext.test. A", "NOERROR\nboth.prod.ext.test. 5 IN A 192.0.2.3"),
    ({}, "inside.prod.ext.test. A", f"NXDOMAIN\n{SOA}"),
    ({}, "gone.prod.ext.test. A", f"NXDOMAIN\n{SOA}"),
    ({}, "web.gone.ext.test. A", f"NXDOMAIN\n{SOA}"),
    ({}, "x.web.prod.ext.test. A", f"NXDOMAIN\n{SOA}"),
    ({}, "prod.ext.test. A", f"NOERROR\n{SOA}"),
    ({}, "gone.ext.test. A", f"NXDOMAIN\n{SOA}"),
    ({}, "ext.test. A", f"NOERROR\n{SOA}"),
    ({}, "ext.test. SOA", f"NOERROR\next.test. {SOA_LINE}"),
    ({}, "ext.test. NS", "NOERROR\next.test. 5 IN NS ns1.dns.ext.test.\n;; ADDITIONAL\n" + NS1),
    ({}, "dns.ext.test. A", f"NOERROR\n{SOA}"),
    ({}, "ns1.dns.ext.test. A", "NOERROR\nns1.dns.ext.test. 5 IN A 10.9.9.9"),
    ({}, "x.dns.ext.test. A", f"NXDOMAIN\n{SOA}"),
    ({"apex": "own"}, "ns1.own.ext.test. A", "NOERROR\nns1.own.ext.test. 5 IN A 10.9.9.9"),
    ({}, "set.prod.ext.test. A", f"NXDOMAIN\n{SOA}"),
    (HEADLESS, "set.prod.ext.test. A", "NOERROR\n" + both("set.prod.ext.test.")),
    (HEADLESS, "a.set.prod.ext.test. A", "NOERROR\na.set.prod.ext.test. 5 IN A 10.1.0.1"),
    (HEADLESS, "c.set.prod.ext.test. A", f"NXDOMAIN\n{SOA}"),
    (HEADLESS, "_pg._tcp.set.prod.ext.test. A", "NOERROR\n" + both("_pg._tcp.set.prod.ext.test.")),
    (
        HEADLESS,
        "_pg._tcp.set.prod.ext.test. SRV",
        """NOERROR
        _pg._tcp.set.prod.ext.test. 5 IN SRV 0 50 5432 a.set.prod.ext.test.
        _pg._tcp.set.prod.ext.test. 5 IN SRV 0 50 5432 b.set.prod.ext.test.
        ;; ADDITIONAL
        a.set.prod.ext.test. 5 IN A 10.1.0.1
        b.set.prod.ext.test. 5 IN A 10.1.0.2""",
    ),
    ({}, "1.2.0.192.in-addr.arpa. PTR", "NOERROR\n1.2.0.192.in-addr.arpa. 5 IN PTR web.prod.ext.test."),
    ({"zones": REVERSE}, "2.0.192.in-addr.arpa. PTR", f"NOERROR\n{REVERSE_SOA}"),
    ({"zones": REVERSE}, "1.2.0.192.in-addr.arpa. A", f"NOERROR\n{REVERSE_SOA}"),
]


@pytest.mark.parametrize(("options", "asked", "reply"), ROWS, ids=[f"{list(r[0])}-{r[1]}" for r in ROWS])
def test_external_names(options: dict[str, object], asked: str, reply: str) -> None:
    assert ask(asked, **options) == expected(reply)


def test_a_hostname_is_an_alias_to_be_followed() -> None:
    outcome = answer_external(*loaded(), query("named.prod.ext.test. A").question)
    assert isinstance(outcome, NeedsTarget)
    assert outcome.target == b"\2lb\5cloud\7example\0"


def test_other_names_are_not_ours() -> None:
    for text in ("web.prod.svc.cluster.local. A", "ext.example. A", "xext.test. A"):
        assert answer_external(*loaded(), query(text).question) is None


@pytest.mark.parametrize(
    ("asked", "alone"),
    [
        ("web.prod.svc.cluster.local. A", True),
        ("web.prod.ext.cluster.local. A", False),
        ("1.2.0.192.in-addr.arpa. PTR", False),
    ],
)
async def test_zones_within_those_of_kubernetes_are_not_answered_without_the_chain(asked: str, alone: bool) -> None:
    zone, _ = loaded()
    question = query(asked).question
    prepared = prepare(zone, query("gone.prod.svc.cluster.local. A").question)
    assert prepared is not None
    zones = "cluster.local in-addr.arpa"
    async with chain(f"kubernetes {zones}\nk8s_external ext.{zones}") as ask_chain:
        assert ask_chain.chain.passes_to_kubernetes(question.lower, question.qtype, prepared) is alone


def test_the_reverse_tree_is_shared() -> None:
    outcome = answer_external(*loaded(), query("9.2.0.192.in-addr.arpa. PTR").question)
    assert isinstance(outcome, Fallthrough)
    outcome = answer_external(*loaded(zones=REVERSE), query("0.192.in-addr.arpa. PTR").question)
    assert isinstance(outcome, Reply)  # 2.0.192.in-addr.arpa and what is below it


def test_fallthrough_and_before_the_lists() -> None:
    zone, settings = loaded(fallthrough=zones_of("ext.test"))
    assert isinstance(answer_external(zone, settings, query("gone.prod.ext.test. A").question), Fallthrough)
    unlisted = Zone(config())
    unlisted.load(state_of(listed=False), SERIAL)
    outcome = answer_external(unlisted, ExternalConfig(zones=ZONES), query("gone.prod.ext.test. A").question)
    assert isinstance(outcome, Reply)
    assert outcome.message.rcode == Rcode.SERVFAIL


def test_its_serial_moves_with_external_addresses() -> None:
    state = state_of(*OBJECTS)
    zone = Zone(config())
    zone.load(state, SERIAL)
    put(state, service("prod/inside", "10.96.0.4", "80", external_ips=("192.0.2.9",)))
    assert not zone.apply(state, state.take_changes(), SERIAL + 5)
    assert (zone.serial, zone.external_serial) == (SERIAL, SERIAL + 5)
    settings = ExternalConfig(zones=ZONES)
    for name in ("inside.prod.ext.test. A", "9.2.0.192.in-addr.arpa. PTR"):
        outcome = answer_external(zone, settings, query(name).question)
        assert isinstance(outcome, Reply)
        assert outcome.message.answer
