"""The asyncio shell around watch sessions: how often it asks, when it gives up on a connection, what it logs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from kubecore import reflector, watchproto
from kubecore.api import ConnectionFailed
from kubecore.model import Resource
from kubecore.reflector import Reflector
from kubecore.store import Source, Store
from kubecore.watchproto import Watched
from tests.watching import SERVICES, bookmark, line, names, page, service, status


class Answer:
    """A canned answer: a status and chunks; then the end, or what `after` does."""

    def __init__(self, code: int, *body: bytes, retry_after_s: float | None = None, after: str = "end") -> None:
        self.status = code
        self.retry_after_s = retry_after_s
        self._body = body
        self._after = after

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._body:
            yield chunk
        if self._after == "break":
            raise ConnectionFailed("reset by peer")
        if self._after == "silence":
            await asyncio.Event().wait()


class Server:
    """A Transport which answers by a plain function, in a time of its own that only sleeping moves."""

    def __init__(self, answer: Callable[[str, dict[str, str]], Answer]) -> None:
        self.now_s = 1000.0
        self.asked: list[tuple[float, str]] = []
        self.open = 0
        self._answer = answer

    @asynccontextmanager
    async def get(self, path: str, query: Sequence[tuple[str, str]]) -> AsyncIterator[Answer]:
        self.asked.append((self.now_s, path))
        await asyncio.sleep(0)
        answer = self._answer(path, dict(query))
        self.open += 1
        try:
            yield answer
        finally:
            self.open -= 1

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    def reflector(self, *watched: Watched, **more: Any) -> Reflector:
        return Reflector(
            self, watched or (SERVICES,), clock=lambda: self.now_s, sleep=self.sleep,
            uniform=random.Random(1).uniform, **{"streaming": False, **more},
        )  # fmt: skip


async def run_until(reflector: Source, store: Store, condition: Callable[[], bool]) -> None:
    """Run the source until the condition holds, then cancel it."""
    task = asyncio.create_task(reflector.run(store))
    async with asyncio.timeout(10):
        while not condition() and not task.done():  # noqa: ASYNC110 - the condition is anything
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("turn_s", "fewest"), [(0.0, 500), (60.0, 0)])
async def test_others_get_their_turn_while_a_long_list_is_taken_in(
    turn_s: float, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "_TURN_S", turn_s)
    body = page(*(service(f"s{i}") for i in range(500)), version=1)
    server = Server(lambda _, q: Answer(200, after="silence") if "watch" in q else Answer(200, body))
    store, turns = Store(), 0

    def others() -> bool:
        nonlocal turns
        turns += bool(store.count(Resource.SERVICES))
        return store.state.is_listed(Resource.SERVICES)

    await run_until(server.reflector(), store, others)
    assert turns >= fewest
    assert fewest or turns < 10


def refusing(path: str, query: dict[str, str]) -> Answer:
    raise ConnectionFailed("connection refused")


def most_in_a_second(times: Sequence[float]) -> int:
    """The most requests that begin within any one second."""
    return max(sum(t <= later < t + 1 for later in times) for t in times)


@pytest.mark.parametrize(
    ("trouble", "answer"),
    [
        ("refused", refusing),
        ("500", lambda *_: Answer(500, b"oops")),
        ("end at once", lambda *_: Answer(200)),
        ("break at once", lambda *_: Answer(200, after="break")),
        ("half a page", lambda *_: Answer(200, page(service("a"), version=1)[:40], after="break")),
        ("no JSON", lambda *_: Answer(200, b"<html>")),
        ("410 to everything", lambda *_: Answer(410, status(410, "Expired"))),
        ("504 to everything", lambda *_: Answer(504, status(504, "Timeout", "Too large resource version: 9"))),
        ("429 without Retry-After", lambda *_: Answer(429, status(429))),
        ("Retry-After of nothing", lambda *_: Answer(429, status(429), retry_after_s=0.0)),
        ("403", lambda *_: Answer(403, status(403, "Forbidden"))),
        ("lists well, refuses to watch", lambda _, q: Answer(422) if "watch" in q else Answer(200, page(version=1))),
        ("lists well, ends each watch", lambda _, q: Answer(200) if "watch" in q else Answer(200, page(version=1))),
        ("lists well, expires each watch", lambda _, q: Answer(410) if "watch" in q else Answer(200, page(version=1))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_server_in_trouble_is_asked_less_than_five_times_a_second(
    trouble: str, answer: Callable[..., Answer], *, streaming: bool
) -> None:
    server, store = Server(answer), Store()
    await run_until(server.reflector(streaming=streaming), store, lambda: len(server.asked) >= 80)
    times = [t for t, _ in server.asked]
    assert most_in_a_second(times) < 5, trouble
    late = [b - a for a, b in pairwise(times[20:])]
    assert sum(late) / len(late) > 5, "in the long run there are many seconds between requests"
    assert max(late) <= 60
    assert store.figures[Resource.SERVICES].failures > 0 or trouble.startswith(("end", "lists"))


async def test_each_resource_has_its_own_back_off() -> None:
    def answer(path: str, query: dict[str, str]) -> Answer:
        if "pods" in path:
            raise ConnectionFailed("refused")
        if "watch" in query:
            return Answer(200, line("ADDED", service("b", version=8)), after="silence")
        return Answer(200, page(service("a"), version=7))

    server, store = Server(answer), Store()
    reflector = server.reflector(Watched(Resource.PODS), SERVICES)
    await run_until(reflector, store, lambda: len(store.state.services) == 2)
    assert store.state.is_listed(Resource.SERVICES)
    assert not store.state.is_listed(Resource.PODS)


async def test_silence_for_too_long_makes_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchproto, "WATCH_SILENCE_S", 0.05)
    watches = []

    def answer(path: str, query: dict[str, str]) -> Answer:
        if "watch" not in query:
            return Answer(200, page(version=7))
        watches.append(query["resourceVersion"])
        return Answer(200, bookmark(7 + len(watches)), after="silence")

    server, store = Server(answer), Store()
    with capture_logs() as logs:
        await run_until(server.reflector(), store, lambda: len(watches) == 3)
    assert watches == ["7", "8", "9"]
    assert {"watch.stream.stalled"} == {e["event"] for e in logs if e["log_level"] == "warning"}


async def test_a_watch_on_which_nothing_happens_is_renewed_and_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchproto, "WATCH_SILENCE_S", 0.05)
    watches = []

    def answer(path: str, query: dict[str, str]) -> Answer:
        if "watch" in query:
            watches.append(query["resourceVersion"])
            return Answer(200, after="silence")
        return Answer(200, page(version=7))

    server, store = Server(answer), Store()
    with capture_logs() as logs:
        await run_until(server.reflector(), store, lambda: len(watches) == 4)
    assert watches == ["7"] * 4
    assert store.staleness_s(Resource.SERVICES) < 0.05, "the head of an answer is a sign of life"
    assert store.figures[Resource.SERVICES].failures == 0
    assert [e["event"] for e in logs] == ["watch.list.completed"]


async def test_bytes_that_keep_coming_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchproto, "WATCH_SILENCE_S", 0.2)

    class Dribble(Answer):
        async def chunks(self) -> AsyncIterator[bytes]:
            for i in range(8):
                await asyncio.sleep(0.05)
                yield bookmark(10 + i)
            await asyncio.Event().wait()

    server = Server(lambda _, q: Dribble(200) if "watch" in q else Answer(200, page(version=7)))
    store = Store()
    task = asyncio.create_task(server.reflector().run(store))
    await asyncio.sleep(0.5)
    assert len(server.asked) == 2
    task.cancel()


async def test_an_answer_that_never_begins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Server):
        @asynccontextmanager
        async def get(self, path: str, query: Sequence[tuple[str, str]]) -> AsyncIterator[Answer]:
            self.asked.append((self.now_s, path))
            await asyncio.Event().wait()
            yield Answer(200)

    request = watchproto.Request
    monkeypatch.setattr(watchproto, "Request", lambda *a, **k: request(*a, **{**k, "head_s": 0.02}))
    server = Hanging(refusing)
    await run_until(server.reflector(), Store(), lambda: len(server.asked) == 3)


async def test_cancelling_closes_every_connection() -> None:
    server = Server(lambda _, q: Answer(200, after="silence") if "watch" in q else Answer(200, page(version=7)))
    store = Store()
    watched = [Watched(r) for r in (Resource.SERVICES, Resource.NODES, Resource.PODS)]
    await run_until(server.reflector(*watched), store, lambda: server.open == 3)
    assert server.open == 0


async def test_a_forbidden_resource_is_an_error_that_says_what_rule_is_missing() -> None:
    server = Server(lambda *_: Answer(403, status(403, "Forbidden", "user x cannot list")))
    with capture_logs() as logs:
        await run_until(server.reflector(Watched(Resource.ENDPOINT_SLICES)), Store(), lambda: len(server.asked) == 2)
    denied = logs[0]
    assert (denied["event"], denied["log_level"]) == ("watch.request.denied", "error")
    assert (denied["resource"], denied["verb"], denied["detail"]) == ("endpointslices", "list", "user x cannot list")
    assert denied["remedy"] == (
        "add to our ClusterRole: apiGroups: ['discovery.k8s.io'], resources: ['endpointslices'], "
        "verbs: ['list', 'watch']"
    )


async def test_a_malformed_object_is_named_and_does_not_stop_the_rest() -> None:
    bad = service("bad")
    bad["spec"]["ports"] = "none"
    server = Server(
        lambda _, q: Answer(200, after="silence") if "watch" in q else Answer(200, page(service("a"), bad,
        service("z"), version=7))
    )  # fmt: skip
    store = Store()
    with capture_logs() as logs:
        await run_until(server.reflector(), store, lambda: store.state.is_listed(Resource.SERVICES))
    assert names(store.state) == ["default/a", "default/z"]
    assert store.figures[Resource.SERVICES].skipped == 1
    skipped = next(e for e in logs if e["event"] == "kubecore.object.skipped")
    assert (skipped["object"], skipped["field"]) == ("default/bad", "spec.ports")


async def test_an_ordinary_start_says_no_more_than_that_the_list_is_there() -> None:
    server = Server(
        lambda _, q: Answer(200, after="silence") if "watch" in q else Answer(200, page(service("a"), version=7))
    )
    store = Store()
    with capture_logs() as logs:
        await run_until(
            server.reflector(), store, lambda: server.open == 1 and store.state.is_listed(Resource.SERVICES)
        )
    assert [(e["event"], e["objects"]) for e in logs] == [("watch.list.completed", 1)]


async def test_an_outage_is_told_with_its_length() -> None:
    asked = []

    def answer(path: str, query: dict[str, str]) -> Answer:
        asked.append(path)
        if len(asked) <= 3:
            raise ConnectionFailed("connection refused")
        return Answer(200, after="silence") if "watch" in query else Answer(200, page(version=7))

    server, store = Server(answer), Store()
    with capture_logs() as logs:
        await run_until(server.reflector(), store, lambda: store.state.is_listed(Resource.SERVICES))
    assert [e["event"] for e in logs] == [
        "watch.request.failed", "watch.request.failed", "watch.request.failed",
        "watch.connection.restored", "watch.list.completed",
    ]  # fmt: skip
    assert logs[3]["outage_s"] == pytest.approx(sum(e["wait_s"] for e in logs[:3]), abs=0.3)


# -- the store


async def test_staleness_counts_from_the_last_proof_of_life() -> None:
    now_s = 50.0
    store = Store(clock=lambda: now_s)
    assert store.staleness_s(Resource.SERVICES) == float("inf")
    store.note_alive(Resource.SERVICES)
    now_s = 63.5
    assert store.staleness_s(Resource.SERVICES) == 13.5
    assert store.staleness() == {Resource.SERVICES: 13.5}


async def test_waiting_for_lists_waits_for_all_of_them() -> None:
    server = Server(lambda _, q: Answer(200, after="silence") if "watch" in q else Answer(200, page(version=7)))
    store = Store()
    waiting = asyncio.create_task(store.wait_listed(Resource.SERVICES, Resource.NODES))
    await run_until(server.reflector(SERVICES), store, lambda: store.state.is_listed(Resource.SERVICES))
    assert not waiting.done()
    await run_until(server.reflector(Watched(Resource.NODES)), store, waiting.done)


async def test_changes_wake_the_reader_once() -> None:
    store = Store()
    server = Server(
        lambda _, q: Answer(200, after="silence") if "watch" in q else Answer(200, page(service("a"), version=7))
    )
    reader = asyncio.create_task(store.wait_changed())
    await run_until(server.reflector(), store, lambda: store.state.is_listed(Resource.SERVICES))
    await reader
    assert [str(k) for k in store.take_changes().services] == ["default/a"]
    assert not store.take_changes()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.wait_changed(), 0.01)
