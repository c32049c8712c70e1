"""What plugins are written in: Go's regular expressions and templates, records in zone-file notation."""

# ruff: noqa: E501

from __future__ import annotations

import re

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsserver import rrtext
from dnsserver.ambiguity import is_exponential
from dnsserver.message import RR
from dnsserver.regexes import compile_go
from dnsserver.templates import compile_template

# -- regular expressions


@pytest.mark.parametrize(
    ("expression", "text", "groups"),
    [
        (r"(.*)-(us)\.test", "a-us.test.", ("a", "us")),
        (r"^(?P<name>[^.]+)[.]", "web.test.", ("web",)),
        (r"^(?<name>[^.]+)[.]", "web.test.", ("web",)),
        (r"(?i)^WEB", "web.test.", ()),
        (r"(?is)^W.B", "w\nb", ()),
        (r"^[[:alpha:]_]+$", "abc_", ()),
        (r"^[^[:digit:]]+$", "abc", ()),
        (r"\Qa.b\E+", "a.bbb", ()),
        (r"^\d+\z", "123", ()),
        (r"a{2,3}b", "aab", ()),
        (r"(?:a|b)c", "bc", ()),
        (r"[]a]x", "]x", ()),
        (r"[[]x", "[x", ()),
        (r".*?x", "ax", ()),
    ],
)
def test_gos_expressions(expression: str, text: str, groups: tuple[str, ...]) -> None:
    found = compile_go(expression).search(text)
    assert found is not None
    assert found.groups() == groups


def test_letters_and_digits_are_those_of_ascii() -> None:
    assert compile_go(r"^\w+$").search("é") is None
    assert compile_go(r"^\d+$").search("٣") is None


@pytest.mark.parametrize(
    "expression",
    ["(", "[a", "a**", "(?=a)", "(?<!a)b", r"(a)\1", "a*+", "(?P=x)", r"\pL", r"\Z", "(?-i)a", "[[:foo:]]", "a{2,1}"],
)
def test_what_go_or_python_cannot_say_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        compile_go(expression)


EXPONENTIAL = [
    "(a+)+",
    "(a*)*b",
    "(a|aa)+$",
    "([a-z]+)*x",
    r"(\w+\s?)+$",
    "(x+x+)+y",
    "(.*a)*b",
    "(a|b|ab)*c",
    "((a+)b?)+c",
    "(a?){30}a",
]
LINEAR = [
    r"([a-z0-9-]+\.)+example", r"(.*)-(us-west-1)\.example\.org", r"^ip-([0-9]+)-([0-9]+)$", "(a|b)*c", "(?:ab|cd)+", "a*a*a*",
    r"(([a-z0-9]|[a-z0-9][a-z0-9\-]*[a-z0-9])\.)*x", "(a{1,3}b)+", r"([0-9a-f]\.){32}ip6\.arpa", "(foo|bar)?(baz)*", ".*.*",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPONENTIAL)
def test_expressions_that_would_take_for_ever_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="exponential"):
        compile_go(expression)


@pytest.mark.parametrize("expression", LINEAR)
def test_common_expressions_are_not(expression: str) -> None:
    compile_go(expression)


_PIECES = st.recursive(
    st.sampled_from(["a", "b", "ab", "[ab]", "."]),
    lambda inner: st.one_of(
        st.builds("({})*".format, inner),
        st.builds("({})+".format, inner),
        st.builds("({})?".format, inner),
        st.builds("({}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
    ),
    max_leaves=6,
)


@given(_PIECES, st.text("ab", min_size=2, max_size=3))
def test_what_is_accepted_comes_to_an_end_on_long_text(expression: str, unit: str) -> None:
    """An exponential expression would take years here: the test is that it returns."""
    pattern = re.compile(f"^(?:{expression})c", re.ASCII)
    if is_exponential(pattern):
        return
    for text in ("a" * 60, "b" * 60, unit * 30, "ab" * 30):
        assert pattern.search(text) is None


# -- templates

DATA = {
    "Zone": "test.",
    "Name": "web.test.",
    "Class": "IN",
    "Type": "A",
    "Match": ["web.test.", "web", "1f"],
    "Group": {"name": "web", "0": "web.test."},
    "Remote": "192.0.2.7",
    "Message": {"Id": 7},
    "Question": {"Name": "web.test.", "Qtype": 1, "Qclass": 1},
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{ .Name }} {{.Type}}", "web.test. A"),
        ("{{ .Group.name }}.x", "web.x"),
        ("{{ index .Match 1 }}", "web"),
        ('{{ index .Group "name" }}', "web"),
        ('{{ parseInt (index .Match 2) 16 32 | printf "%03d" }}', "031"),
        ("{{ index .Match 2 | printf `%s-%s` .Name }}", "web.test.-1f"),
        ('{{ printf "%d.%x.%X.%v%%" 10 255 255 .Type }}', "10.ff.FF.A%"),
        ("a {{- .Type -}} b", "aAb"),
        ("{{/* nothing */}}x", "x"),
        ('{{ if eq .Type "A" "AAAA" }}yes{{ else }}no{{ end }}', "yes"),
        ('{{ if ne .Type "A" }}1{{ else if gt (len .Match) 2 }}2{{ else }}3{{ end }}', "2"),
        ("{{ if and true (not false) }}x{{ end }}", "x"),
        ("{{ .Match }}", "[web.test. web 1f]"),
        ("{{ .Question.Qtype }} {{ .Message.Id }}", "1 7"),
        ("{{ .Group.none }}", "<no value>"),
    ],
)
def test_templates(template: str, expected: str) -> None:
    assert compile_template(template).expand(DATA) == expected


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ .Nam }}", "no field '.Nam'"),
        ("{{ foo 1 }}", "no function 'foo'"),
        ("{{ .Name", "never closed"),
        ("{{ }}", "an action is empty"),
        ("{{ index .Match }}", "'index' takes 2 to 9 arguments, found 1"),
        ("{{ if .Name }}x", "'if' without 'end'"),
        ("x{{ end }}", "'end' or 'else' without 'if'"),
        ("{{ (.Name }}", "'(' is never closed"),
        ("{{ .Name .Type }}", "'.Type' cannot stand here"),
        ("{{ $x := 1 }}", "is not supported"),
        ("{{ .Name | .Type }}", "only a function can follow"),
        ("{{ " + "(" * 3000 + ".Name" + ")" * 3000 + " }}", "more than 50 parentheses"),
        ("{{ if .Name }}" * 2000 + "x" + "{{ end }}" * 2000, "more than 200 actions"),
    ],
)
def test_broken_templates(template: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        compile_template(template)


@pytest.mark.parametrize(
    "template", ["{{ index .Match 9 }}", "{{ parseInt .Name 10 32 }}", '{{ printf "%d" .Name }}', "{{ lt .Name 1 }}"]
)
def test_templates_that_fail_on_this_text(template: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        compile_template(template).expand(DATA)


# -- records

RECORDS = [
    "www.test. 300 IN A 192.0.2.1",
    "www.test. 300 IN AAAA 2001:db8::1",
    "www.test. 300 IN CNAME Other.test.",
    "www.test. 300 IN NS ns.test.",
    "1.2.0.192.in-addr.arpa. 300 IN PTR www.test.",
    "www.test. 300 IN MX 10 mail.test.",
    "_http._tcp.test. 300 IN SRV 0 5 80 www.test.",
    "test. 300 IN SOA ns.test. root.test. 1 7200 1800 86400 60",
    'www.test. 300 IN TXT "two words" "a \\"quote\\" and \\\\" "\\007"',
    'www.test. 300 IN HINFO "cpu" "os"',
    'test. 300 IN CAA 0 issue "ca.test"',
    "www.test. 300 IN DNAME other.test.",
    'version.bind. 0 CH TXT "x"',
    "www.test. 300 IN TYPE65280 \\# 3 010203",
    "we\\.ird\\032name.test. 0 IN A 192.0.2.1",
]


@pytest.mark.parametrize("line", RECORDS)
def test_records_to_text_and_back(line: str) -> None:
    assert rrtext.to_text(rrtext.from_text(line)) == line


@pytest.mark.parametrize("line", [line for line in RECORDS if "weird" not in line])
def test_records_as_another_implementation_reads_them(line: str) -> None:
    record = rrtext.from_text(line)
    rdata = dns.rdata.from_text(
        dns.rdataclass.RdataClass(record.rclass), dns.rdatatype.RdataType(record.type), line.split(" ", 4)[4]
    )
    assert rdata.to_wire() == record.rdata


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.test A 192.0.2.1", "a.test. 3600 IN A 192.0.2.1"),
        ("a.test. 5 A 192.0.2.1 ; comment", "a.test. 5 IN A 192.0.2.1"),
        ("a.test. IN 5 A 192.0.2.1", "a.test. 5 IN A 192.0.2.1"),
        ("a.test. 5 IN TXT unquoted", 'a.test. 5 IN TXT "unquoted"'),
        ("test. 5 IN SOA ns.test. root.test. ( 1 2 3 4 5 )", "test. 5 IN SOA ns.test. root.test. 1 2 3 4 5"),
        ("a.test. 5 IN A \\# 4 c0000201", "a.test. 5 IN A 192.0.2.1"),
    ],
)
def test_liberties_of_zone_files(line: str, expected: str) -> None:
    assert rrtext.to_text(rrtext.from_text(line)) == expected


@pytest.mark.parametrize(
    "line",
    ["", "a.test.", "a.test. 5 IN", "a.test. 5 IN A", "a.test. 5 IN A 192.0.2.300", "a.test. 5 IN FOO x", "a.test. 5 IN MX x y",
     "a.test. 5 IN MX 99999 y", 'a.test. 5 IN TXT "open', "a.test. 9999999999 IN A 192.0.2.1", "a..test. A 192.0.2.1",
     "a.test. 5 IN TYPE65280 x", "a.test. 5 IN A \\# 3 c0000201", "a.test. 5 IN TXT " + "x" * 256],
)  # fmt: skip
def test_what_is_no_record(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        rrtext.from_text(line)


@given(st.integers(0, 65535), st.binary(max_size=60))
def test_any_data_has_a_text(rtype: int, rdata: bytes) -> None:
    text = rrtext.to_text(RR(b"\x01a\0", rtype, 1, 5, rdata))
    assert text.startswith(f"a. 5 IN {rrtext.type_name(rtype)}")


@given(st.binary(max_size=60))
def test_unknown_types_come_back(rdata: bytes) -> None:
    record = RR(b"\x01a\0", 65280, 1, 5, rdata)
    assert rrtext.from_text(rrtext.to_text(record)) == record
