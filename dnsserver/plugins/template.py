"""`template`: replies made out of the question's text.

Every value put into a record is escaped text of a name, so nobody can write records of his own with a clever question.
An alias is followed by asking the server itself, as for an ExternalName Service; where nobody here has the target, it
stands alone: the client's resolver goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from dnsserver import names, rrtext
from dnsserver.answer import MAX_ALIASES
from dnsserver.corefile_model import TemplateConfig
from dnsserver.message import RR, Handler, Message, QClass, QType, Query, Question, Rcode
from dnsserver.plugins.base import Environment, failure, falls_through, within
from dnsserver.templates import Template, compile_template

_SECTIONS = ("answer", "authority", "additional")
_NO_MATCH = failure("no template matches")


class _Compiled(NamedTuple):
    config: TemplateConfig
    sections: dict[str, tuple[Template, ...]]


class Templates:
    """A Handler: the first template that matches replies."""

    def __init__(
        self, configs: Iterable[TemplateConfig], rest: Handler, resolve: Handler, env: Environment, server: str
    ) -> None:
        """Args: `resolve`: the whole server, from the choice of the server block on, for targets of aliases."""
        self._rest = rest
        self._resolve = resolve
        self._counters = env.counters
        self._server = server
        self._templates = tuple(
            _Compiled(
                config, {section: tuple(map(compile_template, getattr(config, section))) for section in _SECTIONS}
            )
            for config in configs
        )

    def concerns(self, lower: bytes, qtype: int) -> bool:
        """Whether a template may reply to a question in class IN."""
        return any(_is_for(c.config, Question(lower, lower, qtype, QClass.IN)) for c in self._templates)

    async def __call__(self, query: Query) -> Message | None:
        """The reply of a template; SERVFAIL where one is for the question, does not match and does not fall through."""
        question = query.question
        for template in self._templates:
            config = template.config
            if not _is_for(config, question):
                continue
            data = _data(config, query)
            if data is None:
                if not falls_through(question.lower, config.fallthrough):
                    return _NO_MATCH
                continue
            labels = (
                self._server,
                data["Zone"],
                "",
                rrtext.class_name(question.qclass),
                rrtext.type_name(question.qtype),
            )
            self._counters.template_matches.labels(*labels).inc()
            return await self._followed(query, self._reply(template, data, labels))
        return await self._rest(query)

    async def _followed(self, query: Query, reply: Message) -> Message:
        """The reply with what its aliases lead to; its response code is then that of the last name (RFC 6604)."""
        asked = query.question
        target = _open_end(asked, reply)
        if target is None:
            return reply
        if query.chased >= MAX_ALIASES:
            return failure("a template's aliases lead in a circle")
        question = asked._replace(name=target, lower=target.lower())
        found = await self._resolve(msgspec.structs.replace(query, question=question, chased=query.chased + 1))
        if found is None or found.rcode == Rcode.REFUSED:
            return reply
        return msgspec.structs.replace(
            reply,
            rcode=found.rcode if found.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN) else Rcode.SERVFAIL,
            answer=reply.answer + found.answer,
            authority=reply.authority + tuple(rr for rr in found.authority if rr.type == QType.SOA),
            errors=reply.errors or found.errors,
            tc=found.tc,
        )

    def _reply(self, template: _Compiled, data: dict[str, Any], labels: tuple[str, ...]) -> Message:
        config = template.config
        errors = (config.error,) if config.error is not None else ()
        if config.rcode == Rcode.SERVFAIL:
            return Message(rcode=Rcode.SERVFAIL, errors=errors, cacheable=False)
        found: dict[str, tuple[RR, ...]] = {}
        for section, templates in template.sections.items():
            made: list[RR] = []
            for one in templates:
                try:
                    line = one.expand(data)
                except ValueError as error:
                    self._counters.template_failures.labels(*labels, section, one.text).inc()
                    return failure(f"template: {error}")
                try:
                    made.append(rrtext.from_text(line))
                except ValueError as error:
                    self._counters.template_rr_failures.labels(*labels, section, one.text).inc()
                    return failure(f"template: {error}")
            found[section] = tuple(made)
        return Message(
            rcode=config.rcode,
            answer=found["answer"],
            authority=found["authority"],
            additional=found["additional"],
            aa=True,
            errors=errors,
            cacheable=False,
        )


def _open_end(asked: Question, reply: Message) -> bytes | None:
    """The target of the last of the aliases the question leads through, where the reply has nothing more of it."""
    if reply.rcode != Rcode.NOERROR or asked.qclass != QClass.IN or asked.qtype in (QType.CNAME, QType.ANY):
        return None
    targets = {rr.name.lower(): rr.rdata for rr in reply.answer if rr.type == QType.CNAME}
    end = None
    lower = asked.lower
    while (target := targets.pop(lower, None)) is not None:
        end, lower = target, target.lower()
    return None if any(rr.name.lower() == lower and rr.type != QType.CNAME for rr in reply.answer) else end


def _is_for(config: TemplateConfig, question: Question) -> bool:
    return (
        config.rclass in (QClass.ANY, question.qclass)
        and config.rtype in (QType.ANY, question.qtype)
        and within(question.lower, config.zones)
    )


def _data(config: TemplateConfig, query: Query) -> dict[str, Any] | None:
    """What a template's actions refer to; None if no expression matches."""
    question = query.question
    text = names.to_text(question.lower)
    matched = None
    if config.matches:
        matched = next((found for pattern in config.matches if (found := pattern.search(text))), None)
        if matched is None:
            return None
    groups = [matched[0], *(group or "" for group in matched.groups())] if matched else [text]
    named = {str(number): value for number, value in enumerate(groups)}
    if matched is not None:
        named |= {name: value or "" for name, value in matched.groupdict().items()}
    zone = names.longest_suffix(question.lower, config.zones)
    kind, family = rrtext.type_name(question.qtype), rrtext.class_name(question.qclass)
    return {
        "Zone": names.to_text(zone if zone is not None else names.ROOT),
        "Name": text,
        "Class": family,
        "Type": kind,
        "Match": groups,
        "Group": named,
        "Remote": query.client,
        "Message": {"Id": query.id, "RecursionDesired": query.rd},
        "Question": {"Name": names.to_text(question.name), "Qtype": question.qtype, "Qclass": question.qclass},
    }
