"""A small API client for changes, and clients that wait for a change to arrive; all of it runs inside the guest.

Standard library only, so that the guest's agent imports it in no time. The functions below the class are for
`Host.call`: their arguments and results are JSON. Times are of one process's own clock.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

Object = dict[str, Any]

KINDS = {
    "Namespace": ("/api/v1", "namespaces", False),
    "Node": ("/api/v1", "nodes", False),
    "Service": ("/api/v1", "services", True),
    "Pod": ("/api/v1", "pods", True),
    "Endpoints": ("/api/v1", "endpoints", True),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices", True),
}
_MERGE = "application/merge-patch+json"
_TIMEOUT_S = 10.0
_PATIENCE_S = 25.0
"""A change takes milliseconds; this is for a machine that has much else to do."""
_ENOUGH = 12
_TRY_S = 0.2
"""A SYN that comes too early is unanswered, and the kernel sends the next after a second: better to try anew."""


class ApiError(Exception):
    """The API server refused; the message is its own."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Api:
    """One API server, as a kubeconfig with a token describes it."""

    def __init__(self, kubeconfig: str | Path) -> None:
        config = yaml.safe_load(Path(kubeconfig).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = urlsplit(cluster["server"])
        self._token = user["token"]
        ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=ca)

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Object:
        """The reply's body. Raises ApiError, OSError."""
        connection = http.client.HTTPSConnection(
            self._server.hostname or "", self._server.port, context=self._tls, timeout=_TIMEOUT_S
        )
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            reply: Object = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 400:
            raise ApiError(response.status, reply.get("message", response.reason))
        return reply

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """One object."""
        return self.request("GET", path_of(kind, namespace, name))

    def list(self, kind: str, namespace: str = "") -> list[Object]:
        """All objects of a kind, in a namespace or in all."""
        items: list[Object] = self.request("GET", path_of(kind, namespace))["items"]
        return items

    def apply(self, obj: Object) -> str:
        """Make the object be as given, with its status; returns what was done."""
        kind, metadata = obj["kind"], obj["metadata"]
        namespace = metadata.setdefault("namespace", "default") if KINDS[kind][2] else ""
        path = path_of(kind, namespace, metadata["name"])
        try:
            old = self.request("GET", path)
        except ApiError as error:
            if error.code != 404:
                raise
            stored, done = self.request("POST", path_of(kind, namespace), obj), "created"
        else:
            kept = {"resourceVersion": old["metadata"]["resourceVersion"]}
            stored, done = self.request("PUT", path, {**obj, "metadata": {**metadata, **kept}}), "configured"
        if "status" in obj and kind not in ("Namespace", "Endpoints", "EndpointSlice"):
            self.request("PATCH", f"{path}/status", {"status": obj["status"]}, _MERGE)
        return f"{KINDS[kind][1]}/{stored['metadata']['name']} {done}"

    def patch(self, kind: str, namespace: str, name: str, change: Object, sub: str = "") -> Object:
        """A merge patch; `sub` is `/status` or nothing."""
        return self.request("PATCH", path_of(kind, namespace, name) + sub, change, _MERGE)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object. A Pod begins to terminate; `finish` is its end."""
        self.request("DELETE", path_of(kind, namespace, name))

    def finish(self, namespace: str, pod: str) -> None:
        """What the kubelet does once a terminating pod's containers have ended."""
        self.patch("Pod", namespace, pod, {"metadata": {"finalizers": None}})


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """The path of a collection, or of one object in it."""
    prefix, plural, namespaced = KINDS[kind]
    within = f"/namespaces/{namespace}" if namespaced and namespace else ""
    return f"{prefix}{within}/{plural}" + (f"/{name}" if name else "")


# -- for Host.call


def apply(kubeconfig: str, objects: list[Object]) -> list[str]:
    """Apply objects in order."""
    api = Api(kubeconfig)
    return [api.apply(obj) for obj in objects]


def delete(kubeconfig: str, kind: str, namespace: str, name: str) -> None:
    """Delete one object."""
    Api(kubeconfig).delete(kind, namespace, name)


def finish(kubeconfig: str, namespace: str, pod: str) -> None:
    """Let a terminating pod be gone."""
    Api(kubeconfig).finish(namespace, pod)


def patch(kubeconfig: str, kind: str, namespace: str, name: str, change: Object, sub: str = "") -> None:
    """A merge patch."""
    Api(kubeconfig).patch(kind, namespace, name, change, sub)


def get_all(kubeconfig: str, kind: str) -> list[Object]:
    """All objects of a kind."""
    return Api(kubeconfig).list(kind)


def faults(kubeconfig: str, body: Object) -> Object:
    """Tell the API server stub to misbehave (see its `_faults`)."""
    return Api(kubeconfig).request("POST", "/_faults", body)


def set_ready(kubeconfig: str, namespace: str, pod: str, ready: bool) -> None:
    """A readiness probe's verdict."""
    _set_ready(Api(kubeconfig), namespace, pod, ready)


def _set_ready(api: Api, namespace: str, pod: str, ready: bool) -> None:
    verdict = {"status": {"conditions": [{"type": "Ready", "status": str(ready)}]}}
    api.patch("Pod", namespace, pod, verdict, "/status")


def scale_up(kubeconfig: str, pod: Object, target: str, within_s: float = _PATIENCE_S) -> float:
    """Seconds from a new pod's becoming ready to the first answer from it through `target`."""
    api = Api(kubeconfig)
    status = pod["status"]
    waiting = {**status, "conditions": [{"type": "Ready", "status": "False"}]}
    api.apply({**pod, "status": waiting})
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    started = time.monotonic()
    _set_ready(api, namespace, name, ready=True)
    _await_answer(target, {name}, within_s)
    return time.monotonic() - started


def make_unready(kubeconfig: str, namespace: str, pod: str, target: str, within_s: float = _PATIENCE_S) -> float:
    """Seconds from a failed readiness probe to the last new connection that still reached the pod."""
    started = time.monotonic()
    _set_ready(Api(kubeconfig), namespace, pod, ready=False)
    last = 0.0
    quiet_until = started + 1.0
    while (now := time.monotonic()) < min(quiet_until, started + within_s):
        if ask(target) == pod:
            last = time.monotonic() - started
            quiet_until = now + 1.0
    return last


def replace_service(
    kubeconfig: str, service: Object, dns: str, name: str, within_s: float = _PATIENCE_S
) -> dict[str, float]:
    """Delete a Service, await that its name is gone, make it anew; seconds until each step is seen by a client.

    Args:
        service: what to make, with its new clusterIP.
        dns: the address of cluster DNS.
        name: the Service's name in full.
    """
    api = Api(kubeconfig)
    namespace, own = service["metadata"]["namespace"], service["metadata"]["name"]
    started = time.monotonic()
    api.delete("Service", namespace, own)
    _until(lambda: _resolved(dns, name) == set(), within_s, f"{name} still has an address")
    gone = time.monotonic() - started
    started = time.monotonic()
    api.apply(service)
    address = service["spec"]["clusterIP"]
    _until(lambda: _resolved(dns, name) == {address}, within_s, f"{name} is not {address}")
    resolved = time.monotonic() - started
    _await_answer(f"{address}:{service['spec']['ports'][0]['port']}", set(), within_s)
    return {"gone_s": gone, "resolved_s": resolved, "answered_s": time.monotonic() - started}


def until_answered(_: str, target: str, servers: Sequence[str] = (), within_s: float = _PATIENCE_S) -> None:
    """Returns when somebody (one of `servers`) answers at `target`. Raises TimeoutError."""
    _await_answer(target, set(servers), within_s)


def until_left(_: str, target: str, server: str, within_s: float = _PATIENCE_S) -> None:
    """Returns when `target` leads to others than `server`, so many times on end that it is no chance.

    Raises TimeoutError.
    """
    _until(
        lambda: all((who := ask(target)) and who != server for _ in range(_ENOUGH)),
        within_s,
        f"{target} still leads to {server}",
    )


def ask(target: str, timeout_s: float = 2.0) -> str:
    """The name of the lab server behind `10.96.20.1:80` (TCP), or nothing."""
    address, _, port = target.rpartition(":")
    try:
        with socket.create_connection((address.strip("[]"), int(port)), timeout_s) as connection:
            connection.sendall(b"who\n")
            return connection.recv(4096).split(b" ", 1)[0].decode()
    except OSError:
        return ""


def _await_answer(target: str, wanted: set[str], timeout_s: float) -> None:
    _until(
        lambda: (who := ask(target, _TRY_S)) != "" and (not wanted or who in wanted),
        timeout_s,
        f"no answer from {target}",
    )


def _until(holds: Any, timeout_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {timeout_s:g} s")
        time.sleep(0.001)


def _resolved(dns: str, name: str) -> set[str] | None:
    """The name's addresses; None when no answer came, after which a client would ask again."""
    try:
        return addresses_of(dns, name)
    except OSError:
        return None


def addresses_of(dns: str, name: str) -> set[str]:
    """A records in the answer to one query, from a socket of its own."""
    with dns_socket(dns) as sock:
        return look_up(sock, name)


def dns_socket(dns: str) -> socket.socket:
    """A UDP socket for queries to a server; a second is its patience."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(1.0)
    sock.connect((dns, 53))
    return sock


def look_up(sock: socket.socket, name: str) -> set[str]:
    """A records in the answer to one query. RFC 1035 §4.1; names in the answer are skipped, not read."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"
    query = struct.pack("!6H", 0x2A2A, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", 1, 1)
    sock.send(query)
    reply = sock.recv(4096)
    found, at = set(), len(query)
    for _ in range(struct.unpack_from("!H", reply, 6)[0]):
        while reply[at] and reply[at] < 0xC0:
            at += 1 + reply[at]
        at += 2 if reply[at] else 1
        rtype, _, _, length = struct.unpack_from("!HHIH", reply, at)
        at += 10 + length
        if rtype == 1:
            found.add(socket.inet_ntoa(reply[at - 4 : at]))
    return found
