"""Builds the lab's user-mode Linux kernel from Debian's kernel source: `python -m tests.lab.kernel.build`.

Knows where the source comes from, how it is configured and where the result is cached. Knows nothing about booting it.
Called by `make kernel`, and by `boot` when a kernel is needed and none is cached.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).with_name("uml.config")
SOURCES = Path("/usr/src")
BUILD_PACKAGES = ("linux-source", "gcc", "make", "flex", "bison", "bc", "xz-utils", "libc6-dev")
BUILD_TOOLS = ("gcc", "make", "flex", "bison", "bc", "xz", "strip")
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
    for archive in SOURCES.glob("linux-source-*.tar*"):
        if match := re.match(r"linux-source-(\d+(?:\.\d+)*)\.tar", archive.name):
            found.append(Source(tuple(int(part) for part in match[1].split(".")), archive))
    # Ubuntu keeps the archive in a directory of its own.
    for archive in SOURCES.glob("linux-source-*/linux-source-*.tar*"):
        if match := re.match(r"linux-source-(\d+(?:\.\d+)*)\.tar", archive.name):
            found.append(Source(tuple(int(part) for part in match[1].split(".")), archive))
    return max(found, default=None)


def cached_kernel() -> Path | None:
    """The kernel built from this configuration and the installed source (with no source: the newest), or None."""
    source = installed_source()
    if source is not None:
        path = _kernel_path(source)
        return path if path.exists() else None
    candidates = cache_directory().glob(f"linux-*-{_config_hash()}-*")
    return max((path for path in candidates if os.access(path, os.X_OK)), default=None)


def build(*, jobs: int | None = None, verbose: bool = True) -> Path:
    """The path of the built kernel, built now when it is not cached (4 to 6 minutes on two cores).

    Idempotent, and safe to run in parallel: builders wait for each other, and the result appears by an atomic rename.

    Raises:
        KernelBuildError: packages are missing, an option of uml.config did not survive, or the compiler failed.
    """
    source = _require_source(verbose=verbose)
    target = _kernel_path(source)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(target.with_name(f"{target.name}.lock"), verbose=verbose):
        if not target.exists():
            _build_into(source, target, jobs or os.cpu_count() or 1, verbose=verbose)
    return target


def _config_hash() -> str:
    return hashlib.sha256(CONFIG.read_bytes()).hexdigest()[:12]


def _kernel_path(source: Source) -> Path:
    # The archive's size stands for the distribution's revision: hashing 138 MB at every start would cost half a second.
    revision = hashlib.sha256(f"{source.label} {source.archive.stat().st_size}".encode()).hexdigest()[:8]
    return cache_directory() / f"linux-{source.label}-{_config_hash()}-{revision}"


def _require_source(*, verbose: bool) -> Source:
    missing = [tool for tool in BUILD_TOOLS if shutil.which(tool) is None]
    source = installed_source()
    if source is not None and not missing:
        return source
    packages = " ".join(BUILD_PACKAGES)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        lacking = ", ".join(missing + ([] if source else ["a kernel source in /usr/src"]))
        raise KernelBuildError(
            f"cannot build the lab kernel, lacking {lacking}; remedy: apt-get install {packages} binutils"
        )
    if verbose:
        print(f"installing {packages}", flush=True)
    command = ["apt-get", "install", "-y", "--no-install-recommends", *BUILD_PACKAGES, "binutils"]
    done = subprocess.run(
        command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False
    )
    source = installed_source()
    if done.returncode != 0 or source is None:
        raise KernelBuildError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout)[-1000:]}")
    return source


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
    scratch_name = f"building-{target.name}-"
    for leftover in target.parent.glob(f"{scratch_name}*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    # Beside the target, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(prefix=scratch_name, dir=target.parent) as scratch:
        workdir = Path(scratch)
        if verbose:
            print(f"unpacking {source.archive.name}", flush=True)
        with tarfile.open(source.archive) as archive:
            archive.extractall(workdir, filter="tar") if hasattr(tarfile, "tar_filter") else archive.extractall(workdir)
        (tree,) = [path for path in workdir.iterdir() if (path / "Kconfig").exists()]
        output = workdir / "build"
        make = ["make", "-C", str(tree), "ARCH=um", f"O={output}"]
        environment = {**os.environ, "KCONFIG_ALLCONFIG": str(CONFIG)}
        for variable in (
            "MAKEFLAGS",
            "MAKELEVEL",
            "MFLAGS",
        ):  # we may run under `make kernel`, whose flags are not ours
            environment.pop(variable, None)
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
        kernel.replace(target)
    if verbose:
        print(f"built {target} in {time.monotonic() - started:.0f} s", flush=True)


def lost_options(wanted: str, configured: str) -> list[str]:
    """The options of `wanted` (lines of a .config) which `configured` lacks or sets otherwise."""
    actual = dict(_OPTION.findall(configured))
    return [f"{name}={value}" for name, value in _OPTION.findall(wanted) if actual.get(name, "n") != value]


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
    """Exit code: 0 when there is a kernel for tests (it is named on stdout), 1 with the remedy on stderr."""
    from . import selection

    try:
        if selection.choose().mode == "host":
            print("the host's own kernel has IPVS and nftables: nothing to build")
        else:
            print(build())
    except KernelBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
