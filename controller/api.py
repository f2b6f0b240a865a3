"""The REST API: a WSGI application that shows the conductor's state. It runs on the controller's own event loop, so
every answer is small: lists are paged."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import eventlet
import eventlet.wsgi
import falcon
import falcon.media
import msgspec
import yaml
from eventlet.green import socket as green_socket

from controller import metrics, views
from controller.accepting import Accepting
from controller.bearer import Authorization
from controller.collector import Record
from controller.runtime import Runtime
from controller.server_state import ServerState
from state.configuration import Address
from state.errors import LocalError

_LIMIT_DEFAULT = 100
_LIMIT_MOST = 500
_PORTION = 64
"""Items of a long answer that are made without letting the controller do anything else."""
_EVENT_POLL_SECONDS = 0.05
_KEEP_ALIVE_SECONDS = 15.0
_CLIENT_SECONDS = 30.0
"""For a client to say something, or to take what it is told. One that listens to events has nothing to say."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Page(Generic[T]):
    """`?limit=&cursor=` over a sequence; the cursor is the index of the next item."""

    def __init__(self, request: falcon.Request) -> None:
        self.limit = _number(request, "limit", _LIMIT_DEFAULT, 1, _LIMIT_MOST)
        self.start = _number(request, "cursor", 0, 0, 2**53)

    def of(self, items: Iterable[T]) -> tuple[list[T], str | None]:
        end = self.start + self.limit
        chosen = list(itertools.islice(items, self.start, end + 1))
        return chosen[: self.limit], str(end) if len(chosen) > self.limit else None


def _number(request: falcon.Request, name: str, default: int, low: int, high: int) -> int:
    text = request.get_param(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 18) or not low <= int(text) <= high:
        raise falcon.HTTPUnprocessableEntity(
            description=f"{name} must be a number from {low} to {high}, not {text[:20]!r}"
        )
    return int(text)


def _list(response: falcon.Response, items: list[views.View], next_: str | None = None) -> None:
    response.media = {"items": items, "next": next_}


class Servers:
    def __init__(self, runtime: Runtime) -> None:
        self._conductor = runtime.conductor

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        page: Page[ServerState] = Page(request)
        chosen, next_ = page.of(self._conductor.servers.values())
        now = time.monotonic()
        _list(response, [views.server(self._conductor, state, now) for state in chosen], next_)

    def on_get_one(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        state = self._conductor.servers.get(name)
        if state is None:
            raise falcon.HTTPNotFound(description=f"there is no server named {name}")
        response.media = views.server(self._conductor, state, time.monotonic())


class Vips:
    def __init__(self, runtime: Runtime) -> None:
        self._conductor = runtime.conductor

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        page: Page[int] = Page(request)
        chosen, next_ = page.of(range(len(self._conductor.configuration.vips)))
        _list(response, [views.vip(self._conductor, index) for index in chosen], next_)


class Connections:
    def __init__(self, runtime: Runtime) -> None:
        self._collector = runtime.conductor.collector
        self._servers = runtime.conductor.servers

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        page: Page[tuple[str, Record]] = Page(request)
        server, state = request.get_param("server"), request.get_param("state")
        if server is not None and server not in self._servers:
            raise falcon.HTTPUnprocessableEntity(description=f"there is no server named {server}")
        if state is not None and state not in ("established", "unready"):
            raise falcon.HTTPUnprocessableEntity(description="state must be established or unready")
        records = self._collector.of(server) if server else self._collector.all()
        settled = {"established": (True,), "unready": (False,), None: (True, False)}[state]
        chosen, next_ = page.of(item for item in records if item[1].settled in settled)
        items = []
        for name, record in chosen:
            items.append(views.connection(name, record))
            if len(items) % _PORTION == 0:
                eventlet.sleep(0)
        _list(response, items, next_)

    def on_get_one(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        record = self._collector.get(name)
        if record is None:
            raise falcon.HTTPNotFound(description=f"there is no connection {name}")
        response.media = views.connection_in_full(name, record)


class Bundles:
    def __init__(self, runtime: Runtime) -> None:
        self._collector = runtime.conductor.collector

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        page: Page[str] = Page(request)
        chosen, next_ = page.of(self._collector.bundles())
        records = [(name, self._collector.get(name)) for name in chosen]
        _list(response, [views.bundle(name, record) for name, record in records if record is not None], next_)

    def on_get_one(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        record = self._collector.get(name)
        if record is None or record.header.bundle != name:
            raise falcon.HTTPNotFound(description=f"there is no bundle {name}")
        response.media = views.bundle(name, record)


class Takeovers:
    def __init__(self, runtime: Runtime) -> None:
        self._history = runtime.conductor.history

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        page: Page[Any] = Page(request)
        chosen, next_ = page.of(self._history.all())
        _list(response, [views.takeover(takeover) for takeover in chosen], next_)

    def on_get_one(self, request: falcon.Request, response: falcon.Response, number: int) -> None:
        takeover = self._history.get(number)
        if takeover is None:
            raise falcon.HTTPNotFound(description=f"there is no takeover {number}")
        response.media = views.takeover_in_full(takeover)


class Events:
    """Server-sent events; `Last-Event-ID` continues where a client stopped, as far as events are kept."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        last = request.get_header("Last-Event-ID")
        seen = (
            int(last)
            if last is not None and last.isascii() and last.isdigit() and len(last) < 18
            else self._runtime.event_number
        )
        request.env["eventlet.minimum_write_chunk_size"] = 1  # else events wait for each other
        if seen > self._runtime.event_number:  # the clock was set back between two lives of the controller
            seen = 0
        response.content_type = "text/event-stream"
        response.set_header("Cache-Control", "no-store")
        response.stream = self._stream(seen)

    def _stream(self, seen: int) -> Iterator[bytes]:
        yield b": takeover\n\n"
        quiet = time.monotonic()
        while True:
            for number, kind, body in [event for event in self._runtime.events if event[0] > seen]:
                seen = number
                quiet = time.monotonic()
                yield f"id: {number}\nevent: {kind}\ndata: {body}\n\n".encode()
            if time.monotonic() - quiet > _KEEP_ALIVE_SECONDS:
                quiet = time.monotonic()
                yield b":\n\n"
            eventlet.sleep(_EVENT_POLL_SECONDS)


class Health:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        well = self._runtime.switch is not None
        response.status = falcon.HTTP_200 if well else falcon.HTTP_503
        response.media = {
            "status": "ok" if well else "no switch is connected",
            "servers_up": sum(state.up for state in self._runtime.conductor.servers.values()),
        }


class Metrics:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = metrics.CONTENT_TYPE
        response.data = metrics.render(self._runtime)


class OpenApi:
    def __init__(self) -> None:
        self._document = yaml.safe_load(Path(__file__).with_name("openapi.yaml").read_text(encoding="utf-8"))

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.media = self._document


def _problem(request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    """RFC 9457."""
    response.content_type = "application/problem+json"
    detail = error.description
    if not detail and error.status_code == 404:
        detail = f"there is nothing at {request.path}"
    elif not detail and error.status_code == 405:
        detail = f"{request.method} is not possible at {request.path}"
    body = {"title": error.title, "status": error.status_code, "detail": detail or error.title}
    response.data = json.dumps(body).encode()


def _unexpected(request: falcon.Request, response: falcon.Response, error: Exception, params: object) -> None:
    _log.exception("API: %s %s", request.method, request.path)
    raise falcon.HTTPInternalServerError(description="an internal error; the controller's log has it")


def application(runtime: Runtime, token: str | None = None) -> falcon.App[falcon.Request, falcon.Response]:
    app = falcon.App(middleware=[Authorization(token)])
    handler = falcon.media.JSONHandler(dumps=msgspec.json.encode)  # ten times as quick as the default
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = handler
    app.set_error_serializer(_problem)
    app.add_error_handler(Exception, _unexpected)
    servers, connections, takeovers = Servers(runtime), Connections(runtime), Takeovers(runtime)
    bundles = Bundles(runtime)
    app.add_route("/v1/servers", servers)
    app.add_route("/v1/servers/{name}", servers, suffix="one")
    app.add_route("/v1/vips", Vips(runtime))
    app.add_route("/v1/connections", connections)
    app.add_route("/v1/connections/{name}", connections, suffix="one")
    app.add_route("/v1/bundles", bundles)
    app.add_route("/v1/bundles/{name}", bundles, suffix="one")
    app.add_route("/v1/takeovers", takeovers)
    app.add_route("/v1/takeovers/{number:int(min=1)}", takeovers, suffix="one")
    app.add_route("/v1/events", Events(runtime))
    app.add_route("/healthz", Health(runtime))
    app.add_route("/metrics", Metrics(runtime))
    app.add_route("/openapi.json", OpenApi())
    return app


def listen(address: Address) -> Any:
    """The API's listening socket. Raises `LocalError`."""
    family = green_socket.AF_INET6 if ":" in address.host else green_socket.AF_INET
    sock = green_socket.socket(family, green_socket.SOCK_STREAM)
    sock.setsockopt(green_socket.SOL_SOCKET, green_socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address.host, address.port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise LocalError(f"api.listen: cannot listen on {address}: {error.strerror}") from None
    return sock


def serve(sock: Any, runtime: Runtime, token: str | None) -> None:
    """For ever, on green threads."""
    eventlet.wsgi.server(
        Accepting(sock, "API"),
        application(runtime, token),
        log=logging.getLogger("controller.api.access"),
        log_output=False,
        socket_timeout=_CLIENT_SECONDS,
    )
