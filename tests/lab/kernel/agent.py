"""The guest's process 1: does what the host asks over one byte channel, a JSON object a line, many requests at a time.

Request `{"id": 7, "op": "run", ...}`, or `{"file": path}` for a long one; reply `{"id": 7, "ok": ...}` or
`{"id": 7, "error": kind, "message": text}`; a running shell also sends `{"shell": base64}`. Runs the same in user-mode
Linux (the channel is a console) and in namespaces of the host (a socket). It ends, and the machine or the namespaces
with it, when the channel closes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import fcntl
import gc
import importlib
import itertools
import json
import os
import platform
import pty
import resource
import struct
import sys
import termios
import traceback
import tty
from pathlib import Path
from typing import Any

from . import namespaces, rtnetlink, traffic
from .outcomes import failure_of, to_wire
from .processes import Child, Processes

_RB_POWER_OFF = 0x4321FEDC  # linux/reboot.h
_RNDADDENTROPY = 0x40085203  # linux/random.h
_OPEN_FILES = 65536


class Agent:
    """State of one guest. Every `op_*` coroutine is an operation; its parameters are the request's keys."""

    def __init__(self, channel: int, directory: Path) -> None:
        self._channel = channel
        self._ids = itertools.count(1)
        self._processes = Processes(directory)
        self._servers: dict[int, traffic.Server] = {}
        self._connections: dict[int, tuple[str, traffic.Connection]] = {}
        self._traffic: dict[int, tuple[str, traffic.Traffic]] = {}
        self._shell = -1
        self._keys = bytearray()
        self._requests: set[asyncio.Task[None]] = set()

    # The channel

    async def serve(self) -> None:
        """Returns when the channel is closed or `shutdown` was asked."""
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        buffer = bytearray()

        def read() -> None:
            try:
                chunk = os.read(self._channel, 65536)
            except OSError:  # EIO: the console's other end is gone
                chunk = b""
            if not chunk:
                lines.put_nowait(None)
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            buffer.extend(chunk)
            while (end := buffer.find(b"\n")) >= 0:
                lines.put_nowait(bytes(buffer[:end]))
                del buffer[: end + 1]

        asyncio.get_running_loop().add_reader(self._channel, read)
        self._send({"hello": platform.release(), "pid": os.getpid()})
        while (line := await lines.get()) is not None:
            request = _request(line)
            if request["op"] == "shutdown":
                return
            task = asyncio.create_task(self._answer(request))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _answer(self, request: dict[str, Any]) -> None:
        number, name = request.pop("id"), request.pop("op")
        try:
            reply = {"id": number, "ok": await getattr(self, f"op_{name}")(**request)}
        except Exception as error:
            reply = {
                "id": number,
                "error": type(error).__name__,
                "message": str(error),
                "traceback": traceback.format_exc(),
            }
        self._send(reply)

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        view = memoryview(data)
        while view:
            view = view[os.write(self._channel, view) :]

    # Namespaces

    async def op_preload(self, modules: list[str]) -> None:
        """Imports modules once, so that `call` forks with them loaded."""
        for module in modules:
            importlib.import_module(module)
        gc.freeze()

    async def op_namespace(self, name: str, sysctls: dict[str, str]) -> None:
        """Makes a namespace and writes its sysctls (`net.ipv4.ip_forward`)."""
        namespaces.create(name)
        rtnetlink.configure(name, [("up", "lo")])
        if not _has_ipv6():
            sysctls = {k: v for k, v in sysctls.items() if not k.startswith("net.ipv6.")}
        await self.op_sysctls(name, sysctls)

    async def op_sysctls(self, namespace: str, sysctls: dict[str, str]) -> None:
        """Writes sysctls within a namespace."""
        with namespaces.inside(namespace):
            for key, value in sysctls.items():
                _write_sysctl(key, value)

    async def op_configure(self, namespace: str, steps: list[list[str]]) -> None:
        """Makes devices, addresses and default routes (see `rtnetlink.configure`)."""
        rtnetlink.configure(namespace, steps)

    async def op_cleanup(self, names: list[str]) -> int:
        """Ends every socket and process in the namespaces, then removes them. Returns how many processes it killed."""
        killed = 0
        for number, server in list(self._servers.items()):
            if server.namespace in names:
                server.close()
                del self._servers[number]
        for number, (namespace, running) in list(self._traffic.items()):
            if namespace in names:
                running.task.cancel()
                del self._traffic[number]
        for number, (namespace, connection) in list(self._connections.items()):
            if namespace in names:
                connection.close(reset=True)
                del self._connections[number]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                killed += self._processes.kill_namespace(name)
            namespaces.delete(name)
        return killed

    # Processes

    async def op_run(
        self, namespace: str | None, argv: list[str], stdin: str, env: dict[str, str], cwd: str | None, timeout_s: float
    ) -> dict[str, Any]:
        """Runs a command to its end, or kills its process group at the time limit."""
        child = self._processes.start(namespace, argv, stdin=stdin, env=env, cwd=cwd, merge=False)
        return await self._finish(child, timeout_s)

    async def op_call(
        self, namespace: str | None, function: str, args: list[Any], kwargs: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """Runs a Python function in a forked copy of the agent; its result stands under `result`."""
        child = self._processes.fork(namespace, function, args, kwargs)
        assert child.result is not None
        result = child.result
        # Read before _finish deletes the files.
        code = await self._wait(child, timeout_s)
        text = child.text(result)
        reply = await self._finish(child, 0.0) if code is not None else await self._finish(child, 0.0, timed_out=True)
        return {**reply, "result": json.loads(text) if text else None}

    async def op_start(
        self, namespace: str | None, argv: list[str], stdin: str, env: dict[str, str], cwd: str | None
    ) -> int:
        """Starts a process that goes on; returns its pid."""
        return self._processes.start(namespace, argv, stdin=stdin, env=env, cwd=cwd, merge=True).pid

    async def op_wait(self, pid: int, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs at the time limit."""
        return await self._wait(self._processes.child(pid), timeout_s)

    async def op_log(self, pid: int, offset: int) -> str:
        """What a started process has written, from a byte offset on."""
        with self._processes.child(pid).stdout.open("rb") as handle:
            handle.seek(offset)
            return handle.read().decode(errors="replace")

    async def op_signal(self, pid: int, number: int, group: bool) -> None:
        """Signals a started process, or its group."""
        self._processes.signal(pid, number, group=group)

    async def _wait(self, child: Child, timeout_s: float) -> int | None:
        done, _ = await asyncio.wait([child.exit], timeout=timeout_s)
        return child.exit.result() if done else None

    async def _finish(self, child: Child, timeout_s: float, *, timed_out: bool = False) -> dict[str, Any]:
        code = await self._wait(child, timeout_s)
        if code is None:
            timed_out = True
            self._processes.signal(child.pid, 9, group=True)
            code = await self._wait(child, 5.0)
        reply = {
            "code": code,
            "stdout": child.text(child.stdout),
            "stderr": child.text(child.stderr),
            "timed_out": timed_out,
        }
        self._processes.forget(child)
        return reply

    # Servers and clients

    async def op_serve(self, namespace: str, name: str, ports: list[tuple[str, str, int]], delay_s: float) -> int:
        """Starts a server on (transport, address, port)s; returns its number."""
        server = traffic.Server(namespace, name)
        server.delay_s = delay_s
        try:
            for transport, address, port in ports:
                server.listen(transport, address, port)
        except OSError:
            server.close()
            raise
        number = next(self._ids)
        self._servers[number] = server
        return number

    async def op_server_seen(self, number: int) -> list[str]:
        """Whom the server has answered: `tcp 192.168.50.10:41234`, in order."""
        return list(self._servers[number].seen)

    async def op_server_close(self, number: int, connections: bool) -> None:
        """Stops a server."""
        self._servers[number].close(connections=connections)

    async def op_connect(
        self, namespace: str, target: str, count: int, parallel: int, **options: Any
    ) -> list[dict[str, Any]]:
        """`count` connections, `parallel` at a time; outcomes in order of starting."""
        gate = asyncio.Semaphore(parallel)

        async def one() -> dict[str, Any]:
            async with gate:
                return to_wire(await traffic.attempt(namespace, target, **options))

        return list(await asyncio.gather(*(one() for _ in range(count))))

    async def op_open(self, namespace: str, target: str, **options: Any) -> dict[str, Any]:
        """Opens a connection that stays: {number, outcome of a first question}, or a failure as outcome."""
        timeout_s = options["timeout_s"]
        try:
            connection = await traffic.Connection.open(namespace, target, **options)
        except OSError as error:
            return {"number": None, "outcome": to_wire(failure_of(error))}
        number = next(self._ids)
        self._connections[number] = (namespace, connection)
        return {"number": number, "outcome": to_wire(await connection.ask(timeout_s))}

    async def op_ping(self, number: int, timeout_s: float) -> dict[str, Any]:
        """Asks again over an open connection."""
        return to_wire(await self._connections[number][1].ask(timeout_s))

    async def op_close(self, number: int, reset: bool) -> None:
        """Closes an open connection."""
        self._connections.pop(number)[1].close(reset=reset)

    async def op_traffic(
        self, namespace: str, target: str, seconds: float | None, limit: int | None, interval_s: float, **options: Any
    ) -> int:
        """Starts background connections; returns their number."""
        number = next(self._ids)
        running = traffic.Traffic(
            lambda: traffic.attempt(namespace, target, **options), seconds=seconds, limit=limit, interval_s=interval_s
        )
        self._traffic[number] = (namespace, running)
        return number

    async def op_traffic_report(self, number: int, stop: bool, wait_s: float) -> dict[str, Any]:
        """Counts of background connections, after stopping them or waiting for their end."""
        running = self._traffic[number][1]
        if wait_s:
            await asyncio.wait([running.task], timeout=wait_s)
        if stop:
            running.task.cancel()
            await asyncio.wait([running.task])
        return running.report()

    # A shell for people

    async def op_shell(self, namespace: str | None, rc: str | None, rows: int, columns: int, term: str) -> int:
        """Runs an interactive shell to its end; its output goes out as `shell` messages."""
        parent, terminal = pty.openpty()
        self._shell = parent
        await self.op_shell_size(rows, columns)
        prompt = f"{namespace or 'guest'}# "
        pid = os.fork()
        if pid == 0:
            try:
                os.login_tty(terminal)
                if namespace is not None:
                    namespaces.enter(namespace)
                environment = {**os.environ, "TERM": term, "PS1": prompt}
                os.execvpe("bash", ["bash", *(["--rcfile", rc] if rc else ["--norc"]), "-i"], environment)
            finally:
                os._exit(127)
        os.close(terminal)
        os.set_blocking(parent, False)  # or keys that no program reads would stop the agent
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def output() -> None:
            try:
                data = os.read(parent, 65536)
            except BlockingIOError:
                return
            except OSError:  # EIO: the shell is gone
                data = b""
            if data:
                self._send({"shell": base64.b64encode(data).decode()})
            else:
                loop.remove_reader(parent)
                ended.set()

        loop.add_reader(parent, output)
        await ended.wait()
        self._shell = -1
        self._keys.clear()
        loop.remove_writer(parent)
        os.close(parent)
        return pid

    async def op_shell_input(self, data: str) -> None:
        """Keys for the running shell, base64; what it does not take yet waits for it."""
        if self._shell >= 0:
            self._keys += base64.b64decode(data)
            asyncio.get_running_loop().add_writer(self._shell, self._type)

    def _type(self) -> None:
        try:
            written = os.write(self._shell, self._keys)
        except BlockingIOError:
            return
        except OSError:  # the shell is gone
            written = len(self._keys)
        del self._keys[:written]
        if not self._keys:
            asyncio.get_running_loop().remove_writer(self._shell)

    async def op_shell_size(self, rows: int, columns: int) -> None:
        """The terminal's size changed."""
        if self._shell >= 0:
            fcntl.ioctl(self._shell, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _open_channel(where: str) -> int:
    if where.startswith("fd:"):
        return int(where.removeprefix("fd:"))
    channel = os.open(where, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(channel)
    return channel


def _request(line: bytes) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(line)
    if "file" in request:
        path = Path(request["file"])
        request = json.loads(path.read_bytes())
        path.unlink()
    return request


def _has_ipv6() -> bool:
    """False after a boot with `ipv6.disable=1`."""
    return Path("/proc/sys/net/ipv6").exists()


def _write_sysctl(key: str, value: str) -> None:
    """Writes one; a device's name may hold dots, then the key is written with slashes, as sysctl(8) has it."""
    parts = key.split("/") if "/" in key else key.split(".")
    Path("/proc/sys", *parts).write_text(value)


def _add_entropy(seed: bytes) -> None:
    """Seeds the kernel's random numbers: a machine without devices gathers none, and getrandom(2) would block."""
    with Path("/dev/random").open("wb") as device:
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)


async def _run(channel: int, directory: Path) -> None:
    await Agent(channel, directory).serve()


def main(where: str, directory: Path) -> None:
    """Serves the channel `where` (`/dev/tty1` or `fd:3`) until it closes; in a machine of our own, powers that off."""
    channel = _open_channel(where)
    os.set_inheritable(channel, False)
    machine = where.startswith("/dev/")
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = _OPEN_FILES if machine else min(hard, _OPEN_FILES)  # in a container even root may not raise it
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
        if machine:
            _add_entropy((directory / "entropy").read_bytes())
        work = directory / "work"
        work.mkdir(exist_ok=True)
        namespaces.mount("lab", work, "tmpfs")
        namespaces.NETNS.mkdir(parents=True, exist_ok=True)
        namespaces.mount("lab", namespaces.NETNS, "tmpfs")
        asyncio.run(_run(channel, work))
    except BaseException:  # process 1 must not end in a panic that hides the reason
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if machine:
            os.sync()
            ctypes.CDLL(None).reboot(_RB_POWER_OFF)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
