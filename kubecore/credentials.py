"""Who we are to the API server: tokens, token files that rotate, exec plugins, client certificates.

Knows: how each kind is obtained and when it is stale. Must not know: where the server is (`access`) or requests
(`api`).

Sources: Kubernetes "Authenticating" and "client-go credential plugins" (client.authentication.k8s.io), KEP-541.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

_EXEC_TIMEOUT_S = 60.0
_EXPIRY_MARGIN_S = 10.0
"""A credential about to expire is renewed so much earlier, to arrive while it is still good."""


class CredentialsError(Exception):
    """No credential could be obtained now; the message says from where, why, and what to do. Worth retrying."""


class Certificate(NamedTuple):
    """A client certificate and its key, both PEM."""

    chain_pem: str
    key_pem: str


class Identity(NamedTuple):
    """What a request shows to the server."""

    authorization: str | None = None
    """The Authorization header; None: none."""
    certificate: Certificate | None = None


class Credentials(Protocol):
    """A way to get an Identity."""

    async def identity(self) -> Identity:
        """The identity to use now. Cheap, so ask for every request. Raises CredentialsError."""

    def refused(self) -> bool:
        """Told that the server answered 401: forget what is cached. True if asking again can give something else."""


ANONYMOUS = Identity()


@dataclass(frozen=True, slots=True)
class Fixed:
    """An identity that stays as it is."""

    value: Identity = ANONYMOUS

    async def identity(self) -> Identity:
        """As given."""
        return self.value

    def refused(self) -> bool:
        """There is nothing else."""
        return False


def bearer(token: str) -> Fixed:
    """A token that does not change."""
    return Fixed(Identity(f"Bearer {token}"))


def basic(username: str, password: str) -> Fixed:
    """A user name and password."""
    return Fixed(Identity("Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()))


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token in a file which somebody (the kubelet) replaces before it expires."""

    path: Path

    async def identity(self) -> Identity:
        """The file's content now: requests are rare (one a watch every few minutes), so nothing is cached."""
        try:
            token = self.path.read_text().strip()
        except OSError as error:
            raise CredentialsError(f"token file {self.path}: {error.strerror}: is the volume mounted?") from error
        if not token:
            raise CredentialsError(f"token file {self.path} is empty: whoever writes it has not done so yet")
        return Identity(f"Bearer {token}")

    def refused(self) -> bool:
        """The next request reads the file anyway."""
        return False


@dataclass(frozen=True, slots=True)
class Provided:
    """A token from a function that renews it itself (OIDC and the like)."""

    token: Callable[[], Awaitable[str]]

    async def identity(self) -> Identity:
        """The function's token."""
        return Identity(f"Bearer {await self.token()}")

    def refused(self) -> bool:
        """The function decides by its token's expiry alone."""
        return False


class _ExecStatus(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    status: _ExecStatus


class _EnvVar(msgspec.Struct):
    name: str
    value: str = ""


class ExecConfig(msgspec.Struct, rename="camel"):
    """`users[].user.exec` of a kubeconfig."""

    command: str
    api_version: str = "client.authentication.k8s.io/v1"
    args: list[str] | None = None
    env: list[_EnvVar] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False


@dataclass(slots=True)
class Exec:
    """A credential plugin: a program that prints an ExecCredential, which is kept until it expires or is refused."""

    config: ExecConfig
    cluster: Mapping[str, Any]
    """`spec.cluster` for plugins that want to know where we connect to."""
    directory: Path
    """A command with a slash that is not absolute is relative to this, the kubeconfig's directory."""
    wall_clock: Callable[[], float] = time.time
    _cached: Identity | None = None
    _expires_s: float | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def identity(self) -> Identity:
        """The plugin's last answer, or a new one. The plugin runs once, however many requests wait for it."""
        async with self._lock:
            fresh = self._expires_s is None or self.wall_clock() < self._expires_s - _EXPIRY_MARGIN_S
            if self._cached is None or not fresh:
                self._cached = await self._run()
            return self._cached

    def refused(self) -> bool:
        """The plugin is asked again before the next request."""
        self._cached = None
        return True

    async def _run(self) -> Identity:
        command = self.config.command
        if "/" in command and not command.startswith("/"):
            command = str(self.directory / command)
        name = f"exec plugin {command}"
        output = await self._output(name, command)
        try:
            credential = msgspec.json.decode(output, type=_ExecCredential)
        except msgspec.DecodeError as error:
            raise CredentialsError(f"{name} printed no ExecCredential: {error}") from error
        if credential.api_version != self.config.api_version:
            raise CredentialsError(
                f"{name} speaks {credential.api_version}, the kubeconfig says {self.config.api_version}: let them agree"
            )
        status = credential.status
        if bool(status.client_certificate_data) != bool(status.client_key_data):
            raise CredentialsError(f"{name}: clientCertificateData and clientKeyData come together or not at all")
        if not status.token and not status.client_key_data:
            raise CredentialsError(f"{name} gave neither token nor clientCertificateData")
        self._expires_s = status.expiration_timestamp.timestamp() if status.expiration_timestamp else None
        return Identity(
            f"Bearer {status.token}" if status.token else None,
            Certificate(status.client_certificate_data, status.client_key_data) if status.client_key_data else None,
        )

    async def _output(self, name: str, command: str) -> bytes:
        spec: dict[str, Any] = {"interactive": False}
        if self.config.provide_cluster_info:
            spec["cluster"] = dict(self.cluster)
        info = {"apiVersion": self.config.api_version, "kind": "ExecCredential", "spec": spec}
        environ = {**os.environ, **{e.name: e.value for e in self.config.env or ()}}
        environ["KUBERNETES_EXEC_INFO"] = msgspec.json.encode(info).decode()
        try:
            process = await asyncio.create_subprocess_exec(
                command,
                *(self.config.args or ()),
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            hint = self.config.install_hint.strip() or "install it or correct users[].user.exec.command"
            raise CredentialsError(f"{name}: {error.strerror}: {hint}") from error
        try:
            async with asyncio.timeout(_EXEC_TIMEOUT_S):
                stdout, stderr = await process.communicate()
        except TimeoutError as error:
            raise CredentialsError(f"{name} did not finish within {_EXEC_TIMEOUT_S:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = stderr.decode("utf-8", "replace").strip() or "and said nothing"
            raise CredentialsError(f"{name} exited with {process.returncode}: {said[-500:]}")
        return stdout
