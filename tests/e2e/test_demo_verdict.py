"""What the demo makes of what it sees: a line that does not hold, its remedy, the verdict; no kernel needed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.demo import objects, services
from tests.demo.report import Report
from tests.demo.services import Expectation
from tests.lab.kernel.outcomes import REFUSED, TIMEOUT, Answer, Outcome


def test_one_line_that_does_not_hold_is_the_verdict() -> None:
    text = io.StringIO()
    report = Report(Console(file=text, width=100))
    report.check(True, "this holds", "3 ms")
    report.check(False, "this does not", seen="something else", remedy="look there")
    report.summary()
    assert not report.good
    summary = text.getvalue().partition("== Summary")[2]
    assert "✓ this holds: 3 ms" in summary
    assert "✗ this does not\n    seen: something else\n    next: look there" in summary
    assert "1 of 2 do not hold" in summary


def test_all_lines_hold_or_none_was_shown() -> None:
    report = Report(Console(file=io.StringIO()))
    nothing_shown = report.good
    report.check(True, "this holds")
    assert (nothing_shown, report.good) == (False, True)


def web(*endpoints: str, spread: bool = True) -> Expectation:
    return Expectation("demo/web", "10.96.20.1:80", "tcp", frozenset(endpoints), spread)


def by(*addresses: str) -> list[Outcome]:
    return [Answer(address, "10.244.1.99", 1, address) for address in addresses]


@pytest.mark.parametrize(
    ("expected", "seen", "good"),
    [
        (web("a:1", "b:1"), by("a:1", "b:1", "a:1"), True),
        (web("a:1", "b:1"), by("a:1", "a:1"), False),
        (web("a:1", "b:1", spread=False), by("a:1", "a:1"), True),
        (web("a:1"), by("a:1", "c:1"), False),
        (web("a:1"), [*by("a:1"), TIMEOUT], False),
        (web(), [REFUSED, REFUSED], True),
        (web(), [REFUSED, TIMEOUT], False),
        (web(), by("a:1"), False),
    ],
)
def test_who_may_answer(expected: Expectation, seen: list[Outcome], good: bool) -> None:
    assert (services._judge(expected, seen) == "") is good


def test_the_demos_own_objects_win() -> None:
    own = [{"kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}}]
    theirs = [
        {"kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}},
        {
            "kind": "EndpointSlice",
            "metadata": {
                "name": "x",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
        },
        {"kind": "Service", "metadata": {"name": "kube-dns"}},
    ]
    merged, left_out = objects.merged(own, theirs)
    assert merged == [own[0], theirs[2]]
    assert left_out == ["Service kube-system/kube-dns", "EndpointSlice kube-system/x"]
