"""The README keeps its word: every command in it is run, and prints what stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from dnsserver import corefile
from ipvsproxy.configfile import load_config
from ipvsproxy.model import Scheduler
from kubecore.files import load
from tests.charts.helm import helm
from tests.lab.kernel.lab import ROOT
from tests.lab.kernel.net import Host, Net, Process

README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
_VARYING = re.compile(r"(?<=id: )\d+")
_QUESTIONS = ("dig ", "ip route show ")
_SLACK_S = 4.0
_STARTED = {"ipvsproxy": "ipvsproxy.reconciler.started", "dnsserver": "process.daemon.started"}


class Command(NamedTuple):
    """A command of a console block."""

    prompt: str
    line: str
    output: list[str]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(prompt: str, programs: str) -> Iterator[Command]:
    """Commands of the console blocks with this prompt whose program matches, with the output that follows them."""
    for block in blocks("console"):
        found: list[Command] = []
        for line in block.splitlines():
            if line.startswith(("$ ", "# ")):
                found.append(Command(line[0], line[2:], []))
            else:
                found[-1].output.append(line)
        yield from (c for c in found if c.prompt == prompt and re.match(programs, c.line))


def normal(lines: list[str]) -> list[str]:
    """Without what differs from run to run."""
    return [_VARYING.sub("N", line.rstrip()) for line in lines]


def test_no_command_is_left_out() -> None:
    everything = [c for prompt in "$#" for c in commands(prompt, "")]
    covered = [
        *commands("$", "make "),
        *commands("$", "helm "),
        *commands("$", "(ipvsproxy|dnsserver) "),
        *commands("#", ""),
    ]
    assert sorted(everything) == sorted(covered)
    assert len(everything) > 10


@pytest.mark.parametrize("command", list(commands("$", "make ")), ids=lambda c: c.line)
def test_make(command: Command) -> None:
    """The target exists and does what is said; what it does is tested elsewhere, at length."""
    done = subprocess.run([*command.line.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
    does = {"make demo": "-m tests.demo", "make test": "-m pytest"}
    assert does[command.line] in done.stdout


@pytest.mark.parametrize("command", list(commands("$", "helm ")), ids=lambda c: c.line.split()[2])
def test_helm(command: Command) -> None:
    argv = command.line.split()[1:]
    assert argv[0] == "install"
    chart = argv.pop(2)
    rendered = list(yaml.safe_load_all(helm("template", argv[1], str(ROOT / chart), *argv[2:])))
    assert {"DaemonSet", "Deployment"} & {obj["kind"] for obj in rendered if obj}


@pytest.mark.parametrize("command", list(commands("$", "(ipvsproxy|dnsserver) ")), ids=lambda c: c.line.split()[0])
def test_unprivileged(command: Command) -> None:
    done = subprocess.run(
        [str(BIN / command.line.split()[0]), *command.line.split()[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert normal(done.stdout.splitlines()) == normal(command.output)


@pytest.mark.kernel
def test_on_a_machine(net: Net, tmp_path: Path) -> None:
    """The blocks for root, one after the other, on a machine as the text describes it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    net.link("box", "net", ["192.0.2.10/24"], ["192.0.2.21/24"])
    box = net.host("box", forwarding=True)
    running: dict[str, Process] = {}
    for command in commands("#", ""):
        if command.line.endswith("&"):
            name = command.line.split()[0]
            running[name] = box.popen(f"exec {BIN}/{command.line.removesuffix('&')}", cwd=str(tmp_path))
            running[name].wait_for_log(_STARTED[name], 60)
            continue
        if command.line == "ipvsproxy cleanup":
            assert running["ipvsproxy"].stop() == 0
        _await_output(box, command, tmp_path)
    assert box.ipvs_rules() == []


def _await_output(box: Host, command: Command, cwd: Path) -> None:
    """Runs it once; a question is asked again for a while, as the second of the README may not be enough when busy."""
    deadline = time.monotonic() + (_SLACK_S if command.line.startswith(_QUESTIONS) else 0.0)
    while (seen := normal(_run(box, command.line, cwd))) != normal(command.output):
        assert time.monotonic() < deadline, f"{command.line} prints {seen}"


def _run(box: Host, line: str, cwd: Path) -> list[str]:
    return box.run(f"PATH={BIN}:$PATH; {line}", cwd=str(cwd)).lines


def test_configuration_of_the_proxy() -> None:
    loaded = load_config(blocks("yaml")[0], "README.md", {})
    assert loaded.config.ipvs.scheduler is Scheduler.RR
    assert not loaded.ignored


def test_manifests(tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(blocks("yaml")[1])
    state, problems = load(tmp_path)
    assert [s.name for s in state.services.values()] == ["cache"]
    assert [str(p) for p in problems] == []
    plan = subprocess.run(
        [str(BIN / "ipvsproxy"), "plan", "--source", str(tmp_path), "--node", "n", "--output", "ipvsadm"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plan.stdout == "-A -t 10.96.1.81:11211 -s mh -b mh-port\n"


def test_number_of_plugins() -> None:
    assert f"Corefile: {len(corefile.PLUGINS)} of its plugins" in README


def test_corefile(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(blocks("corefile")[0])
    assert len(corefile.load(tmp_path / "Corefile").blocks) == 1


def test_links() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_names_of_make_targets_and_options() -> None:
    """`make X` in running text is a target, and the options of the demo are its own."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "MANIFESTS" in makefile
    assert "KEEP" in makefile
