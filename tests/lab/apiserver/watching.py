"""One watch: the history of a kind, filtered, as lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec
from aiohttp import web

from tests.lab.apiserver import status
from tests.lab.apiserver.faults import Fault, Faults
from tests.lab.apiserver.kinds import Kind, Object
from tests.lab.apiserver.reading import selection, version_number
from tests.lab.apiserver.storage import Change, Storage, Stored

_STREAM_FAULTS = ("cut", "eof", "stall", "error_event", "garbage")
Line = tuple[bytes, bool]
"""A line, and whether it is an object's."""


class Watch:
    """What one watch request is sent: `begin`, then `drain` whenever something happened, and bookmarks in between.

    Each of them may end it: `over` is then set, by an ERROR line.
    """

    def __init__(self, kind: Kind, storage: Storage, selected: Callable[[Object], bool], version: int) -> None:
        """Changes after `version` to what is `selected`."""
        self.over = False
        self._kind = kind
        self._storage = storage
        self._selected = selected
        self._version = version
        self._began = version
        """A bookmark is sent only for a later version."""
        self._head = b'{"kind":"%s","apiVersion":"%s",' % (kind.kind.encode(), kind.api_version.encode())

    @property
    def _table_changes(self) -> list[Change]:
        return self._storage.table(self._kind.storage_key).after(self._version)

    def begin(self, *, listed: bool, mark: bool) -> Iterator[Line]:
        """What exists (if `listed`), and an annotated bookmark where that ends (if `mark`)."""
        if not listed:
            if self._version < self._storage.compacted:
                yield self._too_old()
            return
        self._version = self._began = self._storage.version
        for stored in list(self._storage.page(self._kind.storage_key, None, None)):
            if self._selected(stored.value):
                yield self._line(b"ADDED", stored), True
        if mark:
            yield self._bookmark({"annotations": {"k8s.io/initial-events-end": "true"}}), False

    def drain(self) -> Iterator[Line]:
        """What happened since."""
        # A real server's watch cache outlives etcd's compaction; here only a change that is gone ends the watch.
        if self._storage.table(self._kind.storage_key).last_compacted > self._version:
            yield self._too_old()
            return
        while changes := self._table_changes:  # more may come while these lines are written
            for change in changes:
                self._version = change.version
                for event, stored in self._seen(change):
                    yield self._line(event, stored), True

    def bookmark(self) -> Iterator[Line]:
        """How far this watch is; only directly after `drain`."""
        if not self._table_changes and self._storage.version > self._began:
            self._version = self._storage.version
            yield self._bookmark({}), False

    def _seen(self, change: Change) -> Iterator[tuple[bytes, Stored]]:
        """The change as this selection sees it: what enters it is added, what leaves it deleted."""
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

    def _bookmark(self, more: Object) -> bytes:
        metadata = {"resourceVersion": str(self._version), "creationTimestamp": None, **more}
        return b'{"type":"BOOKMARK","object":%s"metadata":%s}}\n' % (self._head, msgspec.json.encode(metadata))

    def _too_old(self) -> Line:
        self.over = True
        message = f"too old resource version: {self._version} ({self._storage.compacted})"
        return error_line(status.expired(message)), False


def error_line(refusal: status.Refusal) -> bytes:
    """An ERROR event."""
    return b'{"type":"ERROR","object":%s}\n' % msgspec.json.encode(refusal.body())


class Options:
    """The parameters of a watch request, checked. Raises Refusal."""

    def __init__(self, storage: Storage, query: Mapping[str, str], *, watch_list: bool) -> None:
        initial, rule = query.get("sendInitialEvents"), query.get("resourceVersionMatch")
        if initial is not None and not watch_list:
            problem = "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            raise status.bad_list_options("sendInitialEvents", problem)
        if (initial is None) != (rule is None) or rule not in (None, "NotOlderThan"):
            problem = "Forbidden: sendInitialEvents and resourceVersionMatch=NotOlderThan are given together or not"
            raise status.bad_list_options("resourceVersionMatch", problem)
        # A version that is not reached yet is no error here: nothing is sent before it is.
        self.version = version_number(query.get("resourceVersion", ""))
        self.listed = self.version == 0 if initial is None else initial == "true"
        self.mark = initial == "true"
        self.bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
        self.timeout_s = float(query.get("timeoutSeconds") or 1800)


def open_watch(
    storage: Storage, kind: Kind, namespace: str, query: Mapping[str, str], *, watch_list: bool = True
) -> tuple[Watch, Options]:
    """The watch a request asks for. Raises Refusal."""
    options = Options(storage, query, watch_list=watch_list)
    return Watch(kind, storage, selection(query, kind, namespace), options.version), options


class WatchResponse:
    """Sends a Watch until its time is over, the client goes, or a fault ends it."""

    def __init__(self, request: web.Request, watch: Watch, fault: Fault | None, faults: Faults) -> None:
        self._request = request
        self._watch = watch
        self._fault = fault
        self._faults = faults
        self._left = fault.after if fault is not None and fault.what in _STREAM_FAULTS else None
        """Objects until the fault strikes; None: never (again)."""
        self._response = web.StreamResponse(headers={"Content-Type": "application/json"})
        self._response.enable_chunked_encoding()

    async def serve(self, options: Options, woken: asyncio.Event, bookmark_interval_s: float) -> web.StreamResponse:
        """The response, complete; `woken` is set when something changed."""
        if self._fault is not None and self._fault.what == "slow":
            await self._faults.pause(self._fault.seconds)
        await self._response.prepare(self._request)
        ends_at = time.monotonic() + options.timeout_s
        next_bookmark = time.monotonic() + bookmark_interval_s
        with contextlib.suppress(ConnectionError):  # the client went away
            if not await self._strike(b'{"type":"ADDED","object":{"kind":"Se'):
                return self._response
            lines = self._watch.begin(listed=options.listed, mark=options.mark)
            while await self._send(lines) and not self._watch.over:
                woken.clear()
                if not await self._send(self._watch.drain()) or self._watch.over:
                    break
                now = time.monotonic()
                if now >= ends_at:
                    break
                lines = iter(())
                if options.bookmarks and now >= next_bookmark:
                    next_bookmark = now + bookmark_interval_s
                    lines = self._watch.bookmark()
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, min(ends_at, next_bookmark) - now)):
                        await woken.wait()
        return self._response

    async def _send(self, lines: Iterator[Line]) -> bool:
        """Write `lines`; False: a fault ended the watch."""
        for line, is_object in lines:
            if not await self._strike(line):
                return False
            await self._response.write(line)
            if self._left is not None and is_object:
                self._left -= 1
        return True

    async def _strike(self, line: bytes) -> bool:
        """Let the fault, if its time has come, do its harm instead of sending `line`; False: the watch is over."""
        fault = self._fault
        if fault is None or self._left != 0:
            return True
        self._left = None
        match fault.what:
            case "cut":
                await self._response.write(line[: max(1, len(line) // 2)])
                await asyncio.sleep(0)  # let the bytes leave
                if self._request.transport is not None:
                    self._request.transport.abort()
            case "stall":
                await self._faults.pause(fault.seconds)
                return True
            case "error_event":
                refusal = status.Refusal(fault.code, fault.reason, fault.message, retry_after_s=fault.retry_after_s)
                await self._response.write(error_line(refusal))
            case "garbage":
                await self._response.write(b'{"type":"ADDED","object":{"kind":]]\n')
            case _:
                pass
        return False
