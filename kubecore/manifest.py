"""Documents of a YAML or JSON file, each value with the line it came from, for errors that say where and what to do.

Knows: YAML and JSON as Kubernetes tools read them. Must not know: what a document means, file systems. Called by the
file source and by the loaders of configuration files.

Differences to plain PyYAML, all towards what kubectl accepts: times stay text, colons never make base-60 numbers (an
IPv6 address such as 1:2:3:4:5:6:7:8 is text), duplicate keys are errors, tags other than YAML's own basic ones too.
Anchors work, but may not blow a small file up.

Source: YAML 1.1; sigs.k8s.io/yaml for the choices.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml
import yaml.cyaml

MAX_BYTES = 32 * 1024 * 1024
"""Largest file read. An API server holds objects of at most 1.5 MiB; a dump of a large cluster has some ten MiB."""
MAX_DEPTH = 100
"""Deepest nesting; real objects have fewer than 20 levels."""
MAX_ALIASED_NODES = 200_000
"""Nodes that aliases may add in one document: a real file repeats a few labels, a bomb repeats repetitions."""

Path = tuple[str | int, ...]
"""Where a value is: ("spec", "ports", 2, "port")."""


class ManifestError(ValueError):
    """A file that cannot be used as it is; `str()` is a sentence for its author.

    Attributes:
        file: name as given to the parser.
        line: counted from 1; 0: the file as a whole.
        field: `spec.ports[2].port`; empty: no one field.
        reason: what is wrong.
        remedy: what to write or do instead; may be empty.
    """

    def __init__(self, file: str, line: int, reason: str, *, field: str = "", remedy: str = "") -> None:
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason
        self.remedy = remedy
        where = f"{file}:{line}" if line else file
        what = f"{field}: {reason}" if field else reason
        super().__init__(f"{where}: {what}" + (f"; {remedy}" if remedy else ""))


@dataclass(frozen=True, slots=True)
class Document:
    """One document, or a part of one: plain dicts, lists, strings, numbers, booleans and None.

    Lines are looked up in the text when somebody asks, since almost nobody does.
    """

    data: Any
    file: str
    _text: str = field(repr=False)
    _index: int = 0
    _path: Path = ()
    _starts: Mapping[Path, int] = field(default_factory=dict, repr=False)

    @property
    def start(self) -> int:
        """The line the document (or item of a List) begins at, without looking it up; 0 if that is unknown (JSON)."""
        return self._starts.get(self._path, 0)

    def line_of(self, path: Path = ()) -> int:
        """Line (from 1) of the key or list entry at `path`, or of its nearest ancestor that exists."""
        lines = _lines(self._text)[self._index]
        steps = (*self._path, *path)
        while steps and steps not in lines:
            steps = steps[:-1]
        return lines.get(steps, 1)

    def error(self, path: Path | str, reason: str, remedy: str = "") -> ManifestError:
        """A ManifestError that points at `path` (a path, or its text as `field_text` writes it)."""
        steps = parse_field(path) if isinstance(path, str) else path
        return ManifestError(self.file, self.line_of(steps), reason, field=field_text(steps), remedy=remedy)

    def at(self, path: Path) -> Document:
        """The part of this document at `path` as a document of its own, such as an item of a List."""
        data = self.data
        for step in path:
            data = data[step]
        return Document(data, self.file, self._text, self._index, (*self._path, *path), self._starts)


def field_text(path: Path) -> str:
    """`spec.ports[2].port` for ("spec", "ports", 2, "port"); a key with dots in it stands in brackets."""
    text = ""
    for step in path:
        if isinstance(step, int) or not re.fullmatch(r"[A-Za-z0-9_-]+", step):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def parse_field(text: str) -> Path:
    """The path written as `field_text` (or msgspec) writes it; `[...]`, msgspec's "some key", ends it."""
    steps: list[str | int] = []
    for key, bracketed in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", text):
        if bracketed == "...":
            break
        if key:
            steps.append(key)
        else:
            steps.append(int(bracketed) if bracketed.isdecimal() else bracketed)
    return tuple(steps)


def parse_documents(text: str | bytes, filename: str) -> list[Document]:
    """All documents of a file but the empty ones.

    Args:
        text: the content; bytes are UTF-8, with or without a byte order mark.
        filename: what errors call the file; `.json` at its end asks for strict JSON.

    Raises:
        ManifestError: not YAML (JSON), too large, too deep, or a duplicate key. All or nothing.
    """
    if len(text) > MAX_BYTES:
        raise ManifestError(filename, 0, f"larger than {MAX_BYTES} bytes", remedy="split it")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ManifestError(filename, line, "not UTF-8", remedy="save the file as UTF-8") from error
    documents = _json_document(text, filename) if filename.endswith(".json") else _yaml_documents(text, filename)
    return [d for d in documents if d.data is not None]


_half_character = re.compile(
    r"(?i)\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2}"
).search
"""An escaped surrogate without its other half; or a backslash that is escaped itself, and then no surrogate."""


def _json_document(text: str, filename: str) -> Iterator[Document]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            twice = next(key for key, n in Counter(k for k, _ in pairs).items() if n > 1)
            for _ in _yaml_documents(text, filename):  # which JSON is, too; that reader knows lines
                pass
            raise ManifestError(filename, 0, f"the key {twice!r} is given twice", remedy="keep one of them")
        return mapping

    try:
        data = json.loads(text, object_pairs_hook=unique)
        if _half_character(text):
            json.dumps(data, ensure_ascii=False).encode()
        yield Document(data, filename, text)
    except UnicodeEncodeError as error:
        found = _half_character(text)
        line = text.count("\n", 0, found.start()) + 1 if found else 0
        raise ManifestError(filename, line, "not JSON: half a character, one surrogate of a pair") from error
    except json.JSONDecodeError as error:
        raise ManifestError(filename, error.lineno, f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ManifestError(filename, 0, f"nested deeper than {MAX_DEPTH} levels") from error
    except ManifestError:
        raise
    except ValueError as error:  # of int(): thousands of digits
        raise ManifestError(filename, 0, "a number is too long", remedy="put it in quotes if it is a text") from error


# -- YAML


_Parser: Any = yaml.cyaml.CParser  # type: ignore[attr-defined]  # the stubs leave it out
_TAG = "tag:yaml.org,2002:"
_OPEN = object()
"""Stands for the value of an anchor that is still being read."""

_CONSTANTS: dict[str, bool | None] = {"": None, "~": None}
for _words, _meaning in (("null", None), ("true yes on", True), ("false no off", False)):
    for _word in _words.split():
        _CONSTANTS |= dict.fromkeys((_word, _word.capitalize(), _word.upper()), _meaning)
_is_int = re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)").fullmatch
_is_float = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
).fullmatch


def _yaml_documents(text: str, filename: str) -> Iterator[Document]:
    for index, builder in enumerate(_built(text, filename)):
        yield Document(builder.value, filename, text, index, (), builder.starts)


def _built(text: str, filename: str, *, lines: bool = False) -> Iterator[_Builder]:
    """The documents of a text, one after the other."""
    try:
        parser = _Parser(text)
    except (yaml.YAMLError, ValueError) as error:  # characters YAML forbids
        raise _syntax_error(error, filename, text) from error
    try:
        while not isinstance(event := parser.get_event(), yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                yield _Builder(parser, filename, lines=lines)
    except yaml.YAMLError as error:
        raise _syntax_error(error, filename, text) from error
    finally:
        parser.dispose()


@lru_cache(maxsize=1)
def _lines(text: str) -> list[dict[Path, int]]:
    """The line of every value of a text that was read before, a table for each document; kept for its next error."""
    try:
        return [builder.lines for builder in _built(text, "", lines=True)]
    except ManifestError:  # the little of JSON that YAML does not read
        return [{}]


def _syntax_error(error: Exception, filename: str, text: str) -> ManifestError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line = min(mark.line + 1, text.count("\n") + 1) if mark else 0
    return ManifestError(filename, line, f"not YAML: {problem}")


class _Builder:
    """The value of one document, built from libyaml's events in one pass.

    PyYAML's composers come between events and values with a tree of nodes; the fast one of them overflows the C stack
    on deep nesting, which ends the process.
    """

    def __init__(self, parser: Any, filename: str, *, lines: bool) -> None:
        self.lines: dict[Path, int] = {}
        """Filled if `lines`."""
        self.starts: dict[Path, int] = {}
        """Lines of the document and of the entries of a list in it one level down (the items of a List)."""
        self._next = parser.get_event
        self._filename = filename
        self._record = lines
        self._path: list[str | int] = []
        self._depth = 0
        self._anchors: dict[str, tuple[Any, int]] = {}
        """Value and number of nodes in it."""
        self._nodes = 0
        """Read so far, those that aliases repeat included."""
        self._aliased = 0
        self.value = self._value(self._next())

    def _value(self, event: Any) -> Any:
        self._nodes += 1
        self._note_line(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        nodes, anchor = self._nodes, event.anchor
        if anchor is not None:
            self._anchors[anchor] = (_OPEN, 0)
        value = self._scalar(event) if isinstance(event, yaml.ScalarEvent) else self._collection(event)
        if anchor is not None:
            self._anchors[anchor] = (value, self._nodes - nodes + 1)
        return value

    def _note_line(self, event: Any) -> None:
        """A key's line counts before its value's, which may begin below."""
        if self._record:
            self.lines.setdefault(tuple(self._path), event.start_mark.line + 1)

    def _alias(self, event: Any) -> Any:
        value, size = self._anchors.get(event.anchor, (None, 0))
        if not size:
            reason = "is not defined before" if value is None else "is used inside itself"
            raise self._error(event, f"the anchor {event.anchor!r} {reason}")
        self._nodes += size
        self._aliased += size
        if self._aliased > MAX_ALIASED_NODES:
            raise self._error(event, "aliases expand to too much", "write the values out")
        return value

    def _collection(self, event: Any) -> Any:
        if event.tag not in {None, "!", _TAG + "map", _TAG + "seq"}:
            raise self._error(event, f"the tag {event.tag!r} is not allowed", "remove the tag")
        if self._depth >= MAX_DEPTH:
            del self._path[5:]
            raise self._error(event, f"nested deeper than {MAX_DEPTH} levels")
        if not self._depth:
            self.starts[()] = event.start_mark.line + 1
        self._depth += 1
        value = self._mapping() if isinstance(event, yaml.MappingStartEvent) else self._sequence()
        self._depth -= 1
        return value

    def _sequence(self) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self._path.append(len(result))
            if self._depth == 2:
                self.starts[tuple(self._path)] = event.start_mark.line + 1
            result.append(self._value(event))
            self._path.pop()
        return result

    def _mapping(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[Any] = []
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "a key must be plain text")
            key: str = event.value  # of a number or boolean too: JSON has no other keys
            if key == "<<" and event.implicit[0]:
                merged += self._merged(event)
                continue
            self._path.append(key)
            if key in result:
                raise self._error(event, f"the key {key!r} is given twice", "keep one of them")
            self._note_line(event)
            result[key] = self._value(self._next())
            self._path.pop()
        for source in merged:
            for key, inherited in source.items():
                result.setdefault(key, inherited)
        return result

    def _merged(self, event: Any) -> list[Any]:
        value = self._value(self._next())
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise self._error(event, "<< takes a mapping or a list of mappings")
        return sources

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        tag = event.tag
        try:
            if tag is None or tag == "!":
                return _plain(text) if tag is None and event.implicit[0] else text
            match tag.removeprefix(_TAG):
                case "str":
                    return text
                case "int":
                    return _int(text)
                case "float":
                    return _float(text)
                case "null" | "bool" if text in _CONSTANTS:
                    return _CONSTANTS[text]
        except ValueError as error:
            raise self._error(event, f"{text[:50]!r} is no number") from error
        raise self._error(event, f"the tag {tag!r} is not allowed", "remove the tag")

    def _error(self, event: Any, reason: str, remedy: str = "") -> ManifestError:
        line = event.start_mark.line + 1
        return ManifestError(self._filename, line, reason, field=field_text(tuple(self._path)), remedy=remedy)


def _plain(text: str) -> Any:
    """What an unquoted scalar means."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "+-.0123456789":
        if _is_int(text):
            return _int(text)
        if _is_float(text):
            return _float(text)
    return text


def _int(text: str) -> int:
    text = text.replace("_", "").lower()
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits[:2] in {"0x", "0o", "0b"}:
        return sign * int(digits, 0)
    return sign * int(digits, 8 if digits.startswith("0") and len(digits) > 1 else 10)


def _float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
