"""The controller as a process: from a configuration file to a running Ryu application."""

# ruff: noqa: E402 - the first thing in this process: Ryu and the API share eventlet's hub
from __future__ import annotations

import eventlet

eventlet.monkey_patch(thread=False)

import socket

from controller import api, ryu_adapter
from controller.runtime import Runtime
from state import token
from state.configuration import Configuration
from state.errors import LocalError
from state.process import allow_files, settle
from state.store import EmbeddedStore


def run(configuration: Configuration) -> None:
    """Until the process ends. Raises `LocalError` when a port is in use, or the store or the token cannot be had."""
    allow_files()
    file = configuration.api.token_file
    secret = token.read(file) if file is not None else None
    _check_free(configuration)
    store = EmbeddedStore(configuration.state)
    runtime = Runtime(configuration, store)
    runtime.listen()
    api_socket = api.listen(configuration.api.listen)
    eventlet.spawn_n(api.serve, api_socket, runtime, secret)
    settle()
    listen = configuration.switch.listen
    ryu_adapter.run("controller.app", listen.host, listen.port, {"takeover": runtime})


def _check_free(configuration: Configuration) -> None:
    """Ryu would log a traceback from a green thread and go on without a switch."""
    listen = configuration.switch.listen
    with socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            raise LocalError(f"switch.listen: cannot listen on {listen}: {error.strerror}") from None
