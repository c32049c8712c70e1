"""A command of ours in a process of its own, as a shell would start it."""

from __future__ import annotations

import asyncio
import sys

_LIMIT_S = 50


async def run_module(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m WORDS…`, which must not end with a traceback."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), _LIMIT_S)
    assert b"Traceback" not in err, err
    return process.returncode or 0, out.decode(), err.decode()
