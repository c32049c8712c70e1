"""Go's text templates, as far as records are written with them.

Knows `{{ .Field }}`, `{{ index .Match 1 }}`, pipes, parentheses, `if`/`else`/`end`, trimming dashes and the functions
below. Must not know messages. Called by the Corefile parser (`check`) and the `template` plugin (`compile_template`).

`range`, variables and nested definitions are refused when the configuration is read.

Source: Go package text/template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MAX_ACTIONS = 200
MAX_PARENTHESES = 50
"""More would be too deep to be read."""
FIELDS = ("Zone", "Name", "Class", "Type", "Match", "Group", "Remote", "Message", "Question")
_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<field>\.[A-Za-z_][\w.]*|\.)"""
    r"""|(?P<word>[A-Za-z_]\w*)|(?P<sign>[()|]))"""
)

Value = Any
Evaluate = Callable[[Mapping[str, Any]], Value]


def _print(*items: Value) -> str:
    return "".join(map(_text, items))


_VERB = re.compile(r"%([-+ 0#]*\d*)(?:\.(\d+))?([a-zA-Z%])")


def _printf(form: Value, *items: Value) -> str:
    """C-like formatting with Go's verbs s, v, d, x, X, o, b, q, c, t."""
    rest = list(items)

    def one(match: re.Match[str]) -> str:
        flags, _precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not rest:
            raise ValueError(f"printf {form!r} lacks an argument for %{verb}")
        item = rest.pop(0)
        match verb:
            case "s" | "v" | "t":
                return f"%{flags}s" % _text(item)
            case "q":
                return f"%{flags}s" % ('"' + _text(item).replace("\\", "\\\\").replace('"', '\\"') + '"')
            case "d" | "x" | "X" | "o" | "c":
                if verb in "xX" and isinstance(item, str):
                    item = int.from_bytes(item.encode(), "big")
                return f"%{flags}{verb}" % _integer(item)
            case "b":
                return format(_integer(item), f"{flags}b")
            case _:
                raise ValueError(f"printf verb %{verb} is not supported")

    return _VERB.sub(one, _text(form))


def _integer(item: Value) -> int:
    if not isinstance(item, int):
        raise ValueError(f"{_text(item)!r} is no number; convert it with parseInt")  # noqa: TRY004 - of the text's making
    return item


def _parse_int(text: Value, base: Value = 10, _bits: Value = 64) -> int:
    return int(_text(text), _integer(base))


def _index(collection: Value, *keys: Value) -> Value:
    for key in keys:
        try:
            collection = collection[key]
        except (LookupError, TypeError):
            raise ValueError(f"index {key!r} is out of range") from None
    return collection


def _equal(first: Value, *others: Value) -> bool:
    return any(first == other for other in others)


def _or(*items: Value) -> Value:
    return next((item for item in items if item), items[-1])


def _and(*items: Value) -> Value:
    return next((item for item in items if not item), items[-1])


FUNCTIONS: dict[str, tuple[Callable[..., Value], int, int]] = {
    "index": (_index, 2, 9),
    "printf": (_printf, 1, 99),
    "print": (_print, 1, 99),
    "parseInt": (_parse_int, 1, 3),
    "len": (len, 1, 1),
    "eq": (_equal, 2, 99),
    "ne": (lambda a, b: a != b, 2, 2),
    "lt": (lambda a, b: a < b, 2, 2),
    "le": (lambda a, b: a <= b, 2, 2),
    "gt": (lambda a, b: a > b, 2, 2),
    "ge": (lambda a, b: a >= b, 2, 2),
    "and": (_and, 1, 99),
    "or": (_or, 1, 99),
    "not": (lambda a: not a, 1, 1),
}
"""By name: what it does, and the least and most arguments."""


def _text(item: Value) -> str:
    """As Go prints it."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, (list, tuple)):
        return "[" + " ".join(map(_text, item)) + "]"
    return str(item)


class _If(NamedTuple):
    condition: Evaluate
    then: Sequence[_Node]
    otherwise: Sequence[_Node]


_Node = str | Evaluate | _If


class Template:
    """A compiled template."""

    def __init__(self, text: str, nodes: Sequence[_Node]) -> None:
        self.text = text
        self._nodes = nodes

    def expand(self, data: Mapping[str, Any]) -> str:
        """The text with every action replaced.

        Raises:
            ValueError: an action cannot be evaluated on this data (an index out of range, text that is no number).
        """
        out: list[str] = []
        try:
            _expand(self._nodes, data, out)
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from None
        return "".join(out)


def _expand(nodes: Iterable[_Node], data: Mapping[str, Any], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, _If):
            _expand(node.then if node.condition(data) else node.otherwise, data, out)
        else:
            out.append(_text(node(data)))


def check(text: str, matches: Sequence[re.Pattern[str]]) -> None:
    """Refuse a template that could not be expanded for any of the expressions.

    Raises:
        ValueError: a syntax error, an unknown field or function, a group none of `matches` has.
    """
    compile_template(text)
    groups = {name for pattern in matches for name in pattern.groupindex}
    for name in re.findall(r"\{\{[^{}]*\.Group\.(\w+)", text):
        if name not in groups and not (name.isdigit() and int(name) <= max(p.groups for p in matches)):
            known = ", ".join(sorted(groups)) or "none"
            raise ValueError(f"no expression has a group '{name}' (named groups: {known})")


def compile_template(text: str) -> Template:
    """The compiled template.

    Raises:
        ValueError: what is wrong with it.
    """
    parts: list[tuple[str, str]] = []
    at = 0
    trim = False
    for action in _ACTION.finditer(text):
        literal = text[at : action.start()]
        literal = literal.lstrip() if trim else literal
        parts.append(("text", literal.rstrip() if action[1] else literal))
        parts.append(("action", action[2].strip()))
        trim = bool(action[3])
        at = action.end()
    rest = text[at:].lstrip() if trim else text[at:]
    if "{{" in rest:
        raise ValueError("'{{' is never closed")
    parts.append(("text", rest))
    if len(parts) > 2 * MAX_ACTIONS:
        raise ValueError(f"more than {MAX_ACTIONS} actions")
    nodes, left, _ = _nodes(parts, 0, inside=False)
    if left != len(parts):
        raise ValueError("'end' or 'else' without 'if'")
    return Template(text, nodes)


def _nodes(parts: Sequence[tuple[str, str]], at: int, *, inside: bool) -> tuple[list[_Node], int, str]:
    """The nodes up to `end` or `else` or the end of the parts, the position after it, and what ended them."""
    found: list[_Node] = []
    while at < len(parts):
        kind, text = parts[at]
        at += 1
        word = text.split(None, 1)[0] if kind == "action" and text else ""
        if kind == "text":
            if text:
                found.append(text)
        elif text.startswith("/*"):
            continue
        elif word in ("end", "else"):
            return (found, at, text) if inside else (found, at - 1, text)
        elif word == "if":
            node, at = _if(parts, at, text[2:])
            found.append(node)
        elif word in ("range", "with", "define", "template", "block", "break", "continue") or text.startswith("$"):
            raise ValueError(f"'{word}' is not supported")
        else:
            found.append(_expression(text))
    if inside:
        raise ValueError("'if' without 'end'")
    return found, at, ""


def _if(parts: Sequence[tuple[str, str]], at: int, condition: str) -> tuple[_If, int]:
    test = _expression(condition)
    then, at, ended_by = _nodes(parts, at, inside=True)
    if ended_by == "end":
        return _If(test, then, ()), at
    rest = ended_by[4:].strip()
    if rest.startswith("if "):
        node, at = _if(parts, at, rest[2:])
        return _If(test, then, (node,)), at
    if rest:
        raise ValueError(f"'{ended_by}' is not understood")
    otherwise, at, ended_by = _nodes(parts, at, inside=True)
    if ended_by != "end":
        raise ValueError("'else' twice")
    return _If(test, then, otherwise), at


class _Word(NamedTuple):
    kind: str
    text: str


def _expression(text: str) -> Evaluate:
    words: list[_Word] = []
    at = 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"'{text[at:].strip()}' is not understood")
        kind = match.lastgroup or ""
        words.append(_Word(kind, match[kind]))
        at = match.end()
    if sum(word == _Word("sign", "(") for word in words) > MAX_PARENTHESES:
        raise ValueError(f"more than {MAX_PARENTHESES} parentheses")
    result, at = _pipeline(words, 0)
    if at != len(words):
        raise ValueError(f"'{words[at].text}' cannot stand here")
    return result


def _pipeline(words: Sequence[_Word], at: int) -> tuple[Evaluate, int]:
    result, at = _command(words, at, None)
    while at < len(words) and words[at].text == "|" and words[at].kind == "sign":
        result, at = _command(words, at + 1, result)
    return result, at


def _command(words: Sequence[_Word], at: int, piped: Evaluate | None) -> tuple[Evaluate, int]:
    """One operand, or a function and its operands; what is piped in becomes the last of them."""
    if at >= len(words):
        raise ValueError("an action is empty")
    if words[at].kind != "word" or words[at].text in ("true", "false"):
        operand, at = _operand(words, at)
        if piped is not None:
            raise ValueError("only a function can follow '|'")
        return operand, at
    name = words[at].text
    if name not in FUNCTIONS:
        raise ValueError(f"no function '{name}'; there are {', '.join(FUNCTIONS)}")
    function, low, high = FUNCTIONS[name]
    at += 1
    operands: list[Evaluate] = []
    while at < len(words) and not (words[at].kind == "sign" and words[at].text in "|)"):
        operand, at = _operand(words, at)
        operands.append(operand)
    if piped is not None:
        operands.append(piped)
    if not low <= len(operands) <= high:
        raise ValueError(f"'{name}' takes {low} to {high} arguments, found {len(operands)}")
    return (lambda data: function(*[operand(data) for operand in operands])), at


def _operand(words: Sequence[_Word], at: int) -> tuple[Evaluate, int]:
    word = words[at]
    match word.kind:
        case "string":
            text = word.text[1:-1] if word.text[0] == "`" else _unquote(word.text[1:-1])
            return (lambda _data: text), at + 1
        case "number":
            number = int(word.text)
            return (lambda _data: number), at + 1
        case "field":
            return _field(word.text), at + 1
        case "sign" if word.text == "(":
            inner, at = _pipeline(words, at + 1)
            if at >= len(words) or words[at].text != ")":
                raise ValueError("'(' is never closed")
            return inner, at + 1
        case "word" if word.text in ("true", "false"):
            truth = word.text == "true"
            return (lambda _data: truth), at + 1
        case _:
            raise ValueError(f"'{word.text}' cannot stand here")


_ESCAPE = re.compile(r"\\(.)")


def _unquote(text: str) -> str:
    return _ESCAPE.sub(lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)


def _field(path: str) -> Evaluate:
    first, *rest = path[1:].split(".")
    if first not in FIELDS:
        raise ValueError(f"no field '{path}'; there are {', '.join('.' + name for name in FIELDS)}")

    def get(data: Mapping[str, Any]) -> Value:
        value = data[first]
        for name in rest:
            try:
                value = value[name]
            except (LookupError, TypeError):
                return "<no value>" if isinstance(value, Mapping) else _missing(path)
        return value

    return get


def _missing(path: str) -> Value:
    raise ValueError(f"{path} has no value here")
