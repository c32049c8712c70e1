"""pytest fixtures for a real kernel: `net` (one test's hosts), `kernel` (the booted lab), `fresh_kernel` (an own boot).

Registered by tests/conftest.py. Every test that uses one is to carry `pytest.mark.kernel`. Without a kernel such a test
is skipped with the reason, and fails when CI=true. When a test fails, its report shows the kernel state of its hosts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NoReturn

import pytest

from . import selection
from .lab import GuestDiedError, Lab, NoKernelError
from .net import Net

_NET = pytest.StashKey[Net]()


class Kernel:
    """The session's lab: booted at the first test that needs it, booted anew when a test has hung or crashed it."""

    def __init__(self) -> None:
        self._lab: Lab | None = None
        self._refusal: str | None = None
        self.boots = 0
        """How many times a guest was booted in this session."""

    @property
    def lab(self) -> Lab:
        """The running lab. Skips the test when there is no kernel, or fails it where one is required."""
        if self._lab is not None and self._lab.alive:
            return self._lab
        self.close()
        if self._refusal is not None:
            refuse(self._refusal)
        try:
            self._lab = Lab.start()
        except (NoKernelError, GuestDiedError) as error:
            self._refusal = str(error)
            refuse(self._refusal)
        self.boots += 1
        return self._lab

    def close(self) -> None:
        """Ends the running lab, if any."""
        if self._lab is not None:
            self._lab.close()
            self._lab = None


def refuse(reason: str) -> NoReturn:
    """Fails the test where CI=true requires a kernel, and skips it elsewhere. Does not return."""
    if selection.kernel_required():
        pytest.fail(f"no kernel for tests, and CI=true requires one: {reason}", pytrace=False)
    pytest.skip(f"no kernel for tests: {reason}")


@pytest.fixture(scope="session")
def kernel() -> Iterator[Kernel]:
    """The lab that all tests of the session share."""
    shared = Kernel()
    yield shared
    shared.close()


@pytest.fixture
def net(kernel: Kernel, request: pytest.FixtureRequest) -> Iterator[Net]:
    """Network namespaces of this test's own, gone when it ends."""
    with kernel.lab.net() as hosts:
        request.node.stash[_NET] = hosts
        yield hosts


@pytest.fixture
def fresh_kernel() -> Iterator[Lab]:
    """A guest booted for this test alone (in host mode: new namespaces), for what leaves traces or measures time."""
    try:
        lab = Lab.start()
    except (NoKernelError, GuestDiedError) as error:
        refuse(str(error))
    with lab:
        yield lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the kernel's state to the report of a test that failed while its hosts were alive."""
    report = yield
    hosts = item.stash.get(_NET, None)
    if call.when == "call" and report.failed and hosts is not None and hosts.lab.alive:
        try:
            report.sections.append(("kernel state of the hosts", hosts.report()))
        except Exception as error:  # the test's own failure is what matters
            report.sections.append(("kernel state of the hosts", f"not available: {error}"))
        if console := hosts.lab.console():
            report.sections.append(("console of the guest", console[-4000:]))
    return report
