"""Runs one container as a kubelet and a runtime would: `unshare --mount python3 container.py SPEC.json`, as root.

Knows: a root of its own, read-only where the container says so; what is mounted in it; user, groups, capabilities,
no-new-privileges; nothing of the caller's environment. /proc/sys and /sys are read-only, as runtimes have them. Must
not know Kubernetes: `pods` makes the SPEC from a rendered pod. Does not know seccomp and limits of memory. Network and
process namespaces are the caller's.

Standard library only, for it runs inside the lab's guest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Of the host, for a container without an image of its own."""
_ETC = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl", "alternatives")


def _sh(*argv: str) -> None:
    subprocess.run(argv, check=True)


def _bind(source: str | Path, target: Path, *, read_only: bool = True) -> None:
    source = Path(source)
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _sh("mount", "--bind", str(source), str(target))
    if read_only:
        _sh("mount", "-o", "remount,bind,ro", str(target))


def _build(root: Path, spec: dict[str, Any]) -> None:
    _sh("mount", "-t", "tmpfs", "-o", "mode=755", "container", str(root))
    image = spec["image"]
    for name in _SYSTEM:
        source = Path(image or "/") / name
        if source.is_symlink():
            (root / name).symlink_to(source.readlink())
        elif source.is_dir():
            _bind(source, root / name)
    if image:
        _bind(Path(image, "opt"), root / "opt")
        shutil.copytree(Path(image, "etc"), root / "etc", symlinks=True)
    else:
        (root / "etc").mkdir()
        for name in _ETC:
            if Path("/etc", name).exists():
                _bind(Path("/etc", name), root / "etc" / name)
        for target, source in spec["programs"].items():
            _bind(source, root / target.lstrip("/"))
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text(spec["resolv_conf"])
    for name in ("tmp", "run", "var", "root"):
        (root / name).mkdir(mode=0o1777 if name == "tmp" else 0o755, exist_ok=True)
    _bind("/dev", root / "dev", read_only=False)
    (root / "proc").mkdir()
    _sh("mount", "-t", "proc", "proc", str(root / "proc"))
    _sh("mount", "--bind", str(root / "proc/sys"), str(root / "proc/sys"))
    _sh("mount", "-o", "remount,bind,ro", str(root / "proc/sys"))
    (root / "sys").mkdir()
    _sh("mount", "-t", "sysfs", "-o", "ro", "sysfs", str(root / "sys"))
    for mount in spec["mounts"]:
        target = root / mount["path"].lstrip("/")
        if "size" in mount:  # an emptyDir, which belongs to the pod's fsGroup
            target.mkdir(parents=True)
            _sh("mount", "-t", "tmpfs", "-o", f"mode=2770,gid={mount['group']}", "volume", str(target))
        elif Path(mount["source"]).exists():  # else a runtime makes an empty directory
            _bind(mount["source"], target, read_only=mount["read_only"])
    if spec["read_only"]:
        _sh("mount", "-o", "remount,ro", str(root))


def main() -> None:
    """Become the container's process."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    root = Path(spec["root"])
    root.mkdir(exist_ok=True)
    _build(root, spec)
    os.chroot(root)
    os.chdir("/")
    capabilities = ",".join(["-all", *(f"+{name.lower()}" for name in spec["capabilities"])])
    groups = ["--groups", str(spec["groups"])] if spec["groups"] else ["--clear-groups"]
    argv = [
        *("setpriv", "--reuid", str(spec["user"]), "--regid", str(spec["group"]), *groups),
        *("--bounding-set", capabilities, "--inh-caps", "-all"),
        *(["--no-new-privs"] if spec["no_new_privileges"] else []),
        *spec["argv"],
    ]
    os.execvpe(argv[0], argv, spec["env"])


if __name__ == "__main__":
    main()
