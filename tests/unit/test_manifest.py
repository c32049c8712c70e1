"""Reading YAML and JSON: values as kubectl reads them, lines of everything, and errors an author can act on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubecore.manifest import MAX_BYTES, ManifestError, field_text, parse_documents, parse_field
from tests.strategies import steady


def _value(text: str) -> Any:
    [document] = parse_documents(text, "test.yaml")
    return document.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ("12:30", "12:30"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("10.0.0.1", "10.0.0.1"),
        ("'80'", "80"),
        ("80", 80),
        ("-1", -1),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 15),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("yes", True),
        ("off", False),
        ("null", None),
        ("~", None),
        ("!!str 5", "5"),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
        ("{80: a, true: b}", {"80": "a", "true": "b"}),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert _value(f"x: {text}") == {"x": value}


def test_anchors_and_merge_keys() -> None:
    text = "base: &b {a: 1, b: 2}\none: {<<: *b, b: 3}\nmany: {<<: [{c: 4}, *b], d: 5}\nsame: *b\n"
    assert _value(text) == {
        "base": {"a": 1, "b": 2},
        "one": {"a": 1, "b": 3},
        "many": {"c": 4, "a": 1, "b": 2, "d": 5},
        "same": {"a": 1, "b": 2},
    }


def test_documents_and_their_lines() -> None:
    text = "# a comment\na: 1\n---\n---\n# only a comment\n---\nb:\n  c:\n  - 1\n  - d: x\n    e: y\n"
    first, second = parse_documents(text, "f.yaml")
    assert (first.data, first.line_of()) == ({"a": 1}, 2)
    assert second.line_of() == 7
    assert second.line_of(("b", "c")) == 8
    assert second.line_of(("b", "c", 1, "e")) == 11
    assert second.line_of(("b", "c", 1, "missing", "x")) == 10
    assert second.at(("b", "c", 1)).line_of(("e",)) == 11


def test_json() -> None:
    text = '{\n "kind": "List",\n "items": [\n  {"a": "\\ud83d\\ude00\\/"},\n\t{"b": 2}\n ]\n}'
    [document] = parse_documents(text, "f.json")
    assert document.data == json.loads(text)
    [document] = parse_documents('{\n "a": 1,\n "items": [\n  {"b": 2}\n ]\n}', "f.json")
    assert document.line_of(("items", 0, "b")) == 4


def test_byte_order_mark_and_windows_line_ends() -> None:
    [document] = parse_documents(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "f.yaml")
    assert (document.data, document.line_of(("b",))) == ({"a": 1, "b": 2}, 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: 1\nb: [1, 2\n", "f.yaml:3: not YAML: did not find expected ',' or ']'"),
        (b"a: 1\n\tb: 2\n", "f.yaml:2: not YAML: found a tab character that violates indentation"),
        (b"a: b: c\n", "f.yaml:1: not YAML: mapping values are not allowed in this context"),
        (b"a:\n  b: 1\n  c: 2\n  b: 3\n", "f.yaml:4: a.b: the key 'b' is given twice; keep one of them"),
        (b"a: *nobody\n", "f.yaml:1: a: the anchor 'nobody' is not defined before"),
        (b"a: &x [*x]\n", "f.yaml:1: a[0]: the anchor 'x' is used inside itself"),
        (
            b"a: !!python/object/apply:os.system [ls]\n",
            "f.yaml:1: a: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; remove the tag",
        ),
        (b"a: !vault x\n", "f.yaml:1: a: the tag '!vault' is not allowed; remove the tag"),
        (b"? [1]\n: 2\n", "f.yaml:1: a key must be plain text"),
        (b"a: 1\nb: \xff\n", "f.yaml:2: not UTF-8; save the file as UTF-8"),
        (b"a: 08\nb: !!int x\n", "f.yaml:2: b: 'x' is no number"),
    ],
)
def test_errors_say_where_and_what(text: bytes, sentence: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_documents(text, "f.yaml")
    assert str(caught.value) == sentence


def test_json_errors() -> None:
    for text, sentence in [
        ('{\n "a": 1,\n "b"}', "f.json:3: not JSON: Expecting ':' delimiter"),
        ('{"a": 1, "a": 2}', "f.json:1: a: the key 'a' is given twice; keep one of them"),
        ('{"b": [\n{"a": 1,\n"a": 2}]}', "f.json:3: b[0].a: the key 'a' is given twice; keep one of them"),
        ('{"a": "\\ud83d\\ude00",\n"b": "x\\uD800"}', "f.json:2: not JSON: half a character, one surrogate of a pair"),
        ('{"\\udc00": 1}', "f.json:1: not JSON: half a character, one surrogate of a pair"),
        ('{"a": ' + "9" * 5000 + "}", "f.json: a number is too long; put it in quotes if it is a text"),
        ("a: 1", "f.json:1: not JSON: Expecting value"),
    ]:
        with pytest.raises(ManifestError) as caught:
            parse_documents(text, "f.json")
        assert str(caught.value) == sentence


def test_escapes_in_json_that_are_no_half_characters() -> None:
    (document,) = parse_documents('{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}', "f.json")
    assert document.data == {"a": "\U0001f600", "b": "\\ud800"}


def test_bombs_are_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)]
    with pytest.raises(ManifestError, match="aliases expand to too much"):
        parse_documents("\n".join(lines), "f.yaml")
    for text in ("[" * 200_000 + "]" * 200_000, "- " * 200_000 + "a", "{a: " * 200_000):
        with pytest.raises(ManifestError, match="nested deeper than 100 levels"):
            parse_documents(text, "f.yaml")
    with pytest.raises(ManifestError, match="nested deeper"):
        parse_documents("[" * 200_000, "f.json")
    with pytest.raises(ManifestError, match="larger than"):
        parse_documents(b" " * (MAX_BYTES + 1), "f.yaml")


def test_ordinary_use_of_aliases_is_no_bomb() -> None:
    text = "labels: &l {app: web, tier: front}\nitems:\n" + "- *l\n" * 5000
    assert len(_value(text)["items"]) == 5000


def test_error_at_a_field() -> None:
    [document] = parse_documents("spec:\n  ports:\n  - port: x\n", "f.yaml")
    error = document.error("spec.ports[0].port", "not a number", "write a number")
    assert str(error) == "f.yaml:3: spec.ports[0].port: not a number; write a number"
    assert (error.file, error.line, error.field, error.remedy) == ("f.yaml", 3, "spec.ports[0].port", "write a number")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("spec", "ports", 2, "port"), "spec.ports[2].port"),
        ((), ""),
        ((0, "a"), "[0].a"),
        (("metadata", "labels", "app.kubernetes.io/name"), "metadata.labels[app.kubernetes.io/name]"),
    ],
)
def test_field_notation(path: tuple[str | int, ...], text: str) -> None:
    assert field_text(path) == text
    assert parse_field(text) == path


@steady
@given(st.text(max_size=60) | st.text(alphabet="ab:-[]{}&*!|> \n\t'\"#,?0.", max_size=40) | st.binary(max_size=40))
def test_any_text_is_documents_or_an_error_naming_the_file(text: str | bytes) -> None:
    for name in ("f.yaml", "f.json"):
        documents, errors = [], []
        try:
            documents = parse_documents(text, name)
        except ManifestError as error:
            errors = [error]
        assert all(e.file == name and e.line >= 0 and e.reason for e in errors)
        assert all(d.data is not None and d.line_of() >= 1 for d in documents)


_plain = st.none() | st.booleans() | st.integers() | st.text()


@steady
@given(st.recursive(_plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_values_survive(value: Any) -> None:
    documents = parse_documents(json.dumps(value), "f.json")
    assert [d.data for d in documents] == ([] if value is None else [value])
