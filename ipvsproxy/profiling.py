"""/debug/pprof of a Python process: where its time goes, what it waits for, which memory it takes on.

Knows: the interpreter's own profilers, and kube-proxy's paths for the same questions. Must not know: the proxy. Served
on the metrics port where `enableProfiling` is set, and only there: a profile costs speed while it runs.

The answers are Python's: `go tool pprof` does not read them.
"""

from __future__ import annotations

import asyncio
import cProfile
import io
import marshal
import pstats
import sys
import threading
import traceback
import tracemalloc
from typing import Any, cast

from aiohttp import web

DEFAULT_S = 30.0
"""As Go's `profile?seconds=`."""
LONGEST_S = 300.0
_TOP = 60
"""Lines of a report: what lies below has no part worth mentioning."""

_INDEX = """\
/debug/pprof/profile?seconds=30          CPU time by function, for `python -m pstats`, snakeviz and the like
/debug/pprof/profile?seconds=30&debug=1  the same as a table
/debug/pprof/heap?seconds=30             memory taken in that time and still held, by line
/debug/pprof/goroutine                   what every thread and every asyncio task is doing now
"""


def profiling_routes() -> list[web.RouteDef]:
    """The routes; one measurement at a time, a second one meanwhile is answered by 409."""
    one_at_a_time = asyncio.Lock()

    async def measured(request: web.BaseRequest, measure: Any) -> web.Response:
        try:
            seconds = float(request.query.get("seconds", DEFAULT_S))
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= LONGEST_S:
            return web.Response(status=400, text=f"seconds: write a number up to {LONGEST_S:.0f}\n")
        if one_at_a_time.locked():
            return web.Response(status=409, text="another measurement runs: try again when it is done\n")
        async with one_at_a_time:
            return cast("web.Response", await measure(seconds, as_text=request.query.get("debug", "0") != "0"))

    async def profile(request: web.BaseRequest) -> web.Response:
        return await measured(request, _profile)

    async def heap(request: web.BaseRequest) -> web.Response:
        return await measured(request, _heap)

    async def stacks(_: web.BaseRequest) -> web.Response:
        return web.Response(text=_stacks())

    async def index(_: web.BaseRequest) -> web.Response:
        return web.Response(text=_INDEX)

    return [
        web.RouteDef("GET", path, handler, {})
        for path, handler in (
            ("/debug/pprof", index),
            ("/debug/pprof/", index),
            ("/debug/pprof/profile", profile),
            ("/debug/pprof/heap", heap),
            ("/debug/pprof/goroutine", stacks),
        )
    ]


async def _profile(seconds: float, *, as_text: bool) -> web.Response:
    """CPU time of the event loop's thread, which does all the work there is."""
    profiler = cProfile.Profile()
    try:
        profiler.enable()
    except ValueError as error:  # a debugger or a coverage tool sits there
        return web.Response(status=409, text=f"{error}\n")
    try:
        await asyncio.sleep(seconds)
    finally:
        profiler.disable()
    profiler.create_stats()
    if as_text:
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(_TOP)
        return web.Response(text=text.getvalue())
    return web.Response(
        body=marshal.dumps(cast("Any", profiler).stats),
        content_type="application/octet-stream",
        headers={"Content-Disposition": 'attachment; filename="profile.pstats"'},
    )


async def _heap(seconds: float, *, as_text: bool) -> web.Response:
    tracemalloc.start()
    try:
        await asyncio.sleep(seconds)
        lines = tracemalloc.take_snapshot().statistics("lineno")
    finally:
        tracemalloc.stop()
    total = sum(line.size for line in lines)
    head = f"{total} bytes were taken in {seconds:g} s and are still held\n"
    return web.Response(text=head + "".join(f"{line}\n" for line in lines[:_TOP]))


def _stacks() -> str:
    text = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented, for this very purpose
        text.write(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}\n")
    for task in sorted(asyncio.all_tasks(), key=lambda t: t.get_name()):
        task.print_stack(file=text)
        text.write("\n")
    return text.getvalue()
