"""Event names: one list, every name used and none missing; and where events go."""

from __future__ import annotations

import ast
import errno
import io
import json
import re
from pathlib import Path

import pytest
import structlog

from kubecore import log

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kubecore", "ipvsproxy", "dnsserver")
NAMES = {name: value for name, value in vars(log).items() if name.isupper() and isinstance(value, str)}


def used() -> set[str]:
    """Names of the module `log` that the packages use."""
    found = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "log":
                    found.add(node.attr)
                if isinstance(node, ast.ImportFrom) and node.module == "kubecore.log":
                    found |= {alias.name for alias in node.names}
    return found


def test_every_listed_name_is_used() -> None:
    assert sorted(set(NAMES) - used()) == []


def test_every_used_name_is_listed() -> None:
    assert sorted(name for name in used() if name.isupper() and name not in NAMES and name != "LEVELS") == []


def test_names_are_area_object_past_tense() -> None:
    assert [value for value in NAMES.values() if not re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+){2}", value)] == []
    assert len(set(NAMES.values())) == len(NAMES)


def test_events_are_json_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    log.configure(level="info", stream=stream)
    structlog.get_logger().debug("too.much.said")
    structlog.get_logger().info(log.PROCESS_STARTED, version="1.2")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(e["event"], e["level"], e["version"]) for e in lines] == [("process.daemon.started", "info", "1.2")]


class _FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_an_event_that_cannot_be_written_ends_nothing(fmt: log.LogFormat) -> None:
    log.configure(fmt=fmt, stream=_FullDisk())
    structlog.get_logger().error(log.PROCESS_STOPPED)


def test_events_are_lines_for_people_on_a_console() -> None:
    stream = io.StringIO()
    log.configure(level="info", fmt="console", stream=stream)
    structlog.get_logger().warning(log.PROCESS_STOPPED, node="a")
    assert "process.daemon.stopped" in stream.getvalue()
    assert "node=a" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
