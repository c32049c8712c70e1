"""What the demo says: progress, commands with their output, and the list of what held and what did not.

Knows the terminal. Must not know the cluster. Colours and a spinner on a terminal; plain lines where output is piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Check:
    """One line of the summary."""

    holds: bool
    what: str
    figure: str
    seen: str
    """What was seen instead, where it does not hold."""
    remedy: str


class Report:
    """Collects checks while it prints."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
        self.checks: list[Check] = []
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the report began."""
        return time.monotonic() - self._started

    def section(self, title: str) -> None:
        """A headline."""
        self.console.print(f"\n[bold cyan]== {escape(title)}[/]")

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(escape(text))

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows that something is going on, and how long it took."""
        started = time.monotonic()
        if self.console.is_terminal:
            with self.console.status(f"{what} …"):
                yield
        else:
            yield
        self.console.print(f"[dim]{time.monotonic() - started:6.1f} s  {escape(what)}[/]")

    def command(self, where: str, command: str, output: str | Sequence[str]) -> None:
        """A command that was run and what it printed."""
        text = output if isinstance(output, str) else "\n".join(output)
        self.console.print(f"[bold green]{escape(where)}$[/] [bold]{escape(command)}[/]")
        for line in text.rstrip().splitlines():
            self.console.print(f"  {escape(line)}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows side by side."""
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    def check(self, holds: bool, what: str, figure: str = "", *, seen: object = "", remedy: str = "") -> bool:
        """Notes a line of the summary and shows it at once; returns `holds`.

        Args:
            what: the claim.
            figure: a measured value.
            seen: what was seen, shown where the claim does not hold.
            remedy: where to look then.
        """
        check = Check(bool(holds), what, figure, str(seen), remedy)
        self.checks.append(check)
        self.console.print(_line(check))
        return check.holds

    @property
    def good(self) -> bool:
        """Whether all held, and there was something to hold."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    def summary(self) -> None:
        """All checks once more, and the verdict."""
        self.section("Summary")
        for check in self.checks:
            self.console.print(_line(check))
        failed = sum(not check.holds for check in self.checks)
        if failed:
            verdict = f"[bold red]{failed} of {len(self.checks)} do not hold[/]"
        else:
            verdict = f"[bold green]all {len(self.checks)} hold[/]"
        self.console.print(f"{verdict} [dim]({self.elapsed_s:.0f} s)[/]")


def _line(check: Check) -> str:
    mark = "[bold green]✓[/]" if check.holds else "[bold red]✗[/]"
    figure = f"[bold]: {escape(check.figure)}[/]" if check.figure else ""
    line = f"{mark} {escape(check.what)}{figure}"
    if not check.holds:
        line += f"\n    seen: {escape(check.seen)}" if check.seen else ""
        line += f"\n    next: {escape(check.remedy)}" if check.remedy else ""
    return line


def milliseconds(seconds: float) -> str:
    """`12 ms`."""
    return f"{seconds * 1000:.0f} ms"
