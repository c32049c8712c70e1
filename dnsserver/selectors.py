"""Label selectors: `app=web,tier in (front, back),!legacy`, parsed and matched.

Knows the syntax kubectl's `-l` takes. Must not know which objects are selected. Made by the Corefile parser, asked by
the zone.

Source: k8s.io/apimachinery labels, "Labels and Selectors" in the Kubernetes documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_SET = re.compile(r"(\S+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUALITY = re.compile(r"([^\s=!]+)\s*(==|=|!=)\s*([^\s=!]*)")


class _Operator(Enum):
    IN = "in"
    """The label is there with one of the values."""
    NOT_IN = "notin"
    """The label is absent, or has another value."""
    EXISTS = "exists"
    ABSENT = "!"


@dataclass(frozen=True, slots=True)
class _Requirement:
    key: str
    operator: _Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: dict[str, str]) -> bool:
        match self.operator:
            case _Operator.IN:
                return labels.get(self.key) in self.values
            case _Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case _Operator.EXISTS:
                return self.key in labels
            case _Operator.ABSENT:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    """A conjunction of requirements; `parse` makes it, `str()` gives back the text."""

    text: str
    requirements: tuple[_Requirement, ...]

    @classmethod
    def parse(cls, text: str) -> Selector:
        """The selector written as `text`.

        Raises:
            ValueError: naming the part that is no requirement.
        """
        parts = [part.strip() for part in re.split(r",(?![^(]*\))", text)]
        if not any(parts):
            raise ValueError("empty label selector; write for example app=web")
        return cls(text, tuple(_parse_requirement(part) for part in parts))

    def matches(self, labels: Iterable[tuple[str, str]]) -> bool:
        """Whether an object with these labels is selected."""
        have = dict(labels)
        return all(requirement.matches(have) for requirement in self.requirements)

    def __str__(self) -> str:
        """The text it was parsed from."""
        return self.text


def _parse_requirement(part: str) -> _Requirement:
    if match := _SET.fullmatch(part):
        key, word, listed = match.groups()
        values = frozenset(value.strip() for value in listed.split(","))
        return _Requirement(_checked_key(key, part), _Operator(word), _checked_values(values, part))
    if match := _EQUALITY.fullmatch(part):
        key, sign, value = match.groups()
        operator = _Operator.NOT_IN if sign == "!=" else _Operator.IN
        return _Requirement(_checked_key(key, part), operator, _checked_values(frozenset((value,)), part))
    if part.startswith("!"):
        return _Requirement(_checked_key(part[1:].strip(), part), _Operator.ABSENT)
    return _Requirement(_checked_key(part, part), _Operator.EXISTS)


def _checked_key(key: str, part: str) -> str:
    if not _LABEL_KEY.fullmatch(key):
        raise ValueError(f"{part!r} is no label requirement; write KEY=VALUE, KEY!=VALUE, KEY in (A, B), KEY or !KEY")
    return key


def _checked_values(values: frozenset[str], part: str) -> frozenset[str]:
    for value in values:
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{value!r} in {part!r} is no label value (at most 63 letters, digits, '-', '_', '.')")
    return values
