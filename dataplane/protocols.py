"""Application protocols by the name that the configuration gives them: those built in, and any other by import path.

`protocol: "mypackage.module:KIND"` names an `ApplicationKind` that is in the module `mypackage.module` under the name
`KIND`. The module is imported as Python imports any other: it is installed beside this package, or on PYTHONPATH.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from dataplane import ftp, http
from dataplane.rtsp import RTSP
from dataplane.stack import ApplicationKind
from state.configuration import Serving
from state.errors import LocalError

BUILT_IN: dict[str, Callable[[Serving], ApplicationKind]] = {
    "http": http.kind,
    "ftp": ftp.kind,
    "rtsp": lambda serving: RTSP,
}
"""Made with the configuration's limits."""


def find(protocol: str, serving: Serving | None = None) -> ApplicationKind:
    """The kind that the configuration's `protocol` names. Raises `LocalError` that says what is wrong with it.

    `serving`: limits for those built in; their defaults when not given.
    """
    make = BUILT_IN.get(protocol)
    if make is not None:
        return make(serving or Serving())
    module_name, colon, name = protocol.partition(":")
    if not colon:
        raise LocalError(f"{protocol} is no protocol; known are {', '.join(BUILT_IN)}")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module of anybody's may fail in any way
        raise LocalError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if found is None:
        raise LocalError(f"{module_name} has no {name}")
    if not isinstance(found, ApplicationKind):
        raise LocalError(f"{protocol} is of type {type(found).__name__}, not an ApplicationKind")
    return found


def problem(protocol: str) -> str | None:
    """What is wrong with it, for `state.configuration.load`."""
    try:
        find(protocol)
    except LocalError as error:
        return str(error)
    return None
