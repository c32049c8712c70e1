"""Where the API server is found, in which order, and what is said when it is not."""

from __future__ import annotations

import base64
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubecore.access import Access, AccessError, load_access
from kubecore.credentials import ANONYMOUS, CredentialsError, Exec, Fixed, TokenFile

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def kubeconfig(directory: Path, *, user: dict[str, Any] | None = None, name: str = "config", **cluster: Any) -> Path:
    """A kubeconfig with one context."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://api:6443", **cluster}}],
            "users": [{"name": "u", "user": user or {}}],
        })
    )  # fmt: skip
    return path


@pytest.fixture
def service_account(tmp_path: Path) -> Path:
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    (directory / "token").write_text("pod-token\n")
    (directory / "ca.crt").write_text("CA")
    return directory


def load(tmp_path: Path, environ: dict[str, str] | None = None, **more: Any) -> Access:
    more.setdefault("service_account", tmp_path / "none")
    return load_access(environ={"HOME": str(tmp_path), **(environ or {})}, **more)


# -- the order


def test_a_given_kubeconfig_comes_before_the_pod(tmp_path: Path, service_account: Path) -> None:
    path = kubeconfig(tmp_path, user={"token": "t"})
    access = load(tmp_path, POD, kubeconfig=str(path), service_account=service_account)
    assert access.server == "https://api:6443"
    assert str(path) in access.origin


async def test_the_pod_comes_before_the_default_kubeconfig(tmp_path: Path, service_account: Path) -> None:
    kubeconfig(tmp_path, name=".kube/config")
    access = load(tmp_path, POD, service_account=service_account)
    assert access.server == "https://10.96.0.1:443"
    assert access.tls.ca_file == service_account / "ca.crt"
    assert (await access.credentials.identity()).authorization == "Bearer pod-token"


@pytest.mark.parametrize(
    ("environ", "server", "expected"),
    [
        ({"KUBERNETES_SERVICE_HOST": "192.0.2.7", "KUBERNETES_SERVICE_PORT": "6443"}, "", "https://192.0.2.7:6443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, "", "https://[fd00::1]:443"),
        ({"KUBERNETES_SERVICE_HOST": "api.example"}, "", "https://api.example:443"),
        (POD, "https://192.0.2.8:6443/", "https://192.0.2.8:6443"),
        (POD, "192.0.2.8:6443", "https://192.0.2.8:6443"),
        ({}, "https://gateway/clusters/c1", "https://gateway/clusters/c1"),
    ],
)
def test_the_server_in_a_pod(
    tmp_path: Path, service_account: Path, environ: dict[str, str], server: str, expected: str
) -> None:
    assert load(tmp_path, environ, server=server, service_account=service_account).server == expected


def test_outside_a_pod_the_default_kubeconfig_is_read(tmp_path: Path) -> None:
    kubeconfig(tmp_path, name=".kube/config")
    assert load(tmp_path).server == "https://api:6443"
    elsewhere = kubeconfig(tmp_path, name="elsewhere", server="https://other:1")
    assert load(tmp_path, {"KUBECONFIG": f"{tmp_path / 'missing'}:{elsewhere}"}).server == "https://other:1"
    assert load(tmp_path, server="https://forced:1").server == "https://forced:1"


def test_a_server_alone_is_talked_to_without_credentials(tmp_path: Path) -> None:
    access = load(tmp_path, server="http://127.0.0.1:8001")
    assert (access.server, access.credentials) == ("http://127.0.0.1:8001", Fixed(ANONYMOUS))


def test_a_further_context_can_be_chosen(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["contexts"].append({"name": "there", "context": {"cluster": "c2"}})
    config["clusters"].append({"name": "c2", "cluster": {"server": "https://two:2"}})
    path.write_text(yaml.safe_dump(config))
    assert load(tmp_path, kubeconfig=str(path), context="there").server == "https://two:2"


# -- proxies


def test_the_kubeconfig_s_proxy_comes_before_the_environment_s(tmp_path: Path) -> None:
    environ = {"HTTPS_PROXY": "http://env:1"}
    assert load(tmp_path, environ, kubeconfig=str(kubeconfig(tmp_path))).proxy == "http://env:1"
    own: dict[str, Any] = {"proxy-url": "http://own:2"}
    path = kubeconfig(tmp_path, **own)
    assert load(tmp_path, {**environ, "NO_PROXY": "*"}, kubeconfig=str(path)).proxy == "http://own:2"


# -- complaints


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty or no mapping"),
        ("clusters: [", "while parsing"),
        ("apiVersion: v1\nkind: Config\n", "has no current-context"),
        ("current-context: x\ncontexts: []\nclusters: []\n", "object with name x in"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: y}}]\nclusters: []\n", "object with name y in"),
        (
            (
                "current-context: x\ncontexts: [{name: x, context: {cluster: y, user: z}}]\nusers: []\n"
                "clusters: [{name: y, cluster: {server: 'https://a'}}]\n"
            ),
            "names user 'z', which is not among users",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: y}}]\nclusters: [{name: y, cluster: {}}]\n",
            "cluster 'y': has no server",
        ),
    ],
)
def test_a_kubeconfig_that_leads_nowhere(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "broken"
    path.write_text(content)
    with pytest.raises(AccessError) as told:
        load(tmp_path, kubeconfig=str(path))
    assert str(path) in str(told.value)
    assert complaint in str(told.value)


@pytest.mark.parametrize(
    ("user", "cluster", "complaint"),
    [
        ({}, {"certificate-authority": "gone.pem"}, "certificate-authority: {dir}/gone.pem does not exist"),
        ({}, {"certificate-authority-data": "%%%"}, "certificate-authority-data is no base64"),
        ({"client-certificate-data": "QQ=="}, {}, "client-key(-data) are needed together"),
        ({"exec": {"args": []}}, {}, "exec: Object missing required field `command`"),
        ({"token": 5}, {}, "token is no string"),
        ({}, {"proxy-url": "socks5://p:1"}, "only http and https proxies"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_used_are_named(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], complaint: str
) -> None:
    path = kubeconfig(tmp_path, user=user, **cluster)
    with pytest.raises(AccessError) as told:
        load(tmp_path, kubeconfig=str(path))
    assert complaint.format(dir=tmp_path) in str(told.value)


def test_a_file_that_may_not_be_looked_at_is_named(tmp_path: Path) -> None:
    """Permissions do not hold root back, a name that is too long does."""
    unreadable = tmp_path / ("k" * 300)
    for given in ({"kubeconfig": str(unreadable)}, {"environ": {"KUBECONFIG": str(unreadable)}}):
        with pytest.raises(AccessError, match=f"{unreadable}: File name too long: make it readable, or give a"):
            load_access(service_account=tmp_path / "none", **given)


def test_nothing_found_says_what_was_looked_for(tmp_path: Path, service_account: Path) -> None:
    with pytest.raises(AccessError, match="no such file"):
        load(tmp_path, kubeconfig="/nonexistent")
    with pytest.raises(AccessError, match=r"not in a pod, .*\.kube/config does not exist: give a kubeconfig"):
        load(tmp_path)
    with pytest.raises(AccessError, match="automountServiceAccountToken"):
        load(tmp_path, POD)
    (service_account / "ca.crt").unlink()
    with pytest.raises(AccessError, match="kube-root-ca"):
        load(tmp_path, POD, service_account=service_account)
    with pytest.raises(AccessError, match="no http or https URL"):
        load(tmp_path, server="ftp://x")


# -- credentials


@pytest.mark.parametrize(
    ("user", "authorization"),
    [
        ({}, None),
        ({"token": "abc"}, "Bearer abc"),
        ({"username": "u", "password": "p"}, "Basic " + base64.b64encode(b"u:p").decode()),
        ({"token": "abc", "tokenFile": "tok"}, "Bearer from-file"),
    ],
)
async def test_what_a_user_shows(tmp_path: Path, user: dict[str, Any], authorization: str | None) -> None:
    (tmp_path / "tok").write_text("from-file\n")
    access = load(tmp_path, kubeconfig=str(kubeconfig(tmp_path, user=user)))
    assert (await access.credentials.identity()).authorization == authorization


async def test_a_token_file_is_read_each_time(tmp_path: Path) -> None:
    credentials = TokenFile(tmp_path / "token")
    with pytest.raises(CredentialsError, match="is the volume mounted"):
        await credentials.identity()
    for token in ("one", "two\n"):
        credentials.path.write_text(token)
        assert (await credentials.identity()).authorization == f"Bearer {token.strip()}"
    credentials.path.write_text("")
    with pytest.raises(CredentialsError, match="is empty"):
        await credentials.identity()


def plugin(directory: Path, body: str) -> dict[str, Any]:
    """An exec plugin that runs `body`, with `give(status)` at hand; it counts its runs in the file `runs`."""
    script = directory / "plugin.py"
    script.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent("""\
            import json, os, pathlib, sys
            runs = pathlib.Path(__file__).with_name("runs")
            n = int(runs.read_text()) + 1 if runs.exists() else 1
            runs.write_text(str(n))
            info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
            def give(**status):
                print(json.dumps({"apiVersion": info["apiVersion"], "kind": "ExecCredential", "status": status}))
            """)
        + textwrap.dedent(body)
    )
    script.chmod(0o755)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": "./plugin.py", "interactiveMode": "Never"}}


async def test_a_plugin_runs_once_until_its_token_expires_or_is_refused(tmp_path: Path) -> None:
    user = plugin(tmp_path, """give(token=f"t{n}", expirationTimestamp="2026-01-01T00:00:00Z")""")
    access = load(tmp_path, kubeconfig=str(kubeconfig(tmp_path, user=user)))
    credentials = access.credentials
    assert isinstance(credentials, Exec)
    now_s = 1767225600.0 - 3600  # an hour before it expires
    credentials.wall_clock = lambda: now_s
    assert [(await credentials.identity()).authorization for _ in range(2)] == ["Bearer t1", "Bearer t1"]
    now_s += 3595
    assert (await credentials.identity()).authorization == "Bearer t2"
    now_s -= 3595
    assert credentials.refused()
    assert (await credentials.identity()).authorization == "Bearer t3"


async def test_a_plugin_gets_arguments_environment_and_cluster(tmp_path: Path) -> None:
    user = plugin(
        tmp_path,
        """give(token="-".join([*sys.argv[1:], os.environ["ZONE"],
    info["spec"]["cluster"]["server"]]))""",
    )
    user["exec"].update(args=["get", "token"], env=[{"name": "ZONE", "value": "z1"}], provideClusterInfo=True)
    access = load(tmp_path, kubeconfig=str(kubeconfig(tmp_path, user=user)))
    assert (await access.credentials.identity()).authorization == "Bearer get-token-z1-https://api:6443"


async def test_a_plugin_can_give_a_certificate(tmp_path: Path) -> None:
    user = plugin(tmp_path, """give(clientCertificateData="CHAIN", clientKeyData="KEY")""")
    identity = await load(tmp_path, kubeconfig=str(kubeconfig(tmp_path, user=user))).credentials.identity()
    assert identity == (None, ("CHAIN", "KEY"))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("sys.exit('log in first')", "exited with 1: log in first"),
        ("print('hello')", "printed no ExecCredential"),
        ("give()", "gave neither token nor clientCertificateData"),
        ("give(clientCertificateData='x')", "come together"),
        ("info['apiVersion'] = 'client.authentication.k8s.io/v1beta1'; give(token='x')", "speaks client.auth"),
        ("sys.stderr.write('x' * 200000); sys.exit(3)", "exited with 3: xxx"),
    ],
)
async def test_a_plugin_that_fails_says_so(tmp_path: Path, body: str, complaint: str) -> None:
    user = plugin(tmp_path, body)
    access = load(tmp_path, kubeconfig=str(kubeconfig(tmp_path, user=user)))
    with pytest.raises(CredentialsError) as told:
        await access.credentials.identity()
    assert complaint in str(told.value)
    assert "plugin.py" in str(told.value)


async def test_a_missing_plugin_comes_with_its_install_hint(tmp_path: Path) -> None:
    user = {"exec": {"command": "no-such-login", "installHint": "get it at X"}}
    access = load(tmp_path, kubeconfig=str(kubeconfig(tmp_path, user=user)))
    with pytest.raises(CredentialsError, match="no-such-login: No such file or directory: get it at X"):
        await access.credentials.identity()


async def test_an_oidc_token_is_kept_while_it_is_good(tmp_path: Path) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 4102444800}).encode()).decode().rstrip("=")
    token = f"e30.{claims}.sig"
    provider = {"name": "oidc", "config": {"id-token": token, "client-id": "c", "idp-issuer-url": "https://issuer"}}
    access = load(tmp_path, kubeconfig=str(kubeconfig(tmp_path, user={"auth-provider": provider})))
    assert (await access.credentials.identity()).authorization == f"Bearer {token}"
