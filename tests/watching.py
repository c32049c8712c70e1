"""A watch session and an API server face to face without IO, and the JSON both speak, for tests of the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from kubecore.decode import Skipped
from kubecore.model import Delete, Event, Listed, ListStarted, Resource, Upsert
from kubecore.snapshot import ClusterState
from kubecore.watchproto import Reason, Request, Verdict, Watched, WatchSession
from tests.lab.apiserver.cluster import Cluster
from tests.lab.apiserver.kinds import KINDS, Object
from tests.lab.apiserver.reading import list_body
from tests.lab.apiserver.status import Refusal
from tests.lab.apiserver.watching import Watch, open_watch

SERVICES = Watched(Resource.SERVICES)


def service(name: str, port: int = 80, *, version: int = 0, **labels: str) -> Object:
    """A Service as JSON: `ns/name` or a name in default."""
    namespace, _, plain = name.rpartition("/")
    metadata: Object = {"namespace": namespace or "default", "name": plain}
    if labels:
        metadata["labels"] = labels
    if version:
        metadata["resourceVersion"] = str(version)
    spec = {"clusterIP": "10.0.0.1", "ports": [{"port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def page(*objects: Object, version: int, token: str = "") -> bytes:
    """A list's answer."""
    metadata = {"resourceVersion": str(version), **({"continue": token} if token else {})}
    return msgspec.json.encode({"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": objects})


def line(event: str, obj: Object) -> bytes:
    """A line of a watch."""
    return msgspec.json.encode({"type": event, "object": obj}) + b"\n"


def bookmark(version: int, *, end: bool = False) -> bytes:
    """A bookmark; `end` marks the end of a streaming list."""
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return line("BOOKMARK", {"kind": "Service", "apiVersion": "v1", "metadata": metadata})


def status(code: int, reason: str = "", message: str = "") -> bytes:
    """A Status, as the body of a refusal."""
    return msgspec.json.encode(
        {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
    )


def error(code: int, reason: str = "", message: str = "") -> bytes:
    """The same as an event of a watch."""
    return b'{"type":"ERROR","object":%s}\n' % status(code, reason, message)


def told(events: Iterable[Event | Skipped]) -> list[str]:
    """Events in a line each: `+default/web`, `-default/web`, `[services`, `services]`."""
    notes = []
    for event in events:
        match event:
            case Skipped(_, key, field):
                notes.append(f"?{key} {field}")
            case _:
                notes.append(_note(event))
    return notes


def _note(event: Event) -> str:
    match event:
        case Upsert(obj):
            return f"+{obj.key}"
        case Delete(_, key):
            return f"-{key}"
        case ListStarted(resource):
            return f"[{resource.value}"
        case Listed(resource):
            return f"{resource.value}]"


def session(watched: Watched = SERVICES, *, streaming: bool = False, **more: Any) -> WatchSession:
    """A session whose jitter is the lower bound: waits are 0.8, 1.6, 3.2 … seconds, watches are asked for 300 s."""
    return WatchSession(watched, uniform=lambda low, high: low, streaming=streaming, **more)


def feed(s: WatchSession, *chunks: bytes, now_s: float = 0.0, end: bool = False) -> list[str]:
    """What an answer of these bytes tells, in the notation of `told`."""
    s.request()
    notes = told(s.opened(now_s))
    for chunk in chunks:
        notes += told(s.data(chunk, now_s))
    if end:
        notes += told(s.end(now_s))
    return notes


class Wire:
    """A session connected to a Cluster: each `step` moves some bytes; any of them may be the last of its connection."""

    def __init__(
        self, cluster: Cluster, s: WatchSession, *, watch_list: bool = True, state: ClusterState | None = None
    ) -> None:
        self.cluster = cluster
        self.session = s
        self.state = state or ClusterState()
        self.now_s = 0.0
        self.requests: list[tuple[float, Request]] = []
        self.verdicts: list[Verdict] = []
        self._watch_list = watch_list
        self._watch: Watch | None = None
        self._sent: Iterator[bytes] = iter(())
        self._kind = KINDS[0]

    @property
    def settled(self) -> bool:
        """A watch is open and has been sent everything there is."""
        return self._watch is not None and not self.session.listing

    def step(self, cut: int | None = None) -> None:
        """Send the next request if none is open, else take in what the server has to say; only `cut` bytes of it."""
        if self._watch is None:
            self._ask(cut)
        else:
            self._deliver(b"".join(chunk for chunk, _ in self._watch.drain()), cut)

    def _ask(self, cut: int | None) -> None:
        request = self.session.request()
        self.requests.append((self.now_s, request))
        query = dict(request.query)
        kind = self._kind
        try:
            if request.verb.value == "list":
                body = list_body(self.cluster.storage, kind, "", query)
                self._take(self.session.opened(self.now_s))
                if cut is not None and cut < len(body):
                    self._take(self.session.data(body[:cut], self.now_s))
                    return self._close(self.session.lost(Reason.LOST, "cut", self.now_s))
                self._take(self.session.data(body, self.now_s))
                self._take(self.session.end(self.now_s))
                return self._close(self.session.over)
            watch, options = open_watch(self.cluster.storage, kind, "", query, watch_list=self._watch_list)
        except Refusal as refusal:
            body = msgspec.json.encode(refusal.body())
            return self._close(self.session.refused(refusal.code, body, refusal.retry_after_s, self.now_s))
        self._watch = watch
        self._take(self.session.opened(self.now_s))
        self._deliver(b"".join(chunk for chunk, _ in watch.begin(listed=options.listed, mark=options.mark)), cut)
        return None

    def _deliver(self, sent: bytes, cut: int | None) -> None:
        assert self._watch is not None
        lost = cut is not None and cut < len(sent)
        arrived = sent[:cut] if lost else sent
        # Byte by byte would be the hardest; three unequal pieces are nearly as hard and much faster.
        at = len(arrived) // 3
        for chunk in (arrived[:at], arrived[at : at + 7], arrived[at + 7 :]):
            self._take(self.session.data(chunk, self.now_s))
            if self.session.over is not None:
                return self._close(self.session.over)
        if lost:
            return self._close(self.session.lost(Reason.LOST, "cut", self.now_s))
        if self._watch.over:
            self._take(self.session.end(self.now_s))
            return self._close(self.session.over)
        return None

    def bookmark(self) -> None:
        """Let the server say how far the open watch is."""
        if self._watch is not None:
            self.step()
        if self._watch is not None:
            self._deliver(b"".join(chunk for chunk, _ in self._watch.bookmark()), None)

    def hang_up(self, *, orderly: bool) -> None:
        """End the open watch, as a timeout (orderly) or a broken connection does."""
        if self._watch is None:
            return
        if orderly:
            self._take(self.session.end(self.now_s))
            self._close(self.session.over)
        else:
            self._close(self.session.lost(Reason.LOST, "cut", self.now_s))

    def settle(self) -> None:
        """Steps without faults until the session is up to date."""
        for _ in range(60):
            self.step()
            if self.settled:
                self.step()
                return
        raise AssertionError("the session does not settle")

    def _take(self, events: Iterable[Event | Skipped]) -> None:
        for event in events:
            if not isinstance(event, Skipped):
                self.state.apply_event(event)

    def _close(self, verdict: Verdict | None) -> None:
        assert verdict is not None
        self.verdicts.append(verdict)
        self.now_s += verdict.wait_s
        self._watch = None


def names(state: ClusterState) -> list[str]:
    """The Services known, as `ns/name`."""
    return sorted(str(key) for key in state.services)
