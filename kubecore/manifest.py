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
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml
import yaml.cyaml
from yaml.composer import Composer
from yaml.resolver import Resolver

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

    def line_of(self, path: Path = ()) -> int:
        """Line (from 1) of the key or list entry at `path`, or of its nearest ancestor that exists."""
        return _line(self._text, self._index, (*self._path, *path))

    def error(self, path: Path | str, reason: str, remedy: str = "") -> ManifestError:
        """A ManifestError that points at `path` (a path, or its text as `field_text` writes it)."""
        steps = parse_field(path) if isinstance(path, str) else path
        return ManifestError(self.file, self.line_of(steps), reason, field=field_text(steps), remedy=remedy)

    def at(self, path: Path) -> Document:
        """The part of this document at `path` as a document of its own, such as an item of a List."""
        data = self.data
        for step in path:
            data = data[step]
        return Document(data, self.file, self._text, self._index, (*self._path, *path))


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


def _json_document(text: str, filename: str) -> Iterator[Document]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            twice = next(key for key, n in Counter(k for k, _ in pairs).items() if n > 1)
            raise ManifestError(filename, 0, f"the key {twice!r} is given twice", remedy="keep one of them")
        return mapping

    try:
        yield Document(json.loads(text, object_pairs_hook=unique), filename, text)
    except json.JSONDecodeError as error:
        raise ManifestError(filename, error.lineno, f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ManifestError(filename, 0, f"nested deeper than {MAX_DEPTH} levels") from error


# -- YAML


_Parser: Any = yaml.cyaml.CParser  # type: ignore[attr-defined]  # the stubs leave it out


class _Loader(Composer, _Parser, Resolver):  # type: ignore[misc]
    """libyaml's parser under PyYAML's composer, with the scalars of Kubernetes' YAML.

    libyaml's own composer overflows the C stack on deep nesting, which ends the process.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        _Parser.__init__(self, text)
        Composer.__init__(self)
        Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As inherited, with a limit."""
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels",
                problem_mark=self.peek_event().start_mark,
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", "<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _yaml_documents(text: str, filename: str) -> Iterator[Document]:
    for index, node in enumerate(_nodes(text, filename)):
        yield Document(_Reader(filename).value(node), filename, text, index)


def _nodes(text: str, filename: str) -> Iterator[yaml.Node]:
    try:
        loader = _Loader(text)
    except (yaml.YAMLError, ValueError) as error:  # characters YAML forbids
        raise _syntax_error(error, filename, text) from error
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # noqa: S101 - `check_node` has promised one
            yield node
    except (yaml.YAMLError, RecursionError) as error:
        raise _syntax_error(error, filename, text) from error
    finally:
        loader.dispose()


@lru_cache(maxsize=1)
def _parsed(text: str) -> list[yaml.Node]:
    """The nodes of a text that was parsed before, for the lines of all its errors."""
    return list(_nodes(text, ""))


def _line(text: str, index: int, path: Path) -> int:
    try:
        node = _parsed(text)[index]
    except ManifestError:  # the little of JSON that YAML does not read
        return 1
    line: int = node.start_mark.line
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if getattr(k, "value", None) == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = (node.value[step], node.value[step])
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return line + 1


def _syntax_error(error: Exception, filename: str, text: str) -> ManifestError:
    if isinstance(error, RecursionError):
        return ManifestError(filename, 0, f"nested deeper than {MAX_DEPTH} levels")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line = min(mark.line + 1, text.count("\n") + 1) if mark else 0
    return ManifestError(filename, line, f"not YAML: {problem}")


class _Reader:
    """Makes values of one document's nodes."""

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._path: list[str | int] = []
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._aliased = 0

    def value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._enter(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node)
            result = []
            for i, child in enumerate(node.value):
                self._path.append(i)
                result.append(self.value(child))
                self._path.pop()
            return result
        finally:
            self._open.discard(id(node))

    def _enter(self, node: yaml.Node) -> None:
        if node.tag not in {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}:
            raise self._error(node, f"the tag {node.tag!r} is not allowed", "remove the tag")
        if id(node) in self._open:
            raise self._error(node, "an anchor is used inside itself")
        self._open.add(id(node))
        if id(node) in self._seen or self._aliased:
            self._aliased += 1 + len(node.value)
            if self._aliased > MAX_ALIASED_NODES:
                raise self._error(node, "aliases expand to too much", "write the values out")
        self._seen.add(id(node))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merges: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merges.append(value_node)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be plain text")
            key = str(key_node.value)  # a number or boolean too: JSON has no other keys
            self._path.append(key)
            if key in result:
                raise self._error(key_node, f"the key {key!r} is given twice", "keep one of them")
            result[key] = self.value(value_node)
            self._path.pop()
        for merged in merges:
            for source in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                if not isinstance(source, yaml.MappingNode):
                    raise self._error(source, "<< takes a mapping or a list of mappings")
                for key, inherited in self.value(source).items():
                    result.setdefault(key, inherited)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        try:
            match node.tag.removeprefix("tag:yaml.org,2002:"):
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() in {"yes", "true", "on"}
                case "int":
                    return _int(text.replace("_", "").lower())
                case "float":
                    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError as error:
            raise self._error(node, f"{text[:50]!r} is no number") from error
        raise self._error(node, f"the tag {node.tag!r} is not allowed", "remove the tag")

    def _error(self, node: yaml.Node, reason: str, remedy: str = "") -> ManifestError:
        line = node.start_mark.line + 1
        return ManifestError(self._filename, line, reason, field=field_text(tuple(self._path)), remedy=remedy)


def _int(text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits[:2] in {"0x", "0o", "0b"}:
        return sign * int(digits, 0)
    return sign * int(digits, 8 if digits.startswith("0") and len(digits) > 1 else 10)
