"""Replies as dig prints them."""

from __future__ import annotations

from dnsserver.digtext import dig_text
from dnsserver.encode import encode
from dnsserver.message import Edns, Message, Rcode
from tests.dns.notation import query, records


def test_layout() -> None:
    asked = query("_http._tcp.web.default.svc.cluster.local. SRV", edns=Edns(1232, do=True), query_id=7)
    message = Message(
        answer=records("_http._tcp.web.default.svc.cluster.local. 5 IN SRV 0 100 80 web.default.svc.cluster.local."),
        additional=records("web.default.svc.cluster.local. 5 IN A 10.0.0.1"),
        aa=True,
    )
    raw = encode(message, asked)
    assert dig_text(raw).splitlines() == [
        ";; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 7",
        ";; flags: qr aa rd; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 2",
        "",
        ";; OPT PSEUDOSECTION:",
        "; EDNS: version: 0, flags: do; udp: 1232",
        ";; QUESTION SECTION:",
        ";_http._tcp.web.default.svc.cluster.local.\t\tIN\tSRV",
        "",
        ";; ANSWER SECTION:",
        "_http._tcp.web.default.svc.cluster.local.\t5\tIN\tSRV\t0 100 80 web.default.svc.cluster.local.",
        "",
        ";; ADDITIONAL SECTION:",
        "web.default.svc.cluster.local.\t5\tIN\tA\t10.0.0.1",
        "",
        f";; MSG SIZE  rcvd: {len(raw)}",
    ]


def test_errors_are_named() -> None:
    errors = ((14, "not yet"), (4096, ""))
    text = dig_text(encode(Message(rcode=Rcode.SERVFAIL, errors=errors), query("a. A", edns=Edns(1232))))
    assert "status: SERVFAIL" in text
    assert "; EDE: 14 (Not Ready): (not yet)\n; EDE: 4096\n" in text


def test_without_edns() -> None:
    text = dig_text(encode(Message(rcode=Rcode.NXDOMAIN), query("a. A")))
    assert "OPT" not in text
    assert "ADDITIONAL: 0" in text
