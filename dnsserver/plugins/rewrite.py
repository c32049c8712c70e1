"""`rewrite`: questions changed on the way in, replies changed back on the way out.

The client's question is always what the reply is sent with; owner names that are the rewritten question's become the
client's again, whatever the rule says about other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

from dnsserver import names
from dnsserver.corefile_model import AnswerRule, NameMatch, RewriteRule
from dnsserver.encode import name_end
from dnsserver.message import RR, Handler, Message, QType, Query, Question, Rcode
from dnsserver.plugins.base import failure

MAX_ALIASES = 10
_GROUP = re.compile(r"\{(\d+)\}")
_NAMES_IN_RDATA = {QType.CNAME: 0, QType.NS: 0, QType.PTR: 0, 39: 0, QType.MX: 2, QType.SRV: 6}
"""Type → bytes before the one name in its rdata (39: DNAME)."""

Change = Callable[[str], str]
"""Of a name as text, lower case, absolute."""


def matches(match: NameMatch, name: str) -> bool:
    """Whether a lower-case absolute name is meant."""
    match match.kind:
        case "exact":
            return name == match.text
        case "prefix":
            return name.startswith(match.text)
        case "suffix":
            return name.endswith(match.text)
        case "substring":
            return match.text in name
        case "regex":
            return match.pattern is not None and match.pattern.search(name) is not None


def renamed(match: NameMatch, replacement: str, name: str) -> str:
    """The name a matching one becomes."""
    match match.kind:
        case "exact":
            return replacement
        case "prefix":
            return replacement + name[len(match.text) :]
        case "suffix":
            return name[: len(name) - len(match.text)] + replacement
        case "substring":
            return name.replace(match.text, replacement)
        case "regex":
            found = match.pattern.search(name) if match.pattern is not None else None
            return expanded(found, replacement) if found else name


def expanded(found: re.Match[str], replacement: str) -> str:
    """`replacement` with `{1}` and so on for the groups, `{0}` for the whole match."""
    return _GROUP.sub(lambda group: found[int(group[1])] or "", replacement)


def _by_expression(pattern: re.Pattern[str], replacement: str) -> Change:
    def change(name: str) -> str:
        found = pattern.search(name)
        return expanded(found, replacement) if found else name

    return change


def _turned_back(rule: RewriteRule) -> Change | None:
    """What undoes an exact, prefix or suffix rule on other names of the reply."""
    if rule.match is None:
        return None
    source, target = rule.match.text, rule.replacement.lower()
    match rule.match.kind:
        case "exact":
            return lambda name: source if name == target else name
        case "prefix":
            return lambda name: source + name[len(target) :] if name.startswith(target) else name
        case "suffix":
            return lambda name: name[: len(name) - len(target)] + source if name.endswith(target) else name
        case _:
            return None


class _Undo:
    """What one rule does to a reply."""

    def __init__(self, rule: RewriteRule, before: Question, after: Question) -> None:
        self._rule = rule
        self._before = before
        self._after = after
        self._names: list[Change] = []
        self._values: list[Change] = []
        for answer in rule.answers:
            self._add(answer)
        if rule.match is not None and rule.match.kind == "exact" and not rule.answers:
            self._add(AnswerRule(where="auto"))

    def _add(self, answer: AnswerRule) -> None:
        if answer.where == "auto":
            change = _turned_back(self._rule)
            if change is not None:
                self._names.append(change)
                self._values.append(change)
        elif answer.pattern is not None:
            change = _by_expression(answer.pattern, answer.replacement)
            (self._names if answer.where == "name" else self._values).append(change)

    def __call__(self, reply: Message) -> Message:
        rule = self._rule
        match rule.field:
            case "rcode":
                concerned = reply.rcode == rule.from_number
                return msgspec.structs.replace(reply, rcode=rule.to_number) if concerned else reply
            case "ttl":
                low, high = rule.from_number, rule.to_number
                return _each(reply, lambda rr: rr._replace(ttl=min(max(rr.ttl, low), high)))
            case "name":
                return _each(reply, self._record)
            case _:
                return reply

    def _record(self, rr: RR) -> RR:
        if rr.name.lower() == self._after.lower:
            rr = rr._replace(name=self._before.name)
        elif self._names:
            rr = rr._replace(name=_changed(rr.name, self._names))
        at = _NAMES_IN_RDATA.get(rr.type)
        if at is not None and self._values:
            end = name_end(rr.rdata, at)
            rr = rr._replace(rdata=rr.rdata[:at] + _changed(rr.rdata[at:end], self._values) + rr.rdata[end:])
        return rr


def _changed(name: bytes, changes: Iterable[Change]) -> bytes:
    text = before = names.to_text(name.lower())
    for change in changes:
        text = change(text)
    if text == before:
        return name
    try:
        return names.from_text(text)
    except ValueError:
        return name


def _each(reply: Message, change: Callable[[RR], RR]) -> Message:
    return msgspec.structs.replace(
        reply,
        answer=tuple(map(change, reply.answer)),
        authority=tuple(map(change, reply.authority)),
        additional=tuple(map(change, reply.additional)),
    )


class Rewrite:
    """A Handler."""

    def __init__(self, rules: Iterable[RewriteRule], rest: Handler, resolve: Handler) -> None:
        self._rules = tuple(rules)
        self._rest = rest
        self._resolve = resolve

    def concerns(self, lower: bytes, qtype: int) -> bool:
        """Whether a question in class IN would be, or its reply might be, changed."""
        name = names.to_text(lower)
        for rule in self._rules:
            match rule.field:
                case "type":
                    if qtype == rule.from_number:
                        return True
                case "cname":
                    return True
                case "class":
                    if rule.from_number == 1:
                        return True
                case _:
                    if rule.match is not None and matches(rule.match, name):
                        return True
        return False

    async def __call__(self, query: Query) -> Message | None:
        """The reply to the rewritten question, under the client's names; SERVFAIL if a rule makes no valid name."""
        question = query.question
        undo: list[_Undo] = []
        aliases: list[RewriteRule] = []
        for rule in self._rules:
            try:
                changed = self._applied(rule, question)
            except ValueError:
                return failure("a rewrite rule makes a name that is not valid")
            if changed is None:
                continue
            undo.append(_Undo(rule, question, changed))
            question = changed
            if rule.field == "cname":
                aliases.append(rule)
            elif not rule.go_on:
                break
        if not undo:
            return await self._rest(query)
        reply = await self._rest(msgspec.structs.replace(query, question=question))
        if reply is None:
            return None
        for rule in aliases:
            reply = await self._follow(rule, query, reply)
        for step in reversed(undo):
            reply = step(reply)
        return msgspec.structs.replace(reply, cacheable=False)

    @staticmethod
    def _applied(rule: RewriteRule, question: Question) -> Question | None:
        """The question after the rule; None if it is not concerned."""
        match rule.field:
            case "type":
                return question._replace(qtype=rule.to_number) if question.qtype == rule.from_number else None
            case "class":
                return question._replace(qclass=rule.to_number) if question.qclass == rule.from_number else None
            case "cname":
                return question
        if rule.match is None:
            return None
        text = names.to_text(question.lower)
        if not matches(rule.match, text):
            return None
        if rule.field != "name":
            return question
        name = names.from_text(renamed(rule.match, rule.replacement, text))
        return question._replace(name=name, lower=name.lower())

    async def _follow(self, rule: RewriteRule, query: Query, reply: Message) -> Message:
        """The reply with the first CNAME whose target the rule matches led elsewhere, and what is found there."""
        if rule.match is None:
            return reply
        for index, rr in enumerate(reply.answer):
            if rr.type != QType.CNAME:
                continue
            target = names.to_text(rr.rdata.lower())
            if not matches(rule.match, target):
                continue
            try:
                name = names.from_text(renamed(rule.match, rule.replacement, target))
            except ValueError:
                return failure("a rewrite rule makes a name that is not valid")
            kept = (*reply.answer[:index], rr._replace(rdata=name))
            if query.question.qtype == QType.CNAME:
                return msgspec.structs.replace(reply, answer=kept)
            asked = query.question._replace(name=name, lower=name.lower())
            if query.chased >= MAX_ALIASES:
                return failure("rewritten aliases lead in a circle")
            found = await self._resolve(msgspec.structs.replace(query, question=asked, chased=query.chased + 1))
            if found is None:
                return failure("the rewritten alias could not be looked up")
            rcode = found.rcode if found.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN) else Rcode.SERVFAIL
            return msgspec.structs.replace(found, rcode=rcode, answer=kept + found.answer)
        return reply
