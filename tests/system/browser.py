"""Headless Chromium in a host of the lab, unmodified, driven by the DevTools protocol over a pair of pipes.

The pipes (`--remote-debugging-pipe`: descriptor 3 for commands, 4 for answers, JSON ended by a zero byte) need neither
a port nor a driver, and a connection on the host's loopback would be counted among those that the browser opens.

    with Browser(lab, "c1", folder) as browser:
        page = browser.open("http://vip/page.html")
        page.evaluate("document.title")
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from topologies import Lab

_READ_BYTES = 1 << 20
_SECONDS = 60.0
_OPTIONS = [
    "--headless=new",
    "--no-sandbox",  # root has no other choice
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
]

Event = dict[str, Any]


class BrowserFailed(AssertionError):
    """The browser ended, refused a command, or what was waited for did not happen."""


class Browser:
    """A running Chromium with a home and a profile of its own below `folder`."""

    def __init__(self, lab: Lab, client: str, folder: Path) -> None:
        self._lab, self._client, self._folder = lab, client, folder
        self.events: list[Event] = []
        """Everything the browser told, in order."""
        self._number = 0
        self._unread = b""
        self._answers: dict[int, Event] = {}

    def __enter__(self) -> Browser:
        home = self._folder / "home"
        home.mkdir()
        commands, self._commands = os.pipe()
        self._told, told = os.pipe()
        # The shell puts the pipes where Chromium looks for them.
        script = f'exec chromium "$@" 3<&{commands} 4>&{told}'
        arguments = [*_OPTIONS, f"--user-data-dir={home / 'profile'}", "about:blank"]
        with open(self._folder / "chromium.log", "wb") as log:
            self.process = self._lab.popen(
                self._client,
                ["env", f"HOME={home}", "bash", "-c", script, "chromium", *arguments],
                pass_fds=[commands, told],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(commands)
        os.close(told)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(BrowserFailed, OSError, subprocess.TimeoutExpired):
            self.ask("Browser.close")
            self.process.wait(_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._commands)
        os.close(self._told)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """One command; its result."""
        self._number += 1
        number = self._number
        command: Event = {"id": number, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        self.until(lambda: number in self._answers, f"no answer to {method}")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserFailed(f"{method}: {answer['error']}")
        return answer["result"]

    def until(self, condition: Callable[[], object], sentence: str, seconds: float = _SECONDS) -> None:
        """Read what the browser tells until the condition holds, which is asked after every message."""
        limit = time.monotonic() + seconds
        while not condition():
            self._read(limit - time.monotonic(), sentence)

    def _read(self, seconds: float, sentence: str) -> None:
        if not select.select([self._told], [], [], max(0.0, seconds))[0]:
            raise BrowserFailed(f"{sentence}; {self._last_words()}")
        data = os.read(self._told, _READ_BYTES)
        if not data:
            raise BrowserFailed(f"Chromium has ended; {self._last_words()}")
        *messages, self._unread = (self._unread + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    def _last_words(self) -> str:
        return (self._folder / "chromium.log").read_text(errors="replace")[-500:]

    def told(self, method: str) -> list[Event]:
        """The parameters of every event of one kind so far."""
        return [event["params"] for event in self.events if event["method"] == method]

    def open(self, url: str) -> Page:
        """A new tab, loading `url`. What it fetches is told as events of the domain `Network`."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.ask("Network.enable")
        page.ask("Page.enable")
        page.ask("Page.navigate", url=url)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def ask(self, method: str, **parameters: Any) -> Any:
        return self._browser.ask(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserFailed(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def fetching(self, url: str) -> Fetching:
        """What the page is fetching from `url`, from the first byte on; returns when the response has begun."""
        told: list[Event] = []

        def begun() -> bool:
            told[:] = [e for e in self._browser.told("Network.responseReceived") if e["response"]["url"] == url]
            return bool(told)

        self._browser.until(begun, f"no response from {url}")
        request = told[0]["requestId"]
        before = self.ask("Network.streamResourceContent", requestId=request)["bufferedData"]
        return Fetching(self._browser, request, base64.b64decode(before))


class Fetching:
    """One response's body."""

    def __init__(self, browser: Browser, request: str, before: bytes) -> None:
        self._browser, self._request, self._before = browser, request, before

    def _told(self, method: str) -> list[Event]:
        return [event for event in self._browser.told(method) if event["requestId"] == self._request]

    @property
    def body(self) -> bytes:
        """As far as it was told."""
        return self._before + b"".join(
            base64.b64decode(event["data"]) for event in self._told("Network.dataReceived") if "data" in event
        )

    @property
    def finished(self) -> bool:
        return bool(self._told("Network.loadingFinished"))
