"""One watch: the history of a kind, filtered, as lines of JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
from aiohttp import web

from tests.lab.apiserver import status
from tests.lab.apiserver.faults import Fault, Faults
from tests.lab.apiserver.kinds import Kind, Object
from tests.lab.apiserver.storage import Change, Storage, Stored

_STREAM_FAULTS = ("cut", "eof", "stall", "error_event", "garbage")


class Watch:
    """Serves one watch request until its time is over, its version is compacted away, or a fault ends it."""

    def __init__(
        self,
        kind: Kind,
        storage: Storage,
        selected: Callable[[Object], bool],
        *,
        version: int,
        listed: bool,
        mark_listed: bool,
        bookmarks: bool,
        bookmark_interval_s: float,
        timeout_s: float,
    ) -> None:
        """`listed`: begin with what exists; `mark_listed`: and say with an annotated bookmark where that ends."""
        self._kind = kind
        self._storage = storage
        self._selected = selected
        self._version = version
        self._listed = listed
        self._mark_listed = mark_listed
        self._bookmarks = bookmarks or mark_listed
        self._interval_s = bookmark_interval_s
        self._timeout_s = timeout_s
        self._head = b'{"kind":"%s","apiVersion":"%s",' % (kind.kind.encode(), kind.api_version.encode())

    async def serve(self, request: web.Request, fault: Fault | None, faults: Faults) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        if fault is not None and fault.what == "slow":
            await faults.pause(fault.seconds)
        await response.prepare(request)
        left = fault.after if fault is not None and fault.what in _STREAM_FAULTS else None
        """Objects until the fault strikes; None: never (again)."""
        woken = asyncio.Event()
        watchers = self._storage.table(self._kind.storage_key).watchers
        watchers.add(woken)
        try:
            if left == 0:
                left = None
                if not await self._strike(request, response, fault, faults, self._head):
                    return response
            async for line, is_object in self._lines(woken):
                if left == 0:
                    left = None
                    if not await self._strike(request, response, fault, faults, line):
                        return response
                await response.write(line)
                if left is not None and is_object:
                    left -= 1
        except ConnectionError:
            pass  # the client went away
        finally:
            watchers.discard(woken)
        return response

    async def _strike(
        self, request: web.Request, response: web.StreamResponse, fault: Fault | None, faults: Faults, line: bytes
    ) -> bool:
        """Do harm instead of sending `line`; False: this watch is over."""
        assert fault is not None
        match fault.what:
            case "cut":
                await response.write(line[: max(1, len(line) // 2)])
                await asyncio.sleep(0)  # let the bytes leave
                if request.transport is not None:
                    request.transport.abort()
            case "stall":
                await faults.pause(fault.seconds)
                return True
            case "error_event":
                refusal = status.Refusal(fault.code, fault.reason, fault.message, retry_after_s=fault.retry_after_s)
                await response.write(self._error(refusal))
            case "garbage":
                await response.write(b'{"type":"ADDED","object":{"kind":]]\n')
            case _:
                pass
        return False

    async def _lines(self, woken: asyncio.Event) -> AsyncIterator[tuple[bytes, bool]]:
        """Lines, each with whether it is an object's."""
        started = time.monotonic()
        ends_at = started + self._timeout_s
        next_bookmark = started + self._interval_s
        if self._listed:
            self._version = self._storage.version
            for stored in list(self._storage.page(self._kind.storage_key, None, None)):
                if self._selected(stored.value):
                    yield self._line(b"ADDED", stored), True
            if self._mark_listed:
                yield self._bookmark(initial_events_end=True), False
        elif self._version < self._storage.compacted:
            yield self._too_old(), False
            return
        while True:
            woken.clear()
            if self._version < self._storage.compacted and self._missed():
                yield self._too_old(), False
                return
            for change in self._storage.table(self._kind.storage_key).after(self._version):
                for event, stored in self._seen(change):
                    yield self._line(event, stored), True
                self._version = change.version
            now = time.monotonic()
            if now >= ends_at:
                return
            if self._storage.table(self._kind.storage_key).after(self._version):
                continue  # more came while lines were being written
            if self._bookmarks and now >= next_bookmark:
                self._version = self._storage.version
                next_bookmark = now + self._interval_s
                yield self._bookmark(), False
            try:
                async with asyncio.timeout(max(0.0, min(ends_at, next_bookmark) - time.monotonic())):
                    await woken.wait()
            except TimeoutError:
                pass

    def _missed(self) -> bool:
        """Whether a change of this kind was compacted away before it was sent. (A real server's cache would still have
        it.)"""
        return self._storage.table(self._kind.storage_key).last_compacted > self._version

    def _seen(self, change: Change) -> Iterator[tuple[bytes, Stored]]:
        """The change as this selection sees it."""
        before = change.old is not None and self._selected(change.old.value)
        after = change.new is not None and self._selected(change.new.value)
        if after and change.new is not None:
            yield (b"MODIFIED" if before else b"ADDED"), change.new
        elif before and change.old is not None:
            yield b"DELETED", change.old.at(change.version)

    def _line(self, event: bytes, stored: Stored) -> bytes:
        if self._kind.stored_as:
            shown = {k: v for k, v in self._kind.from_stored(stored.value).items() if k not in ("kind", "apiVersion")}
            body = msgspec.json.encode(shown)
        else:
            body = stored.json
        return b'{"type":"%s","object":%s%s}\n' % (event, self._head, body[1:])

    def _bookmark(self, *, initial_events_end: bool = False) -> bytes:
        metadata: Object = {"resourceVersion": str(self._version), "creationTimestamp": None}
        if initial_events_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        return b'{"type":"BOOKMARK","object":%s"metadata":%s}}\n' % (self._head, msgspec.json.encode(metadata))

    def _too_old(self) -> bytes:
        return self._error(status.expired(f"too old resource version: {self._version} ({self._storage.compacted})"))

    @staticmethod
    def _error(refusal: status.Refusal) -> bytes:
        return b'{"type":"ERROR","object":%s}\n' % msgspec.json.encode(refusal.body())
