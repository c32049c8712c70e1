"""Who may do what: Kubernetes RBAC over the objects of a manifest, and the record of what was asked.

Given Roles and bindings, they are evaluated as the API server does. Given rules without any binding, they hold for
every token, so that a chart's role can be tried alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.lab.apiserver.kinds import Object


@dataclass(frozen=True)
class User:
    """Who asks."""

    name: str
    groups: tuple[str, ...] = ("system:authenticated",)


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def user_of(name: str) -> User:
    """The user with the groups a real server would give it."""
    groups: tuple[str, ...] = ("system:authenticated",)
    if name.startswith("system:serviceaccount:"):
        groups += ("system:serviceaccounts", f"system:serviceaccounts:{name.split(':')[2]}")
    return User(name, groups)


@dataclass(frozen=True)
class Asked:
    """A request in RBAC's terms."""

    verb: str
    group: str = ""
    resource: str = ""
    """With the subresource: `services/status`."""
    namespace: str = ""
    name: str = ""
    path: str = ""
    """Of a request that is for no resource."""


@dataclass(frozen=True)
class Recorded:
    """What a client asked and got."""

    asked: Asked
    user: str
    status: int
    query: str
    user_agent: str


@dataclass
class Policy:
    """Roles and bindings."""

    roles: dict[tuple[str, str, str], list[Object]] = field(default_factory=dict)
    """(kind, namespace, name) → rules."""
    bindings: list[Object] = field(default_factory=list)

    @classmethod
    def of(cls, documents: Iterable[Object]) -> Policy:
        policy = cls()
        for doc in documents:
            kind, metadata = doc.get("kind"), doc.get("metadata") or {}
            if kind == "Role":
                policy.roles["Role", metadata.get("namespace", "default"), metadata["name"]] = doc.get("rules") or []
            elif kind == "ClusterRole":
                policy.roles["ClusterRole", "", metadata["name"]] = doc.get("rules") or []
            elif kind in {"RoleBinding", "ClusterRoleBinding"}:
                policy.bindings.append(doc)
        return policy

    def allows(self, user: User, asked: Asked) -> bool:
        if "system:masters" in user.groups:
            return True
        return any(_rule_allows(rule, asked) for rule in self._rules(user, asked.namespace))

    def _rules(self, user: User, namespace: str) -> Iterable[Object]:
        if not self.bindings:
            for (_kind, within, _name), rules in self.roles.items():
                if not within or within == namespace:
                    yield from rules
            return
        for binding in self.bindings:
            within = binding["metadata"].get("namespace", "default") if binding["kind"] == "RoleBinding" else ""
            if within and within != namespace:
                continue
            if any(_is_subject(s, user, within) for s in binding.get("subjects") or ()):
                ref = binding["roleRef"]
                role_within = within if ref["kind"] == "Role" else ""
                yield from self.roles.get((ref["kind"], role_within, ref["name"]), ())


def _is_subject(subject: Object, user: User, namespace: str) -> bool:
    match subject["kind"]:
        case "ServiceAccount":
            return user.name == f"system:serviceaccount:{subject.get('namespace', namespace)}:{subject['name']}"
        case "Group":
            return subject["name"] in user.groups
        case _:
            return bool(subject["name"] == user.name)


def _rule_allows(rule: Object, asked: Asked) -> bool:
    if not {"*", asked.verb} & set(rule.get("verbs") or ()):
        return False
    if asked.path:
        return any(
            url == asked.path or (url.endswith("*") and asked.path.startswith(url[:-1]))
            for url in rule.get("nonResourceURLs") or ()
        )
    if not {"*", asked.group} & set(rule.get("apiGroups") or ()):
        return False
    resources = set(rule.get("resources") or ())
    _, slash, subresource = asked.resource.partition("/")
    if not resources & {"*", asked.resource} and not (slash and f"*/{subresource}" in resources):
        return False
    names = rule.get("resourceNames")
    return not names or asked.name in names
