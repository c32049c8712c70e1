"""Builds the images' roots without Docker: the Dockerfile's scripts, run in fresh Debian roots.

    python -m tests.charts.rootfs          builds what is missing and prints the sizes

Roots are kept under `${XDG_CACHE_HOME:-~/.cache}/kube-ipvs-dns/image/`, named after what they are made of. Needs root,
debootstrap and a Debian mirror (the host's). Wheels are downloaded by the host's pip, with its configuration.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.helm import cache_dir

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("ipvsproxy", "dnsserver")
_SUITE, _PYTHON = "bookworm", "3.11"
"""Debian 12, as in the Dockerfile, and its Python."""


class CannotBuild(Exception):  # noqa: N818 - says what happened
    """Something is missing on this machine."""


def build() -> dict[str, Path]:
    """The root of each image.

    Raises: CannotBuild; subprocess.CalledProcessError of a step that failed (its output is on stderr).
    """
    if os.geteuid() != 0:
        raise CannotBuild("roots are made by debootstrap and chroot, as root")
    if shutil.which("debootstrap") is None:
        raise CannotBuild("debootstrap is not installed: apt-get install debootstrap")
    home = cache_dir() / "image"
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "lock"):
        base = _base(home)
        venv = _layer(home, "build", base, ["build.sh"], ["requirements.lock"])
        return {name: _image(home, name, base, venv) for name in PROGRAMS}


def size_bytes(root: Path) -> int:
    """Bytes of all files of a root, hard links once."""
    seen: dict[tuple[int, int], int] = {}
    for directory, _, files in os.walk(root):
        for file in files:
            stat = os.lstat(os.path.join(directory, file))  # noqa: PTH118 - faster, over 10,000 files
            seen[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(seen.values())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _base(home: Path) -> Path:
    root = home / f"{_SUITE}-{platform.machine()}"
    if not root.exists():
        _say(f"debootstrap of Debian {_SUITE}")
        aside = _aside(root)
        _run(["debootstrap", "--variant=minbase", _SUITE, str(aside), *_mirror()])
        aside.rename(root)
    return root


def _layer(home: Path, name: str, below: Path, scripts: list[str], sources: list[str]) -> Path:
    """`below` after a script of image/ has run in it, as a root of its own."""
    inputs = [*(f"image/{s}" for s in scripts), *sources]
    digest = hashlib.sha256(b"".join((ROOT / f).read_bytes() for f in inputs)).hexdigest()[:12]
    root = home / f"{name}-{digest}"
    if root.exists():
        return root
    for old in home.glob(f"{name}-*"):
        shutil.rmtree(old)
    aside = _aside(root)
    _run(["cp", "-a", "--reflink=auto", str(below), str(aside)])
    if name == "build":
        _say("wheels and virtual environment")
        wheels = aside / "wheels"
        _download(wheels)
        (aside / "src").mkdir()
        shutil.copy(ROOT / "requirements.lock", aside / "src")
        _chroot(aside, "build.sh", "/src/requirements.lock", PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")
    else:
        _say(f"system of {name}")
        _chroot(aside, "system.sh", name)
    aside.rename(root)
    return root


def _image(home: Path, name: str, base: Path, venv: Path) -> Path:
    root = _layer(home, name, base, ["system.sh", "build.sh"], ["requirements.lock"])
    environment = root / "opt/venv"
    if not environment.exists():
        _run(["cp", "-a", "--reflink=auto", str(venv / "opt/venv"), str(environment)])
    for package in ("kubecore", name):
        for old in environment.glob(f"lib/python*/site-packages/{package}"):
            shutil.rmtree(old)
    source = root / "tmp/src"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for package in ("kubecore", name):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    _chroot(root, "app.sh", name, "/tmp/src")
    shutil.rmtree(source)
    return root


def _chroot(root: Path, script: str, *argv: str, **env: str) -> None:
    """Run a script of image/ in a root, as a container build does: with /proc, /dev and a resolver."""
    target = root / "tmp" / script
    shutil.copy(ROOT / "image" / script, target)
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    shutil.copy("/etc/resolv.conf", resolver)
    mounts = f"mount --bind /dev {root}/dev && mount --bind /dev/shm {root}/dev/shm && mount -t proc proc {root}/proc"
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    inner = ["chroot", str(root), "env", "-i", path, *(f"{k}={v}" for k, v in env.items()), f"/tmp/{script}", *argv]
    _run(["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{mounts} && exec "$@"', "sh", *inner])
    target.unlink()
    resolver.unlink()


def _download(directory: Path) -> None:
    """The locked wheels, for the Python of the image rather than the one that runs here."""
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in (17, 28, 36)] + [f"manylinux2014_{machine}"]
    argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    argv += ["--implementation", "cp", "--python-version", _PYTHON]
    argv += [word for name in platforms for word in ("--platform", name)]
    _run([*argv, "-d", str(directory), "-r", str(ROOT / "requirements.lock")])


def _mirror() -> list[str]:
    """The mirror this machine uses for the release, if it is a Debian; else none, and debootstrap takes its own."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(f.read_text() for f in files if f.is_file())
    found = re.search(r"https?://\S*/debian/?(?=\s)", text)
    return [found[0]] if found else []


def _aside(root: Path) -> Path:
    """A place to build at, so that an interrupted build is not taken for a good one."""
    aside = root.with_suffix(".partial")
    shutil.rmtree(aside, ignore_errors=True)
    return aside


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, stdout=sys.stderr, stdin=subprocess.DEVNULL)


def _say(text: str) -> None:
    print(f"image: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Build and print sizes."""
    roots = build()
    base = size_bytes(_base(cache_dir() / "image"))
    print(f"{'Debian base':12} {base / 1e6:6.0f} MB")
    for name, root in roots.items():
        venv = size_bytes(root / "opt/venv")
        print(f"{name:12} {size_bytes(root) / 1e6:6.0f} MB  (of it {venv / 1e6:.0f} MB Python packages)")


if __name__ == "__main__":
    main()
