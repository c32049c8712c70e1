"""Makes docs/configuration-dns.md and docs/metrics.md from the code, so that they cannot drift from it.

    python -m tools.reference            writes them
    python -m tools.reference --check    exit status 1 if one is not current

Plugins come from the Corefile parser's table: syntax from the parsing function's docstring, option words from the
mappings it hands to `values.options`, settings and defaults from the dataclass. Metrics come from the daemons'
registries, alerts from the charts.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from dnsserver import cli, corefile, corefile_model, corefile_plugins, corefile_syntax, names
from dnsserver.daemon import new_environment
from dnsserver.metrics import ServerMetrics
from ipvsproxy.metrics import (
    ApiMetrics,
    HealthCollector,
    ProxyMetrics,
    TableCollector,
    VirtualServerCollector,
    declare_build,
)
from kubecore.metrics import StoreCollector
from kubecore.opsserver import new_registry
from kubecore.store import Store

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NOTE = "<!-- Made by `python -m tools.reference` from the code; do not edit. -->\n"
SWITCHES = {
    "any": "Queries of type ANY get a short answer instead of everything (RFC 8482).",
    "debug": "Events of level debug are logged, and of a fault where it happened.",
    "local": "`localhost`, its reverse names and the names below are answered here (RFC 6761).",
    "loop": "Forwarding that leads back to this server is found out; it goes on serving the rest.",
    "minimal": "Authority and additional sections are left out of successful replies.",
    "whoami": "The client's address and port in the additional section.",
}
"""Plugins without arguments: what they do."""


# -- Corefile


_DNS_INTRO = """\
# Configuring the DNS server

`dnsserver run --config FILE` reads a Corefile; kubeadm's works as it is. Without one kubeadm's options hold.
`dnsserver check FILE` reports every mistake at once, with file, line and what to write instead; an unknown plugin or
option is a mistake, never left out silently. The file and everything it imports are read again as `reload` says, or
on SIGUSR1; a bad one is rejected and the old one stays.

```
{grammar}
```

A file with one server block may leave its braces away. A backslash at the end of a line joins it with the next.
`{{$NAME}}` is an environment variable, `{{$NAME:DEFAULT}}` one with a value for where it is not set. Durations are
Go's (`5s`, `1m30s`); zones may be CIDRs (`10.0.0.0/8` is its reverse zone). The order of plugins in a server block
means nothing; only among several `rewrite`, `template`, `acl` or `forward` lines does it.

`docs/corefile.md` has the order in which plugins act, and where they differ from CoreDNS on purpose.

## Default

```
{default}```
"""
_METRICS_INTRO = """\
# Metrics and alerts

Both daemons serve the Prometheus text format at `/metrics`: the proxy on 127.0.0.1:10249 (chart:
`metrics.bindAddress`), the DNS server where its Corefile says, usually :9153. Names of kube-proxy and of CoreDNS are
kept, so that dashboards and alerts go on working; what is ours begins with `ipvsproxy_`, `dnsserver_` or `kubecore_`.
Counters end in `_total`; a histogram has `_bucket`, `_sum` and `_count`.

The charts bring a Grafana dashboard (`dashboards.enabled`) and alerts (`prometheus.prometheusRule.enabled`).
"""


def dns_configuration() -> str:
    """docs/configuration-dns.md."""
    syntax = inspect.cleandoc(corefile_syntax.__doc__ or "")
    grammar = textwrap.dedent(syntax[syntax.index("    ") :].split("\n\nA file", 1)[0])
    parts = [
        NOTE,
        _DNS_INTRO.format(grammar=grammar, default=corefile.DEFAULT),
        "## Command line of `run`\n",
        *_options(),
        "## Plugins\n",
        *_plugins(),
        "## Plugins of CoreDNS that are not here\n",
        "Each is an error that says what to do instead.\n",
        "| Plugin | |\n|---|---|",
        *(f"| `{name}` | {_cell(remedy)} |" for name, remedy in sorted(corefile_plugins.ELSEWHERE.items())),
    ]
    return "\n".join(parts) + "\n"


def _options() -> Iterator[str]:
    """The options of `run`, as argparse has them; it tells them no other way."""
    actions = cli.parser()._actions  # noqa: SLF001
    run = next(a.choices["run"] for a in actions if isinstance(a.choices, dict))
    yield "| Option | Default | |\n|---|---|---|"
    for action in run._actions:  # noqa: SLF001
        if action.option_strings != ["-h", "--help"]:
            value = action.metavar or "|".join(action.choices or ())
            default = "" if action.default in (None, []) else f"`{action.default}`"
            what = _capital((action.help or "what is worth a line").replace("%%", "%"))
            yield f"| `{_cell(f'{action.option_strings[0]} {value}')}` | {default} | {_cell(what)} |"
    yield ""


def _plugins() -> Iterator[str]:
    fields = {f.name: f for f in dataclasses.fields(corefile_model.ServerBlock)}
    hints = typing.get_type_hints(corefile_model.ServerBlock)
    for name, plugin in sorted(corefile.PLUGINS.items()):
        yield f"### {name}\n"
        if plugin.parse is corefile_plugins.flag:
            yield f"`{name}`: {SWITCHES[name]}\n"
            continue
        yield _first_line(plugin.parse) + "\n"
        config = _dataclass_of(hints[fields[plugin.field].name])
        words = _option_words(plugin.parse)
        if words:
            yield "Options: " + ", ".join(f"`{word}`" for word in words) + ".\n"
        if config is not None:
            yield _sentence(config) + "\n"
            yield from _settings(config)


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")


def _sentence(config: type) -> str:
    """What a dataclass's docstring says after the plugin's name."""
    text = (inspect.getdoc(config) or "").split("\n\n")[0].replace("\n", " ")
    text = text.partition("`: ")[2] or text
    return _capital(text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _dataclass_of(hint: Any) -> type | None:
    candidates = [hint, *typing.get_args(hint)]
    candidates += [inner for candidate in candidates for inner in typing.get_args(candidate)]
    return next((c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)), None)


def _option_words(function: Any) -> list[str]:
    """The words a parsing function knows: keys of the mapping it hands to `values.options`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.getmodule(function) or function)))
    bodies = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    wanted, seen = [function.__name__], set[str]()
    words: list[str] = []
    while wanted:
        name = wanted.pop()
        if name in seen or name not in bodies:
            continue
        seen.add(name)
        mappings = {
            target.id: node.value
            for node in ast.walk(bodies[name])
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in (n for n in ast.walk(bodies[name]) if isinstance(n, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "options" and len(call.args) > 1:
                found = mappings.get(call.args[1].id) if isinstance(call.args[1], ast.Name) else call.args[1]
                if isinstance(found, ast.Dict):
                    words += [str(key.value) for key in found.keys if isinstance(key, ast.Constant)]
            elif isinstance(call.func, ast.Name) and call.func.id.startswith("_"):
                wanted.append(call.func.id)
    return words


def _settings(config: type, prefix: str = "") -> Iterator[str]:
    documented = dict(_field_docs(config))
    rows = []
    for field in dataclasses.fields(config):
        if field.name in {"zones", "zone"} and not documented.get(field.name):
            continue
        rows.append(f"| {prefix}{field.name} | {_default(field)} | {_cell(documented.get(field.name, ''))} |")
    if rows:
        yield "| Setting | Default | |\n|---|---|---|"
        yield from rows
        yield ""


def _field_docs(config: type) -> Iterator[tuple[str, str]]:
    """Fields and the text that stands under them."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(node, ast.ClassDef)
    for statement, following in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = " ".join(str(following.value.value).split())
            yield statement.target.id, text


def _default(field: Any) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "" if field.default_factory is dataclasses.MISSING else "none"
    return _shown(value)


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, tuple | frozenset | str) and not value):
        return "none"
    if value is True or value is False:
        return "on" if value else "off"
    if isinstance(value, enum.Enum):
        return f"`{value.value}`"
    if isinstance(value, bytes):
        return f"`{names.to_text(value)}`"
    if isinstance(value, tuple | frozenset) and not hasattr(value, "_fields"):
        return ", ".join(sorted(_shown(v) for v in value))
    if isinstance(value, corefile_model.Address):
        return f"`{value.host}:{value.port}`"
    if dataclasses.is_dataclass(value):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in fields if inner not in ((), None))
    if isinstance(value, float):
        return f"{value:g}"
    return _cell(f"`{value}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# -- metrics


def registries() -> dict[str, CollectorRegistry]:
    """What each daemon exports, and what both do; the way they put it together."""
    proxy, dns, both = new_registry(), new_registry(), new_registry()
    ProxyMetrics(proxy, (4, 6))
    declare_build(proxy, "0.0", "", {"": True})
    ApiMetrics(proxy)
    proxy.register(HealthCollector(dict))
    proxy.register(TableCollector(lambda: {4: (0, 0, 0)}))
    proxy.register(VirtualServerCollector(list, 1))
    new_environment(dns, ServerMetrics(dns, ""))
    both.register(StoreCollector(Store()))
    ProcessCollector(registry=both)
    return {"ipvsproxy": proxy, "dnsserver": dns, "both": both}


def metrics() -> str:
    """docs/metrics.md."""
    found = registries()
    parts = [NOTE, _METRICS_INTRO]
    for name, title in (("ipvsproxy", "ipvsproxy"), ("dnsserver", "dnsserver"), ("both", "Both")):
        parts += [f"## {title}\n", "| Metric | Type | Labels | |", "|---|---|---|---|"]
        rows = []
        for family in found[name].collect():
            shown = family.name + ("_total" if family.type == "counter" else "")
            rows.append(
                f"| `{shown}` | {family.type} | {_labels(found[name], family)} | {_cell(family.documentation)} |"
            )
        parts += [*sorted(rows), ""]
    for chart in ("ipvsproxy", "dnsserver"):
        parts += [f"## Alerts of {chart}\n", "| Alert | Severity | When | Meaning |", "|---|---|---|---|"]
        for group in yaml.safe_load((ROOT / "charts" / chart / "alerts.yaml").read_text())["groups"]:
            for rule in group["rules"]:
                when = " ".join(rule["expr"].split()) + (f" for {rule['for']}" if "for" in rule else "")
                text = rule["annotations"]["description"]
                parts.append(f"| `{rule['alert']}` | {rule['labels']['severity']} | `{_cell(when)}` | {_cell(text)} |")
        parts.append("")
    parts.append("What to do about each: docs/operations.md.")
    return "\n".join(parts) + "\n"


def _labels(registry: CollectorRegistry, family: Any) -> str:
    """Label names; the library keeps them to itself, and a metric without samples shows none."""
    for collector in registry._collector_to_names:  # noqa: SLF001
        if getattr(collector, "_name", None) == family.name:
            return ", ".join(collector._labelnames)  # type: ignore[attr-defined]  # noqa: SLF001
    return ", ".join(getattr(family, "_labelnames", ()))


FILES = {"configuration-dns.md": dns_configuration, "metrics.md": metrics}


def main() -> int:
    """Write or check; returns the exit status."""
    stale = []
    for name, make in FILES.items():
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(make(), encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != make():
            stale.append(name)
    for name in stale:
        print(f"docs/{name} is not current: run python -m tools.reference", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
