"""Secrets as client-go sends them in protobuf: Helm keeps its releases in them, and the API server stub reads JSON.

Source: k8s.io/apimachinery/pkg/runtime/generated.proto (Unknown), meta/v1 (ObjectMeta), api/core/v1 (Secret).
"""

from __future__ import annotations

import base64
from collections import defaultdict
from typing import Any

MAGIC = b"k8s\x00"
_BYTES, _VARINT = 2, 0


def secret(body: bytes) -> dict[str, Any]:
    """The Secret in a request's body; its namespace is in the request's path."""
    assert body.startswith(MAGIC)
    (raw,) = fields(body[len(MAGIC) :])[2]
    parts = fields(raw)
    metadata = fields(parts[1][0])
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": metadata[1][0].decode(),
            "labels": {k.decode(): v.decode() for k, v in map(_pair, metadata[11])},
        },
        "data": {k.decode(): base64.b64encode(v).decode() for k, v in map(_pair, parts[2])},
        "type": parts[3][0].decode(),
    }


def _pair(entry: bytes) -> tuple[bytes, bytes]:
    found = fields(entry)
    return found[1][0], found[2][0]


def fields(message: bytes) -> dict[int, list[bytes]]:
    """Length-delimited fields of a message by number; numbers are passed over."""
    found: dict[int, list[bytes]] = defaultdict(list)
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == _BYTES:
            found[tag >> 3].append(message[at : at + value])
            at += value
        else:
            assert tag & 7 == _VARINT, f"wire type {tag & 7}"
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
