"""From an errno and what was asked to the error the reconciler knows."""

from __future__ import annotations

import errno
import os

from ipvsproxy.dataplane import (
    AddVirtualServer,
    AlreadyExists,
    DataplaneError,
    EditVirtualServer,
    Interrupted,
    NotFound,
    Op,
    Unsupported,
)

_CLASS: dict[int, type[DataplaneError]] = {
    errno.EEXIST: AlreadyExists,
    errno.ENOENT: NotFound,
    errno.ESRCH: NotFound,
    errno.ENODEV: NotFound,
    errno.EOPNOTSUPP: Unsupported,
    errno.EPROTONOSUPPORT: Unsupported,
    errno.EAFNOSUPPORT: Unsupported,
    errno.EINTR: Interrupted,
    errno.ENOBUFS: Interrupted,
    errno.ETIMEDOUT: Interrupted,
    errno.EBUSY: Interrupted,
}


def error_for(op: Op | None, code: int, detail: str = "") -> DataplaneError:
    """The error for `code`, with the remedy where the operation makes it plain."""
    if isinstance(op, AddVirtualServer | EditVirtualServer) and code == errno.ENOENT:
        # The kernel has looked for the module itself (request_module) and found none.
        name = op.config.scheduler.value
        return Unsupported(op, code, f"no scheduler {name!r}: load module ip_vs_{name}")
    return _CLASS.get(code, DataplaneError)(op, code, detail or os.strerror(code))
