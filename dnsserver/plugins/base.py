"""What plugins share: their surroundings, the end of a chain, and zones.

Must not know any plugin. Called by the plugins and by `chain`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry

from dnsserver import names
from dnsserver.config import ExternalConfig, KubernetesConfig
from dnsserver.counters import Counters
from dnsserver.message import ExtendedError, Handler, Message, Query, Rcode
from kubecore.model import Pod

notes: ContextVar[dict[str, str] | None] = ContextVar("notes", default=None)
"""What plugins have to say of the query in hand, by label (`forward/upstream`), for its log line; None: no one asks."""


class Service(Protocol):
    """A plugin that runs on its own too: sockets, files to look at."""

    async def start(self) -> None:
        """Begin. Raises OSError where it cannot."""
        ...

    async def close(self) -> None:
        """End; everything it opened is closed."""
        ...


class Background:
    """At most one coroutine that runs beside a plugin."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Run it."""
        self._task = asyncio.create_task(work)

    async def end(self) -> None:
        """Stop it, if it runs."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None


async def end_of_chain(query: Query) -> Message | None:
    """REFUSED, always the same message: no plugin of the server block answers for the name."""
    return REFUSED


REFUSED = Message(
    rcode=Rcode.REFUSED,
    errors=((int(ExtendedError.NOT_AUTHORITATIVE), "no zone here has this name"),),
    cacheable=False,
)


def failure(text: str, code: int = ExtendedError.OTHER) -> Message:
    """SERVFAIL that says why."""
    return Message(rcode=Rcode.SERVFAIL, errors=((int(code), text),), cacheable=False)


def within(lower: bytes, zones: Iterable[bytes]) -> bool:
    """Whether a lower-case name is in one of the zones."""
    return any(zone == names.ROOT or names.is_below(lower, zone) for zone in zones)


def falls_through(lower: bytes, zones: Iterable[bytes] | None) -> bool:
    """Whether a `fallthrough` option passes this name on; None: the option was not given."""
    return zones is not None and within(lower, zones)


def _to_stdout(line: str) -> None:
    # Unbuffered: what a full disk or a closed pipe does not take is lost, and fails no query.
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode(errors="replace"))


def _no_kubernetes(_config: KubernetesConfig, rest: Handler) -> Handler:
    return rest


def _no_external(_config: ExternalConfig, rest: Handler) -> Handler:
    return rest


@dataclass(slots=True, kw_only=True)
class Environment:
    """What a chain's plugins get from the server around them. One for each process."""

    counters: Counters = field(default_factory=lambda: Counters(CollectorRegistry()))
    version: str = "kube-ipvs-dns"
    """What `chaos` tells who asks for version.bind."""
    write_line: Callable[[str], object] = _to_stdout
    """For the query log and the lines of `errors`."""
    clock: Callable[[], float] = time.monotonic
    """Seconds; for TTLs and periods."""
    rng: random.Random = field(default_factory=random.SystemRandom)
    """Unpredictable: ids and ports of queries to upstreams come from it (RFC 5452 §9.2)."""
    kubernetes: Callable[[KubernetesConfig, Handler], Handler] = _no_kubernetes
    """Makes the `kubernetes` link of a chain, given the links after it."""
    external: Callable[[ExternalConfig, Handler], Handler] = _no_external
    """Makes the `k8s_external` link."""
    namespace_of: Callable[[str], str | None] = lambda _address: None
    """The namespace of the one live pod with this address (canonical text); None if no pod or a host's address."""
    pod_of: Callable[[str], Pod | None] = lambda _address: None
    """That pod."""
    panicked: Callable[[Exception, Query, bool], object] = lambda _error, _query, _trace: None
    """Told of an exception that escaped a plugin, a fault of this program, and whether to log where it happened."""
