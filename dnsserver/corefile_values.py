"""Words of a Corefile as values: durations, zones, addresses, networks, types, codes. And options of a plugin by name.

Knows the notations operators write (Go's durations, CIDRs for reverse zones). Must not know any plugin. Called by the
`corefile_*` parsers. Every function raises Invalid with the word, what is wrong and what to write.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from dnsserver import names
from dnsserver.corefile_model import Address, Network, Zones
from dnsserver.corefile_syntax import CorefileProblem, Directive, Invalid, Token
from dnsserver.regexes import compile_go
from dnsserver.rrtext import rcode_number, type_number

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """The remedy for an unknown word: the known one it resembles, or `otherwise`."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else otherwise


def counted(line: Directive, low: int, high: int | None = None) -> tuple[Token, ...]:
    """The arguments of `line`, `low` to `high` of them (None: any number)."""
    found = len(line.args)
    if found < low or (high is not None and found > high):
        if high == low:
            wanted = "no argument" if low == 0 else f"{low} argument{'s' * (low > 1)}"
        else:
            wanted = f"at least {low}" if high is None else f"{low} to {high} arguments"
        extra = line.args[high] if high is not None and found > high else line.name
        raise Invalid(
            extra,
            f"'{line.name.text}' takes {wanted}, found {found}",
            "add what is missing" if found < low else "remove the rest",
        )
    return line.args


def no_body(line: Directive) -> None:
    """Nothing between braces."""
    if line.body:
        raise Invalid(line.body[0].name, f"'{line.name.text}' has no options", "remove the block")


def options(
    line: Directive,
    known: Mapping[str, Callable[[Directive], None]],
    problems: list[CorefileProblem],
    removed: Mapping[str, str] | None = None,
) -> None:
    """Call the handler of each option between the braces of `line`; what is wrong with one does not hide the next.

    Args:
        line: the plugin.
        known: handlers by option name.
        problems: where to add.
        removed: words CoreDNS knew or knows and this server does not, with what to do instead.
    """
    for option in line.body or ():
        name = option.name.text
        handler = known.get(name)
        try:
            if handler is None:
                _unknown_option(line, option, known, removed or {})
            elif option.body is not None:
                _no_braces(option)
            else:
                handler(option)
        except Invalid as invalid:
            problems.append(invalid.problem)


def _unknown_option(line: Directive, option: Directive, known: Iterable[str], removed: Mapping[str, str]) -> None:
    name, plugin = option.name.text, line.name.text
    if name in removed:
        raise Invalid(option.name, f"'{name}' is not supported in '{plugin}'", removed[name])
    listed = ", ".join(sorted(known))
    remedy = nearest(name, known, f"its options are {listed}" if listed else "it has no options")
    raise Invalid(option.name, f"'{name}' is no option of '{plugin}'", remedy)


def _no_braces(option: Directive) -> None:
    raise Invalid(option.name, f"option '{option.name.text}' has no block of its own", "remove its braces")


def choice(token: Token, allowed: Sequence[str], what: str) -> str:
    """`token` as one of `allowed`."""
    if token.text not in allowed:
        raise Invalid(
            token, f"'{token.text}' is no {what}", nearest(token.text, allowed, "one of " + ", ".join(allowed))
        )
    return token.text


def integer(token: Token, low: int, high: int, what: str) -> int:
    """`token` as a whole number within bounds."""
    try:
        value = int(token.text)
    except ValueError:
        raise Invalid(token, f"{what} '{token.text}' is no whole number", f"write {low} to {high}") from None
    if not low <= value <= high:
        raise Invalid(token, f"{what} {value} is out of range", f"write {low} to {high}")
    return value


def duration(token: Token, what: str, low: float = 0.0, high: float = 10 * 365 * 86400.0) -> float:
    """`token` as seconds; written as Go writes durations (`5s`, `1m30s`, `250ms`)."""
    text = token.text
    if text == "0":
        value = 0.0
    else:
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            hint = f"write {text}s" if text.isdigit() else "write it with its unit, as in 5s, 1m30s or 250ms"
            raise Invalid(token, f"{what} '{text}' is no duration", hint)
        value = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not low <= value <= high:
        raise Invalid(token, f"{what} {text} is out of range", f"write {_seconds(low)} to {_seconds(high)}")
    return value


def _seconds(value: float) -> str:
    return f"{value:g}s"


def zones_of(tokens: Iterable[Token]) -> Zones:
    """The zones the words name; a CIDR stands for its reverse zones."""
    found: dict[bytes, None] = {}
    for token in tokens:
        try:
            found.update(dict.fromkeys(names.zones_of(token.text)))
        except ValueError as error:
            raise Invalid(token, f"'{token.text}' is no zone: {error}", "write a domain name or a CIDR") from None
    return tuple(found)


def name_of(token: Token) -> bytes:
    """The domain name `token` is, lower case."""
    try:
        return names.from_text(token.text).lower()
    except ValueError as error:
        raise Invalid(token, f"'{token.text}' is no domain name: {error}", "write a domain name") from None


def fallthrough(line: Directive) -> Zones:
    """The zones of a `fallthrough` option: the root, that is all, where none are named."""
    return zones_of(line.args) or (names.ROOT,)


def address(token: Token, port: int) -> Address:
    """`token` as host and port; either may be missing."""
    host, number = split_port(token.text)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if number is None and ":" in host and not _is_address(host):
        raise Invalid(token, f"'{token.text}' is no address", "write HOST:PORT or :PORT")
    if host.isdigit():  # which the system would take for the address 0.0.31.144
        raise Invalid(token, f"'{token.text}' is no address", f"write :{host}")
    if number is not None and not 0 < number < 65536:
        raise Invalid(token, f"port {number} is out of range", "write 1 to 65535")
    return Address(host, port if number is None else number)


def split_port(text: str) -> tuple[str, int | None]:
    """What precedes a `:PORT` at the end of `text`, and the port; the whole and None without one.

    `2001:db8::1` would be ambiguous: an address in full has no port unless it stands in brackets.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or not (tail.isascii() and tail.isdigit()) or _is_address(text):
        return text, None
    return head, int(tail.lstrip("0")[:6] or 0)  # six digits are out of range, too


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def ip_address(token: Token) -> str:
    """`token` as an address in canonical text."""
    try:
        return str(ipaddress.ip_address(token.text))
    except ValueError:
        raise Invalid(token, f"'{token.text}' is no IP address", "write it as 10.96.0.10 or fd00::a") from None


def network(token: Token) -> Network:
    """`token` as a network; an address alone is a network of one."""
    try:
        return ipaddress.ip_network(token.text, strict=False)
    except ValueError:
        raise Invalid(token, f"'{token.text}' is no network", "write it as 10.0.0.0/8 or fd00::/64") from None


def record_type(token: Token) -> int:
    """The number of the record type `token` names (`A`, `TYPE65`)."""
    try:
        return type_number(token.text)
    except ValueError as error:
        raise Invalid(token, f"'{token.text}' is no record type", str(error)) from None


def response_code(token: Token) -> int:
    """The number of the response code `token` names."""
    try:
        return rcode_number(token.text)
    except ValueError as error:
        raise Invalid(token, f"'{token.text}' is no response code", str(error)) from None


def pattern(token: Token, *, ignore_case: bool = False) -> re.Pattern[str]:
    """`token` as a regular expression, in Go's notation."""
    try:
        return compile_go(token.text, ignore_case=ignore_case)
    except ValueError as error:
        raise Invalid(token, f"regular expression '{token.text}': {error}", "correct the expression") from None
