"""The end-to-end tests' cluster: the demo's, booted once in a guest of its own, with the shipped commands running."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator

import pytest
from rich.console import Console

from tests.demo.cluster import Cluster, Spec, build
from tests.demo.report import Report
from tests.lab.kernel.fixtures import refuse
from tests.lab.kernel.lab import GuestDiedError, Lab, NoKernelError
from tests.lab.kernel.net import Net

_CLUSTER = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A guest for all end-to-end tests; apart from that of the kernel tests, so that neither can end the other's."""
    try:
        booted = Lab.start()
    except (NoKernelError, GuestDiedError) as error:
        refuse(str(error))
    with booted:
        yield booted


@pytest.fixture
def net(lab: Lab) -> Iterator[Net]:
    """Hosts of one test's own."""
    with lab.net() as hosts:
        yield hosts


@pytest.fixture(scope="session")
def running(lab: Lab) -> Iterator[Cluster]:
    """The demo's cluster with the scenarios' objects. Tests leave it as they found it."""
    with lab.net() as hosts:
        yield build(lab, hosts, Spec())


@pytest.fixture
def cluster(running: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """The running cluster; if the test fails, its report has the daemons' logs and the state of every kernel."""
    request.node.stash[_CLUSTER] = running
    return running


@pytest.fixture
def report() -> Report:
    """Collects what the demo's steps check, and prints nothing."""
    return Report(Console(file=io.StringIO(), width=200))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds logs and kernel state of the cluster to the report of a test that failed."""
    report = yield
    cluster = item.stash.get(_CLUSTER, None)
    if call.when == "call" and report.failed and cluster is not None and cluster.lab.alive:
        report.sections += [(f"log of {name}", log[-6000:]) for name, log in cluster.logs().items()]
        report.sections.append(("kernel state", cluster.net.report()))
    return report
