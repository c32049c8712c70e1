r"""Records as zone-file lines and back, by ours or by dnslib; what is wrong is refused with a reason."""

from __future__ import annotations

import pytest

from dnsserver import rrtext

THERE_AND_BACK = [
    "x. 5 IN A 1.2.3.4",
    "x. 5 IN AAAA 2001:db8::1",
    r"a\.b.x. 5 IN CNAME c\.d.y.",
    'x. 5 IN TXT "say \\"hi\\"" "\\200"',
    "x. 5 IN SOA ns.x. hostmaster.x. 1 7200 1800 86400 5",
    'x. 5 IN CAA 0 issue "letsencrypt.org"',
    "x. 5 IN DS 1 8 2 ABCD",
    'x. 5 IN NAPTR 10 20 "u" "sip" "!^.*$!x!" .',
    "x. 5 IN TLSA 3 1 1 ABCD",
    "x. 5 IN SSHFP 1 1 ABCD",
    "x. 5 IN HTTPS 1 . alpn=h2",
    r"x. 5 IN TYPE65280 \# 3 010203",
]


@pytest.mark.parametrize("line", THERE_AND_BACK)
def test_there_and_back(line: str) -> None:
    assert rrtext.to_text(rrtext.from_text(line)) == line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x. A 1.2.3", "1.2.3"),
        ("x. A 1.2.3.4 5", "2 fields, expected 1"),
        ("x. AAAA 1::2::3", "1::2::3"),
        ("x. DS 1 8 2", "3 fields, expected 4"),
        ("x. DS 1 8 2 zz", "does not fit type DS"),
        ("x. SVCB 1 . alpn=h2", "RFC 3597"),
        (r"x. TYPE65280 \# 4 010203", "length"),
    ],
)
def test_what_does_not_fit_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace(".", r"\.")):
        rrtext.from_text(line)


@pytest.mark.parametrize(("rtype", "data"), [("DS", b"\1"), ("SOA", b"\0\0"), ("A", b"\1\2"), ("CAA", b"")])
def test_data_that_does_not_fit_its_type_is_shown_as_hex(rtype: str, data: bytes) -> None:
    assert rrtext.rdata_to_text(rrtext.TYPES[rtype], data) == f"\\# {len(data)} {data.hex()}".rstrip()
