"""`ipvsproxy plan --source cluster`: the API server's objects, and what a person is told when they cannot be had."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.commands import run_module
from tests.lab.apiserver import ApiServer, Authority, Fault, Policy, manifests

SCENARIO = Path(__file__).parent.parent / "scenarios" / "ingress.yaml"
GOLDEN = Path(__file__).parent.parent / "golden" / "proxy_ingress_node-a.ipvsadm"
OPTIONS = ("--node", "node-a", "--output", "ipvsadm")


async def plan(directory: Path, kubeconfig: str, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, in a process of its own."""
    file = directory / "kubeconfig"
    file.write_text(kubeconfig)
    return await run_module("ipvsproxy", "plan", "--kubeconfig", str(file), *(options or OPTIONS))


def loaded(server: ApiServer) -> ApiServer:
    assert manifests.load(server, manifests.read(SCENARIO)) == []
    return server


@pytest.mark.parametrize(
    "older",
    [{}, {"watch_list": False}, {"watch_list": False, "service_fields": False}],
    ids=["streaming lists", "pages", "before 1.31"],
)
async def test_the_same_plan_as_from_the_manifests(tmp_path: Path, older: dict[str, bool]) -> None:
    async with ApiServer(tls=True, tokens={"t": "proxy"}, **older) as server:  # type: ignore[arg-type]
        code, out, err = await plan(tmp_path, loaded(server).kubeconfig())
    assert (code, out, err) == (0, GOLDEN.read_text(), ""), "nothing but the answer on stdout"


async def test_json_is_json(tmp_path: Path) -> None:
    async with ApiServer() as server:
        _, out, _ = await plan(tmp_path, loaded(server).kubeconfig(), "--node", "node-b")
    assert json.loads(out)["healthChecks"][0]["localEndpoints"] == 1


async def test_what_is_not_ours_is_not_asked_for(tmp_path: Path) -> None:
    async with ApiServer() as server:
        loaded(server)
        code, out, _ = await plan(tmp_path, server.kubeconfig())
    assert (code, out) == (0, GOLDEN.read_text())
    for request in server.recorded:
        assert request.asked.verb in {"list", "watch"}
        if request.asked.resource == "services":
            assert "service-proxy-name" in request.query


async def test_a_token_that_is_not_known(tmp_path: Path) -> None:
    async with ApiServer(tokens={"t": "proxy"}) as server:
        kubeconfig = server.kubeconfig({"token": "expired"})
        began_s = time.monotonic()
        code, out, err = await plan(tmp_path, kubeconfig)
    assert (code, out) == (1, "")
    assert "401" in err
    assert "check the token or certificate" in err
    assert str(tmp_path / "kubeconfig") in err
    assert time.monotonic() - began_s < 30, "at once, not after a minute of trying"


async def test_a_user_that_may_not(tmp_path: Path) -> None:
    async with ApiServer(tokens={"t": "proxy"}, policy=Policy.of([])) as server:
        code, out, err = await plan(tmp_path, server.kubeconfig())
    assert (code, out) == (1, "")
    assert "403" in err
    assert "ClusterRole with list and watch of services, endpointslices, nodes" in err


async def test_a_certificate_of_somebody_else(tmp_path: Path) -> None:
    async with ApiServer(tls=True) as server:
        config = yaml.safe_load(server.kubeconfig())
        (tmp_path / "other.pem").write_text(Authority().pem)
        del config["clusters"][0]["cluster"]["certificate-authority-data"]
        config["clusters"][0]["cluster"]["certificate-authority"] = str(tmp_path / "other.pem")
        code, out, err = await plan(tmp_path, yaml.safe_dump(config))
    assert (code, out) == (1, "")
    assert "its certificate is not accepted" in err
    assert "check certificate-authority" in err


async def test_nobody_there(tmp_path: Path) -> None:
    async with ApiServer() as server:
        kubeconfig = server.kubeconfig()
    code, out, err = await plan(tmp_path, kubeconfig)
    assert (code, out) == (1, "")
    assert "Connection refused" in err


async def test_an_error_in_the_middle_is_waited_out(tmp_path: Path) -> None:
    async with ApiServer() as server:
        loaded(server)
        server.faults.add(Fault("status", resource="endpointslices", verb="watch"))
        code, out, err = await plan(tmp_path, server.kubeconfig())
    assert (code, out) == (0, GOLDEN.read_text())
    assert "500" in err


async def test_a_server_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    async with ApiServer(watch_list=False) as server:
        loaded(server)
        server.faults.add(Fault("status", resource="services", verb="list", code=429, retry_after_s=1, times=2))
        code, out, err = await plan(tmp_path, server.kubeconfig())
    assert (code, out) == (0, GOLDEN.read_text())
    assert "throttled" in err


async def test_another_address_of_the_server(tmp_path: Path) -> None:
    async with ApiServer(tokens={"t": "proxy"}) as server:
        kubeconfig = loaded(server).kubeconfig().replace(server.url, "http://127.0.0.1:1")
        code, out, _ = await plan(tmp_path, kubeconfig, *OPTIONS, "--master", server.url)
    assert (code, out) == (0, GOLDEN.read_text())
