"""Where the API server is and how we may reach it: kubeconfig, in-cluster service account, overrides, TLS, proxy.

Knows: the order in which configuration is looked for, and how to say what is wrong with it. Must not know: requests
(`api`), watches. Reading and merging kubeconfigs is kubernetes.aio's; it is imported on first use, as that takes half
a second.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kubecore.credentials import (
    Certificate,
    Credentials,
    CredentialsError,
    Exec,
    ExecConfig,
    Fixed,
    Identity,
    Provided,
    TokenFile,
    basic,
    bearer,
)
from kubecore.proxyenv import proxy_for

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class AccessError(Exception):
    """The configuration does not lead to an API server; the message names the file and field, and the remedy."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server proves itself, and with which files we do. Files are read again when they change."""

    ca_file: Path | None = None
    """None, and no `ca_pem`: the system's certificate authorities."""
    ca_pem: str = ""
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""
    """The name to expect in the certificate, where it is not the URL's host."""
    verify: bool = True

    def fingerprint(self) -> tuple[object, ...]:
        """Differs from an earlier one where one of the files was replaced meanwhile."""
        return tuple(_stamp(f) for f in (self.ca_file, self.cert_file, self.key_file))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@dataclass(frozen=True, slots=True)
class Access:
    """Everything needed to talk to one API server."""

    server: str
    """URL without a trailing slash; may have a path (a cluster behind a gateway)."""
    credentials: Credentials
    origin: str
    """Where this was found, for logs: a file and context, or the service account."""
    tls: Tls = Tls()
    proxy: str | None = None


def load_access(
    *,
    kubeconfig: str = "",
    context: str = "",
    server: str = "",
    environ: Mapping[str, str] = os.environ,
    service_account: Path = SERVICE_ACCOUNT,
) -> Access:
    """The access found first: `kubeconfig`, the pod's service account, $KUBECONFIG or ~/.kube/config, a bare `server`.

    Args:
        kubeconfig: path given by the operator; then nothing else is looked at.
        context: a context other than the current one.
        server: URL or host:port that replaces the one found, to reach the API server before its Service works.
        environ: read for KUBERNETES_SERVICE_HOST and _PORT, KUBECONFIG, HOME and the proxy variables.
        service_account: the directory the kubelet mounts.

    Raises:
        AccessError: nothing was found, or what was found is wrong or may not be read.
    """
    try:
        return _first_found(kubeconfig, context, _normalized(server), environ, service_account)
    except OSError as error:
        raise AccessError(f"{error.filename}: {error.strerror}: make it readable, or give a kubeconfig") from error


def _first_found(
    kubeconfig: str, context: str, server: str, environ: Mapping[str, str], service_account: Path
) -> Access:
    if kubeconfig:
        if not Path(kubeconfig).is_file():
            raise AccessError(f"kubeconfig {kubeconfig}: no such file")
        return _from_kubeconfig(kubeconfig, context, server, environ)
    if (server or environ.get("KUBERNETES_SERVICE_HOST")) and (service_account / "token").is_file():
        return _from_service_account(service_account, server, environ)
    paths = environ.get("KUBECONFIG") or str(Path(environ.get("HOME", "/")) / ".kube" / "config")
    if any(Path(p).is_file() for p in paths.split(":") if p):
        return _from_kubeconfig(paths, context, server, environ)
    if server:
        return Access(server, Fixed(), "the server given", proxy=_proxy("", server, environ))
    if environ.get("KUBERNETES_SERVICE_HOST"):
        raise AccessError(
            f"this is a pod (KUBERNETES_SERVICE_HOST is set) but {service_account}/token does not exist: "
            "set automountServiceAccountToken: true, or give a kubeconfig"
        )
    raise AccessError(
        f"no way to an API server found: no kubeconfig given, not in a pod, {paths} does not exist: give a kubeconfig"
    )


def _normalized(server: str) -> str:
    if not server:
        return ""
    url = server if "://" in server else f"https://{server}"
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise AccessError(f"server {server!r} is no http or https URL")
    return url.rstrip("/")


def _proxy(configured: str, server: str, environ: Mapping[str, str]) -> str | None:
    proxy = configured or proxy_for(server, environ)
    if proxy and urlsplit(proxy).scheme not in {"http", "https"}:
        raise AccessError(f"proxy {proxy}: only http and https proxies are supported; use one, or add to NO_PROXY")
    return proxy or None


# -- in a pod


def _from_service_account(directory: Path, server: str, environ: Mapping[str, str]) -> Access:
    ca_file = directory / "ca.crt"
    if not ca_file.is_file():
        raise AccessError(f"{ca_file} does not exist: is the kube-root-ca.crt ConfigMap projected into the volume?")
    if not server:
        host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT") or "443"
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(
        server,
        TokenFile(directory / "token"),
        f"service account in {directory}",
        Tls(ca_file=ca_file),
        _proxy("", server, environ),
    )


# -- kubeconfig


def _from_kubeconfig(paths: str, context: str, server: str, environ: Mapping[str, str]) -> Access:
    import yaml  # noqa: PLC0415
    from kubernetes.aio.config.config_exception import ConfigException  # noqa: PLC0415
    from kubernetes.aio.config.kube_config import KubeConfigMerger  # noqa: PLC0415

    try:
        merged = KubeConfigMerger(paths).config
    except (OSError, yaml.YAMLError) as error:
        raise AccessError(f"kubeconfig {paths}: {error}") from error
    except (TypeError, AttributeError, KeyError) as error:
        raise AccessError(f"kubeconfig {paths}: is empty or no mapping with clusters, contexts and users") from error
    if merged is None or not isinstance(merged.value, dict):
        raise AccessError(f"kubeconfig {paths}: is empty or no mapping")
    try:
        name = context or merged.safe_get("current-context")
        if not name:
            raise AccessError(f"kubeconfig {paths}: has no current-context: set it, or name a context")
        chosen = merged["contexts"].get_with_name(name)["context"]
        cluster = merged["clusters"].get_with_name(chosen["cluster"])
        user_name = chosen.safe_get("user")
        user = merged["users"].get_with_name(user_name, safe=True) if user_name else None
        where = f"kubeconfig {cluster.path}: cluster {chosen['cluster']!r}"
        cluster_fields = _Fields(cluster["cluster"].value or {}, Path(cluster.path), where)
        url = server or _normalized(cluster_fields.text("server"))
    except (ConfigException, AttributeError, TypeError) as error:
        raise AccessError(f"kubeconfig {paths}: {error}") from error
    if not url:
        raise AccessError(f"{where}: has no server")
    if user_name and user is None:
        raise AccessError(f"kubeconfig {paths}: context {name!r} names user {user_name!r}, which is not among users")
    user_value = user.value.get("user") if user is not None else None
    user_path = Path(user.path) if user is not None else Path(cluster.path)
    user_fields = _Fields(user_value or {}, user_path, f"kubeconfig {user_path}: user {user_name!r}")
    tls = _tls(cluster_fields, user_fields)
    credentials = _credentials(user_fields, cluster_fields, url, merged, name)
    if isinstance(credentials, Fixed) and (inline := _inline_certificate(user_fields)):
        credentials = Fixed(credentials.value._replace(certificate=inline))
    return Access(
        url,
        credentials,
        f"kubeconfig {paths}, context {name}",
        tls,
        _proxy(cluster_fields.text("proxy-url"), url, environ),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """A mapping of a kubeconfig that complains with file and field."""

    value: Mapping[str, Any]
    path: Path
    where: str

    def text(self, field: str) -> str:
        value = self.value.get(field)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise AccessError(f"{self.where}: {field} is no string")
        return value

    def pem(self, field: str) -> str:
        """A base64 field, decoded."""
        text = self.text(field)
        try:
            return base64.b64decode(text, validate=True).decode() if text else ""
        except (binascii.Error, UnicodeDecodeError) as error:
            raise AccessError(f"{self.where}: {field} is no base64 of a PEM text: {error}") from error

    def file(self, field: str) -> Path | None:
        """A path, relative to the kubeconfig's directory."""
        text = self.text(field)
        if not text:
            return None
        path = self.path.parent / text
        if not path.is_file():
            raise AccessError(f"{self.where}: {field}: {path} does not exist")
        return path


def _tls(cluster: _Fields, user: _Fields) -> Tls:
    ca_pem = cluster.pem("certificate-authority-data")
    inline = _inline_certificate(user)
    return Tls(
        ca_file=None if ca_pem else cluster.file("certificate-authority"),
        ca_pem=ca_pem,
        cert_file=None if inline else user.file("client-certificate"),
        key_file=None if inline else user.file("client-key"),
        server_name=cluster.text("tls-server-name"),
        verify=not cluster.value.get("insecure-skip-tls-verify"),
    )


def _inline_certificate(user: _Fields) -> Certificate | None:
    """The client certificate where at least one half is inline; the other may be a file."""
    chain, key = user.pem("client-certificate-data"), user.pem("client-key-data")
    if not chain and not key:
        return None
    chain_file, key_file = user.file("client-certificate"), user.file("client-key")
    chain = chain or (chain_file.read_text() if chain_file else "")
    key = key or (key_file.read_text() if key_file else "")
    if not chain or not key:
        raise AccessError(f"{user.where}: client-certificate(-data) and client-key(-data) are needed together")
    return Certificate(chain, key)


def _credentials(user: _Fields, cluster: _Fields, server: str, merged: Any, context: str) -> Credentials:
    """The user's credentials, in client-go's order of precedence."""
    if token_file := user.text("tokenFile"):
        return TokenFile(user.path.parent / token_file)
    if token := user.text("token"):
        return bearer(token)
    if username := user.text("username"):
        return basic(username, user.text("password"))
    if "exec" in user.value:
        try:
            config = msgspec.convert(user.value["exec"], ExecConfig)
        except msgspec.ValidationError as error:
            raise AccessError(f"{user.where}: exec: {error}") from error
        return Exec(config, _exec_cluster(cluster, server), user.path.parent)
    if "auth-provider" in user.value:
        return Provided(_auth_provider(merged, context, user.where))
    return Fixed(Identity())


def _exec_cluster(cluster: _Fields, server: str) -> dict[str, Any]:
    """ExecCredential `spec.cluster`."""
    info: dict[str, Any] = {"server": server}
    if ca := cluster.text("certificate-authority-data"):
        info["certificate-authority-data"] = ca
    elif ca_file := cluster.file("certificate-authority"):
        info["certificate-authority-data"] = base64.b64encode(ca_file.read_bytes()).decode()
    for field in ("tls-server-name", "proxy-url", "insecure-skip-tls-verify"):
        if cluster.value.get(field):
            info[field] = cluster.value[field]
    return info


def _auth_provider(merged: Any, context: str, where: str) -> Any:
    """A function that gives kubernetes.aio's token for an auth-provider (OIDC), renewed when it expires."""
    from kubernetes.aio.client import Configuration  # noqa: PLC0415
    from kubernetes.aio.config.kube_config import KubeConfigLoader  # noqa: PLC0415

    loader = KubeConfigLoader(config_dict=merged, active_context=context, config_base_path=None)

    async def token() -> str:
        configuration = Configuration()
        try:
            await loader.load_and_set(configuration)
            authorization: str = configuration.api_key["BearerToken"]
        except Exception as error:  # providers raise whatever their HTTP and JWT code raises
            raise CredentialsError(f"{where}: auth-provider: {str(error) or type(error).__name__}") from error
        return authorization.removeprefix("Bearer ")

    return token
