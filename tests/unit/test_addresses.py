"""Canonical addresses and CIDRs: how the API server and kube-proxy read them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubecore.addresses import canonical_cidr, canonical_ip, family_of
from tests.strategies import steady


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("010.000.00.1", "10.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("FD00:0:0::0001", "fd00::1"),
        ("2001:db8::", "2001:db8::"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("10.0.0", None),
        ("10.0.0.256", None),
        ("10.0.0.1 ", None),
        ("10.0.0.1\n", None),
        ("\u0661\u0660.0.0.1", None),
        ("fe80::1%eth0", None),
        ("1:2:3:4:5:6:7", None),
        ("None", None),
        ("", None),
    ],
)
def test_address(text: str, canonical: str | None) -> None:
    assert canonical_ip(text) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" 192.0.2.0/24 ", "192.0.2.0/24"),
        ("192.0.2.77/24", "192.0.2.0/24"),
        ("010.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00:0::7/64", "fd00::/64"),
        ("192.0.2.1", None),
        ("192.0.2.0/33", None),
        ("192.0.2.0/255.255.255.0", None),
        ("192.0.2.0/", None),
        ("192.0.2.0/+8", None),
        ("::ffff:10.0.0.0/104", None),
    ],
)
def test_cidr(text: str, canonical: str | None) -> None:
    assert canonical_cidr(text) == canonical


@steady
@given(st.ip_addresses())
def test_equal_addresses_are_equal_strings(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if address.version == 6 and address.ipv4_mapped:
        return
    assert canonical_ip(address.exploded) == str(address)
    assert family_of(str(address)) == address.version


@steady
@given(st.text(max_size=40))
def test_any_text_is_an_address_or_none(text: str) -> None:
    for canonical in (canonical_ip(text), canonical_cidr(text)):
        if canonical is not None:
            ipaddress.ip_interface(canonical)
