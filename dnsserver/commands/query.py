"""`dnsserver query NAME [TYPE]`: the reply the server would give, and which objects it comes from.

Knows how to run a configuration's plugins over a source without listening. Must not know zones or plugins. Called by
the command line.

Exit codes: 0 there is a reply (whatever its code, as with dig), 1 there is none or the source cannot be read, 2 wrong
usage or Corefile.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import ipaddress
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dnsserver import corefile, digtext, names, rrtext
from dnsserver.chain import Router, Runtime
from dnsserver.config import ExternalConfig, KubernetesConfig
from dnsserver.corefile_model import Config
from dnsserver.explain import explain
from dnsserver.localaddress import local_addresses
from dnsserver.message import Handler, Message, QClass, QType, Query, Question
from dnsserver.plugins.base import Environment
from dnsserver.plugins.k8s_external import KubernetesExternal
from dnsserver.plugins.kubernetes import Kubernetes
from dnsserver.source import CLUSTER, SourceError, open_source, watched
from dnsserver.wire import accept, encode, encode_query, parse_reply
from dnsserver.zone import Zone
from kubecore import log, once
from kubecore.access import AccessError
from kubecore.files import load
from kubecore.manifest import ManifestError
from kubecore.manifestfile import Severity
from kubecore.snapshot import ClusterState

_CLIENT = "127.0.0.1"
_UDP_SIZE_BYTES = 1232


class _Answered(NamedTuple):
    raw: bytes
    """Empty: the configuration gives no reply."""
    origin: list[str]


class _StartError(Exception):
    """A plugin cannot start; says which, why, and the remedy."""


def add(commands: Any) -> None:
    """Put the command on the command line."""
    command: argparse.ArgumentParser = commands.add_parser(
        "query",
        help="answer one question as the server would, and say why",
        description="Answer one question as the server would, without listening, and say which objects the answer "
        "comes from, or what is missing. Exit status: 0 there is a reply, whatever its code; 1 there is none, or the "
        "source cannot be read; 2 wrong usage or Corefile.",
    )
    add_arguments(command)
    command.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "name", metavar="NAME", help="a domain name (the last dot may be missing), or an address for PTR"
    )
    parser.add_argument("type", metavar="TYPE", nargs="?", help="record type (default: A, PTR for an address)")
    parser.add_argument("--source", default=CLUSTER, help="'cluster' (default), or a directory or file of manifests")
    parser.add_argument("--config", type=Path, metavar="COREFILE", help="default: kubeadm's options")
    parser.add_argument("--output", choices=("dig", "json"), default="dig", help="default: as dig prints it")
    parser.add_argument("--tcp", action="store_true", help="as over TCP: without a limit of size")


def run(args: argparse.Namespace) -> int:
    """Answer one question; returns the exit code."""
    log.configure(level="warning")  # standard output is the answer's
    try:
        question = parse_question(args.name, args.type)
    except ValueError as error:
        return _fail(str(error), 2)
    try:
        config = corefile.load(args.config if args.config is not None else corefile.DEFAULT, name="default Corefile")
    except corefile.CorefileError as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"{args.config}: {error.strerror}", 2)
    try:
        answered = asyncio.run(_ask(config, args.source, question, tcp=args.tcp))
    except (SourceError, AccessError, once.LookError, ManifestError, _StartError) as error:
        return _fail(str(error), 1)
    if not answered.raw:
        return _fail("no reply: the configuration drops this query", 1)
    sys.stdout.write((_json if args.output == "json" else _dig)(answered) + "\n")
    return 0


def parse_question(name: str, rtype: str | None) -> Question:
    """The question meant on the command line.

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        wire = names.reverse_name(str(ipaddress.ip_address(name)))
        default = int(QType.PTR)
    except ValueError:
        wire, default = names.from_text(name), int(QType.A)
    try:
        qtype = rrtext.type_number(rtype) if rtype else default
    except ValueError as error:
        raise ValueError(f"{rtype!r} is no record type: {error}") from None
    return Question(wire, wire.lower(), qtype, int(QClass.IN))


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"dnsserver query: {text}\n")
    return code


async def _ask(config: Config, source: str, question: Question, *, tcp: bool) -> _Answered:
    directives = [block.kubernetes for block in config.blocks if block.kubernetes is not None]
    state = await _cluster(source, directives)
    zones = {directive: Zone(directive, local_addresses()) for directive in directives}
    for zone in zones.values():
        zone.load(state, time.time())
    runtime, router = _plugins(config, zones)
    datagram = encode_query(question, random.SystemRandom().randrange(65536), udp_size_bytes=_UDP_SIZE_BYTES)
    query = accept(datagram, "tcp" if tcp else "udp", _CLIENT)
    if not isinstance(query, Query):
        return _Answered(query.reply if query is not None else b"", ["a query that is refused, whatever the name"])
    try:
        await runtime.start()
    except OSError as error:
        raise _StartError(str(error)) from None
    try:
        match = router.find(question.lower, question.qtype)
        limit = match.chain.bufsize if match and not tcp else None
        message = await router(query)
    finally:
        await runtime.close()
    holders = [zone for zone in zones.values() if zone.cut(question.lower) is not None]
    origin = explain(holders[0], state, question) if holders else ["not a name of the cluster's zones"]
    return _Answered(encode(message, query, limit) if message is not None else b"", origin)


async def _cluster(source: str, directives: list[KubernetesConfig]) -> ClusterState:
    if not directives:
        return ClusterState()
    if source != CLUSTER:
        state, problems = load(source, watched(directives))
        for problem in problems:
            if problem.severity is not Severity.NOTE:
                sys.stderr.write(f"{problem}\n")
        return state
    opened = open_source(source, directives)
    if opened is None or opened.client is None:
        return ClusterState()
    async with opened.client:
        return await once.look(opened.client, watched(directives))


def _plugins(config: Config, zones: dict[KubernetesConfig, Zone]) -> tuple[Runtime, Router]:
    """The configuration's plugins without what only a server that runs has: loop detection, logs, the cache."""
    blocks = tuple(dataclasses.replace(block, loop=False, logs=(), errors=None, cache=None) for block in config.blocks)
    of_external = {b.external: b.kubernetes for b in blocks if b.external is not None and b.kubernetes is not None}
    holder: list[Router] = []

    async def ask_self(query: Query) -> Message | None:
        return await holder[0](query)

    def kubernetes(directive: KubernetesConfig, rest: Handler) -> Handler:
        return Kubernetes(zones[directive], rest, ask_self)

    def external(directive: ExternalConfig, rest: Handler) -> Handler:
        return KubernetesExternal(directive, zones[of_external[directive]], rest, ask_self)

    runtime = Runtime(dataclasses.replace(config, blocks=blocks), Environment(kubernetes=kubernetes, external=external))
    holder.append(runtime.router_of_all())
    return runtime, holder[0]


def _dig(answered: _Answered) -> str:
    return "\n".join([digtext.dig_text(answered.raw), "", ";; FROM:", *(f"; {line}" for line in answered.origin)])


def _json(answered: _Answered) -> str:
    reply = parse_reply(answered.raw)
    to_text: Callable[..., list[str]] = lambda section: [rrtext.to_text(rr) for rr in section]  # noqa: E731
    question = reply.question
    return json.dumps(
        {
            "status": digtext.status(reply),
            "flags": digtext.flags_of(answered.raw),
            "question": {"name": names.to_text(question.name), "type": rrtext.type_name(question.qtype)}
            if question
            else None,
            "answer": to_text(reply.message.answer),
            "authority": to_text(reply.message.authority),
            "additional": to_text(reply.message.additional),
            "errors": digtext.extended_errors(reply),
            "size_bytes": len(answered.raw),
            "from": answered.origin,
        },
        indent=2,
    )
