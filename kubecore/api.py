"""Requests to one API server: a GET whose body streams, and small requests with a JSON answer.

Knows: HTTP by way of kubernetes.aio's transport, TLS files that are replaced while running, and how to tell a failed
connection from an error the server named. Must not know: lists and watches (`watchproto`), retries (its callers').
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
import structlog
from yarl import URL

from kubecore import log
from kubecore.access import Access, AccessError
from kubecore.credentials import Certificate, CredentialsError
from kubecore.throttle import Limits, Throttle

_LOG = structlog.get_logger()

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 30.0
_READ_BUFFER_BYTES = 256 * 1024
"""Bounds a chunk, and with it how long taking one in keeps the event loop."""


class ConnectionFailed(Exception):  # noqa: N818 - says what happened
    """There is no answer, or it broke off; the message says why. Worth retrying."""


class ApiError(Exception):
    """The server answered with an error.

    Attributes:
        status: the HTTP status.
        reason: metav1.Status.reason (`NotFound`, `Conflict`, `AlreadyExists` …); empty where the body is no Status.
        message: what the server wrote.
        retry_after_s: the Retry-After header; None without one.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {reason or 'error'}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class Exchange(NamedTuple):
    """One request, when its answer has begun or failed to."""

    method: str
    host: str
    """Host and port of the server."""
    status: int
    """0: there was no answer."""
    waited_s: float
    """For its turn, where requests are limited."""
    took_s: float
    """From then until the answer began; the rest of a watch is no delay."""


class StreamedAnswer:
    """The head of an answer; the body is read from `chunks` as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status: int = response.status
        self.retry_after_s: float | None = _seconds(response.headers.get("Retry-After"))

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes, at most a few hundred kB at a time. Raises ConnectionFailed where it breaks off."""
        with _told(str(self._response.url.origin())):
            async for chunk in self._response.content.iter_any():
                yield chunk


@dataclass(slots=True)
class _Transport:
    """One connection pool with its TLS settings; closed when it was replaced and its last request is done."""

    rest: Any
    made_for: tuple[object, ...]
    in_use: int = 0


class ApiClient:
    """Talks to the API server of an Access. Use as an async context manager, or `close` it."""

    def __init__(
        self,
        access: Access,
        *,
        user_agent: str,
        limits: Limits | None = None,
        observe: Callable[[Exchange], object] = lambda _exchange: None,
    ) -> None:
        """Nothing is connected before the first request.

        Args:
            access: from `access.load_access`.
            user_agent: `ipvsproxy/1.2`; shows in the server's audit log.
            limits: of requests; None: none.
            observe: told of every request; for metrics.
        """
        self.access = access
        self._host = URL(access.server).authority
        self._throttle = Throttle(limits or Limits())
        self.observe = observe
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}
        self._transport: _Transport | None = None
        self._retired: list[_Transport] = []
        _LOG.info(
            log.API_ACCESS_LOADED, server=access.server, origin=access.origin, proxy=_without_userinfo(access.proxy)
        )

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        transports = [*self._retired, *([self._transport] if self._transport else [])]
        self._retired, self._transport = [], None
        for transport in transports:
            await transport.rest.close()

    # -- requests

    @asynccontextmanager
    async def get(self, path: str, query: Sequence[tuple[str, str]] = ()) -> AsyncIterator[StreamedAnswer]:
        """The answer to a GET, whatever its status, with the body still to come. No limit in time but for connecting.

        Raises:
            ConnectionFailed: there is no answer.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with self._send("GET", path, query, {}, None, timeout) as response:
            yield StreamedAnswer(response)

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        content_type: str = "application/json",
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        """The decoded JSON answer; None where it is empty.

        Args:
            method: GET, POST, PUT, PATCH or DELETE.
            path: `/api/v1/namespaces/default/events`.
            body: what to send, as JSON.
            query: parameters of the URL.
            content_type: for PATCH `application/merge-patch+json`, `application/strategic-merge-patch+json` or
                `application/json-patch+json`.
            timeout_s: for the whole exchange.

        Raises:
            ApiError: the server refused.
            ConnectionFailed: there is no answer, or not in time.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._send(method, path, query, {"Content-Type": content_type}, body, timeout) as response:
            with _told(self.access.server):
                data = await response.read()
            if response.status >= 300:
                raise _api_error(response.status, data, _seconds(response.headers.get("Retry-After")))
        try:
            return msgspec.json.decode(data) if data else None
        except msgspec.DecodeError as error:
            raise ConnectionFailed(f"{self.access.server}: the answer is no JSON: {error}") from error

    # -- inside

    @asynccontextmanager
    async def _send(  # noqa: PLR0917 - one exchange has these parts
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: Any,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's, not ours
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = self.access.server + path + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        for attempt in (1, 2):
            try:
                identity = await self.access.credentials.identity()
            except CredentialsError as error:
                raise ConnectionFailed(str(error)) from error
            sent = {**self._headers, **headers}
            if identity.authorization:
                sent["Authorization"] = identity.authorization
            transport = await self._current(identity.certificate)
            transport.in_use += 1
            try:
                async with self._throttle.admit() as waited_s:
                    began_s, status = time.monotonic(), 0
                    try:
                        with _told(self.access.server):
                            answer = await transport.rest.request(
                                method, URL(url, encoded=True), headers=sent, body=body, _request_timeout=timeout
                            )
                        status = answer.response.status
                    finally:
                        self.observe(Exchange(method, self._host, status, waited_s, time.monotonic() - began_s))
                response: aiohttp.ClientResponse = answer.response
                try:
                    if response.status == 401 and attempt == 1 and self.access.credentials.refused():
                        continue
                    yield response
                    return
                finally:
                    # Not release(): the rest of a watch would be waited for. A body read to its end has released
                    # itself.
                    response.close()
            finally:
                transport.in_use -= 1
                await self._close_idle()

    async def _current(self, certificate: Certificate | None) -> _Transport:
        """The connection pool for this certificate and the TLS files as they are now."""
        tls = self.access.tls
        made_for = (certificate, *tls.fingerprint())
        if self._transport is not None:
            if self._transport.made_for == made_for:
                return self._transport
            _LOG.info(log.API_TRANSPORT_REPLACED, server=self.access.server)
            self._retired.append(self._transport)
            self._transport = None
        try:
            rest = _rest_client(self.access, certificate)
        except (OSError, ssl.SSLError) as error:
            raise ConnectionFailed(f"{_tls_files(self.access)}: {error}") from error
        self._transport = _Transport(rest, made_for)
        await self._close_idle()
        return self._transport

    async def _close_idle(self) -> None:
        idle = [t for t in self._retired if not t.in_use]
        self._retired = [t for t in self._retired if t.in_use]
        for transport in idle:
            await transport.rest.close()


def _rest_client(access: Access, certificate: Certificate | None) -> Any:
    """kubernetes.aio's transport, configured; imported here because that takes half a second."""
    from kubernetes.aio.client import Configuration  # noqa: PLC0415
    from kubernetes.aio.client.rest import RESTClientObject  # noqa: PLC0415

    tls = access.tls
    configuration = Configuration(host=access.server)
    configuration.ssl_ca_cert = str(tls.ca_file) if tls.ca_file else None
    configuration.ca_cert_data = tls.ca_pem or None
    configuration.verify_ssl = tls.verify
    # Go's TLS, which every other client of the server uses, does not insist on RFC 5280's optional extensions either.
    configuration.disable_strict_ssl_verification = True
    configuration.tls_server_name = tls.server_name or None
    configuration.proxy = access.proxy
    # No trust_env: proxies were decided by `access`, and a ~/.netrc must not replace our Authorization header.
    configuration.client_session_kwargs = {"trust_env": False, "read_bufsize": _READ_BUFFER_BYTES}
    if certificate is None:
        configuration.cert_file = str(tls.cert_file) if tls.cert_file else None
        configuration.key_file = str(tls.key_file) if tls.key_file else None
        return RESTClientObject(configuration)
    with _in_memory(certificate.chain_pem) as chain, _in_memory(certificate.key_pem) as key:
        configuration.cert_file, configuration.key_file = chain, key
        return RESTClientObject(configuration)


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A path under which `text` can be read for a while; a key never touches a disk, and the root may be read-only."""
    fd = os.memfd_create("pem")
    try:
        os.write(fd, text.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@contextmanager
def _told(server: str) -> Iterator[None]:
    """Turn what aiohttp and the sockets raise into ConnectionFailed with a sentence for people."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise ConnectionFailed(
            f"{server}: its certificate is not accepted: {error.certificate_error}: "
            "check certificate-authority and tls-server-name"
        ) from error
    except aiohttp.ClientProxyConnectionError as error:
        raise ConnectionFailed(f"{server}: the proxy is not reachable: {error}") from error
    except aiohttp.ClientConnectorSSLError as error:  # its number is OpenSSL's, not the system's
        reason = f"no TLS connection: {error.strerror}: check that the server speaks https"
        raise ConnectionFailed(f"{server}: {reason}") from error
    except aiohttp.ClientConnectorError as error:
        named = error.errno is not None and error.errno > 0  # look-up failures have numbers of their own
        reason = os.strerror(error.errno or 0) if named else error.strerror or str(error)
        raise ConnectionFailed(f"{server}: {reason}") from error
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
        raise ConnectionFailed(f"{server}: the connection broke") from error
    except aiohttp.ConnectionTimeoutError as error:
        raise ConnectionFailed(f"{server}: no connection within {CONNECT_TIMEOUT_S:.0f} s") from error
    except TimeoutError as error:
        raise ConnectionFailed(f"{server}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ConnectionFailed(f"{server}: {str(error) or type(error).__name__}") from error


def _api_error(status: int, body: bytes, retry_after_s: float | None) -> ApiError:
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = None
    if isinstance(told, dict) and told.get("kind") == "Status":
        return ApiError(status, str(told.get("reason") or ""), str(told.get("message") or ""), retry_after_s)
    return ApiError(status, "", body[:200].decode("utf-8", "replace").strip(), retry_after_s)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; API servers never send the date form."""
    return float(header) if header and header.isascii() and header.isdigit() else None


def _tls_files(access: Access) -> str:
    tls = access.tls
    files = [str(f) for f in (tls.ca_file, tls.cert_file, tls.key_file) if f]
    return f"{access.origin}: certificates" + (f" ({', '.join(files)})" if files else "")


def _without_userinfo(url: str | None) -> str | None:
    return str(URL(url).with_user(None)) if url else None


__all__ = ["Access", "AccessError", "ApiClient", "ApiError", "ConnectionFailed", "Exchange", "StreamedAnswer"]
