"""The images: their Dockerfile read, their steps run without Docker, and the rendered pods started from the result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.charts import rootfs
from tests.charts.helm import CHARTS, NAMES, ROOT, Object, template
from tests.charts.test_run import API, NODE, World, clean_up, directory, helm_test, running_proxy, until
from tests.lab.kernel import selection
from tests.lab.kernel.net import Net

__all__ = ["directory"]
LARGEST_BYTES = 220_000_000


class Stage:
    """One stage of the Dockerfile: its instructions in order."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.name = base, name
        self.lines: list[tuple[str, str]] = []

    def all(self, instruction: str) -> list[str]:
        return [text for word, text in self.lines if word == instruction]


def stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if not word or word.startswith("#"):
            continue
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base, name)
        elif stage is not None:
            stage.lines.append((word, rest))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_dockerfile(name: str) -> None:
    stage = stages()[name]
    labels = stage.all("LABEL")[0]
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert stage.all("ENTRYPOINT") == [json.dumps([name])]
    assert stage.all("USER") == [{"ipvsproxy": "0:0", "dnsserver": "65532:65532"}[name]]
    assert stage.base == "${DEBIAN}"
    assert re.search(r"^ARG DEBIAN=debian:12\.\d+-slim$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    repository = re.search(r"repository: \S+/(\S+)", (CHARTS / name / "values.yaml").read_text())
    assert repository is not None
    assert repository[1] == name, "the chart starts the image by its entry point"


def test_every_step_is_a_script_that_the_test_below_runs_too() -> None:
    steps = [step for stage in stages().values() for step in stage.all("RUN")]
    assert len(steps) == 5
    for step in steps:
        assert re.fullmatch(r"(--mount=\S+ )?/(tmp|src/image)/(build|app|system)\.sh [\w./ ]+", step), step
    for stage in stages().values():
        for copied in stage.all("COPY"):
            source = copied.split()[0]
            assert source.startswith("--from=") or (ROOT / source).exists(), copied
    for script in (ROOT / "image").iterdir():
        assert os.access(script, os.X_OK), f"{script} is not executable"


@pytest.fixture(scope="module")
def roots() -> dict[str, Path]:
    try:
        return rootfs.build()
    except rootfs.CannotBuild as error:
        (pytest.fail if selection.kernel_required() else pytest.skip)(f"no images: {error}")


@pytest.mark.image
@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_it(roots: dict[str, Path], name: str, record_property: Callable[[str, object], None]) -> None:
    root = roots[name]
    size = rootfs.size_bytes(root)
    record_property("size_bytes", size)
    print(f"{name}: {size / 1e6:.0f} MB")
    assert size < LARGEST_BYTES
    packages = {p.name for p in root.glob("opt/venv/lib/python3*/site-packages/*") if p.suffix != ".dist-info"}
    assert {"kubecore", name} <= packages
    assert not packages & ({"pip", "setuptools", "pytest", "hatchling"} | (set(NAMES) - {name}))
    tools = {tool for tool in ("nft", "modprobe", "iptables") if any(root.glob(f"usr/sbin/{tool}"))}
    assert tools == ({"nft", "modprobe", "iptables"} if name == "ipvsproxy" else set())
    assert not list(root.glob("var/lib/apt/lists/*"))
    assert not list(root.glob("usr/lib/python3*/site-packages/pip"))
    assert not list(root.glob("usr/lib/python3/dist-packages/pip"))
    assert "nonroot:x:65532:65532" in (root / "etc/passwd").read_text()


@pytest.mark.image
@pytest.mark.kernel
def test_the_proxys_image_works(roots: dict[str, Path], net: Net, directory: Path) -> None:
    values: Object = {"kubeconfigConfigMap": "kube-proxy", "config": {"clusterCIDR": "10.244.0.0/16"}}
    world = World(net, directory, ("ipvsproxy", values))
    world.node.image = str(roots["ipvsproxy"])
    pod, proxy = running_proxy(world)
    assert json.loads(pod.probe("ipvsproxy", "readiness")[1])["healthy"] is True
    proxy.stop()
    clean_up(world, values)


@pytest.mark.image
@pytest.mark.kernel
def test_the_dns_servers_image_works(roots: dict[str, Path], net: Net, directory: Path) -> None:
    api: Object = {"k8sServiceHost": API, "k8sServicePort": 6443}
    joining: Object = {"existingConfigMap": "coredns", "service": {"create": False}, "snapshot": {"enabled": False}}
    world = World(net, directory, ("dnsserver", api | joining))
    world.node.image = str(roots["dnsserver"])
    pod = world.pod("dnsserver", "Deployment")
    server = pod.start("dnsserver")
    until(lambda: pod.probe("dnsserver", "readiness")[0] == 200, server)
    said = helm_test(world, "dnsserver", {"DNSSERVER_TEST_SERVICE_HOST": NODE, "KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert "passed" in said


def test_the_chart_and_the_image_have_one_version() -> None:
    from kubecore import __version__

    dockerfile = (ROOT / "Dockerfile").read_text()
    assert dockerfile.count(f"ARG VERSION={__version__}\n") == 2
    for name in NAMES:
        image = template(name).one("DaemonSet" if name == "ipvsproxy" else "Deployment")["spec"]["template"]["spec"][
            "containers"
        ][0]["image"]
        assert image.endswith(f":{__version__}")
