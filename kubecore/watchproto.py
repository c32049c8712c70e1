"""The list-and-watch protocol of the Kubernetes API as a state machine: the next request out, bytes in, events out.

Rules of this module:

- No IO and no clock: time comes in as `now_s`, how long to wait and how long silence is tolerable go out as values.
- One session is one resource. It asks for one request at a time (`request`), and for each is told what came of it:
  `opened`, then any number of `data`, then one of `end` (the body is complete) or `lost` (it is not); or `refused`
  alone (not 200). Each of these last three, and an error inside the stream (`over`), is a Verdict: the request is
  finished.
- The resourceVersion to resume from moves only after the event that carried it was handed out. So nothing is skipped,
  and a repeated event is harmless.
- A full list is bracketed by ListStarted and Listed; only what a *complete* list did not mention is gone. An
  interrupted list therefore deletes nothing.

Must not know: aiohttp, credentials, logging, what the daemons do with a Service. Called by `reflector`.

Sources: Kubernetes API concepts ("Efficient detection of changes", "Retrieving large results sets in chunks",
"Streaming lists"), KEP-365 (chunking), KEP-956 (bookmarks), KEP-3157 (watch-list).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import msgspec

from kubecore import decode
from kubecore.backoff import Backoff, Uniform
from kubecore.decode import Skipped
from kubecore.lines import LineSplitter, LineTooLong
from kubecore.model import Delete, Event, Listed, ListStarted, Resource, Upsert

_PREFIX = {
    Resource.SERVICES: "/api/v1",
    Resource.ENDPOINT_SLICES: "/apis/discovery.k8s.io/v1",
    Resource.NODES: "/api/v1",
    Resource.NAMESPACES: "/api/v1",
    Resource.PODS: "/api/v1",
    Resource.SERVICE_CIDRS: "/apis/networking.k8s.io/v1",
    Resource.SERVICE_IMPORTS: "/apis/multicluster.x-k8s.io/v1alpha1",
}


@dataclass(frozen=True, slots=True)
class Watched:
    """What one session follows."""

    resource: Resource
    namespace: str = ""
    """Empty: all namespaces."""
    label_selector: str = ""
    """As the API takes it: `!service.kubernetes.io/headless,app in (a,b)`. What leaves the selection is gone for us."""
    field_selector: str = ""
    """As the API takes it: `spec.nodeName=n1`."""
    field_selector_optional: bool = False
    """What it leaves out would be passed over anyway. A server that refuses it (400) is asked without it: Services are
    selectable by `spec.clusterIP` from 1.31 on."""
    page_limit: int = 500
    """Objects a page; also what bounds memory during a paginated list."""
    optional: bool = False
    """The server may not have this resource at all (ServiceCIDR before 1.33). A 404 then counts as an empty list."""
    remedy: str = ""
    """What gives the server an optional resource that somebody asked for; its absence is then a warning."""

    @property
    def api_group(self) -> str:
        """The group as an RBAC rule names it; empty for the core group."""
        prefix = _PREFIX[self.resource]
        return "" if prefix == "/api/v1" else prefix.split("/")[2]

    @property
    def path(self) -> str:
        """The collection's path on the API server."""
        within = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{_PREFIX[self.resource]}{within}/{self.resource.value}"


class Verb(Enum):
    """What a request asks for; the value is the verb RBAC sees."""

    LIST = "list"
    WATCH = "watch"


@dataclass(frozen=True, slots=True)
class Request:
    """One GET to send."""

    verb: Verb
    path: str
    query: tuple[tuple[str, str], ...]
    head_s: float
    """Give up (`lost`) when the answer has not begun after so long; from then on `WatchSession.silence_s` counts."""


class Reason(Enum):
    """Why a request is finished."""

    PAGE = "page"
    """A page arrived, more are to come."""
    LISTED = "listed"
    """The last page arrived."""
    ENDED = "ended"
    """The server ended the stream, as it does every few minutes."""
    QUIET = "quiet"
    """Not a byte since the watch began: nothing happened and the server has no bookmark to send (its version of the
    resource has to move for that); or the connection is dead, or our version ahead of the server's. A look tells."""
    EXPIRED = "expired"
    """410: our resourceVersion (or continue token) is compacted away; list again."""
    AHEAD = "ahead"
    """The server does not know our resourceVersion yet, or never will (restored from a backup); list again."""
    UNSUPPORTED = "unsupported"
    """The server cannot stream lists; pages are asked for from now on."""
    UNSELECTABLE = "unselectable"
    """The server cannot select by these fields; everything is asked for from now on."""
    DENIED = "denied"
    """401 or 403: somebody has to change something."""
    ABSENT = "absent"
    """404: the server does not serve this resource."""
    THROTTLED = "throttled"
    """429 or 503 with Retry-After."""
    FAILED = "failed"
    """Any other error the server named."""
    MALFORMED = "malformed"
    """Bytes that are not what the protocol promises."""
    STALLED = "stalled"
    """Silence for longer than `Request.head_s` or `WatchSession.silence_s`."""
    LOST = "lost"
    """No connection, or one that broke."""


ORDERLY = frozenset({Reason.PAGE, Reason.LISTED, Reason.ENDED, Reason.QUIET})
"""Reasons that are no failure."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a request ended, and when the next may be sent."""

    reason: Reason
    wait_s: float = 0.0
    """Seconds to wait before the next request."""
    detail: str = ""
    """What the server or the transport said, for the log."""
    status: int = 0
    """HTTP status or Status.code; 0 where there was none."""


class _Mode(Enum):
    STREAM_LIST = "a watch that begins with the list"
    PAGES = "a list in pages"
    WATCH = "a watch from a known version"
    LOOK = "a page for the sake of the version it is of"


class _Status(msgspec.Struct):
    """The parts of metav1.Status that decide anything."""

    message: str = ""
    reason: str = ""
    code: int = 0


_STATUS = msgspec.json.Decoder(_Status)

WAITS_S = (0.8, 30.0)
"""Back-off as client-go's reflector has it."""
HEALTHY_S = 5.0
"""A stream that lived so long has worked: the back-off begins anew and the next request needs no wait."""
WATCH_SILENCE_S = 150.0
"""API servers send a bookmark about once a minute, if they have any; two missed ones and the connection counts as
dead."""
LIST_SILENCE_S = 30.0
"""A list under way has no reason to pause: API servers give up on a request after 60 s."""
_WATCH_TIMEOUT_S = (300.0, 600.0)
"""How long we ask the server to keep a watch open, drawn anew for each so that a fleet's watches do not end
together."""
_PAGE_GROWTH = (1, 1, 10, 0)
"""How a list whose continue token expires is asked for next: a client too slow for its pages takes fewer, at last
one."""
_POISON_LIMIT = 3
"""Malformed streams in a row from the same resourceVersion before listing anew."""


class WatchSession:
    """Follows one resource for ever: list, watch, resume, relist."""

    def __init__(
        self, watched: Watched, *, uniform: Uniform, streaming: bool = True, waits_s: tuple[float, float] = WAITS_S
    ) -> None:
        """Start with a full list.

        Args:
            watched: what to follow.
            uniform: draws jitter; `random.uniform` outside tests.
            streaming: ask for a streaming list first; without it lists always come in pages.
            waits_s: the shortest and the longest back-off; only tests shorten them.
        """
        self.watched = watched
        self.over: Verdict | None = None
        """Set when the stream itself said that this request is finished; the connection can be dropped."""
        self._uniform = uniform
        first_s, cap_s = waits_s
        self._backoff = Backoff(uniform, first_s, cap_s)
        # Whoever has to grant access needs minutes; a rolled-out chart's RBAC arrives within seconds.
        self._denied_backoff = Backoff(uniform, 6 * first_s, 2 * cap_s)
        self._streaming = streaming
        self._by_field = bool(watched.field_selector)
        self._mode = _Mode.STREAM_LIST if streaming else _Mode.PAGES
        self._version = ""
        self._continue = ""
        self._page_version = ""
        self._restarts = 0
        self._poisoned = 0
        self._relisted = False
        """Listed anew since a stream last lasted."""
        self._opened_s: float | None = None
        self._heard = False
        """A byte of this request's answer arrived."""
        self._listed = False
        self._lines = LineSplitter()
        self._body: list[bytes] = []

    @property
    def listing(self) -> bool:
        """Whether a full list is under way; until it is complete the state may lack or still hold objects."""
        return self._mode in {_Mode.STREAM_LIST, _Mode.PAGES}

    @property
    def resource_version(self) -> str:
        """Where the next watch resumes; empty while a list is needed."""
        return self._version

    @property
    def silence_s(self) -> float:
        """Seconds without a byte after which the answer under way is to be given up (`lost`, STALLED)."""
        return WATCH_SILENCE_S if self._mode is _Mode.WATCH else LIST_SILENCE_S

    # -- out

    def request(self) -> Request:
        """The request to send now. Asking twice gives the same, but for the drawn timeout."""
        self.over = None
        self._lines = LineSplitter()
        self._body = []
        self._heard = False
        query: list[tuple[str, str]] = []
        if self.watched.label_selector:
            query.append(("labelSelector", self.watched.label_selector))
        if self._by_field:
            query.append(("fieldSelector", self.watched.field_selector))
        path = self.watched.path
        if self._mode is _Mode.LOOK:
            return Request(Verb.LIST, path, (*query, ("limit", "1")), head_s=60.0)
        if self._mode is _Mode.PAGES:
            # No resourceVersion: the most recent state, so that a list never goes back in time behind a load balancer.
            limit = self.watched.page_limit * _PAGE_GROWTH[min(self._restarts, len(_PAGE_GROWTH) - 1)]
            if limit:
                query.append(("limit", str(limit)))
            if self._continue:
                query.append(("continue", self._continue))
            return Request(Verb.LIST, path, tuple(query), head_s=60.0)
        timeout_s = int(self._uniform(*_WATCH_TIMEOUT_S))
        query += [("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", str(timeout_s))]
        if self._mode is _Mode.STREAM_LIST:
            query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
            return Request(Verb.WATCH, path, tuple(query), head_s=30.0)
        query.append(("resourceVersion", self._version))
        return Request(Verb.WATCH, path, tuple(query), head_s=30.0)

    # -- in

    def opened(self, now_s: float) -> tuple[Event, ...]:
        """The server answered 200; its body follows."""
        self._opened_s = now_s
        return (ListStarted(self.watched.resource),) if self._mode is _Mode.STREAM_LIST else ()

    def data(self, chunk: bytes, now_s: float) -> Iterator[Event | Skipped]:
        """What `chunk` brings. Exhaust it, then look at `over`: if set, the request is finished."""
        self._heard = True
        if self._mode in {_Mode.PAGES, _Mode.LOOK}:
            self._body.append(chunk)
            return
        try:
            for line in self._lines.feed(chunk):
                yield from self._line(line, now_s)
                if self.over is not None:
                    return
        except LineTooLong as error:
            self.over = self._malformed(str(error), now_s)

    def end(self, now_s: float) -> Iterator[Event | Skipped]:
        """The body is complete. Exhaust it, then `over` is set."""
        if self.over is not None:
            return
        if self._mode is _Mode.PAGES:
            yield from self._page(now_s)
        elif self._mode is _Mode.LOOK:
            self.over = self._seen(now_s)
        elif self._mode is _Mode.STREAM_LIST:
            # A server that ends the stream before the list is complete may not understand the request at all.
            self._mode = _Mode.PAGES
            self.over = self._after(Reason.ENDED, now_s, "the streaming list ended before it was complete")
        else:
            self.over = self._after(Reason.ENDED, now_s)

    def lost(self, reason: Reason, detail: str, now_s: float) -> Verdict:
        """The connection failed (LOST) or fell silent (STALLED), before or within the answer."""
        if self._mode is _Mode.STREAM_LIST and reason is Reason.STALLED:
            self._mode = _Mode.PAGES
        if self._mode is _Mode.WATCH and reason is Reason.STALLED and not self._heard:
            self._mode = _Mode.LOOK
            return self._after(Reason.QUIET, now_s)
        return self._after(reason, now_s, detail)

    def refused(self, status: int, body: bytes, retry_after_s: float | None, now_s: float) -> Verdict:
        """The server answered something else than 200; `body` is its Status (or whatever a proxy wrote)."""
        self._opened_s = now_s
        told = _status(body)
        return self._judge(status, told.reason, told.message or _excerpt(body), retry_after_s, now_s)

    def absent(self) -> tuple[Event, ...]:
        """The empty list that ABSENT means for a resource the server may lack; nothing once it has been listed."""
        if not self.watched.optional or self._listed:
            return ()
        self._listed = True
        return ListStarted(self.watched.resource), Listed(self.watched.resource)

    # -- inside

    def _line(self, line: bytes, now_s: float) -> Iterator[Event | Skipped]:
        try:
            item = decode.decode_watch_line(self.watched.resource, line)
        except decode.MalformedBody as error:
            self.over = self._malformed(f"{error}: {_excerpt(line)}", now_s)
            return
        match item:
            case decode.Unknown():
                return
            case decode.Error(code, reason, message, retry_after_s):
                self.over = self._judge(code, reason, message, retry_after_s, now_s)
                return
            case decode.Bookmark(_, initial_events_end):
                yield from self._bookmark(initial_events_end=initial_events_end, now_s=now_s)
                if self.over is not None:
                    return
            case decode.Decoded(key, obj):
                yield from item.skipped
                if obj is not None:
                    yield Upsert(obj)
                elif key is not None:
                    # Deleted, or no longer usable: then a relist would not show it either.
                    yield Delete(self.watched.resource, key)
        self._poisoned = 0
        if item.resource_version and self._mode is _Mode.WATCH:
            self._version = item.resource_version

    def _bookmark(self, *, initial_events_end: bool, now_s: float) -> Iterator[Event]:
        if self._mode is not _Mode.STREAM_LIST:
            return
        if initial_events_end:
            self._mode = _Mode.WATCH
            self._listed = True
            yield Listed(self.watched.resource)
        else:
            # The first bookmark of a streaming list marks its end; this server ignored that a list was asked for.
            self._streaming = False
            self._mode = _Mode.PAGES
            self.over = self._after(Reason.UNSUPPORTED, now_s, "the end of the list was not marked")

    def _page(self, now_s: float) -> Iterator[Event | Skipped]:
        body, self._body = b"".join(self._body), []
        try:
            page = decode.decode_list_page(self.watched.resource, body)
        except decode.MalformedBody as error:
            self.over = self._malformed(f"{error}: {_excerpt(body)}", now_s)
            return
        del body
        if not self._continue:
            yield ListStarted(self.watched.resource)
            # All pages are of one snapshot. Should they ever not be, watching from the first misses nothing.
            self._page_version = page.resource_version
        yield from page.skipped
        for obj in page.items:
            yield Upsert(obj)
        self._poisoned = 0
        self._continue = page.continue_token
        if page.continue_token:
            self.over = Verdict(Reason.PAGE)
            return
        self._version = self._page_version
        self._mode = _Mode.WATCH
        self._restarts = 0
        self._listed = True
        yield Listed(self.watched.resource)
        self.over = Verdict(Reason.LISTED)

    def _seen(self, now_s: float) -> Verdict:
        """After a look: watch on, unless the server's version is behind ours.

        A server restored from a backup sends nothing, not even an error, until its versions have passed ours.
        """
        body, self._body = b"".join(self._body), []
        try:
            version = decode.decode_list_page(self.watched.resource, body).resource_version
        except decode.MalformedBody as error:
            return self._malformed(f"{error}: {_excerpt(body)}", now_s)
        ours, self._mode = self._version, _Mode.WATCH
        if version.isdecimal() and ours.isdecimal() and int(version) < int(ours):
            self._relist()
            return self._after(Reason.AHEAD, now_s, f"the server is at version {version}, we were at {ours}")
        return Verdict(Reason.PAGE)

    def _judge(self, code: int, reason: str, message: str, retry_after_s: float | None, now_s: float) -> Verdict:
        """The verdict on an error, be it the answer itself or an ERROR event inside a stream."""
        if code == 410 or reason in {"Expired", "Gone"}:
            watching, first = self._mode is _Mode.WATCH, not self._relisted
            if self._mode is _Mode.PAGES and self._continue:
                self._restarts += 1
            self._relist()
            verdict = self._after(Reason.EXPIRED, now_s, message, code)
            if watching and first:
                # The changes we missed are waiting. Only a server that expires what it just listed makes us slow down.
                self._relisted = True
                return replace(verdict, wait_s=0.0)
            return verdict
        if code in {500, 504} and "too large resource version" in message.lower():
            self._relist()
            return self._after(Reason.AHEAD, now_s, message, code)
        if code in {401, 403}:
            return Verdict(Reason.DENIED, self._denied_backoff.next_s(), message, code)
        if code == 404:
            return Verdict(Reason.ABSENT, self._denied_backoff.next_s(), message, code)
        if code == 400 and self._by_field and self.watched.field_selector_optional:
            self._by_field = False
            self._relist()
            return Verdict(Reason.UNSELECTABLE, 0.0, message, code)
        if self._mode is _Mode.STREAM_LIST and 400 <= code < 500 and code != 429:
            self._streaming = False
            self._mode = _Mode.PAGES
            return Verdict(Reason.UNSUPPORTED, 0.0, message, code)
        if self._mode is _Mode.PAGES and self._continue and 400 <= code < 500 and code != 429:
            self._relist()  # a continue token the server no longer understands
        elif self._mode is _Mode.WATCH and code in {400, 422}:
            self._relist()  # a resourceVersion the server does not understand
        if code == 429 or retry_after_s is not None:
            wait_s = max(self._backoff.next_s(), min(retry_after_s or 0.0, 300.0))
            return Verdict(Reason.THROTTLED, wait_s, message, code)
        return self._after(Reason.FAILED, now_s, message, code)

    def _malformed(self, detail: str, now_s: float) -> Verdict:
        self._poisoned += 1
        if self._poisoned >= _POISON_LIMIT:
            self._poisoned = 0
            self._relist()
        return self._after(Reason.MALFORMED, now_s, detail)

    def _relist(self) -> None:
        """Forget where we were; the next request begins a full list. The state stays until that list is complete."""
        self._version = self._continue = self._page_version = ""
        self._mode = _Mode.STREAM_LIST if self._streaming else _Mode.PAGES

    def _after(self, reason: Reason, now_s: float, detail: str = "", status: int = 0) -> Verdict:
        """A verdict whose wait depends on whether the finished request had worked for a while."""
        opened_s, self._opened_s = self._opened_s, None
        if opened_s is not None and now_s - opened_s >= HEALTHY_S:
            self._backoff.reset()
            self._denied_backoff.reset()
            self._relisted = False
            return Verdict(reason, 0.0, detail, status)
        return Verdict(reason, self._backoff.next_s(), detail, status)


def _status(body: bytes) -> _Status:
    try:
        return _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Status()


def _excerpt(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace").strip()
