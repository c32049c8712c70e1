"""Builds the lab's user-mode Linux kernel from Debian's kernel source: `python -m tests.lab.kernel.build`.

Knows where the source comes from, how it is configured, where the result is cached and whether it is whole. Knows
nothing about booting it. Called by `make kernel`, and by `lab` when a kernel is needed and none is cached.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).with_name("uml.config")
SETUP = Path(__file__).resolve().parents[3] / "tools" / "setup"
SOURCES = Path("/usr/src")
BUILD_TOOLS = ("gcc", "make", "flex", "bison", "bc", "strip")
# The unpacked source and the objects take 1.9 GB with Linux 6.12, 2.2 GB with 7.2, until the build is over.
NEEDED_BYTES = 2_500_000_000
_CHECK_TIMEOUT_S = 20
# What follows this line in uml.config is asked for, and not missed.
_NOT_IN_EVERY_VERSION = "# Not in every version:"
_OPTION = re.compile(r"(CONFIG_\w+)=(.+)")
# The kernel's version (6.1.140), from the first lines of its Makefile.
_MAKEFILE_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL)\s*=\s*(\d+)", re.MULTILINE)


class KernelBuildError(Exception):
    """The kernel cannot be built here; the message says what to install or change."""


@dataclass(frozen=True, order=True)
class Source:
    """A kernel source archive of the distribution, ordered by version."""

    version: tuple[int, ...]
    archive: Path

    @property
    def label(self) -> str:
        """The version as in the archive's name (`6.1`)."""
        return ".".join(map(str, self.version))


def cache_directory() -> Path:
    """The directory that holds built kernels, outside any checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kube-ipvs-dns"


def installed_source() -> Source | None:
    """The newest `linux-source-X.Y` archive under /usr/src, or None."""
    found = []
    # Ubuntu keeps the archive in a directory of its own.
    for archive in (*SOURCES.glob("linux-source-*.tar*"), *SOURCES.glob("linux-source-*/linux-source-*.tar*")):
        if match := re.match(r"linux-source-(\d+(?:\.\d+)*)\.tar", archive.name):
            found.append(Source(tuple(int(part) for part in match[1].split(".")), archive))
    return max(found, default=None)


def cached_kernel() -> Path | None:
    """The kernel built from this configuration and the installed source (with no source: the newest), or None.

    One that does not run is none.
    """
    source = installed_source()
    candidates = [_kernel_path(source)] if source else cache_directory().glob(f"linux-*-{_config_hash()}-*")
    return max((path for path in candidates if path.exists() and defect(path) is None), default=None)


def defect(kernel: Path) -> str | None:
    """What keeps a built kernel from running: cut short, or made for another C library; None when nothing does."""
    try:
        done = subprocess.run(
            [kernel, "--version"], capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode != 0:
        return f"`{kernel} --version` ended with {done.returncode} {done.stderr.strip()}".rstrip()
    if not _whole(kernel):
        return f"{kernel} is cut short"
    return None


def _whole(kernel: Path) -> bool:
    # The table of sections ends a file made by strip: e_shoff at byte 40, e_shentsize at 58, e_shnum at 60.
    with kernel.open("rb") as file:
        head = file.read(64)
    offset = int.from_bytes(head[40:48], "little")
    size = int.from_bytes(head[58:60], "little") * int.from_bytes(head[60:62], "little")
    return 0 < offset + size <= kernel.stat().st_size


def build(*, jobs: int | None = None, verbose: bool = True) -> Path:
    """The path of the built kernel, built now when none that runs is cached (4 to 6 minutes on two cores).

    Idempotent, and safe to run in parallel: builders wait for each other, and the result appears by an atomic rename.

    Raises:
        KernelBuildError: packages are missing, there is no room, an option of uml.config did not survive, or the
            compiler failed.
    """
    if platform.machine() != "x86_64":
        raise KernelBuildError(
            f"the lab's user-mode Linux is for x86_64, and this machine is {platform.machine()}; "
            "remedy: use the machine's own kernel, as root, with the modules ip_vs, nf_tables, dummy and veth"
        )
    source = _require_source()
    target = _kernel_path(source)
    if cached_kernel() == target:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.with_name("build.lock"), verbose=verbose):
            if target.exists() and (wrong := defect(target)):
                if verbose:
                    print(f"building the kernel again, as the cached one does not run: {wrong}", flush=True)
                target.unlink()
            if not target.exists():
                _build_into(source, target, jobs or os.cpu_count() or 1, verbose=verbose)
    except OSError as error:
        raise KernelBuildError(f"{error}; {_elsewhere(target.parent)}") from error
    return target


def _elsewhere(directory: Path) -> str:
    return (
        f"the kernel is built and kept in {directory}; remedy: give it {NEEDED_BYTES / 1e9:.1f} GB and the right to "
        "write, or name another place: XDG_CACHE_HOME=DIR"
    )


def _config_hash() -> str:
    # Of the options alone: a comment is no reason to build again.
    return hashlib.sha256(repr(_OPTION.findall(CONFIG.read_text())).encode()).hexdigest()[:12]


def _kernel_path(source: Source) -> Path:
    # The archive's size stands for the distribution's revision: hashing 138 MB at every start would cost half a second.
    revision = hashlib.sha256(f"{source.label} {source.archive.stat().st_size}".encode()).hexdigest()[:8]
    return cache_directory() / f"linux-{source.label}-{_config_hash()}-{revision}"


def _require_source() -> Source:
    """The source to build from, with the tools to build it, both installed now when they are missing and may be."""
    if _lacking():
        # Says what it does, and what to do when it cannot.
        subprocess.run([SETUP, "kernel-build"], stdout=sys.stderr, check=False)
    source = installed_source()
    if source is None or _lacking():
        raise KernelBuildError(
            f"cannot build the lab kernel, lacking {', '.join(_lacking())}; remedy: install the packages of group "
            f"[kernel-build] in {SETUP.with_name('debian-packages.txt')}, or their like"
        )
    return source


def _lacking() -> list[str]:
    source = [] if installed_source() else [f"a kernel's source ({SOURCES}/linux-source-X.Y.tar.xz)"]
    return [tool for tool in BUILD_TOOLS if shutil.which(tool) is None] + source


@contextlib.contextmanager
def _exclusive(lock: Path, *, verbose: bool) -> Iterator[None]:
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if verbose:
                print("another build of this kernel is running; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build_into(source: Source, target: Path, jobs: int, *, verbose: bool) -> None:
    started = time.monotonic()
    for leftover in target.parent.glob("building-*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    if (free := shutil.disk_usage(target.parent).free) < NEEDED_BYTES:
        raise KernelBuildError(f"{free / 1e9:.1f} GB are free, too little; {_elsewhere(target.parent)}")
    # Beside the target, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(prefix=f"building-{target.name}-", dir=target.parent) as scratch:
        workdir = Path(scratch)
        if verbose:
            print(f"unpacking {source.archive.name}", flush=True)
        tree = _unpack(source.archive, workdir)
        output = workdir / "build"
        make = ["make", "-C", str(tree), "ARCH=um", f"O={output}"]
        environment = {**os.environ, "KCONFIG_ALLCONFIG": str(CONFIG)}
        # We may run under `make kernel`, whose flags are not ours. gcc's own temporary files find room here, too.
        for variable in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
            environment.pop(variable, None)
        environment["TMPDIR"] = scratch
        configured = subprocess.run(
            [*make, "allnoconfig"], env=environment, capture_output=True, text=True, check=False
        )
        if configured.returncode != 0:
            raise KernelBuildError(f"configuring {source.archive.name} failed: {configured.stderr[-2000:]}")
        if lost := lost_options(CONFIG.read_text(), (output / ".config").read_text()):
            raise KernelBuildError(
                f"{source.archive.name} does not take these options of {CONFIG.name}: {', '.join(lost)}; "
                "remedy: find their new names or dependencies with `make ARCH=um menuconfig`"
            )
        _compile([*make, f"-j{jobs}", "linux"], environment, _release(tree), verbose=verbose)
        kernel = output / "linux"
        subprocess.run(["strip", str(kernel)], check=True)
        kernel.chmod(0o755)
        if wrong := defect(kernel):
            raise KernelBuildError(f"the kernel was built and does not run: {wrong}")
        with kernel.open("rb") as file:
            os.fsync(file.fileno())  # after a power cut there is a whole kernel, or none
        kernel.replace(target)
    if verbose:
        print(f"built {target} in {time.monotonic() - started:.0f} s", flush=True)


def _unpack(archive: Path, directory: Path) -> Path:
    """The kernel's tree within the directory."""
    try:
        with tarfile.open(archive) as source:
            source.extractall(directory, filter="tar") if hasattr(tarfile, "tar_filter") else source.extractall(
                directory
            )
        (tree,) = [path for path in directory.iterdir() if (path / "Kconfig").exists()]
    except OSError as error:
        if error.errno is not None:  # no room, no leave; what a broken archive gives has no number
            raise
        raise KernelBuildError(_unreadable(archive, error)) from error
    except Exception as error:  # each of tarfile's decompressors has errors of its own
        raise KernelBuildError(_unreadable(archive, error)) from error
    return tree


def _unreadable(archive: Path, error: Exception) -> str:
    package = archive.name.partition(".tar")[0]
    why = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
    return f"{archive} cannot be unpacked: {why}; remedy: apt-get install --reinstall {package}"


def lost_options(wanted: str, configured: str) -> list[str]:
    """The options of `wanted` (lines of a .config) which `configured` lacks or sets otherwise.

    Options after the line `# Not in every version:` may be lost.
    """
    actual = dict(_OPTION.findall(configured))
    needed = _OPTION.findall(wanted.partition(_NOT_IN_EVERY_VERSION)[0])
    return [f"{name}={value}" for name, value in needed if actual.get(name, "n") != value]


def _release(tree: Path) -> str:
    parts = dict(_MAKEFILE_VERSION.findall((tree / "Makefile").read_text()[:1000]))
    return ".".join(parts.get(name, "?") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


def _compile(command: list[str], environment: dict[str, str], release: str, *, verbose: bool) -> None:
    """Runs make, showing how many files are compiled; the last lines of its output are in the error when it fails."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    objects = 0
    tail: list[str] = []
    terminal = sys.stdout.isatty()
    try:
        for line in process.stdout:
            tail = [*tail[-40:], line]
            if line.lstrip().startswith(("CC ", "AS ", "AR ")):
                objects += 1
                if verbose and objects % (10 if terminal else 200) == 0:
                    print(f"compiling Linux {release}: {objects} objects", end="\r" if terminal else "\n", flush=True)
        if process.wait() != 0:
            raise KernelBuildError("make failed:\n" + "".join(tail))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if verbose:
        print(f"compiled Linux {release}: {objects} objects", flush=True)


def main() -> int:
    """Exit code: 0 there is a kernel for tests (named on stdout), 1 there is none (why, on stderr), 130 interrupted."""
    from . import selection

    # A signal ends it as Ctrl-C does: make is stopped and the scratch directory removed. SIGINT is named, for what a
    # shell starts in the background ignores it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        choice = selection.choose()
        if choice.mode == "host":
            print("the host's own kernel has IPVS and nftables: nothing to build")
        else:
            print(choice.kernel or build())
    except KernelBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no kernel is built; the same command begins anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
