"""Label and field selectors as the API server takes them, and which objects they select.

Knows: the grammar, and what an absent label means in it. Must not know: what a selection is for. Called by the file
source, so that a selector means there what it means at the API server.

Source: Kubernetes documentation "Labels and Selectors", "Field Selectors".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SET = re.compile(r"(\S+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUALITY = re.compile(r"([^\s=!]+)\s*(==|!=|=)\s*([^\s=!]*)")
_KEY = re.compile(r"[^\s=!(),]+")


@dataclass(frozen=True, slots=True)
class _Requirement:
    """`key` has one of `values` (None: any value at all), or with `negated` has not."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def holds(self, value: str | None) -> bool:
        found = value is not None if self.values is None else value in self.values
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a resource are wanted; the empty selection wants all."""

    namespace: str = ""
    labels: tuple[_Requirement, ...] = ()
    fields: tuple[_Requirement, ...] = ()

    def takes(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the object written as this manifest is selected."""
        metadata = manifest.get("metadata") or {}
        if self.namespace and (metadata.get("namespace") or "default") != self.namespace:
            return False
        labels = metadata.get("labels") or {}
        return all(r.holds(labels.get(r.key)) for r in self.labels) and all(
            r.holds(_text_at(manifest, r.key)) for r in self.fields
        )


def parse_selection(namespace: str = "", labels: str = "", fields: str = "") -> Selection:
    """The selection of a namespace, a label selector and a field selector; empty ones select all.

    Args:
        namespace: name.
        labels: `app=web,tier in (front, back),env!=test,!legacy`.
        fields: `spec.nodeName=n1,status.phase!=Failed`.

    Raises:
        ValueError: naming the part that is no requirement.
    """
    return Selection(namespace, _requirements(labels, sets=True), _requirements(fields, sets=False))


def _requirements(text: str, *, sets: bool) -> tuple[_Requirement, ...]:
    if not text.strip():
        return ()
    return tuple(_requirement(part.strip(), sets=sets) for part in re.split(r",(?![^()]*\))", text))


def _requirement(part: str, *, sets: bool) -> _Requirement:
    if match := _EQUALITY.fullmatch(part):
        key, sign, value = match.groups()
        return _Requirement(key, frozenset((value,)), sign == "!=")
    if sets and (match := _SET.fullmatch(part)):
        key, word, values = match.groups()
        return _Requirement(key, frozenset(v.strip() for v in values.split(",")), word == "notin")
    key = part.removeprefix("!").strip()
    if sets and _KEY.fullmatch(key):
        return _Requirement(key, None, part.startswith("!"))
    forms = (
        "KEY=VALUE, KEY!=VALUE, KEY in (A, B), KEY notin (A, B), KEY or !KEY" if sets else "PATH=VALUE or PATH!=VALUE"
    )
    raise ValueError(f"{part!r} is no requirement; write {forms}")


def _text_at(manifest: Mapping[str, Any], path: str) -> str:
    """The field's text; absent is empty, as the API server compares it."""
    value: Any = manifest
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
