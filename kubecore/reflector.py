"""The API server as a Source: one task a resource drives a WatchSession over real connections.

Knows: asyncio, timeouts, logging. Must not know: the protocol's rules (`watchproto`) or how to reach and convince the
API server (`api`). Called by each daemon's `__main__`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from kubecore import log
from kubecore.api import ConnectionFailed
from kubecore.backoff import Uniform
from kubecore.decode import Skipped
from kubecore.model import Event, Listed
from kubecore.store import Store
from kubecore.turns import give_way
from kubecore.watchproto import ORDERLY, WAITS_S, Reason, Request, Verdict, Watched, WatchSession

_LOG = structlog.get_logger()
_ERROR_BODY_BYTES = 64 * 1024
_NO_OUTAGE = frozenset({Reason.UNSUPPORTED, Reason.UNSELECTABLE, Reason.EXPIRED, Reason.AHEAD})
"""The server is well and answers the next request."""
_TURN_S = 0.0005
"""Objects are taken in for so long, then sockets get their turn: DNS answers do not wait for a relist."""


class Answer(Protocol):
    """The head of an HTTP answer, its body still to come."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def retry_after_s(self) -> float | None:
        """The Retry-After header in seconds; None without one."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ConnectionFailed where it breaks off."""


class Transport(Protocol):
    """What a Reflector needs of an API client; `api.ApiClient` is one."""

    def get(self, path: str, query: Sequence[tuple[str, str]]) -> AbstractAsyncContextManager[Answer]:
        """Send an authenticated GET. Raises ConnectionFailed where there is no answer."""


class Reflector:
    """Keeps a Store equal to what the API server shows of the watched resources. A `Source`.

    Every resource has its own connection and its own back-off: one that is forbidden or slow does not hold up the
    others.
    """

    def __init__(
        self,
        transport: Transport,
        watched: Iterable[Watched],
        *,
        streaming: bool = True,
        waits_s: tuple[float, float] = WAITS_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Uniform = random.uniform,
    ) -> None:
        """Nothing is sent before `run`. See WatchSession for `streaming` and `waits_s`."""
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._sessions = [WatchSession(w, uniform=uniform, streaming=streaming, waits_s=waits_s) for w in watched]

    async def run(self, store: Store) -> None:
        """Feed `store` until cancelled; then all connections are closed."""
        async with asyncio.TaskGroup() as group:
            for session in self._sessions:
                group.create_task(self._follow(session, store), name=f"watch {session.watched.resource.value}")

    async def _follow(self, session: WatchSession, store: Store) -> None:
        figures = store.figures[session.watched.resource]
        narrator = _Narrator(session.watched, self._clock)
        while True:
            request = session.request()
            figures.requests += 1
            verdict = await self._exchange(session, request, store, narrator)
            if verdict.reason not in ORDERLY:
                figures.failures += 1
            narrator.tell(request, verdict)
            if verdict.reason is Reason.ABSENT:
                store.apply_all(session.absent())
            if verdict.wait_s:
                await self._sleep(verdict.wait_s)

    async def _exchange(self, session: WatchSession, request: Request, store: Store, narrator: _Narrator) -> Verdict:
        """Send one request and take in what comes of it."""
        try:
            async with (
                asyncio.timeout(request.head_s) as deadline,
                self._transport.get(request.path, request.query) as answer,
            ):
                if answer.status != 200:
                    body = await _read_some(answer, _ERROR_BODY_BYTES)
                    return session.refused(answer.status, body, answer.retry_after_s, self._clock())
                narrator.opened()
                store.note_alive(session.watched.resource)
                store.apply_all(session.opened(self._clock()))
                return await self._take_in(session, answer, store, deadline)
        except TimeoutError:
            return session.lost(Reason.STALLED, "", self._clock())
        except ConnectionFailed as error:
            return session.lost(Reason.LOST, str(error), self._clock())

    async def _take_in(self, session: WatchSession, answer: Answer, store: Store, deadline: asyncio.Timeout) -> Verdict:
        resource = session.watched.resource
        loop = asyncio.get_running_loop()
        deadline.reschedule(loop.time() + session.silence_s)
        async for chunk in answer.chunks():
            store.note_alive(resource)
            # Our own work is no silence of the server's.
            deadline.reschedule(None)
            if not session.listing:  # the parts of a list come by the thousand, and take their turns below
                await give_way()
            await self._apply(session.data(chunk, self._clock()), store, session)
            if session.over is not None:
                return session.over
            deadline.reschedule(loop.time() + session.silence_s)
        deadline.reschedule(None)
        await self._apply(session.end(self._clock()), store, session)
        assert session.over is not None  # noqa: S101 - `end` promises it
        return session.over

    async def _apply(self, arrived: Iterable[Event | Skipped], store: Store, session: WatchSession) -> None:
        resource = session.watched.resource
        until_s = time.perf_counter() + _TURN_S
        for item in arrived:
            if time.perf_counter() > until_s:
                await give_way()
                until_s = time.perf_counter() + _TURN_S
            if isinstance(item, Skipped):
                store.figures[resource].skipped += 1
                _LOG.warning(
                    log.OBJECT_SKIPPED,
                    resource=resource.value,
                    object=str(item.key) if item.key else None,
                    field=item.field,
                    reason=item.reason,
                )
            else:
                store.apply(item)
                if isinstance(item, Listed):
                    _LOG.info(log.WATCH_LIST_COMPLETED, resource=resource.value, objects=store.count(resource))


async def _read_some(answer: Answer, limit_bytes: int) -> bytes:
    """The body's beginning; an error page may be cut short or break off, that changes nothing."""
    body = bytearray()
    try:
        async for chunk in answer.chunks():
            body += chunk
            if len(body) >= limit_bytes:
                break
    except ConnectionFailed:
        pass
    return bytes(body[:limit_bytes])


class _Narrator:
    """Logs what became of a resource's requests; an ordinary day is silent but for the lists."""

    def __init__(self, watched: Watched, clock: Callable[[], float]) -> None:
        self._log = _LOG.bind(resource=watched.resource.value)
        self._watched = watched
        self._clock = clock
        self._failing_since_s: float | None = None

    def tell(self, request: Request, verdict: Verdict) -> None:
        """What ended this request, unless it ended in good order."""
        if verdict.reason in ORDERLY:
            return
        if self._failing_since_s is None and verdict.reason not in _NO_OUTAGE:
            self._failing_since_s = self._clock()
        wait_s = round(verdict.wait_s, 1)
        match verdict.reason:
            case Reason.UNSUPPORTED:
                self._log.info(log.WATCH_STREAMING_LIST_REFUSED, detail=verdict.detail)
            case Reason.UNSELECTABLE:
                self._log.info(log.WATCH_FIELD_SELECTOR_REFUSED, detail=verdict.detail)
            case Reason.EXPIRED | Reason.AHEAD:
                self._log.info(log.WATCH_VERSION_EXPIRED, detail=verdict.detail, wait_s=wait_s)
            case Reason.DENIED:
                self._log.error(
                    log.WATCH_REQUEST_DENIED,
                    status=verdict.status,
                    verb=request.verb.value,
                    namespace=self._watched.namespace or None,
                    remedy=self._remedy(verdict.status),
                    detail=verdict.detail,
                    wait_s=wait_s,
                )
            case Reason.ABSENT if self._watched.remedy:
                remedy = self._watched.remedy
                self._log.warning(log.WATCH_RESOURCE_MISSED, path=request.path, remedy=remedy, wait_s=wait_s)
            case Reason.ABSENT if self._watched.optional:
                self._log.info(log.WATCH_RESOURCE_MISSED, path=request.path, wait_s=wait_s)
            case Reason.ABSENT:
                self._log.error(log.WATCH_RESOURCE_MISSED, path=request.path, detail=verdict.detail, wait_s=wait_s)
            case Reason.STALLED:
                self._log.warning(log.WATCH_STREAM_STALLED, verb=request.verb.value, wait_s=wait_s)
            case _:
                self._log.warning(
                    log.WATCH_REQUEST_FAILED,
                    reason=verdict.reason.value,
                    status=verdict.status or None,
                    verb=request.verb.value,
                    detail=verdict.detail,
                    wait_s=wait_s,
                )

    def opened(self) -> None:
        """The server answers; worth a line if it did not before."""
        if self._failing_since_s is not None:
            outage_s = round(self._clock() - self._failing_since_s, 1)
            self._failing_since_s = None
            self._log.info(log.WATCH_CONNECTION_RESTORED, outage_s=outage_s)

    def _remedy(self, status: int) -> str:
        if status == 401:
            return "the API server does not accept our credentials: check the token or certificate and the cluster's CA"
        kind = "Role" if self._watched.namespace else "ClusterRole"
        return (
            f"add to our {kind}: apiGroups: [{self._watched.api_group!r}], "
            f"resources: [{self._watched.resource.value!r}], verbs: ['list', 'watch']"
        )
