"""Makes each chart's README.md and values.schema.json from the comments of its values.yaml, and its Grafana dashboard.

    python -m tools.charts            writes them
    python -m tools.charts --check    exit status 1 if one is not current

A value's comment is `# -- text`, continued by lines that begin with `#`. `# @schema {…}` among them adds to the schema
that follows from the default: keywords of JSON Schema, or `{"$ref": "…"}` with a name of `REFERENCES`. A mapping whose
members have comments is a section, and closed; any other is a value, and open unless its schema says otherwise.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ipvsproxy import configvalues
from ipvsproxy.configfields import KUBE_PROXY_FIELDS, KUBE_PROXY_IGNORED, OUR_FIELDS, Field
from tools import dashboards

ROOT = Path(__file__).resolve().parent.parent
CHARTS = tuple(ROOT / "charts" / name for name in ("ipvsproxy", "dnsserver"))
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


class Value(NamedTuple):
    """A documented value."""

    path: tuple[str, ...]
    text: str
    schema: dict[str, Any]
    default: Any


def values(source: str) -> Iterator[Value]:
    """The documented values of a values.yaml, in its order."""
    data = yaml.safe_load(source)
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in source.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").removeprefix(" "))
            continue
        match = re.match(r"( *)([A-Za-z0-9_]+):", line)
        if match:
            indent = len(match[1])
            while path and path[-1][0] >= indent:
                path.pop()
            path.append((indent, match[2]))
            found = _parse(comment)
            if found is not None:
                names = tuple(name for _, name in path)
                yield Value(names, *found, _at(data, names))
        comment = []


def _parse(comment: list[str]) -> tuple[str, dict[str, Any]] | None:
    schema: dict[str, Any] = {}
    words: list[str] = []
    began = False
    for line in comment:
        if line.startswith("@schema "):
            schema = json.loads(line.removeprefix("@schema "))
        elif line.startswith("-- "):
            began = True
            words.append(line.removeprefix("-- "))
        elif began:
            words.append(line)
    return (" ".join(words), schema) if began else None


def _at(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        data = data[name]
    return data


def schema(found: list[Value], title: str) -> dict[str, Any]:
    """The JSON schema of a values.yaml."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        "type": "object",
        "additionalProperties": False,
        # `global` is every subchart's; Helm adds it.
        "properties": {"global": {"type": "object"}},
    }
    for value in found:
        section = root
        for name in value.path[:-1]:
            section = section["properties"].setdefault(
                name, {"type": "object", "additionalProperties": False, "properties": {}}
            )
        own: dict[str, Any] = {"description": value.text}
        if "$ref" in value.schema:
            own |= REFERENCES[value.schema["$ref"]]
        else:
            if "enum" not in value.schema:
                own["type"] = _TYPES[type(value.default)]
            own |= value.schema
        section["properties"][value.path[-1]] = own
    return root


def _closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, **more}


def _fields(fields: dict[str, Field], ignored: frozenset[str]) -> dict[str, Any]:
    """The schema of one of the proxy's configuration documents, from the table the daemon itself reads by."""
    root = _closed({})
    for name in (*fields, *sorted(ignored)):
        *above, last = name.split(".")
        section = root
        for part in above:
            section = section["properties"].setdefault(part, _closed({}))
        field = fields.get(name)
        kind: dict[str, Any] = {}
        if field is not None and field.parse is configvalues.boolean:
            kind = {"type": ["boolean", "null"]}
        elif field is not None and field.parse is configvalues.text:
            kind = {"type": ["string", "null"]}
        section["properties"][last] = kind
    return root


_WORD = {"type": ["string", "number", "boolean"]}
REFERENCES: dict[str, dict[str, Any]] = {
    "ipvsproxy:KubeProxyConfiguration": _fields(KUBE_PROXY_FIELDS, KUBE_PROXY_IGNORED),
    "ipvsproxy:IPVSProxyConfiguration": _fields(OUR_FIELDS, frozenset()),
    "k8s:resources": _closed(
        {
            **{
                name: {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
                for name in ("limits", "requests")
            },
            "claims": {"type": "array", "items": _closed({"name": {"type": "string"}, "request": {"type": "string"}})},
        }
    ),
    "dnsserver:servers": {
        "type": "array",
        "items": _closed(
            {
                "zones": {
                    "type": "array",
                    "items": _closed(
                        {
                            "zone": {"type": "string"},
                            "scheme": {"enum": ["", "dns://"]},
                            # Of the CoreDNS chart: both transports are served anyway.
                            "use_tcp": {"type": "boolean"},
                        },
                        required=["zone"],
                    ),
                },
                "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                "plugins": {
                    "type": "array",
                    "minItems": 1,
                    "items": _closed(
                        {"name": {"type": "string"}, "parameters": _WORD, "configBlock": {"type": "string"}},
                        required=["name"],
                    ),
                },
            },
            required=["plugins"],
        ),
    },
}


def readme(chart: dict[str, Any], found: list[Value], intro: str) -> str:
    """The README: what INTRO.md says, then every value."""
    rows = []
    for value in found:
        default = json.dumps(value.default, ensure_ascii=False)
        if len(default) > 60:
            default = "see values.yaml"
        text = value.text.replace("|", "\\|")
        rows.append(f"| `{'.'.join(value.path)}` | {text} | `{default}` |")
    head = (
        f"# {chart['name']}\n\n{chart['description']}\n\n"
        f"Chart {chart['version']}, Kubernetes {chart['kubeVersion'].removesuffix('-0')}.\n"
    )
    table = "\n".join(["## Values", "", "| Value | | Default |", "|---|---|---|", *rows])
    note = "<!-- Made of INTRO.md and of the comments in values.yaml by `python -m tools.charts`. -->"
    return f"{note}\n{head}\n{intro.strip()}\n\n{table}\n"


def files(chart: Path) -> dict[Path, str]:
    """What belongs into the chart's generated files."""
    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    found = list(values((chart / "values.yaml").read_text(encoding="utf-8")))
    intro = (chart / "INTRO.md").read_text(encoding="utf-8")
    return {
        chart / "README.md": readme(about, found, intro),
        chart / "values.schema.json": json.dumps(
            schema(found, f"Values of the {about['name']} chart"), indent=2, ensure_ascii=False
        )
        + "\n",
        chart / "dashboards" / f"{about['name']}.json": dashboards.text(about["name"]),
    }


def main() -> int:
    """Write or check; returns the exit status."""
    stale = []
    for chart in CHARTS:
        for path, content in files(chart).items():
            if "--check" not in sys.argv:
                path.write_text(content, encoding="utf-8")
            elif not path.exists() or path.read_text(encoding="utf-8") != content:
                stale.append(path.relative_to(ROOT))
    for path in stale:
        print(f"{path} is not current: run python -m tools.charts", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
