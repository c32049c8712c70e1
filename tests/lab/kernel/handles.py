"""What a host's methods give back: results, processes, servers, connections, background traffic, and their errors.

Thin: each method is one request to the guest. Made by `net` only, whose names they are imported under.
"""

from __future__ import annotations

import re
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .outcomes import Outcome, from_wire

if TYPE_CHECKING:
    from .lab import Lab

_PING_TIMEOUT_S = 3.0


class CommandError(AssertionError):
    """A command failed that was to succeed, or took too long; the message holds all it wrote."""


class CallError(AssertionError):
    """A function raised in the guest. `raised` is the exception's name there, `trace` its traceback."""

    def __init__(self, raised: str, message: str, trace: str) -> None:
        super().__init__(f"{raised}: {message}\n{trace}")
        self.raised = raised
        self.trace = trace


@dataclass(frozen=True)
class Result:
    """A command that ended."""

    command: str
    code: int
    """The exit code; negative is the signal that ended it."""
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """stdout's lines, without blanks at their ends."""
        return [line.rstrip() for line in self.stdout.splitlines()]


class Process:
    """A process that was started with `popen`."""

    def __init__(self, lab: Lab, command: str, pid: int) -> None:
        self.command = command
        self.pid = pid
        self._lab = lab

    def log(self, offset: int = 0) -> str:
        """What it has written to stdout and stderr, from a byte offset on."""
        return str(self._lab.request("log", pid=self.pid, offset=offset))

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.wait(0.0)

    def wait(self, timeout_s: float = 10.0) -> int | None:
        """The exit code (negative: the signal that ended it), or None when it still runs after `timeout_s`."""
        code = self._lab.request("wait", limit_s=timeout_s, pid=self.pid, timeout_s=timeout_s)
        return None if code is None else int(code)

    def kill(self, number: int = signal.SIGTERM, *, group: bool = False) -> None:
        """Sends it (or its whole process group) a signal. Does not wait."""
        self._lab.request("signal", pid=self.pid, number=int(number), group=group)

    def stop(self, timeout_s: float = 10.0) -> int:
        """The exit code after SIGTERM; SIGKILL follows when that does not help in time."""
        self.kill()
        code = self.wait(timeout_s)
        if code is None:
            self.kill(signal.SIGKILL, group=True)
            code = self.wait(5.0)
        assert code is not None, f"`{self.command}` survived SIGKILL"
        return code

    def wait_for_log(self, pattern: str, timeout_s: float = 10.0) -> re.Match[str]:
        """The first match of a regular expression in its log, waited for.

        Raises:
            CommandError: it did not appear in time, or the process ended without writing it.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self.poll() is not None  # asked before the log: its last words are then in it
            log = self.log()
            if match := re.search(pattern, log, re.MULTILINE):
                return match
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else f"still runs after {timeout_s:g} s"
                raise CommandError(f"`{self.command}` {what} without writing {pattern!r}; its log:\n{log}")
            time.sleep(0.05)


class Server:
    """A running lab server."""

    def __init__(self, lab: Lab, number: int) -> None:
        self._lab = lab
        self._number = number

    def seen(self) -> list[str]:
        """Whom it answered, in order: `tcp 192.168.50.10:41234`."""
        return list(self._lab.request("server_seen", number=self._number))

    def close(self, *, connections: bool = True) -> None:
        """Stops listening and, unless told otherwise, ends its connections."""
        self._lab.request("server_close", number=self._number, connections=connections)


class Connection:
    """An open connection of a client."""

    def __init__(self, lab: Lab, number: int | None, first: Outcome) -> None:
        self._lab = lab
        self._number = number
        self.first = first

    def ping(self, timeout_s: float = _PING_TIMEOUT_S) -> Outcome:
        """The outcome of one more question over the same connection."""
        if self._number is None:
            return self.first
        return from_wire(self._lab.request("ping", limit_s=timeout_s, number=self._number, timeout_s=timeout_s))

    def close(self, *, reset: bool = False) -> None:
        """Ends it with FIN or RST. Idempotent."""
        if self._number is not None:
            self._lab.request("close", number=self._number, reset=reset)
            self._number = None


@dataclass(frozen=True)
class TrafficReport:
    """What background connections met with."""

    count: int
    answers: dict[str, int]
    """Per server's name."""
    failures: list[tuple[float, str]]
    """(seconds since the start, what happened)."""
    longest_gap_s: float
    """The longest time between two answers."""
    done: bool


class Traffic:
    """Connections made in the background."""

    def __init__(self, lab: Lab, number: int) -> None:
        self._lab = lab
        self._number = number

    def report(self) -> TrafficReport:
        """The counts so far."""
        return self._report(stop=False, wait_s=0.0)

    def stop(self) -> TrafficReport:
        """The final counts, after ending it."""
        return self._report(stop=True, wait_s=0.0)

    def wait(self, timeout_s: float = 30.0) -> TrafficReport:
        """The counts when its `limit` or `seconds` are reached (or `timeout_s` has passed: then `done` is False)."""
        return self._report(stop=False, wait_s=timeout_s)

    def _report(self, *, stop: bool, wait_s: float) -> TrafficReport:
        reply = self._lab.request("traffic_report", limit_s=wait_s, number=self._number, stop=stop, wait_s=wait_s)
        reply["failures"] = [(at_s, what) for at_s, what in reply["failures"]]
        return TrafficReport(**reply)
