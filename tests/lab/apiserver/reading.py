"""Lists and the start of watches: the rules of resourceVersion, limit, continue and selectors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping

import msgspec

from tests.lab.apiserver import status
from tests.lab.apiserver.cluster import without_type
from tests.lab.apiserver.kinds import Kind, Object
from tests.lab.apiserver.selectors import field_matcher, label_matcher
from tests.lab.apiserver.storage import Key, Storage, Stored

Query = Mapping[str, str]
_INCONSISTENT = -1
"""The version in a continue token that gives the rest of the list as it is now."""


def selection(query: Query, kind: Kind, namespace: str) -> Callable[[Object], bool]:
    """Whether an object is asked for: by namespace, label selector and field selector. Raises Refusal (400)."""
    labels = label_matcher(query.get("labelSelector", ""))
    fields = field_matcher(kind, query.get("fieldSelector", ""))

    def selected(value: Object) -> bool:
        return (not namespace or value["metadata"].get("namespace") == namespace) and labels(value) and fields(value)

    return selected


def list_body(storage: Storage, kind: Kind, namespace: str, query: Query) -> bytes:
    """The answer to a list, one page of it where a limit is given. Raises Refusal."""
    selected = selection(query, kind, namespace)
    selective = bool(query.get("labelSelector") or query.get("fieldSelector"))
    limit = _limit(query)
    version, start = _where(storage, query)
    shown_version = storage.version if version is None else version
    items: list[bytes] = []
    last: Key = ("", "")
    remaining = 0
    for stored in storage.page(kind.storage_key, version, start):
        if not selected(stored.value):
            continue
        if limit and len(items) == limit:
            remaining += 1
            if selective:
                break
            continue
        items.append(_item(kind, stored))
        last = stored.key
    metadata: Object = {"resourceVersion": str(shown_version)}
    if remaining:
        metadata["continue"] = _token(shown_version, last)
        if not selective:
            metadata["remainingItemCount"] = remaining
    head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata}
    return msgspec.json.encode(head)[:-1] + b',"items":[' + b",".join(items) + b"]}\n"


def _item(kind: Kind, stored: Stored) -> bytes:
    """One object as a list shows it, that is without kind and apiVersion."""
    if kind.stored_as:
        return msgspec.json.encode(without_type(kind.from_stored(stored.value)))
    return stored.json


def _limit(query: Query) -> int:
    text = query.get("limit") or "0"
    if not text.isdigit():
        raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    if query.get("resourceVersion") == "0" and not query.get("resourceVersionMatch"):
        return 0  # served from the watch cache, which does not page
    return int(text)


def _where(storage: Storage, query: Query) -> tuple[int | None, Key | None]:
    """The version to read (None: the present) and the key to start after (None: the beginning)."""
    asked, rule = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
    if token := query.get("continue"):
        if asked not in ("", "0"):
            raise status.bad_request("specifying resource version is not allowed when using continue")
        return _read_token(storage, token)
    if rule not in ("", "Exact", "NotOlderThan"):
        raise status.bad_list_options("resourceVersionMatch", f'Unsupported value: "{rule}"')
    if rule and not asked:
        problem = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
        raise status.bad_list_options("resourceVersionMatch", problem)
    version = known_version(storage, asked)
    if rule != "Exact":
        return None, None
    if version < storage.compacted:
        message = f"The resourceVersion for the provided list is too old: {version} ({storage.compacted})"
        raise status.expired(message)
    return version, None


def version_number(text: str) -> int:
    """A resourceVersion as a number, 0 for none. Raises Refusal (500) for one that is none."""
    if text and not text.isdigit():
        problem = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        raise status.Refusal(500, "", f'resourceVersion: Invalid value: "{text}": {problem}')
    return int(text or 0)


def known_version(storage: Storage, text: str) -> int:
    """The same. Raises Refusal (504) for one that is not reached yet, too."""
    version = version_number(text)
    if version > storage.version:
        raise status.too_large(version, storage.version)
    return version


def _token(version: int, last: Key) -> str:
    value = {"v": "meta.k8s.io/v1", "rv": version, "start": last}
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


def _read_token(storage: Storage, token: str) -> tuple[int | None, Key]:
    try:
        value = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        version, (namespace, name) = value["rv"], value["start"]
    except (binascii.Error, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise status.bad_request("continue key is not valid") from error
    if version == _INCONSISTENT:
        return None, (namespace, name)
    if version < storage.compacted:
        raise status.expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list "
            "without the continue parameter, or use the continue token in this response to retrieve the remainder of "
            "the results.",
            continue_token=_token(_INCONSISTENT, (namespace, name)),
        )
    return version, (namespace, name)
