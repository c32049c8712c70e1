"""The kernel's build goes wrong: interrupted, without room, twice at once, cut short. It says so, or recovers.

Built here is a tree with the targets of the kernel's Makefile and none of its code; the real one takes minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tests.lab.kernel import build
from tests.lab.kernel.lab import ROOT

_MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 99
SUBLEVEL = 1
allnoconfig:
\tmkdir -p $(O) && cp $(KCONFIG_ALLCONFIG) $(O)/.config
linux:
\t@echo "  CC init/main.o"
\t@echo started >> {log}; sleep {seconds}
\tcp {program} $(O)/linux
"""
# `python -m tests.lab.kernel.build` with a source and tools of the test's own.
_MAIN = """
import sys
from pathlib import Path
from tests.lab.kernel import build
build.SOURCES, build.BUILD_TOOLS, build.NEEDED_BYTES = Path(sys.argv[1]), ("make",), 0
sys.exit(build.main())
"""


class Builder:
    """A machine's /usr/src and cache directory, with a source whose build takes `seconds`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.cache = directory / "cache" / "kube-ipvs-dns"
        self.source()

    def source(self, seconds: float = 0) -> Path:
        tree = self.directory / "linux-source-6.99"
        tree.mkdir(exist_ok=True)
        (tree / "Kconfig").touch()
        program = shutil.which("true")
        (tree / "Makefile").write_text(_MAKEFILE.format(log=self.log, seconds=seconds, program=program))
        archive = self.directory / "linux-source-6.99.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(tree, tree.name)
        return archive

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(self.directory)],
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(self.directory / "cache"), "KERNEL_LAB": "uml"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self) -> tuple[int, str, str]:
        process = self.start()
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def builds(self) -> int:
        """How many compilations were begun."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def wait_for_build(self) -> None:
        deadline = time.monotonic() + 30
        while not self.builds():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kernels(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("linux-*"))

    def scratch(self) -> list[Path]:
        return list(self.cache.glob("building-*"))


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_a_kernel_is_built_once(builder: Builder) -> None:
    code, out, err = builder.run()
    assert (code, err) == (0, "")
    assert "compiled Linux 6.99.1: 1 objects" in out
    again = builder.run()
    assert again == (0, f"{builder.cache / builder.kernels()[0]}\n", "")
    assert (builder.builds(), builder.scratch()) == (1, [])


def test_two_at_once_build_once(builder: Builder) -> None:
    builder.source(seconds=1)
    first = builder.start()
    builder.wait_for_build()
    second = builder.start()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert "another build of this kernel is running; waiting for it" in outputs[1]
    assert builder.builds() == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing_behind(builder: Builder, number: signal.Signals) -> None:
    builder.source(seconds=30)
    process = builder.start()
    builder.wait_for_build()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted: no kernel is built; the same command begins anew\n")
    assert (builder.kernels(), builder.scratch()) == ([], [])


def test_what_a_killed_build_left_is_cleared_by_the_next(builder: Builder) -> None:
    builder.source(seconds=30)
    process = builder.start()
    builder.wait_for_build()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert len(builder.scratch()) == 1
    builder.source()
    assert builder.run()[0] == 0
    assert (len(builder.kernels()), builder.scratch()) == (1, [])


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1], ids=["empty", "its head", "half of it", "all but the last byte"])
def test_a_kernel_cut_short_is_built_again(builder: Builder, kept: float) -> None:
    builder.run()
    (kernel,) = builder.cache.glob("linux-*")
    whole = kernel.read_bytes()
    kernel.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    code, out, _ = builder.run()
    assert code == 0
    assert "building the kernel again, as the cached one does not run" in out
    assert kernel.read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 700, 1500], ids=["empty", "cut in a header", "cut in a file"])
def test_a_broken_source_is_named(builder: Builder, kept: int) -> None:
    archive = builder.source()
    archive.write_bytes(archive.read_bytes()[:kept])
    code, _, err = builder.run()
    assert code == 1
    assert re.search(r"linux-source-6\.99\.tar cannot be unpacked: .+; remedy: .*--reinstall linux-source-6\.99$", err)
    assert builder.scratch() == []


def test_a_cache_that_cannot_be_written_is_named(builder: Builder) -> None:
    (builder.directory / "cache").touch()
    code, _, err = builder.run()
    assert code == 1
    assert re.search(r"error: .*Not a directory.*is built and kept in .*remedy: .*XDG_CACHE_HOME=DIR$", err)


def test_too_little_room_is_told_before_the_build(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 9 * 10**9, 10**9))
    monkeypatch.setattr(build, "SOURCES", builder.directory)
    monkeypatch.setattr(build, "BUILD_TOOLS", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(builder.directory / "cache"))
    with pytest.raises(build.KernelBuildError, match=r"1\.0 GB are free, too little; .* give it 2\.5 GB"):
        build.build(verbose=False)
    assert builder.builds() == 0


def test_options_that_only_some_versions_know_may_be_lost() -> None:
    wanted = "CONFIG_NET=y\n# Not in every version:\nCONFIG_NETFILTER_XTABLES_LEGACY=y\n"
    assert build.lost_options(wanted, "CONFIG_NET=y\n") == []
    assert build.lost_options(wanted, "CONFIG_NETFILTER_XTABLES_LEGACY=y\n") == ["CONFIG_NET=y"]
