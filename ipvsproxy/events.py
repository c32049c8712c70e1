"""Kubernetes Events about Services and this node: few, aggregated, never in the way of programming the kernel.

Knows events.k8s.io/v1. Must not know what happened: the reconciler names object, reason and sentence. Without an API
server (file source) the same calls end in the log only.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal

import structlog

from kubecore import log
from kubecore.api import ApiError, ConnectionFailed
from kubecore.model import ObjectKey

SERIES_S = 600.0
"""How long a repeated event is folded into a series of the first one (client-go: 6 minutes of silence end a series)."""
MINIMUM_GAP_S = 60.0
"""A series is patched at most once in this time."""
QUEUE_LIMIT = 1000
"""Events waiting for the API server; further ones are dropped and counted in the log."""

RETRY_AFTER_S = (0.5, 1.0, 2.0, 4.0, 8.0, *[10.0] * 12)
"""Waits between tries while the API server does not answer, about two minutes (client-go: 12 times 10 s)."""

EventType = Literal["Normal", "Warning"]
Send = Callable[[str, str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""`(method, path, body) -> reply`; raises on refusal."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Regarding:
    """The object an event is about."""

    kind: Literal["Service", "Node"]
    key: ObjectKey
    uid: str = ""


@dataclass(slots=True)
class _Series:
    name: str
    namespace: str
    count: int
    first_s: float
    sent_s: float


class EventRecorder:
    """Takes events at any time without waiting; `run` delivers them.

    Args:
        send: the API call; None: events go to the log only.
        instance: this node's name, `reportingInstance`.
        clock: seconds, monotonic enough to tell repeats from news.
        sleep: waits between tries.
    """

    def __init__(
        self,
        send: Send | None,
        instance: str,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._send = send
        self._instance = instance
        self._clock = clock
        self._queue: asyncio.Queue[tuple[Regarding, EventType, str, str, str]] = asyncio.Queue(QUEUE_LIMIT)
        self._series: dict[tuple[Regarding, str, str], _Series] = {}

    def record(self, about: Regarding, kind: EventType, reason: str, message: str, action: str) -> None:
        """Queue one event; the same one again within ten minutes becomes a count on the first."""
        _log.log(
            30 if kind == "Warning" else 20,
            log.EVENT_RECORDED,
            object=f"{about.kind} {about.key}",
            reason=reason,
            message=message,
        )
        if self._send is None:
            return
        try:
            self._queue.put_nowait((about, kind, reason, message, action))
        except asyncio.QueueFull:
            _log.warning(log.EVENT_DROPPED, object=str(about.key), reason=reason)

    async def run(self) -> None:
        """Deliver queued events until cancelled. A refused event is logged and forgotten."""
        while True:
            await self._deliver_next()

    async def flush(self, limit_s: float) -> None:
        """Deliver what is queued, as far as that is possible within `limit_s`; for a process that is about to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self._queue.empty():
                    await self._deliver_next()

    async def _deliver_next(self) -> None:
        about, kind, reason, message, action = await self._queue.get()
        for wait_s in RETRY_AFTER_S:
            try:
                await self._deliver(about, kind, reason, message, action)
            except (ConnectionFailed, ApiError) as error:
                again_s = _again_after_s(error, wait_s)
                told = {} if again_s is None else {"retry_s": again_s}
                _log.warning(log.EVENT_REFUSED, object=str(about.key), reason=reason, error=str(error), **told)
                if again_s is None:
                    return
                await self._sleep(again_s)
            except Exception as error:  # an event is never worth the daemon
                _log.warning(log.EVENT_REFUSED, object=str(about.key), reason=reason, error=str(error))
                return
            else:
                return

    async def _deliver(self, about: Regarding, kind: EventType, reason: str, message: str, action: str) -> None:
        assert self._send is not None  # noqa: S101 - run() is only started with a sender
        now_s = self._clock()
        self._forget_old(now_s)
        identity = (about, reason, message)
        known = self._series.get(identity)
        if known is not None:
            known.count += 1
            if now_s - known.sent_s >= MINIMUM_GAP_S:
                known.sent_s = now_s
                await self._send(
                    "PATCH",
                    f"/apis/events.k8s.io/v1/namespaces/{known.namespace}/events/{known.name}",
                    {"series": {"count": known.count, "lastObservedTime": _micro_time()}},
                )
            return
        namespace = about.key.namespace or "default"
        name = f"{about.key.name}.{secrets.token_hex(8)}"
        regarding: dict[str, str] = {"apiVersion": "v1", "kind": about.kind, "name": about.key.name}
        if about.key.namespace:
            regarding["namespace"] = about.key.namespace
        if about.uid:
            regarding["uid"] = about.uid
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _micro_time(),
            "reportingController": "ipvsproxy",
            "reportingInstance": self._instance,
            "action": action,
            "reason": reason,
            "regarding": regarding,
            "note": message[:1024],
            "type": kind,
        }
        await self._send("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)
        self._series[identity] = _Series(name, namespace, 1, now_s, now_s)

    def _forget_old(self, now_s: float) -> None:
        old = [identity for identity, series in self._series.items() if now_s - series.first_s > SERIES_S]
        for identity in old:
            del self._series[identity]


def _again_after_s(error: ConnectionFailed | ApiError, wait_s: float) -> float | None:
    """When to try again, `wait_s` if nobody says when; None: the API server does not want this event."""
    if isinstance(error, ConnectionFailed):
        return wait_s  # the API server may be reachable only by what this very process is about to program
    if error.retry_after_s is not None:
        return min(error.retry_after_s, RETRY_AFTER_S[-1])  # it is overloaded, by a burst of ours for one
    return wait_s if error.status == HTTPStatus.TOO_MANY_REQUESTS else None


def _micro_time() -> str:
    """Now, as the API's MicroTime (RFC 3339 with exactly six decimals)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
