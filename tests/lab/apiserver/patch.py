"""PATCH bodies: JSON merge patch, JSON patch, and strategic merge.

Strategic merge knows the merge keys of the lists below and `$patch: delete|replace`; `$setElementOrder` and
`$retainKeys` are accepted and ignored. Any other list is replaced whole.
"""

from __future__ import annotations

import copy
from typing import Any

from tests.lab.apiserver.status import Refusal, bad_request

_MERGE_KEYS = {
    "ports": "port",
    "conditions": "type",
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ownerReferences": "uid",
    "addresses": "type",
    "podIPs": "ip",
}
_SETS = {"finalizers"}


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_patch(target: Any, patch: Any) -> Any:
    """Like a merge patch, but known lists are merged by key."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {k: v for k, v in patch.items() if k != "$patch"}
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        elif isinstance(value, list) and key in _SETS:
            result[key] = [*(result.get(key) or []), *(v for v in value if v not in (result.get(key) or []))]
        elif isinstance(value, list) and key in _MERGE_KEYS and all(isinstance(v, dict) for v in value):
            result[key] = _merge_list(result.get(key) or [], value, _MERGE_KEYS[key])
        else:
            result[key] = strategic_patch(result.get(key), value)
    return result


def _merge_list(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    if any(item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if item.get("$patch") != "replace"]
    result = list(target)
    for item in patch:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        index = next((i for i, old in enumerate(result) if old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if index is not None:
                del result[index]
        elif index is None:
            result.append(strategic_patch({}, item))
        else:
            result[index] = strategic_patch(result[index], item)
    return result


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902; a failed operation is a 422 as on a real server."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = copy.deepcopy(target)
    for op in operations:
        try:
            document = _operate(document, op)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            message = f"the server rejected our request due to an error in our request: {op}: {error}"
            raise Refusal(422, "Invalid", message) from error
    return document


def _operate(document: Any, op: dict[str, Any]) -> Any:
    steps = _steps(op["path"])
    match op["op"]:
        case "add":
            return _put(document, steps, copy.deepcopy(op["value"]), insert=True)
        case "replace":
            _look(document, steps)
            return _put(document, steps, copy.deepcopy(op["value"]), insert=False)
        case "remove":
            parent = _look(document, steps[:-1])
            del parent[int(steps[-1]) if isinstance(parent, list) else steps[-1]]
            return document
        case "test":
            if _look(document, steps) != op["value"]:
                raise ValueError("testing value failed")
            return document
        case "copy" | "move" as verb:
            value = copy.deepcopy(_look(document, _steps(op["from"])))
            if verb == "move":
                document = _operate(document, {"op": "remove", "path": op["from"]})
            return _put(document, steps, value, insert=True)
        case other:
            raise ValueError(f"unexpected kind: {other}")


def _steps(pointer: str) -> list[str]:
    if pointer and not pointer.startswith("/"):
        raise ValueError(f"{pointer!r} is no JSON pointer")
    return [s.replace("~1", "/").replace("~0", "~") for s in pointer.split("/")[1:]]


def _look(document: Any, steps: list[str]) -> Any:
    for step in steps:
        document = document[int(step) if isinstance(document, list) else step]
    return document


def _put(document: Any, steps: list[str], value: Any, *, insert: bool) -> Any:
    if not steps:
        return value
    parent, last = _look(document, steps[:-1]), steps[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif last == "-":
        parent.append(value)
    elif insert:
        if not 0 <= int(last) <= len(parent):
            raise IndexError("index out of range")
        parent.insert(int(last), value)
    else:
        parent[int(last)] = value
    return document
