"""Fixtures of all tests (each plugin's module says what it provides), and how long examples may take."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

pytest_plugins = ["tests.lab.kernel.fixtures"]

# No deadline: an example that takes long on a busy machine is no defect. CI draws the same examples every time, so that
# a red run is the fault of the change; everybody else looks for new ones.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command run within a test configures logging for its process, which is ours."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
