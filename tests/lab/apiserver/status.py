"""Errors with the Status bodies a real API server writes (metav1.Status)."""

from __future__ import annotations

from typing import Any

from tests.lab.apiserver.kinds import Kind, Object


class Refusal(Exception):  # noqa: N818 - what it is to the client
    """An answer that is a Status."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Object | None = None,
        retry_after_s: int | None = None,
        continue_token: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.retry_after_s = retry_after_s
        self.continue_token = continue_token

    def body(self) -> Object:
        details = dict(self.details)
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        metadata = {"continue": self.continue_token} if self.continue_token else {}
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if details:
            status["details"] = details
        return status


def _details(kind: Kind, name: str, **more: Any) -> Object:
    details: Object = {"name": name, "kind": kind.plural}
    if kind.group:
        details["group"] = kind.group
    return {**details, **more}


def not_found(kind: Kind, name: str) -> Refusal:
    return Refusal(404, "NotFound", f'{kind.qualified} "{name}" not found', details=_details(kind, name))


def no_such_path() -> Refusal:
    return Refusal(404, "NotFound", "the server could not find the requested resource")


def already_exists(kind: Kind, name: str) -> Refusal:
    return Refusal(409, "AlreadyExists", f'{kind.qualified} "{name}" already exists', details=_details(kind, name))


def conflict(kind: Kind, name: str, why: str = "") -> Refusal:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {kind.qualified} "{name}": {why}'
    return Refusal(409, "Conflict", message, details=_details(kind, name))


def bad_request(message: str) -> Refusal:
    return Refusal(400, "BadRequest", message)


def invalid(kind: Kind, name: str, *causes: tuple[str, str]) -> Refusal:
    """422; causes are (field, what is wrong)."""
    errors = [f"{field}: {message}" for field, message in causes]
    text = errors[0] if len(errors) == 1 else f"[{', '.join(errors)}]"
    qualified = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    listed = [{"reason": "FieldValueInvalid", "message": m, "field": f} for f, m in causes]
    details = {"name": name, "group": kind.group, "kind": kind.kind, "causes": listed}
    return Refusal(422, "Invalid", f'{qualified} "{name}" is invalid: {text}', details=details)


def bad_list_options(field: str, message: str) -> Refusal:
    return Refusal(
        422,
        "Invalid",
        f'ListOptions.meta.k8s.io "" is invalid: {field}: {message}',
        details={
            "group": "meta.k8s.io",
            "kind": "ListOptions",
            "causes": [{"reason": "FieldValueForbidden", "message": message, "field": field}],
        },
    )


def expired(message: str, *, continue_token: str = "") -> Refusal:
    return Refusal(410, "Expired", message, continue_token=continue_token)


def too_large(asked: int, current: int) -> Refusal:
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    return Refusal(504, "Timeout", message, details={"causes": causes}, retry_after_s=1)


def unauthorized() -> Refusal:
    return Refusal(401, "Unauthorized", "Unauthorized")
