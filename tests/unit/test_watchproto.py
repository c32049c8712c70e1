"""The list-and-watch protocol, request by request. Notation of events: see tests/watching.py."""

from __future__ import annotations

import pytest

from kubecore.lines import LineSplitter, LineTooLong
from kubecore.model import Resource
from kubecore.watchproto import Reason, Verdict, Watched, WatchSession
from tests.watching import SERVICES, bookmark, error, feed, line, page, service, session, status, told

LISTED = page(service("web"), version=7)


def asked(s: WatchSession) -> str:
    """The request in one line, without what every watch has."""
    request = s.request()
    dull = {"watch", "allowWatchBookmarks", "timeoutSeconds"}
    query = "&".join(f"{k}={v}" for k, v in request.query if k not in dull)
    return f"{request.verb.value} {request.path}{'?' + query if query else ''}"


def listed(**more: object) -> WatchSession:
    """A session that has its list and would now watch from version 7."""
    s = session(**more)  # type: ignore[arg-type]
    feed(s, LISTED, end=True)
    return s


# -- requests


@pytest.mark.parametrize(
    ("watched", "request_line"),
    [
        (SERVICES, "list /api/v1/services?limit=500"),
        (Watched(Resource.NODES, field_selector="metadata.name=n1"),
         "list /api/v1/nodes?fieldSelector=metadata.name=n1&limit=500"),
        (Watched(Resource.ENDPOINT_SLICES, label_selector="!service.kubernetes.io/headless", page_limit=100),
         "list /apis/discovery.k8s.io/v1/endpointslices?labelSelector=!service.kubernetes.io/headless&limit=100"),
        (Watched(Resource.PODS, namespace="kube-system"), "list /api/v1/namespaces/kube-system/pods?limit=500"),
        (Watched(Resource.NAMESPACES), "list /api/v1/namespaces?limit=500"),
        (Watched(Resource.SERVICE_CIDRS), "list /apis/networking.k8s.io/v1/servicecidrs?limit=500"),
    ],
)  # fmt: skip
def test_where_a_resource_is_asked_for(watched: Watched, request_line: str) -> None:
    assert asked(session(watched)) == request_line


def test_a_watch_asks_for_bookmarks_and_a_random_end() -> None:
    s = listed()
    assert dict(s.request().query) == {
        "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": "300", "resourceVersion": "7",
    }  # fmt: skip


def test_selectors_go_with_every_request() -> None:
    s = session(Watched(Resource.SERVICES, label_selector="a=b"))
    feed(s, page(version=7), end=True)
    assert asked(s) == "watch /api/v1/services?labelSelector=a=b&resourceVersion=7"


# -- lists


def test_a_list_in_pages_is_one_list() -> None:
    s = session()
    assert feed(s, page(service("a"), version=7, token="T1"), end=True) == ["[services", "+default/a"]
    assert s.over == Verdict(Reason.PAGE, wait_s=0.0)
    assert asked(s) == "list /api/v1/services?limit=500&continue=T1"
    assert feed(s, page(service("b"), version=7), end=True) == ["+default/b", "services]"]
    assert s.over == Verdict(Reason.LISTED)
    assert asked(s) == "watch /api/v1/services?resourceVersion=7"


def test_nothing_is_told_of_a_page_that_is_incomplete() -> None:
    s = session()
    assert feed(s, LISTED[:-5]) == []
    verdict = s.lost(Reason.LOST, "reset", 0.0)
    assert (verdict.reason, verdict.wait_s) == (Reason.LOST, 0.8)
    assert asked(s) == "list /api/v1/services?limit=500"


def test_a_failed_page_is_asked_for_again() -> None:
    s = session()
    feed(s, page(service("a"), version=7, token="T1"), end=True)
    s.request()
    verdict = s.refused(500, b"oops", None, 0.0)
    assert (verdict.reason, verdict.detail, verdict.wait_s) == (Reason.FAILED, "oops", 0.8)
    assert asked(s) == "list /api/v1/services?limit=500&continue=T1"


def test_an_expired_continue_token_begins_the_list_anew_with_larger_pages_in_the_end() -> None:
    s = session()
    limits = []
    for _ in range(4):
        notes = feed(s, page(service("a"), version=7, token="T"), end=True)
        assert notes == ["[services", "+default/a"], "the list starts over, so that what is gone meanwhile is swept"
        s.request()
        assert s.refused(410, status(410, "Expired"), None, 0.0).reason is Reason.EXPIRED
        limits.append(asked(s).partition("?")[2])
    assert limits == ["limit=500", "limit=5000", "", ""]


# -- streaming lists


STREAMING = "watch /api/v1/services?sendInitialEvents=true&resourceVersionMatch=NotOlderThan"


def test_a_streaming_list_ends_with_the_marked_bookmark_and_goes_on_as_a_watch() -> None:
    s = session(streaming=True)
    assert asked(s) == STREAMING
    initial = line("ADDED", service("a", version=3)) + bookmark(9, end=True)
    assert feed(s, initial) == ["[services", "+default/a", "services]"]
    assert not s.listing
    assert told(s.data(line("DELETED", service("a", version=10)), 1.0)) == ["-default/a"]
    assert s.lost(Reason.LOST, "", 100.0).wait_s == 0
    assert asked(s) == "watch /api/v1/services?resourceVersion=10"


def test_an_interrupted_streaming_list_starts_over() -> None:
    s = session(streaming=True)
    assert feed(s, line("ADDED", service("a", version=3))) == ["[services", "+default/a"]
    s.lost(Reason.LOST, "", 0.1)
    assert asked(s) == STREAMING
    assert s.resource_version == "", "versions within a streaming list are no place to resume from"


@pytest.mark.parametrize("code", [400, 422])
def test_a_server_that_cannot_stream_lists_is_asked_for_pages_at_once_and_for_ever(code: int) -> None:
    s = session(streaming=True)
    s.request()
    verdict = s.refused(code, status(code, "Invalid", "sendInitialEvents: Forbidden"), None, 0.0)
    assert (verdict.reason, verdict.wait_s) == (Reason.UNSUPPORTED, 0)
    assert asked(s) == "list /api/v1/services?limit=500"
    feed(s, LISTED, end=True)
    feed(s, error(410, "Expired"))
    assert asked(s) == "list /api/v1/services?limit=500"


def test_a_server_that_ignores_the_wish_to_stream_is_found_out_by_its_first_bookmark() -> None:
    s = session(streaming=True)
    assert feed(s, line("ADDED", service("a", version=3)), bookmark(9)) == ["[services", "+default/a"]
    assert s.over is not None
    assert s.over.reason is Reason.UNSUPPORTED
    assert asked(s) == "list /api/v1/services?limit=500"


@pytest.mark.parametrize("how", ["end", "stall"])
def test_a_streaming_list_that_leads_nowhere_is_replaced_by_pages_once(how: str) -> None:
    s = session(streaming=True)
    feed(s, line("ADDED", service("a", version=3)), end=how == "end")
    if how == "stall":
        s.lost(Reason.STALLED, "", 30.0)
    assert asked(s) == "list /api/v1/services?limit=500"
    feed(s, LISTED, end=True)
    feed(s, error(410, "Expired"))
    assert asked(s) == STREAMING


FEW = Watched(Resource.SERVICES, field_selector="spec.clusterIP!=None", field_selector_optional=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_field_the_server_cannot_select_by_is_left_out_for_ever(*, streaming: bool) -> None:
    s = session(FEW, streaming=streaming)
    assert "fieldSelector=spec.clusterIP!=None" in asked(s)
    verdict = s.refused(400, status(400, "BadRequest", "field label not supported: spec.clusterIP"), None, 0.0)
    assert (verdict.reason, verdict.wait_s) == (Reason.UNSELECTABLE, 0)
    assert asked(s) == (STREAMING if streaming else "list /api/v1/services?limit=500")
    if not streaming:
        feed(s, LISTED, end=True)
        assert asked(s) == "watch /api/v1/services?resourceVersion=7"


def test_an_older_server_behind_the_same_address_makes_a_new_list_without_that_field() -> None:
    s = session(FEW)
    feed(s, LISTED, end=True)
    assert s.refused(400, status(400, "BadRequest"), None, 9.0).reason is Reason.UNSELECTABLE
    assert asked(s) == "list /api/v1/services?limit=500"


def test_a_field_that_matters_is_insisted_on() -> None:
    s = session(Watched(Resource.NODES, field_selector="metadata.name=n1"))
    assert s.refused(400, status(400, "BadRequest"), None, 0.0).reason is Reason.FAILED
    assert asked(s) == "list /api/v1/nodes?fieldSelector=metadata.name=n1&limit=500"


# -- watches


def test_the_version_to_resume_from_follows_events_and_bookmarks() -> None:
    s = listed()
    feed(s, line("ADDED", service("a", version=8)))
    assert s.resource_version == "8"
    list(s.data(bookmark(20), 0.0))
    assert s.resource_version == "20"


def test_the_version_moves_only_after_the_event_was_taken() -> None:
    s = listed()
    s.request()
    s.opened(0.0)
    events = s.data(line("ADDED", service("a", version=8)), 0.0)
    next(events)
    assert s.resource_version == "7"
    assert list(events) == []
    assert s.resource_version == "8"


def test_an_object_that_became_unusable_is_named_and_no_longer_there() -> None:
    s = listed()
    broken = service("web", version=8)
    broken["spec"]["ports"] = [{"port": 99999}]
    assert feed(s, line("MODIFIED", broken)) == ["?default/web spec.ports[0].port", "-default/web"]
    assert s.resource_version == "8"


def test_an_unknown_kind_of_event_is_passed_over() -> None:
    assert feed(listed(), line("CONFUSED", {}), line("ADDED", service("a", version=8))) == ["+default/a"]


@pytest.mark.parametrize("how", ["event", "answer"])
def test_an_expired_version_leads_to_a_new_list_at_once(how: str) -> None:
    s = listed()
    s.request()
    if how == "event":
        s.opened(0.0)
        assert told(s.data(error(410, "Expired", "too old resource version: 7 (9)"), 1.0)) == []
        verdict = s.over
    else:
        verdict = s.refused(410, status(410, "Expired"), None, 1.0)
    assert verdict is not None
    assert (verdict.reason, verdict.wait_s) == (Reason.EXPIRED, 0)
    assert asked(s) == "list /api/v1/services?limit=500"
    assert feed(s, page(version=30), end=True) == ["[services", "services]"]
    assert asked(s) == "watch /api/v1/services?resourceVersion=30"


def test_a_server_that_expires_what_it_just_listed_is_not_hammered() -> None:
    s = listed()
    waits = []
    for _ in range(4):
        feed(s, error(410, "Expired"))
        assert s.over is not None
        waits.append(s.over.wait_s)
        feed(s, LISTED, end=True)
    assert waits == [0, 1.6, 3.2, 6.4]


@pytest.mark.parametrize("code", [500, 504])
def test_a_version_the_server_has_not_reached_leads_to_a_new_list(code: int) -> None:
    s = listed()
    s.request()
    verdict = s.refused(code, status(code, "Timeout", "Too large resource version: 7, current: 3"), 1.0, 0.0)
    assert verdict.reason is Reason.AHEAD
    assert asked(s) == "list /api/v1/services?limit=500"


def test_errors_inside_the_stream_resume_where_it_was() -> None:
    s = listed()
    feed(s, line("ADDED", service("a", version=8)), error(500, "InternalError", "etcd is away"))
    assert s.over is not None
    assert (s.over.reason, s.over.detail) == (Reason.FAILED, "etcd is away")
    assert asked(s) == "watch /api/v1/services?resourceVersion=8"


def test_garbage_resumes_at_the_last_good_event_and_lists_anew_if_it_stays() -> None:
    s = listed()
    for _ in range(2):
        assert feed(s, b'{"type":"ADDED","obj\n') == []
        assert s.over is not None
        assert s.over.reason is Reason.MALFORMED
        assert asked(s) == "watch /api/v1/services?resourceVersion=7"
    feed(s, b"<html>\n")
    assert asked(s) == "list /api/v1/services?limit=500"


def test_a_list_that_is_none_is_asked_for_again() -> None:
    s = session()
    assert feed(s, b"<html>login</html>", end=True) == []
    assert s.over is not None
    assert s.over.reason is Reason.MALFORMED
    assert "<html>login" in s.over.detail


# -- when to ask again


@pytest.mark.parametrize(
    ("lived_s", "wait_s"),
    [(0.0, 0.8), (4.9, 0.8), (5.0, 0.0), (400.0, 0.0)],
)
def test_a_watch_that_ends_soon_is_renewed_after_a_wait_a_good_one_at_once(lived_s: float, wait_s: float) -> None:
    s = listed()
    feed(s, now_s=1000.0)
    list(s.end(1000.0 + lived_s))
    assert s.over is not None
    assert (s.over.reason, s.over.wait_s) == (Reason.ENDED, wait_s)


def test_waits_grow_while_it_fails_and_start_anew_after_a_good_watch() -> None:
    s = listed()
    waits = []
    for _ in range(3):
        s.request()
        waits.append(s.lost(Reason.LOST, "refused", 0.0).wait_s)
    feed(s, now_s=0.0)
    waits.append(s.lost(Reason.LOST, "reset", 60.0).wait_s)
    s.request()
    waits.append(s.lost(Reason.LOST, "refused", 60.0).wait_s)
    assert waits == [0.8, 1.6, 3.2, 0, 0.8]


@pytest.mark.parametrize(
    ("code", "retry_after_s", "reason", "wait_s"),
    [
        (429, 7.0, Reason.THROTTLED, 7.0),
        (429, None, Reason.THROTTLED, 0.8),
        (503, 3.0, Reason.THROTTLED, 3.0),
        (503, None, Reason.FAILED, 0.8),
        (500, None, Reason.FAILED, 0.8),
        (429, 1e9, Reason.THROTTLED, 300.0),
        (401, None, Reason.DENIED, 4.8),
        (403, None, Reason.DENIED, 4.8),
        (404, None, Reason.ABSENT, 4.8),
    ],
)
def test_how_long_a_refusal_waits(code: int, retry_after_s: float | None, reason: Reason, wait_s: float) -> None:
    s = listed()
    s.request()
    verdict = s.refused(code, status(code, message="no"), retry_after_s, 0.0)
    assert (verdict.reason, verdict.status, verdict.detail) == (reason, code, "no")
    assert verdict.wait_s == pytest.approx(wait_s)
    assert s.resource_version == "7", "a refusal does not make us forget"


def test_silence_is_bounded_more_tightly_while_listing() -> None:
    s = session(streaming=True)
    assert s.silence_s == 30
    feed(s, bookmark(9, end=True))
    assert s.silence_s == 150


LOOK = "list /api/v1/services?limit=1"
AGAIN = "watch /api/v1/services?resourceVersion=7"


def quiet(s: WatchSession) -> Verdict:
    """150 s without a byte."""
    s.request()
    s.opened(0.0)
    return s.lost(Reason.STALLED, "", 150.0)


def test_a_watch_on_which_nothing_came_is_no_failure_and_goes_on_after_a_look() -> None:
    s = listed()
    assert quiet(s) == Verdict(Reason.QUIET)
    assert asked(s) == LOOK
    assert not s.listing
    assert feed(s, page(service("web"), version=2000, token="t"), end=True) == []
    assert (s.over, asked(s)) == (Verdict(Reason.PAGE), AGAIN)


@pytest.mark.parametrize(("there", "then"), [("6", "list /api/v1/services?limit=500"), ("7", AGAIN), ("v6", AGAIN)])
def test_a_server_restored_from_a_backup_is_silent_and_found_out(there: str, then: str) -> None:
    s = listed()
    quiet(s)
    feed(s, page(version=0).replace(b'"0"', f'"{there}"'.encode()), end=True)
    assert asked(s) == then


def test_a_look_that_fails_is_a_failure_and_tried_again() -> None:
    s = listed()
    quiet(s)
    s.request()
    assert s.lost(Reason.LOST, "refused", 150.0).reason is Reason.LOST
    assert asked(s) == LOOK
    feed(s, b"<html>", end=True)
    assert s.over is not None
    assert s.over.reason is Reason.MALFORMED
    assert asked(s) == LOOK


def test_silence_after_a_bookmark_is_a_failure() -> None:
    s = listed()
    feed(s, bookmark(9))
    assert s.lost(Reason.STALLED, "", 200.0).reason is Reason.STALLED
    assert asked(s) == "watch /api/v1/services?resourceVersion=9"


def test_a_resource_the_server_may_lack_counts_as_empty_once() -> None:
    s = session(Watched(Resource.SERVICE_CIDRS, optional=True))
    s.request()
    assert s.refused(404, b"404 page not found", None, 0.0).reason is Reason.ABSENT
    assert told(s.absent()) == ["[servicecidrs", "servicecidrs]"]
    assert s.absent() == ()
    assert session().absent() == (), "a resource that must be there is not empty because a proxy says 404"


# -- lines


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\n", b"c"], [b"ab"]),
        ([b"\n\na\n\n"], [b"a"]),
        ([b"a\r\nb", b"\r\n"], [b"a", b"b"]),
        ([b""], []),
    ],
)
def test_lines(chunks: list[bytes], lines: list[bytes]) -> None:
    splitter = LineSplitter()
    assert [found for chunk in chunks for found in splitter.feed(chunk)] == lines


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    splitter = LineSplitter(limit_bytes=1000)
    for _ in range(100):
        assert list(splitter.feed(b"x" * 10)) == []
    with pytest.raises(LineTooLong):
        list(splitter.feed(b"x"))
    s = listed()
    s._lines = LineSplitter(limit_bytes=10)
    assert told(s.data(b"x" * 11, 0.0)) == []
    assert s.over is not None
    assert s.over.reason is Reason.MALFORMED
