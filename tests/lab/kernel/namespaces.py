"""Network namespaces by name, inside the guest: made, entered and deleted by system call, without running `ip netns`.

The names are those of `ip netns` (bind mounts in /run/netns), so that people can look with the tools they know.
Called by the agent and its servers and clients only. `inside` changes the calling thread: never await within it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raises OSError with `what` when a libc call returned a negative result."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    check(
        _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode() or None),
        f"mount {kind} on {target}",
    )


def create(name: str) -> None:
    """Makes the namespace `name`, with its loopback still down."""
    path = NETNS / name
    with _home():
        check(_libc.unshare(_CLONE_NEWNET), "unshare a network namespace")
        path.touch(exist_ok=False)
        mount("/proc/thread-self/ns/net", path, "none", _MS_BIND)


def delete(name: str) -> None:
    """Removes the name; the kernel frees the namespace once the last process and socket in it are gone. Idempotent."""
    path = NETNS / name
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
    path.unlink(missing_ok=True)


def inode(name: str) -> int:
    """The namespace's identity, as in `/proc/PID/ns/net`."""
    return (NETNS / name).stat().st_ino


@contextlib.contextmanager
def inside(name: str | None) -> Iterator[None]:
    """The calling thread is in the namespace `name` (None: the guest's own); what it makes there stays there."""
    if name is None:
        yield
        return
    with _home():
        enter(name)
        yield


def enter(name: str) -> None:
    """Moves the calling thread into the namespace `name` for good.

    Raises:
        LookupError: there is no such namespace.
    """
    try:
        handle = os.open(NETNS / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LookupError(f"no network namespace {name!r}") from None
    try:
        check(_libc.setns(handle, _CLONE_NEWNET), f"enter network namespace {name}")
    finally:
        os.close(handle)


@contextlib.contextmanager
def _home() -> Iterator[None]:
    """The calling thread is back in its present namespace afterwards."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            check(_libc.setns(home, _CLONE_NEWNET), "return to the first network namespace")
        finally:
            os.close(home)
