"""`ipvsproxy plan`: the scenarios' golden outputs, formats, complaints on stderr, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvsproxy import planner, serviceplan
from ipvsproxy.cli import main
from ipvsproxy.commands import diff
from kubecore.model import Service

TESTS = Path(__file__).parent.parent
SCENARIOS = TESTS / "scenarios"
GOLDEN = TESTS / "golden"

CASES = (
    ("openshift", "worker0.ocp4.labs.semperti.local"),
    ("deep-dive", "k8smaster"),
    ("ingress", "node-a"),
    ("ingress", "node-b"),
)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        code = main(argv)
    except SystemExit as exit_:  # argparse
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_full_disk_is_told() -> None:
    argv = [sys.executable, "-m", "ipvsproxy", "plan", "--source", str(SCENARIOS / "ingress.yaml"), "--node", "node-a"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "ipvsproxy: the output could not be written: No space left on device\n",
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_ends_nothing(closed: str) -> None:
    plan = f"{sys.executable} -m ipvsproxy plan --source {SCENARIOS / 'ingress.yaml'} --node node-a {closed}"
    done = subprocess.run(["sh", "-c", plan], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("scenario", "node"), CASES)
@pytest.mark.parametrize(("output", "suffix"), [("ipvsadm", "ipvsadm"), ("json", "json")])
def test_scenarios(capsys: pytest.CaptureFixture[str], scenario: str, node: str, output: str, suffix: str) -> None:
    source = str(SCENARIOS / f"{scenario}.yaml")
    code, out, _ = run(capsys, "plan", "--source", source, "--node", node, "--output", output)
    golden = GOLDEN / f"proxy_{scenario}_{node.split('.', maxsplit=1)[0]}.{suffix}"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(out)
    assert code == 0
    assert out == golden.read_text()


def test_a_service_that_cannot_be_planned_is_named_and_the_others_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(service: Service, *others: Any) -> Any:
        if service.name == "traefik-ingress-service":
            raise ValueError("boom")
        return serviceplan.plan(service, *others)

    argv = ("plan", "--source", str(SCENARIOS / "ingress.yaml"), "--node", "node-a", "--output", "ipvsadm")
    _, whole, _ = run(capsys, *argv)
    monkeypatch.setattr(planner, "plan", broken)
    code, out, err = run(capsys, *argv)
    assert code == 1
    assert set(out.splitlines()) < set(whole.splitlines())
    assert "error: Service kube-system/traefik-ingress-service cannot be planned" in err


def test_what_the_scenarios_readme_promises(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "plan", "--source", str(SCENARIOS / "ingress.yaml"), "--node", "node-a", "--output", "json")
    plan = json.loads(out)
    assert plan["healthChecks"] == [
        {"service": "kube-system/traefik-ingress-service", "port": 31999, "localEndpoints": 0}
    ]
    by_address = {(s.get("address"), s.get("port")): s for s in plan["virtualServers"]}
    lb = by_address["192.168.50.200", 80]
    assert [r["address"] for r in lb["realServers"]] == ["10.244.1.9"]
    assert lb["persistenceSeconds"] == 600
    (wide,) = [s for s in plan["virtualServers"] if {"address": "192.168.50.200", "port": 80} in s.get("addresses", [])]
    assert [r["address"] for r in wide["realServers"]] == ["192.168.50.11"]
    assert {"key": ["192.168.50.200", "tcp", "80", "203.0.113.0/24"]} in plan["sets"]["range4"]
    assert {v["address"] for v in plan["vips"]} == {"10.96.0.10", "10.96.7.7", "192.168.50.200"}


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("plan", "--source", str(SCENARIOS / "ingress.yaml"), "--node", "node-a")
    _, piped, _ = run(capsys, *args)
    assert json.loads(piped)["node"] == "node-a", "JSON where stdout is no terminal"
    _, table, _ = run(capsys, *args, "--output", "table")
    assert "Virtual servers on node-a" in table


def test_tables_show_ipv6_addresses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 'fd00::1', ports: [{port: 80}]}\n"
    )
    _, table, _ = run(capsys, "plan", "--source", str(tmp_path), "--node", "n", "--output", "table")
    assert "[fd00::1]:80/TCP" in table
    diff._print_table([{"operation": "DeleteVirtualServer", "on": "[fd00::2]:80/TCP", "add": ["vip6 fd00::2"]}])
    shown = capsys.readouterr().out
    assert "[fd00::2]:80/TCP" in shown
    assert "+ vip6 fd00::2" in shown


_LOCAL = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 'fd00::1', ports: [{port: 80}], internalTrafficPolicy: Local}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: "", port: 8080}]
endpoints:
- {addresses: ['fd00:2::1'], nodeName: elsewhere}
- {addresses: ['fd00:2::2'], nodeName: elsewhere, conditions: {ready: false, serving: true, terminating: true}}
"""


@pytest.mark.parametrize(
    ("node", "manifests", "shown"),
    [
        ("n", _LOCAL, "none here: dropped"),
        ("n", _LOCAL, "[fd00:2::2]:8080 (draining)"),
        ("elsewhere", _LOCAL, "[fd00:2::1]:8080"),
        ("n", _LOCAL.partition("---")[0], "none: refused"),
    ],
)
def test_tables_tell_what_becomes_of_clients(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, node: str, manifests: str, shown: str
) -> None:
    (tmp_path / "s.yaml").write_text(manifests)
    _, table, _ = run(capsys, "plan", "--source", str(tmp_path), "--node", node, "--output", "table")
    assert shown in " ".join(table.split())


def test_node_addresses_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("plan", "--source", str(SCENARIOS / "ingress.yaml"), "--node", "node-a", "--output", "ipvsadm")
    more = (
        "--node-address",
        "eth1=10.7.0.1/16",
        "--node-address",
        "kube-ipvs0=10.8.0.1",
        "--node-address=lo=127.0.0.1",
    )
    _, out, _ = run(capsys, *args, *more)
    assert "-A -t 10.7.0.1:30080 -s rr -p 600" in out
    assert "-A -t 192.168.50.10:30080 -s rr -p 600" in out
    assert "10.8.0.1" not in out
    assert "127.0.0.1" not in out


def test_a_node_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "plan", "--source", str(SCENARIOS / "ingress.yaml"), "--node", "x", "--output=ipvsadm")
    assert code == 0
    assert "-A -t 10.96.0.10:53 -s rr" in out
    assert "there is no Node 'x'" in err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("plan", "--source", "/nonexistent", "--node", "n"), 1, "/nonexistent"),
        (("plan", "--config", "/nonexistent.yaml"), 2, "/nonexistent.yaml: No such file or directory"),
        (("plan", "--node-address", "eth0"), 2, "'eth0' is not IFACE=ADDRESS; write eth0=192.0.2.10"),
        (("plan", "--node-address", "eth0=1.2.3.4/99"), 2, "is not IFACE=ADDRESS"),
        (
            ("plan", "--ipvs-scheduler", "wrrr"),
            2,
            '--ipvs-scheduler: there is no IPVS scheduler "wrrr"; did you mean "wrr"',
        ),
        (("plan", "--output", "xml"), 2, "invalid choice: 'xml'"),
        (("plan", "--source", ""), 2, "--source: is empty; write cluster, or the path of manifests"),
        (("run", "--cleanup"), 2, "--cleanup: a command of its own here; run ipvsproxy cleanup"),
        (("plam",), 2, "invalid choice: 'plam'"),
        ((), 2, "COMMAND"),
    ],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], code: int, words: str) -> None:
    got, out, err = run(capsys, *argv)
    assert got == code
    assert out == ""
    assert words in err


def test_configuration_file_and_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nipvs: {scheduler: lc}\n"
        "nodePortAddresses: [10.0.0.0/8]\nhostnameOverride: node-b\n",
    )
    args = ("plan", "--source", str(SCENARIOS / "ingress.yaml"), "--config", str(config), "--output", "ipvsadm")
    _, out, err = run(capsys, *args)
    assert "-A -t 10.96.0.10:53 -s lc" in out
    assert ":30080" not in out
    assert err == ""
    _, out, _ = run(capsys, *args, "--ipvs-scheduler", "sed")
    assert "-A -t 10.96.0.10:53 -s sed" in out
    config.write_text(config.read_text().replace("scheduler", "schedular"))
    code, _, err = run(capsys, *args)
    assert code == 2
    assert f'{config}:3: ipvs.schedular: unknown field; did you mean "scheduler"?' in err


def test_a_list_may_come_by_several_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    written = tmp_path / "written.yaml"
    lists = ("--nodeport-addresses=10.0.0.0/8,fd00::/8", "--nodeport-addresses", "192.168.0.0/16")
    gates = ("--feature-gates=A=true", "--feature-gates=AllowServiceExternalIPs=false")
    last = ("--ipvs-scheduler=lc", "--ipvs-scheduler=sed")
    assert run(capsys, "run", *lists, *gates, *last, "--write-config-to", str(written))[0] == 0
    proxy, ours = yaml.safe_load_all(written.read_text())
    assert proxy["nodePortAddresses"] == ["10.0.0.0/8", "fd00::/8", "192.168.0.0/16"]
    assert (proxy["ipvs"]["scheduler"], ours["allowExternalIPs"]) == ("sed", [])


def test_the_configuration_is_written_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With `run`, as with kube-proxy; it needs no privileges."""
    written = tmp_path / "written.yaml"
    args = ("run", "--node", "n", "--ipvs-scheduler=lc", "--config-sync-period=1h")
    assert run(capsys, *args, "--write-config-to", str(written)) == (0, "", "")
    assert "  scheduler: lc\n" in written.read_text()
    again = tmp_path / "again.yaml"
    assert run(capsys, "run", "--config", str(written), "--write-config-to", str(again)) == (0, "", "")
    assert again.read_text() == written.read_text()
    code, _, err = run(capsys, *args, "--write-config-to", str(tmp_path))
    assert (code, err) == (1, f"{tmp_path}: Is a directory; name a file that can be written with --write-config-to\n")


def test_problems_of_services_go_to_stderr(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {ipvsproxy.io/scheduler: wrrr}}\n"
        "spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80}]}\n",
    )
    code, out, err = run(capsys, "plan", "--source", str(tmp_path), "--node", "n", "--output", "ipvsadm")
    assert (code, out) == (0, "-A -t 10.96.0.1:80 -s rr\n")
    assert (
        "Service default/web: UnknownScheduler: scheduler 'wrrr' is not known, rr is used; did you mean 'wrr'?" in err
    )


@pytest.mark.parametrize(
    "argv",
    [
        ("diff", "--output", "xml"),
        ("diff", "--ipvs-scheduler", "wrrr"),
        ("diff", "--config", "/nonexistent.yaml"),
        ("diff", "--source", "/nonexistent", "--node", "n"),
    ],
)
def test_a_mistake_is_no_difference(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (1, "")
    assert err


@pytest.mark.parametrize("argv", [("--help",), ("diff", "--help"), ("--version",)])
def test_help(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "ipvsproxy" in out


def test_kube_proxys_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As kops and k3s have it; what means nothing here is named."""
    flags = (
        *("--cluster-cidr=10.244.0.0/16", "--conntrack-max-per-core=131072", "--hostname-override=node-b"),
        *(
            "--kubeconfig=/var/lib/kube-proxy/kubeconfig",
            "--master=https://127.0.0.1",
            "--oom-score-adj=-998",
            "-v",
            "2",
        ),
        *("--healthz-bind-address=127.0.0.1", "--proxy-mode=ipvs", "--feature-gates=A=true", "--ipvs-scheduler=lc"),
    )
    code, out, err = run(capsys, "plan", "--source", str(SCENARIOS / "ingress.yaml"), *flags, "--output", "ipvsadm")
    assert (code, out.splitlines()[0]) == (0, "-A -t 10.96.0.10:53 -s lc")
    assert err.splitlines() == ["info: --v has no effect here", "info: --feature-gates: gate A has no effect here"]
