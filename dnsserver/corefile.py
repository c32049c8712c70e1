"""The Corefile: one file (and what it imports) into a Config, or every problem in it.

Knows server blocks, their keys, and which directive is read by whom. Must not know the running plugins. Called by the
command line (`check`, `run`) and at a reload. Layout of the parts: `corefile_syntax` (words and lines),
`corefile_values` (notations), `corefile_plugins`, `_forward`, `_rewrite`, `_kubernetes` (directives), `corefile_model`
(results).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dnsserver import corefile_forward, corefile_kubernetes, corefile_plugins, corefile_rewrite, corefile_syntax, names
from dnsserver import corefile_values as values
from dnsserver.corefile_model import Config, Key, ServerBlock
from dnsserver.corefile_plugins import Context, Parse
from dnsserver.corefile_syntax import Block, CorefileProblem, Directive, Invalid, Token

__all__ = ["DEFAULT", "PLUGINS", "CorefileError", "CorefileProblem", "load"]

DEFAULT_PORT = 53
DEFAULT = """\
.:53 {
    errors
    health {
        lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
        max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
"""
"""What runs without a Corefile: the options of kubeadm's."""


class CorefileError(Exception):
    """A Corefile that cannot be used; `problems` holds everything that is wrong with it, in order of the lines."""

    def __init__(self, problems: tuple[CorefileProblem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class _Plugin(NamedTuple):
    """How a directive is read and where its value goes in ServerBlock."""

    parse: Parse
    field: str
    many: bool = False
    """May stand several times in a block."""


PLUGINS: Mapping[str, _Plugin] = {
    "acl": _Plugin(corefile_plugins.acl, "acls", many=True),
    "any": _Plugin(corefile_plugins.flag, "any"),
    "autopath": _Plugin(corefile_plugins.autopath, "autopath"),
    "bind": _Plugin(corefile_plugins.bind, "bind", many=True),
    "bufsize": _Plugin(corefile_plugins.bufsize, "bufsize"),
    "cache": _Plugin(corefile_plugins.cache, "cache"),
    "cancel": _Plugin(corefile_plugins.cancel, "cancel_s"),
    "chaos": _Plugin(corefile_plugins.chaos, "chaos"),
    "debug": _Plugin(corefile_plugins.flag, "debug"),
    "dns64": _Plugin(corefile_plugins.dns64, "dns64"),
    "errors": _Plugin(corefile_plugins.errors, "errors"),
    "forward": _Plugin(corefile_forward.forward, "forwards", many=True),
    "health": _Plugin(corefile_plugins.health, "health"),
    "hosts": _Plugin(corefile_plugins.hosts, "hosts"),
    "k8s_external": _Plugin(corefile_kubernetes.external, "external"),
    "kubernetes": _Plugin(corefile_kubernetes.kubernetes, "kubernetes"),
    "loadbalance": _Plugin(corefile_plugins.loadbalance, "loadbalance"),
    "local": _Plugin(corefile_plugins.flag, "local"),
    "log": _Plugin(corefile_plugins.log, "logs", many=True),
    "loop": _Plugin(corefile_plugins.flag, "loop"),
    "minimal": _Plugin(corefile_plugins.flag, "minimal"),
    "prometheus": _Plugin(corefile_plugins.prometheus, "prometheus"),
    "ready": _Plugin(corefile_plugins.ready, "ready"),
    "reload": _Plugin(corefile_plugins.reload, "reload"),
    "rewrite": _Plugin(corefile_rewrite.rewrite, "rewrites", many=True),
    "template": _Plugin(corefile_rewrite.template, "templates", many=True),
    "whoami": _Plugin(corefile_plugins.flag, "whoami"),
}


def load(source: Path | str, *, env: Mapping[str, str] | None = None, name: str = "Corefile") -> Config:
    """The configuration in a file, or in a text.

    Args:
        source: a Path to read, or the text itself.
        env: the variables `{$NAME}` stands for; the process' own by default.
        name: what messages call a text.

    Raises:
        CorefileError: with every problem found.
    """
    env = os.environ if env is None else env
    if isinstance(source, Path):
        name, base = str(source), source.parent
        try:
            text = source.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problem = CorefileProblem(name, 0, f"cannot read the Corefile: {reason}", "name a readable text file")
            raise CorefileError((problem,)) from None
        files: tuple[str, ...] = (name,)
    else:
        text, base, files = source, Path(), ()
    syntax = corefile_syntax.parse(text, name, base, env)
    problems = list(syntax.problems)
    blocks = [_block(block, problems) for block in syntax.blocks]
    _check_keys(blocks, syntax.blocks, problems)
    if not blocks and not problems:
        problems.append(
            CorefileProblem(name, 0, "no server block", "write at least .:53 { forward . /etc/resolv.conf }")
        )
    if problems:
        order = {file: index for index, file in enumerate((name, *syntax.files))}
        unique = dict.fromkeys(problems)
        raise CorefileError(tuple(sorted(unique, key=lambda p: (order.get(p.file, 0), p.line))))
    return Config(blocks=tuple(blocks), files=files + syntax.files, digest=_digest(syntax.blocks))


def _digest(blocks: tuple[Block, ...]) -> str:
    """SHA-512 over every word in effect: imports and variables count, comments and spacing do not."""
    sha = hashlib.sha512()

    def add(line: Directive) -> None:
        for word in (line.name, *line.args):
            sha.update(b"%d:" % len(word.text.encode()) + word.text.encode())
        sha.update(b"{")
        for inner in line.body or ():
            add(inner)
        sha.update(b"}")

    for block in blocks:
        for key in block.keys:
            sha.update(b"k%d:" % len(key.text.encode()) + key.text.encode())
        for directive in block.directives:
            add(directive)
    return sha.hexdigest()


def _block(block: Block, problems: list[CorefileProblem]) -> ServerBlock:
    """The server block; a directive that is wrong is left out and its problems are added."""
    keys = tuple(key for word in block.keys for key in _keys(word, problems))
    context = Context(tuple(dict.fromkeys(key.zone for key in keys)), problems)
    if not block.directives:
        word = block.keys[0]
        text = f"the server block '{word.text}' has no plugins"
        problems.append(CorefileProblem(word.file, word.line, text, "add at least one, or remove the block"))
    fields: dict[str, Any] = {}
    first_seen: dict[str, Token] = {}
    for directive in block.directives:
        try:
            plugin = _plugin(directive.name, first_seen)
            value = plugin.parse(directive, context)
        except Invalid as invalid:
            problems.append(invalid.problem)
            continue
        if not plugin.many:
            fields[plugin.field] = value
        else:
            # Most directives are one item; bind is a list of them.
            items = value if type(value) is tuple else (value,)
            fields[plugin.field] = fields.get(plugin.field, ()) + items
    found = ServerBlock(keys=keys, file=block.keys[0].file, line=block.keys[0].line, **fields)
    _check_together(found, first_seen, problems)
    return found


def _plugin(name: Token, seen: dict[str, Token]) -> _Plugin:
    """How the directive called `name` is read; it is noted in `seen`."""
    word = name.text
    plugin = PLUGINS.get(word)
    if plugin is None and word in corefile_plugins.ELSEWHERE:
        raise Invalid(name, f"plugin '{word}' is not supported", corefile_plugins.ELSEWHERE[word])
    if plugin is None:
        remedy = values.nearest(word, PLUGINS, "known are " + ", ".join(sorted(PLUGINS)))
        raise Invalid(name, f"'{word}' is no plugin", remedy)
    if word in seen and not plugin.many:
        raise Invalid(name, f"'{word}' stands twice in this server block", f"merge it with line {seen[word].line}")
    seen.setdefault(word, name)
    return plugin


def _keys(word: Token, problems: list[CorefileProblem]) -> list[Key]:
    """The zones and ports a key of a server block stands for; a CIDR stands for several zones."""
    try:
        return _read_key(word)
    except Invalid as invalid:
        problems.append(invalid.problem)
        return []


def _read_key(word: Token) -> list[Key]:
    text = word.text
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme != "dns":
        raise Invalid(word, f"transport '{scheme}://' is not served", "write the zone alone, or dns://ZONE:PORT")
    host, port = values.split_port(rest)
    if host.endswith(":"):
        raise Invalid(word, f"'{text}' has no port after ':'", "add the port, or remove the colon")
    if port is not None and not 0 < port < 65536:
        raise Invalid(word, f"port {port} is out of range", "write 1 to 65535")
    if "/" in host and host.startswith("["):
        host = host.replace("[", "").replace("]", "")
    zones = values.zones_of((word._replace(text=host or "."),))
    return [Key(zone, port or DEFAULT_PORT) for zone in zones]


def _check_keys(blocks: list[ServerBlock], written: tuple[Block, ...], problems: list[CorefileProblem]) -> None:
    """No two blocks answer for the same zone on the same port and address."""
    owners: dict[Key, list[ServerBlock]] = {}
    for block, words in zip(blocks, written, strict=True):
        seen: set[Key] = set()
        for word in words.keys:
            for key in _keys(word, []):
                label = f"{names.to_text(key.zone)}:{key.port}"
                if key in seen:
                    remedy = "remove one of them"
                    problems.append(CorefileProblem(word.file, word.line, f"'{label}' is listed twice", remedy))
                    continue
                seen.add(key)
                other = next((b for b in owners.get(key, ()) if _overlap(b.bind, block.bind)), None)
                if other is not None:
                    text = f"'{label}' is already served by the block of line {other.line}"
                    problems.append(CorefileProblem(word.file, word.line, text, "merge the blocks, or bind them apart"))
                    continue
                owners.setdefault(key, []).append(block)


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two blocks' `bind` have an address in common; none at all is every address."""
    wildcards = {"0.0.0.0", "::"}
    if not one or not other or wildcards & {*one, *other}:
        return True
    return bool(set(one) & set(other))


def _check_together(block: ServerBlock, seen: Mapping[str, Token], problems: list[CorefileProblem]) -> None:
    """What depends on more than one directive of a block."""

    def complain(plugin: str, text: str, remedy: str) -> None:
        at = seen[plugin]
        problems.append(CorefileProblem(at.file, at.line, text, remedy))

    if block.external is not None and "kubernetes" not in seen:
        complain(
            "k8s_external", "'k8s_external' has no 'kubernetes' to take Services from", "add kubernetes to this block"
        )
    if block.autopath is not None and not block.autopath.resolv_conf:
        if "kubernetes" not in seen:
            complain(
                "autopath", "'@kubernetes' names a plugin this block does not have", "add kubernetes to this block"
            )
        elif block.kubernetes is not None and block.kubernetes.pods.value != "verified":
            complain("autopath", "'autopath @kubernetes' must know which pod asks", "write pods verified in kubernetes")
    if block.external is not None and block.kubernetes is not None:
        # Reverse zones may be shared: what has no external address falls through to kubernetes.
        shared = set(block.external.zones) & set(block.kubernetes.zones)
        forward = [zone for zone in shared if not names.is_reverse(zone)]
        if forward:
            zone = names.to_text(min(forward))
            complain("k8s_external", f"zone '{zone}' is kubernetes' own", "name another zone for k8s_external")
