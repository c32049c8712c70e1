"""Label and field selectors as the API server takes them, and which objects they select.

Knows: the grammar, and what an absent label means in it. Must not know: what a selection is for. Called by the file
source, so that a selector means there what it means at the API server, and by who filters objects by label himself.

Source: Kubernetes documentation "Labels and Selectors", "Field Selectors"; k8s.io/apimachinery labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_SET = re.compile(r"(\S+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUALITY = re.compile(r"([^\s=!]+)\s*(==|!=|=)\s*([^\s=!]*)")
_LABEL_KEY = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_FORMS = "KEY=VALUE, KEY!=VALUE, KEY in (A, B), KEY notin (A, B), KEY or !KEY"


@dataclass(frozen=True, slots=True)
class Requirement:
    """`key` has one of `values` (None: any value at all), or with `negated` has not."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def holds(self, value: str | None) -> bool:
        """Whether a value meets it; None: the label is absent, which only a negated requirement likes."""
        found = value is not None if self.values is None else value in self.values
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A conjunction of requirements; `parse` makes it, `str()` gives back the text."""

    text: str
    requirements: tuple[Requirement, ...]

    @classmethod
    def parse(cls, text: str) -> LabelSelector:
        """The selector written as `text`: `app=web,tier in (front, back),env!=test,!legacy`.

        Raises:
            ValueError: naming the part that is no requirement.
        """
        parts = _parts(text)
        if not any(parts):
            raise ValueError("empty label selector; write for example app=web")
        return cls(text, tuple(map(_label_requirement, parts)))

    def matches(self, labels: Iterable[tuple[str, str]]) -> bool:
        """Whether an object with these labels is selected."""
        have = dict(labels)
        return all(requirement.holds(have.get(requirement.key)) for requirement in self.requirements)

    def __str__(self) -> str:
        """The text it was parsed from."""
        return self.text


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a resource are wanted; the empty selection wants all."""

    namespace: str = ""
    labels: LabelSelector | None = None
    fields: tuple[Requirement, ...] = ()

    def takes(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the object written as this manifest is selected."""
        metadata = manifest.get("metadata") or {}
        if self.namespace and (metadata.get("namespace") or "default") != self.namespace:
            return False
        if self.labels is not None and not self.labels.matches((metadata.get("labels") or {}).items()):
            return False
        return all(r.holds(_text_at(manifest, r.key)) for r in self.fields)


def parse_selection(namespace: str = "", labels: str = "", fields: str = "") -> Selection:
    """The selection of a namespace, a label selector and a field selector; empty ones select all.

    Args:
        namespace: name.
        labels: as `LabelSelector.parse` takes it.
        fields: `spec.nodeName=n1,status.phase!=Failed`.

    Raises:
        ValueError: naming the part that is no requirement.
    """
    by_field = tuple(map(_field_requirement, _parts(fields))) if fields.strip() else ()
    return Selection(namespace, LabelSelector.parse(labels) if labels.strip() else None, by_field)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in re.split(r",(?![^()]*\))", text)]


def _label_requirement(part: str) -> Requirement:
    if match := _EQUALITY.fullmatch(part):
        key, sign, value = match.groups()
        found = Requirement(key, frozenset((value,)), sign == "!=")
    elif match := _SET.fullmatch(part):
        key, word, values = match.groups()
        found = Requirement(key, frozenset(v.strip() for v in values.split(",")), word == "notin")
    else:
        found = Requirement(part.removeprefix("!").strip(), None, part.startswith("!"))
    if not _LABEL_KEY.fullmatch(found.key):
        raise ValueError(f"{part!r} is no label requirement; write {_LABEL_FORMS}")
    for value in found.values or ():
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{value!r} in {part!r} is no label value (at most 63 letters, digits, '-', '_', '.')")
    return found


def _field_requirement(part: str) -> Requirement:
    if match := _EQUALITY.fullmatch(part):
        path, sign, value = match.groups()
        return Requirement(path, frozenset((value,)), sign == "!=")
    raise ValueError(f"{part!r} is no field requirement; write PATH=VALUE or PATH!=VALUE")


def _text_at(manifest: Mapping[str, Any], path: str) -> str:
    """The field's text; absent is empty, as the API server compares it."""
    value: Any = manifest
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
