"""Names: text and wire form, limits, suffixes, reverse names, zones from CIDRs."""

from __future__ import annotations

import ipaddress

import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsserver import names

TEXTS = [
    (".", b"\0"),
    ("", b"\0"),
    ("example.org.", b"\7example\3org\0"),
    ("example.org", b"\7example\3org\0"),
    ("Web.Example.", b"\3Web\7Example\0"),
    (r"a\.b.c.", b"\3a.b\1c\0"),
    (r"a\.", b"\2a.\0"),
    (r"\255\000.x.", b"\2\xff\0\1x\0"),
    (r"\\.x.", b"\1\\\1x\0"),
    ("_http._tcp.x.", b"\5_http\4_tcp\1x\0"),
    ("*.x.", b"\1*\1x\0"),
]


@pytest.mark.parametrize(("text", "wire"), TEXTS)
def test_from_text(text: str, wire: bytes) -> None:
    assert names.from_text(text) == wire
    assert dns.name.from_text(text or ".").to_wire() == wire


@pytest.mark.parametrize(
    "text",
    ["a..b", "..", ".a", "a" * 64, ".".join(["a" * 63] * 4), "ä.de", "a\\", r"\256.x", r"\1.x", r"\25", r"\1a2.x"],
)
def test_refused_text(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for people; which one is in `from_text`
        names.from_text(text)


def test_the_longest_name() -> None:
    text = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert len(names.from_text(text)) == 255
    with pytest.raises(ValueError, match="256 bytes; at most 255"):
        names.from_text(".".join(["a" * 63] * 3 + ["a" * 62]))


LABELS = st.lists(st.binary(min_size=1, max_size=20), max_size=8)


@given(LABELS)
def test_text_and_wire_are_inverse(labels: list[bytes]) -> None:
    name = names.join(labels)
    assert names.labels(name) == labels
    text = names.to_text(name)
    assert text.isascii()
    assert names.from_text(text) == name
    assert dns.name.from_text(text).labels[:-1] == tuple(labels)


@given(LABELS, LABELS)
def test_suffixes_match_whole_labels(left: list[bytes], right: list[bytes]) -> None:
    whole, zone = names.join(left + right), names.join(right)
    assert names.is_below(whole, zone)
    assert names.is_below(whole, names.ROOT)
    other = names.join(left)
    expected = dns.name.Name([*left, b""]).is_subdomain(dns.name.Name([*right, b""]))
    assert names.is_below(other.lower(), zone.lower()) is expected


@pytest.mark.parametrize(
    ("name", "zone", "below"),
    [
        ("a.cluster.local.", "cluster.local.", True),
        ("cluster.local.", "cluster.local.", True),
        ("xcluster.local.", "cluster.local.", False),
        (r"x\007cluster\005local.", "cluster.local.", False),
        ("local.", "cluster.local.", False),
    ],
)
def test_is_below(name: str, zone: str, below: bool) -> None:
    assert names.is_below(names.from_text(name), names.from_text(zone)) is below


def test_longest_suffix() -> None:
    zones = [names.from_text(z) for z in ("org", "a.example.org", "example.org", "b")]
    assert names.longest_suffix(names.from_text("x.a.example.org"), zones) == names.from_text("a.example.org")
    assert names.longest_suffix(names.from_text("ba.example.org"), zones) == names.from_text("example.org")
    assert names.longest_suffix(names.from_text("example.com"), zones) is None


@given(st.ip_addresses())
def test_reverse_names_are_those_of_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    text = str(address)
    name = names.reverse_name(text)
    assert names.to_text(name) == address.reverse_pointer + "."
    found = names.parse_reverse(name)
    assert found is not None
    assert found.address is not None
    assert ipaddress.ip_address(found.address) == address
    assert found.bits == address.max_prefixlen
    shorter = names.parse_reverse(name[1 + name[0] :])
    assert shorter is not None
    assert shorter.address is None
    assert shorter.prefix == int(address) >> (8 if address.version == 4 else 4)


@pytest.mark.parametrize(
    "text",
    ["1.2.3.4.5.in-addr.arpa", "256.in-addr.arpa", "01.in-addr.arpa", "a.in-addr.arpa", "-1.in-addr.arpa", "1.arpa",
     "10.ip6.arpa", "g.ip6.arpa", ".".join(["1"] * 33) + ".ip6.arpa", "example.org", "xin-addr.arpa"],
)  # fmt: skip
def test_no_reverse_name(text: str) -> None:
    assert names.parse_reverse(names.from_text(text)) is None


CIDRS = [
    ("cluster.local", ["cluster.local."]),
    ("Cluster.LOCAL.", ["cluster.local."]),
    ("10.0.0.0/8", ["10.in-addr.arpa."]),
    ("10.1.2.3/16", ["1.10.in-addr.arpa."]),
    ("10.96.0.0/15", ["96.10.in-addr.arpa.", "97.10.in-addr.arpa."]),
    ("10.0.0.4/31", ["4.0.0.10.in-addr.arpa.", "5.0.0.10.in-addr.arpa."]),
    ("0.0.0.0/0", ["in-addr.arpa."]),
    ("fd00::/8", ["d.f.ip6.arpa."]),
    ("fd00:10::/31", ["0.1.0.0.0.0.d.f.ip6.arpa.", "1.1.0.0.0.0.d.f.ip6.arpa."]),
    ("::/0", ["ip6.arpa."]),
]


@pytest.mark.parametrize(("text", "zones"), CIDRS)
def test_zones_of(text: str, zones: list[str]) -> None:
    assert [names.to_text(zone) for zone in names.zones_of(text)] == zones


def test_a_cidr_off_the_boundary_is_all_zones_of_the_next() -> None:
    zones = names.zones_of("10.0.0.0/17")
    assert len(zones) == 128
    assert names.to_text(zones[127]) == "127.0.10.in-addr.arpa."


@pytest.mark.parametrize("text", ["10.0.0.0/33", "a/8", "/", "10.0.0/8"])
def test_no_cidr(text: str) -> None:
    with pytest.raises(ValueError, match="neither a domain name nor a CIDR"):
        names.zones_of(text)


@given(st.ip_addresses())
def test_addresses_as_numbers(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert names.address_int(str(address)) == (address.version, int(address))


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4.5", "01.2.3.4", "256.1.1.1", " 1.2.3.4", "1.2.3.-4", "a.b.c.d", "::g"]
)
def test_what_is_no_address_has_no_number(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - documented so
        names.address_int(text)
