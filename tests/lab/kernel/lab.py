"""A running guest: boots it, sends it requests, ends it. `with Lab.start() as lab: with lab.net() as net: ...`.

Knows the two ways to get a kernel (user-mode Linux, namespaces of the host) and the channel; what the requests mean is
the agent's and `net`'s matter. Usable without pytest; a Lab may be used from several threads.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import itertools
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import build, selection
from .net import Net

ROOT = Path(__file__).resolve().parents[3]
_CPUS = sorted(os.sched_getaffinity(0))
_NEXT_CPU = itertools.count(os.getpid())  # so that two processes with a guest each most likely differ
_BOOT_TIMEOUT_S = 60.0
_SHELL_TIMEOUT_S = 10.0
_END_OF_INPUT_S = 1.0
"""Ctrl-D is repeated this often once the input has ended: the first may go to a command that reads."""
_GRACE_S = 30.0  # on top of a request's own limit, for a busy machine
# Longer requests go through a file: the guest's console holds 4096 bytes of input, and throttled by more it may stay so
# (seen with Linux 6.1 after a megabyte).
_LINE_LIMIT_BYTES = 256
# Everything not mounted over is the host's own, read and written as the user who runs the guest.
_INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/home /run/lock
hostname lab
export {environment}
cd {root}
exec {python} -m tests.lab.kernel.agent /dev/tty1 {directory}
"""


class NoKernelError(Exception):
    """No kernel can be had; the message says why and what to do."""


class GuestDiedError(Exception):
    """The guest ended, or did not answer in time and was killed. The message ends with its console."""


class GuestError(Exception):
    """An operation failed in the guest. `kind` is the exception's name there."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.trace = trace


class Lab:
    """One booted guest. Make it with `start`; `close` ends it and everything in it."""

    def __init__(
        self, mode: selection.Mode, kernel: Path | None, memory: str, kernel_arguments: Sequence[str] = ()
    ) -> None:
        self.mode = mode
        self._numbers = itertools.count(1)
        self._nets = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._shell_output: Callable[[bytes], None] = lambda _: None
        self._hello = _Pending()
        self.release = ""
        """The guest's kernel release."""
        self.directory = Path(tempfile.mkdtemp(prefix="kernel-lab-", dir=_shared_directory()))
        """A directory that host and guest share."""
        self._console = self.directory / "console.log"
        ours, theirs = socket.socketpair()
        self._channel = ours
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [*self._uml_command(kernel, memory, theirs.fileno()), *kernel_arguments]
                if kernel is not None
                else self._host_command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, **_environment(), "TMPDIR": str(self._memory_directory(memory))},
            )
        theirs.close()
        threading.Thread(target=self._read, name="kernel-lab", daemon=True).start()
        atexit.register(self.close)

    @classmethod
    def start(
        cls,
        mode: selection.Mode | None = None,
        *,
        memory: str = "1G",
        preload: Sequence[str] = (),
        build_missing: bool = False,
        kernel_arguments: Sequence[str] = (),
    ) -> Lab:
        """A booted guest, ready for requests (about a second).

        Args:
            mode: the host's kernel or user-mode Linux; None chooses (see `selection`).
            memory: the size of user-mode Linux's memory, as in `1G`; taken from the host only as it is used.
            preload: modules the agent imports once, which makes `call`s of their functions fast.
            build_missing: build the lab kernel when it is needed and missing (minutes).
            kernel_arguments: more of user-mode Linux's command line; the host's own kernel takes none.

        Raises:
            NoKernelError: there is no usable kernel.
            GuestDiedError: it did not boot.
        """
        choice = selection.choose(mode)
        if choice.mode is None and build_missing and "make kernel" in choice.reason:
            build.build()
            choice = selection.choose(mode)
        if choice.mode is None:
            raise NoKernelError(choice.reason)
        if kernel_arguments and choice.kernel is None:
            raise NoKernelError(f"only user-mode Linux can be booted with {' '.join(kernel_arguments)}")
        lab = cls(choice.mode, choice.kernel, memory, kernel_arguments)
        try:
            lab.release = str(lab._hello.wait(_BOOT_TIMEOUT_S)["hello"])
            if preload:
                lab.preload(*preload)
        except (TimeoutError, GuestDiedError) as error:
            lab._kill()
            raise GuestDiedError(f"the guest did not boot: {error}{lab._console_report()}") from None
        return lab

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """False once the guest ended, for whatever reason."""
        return not self._closed and self._process.poll() is None

    def preload(self, *modules: str) -> None:
        """Imports modules in the agent, from whose forks `Host.call` then finds them loaded. Cheap when repeated."""
        self.request("preload", limit_s=60, modules=list(modules))

    @contextlib.contextmanager
    def net(self) -> Iterator[Net]:
        """Hosts of its own: namespaces which, with their processes and IPVS tables, are gone afterwards."""
        net = Net(self, f"t{next(self._nets)}")
        try:
            yield net
        finally:
            net.close()

    def console(self) -> str:
        """What the kernel and the agent wrote to the console so far."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def request(self, op: str, *, limit_s: float = 0.0, **parameters: Any) -> Any:
        """What the agent's operation returned.

        Args:
            op: the operation (`op_*` of `agent.Agent`).
            limit_s: how long the operation may rightly take; a grace is added for a busy machine.
            parameters: JSON values.

        Raises:
            GuestError: the operation failed.
            GuestDiedError: the guest is gone, or hung and was killed.
        """
        pending, number = _Pending(), next(self._numbers)
        with self._lock:
            if not self.alive:
                raise GuestDiedError(f"the guest is not running{self._console_report()}")
            self._pending[number] = pending
            line = json.dumps({"id": number, "op": op, **parameters}).encode() + b"\n"
            if len(line) > _LINE_LIMIT_BYTES:
                path = self.directory / f"request-{number}"
                path.write_bytes(line)
                line = json.dumps({"file": str(path)}).encode() + b"\n"
            with contextlib.suppress(OSError):  # then the reader sees the end too, and tells us
                self._channel.sendall(line)
        try:
            reply = pending.wait(limit_s + _GRACE_S)
        except TimeoutError:
            self._kill()
            raise GuestDiedError(
                f"the guest did not answer {op} within {limit_s + _GRACE_S:.0f} s and was killed"
                f"{self._console_report()}"
            ) from None
        except GuestDiedError as error:
            raise GuestDiedError(f"{error}{self._console_report()}") from None
        finally:
            self._pending.pop(number, None)
        if "error" in reply:
            raise GuestError(reply["error"], reply["message"], reply["traceback"])
        return reply["ok"]

    def shell(self, namespace: str | None = None, rc: Path | None = None) -> None:
        """Returns when the interactive shell in the guest, run on this process's terminal, has ended.

        Args:
            namespace: where; None: the guest's first.
            rc: a file of commands for bash to begin with, such as functions for the person; it may set PS1.

        Raises:
            GuestDiedError: the guest ended meanwhile.
        """
        size = shutil.get_terminal_size()
        started, ended = threading.Event(), threading.Event()

        def output(data: bytes) -> None:
            os.write(sys.stdout.fileno(), data)
            started.set()

        self._shell_output = output
        parameters = {
            "namespace": namespace,
            "rc": None if rc is None else str(rc),
            "rows": size.lines,
            "columns": size.columns,
            "term": os.environ.get("TERM", "linux"),
        }
        thread = threading.Thread(target=self._shell_request, args=(parameters, ended), daemon=True)
        before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
        try:
            if before is not None:
                tty.setraw(sys.stdin)
            thread.start()
            started.wait(_SHELL_TIMEOUT_S)  # what is typed before there is a shell would be lost
            while not ended.is_set():
                if not select.select([sys.stdin], [], [], 0.1)[0]:
                    continue
                data = os.read(sys.stdin.fileno(), 4096)
                self.request("shell_input", data=base64.b64encode(data or b"\x04").decode())
                if not data:
                    ended.wait(_END_OF_INPUT_S)
        finally:
            if before is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        thread.join(5)
        if not self.alive:
            raise GuestDiedError(f"the guest ended{self._console_report()}")

    def _shell_request(self, parameters: dict[str, Any], ended: threading.Event) -> None:
        try:
            with contextlib.suppress(GuestDiedError):  # `shell` itself tells that
                self.request("shell", limit_s=7 * 86400, **parameters)
        finally:
            ended.set()

    def close(self) -> None:
        """Powers the guest off; everything in it is gone. Idempotent."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        with contextlib.suppress(OSError):
            self._channel.sendall(b'{"id": 0, "op": "shutdown"}\n')
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._kill()
        self._channel.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _kill(self) -> None:
        # The session holds user-mode Linux's helper processes too, or the host mode's PID namespace.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> None:
        buffer = bytearray()
        while True:
            try:
                chunk = self._channel.recv(1 << 16)
            except OSError:
                chunk = b""
            if not chunk:
                break
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                self._dispatch(bytes(buffer[:end]))
                del buffer[: end + 1]
        for pending in [self._hello, *self._pending.values()]:
            pending.fail(GuestDiedError("the guest ended"))

    def _dispatch(self, line: bytes) -> None:
        message = json.loads(line)
        if "hello" in message:
            self._hello.answer(message)
        elif "shell" in message:
            self._shell_output(base64.b64decode(message["shell"]))
        elif (pending := self._pending.get(message["id"])) is not None:
            pending.answer(message)

    def _console_report(self) -> str:
        lines = self.console().splitlines()[-40:]
        return "; its console:\n" + "\n".join(lines) if lines else "; its console is empty"

    def _uml_command(self, kernel: Path, memory: str, channel: int) -> list[str]:
        init = self.directory / "init"
        environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in _environment().items())
        init.write_text(
            _INIT.format(
                environment=f"{environment} HOME=/run/home",
                root=shlex.quote(str(ROOT)),
                python=shlex.quote(sys.executable),
                directory=shlex.quote(str(self.directory)),
            )
        )
        init.chmod(0o755)
        (self.directory / "entropy").write_bytes(os.urandom(64))
        return [
            # Kernel and program in it hand over to each other at every system call and page fault. That takes 12 µs on
            # one processor; on two, each woken from its sleep by the other, 58.
            *("taskset", "--cpu-list", str(_CPUS[next(_NEXT_CPU) % len(_CPUS)])),
            str(kernel),
            *("root=none", "rootfstype=hostfs", "rootflags=/", "rw", f"mem={memory}", f"init={init}"),
            *("con=null", "con0=fd:0,fd:1", f"con1=fd:{channel}", "ssl=null", "quiet", f"uml_dir={self.directory}/"),
        ]

    def _host_command(self, channel: int) -> list[str]:
        return [
            *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, "-m", "tests.lab.kernel.agent", f"fd:{channel}", str(self.directory)),
        ]

    def _memory_directory(self, memory: str) -> Path:
        """Where user-mode Linux keeps its memory: a file, which a small /dev/shm (as in containers) could not hold."""
        shm = Path("/dev/shm")
        needed = int(memory.rstrip("MG")) << (30 if memory.endswith("G") else 20)
        with contextlib.suppress(OSError):
            stat = os.statvfs(shm)
            if stat.f_bavail * stat.f_frsize >= needed and not stat.f_flag & os.ST_NOEXEC:
                return shm
        return self.directory


class _Pending:
    """A reply that another thread will bring."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._message: dict[str, Any] | Exception = {}

    def answer(self, message: dict[str, Any]) -> None:
        self._message = message
        self._ready.set()

    def fail(self, error: Exception) -> None:
        if not self._ready.is_set():
            self._message = error
            self._ready.set()

    def wait(self, timeout_s: float) -> dict[str, Any]:
        if not self._ready.wait(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:.0f} s")
        if isinstance(self._message, Exception):
            raise self._message
        return self._message


def _environment() -> dict[str, str]:
    return {"PATH": selection.search_path(), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "KERNEL_LAB_GUEST": "1"}


def _shared_directory() -> str:
    """A directory for temporary files that the guest does not cover with mounts of its own."""
    default = tempfile.gettempdir()
    return "/tmp" if default.startswith(("/run", "/dev", "/var/run")) else default


def main() -> int:
    """`python -m tests.lab.kernel.lab`: a shell in a fresh guest."""
    started = time.monotonic()
    with Lab.start(build_missing=True) as lab:
        lab.request(
            "run", namespace=None, argv=["ip", "link", "set", "lo", "up"], stdin="", env={}, cwd=None, timeout_s=10
        )
        print(
            f"Linux {lab.release} ({lab.mode}), ready in {time.monotonic() - started:.1f} s; leave with exit",
            flush=True,
        )
        lab.shell()
    return 0


if __name__ == "__main__":
    sys.exit(main())
