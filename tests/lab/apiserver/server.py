"""The API server stub: HTTP in front of a Cluster.

What a client of a real kube-apiserver can observe of list, watch and the write verbs is meant to be the same here:
versions, pages, bookmarks, Status bodies, expiry, selectors. Known differences: no protobuf, no Tables, no field
management (an apply is a merge), Pods are deleted at once, unknown fields are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Self

import msgspec
import yaml
from aiohttp import web

from tests.lab.apiserver import discovery, status
from tests.lab.apiserver.cluster import Cluster, Target
from tests.lab.apiserver.faults import Fault, Faults
from tests.lab.apiserver.kinds import Kind, Object
from tests.lab.apiserver.rbac import ANONYMOUS, Asked, Policy, Recorded, User, user_of
from tests.lab.apiserver.reading import list_body, selection
from tests.lab.apiserver.selectors import named
from tests.lab.apiserver.status import Refusal
from tests.lab.apiserver.tls import Authority, kubeconfig
from tests.lab.apiserver.watching import WatchResponse, open_watch

_OPEN_PATHS = ("/healthz", "/livez", "/readyz")
_WRITES = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_REASONS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout", 410: "Expired"}


class _Route(NamedTuple):
    """Where a request goes. Without a kind: to an access review."""

    kind: Kind | None
    asked: Asked
    target: Target


class ApiServer(Cluster):
    """One stub. Use as an async context manager; `url` is where it listens."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: bool = False,
        names: Iterable[str] = (),
        tokens: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        watch_list: bool = True,
        service_fields: bool = True,
        bookmark_interval_s: float = 60.0,
        service_cidrs: Iterable[str] = ("10.96.0.0/16",),
        bootstrap: bool = False,
    ) -> None:
        """Nothing listens before `start`.

        Args:
            host: address to listen on.
            port: 0: any.
            tls: serve https with a certificate of `authority`, for the address, localhost and `names`.
            names: more names and addresses for the certificate.
            tokens: token → user name. Given any, a request without one of them (or a client certificate) is a 401.
            policy: RBAC; None allows everything.
            watch_list: whether the WatchList feature gate is on (streaming lists).
            service_fields: whether Services can be selected by spec.clusterIP and spec.type (Kubernetes 1.31).
            bookmark_interval_s: seconds between bookmarks of a watch.
            service_cidrs: ranges for cluster addresses.
            bootstrap: begin with the namespaces, the ServiceCIDR and the `kubernetes` Service of a fresh cluster, and
                demand that namespaces exist and given cluster addresses are in range.
        """
        super().__init__(service_cidrs, bootstrap=bootstrap)
        if not service_fields:
            kind = self.registry.at("", "v1", "services")
            assert kind is not None
            self.registry.add(replace(kind, selectable=()))
        self.host, self.port = host, port
        self.tokens = dict(tokens or {})
        self.policy = policy
        self.watch_list = watch_list
        self.bookmark_interval_s = bookmark_interval_s
        self.faults = Faults()
        self.recorded: list[Recorded] = []
        """Every API request that was answered, in order of their ends; for comparison with a role."""
        self.arrivals: list[tuple[float, Asked]] = []
        """Every API request, in order of arrival (monotonic seconds)."""
        self.authority = Authority() if tls else None
        self._names = {host, "127.0.0.1", "::1", "localhost", "kubernetes.default.svc", *names}
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    # -- running

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.authority else 'http'}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=8 * 2**20)
        app.router.add_route("*", "/_faults", self._serve_faults)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await self.listen()

    async def listen(self) -> None:
        """Accept connections (again, on the same port)."""
        assert self._runner is not None
        context = self.authority.server_context(self._names) if self.authority else None
        self._site = web.TCPSite(self._runner, self.host, self.port, ssl_context=context, reuse_address=True)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def refuse(self) -> None:
        """Break every connection, idle ones too, and refuse new ones until `listen`."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        self.break_connections()

    def break_connections(self) -> None:
        """Cut what is under way, in the middle of whatever is being sent."""
        server = self._runner.server if self._runner is not None else None
        for connection in server.connections if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def restart(self, *, lose_history: bool = False, down_s: float = 0.0) -> None:
        """Stop and start; with `lose_history` every resourceVersion handed out before is too old afterwards."""
        await self.refuse()
        if lose_history:
            self.storage.version += 1
            self.storage.compact()
        if down_s:
            await asyncio.sleep(down_s)
        await self.listen()

    async def stop(self) -> None:
        """End."""
        self.faults.clear()
        self.break_connections()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def kubeconfig(self, user: Object | None = None, **cluster: Any) -> str:
        """A kubeconfig for this server; `user` defaults to the first token."""
        if user is None:
            user = {"token": next(iter(self.tokens))} if self.tokens else {}
        ca_pem = self.authority.pem if self.authority else ""
        return kubeconfig(self.url, ca_pem=ca_pem, user=user, cluster=cluster)

    # -- requests

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        code, asked, user = 500, Asked(request.method.lower(), path=request.path), ANONYMOUS
        arrived_s = time.monotonic()
        try:
            user = self._authenticate(request)
            route = self._route(request)
            if route is None:
                code = 200
                return self._serve_no_resource(request)
            asked = route.asked
            self.arrivals.append((arrived_s, asked))
            self._authorize(user, asked)
            response = await self._answer(request, route)
            code = response.status
        except Refusal as refusal:
            code = refusal.code
            headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
            return web.json_response(refusal.body(), status=refusal.code, headers=headers)
        else:
            return response
        finally:
            agent = request.headers.get("User-Agent", "")
            self.recorded.append(Recorded(asked, user.name, code, request.query_string, agent))

    def _authenticate(self, request: web.Request) -> User:
        if request.path.startswith(_OPEN_PATHS):
            return ANONYMOUS
        ssl_object = request.transport.get_extra_info("ssl_object") if request.transport else None
        if ssl_object is not None and (certificate := ssl_object.getpeercert()):
            subject = [pair for rdn in certificate["subject"] for pair in rdn]
            name = next(v for k, v in subject if k == "commonName")
            groups = tuple(v for k, v in subject if k == "organizationName")
            return User(name, ("system:authenticated", *groups))
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token in self.tokens:
            return user_of(self.tokens[token])
        if self.tokens:
            raise status.unauthorized()
        return ANONYMOUS

    def _authorize(self, user: User, asked: Asked) -> None:
        if self.policy is None or self.policy.allows(user, asked):
            return
        where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
        name = f' "{asked.name}"' if asked.name else ""
        qualified = f"{asked.resource}.{asked.group}" if asked.group else asked.resource
        message = (
            f'{qualified}{name} is forbidden: User "{user.name}" cannot {asked.verb} resource "{asked.resource}" '
            f'in API group "{asked.group}" {where}'
        )
        details = {"name": asked.name, "group": asked.group, "kind": asked.resource}
        raise Refusal(403, "Forbidden", message, details=details)

    def _route(self, request: web.Request) -> _Route | None:
        """Where to; None for a path that is no resource's. Raises Refusal (404, 405)."""
        parts = [p for p in request.path.split("/") if p]
        if parts[:1] == ["api"] and len(parts) > 2:
            group, version, rest = "", parts[1], parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return None
        if group == "authorization.k8s.io" and rest == ["selfsubjectaccessreviews"]:
            return _Route(None, Asked("create", group, rest[0]), Target("", ""))
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        kind = self.registry.at(group, version, rest[0])
        if kind is None or (namespace and not kind.namespaced) or len(rest) > 3:
            raise status.no_such_path()
        _, name, sub = (*rest, "", "")[:3]
        if (sub and not (sub == "status" and kind.status)) or (name and kind.namespaced and not namespace):
            raise status.no_such_path()
        verb = _verb(request, name)
        resource = f"{kind.plural}/{sub}" if sub else kind.plural
        by_selector = verb in ("list", "watch", "deletecollection")
        asked_name = named(request.query.get("fieldSelector", "")) if by_selector and not name else name
        asked_namespace = name if kind.storage_key == "/namespaces" else namespace
        return _Route(kind, Asked(verb, group, resource, asked_namespace, asked_name), Target(namespace, name, sub))

    def _serve_no_resource(self, request: web.Request) -> web.Response:
        if request.path.startswith(_OPEN_PATHS):
            return web.Response(text="ok")
        if request.path.startswith(discovery.PATHS):
            parts = [p for p in request.path.split("/") if p]
            return web.json_response(discovery.document(self.registry, parts))
        raise status.no_such_path()

    async def _answer(self, request: web.Request, route: _Route) -> web.StreamResponse:
        kind, asked, target = route
        fault = self.faults.take(asked.resource, asked.verb, continued="continue" in request.query)
        if fault is not None:
            _strike_early(fault)
        if kind is None:
            return await self._review(request)
        dry_run = request.query.get("dryRun") == "All"
        match asked.verb:
            case "watch":
                return await self._watch(request, kind, target, fault)
            case "list":
                return await self._list(request, kind, target, fault)
            case "get":
                return _json_response(self.shown(kind, self.get(kind, target).value))
            case "create":
                return _json_response(
                    self.create_in(kind, target.namespace, await _body(request), dry_run=dry_run), 201
                )
            case "update":
                return _json_response(self.update(kind, target, await _body(request), dry_run=dry_run))
            case "patch":
                content_type = request.headers.get("Content-Type", "").partition(";")[0].strip()
                applies = content_type == "application/apply-patch+yaml"
                if applies and not request.query.get("fieldManager"):
                    raise status.bad_request("PatchOptions is invalid: fieldManager: Required value")
                created = applies and self.find(kind, target.namespace, target.name) is None
                patched = self.patch(kind, target, content_type, await _body(request), dry_run=dry_run)
                return _json_response(patched, 201 if created else 200)
            case "delete":
                return _json_response(self.delete_target(kind, target, await _body(request, optional=True)))
            case _:
                return _json_response(self.delete_selected(kind, selection(request.query, kind, target.namespace)))

    async def _list(self, request: web.Request, kind: Kind, target: Target, fault: Fault | None) -> web.StreamResponse:
        body = list_body(self.storage, kind, target.namespace, request.query)
        if fault is not None and fault.what == "garbage":
            return web.Response(body=b"<html>not the API", content_type="text/html")
        if fault is not None and fault.what == "slow":
            await self.faults.pause(fault.seconds)
        if fault is None or fault.what not in ("cut", "eof", "stall"):
            return web.Response(body=body, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if fault.what == "stall":
            await self.faults.pause(fault.seconds)
        if fault.what != "eof" and request.transport is not None:
            request.transport.abort()
        return response  # eof: half a document in good order, which only its syntax betrays

    async def _watch(self, request: web.Request, kind: Kind, target: Target, fault: Fault | None) -> web.StreamResponse:
        if target.name:
            raise status.bad_request("watching a single object by path is not served; use a field selector")
        watch, options = open_watch(self.storage, kind, target.namespace, request.query, watch_list=self.watch_list)
        woken = asyncio.Event()
        watchers = self.storage.table(kind.storage_key).watchers
        watchers.add(woken)
        try:
            response = WatchResponse(request, watch, fault, self.faults)
            return await response.serve(options, woken, self.bookmark_interval_s)
        finally:
            watchers.discard(woken)

    async def _review(self, request: web.Request) -> web.Response:
        """SelfSubjectAccessReview: what `kubectl auth can-i` asks."""
        review = await _body(request)
        spec = review.get("spec") or {}
        r = spec.get("resourceAttributes") or {}
        resource = "/".join(filter(None, (r.get("resource"), r.get("subresource"))))
        path = (spec.get("nonResourceAttributes") or {}).get("path", "")
        about = Asked(r.get("verb", ""), r.get("group", ""), resource, r.get("namespace", ""), r.get("name", ""), path)
        allowed = self.policy is None or self.policy.allows(self._authenticate(request), about)
        return _json_response({**review, "status": {"allowed": allowed}}, 201)

    # -- faults from another process

    async def _serve_faults(self, request: web.Request) -> web.Response:
        """A Fault as JSON, or `{"action": "restart" | "refuse" | "compact" | "break", "down_s": …}` to act at once."""
        if request.method == "DELETE":
            self.faults.clear()
        elif request.method == "POST":
            body = msgspec.json.decode(await request.read())
            try:
                if "action" in body:
                    self._act(body)
                else:
                    self.faults.add(msgspec.convert(body, Fault))
            except (msgspec.ValidationError, ValueError) as error:
                return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"waiting": msgspec.to_builtins(self.faults.waiting()), "struck": self.faults.struck})

    def _act(self, body: Object) -> None:
        async def soon() -> None:
            await asyncio.sleep(0.05)  # so that this request is answered
            match body["action"]:
                case "compact":
                    self.storage.compact()
                case "break":
                    self.break_connections()
                case _:
                    lose_history = bool(body.get("lose_history"))
                    await self.restart(lose_history=lose_history, down_s=float(body.get("down_s", 0.5)))

        if body["action"] not in ("compact", "break", "restart", "refuse"):
            raise ValueError(f"no such action: {body['action']}")
        self._acting = asyncio.create_task(soon())


def _verb(request: web.Request, name: str) -> str:
    match request.method:
        case "GET" | "HEAD":
            watching = request.query.get("watch") in ("1", "true", "True")
            return "watch" if watching else "get" if name else "list"
        case "DELETE":
            return "delete" if name else "deletecollection"
        case method if method in _WRITES and (method == "POST") != bool(name):
            return _WRITES[method]
        case _:
            raise Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def _strike_early(fault: Fault) -> None:
    """Faults that replace the answer."""
    match fault.what:
        case "status":
            reason = fault.reason or _REASONS.get(fault.code, "")
            raise Refusal(fault.code, reason, fault.message, retry_after_s=fault.retry_after_s)
        case "gone":
            raise status.expired(fault.message)
        case "expire_continue":
            raise status.expired("The provided continue parameter is too old to display a consistent list result.")
        case _:
            return


def _json_response(obj: Object, code: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(obj), status=code, content_type="application/json")


async def _body(request: web.Request, *, optional: bool = False) -> Any:
    data = await request.read()
    if not data and optional:
        return {}
    if request.headers.get("Content-Type", "").startswith("application/apply-patch+yaml"):
        with contextlib.suppress(yaml.YAMLError):
            return yaml.safe_load(data)
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise status.bad_request(f"the object provided is unrecognized (must be of type JSON): {error}") from error
