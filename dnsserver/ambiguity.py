"""Whether a regular expression can take exponential time when matched by backtracking.

Knows Python's parsed form of an expression and the theory: matching takes exponential time if and only if the
automaton of the expression has a state with two different paths back to itself on the same text. Must not know what is
matched.

The automaton has one state for each character position of the expression (Glushkov's construction); two paths are
looked for in its product with itself. Polynomial cases ((a*)(a*)…) pass: names are at most 1,004 characters of text.

Source: Weber and Seidl, "On the degree of ambiguity of finite automata" (1991), criterion EDA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

MAX_POSITIONS = 400
"""Larger expressions are not analysed but refused."""
MANY_REPEATS = 10
"""From so many on a counted repeat is as bad as an uncounted one: (a?){30} has 2^30 ways."""
_ALL = (1 << 256) - 1


Ways = Mapping[int, int]
"""Positions, and in how many ways (up to 2: more is no worse) each is come to."""


class _Part(NamedTuple):
    """What Glushkov's construction needs of a sub-expression."""

    empty: int
    """In how many ways (up to 2) it matches the empty text."""
    first: Ways
    last: Ways


_NOTHING = _Part(1, {}, {})


class _TooLarge(Exception):  # noqa: N818 - a signal
    pass


def is_exponential(pattern: re.Pattern[str]) -> bool:
    """Whether some text makes backtracking exponential in its length; True as well where it is too large to tell."""
    tree = _parser.parse(pattern.pattern, pattern.flags)
    automaton = _Automaton(ignore_case=bool(pattern.flags & re.IGNORECASE))
    try:
        automaton.build(tree)
    except _TooLarge:
        return True
    return automaton.ambiguous()


def _add(to: dict[int, int], ways: Ways, factor: int) -> None:
    """Count `ways`, each `factor` times, into `to`."""
    if factor:
        for position, count in ways.items():
            to[position] = min(2, to.get(position, 0) + factor * count)


class _Automaton:
    def __init__(self, *, ignore_case: bool) -> None:
        self._ignore_case = ignore_case
        self._letters: list[int] = []
        """For each position the characters it takes, as a bit set; those above 255 count as one."""
        self._follow: list[dict[int, int]] = []
        """For each position its successors and in how many ways (up to 2) each is reached."""

    def build(self, tree: Any) -> _Part:
        part = _NOTHING
        for op, argument in tree:
            part = self._concatenate(part, self._node(op, argument))
        return part

    def _node(self, op: Any, argument: Any) -> _Part:
        name = str(op)
        match name:
            case "LITERAL":
                return self._position(self._letter(argument))
            case "NOT_LITERAL":
                return self._position(_ALL & ~self._letter(argument))
            case "ANY":
                return self._position(_ALL)
            case "IN":
                return self._position(self._class(argument))
            case "BRANCH":
                return self._alternatives([self.build(branch) for branch in argument[1]])
            case "SUBPATTERN":
                return self.build(argument[-1])
            case "MAX_REPEAT" | "MIN_REPEAT":
                return self._repeat(*argument)
            case "AT":
                return _NOTHING
            case _:
                raise _TooLarge

    def _letter(self, code: int) -> int:
        if code > 255:
            return 1 << 255
        letters = 1 << code
        if self._ignore_case and chr(code).isascii():
            letters |= 1 << ord(chr(code).lower()) | 1 << ord(chr(code).upper())
        return letters

    def _class(self, items: Any) -> int:
        letters = 0
        negated = False
        for op, argument in items:
            match str(op):
                case "NEGATE":
                    negated = True
                case "LITERAL":
                    letters |= self._letter(argument)
                case "RANGE":
                    low, high = argument
                    for code in range(low, min(high, 255) + 1):
                        letters |= self._letter(code)
                case "CATEGORY":
                    letters |= _CATEGORIES[str(argument)]
                case _:
                    raise _TooLarge
        return _ALL & ~letters if negated else letters

    def _position(self, letters: int) -> _Part:
        if len(self._letters) >= MAX_POSITIONS:
            raise _TooLarge
        self._letters.append(letters)
        self._follow.append({})
        here = {len(self._letters) - 1: 1}
        return _Part(0, here, here)

    def _connect(self, before: Ways, after: Ways) -> None:
        for p, ways in before.items():
            _add(self._follow[p], after, ways)

    def _concatenate(self, a: _Part, b: _Part) -> _Part:
        self._connect(a.last, b.first)
        first, last = dict(a.first), dict(b.last)
        _add(first, b.first, a.empty)
        _add(last, a.last, b.empty)
        return _Part(min(2, a.empty * b.empty), first, last)

    def _alternatives(self, parts: list[_Part]) -> _Part:
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for part in parts:
            _add(first, part.first, 1)
            _add(last, part.last, 1)
        return _Part(min(2, sum(part.empty for part in parts)), first, last)

    def _repeat(self, low: int, high: Any, tree: Any) -> _Part:
        if high is not _constants.MAXREPEAT and high < MANY_REPEATS:
            return self._counted(low, int(high), tree)
        part = self.build(tree)
        if part.empty and low >= MANY_REPEATS:
            raise _TooLarge
        self._connect(part.last, part.first)
        # A last, empty round is another way to end.
        last: dict[int, int] = {}
        _add(last, part.last, 1 + part.empty)
        return _Part(min(2, part.empty + (low == 0)), part.first, last)

    def _counted(self, low: int, high: int, tree: Any) -> _Part:
        """X{2,4} as XX(X(X)?)?: a repeat is left out only with all after it, so that counting is not ambiguous."""
        optional = whole = _NOTHING
        for _ in range(high - low):
            part = self._concatenate(self.build(tree), optional)
            optional = part._replace(empty=min(2, part.empty + 1))
        for _ in range(low):
            whole = self._concatenate(whole, self.build(tree))
        return self._concatenate(whole, optional)

    def ambiguous(self) -> bool:
        """Whether some position reaches itself in two ways on the same text."""
        size = len(self._letters)
        edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        doubled = [(p, q) for p in range(size) for q, ways in self._follow[p].items() if ways > 1]
        if any(self._reaches(q, p) for p, q in doubled):
            return True
        start = [(p, p) for p in range(size)]
        pending = list(start)
        while pending:
            pair = pending.pop()
            if pair in edges:
                continue
            p, q = pair
            successors = [
                (i, j) if i <= j else (j, i)
                for i in self._follow[p]
                for j in self._follow[q]
                if self._letters[i] & self._letters[j]
            ]
            edges[pair] = successors
            pending += successors
        component = _components(edges)
        diagonal = {component[p, p] for p in range(size)}
        return any(p != q and component[p, q] in diagonal for p, q in edges)

    def _reaches(self, source: int, target: int) -> bool:
        seen = {source}
        pending = [source]
        while pending:
            at = pending.pop()
            if at == target:
                return True
            for q in self._follow[at]:
                if q not in seen:
                    seen.add(q)
                    pending.append(q)
        return False


def _components(edges: dict[tuple[int, int], list[tuple[int, int]]]) -> dict[tuple[int, int], int]:
    """The strongly connected component of each node (Tarjan's algorithm, without recursion)."""
    index: dict[tuple[int, int], int] = {}
    low: dict[tuple[int, int], int] = {}
    component: dict[tuple[int, int], int] = {}
    stack: list[tuple[int, int]] = []
    for root, first in edges.items():
        if root in index:
            continue
        work = [(root, iter(first))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            node, successors = work[-1]
            for successor in successors:
                if successor not in index:
                    index[successor] = low[successor] = len(index)
                    stack.append(successor)
                    work.append((successor, iter(edges[successor])))
                    break
                if successor not in component:
                    low[node] = min(low[node], index[successor])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    number = len(component)
                    while True:
                        member = stack.pop()
                        component[member] = number
                        if member == node:
                            break
    return component


def _letters_of(expression: str) -> int:
    matches = re.compile(expression, re.ASCII).match
    return sum(1 << code for code in range(256) if matches(chr(code)))


_CATEGORIES = {
    "CATEGORY_DIGIT": _letters_of(r"\d"),
    "CATEGORY_NOT_DIGIT": _letters_of(r"\D"),
    "CATEGORY_SPACE": _letters_of(r"\s"),
    "CATEGORY_NOT_SPACE": _letters_of(r"\S"),
    "CATEGORY_WORD": _letters_of(r"\w"),
    "CATEGORY_NOT_WORD": _letters_of(r"\W"),
}
