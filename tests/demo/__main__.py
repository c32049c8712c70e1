"""`python -m tests.demo [--manifests DIR] [--keep]`: the main job, live; what `make demo` runs.

Exit status: 0 everything held, 1 something did not, 2 wrong usage, 3 there is no kernel to run on, 128 and the signal's
number when it was told to end.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from kubecore.manifest import ManifestError
from tests.demo import changes, cluster, names, objects, services, shell
from tests.demo.report import Report
from tests.lab.kernel import selection
from tests.lab.kernel.lab import ROOT, GuestDiedError, GuestError, Lab, NoKernelError
from tests.lab.kernel.net import CallError, CommandError, Net

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOGS = ROOT / "build" / "demo"
_BROKEN = (CommandError, CallError, GuestError, GuestDiedError, AssertionError)


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description="A cluster's service network, live.")
    parser.add_argument(
        "--manifests", type=Path, help="a directory or file of your own objects, in place of tests/scenarios"
    )
    parser.add_argument("--keep", action="store_true", help="end in a shell inside the cluster")
    args = parser.parse_args()
    if args.manifests:
        _check(parser, args.manifests)
    for number in _SIGNALS:
        signal.signal(number, _end)
    report = Report()
    choice = selection.choose()
    report.section("Kernel")
    if choice.mode == "host":
        report.say(f"this machine's own kernel: {choice.reason}")
    elif choice.mode == "uml":
        report.say(f"user-mode Linux, as {choice.reason}: {choice.kernel}")
    try:
        with Lab.start(build_missing=True) as lab, lab.net() as net:
            return _run(report, lab, net, args)
    except NoKernelError as error:
        report.say(f"no kernel to run on: {error}")
        return 3


def _check(parser: argparse.ArgumentParser, path: Path) -> None:
    """Ends with a message where the user's manifests cannot be read at all."""
    if not path.exists():
        parser.error(f"{path}: no such file or directory")
    try:
        objects.theirs(path)
    except (ManifestError, OSError) as error:
        parser.error(str(error))


def _end(number: int, _: FrameType | None) -> None:
    """Leaves by the way on which the guest and its directory are removed; a second signal cannot cut that short."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    print(f"\nended by {signal.Signals(number).name}; taking the cluster down", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def _run(report: Report, lab: Lab, net: Net, args: argparse.Namespace) -> int:
    report.say(f"Linux {lab.release}, booted after {report.elapsed_s:.1f} s")
    report.section("Cluster")
    spec = cluster.Spec(manifests=(args.manifests.resolve() if args.manifests else objects.SCENARIOS,))
    running = cluster.Cluster(lab, net, spec)
    try:
        for what, step in running.steps():
            with report.doing(what):
                step()
        for part in (names, services, changes):
            try:
                part.run(running, report)
            except _BROKEN as error:
                title = (part.__doc__ or part.__name__).partition(":")[0]
                report.check(False, f"{title}: broken off", seen=error, remedy=f"logs are in {_LOGS}")
    except _BROKEN as error:
        report.check(False, "The cluster did not come up", seen=error, remedy=f"logs are in {_LOGS}")
    report.summary()
    if not report.good:
        _keep_logs(report, running)
    if args.keep:
        try:
            shell.run(running, report)
        except _BROKEN as error:
            report.say(f"The shell ended with the cluster: {error}")
            return 1
    return 0 if report.good else 1


def _keep_logs(report: Report, running: cluster.Cluster) -> None:
    _LOGS.mkdir(parents=True, exist_ok=True)
    try:
        for name, text in running.logs().items():
            (_LOGS / f"{name}.log").write_text(text)
        (_LOGS / "kernel.txt").write_text(running.net.report())
    except _BROKEN as error:
        report.say(f"not all logs could be had: {error}")
    report.say(
        f"What to do next: logs of every process, and routes, IPVS and nftables of every host are in {_LOGS}; "
        "`make demo KEEP=1` ends in a shell inside the cluster"
    )


if __name__ == "__main__":
    sys.exit(main())
