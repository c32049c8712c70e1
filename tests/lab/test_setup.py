"""tools/setup on machines that lack something: what it runs, what it tells people. Commands of root are only noted."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.kernel.lab import ROOT

# Programs of the machine are stood in for by scripts; each notes how it was called.
_NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >> {log}\n'


@dataclass
class Machine:
    """A checkout with tools/setup alone, and a PATH whose first directory has the test's own programs."""

    tree: Path
    programs: Path
    log: Path

    def program(self, name: str, script: str, *, noted: bool = True) -> None:
        path = self.programs / name
        path.write_text((_NOTE if noted else "#!/bin/sh\n").format(log=self.log) + script)
        path.chmod(0o755)

    def setup(self, *groups: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.tree / "tools" / "setup", *groups],
            env={"PATH": f"{self.programs}:/usr/bin:/bin", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stderr

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One of Debian's with no package of ours, for a person who is not root."""
    machine = Machine(tmp_path / "tree", tmp_path / "programs", tmp_path / "log")
    for directory in (machine.tree / "tools", machine.programs):
        directory.mkdir(parents=True)
    for name in ("tools/setup", "tools/debian-packages.txt", "requirements-dev.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, machine.tree / name)
    machine.program("id", "echo 1000", noted=False)
    machine.program("dpkg-query", "exit 1", noted=False)
    machine.program("sudo", "exit 1", noted=False)
    return machine


def test_without_root_packages_are_named(machine: Machine) -> None:
    code, message = machine.setup("base", "image")
    assert code == 3
    assert "need root to install:\n  apt-get install debootstrap python3-venv\n" in message
    everything = message.partition("all that any target uses:")[2].split()
    assert {"debootstrap", "python3-venv", "ipvsadm", "unbound", "linux-source"} < set(everything)


def test_packages_are_installed_without_their_daemons(machine: Machine) -> None:
    """Only what is missing; the file that forbids daemons is there meanwhile, if the machine has none of its own."""
    machine.program("sudo", 'case "$*" in *apt-get\\ install*) exit 100;; tee*) cat > /dev/null;; esac')
    machine.program("dpkg-query", 'case "$*" in *ipset) echo installed;; *) exit 1;; esac', noted=False)
    code, message = machine.setup("lab")
    assert code == 3
    assert "apt-get could not install: bind9-dnsutils conntrack curl" in message
    assert "ipset" not in message
    calls = machine.calls()
    update, install = (
        next(i for i, call in enumerate(calls) if f"apt-get {verb}" in call) for verb in ("update", "install")
    )
    assert calls[0] == "sudo -n true"
    assert update < install
    if not Path("/usr/sbin/policy-rc.d").exists():
        assert calls.index("sudo tee /usr/sbin/policy-rc.d") < install


@pytest.mark.parametrize(("name", "says"), [("python3.0", "command not found|not found"), ("old", "Python 3.10.9")])
def test_an_interpreter_that_will_not_do_is_named(machine: Machine, name: str, says: str) -> None:
    """And no other is taken in its place."""
    machine.program("dpkg-query", "echo installed", noted=False)
    machine.program("old", 'if [ "$1" = -V ]; then echo Python 3.10.9; else exit 1; fi', noted=False)
    code, message = machine.setup("base", PYTHON=name)
    assert code == 3
    assert f"PYTHON={name} is no Python of at least 3.11" in message
    assert any(part in message for part in says.split("|"))
    assert not (machine.tree / ".venv").exists()


def test_no_interpreter_that_will_do(machine: Machine) -> None:
    machine.program("dpkg-query", "echo installed", noted=False)
    for minor in ("", ".14", ".13", ".12", ".11"):
        machine.program(f"python3{minor}", 'if [ "$1" = -V ]; then echo Python 3.9.2; else exit 1; fi', noted=False)
    code, message = machine.setup()
    assert code == 3
    assert "no Python of at least 3.11 found (python3 is Python 3.9.2)" in message
    assert "make PYTHON=/path/to/python3.12" in message


def test_one_at_a_time(machine: Machine) -> None:
    with subprocess.Popen(
        ["flock", machine.tree / "tools" / "setup", "sh", "-c", "echo locked; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting = subprocess.Popen(
            [machine.tree / "tools" / "setup"],
            env={"PATH": f"{machine.programs}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        assert "another set-up of this checkout is running; waiting for it" in waiting.stderr.readline()
        assert waiting.poll() is None
        holder.communicate(b"\n")
    assert "need root" in waiting.communicate(timeout=30)[1]
