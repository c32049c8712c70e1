"""Which name holds which records: the zone by the Kubernetes DNS specification, form by form."""

from __future__ import annotations

import dns.reversename
import pytest

from dnsserver.answer import Reply, answer
from dnsserver.config import PodsMode
from dnsserver.encode import encode
from dnsserver.zone import Zone
from kubecore.model import KubeObject
from tests.dns.cluster import SERIAL, ask, config, namespace, piece, pod, service, zone_of
from tests.dns.notation import expected, query, shown

ZONES = "cluster.local 10.in-addr.arpa ip6.arpa"


def soa(zone: str = "cluster.local.", ttl: int = 5) -> str:
    return f";; AUTHORITY\n{soa_line(zone, ttl)}"


def soa_line(zone: str = "cluster.local.", ttl: int = 5) -> str:
    return f"{zone} {ttl} IN SOA ns.dns.{zone} hostmaster.{zone} {SERIAL} 7200 1800 86400 {ttl}"


OBJECTS: list[KubeObject] = [
    namespace("default"),
    namespace("empty"),
    # ClusterIP, two families, three ports of which one is unnamed in spirit only
    service("default/web", "10.96.0.10 fd00:96::10", "http:80 metrics:9090/TCP dns:53/UDP"),
    piece("default/web", "10.244.0.5=web-0 10.244.0.6@web-pod", "http:8080 metrics:9090"),
    service("default/v4", "10.96.0.11", "80"),
    # headless: hostnames, a shared hostname, one without, one not ready, a second slice that repeats an endpoint
    service("default/db", "None", "pg:5432"),
    piece("default/db", "10.244.1.1=db-0 10.244.1.2=db-1 10.244.1.3 10.244.1.9=db-9!", "pg:5432 mon:9187"),
    piece("default/db", "10.244.1.2=db-1 10.244.1.4=db-0", "pg:5432 mon:9187", name="b"),
    piece("default/db", "fd00:244::1=db-0 2001:db8::", "pg:5432 mon:9187", name="c"),
    service("default/pair", "None"),
    piece("default/pair", "10.244.2.1=twin 10.244.2.2=twin", "http:80"),
    service("default/one-family", "None"),
    piece("default/one-family", "10.244.3.1", "80"),
    service("default/nothing-ready", "None", "http:80"),
    piece("default/nothing-ready", "10.244.4.1! 10.244.4.2=x!", "http:80"),
    service("default/portless", "None"),
    piece("default/portless", "10.244.5.1"),
    service("default/idle", "10.96.0.12", "80"),
    service("default/elsewhere", to="www.example.org"),
    service("default/by-address", to="192.0.2.1"),
    service("default/by-address6", to="2001:db8::1"),
    service("default/inner", to="web.default.svc.cluster.local"),
    service("default/inner-db", to="DB.default.svc.Cluster.Local."),
    service("default/dangling", to="gone.default.svc.cluster.local."),
    service("default/chain", to="inner.default.svc.cluster.local"),
    service("default/loop-a", to="loop-b.default.svc.cluster.local"),
    service("default/loop-b", to="loop-a.default.svc.cluster.local"),
    service("default/selfish", to="selfish.default.svc.cluster.local"),
    service("default/below", to="x.below.default.svc.cluster.local"),
    service("default/to-apex", to="cluster.local"),
    # one pod behind two Services, a slice of no Service, a slice without the label
    service("default/also", "None"),
    piece("default/also", "10.244.1.3", "80"),
    piece("default/orphan", "10.244.6.1=lost", "80"),
    piece("default/web", "10.244.6.2", "80", name="unlabelled", service=""),
]

Z = "cluster.local."


@pytest.fixture(scope="module")
def zone() -> Zone:
    return zone_of(*OBJECTS, settings=config(ZONES), local="10.9.9.9 fd00:9::9")


FORWARD = [
    ("web.default.svc.cluster.local. A", "NOERROR\n web.default.svc.cluster.local. 5 IN A 10.96.0.10"),
    ("web.default.svc.cluster.local. AAAA", "NOERROR\n web.default.svc.cluster.local. 5 IN AAAA fd00:96::10"),
    ("v4.default.svc.cluster.local. A", "NOERROR\n v4.default.svc.cluster.local. 5 IN A 10.96.0.11"),
    ("v4.default.svc.cluster.local. AAAA", f"NOERROR\n{soa()}"),
    ("idle.default.svc.cluster.local. A", "NOERROR\n idle.default.svc.cluster.local. 5 IN A 10.96.0.12"),
    # SRV of a ClusterIP Service: candidates are port and address, so the weight of one port is 50 over two families
    (
        "_http._tcp.web.default.svc.cluster.local. SRV",
        """NOERROR
        _http._tcp.web.default.svc.cluster.local. 5 IN SRV 0 50 80 web.default.svc.cluster.local.
        ;; ADDITIONAL
        web.default.svc.cluster.local. 5 IN A 10.96.0.10
        web.default.svc.cluster.local. 5 IN AAAA fd00:96::10""",
    ),
    (
        "_dns._udp.web.default.svc.cluster.local. SRV",
        """NOERROR
        _dns._udp.web.default.svc.cluster.local. 5 IN SRV 0 50 53 web.default.svc.cluster.local.
        ;; ADDITIONAL
        web.default.svc.cluster.local. 5 IN A 10.96.0.10
        web.default.svc.cluster.local. 5 IN AAAA fd00:96::10""",
    ),
    (
        "web.default.svc.cluster.local. SRV",
        """NOERROR
        web.default.svc.cluster.local. 5 IN SRV 0 16 53 web.default.svc.cluster.local.
        web.default.svc.cluster.local. 5 IN SRV 0 16 80 web.default.svc.cluster.local.
        web.default.svc.cluster.local. 5 IN SRV 0 16 9090 web.default.svc.cluster.local.
        ;; ADDITIONAL
        web.default.svc.cluster.local. 5 IN A 10.96.0.10
        web.default.svc.cluster.local. 5 IN AAAA fd00:96::10""",
    ),
    ("_http._udp.web.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("_gone._tcp.web.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    (
        "_http._tcp.web.default.svc.cluster.local. A",
        "NOERROR\n _http._tcp.web.default.svc.cluster.local. 5 IN A 10.96.0.10",
    ),
    ("_http._tcp.web.default.svc.cluster.local. TXT", f"NOERROR\n{soa()}"),
    # underscores are required, unnamed ports have no name, the protocol alone is an empty non-terminal
    ("http.tcp.web.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("http._tcp.web.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("_http.tcp.web.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("_._tcp.v4.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("_tcp.web.default.svc.cluster.local. SRV", f"NOERROR\n{soa()}"),
    ("_sctp.web.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("_tcp.v4.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("_.v4.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    (
        "v4.default.svc.cluster.local. SRV",
        """NOERROR
        v4.default.svc.cluster.local. 5 IN SRV 0 100 80 v4.default.svc.cluster.local.
        ;; ADDITIONAL
        v4.default.svc.cluster.local. 5 IN A 10.96.0.11""",
    ),
    # endpoints of a ClusterIP Service
    ("web-0.web.default.svc.cluster.local. A", "NOERROR\n web-0.web.default.svc.cluster.local. 5 IN A 10.244.0.5"),
    ("web-0.web.default.svc.cluster.local. AAAA", f"NOERROR\n{soa()}"),
    (
        "10-244-0-6.web.default.svc.cluster.local. A",
        "NOERROR\n 10-244-0-6.web.default.svc.cluster.local. 5 IN A 10.244.0.6",
    ),
    ("10-244-0-5.web.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("web-pod.web.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    (
        "web-0.web.default.svc.cluster.local. SRV",
        """NOERROR
        web-0.web.default.svc.cluster.local. 5 IN SRV 0 50 8080 web-0.web.default.svc.cluster.local.
        web-0.web.default.svc.cluster.local. 5 IN SRV 0 50 9090 web-0.web.default.svc.cluster.local.
        ;; ADDITIONAL
        web-0.web.default.svc.cluster.local. 5 IN A 10.244.0.5""",
    ),
    # headless: every ready address once, over all slices
    (
        "db.default.svc.cluster.local. A",
        """NOERROR
        db.default.svc.cluster.local. 5 IN A 10.244.1.1
        db.default.svc.cluster.local. 5 IN A 10.244.1.2
        db.default.svc.cluster.local. 5 IN A 10.244.1.3
        db.default.svc.cluster.local. 5 IN A 10.244.1.4""",
    ),
    (
        "db.default.svc.cluster.local. AAAA",
        """NOERROR
        db.default.svc.cluster.local. 5 IN AAAA 2001:db8::
        db.default.svc.cluster.local. 5 IN AAAA fd00:244::1""",
    ),
    (
        "db-0.db.default.svc.cluster.local. A",
        """NOERROR
        db-0.db.default.svc.cluster.local. 5 IN A 10.244.1.1
        db-0.db.default.svc.cluster.local. 5 IN A 10.244.1.4""",
    ),
    ("db-0.db.default.svc.cluster.local. AAAA", "NOERROR\n db-0.db.default.svc.cluster.local. 5 IN AAAA fd00:244::1"),
    (
        "2001-db8--0.db.default.svc.cluster.local. AAAA",
        "NOERROR\n 2001-db8--0.db.default.svc.cluster.local. 5 IN AAAA 2001:db8::",
    ),
    ("db-9.db.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("10-244-1-1.db.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    # 7 endpoints, duplicates counted: weight 14
    (
        "_pg._tcp.db.default.svc.cluster.local. SRV",
        """NOERROR
        _pg._tcp.db.default.svc.cluster.local. 5 IN SRV 0 14 5432 10-244-1-3.db.default.svc.cluster.local.
        _pg._tcp.db.default.svc.cluster.local. 5 IN SRV 0 14 5432 2001-db8--0.db.default.svc.cluster.local.
        _pg._tcp.db.default.svc.cluster.local. 5 IN SRV 0 14 5432 db-0.db.default.svc.cluster.local.
        _pg._tcp.db.default.svc.cluster.local. 5 IN SRV 0 14 5432 db-1.db.default.svc.cluster.local.
        ;; ADDITIONAL
        10-244-1-3.db.default.svc.cluster.local. 5 IN A 10.244.1.3
        2001-db8--0.db.default.svc.cluster.local. 5 IN AAAA 2001:db8::
        db-0.db.default.svc.cluster.local. 5 IN A 10.244.1.1
        db-0.db.default.svc.cluster.local. 5 IN A 10.244.1.4
        db-0.db.default.svc.cluster.local. 5 IN AAAA fd00:244::1
        db-1.db.default.svc.cluster.local. 5 IN A 10.244.1.2""",
    ),
    ("_pg._tcp.db.default.svc.cluster.local. MX", f"NOERROR\n{soa()}"),
    (
        "_http._tcp.pair.default.svc.cluster.local. SRV",
        """NOERROR
        _http._tcp.pair.default.svc.cluster.local. 5 IN SRV 0 50 80 twin.pair.default.svc.cluster.local.
        ;; ADDITIONAL
        twin.pair.default.svc.cluster.local. 5 IN A 10.244.2.1
        twin.pair.default.svc.cluster.local. 5 IN A 10.244.2.2""",
    ),
    (
        "one-family.default.svc.cluster.local. SRV",
        """NOERROR
        one-family.default.svc.cluster.local. 5 IN SRV 0 100 80 10-244-3-1.one-family.default.svc.cluster.local.
        ;; ADDITIONAL
        10-244-3-1.one-family.default.svc.cluster.local. 5 IN A 10.244.3.1""",
    ),
    ("one-family.default.svc.cluster.local. AAAA", f"NOERROR\n{soa()}"),
    ("nothing-ready.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("nothing-ready.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("x.nothing-ready.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("portless.default.svc.cluster.local. A", "NOERROR\n portless.default.svc.cluster.local. 5 IN A 10.244.5.1"),
    ("portless.default.svc.cluster.local. SRV", f"NOERROR\n{soa()}"),
    # names that no object makes
    ("gone.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("web.gone.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("a.b.c.web.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("*.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("any.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("web.any.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("*.web.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("web.default.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("www.example.com.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("gone.default.svc.cluster.local. SOA", f"NXDOMAIN\n{soa()}"),
    (r"we\.b.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    (r"\255\000.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    # containers and types a name lacks
    *(
        (f"{name} {rtype}", f"NOERROR\n{soa()}")
        for name in (
            "svc.cluster.local.",
            "pod.cluster.local.",
            "default.svc.cluster.local.",
            "empty.svc.cluster.local.",
            "dns.cluster.local.",
        )
        for rtype in ("A", "AAAA", "SRV", "TXT", "NS", "SOA", "ANY")
    ),
    *(
        (f"web.default.svc.cluster.local. {rtype}", f"NOERROR\n{soa()}")
        for rtype in ("TXT", "MX", "CAA", "HTTPS", "SVCB", "HINFO", "NS", "SOA", "PTR", "ANY", "CNAME", "TYPE65280")
    ),
    *((f"cluster.local. {rtype}", f"NOERROR\n{soa()}") for rtype in ("A", "AAAA", "SRV", "HINFO", "TXT", "MX", "ANY")),
    ("default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("10-244-0-5.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    # the zone's own names
    ("cluster.local. SOA", f"NOERROR\n{soa_line()}"),
    ("dns-version.cluster.local. TXT", 'NOERROR\n dns-version.cluster.local. 28800 IN TXT "1.1.0"'),
    ("dns-version.cluster.local. A", f"NOERROR\n{soa()}"),
    ("x.dns-version.cluster.local. TXT", f"NXDOMAIN\n{soa()}"),
    (
        "cluster.local. NS",
        """NOERROR
        cluster.local. 5 IN NS ns.dns.cluster.local.
        ;; ADDITIONAL
        ns.dns.cluster.local. 5 IN A 10.9.9.9
        ns.dns.cluster.local. 5 IN AAAA fd00:9::9""",
    ),
    ("ns.dns.cluster.local. A", "NOERROR\n ns.dns.cluster.local. 5 IN A 10.9.9.9"),
    ("ns.dns.cluster.local. AAAA", "NOERROR\n ns.dns.cluster.local. 5 IN AAAA fd00:9::9"),
    ("ns.dns.cluster.local. TXT", f"NOERROR\n{soa()}"),
    ("x.dns.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("x.ns.dns.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    # aliases: the CNAME for every type, the code of the chain's end (RFC 6604)
    (
        "elsewhere.default.svc.cluster.local. CNAME",
        "NOERROR\n elsewhere.default.svc.cluster.local. 5 IN CNAME www.example.org.",
    ),
    (
        "elsewhere.default.svc.cluster.local. ANY",
        "NOERROR\n elsewhere.default.svc.cluster.local. 5 IN CNAME www.example.org.",
    ),
    ("x.elsewhere.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("_http._tcp.elsewhere.default.svc.cluster.local. SRV", f"NXDOMAIN\n{soa()}"),
    ("by-address.default.svc.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("by-address6.default.svc.cluster.local. CNAME", f"NXDOMAIN\n{soa()}"),
    (
        "inner.default.svc.cluster.local. A",
        """NOERROR
        inner.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.
        web.default.svc.cluster.local. 5 IN A 10.96.0.10""",
    ),
    (
        "inner.default.svc.cluster.local. TXT",
        f"NOERROR\n inner.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.\n{soa()}",
    ),
    (
        "inner-db.default.svc.cluster.local. AAAA",
        """NOERROR
        DB.default.svc.Cluster.Local. 5 IN AAAA 2001:db8::
        DB.default.svc.Cluster.Local. 5 IN AAAA fd00:244::1
        inner-db.default.svc.cluster.local. 5 IN CNAME DB.default.svc.Cluster.Local.""",
    ),
    (
        "chain.default.svc.cluster.local. AAAA",
        """NOERROR
        chain.default.svc.cluster.local. 5 IN CNAME inner.default.svc.cluster.local.
        inner.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.
        web.default.svc.cluster.local. 5 IN AAAA fd00:96::10""",
    ),
    (
        "dangling.default.svc.cluster.local. A",
        f"NXDOMAIN\n dangling.default.svc.cluster.local. 5 IN CNAME gone.default.svc.cluster.local.\n{soa()}",
    ),
    (
        "below.default.svc.cluster.local. A",
        f"NXDOMAIN\n below.default.svc.cluster.local. 5 IN CNAME x.below.default.svc.cluster.local.\n{soa()}",
    ),
    (
        "to-apex.default.svc.cluster.local. A",
        f"NOERROR\n to-apex.default.svc.cluster.local. 5 IN CNAME cluster.local.\n{soa()}",
    ),
    (
        "loop-a.default.svc.cluster.local. A",
        """SERVFAIL
        loop-a.default.svc.cluster.local. 5 IN CNAME loop-b.default.svc.cluster.local.
        loop-b.default.svc.cluster.local. 5 IN CNAME loop-a.default.svc.cluster.local.""",
    ),
    (
        "selfish.default.svc.cluster.local. A",
        "SERVFAIL\n selfish.default.svc.cluster.local. 5 IN CNAME selfish.default.svc.cluster.local.",
    ),
    (
        "selfish.default.svc.cluster.local. CNAME",
        "NOERROR\n selfish.default.svc.cluster.local. 5 IN CNAME selfish.default.svc.cluster.local.",
    ),
    # case: the question's is kept in owners and in the zone's own text, the API's in what stands left of it
    ("WEB.Default.SVC.Cluster.LOCAL. A", "NOERROR\n WEB.Default.SVC.Cluster.LOCAL. 5 IN A 10.96.0.10"),
    ("GONE.default.svc.Cluster.Local. A", f"NXDOMAIN\n{soa('Cluster.Local.')}"),
    ("Cluster.Local. SOA", f"NOERROR\n{soa_line('Cluster.Local.')}"),
    (
        "Cluster.Local. NS",
        """NOERROR
        Cluster.Local. 5 IN NS ns.dns.Cluster.Local.
        ;; ADDITIONAL
        ns.dns.Cluster.Local. 5 IN A 10.9.9.9
        ns.dns.Cluster.Local. 5 IN AAAA fd00:9::9""",
    ),
    ("NS.DNS.Cluster.Local. A", "NOERROR\n NS.DNS.Cluster.Local. 5 IN A 10.9.9.9"),
    (
        "_HTTP._TCP.V4.default.svc.cluster.local. SRV",
        f"NXDOMAIN\n{soa()}",
    ),
    (
        "_HTTP._TCP.PAIR.default.svc.Cluster.local. SRV",
        """NOERROR
        _HTTP._TCP.PAIR.default.svc.Cluster.local. 5 IN SRV 0 50 80 twin.pair.default.svc.Cluster.local.
        ;; ADDITIONAL
        twin.pair.default.svc.Cluster.local. 5 IN A 10.244.2.1
        twin.pair.default.svc.Cluster.local. 5 IN A 10.244.2.2""",
    ),
    ("Web-0.web.default.svc.cluster.local. A", "NOERROR\n Web-0.web.default.svc.cluster.local. 5 IN A 10.244.0.5"),
]


@pytest.mark.parametrize(("asked", "reply"), FORWARD, ids=[row[0] for row in FORWARD])
def test_forward(zone: Zone, asked: str, reply: str) -> None:
    assert ask(zone, asked) == expected(reply)


def arpa6(address: str) -> str:
    return dns.reversename.from_address(address).to_text()


REVERSE = [
    # a ClusterIP has one name, whoever else listens there
    ("10.0.96.10.in-addr.arpa. PTR", "NOERROR\n 10.0.96.10.in-addr.arpa. 5 IN PTR web.default.svc.cluster.local."),
    (
        "5.0.244.10.in-addr.arpa. PTR",
        "NOERROR\n 5.0.244.10.in-addr.arpa. 5 IN PTR web-0.web.default.svc.cluster.local.",
    ),
    ("2.1.244.10.in-addr.arpa. PTR", "NOERROR\n 2.1.244.10.in-addr.arpa. 5 IN PTR db-1.db.default.svc.cluster.local."),
    (
        "3.1.244.10.in-addr.arpa. PTR",
        """NOERROR
        3.1.244.10.in-addr.arpa. 5 IN PTR 10-244-1-3.also.default.svc.cluster.local.
        3.1.244.10.in-addr.arpa. 5 IN PTR 10-244-1-3.db.default.svc.cluster.local.""",
    ),
    ("9.1.244.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("1.6.244.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("2.6.244.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("1.1.1.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    # other types and the names between exist
    ("10.0.96.10.in-addr.arpa. A", f"NOERROR\n{soa('10.in-addr.arpa.')}"),
    ("0.96.10.in-addr.arpa. PTR", f"NOERROR\n{soa('10.in-addr.arpa.')}"),
    ("96.10.in-addr.arpa. PTR", f"NOERROR\n{soa('10.in-addr.arpa.')}"),
    ("97.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("6.244.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("1.10.0.96.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("010.0.96.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("256.0.96.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("web.96.10.in-addr.arpa. PTR", f"NXDOMAIN\n{soa('10.in-addr.arpa.')}"),
    ("10.in-addr.arpa. SOA", f"NOERROR\n{soa_line('10.in-addr.arpa.')}"),
    ("10.in-addr.arpa. PTR", f"NOERROR\n{soa('10.in-addr.arpa.')}"),
    (
        "10.in-addr.arpa. NS",
        """NOERROR
        10.in-addr.arpa. 5 IN NS ns.dns.10.in-addr.arpa.
        ;; ADDITIONAL
        ns.dns.10.in-addr.arpa. 5 IN A 10.9.9.9
        ns.dns.10.in-addr.arpa. 5 IN AAAA fd00:9::9""",
    ),
    ("ns.dns.10.in-addr.arpa. A", "NOERROR\n ns.dns.10.in-addr.arpa. 5 IN A 10.9.9.9"),
    # IPv6
    (f"{arpa6('fd00:96::10')} PTR", f"NOERROR\n {arpa6('fd00:96::10')} 5 IN PTR web.default.svc.cluster.local."),
    (
        f"{arpa6('fd00:244::1').upper()} PTR".replace("IP6.ARPA", "ip6.ARPA"),
        f"NOERROR\n {arpa6('fd00:244::1').upper()} 5 IN PTR db-0.db.default.svc.cluster.local.".replace(
            "IP6.ARPA", "ip6.ARPA"
        ),
    ),
    (
        f"{arpa6('2001:db8::')} PTR",
        f"NOERROR\n {arpa6('2001:db8::')} 5 IN PTR 2001-db8--0.db.default.svc.cluster.local.",
    ),
    (f"{arpa6('fd00:244::2')} PTR", f"NXDOMAIN\n{soa('ip6.arpa.')}"),
    (f"{arpa6('fd00:96::10')} AAAA", f"NOERROR\n{soa('ip6.arpa.')}"),
    (f"{arpa6('fd00:96::')[2 * 4 :]} PTR", f"NOERROR\n{soa('ip6.arpa.')}"),
    ("0.d.f.ip6.arpa. PTR", f"NOERROR\n{soa('ip6.arpa.')}"),
    ("1.d.f.ip6.arpa. PTR", f"NXDOMAIN\n{soa('ip6.arpa.')}"),
    ("g.d.f.ip6.arpa. PTR", f"NXDOMAIN\n{soa('ip6.arpa.')}"),
    ("10.d.f.ip6.arpa. PTR", f"NXDOMAIN\n{soa('ip6.arpa.')}"),
]


@pytest.mark.parametrize(("asked", "reply"), REVERSE, ids=[row[0] for row in REVERSE])
def test_reverse(zone: Zone, asked: str, reply: str) -> None:
    assert ask(zone, asked) == expected(reply)


def test_outside_the_zones(zone: Zone) -> None:
    for name in (
        "example.com. A",
        "local. A",
        ". NS",
        "1.0.0.127.in-addr.arpa. PTR",
        "xcluster.local. A",
        r"x\007cluster\005local. A",
    ):
        assert answer(zone, query(name).question) is None


@pytest.mark.parametrize("text", ["web.default.svc.cluster.local. CH A", "version.cluster.local. CH TXT"])
def test_other_classes_are_refused(zone: Zone, text: str) -> None:
    outcome = answer(zone, query(text).question)
    assert isinstance(outcome, Reply)
    assert shown(encode(outcome.message, query(text))) == "REFUSED"


# -- options

PODS: list[KubeObject] = [
    namespace("default"),
    namespace("other"),
    service("bare/web", "10.96.0.1", "80"),
    pod("default/p", "10.244.7.1 fd00:244::7"),
    pod("default/done", "10.244.7.2", phase="Succeeded"),
    pod("default/failed", "10.244.7.3", phase="Failed"),
    pod("default/going", "10.244.7.4", deleting=True),
    pod("default/waiting", "10.244.7.5", phase="Pending"),
]

POD_NAMES = [
    # mode, question, answer
    ("disabled", "10-244-7-1.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("disabled", "default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("disabled", "pod.cluster.local. A", f"NOERROR\n{soa()}"),
    ("insecure", "default.pod.cluster.local. A", f"NOERROR\n{soa()}"),
    ("insecure", "gone.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("insecure", "1-2-3-4.default.pod.cluster.local. A", "NOERROR\n 1-2-3-4.default.pod.cluster.local. 5 IN A 1.2.3.4"),
    ("insecure", "1-2-3-4.bare.pod.cluster.local. A", "NOERROR\n 1-2-3-4.bare.pod.cluster.local. 5 IN A 1.2.3.4"),
    ("insecure", "1-2-3-4.default.pod.cluster.local. AAAA", f"NOERROR\n{soa()}"),
    ("insecure", "1-2-3-4.default.pod.cluster.local. SRV", f"NOERROR\n{soa()}"),
    ("insecure", "1-2-3-4.gone.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("insecure", "1-2-3.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("insecure", "1-2-3-256.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("insecure", "web.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("insecure", "x.1-2-3-4.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    (
        "insecure",
        "2001-db8--1.default.pod.cluster.local. AAAA",
        "NOERROR\n 2001-db8--1.default.pod.cluster.local. 5 IN AAAA 2001:db8::1",
    ),
    (
        "insecure",
        "2001-DB8--1.default.pod.cluster.local. AAAA",
        "NOERROR\n 2001-DB8--1.default.pod.cluster.local. 5 IN AAAA 2001:db8::1",
    ),
    (
        "insecure",
        "1-2-3-4-5-6-7-8.default.pod.cluster.local. AAAA",
        "NOERROR\n 1-2-3-4-5-6-7-8.default.pod.cluster.local. 5 IN AAAA 1:2:3:4:5:6:7:8",
    ),
    ("insecure", "2001-db8--1.default.pod.cluster.local. A", f"NOERROR\n{soa()}"),
    # only what dashes spell: no scope, and no dots within the label
    ("insecure", "fe80--1%eth0.default.pod.cluster.local. AAAA", f"NXDOMAIN\n{soa()}"),
    ("insecure", "--ffff-1\\.2\\.3\\.4.default.pod.cluster.local. AAAA", f"NXDOMAIN\n{soa()}"),
    (
        "verified",
        "10-244-7-1.default.pod.cluster.local. A",
        "NOERROR\n 10-244-7-1.default.pod.cluster.local. 5 IN A 10.244.7.1",
    ),
    (
        "verified",
        "fd00-244--7.default.pod.cluster.local. AAAA",
        "NOERROR\n fd00-244--7.default.pod.cluster.local. 5 IN AAAA fd00:244::7",
    ),
    (
        "verified",
        "fd00-244-0-0-0-0-0-7.default.pod.cluster.local. AAAA",
        "NOERROR\n fd00-244-0-0-0-0-0-7.default.pod.cluster.local. 5 IN AAAA fd00:244::7",
    ),
    ("verified", "10-244-7-1.other.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("verified", "10-244-7-2.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    ("verified", "10-244-7-3.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
    (
        "verified",
        "10-244-7-4.default.pod.cluster.local. A",
        "NOERROR\n 10-244-7-4.default.pod.cluster.local. 5 IN A 10.244.7.4",
    ),
    (
        "verified",
        "10-244-7-5.default.pod.cluster.local. A",
        "NOERROR\n 10-244-7-5.default.pod.cluster.local. 5 IN A 10.244.7.5",
    ),
    ("verified", "10-244-7-9.default.pod.cluster.local. A", f"NXDOMAIN\n{soa()}"),
]


@pytest.mark.parametrize(("mode", "asked", "reply"), POD_NAMES, ids=[f"{r[0]}-{r[1]}" for r in POD_NAMES])
def test_pod_names(mode: str, asked: str, reply: str) -> None:
    zone = zone_of(*PODS, settings=config(pods=PodsMode(mode)))
    assert ask(zone, asked) == expected(reply)
