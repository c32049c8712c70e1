"""Label and field selectors mean what they mean at the API server."""

from __future__ import annotations

from typing import Any

import pytest

from kubecore.selectors import LabelSelector, parse_selection

_OBJECT: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "ns", "labels": {"app": "web", "tier": "front", "empty": ""}},
    "spec": {"clusterIP": "None", "nodeName": "n1", "hostNetwork": True},
}


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web", True),
        ("app=", False),
        ("app=db", False),
        ("other=x", False),
        ("app!=db", True),
        ("app!=web", False),
        ("other!=x", True),
        ("app", True),
        ("empty", True),
        ("empty=", True),
        ("other", False),
        ("!other", True),
        ("!app", False),
        ("app in (web, db)", True),
        ("app in (db)", False),
        ("other in (x)", False),
        ("app notin (db,x)", True),
        ("app notin (web)", False),
        ("other notin (x)", True),
        ("app in (web,db),tier=front,!other", True),
        ("app in (web,db),tier=back", False),
        ("!service.kubernetes.io/service-proxy-name", True),
    ],
)
def test_labels(selector: str, taken: bool) -> None:
    assert parse_selection(labels=selector).takes(_OBJECT) is taken


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ("spec.clusterIP=None", True),
        ("spec.clusterIP!=None", False),
        ("metadata.name=web,spec.nodeName=n1", True),
        ("spec.hostNetwork=true", True),
        ("status.phase!=Failed", True),
        ("status.phase=", True),
    ],
)
def test_fields(selector: str, taken: bool) -> None:
    assert parse_selection(fields=selector).takes(_OBJECT) is taken


def test_namespace() -> None:
    assert parse_selection("ns").takes(_OBJECT)
    assert not parse_selection("other").takes(_OBJECT)
    assert parse_selection("default").takes({"metadata": {"name": "x"}})


_NO_LABELS = (
    "a b",
    "a=b=c",
    "in (x)",
    "a,,b",
    "a in x",
    "a in (b",
    "=x",
    "a=b c",
    "-a=b",
    "a=-b",
    "a=" + "b" * 64,
    "!",
)


@pytest.mark.parametrize("text", _NO_LABELS)
def test_what_is_no_selector_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no label (requirement; write KEY=VALUE|value)"):
        parse_selection(labels=text)


@pytest.mark.parametrize("text", ["", " "])
def test_a_label_selector_is_not_empty(text: str) -> None:
    with pytest.raises(ValueError, match="empty label selector"):
        LabelSelector.parse(text)


def test_a_label_selector_keeps_its_text() -> None:
    selector = LabelSelector.parse("app in (web, db)")
    assert str(selector) == "app in (web, db)"
    assert selector.matches((("app", "db"), ("tier", "back")))
    assert not selector.matches(())


@pytest.mark.parametrize("text", ["spec.nodeName", "spec.x in (a)", "!spec.x"])
def test_field_selectors_know_equality_only(text: str) -> None:
    with pytest.raises(ValueError, match="write PATH=VALUE"):
        parse_selection(fields=text)
