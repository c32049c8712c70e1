"""The `kubernetes` directive's options, fallthrough, start-up and name servers, by what they do to answers."""

from __future__ import annotations

import pytest

from dnsserver.answer import Fallthrough, NeedsTarget, Reply, answer, finish
from dnsserver.config import PodsMode
from dnsserver.encode import encode
from dnsserver.message import Edns, ExtendedError, Message, Rcode
from dnsserver.zone import Zone
from kubecore.model import KubeObject, Listed, Resource
from kubecore.selectors import LabelSelector
from kubecore.snapshot import Changes
from tests.dns.cluster import SERIAL, ask, config, namespace, piece, pod, service, state_of, zone_of
from tests.dns.notation import expected, query, records, shown

SOA = (
    f";; AUTHORITY\n cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. {SERIAL} 7200 1800 86400 5"
)
REVERSE_SOA = SOA.replace("cluster.local", "10.in-addr.arpa")


OBJECTS: list[KubeObject] = [
    namespace("prod", tier="live"),
    namespace("test", tier="toy"),
    service("prod/web", "10.96.0.1", "80", labels=(("app", "web"),)),
    piece("prod/web", "10.244.0.1", "80", labels=(("app", "web"),)),
    service("test/web", "10.96.0.2", "80"),
    piece("test/web", "10.244.0.2", "80"),
    service("bare/web", "10.96.0.3", "80"),
    service("prod/idle", "10.96.0.4", "80"),
    piece("prod/idle", "10.244.0.4!", "80"),
    service("prod/set", "None", "80"),
    piece("prod/set", "10.244.0.5@set-0 10.244.0.6=named@set-1 10.244.0.7", "80"),
    piece("prod/set", "10.244.0.8@" + "x" * 64, "80", name="b"),
    service("prod/alias", to="www.example.org"),
]

sel = LabelSelector.parse
OPTIONS: list[tuple[dict[str, object], str, str]] = [
    # option, question, answer (the owner is the question's)
    ({}, "prod.svc.cluster.local. A", "NODATA"),
    ({}, "web.bare.svc.cluster.local. A", "5 IN A 10.96.0.3"),
    ({}, "bare.svc.cluster.local. A", "NODATA"),
    ({"namespaces": frozenset({"prod"})}, "web.prod.svc.cluster.local. A", "5 IN A 10.96.0.1"),
    ({"namespaces": frozenset({"prod"})}, "web.test.svc.cluster.local. A", "NXDOMAIN"),
    ({"namespaces": frozenset({"prod"})}, "test.svc.cluster.local. A", "NXDOMAIN"),
    ({"namespaces": frozenset({"prod", "later"})}, "later.svc.cluster.local. A", "NXDOMAIN"),
    ({"namespaces": frozenset({"prod"})}, "2.0.96.10.in-addr.arpa. PTR", "NXDOMAIN"),
    ({"namespaces": frozenset({"prod"})}, "2.0.244.10.in-addr.arpa. PTR", "NXDOMAIN"),
    ({"namespaces": frozenset({"prod"})}, "1.0.96.10.in-addr.arpa. PTR", "5 IN PTR web.prod.svc.cluster.local."),
    ({"namespace_labels": sel("tier=live")}, "web.prod.svc.cluster.local. A", "5 IN A 10.96.0.1"),
    ({"namespace_labels": sel("tier=live")}, "web.test.svc.cluster.local. A", "NXDOMAIN"),
    ({"namespace_labels": sel("tier=live")}, "web.bare.svc.cluster.local. A", "NXDOMAIN"),
    ({"namespace_labels": sel("tier")}, "web.test.svc.cluster.local. A", "5 IN A 10.96.0.2"),
    ({"namespace_labels": LabelSelector.parse("tier=live")}, "2.0.96.10.in-addr.arpa. PTR", "NXDOMAIN"),
    ({"labels": LabelSelector.parse("app in (web, api)")}, "web.prod.svc.cluster.local. A", "5 IN A 10.96.0.1"),
    ({"labels": sel("app in (web, api)")}, "web.test.svc.cluster.local. A", "NXDOMAIN"),
    ({"labels": sel("!app")}, "set.prod.svc.cluster.local. AAAA", "NODATA"),
    ({"labels": LabelSelector.parse("!app")}, "web.prod.svc.cluster.local. A", "NXDOMAIN"),
    ({}, "idle.prod.svc.cluster.local. A", "5 IN A 10.96.0.4"),
    ({"ignore_empty_service": True}, "idle.prod.svc.cluster.local. A", "NXDOMAIN"),
    ({"ignore_empty_service": True}, "web.prod.svc.cluster.local. A", "5 IN A 10.96.0.1"),
    ({"ignore_empty_service": True}, "alias.prod.svc.cluster.local. CNAME", "5 IN CNAME www.example.org."),
    ({"noendpoints": True}, "web.prod.svc.cluster.local. A", "5 IN A 10.96.0.1"),
    ({"noendpoints": True}, "10-244-0-1.web.prod.svc.cluster.local. A", "NXDOMAIN"),
    ({"noendpoints": True}, "set.prod.svc.cluster.local. A", "NXDOMAIN"),
    ({"noendpoints": True}, "1.0.244.10.in-addr.arpa. PTR", "NXDOMAIN"),
    ({}, "set-0.set.prod.svc.cluster.local. A", "NXDOMAIN"),
    ({"endpoint_pod_names": True}, "set-0.set.prod.svc.cluster.local. A", "5 IN A 10.244.0.5"),
    ({"endpoint_pod_names": True}, "10-244-0-5.set.prod.svc.cluster.local. A", "NXDOMAIN"),
    ({"endpoint_pod_names": True}, "named.set.prod.svc.cluster.local. A", "5 IN A 10.244.0.6"),
    ({"endpoint_pod_names": True}, "set-1.set.prod.svc.cluster.local. A", "NXDOMAIN"),
    ({"endpoint_pod_names": True}, "10-244-0-7.set.prod.svc.cluster.local. A", "5 IN A 10.244.0.7"),
    ({"endpoint_pod_names": True}, "10-244-0-8.set.prod.svc.cluster.local. A", "5 IN A 10.244.0.8"),
    ({"endpoint_pod_names": True}, "5.0.244.10.in-addr.arpa. PTR", "5 IN PTR set-0.set.prod.svc.cluster.local."),
    ({"ttl_s": 30}, "web.prod.svc.cluster.local. A", "30 IN A 10.96.0.1"),
    ({"ttl_s": 0}, "web.prod.svc.cluster.local. A", "0 IN A 10.96.0.1"),
    ({"ttl_s": 3600}, "dns-version.cluster.local. TXT", '28800 IN TXT "1.1.0"'),
]


@pytest.mark.parametrize(("options", "asked", "reply"), OPTIONS, ids=[f"{list(r[0])}-{r[1]}" for r in OPTIONS])
def test_options(options: dict[str, object], asked: str, reply: str) -> None:
    zone = zone_of(*OBJECTS, settings=config("cluster.local 10.in-addr.arpa", **options))
    soa = REVERSE_SOA if "arpa" in asked else SOA
    whole = {"NXDOMAIN": f"NXDOMAIN\n{soa}", "NODATA": f"NOERROR\n{soa}"}
    assert ask(zone, asked) == expected(whole.get(reply, f"NOERROR\n{asked.split(maxsplit=1)[0]} {reply}"))


def test_a_denial_is_kept_no_longer_than_five_minutes() -> None:
    zone = zone_of(*OBJECTS, settings=config(ttl_s=3600))
    assert "cluster.local. 300 IN SOA " in ask(zone, "gone.prod.svc.cluster.local. A")
    assert ask(zone, "gone.prod.svc.cluster.local. A").endswith(" 7200 1800 86400 3600")


def test_labels_select_slices_and_pods_too() -> None:
    settings = config(labels=LabelSelector.parse("app=web"), pods=PodsMode.VERIFIED)
    zone = zone_of(
        namespace("prod"),
        service("prod/set", "None", labels=(("app", "web"),)),
        piece("prod/set", "10.244.0.1", labels=(("app", "web"),)),
        piece("prod/set", "10.244.0.2", name="b"),
        pod("prod/a", "10.244.0.1", labels=(("app", "web"),)),
        pod("prod/b", "10.244.0.2"),
        settings=settings,
    )
    assert ask(zone, "set.prod.svc.cluster.local. A") == expected(
        "NOERROR\n set.prod.svc.cluster.local. 5 IN A 10.244.0.1"
    )
    assert ask(zone, "10-244-0-1.prod.pod.cluster.local. A").startswith("NOERROR")
    assert ask(zone, "10-244-0-2.prod.pod.cluster.local. A").startswith("NXDOMAIN")


def test_the_longest_zone_holds_a_name() -> None:
    zone = zone_of(*OBJECTS, settings=config("local cluster.local a.b"))
    assert ask(zone, "web.prod.svc.cluster.local. A") == expected(
        "NOERROR\n web.prod.svc.cluster.local. 5 IN A 10.96.0.1"
    )
    assert ask(zone, "web.prod.svc.a.b. A") == expected("NOERROR\n web.prod.svc.a.b. 5 IN A 10.96.0.1")
    assert ask(zone, "web.prod.svc.local. A") == expected("NOERROR\n web.prod.svc.local. 5 IN A 10.96.0.1")
    assert "x. 5 IN" not in ask(zone, "x.local. A")


@pytest.mark.parametrize("zones", ["10.0.0.0/8", "10.244.0.0/17", "10.244.0.0/24", "10.244.0.1/32"])
def test_reverse_zones_from_cidrs(zones: str) -> None:
    zone = zone_of(*OBJECTS, settings=config(f"cluster.local {zones}"))
    line = "1.0.244.10.in-addr.arpa. 5 IN PTR 10-244-0-1.web.prod.svc.cluster.local."
    if zones.endswith("/32"):  # the address is the zone's apex
        assert ask(zone, "1.0.244.10.in-addr.arpa. SOA").startswith("NOERROR\n1.0.244.10.in-addr.arpa. 5 IN SOA")
    assert line in ask(zone, "1.0.244.10.in-addr.arpa. PTR")


# -- denials and who else may answer


@pytest.mark.parametrize(
    ("zones", "asked", "passed_on"),
    [
        (None, "gone.prod.svc.cluster.local. A", False),
        (".", "gone.prod.svc.cluster.local. A", True),
        (".", "GONE.prod.svc.cluster.LOCAL. A", True),
        ("prod.svc.cluster.local", "gone.prod.svc.cluster.local. A", True),
        ("prod.svc.cluster.local", "gone.test.svc.cluster.local. A", False),
        ("in-addr.arpa ip6.arpa", "1.2.3.10.in-addr.arpa. PTR", True),
        ("in-addr.arpa ip6.arpa", "gone.prod.svc.cluster.local. A", False),
        (".", "web.prod.svc.cluster.local. AAAA", False),  # NODATA never falls through
        (".", "prod.svc.cluster.local. A", False),
        (".", "idle.gone.svc.cluster.local. A", True),
    ],
)
def test_only_nxdomain_falls_through(zones: str | None, asked: str, passed_on: bool) -> None:
    settings = config("cluster.local 10.in-addr.arpa", fallthrough=zones)
    outcome = answer(zone_of(*OBJECTS, settings=settings), query(asked).question)
    assert isinstance(outcome, Fallthrough) is passed_on
    if isinstance(outcome, Fallthrough):
        assert outcome.message.rcode == Rcode.NXDOMAIN


def test_fallthrough_comes_before_the_sync_check() -> None:
    settings = config("cluster.local in-addr.arpa", fallthrough="in-addr.arpa")
    zone = zone_of(settings=settings, listed=False)
    assert isinstance(answer(zone, query("8.8.8.8.in-addr.arpa. PTR").question), Fallthrough)


def test_before_the_lists_absence_is_servfail_and_presence_an_answer() -> None:
    zone = zone_of(*OBJECTS, listed=False)
    assert ask(zone, "gone.prod.svc.cluster.local. A") == expected(f"SERVFAIL\n{SOA}")
    assert ask(zone, "gone.svc.cluster.local. A") == expected(f"SERVFAIL\n{SOA}")
    assert ask(zone, "web.prod.svc.cluster.local. A") == expected(
        "NOERROR\n web.prod.svc.cluster.local. 5 IN A 10.96.0.1"
    )
    assert ask(zone, "svc.cluster.local. A") == expected(f"NOERROR\n{SOA}")
    outcome = answer(zone, query("gone.prod.svc.cluster.local. A").question)
    assert isinstance(outcome, Reply)
    assert outcome.message.aa
    assert [code for code, _ in outcome.message.errors] == [ExtendedError.NOT_READY]


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, {"services", "namespaces", "endpointslices"}),
        ({"noendpoints": True}, {"services", "namespaces"}),
    ],
)
def test_synced_once_all_it_needs_was_listed(options: dict[str, object], needed: set[str]) -> None:
    state = state_of(listed=False)
    zone = Zone(config("cluster.local", **options))
    zone.load(state, SERIAL)
    for resource in Resource:
        if resource.value in needed:
            assert not zone.synced
            state.apply_event(Listed(resource))
            zone.apply(state, state.take_changes(), SERIAL)
    assert zone.synced


def test_extended_error_says_why_a_headless_name_is_gone() -> None:
    zone = zone_of(namespace("prod"), service("prod/set", "None"), piece("prod/set", "10.1.1.1!"))
    asked = query("set.prod.svc.cluster.local. A", edns=Edns(1232))
    outcome = answer(zone, asked.question)
    assert isinstance(outcome, Reply)
    assert outcome.message.errors == ((ExtendedError.OTHER, "no ready endpoints"),)


# -- aliases that lead outside


def needs(zone: Zone, text: str) -> NeedsTarget:
    outcome = answer(zone, query(text).question)
    assert isinstance(outcome, NeedsTarget)
    return outcome


CNAME = "Alias.prod.svc.cluster.local. 5 IN CNAME www.example.org."
OUTSIDE = [
    # what the target's look-up said, the whole answer
    (
        Message(answer=records("www.example.org. 300 IN A 192.0.2.1"), ra=True),
        f"NOERROR\n{CNAME}\n www.example.org. 300 IN A 192.0.2.1",
    ),
    (
        Message(rcode=Rcode.NXDOMAIN, authority=records("example.org. 60 IN SOA a. b. 1 2 3 4 5")),
        f"NXDOMAIN\n{CNAME}\n;; AUTHORITY\n example.org. 60 IN SOA a. b. 1 2 3 4 5",
    ),
    (
        Message(authority=records("example.org. 60 IN SOA a. b. 1 2 3 4 5", "example.org. 60 IN NS a.")),
        f"NOERROR\n{CNAME}\n;; AUTHORITY\n example.org. 60 IN SOA a. b. 1 2 3 4 5",
    ),
    (Message(rcode=Rcode.SERVFAIL), f"SERVFAIL\n{CNAME}"),
    (Message(rcode=Rcode.REFUSED), f"SERVFAIL\n{CNAME}"),
    (None, f"SERVFAIL\n{CNAME}"),
]


@pytest.mark.parametrize(("reply", "whole"), OUTSIDE)
def test_an_alias_ends_as_its_target_does(reply: Message | None, whole: str) -> None:
    asked = query("Alias.prod.svc.cluster.local. A")
    found = needs(zone_of(*OBJECTS), "Alias.prod.svc.cluster.local. A")
    message = finish(found, reply)
    assert shown(encode(message, asked)) == expected(whole)
    assert message.aa
    assert not message.cacheable
    assert message.answer[0].type == 5  # glibc wants a CNAME before what it leads to


@pytest.mark.parametrize("rtype", ["A", "AAAA", "SRV", "TXT", "MX", "HTTPS"])
def test_every_type_is_asked_of_the_target(rtype: str) -> None:
    found = needs(zone_of(*OBJECTS), f"alias.prod.svc.cluster.local. {rtype}")
    assert found.target == b"\x03www\x07example\x03org\0"


def test_truncation_of_the_target_propagates() -> None:
    found = needs(zone_of(*OBJECTS), "alias.prod.svc.cluster.local. A")
    assert finish(found, Message(tc=True)).tc


def test_a_missing_target_in_a_fallthrough_zone_is_asked_of_the_chain() -> None:
    objects: list[KubeObject] = [namespace("prod"), service("prod/a", to="db.cluster.local")]
    zone = zone_of(*objects, settings=config(fallthrough="cluster.local"))
    assert needs(zone, "a.prod.svc.cluster.local. A").target == b"\x02db\x07cluster\x05local\0"


def test_chains_end_after_ten_aliases() -> None:
    def chain(length: int) -> list[KubeObject]:
        links = [service(f"prod/c{i}", to=f"c{i + 1}.prod.svc.cluster.local") for i in range(length)]
        return [namespace("prod"), *links, service(f"prod/c{length}", "10.96.0.9")]

    ten, eleven = zone_of(*chain(10)), zone_of(*chain(11))
    assert ask(ten, "c0.prod.svc.cluster.local. A").startswith("NOERROR\n")
    assert "\nc10.prod.svc.cluster.local. 5 IN A 10.96.0.9" in ask(ten, "c0.prod.svc.cluster.local. A")
    assert ask(eleven, "c0.prod.svc.cluster.local. A").startswith("SERVFAIL\n")


# -- name servers


DNS_PODS: list[KubeObject] = [
    namespace("kube-system"),
    service("kube-system/kube-dns", "10.96.0.10 fd00:96::10", "dns:53/UDP"),
    piece("kube-system/kube-dns", "10.244.0.2 10.244.0.3", "dns:53/UDP"),
    service("kube-system/dns-set", "None", "dns:53/UDP"),
    piece("kube-system/dns-set", "10.244.0.2=dns-0 10.244.0.3=dns-1", "dns:53/UDP"),
    piece("kube-system/dns-set", "fd00:244::2=dns-0", "dns:53/UDP", name="six"),
]


@pytest.mark.parametrize("apex", ["cluster.local.", "Cluster.LOCAL."])
def test_name_servers_are_the_services_this_server_is_an_endpoint_of(apex: str) -> None:
    zone = zone_of(*DNS_PODS, local="10.244.0.2")
    assert ask(zone, f"{apex} NS") == expected(
        f"""NOERROR
        {apex} 5 IN NS dns-0.dns-set.kube-system.svc.{apex}
        {apex} 5 IN NS kube-dns.kube-system.svc.{apex}
        ;; ADDITIONAL
        dns-0.dns-set.kube-system.svc.{apex} 5 IN A 10.244.0.2
        dns-0.dns-set.kube-system.svc.{apex} 5 IN AAAA fd00:244::2
        kube-dns.kube-system.svc.{apex} 5 IN A 10.96.0.10
        kube-dns.kube-system.svc.{apex} 5 IN AAAA fd00:96::10"""
    )
    assert ask(zone, f"ns.dns.{apex} A") == expected(f"NOERROR\n ns.dns.{apex} 5 IN A 10.244.0.2")


def test_two_local_addresses_name_each_server_once() -> None:
    zone = zone_of(*DNS_PODS, local="10.244.0.2 10.244.0.3")
    lines = ask(zone, "cluster.local. NS").splitlines()
    assert len(lines) == len(set(lines))
    assert sum(" IN NS " in line for line in lines) == 3


def test_a_reverse_zone_is_served_by_names_of_the_forward_one() -> None:
    zone = zone_of(*DNS_PODS, settings=config("10.in-addr.arpa cluster.local"), local="10.244.0.3")
    assert "10.in-addr.arpa. 5 IN NS kube-dns.kube-system.svc.cluster.local." in ask(zone, "10.in-addr.arpa. NS")


def test_changes_given_in_parts_lead_to_the_same_zone() -> None:
    state = state_of(*OBJECTS)
    whole, parts = Zone(config()), Zone(config())
    whole.load(state, SERIAL)
    for key in state.services:
        parts.apply(state, Changes(services=frozenset({key})), SERIAL)
    parts.apply(state, Changes(namespaces=frozenset(state.namespaces)), SERIAL)
    for name in ("web.prod.svc", "set.prod.svc", "prod.svc", "bare.svc"):
        one = ask(whole, f"{name}.cluster.local. A")
        assert one.splitlines()[0] == ask(parts, f"{name}.cluster.local. A").splitlines()[0]
