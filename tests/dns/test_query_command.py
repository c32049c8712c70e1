"""`dnsserver query`: over the scenarios, with a Corefile's plugins in front, and what goes wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from dnsserver.commands import query
from tests.commands import run_module
from tests.lab.apiserver import ApiServer, Policy, manifests

SCENARIOS = Path(__file__).parent.parent / "scenarios"
COREFILE = """\
.:53 {
    rewrite name exact short.example web-alias.default.svc.cluster.local
    hosts {
        192.0.2.80 static.example
        fallthrough
    }
    kubernetes cluster.local in-addr.arpa {
        pods insecure
        ttl 30
    }
    acl drop.example {
        drop
    }
}
"""


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    query.add_arguments(parser)
    return query.run(parser.parse_args(words))


@pytest.fixture
def corefile(tmp_path: Path) -> str:
    path = tmp_path / "Corefile"
    path.write_text(COREFILE)
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert call(*words, "--output", "json") == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


DEEP_DIVE = str(SCENARIOS / "deep-dive.yaml")
HEADLESS = "my-headless-service.default.svc.cluster.local"
ROWS = [
    (
        [HEADLESS],
        "NOERROR",
        [f"{HEADLESS}. 30 IN A 172.17.0.{i}" for i in (4, 5, 6)],
    ),
    ([f"web-0.{HEADLESS}."], "NOERROR", [f"web-0.{HEADLESS}. 30 IN A 172.17.0.4"]),
    (["empty-headless.default.svc.cluster.local"], "NXDOMAIN", []),
    (
        ["my-non-headless-service.default.svc.cluster.local", "A"],
        "NOERROR",
        ["my-non-headless-service.default.svc.cluster.local. 30 IN A 10.97.238.145"],
    ),
    (
        ["my-ext-svc.default.svc.cluster.local", "cname"],
        "NOERROR",
        ["my-ext-svc.default.svc.cluster.local. 30 IN CNAME www.mozilla.org."],
    ),
    (
        ["10.97.238.145"],
        "NOERROR",
        ["145.238.97.10.in-addr.arpa. 30 IN PTR my-non-headless-service.default.svc.cluster.local."],
    ),
    (["static.example"], "NOERROR", ["static.example. 3600 IN A 192.0.2.80"]),
    (["other.example"], "REFUSED", []),
    # what the server refuses before it looks at the name
    (["cluster.local", "AXFR"], "REFUSED", []),
    (["cluster.local", "OPT"], "FORMERR", []),
]


@pytest.mark.parametrize(("words", "status", "answer"), ROWS, ids=[" ".join(row[0]) for row in ROWS])
def test_replies(
    words: list[str], status: str, answer: list[str], corefile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = asked(capsys, *words, "--source", DEEP_DIVE, "--config", corefile)
    assert reply["status"] == status
    assert sorted(reply["answer"]) == answer  # type: ignore[call-overload]


def test_dig_format_and_origin(corefile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"web-0.{HEADLESS}", "--source", DEEP_DIVE, "--config", corefile) == 0
    out = capsys.readouterr().out
    assert out.startswith(";; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: ")
    assert ";; ANSWER SECTION:\nweb-0.my-headless-service.default.svc.cluster.local.\t30\tIN\tA\t172.17.0.4\n" in out
    assert "\n;; FROM:\n; Service default/my-headless-service (headless)\n; EndpointSlice default/" in out
    assert "172.17.0.4 web-0 Pod web-6lc7f" in out


def test_an_external_name_in_openshift(corefile: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply = asked(
        capsys,
        "minio.test-services.svc.cluster.local",
        "CNAME",
        "--source",
        str(SCENARIOS / "openshift.yaml"),
        "--config",
        corefile,
    )
    assert reply["answer"] == [
        "minio.test-services.svc.cluster.local. 30 IN CNAME minio.ocp4.labs.semperti.local."
    ]  # fmt: skip
    assert reply["from"] == [
        "Service test-services/minio (ExternalName minio.ocp4.labs.semperti.local)",
        "minio.ocp4.labs.semperti.local. is in none of the cluster's zones (cluster.local., in-addr.arpa.)",
    ]


WRONG = [
    (["a..b"], 2, "label '' has 0 bytes"),
    (["a.b", "NOSUCHTYPE"], 2, "'NOSUCHTYPE' is no record type"),
    (["a.b", "--config", "/nonexistent/Corefile"], 2, "/nonexistent/Corefile"),
    (["a.cluster.local", "--source", "/nonexistent"], 1, "/nonexistent"),
]


@pytest.mark.parametrize(("words", "code", "said"), WRONG)
def test_errors(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = [] if "--source" in words else ["--source", DEEP_DIVE]
    assert call(*words, *source) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out


def test_a_broken_corefile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n    kubernets cluster.local\n}\n")
    assert call("a.b", "--source", DEEP_DIVE, "--config", str(path)) == 2
    assert f"{path}:2" in capsys.readouterr().err


def test_a_plugin_that_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n    loadbalance weighted /nonexistent/weights\n    whoami\n}\n")
    assert call("a.b", "--source", DEEP_DIVE, "--config", str(path)) == 1
    assert capsys.readouterr().err.startswith("dnsserver query: /nonexistent/weights: No such file")


def test_a_dropped_query(corefile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("drop.example", "--source", DEEP_DIVE, "--config", corefile) == 1
    assert "no reply" in capsys.readouterr().err


async def query_cluster(directory: Path, kubeconfig: str, *, multicluster: bool = False) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, asking an API server, in a process of its own."""
    (directory / "kubeconfig").write_text(kubeconfig)
    zones = "cluster.local clusterset.local" if multicluster else "cluster.local"
    options = "multicluster clusterset.local\n" if multicluster else ""
    corefile = directory / "Corefile"
    corefile.write_text(f".:53 {{\n  kubernetes {zones} {{\n  kubeconfig {directory}/kubeconfig\n  {options}}}\n}}\n")
    return await run_module("dnsserver", "query", "deploy1.default.svc.cluster.local", "--config", str(corefile))


@pytest.mark.parametrize("multicluster", [False, True], ids=["", "without the definition of ServiceImports"])
async def test_a_cluster(tmp_path: Path, multicluster: bool) -> None:
    async with ApiServer(tls=True, tokens={"t": "dns"}) as server:
        assert manifests.load(server, manifests.read(Path(DEEP_DIVE))) == []
        code, out, err = await query_cluster(tmp_path, server.kubeconfig(), multicluster=multicluster)
    assert code == 0, err
    assert "10.100.200.199" in out
    assert "Service default/deploy1" in out


async def test_a_cluster_that_does_not_know_us(tmp_path: Path) -> None:
    async with ApiServer(tokens={"t": "dns"}) as server:
        code, out, err = await query_cluster(tmp_path, server.kubeconfig({"token": "expired"}))
    assert (code, out) == (1, "")
    assert "401" in err
    assert "check the token or certificate" in err


async def test_a_cluster_that_does_not_show_us_its_services(tmp_path: Path) -> None:
    async with ApiServer(tokens={"t": "dns"}, policy=Policy.of([])) as server:
        code, out, err = await query_cluster(tmp_path, server.kubeconfig())
    assert (code, out) == (1, "")
    assert "ClusterRole with list and watch of services, endpointslices, namespaces" in err
