"""What a client sees when it tries to reach a server: values shared by the guest's agent and the tests.

Pure. An `Outcome` is an `Answer` or a `Failure`; tests compare them (`outcomes == [REFUSED] * 3`) or count servers.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A lab server answered: who it was and whom it saw."""

    server: str
    """The name the server was given."""
    seen: str
    """The source address the server saw, without port."""
    seen_port: int = field(compare=False)
    """The source port the server saw."""
    at: str = field(compare=False)
    """The server's own `address:port` for this connection."""

    def __str__(self) -> str:
        return f"{self.server} saw {self.seen}"


@dataclass(frozen=True)
class Failure:
    """No answer. Failures are equal when their kinds are."""

    kind: str
    detail: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


Outcome = Answer | Failure

REFUSED = Failure("refused")
"""TCP reset or ICMP port unreachable (ECONNREFUSED)."""
TIMEOUT = Failure("timeout")
"""Nothing came back in time: dropped on the way."""
UNREACHABLE = Failure("unreachable")
"""No route, or ICMP host/network unreachable (EHOSTUNREACH, ENETUNREACH)."""
RESET = Failure("reset")
"""An established connection was reset."""
CLOSED = Failure("closed")
"""The peer closed before it answered."""
DENIED = Failure("denied")
"""The local kernel, or an ICMPv6 'administratively prohibited', forbade it (EPERM, EACCES)."""

_KINDS = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNABORTED: "reset",
    errno.EPERM: "denied",
    errno.EACCES: "denied",
}
_ANSWER = re.compile(r"(?P<server>\S+) saw (?P<seen>\S+):(?P<port>\d+) at (?P<at>\S+)")


def failure_of(error: OSError) -> Failure:
    """The Failure for an exception of the socket layer; an errno without a kind is its name (`EADDRINUSE`)."""
    if isinstance(error, TimeoutError):
        return TIMEOUT
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return Failure(_KINDS.get(error.errno or 0, name), name)


def answer_line(server: str, seen: tuple[str, int], at: tuple[str, int]) -> str:
    """The line a lab server answers with, without newline: `pod1 saw 192.168.50.10:41234 at 10.244.1.2:8080`."""
    return f"{server} saw {endpoint(*seen)} at {endpoint(*at)}"


def parse_answer(line: str) -> Outcome:
    """The Answer in the line of a lab server; a Failure of kind `garbled` for anything else."""
    match = _ANSWER.match(line)
    if match is None:
        return Failure("garbled", line[:200])
    return Answer(match["server"], match["seen"].strip("[]"), int(match["port"]), match["at"])


def endpoint(address: str, port: int) -> str:
    """`address:port`, with an IPv6 address in brackets and an IPv4-mapped one as IPv4."""
    address = address.removeprefix("::ffff:")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def split_endpoint(target: str) -> tuple[str, int]:
    """(address, port) of `10.96.0.10:80` or `[fd00::1]:80`.

    Raises:
        ValueError: there is no port, or it is no number.
    """
    address, separator, port = target.rpartition(":")
    if not separator or not port.isdigit() or (":" in address) != address.startswith("["):
        raise ValueError(f"{target!r} is not ADDRESS:PORT (an IPv6 address goes in brackets)")
    return address.strip("[]"), int(port)


def to_wire(outcome: Outcome) -> dict[str, Any]:
    """A JSON object that `from_wire` reads."""
    if isinstance(outcome, Answer):
        return {"server": outcome.server, "seen": outcome.seen, "seen_port": outcome.seen_port, "at": outcome.at}
    return {"kind": outcome.kind, "detail": outcome.detail}


def from_wire(wire: dict[str, Any]) -> Outcome:
    """The Outcome that `to_wire` wrote."""
    return Answer(**wire) if "server" in wire else Failure(**wire)


def servers(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How often each server answered; failures count under their kind in angle brackets (`<refused>`)."""
    return Counter(o.server if isinstance(o, Answer) else f"<{o.kind}>" for o in outcomes)


def sources(outcomes: Iterable[Outcome]) -> set[str]:
    """The source addresses that the servers saw."""
    return {o.seen for o in outcomes if isinstance(o, Answer)}
