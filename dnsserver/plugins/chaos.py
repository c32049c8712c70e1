"""`chaos`: what this server says of itself, in class CH.

Source: RFC 4892 (version.server, id.server), and the older names under bind.
"""

from __future__ import annotations

import socket

from dnsserver import names, records
from dnsserver.corefile_model import ChaosConfig
from dnsserver.message import RR, Handler, Message, QClass, QType, Query
from dnsserver.plugins.base import REFUSED, Environment

AUTHORS = ("The kube-ipvs-dns authors",)


class Chaos:
    """A Handler. Nothing of class CH goes further: it would leak to upstreams."""

    def __init__(self, config: ChaosConfig, rest: Handler, env: Environment) -> None:
        version = (config.version or env.version,)
        host = (socket.gethostname() or "localhost",)
        self._rest = rest
        self._texts = {
            names.from_text(name): texts
            for name, texts in (
                ("version.bind", version),
                ("version.server", version),
                ("authors.bind", config.authors or AUTHORS),
                ("hostname.bind", host),
                ("id.server", host),
            )
        }

    async def __call__(self, query: Query) -> Message | None:
        """The texts, or REFUSED for other names in class CH."""
        question = query.question
        if question.qclass != QClass.CH:
            return await self._rest(query)
        texts = self._texts.get(question.lower)
        if texts is None or question.qtype not in (QType.TXT, QType.ANY):
            return REFUSED
        answer: list[RR] = []
        for text in texts:
            record = records.txt(question.name, 0, text.encode()[:255])
            answer.append(record._replace(rclass=QClass.CH))
        return Message(answer=tuple(answer), aa=True, cacheable=False)
