"""The commands in the docs, run: real helm and kubectl, and our own programs, on a cluster as kubeadm makes it.

Every line with a `$` in a ```console block is run, in order, in one shell each; ```sh blocks need pods or nodes and are
only read: their programs' options must exist.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dnsserver import cli as dnsserver
from ipvsproxy import cli as ipvsproxy
from ipvsproxy.configfields import KUBE_PROXY_FIELDS, OUR_FIELDS
from tests.charts.helm import CHARTS, NAMES, ROOT, Object, helm
from tests.charts.kubeadm import KubeadmCluster
from tools.helm import fetch

DOCS = ROOT / "docs"


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text(), re.MULTILINE | re.DOTALL)


def commands(file: Path) -> list[str]:
    """The commands of the console blocks; a backslash joins lines."""
    text = "\n".join(blocks(file, "console")).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


RUN = sorted(f for f in DOCS.glob("**/*.md") if commands(f))
STEPS = ("migrate-from-coredns.md", "migrate-from-kube-proxy.md")
"""Run by tests of their own, which look at what each step does."""


class Shell:
    """Runs commands as somebody at a workstation would, in an empty directory with the checkout beside it."""

    def __init__(self, cluster: KubeadmCluster, home: Path) -> None:
        self.cluster = cluster
        self.home = home
        self.output = ""
        kubeconfig = home / "kubeconfig"
        kubeconfig.write_text(cluster.kubeconfig())
        programs = fetch()["helm"].parent
        for name in ("charts", "tests"):
            (home / name).symlink_to(ROOT / name)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")},
            "PATH": f"{programs}:{ROOT}/.venv/bin:{os.environ['PATH']}",
            "KUBECONFIG": str(kubeconfig),
            "HOME": str(home),
            "HELM_NAMESPACE": "",
        }

    async def run(self, command: str) -> tuple[int, str]:
        """Exit code and output."""
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", command),
            cwd=self.home,
            env=self.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def good(self, command: str) -> str:
        code, out = await self.run(command)
        assert code == 0, f"$ {command}\n{out}"
        return out


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with KubeadmCluster() as cluster, cluster.with_controllers():
        yield Shell(cluster, tmp_path)


@pytest.mark.parametrize("file", [f for f in RUN if f.name not in STEPS], ids=lambda f: str(f.relative_to(DOCS)))
async def test_commands(file: Path, shell: Shell) -> None:
    for command in commands(file):
        await shell.good(command)


def test_the_docs_have_commands() -> None:
    assert {f.name for f in RUN} >= {*STEPS, "operations.md"}


def test_programs_in_shell_blocks_exist() -> None:
    """What cannot be run here is at least understood by the program it is for."""
    parsers = {"ipvsproxy": ipvsproxy.parser(), "dnsserver": dnsserver.parser()}
    seen = 0
    for file in DOCS.glob("**/*.md"):
        for line in "".join(blocks(file, "sh")).splitlines():
            for program, parser in parsers.items():
                match = re.search(rf"(?:-- |^){program} ([a-z].*?)(?:  #|$)", line.strip())
                if match:
                    parser.parse_args(shlex.split(match[1]))
                    seen += 1
    assert seen >= 4


@pytest.mark.parametrize("chart", NAMES)
def test_installations_in_the_charts_readmes(chart: str) -> None:
    for block in blocks(CHARTS / chart / "README.md", "sh"):
        for line in filter(None, block.splitlines()):
            words = shlex.split(line)
            assert words[:2] == ["helm", "install"]
            helm(*words[1:3], str(ROOT / words[3]), *words[4:], "--dry-run=client")


# -- what the steps of a migration come to


async def test_from_coredns(shell: Shell) -> None:
    service: Object = {}
    for command in commands(DOCS / "migrate-from-coredns.md"):
        await shell.good(command)
        found = [s for s in shell.cluster.objects("Service") if s["metadata"]["name"] == "kube-dns"]
        assert found, f"`{command}` deleted the Service"
        service = found[0]
        assert service["spec"]["clusterIP"] == "10.96.0.10"
        assert service["spec"]["selector"] == {"k8s-app": "kube-dns"}
        serving = [
            d["metadata"]["name"]
            for d in shell.cluster.objects("Deployment")
            if d["spec"]["template"]["metadata"]["labels"].get("k8s-app") == "kube-dns" and d["spec"]["replicas"]
        ]
        assert serving, f"after `{command}` nobody answers"
    assert service["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


async def test_a_service_that_is_somebody_elses_is_not_taken(shell: Shell) -> None:
    code, out = await shell.run("helm install dnsserver charts/dnsserver -n kube-system")
    assert code != 0
    assert "Service kube-system/kube-dns is there and not this release's" in out
    assert "--set service.create=false" in out


@pytest.mark.parametrize(("kubernetes", "wanted"), [("kube-dns", "10.96.0.10"), ("another", "10.96.0.10")])
async def test_the_address_is_looked_up(shell: Shell, kubernetes: str, wanted: str) -> None:
    """That of the Service of this name, else the tenth of the range."""
    if kubernetes == "kube-dns":
        labels = "meta.helm.sh/release-name=dns meta.helm.sh/release-namespace=kube-system"
        await shell.good(f"kubectl -n kube-system annotate service kube-dns {labels}")
        await shell.good("kubectl -n kube-system label service kube-dns app.kubernetes.io/managed-by=Helm")
    shell.cluster.delete("Deployment", "kube-system", "coredns")
    where = f"service.clusterIP=auto,service.name={kubernetes}"
    said = await shell.good(f"helm install dns charts/dnsserver -n kube-system --dry-run=server --set {where}")
    assert f'clusterIP: "{wanted}"' in said


async def test_the_api_servers_address_is_looked_up(shell: Shell) -> None:
    said = await shell.good("helm install p charts/ipvsproxy -n kube-system --dry-run=server --set k8sServiceHost=auto")
    assert re.search(r'name: KUBERNETES_SERVICE_HOST\n +value: "192\.0\.2\.100"', said)
    assert re.search(r'name: KUBERNETES_SERVICE_PORT\n +value: "6443"', said)


async def test_from_kube_proxy(shell: Shell) -> None:
    """After every command each node has exactly one proxy, or none while its rules are taken away."""
    between: list[str] = []
    for command in commands(DOCS / "migrate-from-kube-proxy.md"):
        await shell.good(command)
        await asyncio.sleep(0.2)
        counts = {
            d["metadata"]["name"]: d["status"]["desiredNumberScheduled"] for d in shell.cluster.objects("DaemonSet")
        }
        between.append("+".join(f"{name}:{count}" for name, count in sorted(counts.items())))
    path = [state for i, state in enumerate(between) if i == 0 or state != between[i - 1]]
    assert path == [
        "kube-proxy:2",
        "ipvsproxy:0+kube-proxy:2",
        "ipvsproxy:1+kube-proxy:1",
        "ipvsproxy:2+kube-proxy:0",
        "ipvsproxy:1+kube-proxy:0",  # n1 is being cleaned up
        "ipvsproxy:1+kube-proxy:1",
        "kube-proxy:1",  # uninstalled, the other node's label not yet taken off
        "kube-proxy:2",
    ]


# -- the docs themselves


def test_links_lead_somewhere() -> None:
    for file in (*DOCS.glob("**/*.md"), *(CHARTS / name / "README.md" for name in NAMES)):
        text = file.read_text()
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
        for target in re.findall(r"\b(docs/[\w/.-]+\.md)", text):
            assert (ROOT / target).exists(), f"{file.name}: {target}"


def test_every_alert_has_a_first_thing_to_do() -> None:
    text = (DOCS / "operations.md").read_text()
    for chart in NAMES:
        for alert in re.findall(r"- alert: (\w+)", (CHARTS / chart / "alerts.yaml").read_text()):
            assert f"`{alert}`" in text


def test_the_proxys_configuration_is_documented_completely() -> None:
    """Fields and flags of the manual's tables are those that the daemon reads."""
    text = (DOCS / "proxy-configuration.md").read_text()
    rows = re.findall(r"^\| ([a-zA-Z.]+)(?: \(--([\w-]+)\))? \|(?: --([\w-]+) \|)?", text, re.MULTILINE)
    documented = {field: flag or other for field, other, flag in rows if field not in {"Field", "Annotation"}}
    read = {name: field.flag for name, field in (KUBE_PROXY_FIELDS | OUR_FIELDS).items()}
    assert {name: flag for name, flag in documented.items() if name in read} == read
    assert documented.keys() <= read.keys(), "documented, and not read"
