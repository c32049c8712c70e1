"""`kube`: a little of kubectl for the shell of `make demo KEEP=1`: get, apply, edit, delete.

Uses $KUBECONFIG. A deleted Pod terminates for a second, then is gone, as with a kubelet. A real kubectl works as well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.demo.api import KINDS, Api, ApiError, Object
from tests.demo.objects import finalized
from tests.lab.apiserver import manifests

_TERMINATION_S = 1.0
_ALIASES = {"svc": "services", "po": "pods", "no": "nodes", "ns": "namespaces", "ep": "endpoints"}


def main() -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="kube", description="A little of kubectl.")
    parser.add_argument("-n", "--namespace", default="demo")
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser("get", help="a table of objects, or one as YAML")
    get.add_argument("kind", type=kind)
    get.add_argument("name", nargs="?")
    get.add_argument("-A", "--all-namespaces", action="store_true")
    apply = commands.add_parser("apply", help="make objects as a manifest says")
    apply.add_argument("-f", "--filename", type=Path, required=True)
    for name, text in (("edit", "change an object in $EDITOR"), ("delete", "delete an object")):
        command = commands.add_parser(name, help=text)
        command.add_argument("kind", type=kind)
        command.add_argument("name")
    args = parser.parse_args()
    try:
        return int(_COMMANDS[args.command](Api(os.environ["KUBECONFIG"]), args) or 0)
    except (ApiError, OSError, yaml.YAMLError) as error:
        print(f"kube: {error}", file=sys.stderr)
        return 1


def kind(text: str) -> str:
    """The kind meant by `svc`, `service`, `services`."""
    wanted = _ALIASES.get(text.lower(), text.lower())
    for name, (_, plural, _) in KINDS.items():
        if wanted in (plural, name.lower()):
            return name
    raise argparse.ArgumentTypeError(f"{text!r}: write one of {', '.join(plural for _, plural, _ in KINDS.values())}")


def _get(api: Api, args: argparse.Namespace) -> None:
    if args.name:
        print(yaml.safe_dump(api.get(args.kind, args.namespace, args.name), sort_keys=False), end="")
        return
    rows = [_row(args.kind, obj) for obj in api.list(args.kind, "" if args.all_namespaces else args.namespace)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(kind_name: str, obj: Object) -> list[str]:
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    row = [f"{metadata.get('namespace', '')}/{metadata['name']}".lstrip("/")]
    if kind_name == "Service":
        row += [spec.get("type", ""), spec.get("clusterIP") or spec.get("externalName", "")]
        row.append(",".join(f"{p['port']}/{p.get('protocol', 'TCP')}" for p in spec.get("ports") or []))
    elif kind_name == "Pod":
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
        state = "Terminating" if metadata.get("deletionTimestamp") else "Ready" if ready else "NotReady"
        row += [state, status.get("podIP", ""), spec.get("nodeName", "")]
    elif kind_name == "EndpointSlice":
        row.append(",".join(e["addresses"][0] for e in obj.get("endpoints") or []))
    return row


def _apply(api: Api, args: argparse.Namespace) -> None:
    for obj in manifests.read(args.filename):
        print(api.apply(finalized(obj)))


def _edit(api: Api, args: argparse.Namespace) -> int:
    before = yaml.safe_dump(api.get(args.kind, args.namespace, args.name), sort_keys=False)
    with tempfile.NamedTemporaryFile("w+", suffix=".yaml") as file:
        file.write(before)
        file.flush()
        subprocess.run([*os.environ.get("EDITOR", "vi").split(), file.name], check=True)
        after = Path(file.name).read_text()
    if after == before:
        print("nothing changed")
        return 0
    print(api.apply(yaml.safe_load(after)))
    return 0


def _delete(api: Api, args: argparse.Namespace) -> None:
    api.delete(args.kind, args.namespace, args.name)
    if args.kind == "Pod":
        time.sleep(_TERMINATION_S)
        api.finish(args.namespace, args.name)
    print(f"{KINDS[args.kind][1]}/{args.name} deleted")


_COMMANDS = {"get": _get, "apply": _apply, "edit": _edit, "delete": _delete}

if __name__ == "__main__":
    sys.exit(main())
