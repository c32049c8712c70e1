"""Runs nft: one process a script.

Knows: how nft is called, and how its complaints name what they are about. Must not know: the table's text (nftables).
Called by plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import Callable

from ipvsproxy.dataplane import DataplaneError, Op, Unsupported
from ipvsproxy.kernel.errors import error_for

_LOCATION = re.compile(r"^(?:\S+?:(\d+):(\d+)-(\d+): )?Error: (.*)$", re.MULTILINE)
_COULD_NOT = "Could not process rule: "
_ERRNO = {os.strerror(code): code for code in errno.errorcode}
_ERRNO |= dict.fromkeys(("interval overlaps", "conflicting intervals"), errno.EEXIST)  # nft's own finding
_QUOTE_CHARS = 120
TIME_LIMIT_S = 30.0
"""For one transaction: a whole table of 10,000 Services takes about a second. One that hangs must not do so unseen."""
_REMEDY = "nft is not there: install package nftables"
_MODULES = "nf_tables, nft_ct, nft_masq, nft_fib_inet, nft_reject_inet, nft_chain_nat"


class Nft:
    """nft on one table.

    Args:
        family: the table's family, as nft spells it.
        table: its name.
        on_start: told the pid of each process before it can change anything; netlink names its changes by that number.
    """

    def __init__(self, family: str, table: str, on_start: Callable[[int], None] = lambda _: None) -> None:
        self._family = family
        self._table = table
        self._on_start = on_start
        self._lock = asyncio.Lock()

    async def run(self, script: str, op: Op | None = None) -> None:
        """Do all of `script` in one transaction.

        Raises: DataplaneError that quotes what nft stumbled over; then nothing was done.
        """
        async with self._lock:
            code, _, complaint = await self._exec(("nft", "-f", "-"), script.encode())
        if code:
            number, detail = explain(script, complaint)
            raise error_for(op, number, detail)

    async def remove(self) -> None:
        """Delete the table; harmless if there is none."""
        name = f"table {self._family} {self._table}"
        await self.run(f"{name}\ndelete {name}\n")  # made first, for deleting what is not there is an error

    async def version(self) -> tuple[int, ...]:
        """Nft's version.

        Raises: Unsupported if it is not there.
        """
        _, text, _ = await self._exec(("nft", "--version"))
        match = re.search(rb"v(\d+(?:\.\d+)*)", text)
        return tuple(int(part) for part in match[1].split(b".")) if match else ()

    async def rehearse(self, script: str) -> None:
        """Have the kernel look at `script` without doing it.

        Raises: Unsupported, naming modules, if it cannot; DataplaneError (EPERM) without CAP_NET_ADMIN.
        """
        async with self._lock:
            code, _, complaint = await self._exec(("nft", "--check", "-f", "-"), script.encode())
        if not code:
            return
        number, detail = explain(script, complaint)
        if number == errno.EPERM or os.strerror(errno.EPERM) in complaint:
            raise error_for(None, errno.EPERM, detail)
        detail = f"this kernel cannot hold our nftables table: load modules {_MODULES} ({detail})"
        raise Unsupported(None, number, detail)

    async def _exec(self, argv: tuple[str, ...], stdin: bytes = b"") -> tuple[int, bytes, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},  # its words are matched
            )
        except FileNotFoundError as error:
            raise Unsupported(None, errno.ENOENT, _REMEDY) from error
        except OSError as error:  # no memory or no file descriptor left, for one
            raise DataplaneError(None, error.errno or errno.EIO, f"nft cannot be started: {error.strerror}") from error
        try:
            self._on_start(process.pid)
            async with asyncio.timeout(TIME_LIMIT_S):
                out, complaint = await process.communicate(stdin)
        except BaseException as error:
            # Cancelled: half a script must not be taken for all of it. The kernel has the whole transaction or nothing.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if isinstance(error, TimeoutError):
                raise DataplaneError(None, errno.ETIMEDOUT, f"nft did not end within {TIME_LIMIT_S:.0f} s") from error
            raise
        return process.returncode or 0, out, complaint.decode("utf-8", "replace")


def explain(script: str, complaint: str) -> tuple[int, str]:
    """Errno and one line that says what nft complained about, quoting that part of `script`."""
    match = _LOCATION.search(complaint)
    if match is None:
        return errno.EINVAL, f"nft: {complaint.strip().splitlines()[0] if complaint.strip() else 'no reason given'}"
    words = match[4].removeprefix(_COULD_NOT)
    number = next((code for text, code in _ERRNO.items() if words.startswith(text)), errno.EINVAL)
    lines = script.splitlines()
    line, start, end = (int(place or 0) for place in match.group(1, 2, 3))
    if not 1 <= line <= len(lines):  # about the command line
        return number, f"nft: {words}"
    about = lines[line - 1][start - 1 : end]
    head = " ".join(lines[line - 1].split()[:5])
    quoted = about if len(about) <= _QUOTE_CHARS else f"{about[:_QUOTE_CHARS]}…"
    return number, f"nft: {words}: {quoted!r} in `{head} …`"
