"""The `rewrite` and `template` directives.

Knows their small languages. Must not know messages. Called by `corefile` through its table.
"""

from __future__ import annotations

import re
from typing import Any, cast

from dnsserver import corefile_model as model
from dnsserver import corefile_values as values
from dnsserver import rrtext, templates
from dnsserver.corefile_plugins import MAX_TTL_S, Context
from dnsserver.corefile_syntax import Directive, Invalid, Token
from dnsserver.regexes import compile_go

FIELDS = ("name", "type", "class", "ttl", "rcode", "cname")
KINDS = ("exact", "prefix", "suffix", "substring", "regex")
_GROUP = re.compile(r"\{(\d+)\}")


def rewrite(line: Directive, _context: Context) -> model.RewriteRule:
    """`rewrite [continue|stop] FIELD …`, on one line or spread over a block."""
    words = list(line.words())
    go_on = False
    if words and words[0].text in ("continue", "stop"):
        go_on = words.pop(0).text == "continue"
    if not words:
        raise Invalid(line.name, "rewrite names nothing to rewrite", "write rewrite name FROM TO, for instance")
    if words[0].text == "edns0":
        raise Invalid(
            words[0], "'rewrite edns0' is not supported", "remove it: EDNS options stop here (RFC 6891 §6.1.1)"
        )
    field = values.choice(words[0], FIELDS, "field of rewrite")
    rule = _RULES[field](words[0], words[1:])
    return model.RewriteRule(field=cast("Any", field), go_on=go_on, **rule)


def _kind(words: list[Token]) -> tuple[str, list[Token]]:
    return (words[0].text, words[1:]) if words and words[0].text in KINDS else ("exact", words)


def _match(kind: str, word: Token) -> model.NameMatch:
    if kind == "regex":
        return model.NameMatch(kind="regex", text=word.text, pattern=values.pattern(word))
    text = word.text.lower()
    if kind == "exact":
        text = _absolute(word).lower()
    elif kind == "suffix" and not text.endswith("."):
        text += "."
    return model.NameMatch(kind=cast("Any", kind), text=text)


def _absolute(word: Token) -> str:
    values.name_of(word)
    return word.text if word.text.endswith(".") else word.text + "."


def _exactly(at: Token, words: list[Token], count: int, usage: str) -> list[Token]:
    if len(words) != count:
        where = words[count] if len(words) > count else at
        raise Invalid(where, f"'rewrite {at.text}' takes {count} arguments, found {len(words)}", f"write {usage}")
    return words


def _groups(word: Token, pattern: re.Pattern[str]) -> None:
    for number in _GROUP.findall(word.text):
        if int(number) > pattern.groups:
            raise Invalid(word, f"'{{{number}}}' in '{word.text}' is no group", f"there are {pattern.groups} groups")


def _name(at: Token, words: list[Token]) -> dict[str, Any]:
    usage = f"rewrite {at.text} [{'|'.join(KINDS)}] FROM TO [answer auto|name FROM TO|value FROM TO]"
    kind, rest = _kind(words)
    cut = next((i for i, word in enumerate(rest) if word.text == "answer" and i >= 2), len(rest))
    source, target = _exactly(at, rest[:cut], 2, usage)
    match = _match(kind, source)
    replacement = target.text
    if match.pattern is not None:
        _groups(target, match.pattern)
    elif kind == "exact":
        replacement = _absolute(target)
    elif kind == "suffix" and not replacement.endswith("."):
        replacement += "."
    return {"match": match, "replacement": replacement, "answers": tuple(_answers(kind, rest[cut:]))}


def _answers(kind: str, words: list[Token]) -> list[model.AnswerRule]:
    rules = []
    while words:
        start, *rest = words
        values.choice(start, ("answer",), "continuation of rewrite name")
        where = rest[0].text if rest and rest[0].text in ("name", "value", "auto") else "name"
        if rest and rest[0].text == where:
            rest = rest[1:]
        if where == "auto":
            if kind not in ("exact", "prefix", "suffix"):
                raise Invalid(
                    start, f"answers of a {kind} rule cannot be turned back by themselves", "write answer name FROM TO"
                )
            rules.append(model.AnswerRule(where="auto"))
            words = rest
            continue
        if len(rest) < 2:
            raise Invalid(
                start, f"'answer {where}' needs an expression and its replacement", f"write answer {where} FROM TO"
            )
        pattern = values.pattern(rest[0], ignore_case=True)
        _groups(rest[1], pattern)
        rules.append(model.AnswerRule(where=cast("Any", where), pattern=pattern, replacement=rest[1].text))
        words = rest[2:]
    return rules


def _cname(at: Token, words: list[Token]) -> dict[str, Any]:
    kind, rest = _kind(words)
    source, target = _exactly(at, rest, 2, f"rewrite cname [{'|'.join(KINDS)}] FROM TO")
    match = _match(kind, source)
    if match.pattern is not None:
        _groups(target, match.pattern)
    return {"match": match, "replacement": _absolute(target) if kind == "exact" else target.text}


def _type(at: Token, words: list[Token]) -> dict[str, Any]:
    source, target = _exactly(at, words, 2, "rewrite type FROM TO")
    return {"from_number": values.record_type(source), "to_number": values.record_type(target)}


def _class(at: Token, words: list[Token]) -> dict[str, Any]:
    numbers = []
    for word in _exactly(at, words, 2, "rewrite class FROM TO"):
        try:
            numbers.append(rrtext.class_number(word.text))
        except ValueError as error:
            raise Invalid(word, f"'{word.text}' is no class", str(error)) from None
    return {"from_number": numbers[0], "to_number": numbers[1]}


def _ttl(at: Token, words: list[Token]) -> dict[str, Any]:
    kind, rest = _kind(words)
    source, seconds = _exactly(at, rest, 2, f"rewrite ttl [{'|'.join(KINDS)}] NAME SECONDS|LOW-HIGH")
    low_text, dash, high_text = seconds.text.partition("-")
    low = values.integer(seconds._replace(text=low_text), 0, MAX_TTL_S, "TTL") if low_text else 0
    high = values.integer(seconds._replace(text=high_text), 0, MAX_TTL_S, "TTL") if high_text else MAX_TTL_S
    if not dash:
        high = low
    if seconds.text in ("", "-") or low > high:
        raise Invalid(seconds, f"'{seconds.text}' is no TTL", "write SECONDS, LOW-HIGH, LOW- or -HIGH")
    return {"match": _match(kind, source), "from_number": low, "to_number": high}


def _rcode(at: Token, words: list[Token]) -> dict[str, Any]:
    kind, rest = _kind(words)
    source, old, new = _exactly(at, rest, 3, f"rewrite rcode [{'|'.join(KINDS)}] NAME FROM TO")
    return {
        "match": _match(kind, source),
        "from_number": values.response_code(old),
        "to_number": values.response_code(new),
    }


_RULES = {
    "name": _name,
    "type": _type,
    "class": _class,
    "ttl": _ttl,
    "rcode": _rcode,
    "cname": _cname,
}


def template(line: Directive, context: Context) -> model.TemplateConfig:
    """`template CLASS TYPE [ZONES…] { match, answer, additional, authority, rcode, ederror, fallthrough }`."""
    class_word, type_word, *zone_words = values.counted(line, 2)
    try:
        rclass = rrtext.class_number(class_word.text)
    except ValueError as error:
        raise Invalid(class_word, f"'{class_word.text}' is no class", str(error)) from None
    rtype = values.record_type(type_word)
    matches: list[re.Pattern[str]] = []
    records: dict[str, list[tuple[Token, str]]] = {"answer": [], "additional": [], "authority": []}
    found: dict[str, Any] = {}

    def match(option: Directive) -> None:
        matches.extend(values.pattern(word) for word in values.counted(option, 1))

    def record(option: Directive) -> None:
        for word in values.counted(option, 1):
            records[option.name.text].append((word, word.text))

    def rcode(option: Directive) -> None:
        found["rcode"] = values.response_code(values.counted(option, 1, 1)[0])

    def ederror(option: Directive) -> None:
        words = values.counted(option, 1, 2)
        code = values.integer(words[0], 0, 65535, "extended error code")
        found["error"] = (code, words[1].text if len(words) > 1 else "")

    def fallthrough(option: Directive) -> None:
        found["fallthrough"] = values.fallthrough(option)

    known = {
        "match": match,
        "answer": record,
        "additional": record,
        "authority": record,
        "rcode": rcode,
        "ederror": ederror,
        "fallthrough": fallthrough,
    }
    removed = {"upstream": "remove it: names are resolved through this server itself"}
    values.options(line, known, context.problems, removed)
    for word, text in (pair for section in records.values() for pair in section):
        try:
            templates.check(text, matches or [compile_go(".*")])
        except ValueError as error:
            context.problems.append(Invalid(word, f"template '{text}': {error}", "correct the template").problem)
    return model.TemplateConfig(
        rclass=rclass,
        rtype=rtype,
        zones=values.zones_of(zone_words) or context.zones,
        matches=tuple(matches),
        answer=tuple(text for _, text in records["answer"]),
        additional=tuple(text for _, text in records["additional"]),
        authority=tuple(text for _, text in records["authority"]),
        **found,
    )
