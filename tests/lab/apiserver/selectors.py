"""Label and field selectors, as the API server reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.lab.apiserver.kinds import Kind, Object
from tests.lab.apiserver.status import bad_request

Matcher = Callable[[Object], bool]
_KEY = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_EQUALS = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})")


def label_matcher(selector: str) -> Matcher:
    """Whether an object's labels satisfy `selector`; an empty one matches everything. Raises Refusal (400)."""
    tests = [_requirement(part.strip()) for part in _split(selector)] if selector.strip() else []

    def matches(obj: Object) -> bool:
        labels = obj["metadata"].get("labels") or {}
        return all(test(labels) for test in tests)

    return matches


def _split(selector: str) -> list[str]:
    """Parts between the commas that are not in parentheses."""
    return re.split(r",(?![^(]*\))", selector)


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    if m := _SET.fullmatch(text):
        key, values = m[1], {v.strip() for v in m[3].split(",")}
        for value in values:
            if not re.fullmatch(_VALUE, value):
                raise bad_request(f"unable to parse requirement: values: Invalid value: {value!r}")
        if m[2] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if m := _EQUALS.fullmatch(text):
        key, value = m[1], m[3]
        if m[2] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if m := _EXISTS.fullmatch(text):
        key, absent = m[2], bool(m[1])
        return lambda labels: (key in labels) is not absent
    raise bad_request(
        f"unable to parse requirement: found {text!r}, expected: identifier, '!', 'in', 'notin', '=', '!='"
    )


def field_matcher(kind: Kind, selector: str) -> Matcher:
    """Whether an object's fields satisfy `selector`. Raises Refusal (400) for a field this kind cannot be selected
    by."""
    known: tuple[str, ...] = ("metadata.name", "metadata.namespace") if kind.namespaced else ("metadata.name",)
    known += kind.selectable
    tests: list[tuple[str, bool, str]] = []
    for part in filter(None, (p.strip() for p in selector.split(","))):
        m = re.fullmatch(r"([A-Za-z.]+)(==|=|!=)(.*)", part)
        if not m:
            raise bad_request(f"invalid selector: {selector!r}; can't understand {part!r}")
        if m[1] not in known:
            if kind.selectable:
                raise bad_request(f"field label not supported: {m[1]}")
            only = ", ".join(f'"{field}"' for field in known)
            raise bad_request(f'"{m[1]}" is not a known field selector: only {only}')
        tests.append((m[1], m[2] != "!=", m[3]))

    def matches(obj: Object) -> bool:
        return all((_field(obj, path) == value) is wanted for path, wanted, value in tests)

    return matches


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def named(selector: str) -> str:
    """The one name a field selector asks for, as RBAC's resourceNames see it; empty if it does not."""
    for part in selector.split(","):
        if m := re.fullmatch(r"metadata\.name==?(.+)", part.strip()):
            return m[1]
    return ""
