"""`python -m tests.demo`, as `make demo MANIFESTS=… KEEP=1` runs it: the user's own objects, and a shell at the end."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.kernel import selection
from tests.lab.kernel.fixtures import refuse
from tests.lab.kernel.lab import ROOT

LIMIT_S = 540
"""A minute on an idle machine, four on one that has four times as much to do as it can."""
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(LIMIT_S + 60)]

OWN = """\
apiVersion: v1
kind: Service
metadata: {name: mine, namespace: shop}
spec:
  clusterIP: 10.96.30.1
  selector: {app: mine}
  ports: [{port: 80, targetPort: 9090}]
---
apiVersion: v1
kind: Pod
metadata: {name: mine-1, namespace: shop, labels: {app: mine}}
spec: {nodeName: somewhere, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 172.20.0.7, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]}
"""
TYPED = """\
curl -s http://mine.shop/
kube -n shop get services
kube apply -f tests/demo/manifests/scale-up.yaml
kube get pods web-4 | grep podIP:
EDITOR="sed -i s/port:.80$/port:\\x2081/" kube -n shop edit service mine
on node-a ipvsadm -Ln | grep -c 10.96.20
kube delete pod web-4
hosts
exit
"""


def test_own_manifests_and_the_shell(tmp_path: Path) -> None:
    choice = selection.choose()
    if choice.mode is None:
        refuse(choice.reason)
    (tmp_path / "mine.yaml").write_text(OWN)
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--manifests", str(tmp_path), "--keep"],
        input=TYPED,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_S,
        check=False,
    )
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    summary, _, shell = output.partition("== Summary")[2].partition("== A shell")
    lines = summary.strip().splitlines()
    assert len(lines) > 40, output
    assert all(line.startswith("✓ ") for line in lines[:-1]), summary
    assert lines[-1].startswith("all ")
    assert _shapes(_shown_in_readme()) <= _shapes(lines)
    assert "not taken over, its name or address is the demo's own: Service kube-system/kube-dns" in output
    answers = (
        "mine-1 saw 10.244.1.99",
        "shop/mine  ClusterIP  10.96.30.1  80/TCP",
        "pods/web-4 created",
        "podIP: 10.244.1.14",
        "services/mine configured",
        "\n8\n",
        "pods/web-4 deleted",
        "client control db-0 db-1 dns-1 dns-2 elsewhere node-a node-b outside",
    )
    assert [answer for answer in answers if answer not in shell] == [], shell


def _shown_in_readme() -> list[str]:
    block = (ROOT / "README.md").read_text().partition("<!-- demo -->\n```\n")[2].partition("```")[0]
    assert block.count("✓") > 10
    return block.splitlines()


def _shapes(lines: list[str]) -> set[str]:
    """Lines without their figures, which differ from run to run."""
    return {re.sub(r"[\d.]+", "N", line) for line in lines}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """No process, no directory."""
    choice = selection.choose()
    if choice.mode is None:
        refuse(choice.reason)
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert running.stdout is not None
    before = list(itertools.takewhile(lambda line: "API server, upstream DNS server" not in line, running.stdout))
    assert any(tmp_path.iterdir()), "".join(before)
    running.send_signal(number)
    rest = running.stdout.read()
    assert running.wait(60) == 128 + number, rest
    assert f"ended by {number.name}; taking the cluster down" in rest
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 10  # the kernel takes a moment to be rid of what was killed
    while left := _processes_with(str(tmp_path)):
        assert time.monotonic() < deadline, left


def _processes_with(text: str) -> list[str]:
    listing = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if text in line]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "{path}: no such file or directory"),
        ("", "{path}: nothing in it belongs to a service network; name a directory with .yaml, .yml or .json files"),
        ("kind: Service\nspec: {", "{path}/mine.yaml:2: not YAML"),
    ],
)
def test_manifests_without_use_are_refused_at_once(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "manifests"
    if content is not None:
        path.mkdir()
        (path / "mine.yaml").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--manifests", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint.format(path=path) in done.stderr
