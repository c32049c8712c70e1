"""A byte stream cut into lines, the framing of watch streams.

Knows: newlines and a limit. Must not know: what a line means. Called by `watchproto`.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no Kubernetes object: etcd refuses objects over 1.5 MiB, and JSON is within a small factor of
that."""


class LineTooLong(ValueError):  # noqa: N818 - says what the line is
    """A line exceeds MAX_LINE_BYTES, or the given limit: what arrives is not a watch stream."""


class LineSplitter:
    """Cuts a byte stream into lines; however the bytes are cut into chunks, the lines are the same.

    Work is linear in the bytes, one long line in many small chunks included.
    """

    def __init__(self, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self._pending = bytearray()
        self._limit_bytes = limit_bytes

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The non-empty lines `chunk` completes, without their line ends. Raises LineTooLong."""
        head, newline, rest = chunk.partition(b"\n")
        self._pending += head
        if len(self._pending) > self._limit_bytes:
            raise LineTooLong(f"a line of more than {self._limit_bytes} bytes")
        if not newline:
            return
        first = bytes(self._pending).rstrip(b"\r")
        self._pending.clear()
        *whole, tail = rest.split(b"\n")
        self._pending += tail
        if first:
            yield first
        for line in whole:
            if line and line != b"\r":
                yield line
