"""Values of configuration fields and flags: text or YAML in, checked Python values out.

Knows: Go durations, addresses, CIDRs, listening addresses and what is wrong with a bad one. Must not know: which field
it is, files. Called by `configfile` for every field and flag.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from math import isfinite
from typing import Any, TypeVar

from ipvsproxy.config import Bind, LocalMode, NodePortAddresses
from ipvsproxy.model import Scheduler, ServiceFlag
from ipvsproxy.scheduling import SCHEDULER_FLAGS, SCHEDULERS
from kubecore.addresses import canonical_cidr, canonical_ip, family_of

T = TypeVar("T")
Parser = Callable[[Any], Any]

_UNIT_S = {"h": 3600.0, "ms": 1e-3, "m": 60.0, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ns": 1e-9, "s": 1.0}
"""`ms` before `m`, for a pattern is made of it. Microseconds have the micro sign or the Greek letter."""
_DURATION_PART = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(_UNIT_S)})", re.ASCII)
_IS_DURATION = re.compile(rf"([+-]?)((?:{_DURATION_PART.pattern})+)", re.ASCII).fullmatch
MAX_DURATION_S = 2**63 / 1e9
"""Go counts nanoseconds in 64 bits: 292 years."""
MAX_KERNEL_TIMEOUT_S = (2**31 - 1) // 100
"""The kernel counts a timeout's jiffies in 31 bits, at 100 a second or more: 248 days."""
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_IS_INTERFACE = re.compile(r"[0-9A-Za-z_.:@-]{1,15}").fullmatch


class BadValue(ValueError):  # noqa: N818 - says what it is
    """A value that cannot be used: why, and what to write instead."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def nearest(word: str, known: list[str]) -> str:
    """`did you mean "x"?`, or the known words if none is near."""
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in get_close_matches(word.lower(), lower, 1)]
    near = near or [k for k in known if word and k.lower().startswith(word.lower())]
    return f'did you mean "{near[0]}"?' if near else f"known are {', '.join(sorted(known))}"


def text(value: Any) -> str:
    """Plain text."""
    if not isinstance(value, str):
        raise BadValue(f"{value!r} is not text", "put it in quotes")
    return value.strip()


def boolean(value: Any) -> bool:
    """True or false; a flag's text too, as Go's strconv.ParseBool reads it."""
    if isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if not isinstance(value, bool):
        raise BadValue(f"{value!r} is neither true nor false", "write true or false")
    return value


def integer(low: int, high: int) -> Parser:
    """A parser of whole numbers within `low` and `high`."""

    def parse(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue(f"{value!r} is not a whole number", f"write a number from {low} to {high}")
        if not low <= value <= high:
            raise BadValue(f"{value} is out of range", f"write a number from {low} to {high}")
        return value

    return parse


def number(value: Any) -> float:
    """A number."""
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadValue(f"{value!r} is not a number", "write a number such as 5 or 0.5") from None
    if isinstance(value, bool) or not isfinite(parsed):
        raise BadValue(f"{value!r} is not a number", "write a number such as 5 or 0.5")
    return parsed


def duration_s(value: Any) -> float:
    """Seconds of a Go duration such as 1h30m, 250ms or 0; never negative. Source: Go's time.ParseDuration."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    match = _IS_DURATION(value) if isinstance(value, str) else None
    if match is None:
        if value in ("0", "+0", "-0"):
            return 0.0
        raise BadValue(f"{value!r} is not a duration", 'write a number and a unit, such as "30s", "1m30s" or "24h"')
    sign, parts = match.group(1, 2)
    seconds = sum(float(n) * _UNIT_S[unit] for n, unit in _DURATION_PART.findall(parts))
    if sign == "-" and seconds:
        raise BadValue(f"{value!r} is negative", "write a duration of 0 or more")
    if seconds >= MAX_DURATION_S:
        raise BadValue(f"{value!r} is longer than a duration can be", "write a shorter one")
    return seconds


def positive_duration_s(value: Any) -> float:
    """As `duration_s`, more than 0."""
    seconds = duration_s(value)
    if not seconds:
        raise BadValue(f"{value!r} is not more than 0", 'write a duration such as "30s"')
    return seconds


def whole_seconds(value: Any) -> int:
    """A duration cut to whole seconds, as the kernel takes them; less than one becomes one, not "leave it"."""
    seconds = duration_s(value)
    if seconds > MAX_KERNEL_TIMEOUT_S:
        raise BadValue(
            f"{value!r} is longer than a timeout of the kernel can be", f"write at most {MAX_KERNEL_TIMEOUT_S // 3600}h"
        )
    return max(1, int(seconds)) if seconds else 0


def feature_gates(value: Any) -> dict[str, bool]:
    """Gates by name, of a mapping or of a flag's `A=true,B=false`."""
    if isinstance(value, str):
        value = dict(item.strip().partition("=")[::2] for item in value.split(",") if item.strip())
    if not isinstance(value, dict):
        raise BadValue(f"{value!r} is not a mapping of feature gates", "write one gate a line, as Name: true")
    return {str(name): boolean(given) for name, given in value.items()}


def address(value: Any) -> str:
    """A canonical IP address."""
    ip = canonical_ip(text(value))
    if ip is None:
        raise BadValue(f"{value!r} is not an IP address", 'write one such as "192.0.2.10"')
    return ip


def bind(default_port: int) -> Parser:
    """A parser of IP:port, [IPv6]:port, an IP alone, or :port, which is every address."""

    def parse(value: Any) -> Bind:
        given = text(value)
        bare = canonical_ip(given)
        if bare is not None:
            return Bind(bare, default_port)
        host, _, port = given.rpartition(":")
        host = host or "0.0.0.0"
        ip = canonical_ip(host.removeprefix("[").removesuffix("]"))
        if ip is None or (":" in ip and not host.startswith("[")):
            raise BadValue(f"{given!r} is not an IP address and port", f'write it as "0.0.0.0:{default_port}"')
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise BadValue(f"{port!r} is not a port", "write a number from 1 to 65535")
        return Bind(ip, int(port))

    return parse


def cidrs(value: Any) -> tuple[str, ...]:
    """Canonical CIDRs of a list, or of a flag's comma-separated text."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise BadValue(f"{value!r} is not a list of CIDRs", 'write a list such as ["10.0.0.0/8"]')
    found = []
    for item in items:
        cidr = canonical_cidr(item) if isinstance(item, str) else None
        if cidr is None:
            raise BadValue(f"{item!r} is not a CIDR", 'write an address and a length, such as "10.0.0.0/8"')
        found.append(cidr)
    return tuple(found)


def cluster_cidrs(value: Any) -> tuple[str, ...]:
    """One CIDR, or one of each family, separated by a comma."""
    if value == "":
        return ()
    found = cidrs(text(value))
    if len(found) > 2 or (len(found) == 2 and family_of(found[0]) == family_of(found[1])):
        raise BadValue(f"{value!r} is not one CIDR or a dual-stack pair", "give at most one CIDR of each family")
    return found


def node_port_addresses(value: Any) -> NodePortAddresses:
    """CIDRs, or the single word primary."""
    items = value.split(",") if isinstance(value, str) else value
    if items == [""]:
        return NodePortAddresses()
    if isinstance(items, list) and "primary" in items:
        if len(items) > 1:
            raise BadValue('"primary" stands beside other values', 'write "primary" alone, or CIDRs only')
        return NodePortAddresses(primary=True)
    return NodePortAddresses(cidrs=cidrs(items))


def interface(value: Any) -> str:
    """An interface name or prefix; empty is unset."""
    name = text(value)
    if name and not _IS_INTERFACE(name):
        raise BadValue(f"{name!r} is not an interface name", "at most 15 letters, digits and any of _ . : @ -")
    return name


def mode(value: Any) -> str:
    """ipvs, or empty."""
    name = text(value)
    if name not in {"", "ipvs"}:
        raise BadValue(
            f'"{name}" is not what this proxy does',
            'set mode: "ipvs", or run kube-proxy on this node',
        )
    return name


def local_mode(value: Any) -> LocalMode:
    """One of kube-proxy's detectLocalModes; empty is ClusterCIDR."""
    name = text(value)
    if not name:
        return LocalMode.CLUSTER_CIDR
    known = [m.value for m in LocalMode]
    if name not in known:
        raise BadValue(f'"{name}" is not known', nearest(name, known))
    return LocalMode(name)


def scheduler(value: Any) -> Scheduler:
    """The scheduler of that name; empty is rr."""
    name = text(value)
    if not name:
        return Scheduler.RR
    if name not in SCHEDULERS:
        raise BadValue(f'there is no IPVS scheduler "{name}"', nearest(name, list(SCHEDULERS)))
    return SCHEDULERS[name]


def scheduler_flags(value: Any) -> ServiceFlag:
    """The flags named in a list or comma-separated text."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise BadValue(f"{value!r} is not a list of scheduler flags", "write a list such as [mh-port]")
    flags = ServiceFlag.NONE
    for name in names:
        if not isinstance(name, str) or name not in SCHEDULER_FLAGS:
            raise BadValue(f"there is no scheduler flag {name!r}", nearest(str(name), list(SCHEDULER_FLAGS)))
        flags |= SCHEDULER_FLAGS[name][0]
    return flags


def log_level(value: Any) -> str:
    """A level of `kubecore.log`."""
    name = text(value).lower()
    known = ["debug", "info", "warning", "error"]
    if name not in known:
        raise BadValue(f'"{name}" is not a level', nearest(name, known))
    return name
