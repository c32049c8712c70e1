"""Commands, daemons and Python functions run in a network namespace of the guest, and the reaping of all children.

The agent is process 1 (of the machine, or of its PID namespace), so orphans are ours to reap too.
Output goes to files on the guest's tmpfs: no pipe can fill up, and a child left behind cannot hold a reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from . import namespaces

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KILL_S = 5.0  # how long what was killed may take to end


@dataclass
class Child:
    """A process that was started and where its output goes."""

    pid: int
    stdout: Path
    stderr: Path
    exit: asyncio.Future[int] = field(repr=False)
    result: Path | None = None

    def text(self, path: Path) -> str:
        """What stands in one of its files."""
        return path.read_text(errors="replace") if path.exists() else ""


class Processes:
    """Starts, signals and reaps processes. One per agent; needs a running event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._waiting: dict[int, Child] = {}
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(
        self, namespace: str | None, argv: list[str], *, stdin: str, env: dict[str, str], cwd: str | None, merge: bool
    ) -> Child:
        """A started command; `merge` sends stderr where stdout goes. Raises OSError when it cannot be executed."""
        stdout, stderr, _ = self._files()
        with (
            stdout.open("wb") as out,
            stderr.open("wb") as err,
            self._stdin(stdin) as source,
            namespaces.inside(namespace),
        ):
            process = subprocess.Popen(
                argv,
                stdin=source,
                stdout=out,
                stderr=subprocess.STDOUT if merge else err,
                env={"PATH": _DEFAULT_PATH, **os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )
        process.returncode = 0  # we reap, not Popen
        return self._register(process.pid, stdout, stderr, None)

    def fork(self, namespace: str | None, function: str, args: list[Any], kwargs: dict[str, Any]) -> Child:
        """A forked copy of the agent that runs `module:qualname` with JSON arguments and leaves JSON in `result`."""
        stdout, stderr, result = self._files()
        pid = os.fork()
        if pid == 0:
            _child_main(namespace, function, args, kwargs, stdout, stderr, result)
        return self._register(pid, stdout, stderr, result)

    def child(self, pid: int) -> Child:
        """The child, running or ended. Raises LookupError when it is none of ours."""
        try:
            return self._children[pid]
        except KeyError:
            raise LookupError(f"no process {pid} was started here") from None

    def forget(self, child: Child) -> None:
        """Deletes an ended child's files."""
        self._children.pop(child.pid, None)
        for path in (child.stdout, child.stderr, child.result):
            if path is not None:
                path.unlink(missing_ok=True)

    def signal(self, pid: int, number: int, *, group: bool) -> None:
        """Sends a signal to a child of ours, or to its whole session's process group. Silent when it has ended."""
        if not self.child(pid).exit.done():
            (os.killpg if group else os.kill)(pid, number)

    def kill_namespace(self, name: str) -> int:
        """The number of processes killed: every one whose network namespace is `name`, ours or orphaned."""
        wanted = namespaces.inode(name)
        inside = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_in(entry, wanted)]
        for entry in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)
        # A killed process lives until it is scheduled once more, which takes a while on a busy machine.
        deadline = time.monotonic() + _KILL_S
        while any(_is_in(entry, wanted) for entry in inside) and time.monotonic() < deadline:
            time.sleep(0.002)
        return len(inside)

    def _files(self) -> tuple[Path, Path, Path]:
        number = next(self._numbers)
        return (
            self._directory / f"{number}.stdout",
            self._directory / f"{number}.stderr",
            self._directory / f"{number}.result",
        )

    def _stdin(self, text: str) -> Any:
        if not text:
            return Path("/dev/null").open("rb")
        path = self._directory / "stdin"
        path.write_text(text)
        source = path.open("rb")
        path.unlink()
        return source

    def _register(self, pid: int, stdout: Path, stderr: Path, result: Path | None) -> Child:
        child = Child(pid, stdout, stderr, asyncio.get_running_loop().create_future(), result)
        self._children[pid] = self._waiting[pid] = child
        return child

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._waiting.pop(pid, None)
            if child is not None and not child.exit.done():
                child.exit.set_result(os.waitstatus_to_exitcode(status))


def resolve(function: str) -> Callable[..., Any]:
    """The function that `module:qualname` names."""
    module, _, name = function.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _child_main(
    namespace: str | None,
    function: str,
    args: list[Any],
    kwargs: dict[str, Any],
    stdout: Path,
    stderr: Path,
    result: Path,
) -> NoReturn:
    code = 1
    try:
        # What the fork inherited of the event loop must not be touched: its wakeup pipe and its "running" mark.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asyncio.events._set_running_loop(None)
        os.setsid()
        for number, target, flags in (
            (0, "/dev/null", os.O_RDONLY),
            (1, stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            handle = os.open(target, flags, 0o644)
            os.dup2(handle, number)
            os.close(handle)
        if namespace is not None:
            namespaces.enter(namespace)
        try:
            value = resolve(function)(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
            outcome = {"value": value}
            text = json.dumps(outcome)
        except BaseException as error:
            text = json.dumps(
                {"raised": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
            )
        result.write_text(text)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_in(process: Path, namespace: int) -> bool:
    try:
        return int(process.name) != os.getpid() and (process / "ns/net").stat().st_ino == namespace
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # ended meanwhile, a zombie, or a kernel thread
