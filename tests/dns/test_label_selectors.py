"""Label selectors: kubectl's syntax, and what is refused."""

from __future__ import annotations

import pytest

from dnsserver.selectors import Selector

WEB = (("app", "web"), ("tier", "front"))
MATCHES = [
    ("app=web", True),
    ("app==web", True),
    ("app = web", True),
    ("app=db", False),
    ("app!=db", True),
    ("app!=web", False),
    ("gone!=x", True),
    ("app in (web, db)", True),
    ("app in (db)", False),
    ("app notin (db,x)", True),
    ("gone notin (x)", True),
    ("gone in (x)", False),
    ("app", True),
    ("gone", False),
    ("!gone", True),
    ("!app", False),
    ("app=web,tier=front", True),
    ("app=web, tier in (back, middle)", False),
    ("example.org/x", False),
    ("app=", False),
    ("gone=", False),
    ("gone==", False),
]


@pytest.mark.parametrize(("text", "matches"), MATCHES)
def test_matching(text: str, matches: bool) -> None:
    selector = Selector.parse(text)
    assert selector.matches(WEB) is matches
    assert str(selector) == text


REFUSED = ["", " ", "a b", "a=b=c", "a in b", "a in (b", "=x", "a=b c", "-a=b", "a=-b", "a,,b", "a=" + "b" * 64]


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="label"):
        Selector.parse(text)
