"""`log`: a line for each query.

Knows the line's fields. Must not know where lines go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from dnsserver import names, rrtext
from dnsserver.config import KubernetesConfig, PodsMode
from dnsserver.corefile_model import LogClass, LogConfig
from dnsserver.encode import AA, AD, CD, QR, RA, RD, TC, encode
from dnsserver.message import Handler, Message, Query, Rcode
from dnsserver.metadata import kubernetes_metadata
from dnsserver.plugins.base import Environment, notes, within

_FIELD = re.compile(r"\{[^{}]*\}")
_FLAGS = ((QR, "qr"), (AA, "aa"), (TC, "tc"), (RD, "rd"), (RA, "ra"), (0x40, "z"), (AD, "ad"), (CD, "cd"))
_MISSING = "-"


class Observed(NamedTuple):
    """What a line tells."""

    query: Query
    message: Message | None
    reply: bytes
    took_s: float
    metadata: Mapping[str, str] = {}


def class_of(message: Message | None) -> LogClass:
    """Success, denial (NXDOMAIN, NODATA) or error; a dropped query counts as an error."""
    if message is None:
        return "error"
    if message.rcode == Rcode.NXDOMAIN:
        return "denial"
    if message.rcode != Rcode.NOERROR:
        return "error"
    if message.answer:
        return "success"
    referral = any(rr.type == 2 for rr in message.authority)
    return "success" if referral else "denial"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def seconds_text(seconds: float) -> str:
    """Seconds with a unit, without an exponent: 0.000083s."""
    text = f"{seconds:.9f}".rstrip("0")
    return (text + "0" if text.endswith(".") else text) + "s"


def _flags(reply: bytes) -> str:
    if len(reply) < 4:
        return _MISSING
    word = int.from_bytes(reply[2:4], "big")
    return ",".join(name for bit, name in _FLAGS if word & bit)


FIELDS: dict[str, Callable[[Observed], str]] = {
    "{type}": lambda o: rrtext.type_name(o.query.question.qtype),
    "{name}": lambda o: names.to_text(o.query.question.lower),
    "{class}": lambda o: rrtext.class_name(o.query.question.qclass),
    "{proto}": lambda o: "udp" if o.query.transport == "udp" else "tcp",
    "{remote}": lambda o: _host(o.query.client),
    "{port}": lambda o: str(o.query.client_port),
    "{local}": lambda o: _host(o.query.local) if o.query.local else _MISSING,
    "{size}": lambda o: str(o.query.size_bytes),
    "{duration}": lambda o: seconds_text(o.took_s),
    "{rcode}": lambda o: _MISSING if o.message is None else rrtext.rcode_name(o.message.rcode),
    "{rsize}": lambda o: str(len(o.reply)),
    "{>rflags}": lambda o: _flags(o.reply),
    "{>bufsize}": lambda o: str(o.query.limit_bytes),
    "{>do}": lambda o: "true" if o.query.edns is not None and o.query.edns.do else "false",
    "{>id}": lambda o: str(o.query.id),
    "{>opcode}": lambda _: "0",
}


def _metadatum(label: str, observed: Observed) -> str:
    return observed.metadata.get(label, _MISSING)


class Line:
    """A compiled format."""

    def __init__(self, form: str) -> None:
        self.tells_metadata = False
        self._parts: list[str | Callable[[Observed], str]] = []
        at = 0
        for field in _FIELD.finditer(form):
            self._parts.append(form[at : field.start()])
            if field[0].startswith("{/"):
                self._parts.append(partial(_metadatum, field[0][2:-1]))
                self.tells_metadata = True
            else:
                self._parts.append(FIELDS.get(field[0], _MISSING))
            at = field.end()
        self._parts.append(form[at:])

    def text(self, observed: Observed) -> str:
        """The line."""
        return "".join(part if isinstance(part, str) else part(observed) for part in self._parts)


class QueryLog:
    """A Handler. The first configuration whose zone has the name decides about class and format."""

    def __init__(
        self,
        configs: Iterable[LogConfig],
        rest: Handler,
        env: Environment,
        limit_bytes: int | None,
        kubernetes: KubernetesConfig | None = None,
    ) -> None:
        """Args: `kubernetes`: that of the block, for what names and addresses of clients say."""
        self._rest = rest
        self._kubernetes = kubernetes
        self._pod_of = env.pod_of
        self._clock = env.clock
        self._write = env.write_line
        self._limit_bytes = limit_bytes
        self._configs = [(config, Line(config.format)) for config in configs]
        self._tells_metadata = any(line.tells_metadata for _, line in self._configs)

    def concerns(self, lower: bytes) -> bool:
        """Whether anything but failures is written for this name."""
        return any(config.classes != {"error"} and within(lower, config.zones) for config, _ in self._configs)

    async def __call__(self, query: Query) -> Message | None:
        """The reply of the rest of the chain, after a line for it."""
        begin_s = self._clock()
        metadata: dict[str, str] = {}
        if self._tells_metadata:
            metadata = self._metadata(query)
            notes.set(metadata)
        message = await self._rest(query)
        for config, line in self._configs:
            if not within(query.question.lower, config.zones):
                continue
            if "all" in config.classes or class_of(message) in config.classes:
                reply = b"" if message is None else encode(message, query, self._limit_bytes)
                took_s = self._clock() - begin_s
                self._write("[INFO] " + line.text(Observed(query, message, reply, took_s, metadata)))
            break
        return message

    def _metadata(self, query: Query) -> dict[str, str]:
        """By label, what is known before anybody answers; `notes` adds to it."""
        found = kubernetes_metadata(self._kubernetes, query.question) if self._kubernetes else {}
        pod = self._pod_of(query.client)
        if self._kubernetes is not None and self._kubernetes.pods is PodsMode.VERIFIED and pod is not None:
            found |= {"kubernetes/client-namespace": pod.namespace, "kubernetes/client-pod-name": pod.name}
            found |= {f"kubernetes/client-label/{label}": value for label, value in pod.labels}
        return found
