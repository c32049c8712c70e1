"""`python -m tests.lab.apiserver`: the stub as a process, for end-to-end tests and the demo."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import yaml

from tests.lab.apiserver import manifests
from tests.lab.apiserver.controllers import SliceController
from tests.lab.apiserver.rbac import Policy
from tests.lab.apiserver.server import ApiServer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.apiserver", description="An API server stub.")
    add = parser.add_argument
    add("--manifests", action="append", default=[], type=Path, help="directory or file to load; may be repeated")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0: any free one (printed)")
    add("--name", action="append", default=[], help="a further name or address for the certificate")
    add("--tls", action="store_true", help="serve https, with an own certificate authority")
    add("--token", action="append", default=[], metavar="TOKEN[=USER]", help="accept this token; others get 401")
    add("--rbac", type=Path, help="manifests with Roles and bindings; what none allows is refused")
    add("--kubeconfig-out", type=Path, help="write a kubeconfig for the first token")
    add("--controllers", action="store_true", help="derive EndpointSlices from Pods and Endpoints")
    add("--service-cidr", action="append", default=[], help="may be given twice, for dual stack")
    add("--no-bootstrap", action="store_true", help="begin with no objects, and take Services of any address")
    add("--no-watch-list", action="store_true", help="refuse streaming lists, as older servers do")
    add("--bookmark-interval", type=float, default=60.0, metavar="SECONDS")
    return parser.parse_args()


async def _run(args: argparse.Namespace) -> None:
    tokens = {t.partition("=")[0]: t.partition("=")[2] or "admin" for t in args.token}
    policy = Policy.of(d for d in yaml.safe_load_all(args.rbac.read_text()) if d) if args.rbac else None
    server = ApiServer(
        host=args.host,
        port=args.port,
        tls=args.tls,
        names=args.name,
        tokens=tokens,
        policy=policy,
        watch_list=not args.no_watch_list,
        bookmark_interval_s=args.bookmark_interval,
        service_cidrs=args.service_cidr or ("10.96.0.0/12",),
        bootstrap=not args.no_bootstrap,
    )
    for path in args.manifests:
        for problem in manifests.load(server, manifests.read(path)):
            print(f"{path}: left out: {problem}", file=sys.stderr)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with server, asyncio.TaskGroup() as group:
        controller = group.create_task(SliceController(server).run()) if args.controllers else None
        if args.kubeconfig_out:
            args.kubeconfig_out.write_text(server.kubeconfig())
        print(f"serving {server.url}", flush=True)
        await stopped.wait()
        if controller is not None:
            controller.cancel()


if __name__ == "__main__":
    asyncio.run(_run(_arguments()))
