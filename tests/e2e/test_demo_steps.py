"""What `make demo` shows, each step a test: every line of its summary must hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.demo import changes, names, services
from tests.demo.cluster import Cluster
from tests.demo.report import Report

pytestmark = pytest.mark.kernel

Step = Callable[[Cluster, Report], None]


@pytest.mark.parametrize(
    "step",
    [
        names.run,
        services.virtual_servers,
        services.reach,
        services.policies,
        services.distribution,
        services.everything,
        changes.run,
    ],
    ids=lambda step: f"{step.__module__.rpartition('.')[2]}.{step.__name__}",
)
def test_step(cluster: Cluster, report: Report, step: Step) -> None:
    step(cluster, report)
    assert [check for check in report.checks if not check.holds] == []
    assert report.good
